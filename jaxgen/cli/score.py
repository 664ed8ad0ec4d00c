"""``jaxgen score``: what a model thinks of a text; tables or JSON on standard output, all else on standard error."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import log, parse_more, run_command
from jaxgen.errors import UsageError

if TYPE_CHECKING:
    from jaxgen.inference.scorer import Score, Scorer
import json
import math
import os
import re
import time
from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import IO, TYPE_CHECKING, cast

from jaxgen.cli.common import SafeStream, discard, escape_controls, write_out

if TYPE_CHECKING:
    from jaxgen.inference.scorer import Candidate, Reading, Score, Scorer, TokenScores
    from jaxgen.tokenizers.base import Tokenizer


#: Bytes from which reading a file is worth a progress bar.
LARGE = 1 << 20
#: Tokens from which a speed says something.
MEASURABLE = 10_000
SPECIAL = ("<pad>", "<unk>", "<eos>")
HEADER = (
    f"{'tokens':>11}  {'logp':>15}  {'nats/token':>10}  {'perplexity':>10}  {'bits/char':>9}  {'bits/byte':>9}  text"
)
TOKEN_HEADER = f"{'position':>9}  {'logp':>9}  {'prob':>6}  token"
RANK_HEADER = f"{'rank':>5}  {'tokens':>6}  {'logp':>10}  {'logp/token':>10}  candidate"


def shown(text: str) -> str:
    """Text in quotes on one line, with what could disturb a terminal escaped."""
    for character, escaped in (("\\", "\\\\"), ("\r", "\\r"), ("\n", "\\n"), ("\t", "\\t"), ("'", "\\'")):
        text = text.replace(character, escaped)
    return f"'{escape_controls(text)}'"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for; bytes that are no whole character are escaped."""
    return SPECIAL[token] if token < len(SPECIAL) else tokenizer.pieces[token].decode("utf-8", "backslashreplace")


def begun(parts: Iterable[TokenScores]) -> Iterator[TokenScores]:
    """The same parts, the first made now: a text that cannot be read leaves nothing half-written."""
    source = iter(parts)
    first = next(source, None)
    return source if first is None else chain([first], source)


class Writer:
    """Tables: a line a text, and with ``per_token`` one for every token above it."""

    def __init__(self, scorer: Scorer, per_token: bool) -> None:
        self._tokenizer, self._per_token, self._headed = scorer.sampler.tokenizer, per_token, False
        self._shown = cache(self._quoted)  # a text has few different tokens

    def reading(self, name: str, reading: Reading, text: str | None = None) -> None:
        """A text, as it is scored."""
        self._tokens(name, reading)
        self._row(reading.score, name)

    def one(self, name: str, number: int, score: Score, tokens: TokenScores, text: str) -> None:
        """A line of a file; by itself it is shown with its tokens alone."""
        if self._per_token:
            self._tokens(f"{name}, text {number}: {shown(text)}", [tokens])
            self._row(score, f"{name}, text {number}")

    def together(self, name: str, score: Score) -> None:
        """Several texts: the lines of a file, or all."""
        self._row(score, name)

    def ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """Candidates, the likeliest first; those that are equally likely have a = behind their rank."""
        write_out(RANK_HEADER + "\n")
        for each in ranked:
            rank, score = f"{each.rank}{'=' if each.tied else ' '}", each.score
            write_out(
                f"{rank:>5}  {score.tokens:>6,}  {score.logp:>10.4f}  {-score.nats_per_token:>10.4f}  "
                f"{shown(each.text)}\n"
            )

    def _tokens(self, name: str, parts: Iterable[TokenScores]) -> None:
        position, parts = 0, begun(parts)
        if self._per_token:
            write_out(f"--- {escape_controls(name)} ---\n{TOKEN_HEADER}\n")
            self._headed = False
        for part in parts:
            if self._per_token:
                for token, logp, top, top_logp in zip(*part):
                    position += 1
                    write_out(self._token(position, int(token), float(logp), zip(top.tolist(), top_logp.tolist())))

    def _token(self, position: int, token: int, logp: float, top: Iterable[tuple[int, float]]) -> str:
        line = f"{position:>9,}  {logp:>9.4f}  {math.exp(logp):>6.4f}  {self._shown(token):<8}"
        return (line + "".join(f"  {self._shown(other)} {math.exp(p):.4f}" for other, p in top)).rstrip() + "\n"

    def _quoted(self, token: int) -> str:
        if token < len(SPECIAL):
            return SPECIAL[token]
        text = shown(self._tokenizer.pieces[token].decode("utf-8", "surrogateescape"))
        return re.sub(r"\\udc(..)", r"\\x\1", text)  # a byte that is no whole character

    def _row(self, score: Score, name: str) -> None:
        if not self._headed:
            write_out(HEADER + "\n")
            self._headed = True
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


