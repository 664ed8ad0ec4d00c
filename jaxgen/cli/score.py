"""``jaxgen score``: how likely a model finds texts, as a table or as JSON on standard output."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import SafeStream, discard, escape_controls, log, run_command, write_out
from jaxgen.cli.flags import Excludes, Needs, check_not_empty, check_rules, given_flags, parse, positional, switch
from jaxgen.errors import UsageError

if TYPE_CHECKING:
    from jaxgen.inference.scorer import Candidate, Score, Scorer, ScoreStream, TokenScores
    from jaxgen.tokenizers.base import Tokenizer

DESCRIPTION = """How likely a model finds a text: log-probability, perplexity, bits per character and per byte.

    jaxgen score book.txt other.txt                a line for each, one for all
    jaxgen score --text "To be, or not to be"      text on the command line
    cat book.txt | jaxgen score -                  text from standard input
    jaxgen score big.txt --state cold              fast: windows of 64 tokens
    jaxgen score big.txt --lanes 32                32 places of a text at once
    jaxgen score --text "To be" --per-token --top 3  tokens and likeliest tokens
    jaxgen score names.txt --lines                 each line is a text
    jaxgen score --prompt "The king" --candidates " is" " are" " of"
    jaxgen score book.txt --json                   one JSON object for each text

Texts are read in pieces, so that memory does not grow with them. A model of running text scores a text as it stands
after a line break; a model of documents also scores its end, <eos>. Every character counts, including the line break
at the end of a file."""
JSON = """Write one JSON object for each text on a line of its own, log-probabilities in nats; with --per-token also its
tokens. Bytes that are not UTF-8, which byte-level models read, become U+FFFD."""
FILES = "Text files to score (UTF-8, gzip too); - is standard input."

#: Files of at least this many bytes have a progress bar.
LARGE = 1 << 20
#: A speed is shown from this many tokens on.
MEASURABLE = 10_000
SPECIAL_TOKENS = ("<pad>", "<unk>", "<eos>")
HEADER = (
    f"{'tokens':>11}  {'logp':>15}  {'nats/token':>10}  {'perplexity':>10}  {'bits/char':>9}  {'bits/byte':>9}  text"
)
TOKEN_HEADER = f"{'position':>9}  {'logp':>9}  {'prob':>6}  token"
RANK_HEADER = f"{'rank':>5}  {'tokens':>6}  {'logp':>10}  {'logp/token':>10}  candidate"


class ScoreConfig(BaseModel):
    """Flags of ``jaxgen score``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the newest in runs/."""
    text: tuple[str, ...] = ()
    """Texts to score instead of files."""
    label: tuple[str, ...] = ()
    """Score texts with this label (for a run trained with --label-column), or between several labels with weights:
    Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """Score texts with these numbers, one for each of the --feature-columns of the run."""
    lines: bool = False
    """Score every line of a file as a separate text, for a model trained with --documents line. Lines of white space
    are skipped. The table sums them up for each file; --json and --per-token show each."""
    prompt: str | None = None
    """Text to read before each text; it is not scored."""
    candidates: tuple[str, ...] = ()
    """Continuations of the prompt to rank, the likeliest first. Include the space before a word."""
    state: Literal["carried", "cold"] = "carried"
    """carried: one state from the beginning to the end of a text. cold: the state is reset in every window, with only
    the preceding token as context; faster, and the text scores worse."""
    window: int | None = None
    """Tokens of a window of --state cold (default: 64)."""
    lanes: int = 1
    """Segments of one text that are scored together. 1: exactly the carried state. More: the state is reset every
    4,096 tokens and warmed up with the 256 tokens before; faster, with almost the same result, which does not depend
    on the number except by rounding."""
    per_token: bool = False
    """Write every token with its log-probability in nats and its probability."""
    top: int | None = None
    """With --per-token: also write this many likeliest tokens with their probabilities, at most 1,000."""
    unk: Literal["error", "skip", "keep"] = "error"
    """What to do with characters that are not in the vocabulary. skip: leave them out of the log-probability and of
    the counts. keep: score them as the token <unk>; bits are then a lower bound."""
    end: Literal["yes", "no"] | None = None
    """Whether a model of documents scores the end of a text. Default: yes, for candidates no."""


