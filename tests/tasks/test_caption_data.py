"""The host half of captioning: batches, skipped examples, evaluation, examples and plots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference.predictor import DecodedText
from jaxgen.plots import AttentionMap
from jaxgen.runs.config import validate
from jaxgen.tasks.caption import data as captioned
from jaxgen.tasks.caption.data import CaptionCodec, CaptionConfig, CaptionData, NamedFeatures
from jaxgen.tasks.caption.shapes import shapes
from jaxgen.tokenizers import EOS, PAD, CharTokenizer

#: Features are their number: image n is (n, n).
ROWS = [("i0", "a dog"), ("i0", "the dog runs"), ("i1", "a cat"), ("i2", "the big cat sleeps on a mat"), ("i3", "a")]
VAL = [("i8", "a dog"), ("i8", "the dog"), ("i9", "a cat runs")]
WORDS = {"level": "word", "min_count": 1}
Rows = Sequence[tuple[str, str]]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, rows: Rows) -> tuple[str, str]:
    """A file of features and its captions."""
    names = list(dict.fromkeys(image for image, _ in rows))
    values = np.array([[int(each[1:])] * 2 for each in names], np.float32)
    np.savez(f"{name}.npz", features=values, names=np.array(names))
    Path(f"{name}.csv").write_text("image,caption\n" + "".join(f"{image},{caption}\n" for image, caption in rows))
    return f"{name}.npz", f"{name}.csv"


def make(train: Rows = ROWS, val: Rows = VAL, codec: Any = None, **settings: Any) -> CaptionData:
    (data, captions), (val_data, val_captions) = written("train", train), written("val", val)
    files = {"data": (data,), "captions": captions, "val_data": (val_data,), "val_captions": val_captions}
    return CaptionData.load(CaptionConfig(**{**files, **WORDS, "batch_size": 2, **settings}), codec)


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> CaptionData:
    """A few built-in scenes."""
    monkeypatch.setitem(captioned.SCENE_SETS, "shapes", partial(shapes, train=5, val=3, test=2, held_out=2))
    return CaptionData.load(CaptionConfig(batch_size=4))


class Model:
    """Answers with these texts in turn, and remembers what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, []

    def predict(self, inputs: Sequence[Any], **options: Any) -> list[dict[str, str]]:
        self.asked.append((list(inputs), options))
        return [{"text": text} for _, text in zip(inputs, self.texts, strict=False)]

    def attention(self, source: Any) -> AttentionMap:
        return AttentionMap(["1", "2", "3", "4"], ["a", "<eos>"], np.full((2, 4), 0.25), source)


# Batches


def test_every_caption_of_an_epoch_stands_beside_its_own_image():
    data = make()
    seen = []
    for step in range(data.batches.steps_per_epoch):
        batch = data.batches.batch(step)
        assert (batch.targets[~batch.mask] == PAD).all()
        for features, read, target, mask in zip(batch.inputs, batch.tokens, batch.targets, batch.mask):
            if not mask.any():
                assert not features.any(), "a row that is not there is zeros"
                continue
            assert (read[0], target[mask][-1]) == (EOS, EOS)
            np.testing.assert_array_equal(read[mask][1:], target[mask][:-1])
            text = data.codec.answer("", DecodedText(target[mask][:-1], 0.0, True))["text"]
            seen.append((f"i{features[0]:.0f}", text))
    assert sorted(seen) == sorted(ROWS)


def test_batches_follow_from_the_seed_and_the_step():
    one, other = make(), make(seed=1)
    again = make()
    for step in (0, 7):
        for a, b in zip(one.batches.batch(step), again.batches.batch(step)):
            np.testing.assert_array_equal(a, b)
    differ = [(one.batches.batch(n).inputs != other.batches.batch(n).inputs).any() for n in range(3)]
    assert any(differ)


def test_images_are_bytes_and_shapes_are_as_few_as_asked(scenes):
    batch = scenes.batches.batch(0)
    assert (batch.inputs.dtype, batch.inputs.shape) == (np.uint8, (4, 64, 64, 3))
    rows = [("i0", " ".join(["a"] * n)) for n in (1, 9, 14, 20, 30)]
    for most, widths in ((8, {8, 12, 16, 24, 32}), (2, {24, 32}), (1, {32})):
        data = make(rows, buckets=most)
        found = {data.batches.batch(step).tokens.shape[1] for step in range(data.batches.steps_per_epoch)}
        assert len(found) <= most
        assert max(found) == max(widths)


def test_every_caption_is_scored_once_and_every_image_judged_once(scenes):
    data = make()
    (batch,) = data.eval_sets(final=False)["val"].batches()
    assert batch.mask.any(axis=1).sum() == len(VAL)
    assert len(data.splits["val"].groups) == 2
    assert data.splits["val"].references(0) == ["a dog", "the dog"]
    assert list(scenes.eval_sets(final=False)) == ["val"]
    assert list(scenes.eval_sets(final=True)) == ["val", "test", "held_out"]


