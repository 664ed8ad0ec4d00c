"""Captioned images as users name them: folders, captions files of every format, features, built-in scenes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxgen.errors import DataError, UsageError
from jaxgen.runs.config import validate
from jaxgen.tasks.caption import data as captioned
from jaxgen.tasks.caption.data import CaptionConfig
from jaxgen.tasks.caption.shapes import shapes

NAMES = ["a.png", "b.png", "c.png", "d.png", "sub/e.png"]
ROWS = [(name, f"{name[-5]} number {n}") for name in NAMES for n in range(1 + (name == "b.png"))]
SIZE = 8


def read_captioned(data, val_data, **settings):
    return captioned.read_captioned(validate(CaptionConfig, {"data": data, "val_data": val_data, **settings}))


read = partial(read_captioned, image_size=SIZE)


def shade(name: str) -> int:
    """The grey of a test image."""
    return 20 * (ord(name[-5]) - ord("a"))


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``photos`` of five images of different greys, in the folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (shade(name),) * 3).save(path)
    return Path("photos")


def test_the_pictures_of_a_run_are_no_images(photos):
    table("photos/captions.csv")
    for name in ("tokenizer.json", "checkpoints/00000010/manifest.json", "attention.png"):
        path = photos / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    with pytest.warns(UserWarning, match="runs"):
        assert sum(map(len, read(["photos"], None).splits.values())) == len(NAMES)


def table(path: str, rows: list[tuple[str, str]] = ROWS) -> str:
    Path(path).write_text("image,caption\n" + "".join(f"{name},{caption}\n" for name, caption in rows))
    return path


def tokens(path: str) -> str:
    Path(path).write_text("".join(f"{name}#{n}\t{caption}\n" for n, (name, caption) in enumerate(ROWS)))
    return path


def coco(path: str) -> str:
    images = [{"id": n, "file_name": name} for n, name in enumerate(NAMES)]
    annotations = [{"image_id": NAMES.index(name), "caption": caption} for name, caption in ROWS]
    Path(path).write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def features(path: str, names: list[str], shape: tuple[int, ...] = (3,)) -> str:
    values = np.stack([np.full(shape, shade(name), np.float32) for name in names])
    np.savez(path, features=values, names=np.array(names))
    return path


def pairs(found: Any) -> dict[str, tuple[int, list[str]]]:
    """What was read, whichever split it is in: name -> the value that all of its array has, and its captions."""
    result = {}
    for split in found.splits.values():
        for array, name, captions in zip(split.arrays, split.names, split.captions, strict=True):
            assert (array == array.flat[0]).all()
            result[name.removeprefix("photos/")] = (int(array.flat[0]), captions)
    return result


def wanted(names: list[str] = NAMES) -> dict[str, tuple[int, list[str]]]:
    return {name: (shade(name), [caption for other, caption in ROWS if other == name]) for name in names}


@pytest.mark.parametrize(
    ("write", "name"), [(table, "photos/captions.csv"), (tokens, "photos/x.token.txt"), (coco, "c.json")]
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_every_image_of_a_folder_keeps_all_its_captions(write, name, named):
    found = read(["photos"], None, captions=write(name) if named else None) if named else None
    if found is None:
        write(name)
        found = read(["photos"], None)
    assert pairs(found) == wanted()
    assert found.train.arrays[0].shape == (SIZE, SIZE, 3)
    assert found.notes == []


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_features_stand_in_place_of_images(shape):
    table("captions.csv")
    found = read_captioned([features("f.npz", NAMES[::-1], shape)], None)
    assert pairs(found) == wanted()
    assert found.train.arrays[0].shape == shape
    assert found.train.arrays[0].dtype == np.float32


def test_an_image_with_all_its_captions_is_in_one_split_and_the_seed_says_in_which():
    table("c.csv")
    found = [read(["photos"], None, val_rows=2, seed=seed) for seed in (0, 0, 1, 2, 3)]
    for each in found:
        train, val = (set(each.splits[name].names) for name in ("train", "val"))
        assert (len(train), len(val)) == (3, 2)
        assert not train & val
    held_out = [each.splits["val"].names for each in found]
    assert held_out[0] == held_out[1]
    assert len({tuple(names) for names in held_out}) > 1
    assert len(read(["photos"], None, val_fraction=0.6).splits["val"]) == 3


def test_validation_images_of_their_own_have_captions_of_their_own():
    table("photos/captions.csv")
    Path("more").mkdir()
    Image.new("RGB", (SIZE, SIZE), (7, 7, 7)).save("more/x.png")
    other = table("other.csv", [("x.png", "x")])
    found = read(["photos"], ["more"], val_captions=other)
    assert (len(found.splits["train"]), found.splits["val"].captions) == (5, [["x"]])
    alone = read(["photos"], None)
    assert alone.sha256 != found.sha256
    table("other.csv", [("x.png", "y")])
    assert read(["photos"], ["more"], val_captions=other).sha256 != found.sha256
    with pytest.raises(UsageError, match="--val-data"):
        read(["photos"], None, val_captions=other)


def test_the_digest_is_that_of_images_and_captions():
    table("c.csv")
    before = read(["photos"], None)
    assert (read(["photos"], None).sha256, before.name) == (before.sha256, "photos")
    Image.new("RGB", (SIZE, SIZE), (200,) * 3).save("photos/a.png")
    changed = read(["photos"], None)
    table("c.csv", [*ROWS[:-1], (NAMES[-1], "another")])
    assert len({before.sha256, changed.sha256, read(["photos"], None).sha256}) == 3


def karpathy(path: str, splits: str) -> str:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for other, text in ROWS if other == name]}
        for name, split in zip(NAMES, splits.split())
    ]
    Path(path).write_text(json.dumps({"images": images}))
    return path


def test_the_splits_of_the_captions_file_are_used():
    karpathy("photos/dataset.json", "train val test restval train")
    found = read(["photos"], None)
    assert pairs(found) == wanted()
    names = {split: [Path(name).name for name in rows.names] for split, rows in found.splits.items()}
    assert names == {"train": ["a.png", "d.png", "e.png"], "val": ["b.png"], "test": ["c.png"]}
    with pytest.raises(UsageError, match="--val-rows"):
        read(["photos"], None, val_rows=1)
    karpathy("photos/dataset.json", "train train test restval train")
    other = read(["photos"], None, val_rows=2)
    assert {split: len(rows) for split, rows in other.splits.items()} == {"train": 2, "val": 2, "test": 1}
    assert other.sha256 != found.sha256
    karpathy("photos/dataset.json", "test test test test test")
    with pytest.raises(DataError, match="to train on"):
        read(["photos"], None)


def test_captions_are_found_in_a_file_beside_each_image():
    for name in NAMES:
        Path("photos", name).with_suffix(".txt").write_text("".join(f"{text}\n" for of, text in ROWS if of == name))
    with pytest.warns(UserWarning, match=r"\.txt files"):
        found = read(["photos"], None)
    assert pairs(found) == wanted()
    Path("photos/a.txt").write_text("another")
    with pytest.warns(UserWarning, match=r"\.txt files"):
        assert read(["photos"], None).sha256 != found.sha256


def test_images_in_a_format_that_is_not_read_are_noted():
    table("c.csv", [*ROWS, ("f.heic", "f")])
    Path("photos/f.heic").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"not read: 'f\.heic'"):
        read(["photos"], None)
    (note,) = read(["photos"], None, missing="skip").notes
    assert "not read left out ('f.heic')" in note


def test_validation_images_that_are_training_images_are_noted():
    table("photos/captions.csv")
    table("c.csv", ROWS[-1:])
    (note,) = read(["photos"], ["photos/sub"], val_captions="c.csv").notes
    assert "validation data are training data" in note


# What is left out, and what is refused


def test_images_that_cannot_be_read_are_left_out_and_counted_or_refused():
    table("c.csv")
    whole = Path("photos/c.png").read_bytes()
    Path("photos/c.png").write_bytes(whole[: len(whole) // 2])
    Path("photos/d.png").unlink()
    Path("photos/d.png").symlink_to("nowhere")  # a file that cannot even be opened
    found = read(["photos"], None)
    assert pairs(found) == wanted(["a.png", "b.png", "sub/e.png"])
    (note,) = found.notes
    assert "2 of 5 " in note
    with pytest.raises(DataError, match="--strict"):
        read(["photos"], None, strict=True)


def test_what_lacks_its_counterpart_is_refused_or_left_out_and_counted():
    table("c.csv", [*ROWS[2:], ("gone.png", "nowhere")])  # b.png has a caption still, a.png none
    with pytest.raises(DataError, match="--missing skip"):
        read(["photos"], None)
    found = read(["photos"], None, missing="skip")
    assert set(pairs(found)) == set(NAMES[1:])
    images, captions = found.notes
    assert "'a.png'" in images
    assert "'gone.png'" in captions


def test_empty_captions_are_skipped_or_refused():
    table("c.csv", [*ROWS, ("a.png", " ")])
    found = read(["photos"], None, empty="skip")
    assert pairs(found) == wanted()
    assert "1 captions without words" in " ".join(found.notes)
    with pytest.raises(DataError, match="--empty skip"):
        read(["photos"], None, empty="refuse")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (["nowhere"], "'nowhere'"),
        (["photos"], "photos"),
        (["bare"], "bare"),
        (["broken"], "broken/a.png"),
        (["other"], "other"),
        (["two"], "--captions"),
        (["one/c.csv"], "one/c.csv"),
        (["one"], r"cannot be held out"),
    ],
)
def test_what_gives_no_captioned_image_is_refused_with_a_sentence(data, sentence):
    for folder in ("bare", "broken", "other", "two", "one"):
        Path(folder).mkdir()
    table("bare/c.csv")
    Path("broken/a.png").write_bytes(b"no image")
    table("broken/c.csv", ROWS[:1])
    Image.new("RGB", (SIZE, SIZE)).save("other/z.png")
    table("other/c.csv", ROWS)
    table("two/a.csv")
    table("two/b.csv")
    Image.new("RGB", (SIZE, SIZE)).save("one/a.png")
    table("one/c.csv", ROWS[:1])
    with pytest.raises(DataError, match=sentence):
        read(data, None)


def test_the_home_of_a_user_that_nobody_is_is_a_folder_that_is_not_there():
    with pytest.raises(DataError, match="~nosuchuser/x"):
        read(["~nosuchuser/x"], None)
    with pytest.raises(DataError, match=r"~nosuchuser/c\.csv"):
        read(["photos"], None, captions="~nosuchuser/c.csv")


def test_several_folders_are_refused():
    with pytest.raises(UsageError, match="2"):
        read(["photos", "more"], None)


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_features_of_different_shapes_to_train_and_to_validate_are_refused(shape):
    captions = table("c.csv")
    train, val = features("train.npz", NAMES, (3,)), features("val.npz", NAMES, shape)
    with pytest.raises(DataError, match="shapes"):
        read([train], [val], captions=captions, val_captions=captions)


# Built-in scenes


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of scenes in each split."""
    monkeypatch.setitem(captioned.SCENE_SETS, "shapes", partial(shapes, train=6, val=3, test=2, held_out=2))


