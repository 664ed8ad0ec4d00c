"""``jaxgen neurons``: the units of a model while it reads a text, those that tell something, those held at a value."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxgen.cli.common import json_line, log, write_out
from jaxgen.cli.flags import Command, Excludes, Flag, Needs, Rules, RunConfig, check_flags, fill_value, parse
from jaxgen.cli.mixture_flags import open_sampler
from jaxgen.errors import DataError, UsageError, check_int, counted
from jaxgen.fsutil import check_output, write_output
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    from jaxgen.inference.inspection import Found, Inspection, UnitValues
    from jaxgen.inference.sampler import Sampler

DESCRIPTION = """Look at the hidden units of a language model while it reads a text: which of them tell whether it is
inside quotation marks, where in the line it is, and so on; the value of one at each token; and the text that the model
writes while some are held at a value.

    jaxgen neurons --text book.txt                      which units tell what?
    jaxgen neurons --text book.txt --find line         the best unit as colours
    jaxgen neurons --text book.txt --find "[A-Z]+:"     inside matches
    jaxgen neurons --text book.txt --unit 0:c:17        layer 0, array c, unit 17
    jaxgen neurons --text book.txt --find line --out line.png
    jaxgen neurons --clamp 0:c:17=2.0 --prompt "The "   text with and without it

