"""What ``unroll`` refuses, and details of cells beyond the contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, LSTM, Elman, ElmanReLU, unroll
from jaxgen.errors import UsageError

B, T, D, H = 2, 3, 4, 5


class Host(nn.Module):
    cell: nn.RNNCellBase

    def __call__(self, x, carry=None, **options):
        return unroll(self.cell, x, carry, **options)


def shapes(cell, x=(B, T, D), carry=None, **options):
    """The carry and outputs of an unroll, as shapes: nothing is compiled."""
    x = None if x is None else jnp.zeros(x)
    (after, ys), _ = jax.eval_shape(
        lambda key: Host(cell).init_with_output(key, x, carry, **options), jax.random.key(0)
    )
    return after, ys


def test_neither_input_nor_length_is_refused():
    with pytest.raises(UsageError, match="length"):
        shapes(Elman(H), None)


@pytest.mark.parametrize("shape", [(D,), (T, D), (1, B, T, D)])
def test_an_input_without_the_three_axes_is_refused_with_the_shape_that_was_given(shape):
    with pytest.raises(UsageError, match=rf"{shape}.*batch, time, features".replace("(", r"\(").replace(")", r"\)")):
        shapes(Elman(H), shape)


def test_a_length_that_contradicts_the_input_is_refused():
    with pytest.raises(UsageError, match="length=7"):
        shapes(Elman(H), length=7)


def test_a_negative_length_is_refused():
    with pytest.raises(UsageError, match="length of an unroll is -1"):
        shapes(Elman(H), None, length=-1)


def test_a_batch_size_that_nothing_tells_is_refused():
    with pytest.raises(UsageError, match="batch size"):
        shapes(Elman(H), None, length=T)


@pytest.mark.parametrize("name", ["reset", "valid"])
@pytest.mark.parametrize("shape", [(B,), (T, B), (B, T, 1)])
def test_a_mask_of_another_shape_is_refused(name, shape):
    with pytest.raises(UsageError, match=f"{name}"):
        shapes(Elman(H), **{name: jnp.ones(shape, bool)})


def test_the_refusal_of_a_time_major_mask_names_the_axes_in_that_order():
    with pytest.raises(UsageError, match=r"\[time, batch\]"):
        shapes(Elman(H), (T, B, D), reset=jnp.ones((B, T), bool), time_major=True)


@pytest.mark.parametrize("name", ["carry", "initial"])
@pytest.mark.parametrize("state", [jnp.zeros((B + 1, H)), jnp.zeros((B, H + 1)), (jnp.zeros((B, H)),) * 2])
def test_a_state_of_another_shape_is_refused(name, state):
    with pytest.raises(UsageError, match=f"{name}"):
        shapes(Elman(H), **{name: state})


def test_one_array_for_a_state_of_two_is_refused():
    with pytest.raises(UsageError, match="carry"):
        shapes(LSTM(H), carry=jnp.zeros((B, H)))


def test_a_foreign_cell_without_input_is_refused():
    with pytest.raises(UsageError, match="GRUCell"):
        shapes(nn.GRUCell(H), None, jnp.zeros((B, H)), length=T)


@pytest.mark.parametrize("state", [{"carry": jnp.zeros((B, H))}, {"initial": jnp.zeros((B, H))}])
def test_the_batch_size_of_an_unroll_without_input_comes_from_a_state(state):
    _, ys = shapes(Elman(H), None, length=T, **state)
    assert ys.shape == (B, T, H)


def test_the_batch_size_of_an_unroll_without_input_comes_from_the_mask():
    _, ys = shapes(Elman(H), None, length=T, valid=jnp.ones((B, T), bool))
    assert ys.shape == (B, T, H)


def test_the_batch_size_comes_from_a_state_for_each_step_with_time_in_front():
    _, ys = shapes(Elman(H), None, length=T, initial=jnp.zeros((T, B, H)), time_major=True)
    assert ys.shape == (T, B, H)


def test_a_carry_of_low_precision_is_widened():
    after, _ = shapes(GRU(H), carry=jnp.zeros((B, H), jnp.bfloat16))
    assert after.dtype == jnp.float32


def test_an_initial_state_of_low_precision_is_widened():
    after, _ = shapes(GRU(H), reset=jnp.ones((B, T), bool), initial=jnp.zeros((B, H), jnp.bfloat16))
    assert after.dtype == jnp.float32


PARAMS = {
    "input": {"kernel": np.ones((D, H), "f4"), "bias": np.ones(H, "f4")},
    "recurrent_kernel": np.ones((H, H), "f4"),
}


def values(carry=None, **options):
    """The outputs of a relu cell over an input of ones."""
    run = jax.jit(lambda x: Host(ElmanReLU(H)).apply({"params": {"cell": PARAMS}}, x, carry, **options)[1])
    return run(np.ones((B, T, D), "f4"))


def test_without_a_carry_the_unroll_begins_at_the_initial_state():
    np.testing.assert_array_equal(values(initial=jnp.ones((B, H))), values(jnp.ones((B, H))))


def test_without_a_carry_a_reverse_unroll_begins_at_the_last_steps_initial_state():
    initial = np.broadcast_to(np.arange(T, dtype="f4")[None, :, None], (B, T, H))
    np.testing.assert_array_equal(
        values(initial=jnp.asarray(initial), reverse=True), values(jnp.asarray(initial[:, -1]), reverse=True)
    )


def test_a_cell_made_without_input_has_no_input_matrix():
    params = jax.eval_shape(lambda k: Host(GRU(H)).init(k, None, jnp.zeros((B, H)), length=T), jax.random.key(0))
    assert set(params["params"]["cell"]["input"]) == {"bias"}
