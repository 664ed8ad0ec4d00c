"""The synthetic data set ``shapes`` for captioning: images of two or three coloured shapes, and a sentence about each.

    a large red circle is left of a small blue square and above a small green cross

The sentence is a function of the scene, so a caption is either exactly right or wrong:

- One object is *left of*, *right of*, *above* or *below* another. The larger of the horizontal and vertical distances
  between their centres decides. Scenes in which these two differ by less than ``MARGIN`` pixels are drawn again.
- Large objects are named before small ones. Of two objects of equal size, the one to the left or above comes first.
  (This order is never cyclic among three objects: the longest of their distances would be shorter than itself.)
- The first object is the subject. The sentence states its relation to each of the others.

Objects do not overlap, and no two objects of a scene have the same colour and shape. Exact sizes, angles, tints,
background and noise vary. A fifth of the pairs of colour and shape is held out: scenes of ``train``, ``val`` and
``test`` have none of them, and every scene of ``held_out`` has exactly one.

Scene i of a split is a pure function of (seed, split, i). It uses only +, -, ×, / and square roots of float64, which
round identically on every platform, so the pixels are the same everywhere.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxgen.data.batches import check_batch_sizes, random_bits
from jaxgen.errors import choose

#: Increased when a seed no longer gives the same scenes.
VERSION = 1
#: Height and width of an image in pixels.
SIZE = 64
#: Minimum difference, in pixels, between the horizontal and the vertical distance of two centres.
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
#: Range of a circle's radius in pixels. The other shapes cover about the same area.
SIZES = {"large": (8.5, 10.0), "small": (4.5, 5.5)}
SPLITS = ("train", "val", "test", "held_out")
#: Number of the 24 pairs of colour and shape that are held out. No colour occurs twice in them, no shape three times.
HELD_OUT = 5
# The greatest distance of a shape's corner from its centre, in radii.
_REACH = 1.3
# Minimum number of pixels between two objects, and between an object and the border. The smoothed edge of a triangle
# extends one pixel beyond its corner.
_GAP, _BORDER = 2.0, 1.5
# Arrangements tried at once. About one in a hundred is valid for three large objects.
_TRIED = 128
# The streams of random bits of a scene. ``_PLACES`` and each stream after it are batches of arrangements.
_OBJECTS, _NOISE, _PLACES = 0, 1, 2
_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_Y, _X = np.mgrid[0:SIZE, 0:SIZE] + 0.5


class Thing(NamedTuple):
    """An object of a scene. Coordinates are in pixels from the upper left corner, with ``y`` downwards."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    #: Radius of a circle of about the same area.
    radius: float
    #: Tangent of half the rotation angle.
    turn: float
    #: The exact colour, 0 to 255, close to the named one.
    rgb: tuple[float, ...]

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """The objects, in the order in which the caption names them, and the background."""

    things: tuple[Thing, ...]
    #: The colour at the centre, 0 to 255.
    background: tuple[float, ...]
    #: The change in brightness from left to right, and from top to bottom.
    slope: tuple[float, float]


@dataclass(frozen=True)
class Scenes:
    """One split of ``shapes``: ``number`` scenes, generated on demand in any order."""

    seed: int
    split: str
    number: int

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for an unknown split, an invalid seed or a number below 1."""
        choose(self.split, SPLITS, "split of shapes")
        check_batch_sizes(seed=self.seed, number_of_scenes=self.number)

    def __len__(self) -> int:
        return self.number

    def scene(self, i: int) -> Scene:
        """Return scene ``i``. Like the other methods, it raises ``IndexError`` unless 0 <= i < ``number``."""
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
        """Return the caption of scene ``i``."""
        return scene_caption(self.scene(i).things)

    def image(self, i: int) -> np.ndarray:
        """Return the image of scene ``i``, uint8 [64, 64, 3]."""
        noise = self._bits(i, _NOISE, SIZE * SIZE * 3 // 8).astype("<u8").view(np.uint8).reshape(SIZE, SIZE, 3)
        grain = (noise >> 4).astype(np.float64) + (noise & 15) - 15.0  # triangular distribution from -15 to 15
        return np.clip(np.rint(draw_scene(self.scene(i)) + 0.4 * grain), 0, 255).astype(np.uint8)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of everything that determines the scenes."""
        return hashlib.sha256(f"shapes {VERSION} {self.seed} {self.split} {self.number}".encode()).hexdigest()

    def _bits(self, i: int, stream: int, n: int) -> np.ndarray:
        return _bits(n, self.seed, SPLITS.index(self.split), i, stream)

    def _pairs(self, order: list[int]) -> list[tuple[str, str]]:
        """Return the pairs of colour and shape in the given order.

        Pairs that are held out are removed, except one at the front for the split ``held_out``.
        """
        held = held_out(self.seed)
        pairs = [_PAIRS[k] for k in order]
        first = [pair for pair in pairs if pair in held][: self.split == "held_out"]
        return first + [pair for pair in pairs if pair not in held]

    def _places(self, i: int, radii: list[float]) -> list[list[float]]:
        """Return centres (x, y) without overlaps and with clear relations: the first valid arrangement drawn."""
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
    """Return the splits of ``shapes``; the arguments are their numbers of scenes. No scene is generated yet.

    Raises:
        UsageError: for an invalid seed or number.
    """
    return {split: Scenes(seed, split, n) for split, n in zip(SPLITS, (train, val, test, held_out))}


@lru_cache
def held_out(seed: int) -> frozenset[tuple[str, str]]:
    """Return the pairs of colour and shape that occur only in the split ``held_out``."""
    pairs: list[tuple[str, str]] = []
    for k in np.argsort(_bits(len(_PAIRS), seed, len(SPLITS), 0, _OBJECTS), kind="stable"):
        colour, shape = _PAIRS[k]
        if all(colour != other for other, _ in pairs) and sum(shape == other for _, other in pairs) < 2:
            pairs.append((colour, shape))
    return frozenset(pairs[:HELD_OUT])


def relation(a: Thing, b: Thing) -> str:
    """Return the position of ``a`` relative to ``b``: "left of", "right of", "above" or "below"."""
    across, down = a.x - b.x, a.y - b.y
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def scene_caption(things: tuple[Thing, ...]) -> str:
    """Return the caption of two or three objects, which are named in this order."""
    first, *others = things
    return f"{first} is " + " and ".join(f"{relation(first, other)} {other}" for other in others)


def draw_scene(scene: Scene) -> np.ndarray:
    """Return the image without noise, float64 [64, 64, 3] from 0 to 255, with edges smoothed over one pixel."""
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
    if thing.shape == "triangle":  # equilateral, pointing up
        return np.maximum(y, math.sqrt(0.75) * x - 0.5 * y) - 0.65 * r
    y = np.abs(y)
    if thing.shape == "square":
        return np.maximum(x, y) - 0.88 * r
    return np.maximum(np.maximum(x, y) - 1.2 * r, np.minimum(x, y) - 0.4 * r)  # a cross


def _before(a: Thing, b: Thing) -> bool:
    """Whether ``a`` is named before ``b``. False if they are the same object."""
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
