"""What every recurrent cell must do, as functions that take a ``Subject`` and raise ``AssertionError``.

``test_cells.py`` runs them over the registry and ``test_foreign_cells.py`` over Flax's own cells;
``test_checks_can_fail.py`` shows for each of them a broken cell that it catches. To try a cell of your own::

    for check in CHECKS:
        check(Subject(MyCell, equations=my_equations))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.cells import unroll

B, T, D, H = 3, 6, 4, 5
#: Which steps are padding: none, a hole and a tail, all of them.
VALID = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
#: Resets at the first step, in the middle, at the last one, and (row 1, step 2) inside padding.
RESET = np.array([[0, 0, 1, 0, 0, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
#: For ``jax.jit``: compiles in two thirds of the time. Values and gradients of registered cells are compiled as users
#: have them (``optimise``), and in ``check_what_stands_in_padding_changes_no_bit`` compared bit for bit.
FAST = {"xla_backend_optimization_level": 0}
NOWHERE, EVERYWHERE = np.zeros((B, T), bool), np.ones((B, T), bool)


def on_host(tree):
    """NumPy arrays: slicing them compiles nothing."""
    return jax.tree.map(np.asarray, tree)


class Unrolled(nn.Module):
    """A cell under the name that ``nn.RNN`` gives it, so that both have the same parameter tree."""

    cell: nn.RNNCellBase
    form: Callable

    def __call__(self, x, carry=None, **options):
        return self.form(self.cell, x, carry, **options)


class Subject:
    """A cell under test: its parameters and data, all drawn at random, and its functions, each compiled once."""

    def __init__(
        self,
        make: Callable,
        *,
        equations: Callable | None = None,
        form: Callable = unroll,
        dtype: str = "float32",
        optimise: bool = False,
    ):
        self.make, self.form, self.dtype, self._optimise = make, form, np.dtype(dtype), optimise
        self._equations = equations
        self.traces = 0
        self.cell = make(features=H, param_dtype=self.dtype)
        self.module = Unrolled(self.cell, form)
        self._rng = np.random.default_rng(0)
        self.x = self._normal((B, T, D))
        zeros = self.cell.initialize_carry(jax.random.key(0), (B, D))
        self.carry = self.random(zeros)
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), self.x)
        self.params = jax.tree.map(lambda a: 0.4 * a, self.random(shapes["params"]["cell"]))
        self.per_row = self.random(zeros)
        self.per_step = jax.tree.map(lambda a: self._normal((B, T, *a.shape[1:])), zeros)
        self.weights_y = self._normal((B, T, H))
        self.weights_carry = self.random(zeros)

    @cached_property
    def wide(self) -> Subject:
        """The same cell in float64; make and use it under ``jax.enable_x64``."""
        return Subject(self.make, equations=self._equations, form=self.form, dtype="float64")

    @property
    def equations(self) -> Callable:
        assert self._equations is not None, (
            f"{self.make.__name__} has no equations: write them in NumPy, about ten lines, as a function "
            "(params, carry, x) -> (carry, y) in tests/contracts/equations.py, and name it in EQUATIONS."
        )
        return self._equations

    def _normal(self, shape):
        return self._rng.normal(size=shape).astype(self.dtype)

    def random(self, tree):
        """Normal numbers in the shape of ``tree``."""
        return jax.tree.map(lambda a: self._normal(a.shape), tree)

    def _apply(self, params, x, carry, options, reverse=False, length=None):
        return self.module.apply({"params": {"cell": params}}, x, carry, reverse=reverse, length=length, **options)

    @cached_property
    def _compiled(self):
        def counted(*args, **kwargs):
            self.traces += 1
            return self._apply(*args, **kwargs)

        return jax.jit(counted, static_argnames=("reverse", "length"), compiler_options=FAST)

    def unroll(self, x, carry=None, *, reverse=False, length=None, **options):
        return on_host(self._compiled(self.params, x, carry, options, reverse=reverse, length=length))

    def unroll_by_hand(self, x, carry, *, reset=NOWHERE, valid=EVERYWHERE, initial=None, per_step=False):
        """The same from single steps and NumPy selections: what ``reset``, ``valid`` and ``initial`` mean."""
        if initial is None:
            initial = jax.tree.map(np.zeros_like, carry)
        ys = []
        for t in range(x.shape[1]):
            start = jax.tree.map(lambda a, t=t: a[:, t] if per_step else a, initial)
            carry = jax.tree.map(lambda a, b, t=t: np.where(reset[:, t, None], a, b), start, carry)
            new, y = self.step(carry, x[:, t])
            carry = jax.tree.map(lambda a, b, t=t: np.where(valid[:, t, None], a, b), new, carry)
            ys.append(np.where(valid[:, t, None], y, 0))
        return carry, np.stack(ys, axis=1)

    @cached_property
    def _step(self):
        return jax.jit(lambda params, carry, x: self.cell.apply({"params": params}, carry, x), compiler_options=FAST)

    def step(self, carry, x):
        """The cell as Flax calls it, on one step's raw input [B, D]."""
        return on_host(self._step(self.params, carry, x))

    @cached_property
    def _vjp(self):
        def scalar(params, x, carry, initial, masks, weights_y, weights_carry):
            after, ys = self._apply(params, x, carry, {**masks, "initial": initial})
            terms = jax.tree.map(lambda a, w: jnp.sum(a * w), (ys, after), (weights_y, weights_carry))
            return sum(jax.tree.leaves(terms)), (after, ys)

        gradients = jax.value_and_grad(scalar, argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(gradients, compiler_options={} if self._optimise else FAST)

    def gradients(self, x=None, *, reset=NOWHERE, valid=EVERYWHERE, weights_y=None, weights_carry=None):
        """``((value, (carry, ys)), gradients of (params, x, carry, initial))`` of a weighted sum of all outputs."""
        x = self.x if x is None else x
        weights_y = self.weights_y if weights_y is None else weights_y
        weights_carry = self.weights_carry if weights_carry is None else weights_carry
        masks = {"reset": reset, "valid": valid}
        return on_host(self._vjp(self.params, x, self.carry, self.per_row, masks, weights_y, weights_carry))


def assert_close(actual: Any, expected: Any, tolerance: float = 2e-6) -> None:
    """The same tree with the same numbers, up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_identical(actual: Any, expected: Any) -> None:
    """The same tree with the same numbers, bit for bit; a NaN is never right."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(a, b)
        assert not np.isnan(a).any()


def _flip(tree):
    return jax.tree.map(lambda a: a[:, ::-1], tree)


def _any(tree) -> bool:
    return any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))


