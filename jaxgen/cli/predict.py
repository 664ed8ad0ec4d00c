"""``jaxgen predict``: inputs in, an answer each; a label for a text, a text for a text or an image."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from jaxgen.cli.common import guarded, parse_more
from jaxgen.errors import DataError, UsageError
from jaxgen.store.config import Seed

ABOUT = """Answer inputs with a trained model: a label for each line (classify), a translation of each line (translate),
a caption for each image (caption). Answers come in the order of the inputs, one a line, on standard output.

    echo "some text" | jaxgen predict                 the newest run, lines from standard input
    jaxgen predict texts.txt more.txt --json          lines of files, answers as JSON with all that is known of them
    jaxgen predict --run runs/translate-1 --beam 5    the likeliest of five beams
    jaxgen predict photo.png other.jpg                images"""


class PredictConfig(BaseModel):
    """Answer inputs with a trained model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    run: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the run. By default the newest one that answers inputs."""
    beam: Annotated[int, Field(ge=0)] = 0
    """For answers that are texts: the likeliest of so many beams. 0: greedy, or drawn with --temperature."""
    length_penalty: Annotated[float, Field(ge=-5, le=5, allow_inf_nan=False)] = 1.0
    """With --beam: 0 prefers the likeliest text, 1 the one that is likeliest a token, more favours longer ones."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """For answers that are texts: 0 takes the likeliest token, 1 draws from the model as it is."""
    length: Annotated[int, Field(gt=0)] = 200
    """For answers that are texts: tokens at most."""
    seed: Seed = 0
    """What is drawn with --temperature follows from it."""


def main(args: Sequence[str] | None = None) -> int:
    """Predict; returns the exit code."""
    return guarded(lambda: predict(list(sys.argv[1:] if args is None else args)), text_alone=True)


def predict(args: list[str]) -> None:
    import tyro

    more = [
        ("json", Annotated[bool, tyro.conf.arg(help="An answer as one JSON object a line.")], False),
        ("inputs", Annotated[tuple[str, ...], tyro.conf.Positional, _inputs()], ()),
    ]
    config, rest = parse_more(PredictConfig, args, prog="jaxgen predict", description=ABOUT, more=more)

    from jaxgen.run.predictor import Predictor, Writing
    from jaxgen.run.settings import Settings

    settings = Settings(length=config.length, temperature=config.temperature, seed=config.seed)
    if config.beam and config.temperature:
        raise UsageError("--beam searches and --temperature draws: give one of them.")
    predictor = Predictor.load(config.run)
    codec = predictor.codec
    files = codec.FILES
    inputs: Any = list(rest["inputs"]) if files else lines(rest["inputs"])
    if files and not inputs:
        raise UsageError(f"The run {predictor.path} answers files: name them, as in `jaxgen predict photo.png`.")
    writing = Writing(settings, config.beam, config.length_penalty)
    for answer in predictor.predict(inputs, writing):
        print(json.dumps(answer, ensure_ascii=False) if rest["json"] else codec.line(answer), flush=False)


def _inputs() -> Any:
    import tyro

    return tyro.conf.arg(help="Files of lines, or images; by default lines of standard input.", metavar="[FILE ...]")


def lines(paths: Sequence[str]) -> Iterator[str]:
    """The lines of files, one after the other, or of standard input (``-``); raises ``DataError``."""
    for path in paths or ("-",):
        try:
            if path == "-":
                if sys.stdin is None:
                    raise UsageError("Standard input is closed: name files of lines.")
                yield from _decoded(sys.stdin.buffer, "standard input")
            else:
                with Path(path).open("rb") as file:
                    yield from _decoded(file, path)
        except OSError as error:
            raise DataError(f"The file {path} cannot be read: {error.strerror}. Check its name.") from None


def _decoded(file: Any, name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"Line {number} of {name} is not UTF-8 (byte {line[error.start]:#04x}): convert it to UTF-8."
            ) from None