RULES = (
    Excludes("--candidates", ("files", "--text", "--lines"), "ranks continuations of --prompt"),
    Excludes("--text", ("files",), "gives the texts"),
    Needs("--lines", ("files",), "splits files into texts"),
    Needs("--window", ("--state cold",), "is the length of a cold window"),
    Excludes("--lanes", ("--lines", "--candidates", "--state cold"), "splits one text with a carried state"),
    Excludes("--prompt", ("--lanes", "--state cold"), "needs one state that is carried through the text"),
    Excludes("--candidates", ("--state cold",), "continues the state of the prompt"),
    Needs("--top", ("--per-token",), "adds tokens to every token"),
    Excludes("--candidates", ("--per-token",), "shows no tokens"),
)


def main(args: Sequence[str] | None = None) -> int:
    """Score; returns the exit code."""
    return run_command(lambda: score(list(sys.argv[1:] if args is None else args)), text_only=True)


def score(args: list[str]) -> None:
    """Parse ``args`` and write the scores that they ask for."""
    extra = [positional("files", FILES, "FILE ..."), switch("json", JSON)]
    config, values = parse(ScoreConfig, args, prog="jaxgen score", description=DESCRIPTION, extra=extra)
    files: tuple[str, ...] = values["files"]
    check(config, args, files)

    from jaxgen.cli.sampling_flags import with_condition_flags
    from jaxgen.data.files import check_readable
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.scorer import Scorer
    from jaxgen.runtime import need_backend

    check_readable(files)
    need_backend()
    options: dict[str, Any] = {"state": config.state, "lanes": config.lanes, "top": config.top or 0, "unk": config.unk}
    if config.window is not None:
        options["window"] = config.window
    options["end"] = {"yes": True, "no": False, None: False if config.candidates else None}[config.end]
    sampler = with_condition_flags(Sampler.load(config.run, "score"), config.label, config.features)
    scorer = Scorer(sampler, **options)
    writer: ScoreWriter = (JsonScores if values["json"] else ScoreTable)(scorer, config.per_token)
    speed = ScoringSpeed(scorer)
    score_all = score_candidates if config.candidates else score_lines if config.lines else score_texts
    total = score_all(scorer, config, files, writer)
    for note in score_notes(total, config):
        log(note)
    log(speed.describe(total.tokens))


def check(config: ScoreConfig, args: Sequence[str], files: Sequence[str]) -> None:
    """Raise ``UsageError`` for flags that contradict each other or have no effect."""
    check_not_empty(config, args)
    check_rules(RULES, given_flags(config, args) | ({"files"} if files else set()))
    if not (files or config.text or config.candidates):
        raise UsageError(
            "There is nothing to score: give files, - for standard input, --text TEXT, or --prompt TEXT --candidates "
            "A B."
        )
    if files.count("-") > 1:
        raise UsageError("Standard input (-) was given twice, but can be read once: give it once.")


def score_notes(total: Score, config: ScoreConfig) -> Iterator[str]:
    """Notes on a score that may surprise."""
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
        name = text if files else f"text {number}"
        pieces = read_with_progress(text, scorer.sampler.tokenizer, bar=not config.per_token) if files else [text]
        where = f"The file {text}" if files else f"Text {number}"
        stream = scorer.stream(pieces, config.prompt or "", where)
        writer.write_text(name, stream, None if files else text)
        total += stream.score
    if len(files or config.text) > 1:
        writer.write_total("all", total)
    return total


def score_lines(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: ScoreWriter) -> Score:
    """Score every line of every file as a separate text; returns the total."""
    from jaxgen.data.files import read_lines
    from jaxgen.inference.scorer import Score

    total = Score()
    for path in files:
        held: deque[str] = deque()  # scoring reads ahead of the scores that it returns

        def lines(path: str = path, held: deque[str] = held) -> Iterator[str]:
            for line in read_lines(read_with_progress(path, scorer.sampler.tokenizer, bar=not config.per_token)):
                held.append(line)
                yield line

        of_file, number = Score(), 0
        for score, tokens in scorer.score_each(lines(), config.prompt or "", f"The file {path}, text"):
            number += 1
            writer.write_line(path, number, score, tokens, held.popleft())
            of_file += score
        writer.write_total(f"{path} ({number:,} texts)", of_file)
        total += of_file
    if len(files) > 1:
        writer.write_total("all", total)
    return total


def score_candidates(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: ScoreWriter) -> Score:
    """Rank the continuations of the prompt; returns the total of their scores."""
    from jaxgen.inference.scorer import Score

    ranked = scorer.rank(config.prompt or "", config.candidates)
    writer.write_ranking(config.prompt or "", ranked)
    if any(each.tied for each in ranked):
        log(
            "note: candidates with = after their rank are equally likely; they keep the order in which they were given."
        )
    return sum((each.score for each in ranked), Score())