def check_a_loop_over_steps_equals_the_unroll(s: Subject) -> None:
    assert_close(s.unroll(s.x, s.carry), s.unroll_by_hand(s.x, s.carry))


def check_two_halves_equal_the_whole(s: Subject) -> None:
    middle, first = s.unroll(s.x[:, :3], s.carry)
    end, second = s.unroll(s.x[:, 3:], middle)
    assert_close((end, np.concatenate([first, second], axis=1)), s.unroll(s.x, s.carry))


def check_no_steps_leave_the_carry_alone(s: Subject) -> None:
    carry, ys = s.unroll(s.x[:, :0], s.carry)
    assert_identical(carry, s.carry)
    assert ys.shape == (B, 0, H)


def check_after_a_reset_all_is_as_at_a_fresh_start(s: Subject) -> None:
    reset = NOWHERE.copy()
    reset[:, 3] = True
    zeros = s.cell.initialize_carry(jax.random.key(0), (B, D))
    carry, ys = s.unroll(s.x, s.carry, reset=reset)
    assert_close((carry, ys[:, 3:]), s.unroll(s.x[:, 3:], zeros))


def check_nothing_from_before_a_reset_is_felt_after_it(s: Subject) -> None:
    weights_y = np.where(np.arange(T)[None, :, None] >= 2, s.weights_y, 0)
    reset = NOWHERE.copy()
    reset[:, 2] = True
    _, (_, in_x, in_carry, in_initial) = s.gradients(reset=reset, weights_y=weights_y)
    assert not _any((in_x[:, :2], in_carry))
    assert _any(in_x[:, 2:])
    assert _any(in_initial)


def check_reset_takes_the_state_given_for_each_row(s: Subject) -> None:
    (_, values), _ = s.gradients(reset=RESET, valid=VALID)
    assert_close(values, s.unroll_by_hand(s.x, s.carry, reset=RESET, valid=VALID, initial=s.per_row))


def check_reset_takes_the_state_given_for_each_step(s: Subject) -> None:
    assert_close(
        s.unroll(s.x, s.carry, reset=RESET, valid=VALID, initial=s.per_step),
        s.unroll_by_hand(s.x, s.carry, reset=RESET, valid=VALID, initial=s.per_step, per_step=True),
    )


def check_what_stands_in_padding_changes_no_bit(s: Subject) -> None:
    (_, values), gradients = s.gradients(reset=RESET, valid=VALID)
    for filler in (1e30, np.nan):
        filled = np.where(VALID[:, :, None], s.x, np.asarray(filler, s.dtype))
        (_, other_values), other_gradients = s.gradients(filled, reset=RESET, valid=VALID)
        assert_identical(other_values, values)
        assert_identical(other_gradients, gradients)
    assert not _any(values[1][~VALID])
    assert not _any(gradients[1][~VALID])


