"""Features of texts, and the search for units that tell them, on made-up states."""

from __future__ import annotations

import numpy as np
import pytest

from jaxgen import DataError, UsageError
from jaxgen.inference.inspection import FEATURES, Inspection, correlations, feature_values, read_unit
from jaxgen.models.inspection import Unit

SIZES = [{"c": 4, "h": 4}, {"h": 2}]


def inspection(text: str, **units: np.ndarray) -> Inspection:
    """A text whose single layer has these arrays of units, one token for each character."""
    states = {name: np.asarray(array, np.float32) for name, array in units.items()}
    zeros = np.zeros(len(text), np.float32)
    return Inspection(np.zeros(len(text), np.int32), [*text], [states], [{}], zeros, zeros[:, None])


def noise(tokens: int, units: int) -> np.ndarray:
    """Slow random units, as states are: neighbouring values are close."""
    steps = np.random.default_rng(0).normal(size=(tokens, units))
    for t in range(1, tokens):
        steps[t] = 0.9 * steps[t - 1] + 0.4 * steps[t]
    return steps


#: Of parts in a random order: a text that repeats itself would look the same after a shift.
QUOTES = ['He said "go away"', 'Then "no no no never"']
PARTS = [*QUOTES, "and left.\n", "was heard, ", "\n    if x:\n", "        run it\n", "so"]
TEXT = " ".join(PARTS[i] for i in np.random.default_rng(0).integers(0, len(PARTS), 150))


@pytest.mark.parametrize(
    ("feature", "text", "values"),
    [
        ("quotes", 'a "bc" d', "00111000"),
        ("quotes", "don't 'x' y", "00000011000"),
        ("quotes", '"""a"b""" c', "11111111000"),
        ("quotes", "'\"' b", "11000"),
        ("line", "ab\nc\n\nd", "1201001"),
        ("upper", "aBc D", "01001"),
        ("word-end", "ab c, de", "01010000"),
        ("indent", "  ab\nc\n\td", "122200011"),
        ("[0-9]+", "a12 b3", "011001"),
    ],
)
def test_a_feature_has_a_value_for_each_character(feature, text, values):
    assert [int(value) for value in feature_values(feature, text)] == [int(value) for value in values]


def test_correlations_are_those_of_numpy_and_0_for_constants():
    values, targets = noise(50, 3), noise(50, 2)[:, ::-1]
    values[:, 1] = 7.0
    found = correlations(values, targets)
    for unit, target in [(0, 0), (2, 1)]:
        assert found[unit, target] == pytest.approx(np.corrcoef(values[:, unit], targets[:, target])[0, 1])
    assert np.array_equal(found[1], [0, 0])


@pytest.mark.parametrize("feature", ["quotes", "line", "upper", "indent", "[a-z]+:"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_unit_is_found_and_scored_on_the_other_half(feature, sign):
    values = noise(len(TEXT), 20)
    feature_of = feature_values(feature, TEXT)
    values[:, 13] = sign * feature_of + 0.1 * values[:, 13]
    found = inspection(TEXT, c=noise(len(TEXT), 5), h=values).find(feature)
    assert (str(found.best), found.is_telling) == ("0:h:13", True)
    half = len(TEXT) // 2
    assert found.score == pytest.approx(abs(np.corrcoef(values[half:, 13], feature_of[half:])[0, 1]), abs=1e-5)
    assert found.chance < 0.5
    assert "tells" in found.verdict


@pytest.mark.parametrize("feature", [*FEATURES, "heard"])
def test_noise_tells_nothing(feature):
    found = inspection(TEXT, h=noise(len(TEXT), 40)).find(feature)
    assert not found.is_telling
    assert found.verdict.startswith("no unit")


def test_a_unit_that_tells_the_first_half_only_is_not_telling():
    values = noise(len(TEXT), 10)
    half = len(TEXT) // 2
    values[:half, 4] = feature_values("quotes", TEXT)[:half]
    found = inspection(TEXT, h=values).find("quotes")
    assert str(found.best) == "0:h:4"
    assert found.units[0].chosen == pytest.approx(1, abs=1e-5)
    assert not found.is_telling


def test_a_text_without_the_feature_is_refused():
    seen = inspection("ab cd\n" * 40, h=noise(240, 3))
    with pytest.raises(DataError, match="half"):
        seen.find("quotes")
    with pytest.raises(DataError, match="tokens"):
        inspection("ab", h=noise(2, 3)).find("line")
    with pytest.raises(UsageError, match="regular expression"):
        seen.find("(")


@pytest.mark.parametrize(
    ("written", "unit"),
    [("3", (0, "c", 3)), (3, (0, "c", 3)), ("1:1", (1, "h", 1)), ("0:h:2", (0, "h", 2)), ("h:2", (0, "h", 2))],
)
def test_a_unit_is_written_in_several_ways(written, unit):
    assert read_unit(written, SIZES) == Unit(*unit)
    assert read_unit(str(Unit(*unit)), SIZES) == Unit(*unit)
    assert read_unit(Unit(*unit), SIZES) == Unit(*unit)


@pytest.mark.parametrize("written", ["", "x", "2:0", "4", "0:z:1", "1:c:0", "-1", "0:h:4"])
def test_a_unit_that_does_not_exist_is_refused(written):
    with pytest.raises(UsageError):
        read_unit(written, SIZES)


def test_units_are_shown_as_colours_with_their_values():
    seen = inspection("a<b\n" * 40, h=noise(160, 3))
    shown = seen.unit("h:1")[10:20]
    assert shown.values.shape == (10,)
    html = shown._repr_html_()
    assert html.count("<span title=") >= 10
    assert "&lt;" in html
    assert shown.plot().png.startswith(b"\x89PNG")
    assert seen.plot(length=20).png.startswith(b"\x89PNG")
