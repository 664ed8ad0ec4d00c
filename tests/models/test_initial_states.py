"""Initial states computed from condition vectors, compared with NumPy, and their training."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import LSTM
from jaxgen.errors import UsageError
from jaxgen.models import LanguageModel
from jaxgen.models.layers import state_size, unflatten_state
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.types import Batch, ConditionedBatch

B, T, H, C, V = 3, 4, 5, 3, 7
FAST = {"xla_backend_optimization_level": 0}


def random_params(model, seed=0):
    normal = np.random.default_rng(seed).normal
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda a: jnp.asarray(normal(0, 0.7, a.shape), jnp.float32), shapes)


def begun(model, params, condition):
    return model.apply({"params": params}, condition, method=LanguageModel.initial_states)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_state_of_an_lstm_is_linear_in_c_and_squashed_in_h(layers):
    model = LanguageModel(V, hidden=H, layers=layers, condition=C)
    params = random_params(model)
    condition = np.random.default_rng(1).normal(size=(B, T, C)).astype(np.float32)
    flat = condition @ np.asarray(params["condition_kernel"]) + np.asarray(params["condition_bias"])
    parts = np.split(flat, 2 * layers, axis=-1)
    states = begun(model, params, jnp.asarray(condition))
    assert len(states) == layers
    for layer, (c, h) in enumerate(states):
        np.testing.assert_allclose(c, parts[2 * layer], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(h, np.tanh(parts[2 * layer + 1]), rtol=2e-5, atol=1e-6)


def test_a_cell_of_flax_begins_from_plain_numbers():
    model = LanguageModel(V, nn.GRUCell, hidden=H, condition=C)
    params = random_params(model)
    (state,) = begun(model, params, jnp.eye(C))
    np.testing.assert_allclose(state, params["condition_kernel"] + params["condition_bias"][None], rtol=1e-6)


def test_a_vector_between_two_gives_the_numbers_between_theirs():
    model = LanguageModel(V, LSTM, hidden=H, condition=2)
    params = random_params(model)
    ((c, h),) = begun(model, params, jnp.array([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]]))
    np.testing.assert_allclose(c[2], 0.25 * c[0] + 0.75 * c[1], atol=1e-6)
    assert ((h[2] >= jnp.minimum(h[0], h[1])) & (h[2] <= jnp.maximum(h[0], h[1]))).all()


def test_flat_numbers_become_the_carry_that_they_are_numbers_of():
    like = jax.tree.map(jnp.float32, ({"a": np.zeros((2, 3)), "b": np.zeros((2, 1, 2))}, np.zeros((2, 4))))
    assert state_size(like) == 9
    flat = jnp.arange(2 * 5 * 9.0).reshape(2, 5, 9)
    first, second = unflatten_state(flat, like)
    np.testing.assert_array_equal(first["a"], flat[..., :3])
    np.testing.assert_array_equal(first["b"], flat[..., 3:5].reshape(2, 5, 1, 2))
    np.testing.assert_array_equal(second, flat[..., 5:])


def test_a_model_without_conditions_has_no_parameters_for_them_and_refuses_some():
    model = LanguageModel(V, hidden=H)
    params = random_params(model)
    assert not [name for name in params if "condition" in name]
    with pytest.raises(UsageError, match="condition"):
        begun(model, params, jnp.zeros((1, C)))
    with pytest.raises(UsageError, match="condition"):
        LanguageModel(V, condition=-1)


# --- the loss

RESET = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool)


@pytest.fixture(scope="module")
def case():
    task = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=H, layers=1, condition=C)
    draw = np.random.default_rng(3)
    ids = draw.integers(0, V, (B, T + 1)).astype(np.int32)
    batch = ConditionedBatch(
        Batch(ids[:, :-1], ids[:, 1:], RESET, MASK), draw.normal(size=(B, T, C)).astype(np.float32)
    )
    carry = (jnp.asarray(draw.normal(size=(B, H)), jnp.float32),)
    return task, random_params(task.model), carry, batch


loss = jax.jit(LanguageTask.loss, static_argnums=0, compiler_options=FAST)
gradient = partial(jax.jit, compiler_options=FAST, static_argnums=1)(
    jax.grad(lambda batch, task, params, carry: task.loss(params, carry, batch)[1].nll, allow_int=True)
)


def test_the_loss_is_the_cross_entropy_by_hand_with_resets_to_the_state_of_the_condition(case):
    task, params, carry, (batch, condition) = case
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    cell, h, nll = p["stack"]["cells_0"], np.array(carry[0], np.float64), 0.0
    for b in range(B):
        for t in range(T):
            if batch.reset[b, t]:
                h[b] = np.tanh(condition[b, t] @ p["condition_kernel"] + p["condition_bias"])
            x = p["embedding"][batch.tokens[b, t]] @ cell["input"]["kernel"] + cell["input"]["bias"]
            h[b] = np.tanh(x + h[b] @ cell["recurrent_kernel"])
            logits = h[b] @ p["output"]["kernel"] + p["output"]["bias"]
            if batch.mask[b, t]:
                nll += np.log(np.exp(logits).sum()) - logits[batch.targets[b, t]]
    after, totals = loss(task, params, carry, case[3])
    np.testing.assert_allclose(totals.nll, nll, rtol=1e-5)
    np.testing.assert_allclose(after[0], h, rtol=1e-4, atol=1e-5)
    assert int(totals.targets) == MASK.sum()


def test_a_condition_counts_where_a_text_begins_and_nowhere_else(case):
    task, params, carry, batch = case
    in_condition = np.asarray(gradient(batch, task, params, carry).condition)
    assert (np.abs(in_condition).sum(axis=-1) > 0).tolist() == RESET.tolist()


def test_a_batch_must_be_of_the_kind_that_the_model_begins_from(case):
    task, params, carry, batch = case
    with pytest.raises(UsageError, match="width 3"):
        task.loss(params, carry, batch.batch)
    plain = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=H, layers=1)
    with pytest.raises(UsageError, match="width 0"):
        plain.loss(params, carry, batch)


def test_the_state_that_sampling_begins_from_is_that_of_training(case):
    task, params, _, batch = case
    rows = task.initial_states(task.prepare(params), batch.condition[:, 0])
    np.testing.assert_allclose(rows[0], begun(task.model, params, batch.condition)[0][:, 0], rtol=1e-5)
