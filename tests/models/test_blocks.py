"""Blocks: their equations in NumPy, masks, states and gradients, and models that contain them."""

from __future__ import annotations

from functools import cache, cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import CELLS, GRU, LSTM, Elman
from jaxgen.errors import UsageError
from jaxgen.models import CausalConv, Decoder, Encoder, GriffinBlock, LanguageModel, ResidualBlock, Stack
from jaxgen.models.blocks import BLOCKS, block_factory, layers_from_names
from jaxgen.testing import cells as checks
from jaxgen.testing.cells import Subject
from jaxgen.testing.checking import name_of

B, T, H, V = 3, 7, 4, 6
#: Which steps are padding: none, a hole and a tail, all of them.
VALID = np.array([[1] * 7, [0, 1, 0, 0, 1, 1, 0], [0] * 7], bool).T
#: Resets in the middle, at the first and the last step, and in padding.
RESET = np.array([[0, 0, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]], bool).T
SLOW = pytest.mark.slow
FAST = {"xla_backend_optimization_level": 0}
draw = np.random.default_rng(0)


def normal(*shape):
    return draw.normal(size=shape).astype(np.float32)


def like(tree, scale=0.7):
    return jax.tree.map(lambda a: scale * normal(*a.shape), tree)


@partial(jax.jit, static_argnums=0, static_argnames="reverse", compiler_options=FAST)
def apply(module, params, *args, **kwargs):
    return module.apply({"params": params}, *args, **kwargs)


def close(got, wanted, tolerance=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, wanted)


# --- the convolution


def convolve_by_hand(params, x, tail, reset, valid, initial, timed):
    """Step by step: the last inputs in a list for each row."""
    k, ys, after = params["kernel"].shape[0], np.zeros_like(x), np.zeros_like(tail)
    for b in range(x.shape[1]):
        last = list(tail[b])
        for t in range(x.shape[0]):
            if reset[t, b]:
                last = list(initial[t, b] if timed else initial[b])
            if valid[t, b]:
                window = [*last, x[t, b]]
                ys[t, b] = sum(w * a for w, a in zip(params["kernel"], window)) + params["bias"]
                last = window[1:]
        after[b] = np.reshape(last, (k - 1, x.shape[-1]))
    return after, ys


@pytest.mark.parametrize(
    ("width", "steps", "reverse"),
    [
        (4, T, False),
        (4, 2, True),
        *(pytest.param(*case, marks=SLOW) for case in ((1, T, False), (2, T, True), (3, 0, False))),
    ],
)
def test_the_convolution_equals_a_loop_over_steps(width, steps, reverse):
    module = CausalConv(H, width)
    params = {"kernel": normal(width, H), "bias": normal(H)}
    x, tail, per_row, per_step = normal(T, B, H), *(normal(*n, B, width - 1, H) for n in ((), (), (T,)))
    x, per_step, reset, valid = (a[:steps] for a in (x, per_step, RESET, VALID))
    flip = (lambda a: a[::-1]) if reverse else (lambda a: a)
    run = jax.jit(partial(module.apply, {"params": params}, reverse=reverse), compiler_options=FAST)
    for initial, timed in ((per_row, False), (per_step, True)):
        after, ys = run(x, tail, reset=reset, valid=valid, initial=initial)
        masks = flip(reset), flip(valid), flip(initial) if timed else initial
        wanted = convolve_by_hand(params, flip(x), tail, *masks, timed)
        close((after, np.where(valid[..., None], ys, 0)), (wanted[0], flip(wanted[1])))
    plain = convolve_by_hand(params, flip(x), tail, np.zeros_like(reset), np.ones_like(valid), None, False)
    close(run(x, tail), (plain[0], flip(plain[1])))


# --- the equations


def rms(x, p):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * p["scale"]


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def affine(x, p):
    return x @ p["kernel"] + p["bias"]


def elman_by_hand(p, x, h):
    ys = []
    for z in affine(x, p["input"]):
        h = np.tanh(z + h @ p["recurrent_kernel"])
        ys.append(h)
    return h, np.stack(ys)


