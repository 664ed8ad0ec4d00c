"""Distillation: the loss with a teacher's probabilities, its carry, and runs that have a teacher."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import language_config, write
from scipy.special import log_softmax, softmax

from jaxgen.baselines.ngram import fit
from jaxgen.errors import CheckpointError, UsageError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.tasks.language.distillation import DistilledTask
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.trainer.run import resume, start
from jaxgen.types import Batch

B, T, V, EOS = 2, 4, 6, 2
RNG = np.random.default_rng(0)
COUNTED, COUNTS = fit(RNG.integers(3, V, 60), V, 3, EOS)
STUDENT = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=4, layers=1)
TEXT = "".join(f"line {i} has {i % 7} things\n" for i in range(200))


def test_the_loss_mixes_the_text_and_the_teacher_and_both_carries_go_on():
    shapes = jax.eval_shape(STUDENT.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), a.dtype), shapes)
    task = DistilledTask(STUDENT.model, teacher=COUNTED, teacher_weights=COUNTS, share=0.3, temperature=2.0)
    tokens, targets = RNG.integers(3, V, (2, B, T)).astype(np.int32)
    reset, mask = RNG.random((2, B, T)) < [[[0.4]], [[0.7]]]
    loss, plain = jax.jit(task.loss), jax.jit(STUDENT.loss)

    def half(now, which):
        return Batch(*(field[:, which] for field in (tokens, targets, reset, mask)))

    carry, parts = task.initial_carry(B), []
    for which in (slice(0, 2), slice(2, 4)):
        carry, totals = loss(params, carry, half(0, which))
        parts.append(totals)
    _, usual = plain(params, STUDENT.initial_carry(B), Batch(tokens, targets, reset, mask))
    assert sum(each.nll for each in parts) == pytest.approx(float(usual.nll), rel=1e-5)
    wanted = 0.0
    step, own_step = jax.jit(COUNTED.step), jax.jit(STUDENT.step)
    weights = STUDENT.prepare(params)
    for b in range(B):
        for t in range(T):
            if t == 0 or reset[b, t]:
                taught, own = COUNTED.initial_carry(1), STUDENT.initial_carry(1)
            taught, q = step(COUNTS, taught, tokens[b, t : t + 1])
            own, p = own_step(weights, own, tokens[b, t : t + 1])
            p, q = np.float64(p[0]), np.float64(q[0])
            soft = -softmax(q / 2) @ log_softmax(p / 2) * 4
            wanted += mask[b, t] * (0.7 * -log_softmax(p)[targets[b, t]] + 0.3 * soft)
    assert sum(float(each.objective.loss) for each in parts) == pytest.approx(wanted, rel=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """An n-gram run, and the text that it was counted in."""
    folder = tmp_path_factory.mktemp("teacher")
    write(folder / "a.txt", TEXT)
    run = folder / "counted"
    start(language_config(folder / "a.txt", run, model="ngram", order=4, hidden=256, cell="lstm")).save(0, 1.0)
    return folder / "a.txt", run


def settings(given, run, **more):
    book, teacher = given
    return language_config(book, run, **{"teacher": (str(teacher),), "steps": 6, "eval_every": 3, **more})


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_with_a_teacher_that_is_resumed_equals_one_that_was_not_stopped(teacher, tmp_path, devices):
    more = {"batch_size": 4, "devices": devices, "teacher_share": 0.9}
    whole = start(settings(teacher, tmp_path / "whole", **more))
    whole.train()
    for _ in start(settings(teacher, tmp_path / "cut", **more)):
        break
    cut = resume(tmp_path / "cut")
    assert int(cut.state.step) < 6
    cut.train()
    for one, two in zip(*(jax.tree.leaves(each.gathered_state()) for each in (whole, cut))):
        np.testing.assert_array_equal(one, two)
    state, _ = CheckpointStore(tmp_path / "cut" / "checkpoints").restore(6)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(whole.gathered_state()))


def test_a_model_learns_from_several_teachers_alone(teacher, tmp_path):
    both = {"teacher": (f"{teacher[1]}:1", f"{teacher[1]}:2"), "teacher_share": 1.0}
    run = start(settings(teacher, tmp_path / "run", steps=100, lr=0.03, eval_every=0, **both))
    assert len(run.resolved["teacher"]["mix"]["members"]) == 2
    assert run.train().report["val_loss"] < 0.7 * run.uniform_loss


def test_a_teacher_that_changed_or_does_not_fit_is_refused(teacher, tmp_path):
    copy = shutil.copytree(teacher[1], tmp_path / "copy")
    start(settings((teacher[0], copy), tmp_path / "run"))
    shutil.rmtree(copy)
    start(language_config(teacher[0], copy, model="ngram", order=2, hidden=256, cell="lstm")).save(0, 1.0)
    with pytest.raises(CheckpointError, match="teacher"):
        resume(tmp_path / "run")
    for more in ({"documents": "line"}, {"holdout": 0.1}):
        with pytest.raises(UsageError, match="teacher"):
            start(settings(teacher, tmp_path / "other", **more))
    for more in ({"teacher": (), "teacher_share": 0.7}, {"model": "ngram"}, {"label_column": "x"}):
        with pytest.raises(UsageError, match=r"teacher|cell"):
            settings(teacher, tmp_path / "other", **more)
