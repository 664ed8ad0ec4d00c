"""``jaxgen replay``: draws recorded samples again and reports whether they are the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxgen.cli.common import log, read_byte_lines, write_out
from jaxgen.cli.flags import Command, CommandConfig, Flag, parse
from jaxgen.errors import DataError, JaxgenError, UsageError, counted

if TYPE_CHECKING:
    from jaxgen.inference.receipts import Replay
    from jaxgen.inference.sampler import Sampler

DESCRIPTION = """Draw the samples in a file that sample.py --json wrote again, and report whether they are the same.

    python sample.py --num-samples 20 --json > samples.jsonl
    jaxgen replay samples.jsonl
    jaxgen replay samples.jsonl --run copied/language-1   a copy of the run

The exit code is 0 if all are identical, otherwise 1. Where one differs, the margin says by how much the other token
won: a millionth is a rounding difference of another device or version, anything large means another model."""

MAX_LINE = 64 * 2**20


class ReplayConfig(CommandConfig):
    """Flags of ``jaxgen replay``."""

    run: str | None = None
    """Folder of the run. Default: the one that each sample names."""


class SamplesDiffer(JaxgenError):
    """Some samples are not identical (exit code 1)."""


def replay_file(args: list[str]) -> None:
    """Parse ``args`` and replay the samples of the file that they name. Raises ``SamplesDiffer``."""
    about = "Samples, one JSON object on each line; - for standard input."
    file_flag = Flag("file", str, "-", about, "[FILE]", positional=True)
    config, extra = parse(ReplayConfig, args, prog="jaxgen replay", description=DESCRIPTION, extra=[file_flag])
    file: str = extra["file"]
    if not args and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("No file was given: name one that `sample.py --json` wrote, or - for standard input.")
    samplers: dict[str, Sampler] = {}
    results = [_replay_line(value, number, file, config.run, samplers) for number, value in read_json_lines(file)]
    if not results:
        raise DataError(f"{file} is empty. `sample.py --json` writes a line for each sample.")
    differing = sum(not result.identical for result in results)
    if differing:
        raise SamplesDiffer(f"{differing} of {len(results)} samples are not identical.")
    log("The sample is identical." if len(results) == 1 else f"All {len(results)} samples are identical.")


main = Command(replay_file)


def _replay_line(value: object, number: int, file: str, run: str | None, samplers: dict[str, Sampler]) -> Replay:
    """Replay one line of the file and write the result; ``samplers`` holds those of the runs used so far."""
    from jaxgen.inference.receipts import SampleReceipt, environment_change, read_receipt, replay
    from jaxgen.inference.sampler import Sampler
    from jaxgen.runtime import need_backend

    where = f"Line {number} of {file}"
    receipt = read_receipt(value, where)
    if run is not None and receipt.mix is not None:
        raise UsageError(f"{where} was drawn from a mixture of runs, and --run names one: leave it out.")
    name = receipt.mix.model_dump_json() if receipt.mix is not None else run or receipt.run
    if name is None:
        raise UsageError(f"{where} names no run: give one with --run.")
    if name not in samplers:
        need_backend()
        samplers[name] = Sampler.load(name, "replay") if receipt.mix is None else receipt.mix.open()
    sampler = samplers[name]
    if sampler.digest != receipt.checkpoint:
        log(f"note: {where} was drawn from the weights {receipt.checkpoint}; these are {sampler.digest}.")
    if change := environment_change(receipt):
        log(f"WARNING: {where} was drawn in another environment ({change}): its bits may differ.")
    result = replay(sampler, receipt, where)
    which = (
        f"sample {result.index} of seed {receipt.seed}"
        if isinstance(receipt, SampleReceipt)
        else f"rank {result.index} of {receipt.beam.width} beams"
    )
    write_out(f"{number}: {which}: {describe_replay(result, sampler)}\n", flush=True)
    return result


def describe_replay(result: Replay, sampler: Sampler) -> str:
    """The result of a replay in words."""
    if result.identical:
        return f"identical ({counted(result.tokens, 'token')})"
    if result.first_divergence is None:
        return f"the tokens are the same, but the receipt has another {', '.join(result.tampered_fields)}"

    def name(token: int | None) -> str:
        return "the end" if token is None else repr(sampler.tokenizer.decode([token]) or "<eos>")

    text = (
        f"differs from token {result.first_divergence} on: {name(result.recorded)} was drawn, "
        f"now {name(result.regenerated)}"
    )
    if result.margin == float("inf"):
        text += ", because the recorded token is cut off"
    elif result.margin is not None:
        text += f", by a margin of {result.margin:.3g}"
    return f"{text}; up to there log-probabilities differ by at most {result.max_logp_diff:.2g}"


def read_json_lines(file: str) -> Iterator[tuple[int, object]]:
    """The JSON values in a file with the numbers of their lines; empty lines are skipped. Raises ``DataError``."""
    from jaxgen.fsutil import parse_json

    for number, line in enumerate(read_byte_lines(file, MAX_LINE), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise DataError(f"Line {number} of {file} is not acceptable JSON: {error}.") from None