def test_the_equations_of_a_residual_block():
    block = ResidualBlock(Elman, H, norm="layer", mlp=1.5, conv=0, layers=2)
    x, h = normal(T, B, H), normal(B, H)
    p = like(jax.eval_shape(block.init, jax.random.key(0), x, h)["params"])
    after, ys = elman_by_hand(p["recurrence"], layer_norm(x, p["cell_norm"]), h)
    middle = x + affine(ys, p["output"])
    wanted = middle + affine(gelu(affine(layer_norm(middle, p["mlp_norm"]), p["up"])), p["down"])
    assert p["up"]["kernel"].shape == (H, 6)
    close(apply(block, p, x, h), (after, wanted))


def test_the_equations_of_a_griffin_block_which_is_the_last():
    block = GriffinBlock(Elman, H, expand=1.5)
    x, carry = normal(T, B, H), (normal(B, 3, 6), normal(B, 6))
    p = like(jax.eval_shape(block.init, jax.random.key(0), x, carry)["params"])
    u, gate = np.split(affine(rms(x, p["cell_norm"]), p["input"]), 2, axis=-1)
    whole = np.ones((T, B), bool)
    tail, u = convolve_by_hand(p["convolution"], u, carry[0], ~whole, whole, None, False)
    state, ys = elman_by_hand(p["recurrence"], u, carry[1])
    middle = x + affine(ys * gelu(gate), p["output"])
    a, b = np.split(affine(rms(middle, p["mlp_norm"]), p["up"]), 2, axis=-1)
    assert a.shape[-1] == 3 * H
    wanted = rms(middle + affine(gelu(a) * b, p["down"]), p["final_norm"])
    close(apply(block, p, x, carry), ((tail, state), wanted))


# --- the contract of cells


def unroll_block(block, x, carry=None, *, initial=None, reset=None, valid=None, length=None, **options):
    """The arguments of ``unroll``, batch-major."""
    swap = lambda a: jnp.swapaxes(a, 0, 1)  # noqa: E731
    zeros = block.initialize_carry(jax.random.key(0), (x.shape[0], x.shape[-1]))
    if initial is not None:
        initial = jax.tree.map(lambda a, b: swap(a) if a.ndim > b.ndim else a, initial, zeros)
    masks = {"initial": initial, "reset": None if reset is None else swap(reset)}
    masks["valid"] = None if valid is None else swap(valid)
    carry, ys = block(swap(x), zeros if carry is None else carry, **masks, **options)
    return carry, swap(ys)


class BlockSubject(Subject):
    @cached_property
    def wide(self):
        return BlockSubject(self.make, form=self.form, dtype="float64", forms=[])

    @cached_property
    def _step(self):
        def step(params, carry, x):
            carry, ys = self.cell.apply({"params": params}, x[None], carry)
            return carry, ys[0]

        return jax.jit(step, compiler_options=FAST)


@cache
def subject(name, cell):
    def make(features, param_dtype):
        return BLOCKS_TO_CHECK[name](partial(CELLS[cell], param_dtype=param_dtype), features)

    return BlockSubject(make, form=unroll_block, forms=[])


#: Other than the defaults.
OPTIONS = {"griffin": {"expand": 1.5, "mlp": 1.0}, "residual": {"conv": 0, "norm": "layer", "layers": 2}}
BLOCKS_TO_CHECK = {name: partial(kind, **OPTIONS.get(name, {})) for name, kind in BLOCKS.items() if kind is not None}
#: Those of ``Cell`` that a block passes too.
ALSO = {
    checks.check_after_a_reset_all_is_as_at_a_fresh_start,
    checks.check_gradients_agree_with_finite_differences,
    checks.check_no_steps_leave_the_carry_alone,
    checks.check_one_step_is_reset_and_is_padding_as_many_are,
    checks.check_reverse_equals_flipping_by_hand,
    checks.check_two_halves_equal_the_whole,
}
#: Those that compile one more function each.
COSTLY = {
    checks.check_every_part_of_every_parameter_gets_a_gradient,
    checks.check_nothing_from_before_a_reset_is_felt_after_it,
    checks.check_reset_takes_the_state_given_for_each_step,
    checks.check_reverse_with_padding_equals_flipping_by_hand,
}
#: A block is not in Flax's RNN, and is not called with one step.
ONLY_CELLS = {
    checks.check_flax_rnn_gives_the_same_values_and_gradients,
    checks.check_one_step_of_time_is_one_call_of_the_cell,
}
CASES = [
    pytest.param(
        *(block, cell, check),
        marks=[SLOW] if (block, cell) != ("griffin", "lstm") or check in ALSO | COSTLY else [],
        id=f"{block}-{cell}-{name_of(check)}",
    )
    for block in BLOCKS_TO_CHECK
    for cell in CELLS
    for check in checks.CHECKS
    if check in ALSO or check in set(checks.SHARED_CHECKS) - ONLY_CELLS
]


