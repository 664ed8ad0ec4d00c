"""A run as one object, for notebooks and scripts: ``jaxgen.train`` and ``jaxgen.load`` return a ``Model``."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from jaxgen import notebook
from jaxgen.cli.common import prepare_process
from jaxgen.cli.progress import Screen
from jaxgen.cli.sampling_flags import TransformFlag, read_transforms, transform_flags
from jaxgen.cli.train import LENGTHS
from jaxgen.data.in_memory import data_settings
from jaxgen.errors import CheckpointError, UsageError, check_kind, choose
from jaxgen.fsutil import write_errors
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.inspection import Inspection, Unit, clamped, inspect_text
from jaxgen.inference.interpolation import Interpolation, interpolate_prompts
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.predictor import DecodingConfig, Predictor
from jaxgen.inference.receipts import Replay, read_receipt, receipt, replay
from jaxgen.inference.run_facts import network
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Score, ScoredText, Scorer
from jaxgen.inference.text_stream import Samples
from jaxgen.plots import AttentionMap, Best, ConfusionMatrix, Picture, draw_losses
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.runtime import need_backend
from jaxgen.tasks.registry import DATA
from jaxgen.trainer import run as runs
from jaxgen.trainer.callbacks import Callback, Event, Finished

#: Arguments of ``Sampler.stream`` beside the prompt and the settings.
_STREAM = ("first", "skip", "state", "unk")
#: Those of ``Scorer`` beside the model.
_SCORING = [*signature(Scorer.__init__).parameters][2:]
#: Of a table of evaluations: rows shown; of a report: letters of a value in its ``repr``.
MAX_ROWS, MAX_VALUE = 40, 20


def train(
    data: Any = None,
    *,
    text: Any = None,
    task: str = "language",
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    data_changed: str = "refuse",
    progress: bool = True,
    callbacks: Sequence[Callback] | None = None,
    **settings: Any,
) -> Model:
    """Train a model, as ``train.py`` does, and return it.

    ``jaxgen.train("book.txt", level="word", minutes=2).generate("Once upon")``

    Args:
        data: A string with a line break is a text; any other names a file, a folder, a URL or a data set. Paths are
            files. An iterable of strings is separate texts, each with an end. A table of pandas, polars or
            ``datasets``, a dictionary of columns or an iterable of dictionaries is read by ``text_column=...`` and the
            like. Default: the task's own data. ``val_data=`` and ``test_data=`` are read as ``data``.
        text: A text, or an iterable of texts, whatever they look like.
        task: ``language``, ``classify``, ``translate`` or ``caption``.
        run: The folder of the run. Default: a new one in ``runs/``.
        resume: Continue the run if it exists. The data and settings need not be repeated.
        data_changed: "refuse" or "accept" data of a run that have changed since.
        progress: Show the progress.
        callbacks: Called by the training loop.
        settings: Those of ``train.py``, with underscores: ``batch_size=16`` is ``--batch-size 16``.

    Raises:
        UsageError, DataError, CheckpointError: An input cannot be used.
        Interrupted: The run was stopped, and is saved; ``resume=True`` continues it.

    Example:
        >>> texts = ["the cat sat", "the dog ran"] * 50
        >>> model = jaxgen.train(texts, hidden=8, steps=2, batch_size=2, seq_len=8, progress=False)
        >>> model.config.hidden
        8
    """
    prepare_process()
    need_backend()
    kind = DATA[choose(task, DATA, "task")].Config
    check_kind("resume", resume, bool, "True or False")
    if run is not None:
        run = os.fspath(check_kind("run", run, str | os.PathLike, "the folder of the run, or None for a new one"))
    elif resume:
        raise UsageError("resume=True needs to know which run: give run=, the folder of the run.")
    saved = LoadedRun.open(run).config if run is not None and resume and RunDirectory(run).exists() else None
    if saved is not None:
        if task not in ("language", saved.task):
            raise UsageError(f"The run {run} is of the task {saved.task}, not {task}: leave out the task.")
        task, settings = saved.task, {**_columns(saved), **settings}
    given = {**settings, **data_settings(data, text, task, settings)}
    screen = Screen()
    try:
        emit = _for_python(screen) if progress else None
        if run is not None and saved is not None:
            trainer = runs.resume(run, _changed(saved, given), emit, data_changed, callbacks)
        else:
            trainer = runs.start(kind(**given, **({} if run is None else {"run": run})), emit, callbacks)
        trainer.train()
    finally:
        screen.close()
    return Model(str(trainer.run))


def _columns(saved: TrainConfig) -> dict[str, Any]:
    """The columns of tables that a run reads."""
    given = saved.model_dump(include=saved.model_fields_set)
    return {name: value for name, value in given.items() if name.endswith(("_column", "_columns"))}


def _changed(saved: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings of a run with those that are given."""
    if any(given.get(name) is not None for name in LENGTHS):  # they replace each other
        given = {**dict.fromkeys(LENGTHS), **given}
    return saved.model_copy(update=given)


