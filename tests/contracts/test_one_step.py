"""One-to-one: a single time step and a single token, for every cell and task.

A new task is tried by a line in ``ONE_STEP``: what reads and answers single tokens, and what to expect of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxgen.cells import CELLS, forms_of, unroll
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.runs.config import validate
from jaxgen.tasks.registry import DATA, TASKS
from jaxgen.testing.cells import where_rows
from jaxgen.trainer.run import start

B, D, H = 3, 4, 5
FAST = {"xla_backend_optimization_level": 0}

# --- cells


class OneStep(nn.Module):
    """A cell, called once and unrolled over one step."""

    cell: nn.RNNCellBase

    def __call__(self, carry, x):
        return self.cell(carry, x)

    def unrolled(self, carry, x, form, **options):
        carry, ys = unroll(self.cell, x[:, None], carry, form=form, **options)
        return carry, ys[:, 0]

    def without_input(self, carry):
        """One step of an unroll without input, and the cell's own step from its bias alone."""
        z = self.cell.project(None)
        by_hand = self.cell.step(self.cell.weights(), carry, jnp.broadcast_to(z[None, :], (B, z.shape[0])))
        final, ys = unroll(self.cell, None, carry, length=1)
        return (final, ys[:, 0]), by_hand


def random(tree, seed=0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda a: draw.normal(0, 0.7, a.shape).astype(np.float32), tree)


def close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, wanted)


@pytest.fixture(scope="module")
def cell():
    """name -> a module with that cell, its parameters, a carry and an input."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            kind = {"flax's gru": nn.GRUCell, **CELLS}[name]
            module, x = OneStep(kind(features=H)), random(jnp.zeros((B, D)), 1)
            carry = random(kind(features=H, parent=None).initialize_carry(jax.random.key(0), (B, D)), 2)
            made[name] = module, random(jax.eval_shape(module.init, jax.random.key(0), carry, x)), carry, x
        return made[name]

    return make


FORMS = [("flax's gru", "scan"), *((name, form) for name, kind in CELLS.items() for form in forms_of(kind(features=H)))]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_one_step_of_time_is_one_call_of_the_cell(name, form, cell):
    module, params, carry, x = cell(name)
    weigh = random((carry, jnp.zeros((B, H))), 3)

    def value(params, carry, method):
        out = module.apply(params, carry, x, **method)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(weigh))), out

    both = [
        jax.jit(jax.value_and_grad(lambda p, c, m=m: value(p, c, m), (0, 1), has_aux=True), compiler_options=FAST)(
            params, carry
        )
        for m in ({"method": OneStep.unrolled, "form": form}, {})
    ]
    close(*both)


@pytest.mark.parametrize("name", CELLS)
def test_one_step_without_input_is_the_cell_at_its_bias(name, cell):
    module, params, carry, _ = cell(name)
    close(*jax.jit(lambda p, c: module.apply(p, c, method=OneStep.without_input), compiler_options=FAST)(params, carry))


@pytest.mark.parametrize("name", CELLS)
def test_one_step_begins_anew_where_it_is_reset_and_stays_where_it_is_padding(name, cell):
    module, params, carry, x = cell(name)
    reset, valid = np.array([[True], [False], [True]]), np.array([[True], [True], [False]])
    (first, last), zeros = (random((carry, carry), 4)), jax.tree.map(np.zeros_like, carry)
    options = {"method": OneStep.unrolled, "form": "auto", "reset": reset, "valid": valid}
    run = jax.jit(lambda c, i: module.apply(params, c, x, initial=i, **options), compiler_options=FAST)
    call = jax.jit(lambda c: module.apply(params, c, x), compiler_options=FAST)
    for initial, state in ((first, first), (jax.tree.map(lambda a: a[:, None], last), last), (zeros, zeros)):
        begun = where_rows(reset[:, 0], state, carry)
        new, y = call(begun)
        close(run(carry, initial), (where_rows(valid[:, 0], new, begun), np.where(valid, y, 0)))


# --- tasks


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
        np.testing.assert_allclose(score.logp, expected, rtol=1e-4)


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
