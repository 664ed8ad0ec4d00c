"""``jaxgen import``: a run from the weights of another program."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from pydantic import Field

from jaxgen.cli.common import log
from jaxgen.cli.flags import Command, CommandConfig, Flag, parse

DESCRIPTION = """Make a run of a language model's weights in a safetensors file.

    jaxgen import lstm.safetensors --tokenizer vocabulary.json
    jaxgen import model.safetensors --run runs/copied

It reads files of jaxgen export, and those of docs/interchange.md."""


class ImportConfig(CommandConfig):
    """Flags of ``jaxgen import``."""

    run: str | None = None
    """Folder of the new run. Default: the next free runs/language-N."""
    tokenizer: str | None = None
    """The vocabulary of a model from elsewhere: the word byte, or a JSON file with a list of the tokens in the order of
    the embedding's rows, or a tokenizer.json of jaxgen."""
    data: tuple[str, ...] = ()
    """Texts that train.py --resume continues with. Default: python-docs."""
    cell: Literal["elman-relu"] | None = None
    """The units of a PyTorch nn.RNN are ReLUs, which its file does not say."""
    scale_embedding: bool = False
    """Multiply embedded tokens by the square root of their width. A RecurrentGemma's file does not say whether to."""
    soft_cap: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Limit logits to this number by tanh (RecurrentGemma: 30), which a file does not record. 0: no limit."""


def import_weights(args: list[str]) -> None:
    """Parse ``args`` and make the run that they ask for."""
    file_flag = Flag("file", str, "", "The weights, a safetensors file.", "FILE", positional=True)
    config, extra = parse(ImportConfig, args, prog="jaxgen import", description=DESCRIPTION, extra=[file_flag])

    from jaxgen.errors import UsageError
    from jaxgen.interchange.import_run import import_run
    from jaxgen.interchange.layouts import Unrecorded
    from jaxgen.plugins import plugin_flags
    from jaxgen.runs.config import check_folder
    from jaxgen.runtime import need_backend

    check_folder(config.run)
    if not extra["file"]:
        raise UsageError("No file was given: name a safetensors file with the weights of a language model.")
    need_backend()
    unrecorded = Unrecorded(config.cell, config.scale_embedding, config.soft_cap)
    run = import_run(extra["file"], config.run, config.tokenizer, config.data, unrecorded)
    flags = plugin_flags(run.read_json("config.json")["resolved"].get("plugins", []))
    log(f"{extra['file']} is now the run {run}. Next: python sample.py --run {shlex.quote(str(run))}{flags}")


main = Command(import_weights)
