"""The contract of recurrent cells: ``check_cell``, and its checks, functions that take a ``Subject``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec

from jaxgen.cells import Cell, forms_of, unroll
from jaxgen.models import LanguageModel
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.testing.checking import assert_close, assert_identical, operations, require, run_checks
from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.step import create_state, train_step, train_steps
from jaxgen.types import Batch

B, T, D, H = 3, 6, 5, 8
#: Steps of a long sequence: more than two chunks of the chunked form, and a part of one. ``LONG`` takes minutes.
SHORT, LONG = 77, 4096
#: Which steps are padding: none, a hole and a tail, all of them.
VALID = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
#: Resets at the first step, in the middle, at the last one, and (row 1, step 2) inside padding.
RESET = np.array([[0, 0, 1, 0, 0, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
#: For ``jax.jit``: compiles in two thirds of the time.
FAST = {"xla_backend_optimization_level": 0}
NOWHERE, EVERYWHERE = np.zeros((B, T), bool), np.ones((B, T), bool)


class OverTime(NamedTuple):
    """Equations of a whole sequence, for a cell that is easier to write so (attention).

    ``(params, x) -> y`` in NumPy, with the inputs x [B, T, D] and the outputs y [B, T, H] from the zero state.
    """

    function: Callable


def check_cell(make: Callable, equations: Callable | OverTime | None = None, *, strict: bool = False) -> None:
    """Run every check of the cells' contract: on a subclass of ``Cell``, or the shared ones on another Linen cell.

    Args:
        make: the cell's class, or a ``functools.partial`` of it with options: it is called with ``features`` and
            ``param_dtype``.
        equations: one step in NumPy, ``(params, carry, x) -> (carry, y)`` with x [B, D], or ``OverTime``. Without
            them nothing tells whether the cell computes what it should.
        strict: with ``jax_numpy_rank_promotion="raise"`` and ``jax_numpy_dtype_promotion="strict"``, as the cells of
            the library are tested. By default the settings of the caller hold.

    Raises:
        AssertionError: a sentence for each check that fails.
    """
    subject = Subject(make, equations=equations)
    with contextlib.ExitStack() as stack:
        if strict:
            stack.enter_context(jax.numpy_rank_promotion("raise"))
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
        run_checks(subject.name, [check_the_state_is_real_arrays_with_a_row_axis], subject)  # or no other makes sense
        run_checks(subject.name, CHECKS if isinstance(subject.cell, Cell) else SHARED_CHECKS, subject)


def on_host(tree: Any) -> Any:
    """NumPy arrays: slicing them compiles nothing."""
    return jax.tree.map(np.asarray, tree)


def where_rows(mask: np.ndarray, on_true: Any, on_false: Any) -> Any:
    """``on_true`` in the rows of ``mask`` [B] and ``on_false`` in the others; leaves of any rank."""
    return jax.tree.map(lambda a, b: np.where(mask.reshape(-1, *[1] * (np.ndim(b) - 1)), a, b), on_true, on_false)


class Unrolled(nn.Module):
    """A cell under the name that ``nn.RNN`` gives it, so that both have the same parameter tree."""

    cell: nn.RNNCellBase
    form: Callable

    def __call__(self, x, carry=None, **options):
        return self.form(self.cell, x, carry, **options)


class Subject:
    """A cell under test: its parameters and data, drawn at random, and its functions, each compiled once.

    Args:
        make: called with ``features`` and ``param_dtype``.
        equations: as in ``check_cell``.
        form: ``unroll``, or a function with its arguments.
        dtype: of the parameters and the data. Those of float64 are the numbers of float32.
        forms: names of the forms that are compared with the plain scan, and lowered; by default all that apply.
    """

    def __init__(
        self,
        make: Callable,
        *,
        equations: Callable | OverTime | None = None,
        form: Callable = unroll,
        dtype: str = "float32",
        forms: Sequence[str] | None = None,
    ) -> None:
        self.make, self.equations, self.form, self.dtype = make, equations, form, np.dtype(dtype)
        self.traces = 0
        self.cell = make(features=H, param_dtype=self.dtype)
        self.name = type(self.cell).__name__
        self.module = Unrolled(self.cell, form)
        self.forms = forms_of(self.cell) if forms is None else list(forms)
        self._made: dict[str, Subject] = {}

    @cached_property
    def wide(self) -> Subject:
        """The same cell in float64; make and use it under ``jax.enable_x64``."""
        return Subject(self.make, equations=self.equations, form=self.form, dtype="float64")

    def in_form(self, name: str) -> Subject:
        """The same cell in the form ``name``."""
        if name not in self._made:
            self._made[name] = Subject(self.make, form=partial(self.form, form=name))
        return self._made[name]

    # --- data

    def normal(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        """Normal numbers, of float32 in any dtype."""
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(self.dtype)

    def normal_like(self, seed: int, tree: Any) -> Any:
        """Normal numbers in the shape of ``tree``."""
        leaves, structure = jax.tree.flatten(tree)
        drawn = [self.normal(1000 * seed + i, leaf.shape) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, drawn)

    def states_like(self, seed: int, tree: Any) -> Any:
        """States at random: ``clamp_state`` of normal numbers."""
        clamp = getattr(self.cell, "clamp_state", lambda values: values)
        numbers = jax.tree.map(np.float32, self.normal_like(seed, tree))
        return jax.tree.map(lambda a: np.asarray(a, self.dtype), on_host(clamp(numbers)))

    @cached_property
    def zeros(self) -> Any:
        """The carry to begin from."""
        return on_host(self.cell.initialize_carry(jax.random.key(0), (B, D)))

    @cached_property
    def params(self) -> Any:
        """Small enough that no recurrence is chaotic: that would enlarge rounding without a bound."""
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), self.x)
        return jax.tree.map(lambda a: a * np.asarray(0.25, self.dtype), self.normal_like(1, shapes["params"]["cell"]))

    @cached_property
    def x(self) -> np.ndarray:
        return self.normal(2, (B, T, D))

    @cached_property
    def carry(self) -> Any:
        return self.states_like(3, self.zeros)

    @cached_property
    def per_row(self) -> Any:
        """A state for each row."""
        return self.states_like(4, self.zeros)

    @cached_property
    def per_step(self) -> Any:
        """A state for each row and step."""
        steps = [self.states_like(10 + t, self.zeros) for t in range(T)]
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *steps)

    @cached_property
    def weights_y(self) -> np.ndarray:
        return self.normal(5, (B, T, H))

    @cached_property
    def weights_carry(self) -> Any:
        return self.normal_like(6, self.zeros)

    # --- functions

    def _apply(self, params, x, carry, options, reverse=False, length=None):
        return self.module.apply({"params": {"cell": params}}, x, carry, reverse=reverse, length=length, **options)

    @cached_property
    def _compiled(self) -> Callable:
        def counted(*args, **kwargs):
            self.traces += 1
            return self._apply(*args, **kwargs)

        return jax.jit(counted, static_argnames=("reverse", "length"), compiler_options=FAST)

    def unroll(self, x, carry=None, *, reverse=False, length=None, **options) -> Any:
        return on_host(self._compiled(self.params, x, carry, options, reverse=reverse, length=length))

    def unroll_by_hand(self, x, carry, *, reset=NOWHERE, valid=EVERYWHERE, initial=None, per_step=False) -> Any:
        """The same from single steps and NumPy selections: what ``reset``, ``valid`` and ``initial`` mean."""
        initial = self.zeros if initial is None else initial
        ys = []
        for t in range(x.shape[1]):
            start = jax.tree.map(lambda a, t=t: a[:, t], initial) if per_step else initial
            carry = where_rows(reset[:, t], start, carry)
            new, y = self.step(carry, x[:, t])
            carry = where_rows(valid[:, t], new, carry)
            ys.append(where_rows(valid[:, t], y, np.zeros_like(y)))
        return carry, np.stack(ys, axis=1)

    @cached_property
    def _step(self) -> Callable:
        return jax.jit(lambda params, carry, x: self.cell.apply({"params": params}, carry, x), compiler_options=FAST)

    def step(self, carry, x, params=None) -> Any:
        """The cell as Flax calls it, on one step's raw input [B, D]."""
        return on_host(self._step(self.params if params is None else params, carry, x))

    @cached_property
    def _vjp(self) -> Callable:
        def scalar(params, x, carry, initial, masks, weights_y, weights_carry, reverse):
            after, ys = self._apply(params, x, carry, {**masks, "initial": initial}, reverse)
            return weighted_sum((ys, after), (weights_y, weights_carry)), (after, ys)

        return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2, 3), has_aux=True), static_argnums=7)

    def gradients(
        self,
        params=None,
        x=None,
        carry=None,
        initial=None,
        *,
        reset=NOWHERE,
        valid=EVERYWHERE,
        weights_y=None,
        weights_carry=None,
        reverse=False,
    ) -> Any:
        """``((value, (carry, ys)), gradients of (params, x, carry, initial))`` of a weighted sum of all outputs."""

        def given(value, default):
            return default if value is None else value

        point = given(params, self.params), given(x, self.x), given(carry, self.carry), given(initial, self.per_row)
        weights = given(weights_y, self.weights_y), given(weights_carry, self.weights_carry)
        return on_host(self._vjp(*point, {"reset": reset, "valid": valid}, *weights, reverse))


