"""``jaxgen predict``: one answer for each input: a label for a text, a text for a text or an image."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from jaxgen.cli.common import json_line, log, name_newest, read_byte_lines, write_out
from jaxgen.cli.flags import Command, CommandConfig, Excludes, Flag, Needs, check_flags, is_written, parse
from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import check_output, write_output
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    from jaxgen.inference.predictor import Answer, DecodingConfig, Predictor, Source, UnreadableInput

DESCRIPTION = """Answer inputs with a trained model: a label for each text (classify), a translation of each text
(translate), a caption for each image (caption). A text is a line, or a row of a table; a whole file, if the model was
trained on texts of several lines. Answers are written in the order of the inputs, one on each line. An empty line also
has an answer, so that line n answers line n; an image that cannot be read has an empty line.

    echo "some text" | jaxgen predict             lines of standard input
    jaxgen predict texts.txt more.txt.gz --json   files of lines, JSON
    jaxgen predict mail.csv --text-column body    a column of a CSV, TSV or JSONL table
    jaxgen predict --run runs/translate-1 --beam 5  the best of five beams
    jaxgen predict photo.png other.jpg            images (or features.npz)"""
INPUTS = "Files of texts, tables, or images. Default: standard input."
#: ``--attention`` draws this many inputs.
MAX_ATTENTION_PLOTS = 4
#: The largest number of bytes of a line, its end included; a line is held in memory.
MAX_LINE = 16 * 2**20


# The ranges are those of ``jaxgen.runs.config``, which imports JAX, and that has to wait for ``prepare_process``.
Beam = Annotated[int, Field(ge=0, le=64)]
Size = Annotated[int, Field(gt=0, le=65_536)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class PredictConfig(CommandConfig):
    """Answer inputs with a trained model."""

    in_input: ClassVar[Group] = Group("Model and inputs")
    run: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the run. Default: the newest one that answers inputs."""
    text_column: Annotated[str, Field(min_length=1)] | None = None
    """Column of tables (.csv, .tsv, .jsonl, also .gz) with the text, by name or by position from 1. Default: that of
    training, or the one with a usual name, such as text or sentence."""
    header: Literal["auto", "yes", "no"] | None = None
    """Whether the first row of a table is a header. Default: as in training; auto with --text-column."""
    lines: bool = False
    """Answer each line, also of tables and where the model was trained on texts of several lines."""
    strict: bool = False
    """If an image cannot be read, answer none. Otherwise all others are answered."""

    in_answers: ClassVar[Group] = Group("Answers that are texts")
    beam: Beam = 0
    """Beam search of this width. 0: greedy, or drawn with --temperature."""
    length_penalty: Annotated[float, Field(ge=-5, le=5, allow_inf_nan=False)] = 1.0
    """With --beam: 0 prefers the most probable text, 1 the largest mean log-probability, more favours longer texts."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 takes the most probable token, 1 draws from the model's own distribution."""
    seed: Seed = 0
    """With --temperature: a drawn text depends on the seed and on the number of the input."""
    length: Size | None = None
    """The largest number of tokens. Default: the --max-length of training."""
    attention: Annotated[str, Field(min_length=1)] | None = None
    """Plot the attention weights for the first inputs (at most four) to this PNG file."""


RULES = (
    Excludes("--beam", ("--temperature",), "draws nothing"),
    Needs("--length-penalty", ("--beam",), "ranks the texts of beam search"),
    Needs("--seed", ("--temperature",), "has no effect where nothing is drawn"),
    Excludes("--lines", ("--text-column", "--header"), "reads no tables"),
)
#: Flags for inputs that are texts.
TABLE_FLAGS = ("--header", "--lines", "--text-column")
#: Flags for answers that are texts.
TEXT_FLAGS = ("--attention", "--beam", "--length", "--length-penalty", "--seed", "--temperature")


