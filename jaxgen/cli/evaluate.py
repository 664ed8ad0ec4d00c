"""``jaxgen evaluate``: metrics of the texts that a model writes at several temperatures, as a table and a plot."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxgen.cli.common import log, one_line, write_out
from jaxgen.cli.flags import Command, Excludes, Flag, check_flags, parse
from jaxgen.cli.mixture_flags import MIXTURE_RULES, MixtureConfig, fill_mixture_flags, open_sampler
from jaxgen.errors import DataError, UsageError, counted
from jaxgen.fsutil import check_output, replace_file, write_output
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.inference.quality import QualityReport, QualityRow, ReferenceData

DESCRIPTION = """Draw texts at several temperatures and compare them with the same amount of real text.

    jaxgen evaluate                                       the newest run in runs/
    jaxgen evaluate runs/language-1 --temperature 0.5 0.7 0.9
    jaxgen evaluate --no-plot runs/language-1
    jaxgen evaluate --num-samples 200 --block 256 --json > quality.json

The columns:

    logp         mean log-likelihood per token in nats
    dist-1 to 3  share of distinct n-grams
    rep-4        share of 4-grams that occurred earlier in the same text
    cycles       texts that end in a cycle
    known        share of words that occur in the training text
    copied       longest span copied from the training text"""

COLUMNS = ("temperature", "logp", "dist-1", "dist-2", "dist-3", "rep-4", "cycles", "known", "copied")
#: The settings that the JSON names, in its order.
SETTINGS = ("temperature", "num_samples", "length", "prompt", "label", "features", "seed", "block", "unk")
#: The largest number of conditions, and of characters of a quotation, that are shown.
MAX_CONDITIONS, MAX_QUOTED = 10, 200


class EvaluateConfig(MixtureConfig):
    """Flags of ``jaxgen evaluate``. ``run`` is another way to give the argument RUN."""

    in_texts: ClassVar[Group] = Group("Texts")
    temperature: tuple[float, ...] = (0.0, 0.3, 0.5, 0.8, 1.0, 1.3)
    """Temperatures to compare. At 0 one text is drawn and counted --num-samples times."""
    num_samples: int = 20
    """Texts to draw at each temperature."""
    length: int = 500
    """Tokens of a text."""
    prompt: str = ""
    """Text to continue; it is not measured."""
    label: tuple[str, ...] = ()
    """Draw texts with this label, or between several labels (Sports:0.3 World:0.7), and compare them with validation
    texts of it. Default for a run with labels or features: those of as many validation texts."""
    seed: int = 0
    """Another seed gives other texts."""
    block: int = 32
    """Rows that decode together: more are faster. Another number may draw other texts."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that are not in the vocabulary."""

    in_output: ClassVar[Group] = Group("Output")
    require_data: bool = False
    """Stop (exit code 3) if the training text is missing or has changed. Otherwise its columns are left empty."""
    plot: str | None = None
    """PNG file of the plot. Default: quality.png in the folder of the run, none for a pretrained one or a mixture."""


#: The plot in the folder of the run.
PLOT = "quality.png"
RULES = (*MIXTURE_RULES, Excludes("--plot", ("--no-plot",), "names the file of the plot"))


