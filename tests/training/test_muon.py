"""Muon: orthogonalised updates as NumPy computes them, gate by gate or as a whole, and Adam for the rest."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.training.muon import NEWTON_SCHULZ, from_blocks, inverse_root, to_blocks
from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.param_kinds import Kind

LR = 0.01


def muon(kinds=(), **options):
    return make_optimizer("muon", optax.constant_schedule(LR), clip=0.0, options=options, kinds=kinds)


def first_update(optimizer, gradients):
    """The first updates, where the parameters are the gradients. One compilation instead of one for each operation."""
    return jax.device_get(jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0])(gradients))


def newton_schulz(x, iterations):
    """The iteration as it is published, in float64."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def wide(x):
    x = np.asarray(x, np.float64)
    return (x if x.shape[0] <= x.shape[1] else x.T) / np.linalg.norm(x)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_the_inverse_root_makes_of_a_matrix_what_the_published_iteration_makes(shape, iterations):
    (x,) = to_blocks(jnp.asarray(drawn(*shape)), 1)
    found = inverse_root(x @ x.T, iterations) @ x
    np.testing.assert_allclose(found, newton_schulz(np.asarray(x, np.float64), iterations), atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalising_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    (x,) = to_blocks(jnp.asarray(drawn(*shape)), 1)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    values = u.T @ np.asarray(inverse_root(x @ x.T, 8) @ x, np.float64) @ v.T
    diagonal = np.diagonal(values)
    assert np.all((diagonal > 0.6) & (diagonal < 1.3))
    np.testing.assert_allclose(values, np.diag(diagonal), atol=1e-3)


@pytest.mark.parametrize(("shape", "gates"), [((4, 12), 3), ((12, 12), 3), ((5, 5), 1), ((3, 4), 4)])
def test_blocks_are_the_gates_of_a_kernel(shape, gates):
    kernel = drawn(*shape)
    blocks = jax.jit(partial(to_blocks, gates=gates))(kernel)
    for gate, block in zip(np.split(kernel, gates, axis=1), blocks, strict=True):
        np.testing.assert_allclose(block, wide(gate), rtol=1e-5)
    norms = np.repeat([np.linalg.norm(gate) for gate in np.split(kernel, gates, axis=1)], shape[1] // gates)
    back = jax.jit(partial(from_blocks, shape=shape))(blocks)
    np.testing.assert_allclose(back * norms[None], kernel, rtol=1e-5)


@pytest.mark.parametrize("per_gate", [False, True])
def test_kernels_are_orthogonalised_whole_or_gate_by_gate_and_the_rest_is_left_to_adam(per_gate):
    params = {"cell": {"kernel": drawn(4, 12), "bias": drawn(12)}}
    kinds = ((("cell", "kernel"), Kind("matrix", 3)), (("cell", "bias"), Kind("other")))
    updates = first_update(muon(kinds, scale=0.5, per_gate=per_gate), params)
    adam = make_optimizer("adam", optax.constant_schedule(LR), clip=0.0, options={"b2": 0.99})
    theirs = first_update(adam, params)
    np.testing.assert_allclose(updates["cell"]["bias"], theirs["cell"]["bias"], rtol=1e-5)
    for gate in (slice(0, 4), slice(4, 8), slice(8, 12)) if per_gate else (slice(0, 12),):
        block = params["cell"]["kernel"][:, gate]
        expected = -LR * 0.5 * max(block.shape) ** 0.5 * newton_schulz(wide(block), 3)
        np.testing.assert_allclose(updates["cell"]["kernel"][:, gate], expected, rtol=1e-3, atol=1e-6)


def test_an_inverse_root_is_used_until_it_is_refreshed():
    """Four updates against the rule written in NumPy: the momentum, then the root of the first or third update."""
    gradients = [np.asarray(drawn(5, 7, seed=seed), np.float64) for seed in range(4)]
    optimizer, momentum = muon(scale=1.0, refresh=2, momentum=0.8), np.zeros((5, 7))
    params = {"kernel": drawn(5, 7)}
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    for step, gradient in enumerate(gradients):
        updates, state = update({"kernel": gradient.astype(np.float32)}, state, params)
        momentum = 0.8 * momentum + 0.2 * gradient
        ahead = wide(0.8 * momentum + 0.2 * gradient)
        if step % 2 == 0:
            root = newton_schulz(ahead, 3) @ np.linalg.pinv(ahead)
        np.testing.assert_allclose(updates["kernel"], -LR * 7**0.5 * (root @ ahead), rtol=1e-2, atol=1e-5)


def test_an_update_has_the_size_that_its_scale_says():
    updates = first_update(muon(scale=0.2, iterations=8.0), {"kernel": drawn(64, 64)})
    size = np.sqrt(np.mean(updates["kernel"] ** 2))
    assert size == pytest.approx(LR * 0.2, rel=0.25)


@pytest.mark.parametrize("options", [{"iterations": 0}, {"iterations": 2.5}, {"iterations": 99}, {"refresh": 0}])
def test_impossible_counts_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        muon(**options)


def test_a_gradient_of_zeros_gives_no_update():
    updates = first_update(muon(), {"kernel": np.zeros((4, 8), np.float32)})
    assert not updates["kernel"].any()