def _for_python(screen: Screen) -> Any:
    """Shows events, with what to call next in place of a command."""

    def show(event: Event) -> None:
        if isinstance(event, Finished):
            event = replace(event, next_command=f"model = jaxgen.load({event.run!r})")
        screen.show(event)

    return show


def load(run: str | os.PathLike[str] | None = None) -> Model:
    """The model of a run; by default the newest in ``runs/``. Raises ``CheckpointError`` if there is none.

    Example:
        >>> model = jaxgen.load("runs/language-1")
        >>> len(model.generate("the ", length=20, temperature=0.7, seed=1))
        20
    """
    prepare_process()
    need_backend()
    return Model(run)


def inspect(model: Model | Sampler | str | os.PathLike[str] | None, text: str, **options: Any) -> Inspection:
    """What a language model computes at each token of ``text``: states, gates, probabilities.

    Args:
        model: A model, a sampler, or the folder of a run.
        text: The text, read as one that is scored is.
        options: ``probabilities=False`` leaves out those of all tokens, which need much memory where the vocabulary is
            large. ``unk="skip"`` leaves out unknown characters. ``most=10_000`` reads at most so many tokens.

    Raises:
        UsageError: The model has no states, such as an n-gram, or the text is too long for the memory.

    Example:
        >>> seen = jaxgen.inspect("runs/language-1", "the cat sat")
        >>> seen.surprise.shape, seen.distance.shape  # bits of each token; how far the state of each layer has moved
        ((11,), (11, 1))
    """
    if not isinstance(model, Sampler):
        model = (model if isinstance(model, Model) else load(model)).sampler
    return inspect_text(model, text, **options)


