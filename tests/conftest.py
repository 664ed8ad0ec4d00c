"""Strictness for the whole session: what a test may not do by accident is an error.

The command-line options and `filterwarnings = error` stand in `pyproject.toml`.
"""

from __future__ import annotations

import os
import socket

# Before JAX is imported. Set JAX_PLATFORMS yourself to run the suite on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# A [B] array silently broadcast against [B, B] is the commonest wrong result in batched code.
jax.config.update("jax_numpy_rank_promotion", "raise")

#: Where an implicit dtype promotion raises. Not everywhere: optax's Adam computes `float ** int32`.
STRICT_DTYPES = {"cells", "contracts", "models"}
LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def strict_dtypes(request: pytest.FixtureRequest):
    with jax.numpy_dtype_promotion("strict" if request.node.path.parent.name in STRICT_DTYPES else "standard"):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Tests reach this machine's own servers only."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(LOCAL):
            raise RuntimeError(f"A test tried to reach {address[0]!r} on the network: use a local server.")
        connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect
