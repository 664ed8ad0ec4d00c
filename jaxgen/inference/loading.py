"""Load a trained run: its configuration, tokenizer, task and weights."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Self

import jax

from jaxgen import jitted
from jaxgen.data.files import data_folders
from jaxgen.errors import CheckpointError, DataError, JaxgenWarning, UsageError, check_kind, flags_are_shown
from jaxgen.fsutil import json_sha256, load_strict
from jaxgen.plugins import check_plugins, plugin_flags
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import MAX_STEPS, TrainConfig, check_folder, read_config, validate
from jaxgen.runs.directory import RunDirectory
from jaxgen.runtime import check_jax_settings, multiplies_bfloat16
from jaxgen.tasks.language.corpus import TextSplits
from jaxgen.tasks.registry import DATA, objective
from jaxgen.text import Reading, in_pieces
from jaxgen.training.task import param_shapes
from jaxgen.types import Params

_PREPARING = RLock()
#: Attempts to read weights of a run that is being trained, which may delete a checkpoint before it is read.
MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class LoadedRun:
    """A run without its weights: what ``config.json`` and ``tokenizer.json`` say, and the task they describe."""

    directory: RunDirectory
    config: TrainConfig
    resolved: dict[str, Any]  # determined at the first start: steps, horizon, data digest, model options
    reading: Reading  # how it reads text
    codec: Any  # encodes inputs and decodes outputs; for a language model the tokenizer
    task: Any

    @classmethod
    def open(cls, run: str | os.PathLike[str] | None, command: str | None = None) -> LoadedRun:
        """Read a run.

        Args:
            run: Its folder. ``None``: the newest in ``runs/`` that ``command`` can use.
            command: The command that will use it; ``None`` for any.

        Raises:
            CheckpointError: The run is missing, damaged or altered.
            UsageError: ``command`` cannot use its task, or ``run`` is not a possible name of a folder.
        """
        check_jax_settings()
        if run is not None:
            run = os.fspath(check_kind("load", run, str | os.PathLike, "the folder of a run, or None for the newest"))
        check_folder(run)

        def usable(task: str) -> bool:
            return task in DATA and (command is None or command in DATA[task].COMMANDS)

        directory = RunDirectory.newest(usable=usable, tasks=DATA) if run is None else RunDirectory.open(run)
        saved = read_config(directory)
        try:
            name, config, resolved = saved["task"], saved["config"], saved["resolved"]
            check_plugins(saved, directory)
            kind = DATA[name].Config
            options = dict(resolved["model"])
            config = dict(config)
            _check_resolved(resolved)
        except UsageError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{directory.config_path} does not describe a run of this version of jaxgen: it was trained by an "
                "earlier version. Use that version, or train it again."
            ) from None
        if not usable(name):
            raise UsageError(_other_commands(directory, name, command))
        if "reading" not in resolved:
            raise CheckpointError(
                f"{directory} was trained by an earlier version of jaxgen, which read text in another way. Use it "
                "with that version, or train it again."
            )
        reading = load_strict(Reading, resolved["reading"], "reading policy")
        tokenizer = directory.read_json("tokenizer.json")
        codec = DATA[name].read_codec(tokenizer)
        sizes = DATA[name].vocab_sizes(codec)
        try:
            config = validate(kind, config)
            task = objective(name, config.model).build(**options)
        except (UsageError, TypeError) as error:
            raise CheckpointError(f"{directory.config_path} holds settings that cannot be used. {error}") from None
        digest = json_sha256(tokenizer)
        problems = [
            f"its model and its settings differ in {name}"
            for name in options
            if name not in sizes and not _agrees(getattr(config, name, options[name]), options[name])
        ]
        problems += [
            f"its {size.replace('_', ' ')} is {options.get(size, 0)}, but its tokenizer.json has {number}"
            for size, number in sizes.items()
            if options.get(size, 0) != number  # a size of 0 may be left out
        ]
        if resolved.get("tokenizer", digest) != digest:
            problems.append("the digest of tokenizer.json is not the one in config.json")
        if problems:
            raise CheckpointError(f"{directory} has been altered: {'; '.join(problems)}. Copy the run again.")
        if options.get("precision") == "bfloat16" and not multiplies_bfloat16():
            slow = f"{directory} multiplies in bfloat16, which this processor does not do natively: it is slow here."
            warnings.warn(JaxgenWarning(slow), stacklevel=2)
        return cls(directory, config, resolved, reading, codec, task)

    @property
    def has_documents(self) -> bool:
        """Whether the model was trained on documents, whose texts end with <eos>."""
        return bool(self.resolved.get("has_documents"))

    @property
    def data_folders(self) -> list[Path]:
        """The folders that relative names of data files may refer to: where the run was started."""
        return [Path(os.path.normpath(self.directory.path.resolve() / name)) for name in self.resolved["data_folders"]]

    def texts(self) -> TextSplits:
        """Read the texts of a language model again. Raises ``DataError`` if they are missing or have changed."""
        with data_folders(self.data_folders):
            splits: TextSplits = DATA[self.config.task].texts(self.config)
        then, now = self.resolved["data"], splits.fingerprint
        if then != now:
            raise DataError(
                f"The data of the run {self.directory} has changed: it was {then['name']} with sha256 "
                f"{then['sha256']}, now it is {now['name']} with {now['sha256']}."
            )
        return splits

    @property
    def holdout_sha256(self) -> str | None:
        """The digest of the text that ``--holdout`` kept from training; ``None`` without one."""
        held = self.resolved.get("holdout")
        return None if held is None else str(held["sha256"])

    @property
    def read(self) -> list[list[str | None]]:
        """The digests of the data of this run and of those from which it learnt, each with that of what it held out."""
        return [[self.resolved["data"]["sha256"], self.holdout_sha256], *self.resolved.get("read", [])]

    def validation(self) -> list[str]:
        """Read the validation text, running text as one string. Raises ``DataError`` as ``texts`` does."""
        splits = self.texts()
        texts = ["".join(in_pieces(text)) for text in splits.val]
        splits.check()
        return texts

    def holdout(self) -> list[str]:
        """Read the text that ``--holdout`` kept from training, running text as one string.

        Raises:
            UsageError: The run has none.
            DataError: The data are missing or have changed.
        """
        if self.holdout_sha256 is None:
            raise UsageError(
                f"The run {self.directory} kept no text from training: train it with --holdout 0.03, for example."
            )
        splits = self.texts()
        held = ["".join(in_pieces(text)) for text in splits.holdout]
        if splits.holdout_sha256() != self.holdout_sha256:
            raise DataError(f"The text that the run {self.directory} held out has changed. Bring back its data.")
        return held

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints of the run."""
        return CheckpointStore(self.directory.checkpoints_path, run_digest=self.resolved["run_digest"])

    def params(self, like: Params | None = None) -> tuple[int, Params]:
        """The step and weights of the best checkpoint, or of the latest if none has been evaluated.

        Args:
            like: A pytree with the expected shapes. Default: those of the run's own model.

        Raises:
            CheckpointError: There is no usable checkpoint, or its shapes differ.
        """
        return self.params_and_digest(like)[:2]

    def params_and_digest(self, like: Params | None = None) -> tuple[int, Params, str]:
        """As ``params``, and the digest of the checkpoint."""
        shapes = param_shapes(self.task) if like is None else like
        store = self.checkpoints
        for _ in range(MAX_ATTEMPTS - 1):
            before = store.names()
            try:
                return self._best(store, shapes)
            except CheckpointError:
                if store.names() == before:
                    raise
        return self._best(store, shapes)

    def _best(self, store: CheckpointStore, shapes: Params) -> tuple[int, Params, str]:
        step = store.best_or_latest()
        if step == 0 and self.resolved["steps"]:
            raise CheckpointError(
                f"The run {self.directory} has learnt nothing yet: its only checkpoint holds its initial "
                f"weights. Train it with `python train.py --run {shlex.quote(str(self.directory))} --resume auto"
                f"{plugin_flags(self.resolved.get('plugins', []))}`."
            )
        params, _ = store.restore_params(step, shapes)
        return step or 0, params, store.digest(step)


