"""Forms equal the plain scan inside every JAX transformation; how the form is chosen."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from jaxgen.cells import GRU, LSTM, Elman, MinGRU, choose_form, unroll
from jaxgen.cells.elman import ACTIVATIONS
from jaxgen.errors import UsageError

B, T, D, H = 4, 5, 4, 6
SHARDS = min(2, jax.device_count())


class Capped(LSTM):
    """An LSTM with another output: what ``LSTM`` knows of its own derivatives no longer holds."""

    @nn.nowrap
    def pointwise(self, carry, z, u):
        (c, h), _ = super().pointwise(carry, z, u)
        h = jnp.minimum(h, 0.05)
        return (c, h), h


class Doubled(GRU):
    """Other equations by way of ``forward_with_residuals``, from which ``pointwise`` follows."""

    @nn.nowrap
    def forward_with_residuals(self, carry, z, u):
        h, y, saved = super().forward_with_residuals(carry, z, u)
        return h, 2 * y, saved


class Squashed(LSTM):
    """A state that meets the matrix through a function."""

    @staticmethod
    def hidden(carry):
        return jnp.tanh(carry[1])


class Triangular(Elman):
    """Another product: no fused form."""

    @nn.nowrap
    def product(self, weights, carry):
        return carry @ jnp.tril(weights.kernel)


class Counting(Elman):
    """Its ``step`` is its own."""

    @nn.nowrap
    def step(self, weights, carry, z):
        h = 0.5 * carry + jnp.tanh(z)
        return h, h


class Unrolled(nn.Module):
    cell: nn.RNNCellBase

    def __call__(self, x, carry, **options):
        return unroll(self.cell, x, carry, **options)


def data(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def case(kind):
    """A cell with parameters, an input, a carry, an initial state for every step, and masks."""
    module = Unrolled(kind(features=H))
    x = data(1, B, T, D)
    zeros = module.cell.initialize_carry(jax.random.key(0), (B, D))
    carry = jax.tree.map(lambda a: data(2, *a.shape), zeros)
    initial = jax.tree.map(lambda a: data(3, B, T, H), zeros)
    reset = np.random.default_rng(4).random((B, T)) < 0.3
    valid = np.arange(T) < np.array([[T], [2], [0], [3]])
    shapes = jax.eval_shape(module.init, jax.random.key(5), x, carry)  # made by NumPy: to run it compiles a lot
    params = jax.tree.map(lambda a: 0.4 * data(5, *a.shape), shapes)
    return module, params, (x, carry, initial), {"reset": reset, "valid": valid}


def value_and_gradients(module, form, masks, reverse, params, x, carry, initial):
    """A number that every output has a part in, and its gradients."""

    def value(params, x, carry, initial):
        out = module.apply(params, x, carry, initial=initial, reverse=reverse, form=form, **masks)
        return sum(jnp.sum(jnp.sin(leaf + 0.3)) for leaf in jax.tree.leaves(out))

    return jax.value_and_grad(value, argnums=(0, 1, 2, 3))(params, x, carry, initial)


def assert_close(actual, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)


@pytest.mark.parametrize(  # of the cells of the registry, tests/contracts/test_cells.py asks the same
    ("kind", "reverse"), [(Capped, True), (Doubled, False), (Squashed, True)]
)
def test_a_state_for_every_step_and_reverse_have_the_gradients_of_the_plain_scan(kind, reverse):
    module, params, inputs, masks = case(kind)
    forms = [partial(value_and_gradients, module, form, masks, reverse) for form in ("scan", "fused")]
    plain, fused = (jax.jit(form)(params, *inputs) for form in forms)
    assert_close(fused, plain)


def over_a_mesh(function):
    """``function`` inside ``shard_map``, the batch spread over the mesh and parameters on every device."""
    mesh = jax.make_mesh((SHARDS,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:SHARDS])
    spread, whole = PartitionSpec("rows"), PartitionSpec()

    def local(params, *inputs):
        mine = jax.tree.map(lambda a: jax.lax.pcast(a, "rows", to="varying"), params)
        value, (weights, *rest) = function(mine, *inputs)
        return jax.lax.psum((value, weights), "rows"), rest

    return jax.shard_map(local, mesh=mesh, in_specs=(whole, spread, spread, spread), out_specs=((whole, whole), spread))


def forgetting(module, form, masks, reverse, params, x, carry, initial):
    """``value_and_gradients`` with everything computed twice and nothing kept (``jax.checkpoint``)."""

    @jax.checkpoint
    def value(params, x, carry, initial):
        out = module.apply(params, x, carry, initial=initial, reverse=reverse, form=form, **masks)
        return sum(jnp.sum(jnp.sin(leaf + 0.3)) for leaf in jax.tree.leaves(out))

    return jax.value_and_grad(value, argnums=(0, 1, 2, 3))(params, x, carry, initial)


@pytest.mark.parametrize(
    ("form", "kind", "transform"),
    [
        *(("fused", GRU, transform) for transform in ("vmap", "remat", "shard_map")),
        ("fused", Capped, "shard_map"),
        *(pytest.param("fused", Capped, transform, marks=pytest.mark.slow) for transform in ("vmap", "remat")),
        *(
            pytest.param("kernel", GRU, transform, marks=pytest.mark.runs)
            for transform in ("vmap", "remat", "shard_map")
        ),
        pytest.param("kernel", MinGRU, "shard_map", marks=pytest.mark.runs),
    ],
)
def test_a_form_works_inside_the_transformations_of_jax(form, kind, transform):
    module, params, inputs, _ = case(kind)
    rows = B // SHARDS if transform == "shard_map" else B
    resets = {"reset": np.tile(np.arange(T) == 2, (rows, 1))}

    def transformed(form):
        function = partial(forgetting if transform == "remat" else value_and_gradients, module, form, resets, False)
        if transform == "vmap":
            pairs = jax.tree.map(lambda a: np.stack([a, -a]), inputs)
            return jax.jit(jax.vmap(function, in_axes=(None, 0, 0, 0)))(params, *pairs)
        return jax.jit(over_a_mesh(function) if transform == "shard_map" else function)(params, *inputs)

    assert_close(transformed(form), transformed("scan"))


def test_without_a_gradient_both_forms_are_the_same_bits():
    module, params, (x, carry, _), masks = case(LSTM)
    plain, fused = (jax.jit(partial(module.apply, form=form, **masks))(params, x, carry) for form in ("scan", "fused"))
    jax.tree.map(np.testing.assert_array_equal, fused, plain)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_masks_of_numbers_are_masks_of_truth_values(dtype):
    module, params, inputs, masks = case(LSTM)
    numbers = {name: mask.astype(dtype) for name, mask in masks.items()}
    of_numbers, of_truth = (
        jax.jit(partial(value_and_gradients, module, "fused", given, False))(params, *inputs)
        for given in (numbers, masks)
    )
    assert_close(of_numbers, of_truth)


@pytest.mark.parametrize("kind", [GRU, Capped])
def test_parameters_that_all_devices_share_get_the_sum_of_their_gradients(kind):
    module, params, (x, carry, _), _ = case(kind)
    mesh = jax.make_mesh((SHARDS,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:SHARDS])
    spread, whole = PartitionSpec("rows"), PartitionSpec()

    def gradient(form, params, x, carry):
        def value(params):
            return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(module.apply(params, x, carry, form=form)))

        return jax.grad(value)(params)

    specs = {"in_specs": (whole, spread, spread), "out_specs": whole}
    over_devices = jax.jit(jax.shard_map(partial(gradient, "fused"), mesh=mesh, **specs))
    assert_close(over_devices(params, x, carry), jax.jit(partial(gradient, "scan"))(params, x, carry))


def test_a_field_may_be_traced():
    class Leaky(Elman):
        tau: float = 1.0

        @nn.nowrap
        def pointwise(self, carry, z, u):
            h = carry + self.tau * (jnp.tanh(z + u) - carry)
            return h, h

    _, params, (x, carry, _), _ = case(Elman)

    def value(tau, form):
        carried, ys = Unrolled(Leaky(H, tau=tau)).apply(params, x, carry, form=form)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(carried)

    np.testing.assert_allclose(jax.grad(value)(0.5, "auto"), jax.grad(value)(0.5, "scan"), rtol=1e-5)


def test_an_activation_of_ones_own_brings_its_slope(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", (jax.nn.sigmoid, lambda h: h * (1 - h)))
    module, params, inputs, masks = case(partial(Elman, activation="sigmoid"))
    forms = [partial(value_and_gradients, module, form, masks, False) for form in ("scan", "fused")]
    plain, fused = (jax.jit(form)(params, *inputs) for form in forms)
    assert_close(fused, plain)


@pytest.mark.skipif("jax.default_backend() != 'cpu'", reason="the rule of another device")
def test_on_a_cpu_a_matrix_and_pointwise_cell_is_fused_unless_asked_otherwise():
    assert choose_form("auto", LSTM(H)) == "fused"
    assert choose_form("auto", Capped(H)) == "fused"
    assert choose_form("scan", LSTM(H)) == "scan"


@pytest.mark.parametrize("cell", [Counting(H), Triangular(H), nn.LSTMCell(H)])
def test_any_other_cell_runs_by_the_plain_scan_and_says_so_when_asked_to_fuse(cell):
    assert choose_form("auto", cell) == "scan"
    with pytest.raises(UsageError, match=f"{type(cell).__name__} .*fused"):
        choose_form("fused", cell)


def test_a_form_that_is_none_is_an_error_that_suggests_one():
    with pytest.raises(UsageError, match="'fused'"):
        choose_form("fusde", LSTM(H))


@pytest.mark.parametrize("kind", [LSTM, Elman])
def test_an_unroll_of_no_steps_has_gradients(kind):
    module, params, (x, carry, _), _ = case(kind)
    gradient = jax.grad(
        lambda c: sum(jnp.sum(a) for a in jax.tree.leaves(module.apply(params, x[:, :0], c, form="fused")))
    )
    jax.tree.map(lambda a: np.testing.assert_array_equal(a, np.ones_like(a)), gradient(carry))
