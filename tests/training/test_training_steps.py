"""Training steps: K in one call equal K calls bitwise, the carry continues, dropout follows from (seed, step, row)."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.schedules import make_schedule
from jaxgen.training.step import create_state, eval_step, row_keys, train_step, train_steps
from jaxgen.types import Batch, Objective

V, B, T, K = 7, 3, 5, 4
KEY = jax.random.key(1, impl="threefry2x32")
TASK = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=6, layers=1, dropout=0.3)
SCHEDULE = make_schedule("cosine", lr=0.05, warmup=2, horizon=8, final=0.1)
OPTIMIZER = make_optimizer("adamw", SCHEDULE, clip=0.5, options={"weight_decay": 0.1})
SGD = make_optimizer("sgd", optax.constant_schedule(1.0), clip=0.1, options={"momentum": 0.0})
TRACES = []


class AimedTotals(NamedTuple):
    nll: jax.Array
    targets: jax.Array
    objective: Objective


class Aimed(LanguageTask):
    """Minimises one and a half times what it reports."""

    def loss(self, params, carry, batch, row_keys=None):
        carry, totals = super().loss(params, carry, batch, row_keys)
        return carry, AimedTotals(*totals, Objective(3 * totals.nll, 2 * totals.targets))


#: Compiles in half the time, for what is not compared bitwise with what was compiled as usual.
FAST = {"xla_backend_optimization_level": 0}
PLAIN = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=6, layers=1)


def counted(*args):
    TRACES.append(None)
    return train_steps(TASK, OPTIMIZER, KEY, *args)


several = jax.jit(counted, donate_argnums=0)
one = jax.jit(partial(train_step, TASK, OPTIMIZER, KEY))
plain_step = jax.jit(partial(train_step, PLAIN, SGD, KEY), compiler_options=FAST)
loss = jax.jit(TASK.loss, compiler_options=FAST)
plain_loss = jax.jit(PLAIN.loss, compiler_options=FAST)
evaluate = jax.jit(partial(eval_step, TASK), compiler_options=FAST)


def random_params():
    normal = np.random.default_rng(5).normal
    return jax.tree.map(lambda a: normal(0, 0.5, a.shape).astype(np.float32), shapes(OPTIMIZER).params)


@cache
def shapes(optimizer):
    return jax.eval_shape(lambda: create_state(TASK, optimizer, KEY, B))


def fresh(optimizer=OPTIMIZER):
    """A state of its own arrays, so that donating it hurts nobody."""
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes(optimizer))
    return jax.device_put(state._replace(params=random_params()))


def batches(number=K, *, reset=False, mask=True):
    ids = np.random.default_rng(2).integers(3, V, (number, B, T + 1)).astype(np.int32)
    resets = np.zeros((number, B, T), bool)
    resets[:, :, 0] = reset
    return Batch(ids[..., :-1], ids[..., 1:], resets, np.full((number, B, T), mask))


def batch(i=0, **options):
    return Batch(*(field[i] for field in batches(**options)))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def norm(tree):
    """The Euclidean norm of all numbers together."""
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def host(tree):
    return jax.tree.map(np.array, tree)


@pytest.fixture(scope="module")
def in_one_call():
    return host(several(fresh(), batches(), K))


def in_calls(*counts):
    """The same K steps in calls of the given numbers of steps, the rest of each call being filled up."""
    state, logs, begin, every = fresh(), [], 0, batches()
    for count in counts:
        taken = np.minimum(np.arange(begin, begin + K), K - 1)
        state, log = several(state, Batch(*(field[taken] for field in every)), count)
        logs.append(jax.tree.map(lambda a, n=count: np.asarray(a)[:n], log))
        begin += count
    return host(state), jax.tree.map(lambda *parts: np.concatenate(parts), *logs)


@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (1, 2, 1)])
def test_steps_in_one_call_are_the_same_steps_in_several_calls_bitwise(in_one_call, counts):
    equal(in_calls(*counts), in_one_call)


def test_steps_in_one_call_are_single_training_steps_bitwise(in_one_call):
    state, log = fresh(), []
    for i in range(K):
        state, metrics = one(state, batch(i))
        log.append(metrics)
    equal((state, jax.tree.map(lambda *a: np.stack(a), *log)), in_one_call)


def test_no_step_changes_nothing():
    state, log = several(fresh(), batches(), 0)
    equal(state, fresh())
    equal(log, jax.tree.map(np.zeros_like, log))


def test_what_fills_a_call_up_is_not_read(in_one_call):
    other = Batch(*(np.where(np.arange(K)[:, None, None] < 2, field, field[:1]) for field in batches()))
    equal(several(fresh(), batches(), 2), several(fresh(), other, 2))


def test_the_number_of_steps_is_not_compiled_for(in_one_call):
    before = len(TRACES)
    for count in (0, 1, 3, K):
        several(fresh(), batches(), count)
    assert len(TRACES) == before


def test_a_donated_state_is_given_up_whole():
    state = fresh()
    several(state, batches(), 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.runs
def test_a_state_made_by_create_state_can_be_donated():
    state = jax.jit(partial(create_state, TASK, OPTIMIZER, rows=B), compiler_options=FAST)(KEY)
    assert int(several(state, batches(), 2)[0].step) == 2


def test_the_step_is_counted(in_one_call):
    assert in_one_call[0].step == K


def test_a_step_begins_from_the_carry_of_the_step_before():
    state, _ = plain_step(fresh(SGD), batch(0))
    expected, _ = plain_loss(random_params(), fresh().carry, batch(0))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state.carry, expected)
    assert plain_step(state, batch(1))[1].loss != plain_step(state._replace(carry=fresh().carry), batch(1))[1].loss


def test_a_reset_at_the_first_position_forgets_the_carry_of_the_step_before():
    state, _ = plain_step(fresh(SGD), batch(0))
    start = state._replace(carry=fresh().carry)
    equal(*(plain_step(before, batch(1, reset=True)) for before in (state, start)))


def test_the_gradient_norm_is_reported_before_clipping():
    state, start = fresh(SGD), random_params()
    after, metrics = plain_step(state, batch())
    change = jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, start)
    np.testing.assert_allclose(norm(change), 0.1, rtol=1e-3)
    assert metrics.grad_norm > 0.2


def test_the_update_is_the_gradient_of_the_mean_loss():
    state = fresh(SGD)
    slope = jax.grad(lambda p: PLAIN.loss(p, state.carry, batch())[1].nll / (B * T))
    grads = jax.jit(slope, compiler_options=FAST)(state.params)
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 / norm(grads) * np.asarray(g), state.params, grads)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), plain_step(state, batch())[0].params, expected)


@pytest.mark.runs
def test_an_objective_of_its_own_is_minimised_and_the_loss_is_reported():
    aimed = jax.jit(partial(train_step, Aimed(PLAIN.model), SGD, KEY), compiler_options=FAST)
    (_, plain), (_, metrics) = (step(fresh(SGD), batch()) for step in (plain_step, aimed))
    np.testing.assert_allclose(metrics, [plain.loss, 1.5 * plain.grad_norm, plain.targets], rtol=1e-5)


def test_a_batch_without_targets_has_loss_0_and_moves_no_parameter():
    state, metrics = plain_step(fresh(SGD), batch(mask=False))
    assert (metrics.loss, metrics.grad_norm, metrics.targets) == (0, 0, 0)
    equal(state.params, random_params())


def dropped(step, rows=B, key=KEY, *, some=None):
    """The loss of a batch under the dropout of one step; ``some`` row counts alone."""
    mask = np.ones((B, T), bool) if some is None else np.arange(B)[:, None].repeat(T, 1) == some
    params, state = random_params(), fresh()
    return loss(params, state.carry, batch()._replace(mask=mask), row_keys(key, step, rows))[1].nll


def test_the_same_seed_and_step_drop_the_same_units():
    assert dropped(3) == dropped(3)


def test_another_step_drops_others():
    assert dropped(3) != dropped(4)


def test_another_seed_drops_others():
    assert dropped(3) != dropped(3, key=jax.random.key(2, impl="threefry2x32"))


def test_each_row_has_a_dropout_of_its_own():
    keys = jax.random.key_data(row_keys(KEY, 3, B))
    assert len({row.tobytes() for row in np.asarray(keys)}) == B


def test_a_rows_key_does_not_depend_on_how_many_rows_there_are():
    equal(*(jax.random.key_data(row_keys(KEY, 3, rows))[:2] for rows in (2, 5)))


def test_a_rows_dropout_goes_with_its_key():
    order, keys = np.array([2, 0, 1]), row_keys(KEY, 3, B)
    mask = np.zeros((B, T), bool)
    mask[0] = True
    params, carry = random_params(), fresh().carry
    moved = Batch(*(field[order] for field in batch()))._replace(mask=mask)
    np.testing.assert_allclose(loss(params, carry, moved, keys[order])[1].nll, dropped(3, some=2), rtol=1e-6)


def test_evaluation_drops_nothing():
    params, carry = random_params(), fresh().carry
    assert evaluate(params, carry, batch())[1].nll == plain_loss(params, carry, batch())[1].nll


def test_evaluation_leaves_the_training_state_as_it_was():
    state = fresh()
    evaluate(state.params, state.carry, batch())
    equal(state, fresh())
