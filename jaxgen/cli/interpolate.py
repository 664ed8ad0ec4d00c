"""``jaxgen interpolate``: what a model writes between the states after two prompts."""

from __future__ import annotations

import sys
from typing import ClassVar, Literal

from jaxgen.cli.common import json_line, log, write_out
from jaxgen.cli.flags import Command, Flag, RunConfig, parse
from jaxgen.cli.mixture_flags import open_sampler
from jaxgen.errors import UsageError
from jaxgen.fsutil import check_output, write_output
from jaxgen.runs.groups import Group

DESCRIPTION = """Interpolate between the states of a language model after two prompts, and write how it continues each,
with one seed. The first text is that of sample.py for the first prompt, the last one that for the second.

    jaxgen interpolate --from "ROMEO:" --to "First Citizen:" --steps 5
    jaxgen interpolate --from "To be" --to "The king" --length 0 --steps 21 --out way.png"""
JSON = "Write one JSON object for each state: its weight, text, and the ten most probable next tokens."
#: Tokens of a state in JSON.
TOP = 10


class InterpolateConfig(RunConfig):
    """Flags of ``jaxgen interpolate``."""

    in_drawing: ClassVar[Group] = Group("Drawing")
    steps: int = 5
    """The number of states, the first and the last included."""
    length: int = 100
    """Tokens to draw after each state."""
    temperature: str = "0.8"
    """As that of sample.py."""
    seed: int = 0
    """Another seed gives other texts."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that are not in the vocabulary."""

    in_output: ClassVar[Group] = Group("Output")
    out: str | None = None
    """Write a picture (PNG) of the probabilities of the next token along the way."""


def interpolate(args: list[str]) -> None:
    """Parse ``args`` and write the texts that they ask for."""
    flags = [
        Flag("from", str | None, None, "The first prompt.", "TEXT", group="Prompts"),
        Flag("to", str | None, None, "The second prompt.", "TEXT", group="Prompts"),
        Flag("json", bool, False, JSON, negatable=False),
    ]
    config, extra = parse(InterpolateConfig, args, prog="jaxgen interpolate", description=DESCRIPTION, extra=flags)
    start, end = extra["from"], extra["to"]
    if start is None or end is None:
        raise UsageError("Two prompts are needed: give --from TEXT and --to TEXT.")
    if config.out is not None:
        check_output(config.out, "--out")

    from jaxgen.cli.sample import SampleWriter
    from jaxgen.cli.sampling_flags import read_temperature, with_condition_flags
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.interpolation import interpolate_prompts
    from jaxgen.runtime import need_backend
    from jaxgen.tokenizers.base import token_text

    settings = GenerationConfig(config.length, read_temperature(config.temperature), config.seed)
    need_backend()
    sampler = with_condition_flags(open_sampler(config, "interpolate"), config)
    found = interpolate_prompts(sampler, start, end, settings, config.steps, config.unk)
    if config.out is not None:
        write_output(config.out, found.plot().png)
        log(f"Written: {config.out}")
    writer = SampleWriter(sys.stdout.isatty())
    for weight, text, chances in zip(found.weights, found.texts, found.probabilities):
        if extra["json"]:
            best = (-chances).argsort(kind="stable")[:TOP].tolist()
            top = [{"token": token_text(sampler.tokenizer, i), "id": i, "p": round(float(chances[i]), 6)} for i in best]
            value = {"weight": weight, "text": text, "top": top, "from": start, "to": end}
            write_out(json_line(value | sampler.origin()))
        else:
            writer.write_text(text, f"weight {weight:.3g}")


main = Command(interpolate, text_only=True)
