"""The colours of probabilities are in order, for every eye, and text on them can be read."""

import math

import pytest

from jaxgen.colors import UNKNOWN, ink_on, luminance, probability_color, to_hex


def test_more_probable_tokens_are_lighter():
    found = [luminance(probability_color(10 ** (-3 + 3 * i / 50))) for i in range(51)]
    assert found == sorted({*found})
    assert found[-1] - found[0] > 0.8


@pytest.mark.parametrize("probability", [0.0, 1e-9, 1e-3, 0.03, 0.2, 0.5, 1.0, 1.5, math.inf, math.nan])
def test_text_on_a_color_can_be_read(probability):
    color = probability_color(probability)
    low, high = sorted(map(luminance, (color, ink_on(color))))
    assert (high + 0.05) / (low + 0.05) > 4.5, "the contrast that WCAG 2 asks of text"
    assert len(to_hex(color)) == 7


def test_what_is_not_a_probability_is_grey():
    assert probability_color(math.nan) == UNKNOWN
    assert probability_color(0.0) == probability_color(1e-3)