class JsonWriter:
    """A JSON object a text, on a line of its own; what cannot be divided is null."""

    def __init__(self, scorer: Scorer, per_token: bool) -> None:
        self._scorer, self._per_token = scorer, per_token

    def reading(self, name: str, reading: Reading, text: str | None = None) -> None:
        """A text, as it is scored."""
        self._object({"name": name} | ({} if text is None else {"text": text}), reading, lambda: reading.score)

    def one(self, name: str, number: int, score: Score, tokens: TokenScores, text: str) -> None:
        """A line of a file."""
        self._object({"name": name, "number": number, "text": text}, [tokens], lambda: score)

    def together(self, name: str, score: Score) -> None:
        """Nothing: whoever reads objects can add."""

    def ranking(self, prompt: str, ranked: Sequence[Candidate]) -> None:
        """One object with all candidates, the likeliest first."""
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
        write_out(json.dumps({"prompt": prompt, "candidates": candidates, **self._about()}, ensure_ascii=False) + "\n")

    def _object(self, about: dict[str, Any], parts: Iterable[TokenScores], score: Any) -> None:
        """The tokens go out as they come, so that a large text takes no more memory than a small one."""
        parts = begun(parts)
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
        write_out(", " + json.dumps({**figures(score()), **self._about()}, ensure_ascii=False)[1:] + "\n")
        sys.stdout.flush()

    def _tokens(self, part: TokenScores) -> Iterator[dict[str, Any]]:
        for token, logp, top, top_logp in zip(*part):
            found = self._token(int(token), float(logp))
            if self._scorer.top:
                found["top"] = [self._token(*each) for each in zip(top.tolist(), top_logp.tolist())]
            yield found

    def _token(self, token: int, logp: float) -> dict[str, Any]:
        return {"token": token_text(self._scorer.sampler.tokenizer, token), "id": token, "logp": round(logp, 6)}

    def _about(self) -> dict[str, Any]:
        scorer = self._scorer
        how: dict[str, Any] = {"state": scorer.state}
        how |= {"window": scorer.window} if scorer.state == "cold" else {"lanes": scorer.lanes}
        run = None if scorer.sampler.path is None else str(scorer.sampler.path)
        return {**how, "unk": scorer.unk, "end": scorer.end, "run": run, "checkpoint": scorer.sampler.digest}


def figures(score: Score) -> dict[str, Any]:
    """A score as JSON values."""
    names = ("logp", "tokens", "chars", "bytes", "unknown", "nats_per_token", "perplexity")
    values = {name: getattr(score, name) for name in (*names, "bits_per_char", "bits_per_byte")}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


class Watched:
    """The pieces of a file, with a progress bar on a terminal if there are many."""

    def __init__(self, path: str, tokenizer: Tokenizer, bar: bool) -> None:
        self._path, self._any_bytes, self._bar = path, tokenizer.kind == "byte", bar

    def __iter__(self) -> Iterator[str]:
        from jaxgen.data.files import read_pieces

        size = os.path.getsize(self._path) if os.path.isfile(self._path) else 0
        if not (self._bar and size >= LARGE and sys.stderr is not None and sys.stderr.isatty()):
            yield from read_pieces(self._path, any_bytes=self._any_bytes)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(file=cast(IO[str], SafeStream(sys.stderr, lambda _: discard(sys.stderr))))
        with Progress(*columns, console=console, transient=True) as progress:
            line = progress.add_task("scoring", total=size)
            report = lambda seen: progress.update(line, completed=seen)  # noqa: E731
            yield from read_pieces(self._path, any_bytes=self._any_bytes, seen=report)


class Speed:
    """Tokens a second, without what went into compiling."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self._began = scorer, time.perf_counter()

    def told(self, tokens: int) -> str:
        """So many tokens have been scored by now."""
        seconds, startup = time.perf_counter() - self._began, self._scorer.startup
        total = f"{tokens:,} tokens in {seconds:.2f} s"
        if tokens < MEASURABLE:
            return total
        rate = tokens / max(seconds - startup, 1e-9)
        return f"{total}; {rate:,.0f} tokens/s after {startup:.1f} s of compiling"


DESCRIPTION = """How likely a model finds a text: log-probability, perplexity, bits per character and per byte.

    jaxgen score book.txt other.txt                       a line for each, and one for all
    jaxgen score --text "To be, or not to be"             text on the command line
    cat book.txt | jaxgen score -                         text from standard input
    jaxgen score big.txt --state cold                     windows of 64 tokens side by side: fast
    jaxgen score big.txt --lanes 32                       one state, read in 32 places at once
    jaxgen score --text "To be" --per-token --top 3       every token, and what was likelier
    jaxgen score names.txt --lines                        every line is a text of its own
    jaxgen score --prompt "The king" --candidates " is" " are" " of"
    jaxgen score book.txt --json                          one object a text

