"""What ``jaxgen score`` shows: tables or JSON on standard output, a progress bar and the speed on standard error."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, cast

from jaxgen.cli.common import Lasting, discard, put, visible

if TYPE_CHECKING:
    from jaxgen.run.scorer import Reading, Scorer
    from jaxgen.run.scores import Candidate, Score, TokenScores
    from jaxgen.text import Tokenizer

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
    return f"'{visible(text)}'"


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
        put(RANK_HEADER + "\n")
        for each in ranked:
            rank, score = f"{each.rank}{'=' if each.tied else ' '}", each.score
            put(
                f"{rank:>5}  {score.tokens:>6,}  {score.logp:>10.4f}  {-score.nats_per_token:>10.4f}  "
                f"{shown(each.text)}\n"
            )

    def _tokens(self, name: str, parts: Iterable[TokenScores]) -> None:
        position, parts = 0, begun(parts)
        if self._per_token:
            put(f"--- {visible(name)} ---\n{TOKEN_HEADER}\n")
            self._headed = False
        for part in parts:
            if self._per_token:
                for token, logp, top, top_logp in zip(*part):
                    position += 1
                    put(self._token(position, int(token), float(logp), zip(top.tolist(), top_logp.tolist())))

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
            put(HEADER + "\n")
            self._headed = True
        ratios = (
            (score.nats_per_token, "10.4f"),
            (score.perplexity, "10.4g" if score.perplexity >= 1e5 else "10.3f"),
            (score.bits_per_char, "9.4f"),
            (score.bits_per_byte, "9.4f"),
        )
        fields = [f"{score.tokens:>11,}", f"{score.logp:>15,.4f}"]
        fields += [" " * (int(form.split(".")[0]) - 1) + "-" if math.isnan(x) else f"{x:{form}}" for x, form in ratios]
        put("  ".join([*fields, visible(name)]) + "\n")
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
        put(json.dumps({"prompt": prompt, "candidates": candidates, **self._about()}, ensure_ascii=False) + "\n")

    def _object(self, about: dict[str, Any], parts: Iterable[TokenScores], score: Any) -> None:
        """The tokens go out as they come, so that a large text takes no more memory than a small one."""
        parts = begun(parts)
        put(json.dumps(about, ensure_ascii=False)[:-1])
        if self._per_token:
            put(', "per_token": [')
        between = ""
        for part in parts:
            if self._per_token:
                for token in self._tokens(part):
                    put(between + json.dumps(token, ensure_ascii=False))
                    between = ", "
        if self._per_token:
            put("]")
        put(", " + json.dumps({**figures(score()), **self._about()}, ensure_ascii=False)[1:] + "\n")
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
        from jaxgen.data.pieces import read_pieces

        size = os.path.getsize(self._path) if os.path.isfile(self._path) else 0
        if not (self._bar and size >= LARGE and sys.stderr is not None and sys.stderr.isatty()):
            yield from read_pieces(self._path, any_bytes=self._any_bytes)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(file=cast(IO[str], Lasting(sys.stderr, lambda _: discard(sys.stderr))))
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
