"""A server with a small model on a port of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from builders import tiny_sampler
from serving import Running, run_server, served

from jaxgen.inference.sampler import Sampler


@pytest.fixture(scope="session")
def tiny() -> Sampler:
    return tiny_sampler()


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """A context with a server of these models."""
    return run_server


@pytest.fixture(scope="module")
def server(tiny: Sampler) -> Iterator[Running]:
    with run_server([served(tiny)]) as running:
        yield running
