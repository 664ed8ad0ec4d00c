"""Pictures that cannot be drawn: said once for each reason, and never the end of a training that is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxgen.errors import CheckpointError
from jaxgen.run.events import Note


class Undrawn:
    """What went wrong while pictures were drawn, on whatever thread, kept until there is someone to ``tell``."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._told: set[str] = set()

    @contextmanager
    def expected(self, what: str) -> Iterator[None]:
        """While entered, nothing that goes wrong is raised. ``what`` is drawn there, as a sentence names it."""
        try:
            yield
        except Exception as error:  # a full disk, or whatever fonts, texts and numbers make of a library of pictures
            first = next(iter(str(error).splitlines()), "")
            said = getattr(error, "said", "") if isinstance(error, CheckpointError) else ""
            said = said or f"Could not draw {what}: {type(error).__name__} {first}".rstrip(". ") + "."
            self._waiting.append(f"WARNING: {said} Nothing else is lost: weights and metrics are saved without it.")

    def tell(self, emit: Callable[[Note], None]) -> None:
        """Emit a ``Note`` of each that was not told yet."""
        while self._waiting:
            text = self._waiting.pop(0)
            if text not in self._told:
                self._told.add(text)
                emit(Note(text))
