"""A run read back from its folder: configuration, tokenizer, task, and the weights to use."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import json_sha256
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import TrainConfig, check_folder, validate
from jaxgen.runs.config_file import read_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.tasks.registry import DATA, objective

#: How often weights are looked for in a run that is being trained: what was found may be dropped before it is read.
TRIES = 20


@dataclass(frozen=True)
class LoadedRun:
    """What ``config.json`` and ``tokenizer.json`` say, with the model they describe (no weights yet)."""

    directory: RunDirectory
    config: TrainConfig
    resolved: dict[str, Any]  # what the first start fixed: steps, horizon, data digest, model options
    codec: Any  # what inputs are read and outputs told with; of a language model the tokenizer
    task: Any

    @classmethod
    def open(cls, run: str | Path | None, command: str | None = None) -> LoadedRun:
        """Read the run at ``run`` (``None``: the newest in ``runs/``, of those that answer ``command``).

        Raises ``CheckpointError`` if it is not whole, ``UsageError`` if its task does not answer ``command`` or no
        folder can have its name.
        """
        check_folder(None if run is None else str(run))
        able = [name for name, data in DATA.items() if command is None or command in data.COMMANDS]
        directory = RunDirectory.newest(tasks=able) if run is None else RunDirectory.open(run)
        saved = read_config(directory)
        try:
            name, config, resolved = saved["task"], saved["config"], saved["resolved"]
            kind = DATA[name].Config
            options = dict(resolved["model"])
            config = dict(config)
            _check_resolved(resolved)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{directory.config_path} does not describe a run of this version of jaxgen. Train it again."
            ) from None
        if name not in able:
            others = " or ".join(f"`jaxgen {each}`" for each in DATA[name].COMMANDS)
            raise UsageError(
                f"{directory.path} is a run of the task {name}, which `jaxgen {command}` cannot use: give it to "
                f"{others}, or name another run with --run."
            )
        tokenizer = directory.read_json("tokenizer.json")
        codec = DATA[name].read_codec(tokenizer)
        sizes = DATA[name].vocab_sizes(codec)
        try:
            config = validate(kind, config)
            task = objective(name, config.model).build(**options)
        except (UsageError, TypeError) as error:
            raise CheckpointError(f"{directory.config_path} holds settings that cannot be used. {error}") from None
        shared = [name for name in options if name not in sizes and hasattr(config, name)]
        if at_odds := [name for name in shared if _plain(getattr(config, name)) != _plain(options[name])]:
            raise CheckpointError(
                f"{directory.config_path} has been altered: its model and its settings differ in {', '.join(at_odds)}. "
                "Copy the run again."
            )
        for size, number in sizes.items():
            if options.get(size, 0) != number:  # a size of 0 need not be told
                raise CheckpointError(
                    f"{directory.path} says a {size.replace('_', ' ')} of {options.get(size, 0)}, but by its "
                    f"tokenizer.json it is {number}: the two belong to different runs. Copy the run again."
                )
        if resolved.get("tokenizer", json_sha256(tokenizer)) != json_sha256(tokenizer):
            raise CheckpointError(
                f"{directory.tokenizer_path} has been altered: its digest is not the one in config.json. Copy the run "
                "again."
            )
        return cls(directory, config, resolved, codec, task)

    @property
    def has_documents(self) -> bool:
        """Whether <eos> ends a text of this model."""
        return bool(self.resolved.get("has_documents"))

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.directory.checkpoints_path)

    def params(self, like: Any = None) -> tuple[int, Any]:
        """The step and weights of the best checkpoint, or the latest if none has been evaluated.

        ``like`` has the shapes that they must have (default: those of the run's own model), else ``CheckpointError``.
        """
        shapes = jax.eval_shape(self.task.init, jax.random.key(0)) if like is None else like
        store = self.checkpoints
        for _ in range(TRIES - 1):
            there = store.names()
            try:
                return self._best(store, shapes)
            except CheckpointError:
                if store.names() == there:
                    raise
        return self._best(store, shapes)

    def _best(self, store: CheckpointStore, shapes: Any) -> tuple[int, Any]:
        best = store.best()
        step = store.latest() if best is None else best
        if step == 0 and self.resolved["steps"]:
            raise CheckpointError(
                f"The run {self.directory.path} has not learnt anything yet: its only checkpoint is that of its first "
                f"weights. Train it with `python train.py --run {shlex.quote(str(self.directory.path))} --resume auto`."
            )
        params, _ = store.restore_params(step, shapes)
        return step or 0, params


def _check_resolved(resolved: Any) -> None:
    """Raise ``KeyError``, ``TypeError`` or ``ValueError`` unless ``resolved`` has what all runs have."""
    numbers = [resolved[key] for key in ("steps", "horizon", "parameters", "devices")]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise ValueError("a number is none")
    if not all(numbers[2:]):
        raise ValueError("there is no model, or no device for it")
    if not all(isinstance(resolved["data"][key], str) for key in ("name", "sha256")):
        raise ValueError("the data have no digest")


def _plain(value: Any) -> Any:
    """``value`` as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
