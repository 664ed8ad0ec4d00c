"""``jaxgen.Trainer``: any task, optimizer and batches in a plain loop."""

from functools import partial

import jax
import numpy as np
import optax
import optax.contrib
import pytest

import jaxgen
from jaxgen.data.batches import Tokens

VOCAB = 12
TOKENS = Tokens(np.random.default_rng(0).integers(3, VOCAB, 200).astype(np.int32), None, 200, 200)
TASK = jaxgen.LanguageTask(jaxgen.LanguageModel(VOCAB, jaxgen.Elman, hidden=8, dropout=0.2))
BATCHES = jaxgen.make_batches("stream", TOKENS, batch_size=2, seq_len=8, seed=0)
ADAM = optax.adam(optax.cosine_decay_schedule(0.01, 10))


def trainer(task=TASK, batches=BATCHES, optimizer=ADAM, steps=4, **more):
    return jaxgen.Trainer(task, batches, optimizer=optimizer, steps=steps, **more)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def by_hand(steps, optimizer=ADAM):
    key = jax.random.key(3)
    state = jaxgen.create_state(TASK, optimizer, key, rows=2)
    step, losses = jax.jit(partial(jaxgen.train_step, TASK, optimizer, key)), []
    for i in range(steps):
        state, metrics = step(state, BATCHES.batch(i))
        losses.append(float(metrics.loss))
    return state, losses


def test_a_loop_takes_the_steps_of_the_training_step():
    ours = trainer(seed=3)
    seen = [(step, float(metrics.loss)) for step, metrics in ours]
    state, losses = by_hand(4)
    assert seen == list(enumerate(losses, start=1))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(ours.params), leaves(state.params), strict=True))


def test_a_second_loop_and_one_after_a_break_go_on_where_the_first_ended():
    ours = trainer(seed=3, steps=1).train()
    for _ in ours:
        break
    ours.steps = 2
    assert ours.train().step == 4
    assert all(np.array_equal(a, b) for a, b in zip(leaves(ours.params), leaves(by_hand(4)[0].params), strict=True))


def test_an_evaluation_is_the_mean_over_all_targets_with_the_state_carried():
    ours, batches = trainer(), [BATCHES.batch(i) for i in range(3)]
    carry, nll, targets = TASK.initial_carry(2), 0.0, 0.0
    for batch in batches:
        carry, totals = TASK.evaluate(ours.params, carry, batch)
        nll, targets = nll + float(totals.nll), targets + float(totals.targets)
    assert ours.evaluate(batches) == pytest.approx(nll / targets, rel=1e-5)


def test_weights_that_were_taken_in_the_loop_stay_as_they_were():
    taken = {step: (ours.params, leaves(ours.params)) for ours in [trainer()] for step, _ in ours}
    assert all(np.array_equal(a, b) for kept, then in taken.values() for a, b in zip(leaves(kept), then, strict=True))
    assert not np.array_equal(taken[1][1][0], taken[4][1][0])


def test_an_optimizer_may_keep_the_initial_weights():
    assert trainer(optimizer=optax.contrib.prodigy(), steps=2).train().step == 2


class Heard(jaxgen.Callback):
    def __init__(self):
        self.heard = []

    def on_start(self, event):
        self.heard.append(("start", event.first_step, event.last_step))

    def on_step(self, event):
        self.heard.append(("step", event.step))

    def on_evaluation(self, event):
        self.heard.append(("evaluation", event.row["step"], event.best_step))

    def on_end(self, event, inference):
        self.heard.append(("end", event.step))


def test_callbacks_hear_steps_evaluations_and_the_end():
    heard = Heard()
    trainer(steps=3, callbacks=[heard], validation=[BATCHES.batch(5)], eval_every=2, optimizer=optax.sgd(0.1)).train()
    kinds = [each[:2] for each in heard.heard]
    assert kinds == [
        ("start", 0),
        ("step", 1),
        ("step", 2),
        ("evaluation", 2),
        ("step", 3),
        ("evaluation", 3),
        ("end", 3),
    ]


def test_a_callback_and_the_loop_itself_can_stop_it():
    nothing, validation = optax.sgd(0.0), [BATCHES.batch(0)]
    early = trainer(
        steps=9, optimizer=nothing, validation=validation, eval_every=1, callbacks=[jaxgen.callbacks.EarlyStopping(2)]
    )
    assert early.train().step == 3
    stopped = trainer(steps=9)
    for step, _ in stopped:
        if step == 2:
            stopped.stop()
    assert stopped.step == 2


def test_a_loss_and_batches_of_ones_own():
    class Doubled(jaxgen.LanguageTask):
        def loss(self, params, carry, batch, row_keys=None):
            carry, totals = super().loss(params, carry, batch, row_keys)
            return carry, totals._replace(nll=2 * totals.nll)

    model = jaxgen.LanguageModel(VOCAB, jaxgen.Elman, hidden=8)
    plain, doubled = (
        next(iter(trainer(task, lambda step: BATCHES.batch(step))))[1].loss
        for task in (jaxgen.LanguageTask(model), Doubled(model))
    )
    assert float(doubled) == pytest.approx(2 * float(plain), rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"task": jaxgen.Elman(8)}, "task"),
        ({"batches": 3}, "batches"),
        ({"batches": lambda step: (np.zeros(2), np.zeros(3))}, "rows"),
        ({"optimizer": "adam"}, "optax"),
        ({"steps": -1}, "steps"),
        ({"eval_every": 2}, "validation"),
        ({"eval_every": 2, "validation": iter([BATCHES.batch(0)])}, "validation"),
        ({"callbacks": [print]}, "Callback"),
        ({"callbacks": jaxgen.Callback()}, "list"),
        ({"callbacks": [jaxgen.callbacks.CSV()]}, "run"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_sentence(wrong, word):
    with pytest.raises(jaxgen.UsageError, match=word):
        trainer(**wrong)


def test_a_loss_that_is_not_finite_ends_the_loop():
    with pytest.raises(jaxgen.DivergedError, match="finite"):
        trainer(optimizer=optax.sgd(1e30), steps=3, validation=[BATCHES.batch(0)], eval_every=1).train()
