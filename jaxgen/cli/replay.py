"""``jaxgen replay``: draw recorded samples once more and say whether they are the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import log, parse_more, run_command, write_out
from jaxgen.errors import DataError, JaxgenError, UsageError

if TYPE_CHECKING:
    from jaxgen.inference.receipts import Replay
    from jaxgen.inference.sampler import Sampler

DESCRIPTION = """Draw the samples of a file again, which sample.py --json wrote, and say whether they are the same.

    python sample.py --num-samples 20 --json > samples.jsonl
    jaxgen replay samples.jsonl
    jaxgen replay samples.jsonl --run copied/language-1     a copy of the run elsewhere

Ends with 0 if all are identical, else with 1. Where one differs, the gap says by how much the other token won: a
millionth is the rounding of another device or version, anything large another model."""

MAX_LINE = 64 * 2**20


class ReplayConfig(BaseModel):
    """Flags of ``jaxgen replay``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the one that each sample names."""


class Differs(JaxgenError):
    """Some samples are not what they were (exit code 1)."""


def main(args: Sequence[str] | None = None) -> int:
    """Replay; returns the exit code."""
    return run_command(lambda: replay(list(sys.argv[1:] if args is None else args)))


def replay(args: list[str]) -> None:
    import tyro

    file_help = tyro.conf.arg(help="Samples, a JSON object a line; - for standard input.", metavar="FILE")
    more = [("file", Annotated[tyro.conf.Positional[str], file_help], "-")]
    config, given = parse_more(ReplayConfig, args, prog="jaxgen replay", description=DESCRIPTION, more=more)
    if not args and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("No file was given: name one that `sample.py --json` wrote, or - for standard input.")
    samplers: dict[str | None, Sampler] = {}
    results = []
    for number, saved in enumerate(read_lines(given["file"]), start=1):
        results.append(_again(saved, f"Line {number} of {given['file']}", config.run, samplers))
        where = (
            f"{number}: sample {results[-1].index} of seed {saved['seed']}"
            if "seed" in saved
            else (f"{number}: rank {results[-1].index} of {saved['beam']['width']} beams")
        )
        write_out(f"{where}: {told(results[-1], samplers[config.run or saved['run']])}\n", flush=True)
    if not results:
        raise DataError(f"{given['file']} is empty. `sample.py --json` writes a line for each sample.")
    differing = sum(not result.identical for result in results)
    if differing:
        raise Differs(f"{differing} of {len(results)} samples are not what they were.")
    log("The sample is identical." if len(results) == 1 else f"All {len(results)} samples are identical.")


def _again(saved: Any, where: str, run: str | None, samplers: dict[str | None, Sampler]) -> Replay:
    from jaxgen.inference.receipts import check_receipt, replay
    from jaxgen.inference.sampler import Sampler
    from jaxgen.runtime import need_backend

    check_receipt(saved, where)
    name = run or saved["run"]
    if name is None:
        raise UsageError(f"{where} names no run: say with --run which one to draw from.")
    if name not in samplers:
        need_backend()
        samplers[name] = Sampler.load(name, "replay")
    if samplers[name].digest != saved["checkpoint"]:
        log(f"note: {where} was drawn from the weights {saved['checkpoint']}; these are {samplers[name].digest}.")
    return replay(samplers[name], saved, where)


def told(result: Replay, sampler: Sampler) -> str:
    """The outcome in words."""
    if result.identical:
        return f"identical ({result.tokens:,} tokens)"
    if result.at is None:
        return f"the tokens are the same, but the receipt has another {', '.join(result.altered)}"

    def name(token: int | None) -> str:
        return "the end" if token is None else repr(sampler.tokenizer.decode([token]) or "<eos>")

    text = f"differs from token {result.at} on: {name(result.was)} was drawn, now {name(result.now)}"
    if result.gap is not None:
        infinite = result.gap == float("inf")
        text += ", for the other is cut off" if infinite else f", by a gap of {result.gap:.3g}"
    return f"{text}; up to there log-probabilities differ by at most {result.drift:.2g}"


def read_lines(file: str) -> Iterator[Any]:
    """The JSON objects in a file, one a line. Raises ``DataError`` that names the line."""
    from jaxgen.fsutil import parse_json

    if file == "-" and sys.stdin is None:
        raise DataError("Standard input is closed: name a file that `sample.py --json` wrote.")
    try:
        stream = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115
        with stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE), b""), start=1):
                if line.strip():
                    try:
                        yield parse_json(line)
                    except ValueError as error:
                        raise DataError(f"Line {number} of {file} is not acceptable JSON: {error}.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