@pytest.mark.parametrize(("block", "cell", "check"), CASES)
def test_a_block_keeps_the_contract_of_cells(block, cell, check):
    if cell == "elman-relu" and check is checks.check_every_part_of_every_parameter_gets_a_gradient:
        pytest.skip("units of a ReLU can be 0 at every step")
    check(subject(block, cell))


def test_dropout_of_a_row_depends_on_its_own_key_only():
    block = ResidualBlock(Elman, H, dropout=0.5)
    keys = jax.random.split(jax.random.key(0), B)
    x, carry = normal(T, B, H), (normal(B, 3, H), normal(B, H))
    params = like(jax.eval_shape(block.init, jax.random.key(0), x, carry)["params"])
    _, whole = apply(block, params, x, carry, row_keys=keys)
    others = np.array([1, 0, 1])  # row 1 among other rows, in another place
    _, moved = apply(block, params, x[:, others], jax.tree.map(lambda a: a[others], carry), row_keys=keys[others])
    close(moved[:, 0], whole[:, 1])
    _, without = apply(block, params, x, carry)
    assert np.all(np.any(np.asarray(whole != without), axis=-1))


# --- models


@pytest.mark.parametrize("block", [None, GriffinBlock])
def test_layers_repeat_a_pattern_of_cells(block):
    model = LanguageModel(V, (GRU, LSTM), hidden=H, layers=3, block=block)
    states = model.cell_states(B)
    assert [len(jax.tree.leaves(state)) for state in states] == [1, 2, 1]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]["stack"]
    cells = [layer if block is None else layer["recurrence"] for layer in shapes.values()]
    assert [cell["recurrent_kernel"].shape for cell in cells] == [(H, 3 * H), (H, 4 * H), (H, 3 * H)]


def test_only_the_last_block_normalises_its_output():
    stack = Stack([ResidualBlock(Elman, H, layer=layer, layers=2) for layer in range(2)])
    carries = [(jnp.zeros((B, 3, H)), jnp.zeros((B, H)))] * 2
    shapes = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((T, B, H)), carries)["params"]
    assert ["final_norm" in layer for layer in shapes.values()] == [False, True]


