"""Captioning on the command line: training on a folder of images, captions for images, errors."""

from __future__ import annotations

import contextlib
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli.predict import main as predict_main
from jaxgen.cli.train import main as train_main
from jaxgen.inference.predictor import Predictor
from jaxgen.tasks.caption import data as captioned
from jaxgen.tasks.caption.shapes import shapes
from jaxgen.tasks.registry import TASKS

SIDE = 8
NAMES = [f"{letter}.png" for letter in "abcdefgh"]
TINY = "--cell gru --hidden 8 --layers 1 --batch-size 4 --steps 4 --eval-every 4 --sample-every 2 --beam 2 --val-rows 2"
TINY += " --min-count 1 --max-length 12"  # a picture of attention has a panel for each token
ENCODER = f" --image-size {SIDE} --patch 2 --widths 16 --blocks 0"


def ran(main: Any, *args: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(map(str, args)))
        except SystemExit as stop:
            code = stop.code
    out.flush()
    return code, out.buffer.getvalue().decode(), " ".join(err.getvalue().split())


def predict(*args: Any) -> tuple[int, str, str]:
    return ran(predict_main, *args)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images and their captions, and features of the same names."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (2 * SIDE, SIDE, 3), np.uint8)).save(folder / name)
    captions = "".join(f"{name},an image called {name[0]}\n" for name in NAMES)
    (folder / "captions.csv").write_text(f"image,caption\n{captions}")
    np.savez(folder / "f.npz", features=rng.normal(size=(8, 3)), names=np.array(NAMES))
    return folder


@pytest.fixture(scope="module")
def trained(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, quick: Any, loss_plots: Any
) -> tuple[Path, tuple[int, str, str]]:
    """A run on the images, and what training said."""
    run = tmp_path_factory.mktemp("runs") / "images"
    with quick(), loss_plots():
        done = ran(train_main, "caption", "--data", photos, "--run", run, *(TINY + ENCODER).split())
    assert done[0] == 0, done[2]
    return run, done


@pytest.fixture
def run(trained: Any) -> Path:
    return trained[0]


def test_training_tells_what_it_read_and_leaves_figures_and_pictures(trained, photos):
    run, (_, out, err) = trained
    assert "6 to train on" in out + err
    assert "6 captions" in out + err
    (row,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert {"val_loss", "val_cider", "val_bleu_4", "val_exact", "val_token_accuracy", "images_per_second"} <= set(row)
    for name in ("captions.png", "attention.png", "loss.png"):
        with Image.open(run / name) as drawn:
            assert drawn.format == "PNG"
            assert drawn.size >= (100, 100)
    assert str(photos) in (run / "samples.txt").read_text()


def test_images_are_captioned_in_their_order_one_a_line(run, photos):
    asked = [photos / name for name in NAMES[::-1]]
    code, out, err = predict("--run", run, *asked)
    assert (code, err) == (0, "")
    assert out.count("\n") == len(NAMES)
    code, told, _ = predict("--run", run, "--json", *asked)
    answers = [json.loads(line) for line in told.splitlines()]
    assert code == 0
    assert [answer["image"] for answer in answers] == list(map(str, asked))
    assert [" ".join(answer["text"].split()) for answer in answers] == out.splitlines()
    assert all(answer["logp"] < 0 and answer["tokens"] >= 0 for answer in answers)
    alone = json.loads(predict("--run", run, "--json", asked[3])[1])
    assert alone == answers[3]


def test_beams_find_what_is_at_least_as_likely(run, photos):
    ask = ("--run", run, "--json", "--length", 4, photos / "a.png")
    greedy, beams = (json.loads(predict(*ask, *more)[1]) for more in ((), ("--beam", 3, "--length-penalty", 0)))
    assert beams["logp"] >= greedy["logp"] - 1e-4


def test_where_it_looks_is_drawn_over_the_images(run, photos):
    code, out, err = predict("--run", run, "--attention", "map.png", photos / "a.png", photos / "b.png")
    assert (code, out.count("\n"), err) == (0, 2, "")
    with Image.open("map.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    there = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    codec = Predictor.load(run).codec
    for name in ("a.png", "b.png"):  # the images themselves stand there, as the model sees them
        assert {tuple(colour) for colour in codec.encode(photos / name).reshape(-1, 3).tolist()} <= there


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["a.png", "gone.png", "--strict"], 3, "gone.png"),
        (["gone.png", "--attention", "map.png"], 3, "gone.png"),
        ([], 2, "jaxgen predict photo.png"),
        (["a.png", "--beam", "2", "--temperature", "1"], 2, "--temperature"),
        (["a.png", "--attention", "gone/map.png"], 2, "gone/map.png"),
    ],
    ids=["strict", "nothing-to-look-at", "nothing", "flags", "no-place"],
)
def test_what_cannot_be_answered_gets_a_sentence(args, code, sentence, run, photos, monkeypatch):
    monkeypatch.chdir(photos)
    got, out, err = predict("--run", run, *args)
    assert (got, out) == (code, "")
    assert sentence in err
    assert "Traceback" not in err
    assert "--resume" not in err, "predicting does not go on where it stopped"


