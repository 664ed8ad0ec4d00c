"""``shapes``: pictures of two or three coloured shapes and a sentence that says what is where, for ``caption``.

    a large red circle is left of a small blue square and above a small green cross

The sentence is a function of the scene, so a caption is either exactly right or wrong:

- Of two objects one is *left of*, *right of*, *above* or *below* the other, by the greater of the two distances of
  their centres, across and down. Scenes in which these differ by less than ``MARGIN`` pixels are drawn again.
- Large objects are named before small ones, and of equal ones that first which is left of the other or above it. (Three
  objects cannot go round in a circle: the longest of the distances would be shorter than itself.)
- The first object is the subject, and its relation to each of the others is said.

Objects do not overlap, and no two of a scene have both colour and shape in common. Sizes within a kind, angles, tints,
background and noise vary. A fifth of the pairs of colour and shape is held out: no scene of ``train``, ``val`` or
``test`` has one, every scene of ``held_out`` has exactly one.

Scene i of a split is a pure function of (seed, split, i). Its arithmetic is +, -, ×, / and square roots of float64,
which round alike on every platform, so the pixels are the same everywhere.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxgen.data.tokens import check_sizes, random_bits
from jaxgen.errors import choose

#: Goes up when a seed no longer gives the scenes it gave.
VERSION = 1
#: Height and width of a picture in pixels.
SIZE = 64
#: By how many pixels the distances of two centres across and down differ at least.
MARGIN = 6.0
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 75, 215),
    "yellow": (235, 200, 30),
    "purple": (150, 50, 180),
    "cyan": (50, 195, 215),
}
SHAPES = ("circle", "square", "triangle", "cross")
#: From and to which radius a circle has in pixels; the other shapes cover about as much.
SIZES = {"large": (8.5, 10.0), "small": (4.5, 5.5)}
SPLITS = ("train", "val", "test", "held_out")
#: How many of the 24 pairs of colour and shape are held out: no colour twice, no shape three times.
HELD_OUT = 5
# No shape reaches farther from its centre than this many radii.
_REACH = 1.3
# Pixels between the reaches of two objects, and from a reach to the border: the softened edge of a triangle goes one
# pixel beyond its corner.
_GAP, _BORDER = 2.0, 1.5
# Arrangements that are tried at once; of three large objects one in a hundred will do.
_TRIED = 128
# The streams of random bits of a scene; from the last one on, each is another lot of arrangements.
_OBJECTS, _NOISE, _PLACES = 0, 1, 2
_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_Y, _X = np.mgrid[0:SIZE, 0:SIZE] + 0.5


class Thing(NamedTuple):
    """An object of a scene. Lengths are in pixels from the upper left corner, ``y`` downwards."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    #: That of a circle which covers about as much.
    radius: float
    #: Tangent of half the angle by which it is turned.
    turn: float
    #: Its very colour, 0 to 255, near that of its name.
    rgb: tuple[float, ...]

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """The objects in the order in which they are named, and what lies behind them."""

    things: tuple[Thing, ...]
    #: The colour in the middle, 0 to 255.
    background: tuple[float, ...]
    #: How much brighter the background is at the right than at the left, and at the bottom than at the top.
    slope: tuple[float, float]


@dataclass(frozen=True)
class Scenes:
    """One split of ``shapes``: ``number`` scenes, each made when it is asked for, in any order."""

    seed: int
    split: str
    number: int

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for a split that is none of ``SPLITS``, a bad seed or a number below 1."""
        choose(self.split, SPLITS, "split of shapes")
        check_sizes(seed=self.seed, number_of_scenes=self.number)

    def __len__(self) -> int:
        return self.number

    def scene(self, i: int) -> Scene:
        """What scene ``i`` consists of. Raises ``IndexError`` unless 0 <= i < ``number``, as the other methods do."""
        if not 0 <= i < self.number:
            raise IndexError(f"There is no scene {i} among {self.number}.")
        bits = self._bits(i, _OBJECTS, 64)
        real = iter(_fractions(bits[24:]))
        count = 2 + int(bits[63] >> np.uint64(63))
        pairs = self._pairs(np.argsort(bits[:24], kind="stable").tolist())[:count]
        sizes = ["large" if next(real) < 0.5 else "small" for _ in pairs]
        radii = [_between(next(real), *SIZES[size]) for size in sizes]
        things = [
            Thing(
                size,
                colour,
                shape,
                x,
                y,
                radius,
                turn=_between(next(real), -0.13, 0.13),
                rgb=tuple(level + _between(next(real), -14, 14) for level in COLOURS[colour]),
            )
            for (colour, shape), size, radius, (x, y) in zip(pairs, sizes, radii, self._places(i, radii))
        ]
        grey = _between(next(real), 205, 240)
        background = tuple(grey + _between(next(real), -6, 6) for _ in range(3))
        slope = (_between(next(real), -16, 16), _between(next(real), -16, 16))
        ordered = sorted(things, key=lambda thing: sum(_before(other, thing) for other in things))
        return Scene(tuple(ordered), background, slope)

    def caption(self, i: int) -> str:
        """The sentence of scene ``i``."""
        return describe(self.scene(i).things)

    def image(self, i: int) -> np.ndarray:
        """The picture of scene ``i``, uint8 [64, 64, 3]."""
        noise = self._bits(i, _NOISE, SIZE * SIZE * 3 // 8).astype("<u8").view(np.uint8).reshape(SIZE, SIZE, 3)
        grain = (noise >> 4).astype(np.float64) + (noise & 15) - 15.0  # a triangle from -15 to 15
        return np.clip(np.rint(draw(self.scene(i)) + 0.4 * grain), 0, 255).astype(np.uint8)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all that the scenes follow from."""
        return hashlib.sha256(f"shapes {VERSION} {self.seed} {self.split} {self.number}".encode()).hexdigest()

    def _bits(self, i: int, stream: int, n: int) -> np.ndarray:
        return _bits(n, self.seed, SPLITS.index(self.split), i, stream)

    def _pairs(self, order: list[int]) -> list[tuple[str, str]]:
        """Pairs of colour and shape in the given order: the first held out where it must be, no other one."""
        held = held_out(self.seed)
        pairs = [_PAIRS[k] for k in order]
        first = [pair for pair in pairs if pair in held][: self.split == "held_out"]
        return first + [pair for pair in pairs if pair not in held]

    def _places(self, i: int, radii: list[float]) -> list[list[float]]:
        """Centres (x, y) without overlaps and with clear relations: the first arrangement drawn that will do."""
        reach = _REACH * np.array(radii)
        needed = (reach[:, None] + reach + _GAP) ** 2
        stream, a, b = _PLACES, *np.triu_indices(len(radii), 1)
        while True:
            real = _fractions(self._bits(i, stream, _TRIED * len(radii) * 2)).reshape(_TRIED, len(radii), 2)
            lowest = (reach + _BORDER)[:, None]
            centres = lowest + real * (SIZE - 2 * lowest)
            apart = np.abs(centres[:, a] - centres[:, b])
            good = (apart[..., 0] ** 2 + apart[..., 1] ** 2 >= needed[a, b]) & (
                np.abs(apart[..., 0] - apart[..., 1]) >= MARGIN
            )
            if good.all(axis=1).any():
                return centres[good.all(axis=1).argmax()].tolist()
            stream += 1


