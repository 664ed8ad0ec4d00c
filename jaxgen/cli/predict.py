"""``jaxgen predict``: inputs in, an answer each; a label for a text, a text for a text or an image."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from jaxgen.cli.common import flag_value, log, parse_more, run_command, write_out
from jaxgen.errors import DataError, UsageError
from jaxgen.runs.config import Beam, Seed, Size

if TYPE_CHECKING:
    from jaxgen.inference.predictor import Predictor, Writing

ABOUT = """Answer inputs with a trained model: a label for each line (classify), a translation of each line (translate),
a caption for each image (caption). Answers come in the order of the inputs, one a line, on standard output; an empty
line has its answer too, so that line n answers line n, and an image that cannot be read has an empty line.

    echo "some text" | jaxgen predict                 the newest run, lines from standard input
    jaxgen predict texts.txt more.txt.gz --json       lines of files, answers as JSON with all that is known of them
    jaxgen predict --run runs/translate-1 --beam 5    the likeliest of five beams
    jaxgen predict photo.png other.jpg                images (or features.npz, for a run on features)"""
#: Inputs of which ``--attention`` draws where the decoder looks, from the first on.
MAPS = 4
#: Bytes that a line may have, with its end: it is read whole.
LONGEST = 16 * 2**20
#: Flags for answers that are texts.
OF_TEXTS = ("--attention", "--beam", "--length", "--length-penalty", "--seed", "--temperature")


class PredictConfig(BaseModel):
    """Answer inputs with a trained model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    run: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the run. By default the newest one that answers inputs."""
    beam: Beam = 0
    """For answers that are texts: the likeliest of so many beams. 0: greedy, or drawn with --temperature."""
    length_penalty: Annotated[float, Field(ge=-5, le=5, allow_inf_nan=False)] = 1.0
    """With --beam: 0 prefers the likeliest text, 1 the one that is likeliest a token, more favours longer ones."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """For answers that are texts: 0 takes the likeliest token, 1 draws from the model as it is."""
    length: Size | None = None
    """For answers that are texts: tokens at most. Default: the --max-length that the model was trained with."""
    seed: Seed = 0
    """What is drawn with --temperature follows from it and from the number of the input."""
    attention: Annotated[str, Field(min_length=1)] | None = None
    """PNG to draw: where the decoder looks while it writes, for the first inputs, four at most."""
    strict: bool = False
    """Answer no image if one of them cannot be read, instead of all others."""


def main(args: Sequence[str] | None = None) -> int:
    """Predict; returns the exit code."""
    return run_command(lambda: predict(list(sys.argv[1:] if args is None else args)), text_alone=True)


def predict(args: list[str]) -> None:
    import tyro

    more = [
        ("json", Annotated[bool, tyro.conf.arg(help="An answer as one JSON object a line.")], False),
        ("inputs", Annotated[tuple[str, ...], tyro.conf.Positional, _inputs()], ()),
    ]
    config, rest = parse_more(PredictConfig, args, prog="jaxgen predict", description=ABOUT, more=more)
    check(config, args)

    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.predictor import Predictor, Writing
    from jaxgen.runtime import need_backend

    need_backend()
    predictor = Predictor.load(config.run)
    codec, writes = predictor.codec, predictor.task.ANSWER == "texts"
    if not writes and (given := _given(args, OF_TEXTS)):
        raise UsageError(
            f"{given[0]} is for answers that are texts, and the run {predictor.path} gives none: leave it out."
        )
    if codec.FILES and not rest["inputs"]:
        raise UsageError(f"The run {predictor.path} answers files: name them, as in `jaxgen predict photo.png`.")
    if config.strict and not codec.FILES:
        raise UsageError(f"--strict is about images, and the run {predictor.path} answers lines: leave it out.")
    writing = Writing()
    if writes:
        settings = GenerationConfig(config.length or codec.longest, config.temperature, config.seed)
        writing = Writing(settings, config.beam, config.length_penalty)
    inputs: Iterator[Any] = codec.sources(rest["inputs"]) if codec.FILES else lines(rest["inputs"])
    if config.strict:
        inputs = iter(readable(list(inputs), codec))
    if config.attention is not None:
        first = list(islice(inputs, MAPS))
        inputs = chain(first, inputs)
        draw(predictor, first, writing, config.attention)
    typed = not rest["inputs"] and sys.stdin is not None and sys.stdin.isatty()
    if typed:
        log("A line, then Enter, is answered at once; Ctrl-D ends.")
    answers = predictor.predict(inputs, writing, 1 if typed else None, strict=False)
    write(answers, codec, rest["json"], flush=typed)


def check(config: PredictConfig, args: Sequence[str]) -> None:
    """Raise ``UsageError`` for flags that do not fit together."""
    if config.beam and config.temperature:
        raise UsageError("--beam searches and --temperature draws: give one of them.")
    if not config.beam and (given := _given(args, ["--length-penalty"])):
        raise UsageError(f"{given[0]} ranks the texts of beam search: give --beam too.")
    if not config.temperature and (given := _given(args, ["--seed"])):
        raise UsageError(f"{given[0]} has no meaning where nothing is drawn: give --temperature too.")


def _given(args: Sequence[str], flags: Iterable[str]) -> list[str]:
    return [flag for flag in flags if flag_value(args, flag) is not None]


def readable(inputs: Sequence[Any], codec: Any) -> Sequence[Any]:
    """``inputs``, each of which was read; raises ``DataError`` for the first that cannot be."""
    for each in inputs:
        codec.encode(each)
    return inputs


def write(answers: Iterable[Any], codec: Any, as_json: bool, flush: bool) -> None:
    """Write each answer on a line of standard output; at the end say what was not read of the inputs.

    Of an input that cannot be read the line is empty, as JSON it has the error, which is told at once. Raises
    ``DataError`` at the end if there was one.
    """
    from jaxgen.inference.predictor import Unread

    cut = unread = total = 0
    for answer in answers:
        total += 1
        if isinstance(answer, Unread):
            log(f"error: {answer.error}")
            name = getattr(answer.source, "name", None) or str(answer.source)
            unread, answer = unread + 1, {"image": name, "error": str(answer.error)}
            line = json.dumps(answer, ensure_ascii=False) if as_json else ""
        else:
            line = json.dumps(answer, ensure_ascii=False) if as_json else codec.line(answer)
        write_out(line + "\n", flush=flush)
        cut += answer.get("cut", 0) > 0
    if cut:
        s, were = ("", "was") if cut == 1 else ("s", "were")
        log(f"{cut:,} input{s} {were} longer than what the model reads: the rest was left out.")
    if unread:
        raise DataError(f"{unread:,} of {total:,} inputs cannot be read and got no answer: see above.")


def draw(predictor: Predictor, inputs: Sequence[Any], writing: Writing, path: str) -> None:
    """Draw where the decoder looks while it writes the texts for these inputs, those that cannot be read aside.

    Raises ``UsageError`` if it cannot, and ``DataError`` if none of them can be read.
    """
    from jaxgen.errors import CheckpointError
    from jaxgen.plots.attention import draw_attention

    there = [(number, each) for number, each in enumerate(inputs) if not isinstance(each, str) or each.strip()]
    looks, unread = [], None
    for number, each in there:
        try:
            looks.append(predictor.attention(each, writing, number))
        except DataError as error:
            unread = unread or error
    if not looks and unread is not None:
        raise unread
    if not looks:
        raise UsageError("There is no input of which --attention could draw anything: give one that is not empty.")
    try:
        draw_attention(looks, path)
    except CheckpointError as error:
        raise UsageError(f"--attention {path} cannot be drawn. {error}") from None


def _inputs() -> Any:
    import tyro

    return tyro.conf.arg(help="Files of lines, or images; by default lines of standard input.", metavar="[FILE ...]")


def lines(paths: Sequence[str]) -> Iterator[str]:
    """The lines of files (gzip too), one after the other, or of standard input (``-``); raises ``DataError``."""
    for path in paths or ("-",):
        name = "Standard input" if path == "-" else f"The file {path}"
        if path == "-" and sys.stdin is None:
            raise DataError("Standard input is closed: name files of lines.")
        try:
            if path == "-":
                yield from _decoded(sys.stdin.buffer, name)
            else:
                with Path(path).open("rb") as file:  # opened once, for it may be a pipe
                    zipped = file.peek(2)[:2] == b"\x1f\x8b"
                    yield from _decoded(gzip.GzipFile(fileobj=file) if zipped else file, name)
        except OSError as error:
            raise DataError(
                f"{name} cannot be read: {error.strerror or error}. Check the path and its permissions."
            ) from None
        except (EOFError, zlib.error) as error:
            raise DataError(f"{name} is damaged gzip ({error}). Copy or download it again.") from None


def _decoded(file: BinaryIO | gzip.GzipFile, name: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
        if len(line) > LONGEST:
            raise DataError(
                f"{name} has more than {LONGEST // 2**20} MiB in line {number:,}, the most that one input may have. "
                "Give a text with an input on each line."
            )
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} is not UTF-8: byte {line[error.start]:#04x} in line {number:,}. Convert it to UTF-8."
            ) from None
        yield text.removeprefix("\ufeff") if number == 1 else text