def predict(args: list[str]) -> None:
    """Parse ``args`` and write the answers that they ask for."""
    extra = [
        Flag("json", bool, False, "Write one JSON object for each answer."),
        Flag("inputs", tuple[str, ...], (), INPUTS, "[FILE ...]", positional=True),
    ]
    config, values = parse(PredictConfig, args, prog="jaxgen predict", description=DESCRIPTION, extra=extra)
    files: tuple[str, ...] = values["inputs"]
    check_flags(RULES, config, args, even_default=("--length-penalty", "--seed"))

    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.predictor import DecodingConfig, Predictor
    from jaxgen.runtime import need_backend

    if config.attention is not None:
        check_output(config.attention, "--attention")
    need_backend()
    predictor = Predictor.load(config.run)
    name_newest(config.run, predictor.directory)
    codec, writes_texts = predictor.codec, predictor.task.ANSWER == "texts"
    useless = None if writes_texts else next((flag for flag in TEXT_FLAGS if is_written(args, flag)), None)
    if useless is not None:
        raise UsageError(
            f"{useless} is for answers that are texts, and the run {predictor.directory} gives none: omit it."
        )
    if codec.FILES and not files:
        raise UsageError(f"The run {predictor.directory} answers files: name them, as in `jaxgen predict photo.png`.")
    if codec.FILES and (flag := next((flag for flag in TABLE_FLAGS if is_written(args, flag)), None)):
        raise UsageError(f"{flag} is about texts, and the run {predictor.directory} answers images: leave it out.")
    if config.strict and not codec.FILES:
        raise UsageError(f"--strict is about images, and the run {predictor.directory} answers lines: leave it out.")
    decoding = DecodingConfig()
    if writes_texts:
        settings = GenerationConfig(config.length or codec.longest, config.temperature, config.seed)
        decoding = DecodingConfig(settings, config.beam, config.length_penalty)
    typed = not files and sys.stdin is not None and sys.stdin.isatty()
    inputs: Iterator[Source] = codec.sources(files) if codec.FILES else texts(files, predictor, config, typed)
    if config.strict:
        sources = list(inputs)
        for source in sources:
            codec.encode(source)  # raises ``DataError``
        inputs = iter(sources)
    if config.attention is not None:
        first = list(islice(inputs, MAX_ATTENTION_PLOTS))
        inputs = chain(first, inputs)
        plot_attention(predictor, first, decoding, config.attention)
    if typed:
        log("Each line is answered after Enter; Ctrl-D ends.")
    answers = predictor.predict(inputs, decoding, 1 if typed else None, strict=False)
    write_answers(answers, predictor, values["json"], flush=typed)


main = Command(predict, text_only=True)


def texts(paths: Sequence[str], predictor: Predictor, config: PredictConfig, typed: bool) -> Iterator[str]:
    """The texts of files, one after the other, or of standard input (``-``): rows, lines or whole files.

    Raises:
        UsageError: The column of a table is not known, or ``--text-column`` was given for another file.
        DataError: A file cannot be read.
    """
    from jaxgen.data.tables import HEADERS, TEXT_NAMES, read_first_row, shown_first_row, table_kind, usual_column

    named = (config.text_column,) if config.text_column else predictor.input_columns
    as_trained = config.header is None and config.text_column is None
    header = config.header or (predictor.header if as_trained else None) or "auto"
    for path in paths or ("-",):
        kind = None if config.lines or path == "-" else table_kind(Path(path))
        if kind is not None and named is not None:
            if as_trained and header != "auto" and kind != "jsonl" and all(name.isdecimal() for name in named):
                what, other = ("a header", "no") if header == "yes" else ("data", "yes")
                log(f"The first row of {path} is read as {what}, as in training: --header {other} changes that.")
            yield from table_texts(path, kind, named, HEADERS[header])
        elif kind is not None and (usual := usual_column(read_first_row([path]), TEXT_NAMES)) is not None:
            log(f"Columns of {path}: {usual!r} is the text; --text-column chooses another.")
            yield from table_texts(path, kind, (usual,), None)
        elif kind is not None or config.text_column is not None:
            problem = "is a table: name the column with the text" if kind else "is no table (.csv, .tsv, .jsonl)"
            remedy = "give --text-column, or --lines to have each line answered" if kind else "leave --text-column out"
            row = shown_first_row(read_first_row([path])) if kind else ""
            raise UsageError(f"{'Standard input' if path == '-' else path} {problem}; {remedy}.{row}")
        elif predictor.trained_on_whole_files and not (config.lines or typed):
            yield from whole_text(path)
        else:
            yield from text_lines([path])