def read_with_progress(path: str, tokenizer: Tokenizer, bar: bool) -> Iterator[str]:
    """The text of a file in pieces; with ``bar``, a large file has a progress bar on a terminal."""
    from jaxgen.data.files import read_pieces

    any_bytes = tokenizer.kind == "byte"
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if not (bar and size >= LARGE and sys.stderr is not None and sys.stderr.isatty()):
        yield from read_pieces(path, any_bytes=any_bytes)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(file=cast(IO[str], SafeStream(sys.stderr, lambda _: discard(sys.stderr))))
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("scoring", total=size)
        yield from read_pieces(path, any_bytes=any_bytes, seen=lambda seen: progress.update(line, completed=seen))


class ScoringSpeed:
    """Scored tokens per second, without the time spent compiling."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self._began = scorer, time.perf_counter()

    def describe(self, tokens: int) -> str:
        """The speed after ``tokens`` tokens."""
        seconds, compiling = time.perf_counter() - self._began, self._scorer.compile_seconds
        total = f"{tokens:,} tokens in {seconds:.2f} s"
        if tokens < MEASURABLE:
            return total
        rate = tokens / max(seconds - compiling, 1e-9)
        return f"{total}; {rate:,.0f} tokens/s after {compiling:.1f} s of compiling"


class ScoreWriter(Protocol):
    """Writes scores to standard output."""

    def write_text(self, name: str, stream: ScoreStream, text: str | None = None) -> None:
        """Write the score of a text while it is computed; ``text`` if it was on the command line."""

    def write_line(self, name: str, number: int, score: Score, tokens: TokenScores, text: str) -> None:
        """Write the score of line ``number`` of a file."""

    def write_total(self, name: str, score: Score) -> None:
        """Write the score of several texts."""

    def write_ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """Write ranked candidates."""


def quote(text: str) -> str:
    """Text in quotes on one line, with control characters escaped."""
    for character, escaped in (("\\", "\\\\"), ("\r", "\\r"), ("\n", "\\n"), ("\t", "\\t"), ("'", "\\'")):
        text = text.replace(character, escaped)
    return f"'{escape_controls(text)}'"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; bytes of an incomplete character are escaped."""
    if token < len(SPECIAL_TOKENS):
        return SPECIAL_TOKENS[token]
    return tokenizer.pieces[token].decode("utf-8", "backslashreplace")


def start(parts: Iterable[TokenScores]) -> Iterator[TokenScores]:
    """The same parts, the first computed now: a text that cannot be read leaves no half-written output."""
    source = iter(parts)
    first = next(source, None)
    return source if first is None else chain([first], source)


class ScoreTable:
    """Tables: a line for each text, and with ``per_token`` a line for each token above it."""

    def __init__(self, scorer: Scorer, per_token: bool) -> None:
        self._tokenizer, self._per_token, self._has_header = scorer.sampler.tokenizer, per_token, False
        self._quoted = cache(self._quote)  # a text has few different tokens

    def write_text(self, name: str, stream: ScoreStream, text: str | None = None) -> None:
        """Write the tokens and the row of a text."""
        self._write_tokens(name, stream)
        self._write_row(stream.score, name)

    def write_line(self, name: str, number: int, score: Score, tokens: TokenScores, text: str) -> None:
        """Write the tokens and the row of a line; without ``per_token`` it only counts in the total of the file."""
        if self._per_token:
            self._write_tokens(f"{name}, text {number}: {quote(text)}", [tokens])
            self._write_row(score, f"{name}, text {number}")

    def write_total(self, name: str, score: Score) -> None:
        """Write the row of several texts."""
        self._write_row(score, name)

    def write_ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """Write candidates, the likeliest first; equally likely ones have a = after their rank."""
        write_out(RANK_HEADER + "\n")
        for each in ranked:
            rank, score = f"{each.rank}{'=' if each.tied else ' '}", each.score
            write_out(
                f"{rank:>5}  {score.tokens:>6,}  {score.logp:>10.4f}  {-score.nats_per_token:>10.4f}  "
                f"{quote(each.text)}\n"
            )

    def _write_tokens(self, name: str, parts: Iterable[TokenScores]) -> None:
        position, parts = 0, start(parts)
        if self._per_token:
            write_out(f"--- {escape_controls(name)} ---\n{TOKEN_HEADER}\n")
            self._has_header = False
        for part in parts:
            if self._per_token:
                for token, logp, top, top_logp in zip(*part):
                    position += 1
                    likeliest = zip(top.tolist(), top_logp.tolist())
                    write_out(self._token_line(position, int(token), float(logp), likeliest))

    def _token_line(self, position: int, token: int, logp: float, top: Iterable[tuple[int, float]]) -> str:
        line = f"{position:>9,}  {logp:>9.4f}  {math.exp(logp):>6.4f}  {self._quoted(token):<8}"
        return (line + "".join(f"  {self._quoted(other)} {math.exp(p):.4f}" for other, p in top)).rstrip() + "\n"

    def _quote(self, token: int) -> str:
        if token < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token]
        text = quote(self._tokenizer.pieces[token].decode("utf-8", "surrogateescape"))
        return re.sub(r"\\udc(..)", r"\\x\1", text)  # bytes of an incomplete character

    def _write_row(self, score: Score, name: str) -> None:
        if not self._has_header:
            write_out(HEADER + "\n")
            self._has_header = True
        ratios = (
            (score.nats_per_token, "10.4f"),
            (score.perplexity, "10.4g" if score.perplexity >= 1e5 else "10.3f"),
            (score.bits_per_char, "9.4f"),
            (score.bits_per_byte, "9.4f"),
        )
        fields = [f"{score.tokens:>11,}", f"{score.logp:>15,.4f}"]
        fields += [" " * (int(form.split(".")[0]) - 1) + "-" if math.isnan(x) else f"{x:{form}}" for x, form in ratios]
        write_out("  ".join([*fields, escape_controls(name)]) + "\n")
        sys.stdout.flush()


