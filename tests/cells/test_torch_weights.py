"""PyTorch weights in our cells and back: against recorded arrays, and against torch where it is installed."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.cells import CELLS, unroll
from jaxgen.cells.torch import TORCH_KINDS, from_torch, stack_from_torch, to_torch
from jaxgen.errors import UsageError
from jaxgen.models import Stack

NAMES = {"rnn_tanh": "elman", "rnn_relu": "elman-relu", "lstm": "lstm", "gru": "gru"}
LAYERS, B, T, D, H = 2, 2, 5, 3, 4
FAST = {"xla_backend_optimization_level": 0}  # for jax.jit: compiles in two thirds of the time
KINDS = pytest.mark.parametrize("kind", TORCH_KINDS)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "torch.npz") as file:
        return dict(file)


def module_arrays(golden, kind, ways):
    """One module's weights and its other arrays."""
    prefix = f"{kind}/{ways}/"
    arrays = {name.removeprefix(prefix): array for name, array in golden.items() if name.startswith(prefix)}
    return {name: a for name, a in arrays.items() if "_l" in name}, {n: a for n, a in arrays.items() if "_l" not in n}


def carry_of(kind, arrays, when, index):
    h = arrays[f"h_{when}"][index]
    return (arrays[f"c_{when}"][index], h) if kind == "lstm" else h


def run(kind, params, x, carry, reverse=False):
    """One layer of our cell over ``x`` [B, T, D]."""
    cell = CELLS[NAMES[kind]](H)
    return cell.apply({"params": params}, x, carry, method=lambda c, x, s: unroll(c, x, s, reverse=reverse))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cell_params(kind, width=D):
    gates, apart = TORCH_KINDS[kind]
    params = {
        "input": {"kernel": normal(1, width, gates * H), "bias": normal(2, gates * H)},
        "recurrent_kernel": normal(3, H, gates * H),
    }
    return params | ({"recurrent_bias": normal(4, apart * H)} if apart else {})


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@KINDS
def test_two_layers_in_both_directions_agree_with_torch(golden, kind):
    weights, arrays = module_arrays(golden, kind, "both")

    @partial(jax.jit, compiler_options=FAST)
    def ours(x):
        after = []
        for layer in range(LAYERS):
            ys = []
            for back in (False, True):
                carry = carry_of(kind, arrays, 0, 2 * layer + back)
                final, y = run(kind, from_torch(weights, kind, layer, reverse=back), x, carry, reverse=back)
                ys.append(y)
                after.append(final)
            x = jnp.concatenate(ys, axis=-1)
        return x, after

    expected = [carry_of(kind, arrays, "n", index) for index in range(2 * LAYERS)]
    assert_close(ours(golden["x"]), (arrays["y"], expected))


@KINDS
def test_a_stack_from_torch_agrees_with_torch(golden, kind):
    weights, arrays = module_arrays(golden, kind, "one")
    stack = Stack([CELLS[NAMES[kind]](H) for _ in range(LAYERS)])
    params = {f"cells_{layer}": tree for layer, tree in enumerate(stack_from_torch(weights, kind))}
    carries = [carry_of(kind, arrays, 0, layer) for layer in range(LAYERS)]
    after, ys = jax.jit(stack.apply, compiler_options=FAST)({"params": params}, np.swapaxes(golden["x"], 0, 1), carries)
    expected = tuple(carry_of(kind, arrays, "n", layer) for layer in range(LAYERS))
    assert_close((after, np.swapaxes(ys, 0, 1)), (expected, arrays["y"]))


@KINDS
def test_the_converted_tree_is_the_cells_own(kind):
    cell = CELLS[NAMES[kind]](H)
    carry = cell.initialize_carry(jax.random.key(0), (B, D))
    own = jax.eval_shape(cell.init, jax.random.key(0), carry, jnp.ones((B, D)))["params"]
    tree = from_torch(to_torch(cell_params(kind), kind), kind)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(lambda a: (a.shape, a.dtype), own)


