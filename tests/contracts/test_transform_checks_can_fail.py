"""Each check of the transforms' contract fails for transforms with the fault that it looks for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.sampling.transforms import Bias, Force, FrequencyPenalty, MinLength, MinP, RepetitionPenalty, TopK
from jaxgen.sampling.transforms.temperature import Temperature
from jaxgen.testing import transforms
from jaxgen.testing.checking import name_of
from jaxgen.testing.transforms import CHECKS, Case, Subject

from .transform_references import REFERENCES


class KeepsOneOfTwo(TopK):
    def init(self, context):
        return jnp.int32(min(self.k, context.vocab - 1))


class HasNarrowIds(Force):
    def init(self, context):
        return super().init(context).astype(jnp.int16).astype(jnp.int32)


class MixesRows(Bias):
    @staticmethod
    def update(state, logits, last):
        return state, logits - jnp.max(logits, axis=0, keepdims=True).max(axis=1, keepdims=True)


class BringsBack(Bias):
    @staticmethod
    def update(state, logits, last):
        return state, jnp.where(jnp.isneginf(logits), 0.0, logits)


class TakesTheLastTokenOut(MinLength):
    @staticmethod
    def update(state, logits, last):
        return state, jnp.where((last.t < state.n) & state.ends[None, :], -jnp.inf, logits)


class Renormalises(Temperature):
    @staticmethod
    def update(state, logits, last):
        return state, jax.nn.log_softmax(logits / state[None, :], axis=-1)


class RenormalisesWhatIsLeft(TopK):
    @staticmethod
    def update(state, logits, last):
        state, left = TopK.update(state, logits, last)
        return state, jax.nn.log_softmax(left, axis=-1)


class DependsOnBeingTraced(Bias):
    @staticmethod
    def update(state, logits, last):
        return state, logits + (1.0 if isinstance(logits, jax.core.Tracer) else 2.0)


class KeepsItsStateOnTheClass(RepetitionPenalty):
    def init(self, context):
        type(self).read = float(context.prompt @ 10 ** np.arange(context.prompt.size))
        return jnp.zeros(())

    @classmethod
    def update(cls, state, logits, last):
        return state, logits + cls.read


class HasAStateForEachOption(TopK):
    def init(self, context):
        return (super().init(context),) * self.k

    @staticmethod
    def update(state, logits, last):
        return state, TopK.update(state[0], logits, last)[1]


class HasAStateThatIsNoArray(MinP):
    def init(self, context):
        return self.p


class CountsInAnotherType(FrequencyPenalty):
    @staticmethod
    def update(state, logits, last):
        state, logits = FrequencyPenalty.update(state, logits, last)
        return state._replace(seen=state.seen.astype(jnp.float32)), logits


class HasNoFields:
    """Its options are no fields of a dataclass."""

    def __init__(self, number):
        self.number = number

    def init(self, context):
        return jnp.float32(self.number)

    @staticmethod
    def update(state, logits, last):
        return state, logits + state


class Sorts(TopK):
    @staticmethod
    def update(state, logits, last):
        least = jnp.take(jnp.sort(logits, axis=-1), -state, axis=-1)
        return state, jnp.where(logits < least[:, None], -jnp.inf, logits)


class DependsOnTheNumberOfRows(Bias):
    """Of one shape for any number of rows, and not the same for all."""

    def init(self, context):
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return jnp.float32(self.calls)


def broken(kind, *options, reference="bias", cuts=False):
    """A subject of this class with these options, the first of which should change nothing."""
    case = Case(lambda v: [kind(*each) for each in options], lambda v: [kind(*options[0])])
    return Subject(kind, case, REFERENCES[reference], cuts=cuts)


NOTHING = ((),)
CAUGHT = {
    "it_agrees_with_the_reference": [broken(FrequencyPenalty, (1.0,), reference="presence-penalty")],
    "it_agrees_with_the_reference_in_a_vocabulary_of_two": [broken(KeepsOneOfTwo, (2,), reference="top-k", cuts=True)],
    "it_agrees_with_the_reference_in_a_vocabulary_of_50_000": [
        broken(HasNarrowIds, ((40_000,),), reference="force", cuts=True)
    ],
    "no_row_sees_another": [broken(MixesRows, NOTHING)],
    "what_cannot_be_drawn_never_comes_back": [broken(BringsBack, NOTHING)],
    "a_token_that_was_there_is_left": [broken(TakesTheLastTokenOut, (3,), reference="min-length", cuts=True)],
    "options_that_change_nothing_change_no_bit": [broken(Renormalises, (1.0,), reference="temperature")],
    "what_is_left_keeps_its_ratios": [
        broken(RenormalisesWhatIsLeft, (4,), reference="top-k", cuts=True),
        broken(TopK, (4,), reference="top-k", cuts=False),
    ],
    "compiled_or_not_it_gives_the_same": [broken(DependsOnBeingTraced, NOTHING)],
    "vmap_gives_what_one_call_after_the_other_gives": [broken(KeepsItsStateOnTheClass, (1.0,))],
    "other_options_need_no_second_trace": [broken(HasAStateForEachOption, (1,), (2,)), broken(Bias, NOTHING)],
    "the_state_is_arrays_that_keep_their_shape": [
        broken(HasAStateThatIsNoArray, (0.5,)),
        broken(CountsInAnotherType, (0.5,)),
    ],
    "padding_is_never_drawn": [broken(BringsBack, NOTHING)],
    "its_options_are_the_fields_of_a_frozen_dataclass": [broken(HasNoFields, (1.0,))],
    "decoding_with_it_sorts_nothing": [broken(Sorts, (4,), reference="top-k", cuts=True)],
    "beam_search_takes_it_unless_its_state_has_rows": [broken(DependsOnTheNumberOfRows, NOTHING)],
}


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_a_check_catches_what_it_is_for(check):
    for wrong in CAUGHT[name_of(check)]:
        with pytest.raises(AssertionError):
            check(wrong)


def test_every_check_that_is_written_is_run():
    written = {name for name in vars(transforms) if name.startswith("check_")} - {"check_transform"}
    assert written == {check.__name__ for check in CHECKS}