A text is read in pieces: memory does not grow with it. A model of running text scores it as it stands behind a line
break; a model of documents scores its end, <eos>, too. Every character counts, the line break at a file's end too."""


class ScoreConfig(BaseModel):
    """Flags of ``jaxgen score``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the newest in runs/."""
    text: tuple[str, ...] = ()
    """Texts to score instead of files."""
    label: tuple[str, ...] = ()
    """Score the texts as ones of this label, of a run trained with --label-column; or of one between labels:
    Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """Score the texts as ones with these numbers, one for each of the --feature-columns of the run."""
    lines: bool = False
    """Every line of a file is a text of its own, as names.txt was for a model trained with --documents line. Lines
    of white space alone are left out. The table sums them up by file, --json and --per-token have each."""
    prompt: str | None = None
    """Text to read before each text; it is not scored itself."""
    candidates: tuple[str, ...] = ()
    """Continuations of the prompt to rank, the likeliest first. Give the space in front of a word with it."""
    state: Literal["carried", "cold"] = "carried"
    """carried: one state from the beginning to the end. cold: it starts afresh in every window, with the token before
    alone, as short texts would; the text scores worse, and is done sooner."""
    window: int | None = None
    """Tokens of a window of --state cold (default: 64)."""
    lanes: int = 1
    """Places of one text that are read side by side. 1: exactly the carried state. More: the state starts afresh every
    4,096 tokens, warmed by the 256 before: sooner, and almost the same. How many changes
    nothing but rounding."""
    per_token: bool = False
    """Write every token with its log-probability in nats and its probability."""
    top: int | None = None
    """Likeliest tokens to write beside each token, with their probabilities (with --per-token); at most 1,000."""
    unk: Literal["error", "skip", "keep"] = "error"
    """What to do with what the model has never seen. skip: leave it out, of the log-probability and of the
    counts. keep: score it as the token <unk>; bits are then a lower bound, for <unk> could be anything."""
    end: Literal["yes", "no"] | None = None
    """Whether the end of a text is scored, by a model that knows ends. Default: yes, and for candidates no."""


JSON = """Write an object a text on a line of its own, log-probabilities in nats; with --per-token its tokens too. Bytes
that are no UTF-8, which byte-level models read, are U+FFFD in its text."""
FILES = "Text files to score (UTF-8, gzip too); - is standard input."


def main(args: Sequence[str] | None = None) -> int:
    """Score; returns the exit code."""
    return run_command(lambda: score(list(sys.argv[1:] if args is None else args)), text_alone=True)


def score(args: list[str]) -> None:
    import tyro

    files: Any = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=FILES, metavar="FILE ...")]
    more = [("files", files, ()), ("json", Annotated[bool, tyro.conf.arg(help=JSON)], False)]
    config, found = parse_more(ScoreConfig, args, prog="jaxgen score", description=DESCRIPTION, more=more)
    check(config, found["files"])

    from jaxgen.cli.sampling_flags import conditioned
    from jaxgen.data.files import check_readable
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.scorer import Scorer
    from jaxgen.runtime import need_backend

    check_readable(found["files"])
    need_backend()
    options = {"state": config.state, "lanes": config.lanes, "top": config.top or 0, "unk": config.unk}
    if config.window is not None:
        options["window"] = config.window
    end = {"yes": True, "no": False, None: False if config.candidates else None}[config.end]
    sampler = conditioned(Sampler.load(config.run, "score"), config.label, config.features)
    scorer = Scorer(sampler, end=end, **options)
    writer = (JsonWriter if found["json"] else Writer)(scorer, config.per_token)
    speed = Speed(scorer)
    score_all = score_candidates if config.candidates else score_lines if config.lines else score_texts
    total = score_all(scorer, config, found["files"], writer)
    for note in notes(total, config):
        log(note)
    log(speed.told(total.tokens))


def check(config: ScoreConfig, files: Sequence[str]) -> None:
    """Raise ``UsageError`` for flags that contradict each other."""
    given = [name for name, value in (("files", files), ("--text", config.text), ("--lines", config.lines)) if value]
    if config.candidates and given:
        raise UsageError(
            f"--candidates ranks continuations of --prompt, and {given[0]} scores texts: give one of them."
        )
    if files and config.text:
        raise UsageError("Files and --text were given together: give one of them.")
    if config.lines and not files:
        raise UsageError("--lines splits files into texts, but no file was given: give one, or - for standard input.")
    if not (files or config.text or config.candidates):
        raise UsageError(
            "There is nothing to score: give files, - for standard input, --text TEXT, or --prompt TEXT --candidates "
            "A B."
        )
    if files.count("-") > 1:
        raise UsageError("Standard input (-) was given twice, but can be read once: give it once.")
    if config.window is not None and config.state != "cold":
        raise UsageError(f"--window {config.window} has a meaning with --state cold alone: leave it out, or give both.")
    if config.lanes > 1 and (config.state == "cold" or config.lines or config.candidates):
        other = "--lines" if config.lines else "--candidates" if config.candidates else "--state cold"
        raise UsageError(f"--lanes has no meaning with {other}, which reads many places at once anyway: leave it out.")
    if config.prompt is not None and (config.lanes > 1 or config.state == "cold"):
        other = "--lanes" if config.lanes > 1 else "--state cold"
        raise UsageError(f"--prompt needs one state that is carried through the text, and {other} starts it afresh.")
    if config.candidates and config.state == "cold":
        raise UsageError("--candidates are read on from the prompt: leave out --state cold.")
    if config.top is not None and not config.per_token:
        raise UsageError(f"--top {config.top} has a meaning with --per-token alone: leave it out, or give both.")
    if config.candidates and config.per_token:
        raise UsageError("--per-token writes the tokens of texts, not of candidates: leave it out.")


def notes(total: Score, config: ScoreConfig) -> Iterator[str]:
    """What the user may not expect of this score."""
    if total.unknown:
        left_out = "left out ({:,} of them): what was skipped is in neither the log-probability nor the counts."
        kept = "scored as <unk> ({:,} of them): bits are a lower bound."
        yield "note: unknown tokens were " + (left_out if config.unk == "skip" else kept).format(total.unknown)
    if total.forced:
        yield (
            f"note: the text was cut {total.forced} times where there was no white space for a million characters; "
            "a few tokens there may be others than in the text as a whole."
        )


def score_texts(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: Writer | JsonWriter) -> Score:
    """Score every file, or every text of ``--text``; returns the score of all together."""
    from jaxgen.inference.scorer import Score

    total = Score()
    for number, text in enumerate(files or config.text, start=1):
        name = text if files else f"text {number}"
        pieces = Watched(text, scorer.sampler.tokenizer, bar=not config.per_token) if files else [text]
        where = f"The file {text}" if files else f"Text {number}"
        reading = scorer.stream(pieces, config.prompt or "", where)
        writer.reading(name, reading, None if files else text)
        total += reading.score
    if len(files or config.text) > 1:
        writer.together("all", total)
    return total


def score_lines(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: Writer | JsonWriter) -> Score:
    """Score every line of every file as a text of its own; returns the score of all together."""
    from jaxgen.data.files import read_lines
    from jaxgen.inference.scorer import Score

    total = Score()
    for path in files:
        held: deque[str] = deque()  # scoring reads ahead of what it gives back

        def lines(path: str = path, held: deque[str] = held) -> Iterator[str]:
            for line in read_lines(Watched(path, scorer.sampler.tokenizer, bar=not config.per_token)):
                held.append(line)
                yield line

        of_file, number = Score(), 0
        for score, tokens in scorer.score_each(lines(), config.prompt or "", f"The file {path}, text"):
            number += 1
            writer.one(path, number, score, tokens, held.popleft())
            of_file += score
        writer.together(f"{path} ({number:,} texts)", of_file)
        total += of_file
    if len(files) > 1:
        writer.together("all", total)
    return total


def score_candidates(scorer: Scorer, config: ScoreConfig, files: Sequence[str], writer: Writer | JsonWriter) -> Score:
    """Rank the continuations of the prompt; returns the score of all together."""
    from jaxgen.inference.scorer import Score

    ranked = scorer.rank(config.prompt or "", config.candidates)
    writer.ranking(config.prompt or "", ranked)
    if any(each.tied for each in ranked):
        log("note: candidates with = behind their rank are equally likely; of those the one given first comes first.")
    return sum((each.score for each in ranked), Score())