@pytest.mark.usefixtures("few")
def test_built_in_scenes_have_four_splits_of_pictures_with_their_sentence():
    found = read_captioned(["shapes"], None, seed=3)
    scenes = shapes(3)
    assert {name: len(split) for name, split in found.splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 2,
        "held_out": 2,
    }
    for name, split in found.splits.items():
        for i, (array, captions) in enumerate(zip(split.arrays, split.captions, strict=True)):
            np.testing.assert_array_equal(array, scenes[name].image(i))
            assert captions == [scenes[name].caption(i)]
    assert found.sha256 != read_captioned(["shapes"], None, seed=4).sha256


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "options",
    [{"captions": "c.csv"}, {"val_rows": 2}, {"val_fraction": 0.5}, {"image_size": 32}],
    ids=lambda options: next(iter(options)),
)
def test_built_in_scenes_leave_nothing_to_choose(options):
    flag = f"--{next(iter(options)).replace('_', '-')}"
    with pytest.raises(UsageError, match=flag):
        read_captioned(["shapes"], None, **options)


def test_built_in_scenes_are_no_validation_data():
    table("c.csv")
    with pytest.raises(UsageError, match="--val-data"):
        read(["photos"], ["shapes"])
    with pytest.raises(UsageError, match="--val-data"):
        read_captioned(["shapes"], ["photos"])
