"""The transforms compared with Hugging Face's logits processors: recorded arrays, and live where installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.testing.transforms import Text

from .test_transforms import subject
from .transform_references import softmax

FOLDER = Path(__file__).parents[1] / "golden"
with np.load(FOLDER / "transformers.npz") as file:
    GOLDEN = dict(file)
pytestmark = pytest.mark.usefixtures("quick_compiles")


def tuples(value):
    """JSON's lists as the tuples that options are made of."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def assert_as_theirs(name, options, given, theirs):
    transform = TRANSFORMS[name](**{option: tuples(value) for option, value in options.items()})
    ours = subject(name).run(transform, Text(given["prompt"], given["text"], given["logits"]))
    if name == "force":  # theirs gives the token a logit of 0, ours keeps what it has
        ours, theirs = ([[softmax(np.float64(row)) for row in rows] for rows in each] for each in (ours, theirs))
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("case", [name for name in GOLDEN if " " in name])
def test_a_transform_does_what_that_of_transformers_did(case):
    name, _, options = case.partition(" ")
    assert_as_theirs(name, json.loads(options), GOLDEN, GOLDEN[case])


def test_the_golden_arrays_hold_every_transform_that_transformers_has():
    missing = set(TRANSFORMS) - {case.partition(" ")[0] for case in GOLDEN}
    assert missing == {"presence-penalty", "frequency-penalty", "regex", "words-from"}


def test_a_transform_does_what_that_of_transformers_does():
    pytest.importorskip("transformers")
    script = FOLDER / "make_transformers_golden.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for seed in range(1, 6):
        given = theirs.inputs(seed)
        for name, cases in theirs.CASES.items():
            for options in cases:
                assert_as_theirs(name, options, given, theirs.processed(name, options, given))