class JsonScores:
    """One JSON object for each text, on a line of its own; ratios that cannot be computed are null."""

    def __init__(self, scorer: Scorer, per_token: bool) -> None:
        self._scorer, self._per_token = scorer, per_token

    def write_text(self, name: str, stream: ScoreStream, text: str | None = None) -> None:
        """Write the object of a text."""
        self._write_object({"name": name} | ({} if text is None else {"text": text}), stream, lambda: stream.score)

    def write_line(self, name: str, number: int, score: Score, tokens: TokenScores, text: str) -> None:
        """Write the object of a line."""
        self._write_object({"name": name, "number": number, "text": text}, [tokens], lambda: score)

    def write_total(self, name: str, score: Score) -> None:
        """Write nothing: programs can add."""

    def write_ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """Write one object with all candidates, the likeliest first."""
        candidates = [
            {
                "rank": each.rank,
                "tied": each.tied,
                "index": each.index,
                "text": each.text,
                "tokens": each.score.tokens,
                "logp": each.score.logp,
                "logp_per_token": -each.score.nats_per_token,
            }
            for each in ranked
        ]
        value = {"prompt": prompt, "candidates": candidates, **self._settings()}
        write_out(json.dumps(value, ensure_ascii=False) + "\n")

    def _write_object(
        self, about: Mapping[str, object], parts: Iterable[TokenScores], score: Callable[[], Score]
    ) -> None:
        """Write tokens as they come, so that a large text needs no more memory; ``score`` is read after them."""
        parts = start(parts)
        write_out(json.dumps(about, ensure_ascii=False)[:-1])
        if self._per_token:
            write_out(', "per_token": [')
        between = ""
        for part in parts:
            if self._per_token:
                for token in self._tokens(part):
                    write_out(between + json.dumps(token, ensure_ascii=False))
                    between = ", "
        if self._per_token:
            write_out("]")
        write_out(", " + json.dumps({**score_json(score()), **self._settings()}, ensure_ascii=False)[1:] + "\n")
        sys.stdout.flush()

    def _tokens(self, part: TokenScores) -> Iterator[dict[str, object]]:
        for token, logp, top, top_logp in zip(*part):
            found = self._token(int(token), float(logp))
            if self._scorer.top:
                found["top"] = [self._token(*each) for each in zip(top.tolist(), top_logp.tolist())]
            yield found

    def _token(self, token: int, logp: float) -> dict[str, object]:
        return {"token": token_text(self._scorer.sampler.tokenizer, token), "id": token, "logp": round(logp, 6)}

    def _settings(self) -> dict[str, object]:
        scorer = self._scorer
        how: dict[str, object] = {"state": scorer.state}
        how |= {"window": scorer.window} if scorer.state == "cold" else {"lanes": scorer.lanes}
        run = None if scorer.sampler.path is None else str(scorer.sampler.path)
        return {**how, "unk": scorer.unk, "end": scorer.end, "run": run, "checkpoint": scorer.sampler.digest}


def score_json(score: Score) -> dict[str, float | None]:
    """A score as JSON values."""
    names = ("logp", "tokens", "chars", "bytes", "unknown", "nats_per_token", "perplexity")
    values = {name: getattr(score, name) for name in (*names, "bits_per_char", "bits_per_byte")}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
