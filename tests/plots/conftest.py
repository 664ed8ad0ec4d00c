"""Figures as objects: what they say can be read without an image."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written, laid out and not rendered."""
    written = []

    def save(self: Figure, file, **options) -> None:
        self.draw_without_rendering()
        written.append(self)
        file.write(b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", save)
    return written