def evaluate(args: list[str]) -> None:
    """Parse ``args``, draw and measure texts, and write the report."""
    args = fill_mixture_flags(args)
    flags = [
        Flag("runs", tuple[str, ...], (), "Folder of the run.", "[RUN]", positional=True),
        Flag("no_plot", bool, False, "Draw no plot.", negatable=False),
        Flag("json", bool, False, "Write everything as JSON instead of the table.", negatable=False),
    ]
    config, extra = parse(EvaluateConfig, args, prog="jaxgen evaluate", description=DESCRIPTION, extra=flags)
    config = config.model_copy(update={"run": one_run(config.run, extra["runs"])})
    check_flags(RULES, config, args, extra)
    if config.plot is not None:
        check_output(config.plot, "--plot")
        special = os.path.exists(config.plot) and not os.path.isfile(config.plot)  # a pipe or a device
        if not special and Path(config.plot).suffix.lower() != ".png":
            raise UsageError(f"--plot is {config.plot!r}, but the plot is a PNG: give a name that ends in .png.")

    from jaxgen.cli.sampling_flags import with_condition_flags
    from jaxgen.inference import quality
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.runtime import need_backend

    settings = GenerationConfig(config.length, seed=config.seed, block=config.block)
    need_backend()
    sampler = with_condition_flags(open_sampler(config, "evaluate"), config, note=False)
    runs = [LoadedRun.open(name) for name in sampler.runs]
    plot = runs[0].directory.path / PLOT
    no_plot = extra["no_plot"] or (config.plot is None and (len(runs) > 1 or runs[0].directory.is_pretrained))
    if config.plot is None and not no_plot and (plot.is_dir() or not os.access(plot.parent, os.W_OK)):
        raise UsageError(f"The plot cannot be written to {plot}: give --plot FILE, or --no-plot.")
    reference = read_reference(runs, config.require_data)
    began = time.perf_counter()
    result = quality.evaluate_samples(
        sampler,
        config.temperature,
        settings,
        prompt=config.prompt,
        num_samples=config.num_samples,
        reference=reference,
        unk=config.unk,
    )
    tokens = sum(row.tokens for row in result.rows)
    if extra["json"]:
        about = {**sampler.origin(), "data": runs[0].resolved["data"]}
        values = config.model_dump(mode="json")
        chosen = {name: values[name] for name in SETTINGS}
        write_out(json.dumps({**about, "settings": chosen, **result.to_json()}, indent=2, ensure_ascii=False) + "\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        write_out(report(result, sampler.documents, width) + "\n")
    if len(result.drawn) > 1:
        shown = ", ".join(f"{condition} {number}" for condition, number in result.drawn[:MAX_CONDITIONS])
        log(f"texts under the conditions of validation texts: {shown}{', …' * (len(result.drawn) > MAX_CONDITIONS)}")
    elif reference is not None and result.validation is None and sampler.condition is not None:
        log(f"note: no validation text is under {sampler.condition}, so that there is no row to compare with.")
    if not no_plot:
        name = plot.parent.resolve().name if len(runs) == 1 else f"a mixture of {len(runs)} runs"
        picture = draw_plot(result, name)
        if config.plot is None:
            replace_file(plot, picture)
        else:
            write_output(config.plot, picture, "--plot")
        log(f"plot: {config.plot or plot}")
    log(f"{counted(tokens, 'token')} drawn and measured in {time.perf_counter() - began:.1f} s")


main = Command(evaluate, text_only=True)


def one_run(flag: str | None, arguments: Sequence[str]) -> str | None:
    """The run given with ``--run`` or as an argument, if any. Raises ``UsageError`` for more than one."""
    given = [*arguments, *([] if flag is None else [f"--run {flag}"])]
    if len(given) > 1:
        raise UsageError(f"Two runs were given, {given[0]} and {given[1]}: give one of them.")
    return arguments[0] if arguments else flag


def read_reference(runs: Sequence[LoadedRun], required: bool) -> ReferenceData | None:
    """The data of the runs. If they are missing: ``None`` and a note, or ``DataError`` if they are ``required``."""
    from jaxgen.inference.quality import ReferenceData

    try:
        if other := next((run for run in runs if run.resolved["data"] != runs[0].resolved["data"]), None):
            raise DataError(f"{runs[0].directory} and {other.directory} were trained on different data.")
        return ReferenceData.of_run(runs[0])
    except DataError as error:
        if required:
            raise
        log(f"note: {error} Comparisons with the training text are left out.")
        return None


def draw_plot(result: QualityReport, name: str) -> bytes:
    """The plot of ``result`` as PNG; ``name`` is that of the model."""
    from jaxgen.plots import Picture, draw_quality

    values = result.to_json()
    title = f"{name}: quality and diversity of {counted(result.rows[0].texts, 'text')} at each temperature"
    args = title, result.unit
    return Picture.drawn(lambda file: draw_quality(values["rows"], values["validation"], file, *args)).png


def report(result: QualityReport, documents: bool = False, width: int | None = None) -> str:
    """The table, and below it the units, the longest copied span and the most frequent cycle."""
    real = [] if result.validation is None else [result.validation]
    lines = align_table([COLUMNS, *(cells(row) for row in [*result.rows, *real])], width)
    lines += ["", f"logp in nats a token; dist-n and rep-4 of {result.unit}s; copied in characters"]
    if result.validation is not None and result.nearest is not None:
        difference = result.nearest.distance(result.validation)
        lines += [
            "",
            f"nearest to real text: temperature {temperature_text(result.nearest.temperature)}; dist, rep-4, cycles "
            f"and known differ by {difference:.1%} on average",
        ]
    if copies := [(row, row.copy) for row in result.rows if row.copy is not None]:
        row, copy = max(copies, key=lambda each: each[1].length)
        place = f"document {copy.source:,}, character {copy.source_start:,}" if documents else f"{copy.source_start:,}"
        lines += [
            "",
            f"longest copy: {counted(copy.length, 'character')} at temperature {temperature_text(row.temperature)}, "
            f"in sample {copy.sample} from {copy.start:,}, in the training text from {place}",
            f"  {quote(copy.text)}",
        ]
    if cycling := [(row, row.cycle) for row in result.rows if row.cycle is not None]:
        row, cycle = max(cycling, key=lambda each: each[0].cycles)
        lines += [
            "",
            f"cycle at temperature {temperature_text(row.temperature)}: "
            f"period {cycle.period:,} from {cycle.start:,}, in tokens",
            f"  {quote(row.cycle_text or '')}",
        ]
    return "\n".join(lines)


def cells(row: QualityRow) -> tuple[str, ...]:
    """The cells of a row of the table; - stands for a metric that cannot be computed."""
    return (
        temperature_text(row.temperature),
        _number(row.logp, ".3f"),
        *(_number(value, ".3f") for value in row.distinct),
        _number(row.seq_rep_4, ".3f"),
        f"{row.cycles}/{row.texts}",
        _number(row.known_words, ".1%"),
        "-" if row.copy is None else f"{row.copy.length:,}",
    )


def align_table(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The lines of a table whose first column is aligned left and the others right.

    Columns that do not fit in ``width`` continue below, with the first one repeated.
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


def temperature_text(temperature: float | None) -> str:
    """The name of a row."""
    return "validation" if temperature is None else f"{temperature:g}"


def quote(text: str) -> str:
    """``text`` in quotes on one line, shortened, with control characters escaped."""
    return f'"{one_line(text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…")}"'


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
