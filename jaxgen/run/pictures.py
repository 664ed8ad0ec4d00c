"""Pictures of a training. One that cannot be drawn is said once, and never the end of what is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from jaxgen.errors import CheckpointError
from jaxgen.run.events import Note
from jaxgen.store import Best, MetricsLog, RunDirectory, draw_losses


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


class LossCurves:
    """The loss curves of a run, drawn while training goes on."""

    def __init__(self, run: RunDirectory, data: str, target: str) -> None:
        self._run, self._data, self._target, self._asked = run, data, target, 0
        self._picture: Future[None] = Future()
        self._picture.set_result(None)
        self.undrawn = Undrawn()

    def draw(self, pool: ThreadPoolExecutor, metrics: MetricsLog, best: Best) -> None:
        """Draw all of ``metrics`` on a thread of ``pool``."""
        self._asked += 1
        self._picture = pool.submit(self._draw, self._asked, metrics, best)

    def wait(self) -> None:
        """Until the last one is drawn."""
        self._picture.result()

    def _draw(self, number: int, metrics: MetricsLog, best: Best) -> None:
        if number == self._asked:  # else a newer one waits behind it
            title = f"{self._run.path.name}: {self._data}"
            with self.undrawn.expected(f"{self._run.plot_path}"):
                draw_losses(metrics.read(), self._run.plot_path, title, self._target, best)
