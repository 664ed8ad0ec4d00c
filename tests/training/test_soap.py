"""SOAP, compared with the algorithm of the paper in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.param_kinds import Kind


def soap_in_numpy(gradients, b1, b2, eps, every):
    """The updates of SOAP for one matrix, in float64 (Vyas et al. 2024, algorithm 3)."""
    rows, columns = gradients[0].shape
    left, right, first = np.zeros((rows, rows)), np.zeros((columns, columns)), np.zeros((rows, columns))
    second, q_left, q_right, found = np.zeros((rows, columns)), np.eye(rows), np.eye(columns), []
    for t, g in enumerate(gradients):
        if t:
            first = b1 * first + (1 - b1) * g
            second = b2 * second + (1 - b2) * (q_left.T @ g @ q_right) ** 2
            mean, square = q_left.T @ first @ q_right / (1 - b1**t), second / (1 - b2**t)
            found.append(q_left @ (mean / (np.sqrt(square) + eps)) @ q_right.T)
        else:
            found.append(np.zeros((rows, columns)))
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if t == 0:
            q_left, q_right = (np.linalg.eigh(a)[1][:, ::-1] for a in (left, right))
        elif t % every == 0:
            order = np.argsort(-np.diag(q_left.T @ left @ q_left))
            q_left, second = np.linalg.qr(left @ q_left[:, order])[0], second[order]
            order = np.argsort(-np.diag(q_right.T @ right @ q_right))
            q_right, second = np.linalg.qr(right @ q_right[:, order])[0], second[:, order]
    return found


@pytest.mark.parametrize("gates", [1, 2])
def test_soap_is_the_algorithm_of_the_paper_for_each_gate(gates):
    rng = np.random.default_rng(3)
    scales = np.array([3.0, 1.0, 0.3])[:, None] * np.array([2.0, 1.0, 0.5, 0.2] * gates)
    series = [rng.normal(size=(3, 4 * gates)) * scales for _ in range(9)]
    options = {"b1": 0.9, "b2": 0.8, "factor_decay": 0.8, "every": 3.0}
    kinds = ((("kernel",), Kind("matrix", gates)), (("bias",), Kind("other")))
    optimizer = make_optimizer("soap", 1.0, clip=0.0, options=options, kinds=kinds)
    params = {"kernel": jnp.zeros((3, 4 * gates)), "bias": jnp.zeros(4)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = [soap_in_numpy([g[:, 4 * n : 4 * n + 4] for g in series], 0.9, 0.8, 1e-8, 3) for n in range(gates)]
    for t, g in enumerate(series):
        given = {"kernel": jnp.asarray(g, jnp.float32), "bias": jnp.ones(4)}
        updates, state = update(given, state, params)
        theirs = np.concatenate([-each[t] for each in expected], axis=1)
        np.testing.assert_allclose(updates["kernel"], theirs, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(updates["bias"], -np.ones(4), rtol=1e-4)


def test_soap_leaves_a_side_that_is_too_large_as_it_is():
    params = {"kernel": jnp.asarray(np.random.default_rng(4).normal(size=(6, 2)), jnp.float32)}
    optimizer = make_optimizer("soap", 1.0, clip=0.0, options={"largest": 4.0})
    state = jax.tree.leaves(optimizer.init(params))
    assert not [leaf for leaf in state if leaf.shape[-2:] == (6, 6)]
    assert [leaf for leaf in state if leaf.shape[-2:] == (2, 2)]
