"""``jaxgen score``: how likely a model finds texts, as a table or as JSON on standard output."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import chain, tee
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, cast

from jaxgen.cli.adaptation_flags import ADAPTIVE_RULES, FITTED, AdaptiveScoringConfig, adaptive_options
from jaxgen.cli.common import SafeStream, discard, escape_controls, json_line, log, one_line, write_out
from jaxgen.cli.flags import Command, Excludes, Flag, Needs, check_flags, fill_value, parse
from jaxgen.cli.mixture_flags import MIXTURE_RULES, MixtureConfig, fill_mixture_flags, open_sampler
from jaxgen.errors import UsageError, check_int, counted
from jaxgen.runs.groups import Group
from jaxgen.runtime import MIN_SECONDS

if TYPE_CHECKING:
    from jaxgen.cli.token_colors import TokenColors
    from jaxgen.inference.scorer import Candidate, Score, ScoredText, Scorer, ScoreStream, TokenScores
    from jaxgen.tokenizers.base import Tokenizer

DESCRIPTION = """How likely a model finds a text: log-probability, perplexity per token and per word, bits per character
and per byte.

    jaxgen score book.txt other.txt                a line for each, one for all
    jaxgen score --text "To be, or not to be"      text on the command line
    cat book.txt | jaxgen score -                  text from standard input
    jaxgen score big.txt --state cold              fast: windows of 64 tokens
    jaxgen score big.txt --lanes 32                32 places of a text at once
    jaxgen score book.txt --adapt                  learn from it while reading
    jaxgen score --validation --adapt --fit        with fitted numbers
    jaxgen score --text "To be" --per-token --top 3  tokens and best alternatives
    jaxgen score names.txt --lines                 each line is a text
    jaxgen score --prompt "The king" --candidates " is" " are" " of"
    jaxgen score book.txt --json                   one JSON object for each text
    jaxgen score book.txt --color                  the text, coloured by probability
    jaxgen score book.txt --surprising 10 --beside runs/ngram