@KINDS
def test_there_and_back_again_changes_no_bit(kind):
    params = cell_params(kind)
    back = from_torch(to_torch(params, kind, 1, reverse=True), kind, 1, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_the_names_are_those_of_torch():
    names = set(to_torch(cell_params("gru"), "gru", layer=1, reverse=True))
    assert names == {f"{part}_l1_reverse" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


@KINDS
def test_a_module_without_biases_has_zero_biases(kind):
    weights = {name: a for name, a in to_torch(cell_params(kind), kind).items() if name.startswith("weight")}
    params = from_torch(weights, kind)
    assert not params["input"]["bias"].any()
    assert not params.get("recurrent_bias", np.zeros(1)).any()


def test_the_result_is_a_copy_in_float32():
    weights = {name: a.astype(np.float64) for name, a in to_torch(cell_params("lstm"), "lstm").items()}
    params = from_torch(weights, "lstm")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    params["input"]["bias"] += 1
    np.testing.assert_array_equal(weights["bias_ih_l0"], cell_params("lstm")["input"]["bias"])


def test_jax_arrays_convert_to_torch():
    params = jax.tree.map(jnp.asarray, cell_params("lstm"))
    assert all(type(a) is np.ndarray and a.dtype == np.float32 for a in to_torch(params, "lstm").values())


# What is refused


@pytest.mark.parametrize("convert", [from_torch, to_torch, stack_from_torch])
def test_an_unknown_kind_is_refused_with_the_nearest(convert):
    with pytest.raises(UsageError, match="'lstm'"):
        convert({}, "lstn")


def test_a_missing_layer_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match="weight_hh_l3"):
        from_torch(to_torch(cell_params("gru"), "gru"), "gru", layer=3)


def test_an_empty_state_dict_is_refused():
    with pytest.raises(UsageError, match="weight_hh_l0"):
        stack_from_torch({}, "gru")


@pytest.mark.parametrize(
    ("made", "taken"), [("gru", "lstm"), ("lstm", "gru"), ("lstm", "rnn_tanh"), ("gru", "rnn_relu")]
)
def test_weights_of_another_kind_are_refused(made, taken):
    with pytest.raises(UsageError, match=r"weight_hh_l0.* shape"):
        from_torch(to_torch(cell_params(made), made), taken)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_torch_array_of_another_shape_is_refused(name):
    weights = to_torch(cell_params("lstm"), "lstm")
    weights[name] = weights[name][:-1]
    with pytest.raises(UsageError, match=f"{name}.* shape"):
        from_torch(weights, "lstm")


def test_an_lstm_with_projections_is_refused():
    weights = to_torch(cell_params("lstm"), "lstm") | {"weight_hr_l0": np.zeros((2, H))}
    with pytest.raises(UsageError, match="proj_size"):
        from_torch(weights, "lstm")


def test_a_stack_of_both_directions_is_refused():
    weights = to_torch(cell_params("gru"), "gru") | to_torch(cell_params("gru"), "gru", reverse=True)
    with pytest.raises(UsageError, match="bidirectional"):
        stack_from_torch(weights, "gru")


def test_the_parameters_of_another_cell_are_refused():
    with pytest.raises(UsageError, match="recurrent_kernel"):
        to_torch(cell_params("lstm"), "gru")


def test_a_cell_without_an_input_matrix_is_refused():
    params = cell_params("rnn_tanh")
    del params["input"]["kernel"]
    with pytest.raises(UsageError, match="kernel"):
        to_torch(params, "rnn_tanh")


# Live


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")


def torch_module(torch, kind, **options):
    if kind.startswith("rnn_"):
        options["nonlinearity"] = kind.removeprefix("rnn_")
    return getattr(torch.nn, kind.split("_")[0].upper())(D, H, batch_first=True, **options)


@KINDS
def test_torch_computes_the_same_with_our_weights_in_both_directions(torch, kind):
    forward, backward = cell_params(kind), jax.tree.map(lambda a: -a, cell_params(kind))
    module = torch_module(torch, kind, bidirectional=True)
    arrays = to_torch(forward, kind) | to_torch(backward, kind, reverse=True)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    @partial(jax.jit, compiler_options=FAST)
    def ours(x):
        zeros = CELLS[NAMES[kind]](H).initialize_carry(jax.random.key(0), (B, D))
        ys = [run(kind, params, x, zeros, back)[1] for params, back in ((forward, False), (backward, True))]
        return jnp.concatenate(ys, axis=-1)

    x = normal(5, B, T, D)
    with torch.no_grad():
        expected = module(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(ours(x), expected, atol=1e-5)


@KINDS
def test_our_cell_computes_the_same_with_the_tensors_of_a_module_without_biases(torch, kind):
    module = torch_module(torch, kind, bias=False)
    x, zeros = normal(5, B, T, D), CELLS[NAMES[kind]](H).initialize_carry(jax.random.key(0), (B, D))
    with torch.no_grad():
        expected = module(torch.from_numpy(x))[0].numpy()
    params = from_torch(module.state_dict(), kind)
    _, ys = jax.jit(lambda x: run(kind, params, x, zeros), compiler_options=FAST)(x)
    np.testing.assert_allclose(ys, expected, atol=1e-5)


def test_tensors_that_ask_for_gradients_or_are_bfloat16_convert(torch):
    module = torch_module(torch, "gru").to(torch.bfloat16)
    params = from_torch(dict(module.named_parameters()), "gru")
    np.testing.assert_array_equal(params["recurrent_kernel"], module.weight_hh_l0.detach().float().numpy().T)
