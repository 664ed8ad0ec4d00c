"""The one place that knows Orbax: plain NumPy arrays to disk and back, quietly."""

from __future__ import annotations

import gc
import glob
import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.runs import manifest as fmt


class OrbaxError(Exception):
    """Whatever Orbax raised while it wrote; its exceptions have no class in common."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a nested dictionary to the new folder ``path``. Raises ``OSError`` or ``OrbaxError``."""
    tree = fmt.nest({name: array for name, array in arrays.items() if array.size})  # Orbax refuses empty arrays
    if not tree:
        return
    try:
        with _orbax() as (ocp, checkpointer), _without_magic(path) as path, _deserted():
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    except Exception as error:
        if code := re.search(r"os_error_code='?([0-9]+)", str(error)):  # all that is left of the system's error
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        if isinstance(error, OSError):
            raise
        raise OrbaxError(str(error)) from error


def read_arrays(folder: Path, step: int, leaves: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays named in ``leaves``, as NumPy's, whatever number and kind of devices saved them.

    They are some or all of ``saved``, and nothing else may be there. Shapes and dtypes are compared before anything is
    allocated, which raises ``DamagedCheckpointError``. The files were found to be those that were saved: whatever else
    goes wrong raises ``UnreadableCheckpointError``.
    """
    empty = {n: np.zeros(v["shape"], jax.numpy.dtype(v["dtype"])) for n, v in leaves.items() if 0 in v["shape"]}
    stored = [name for name in leaves if name not in empty]
    if not stored and not (folder / fmt.ARRAYS).exists():
        return empty
    try:
        with _orbax() as (ocp, checkpointer), _without_magic(folder / fmt.ARRAYS) as path, _deserted():
            found = fmt.flatten(checkpointer.metadata(path).item_metadata.tree)
            if more := sorted(found.keys() - saved.keys()):
                raise fmt.damaged(folder, step, f"it has the array {more[0]}, of which its record says nothing")
            for name in stored:
                there = found.get(name)
                shape_and_dtype = None if there is None else [list(there.shape), np.dtype(there.dtype).name]
                if shape_and_dtype != [leaves[name]["shape"], leaves[name]["dtype"]]:
                    raise fmt.damaged(folder, step, f"the array {name} is not there in the shape that was saved")
            if not stored:
                return empty
            tree = fmt.nest(dict.fromkeys(stored, 0))
            # NumPy's arrays have no sharding, so the number of devices that saved them does not matter.
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            request = ocp.args.PyTreeRestore(tree, restore_args=how, partial_restore=True)
            return fmt.flatten(checkpointer.restore(path, args=request)) | empty
    except CheckpointError:
        raise
    except Exception as error:
        raise fmt.unreadable(folder, step, f"{fmt.ARRAYS} ({_reason(folder / fmt.ARRAYS, error)})") from error


def _reason(path: Path, error: Exception) -> str:
    """Why ``path`` could not be read, in words."""
    if code := re.search(r"os_error_code='?([0-9]+)", str(error)):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    if not path.exists():  # Orbax stumbles over what is not there in many ways
        return "the folder was removed while it was read"
    first = (str(error).splitlines() or [""])[0][:200]
    return f"Orbax, which reads it, gave up: {type(error).__name__}" + (f": {first}" if first else "")


@contextmanager
def _without_magic(path: Path) -> Iterator[Path]:
    """Another name of ``path`` where its own has characters of a glob in it.

    Orbax looks for what it has written with a glob, finds nothing, and leaves in silence what cannot be restored.
    """
    if not glob.has_magic(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxgen-") as folder:
        link = Path(folder, "run")
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


@contextmanager
def _deserted() -> Iterator[None]:
    """Hush the reads or writes that Orbax deserts when one fails: whenever they end, each finds its event loop closed.

    They end some time after that, so what is hushed stays so unless all went well.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    if isinstance(sys.unraisablehook, _Hushing):
        yield
        return
    former = sys.unraisablehook
    sys.unraisablehook = _Hushing(former)
    for logger in loggers:
        logger.addFilter(_is_another)
    yield
    sys.unraisablehook = former
    for logger in loggers:
        logger.removeFilter(_is_another)


@dataclass(frozen=True)
class _Hushing:
    """An unraisable hook that says nothing of an event loop that is closed, or for which there were no descriptors."""

    former: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        unmade = isinstance(error, AttributeError) and "EventLoop" in str(error) and "'_ssock'" in str(error)
        if not unmade and str(error) != "Event loop is closed":
            self.former(unraisable)


def _is_another(record: logging.LogRecord) -> bool:
    """Whether something else is told of than Orbax, or by it."""
    raised = record.exc_info[2] if record.exc_info else None
    places = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(raised)]
    return not any(re.search(r"orbax[/\\]", said) for said in (record.getMessage(), record.pathname, *places))


@contextmanager
def _never_awaited() -> Iterator[None]:
    """Hush the warnings of Orbax's coroutines that nobody awaits once the block fails: they come when these are freed,
    which may be when the process ends."""
    try:
        yield
    except Exception:
        for name in {each.__qualname__ for each in gc.get_objects() if _is_orbax(each)}:
            said = re.escape(f"coroutine '{name}' was never awaited")
            warnings.filterwarnings("ignore", f"{said}$", RuntimeWarning)
        raise


def _is_orbax(each: Any) -> bool:
    return type(each) is CoroutineType and bool(re.search(r"orbax[/\\]", each.cr_code.co_filename))


@contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """Orbax and a checkpointer, quiet while in use. Imported here because that takes a third of a second."""
    with _never_awaited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import orbax.checkpoint as ocp

        logger = logging.getLogger("absl")  # only after the import: absl must be the one to make it
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            # zarr3 with OCDBT: about a dozen files whatever the number of arrays, and the fastest to read.
            alone = _by_itself(ocp)
            handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                yield ocp, checkpointer
        finally:
            logger.setLevel(level)


def _by_itself(ocp: Any) -> Any:
    """Of several processes this one reads or writes alone; Orbax would wait for all of them."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(me, {me}, f"process{me}")
