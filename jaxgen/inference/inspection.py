"""What a language model computes while it reads a text: states, gates, probabilities, and units that tell something."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen import jitted, notebook
from jaxgen.errors import DataError, UsageError, check_int, check_kind, check_text, choose, counted
from jaxgen.inference.sampler import Sampler
from jaxgen.models.inspection import Unit, hold_units, inspect_step
from jaxgen.plots import Picture, draw_inspection, draw_values
from jaxgen.tokenizers.base import encode_pieces, evenly

#: Steps of a compiled call, and characters that are encoded at a time.
CHUNK, PIECE = 256, 4096
#: The most numbers that the arrays of a text may have.
MAX_NUMBERS = 1 << 28
#: The feature is shifted by so many distances to find what chance gives.
SHIFTS = 99
#: How long a regular expression may look for its matches, and with how many bytes of memory.
SECONDS, MEMORY = 10.0, 2**30
#: Fewer tokens say nothing about a unit.
MIN_TOKENS = 100
#: The held-out correlation from which on a unit is said to tell a feature.
TELLING = 0.5


# --- features of a text

#: Three double quotation marks, where they can begin a string; one, not beyond an empty line; a single one, in a line.
_QUOTED = re.compile(
    r'(?<![^\s(\[{=,:rRbBfFuU])"""(?=[^\n])[\s\S]*?"""|"""|"(?:\\.|(?!\n[ \t]*\n)[^"\\]){0,500}"|“[^”]{0,500}”|'
    r"(?<!\w)'(?:\\.|[^'\\\n])*'(?!\w)"
)


def _matched(pattern: re.Pattern[str], text: str, end: int = 0) -> np.ndarray:
    """1 for the characters of matches, but for the last ``end`` of each, else 0."""
    found = np.zeros(len(text))
    for match in pattern.finditer(text):
        found[match.start() : match.end() - end] = 1
    return found


def inside_quotes(text: str) -> np.ndarray:
    """1 from an opening quotation mark to the character before the closing one, else 0."""
    return _matched(_QUOTED, text, end=1)


def line_position(text: str) -> np.ndarray:
    """The number of characters since the last line break; that of the line break is 0."""
    places = np.arange(len(text))
    breaks = np.array([character == "\n" for character in text], bool)
    return places - np.maximum.accumulate(np.where(breaks, places, -1))


def indentation(text: str) -> np.ndarray:
    """The number of blanks at the beginning of the line, as far as they have been read."""
    found = np.zeros(len(text))
    for match in re.finditer(r"[^\n]+", text):
        blanks = len(match[0]) - len(match[0].lstrip(" \t"))
        found[match.start() : match.end()] = np.minimum(np.arange(1, len(match[0]) + 1), blanks)
    return found


def upper_case(text: str) -> np.ndarray:
    """1 for capital letters, else 0."""
    return np.array([character.isupper() for character in text], float)


def word_end(text: str) -> np.ndarray:
    """1 for the last letter of a word, else 0."""
    return _matched(re.compile(r"\w(?=\W)"), text)


#: Features by name: a number for each character of a text, which may depend on all of it.
FEATURES: dict[str, Callable[[str], np.ndarray]] = {
    "quotes": inside_quotes,
    "line": line_position,
    "upper": upper_case,
    "word-end": word_end,
    "indent": indentation,
}


def feature_values(feature: str, text: str) -> np.ndarray:
    """The values of a feature of ``FEATURES``, or 1 inside the matches of a regular expression and else 0."""
    if feature in FEATURES:
        return FEATURES[feature](text)
    found = np.zeros(len(text))
    for start, end in _spans(feature, text):
        found[start:end] = 1
    return found


#: Reads a regular expression and a text, and writes the spans of the matches, or what is wrong with the expression.
_SEARCH = """
import json, sys
import regex
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
except (ImportError, OSError, ValueError):
    pass
try:
    found = [match.span() for match in regex.finditer(*json.load(sys.stdin))]
except (regex.error, ValueError) as error:  # flags that exclude each other are a ValueError
    found = str(error)
json.dump(found, sys.stdout)
"""