class Model:
    """A trained model: writes texts, answers inputs, scores texts. ``jaxgen.load`` makes one of a folder.

    Attributes:
        config: The settings of the run.
        tokenizer: Encodes inputs and decodes outputs.

    Example:
        >>> model = jaxgen.load("runs/language-1")
        >>> len(model.generate("the ", num_samples=3, length=20, top_p=0.95))
        3
        >>> model.score("the cat").tokens
        7
        >>> model.history["step"]
        [1, 2]
    """

    def __init__(self, run: str | os.PathLike[str] | None = None) -> None:
        self._saved = LoadedRun.open(run)
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
        label: str | Mapping[str, float] | None = None,
        features: Sequence[float] | None = None,
        details: bool = False,
        receipts: bool = False,
        **options: Any,
    ) -> Any:
        """Texts that continue ``prompt``.

        ``model.generate("Once upon", temperature=0.7, top_p=0.95, length=200, seed=1)``

        Args:
            prompt: The beginning, which is not repeated.
            settings: How to draw. Default: those of ``options``.
            num_samples: A number of texts. Default: one.
            label: Of a model that was trained with ``label_column``: the label of the texts, or several with their
                weights (``{"Sports": 1, "World": 3}``).
            features: Of a model that was trained with ``feature_columns``: one number for each.
            details: Return a ``Sample`` in place of each text, with the tokens and their probabilities, which notebooks
                show as colours.
            receipts: Return a receipt in place of each text: a dictionary with the text and all that determined it,
                as ``sample.py --json`` writes it. ``replay`` draws it again.
            options: Fields of ``GenerationConfig``, or logit transforms by name, as the flags of ``sample.py``
                (``top_k=40``, ``forbid=("x",)``); also arguments of ``Sampler.stream``.

        Returns:
            A text; with ``num_samples`` a list of them.

        Raises:
            UsageError: A value is out of range, or ``settings`` and fields of it are given.
        """
        sampler, is_conditioned = self.sampler, label is not None or features is not None
        if is_conditioned and options.get("state") is not None:
            raise UsageError("A state continues a text whose condition is fixed: leave out label and features.")
        if is_conditioned:
            sampler = sampler.conditioned(label, features)
        flags = {name.replace("-", "_"): flag for name, flag in transform_flags().items()}
        fields = {field.name for field in dataclasses.fields(GenerationConfig)}
        for name in options:
            choose(name, {*fields, *flags, *_STREAM}, "option")
        drawing = {name: options.pop(name) for name in {*fields, *flags} & {*options}}
        if settings is None:
            asked = {name: _words(name, drawing.pop(name, flag.default), flag) for name, flag in flags.items()}
            named = read_transforms(asked, sampler.tokenizer.encode)
            given = drawing.pop("transforms", ())
            transforms = (*given, *named) if isinstance(given, tuple | list) else given
            settings = GenerationConfig(**drawing, transforms=transforms)
        elif drawing:
            raise UsageError(f"The settings and {', '.join(sorted(drawing))} are given: put them into the settings.")
        if receipts and (details or options.get("state") is not None):
            raise UsageError(
                "receipts replaces details, and records no state that is not a file: leave out details and state "
                "(sample.py --state makes receipts with states)."
            )
        number = 1 if num_samples is None else num_samples
        sampler = sampler.exact() if receipts else sampler
        samples = Samples(sampler.samples(prompt, settings, num_samples=number, **options))
        texts: Any = samples if details else [sample.text for sample in samples]
        if receipts:
            unk = options.get("unk", "error")
            texts = [receipt(sampler, settings, sample, prompt=prompt, unk=unk) for sample in samples]
        return texts[0] if num_samples is None else texts

    @overload
    def score(
        self, text: str | Iterable[str], prompt: str = "", *, details: Literal[True], **options: Any
    ) -> ScoredText: ...

    @overload
    def score(
        self, text: str | Iterable[str], prompt: str = "", *, details: Literal[False] = ..., **options: Any
    ) -> Score: ...

    def score(
        self, text: str | Iterable[str], prompt: str = "", *, details: bool = False, **options: Any
    ) -> Score | ScoredText:
        """The log-probability of ``text`` after ``prompt``; the options are those of ``Scorer``.

        With ``details`` also those of its tokens, which notebooks show as colours.
        """
        for name in options:
            choose(name, _SCORING, "option")
        scorer = Scorer(self.sampler, **options)
        return scorer.details(text, prompt) if details else scorer.score(text, prompt)

    def inspect(self, text: str, **options: Any) -> Inspection:
        """``jaxgen.inspect`` with this model."""
        return inspect(self, text, **options)

    def clamped(self, values: Mapping[Unit | str | int, float]) -> Sampler:
        """A sampler whose units are held at ``values`` while it reads and draws: ``model.clamped({"0:c:17": 2.0})``.

        Units are written as in ``Inspection.unit``. After each step the unit has its value, for the next step and,
        where the output of a cell is its state or is read from it, for the layers above.

        Raises:
            UsageError: There is no such unit, or units of this model cannot be held.

        Example:
            >>> model, settings = jaxgen.load("runs/language-1"), jaxgen.GenerationConfig(length=20, seed=1)
            >>> len(model.clamped({"0:h:3": 1.0}).sample("the ", settings)[0])
            20
        """
        return clamped(self.sampler, values)

    def interpolate(self, start: str, end: str, *, steps: int = 5, **options: Any) -> Interpolation:
        """What the model writes after states between those after two prompts.

        Args:
            start: The first prompt.
            end: The second prompt.
            steps: The number of states, these two included.
            options: Fields of ``GenerationConfig``.

        Raises:
            UsageError: A value is out of range, or the states of the model cannot be interpolated.
        """
        fields = {field.name for field in dataclasses.fields(GenerationConfig)}
        for name in options:
            choose(name, fields, "option")
        return interpolate_prompts(self.sampler, start, end, GenerationConfig(**options), steps)

    def replay(self, receipt: Mapping[str, Any]) -> Replay:
        """Draw the text of a receipt again; ``.identical`` tells whether it is the same, as in ``jaxgen replay``.

        Args:
            receipt: What ``generate(receipts=True)`` returns, or ``sample.py --json`` writes on a line, read with
                ``json.loads``.

        Raises:
            DataError: It is no receipt, or its text cannot be drawn with this model.
        """
        return replay(self.sampler, read_receipt(receipt))

    def predict(self, inputs: Any, decoding: DecodingConfig | None = None) -> Any:
        """The answer to an input (a text, or the path of an image), or a list of answers to several."""
        one = isinstance(inputs, (str, os.PathLike))
        answers = list(self.predictor.predict([inputs] if one else inputs, decoding))
        return answers[0] if one else answers

    def attention(self, source: Any, decoding: DecodingConfig | None = None) -> AttentionMap:
        """Which positions of an input a translator or a captioner attends to while it writes; ``plot`` draws them."""
        return self.predictor.attention(source, decoding)

    def evaluate(self, **options: Any) -> Report:
        """The figures of the best checkpoint on the validation data, measured at the end of training.

        Args:
            options: Those of ``Scorer``, such as ``adapt``. The validation text is then scored with them, and the
                figures have ``scored_loss`` in nats a token, ``scored_bpc`` and ``scored_bpb``.

        Raises:
            CheckpointError: Training has not ended.
            UsageError: ``options`` are given, and the model writes no texts, or has labels or features.
            DataError: ``options`` are given, and the validation text is missing or has changed.
        """
        report = self._report()
        if options:
            score = self._validation_score(options)
            names = {"scored_loss": score.nats_per_token, "scored_bpc": score.bits_per_char}
            report |= {**names, "scored_bpb": score.bits_per_byte}
        return report

    def _validation_score(self, options: dict[str, Any]) -> Score:
        sampler = self.sampler
        if sampler.conditioning is not None:
            raise UsageError("The validation texts have labels or features: score them one by one.")
        scorer = Scorer(sampler, **{"unk": "keep", **options})
        texts = self._saved.validation()
        return (
            sum((score for score, _ in scorer.score_each(texts)), Score()) if sampler.documents else scorer.score(texts)
        )

    def _report(self) -> Report:
        directory = self._saved.directory
        if not (directory.path / "report.json").exists():
            raise CheckpointError(
                f"{directory} has no report: its training has not ended. Continue it with "
                f"jaxgen.train(run={str(directory)!r}, resume=True)."
            )
        report = Report(directory.read_json("report.json"))
        if report.get("best_step") != self._best_step():
            raise CheckpointError(
                f"The report of {directory} is of an earlier checkpoint: training went on, and was stopped. Continue "
                f"with jaxgen.train(run={str(directory)!r}, resume=True)."
            )
        return report

    @property
    def history(self) -> History:
        """The evaluations during training."""
        directory = self._saved.directory
        rows, data = MetricsLog(directory.metrics_path).read(), DATA[self.config.task]
        best = data.METRIC.best_at(self._best_step() or 0)
        return History(rows, f"{self.path.name}: {self._saved.resolved['data']['name']}", data.TARGET, best)

    def _best_step(self) -> int | None:
        return self._saved.checkpoints.best_or_latest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copy the run to a new folder, with its best checkpoint alone; it can be loaded from there.

        Raises:
            UsageError: The folder is not empty.
        """
        target, source = Path(os.path.abspath(path)), self._saved.directory
        if target.is_relative_to(source.path.resolve()) or target.is_relative_to(source.path):
            raise UsageError(f"{path} is the run itself, or inside it: give another folder.")
        folder = self._saved.checkpoints.folder(self._best_step())
        with write_errors(target, "save again"):
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise UsageError(f"{path} exists and is not an empty folder: give a new one.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
                copy = Path(temporary) / "run"
                shutil.copytree(folder, copy / source.checkpoints_path.name / folder.name)
                for file in source.path.iterdir():
                    if file.is_file() and not file.name.startswith("."):
                        shutil.copyfile(file, copy / file.name)
                os.replace(copy, target)
        return target

    def __repr__(self) -> str:
        what = f"{self.config.task}, {network(self.config.model_dump())}"
        parameters = self._saved.resolved["parameters"]
        return f"<jaxgen.Model {str(self._saved.directory)!r}: {what}, {parameters:,} parameters>"


def _words(name: str, value: Any, flag: TransformFlag) -> Any:
    """The value of a transform as its flag has it: a text for tokens may stand alone, and weights be a dictionary."""
    if not flag.takes_tokens:
        return value
    words = [f"{text}={number}" for text, number in value.items()] if isinstance(value, Mapping) else value
    words = (
        (words,) if isinstance(words, str) else tuple(check_kind(name, words, Iterable, "a text, or a list of texts"))
    )
    return tuple(check_kind(name, word, str, "a text, or a list of texts") for word in words)


class Report(dict[str, Any]):
    """The figures of an evaluation by name. Notebooks show them as tables."""

    @property
    def confusion(self) -> ConfusionMatrix:
        """The confusion matrix of the validation texts. Raises ``UsageError`` if the task has no labels."""
        return self._confusion("val")

    def _confusion(self, split: str) -> ConfusionMatrix:
        if f"{split}_confusion" not in self:
            raise UsageError("There is no confusion matrix: this model predicts no labels. Use a classifier.")
        return ConfusionMatrix(np.array(self[f"{split}_confusion"]), list(self[f"{split}_labels"]))

    def _figures(self) -> dict[str, str]:
        return {name: _format(value) for name, value in self.items() if isinstance(value, int | float | str)}

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self._figures().items() if len(value) <= MAX_VALUE)
        return f"<jaxgen.Report: {figures}>"

    def _repr_html_(self) -> str:
        parts = [notebook.table(["figure", "value"], list(self._figures().items()))]
        for name in self:
            if name.endswith("_confusion"):
                split = name.removesuffix("_confusion")
                parts.append(
                    f"<p>confusion matrix of {notebook.escape(split)}</p>{self._confusion(split)._repr_html_()}"
                )
        return "".join(parts)


@dataclass(frozen=True)
class History:
    """The evaluations of a run: ``rows`` of figures, in order."""

    rows: list[dict[str, Any]]
    title: str
    target: str  # what the loss is per
    best: Best

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        """The values of a figure, for example ``val_loss``; None where a row lacks it."""
        names = {name for row in self.rows for name in row}
        if not names:
            raise UsageError(f"{self.title} has no evaluation yet.")
        choose(check_kind("history", name, str, "the name of a figure"), sorted(names), "figure")
        return [row.get(name) for row in self.rows]

    def plot(self) -> Picture:
        """The curves of the loss and of the metric that decides."""
        return Picture.drawn(lambda file: draw_losses(self.rows, file, self.title, self.target, self.best))

    def _table(self) -> list[list[str]]:
        names = ["step", "train_loss", "val_loss"]
        if self.best.by not in names:
            names.append(self.best.by)
        rows = [[_format(row.get(name)) for name in names] for row in self.rows]
        if len(rows) > MAX_ROWS:
            rows[MAX_ROWS // 2 : -MAX_ROWS // 2] = [["…"] * len(names)]
        return [names, *rows]

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table)

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        return notebook.table(head, rows)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
