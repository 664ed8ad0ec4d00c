"""The arithmetic of matrix products, counted from a jaxpr."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.training.products import count_products

A, B = jnp.ones((2, 3)), jnp.ones((3, 5))
ONE = 2 * 2 * 3 * 5


def test_a_product_and_its_gradients_count_two_operations_a_multiplication():
    assert count_products(jnp.dot, A, B) == ONE
    assert count_products(jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), A, B) == 3 * ONE


def test_batches_and_convolutions():
    assert count_products(jax.vmap(jnp.dot, (0, None)), jnp.ones((7, 2, 3)), B) == 7 * ONE
    signal, kernel = jnp.ones((1, 4, 10)), jnp.ones((6, 4, 3))
    outputs = 6 * 8
    assert count_products(lambda x, k: lax.conv(x, k, (1,), "VALID"), signal, kernel) == 2 * outputs * 4 * 3


def test_loops_count_their_steps_and_conditions_their_cheapest_branch():
    def looped(a, b):
        return lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, None, length=4)[0]

    assert count_products(jax.jit(looped), A, B) == 4 * ONE
    assert count_products(jax.checkpoint(looped), A, B) == 4 * ONE
    assert count_products(lambda a, b: lax.while_loop(lambda c: c < 9, lambda c: c + (a @ b).sum(), 0.0), A, B) == ONE
    branches = [lambda a, b: (a @ b).sum(), lambda a, b: (a @ b @ b.T).sum()]
    assert count_products(lambda i, a, b: lax.switch(i, branches, a, b), jnp.int32(0), A, B) == ONE
