"""Shows a training run: a live line on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import IO, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxgen.cli.common import SafeStream, discard, escape_controls, log, reason
from jaxgen.trainer import callbacks as events

#: Seconds between plain lines without a terminal.
PLAIN_INTERVAL = 15.0
#: Columns of a terminal from which on the live line has a progress bar, and the smallest width of that bar.
WIDE, MIN_BAR = 90, 6


def format_duration(seconds: float) -> str:
    """A duration as 1:23 or 2:03:04."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def shorten_middle(text: str, width: int) -> str:
    """Text in at most ``width`` columns; an ellipsis replaces the middle of longer text."""
    if cell_len(text) <= width:
        return text
    begin = set_cell_size(text, max(0, width - 1) // 2).rstrip()
    end = set_cell_size(text[::-1], max(0, width - 1 - cell_len(begin)))[::-1].lstrip()
    return f"{begin}…{end}"


def progress_line(event: events.Progress, total: int, width: int | None = None) -> str:
    """The progress of the run, in the longest form that fits ``width`` columns."""
    step, loss = f"{event.step:,}/{total:,}", f"loss {event.loss:.3f}"
    bits = "" if event.bits_per_char is None else f"{event.bits_per_char:.3f} bits"
    speed, unit = event.speed, event.unit
    if speed is None or event.seconds_left is None:
        return "  ".join(filter(None, (f"step {step}", loss, bits and f"{bits}/char")))[:width]
    left = format_duration(event.seconds_left)
    forms = (
        (f"step {step}", loss, bits and f"{bits}/char", f"{speed:,.0f} {unit}/s", f"{left} left"),
        (step, loss, bits, f"{speed:,.0f} {unit[:3]}/s", f"{left} left"),
        (step, loss, bits, f"{speed / 1000:,.0f}k/s" if speed >= 10_000 else f"{speed:,.0f}/s", left),
        (step, loss, f"{left} left"),
        (step, loss, left),
    )
    lines = ["  ".join(filter(None, fields)) for fields in forms]
    return next((line for line in lines if width is None or len(line) <= width), lines[-1])


def report_lost_output(error: Exception) -> None:
    """Discard standard output, so that training continues, and say so unless the reader has left on purpose."""
    discard(sys.stdout)
    if not isinstance(error, BrokenPipeError):
        log(f"note: Standard output cannot be written ({reason(error)}): training continues without it.")


def safe_text(text: str, style: str = "") -> Text:
    """Text for rich to print without reading markup in it, with control characters escaped."""
    return Text(escape_controls(text), style=style)


def reading_bar(console: Console) -> Progress:
    """A bar for data that is read; it is removed at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, refresh_per_second=4)


class Screen:
    """Shows the events of the trainer on standard output.

    If that fails (the reader has left, the disk is full, the terminal is closed), training continues without it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(
            file=cast(IO[str], SafeStream(sys.stdout, report_lost_output)), highlight=False
        )
        self._bar: Progress | None = None
        self._reading_bar: Progress | None = None
        self._last_plain = 0.0
        self._total = 0

    def show(self, event: events.Event) -> None:
        """Show one event."""
        getattr(self, f"_{type(event).__name__.lower()}")(event)

    def close(self) -> None:
        """Remove the live lines."""
        for bar in filter(None, (self._bar, self._reading_bar)):
            bar.stop()
        self._bar = self._reading_bar = None

    def _reading(self, event: events.Reading) -> None:
        if self._reading_bar is None and self.console.is_terminal:
            self._reading_bar = reading_bar(self.console)
            self._reading_bar.start()
        if self._reading_bar is not None:
            line = next((task for task in self._reading_bar.tasks if task.description == event.what), None)
            number = self._reading_bar.add_task(event.what, total=event.total) if line is None else line.id
            self._reading_bar.update(number, completed=event.done, total=event.total)

    def _started(self, event: events.Started) -> None:
        self.close()
        self._total = event.last_step
        self.console.print(self._table({"run": event.run, **event.facts}.items()))
        if event.first_step:
            self.console.print(f"Continuing from step {event.first_step:,}.")
        if self.console.is_terminal and event.first_step < event.last_step:
            self._bar = Progress(*self._columns(), console=self.console, refresh_per_second=4)
            self._bar.start()
            self._line = self._bar.add_task("compiling …", total=event.last_step, completed=event.first_step)

    def _progress(self, event: events.Progress) -> None:
        if self._bar is not None:
            self._bar.columns = self._columns()  # the window may have been resized
            width = self.console.width - (MIN_BAR if len(self._bar.columns) > 1 else 0)
            text = progress_line(event, self._total, width)
            self._bar.update(self._line, completed=event.step, description=text)
        elif time.monotonic() - self._last_plain > PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            self.console.print(progress_line(event, self._total), soft_wrap=True)

    def _columns(self) -> tuple[ProgressColumn, ...]:
        """The columns of the live line: the text, and a bar if there is room."""
        words = TextColumn("{task.description}")
        return (words, BarColumn(bar_width=None)) if self.console.width >= WIDE else (words,)

    def _evaluated(self, event: events.Evaluated) -> None:
        row = event.row
        losses = f"step {row['step']:,}: training loss {row['train_loss']:.3f}, validation loss {row['val_loss']:.3f}"
        more = f" ({event.headline})" if event.headline else ""
        self.console.print(
            safe_text(f"{losses}{more}") + Text("  best so far" if event.best else "", style="green"), soft_wrap=True
        )

    def _sampled(self, event: events.Sampled) -> None:
        self.console.print(self._panel(event.text, f"step {event.step:,}, {event.title}"))

    def _table(self, rows: Iterable[tuple[str, str]]) -> Table:
        """A table of labels and texts; the texts keep at least half of the width."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in rows:
            table.add_row(Text(shorten_middle(escape_controls(label), self.console.width // 2 - 2)), safe_text(text))
        return table

    def _panel(self, text: str, title: str) -> Panel:
        return Panel(safe_text(text.strip("\n")), title=safe_text(title), title_align="left", border_style="dim")

    def _note(self, event: events.Note) -> None:
        self.console.print(safe_text(event.text, "yellow"), soft_wrap=True)

    def _finished(self, event: events.Finished) -> None:
        self.close()
        for title, text in event.samples:
            self.console.print(self._panel(text, title))
        rows = [*event.summary]
        if event.step:
            rows.append(("best step", f"{event.best_step:,} of {event.step:,}"))
        self.console.print(self._table([*rows, ("run", event.run)]))
        for text in event.advice:
            self.console.print(Text("\n") + safe_text(text, "yellow"), soft_wrap=True)
        self.console.print(Text("\nNext: ") + safe_text(event.next_command, "bold"), soft_wrap=True)