def _spans(expression: str, text: str) -> list[tuple[int, int]]:
    """Where a regular expression matches. Raises ``UsageError`` for one that is wrong, or needs too much.

    It is another process that looks: an expression of few characters can need more memory than there is, or so much
    time that only the end of the process stops it.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _SEARCH, str(MEMORY)],
            input=json.dumps([expression, text]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{expression!r} took more than {SECONDS:g} seconds: give a simpler expression, or a shorter text."
        ) from None
    if done.returncode:
        raise UsageError(f"{expression!r} needs too much memory: give a simpler expression, or a shorter text.")
    found: str | list[tuple[int, int]] = json.loads(done.stdout)
    if isinstance(found, str):
        raise UsageError(
            f"{expression!r} is no feature and no regular expression ({found}): give {', '.join(FEATURES)}, or a "
            "regular expression."
        )
    return found


# --- units that tell a feature


class UnitScore(NamedTuple):
    """A unit and its correlation with a feature: on the half on which it was chosen, and on the other half."""

    unit: Unit
    chosen: float
    score: float


@dataclass(frozen=True)
class Found:
    """The units that follow a feature most closely.

    They were chosen by the absolute value of their correlation on the first half of a text. ``score`` is that of the
    first on the second half, above 0 if it has the same sign there. ``chance`` is the largest score of a unit that was
    chosen and scored in the same way for the feature shifted along the text by each of 99 distances: a feature of the
    same shape that has nothing to do with the text.

    Attributes:
        feature: The feature.
        units: The units, the best first.
        chance: What chance gives.
        tokens: The number of tokens of the text.

    Example:
        >>> seen = jaxgen.inspect("runs/language-1", "the cat sat " * 20)
        >>> found = seen.find("word-end")
        >>> len(found.units), found.tokens, found.is_telling == (found.score >= 0.5 and found.score > found.chance)
        (5, 240, True)
    """

    feature: str
    units: list[UnitScore]
    chance: float
    tokens: int

    @property
    def best(self) -> Unit:
        """The unit that was chosen."""
        return self.units[0].unit

    @property
    def score(self) -> float:
        """The held-out correlation of the chosen unit, above 0 if it has the sign of the first half."""
        return float(self.units[0].score * np.sign(self.units[0].chosen))

    @property
    def is_telling(self) -> bool:
        """Whether the chosen unit tells the feature: its score is above chance and at least 0.5."""
        return self.score > self.chance and self.score >= TELLING

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        figures = f"held-out correlation {self.score:.2f}, chance gives up to {self.chance:.2f}"
        if self.is_telling:
            return f"unit {self.best} tells {self.feature}: {figures}"
        more = "more than chance, but weak" if self.score > self.chance else "no more than chance"
        return f"no unit tells {self.feature}: the best, {self.best}, has {more} ({figures})"

    def table(self) -> list[tuple[str, str, str]]:
        """A heading, and a row for each unit."""
        rows = [(str(each.unit), f"{each.chosen:+.3f}", f"{each.score:+.3f}") for each in self.units]
        return [("unit", "chosen on", "held out"), *rows]

    def __repr__(self) -> str:
        return f"<jaxgen.Found: {self.verdict}>"

    def _repr_html_(self) -> str:
        head, *rows = self.table()
        return notebook.table(head, rows) + f"<div>{notebook.escape(self.verdict)}</div>"


@dataclass(frozen=True, eq=False)
class UnitValues:
    """The value of a unit, or of a gate, after each token of a text. Notebooks show it as colours.

    Attributes:
        unit: The unit.
        texts: The texts of the tokens.
        values: float32 [T].

    Example:
        >>> values = jaxgen.inspect("runs/language-1", "the cat sat").unit("0:h:3")
        >>> str(values.unit), values[4:7].texts
        ('0:h:3', ['c', 'a', 't'])
    """

    unit: Unit
    texts: list[str]
    values: np.ndarray

    @property
    def most(self) -> float:
        """The largest absolute value, which has the strongest colour."""
        return float(np.abs(self.values).max())

    def __getitem__(self, tokens: slice) -> UnitValues:
        """The values of some of the tokens."""
        return replace(self, texts=self.texts[tokens], values=self.values[tokens])

    def plot(self) -> Picture:
        """The text with the values as colours."""
        return Picture.drawn(lambda file: draw_values(self.texts, self.values, file, f"Unit {self.unit}"))

    def __repr__(self) -> str:
        low, high = float(self.values.min()), float(self.values.max())
        return f"<jaxgen.UnitValues {self.unit}: {counted(self.values.size, 'token')}, {low:.3g} to {high:.3g}>"

    def _repr_html_(self) -> str:
        parts = list(zip(self.texts, self.values.tolist()))
        return notebook.colored_values(parts, self.most, f"unit {self.unit}")


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a model computes at each of the T tokens of a text that it reads. Notebooks colour the tokens.

    Attributes:
        tokens: The token ids, int32 [T].
        texts: The text of each token; a character of several tokens is that of the last.
        states: For each layer the arrays of the state after each token, float32 [T, units], by the cell's names.
        gates: For each layer the gates with which each token was read, by the cell's names; none for cells without.
        surprise: Bits of each token, given those before it: -log2 of its probability, float32 [T].
        distance: How far the state of each layer has moved with each token (Euclidean), float32 [T, layers].
        probabilities: Those of the token after each, float32 [T, V]; ``None`` if they were not asked for.

    Example:
        >>> seen = jaxgen.inspect("runs/language-1", "the cat sat on the mat")
        >>> list(seen.states[0]), seen.states[0]["h"].shape, seen.probabilities.shape[0]
        (['h'], (22, 8), 22)
        >>> seen.unit("0:h:3").values.shape
        (22,)
    """

    tokens: np.ndarray
    texts: list[str]
    states: list[dict[str, np.ndarray]]
    gates: list[dict[str, np.ndarray]]
    surprise: np.ndarray
    distance: np.ndarray
    probabilities: np.ndarray | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All states and gates by their names, such as ``0:c``, float32 [T, units]."""
        layers = enumerate(zip(self.states, self.gates))
        return {f"{i}:{name}": array for i, both in layers for each in both for name, array in each.items()}

    def unit(self, unit: Unit | str | int) -> UnitValues:
        """The values of a unit, such as ``"0:c:17"`` or ``"0:17"`` (see ``read_unit``), or of a gate (``"0:f:17"``).

        Raises ``UsageError`` if there is none.
        """
        arrays = [{**states, **gates} for states, gates in zip(self.states, self.gates)]
        found = read_unit(unit, [{name: array.shape[1] for name, array in layer.items()} for layer in arrays])
        array = arrays[found.layer][found.array]
        return UnitValues(found, self.texts, array[:, found.number])

    @cached_property
    def _units(self) -> tuple[list[Unit], np.ndarray]:
        """All units of the states, and their values [T, units]."""
        named = [(i, name, array) for i, layer in enumerate(self.states) for name, array in layer.items()]
        units = [Unit(i, name, number) for i, name, array in named for number in range(array.shape[1])]
        return units, np.concatenate([array for *_, array in named], axis=1)

    def find(self, feature: str, top: int = 5) -> Found:
        """The units that follow a feature of the text most closely, chosen on its first half and scored on the second.

        Args:
            feature: ``quotes`` (inside quotation marks), ``line`` (characters since the line break), ``upper`` (capital
                letters), ``word-end`` (last letters of words), ``indent`` (blanks at the beginning of the line), or a
                regular expression: inside its matches. The value of a token is that of its last character.
            top: How many units to return.

        Raises:
            UsageError: It is neither a feature nor a regular expression.
            DataError: The text is too short, or the feature is the same everywhere in a half of it.
        """
        size, (units, values) = self.tokens.size, self._units
        if size < MIN_TOKENS:
            raise DataError(
                f"The text has {counted(size, 'token')}: to find units, give one of at least {MIN_TOKENS}, better of "
                "thousands."
            )
        top = check_int("The number of units", top, 1)
        ends = np.maximum(np.cumsum([len(text) for text in self.texts]) - 1, 0)
        values_of = feature_values(check_kind("find", feature, str, "the name of a feature"), self.text)[ends]
        shifts = [size * number // (SHIFTS + 1) for number in range(SHIFTS + 1)]
        targets = np.stack([np.roll(values_of, shift) for shift in shifts], axis=1)
        half = size // 2
        for which, part in (("first", values_of[:half]), ("second", values_of[half:])):
            if np.ptp(part) == 0:
                raise DataError(
                    f"{feature!r} is the same at all tokens of the {which} half of the text: give a longer text, or "
                    "another feature."
                )
        chosen, scores = (correlations(values[part], targets[part]) for part in (slice(half), slice(half, None)))
        best = np.abs(chosen).argmax(axis=0)
        every = np.arange(len(shifts))
        signed = scores[best, every] * np.sign(chosen[best, every])
        order = np.argsort(-np.abs(chosen[:, 0]), kind="stable")[:top]
        found = [UnitScore(units[i], float(chosen[i, 0]), float(scores[i, 0])) for i in order]
        return Found(feature, found, float(signed[1:].max()), size)

    def plot(self, layer: int = 0, first: int = 0, length: int = 120) -> Picture:
        """Bits of each token, distances between states, and the states of a layer as heat maps, of some tokens."""
        layer = check_int("The layer", layer, 0, len(self.states) - 1)
        first = check_int("The first token", first, 0, self.tokens.size - 1)
        part = slice(first, first + check_int("The number of tokens", length, 1, 500))
        arrays = {name: array[part] for name, array in self.states[layer].items()}
        shown = self.texts[part], self.surprise[part], self.distance[part], arrays
        return Picture.drawn(lambda file: draw_inspection(*shown, file, f"Layer {layer}"))

    def __repr__(self) -> str:
        bits = f"{self.surprise.mean(dtype=np.float64):.4g} bits each"
        return f"<jaxgen.Inspection: {counted(self.tokens.size, 'token')}, {bits}, {self.about()}>"

    def about(self) -> str:
        """The layers, with the names and sizes of their states and the names of their gates."""
        layers = []
        for number, (states, gates) in enumerate(zip(self.states, self.gates)):
            arrays = ", ".join(f"{name} ({array.shape[1]:,})" for name, array in states.items())
            layers.append(f"layer {number}: {arrays}" + (f", gates {', '.join(gates)}" if gates else ""))
        return "; ".join(layers)

    def _repr_html_(self) -> str:
        parts = list(zip(self.texts, (-math.log(2) * self.surprise).tolist()))
        return notebook.colored_tokens(parts, f"{self.about()}; .unit(...) shows a unit, .find(...) finds some")


def html_page(parts: Iterable[Inspection | UnitValues | Found]) -> str:
    """A page with what notebooks show of ``parts``."""
    return notebook.page("jaxgen neurons", [each._repr_html_() for each in parts])


def correlations(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column of ``values`` [T, U] with each of ``targets`` [T, F]; 0 for constants."""

    def standardised(array: np.ndarray) -> np.ndarray:
        centred = array - array.mean(axis=0, dtype=np.float64)
        norm = np.sqrt((centred * centred).sum(axis=0))
        scale = 1e-6 * np.sqrt(len(array)) * np.abs(array).max(axis=0, initial=0.0)
        return np.where(norm > scale, centred / np.where(norm > 0, norm, 1.0), 0.0)

    return standardised(values).T @ standardised(targets)