def _other_commands(directory: RunDirectory, task: str, command: str | None) -> str:
    """The message for a run whose task ``command`` cannot use."""
    able = DATA[task].COMMANDS
    if flags_are_shown():
        others = " or ".join(f"`jaxgen {each}`" for each in able)
        problem, other = f"which `jaxgen {command}` cannot use: give it to {others}", "name another run with --run DIR"
    else:
        calls = {"sample": "generate", "score": "score", "predict": "predict"}
        others = " or ".join(f"`model.{calls[each]}`" for each in able if each in calls)
        problem, other = f"for which that is not defined: call {others}", "load another run"
    return f"{directory} is a run of the task {task}, {problem}, or {other}."


def unread_text(runs: Sequence[LoadedRun], most: int | None = None) -> list[str]:
    """The text that all runs held out, or its first ``most`` characters; running text is one string.

    Raises:
        UsageError: A run may have read the text: it held out none, or another one.
        DataError: The text is missing or has changed.
    """
    for run in runs:
        if run.holdout_sha256 is None:
            raise UsageError(
                f"Numbers are fitted on a text that no run has read, and {run.directory} held out none. Train it with "
                "--holdout 0.03, or give the numbers."
            )
        if run.holdout_sha256 != runs[0].holdout_sha256:
            raise UsageError(
                f"Numbers are fitted on a text that no run has read, and {runs[0].directory} and {run.directory} held "
                "out different ones. Train them with the same --data and --holdout (of documents, with the same "
                "--val-data or --seed), or give the numbers."
            )
    texts, left = [], most
    for text in runs[0].holdout():
        if left is not None and left <= 0:
            break
        texts.append(text[:left])
        left = None if left is None else left - len(text)
    return texts


