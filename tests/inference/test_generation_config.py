"""Generation settings: checked at construction, applied in a fixed order, unchanged by saving."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.errors import UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.sampling.transforms import (
    TRANSFORMS,
    Bias,
    EpsilonCutoff,
    EtaCutoff,
    Forbid,
    Force,
    FrequencyPenalty,
    MinLength,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    WordsFrom,
)
from jaxgen.sampling.transforms.temperature import Linear

KINDS = [Forbid((3,)), Bias(((4, 0.5), (5, -1.0))), RepetitionPenalty(1.3), NoRepeatNgram(3, window=9), Force((4, 5))]
KINDS += [TopK(5), TopP(0.9), MinP(0.1), TypicalP(0.5), PresencePenalty(0.5), FrequencyPenalty(-0.25), MinLength(3)]
KINDS += [EpsilonCutoff(0.001), EtaCutoff(0.01), Regex("[a-z]+"), WordsFrom(("cat", "dog"))]


def names(settings: GenerationConfig) -> list[type]:
    return [type(transform) for transform in settings.chain((0, 1)).transforms]


def test_the_temperature_comes_before_the_first_cut_and_behind_the_penalties():
    settings = GenerationConfig(transforms=(RepetitionPenalty(1.2), TopK(4), TopP(0.9)))
    assert names(settings) == [Forbid, RepetitionPenalty, Temperature, TopK, TopP]
    assert names(GenerationConfig(transforms=(RepetitionPenalty(1.2),))) == [Forbid, RepetitionPenalty, Temperature]


def test_transforms_keep_the_order_in_which_they_are_given():
    settings = GenerationConfig(transforms=(TopP(0.9), TopK(4), RepetitionPenalty(1.2)))
    assert names(settings) == [Forbid, Temperature, TopP, TopK, RepetitionPenalty]


def test_greedy_settings_have_no_temperature():
    assert names(GenerationConfig(temperature=0, transforms=(TopK(4),))) == [Forbid, TopK]


def test_a_transform_of_ones_own_comes_behind_the_temperature():
    @dataclasses.dataclass(frozen=True)
    class Mine(TopK):
        pass

    assert names(GenerationConfig(transforms=(Mine(3),))) == [Forbid, Temperature, Mine]


@given(
    transforms=st.lists(st.sampled_from(KINDS), max_size=4).map(tuple),
    temperature=st.one_of(
        st.just(0),
        st.floats(0.01, 100),
        st.lists(st.floats(0.01, 100), min_size=1, max_size=5).map(tuple),
        st.builds(Linear, st.floats(0.01, 9), st.floats(0.01, 9), st.integers(1, 99)),
    ),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    max_seconds=st.one_of(st.none(), st.floats(0.1, 1e6)),
)
def test_settings_are_the_same_after_a_file(transforms, temperature, stop, seed, max_seconds):
    settings = GenerationConfig(9, temperature, seed, transforms, stop, max_seconds, 4)
    assert GenerationConfig.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_a_function_of_the_step_becomes_the_table_of_its_values():
    settings = GenerationConfig(temperature=lambda t: 1.0 + 0.5 * (t > 2))
    assert settings.to_json()["temperature"][:5] == [1.0, 1.0, 1.0, 1.5, 1.5]


def test_these_tests_know_every_registered_transform_but_the_temperature():
    assert {type(each) for each in KINDS} == set(TRANSFORMS.values()) - {Temperature}


def test_a_transform_in_no_registry_cannot_be_written_down():
    class Mine(TopK):
        pass

    with pytest.raises(UsageError, match="Mine"):
        GenerationConfig(transforms=(Mine(3),)).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"length": "5"},
        {"block": 0},
        {"temperature": {"start": 1.0}},
        {"temperature": "hot"},
        {"transforms": {"top-k": 5}},
        {"transforms": [{"name": "top-q", "options": {}}]},
        {"transforms": [{"name": "top-k", "options": {"q": 5}}]},
        {"transforms": [{"name": "top-k", "options": {"k": -5}}]},
        {"transforms": ["top-k"]},
        {"stop": "x"},
        {"more": 1},
    ],
)
def test_settings_that_no_run_wrote_are_refused_with_a_sentence(change):
    with pytest.raises(UsageError):
        GenerationConfig.from_json(GenerationConfig().to_json() | change)


def test_what_is_forced_may_not_be_forbidden():
    with pytest.raises(UsageError, match=r"\[4\]"):
        GenerationConfig(transforms=(Forbid((4,)), Force((3, 4))))