def read_unit(unit: Unit | str | int, sizes: Sequence[Mapping[str, int]]) -> Unit:
    """A unit as users write it: ``LAYER:ARRAY:N``, ``LAYER:N`` or ``N``.

    Layers and units count from 0. The default layer is 0, the default array the first of the layer.

    Args:
        unit: What was written.
        sizes: The number of units of the arrays of each layer.

    Raises:
        UsageError: There is no such unit.
    """
    check_kind("unit", unit, Unit | str | int, "a unit, such as 0:c:17")
    found = re.fullmatch(r"(?:(\d{1,9}):)?(?:(.+):)?(\d{1,9})", str(unit))
    if not found:
        raise UsageError(f"{unit!r} names no unit: give LAYER:ARRAY:N, LAYER:N or N, such as 0:c:17.")
    layer, number = int(found[1] or 0), int(found[3])
    if layer >= len(sizes):
        raise UsageError(f"There is no layer {layer}: the model has the layers 0 to {len(sizes) - 1}.")
    array = next(iter(sizes[layer]))
    if found[2] is not None:
        array = choose(found[2], sizes[layer], f"array of layer {layer}")
    if number >= sizes[layer][array]:
        last = sizes[layer][array] - 1
        raise UsageError(f"There is no unit {number}: {array} of layer {layer} has the units 0 to {last}.")
    return Unit(layer, array, number)