class TrainedModel:
    """A task with weights, the base of ``Sampler`` and ``Predictor``."""

    def __init__(self, task: Any, params: Params) -> None:
        self.task = task
        #: The folder of the run and the digest of the checkpoint, if the weights come from one.
        self.directory: RunDirectory | None = None
        self.digest = ""
        self._params = params
        #: What is computed from the weights once, by name. Copies with the same weights share it.
        self._computed: dict[str, Any] = {}

    @property
    def params(self) -> Params:
        """The trained weights."""
        return self._params

    @property
    def weights(self) -> Any:
        """The weights as decoding reads them, prepared at the first use; a wrong prompt compiles nothing."""
        return self._once("weights", lambda: jitted.jit_prepare(self.task)(self._params))

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returned at the first call with this name."""
        if name not in self._computed:
            with _PREPARING:  # several threads may use one model
                if name not in self._computed:
                    self._computed[name] = compute()
        return self._computed[name]

    def __repr__(self) -> str:
        run = f" {str(self.directory)!r}" if self.directory else ""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self._params))
        return f"<jaxgen.{type(self).__name__}{run}: {self._about()}, {parameters:,} parameters>"

    def _about(self) -> str:
        """What ``repr`` says of it."""
        return type(self.task).__name__

    def __getstate__(self) -> dict[str, Any]:
        """What ``pickle`` keeps: the weights as NumPy arrays, and nothing that is compiled."""
        return {**vars(self), "_params": jax.device_get(self._params), "_computed": {}}

    def with_params(self, params: Params) -> Self:
        """Use other weights of the same shapes, which needs no new compilation; returns the object itself."""
        self._params, self._computed, self.digest = params, {}, ""
        return self


def _check_resolved(resolved: dict[str, Any]) -> None:
    """Raise ``KeyError``, ``TypeError`` or ``ValueError`` unless ``resolved`` has the entries of every run."""
    numbers = [resolved[key] for key in ("steps", "horizon", "parameters", "devices")]
    usable = all(type(number) is int and number >= 0 for number in numbers) and all(numbers[2:])
    usable = usable and max(numbers[:2]) <= MAX_STEPS
    data = resolved["data"]
    texts = [data["name"], data["sha256"], resolved["run_digest"], *resolved["data_folders"]]
    if not usable or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ValueError("an entry is not what every run has")


def _agrees(setting: object, argument: object) -> bool:
    """Whether the model has the setting, after a round trip through JSON; ``auto`` was decided when the run started."""
    setting, argument = (list(each) if isinstance(each, tuple) else each for each in (setting, argument))
    return setting in ("auto", argument)