def check_a_row_of_length_zero_keeps_its_carry_and_gives_zeros(s: Subject) -> None:
    (_, (carry, ys)), _ = s.gradients(valid=VALID)
    assert_identical(jax.tree.map(lambda a: a[2], carry), jax.tree.map(lambda a: a[2], s.carry))
    assert not _any(ys[2])


def check_a_reset_acts_before_padding_freezes_the_carry(s: Subject) -> None:
    reset = NOWHERE.copy()
    reset[2, 3] = True
    (_, (carry, _)), _ = s.gradients(reset=reset, valid=VALID)
    assert_identical(jax.tree.map(lambda a: a[2], carry), jax.tree.map(lambda a: a[2], s.per_row))


def check_no_step_sees_a_later_input(s: Subject) -> None:
    nothing = jax.tree.map(np.zeros_like, s.weights_carry)
    for t in (0, 3):
        weights_y = np.where(np.arange(T)[None, :, None] == t, s.weights_y, 0)
        _, (_, in_x, _, _) = s.gradients(weights_y=weights_y, weights_carry=nothing)
        assert not _any(in_x[:, t + 1 :])
        assert _any(in_x[:, t])


def check_no_row_sees_another(s: Subject) -> None:
    def first(tree):
        return jax.tree.map(lambda a: np.where(np.arange(B).reshape(-1, *[1] * (a.ndim - 1)) == 0, a, 0), tree)

    _, (_, *others) = s.gradients(reset=RESET, weights_y=first(s.weights_y), weights_carry=first(s.weights_carry))
    assert not _any(jax.tree.map(lambda a: a[1:], others))
    assert _any(jax.tree.map(lambda a: a[:1], others))


def check_reverse_equals_flipping_by_hand(s: Subject) -> None:
    carry, ys = s.unroll(_flip(s.x), s.carry)
    assert_close(s.unroll(s.x, s.carry, reverse=True), (carry, _flip(ys)))


def check_reverse_with_padding_equals_flipping_by_hand(s: Subject) -> None:
    masks = {"reset": RESET, "valid": VALID, "initial": s.per_step}
    carry, ys = s.unroll(_flip(s.x), s.carry, **_flip(masks))
    assert_close(s.unroll(s.x, s.carry, reverse=True, **masks), (carry, _flip(ys)))


def check_every_part_of_every_parameter_gets_a_gradient(s: Subject) -> None:
    _, (in_params, _, _, _) = s.gradients()
    for path, leaf in jax.tree_util.tree_leaves_with_path(in_params):
        dead = np.flatnonzero(np.all(np.asarray(leaf) == 0, axis=tuple(range(leaf.ndim - 1))))
        assert not dead.size, f"The columns {dead} of {jax.tree_util.keystr(path)} get no gradient."


def check_gradients_agree_with_finite_differences(s: Subject) -> None:
    with jax.enable_x64(True):
        s = s.wide
        _, gradients = s.gradients(reset=RESET, valid=VALID)
        point = (s.params, s.x, s.carry, s.per_row)
        direction = s.random(point)

        def value(eps):
            there = jax.tree.map(lambda a, d: a + eps * d, point, direction)
            return s._vjp(*there, {"reset": RESET, "valid": VALID}, s.weights_y, s.weights_carry)[0][0]

        slope = (value(1e-6) - value(-1e-6)) / 2e-6
        expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)))
        np.testing.assert_allclose(slope, expected, rtol=1e-7, atol=1e-7)


def check_flax_rnn_gives_the_same_values_and_gradients(s: Subject) -> None:
    rnn = nn.RNN(s.cell, return_carry=True)
    assert jax.eval_shape(rnn.init, jax.random.key(0), s.x) == jax.eval_shape(s.module.init, jax.random.key(0), s.x)

    def scalar(params, x, carry):
        after, ys = rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)
        terms = jax.tree.map(lambda a, w: jnp.sum(a * w), (ys, after), (s.weights_y, s.weights_carry))
        return sum(jax.tree.leaves(terms)), (after, ys)

    gradients = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True), compiler_options=FAST)
    theirs = gradients(s.params, s.x, s.carry)
    ours = s.gradients()
    assert_close(ours[0][1], theirs[0][1])
    assert_close(ours[1][:3], theirs[1], 2e-5)


def check_flax_bidirectional_gives_the_same_values(s: Subject) -> None:
    both = nn.Bidirectional(nn.RNN(s.cell), nn.RNN(s.cell.copy()))
    params = {"forward_rnn": {"cell": s.params}, "backward_rnn": {"cell": s.params}}
    ys = np.asarray(jax.jit(both.apply, compiler_options=FAST)({"params": params}, s.x))
    zeros = jax.tree.map(np.zeros_like, s.carry)
    expected = [s.unroll(s.x, zeros)[1], s.unroll(s.x, zeros, reverse=True)[1]]
    assert_close(ys, np.concatenate(expected, axis=-1))