class Layout(NamedTuple):
    """The arrays of the states and gates of each layer, in the order of the cell, with their numbers of units."""

    states: list[dict[str, int]]
    gates: list[dict[str, int]]

    @classmethod
    def of(cls, sampler: Sampler) -> Layout:
        """That of a sampler's model. Raises ``UsageError`` if it has no states to look at."""
        model = getattr(sampler.task, "model", None)
        if not hasattr(model, "states"):
            raise UsageError(
                f"A {type(sampler.task).__name__} has no states to look at: give the run of one neural language model."
            )
        found: list[Layout] = []

        def step(carry: Any, token: Any) -> None:  # read while it is traced: JAX would sort the names
            seen = inspect_step(model, sampler.params, carry, token)[1]
            both = ([{name: a.shape[1] for name, a in layer.items()} for layer in each] for each in seen[:2])
            found.append(cls(*both))

        jax.eval_shape(step, sampler.task.initial_carry(1), np.zeros(1, np.int32))
        return found[0]

    @property
    def numbers(self) -> int:
        """How many numbers the arrays have together."""
        return sum(size for layer in (*self.states, *self.gates) for size in layer.values())


def inspect_text(
    sampler: Sampler, text: str, *, probabilities: bool = True, unk: str = "error", most: int | None = None
) -> Inspection:
    """What the model of ``sampler`` computes while it reads ``text``, which begins as a text that is scored does.

    Args:
        sampler: The model.
        text: The text.
        probabilities: Keep those of all tokens of the vocabulary.
        unk: What to do with characters that are not in the vocabulary: ``error``, ``skip`` or ``keep``.
        most: Read at most this many tokens.

    Raises:
        UsageError: The model has no states to look at, or the text is empty, or too long for the memory.
    """
    layout = Layout.of(sampler)
    pieces = sampler.reading.pieces(evenly([check_text("The text", text)], PIECE))
    encoded, size = [np.zeros(0, np.int32)], 0
    for part in encode_pieces(sampler.tokenizer, pieces, unk=unk):
        encoded.append(part.ids)
        size += part.ids.size
        if most is not None and size >= most:
            break  # what is not read may have unknown characters
    ids = np.concatenate(encoded)[:most]
    if not ids.size:
        raise UsageError("The text has no token to look at: give a longer one.")
    params, carry = sampler.params, sampler.initial_state().carry
    numbers = layout.numbers + (sampler.tokenizer.vocab_size if probabilities else 0)
    if ids.size * numbers > MAX_NUMBERS:
        raise UsageError(
            f"The text has {counted(ids.size, 'token')} with {numbers:,} numbers each, which need too much memory: "
            f"give at most {MAX_NUMBERS // numbers:,} tokens."
        )
    start = sampler.prompt_ids("")
    read = np.concatenate([start, ids])
    parts, bits, chances = [], [], []
    function = jitted.jit_inspect(sampler.task.model)
    for at in range(0, read.size, CHUNK):
        chunk = read[at : at + CHUNK]
        padded = np.pad(chunk, (0, CHUNK - chunk.size))[:, None]
        carry, seen = function(params, carry, padded)
        seen = jax.tree.map(lambda a, size=chunk.size: np.asarray(a)[:size, 0], seen)
        following = read[at + 1 : at + CHUNK + 1]
        bits.append(seen.logp[np.arange(following.size), following] / -math.log(2))
        parts.append((seen.states, seen.gates))
        chances += [np.exp(seen.logp)] if probabilities else []
    states, gates = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    shown = slice(start.size, None)
    decoder = sampler.tokenizer.stream_decoder()
    return Inspection(
        ids,
        [decoder.feed([token]) for token in ids.tolist()],
        [{name: layer[name][shown] for name in names} for names, layer in zip(layout.states, states)],
        [{name: layer[name][shown] for name in names} for names, layer in zip(layout.gates, gates)],
        np.concatenate(bits)[start.size - 1 :],
        np.stack([_distances(layer)[start.size - 1 :] for layer in states], axis=1),
        np.concatenate(chances)[shown] if probabilities else None,
    )


def _distances(layer: Mapping[str, np.ndarray]) -> np.ndarray:
    """The distances between neighbouring states of a layer, [T - 1]."""
    squares = [np.square(np.diff(array, axis=0)).sum(axis=1) for array in layer.values()]
    distances: np.ndarray = np.sqrt(np.sum(squares, axis=0))
    return distances


def clamped(sampler: Sampler, values: Mapping[Unit | str | int, float]) -> Sampler:
    """A sampler with the same weights, whose units are held at ``values`` while it reads and draws.

    Args:
        sampler: The sampler.
        values: Units (see ``read_unit``) and their values.

    Raises:
        UsageError: There is no such unit, or units of the model cannot be held.
    """
    check_kind("clamped", values, Mapping, 'units with their values, such as {"0:c:17": 2.0}')
    task, sizes = sampler.task, Layout.of(sampler).states
    held = {read_unit(unit, sizes): float(value) for unit, value in values.items()}
    other = sampler.with_task(replace(task, model=hold_units(task.model, held)))
    other.held = {**sampler.held, **{str(unit): value for unit, value in held.items()}}
    return other
