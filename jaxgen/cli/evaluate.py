"""``jaxgen evaluate``: what a model writes over a sweep of temperatures, in a table and a picture."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import escape_controls, log, parse_more, run_command, write_out
from jaxgen.errors import DataError, UsageError

if TYPE_CHECKING:
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.inference.quality import Evaluation, Reference, Row

DESCRIPTION = """Draw texts over a sweep of temperatures and measure them beside real text of the same amount.

    jaxgen evaluate                                       the newest run in runs/
    jaxgen evaluate runs/language-1 --temperature 0.5 0.7 0.9
    jaxgen evaluate --no-plot runs/language-1
    jaxgen evaluate --num-samples 200 --block 256 --json > quality.json

The columns:

    logp         mean log-likelihood of a token in nats
    dist-1 to 3  share of n-grams that are different ones
    rep-4        share of a text's 4-grams that it has had already
    cycles       texts that end by repeating themselves
    known        share of words that occur in the training text
    copied       longest span copied from the training text"""

COLUMNS = ("temperature", "logp", "dist-1", "dist-2", "dist-3", "rep-4", "cycles", "known", "copied")
#: Conditions that are told, at most.
SHARES = 10
#: Characters of a quotation.
QUOTED = 200


class EvaluateConfig(BaseModel):
    """Flags of ``jaxgen evaluate``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run, another way to give RUN. Default: the newest in runs/."""
    temperature: tuple[float, ...] = (0.0, 0.3, 0.5, 0.8, 1.0, 1.3)
    """What to compare. 0 makes one text, which is counted --num-samples times."""
    num_samples: int = 20
    """Texts to draw at each temperature."""
    length: int = 500
    """Tokens of a text, 1 or more."""
    prompt: str = ""
    """Text to continue; it is not measured."""
    label: tuple[str, ...] = ()
    """Texts of this label, or between labels (Sports:0.3 World:0.7), beside validation texts of it. Default, of a run
    with labels or features: those of as many validation texts."""
    features: tuple[float, ...] = ()
    """Texts with these numbers, one for each of the --feature-columns of the run."""
    seed: int = 0
    """Another seed, other texts."""
    block: int = 32
    """Rows that decode together: more are sooner done. Another number may draw other texts."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that the model has never seen."""
    require_data: bool = False
    """Stop (exit code 3) when the training text is gone or changed, which otherwise leaves its columns empty."""
    plot: str | None = None
    """Where to draw the picture, a PNG. Default: quality.png in the folder of the run."""


def _more() -> list[tuple[str, Any, Any]]:
    """The run as a word of its own, and flags without a value."""
    import tyro

    about = tyro.conf.arg(help="Folder of the run.", metavar="[RUN]")
    runs: Any = Annotated[tuple[str, ...], tyro.conf.Positional, about]
    texts = {"no_plot": "Draw no picture.", "json": "Write everything as one JSON object in place of the table."}
    switches = [
        (name, Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=text)], False)
        for name, text in texts.items()
    ]
    return [("runs", runs, ()), *switches]


def main(args: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    return run_command(lambda: evaluate(list(sys.argv[1:] if args is None else args)), text_alone=True)


def evaluate(args: list[str]) -> None:
    config, more = parse_more(EvaluateConfig, args, prog="jaxgen evaluate", description=DESCRIPTION, more=_more())
    run = one_run(config.run, more["runs"])
    if not config.temperature:
        raise UsageError("--temperature was given without a number: give one or more, for example 0.8.")
    if config.plot is not None:
        check_picture(config.plot, more["no_plot"])

    from jaxgen.cli.sampling_flags import conditioned
    from jaxgen.inference import quality
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.inference.sampler import Sampler
    from jaxgen.runtime import need_backend

    for temperature in config.temperature:
        settings = GenerationConfig(config.length, temperature, config.seed, block=config.block)
    need_backend()
    saved = LoadedRun.open(run, "evaluate")
    picture = None if more["no_plot"] else picture_path(config.plot, saved.directory.path)
    reference = read_reference(saved, config.require_data)
    sampler = conditioned(Sampler.load(saved.directory.path), config.label, config.features, note=False)
    began = time.perf_counter()
    result = quality.evaluate(
        sampler,
        config.temperature,
        settings,
        prompt=config.prompt,
        num_samples=config.num_samples,
        reference=reference,
        unk=config.unk,
    )
    tokens = sum(row.tokens for row in result.rows)
    if more["json"]:
        about = {"run": str(saved.directory.path), "checkpoint": sampler.digest, "data": saved.resolved["data"]}
        asked = config.model_dump(mode="json", exclude={"run", "plot", "require_data"})
        write_out(json.dumps({**about, "settings": asked, **result.to_json()}, indent=2, ensure_ascii=False) + "\n")
    else:
        write_out(report(result, sampler.documents, width()) + "\n")
    if len(result.drawn) > 1:
        shares = ", ".join(f"{condition} {number}" for condition, number in result.drawn[:SHARES])
        log(f"texts under the conditions of validation texts: {shares}{', …' * (len(result.drawn) > SHARES)}")
    elif reference is not None and result.validation is None and sampler.condition is not None:
        log(f"note: no validation text is under {sampler.condition}, so that none is beside those drawn.")
    if picture is not None:
        draw(result, picture, saved)
        log(f"picture: {picture}")
    log(f"{tokens:,} tokens drawn and measured in {time.perf_counter() - began:.1f} s")


def one_run(flag: str | None, words: Sequence[str]) -> str | None:
    """The run that was given with ``--run`` or as a word, if one was; ``UsageError`` for more than one."""
    given = [*words, *([] if flag is None else [f"--run {flag}"])]
    if len(given) > 1:
        raise UsageError(f"Two runs were given, {given[0]} and {given[1]}: give one of them.")
    return words[0] if words else flag


def check_picture(name: str, unwanted: bool) -> None:
    """Raise ``UsageError`` for a picture that is not wanted after all, or whose name is that of another file."""
    if unwanted:
        raise UsageError("--plot and --no-plot were given together: give one of them.")
    if Path(name).suffix.lower() != ".png":
        raise UsageError(f"--plot is {name!r}, and a PNG is drawn there: give a name that ends in .png.")


def picture_path(given: str | None, run: Path) -> Path:
    """Where the picture goes; ``UsageError`` when nothing can be written there, before any work is done."""
    path = run / "quality.png" if given is None else Path(given)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"The picture cannot be written to {path}: give the name of a file in a folder that you may write with "
            "--plot FILE, or --no-plot."
        )
    return path


