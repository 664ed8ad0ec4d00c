"""The models that are served, and the states that clients keep."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgen.errors import JaxgenError, UsageError, listed
from jaxgen.inference.engine import Engine
from jaxgen.inference.inspection import clamped
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.receipts import StateOrigin
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState

#: How many models with held units are kept.
MAX_HELD = 4


class NotFoundError(JaxgenError):
    """A model or a state that does not exist."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """The weights of a served model.

    ``before`` is the state before each prompt, if the weights have adapted to a text, and ``origin`` tells receipts.
    """

    sampler: Sampler | None
    predictor: Predictor | None = None
    before: DecoderState | None = None
    origin: StateOrigin = field(default_factory=StateOrigin)

    @property
    def checkpoint(self) -> str:
        """The digest of the checkpoint."""
        model = self.sampler or self.predictor
        return "" if model is None else model.digest


@dataclass(eq=False)
class Served:
    """A model under a name. ``load`` loads it, ``runs`` are the folders that it depends on."""

    name: str
    task: str
    load: Callable[[], Loaded]
    runs: Sequence[Path]
    current: Loaded
    created: int
    versions: tuple[object, ...]
    problem: str = ""  # why it could not be loaded anew

    @classmethod
    def of(cls, name: str, task: str, load: Callable[[], Loaded], runs: Sequence[Path]) -> Served:
        """Load a model and serve it under ``name``."""
        versions = checkpoint_versions(runs)
        return cls(name, task, load, runs, load(), int(time.time()), versions)

    def reload(self, engine: Engine) -> bool:
        """Load it anew if a checkpoint has changed; requests that run go on with the weights that they began with."""
        versions = checkpoint_versions(self.runs)
        if versions == self.versions:
            return False
        former, self.current = self.current, self.load()
        self.versions, self.created = versions, int(time.time())
        if former.sampler is not None:
            engine.forget(former.sampler, former.before)
        return True


def checkpoint_versions(runs: Sequence[Path]) -> tuple[object, ...]:
    """What changes when a run has another best checkpoint."""
    found: list[object] = []
    for run in runs:
        store = LoadedRun.open(run).checkpoints
        step = store.best_or_latest()
        found.append((step, store.digest(step)))
    return tuple(found)


class Models:
    """The served models by name, which are loaded anew when a checkpoint changes.

    Args:
        served: The models.
        engine: Decodes.
        seconds: How often to look for new checkpoints. 0: never.
        note: Called with messages.
    """

    def __init__(self, served: Sequence[Served], engine: Engine, seconds: float, note: Callable[[str], None]) -> None:
        self.by_name = {each.name: each for each in served}
        if len(self.by_name) < len(served):
            names = [each.name for each in served]
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"Two runs are called {twice!r}: rename the folder of one of them.")
        self._engine, self._note, self._ended = engine, note, threading.Event()
        self._thread: threading.Thread | None = None
        #: Samplers with units held at values, each behind the one that it was made of.
        self._held: OrderedDict[Any, tuple[Sampler, Sampler]] = OrderedDict()
        self._held_lock = threading.Lock()
        if seconds:
            self._thread = threading.Thread(target=self._watch, args=(seconds,), name="jaxgen-reload", daemon=True)
            self._thread.start()

    def find(self, name: str | None) -> Served:
        """The model of this name, or the only one. Raises ``NotFoundError`` and ``UsageError``."""
        if name is None and len(self.by_name) > 1:
            raise UsageError(f"Several models are served: give `model` as one of {listed(self.by_name)}.")
        if name is None:
            return next(iter(self.by_name.values()))
        if name not in self.by_name:
            raise NotFoundError(f"There is no model {name[:200]!r}: give one of {listed(self.by_name)}.")
        return self.by_name[name]

    def language(self, name: str | None) -> tuple[Served, Loaded, Sampler]:
        """A model that writes texts. Raises ``UsageError`` for another one."""
        served = self.find(name)
        loaded = served.current
        if loaded.sampler is None:
            raise UsageError(f"The model {served.name!r} answers inputs, of the task {served.task}: use /v1/predict.")
        return served, loaded, loaded.sampler

    def clamped(self, sampler: Sampler, values: Mapping[Any, float]) -> Sampler:
        """The sampler with units held at values; those used last are kept compiled. Raises ``UsageError``."""
        name = id(sampler), tuple(sorted(values.items()))
        with self._held_lock:
            kept = self._held.pop(name, None)
            if kept is None or kept[0] is not sampler:
                kept = sampler, clamped(sampler, values)
            self._held[name] = kept  # the last
            while len(self._held) > MAX_HELD:
                _, (_, dropped) = self._held.popitem(last=False)
                self._engine.forget(dropped)
        return kept[1]

    def predictor(self, name: str | None) -> tuple[Served, Predictor]:
        """A model that answers inputs. Raises ``UsageError`` for another one."""
        if name is None:
            able = [each for each in self.by_name.values() if each.current.predictor is not None]
            name = able[0].name if len(able) == 1 else None
        served = self.find(name)
        predictor = served.current.predictor
        if predictor is None:
            raise UsageError(f"The model {served.name!r} writes texts: use /v1/completions, or name another model.")
        return served, predictor

    def reload(self) -> None:
        """Load every model anew whose checkpoint has changed. One that cannot be loaded stays as it is."""
        for served in self.by_name.values():
            try:
                if served.reload(self._engine):
                    self._note(f"{served.name}: checkpoint {served.current.checkpoint} is loaded.")
                served.problem = ""
            except Exception as error:  # of any kind: the run may be in the middle of a change
                problem = f"{served.name} cannot be loaded anew: {error}"
                if problem != served.problem:
                    self._note(problem)
                served.problem = problem

    def close(self) -> None:
        """Stop looking for new checkpoints."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            self.reload()


@dataclass(frozen=True, eq=False)
class KeptState:
    """A state that a client keeps, with the model and the weights that it belongs to."""

    model: str
    checkpoint: str
    state: DecoderState
    data: bytes  # as ``sample.py --save-state`` writes it
    sha256: str


class States:
    """The states that clients keep, by id. The oldest are dropped beyond ``most`` states or ``most_bytes`` bytes."""

    def __init__(self, most: int = 1_000, most_bytes: int = 2**28) -> None:
        self._kept: OrderedDict[str, KeptState] = OrderedDict()
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()

    def add(self, kept: KeptState) -> str:
        """Keep a state; returns its id."""
        name = f"state-{secrets.token_hex(12)}"
        with self._lock:
            self._kept[name] = kept
            while len(self._kept) > 1 and (
                len(self._kept) > self._most or sum(len(each.data) for each in self._kept.values()) > self._most_bytes
            ):
                self._kept.popitem(last=False)
        return name

    def find(self, name: str, model: str | None = None, checkpoint: str | None = None) -> KeptState:
        """The state of this id.

        Raises:
            NotFoundError: It does not exist, or was dropped.
            UsageError: It belongs to another model, or to another checkpoint of it.
        """
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                raise NotFoundError(
                    f"There is no state {name[:200]!r}: it was dropped, or never existed. Make it again."
                )
            self._kept.move_to_end(name)
        if model is not None and kept.model != model:
            raise UsageError(f"The state {name} belongs to the model {kept.model!r}, and not to {model!r}.")
        if checkpoint is not None and kept.checkpoint != checkpoint:
            raise UsageError(f"The state {name} belongs to an earlier checkpoint of {kept.model!r}: make it again.")
        return kept

    def drop(self, name: str) -> None:
        """Forget a state. Raises ``NotFoundError``."""
        self.find(name)
        with self._lock:
            self._kept.pop(name, None)
