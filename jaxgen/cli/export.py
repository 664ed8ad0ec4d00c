"""``jaxgen export``: a trained language model as a file for other programs."""

from __future__ import annotations

from typing import Literal

from jaxgen.cli.common import log, name_newest
from jaxgen.cli.flags import Command, Excludes, RunConfig, check_flags, parse
from jaxgen.errors import UsageError
from jaxgen.fsutil import check_output, write_output

DESCRIPTION = """Write a trained language model to one file for other programs.

    jaxgen export --to safetensors --output model.safetensors
    jaxgen export --to stablehlo --output model.zip
    jaxgen export --to torch --output lstm.safetensors

The formats (docs/interchange.md has programs that read them):

    safetensors  the weights under jaxgen's names, with settings and tokenizer;
                 jaxgen import makes a run of it
    stablehlo    functions that read a prompt and draw text on CPU, GPU or TPU
                 with JAX alone, without jaxgen (needs the extra jaxgen[export])
    torch        a state dict for nn.Embedding, nn.LSTM (nn.GRU, nn.RNN) and
                 nn.Linear"""


class ExportConfig(RunConfig):
    """Flags of ``jaxgen export``."""

    to: Literal["safetensors", "stablehlo", "torch"] | None = None
    """The format; must be given."""
    output: str | None = None
    """The file to write; must be given."""


RULES = tuple(
    Excludes(f"--to {name}", ("--label", "--features"), "has the weights for every label")
    for name in ("safetensors", "torch")
)


def export(args: list[str]) -> None:
    """Parse ``args`` and write the file that they ask for."""
    config, _ = parse(ExportConfig, args, prog="jaxgen export", description=DESCRIPTION)
    check_flags(RULES, config, args)
    if config.to is None or config.output is None:
        raise UsageError("What to export is not clear: give --to safetensors, stablehlo or torch, and --output FILE.")
    check_output(config.output, "--output")

    from jaxgen.cli.sampling_flags import with_condition_flags
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.inference.sampler import Sampler
    from jaxgen.interchange.stablehlo import export_stablehlo, require_flatbuffers
    from jaxgen.interchange.weights import export_safetensors, export_torch
    from jaxgen.runtime import need_backend

    if config.to == "stablehlo":
        require_flatbuffers()
    need_backend()
    saved = LoadedRun.open(config.run, "export")
    name_newest(config.run, saved.directory)
    if saved.config.model != "rnn":
        raise UsageError(f"{saved.directory} is no recurrent network, but {saved.config.model}: give another --run.")
    if config.to == "stablehlo":
        data = export_stablehlo(with_condition_flags(Sampler.load(saved.directory.path), config))
    else:
        write = export_safetensors if config.to == "safetensors" else export_torch
        data = write(saved, saved.params()[1])
    write_output(config.output, data, "--output")
    log(f"{saved.directory} is in {config.output} ({len(data) / 1e6:,.1f} MB).")


main = Command(export)