Units that --find names were chosen on the first half of the text. Their score is their correlation with the feature on
the second half, and chance is what the same search gives for a feature that has nothing to do with the text."""
JSON = "Write one JSON object: the arrays of the model, what was found, and the values of the unit."
DRAWING = ("--prompt", "--length", "--temperature", "--seed")
LOOKING = ("--text", "--unit", "--find", "--out", "--color")
RULES: Rules = (
    *(Excludes("--clamp", (flag,), "draws texts") for flag in LOOKING),
    *(Needs(flag, ("--clamp",), "is about the texts that are drawn") for flag in DRAWING),
    Excludes("--unit", ("--find",), "names the unit to show"),
    Needs("--unit", ("--text",), "is shown over a text"),
    Needs("--find", ("--text",), "looks at a text"),
    Excludes("--color", ("--json",), "colours a text"),
)


class NeuronsConfig(RunConfig):
    """Flags of ``jaxgen neurons``."""

    in_text: ClassVar[Group] = Group("Text")
    text: str | None = None
    """The text file to read (UTF-8, gzip too), or a named set; - is standard input."""
    tokens: int = 20_000
    """Read at most this many tokens of it."""
    unk: Literal["error", "skip", "keep"] = "error"
    """What to do with characters that are not in the vocabulary."""

    in_units: ClassVar[Group] = Group("Units")
    unit: str | None = None
    """Show this unit: LAYER:ARRAY:N, LAYER:N or N, all from 0. Gates can be named as arrays."""
    find: tuple[str, ...] = ()
    """Find the unit that tells this: quotes (inside quotation marks), line (characters since the line break), upper
    (capital letters), word-end (last letters of words), indent (blanks at the beginning of the line), or any regular
    expression (inside its matches). Default: the five."""

    in_clamp: ClassVar[Group] = Group("Units held at a value")
    clamp: tuple[str, ...] = ()
    """Write two texts: one of the model as it is, one with this unit, or several, held at a value (0:c:17=2.0)."""
    prompt: str = ""
    """Text to continue."""
    length: int = 300
    """Tokens to draw."""
    temperature: str = "0.8"
    """As that of sample.py."""
    seed: int = 0
    """Another seed gives other texts."""

    in_output: ClassVar[Group] = Group("Output")
    color: Literal["auto", "always", "never"] = "auto"
    """Show the text with the values of the unit as colours. auto: on a terminal with colours. Without colours, --unit
    writes a table of the tokens."""
    show: int = 1_000
    """Show at most this many tokens. With --find they are those on which the unit was scored."""
    out: str | None = None
    """Write a picture (.png) or a page (.html) of the unit or, if there are several, of layer 0."""


def neurons(args: list[str]) -> None:
    """Parse ``args`` and write what they ask for."""
    args = fill_value(args, "--color", "auto")
    flags = [Flag("json", bool, False, JSON, negatable=False)]
    config, extra = parse(NeuronsConfig, args, prog="jaxgen neurons", description=DESCRIPTION, extra=flags)
    check_flags(RULES, config, args, extra, even_default=DRAWING)
    if not (config.text or config.clamp):
        raise UsageError("There is nothing to look at: give --text FILE, or --clamp UNIT=VALUE with a --prompt.")
    check_int("The number of tokens (--tokens)", config.tokens, 1)
    check_int("The number of tokens to show (--show)", config.show, 1)
    if config.out is not None:
        check_output(config.out, "--out")
        if Path(config.out).suffix.lower() not in (".png", ".html"):
            raise UsageError(f"--out is {config.out!r}: give a name that ends with .png or .html.")

    from jaxgen.cli.sampling_flags import with_condition_flags
    from jaxgen.runtime import need_backend

    need_backend()
    sampler = with_condition_flags(open_sampler(config, "neurons"), config)
    if config.clamp:
        write_clamped(sampler, config, as_json=extra["json"])
    else:
        write_units(sampler, config, as_json=extra["json"])


main = Command(neurons, text_only=True)


def write_units(sampler: Sampler, config: NeuronsConfig, *, as_json: bool) -> None:
    """Write what the units of the model do over a text."""
    from jaxgen.data.datasets import text_path
    from jaxgen.data.files import BYTE_RUN, check_readable, read_pieces
    from jaxgen.inference.inspection import FEATURES, inspect_text
    from jaxgen.tokenizers.base import between

    path = text_path(config.text or "")
    check_readable([path])
    pieces = read_pieces(path, any_bytes=sampler.tokenizer.kind == "byte", remedy=BYTE_RUN)
    text = "".join(between(pieces, 0, 64 * config.tokens))
    seen = inspect_text(sampler, text, probabilities=False, unk=config.unk, most=config.tokens)
    if len(seen.text) < len(text):
        log(f"note: only the first {counted(seen.tokens.size, 'token')} of the text: --tokens reads more.")
    found: list[Found] = []
    constant: list[str] = []
    if config.unit is None:
        for feature in config.find or FEATURES:
            try:
                found.append(seen.find(feature))
            except DataError as error:
                if config.find:
                    raise
                constant.append(str(error))
    shown = None
    if config.unit is not None:
        shown = seen.unit(config.unit)[: config.show]
    elif len(config.find) == 1:
        half = seen.tokens.size // 2
        shown = seen.unit(found[0].best)[half : half + config.show]
    if config.out is not None:
        write_picture(config.out, seen, found, shown)
    if as_json:
        write_out(json_line(to_json(sampler, seen, found, shown)))
        return
    if config.unit is None:
        write_out(f"{counted(seen.tokens.size, 'token')}, {seen.about()}\n")
        for each in found:
            write_out("\n" + "\n".join(found_lines(each)) + "\n")
        for message in constant:
            log(f"note: {message}")
    if shown is not None:
        write_values(shown, config.color, as_table=config.unit is not None)


def found_lines(found: Found) -> list[str]:
    """What was found for a feature, and a table of the best units."""
    from jaxgen.cli.evaluate import align_table

    return [found.verdict[0].upper() + found.verdict[1:] + ".", *align_table(found.table())]


def write_values(values: UnitValues, color: str, as_table: bool) -> None:
    """Write a text with the values of a unit as colours; without colours as a table, if that is asked for."""
    from jaxgen.cli.common import escape_controls, one_line
    from jaxgen.cli.token_colors import ValueColors, color_system

    system = None if color == "never" else color_system(color, sys.stdout)
    if system is not None:
        colors = ValueColors(values.most, system)
        log(colors.legend(f"unit {values.unit}", color_system(color, sys.stderr)), painted=True)
        spans = colors.spans(zip(map(escape_controls, values.texts), values.values.tolist()))
        sys.stdout.write("".join(spans) + "\n")
        return
    if as_table:
        write_out(f"{'position':>9}  {'value':>9}  token\n")
        for position, (text, value) in enumerate(zip(values.texts, values.values.tolist()), start=1):
            write_out(f"{position:>9,}  {value:>9.4f}  '{one_line(text)}'\n")


def write_picture(path: str, seen: Inspection, found: Sequence[Found], shown: UnitValues | None) -> None:
    """Write a picture or a page of a unit, or of all."""
    from jaxgen.inference.inspection import html_page

    if path.lower().endswith(".png"):
        write_output(path, (seen if shown is None else shown).plot().png)
    else:
        write_output(path, html_page([seen if shown is None else shown, *found]).encode())
    log(f"Written: {path}")


def to_json(sampler: Sampler, seen: Inspection, found: Sequence[Found], shown: UnitValues | None) -> dict[str, Any]:
    """All that is written as JSON values."""
    layers = zip(seen.states, seen.gates)
    values = None
    if shown is not None:
        numbers = [round(value, 6) for value in shown.values.tolist()]
        values = {"unit": str(shown.unit), "texts": shown.texts, "values": numbers}
    return {
        "tokens": seen.tokens.size,
        "bits_per_token": float(seen.surprise.mean()),
        "layers": [
            {"states": {name: array.shape[1] for name, array in states.items()}, "gates": list(gates)}
            for states, gates in layers
        ],
        "found": [
            {
                "feature": each.feature,
                "unit": str(each.best),
                "score": each.score,
                "chance": each.chance,
                "tells": each.is_telling,
                "units": [{"unit": str(u), "chosen": chosen, "held_out": score} for u, chosen, score in each.units],
            }
            for each in found
        ],
        "values": values,
        **sampler.origin(),
    }


def write_clamped(sampler: Sampler, config: NeuronsConfig, *, as_json: bool) -> None:
    """Write the text of a model and, at the same seed, its text with units held at values."""
    from jaxgen.cli.sample import SampleWriter
    from jaxgen.cli.sampling_flags import read_temperature
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.inspection import clamped

    settings = GenerationConfig(config.length, read_temperature(config.temperature), config.seed)
    values: dict[Any, float] = dict(map(read_clamp, config.clamp))
    other = clamped(sampler, values)
    texts = [each.sample(config.prompt, settings)[0] for each in (sampler, other)]
    if as_json:
        names = ("length", "temperature", "seed")
        about = {name: settings.to_json()[name] for name in names}
        found = {"prompt": config.prompt, "clamp": values, "settings": about, "text": texts[0], "clamped": texts[1]}
        write_out(json_line(found | sampler.origin()))
        return
    writer, prompt = SampleWriter(sys.stdout.isatty()), sampler.reading.text(config.prompt)
    writer.write_text(prompt + texts[0], "as it is")
    writer.write_text(prompt + texts[1], f"with {' '.join(config.clamp)}")


def read_clamp(word: str) -> tuple[str, float]:
    """A unit and its value from ``0:c:17=2.0``. Raises ``UsageError`` for another form."""
    unit, equals, number = word.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not equals or not math.isfinite(value):
        raise UsageError(f"--clamp is {word!r}: give a unit and a number, such as 0:c:17=2.0.")
    return unit, value