def test_a_condition_sets_the_state_of_the_cell_and_leaves_no_earlier_inputs():
    model = LanguageModel(V, LSTM, hidden=H, condition=2, block=ResidualBlock)
    params = like(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    condition = normal(T, B, 2)
    ((tail, (c, h)),) = model.apply({"params": params}, condition, method="initial_states")
    flat = condition @ params["condition_kernel"] + params["condition_bias"]
    close(tail, np.zeros((T, B, 3, H)))
    close((c, h), (flat[..., :H], np.tanh(flat[..., H:])))


def test_a_decoder_starts_the_cells_in_its_blocks_from_those_of_the_encoder():
    decoder = Decoder(V, GRU, hidden=H, layers=2, block=GriffinBlock, attention="general")
    finals, values = [(normal(B, 5), normal(B, 2))], normal(B, 3, 6)
    start = partial(decoder.init_with_output, method="init_decoder")
    (carry, _), _ = jax.jit(start, compiler_options=FAST)(jax.random.key(0), finals, values)
    assert [tail.shape for tail, _ in carry] == [(B, 3, H)] * 2
    assert not any(np.any(tail) for tail, _ in carry)
    assert all(np.any(state) for _, state in carry)


@SLOW
def test_both_directions_of_an_encoder_add_to_one_stream():
    encoder = Encoder(V, Elman, hidden=H, layers=2, block=ResidualBlock, bidirectional=True)
    tokens = draw.integers(0, V, (B, T))
    valid = np.arange(T) < np.array([[T], [3], [0]])
    params = like(jax.eval_shape(encoder.init, jax.random.key(0), tokens)["params"])
    encoded = apply(encoder, params, tokens, valid)

    def layer(x, place, direction, reverse):
        block = ResidualBlock(Elman, H, layer=place, layers=2)
        zeros = block.initialize_carry(jax.random.key(0), (B, H))
        return apply(block, params[f"{direction}_{place}"], x, zeros, valid=valid.T, reverse=reverse)

    x = params["embedding"]["embedding"][np.where(valid, tokens, 0)].swapaxes(0, 1)
    _, forwards = layer(x, 0, "forwards", False)
    _, backwards = layer(x, 0, "backwards", True)
    x = x + (forwards - x) + (backwards - x)
    (_, last), forwards = layer(x, 1, "forwards", False)
    _, backwards = layer(x, 1, "backwards", True)
    close(encoded.outputs, np.concatenate([forwards, backwards], axis=-1).swapaxes(0, 1))
    close(encoded.finals[1][0], last)
    assert not np.any(np.asarray(encoded.outputs)[~valid])


class PlainBelow(LanguageModel):
    """A cell without a block under a residual block."""

    @nn.nowrap
    def make_stack(self):
        return Stack([GRU(self.hidden), ResidualBlock(LSTM, self.hidden)], self.dropout)


def test_a_subclass_builds_its_own_layers():
    model = PlainBelow(V, hidden=H)
    tokens = jnp.zeros((B, T), jnp.int32)
    (carry, logits), params = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
    assert logits.shape == (B, T, V)
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, model.initial_carry(B))
    assert set(params["params"]["stack"]["cells_0"]) == {"input", "recurrent_bias", "recurrent_kernel"}
    assert "final_norm" in params["params"]["stack"]["cells_1"]


# --- names and options


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"block": "residul"}, "residual"),
        ({"block_options": {"mlp": 2.0}}, "plain"),
        ({"block": "griffin", "block_options": {"convolution": 3}}, "conv"),
        ({"block": "griffin", "block_options": {"features": 3}}, "features"),
        ({"block": "griffin", "block_options": {"conv": 2.5}}, "whole"),
        ({"block": "griffin", "block_options": {"gate": "maybe"}}, "true"),
        ({"block": "griffin", "block_options": {"mlp": "wide"}}, "number"),
        ({"layers_pattern": "gru,lstn"}, "lstm"),
        ({"layers_pattern": "gru,"}, "lstm"),
        ({"layers_pattern": ""}, "lstm"),
        ({"cell_options": {"forms": 3.0}}, "forms"),
        ({"layers_pattern": "gru,elman", "cell_options": {"forget_bias": 1.0}}, "forget_bias"),
    ],
)
def test_wrong_names_and_options_are_refused(given, word):
    with pytest.raises(UsageError, match=word):
        layers_from_names(**{"cell": "lstm", "cell_options": {}, **given})


@pytest.mark.parametrize("option", [{"norm": "batch"}, {"conv": -1}, {"conv": 1000}, {"mlp": -1.0}, {"expand": 0.0}])
def test_values_that_a_block_cannot_use_are_refused(option):
    with pytest.raises(UsageError, match=next(iter(option))):
        block_factory("residual", option)(cell=LSTM, features=H)


def test_options_of_a_pattern_reach_the_cells_that_have_them():
    made = layers_from_names(
        cell="lstm",
        cell_options={"forget_bias": 2.0, "activation": "relu"},
        layers_pattern="elman, lstm",
        block="griffin",
        block_options={"conv": 3.0, "gate": "false", "mlp": 2},
        hidden=H,
    )
    elman, lstm = made["cell"]
    assert (elman(features=H).activation, lstm(features=H).forget_bias) == ("relu", 2.0)
    block = made["block"](cell=elman, features=H)
    assert (block.conv, block.gate, block.mlp) == (3, False, 2.0)


def test_attention_inside_the_recurrence_needs_plain_layers():
    with pytest.raises(UsageError, match="plain"):
        Decoder(V, GRU, hidden=H, block=ResidualBlock, attention="additive")
