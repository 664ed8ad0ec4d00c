"""A run as one object, for notebooks and scripts: ``jaxgen.train`` and ``jaxgen.load`` return a ``Model``."""

from __future__ import annotations

import dataclasses
import html
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxgen.cli.common import prepare_process
from jaxgen.cli.progress import Screen
from jaxgen.cli.sampling_flags import read_transforms, transform_flags
from jaxgen.data.in_memory import data_settings
from jaxgen.errors import CheckpointError, UsageError, check_kind, choose
from jaxgen.fsutil import write_errors
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.predictor import DecodingConfig, Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Score, Scorer
from jaxgen.plots import Best, draw_losses
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.trainer import run as runs
from jaxgen.trainer.callbacks import Callback, Event, Finished

#: Files of a run beside its settings, tokenizer and checkpoints that ``Model.save`` copies.
_RECORDS = ("README.md", "metrics.jsonl", "report.json", "samples.txt", "loss.png")


def train(
    data: Any = None,
    *,
    text: Any = None,
    task: str = "language",
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] | None = None,
    **settings: Any,
) -> Model:
    """Train a model, as ``train.py`` does, and return it.

    ``jaxgen.train("book.txt", level="word", minutes=2).generate("Once upon")``

    Args:
        data: A string with a line break is a text; any other names a file, a folder or a data set. Paths are files. An
            iterable of strings is separate texts, each with an end. A table of pandas, polars or ``datasets``, or a
            dictionary of columns, is read by ``text_column=...`` and the like. Default: the task's own data.
        text: A text, or an iterable of texts, whatever they look like.
        task: ``language``, ``classify``, ``translate`` or ``caption``.
        run: The folder of the run. Default: a new one in ``runs/``.
        resume: Continue the run if it exists. The data and settings need not be repeated.
        progress: Show the progress.
        callbacks: Called by the training loop.
        settings: Those of ``train.py``, with underscores: ``batch_size=16`` is ``--batch-size 16``.

    Raises:
        UsageError, DataError, CheckpointError: An input cannot be used.
        Interrupted: The run was stopped, and is saved; ``resume=True`` continues it.
    """
    prepare_process()
    kind = DATA[choose(task, DATA, "task")].Config
    if resume and run is None:
        raise UsageError("resume=True needs to know which run: give run=, the folder of the run.")
    given = {**data_settings(data, text), **settings}
    screen = Screen()
    try:
        emit = _for_python(screen) if progress else None
        if run is not None and resume and RunDirectory(run).exists():
            config = LoadedRun.open(os.fspath(run)).config.model_copy(update=given) if given else None
            trainer = runs.resume(run, config, emit, callbacks=callbacks)
        else:
            trainer = runs.start(kind(**given, **({} if run is None else {"run": os.fspath(run)})), emit, callbacks)
        trainer.train()
    finally:
        screen.close()
    return Model(trainer.run.path)


def _for_python(screen: Screen) -> Any:
    """Shows events, with what to call next in place of a command."""

    def show(event: Event) -> None:
        if isinstance(event, Finished):
            event = replace(event, next_command=f"model = jaxgen.load({event.run!r})")
        screen.show(event)

    return show


def load(run: str | os.PathLike[str] | None = None) -> Model:
    """The model of a run; by default the newest in ``runs/``. Raises ``CheckpointError`` if there is none."""
    prepare_process()
    return Model(run)