def check_a_second_call_with_the_carry_it_returned_does_not_retrace(s: Subject) -> None:
    carry, _ = s.unroll(s.x, s.cell.initialize_carry(jax.random.key(0), (B, D)))
    before = s.traces
    s.unroll(2 * s.x, carry)
    assert s.traces == before


# What only jaxgen's own cells promise:


def check_the_unroll_agrees_with_the_equations(s: Subject) -> None:
    def compare(s: Subject, tolerance: float) -> None:
        carry, ys = jax.tree.map(np.float64, s.carry), []
        for t in range(T):
            carry, y = s.equations(jax.tree.map(np.float64, s.params), carry, np.float64(s.x[:, t]))
            ys.append(y)
        assert_close(s.unroll(s.x, s.carry), (carry, np.stack(ys, axis=1)), tolerance)

    compare(s, 1e-5)
    with jax.enable_x64(True):
        compare(s.wide, 1e-10)


def check_an_unroll_without_input_is_the_bias_alone(s: Subject) -> None:
    carry, ys = jax.tree.map(np.float64, s.carry), []
    for _ in range(T):
        carry, y = s.equations(jax.tree.map(np.float64, s.params), carry, np.zeros((B, D)))
        ys.append(y)
    assert_close(s.unroll(None, s.carry, length=T), (carry, np.stack(ys, axis=1)), 1e-5)


def check_any_number_of_batch_axes_in_flax_rnn(s: Subject) -> None:
    rnn = nn.RNN(s.cell)
    params = {"params": {"cell": s.params}}
    zeros = jax.tree.map(np.zeros_like, s.carry)
    _, expected = s.unroll(s.x, zeros)
    assert_close(jax.jit(rnn.apply, compiler_options=FAST)(params, s.x[0]), expected[0])
    assert jax.eval_shape(rnn.apply, params, s.x[None]).shape == (1, B, T, H)


def check_the_state_is_at_least_float32(s: Subject) -> None:
    for dtype in (np.dtype("float32"), jnp.bfloat16):
        cell = s.make(features=H, param_dtype=dtype)
        module = Unrolled(cell, s.form)
        x = jnp.zeros((B, T, D), jnp.bfloat16)
        params = jax.eval_shape(module.init, jax.random.key(0), x)
        carry, _ = jax.eval_shape(module.apply, params, x)
        for leaf in jax.tree.leaves((carry, cell.initialize_carry(jax.random.key(0), (B, D)))):
            assert leaf.dtype == np.float32


def check_values_and_gradients_are_those_of_the_plain_scan(s: Subject) -> None:
    plain = Subject(s.make, form=partial(unroll, form="scan"))
    masks = {"reset": RESET, "valid": VALID}
    assert_close(s.gradients(**masks), plain.gradients(**masks), 1e-5)
    with jax.enable_x64(True):
        assert_close(s.wide.gradients(**masks), plain.wide.gradients(**masks), 1e-10)


#: For any Linen cell.
SHARED_CHECKS = (
    check_a_loop_over_steps_equals_the_unroll,
    check_nothing_from_before_a_reset_is_felt_after_it,
    check_reset_takes_the_state_given_for_each_row,
    check_reset_takes_the_state_given_for_each_step,
    check_what_stands_in_padding_changes_no_bit,
    check_a_row_of_length_zero_keeps_its_carry_and_gives_zeros,
    check_a_reset_acts_before_padding_freezes_the_carry,
    check_no_step_sees_a_later_input,
    check_no_row_sees_another,
    check_reverse_with_padding_equals_flipping_by_hand,
    check_every_part_of_every_parameter_gets_a_gradient,
    check_flax_rnn_gives_the_same_values_and_gradients,
    check_a_second_call_with_the_carry_it_returned_does_not_retrace,
)
#: For every cell of the registry.
CHECKS = (
    *SHARED_CHECKS,
    check_flax_bidirectional_gives_the_same_values,
    check_reverse_equals_flipping_by_hand,
    check_after_a_reset_all_is_as_at_a_fresh_start,
    check_two_halves_equal_the_whole,
    check_gradients_agree_with_finite_differences,
    check_no_steps_leave_the_carry_alone,
    check_the_unroll_agrees_with_the_equations,
    check_an_unroll_without_input_is_the_bias_alone,
    check_any_number_of_batch_axes_in_flax_rnn,
    check_the_state_is_at_least_float32,
    check_values_and_gradients_are_those_of_the_plain_scan,
)


def name_of(check: Callable) -> str:
    """A check as a test's name."""
    return check.__name__.removeprefix("check_")


__all__ = ["CHECKS", "SHARED_CHECKS", "Subject", "name_of"]
