"""Figures as objects: what they say can be read without an image."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure


@contextmanager
def collected() -> Iterator[list[Figure]]:
    """The figures that are written meanwhile, laid out and not rendered."""
    written = []

    def save(self: Figure, file, **options) -> None:
        self.draw_without_rendering()
        written.append(self)
        file.write(b"\x89PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield written


@pytest.fixture
def figures() -> Iterator[list[Figure]]:
    """The figures that the test writes."""
    with collected() as written:
        yield written


@pytest.fixture(scope="session")
def figure_of() -> Callable[[Callable, str], Figure]:
    """``(draw, theme) -> the figure that draw(file) writes``, drawn once for all tests."""
    made: dict[tuple[Callable, str], Figure] = {}

    def get(draw: Callable, theme: str) -> Figure:
        if (draw, theme) not in made:
            with collected() as written, pytest.MonkeyPatch.context() as patch:
                patch.setenv("JAXGEN_THEME", theme)
                draw(io.BytesIO())
            (made[draw, theme],) = written
        return made[draw, theme]

    return get
