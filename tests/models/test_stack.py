"""The stack of layers and its dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, Elman
from jaxgen.errors import UsageError
from jaxgen.models import Stack
from jaxgen.models.layers import dropout

T, B, D, H = 4, 3, 2, 5


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_dropout_drops_or_scales_and_preserves_the_expectation():
    dropped = np.asarray(jax.jit(lambda k: dropout(jnp.ones((T, 400, D)), 0.75, k))(keys(400)))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=4 * np.sqrt(0.75 / 0.25 / (T * 400 * D)))


def test_a_row_alone_is_dropped_as_in_a_batch():
    x = np.random.default_rng(0).normal(size=(T, B, D)).astype(np.float32)
    together, alone = jax.jit(lambda x, k: (dropout(x, 0.5, k), dropout(x[:, 1:2], 0.5, k[1:2])))(x, keys(B))
    np.testing.assert_array_equal(np.asarray(together)[:, 1:2], alone)


class Identity(nn.RNNCellBase):
    """Passes its input on, so that dropout alone shows."""

    features: int = D

    def __call__(self, carry, x):
        return carry, x

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 1


def test_each_layer_drops_other_units():
    def outputs(layers):
        stack = Stack([Identity() for _ in range(layers)], 0.5)
        carries = [jnp.zeros((B, D))] * layers
        return jax.jit(lambda k: stack.apply({}, jnp.ones((T, B, D)), carries, row_keys=k)[1])(keys(B))

    once, twice = outputs(1), outputs(2)
    assert np.any((np.asarray(once) != 0) & (np.asarray(twice) == 0))


def test_cells_of_different_kinds_and_sizes_stack():
    stack = Stack([Elman(3), nn.GRUCell(4), GRU(5)])
    carries = [jnp.zeros((B, size)) for size in (3, 4, 5)]
    (after, ys), _ = jax.eval_shape(stack.init_with_output, jax.random.key(0), jnp.ones((T, B, D)), carries)
    assert ys.shape == (T, B, 5)
    assert [leaf.shape for leaf in after] == [(B, 3), (B, 4), (B, 5)]


@pytest.mark.parametrize("name", ["carries", "initial"])
def test_another_number_of_states_than_layers_is_refused(name):
    states = {"carries": [jnp.zeros((B, H))] * 2, "initial": [jnp.zeros((B, H))] * 2}
    states[name] = states[name][:1]
    with pytest.raises(UsageError, match=name):
        Stack([GRU(H), GRU(H)]).init(jax.random.key(0), jnp.ones((T, B, D)), **states)