Texts are read in pieces, so that memory does not grow with them. A model of running text scores a text as it stands
after a line break; a model of documents also scores its end, <eos>. Every character counts, including the line break
at the end of a file. A word is what stands between white space, or a line end, as the literature counts words."""
JSON = """Write one JSON object for each text on a line of its own, log-probabilities in nats; with --per-token also its
tokens. Bytes that are not UTF-8, which byte-level models read, become U+FFFD."""
FILES = "Text files to score (UTF-8, gzip too), or named sets (ptb-test); - is standard input."

#: Files of at least this many bytes have a progress bar.
LARGE = 1 << 20
#: A speed is shown from this many tokens on.
MEASURABLE = 10_000
HEADER = (
    f"{'tokens':>11}  {'logp':>15}  {'nats/token':>10}  {'perplexity':>10}  {'ppl/word':>10}  {'bits/char':>9}  "
    f"{'bits/byte':>9}  text"
)
TOKEN_HEADER = f"{'position':>9}  {'logp':>9}  {'prob':>6}  token"
RANK_HEADER = f"{'rank':>5}  {'tokens':>6}  {'logp':>10}  {'logp/token':>10}  candidate"


#: Flags that show tokens of a whole text.
SHOWING = ("--color", "--surprising")


class ScoreConfig(AdaptiveScoringConfig, MixtureConfig):
    """Flags of ``jaxgen score``."""

    in_text: ClassVar[Group] = Group("Text")
    text: tuple[str, ...] = ()
    """Texts to score instead of files."""
    validation: bool = False
    """Score the validation text of the run instead of files."""
    lines: bool = False
    """Score every line of a file as a separate text, for a model trained with --documents line. Lines of white space
    are skipped. The table sums them up for each file; --json and --per-token show each."""
    prompt: str = ""
    """Text to read before each text; it is not scored."""
    candidates: tuple[str, ...] = ()
    """Continuations of the prompt to rank, the most probable first. Include the space before a word."""
    unk: Literal["error", "skip", "keep"] = "error"
    """What to do with characters that are not in the vocabulary. skip: leave them out of the log-probability and of
    the counts. keep: score them as the token <unk>; bits are then a lower bound."""
    end: Literal["yes", "no"] | None = None
    """Whether a model of documents scores the end of a text. Default: yes, for candidates no."""

    in_method: ClassVar[Group] = Group("Method")
    state: Literal["carried", "cold"] = "carried"
    """carried: one state from the beginning to the end of a text. cold: the state is reset in every window, with only
    the preceding token as context; faster, and the text scores worse."""
    window: int = 64
    """Tokens of a window of --state cold."""
    lanes: int = 1
    """Segments of one text that are scored together. 1: exactly the carried state. More: the state is reset every
    4,096 tokens and warmed up with the 256 tokens before; faster, with almost the same result, which does not depend
    on the number except by rounding."""

    in_output: ClassVar[Group] = Group("Output")
    per_token: bool = False
    """Write every token with its log-probability in nats and its probability."""
    top: int = 0
    """With --per-token: also write this many of the most probable tokens with their probabilities, at most 1,000."""
    color: Literal["auto", "always", "never"] = "never"
    """Write the text, each token in a colour that tells its probability. auto: on a terminal with colours. --color
    alone is auto."""
    surprising: int = 0
    """Show this many of the most surprising tokens of each text, with their bits and the text around them."""
    beside: str | None = None
    """Another run, such as an n-gram, which scores the texts too, in the same way."""


RULES = (
    *MIXTURE_RULES,
    Excludes("--candidates", ("files", "--text", "--lines"), "ranks continuations of --prompt"),
    Excludes("--text", ("files",), "gives the texts"),
    Excludes("--validation", ("files", "--text", "--candidates"), "scores the text of the run"),
    Needs("--lines", ("files",), "splits files into texts"),
    Needs("--window", ("--state cold",), "is the length of a cold window"),
    Excludes("--lanes", ("--lines", "--candidates", "--state cold"), "splits one text with a carried state"),
    Excludes("--prompt", ("--lanes", "--state cold"), "needs one state that is carried through the text"),
    Excludes("--candidates", ("--state cold",), "continues the state of the prompt"),
    Needs("--top", ("--per-token",), "adds tokens to every token"),
    Excludes("--candidates", ("--per-token",), "shows no tokens"),
    *(Excludes(flag, ("--candidates", "--lines"), "shows whole texts") for flag in (*SHOWING, "--beside")),
    Excludes("--color", ("--json", "--per-token"), "writes the text"),
    Excludes("--beside", ("--mix-fit", "--fit"), "compares runs as they are"),
    *ADAPTIVE_RULES,
)


def score(args: list[str]) -> None:
    """Parse ``args`` and write the scores that they ask for."""
    args = fill_value(fill_mixture_flags(args), "--color", "auto")
    extra = [
        Flag("files", tuple[str, ...], (), FILES, "[FILE ...]", positional=True),
        Flag("json", bool, False, JSON),
    ]
    config, values = parse(ScoreConfig, args, prog="jaxgen score", description=DESCRIPTION, extra=extra)
    files: tuple[str, ...] = values["files"]
    check(config, args, files)

    from jaxgen.data.datasets import text_path

    files = tuple(map(text_path, files))
    from jaxgen.cli.sampling_flags import with_condition_flags
    from jaxgen.data.files import check_readable
    from jaxgen.inference.scorer import Scorer
    from jaxgen.runtime import need_backend

    check_readable(files)
    need_backend()
    sampler = with_condition_flags(open_sampler(config, "score"), config)
    options = adaptive_options(config, args, sampler)
    if config.mix_fit is not None and not options.plain:  # networks that adapt deserve other weights
        sampler = with_condition_flags(open_sampler(config, "score", reading=options), config, note=False)
    end = {"yes": True, "no": False, None: False if config.candidates else None}[config.end]
    method: dict[str, Any] = {
        "state": config.state,
        "window": config.window,
        "lanes": config.lanes,
        "unk": config.unk,
        "end": end,
    }
    scorer = Scorer(sampler, top=config.top, **method, **options.for_scorer)
    beside = None if config.beside is None else open_beside(config, scorer, method | options.for_scorer)
    writer = (JsonScores if values["json"] else ScoreTable)(scorer, config.per_token, config.surprising, beside)
    if config.color != "never" and isinstance(writer, ScoreTable):
        from jaxgen.cli.token_colors import open_colors

        writer.colors = open_colors(config.color, sampler, sampler.open_prompt(config.prompt, unk=config.unk)[1])
    began = time.perf_counter()
    score_all = score_candidates if config.candidates else score_lines if config.lines else score_texts
    score_all = score_validation if config.validation else score_all
    total = score_all(scorer, config, files, writer)
    if len(files or config.text) > 1:
        writer.write_total("all", total)
    for note in score_notes(total, config):
        log(note)
    log(describe_speed(total.tokens, time.perf_counter() - began, scorer.compile_seconds))


main = Command(score, text_only=True)


def open_beside(config: ScoreConfig, scorer: Scorer, method: dict[str, Any]) -> Scorer:
    """The scorer of ``--beside``. Raises ``UsageError`` if its tokens cannot be compared with those of the first."""
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.scorer import Scorer

    beside = Scorer(Sampler.load(config.beside, "score"), **method)
    tokenizers = [each.sampler.tokenizer.to_json() for each in (scorer, beside)]
    if config.surprising and tokenizers[0] != tokenizers[1]:
        raise UsageError(
            f"The tokens of {config.beside} are others, which --surprising cannot compare: give a run that was trained "
            "on the same text at the same level, or leave out --surprising."
        )
    return beside


def check(config: ScoreConfig, args: Sequence[str], files: Sequence[str]) -> None:
    """Raise ``UsageError`` for flags that contradict each other or have no effect."""
    even_default = ("--prompt", "--top", "--window", "--adapt-segment", *FITTED)
    check_flags(RULES, config, args, even_default=even_default, also=("files",) if files else ())
    if not (files or config.text or config.candidates or config.validation):
        raise UsageError(
            "There is nothing to score: give files, - for standard input, --text TEXT, --validation, or --prompt TEXT "
            "--candidates A B."
        )
    adaptive_options(config, args)
    check_int("The number of surprising tokens (--surprising)", config.surprising, 0)
    if "-" in files and config.beside is not None:
        raise UsageError("Standard input (-) can be read once, and --beside reads a text again: give a file.")
    if files.count("-") > 1:
        raise UsageError("Standard input (-) was given twice, but can be read once: give it once.")


def score_notes(total: Score, config: ScoreConfig) -> Iterator[str]:
    """Notes on unknown tokens and on cuts in the text, which affect a score."""
    if total.unknown and config.unk == "skip":
        yield (
            f"note: unknown tokens were left out ({total.unknown:,} of them): they are in neither the log-probability "
            "nor the counts."
        )
    elif total.unknown:
        yield f"note: unknown tokens were scored as <unk> ({total.unknown:,} of them): bits are a lower bound."
    if total.forced:
        yield (
            f"note: the text was cut {total.forced} times where there was no white space for a million characters; "
            "a few tokens there may differ from those of the text as a whole."
        )


def score_texts(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: ScoreWriter) -> Score:
    """Score every file, or every text of ``--text``; returns the total."""
    from jaxgen.inference.scorer import Score

    total = Score()
    for number, text in enumerate(files or config.text, start=1):
        if files:
            name, where, about = text, f"The file {text}", {}
        else:
            name, where, about = f"text {number}", f"Text {number}", {"text": text}

        def read(reader: Scorer, text: str = text, where: str = where) -> ScoreStream:
            bar = not (config.per_token or config.color != "never")
            pieces = read_with_progress(text, reader.sampler.tokenizer, bar=bar) if files else iter([text])
            return reader.stream(pieces, config.prompt, where)

        total += writer.write_text({"name": name, **about}, read)
    return total


def score_lines(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: ScoreWriter) -> Score:
    """Score every line of every file as a separate text; returns the total."""
    from jaxgen.data.files import read_lines
    from jaxgen.inference.scorer import Score

    total = Score()
    for path in files:
        pieces = read_with_progress(path, scorer.sampler.tokenizer, bar=not config.per_token)
        lines = read_lines(scorer.sampler.reading.pieces(pieces))
        texts, shown = tee(lines)  # scoring reads ahead of the scores that it returns
        of_file, number = Score(), 0
        for (score, tokens), text in zip(scorer.score_each(texts, config.prompt, f"The file {path}, text"), shown):
            number += 1
            writer.write_line({"name": path, "number": number, "text": text}, score, tokens)
            of_file += score
        writer.write_total(f"{path} ({counted(number, 'text')})", of_file)
        total += of_file
    return total


def score_validation(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: ScoreWriter) -> Score:
    """Score the validation text of the run; returns its score, or the total of its documents."""
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.inference.scorer import Score

    sampler = scorer.sampler
    if not sampler.runs or sampler.conditioning is not None:
        raise UsageError("--validation is for runs without labels and features: give files instead.")
    texts, *others = [LoadedRun.open(run).validation() for run in sampler.runs]
    if any(other != texts for other in others):
        raise UsageError("The runs of --mix have different validation texts: give files instead of --validation.")
    name = "validation"
    if not sampler.documents:
        return writer.write_text(
            {"name": name}, lambda reader: reader.stream(texts, config.prompt, "The validation text")
        )
    total = Score()
    for number, (score, tokens) in enumerate(scorer.score_each(texts, config.prompt, "Validation text"), start=1):
        writer.write_line({"name": name, "number": number, "text": texts[number - 1]}, score, tokens)
        total += score
    writer.write_total(f"{name} ({counted(len(texts), 'text')})", total)
    return total


def score_candidates(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: ScoreWriter) -> Score:
    """Rank the continuations of the prompt; returns the total of their scores."""
    from jaxgen.inference.scorer import Score

    ranked = scorer.rank(config.prompt, config.candidates)
    writer.write_ranking(config.prompt, ranked)
    if any(each.tied for each in ranked):
        log(
            "note: candidates with = after their rank are equally likely; they keep the order in which they were given."
        )
    return sum((each.score for each in ranked), Score())


def read_with_progress(path: str, tokenizer: Tokenizer, bar: bool) -> Iterator[str]:
    """The text of a file in pieces; with ``bar``, a large file has a progress bar on a terminal."""
    from jaxgen.data.files import BYTE_RUN, read_pieces

    any_bytes = tokenizer.kind == "byte"
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if not (bar and size >= LARGE and sys.stderr is not None and sys.stderr.isatty()):
        yield from read_pieces(path, any_bytes=any_bytes, remedy=BYTE_RUN)
        return
    from rich.console import Console

    from jaxgen.cli.progress import reading_bar

    console = Console(file=cast(IO[str], SafeStream(sys.stderr, lambda _: discard(sys.stderr))))
    with reading_bar(console) as progress:
        line = progress.add_task("scoring", total=size)
        yield from read_pieces(
            path, any_bytes=any_bytes, seen=lambda seen: progress.advance(line, seen), remedy=BYTE_RUN
        )


def describe_speed(tokens: int, seconds: float, compiling: float) -> str:
    """The number of scored tokens, and how many a second without the time spent compiling."""
    total = f"{counted(tokens, 'token')} in {seconds:.2f} s"
    if tokens < MEASURABLE or seconds - compiling < MIN_SECONDS:
        return total
    rate = tokens / (seconds - compiling)
    return f"{total}; {rate:,.0f} tokens/s after {compiling:.1f} s of compiling"


def start(parts: Iterable[TokenScores]) -> Iterator[TokenScores]:
    """The same parts, the first computed now: a text that cannot be read leaves no half-written output."""
    source = iter(parts)
    first = next(source, None)
    return source if first is None else chain([first], source)


#: Opens a text for a scorer.
Read = Callable[["Scorer"], "ScoreStream"]


def keep(parts: Iterable[TokenScores], kept: list[TokenScores]) -> Iterator[TokenScores]:
    """The same parts, each also put into ``kept``."""
    for part in parts:
        kept.append(part)
        yield part


def read_beside(read: Read, beside: Scorer) -> ScoredText:
    """The score of another run."""
    from jaxgen.inference.scorer import ScoredText, concat

    stream = read(beside)
    tokens = concat(stream, 0)
    return ScoredText(stream.score, tokens, beside.sampler.tokenizer)


class ScoreTable:
    """Tables: a line for each text, and with ``per_token`` a line for each token above it.

    With ``colors`` the text stands above it; below it are its ``surprising`` tokens, and the line of ``beside``.
    """

    def __init__(self, scorer: Scorer, per_token: bool, surprising: int = 0, beside: Scorer | None = None) -> None:
        from jaxgen.tokenizers.base import quote_token

        self._tokenizer, self._per_token, self._has_header = scorer.sampler.tokenizer, per_token, False
        self._scorer, self._surprising, self._beside = scorer, surprising, beside
        self.colors: TokenColors | None = None
        self._shown = 0  # texts that were coloured
        self._quoted = cache(lambda token: quote_token(self._tokenizer, token))  # a text has few different tokens

    def write_text(self, about: dict[str, Any], read: Read) -> Score:
        """Write the tokens and the row of a text while it is scored; returns its score."""
        from jaxgen.inference.scorer import ScoredText, concat

        kept: list[TokenScores] = []
        stream, name = read(self._scorer), about["name"]
        self._write_tokens(name, keep(stream, kept) if self._surprising else stream)
        self.write_total(name, stream.score)
        other = None if self._beside is None else read_beside(read, self._beside)
        if self._beside is not None and other is not None:
            run = f"{name}, by {self._beside.sampler.directory}"
            if self.colors is not None:
                self._write_tokens(run, [other.tokens])
            self.write_total(run, other.score)
        if self._surprising:
            scored = ScoredText(stream.score, concat(kept, self._scorer.top), self._tokenizer)
            self._write_surprising(scored, other)
        return stream.score

    def _write_surprising(self, scored: ScoredText, other: ScoredText | None) -> None:
        beside = "" if other is None else f"  {'beside':>6}"
        write_out(f"{'position':>9}  {'bits':>6}{beside}  token\n")
        for each in scored.surprising(self._surprising):
            beside = "" if other is None else f"  {other.bits(each.position):>6.2f}"
            shown = f"{one_line(each.before)} [{one_line(each.token)}] {one_line(each.after)}"
            write_out(f"{each.position:>9,}  {each.bits:>6.2f}{beside}  {shown}\n")
        self._has_header = False

    def write_line(self, about: dict[str, Any], score: Score, tokens: TokenScores) -> None:
        """Write the tokens and the row of a line; without ``per_token`` it only counts in the total of the file."""
        if self._per_token:
            name = f"{about['name']}, text {about['number']}"
            self._write_tokens(f"{name}: {about['text']!r}", [tokens])
            self.write_total(name, score)

    def write_ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """Write candidates, the most probable first; equally probable ones have a = after their rank."""
        write_out(RANK_HEADER + "\n")
        for each in ranked:
            rank, score = f"{each.rank}{'=' if each.tied else ' '}", each.score
            mean = "-" if score.nats_per_token is None else f"{-score.nats_per_token:.4f}"
            write_out(f"{rank:>5}  {score.tokens:>6,}  {score.logp:>10.4f}  {mean:>10}  {each.text!r}\n")

    def write_total(self, name: str, score: Score) -> None:
        """Write the row of one or more texts."""
        if not self._has_header:
            write_out(HEADER + "\n")
            self._has_header = True
        ratios = (
            (score.nats_per_token, "10.4f"),
            *((each, "10.4g" if (each or 0) >= 1e5 else "10.3f") for each in (score.perplexity, score.word_perplexity)),
            (score.bits_per_char, "9.4f"),
            (score.bits_per_byte, "9.4f"),
        )
        fields = [f"{score.tokens:>11,}", f"{score.logp:>15,.4f}"]
        fields += [f"{'-':>{form.split('.')[0]}}" if x is None else f"{x:{form}}" for x, form in ratios]
        write_out("  ".join([*fields, escape_controls(name)]) + "\n", flush=True)

    def _write_tokens(self, name: str, parts: Iterable[TokenScores]) -> None:
        position, parts = 0, start(parts)
        if self.colors is not None:
            self._write_colored(name, parts, self.colors)
            return
        if self._per_token:
            write_out(f"--- {escape_controls(name)} ---\n{TOKEN_HEADER}\n")
            self._has_header = False
        for part in parts:
            if self._per_token:
                for token, logp, top, top_logp in zip(*part):
                    position += 1
                    line = f"{position:>9,}  {logp:>9.4f}  {math.exp(logp):>6.4f}  {self._quoted(int(token)):<8}"
                    for other, p in zip(top.tolist(), top_logp.tolist()):
                        line += f"  {self._quoted(other)} {math.exp(p):.4f}"
                    write_out(line.rstrip() + "\n")

    def _write_colored(self, name: str, parts: Iterator[TokenScores], colors: TokenColors) -> None:
        """Write a text in the colours of the probabilities of its tokens."""
        from jaxgen.inference.text_stream import Chunk

        self._shown += 1
        log(f"--- {name} ---")
        decoder = self._tokenizer.stream_decoder()
        for part in parts:
            chunk = Chunk(self._shown, decoder.feed(part.tokens), part.tokens, part.logp)
            sys.stdout.write("".join(paint(escape_controls(text)) for text, paint in colors.spans(chunk)))
        sys.stdout.write("\n")
        self._has_header = False


class JsonScores:
    """One JSON object for each text, on a line of its own; ratios that cannot be computed are null."""

    def __init__(self, scorer: Scorer, per_token: bool, surprising: int = 0, beside: Scorer | None = None) -> None:
        self._scorer, self._per_token, self._surprising, self._beside = scorer, per_token, surprising, beside

    def write_text(self, about: dict[str, Any], read: Read) -> Score:
        """Write the object of a text while it is scored; returns its score."""
        from jaxgen.inference.scorer import ScoredText, concat

        kept: list[TokenScores] = []
        more: dict[str, Any] = {}
        stream = read(self._scorer)
        self._write_tokens(about, keep(stream, kept) if self._surprising else stream)
        other = None if self._beside is None else read_beside(read, self._beside)
        if self._beside is not None and other is not None:
            more["beside"] = {**other.score.to_json(), **self._beside.sampler.origin()}
        if self._surprising:
            scored = ScoredText(stream.score, concat(kept, self._scorer.top), self._scorer.sampler.tokenizer)
            more["surprising"] = [
                {**each._asdict(), **({} if other is None else {"beside_bits": other.bits(each.position)})}
                for each in scored.surprising(self._surprising)
            ]
        self._write_score(stream.score, more)
        return stream.score

    def write_line(self, about: dict[str, Any], score: Score, tokens: TokenScores) -> None:
        """Write the object of a line."""
        self._write_tokens(about, [tokens])
        self._write_score(score)

    def write_total(self, name: str, score: Score) -> None:
        """Write nothing: the reader of the JSON can add the scores."""

    def write_ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """Write one object with all candidates, the most probable first."""
        candidates = [
            {
                "rank": each.rank,
                "tied": each.tied,
                "index": each.index,
                "text": each.text,
                "tokens": each.score.tokens,
                "logp": each.score.logp,
                "logp_per_token": None if each.score.nats_per_token is None else -each.score.nats_per_token,
            }
            for each in ranked
        ]
        write_out(json_line({"prompt": prompt, "candidates": candidates, **self._settings()}))

    def _write_tokens(self, about: dict[str, Any], parts: Iterable[TokenScores]) -> None:
        """Write the beginning of an object, and the tokens as they come: a large text needs no more memory."""
        from jaxgen.tokenizers.base import token_json

        parts, tokenizer = start(parts), self._scorer.sampler.tokenizer
        write_out(json_line(about)[:-2])  # without }
        if self._per_token:
            write_out(', "per_token": [')
        between = ""
        for part in parts:
            for token, logp, top, top_logp in zip(*part) if self._per_token else ():
                found = token_json(tokenizer, int(token), float(logp))
                if self._scorer.top:
                    found["top"] = [token_json(tokenizer, *each) for each in zip(top.tolist(), top_logp.tolist())]
                write_out(between + json_line(found)[:-1])
                between = ", "
        if self._per_token:
            write_out("]")

    def _write_score(self, score: Score, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write the rest of an object."""
        write_out(", " + json_line({**score.to_json(), **more, **self._settings()})[1:], flush=True)

    def _settings(self) -> dict[str, object]:
        scorer = self._scorer
        how = {"window": scorer.window} if scorer.state == "cold" else {"lanes": scorer.lanes}
        adaptive = {} if scorer.adaptive.plain else asdict(scorer.adaptive)
        about = {"unk": scorer.unk, "end": scorer.end, **scorer.sampler.origin()}
        return {"state": scorer.state, **how, **adaptive, **about}


ScoreWriter = ScoreTable | JsonScores