class Model:
    """A trained model: writes texts, answers inputs, scores texts. ``jaxgen.load`` makes one of a folder.

    Attributes:
        config: The settings of the run.
        tokenizer: Encodes inputs and decodes outputs.
    """

    def __init__(self, run: str | os.PathLike[str] | None = None) -> None:
        self._saved = LoadedRun.open(None if run is None else os.fspath(run))
        self.config, self.tokenizer = self._saved.config, self._saved.codec

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self._saved.directory.path

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler, with the best checkpoint. Raises ``UsageError`` if the model answers inputs instead."""
        return Sampler.load(self.path)

    @cached_property
    def predictor(self) -> Predictor:
        """The predictor, with the best checkpoint. Raises ``UsageError`` if the model continues texts instead."""
        return Predictor.load(self.path)

    def generate(
        self,
        prompt: str = "",
        settings: GenerationConfig | None = None,
        *,
        num_samples: int | None = None,
        **options: Any,
    ) -> Any:
        """Texts that continue ``prompt``.

        ``model.generate("Once upon", temperature=0.7, top_p=0.95, length=200, seed=1)``

        Args:
            prompt: The beginning, which is not repeated.
            settings: How to draw. Default: those of ``options``.
            num_samples: A number of texts. Default: one.
            options: Fields of ``GenerationConfig``, or logit transforms by name, as the flags of ``sample.py``
                (``top_k=40``, ``forbid=("x",)``); also arguments of ``Sampler.stream``.

        Returns:
            A text; with ``num_samples`` a list of them.

        Raises:
            UsageError: A value is out of range, or ``settings`` and fields of it are given.
        """
        flags = {name.replace("-", "_"): flag for name, flag in transform_flags().items()}
        fields = {field.name for field in dataclasses.fields(GenerationConfig)} | {*flags}
        drawing = {name: options.pop(name) for name in fields & {*options}}
        if settings is None:
            asked = {name: drawing.pop(name, flag.default) for name, flag in flags.items()}
            named = read_transforms(asked, self.sampler.tokenizer.encode)
            settings = GenerationConfig(**{**drawing, "transforms": (*drawing.get("transforms", ()), *named)})
        elif drawing:
            raise UsageError(f"The settings and {', '.join(sorted(drawing))} are given: put them into the settings.")
        texts = self.sampler.sample(prompt, settings, num_samples=1 if num_samples is None else num_samples, **options)
        return texts[0] if num_samples is None else texts

    def score(self, text: str | Iterable[str], prompt: str = "", **options: Any) -> Score:
        """The log-probability of ``text`` after ``prompt``; ``options`` are those of ``Scorer``."""
        return Scorer(self.sampler, **options).score(text, prompt)

    def predict(self, inputs: Any, decoding: DecodingConfig | None = None) -> Any:
        """The answer to an input (a text, or the path of an image), or a list of answers to several."""
        one = isinstance(inputs, (str, os.PathLike))
        answers = list(self.predictor.predict([inputs] if one else inputs, decoding))
        return answers[0] if one else answers

    def evaluate(self) -> dict[str, Any]:
        """The figures of the best checkpoint on the validation data, measured at the end of training.

        Raises:
            CheckpointError: Training has not ended.
        """
        directory = self._saved.directory
        if not (directory.path / "report.json").exists():
            raise CheckpointError(
                f"{directory} has no report: its training has not ended. Continue it with "
                f"jaxgen.train(run={str(directory)!r}, resume=True)."
            )
        report: dict[str, Any] = directory.read_json("report.json")
        return report

    @property
    def history(self) -> History:
        """The evaluations during training."""
        directory = self._saved.directory
        rows, data = MetricsLog(directory.metrics_path).read(), DATA[self.config.task]
        best = Best(self._best_step() or 0, data.METRIC.name)
        return History(rows, f"{self.path.name}: {self._saved.resolved['data']['name']}", data.TARGET, best)

    def _best_step(self) -> int | None:
        store = self._saved.checkpoints
        best = store.best()
        return store.latest() if best is None else best

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copy the run to a new folder, with its best checkpoint alone; it can be loaded from there.

        Raises:
            UsageError: The folder is not empty.
        """
        target, source = Path(path), self._saved.directory
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} exists and is not an empty folder: give a new one.")
        folder = self._saved.checkpoints.folder(self._best_step())
        with write_errors(target, "save again"):
            target.mkdir(parents=True, exist_ok=True)
            for name in (source.tokenizer_path.name, *_RECORDS):
                if (source.path / name).exists():
                    shutil.copyfile(source.path / name, target / name)
            shutil.copytree(folder, target / source.checkpoints_path.name / folder.name)
            shutil.copyfile(source.config_path, target / source.config_path.name)  # last: it makes the folder a run
        return target

    def __repr__(self) -> str:
        resolved = self._saved.resolved
        what = f"{self.config.task}, {self.config.cell} {self.config.layers}x{self.config.hidden}"
        return f"<jaxgen.Model {str(self._saved.directory)!r}: {what}, {resolved['parameters']:,} parameters>"


@dataclass(frozen=True)
class History:
    """The evaluations of a run: ``rows`` of figures, in order."""

    rows: list[dict[str, Any]]
    title: str
    target: str  # what the loss is per
    best: Best

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        """The values of a figure, for example ``val_loss``; None where a row lacks it."""
        names = {name for row in self.rows for name in row}
        choose(check_kind("history", name, str, "the name of a figure"), sorted(names), "figure")
        return [row.get(name) for row in self.rows]

    def plot(self) -> Picture:
        """The loss curves."""
        buffer = io.BytesIO()
        draw_losses(self.rows, buffer, self.title, self.target, self.best)
        return Picture(buffer.getvalue())

    def _table(self) -> list[list[str]]:
        names = ["step", "train_loss", "val_loss"]
        if self.best.by not in names:
            names.append(self.best.by)
        return [names, *([_format(row.get(name)) for name in names] for row in self.rows)]

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table)

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


@dataclass(frozen=True)
class Picture:
    """A picture as PNG; notebooks show it."""

    png: bytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file."""
        with write_errors(Path(path), "save again"):
            Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"<jaxgen.Picture, {len(self.png):,} bytes of PNG>"


def _format(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