def test_images_that_cannot_be_read_have_empty_lines_among_the_answers_of_the_others(run, photos, monkeypatch):
    monkeypatch.chdir(photos)
    told = {"captions.csv": "its content is none of", "gone.png": "it cannot be reached", ".": "it is not a file"}
    code, out, err = predict("--run", run, "captions.csv", "a.png", "gone.png", ".", "b.png")
    good = [predict("--run", run, name)[1] for name in ("a.png", "b.png")]
    assert (code, out) == (3, f"\n{good[0]}\n\n{good[1]}")
    for name, why in told.items():
        assert err.count(f"error: The image {name} cannot be used: {why}") == 1
    assert "error: 3 of 5 inputs" in err.splitlines()[-1]


def test_as_json_an_image_that_cannot_be_read_has_its_error(run, photos):
    code, out, err = predict("--run", run, "--json", photos / "gone.png", photos / "a.png")
    unread, answer = map(json.loads, out.splitlines())
    assert code == 3
    assert unread.keys() == {"image", "error"}
    assert unread["image"] == str(photos / "gone.png")
    assert unread["error"] in err
    assert answer == json.loads(predict("--run", run, "--json", photos / "a.png")[1])


def test_what_can_be_read_is_drawn_beside_what_cannot(run, photos):
    code, out, _ = predict("--run", run, "--attention", "map.png", photos / "gone.png", photos / "a.png")
    assert (code, out.count("\n")) == (3, 2)
    with Image.open("map.png") as drawn:
        assert drawn.format == "PNG"


def test_a_run_on_features_answers_files_of_features(photos, tmp_path):
    run, captions = tmp_path / "run", photos / "captions.csv"
    code, _, err = ran(
        train_main, "caption", "--data", photos / "f.npz", "--captions", captions, "--run", run, *TINY.split()
    )
    assert code == 0, err
    assert not (run / "captions.png").exists()
    code, out, _ = predict("--run", run, "--json", photos / "f.npz")
    assert code == 0
    assert [json.loads(line)["image"] for line in out.splitlines()] == NAMES
    good = out
    np.savez(tmp_path / "g.npz", features=np.zeros((1, 4)), names=np.array(["wide"]))
    asked = [photos / "a.png", tmp_path / "g.npz", tmp_path / "gone.npz", photos / "f.npz"]
    code, out, err = predict("--run", run, "--json", *asked)
    assert code == 3
    assert out.endswith(good)
    assert [json.loads(line)["image"] for line in out.splitlines()[:3]] == [str(asked[0]), "wide", str(asked[2])]
    assert "(3,)" in err
    assert "(4,)" in err
    assert str(asked[2]) in err


@pytest.mark.slow
def test_the_encoder_of_the_documents_trains_and_captions_as_written(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "CaptionTask" in block)
    monkeypatch.setitem(TASKS, "caption", TASKS["caption"])
    monkeypatch.setitem(captioned.SCENE_SETS, "shapes", partial(shapes, train=9, val=3, test=1, held_out=1))
    exec(compile(code.replace("steps=200", "steps=2"), "docs/extending.md", "exec"), {})
    scene = shapes()["val"].image(0)
    predictor = Predictor.load("runs/patches")
    assert type(predictor.task).__name__ == "PatchCaptions"
    assert len(predictor.attention(scene).source) == 64
    (answer,) = predictor.predict([scene])
    assert answer["image"] is None


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["--data", "nowhere"], 3, "nowhere"),
        (["--data", "."], 3, "--missing skip"),
        (["--data", ".", "--captions", "none.csv"], 3, "none.csv"),
        (["--data", ".", "--caption-column", "text"], 3, "captions"),
        (
            ["--data", ".", "--captions", "captions.csv", "--caption-column", "text"],
            3,
            "row is: 'image', 'caption'",
        ),
        (["--data", ".", "--missing", "skip", "--strict"], 3, "be used"),
        (["--data", "shapes", "--captions", "captions.csv"], 2, "--captions"),
        (["--data", "shapes", "--widths", "10"], 2, "16"),
    ],
    ids=["no-data", "no-caption", "no-captions", "no-column-found", "no-column", "strict", "built-in", "widths"],
)
def test_what_cannot_be_trained_on_gets_a_sentence_and_no_run(args, code, sentence, photos, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("a.png", "b.png", "captions.csv"):
        (folder / name).write_bytes((photos / name).read_bytes())
    (folder / "c.png").write_bytes(b"no image")
    monkeypatch.chdir(folder)
    monkeypatch.setitem(captioned.SCENE_SETS, "shapes", mock.Mock(side_effect=AssertionError("scenes were made first")))
    got, _, err = ran(train_main, "caption", *args, "--run", "run", *TINY.replace("--val-rows 2", "").split())
    assert sentence in err
    assert got == code
    assert not Path("run").exists()
