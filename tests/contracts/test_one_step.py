"""One-to-one: a single token, for every task. A single time step is part of the contract of cells.

A new task is tried by a line in ``ONE_STEP``: what reads and answers single tokens, and what to expect of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.runs.config import validate
from jaxgen.tasks.registry import DATA, TASKS
from jaxgen.trainer.run import start


class Case(NamedTuple):
    """One step of a task: data that are written into a folder, settings, and what is asked of the run's folder."""

    write: Callable[[Path], dict[str, Any]]
    settings: dict[str, Any]
    check: Callable[[Path], None]


def pairs_in(folder: Path, header: str, sign: str) -> Path:
    """Vowels and consonants, each letter with what belongs to it."""
    path = folder / "data.tsv"
    rows = [f"{letter}\t{sign[letter in 'aeiou']}" for letter in "abcdefghij" * 4]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def language(folder: Path) -> dict[str, Any]:
    """Two letters that take turns."""
    path = folder / "text.txt"
    path.write_text("ab" * 200)
    return {"data": str(path)}


def goes_on(run: Path) -> None:
    sampler = Sampler.load(run)
    for one, other in ("ab", "ba"):
        assert sampler.sample(one, GenerationConfig(1, temperature=0.0)) == [other]
        assert [len(text) for text in sampler.sample(one, GenerationConfig(1, 2.0), num_samples=2)] == [1, 1]
        score = Scorer(sampler).score(other, prompt=one)
        expected = jax.nn.log_softmax(sampler.read(one).logits[0])[sampler.tokenizer.encode(other)[0]]
        assert score.tokens == 1
        np.testing.assert_allclose(score.logp, expected, rtol=1e-4, atol=1e-6)


def classify(folder: Path) -> dict[str, Any]:
    """Letters and what they are."""
    path = pairs_in(folder, "letter\tkind", ("consonant", "vowel"))
    return {"data": str(path), "text_column": "letter", "label_column": "kind"}


def knows(run: Path) -> None:
    answers = Predictor.load(run).predict(["a", "b", "e"])
    assert [answer["label"] for answer in answers] == ["vowel", "consonant", "vowel"]


def translate(folder: Path) -> dict[str, Any]:
    """Letters and the one letter that each becomes."""
    path = pairs_in(folder, "letter\tsign", ("-", "+"))
    return {"data": str(path), "source_column": "letter", "target_column": "sign", "beam": 0}


def answers(run: Path) -> None:
    found = Predictor.load(run).predict(["a", "b", "e"])
    assert [answer["text"] for answer in found] == ["+", "-", "+"]


def caption(folder: Path) -> dict[str, Any]:
    """Light and dark pictures, a letter about each."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 90, (8, 8, 3), np.uint8) + 160 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(pictures / f"{number}.png")
    rows = (f"{number}.png,{'dl'[number % 2]}" for number in range(16))
    (pictures / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return {"data": (str(pictures),)}


def describes(run: Path) -> None:
    found = Predictor.load(run).predict([str(run.parent / "pictures" / f"{number}.png") for number in range(4)])
    assert [answer["text"] for answer in found] == ["d", "l", "d", "l"]


IMAGES = {"level": "char", "image_size": 8, "patch": 2, "widths": (16,), "blocks": (0,), "beam": 0}
#: By the names of the tasks.
ONE_STEP = {
    "caption": Case(caption, IMAGES, describes),
    "classify": Case(classify, {}, knows),
    "language": Case(language, {"seq_len": 1}, goes_on),
    "translate": Case(translate, {}, answers),
}
SETTINGS = {"cell": "elman", "hidden": 8, "batch_size": 8, "steps": 60, "lr": 0.05, "warmup": 2, "eval_every": 0}
SETTINGS |= {"sample_every": 0, "devices": 1}


@pytest.mark.runs
@pytest.mark.parametrize("name", TASKS)
def test_a_task_learns_and_answers_single_tokens(name, tmp_path, quick):
    assert name in ONE_STEP, f"The task {name} is not tried with one step: give it a line in ONE_STEP."
    case = ONE_STEP[name]
    with quick(), jax.numpy_dtype_promotion("standard"):  # optax's Adam computes float ** int
        values = {**SETTINGS, **case.settings, **case.write(tmp_path), "run": str(tmp_path / "run")}
        start(validate(DATA[name].Config, values)).train()
        case.check(tmp_path / "run")
