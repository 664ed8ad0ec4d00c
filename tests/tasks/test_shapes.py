"""``shapes``: caption and image show the same scene."""

import cmath
import hashlib
import itertools
import math
import re

import numpy as np
import pytest
from matplotlib.path import Path

from jaxgen.errors import UsageError
from jaxgen.tasks.caption import shapes as module
from jaxgen.tasks.caption.shapes import (
    COLOURS,
    HELD_OUT,
    MARGIN,
    SHAPES,
    SIZE,
    SIZES,
    Scene,
    Scenes,
    draw_scene,
    held_out,
    relation,
    scene_caption,
)

NUMBER = 150
SPLITS = [Scenes(5, name, NUMBER) for name in ("train", "val", "test", "held_out")]
OBJECT = r"a (large|small) (\w+) (\w+)"
RELATION = "(left of|right of|above|below)"
SENTENCE = re.compile(rf"{OBJECT} is {RELATION} {OBJECT}(?: and {RELATION} {OBJECT})?")


@pytest.fixture(scope="module")
def scenes():
    return [(split, i, split.scene(i)) for split in SPLITS for i in range(NUMBER)]


def direction(a, b):
    """Where a lies from b, by the angle of the line between them."""
    angle = math.degrees(cmath.phase(complex(a.x - b.x, b.y - a.y)))  # y upwards, 0 is right
    return {-2: "left of", -1: "below", 0: "right of", 1: "above", 2: "left of"}[round(angle / 90)]


def outline(thing, density=8):
    """What share of each pixel an object covers, from polygons and many points a pixel."""
    r, turned = thing.radius, cmath.exp(2j * math.atan(thing.turn))
    arm, half = 1.2 * r, 0.4 * r
    corners = {
        "circle": [r * cmath.exp(2j * math.pi * k / 120) for k in range(120)],
        "square": [0.88 * r * complex(*corner) for corner in ((1, 1), (-1, 1), (-1, -1), (1, -1))],
        "triangle": [1.3 * r * cmath.exp(1j * math.radians(90 + 120 * k)).conjugate() for k in range(3)],
        "cross": [
            corner * 1j**k
            for k in range(4)
            for corner in (complex(arm, -half), complex(arm, half), complex(half, half))
        ],
    }[thing.shape]
    points = [corner * turned + complex(thing.x, thing.y) for corner in corners]
    places = (np.arange(SIZE * density) + 0.5) / density
    grid = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    inside = Path([(point.real, point.imag) for point in points]).contains_points(grid)
    return inside.reshape(SIZE, density, SIZE, density).mean((1, 3))


def cover(thing):
    """How much of each pixel the package draws of an object: white on black."""
    white = Scene((thing._replace(rgb=(1.0, 1.0, 1.0)),), (0.0, 0.0, 0.0), (0.0, 0.0))
    return draw_scene(white)[..., 0]


def test_a_sentence_says_the_objects_and_relations_of_its_scene(scenes):
    for split, i, scene in scenes:
        said = SENTENCE.fullmatch(split.caption(i)).groups()
        first, *others = scene.things
        assert said[:3] == (first.size, first.colour, first.shape)
        expected = [(direction(first, other), other.size, other.colour, other.shape) for other in others]
        assert [part for part in (said[3:7], said[7:]) if any(part)] == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_the_greater_distance_decides_however_near_the_other(scenes, sign):
    a = scenes[0][2].things[0]._replace(x=32.0, y=32.0)
    assert relation(a, a._replace(x=32.0 + 27 * sign, y=32.0 + 26 * sign)) == ("left of" if sign > 0 else "right of")
    assert relation(a, a._replace(x=32.0 + 26 * sign, y=32.0 + 27 * sign)) == ("above" if sign > 0 else "below")


def test_large_objects_are_named_first_and_equal_ones_from_the_left_or_from_above(scenes):
    for _, _, scene in scenes:
        for before, after in itertools.combinations(scene.things, 2):
            if before.size == after.size:
                assert direction(before, after) in ("left of", "above")
            else:
                assert (before.size, after.size) == ("large", "small")


def test_every_relation_is_clear_by_the_margin(scenes):
    for _, _, scene in scenes:
        for a, b in itertools.combinations(scene.things, 2):
            assert abs(abs(a.x - b.x) - abs(a.y - b.y)) >= MARGIN


def test_objects_are_whole_and_do_not_touch(scenes):
    for _, _, scene in scenes[::7]:
        covers = [cover(thing) for thing in scene.things]
        assert sum(each > 0 for each in covers).max() == 1
        whole = np.sum(covers, axis=0)
        assert max(whole[[0, -1]].max(), whole[:, [0, -1]].max()) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_a_shape_is_drawn_as_its_outline(scenes, shape, size):
    thing = next(t for _, _, scene in scenes for t in scene.things if (t.shape, t.size) == (shape, size))
    difference = cover(thing) - outline(thing)
    assert np.abs(difference).max() < 0.35  # corners are rounded by the softened edge
    assert abs(difference.sum()) < 0.03 * outline(thing).sum()