def read_reference(saved: LoadedRun, required: bool) -> Reference | None:
    """The texts of the run; without them ``None`` and a note, or ``DataError`` when they are ``required``."""
    from jaxgen.inference.quality import Reference

    try:
        return Reference.of_run(saved)
    except DataError as error:
        if required:
            raise
        log(f"note: {error} What compares with the training text is left out.")
        return None


def draw(result: Evaluation, picture: Path, saved: LoadedRun) -> None:
    """The picture of ``result``."""
    from jaxgen.plots.quality import draw_quality

    values = result.to_json()
    name = saved.directory.path.resolve().name
    title = f"{name}: quality against diversity, {result.rows[0].texts} texts at each temperature"
    draw_quality(values["rows"], values["validation"], picture, title, result.unit)


def width() -> int | None:
    """Columns of the terminal that standard output is, if it is one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def report(result: Evaluation, documents: bool = False, width: int | None = None) -> str:
    """The table, and below it what its columns are of, the longest copy and the commonest way to go in circles."""
    real = [] if result.validation is None else [result.validation]
    lines = table([COLUMNS, *(cells(row) for row in [*result.rows, *real])], width)
    lines += ["", f"logp in nats a token; dist-n and rep-4 of {result.unit}s; copied in characters"]
    if copies := [(row, row.copy) for row in result.rows if row.copy is not None]:
        row, copy = max(copies, key=lambda each: each[1].length)
        place = f"document {copy.source:,}, character {copy.source_start:,}" if documents else f"{copy.source_start:,}"
        lines += [
            "",
            f"longest copy: {copy.length:,} characters at temperature {name_of(row.temperature)}, "
            f"in sample {copy.sample} from {copy.start:,}, in the training text from {place}",
            f"  {quoted(copy.text)}",
        ]
    if turning := [(row, row.cycle) for row in result.rows if row.cycle is not None]:
        row, cycle = max(turning, key=lambda each: each[0].cycles)
        lines += [
            "",
            f"cycle at temperature {name_of(row.temperature)}: period {cycle.period:,} from {cycle.start:,}, in tokens",
            f"  {quoted(row.cycle_text or '')}",
        ]
    return "\n".join(lines)


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table; - is what cannot be measured."""
    return (
        name_of(row.temperature),
        _number(row.logp, ".3f"),
        *(_number(value, ".3f") for value in row.distinct),
        _number(row.seq_rep_4, ".3f"),
        f"{row.cycles}/{row.texts}",
        _number(row.known_words, ".1%"),
        "-" if row.copy is None else f"{row.copy.length:,}",
    )


def table(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines with the first column on the left and the others on the right.

    In a window of ``width`` columns that is too narrow, the columns go on below, the first one repeated.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines: list[str] = []
    shown = list(range(1, len(widths)))
    while shown:
        count, taken = 0, widths[0]
        while count < len(shown) and (not count or width is None or taken + 2 + widths[shown[count]] <= width):
            taken += 2 + widths[shown[count]]
            count += 1
        lines += [""] if lines else []
        for row in rows:
            lines.append("  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in shown[:count])]))
        shown = shown[count:]
    return lines


def name_of(temperature: float | None) -> str:
    return "validation" if temperature is None else f"{temperature:g}"


def quoted(text: str) -> str:
    """``text`` in one line, shortened, with nothing in it that a terminal would obey."""
    line = escape_controls(text if len(text) <= QUOTED else text[: QUOTED - 1] + "…")
    return '"' + line.replace("\n", "\\n").replace("\t", "\\t") + '"'


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