def table_texts(path: str, kind: str, names: tuple[str, ...], header: bool | None) -> Iterator[str]:
    """The texts in columns of a table, several joined by spaces."""
    from jaxgen.data.files import FileText
    from jaxgen.data.tables import Column, FirstRow, header_notes, read_rows

    first_rows: list[FirstRow] = []
    for _, (text,) in read_rows(
        FileText(Path(path)), kind, Path(path), [Column(names, "--text-column")], header, first_rows
    ):
        for note in header_notes(first_rows):
            log(note)
        first_rows.clear()
        yield text


def whole_text(path: str) -> Iterator[str]:
    """The text of a file; nothing for standard input that is empty."""
    from jaxgen.data.files import read_pieces
    from jaxgen.text import STANDARD

    name, text = "Standard input" if path == "-" else path, ""
    for piece in STANDARD.pieces(read_pieces(path)):
        text += piece
        if len(text) > MAX_LINE:
            raise DataError(f"{name} has more than {MAX_LINE // 2**20} Mi characters, the most that one text may have.")
    if "\n" in text.strip():
        log(f"{name} is one text, as in training; --lines answers each of its lines.")
    if text or path != "-":
        yield text


def text_lines(paths: Sequence[str]) -> Iterator[str]:
    """The lines of files (gzip too), one after the other, or of standard input (``-``). Raises ``DataError``."""
    from jaxgen.data.files import check_not_utf16, not_utf8

    for path in paths or ("-",):
        file = "standard input" if path == "-" else f"the file {path}"
        for number, line in enumerate(read_byte_lines(path, MAX_LINE), start=1):
            try:
                if number == 1:
                    check_not_utf16(line, f"Line 1 of {file}")
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(f"Line {number:,} of {file}", error) from None
            yield text


def write_answers(
    answers: Iterable[Answer | UnreadableInput], predictor: Predictor, as_json: bool, flush: bool
) -> None:
    """Write each answer on a line of standard output.

    The line of an input that cannot be read is empty; as JSON it holds the error, which is also logged at once.

    Raises:
        DataError: At the end, if an input could not be read.
    """
    from jaxgen.inference.predictor import UnreadableInput

    truncated = unread = total = 0
    for answer in answers:
        total += 1
        if isinstance(answer, UnreadableInput):
            log(f"error: {answer.error}")
            unread += 1
            name = getattr(answer.source, "name", None) or str(answer.source)
            line = json_line({"image": name, "error": str(answer.error)}) if as_json else "\n"
        else:
            line = json_line(answer) if as_json else predictor.codec.line(answer) + "\n"
            truncated += answer.get("cut", 0) > 0
        write_out(line, flush=flush)
    if not total:
        log("There is no input to answer: what was given is empty.")
    if truncated:
        s, were = ("", "was") if truncated == 1 else ("s", "were")
        log(f"{truncated:,} input{s} {were} longer than the model can read: the rest was left out.")
    if unread:
        raise DataError(f"{unread:,} of {total:,} inputs cannot be read and have no answer: see above.")


def plot_attention(predictor: Predictor, inputs: Sequence[Source], decoding: DecodingConfig, path: str) -> None:
    """Plot the attention weights for these inputs, except those that cannot be read.

    Raises:
        UsageError: There is no input.
        DataError: None of the inputs can be read.
    """
    from jaxgen.plots import Picture, draw_attention

    present = [(number, each) for number, each in enumerate(inputs) if not isinstance(each, str) or each.strip()]
    maps, first_error = [], None
    for number, source in present:
        try:
            maps.append(predictor.attention(source, decoding, number))
        except DataError as error:
            first_error = first_error or error
    if not maps and first_error is not None:
        raise first_error
    if not maps:
        raise UsageError("There is no input for --attention to plot: give one that is not empty.")
    picture = Picture.drawn(lambda file: draw_attention(maps, file))
    write_output(path, picture.png, "--attention")