# What is left out


def test_long_captions_are_left_out_of_training_alone_and_counted():
    data = make(max_length=4, val=[*VAL, ("i9", "a cat runs on a mat")])
    assert [text for _, text in ROWS if len(text.split()) < 4] == data.splits["train"].texts
    assert len(data.splits["train"].groups) == 3
    assert len(data.splits["val"].texts) == 4
    assert "1 text longer" in data.summary()["images"]
    with pytest.raises(DataError, match="--max-length"):
        make(max_length=1)


def test_captions_are_read_in_lower_case_on_request_and_the_first_word_is_as_any():
    train, val = [("i0", "The dog"), ("i1", "dog The")], [("i8", "THE dog")]
    assert make(train, val, lowercase=True).splits["val"].texts == ["the dog"]
    data = make(train, val)
    (the, dog), (dog_too, the_too) = data.splits["train"].targets
    assert (the, dog) == (the_too, dog_too)
    assert data.splits["val"].texts == ["THE dog"]


def test_facts_say_what_was_read(scenes):
    facts = make().summary()
    assert facts["images"].startswith("4 to train on")
    assert "5 captions" in facts["tokens"]
    assert facts["data"].startswith("train.npz (sha256 ")
    assert "word level" in facts["tokens"]
    assert "2 of held out" in scenes.summary()["images"]


def test_unreadable_images_are_counted_in_the_facts():
    Path("photos").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(f"photos/{name}.png")
    Path("photos/b.png").write_bytes(b"broken")
    Path("photos/c.csv").write_text("image,caption\na.png,a\nb.png,b\nc.png,c\n")
    data = CaptionData.load(CaptionConfig(data=("photos",), image_size=8, **WORDS))
    assert data.summary()["images"].startswith("1 to train on, 1 to validate, 1 of 3 images skipped (")
    with pytest.raises(DataError, match=r"photos/b\.png"):
        CaptionData.load(CaptionConfig(data=("photos",), image_size=8, strict=True))


def test_what_the_flags_cannot_mean_is_refused():
    for wrong in ({"missing": "ignore"}, {"flips": 1.5}, {"beam": 100}, {"image_size": 4}):
        with pytest.raises(UsageError):
            validate(CaptionConfig, {**wrong}, "flags")


@pytest.mark.usefixtures("scenes")
def test_the_home_of_a_user_that_nobody_is_foresees_nothing():
    assert CaptionData.options_without_data(validate(CaptionConfig, {"data": ["~nosuchuser/x"]})) is None


def test_scenes_whose_captions_say_left_and_right_are_not_mirrored():
    with pytest.raises(UsageError, match="--flips"):
        validate(CaptionConfig, {"flips": 0.5})


@pytest.mark.parametrize(
    "flag",
    [
        {"image_size": 32},
        {"patch": 4},
        {"widths": (16,)},
        {"blocks": (2,)},
        {"flips": 0.5},
        {"grays": 0.1},
        {"strict": True},
    ],
)
def test_what_is_about_images_is_refused_with_features(flag):
    name = next(iter(flag)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name}"):
        make(**flag)


# The codec


def codec(shape: tuple[int, ...] = (8, 8, 3)) -> CaptionCodec:
    return CaptionCodec(CharTokenizer([ord(letter) for letter in " ab"]), shape, 9)


def test_a_codec_comes_back_from_what_a_run_keeps_and_nothing_else_does():
    for shape in ((8, 8, 3), (4,), (2, 4)):
        again = CaptionData.read_codec(codec(shape).to_json())
        assert (again.shape, again.max_length, again.longest) == (shape, 9, 9)
        assert again.tokenizer.to_json() == codec().tokenizer.to_json()
    good = codec().to_json()
    for bad in (
        {},
        [],
        good | {"shape": []},
        good | {"shape": [8, 8.0, 3]},
        good | {"max_length": 0},
        good | {"shape": 3},
    ):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            CaptionData.read_codec(bad)


def test_an_image_is_asked_about_as_it_was_trained_on():
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (21, 13, 3), np.uint8)).save(f"photos/{name}.png")
    Path("photos/c.csv").write_text("image,caption\na.png,a\nb.png,b\nc.png,c\n")
    data = CaptionData.load(CaptionConfig(data=("photos",), image_size=8, **WORDS))
    for split in data.splits.values():
        for path, array in zip(split.names, split.inputs):
            np.testing.assert_array_equal(data.codec.encode(path), array)


