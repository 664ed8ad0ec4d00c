"""Each check of the cells' contract fails for a cell or an unroll with the fault that it looks for."""

from __future__ import annotations

from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxgen.cells import Elman, Form, MinGRU, Weights, run, unroll
from jaxgen.testing import cells, check_cell
from jaxgen.testing.cells import CHECKS, SHARED_CHECKS, Subject, T
from jaxgen.testing.checking import name_of, run_checks

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


class ClampsNothing(Elman):
    @nn.nowrap
    def clamp_state(self, values):
        return values


class ShowsASum(Elman):
    @nn.nowrap
    def state_arrays(self, carry):
        return {"h": carry, "sum": carry.sum(axis=-1, keepdims=True) + 100}


class MultipliesInFloat32(Elman):
    @nn.nowrap
    def product(self, weights, carry):
        return carry @ weights.kernel


class ShrinksWithThePrecision(Elman):
    @nn.nowrap
    def pointwise(self, carry, z, u):
        h = jnp.tanh(z + u) * (1.0 if self.precision == "float32" else 0.8)
        return h, h


class NeedsTheCPU(Elman):
    def weights(self):
        kernel = super().weights().kernel
        return Weights(kernel + jnp.linalg.eigvals(kernel).real[None, :])


class IgnoresItsInput(Elman):
    @nn.nowrap
    def pointwise(self, carry, z, u):
        h = jnp.tanh(u)
        return h, h


def divided_by_products(cell, weights, carry, z, *, reset=None, valid=None, initial=None, reverse=False):
    """A linear recurrence as quotients of products of decays, which underflow: right for few steps alone."""
    if reverse or reset is None or valid is None:
        return run(cell.step, weights, carry, z, reset=reset, valid=valid, initial=initial, reverse=reverse)
    a, b = cell.coefficients(weights, z)
    a, b = jnp.where(valid[..., None], a, 1), jnp.where(valid[..., None], b, 0)
    b = jnp.where(reset[..., None], a * initial[None] + b, b)
    a = jnp.where(reset[..., None], jnp.asarray(1e-3, a.dtype), a)
    decay = jnp.cumprod(a, axis=0)
    states = decay * (carry[None] + jnp.cumsum(b / decay, axis=0))
    return states[-1], jnp.where(valid[..., None], states, 0)


class DividesByProducts(MinGRU):
    forms: ClassVar = {
        "quotients": Form(divided_by_products, lambda *_: True, "this cell", lambda cell, platform: platform == "cpu")
    }


def scanned_from_a_shared_state(cell, weights, carry, z, *, reverse=False, **masks):
    """Without `match_varying_axes`, of which `run` makes use."""
    return lax.scan(lambda carry, z_t: cell.step(weights, carry, z_t), carry, z, reverse=reverse)


class BeginsFromASharedState(MinGRU):
    forms: ClassVar = {
        "shared": Form(scanned_from_a_shared_state, lambda *_: True, "this cell", lambda cell, platform: True)
    }


class HasAComplexState(Elman):
    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features), jnp.complex64)


def resets_no_single_step(cell, x, carry=None, *, reset=None, **options):
    return unroll(cell, x, carry, reset=None if x.shape[1] == 1 else reset, **options)


def doubles_single_steps(cell, x, carry=None, **options):
    carry, ys = unroll(cell, x, carry, **options)
    return carry, 2 * ys if ys.shape[1] == 1 else ys


def fuses_no_single_step(cell, x, carry=None, *, form="auto", **options):
    carry, ys = unroll(cell, x, carry, form=form, **options)
    return carry, 2 * ys if ys.shape[1] == 1 and form == "fused" else ys


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
    "one_step_of_time_is_one_call_of_the_cell": broken(form=doubles_single_steps),
    "one_step_is_reset_and_is_padding_as_many_are": broken(form=resets_no_single_step),
    "clamp_state_gives_states_that_the_cell_can_be_in": broken(ClampsNothing),
    "what_is_shown_of_a_state_is_part_of_it": broken(ShowsASum),
    "every_product_is_rounded_to_the_precision": broken(MultipliesInFloat32),
    "rounding_moves_values_and_gradients_a_little": broken(ShrinksWithThePrecision),
    "every_form_in_reverse_equals_the_plain_scan": broken(HasAWrongDerivative),
    "every_form_runs_over_no_steps_one_step_and_without_input": broken(form=fuses_no_single_step),
    "every_form_equals_the_plain_scan": broken(DividesByProducts, equations="mingru"),
    "every_form_equals_the_plain_scan_over_4096_steps": broken(DividesByProducts, equations="mingru"),
    "every_form_takes_rows_that_are_spread_over_devices": broken(BeginsFromASharedState, equations="mingru"),
    "training_and_decoding_lower_for_accelerators": broken(NeedsTheCPU),
    "it_learns_a_text_of_three_letters": broken(IgnoresItsInput),
    "the_state_is_at_least_float32": broken(KeepsALowPrecisionState),
}


#: They take longer than the others.
RUNS = {"it_learns_a_text_of_three_letters", "every_form_equals_the_plain_scan_over_4096_steps"}


@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=pytest.mark.runs if name_of(c) in RUNS else (), id=name_of(c)) for c in CHECKS]
)
def test_a_check_catches_what_it_is_for(check):
    wrong = CAUGHT[name_of(check)]()
    with pytest.raises((AssertionError, IndexError, NotImplementedError)):
        check(wrong)


def test_every_check_that_fails_is_reported_with_what_it_found_and_what_to_do():
    checks = [check for check in SHARED_CHECKS if "row" in check.__name__]
    with pytest.raises(AssertionError) as caught:
        run_checks("MixesRows", checks, broken(MixesRows)())
    assert "MixesRows fails" in str(caught.value)
    assert "no row sees another" in str(caught.value)
    assert "other rows" in str(caught.value)
    assert "never over the first" in str(caught.value)


def test_a_complex_state_is_told_to_be_stored_as_pairs():
    with pytest.raises(AssertionError, match="pair of real arrays"):
        check_cell(HasAComplexState)


@pytest.mark.parametrize("strict", [False, True])
def test_a_sum_of_different_ranks_is_an_error_in_strict_checks_alone(strict):
    class AddsAVector(Elman):
        def setup(self):
            super().setup()
            self.bias = self.param("bias", nn.initializers.ones_init(), (self.features,), self.param_dtype)

        def project(self, x):
            return self.bias if x is None else self.input(x) + self.bias

    checks = [cells.check_no_steps_leave_the_carry_alone]
    with jax.numpy_rank_promotion("allow"), mock.patch.multiple(cells, CHECKS=checks, SHARED_CHECKS=checks):
        if not strict:
            check_cell(AddsAVector)
        else:
            with pytest.raises(AssertionError, match="rank_promotion"):
                check_cell(AddsAVector, strict=True)


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