def test_an_object_has_its_colour_wherever_it_covers_a_pixel(scenes):
    palette = np.array(list(COLOURS.values()), float)
    for split, i, scene in scenes[::7]:
        image = split.image(i).astype(float)
        nearest = ((image[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
        for thing in scene.things:
            inside = cover(thing) == 1
            assert inside.sum() > 25
            assert (nearest[inside] == list(COLOURS).index(thing.colour)).all()


def test_the_background_is_light_grey_and_grainy(scenes):
    for split, i, scene in scenes[::40]:
        pixels = split.image(i)[sum(cover(thing) for thing in scene.things) == 0].astype(float)
        assert pixels.min() > 170
        assert np.ptp(pixels.mean(0)) < 15
        assert 1 < np.diff(pixels, axis=0).std() < 6


def test_an_image_is_64_by_64_in_three_bytes_a_pixel():
    image = SPLITS[0].image(0)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)


def test_the_two_sizes_cannot_be_mistaken(scenes):
    areas = {
        size: [cover(t).sum() for *_, scene in scenes[::7] for t in scene.things if t.size == size] for size in SIZES
    }
    assert min(areas["large"]) > 1.5 * max(areas["small"])


def test_everything_that_can_be_said_is_said(scenes):
    words = {word for split, i, _ in scenes for word in split.caption(i).split()}
    assert words == {*COLOURS, *SHAPES, *SIZES, "a", "is", "and", "left", "right", "of", "above", "below"}
    counts = [len(scene.things) for *_, scene in scenes]
    assert set(counts) == {2, 3}
    assert 0.4 < counts.count(2) / len(counts) < 0.6


def test_no_two_objects_of_a_scene_share_colour_and_shape(scenes):
    assert all(len({(t.colour, t.shape) for t in scene.things}) == len(scene.things) for *_, scene in scenes)


def test_held_out_pairs_occur_once_in_every_held_out_scene_and_nowhere_else(scenes):
    held = held_out(5)
    for split, _, scene in scenes:
        assert sum((t.colour, t.shape) in held for t in scene.things) == (split.split == "held_out")
    shown = {(t.colour, t.shape) for split, _, scene in scenes if split.split == "train" for t in scene.things}
    assert shown | held == set(itertools.product(COLOURS, SHAPES))


def test_a_fifth_of_the_pairs_is_held_out_and_every_colour_and_shape_is_shown():
    assert round(HELD_OUT / (len(COLOURS) * len(SHAPES)), 1) == 0.2
    for seed in range(40):
        colours, shapes = zip(*held_out(seed))
        assert len(set(colours)) == HELD_OUT
        assert max(map(shapes.count, shapes)) <= 2
    assert len({held_out(seed) for seed in range(40)}) > 30


def test_a_scene_is_the_same_in_any_order_and_however_many_there_are():
    few, many = Scenes(5, "val", 4), Scenes(5, "val", 1000)
    backwards = [(many.image(i), many.caption(i)) for i in (3, 2, 1, 0)][::-1]
    for i, (image, caption) in enumerate(backwards):
        assert few.caption(i) == caption
        assert np.array_equal(few.image(i), image)


def test_seeds_splits_and_numbers_give_different_scenes():
    scenes = [Scenes(seed, split, 2) for seed in (0, 1, 2**32 - 1) for split in ("train", "val", "test", "held_out")]
    images = {each.image(i).tobytes() for each in scenes for i in (0, 1)}
    assert len(images) == 2 * len(scenes)


def test_another_arrangement_is_drawn_until_one_will_do(monkeypatch):
    """With one arrangement at a time most scenes take several; what they contain stays the same."""
    expected = SPLITS[0].scene(1)
    monkeypatch.setattr(module, "_TRIED", 1)
    for i in range(20):
        a, b = SPLITS[0].scene(i).things[:2]
        assert abs(abs(a.x - b.x) - abs(a.y - b.y)) >= MARGIN
    one = SPLITS[0].scene(1)
    assert {(t.colour, t.shape, t.rgb) for t in one.things} == {(t.colour, t.shape, t.rgb) for t in expected.things}


def test_the_scenes_of_a_seed_are_these_on_every_machine():
    """When this fails because scenes were meant to change, ``VERSION`` goes up too."""
    found = hashlib.sha256(str(module.VERSION).encode())
    for split in SPLITS:
        for i in range(6):
            found.update(split.image(i).tobytes() + split.caption(i).encode())
    assert found.hexdigest() == "1b2ece3a6ce46ed781dec3a21b7089a2e2825bc4ac189dd886506e84a240f9e7"
    assert module.shapes(5)["train"].digest == "937cd1d075b5bad136e17d05cd0020a7ac73ccda2275ffd574ac76e11d9214b8"


def test_the_digest_names_all_that_scenes_follow_from(monkeypatch):
    scenes = [Scenes(0, "val", 9), Scenes(1, "val", 9), Scenes(0, "test", 9), Scenes(0, "val", 8)]
    digests = {each.digest for each in scenes}
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert len(digests | {scenes[0].digest}) == 5


def test_the_splits_have_the_numbers_asked_for():
    splits = module.shapes(1, train=7, val=2, test=3, held_out=4)
    assert {name: len(split) for name, split in splits.items()} == {"train": 7, "val": 2, "test": 3, "held_out": 4}
    assert {split.seed for split in splits.values()} == {1}
    assert all(name == split.split for name, split in splits.items())


@pytest.mark.parametrize("i", [-1, 2])
@pytest.mark.parametrize("what", ["scene", "image", "caption"])
def test_a_scene_that_is_not_there_is_an_index_error(what, i):
    with pytest.raises(IndexError, match=f"{i}"):
        getattr(Scenes(0, "val", 2), what)(i)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("0", "val", 1), "'0'"),
        ((0, "valid", 1), "'val'"),
        ((0, "val", 0), "0"),
    ],
)
def test_a_split_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Scenes(*wrong)


def test_two_objects_make_one_relation_and_three_make_two(scenes):
    for *_, scene in scenes[:20]:
        assert scene_caption(scene.things).count(" and ") == len(scene.things) - 2