@pytest.mark.parametrize(
    ("shape", "source", "error", "sentence"),
    [
        ((8, 8, 3), "gone.png", DataError, "gone.png"),
        ((8, 8, 3), "text.png", DataError, "text.png"),
        ((8, 8, 3), np.zeros((4, 8, 3), np.uint8), UsageError, r"\(4, 8, 3\)"),
        ((8, 8, 3), np.zeros((8, 8, 3)), UsageError, "float64"),
        ((2,), "photo.png", DataError, "photo.png"),
        ((2,), NamedFeatures("x", np.zeros(3)), DataError, r"\(3,\)"),
    ],
)
def test_what_cannot_be_captioned_is_refused_with_a_sentence(shape, source, error, sentence):
    Path("text.png").write_text("no image")
    with pytest.raises(error, match=sentence):
        codec(shape).encode(source)


def test_all_features_of_a_file_are_inputs_with_their_names():
    written("f", ROWS)
    sources = list(codec((2,)).sources(["f.npz", "other"]))
    assert [each.name for each in sources[:-1]] == ["i0", "i1", "i2", "i3"]
    assert sources[-1] == "other"
    np.testing.assert_array_equal(codec((2,)).encode(sources[2]), [2, 2])
    assert codec((2,)).answer(sources[2], DecodedText(np.array([3, 4]), -1.25, True)) == {
        "image": "i2",
        "text": codec().tokenizer.decode([3, 4]),
        "logp": -1.25,
        "tokens": 2,
        "ended": True,
    }
    assert list(codec().sources(["f.npz"])) == ["f.npz"], "images are files, whatever they are called"


def test_a_caption_is_one_line():
    assert codec().line({"text": "a\n b\tc"}) == "a b c"


def test_a_codec_of_another_run_is_used_where_it_fits():
    old = make().codec
    data = make([("i5", "a cow")], codec=old, max_length=7)
    assert data.codec == CaptionCodec(old.tokenizer, old.shape, 7)
    with pytest.raises(UsageError, match="--init-from"):
        make(codec=old, level="char", min_count=None)
    with pytest.raises(UsageError, match=r"\(8, 8, 3\)"):
        make(codec=codec(), level="char", min_count=None)


# Judging


def test_the_figures_are_those_of_all_references_together(monkeypatch):
    data = make()
    model = Model("the dog", "a dog runs")
    during = data.generation_metrics(model, final=False)
    assert [(list(map(float, next(zip(*inputs)))), options) for inputs, options in model.asked] == [
        ([8.0, 9.0], {"beam": 0})
    ]
    assert during["val_exact"] == 0.5
    assert during["val_bleu_1"] == pytest.approx(100 * 4 / 5), "of five words all but one are right"
    assert during["val_cider"] > 0
    assert data.generation_metrics(model, final=True).keys() == during.keys()
    assert model.asked[-1][1] == {"beam": 3}
    assert data.METRIC.cost(during | {"val_loss": 0.0}) == -during["val_cider"]


def test_all_splits_are_judged_at_the_end(scenes):
    model = Model(*["a cat"] * 3)
    report = scenes.generation_metrics(model, final=True)
    assert {f"{name}_exact" for name in ("val", "test", "held_out")} <= set(report)
    assert [len(inputs) for inputs, _ in model.asked] == [3, 2, 2]
    losses = {f"{name}_loss": 0.5 for name in ("val", "test", "held_out")}
    lines = scenes.report_lines(report | losses)
    assert [label for label, _ in lines] == ["validation", "test", "held out"]
    assert lines[2][1].startswith("0.00% exactly right, CIDEr 0.000, BLEU-1 to 4 ")
    assert scenes.headline(report).endswith("0.0% exactly right")


def test_images_are_shown_with_what_is_right():
    (shown,) = make().examples(Model("the dog", "a cow"), final=False)
    assert shown.text.splitlines() == [
        *("i8", "    -> the dog", "       (exactly right)"),
        *("i9", "    -> a cow", "       (it is: a cat runs)"),
    ]


def test_a_finished_run_has_a_sheet_and_what_was_looked_at(scenes, tmp_path):
    scenes.save_plots(Model("a cat", "", "$x^2$ " + "word " * 60), {}, tmp_path)
    with Image.open(tmp_path / "captions.png") as sheet:
        drawn = np.asarray(sheet.convert("RGB")).astype(int)
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert edge.min() == 255, "nothing reaches the edge"
    for image in scenes.splits["val"].inputs:  # each picture is there: its own colours are
        colour = image[32, 32].astype(int)
        assert (np.abs(drawn - colour).max(axis=-1) <= 2).any()
    assert (tmp_path / "attention.png").stat().st_size > 1000
    with Image.open(tmp_path / "example.png") as example:
        assert (np.asarray(example) == scenes.splits["val"].inputs[0]).all()
    features = tmp_path / "features"
    features.mkdir()
    make().save_plots(Model("a", "b"), {}, features)
    assert not list(features.iterdir())


def test_the_next_command_captions_what_was_trained_on(scenes):
    assert " predict --run 'a run' " in make().next_command("a run")
    assert scenes.next_command("a run").endswith(" predict --run 'a run' 'a run/example.png'")
