"""Each check of the cells' contract fails for a cell or an unroll with the fault that it looks for."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxgen.cells import Elman, Weights, unroll
from jaxgen.testing import cells
from jaxgen.testing.cells import CHECKS, Subject, T
from jaxgen.testing.checking import name_of

from .equations import EQUATIONS


class MixesTime(Elman):
    def project(self, x):
        z = self.input(x)
        return z + z.mean(axis=0, keepdims=True) if z.ndim == 3 else z


class CountsFromItsOwnStart(Elman):
    def project(self, x):
        z = self.input(x)
        return z + jnp.arange(z.shape[0], dtype=z.dtype)[:, None, None] if z.ndim == 3 else z


class SeesTheFuture(Elman):
    def project(self, x):
        z = self.input(x)
        return z + jnp.roll(z, -1, axis=0) if z.ndim == 3 else z


class MixesRows(Elman):
    def project(self, x):
        z = self.input(x)
        return z - z.mean(axis=-2, keepdims=True) if z.ndim > 1 else z


class HasAnUnusedParameter(Elman):
    def setup(self):
        super().setup()
        self.spare = self.param("spare", nn.initializers.ones_init(), (self.features,), self.param_dtype)


class HidesAGradient(Elman):
    @nn.nowrap
    def pointwise(self, carry, z, u):
        h = jnp.tanh(z + u) + 0.1 * lax.stop_gradient(u)
        return h, h


class HasAWrongDerivative(Elman):
    @nn.nowrap
    def precompute_vjp(self, before, after, saved):
        return 1.01 * super().precompute_vjp(before, after, saved)


class DiffersWhenFlaxCallsIt(Elman):
    def __call__(self, carry, x):
        carry, y = super().__call__(carry, x)
        return carry, 2 * y


class HasNoBiasWithoutInput(Elman):
    def project(self, x):
        return jnp.zeros(self.features, self.param_dtype) if x is None else self.input(x)


class NeedsOneBatchAxis(Elman):
    @nn.nowrap
    def pointwise(self, carry, z, u):
        h = jnp.tanh(z[:, : self.features] + u)
        return h, h


class KeepsALowPrecisionState(Elman):
    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features), self.param_dtype)


class StartsFromAWeaklyTypedZero(Elman):
    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.full((*input_shape[:-1], self.features), 0.0)


def forgets_to_reset(cell, x, carry=None, *, reset=None, **options):
    return unroll(cell, x, carry, **options)


def always_resets_to_zero(cell, x, carry=None, *, initial=None, **options):
    return unroll(cell, x, carry, **options)


def takes_the_first_initial_state(cell, x, carry=None, *, initial=None, **options):
    return unroll(cell, x, carry, initial=jax.tree.map(lambda a: a[:, 0], initial), **options)


def multiplies_padding_away(cell, x, carry=None, *, valid=None, **options):
    carry, ys = unroll(cell, x, carry, **options)
    return carry, ys if valid is None else ys * valid[:, :, None].astype(ys.dtype)


def runs_through_padding(cell, x, carry=None, *, valid=None, **options):
    return unroll(cell, x, carry, **options)


def resets_only_where_valid(cell, x, carry=None, *, reset=None, valid=None, **options):
    return unroll(cell, x, carry, reset=None if reset is None else reset & valid, valid=valid, **options)


def leaves_reversed_outputs_reversed(cell, x, carry=None, *, reverse=False, **options):
    carry, ys = unroll(cell, x, carry, reverse=reverse, **options)
    return carry, ys[:, ::-1] if reverse else ys


def forgets_the_carry(cell, x, carry=None, **options):
    return unroll(cell, x, jax.tree.map(jnp.zeros_like, carry), **options)


def broken(make=Elman, form=unroll, equations="elman"):
    return lambda: Subject(make, form=form, equations=EQUATIONS[equations])


class HasAComplexState(Elman):
    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features), jnp.complex64)


CAUGHT = {
    "the_state_is_real_arrays_with_a_row_axis": broken(HasAComplexState),
    "a_loop_over_steps_equals_the_unroll": broken(MixesTime),
    "two_halves_equal_the_whole": broken(CountsFromItsOwnStart),
    "no_steps_leave_the_carry_alone": broken(form=forgets_the_carry),
    "after_a_reset_all_is_as_at_a_fresh_start": broken(form=forgets_to_reset),
    "nothing_from_before_a_reset_is_felt_after_it": broken(form=forgets_to_reset),
    "reset_takes_the_state_given_for_each_row": broken(form=always_resets_to_zero),
    "reset_takes_the_state_given_for_each_step": broken(form=takes_the_first_initial_state),
    "what_stands_in_padding_changes_no_bit": broken(form=multiplies_padding_away),
    "a_row_of_length_zero_keeps_its_carry_and_gives_zeros": broken(form=runs_through_padding),
    "a_reset_acts_before_padding_freezes_the_carry": broken(form=resets_only_where_valid),
    "no_step_sees_a_later_input": broken(SeesTheFuture),
    "no_row_sees_another": broken(MixesRows),
    "reverse_equals_flipping_by_hand": broken(form=leaves_reversed_outputs_reversed),
    "reverse_with_padding_equals_flipping_by_hand": broken(form=leaves_reversed_outputs_reversed),
    "every_part_of_every_parameter_gets_a_gradient": broken(HasAnUnusedParameter),
    "gradients_agree_with_finite_differences": broken(HidesAGradient),
    "flax_rnn_gives_the_same_values_and_gradients": broken(DiffersWhenFlaxCallsIt),
    "flax_bidirectional_gives_the_same_values": broken(DiffersWhenFlaxCallsIt),
    "a_second_call_with_the_carry_it_returned_does_not_retrace": broken(StartsFromAWeaklyTypedZero),
    "the_unroll_agrees_with_the_equations": broken(equations="elman-relu"),
    "an_unroll_without_input_is_that_of_zeros": broken(HasNoBiasWithoutInput),
    "any_number_of_batch_axes_in_flax_rnn": broken(NeedsOneBatchAxis),
    "values_and_gradients_are_those_of_the_plain_scan": broken(HasAWrongDerivative, form=partial(unroll, form="fused")),
    "the_state_is_at_least_float32": broken(KeepsALowPrecisionState),
}


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_a_check_catches_what_it_is_for(check):
    wrong = CAUGHT[name_of(check)]()
    with pytest.raises((AssertionError, IndexError)):
        check(wrong)


def test_every_check_that_is_written_is_run():
    written = {name for name in vars(cells) if name.startswith("check_")} - {"check_cell"}
    assert written == {check.__name__ for check in CHECKS}


class ReadsItsParametersInTheLoop(Elman):
    """Against the contract: what a step reads must come through ``weights``."""

    def weights(self):
        return Weights(jnp.zeros((self.features, self.features)))

    @nn.nowrap
    def pointwise(self, carry, z, u):
        h = jnp.tanh(z + carry @ self.recurrent_kernel)
        return h, h


def test_reading_a_parameter_inside_the_step_is_an_error_and_no_leak():
    s = Subject(Elman)
    with pytest.raises(AttributeError, match="recurrent_kernel"):
        cells.Unrolled(ReadsItsParametersInTheLoop(cells.H), unroll).apply({"params": {"cell": s.params}}, s.x)
    with jax.checking_leaks():
        carry, ys = s.unroll(s.x, s.carry)
    assert ys.shape == (cells.B, T, cells.H)
    assert np.isfinite(carry).all()