def shapes(
    seed: int = 0, *, train: int = 20_000, val: int = 1_000, test: int = 2_000, held_out: int = 1_000
) -> dict[str, Scenes]:
    """The splits of ``shapes`` with so many scenes each; nothing is drawn yet. Raises ``UsageError`` as ``Scenes``."""
    return {split: Scenes(seed, split, n) for split, n in zip(SPLITS, (train, val, test, held_out))}


@lru_cache
def held_out(seed: int) -> frozenset[tuple[str, str]]:
    """The pairs of colour and shape that no scene but those of ``held_out`` has."""
    pairs: list[tuple[str, str]] = []
    for k in np.argsort(_bits(len(_PAIRS), seed, len(SPLITS), 0, _OBJECTS), kind="stable"):
        colour, shape = _PAIRS[k]
        if all(colour != other for other, _ in pairs) and sum(shape == other for _, other in pairs) < 2:
            pairs.append((colour, shape))
    return frozenset(pairs[:HELD_OUT])


def relation(a: Thing, b: Thing) -> str:
    """Where ``a`` is seen from ``b``: "left of", "right of", "above" or "below"."""
    across, down = a.x - b.x, a.y - b.y
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def describe(things: tuple[Thing, ...]) -> str:
    """The sentence for two or three objects in the order in which they are named."""
    first, *others = things
    return f"{first} is " + " and ".join(f"{relation(first, other)} {other}" for other in others)


def draw(scene: Scene) -> np.ndarray:
    """The picture without its noise, float64 [64, 64, 3] from 0 to 255, edges softened over one pixel."""
    picture = np.empty((SIZE, SIZE, 3))
    picture[:] = scene.background
    picture += (scene.slope[0] * (_X / SIZE - 0.5) + scene.slope[1] * (_Y / SIZE - 0.5))[..., None]
    for thing in scene.things:
        cover = np.clip(0.5 - _distance(thing), 0.0, 1.0)[..., None]
        picture += cover * (np.array(thing.rgb) - picture)
    return picture


def _distance(thing: Thing) -> np.ndarray:
    """How far each pixel's centre is outside the object's edge, negative inside, float64 [64, 64]."""
    square = thing.turn * thing.turn
    cos, sin = (1 - square) / (1 + square), 2 * thing.turn / (1 + square)
    across, down = _X - thing.x, _Y - thing.y
    x, y, r = cos * across + sin * down, cos * down - sin * across, thing.radius
    if thing.shape == "circle":
        return np.sqrt(x * x + y * y) - r
    x = np.abs(x)
    if thing.shape == "triangle":  # equilateral, a corner upwards
        return np.maximum(y, math.sqrt(0.75) * x - 0.5 * y) - 0.65 * r
    y = np.abs(y)
    if thing.shape == "square":
        return np.maximum(x, y) - 0.88 * r
    return np.maximum(np.maximum(x, y) - 1.2 * r, np.minimum(x, y) - 0.4 * r)  # a cross


def _before(a: Thing, b: Thing) -> bool:
    """Whether ``a`` is named before ``b``; an object is not before itself."""
    if a is b:
        return False
    if a.size != b.size:
        return a.size == "large"
    return relation(a, b) in ("left of", "above")


def _bits(n: int, seed: int, split: int, i: int, stream: int) -> np.ndarray:
    return random_bits(n, seed, (stream << 40) + (split << 32) + i, "shapes")


def _fractions(bits: np.ndarray) -> np.ndarray:
    """Random bits as float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _between(fraction: float, low: float, high: float) -> float:
    return low + float(fraction) * (high - low)