def weighted_sum(outputs: Any, weights: Any) -> Any:
    """A number that every output has a part in."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, w: jnp.sum(a * w), outputs, weights)))


def _flip(tree):
    return jax.tree.map(lambda a: a[:, ::-1], tree)


def _any(tree) -> bool:
    return any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))


def check_the_state_is_real_arrays_with_a_row_axis(s: Subject) -> None:
    """A carry is a pytree of arrays of float32 or float64 with the batch as their first axis, of any rank."""
    carry = jax.eval_shape(lambda: s.cell.initialize_carry(jax.random.key(0), (B, D)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        name = f"`initialize_carry` gives an array{jax.tree_util.keystr(path)} of"
        require(
            not jnp.issubdtype(leaf.dtype, jnp.complexfloating),
            f"{name} {leaf.dtype}: store a complex state as a pair of real arrays, (real, imaginary).",
        )
        require(jnp.issubdtype(leaf.dtype, jnp.floating), f"{name} {leaf.dtype}: store it as float32.")
        require(leaf.ndim and leaf.shape[0] == B, f"{name} shape {leaf.shape} for inputs of shape {(B, D)}.")
    params = jax.eval_shape(s.module.init, jax.random.key(0), s.x)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        require(
            not jnp.issubdtype(leaf.dtype, jnp.complexfloating),
            f"The parameter {jax.tree_util.keystr(path)} is {leaf.dtype}: store it as a pair of real arrays.",
        )
    ys = jax.eval_shape(s.module.apply, params, s.x)[1]
    require(ys.shape == (B, T, H), f"The outputs have the shape {ys.shape}: with features={H} it must be {(B, T, H)}.")


def check_a_loop_over_steps_equals_the_unroll(s: Subject) -> None:
    """`project` gets all time steps at once and must treat each by itself."""
    assert_close("The unroll and a loop over steps", s.unroll(s.x, s.carry), s.unroll_by_hand(s.x, s.carry), 5e-6)


def check_two_halves_equal_the_whole(s: Subject) -> None:
    """Everything that a step needs of the past must be in the carry."""
    middle, first = s.unroll(s.x[:, :3], s.carry)
    end, second = s.unroll(s.x[:, 3:], middle)
    halves = end, np.concatenate([first, second], axis=1)
    assert_close("Two halves and the whole sequence", halves, s.unroll(s.x, s.carry), 5e-6)


def check_no_steps_leave_the_carry_alone(s: Subject) -> None:
    """A sequence of length zero returns the carry that was given and outputs of shape [B, 0, H]."""
    carry, ys = s.unroll(s.x[:, :0], s.carry)
    assert_identical("The carries before and after no steps", carry, s.carry)
    require(ys.shape == (B, 0, H), f"The outputs of no steps have the shape {ys.shape}.")


def check_after_a_reset_all_is_as_at_a_fresh_start(s: Subject) -> None:
    """A reset replaces the whole carry, by zeros where no `initial` is given."""
    reset = NOWHERE.copy()
    reset[:, 3] = True
    carry, ys = s.unroll(s.x, s.carry, reset=reset)
    expected = s.unroll(s.x[:, 3:], s.zeros)
    assert_close("What follows a reset and a fresh start", (carry, ys[:, 3:]), expected, 5e-6)


def check_nothing_from_before_a_reset_is_felt_after_it(s: Subject) -> None:
    """A reset replaces the whole carry, and nothing may reach a step past it."""
    weights_y = np.where(np.arange(T)[None, :, None] >= 2, s.weights_y, 0)
    reset = NOWHERE.copy()
    reset[:, 2] = True
    _, (_, in_x, in_carry, in_initial) = s.gradients(reset=reset, weights_y=weights_y)
    require(not _any((in_x[:, :2], in_carry)), "What comes before a reset has a gradient through what comes after it.")
    require(_any(in_x[:, 2:]), "The inputs after a reset have no gradient.")
    require(_any(in_initial), "The state after a reset has no gradient.")


def check_reset_takes_the_state_given_for_each_row(s: Subject) -> None:
    """`initial` [B, ...] is the state after a reset; where `valid` is false the carry stays and the output is zero."""
    (_, values), _ = s.gradients(reset=RESET, valid=VALID)
    expected = s.unroll_by_hand(s.x, s.carry, reset=RESET, valid=VALID, initial=s.per_row)
    assert_close("The unroll with masks and a loop over steps", values, expected, 5e-6)


def check_reset_takes_the_state_given_for_each_step(s: Subject) -> None:
    """`initial` [B, T, ...] has a state of its own for each step."""
    masks = {"reset": RESET, "valid": VALID, "initial": s.per_step}
    expected = s.unroll_by_hand(s.x, s.carry, **masks, per_step=True)
    actual = s.unroll(s.x, s.carry, **masks)
    assert_close("The unroll with a state for each step and a loop over steps", actual, expected, 5e-6)


def check_what_stands_in_padding_changes_no_bit(s: Subject) -> None:
    """Select by `valid` (`jnp.where`): a product with zero keeps a NaN."""
    (_, values), gradients = s.gradients(reset=RESET, valid=VALID)
    for filler in (1e30, np.nan):
        filled = np.where(VALID[:, :, None], s.x, np.asarray(filler, s.dtype))
        (_, other_values), other_gradients = s.gradients(x=filled, reset=RESET, valid=VALID)
        assert_identical(f"Values with {filler:g} in padding", other_values, values)
        assert_identical(f"Gradients with {filler:g} in padding", other_gradients, gradients)
    require(not _any(values[1][~VALID]), "The outputs in padding are not zero.")
    require(not _any(gradients[1][~VALID]), "Inputs in padding have a gradient.")


def check_a_row_of_length_zero_keeps_its_carry_and_gives_zeros(s: Subject) -> None:
    """Where `valid` is false the carry stays and the output is zero."""
    (_, (carry, ys)), _ = s.gradients(valid=VALID)
    before, after = (jax.tree.map(lambda a: a[2], each) for each in (s.carry, carry))
    assert_identical("The carries before and after a row of padding", after, before)
    require(not _any(ys[2]), "The outputs of a row of padding are not zero.")


def check_a_reset_acts_before_padding_freezes_the_carry(s: Subject) -> None:
    """At a step that is both reset and padding, the row takes `initial` and keeps it."""
    reset = NOWHERE.copy()
    reset[2, 3] = True
    (_, (carry, _)), _ = s.gradients(reset=reset, valid=VALID)
    initial, after = (jax.tree.map(lambda a: a[2], each) for each in (s.per_row, carry))
    assert_identical("The carry of a row that was reset inside padding and its initial state", after, initial)


def check_no_step_sees_a_later_input(s: Subject) -> None:
    """The output of a step may depend on its own input and on earlier ones."""
    nothing = jax.tree.map(np.zeros_like, s.weights_carry)
    for t in (0, 3):
        weights_y = np.where(np.arange(T)[None, :, None] == t, s.weights_y, 0)
        _, (_, in_x, _, _) = s.gradients(weights_y=weights_y, weights_carry=nothing)
        require(not _any(in_x[:, t + 1 :]), f"The output of step {t} has a gradient in later inputs.")
        require(_any(in_x[:, t]), f"The output of step {t} does not depend on its input.")


def check_no_row_sees_another(s: Subject) -> None:
    """Rows of the batch are independent: reduce over the last axes, never over the first."""
    first = np.arange(B) == 0
    weights = [where_rows(first, w, jax.tree.map(np.zeros_like, w)) for w in (s.weights_y, s.weights_carry)]
    _, (_, *others) = s.gradients(reset=RESET, weights_y=weights[0], weights_carry=weights[1])
    require(not _any(jax.tree.map(lambda a: a[1:], others)), "The results of row 0 have a gradient in other rows.")
    require(_any(jax.tree.map(lambda a: a[:1], others)), "The results of row 0 have no gradient in its own data.")


def check_reverse_equals_flipping_by_hand(s: Subject) -> None:
    """`reverse` runs from the last step to the first, and the outputs keep their places."""
    carry, ys = s.unroll(_flip(s.x), s.carry)
    actual = s.unroll(s.x, s.carry, reverse=True)
    assert_close("The reverse unroll and one of the flipped sequence", actual, (carry, _flip(ys)), 5e-6)


def check_reverse_with_padding_equals_flipping_by_hand(s: Subject) -> None:
    """`reverse` runs from the last step to the first, also through masks."""
    masks = {"reset": RESET, "valid": VALID, "initial": s.per_step}
    carry, ys = s.unroll(_flip(s.x), s.carry, **_flip(masks))
    actual = s.unroll(s.x, s.carry, reverse=True, **masks)
    assert_close("The reverse unroll with masks and one of the flipped sequence", actual, (carry, _flip(ys)), 5e-6)


def check_every_part_of_every_parameter_gets_a_gradient(s: Subject) -> None:
    """A parameter that nothing depends on is left out; a slice that no gate reads is a wrong index."""
    _, (in_params, _, _, _) = s.gradients()
    for path, leaf in jax.tree_util.tree_leaves_with_path(in_params):
        dead = np.flatnonzero(np.all(np.asarray(leaf) == 0, axis=tuple(range(leaf.ndim - 1))))
        require(not dead.size, f"The columns {dead} of {jax.tree_util.keystr(path)} get no gradient.")


def check_gradients_agree_with_finite_differences(s: Subject) -> None:
    """A derivative that is written by hand must be that of the equations."""
    with jax.enable_x64(True):
        s = s.wide
        _, gradients = s.gradients(reset=RESET, valid=VALID)
        point = (s.params, s.x, s.carry, s.per_row)
        direction = s.normal_like(7, point)

        def value(eps):
            there = jax.tree.map(lambda a, d: a + eps * d, point, direction)
            return float(s.gradients(*there, reset=RESET, valid=VALID)[0][0])

        slope = (value(1e-6) - value(-1e-6)) / 2e-6
        expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)))
        assert_close("A finite difference and the gradient", slope, expected, 2e-7)


def check_flax_rnn_gives_the_same_values_and_gradients(s: Subject) -> None:
    """`__call__` must do what `step` does."""
    rnn = nn.RNN(s.cell, return_carry=True)
    theirs, ours = (jax.eval_shape(module.init, jax.random.key(0), s.x) for module in (rnn, s.module))
    require(theirs == ours, "`flax.linen.RNN` has other parameters than `unroll`.")

    def scalar(params, x, carry):
        after, ys = rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)
        return weighted_sum((ys, after), (s.weights_y, s.weights_carry)), (after, ys)

    gradients = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True), compiler_options=FAST)
    (_, expected), expected_gradients = gradients(s.params, s.x, s.carry)
    (_, values), found = s.gradients()
    assert_close("The values of `flax.linen.RNN` and of `unroll`", values, expected, 5e-6)
    assert_close("The gradients of `flax.linen.RNN` and of `unroll`", found[:3], expected_gradients, 2e-5)


def check_flax_bidirectional_gives_the_same_values(s: Subject) -> None:
    """`__call__` must do what `step` does, and `copy` must give an equal cell."""
    both = nn.Bidirectional(nn.RNN(s.cell), nn.RNN(s.cell.copy()))
    params = {"forward_rnn": {"cell": s.params}, "backward_rnn": {"cell": s.params}}
    ys = np.asarray(jax.jit(both.apply, compiler_options=FAST)({"params": params}, s.x))
    expected = [s.unroll(s.x, s.zeros)[1], s.unroll(s.x, s.zeros, reverse=True)[1]]
    assert_close("The values of `flax.linen.Bidirectional`", ys, np.concatenate(expected, axis=-1), 5e-6)


def check_a_second_call_with_the_carry_it_returned_does_not_retrace(s: Subject) -> None:
    """The carry that a step returns has the types and shapes of `initialize_carry`: beware of weak types."""
    carry, _ = s.unroll(s.x, s.cell.initialize_carry(jax.random.key(0), (B, D)))
    before = s.traces
    s.unroll(2 * s.x, carry)
    require(s.traces == before, "A second call with the carry of the first is compiled again.")


# What only jaxgen's own cells promise:


def check_the_unroll_agrees_with_the_equations(s: Subject) -> None:
    """The equations in NumPy and the cell must compute the same."""

    def compare(s: Subject, tolerance: float) -> None:
        params, carry, x = jax.tree.map(np.float64, (s.params, s.carry, s.x))
        if isinstance(s.equations, OverTime):
            outputs = s.equations.function(params, x)
            assert_close("The outputs and those of the equations", s.unroll(s.x, s.zeros)[1], outputs, tolerance)
        elif s.equations is not None:
            ys = []
            for t in range(T):
                carry, y = s.equations(params, carry, x[:, t])
                ys.append(y)
            expected = carry, np.stack(ys, axis=1)
            assert_close("The unroll and the equations", s.unroll(s.x, s.carry), expected, tolerance)

    compare(s, 1e-5)
    with jax.enable_x64(True):
        compare(s.wide, 1e-10)


def check_an_unroll_without_input_is_that_of_zeros(s: Subject) -> None:
    """`project(None)` is what `project` gives for an input of zeros: the bias alone, of shape [K]."""
    actual = s.unroll(None, s.carry, length=T)
    assert_close("The unrolls of no input and of zeros", actual, s.unroll(np.zeros_like(s.x), s.carry), 5e-6)


def check_any_number_of_batch_axes_in_flax_rnn(s: Subject) -> None:
    """Slice with `...` and name axes from the end: `[..., :n]`, `axis=-1`."""
    rnn = nn.RNN(s.cell)
    params = {"params": {"cell": s.params}}
    _, expected = s.unroll(s.x, s.zeros)
    ys = jax.jit(rnn.apply, compiler_options=FAST)(params, s.x[0])
    assert_close("The outputs without a batch axis and with one", ys, expected[0], 5e-6)
    shape = jax.eval_shape(rnn.apply, params, s.x[None]).shape
    require(shape == (1, B, T, H), f"With inputs of shape {(1, B, T, D)} the outputs have the shape {shape}.")


def check_the_state_is_at_least_float32(s: Subject) -> None:
    """`initialize_carry` gives `promote_state(param_dtype)`, and a step keeps the dtype of its carry."""
    for dtype in (np.dtype("float32"), jnp.bfloat16):
        cell = s.make(features=H, param_dtype=dtype)
        module = Unrolled(cell, s.form)
        x = jnp.zeros((B, T, D), jnp.bfloat16)
        params = jax.eval_shape(module.init, jax.random.key(0), x)
        carry, _ = jax.eval_shape(module.apply, params, x)
        for leaf in jax.tree.leaves((carry, cell.initialize_carry(jax.random.key(0), (B, D)))):
            require(leaf.dtype == np.float32, f"With parameters of {np.dtype(dtype)} the state is {leaf.dtype}.")


def check_one_step_of_time_is_one_call_of_the_cell(s: Subject) -> None:
    """A sequence of one step is a special case of nothing."""
    x, weights_y = s.x[:, :1], s.weights_y[:, :1]

    def scalar(params, carry):
        after, y = s.cell.apply({"params": params}, carry, x[:, 0])
        return weighted_sum((y, after), (weights_y[:, 0], s.weights_carry)), (after, y[:, None])

    called = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True), compiler_options=FAST)
    (_, values), gradients = on_host(called(s.params, s.carry))
    masks = {"reset": NOWHERE[:, :1], "valid": EVERYWHERE[:, :1]}
    (_, found), (in_params, _, in_carry, _) = s.gradients(x=x, weights_y=weights_y, **masks)
    assert_close("An unroll of one step and a call of the cell", found, values, 5e-6)
    assert_close("The gradients of one step and of a call of the cell", (in_params, in_carry), gradients, 1e-5)


def check_one_step_is_reset_and_is_padding_as_many_are(s: Subject) -> None:
    """A sequence of one step is a special case of nothing, and `initial` may have a time axis of size 1."""
    masks = {"reset": np.array([[True], [False], [True]]), "valid": np.array([[True], [True], [False]])}
    expected = s.unroll_by_hand(s.x[:, :1], s.carry, initial=s.per_row, **masks)
    for initial in (s.per_row, jax.tree.map(lambda a: a[:, None], s.per_row)):
        found = s.unroll(s.x[:, :1], s.carry, initial=initial, **masks)
        assert_close("An unroll of one step with masks and the step by hand", found, expected, 5e-6)


def check_clamp_state_gives_states_that_the_cell_can_be_in(s: Subject) -> None:
    """Where the cell keeps its state between -1 and 1, `clamp_state` must too; elsewhere it must not."""
    params, states = jax.tree.map(lambda a: 4 * a, s.params), [s.zeros]
    for t in range(24):
        states.append(s.step(states[-1], 100 * s.normal(100 + t, (B, D)), params)[0])
    reached = jax.tree.map(lambda *each: float(np.abs(np.stack(each)).max()), *states)
    clamped = on_host(s.cell.clamp_state(jax.tree.map(lambda a: np.full_like(a, 100.0), s.zeros)))
    of, to = ([(a.shape, a.dtype) for a in jax.tree.leaves(each)] for each in (s.zeros, clamped))
    require(of == to, f"`clamp_state` makes {to} of a state of {of}.")
    for (path, far), begin in zip(jax.tree_util.tree_leaves_with_path(reached), jax.tree.leaves(clamped)):
        most, where = float(np.abs(begin).max()), jax.tree_util.keystr(path)
        require(
            (far <= 1) == (most <= 1),
            f"Large inputs drive the state{where} to {far:.3g}, and `clamp_state` of 100 is {most:.3g}.",
        )


def check_what_is_shown_of_a_state_is_part_of_it(s: Subject) -> None:
    """`state_arrays` selects numbers of the state of each row, under different names, and computes nothing."""
    leaves, structure = jax.tree.flatten(s.zeros)
    ends = np.cumsum([leaf.size for leaf in leaves])
    places = [np.arange(end - leaf.size, end).reshape(leaf.shape) for end, leaf in zip(ends, leaves)]
    shown = s.cell.state_arrays(jax.tree.unflatten(structure, places))
    require(len(shown) > 0, "`state_arrays` shows nothing of the state.")
    for name, array in shown.items():
        array = np.asarray(array)
        for row in range(B):
            own = np.concatenate([place[row].ravel() for place in places])
            require(
                array.shape[0] == B and bool(np.isin(array[row], own).all()),
                f"`state_arrays` has under {name!r} numbers that are not in the state of row {row}.",
            )


def check_every_product_is_rounded_to_the_precision(s: Subject) -> None:
    """Multiply matrices by `jaxgen.cells.precision.matmul(a, b, self.precision)`, and give `Affine` the precision.

    Where both factors have batch axes, as queries and keys have, use `matmul_each`.
    """
    for factor in ("float32", "bfloat16"):
        for form in s.forms:
            module = Unrolled(s.make(features=H, precision=factor), partial(unroll, form=form))

            def loss(params, x, module=module):
                return sum(jnp.sum(a) for a in jax.tree.leaves(module.apply({"params": {"cell": params}}, x)))

            program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(s.params, s.x)
            products = [each for each in operations(program.jaxpr) if each.primitive.name == "dot_general"]
            require(products, f"The form {form} has no product of matrices.")
            for each in products:
                a, b, total = (variable.aval.dtype.name for variable in (*each.invars, *each.outvars))
                require(
                    (a, b, total) == (factor, factor, "float32"),
                    f"With the precision {factor}, the form {form} multiplies {a} by {b} and adds up in {total}.",
                )


def check_rounding_moves_values_and_gradients_a_little(s: Subject) -> None:
    """Only the factors of products are rounded: states, sums and gates stay in float32."""
    (_, values), gradients = s.gradients()
    for form in s.forms:
        rounded = Subject(partial(s.make, precision="bfloat16"), form=partial(unroll, form=form))
        (_, other_values), other_gradients = rounded.gradients(s.params, s.x, s.carry, s.per_row)
        shares = []
        for a, b in zip(jax.tree.leaves((values, gradients)), jax.tree.leaves((other_values, other_gradients))):
            require(a.dtype == b.dtype, f"With the precision bfloat16, a result is {b.dtype} instead of {a.dtype}.")
            shares.append(float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-3))
        require(max(shares) > 0, f"The precision bfloat16 changes nothing in the form {form}.")
        require(max(shares) < 0.03, f"The precision bfloat16 changes a result of the form {form} by {max(shares):.1%}.")


def check_every_form_in_reverse_equals_the_plain_scan(s: Subject) -> None:
    """All forms give the values and gradients of the plain scan, also in reverse and with masks."""
    masks = {"reset": RESET, "valid": VALID, "initial": s.per_step, "reverse": True}
    for form in set(s.forms) - {"scan"}:
        found, expected = s.in_form(form).gradients(**masks), s.in_form("scan").gradients(**masks)
        assert_close(f"The form {form} in reverse and the plain scan", found, expected, 1e-5)


def check_every_form_runs_over_no_steps_one_step_and_without_input(s: Subject) -> None:
    """All forms give the values and gradients of the plain scan, for any number of steps."""
    one = {"x": s.x[:, :1], "weights_y": s.weights_y[:, :1], "reset": RESET[:, 2:3], "valid": VALID[:, 2:3]}
    plain = s.in_form("scan")
    for form in set(s.forms) - {"scan"}:
        other = s.in_form(form)
        assert_close(f"The form {form} of one step", other.gradients(**one), plain.gradients(**one), 1e-5)
        carry, ys = other.unroll(s.x[:, :0], s.carry)
        assert_identical(f"The carries before and after no steps of the form {form}", carry, s.carry)
        require(ys.shape == (B, 0, H), f"The outputs of no steps of the form {form} have the shape {ys.shape}.")
        found, expected = (each.unroll(None, s.carry, length=T) for each in (other, plain))
        assert_close(f"The form {form} without input", found, expected, 5e-6)


def compare_forms(s: Subject, steps: int) -> None:
    """Compare values and gradients of all forms with those of the plain scan over ``steps`` steps.

    Once with the subject's parameters, once with gates near 0 and 1: large inputs and, in vectors, large parameters.
    In float64 they agree within 1e-10 of the largest number. In float32 the error, against the plain scan in float64,
    is at most four times that of the plain scan, and a few units in the last place.
    """
    at = np.arange(steps)[None, :]
    reset = (at == np.array([[steps // 2], [steps // 3], [-1]])) | (at == np.array([[0], [-1], [-1]]))
    hole = (at > steps // 4) & (at < steps // 2) | (at > steps - 4)
    valid = ~(hole & np.array([[False], [True], [False]]))
    x, weights_y = s.normal(8, (B, steps, D)), s.normal(9, (B, steps, H))
    large = jax.tree.map(lambda a: 20 * a if a.ndim == 1 else a, s.params)

    def outputs(subject, params, x):
        """(carry, ys), gradients"""
        dtype = subject.dtype
        arguments = jax.tree.map(lambda a: np.asarray(a, dtype), (params, x, s.carry, s.per_row))
        weights = {"weights_y": weights_y.astype(dtype), "weights_carry": subject.weights_carry}
        (_, values), gradients = subject.gradients(*arguments, reset=reset, valid=valid, **weights)
        return values, gradients

    for regime, (params, inputs) in {"": (s.params, x), " with gates near 0 and 1": (large, 5 * x)}.items():
        plain = s.in_form("scan")
        with jax.enable_x64(True):
            exact = outputs(plain.wide, params, inputs)
        of_scan = outputs(plain, params, inputs)
        for form in set(s.forms) - {"scan"}:
            name = f"Over {steps} steps{regime}, the form {form}"
            with jax.enable_x64(True):
                found = outputs(s.in_form(form).wide, params, inputs)
            assert_close(f"{name} and the plain scan in float64", found, exact, 1e-10)
            found = outputs(s.in_form(form), params, inputs)
            leaves = zip(jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(of_scan), jax.tree.leaves(found))
            for (path, right), by_scan, by_form in leaves:
                ulps = 8 * np.finfo(np.float32).eps * np.max(np.abs(right), initial=0)
                allowed = 4 * np.max(np.abs(right - by_scan), initial=0) + ulps
                error = np.max(np.abs(right - by_form), initial=0)
                require(
                    error <= allowed,
                    f"{name} has an error of {error:.2g} in float32 at {jax.tree_util.keystr(path)}, more than four "
                    f"times that of the plain scan, {allowed:.2g}.",
                )


def check_every_form_equals_the_plain_scan(s: Subject) -> None:
    """All forms give the values and gradients of the plain scan, up to rounding."""
    compare_forms(s, SHORT)


def check_every_form_equals_the_plain_scan_over_4096_steps(s: Subject) -> None:
    """All forms give the values and gradients of the plain scan: avoid quotients of products of many decays."""
    compare_forms(s, LONG)


def lower_training_and_decoding(
    task: LanguageTask, platforms: Sequence[str] = ("cuda", "tpu"), rows: int = B, steps: int = T
) -> None:
    """Lower a training step and a decoding step of ``task`` for platforms whose devices need not be there."""
    optimizer = make_optimizer("adamw", optax.constant_schedule(0.01))
    batch = Batch(*(np.zeros((rows, steps), dtype) for dtype in (np.int32, np.int32, bool, bool)))
    key, token = jax.random.key(0), np.zeros(rows, np.int32)

    def decode(params, carry, token):
        return task.step(task.prepare(params), carry, token)

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam computes float ** int
        state = jax.eval_shape(lambda: create_state(task, optimizer, key, rows))
        training = jax.jit(partial(train_step, task, optimizer)).trace(key, state, batch)
        training.lower(lowering_platforms=tuple(platforms))
        jax.jit(decode).trace(state.params, state.carry, token).lower(lowering_platforms=tuple(platforms))


def check_every_form_takes_rows_that_are_spread_over_devices(s: Subject) -> None:
    """Inside `jax.shard_map`, each form begins from a state that all devices share (`match_varying_axes`)."""
    mesh = jax.sharding.AbstractMesh((B,), ("rows",))
    whole, spread = PartitionSpec(), PartitionSpec("rows")

    def total(form: str, params: Any, x: Any) -> Any:
        outputs: Any = s.in_form(form).module.apply({"params": {"cell": params}}, x)
        return jnp.sum(outputs[1])

    for form in set(s.forms) - {"kernel"}:  # which runs on a CPU in a simulation only
        gradient = jax.grad(partial(total, form))
        over_devices = jax.shard_map(gradient, mesh=mesh, in_specs=(whole, spread), out_specs=whole)
        try:
            jax.eval_shape(over_devices, s.params, s.x)
        except TypeError as error:
            raise AssertionError(f"With rows spread over devices, the form {form} fails: {error}") from error


def check_training_and_decoding_lower_for_accelerators(s: Subject) -> None:
    """Use operations of JAX that exist on CUDA and TPU."""
    for form in set(s.forms) - {"kernel"}:  # which exists on TPUs only, with fewer operations
        lower_training_and_decoding(LanguageTask(LanguageModel(7, s.make, H, form=form)))


def check_it_learns_a_text_of_three_letters(s: Subject) -> None:
    """A language model of 8 units learns "abcabc…" in 60 steps: check the gradients and the initial values."""
    steps, rows, length = 60, 4, 8
    begins = (steps * length + 1) * np.arange(rows)[None, :, None] + length * np.arange(steps)[:, None, None]
    ids = ((begins + np.arange(length + 1)[None, None, :]) % 3).astype(np.int32)
    masks = np.zeros((2, steps, rows, length), bool)
    batches = Batch(ids[..., :-1], ids[..., 1:], masks[0], ~masks[1])
    task = LanguageTask(LanguageModel(3, s.make, 8))
    optimizer = make_optimizer("adamw", optax.constant_schedule(0.03))
    key = jax.random.key(0)

    def train(batches):
        return train_steps(task, optimizer, key, create_state(task, optimizer, key, rows), batches, jnp.int32(steps))[
            1
        ].loss

    with jax.numpy_dtype_promotion("standard"):
        loss = np.asarray(jax.jit(train, compiler_options=FAST)(batches))
    require(loss[0] > 0.9, f"Before training the loss is {loss[0]:.2f}, less than that of guessing.")
    require(loss[-1] < 0.3, f"After 60 steps the loss is {loss[-1]:.2f}, and not below 0.3.")


#: For any Linen cell.
SHARED_CHECKS = (
    check_the_state_is_real_arrays_with_a_row_axis,
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
    check_one_step_of_time_is_one_call_of_the_cell,
)
#: For every subclass of ``Cell``.
CHECKS = (
    *SHARED_CHECKS,
    check_flax_bidirectional_gives_the_same_values,
    check_reverse_equals_flipping_by_hand,
    check_after_a_reset_all_is_as_at_a_fresh_start,
    check_two_halves_equal_the_whole,
    check_gradients_agree_with_finite_differences,
    check_no_steps_leave_the_carry_alone,
    check_the_unroll_agrees_with_the_equations,
    check_an_unroll_without_input_is_that_of_zeros,
    check_any_number_of_batch_axes_in_flax_rnn,
    check_the_state_is_at_least_float32,
    check_one_step_is_reset_and_is_padding_as_many_are,
    check_clamp_state_gives_states_that_the_cell_can_be_in,
    check_what_is_shown_of_a_state_is_part_of_it,
    check_every_product_is_rounded_to_the_precision,
    check_rounding_moves_values_and_gradients_a_little,
    check_every_form_in_reverse_equals_the_plain_scan,
    check_every_form_runs_over_no_steps_one_step_and_without_input,
    check_every_form_equals_the_plain_scan,
    check_every_form_takes_rows_that_are_spread_over_devices,
    check_training_and_decoding_lower_for_accelerators,
    check_it_learns_a_text_of_three_letters,
    check_every_form_equals_the_plain_scan_over_4096_steps,
)
