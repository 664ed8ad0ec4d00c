"""Products with factors rounded to bfloat16: every product of every cell, and nothing else."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from jaxgen.cells import CELLS, PRECISIONS, unroll
from jaxgen.cells.precision import matmul, matmul_transposed
from jaxgen.errors import UsageError
from jaxgen.models import LanguageModel
from jaxgen.runs.config import TrainConfig
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.training.data_parallel import make_mesh
from jaxgen.types import Batch

B, T, D, H, V = 4, 6, 5, 8, 11
DRAW = np.random.default_rng(0)
X, WEIGHT = (DRAW.normal(size=(B, T, size)).astype(np.float32) for size in (D, H))
BATCH = Batch(*DRAW.integers(0, V, (2, B, T), np.int32), np.zeros((B, T), bool), np.ones((B, T), bool))


def products(jaxpr):
    """All products in a program, those inside its loops too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            if hasattr(inner, "eqns"):
                yield from products(inner)


def types(function, *args):
    """The types of the factors and of the result of each product."""
    found = products(jax.make_jaxpr(function)(*args).jaxpr)
    return [(*(v.aval.dtype.name for v in (*one.invars, *one.outvars)),) for one in found]


class Layer(nn.Module):
    cell: nn.RNNCellBase
    form: str

    def __call__(self, x):
        return unroll(self.cell, x, form=self.form)


def loss(name, form, precision, params, x):
    layer = Layer(CELLS[name](features=H, precision=precision), form)
    carry, ys = layer.apply(params, x)
    return jnp.sum(ys * WEIGHT) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(carry))


def fresh(name):
    return Layer(CELLS[name](features=H), "scan").init(jax.random.key(0), X)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 8, 32), (2, 3, 1), (33, 64, 96), (64, 130, 5)])
@pytest.mark.parametrize("turned", ["a", "b", "neither"])
def test_factors_and_results_may_be_transposed(m, k, n, turned):
    """XLA's CPU backend folds transpositions into products, and has no product of bfloat16 for some of the forms."""
    a, b, weight = (DRAW.normal(size=size).astype(np.float32) for size in ((m, k), (k, n), (m, n)))

    def total(precision, a, b):
        y = matmul(a.T if turned == "a" else a, b.T if turned == "b" else b, precision)
        return jnp.sum(y * weight) + jnp.sum(jnp.sin(0.1 * y.T))

    given = (a.T.copy() if turned == "a" else a, b.T.copy() if turned == "b" else b)
    wanted, got = (jax.jit(jax.grad(partial(total, p), argnums=(0, 1)))(*given) for p in ("float32", "bfloat16"))
    for x, y in zip(wanted, got):
        assert np.linalg.norm(x - y) < 0.02 * np.linalg.norm(x)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_with_a_transposed_matrix_is_that_with_its_transpose(precision):
    a, b, weight = (DRAW.normal(size=size).astype(np.float32) for size in ((2, 7, 8), (5, 8), (2, 7, 5)))
    turned = jax.grad(lambda a, b: jnp.sum(weight * jnp.sin(matmul_transposed(a, b, precision))), argnums=(0, 1))
    plain = jax.grad(lambda a, b: jnp.sum(weight * jnp.sin(matmul(a, b.T, precision))), argnums=(0, 1))
    for x, y in zip(turned(a, b), plain(a, b)):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_a_result_may_be_wanted_by_columns():
    a, b = DRAW.normal(size=(33, 64)).astype(np.float32), DRAW.normal(size=(64, 96)).astype(np.float32)
    turned = jax.jit(lambda a, b: matmul(a, b, "bfloat16").T)(a, b)
    assert np.linalg.norm(turned - (a @ b).T) < 0.01 * np.linalg.norm(a @ b)


@pytest.mark.parametrize("tie", [False, True])
def test_all_products_of_a_language_model_are_rounded(tie):
    task = LanguageTask(LanguageModel(V, hidden=H, layers=2, tie=tie, precision="bfloat16"))
    params = jax.eval_shape(task.init, jax.random.key(0))

    def nll(params):
        return task.loss(params, task.initial_carry(B), BATCH)[1].nll

    assert set(types(jax.grad(nll), params)) == {("bfloat16", "bfloat16", "float32")}


def test_the_command_line_offers_every_precision():
    assert get_args(TrainConfig.model_fields["precision"].annotation) == (*PRECISIONS, "auto")


def test_the_parameters_do_not_depend_on_the_precision():
    model = LanguageModel(V, hidden=H)
    rounded = dataclasses.replace(model, precision="bfloat16")
    both = [jax.jit(LanguageTask(m).init)(jax.random.key(3)) for m in (model, rounded)]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.skipif("jax.local_device_count() < 2")
def test_the_gradient_of_a_matrix_on_all_devices_is_summed_over_them():
    a, b = DRAW.normal(size=(4, 3)).astype(np.float32), DRAW.normal(size=(3, 2)).astype(np.float32)

    def total(a, b):
        return jnp.sum(jnp.sin(matmul(a, b, "bfloat16")))

    def spread(a, b):
        return jax.lax.psum(total(a, b), "rows")

    rows, whole = PartitionSpec("rows"), PartitionSpec()
    together = jax.shard_map(spread, mesh=make_mesh(2), in_specs=(rows, whole), out_specs=whole)
    alone = jax.jit(jax.grad(total, argnums=(0, 1)))(a, b)
    got = jax.jit(jax.grad(together, argnums=(0, 1)))(a, b)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-2, atol=1e-2), got, alone)


def test_a_precision_that_is_not_there_and_a_cell_that_has_none_are_errors():
    with pytest.raises(UsageError, match=r"bfloat61.*bfloat16"):
        LanguageModel(V, precision="bfloat61")
    with pytest.raises(UsageError, match="bfloat16"):
        loss("elman", "scan", "bf16", fresh("elman"), X)
    with pytest.raises(UsageError, match="GRUCell"):
        LanguageModel(V, nn.GRUCell, precision="bfloat16")
