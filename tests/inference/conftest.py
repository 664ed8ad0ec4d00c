"""A small model with random weights for tests of the whole sampler."""

from __future__ import annotations

import pytest
from builders import tiny_sampler

from jaxgen.inference.sampler import Sampler


@pytest.fixture(scope="session")
def tiny() -> Sampler:
    """Weights large enough that what was read matters for what is drawn."""
    return tiny_sampler()
