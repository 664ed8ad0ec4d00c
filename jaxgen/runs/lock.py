"""One trainer a run: a lock in its folder that names who holds it, and that no dead process keeps."""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import RESUME, parse_json, refuse_links, run_dir_missing, unwritable

try:
    import fcntl
except ImportError:  # Windows: the content of the file alone decides there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
#: Files that are being written, and those that prove a folder writable: each with the number of its process.
_TEMPORARY = re.compile(r"\.(?:.+\.([0-9]{1,9})-[0-9a-f]{8}|probe-([0-9]{1,9}))\.tmp")
#: Seconds between signs of life of whoever holds a lock, and seconds without one after which a lock from another host,
#: where nobody can look, counts for nothing. Network file systems show the time of a file up to a minute late.
SIGN_EVERY, SILENT = 20, 180


class RunLock:
    """The right of this process to train the run in ``folder``: ``take`` it, and ``release`` it when done.

    The file holds process id, host, boot and the process's start time. The system lets go of its lock when the process
    ends, however it ends, so what a killed one leaves in the file does not count; where the system has no locks, the
    four say whether that process still runs. Of one on another host the time of the file does, which its holder keeps
    setting. Readers need no lock.
    """

    _held: dict[Path, RunLock] = {}

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder, self.in_training, self._descriptor, self._process = folder, False, descriptor, os.getpid()
        self._released = threading.Event()
        threading.Thread(target=self._live, name="run lock", daemon=True).start()

    def _live(self) -> None:
        while not self._released.wait(SIGN_EVERY) and self._is_ours():
            with suppress(OSError):
                os.utime(self.folder / LOCK)

    @classmethod
    def take(cls, folder: str | os.PathLike[str]) -> RunLock:
        """The lock of the run in ``folder``, which this process may hold already.

        What killed processes left there of files they were writing is removed. Raises ``UsageError`` that names the
        process and the host that hold it.
        """
        place = Path(folder).resolve()
        held = cls._held.get(place)
        if held is not None and held._process == os.getpid() and held._is_there():
            return held
        cls._held[place] = lock = cls(place, _acquire(place / LOCK, Path(folder)))
        _remove_temporaries(place)
        return lock

    @classmethod
    @contextmanager
    def kept(cls, folder: str | os.PathLike[str], new: bool = True) -> Iterator[RunLock]:
        """Take the lock, making the folder where there is none, and keep it if the block ends well.

        Else it is released, and what was made for it is removed again. Where the system refuses, another folder is
        advised if the run is ``new``.
        """
        place = Path(folder).resolve()
        before, made = cls._held.get(place), [each for each in (place, *place.parents) if not os.path.lexists(each)]
        try:
            try:
                place.mkdir(parents=True, exist_ok=True)
                lock = cls.take(folder)
            except (OSError, CheckpointError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                if not new or not isinstance(cause, OSError):
                    raise
                raise UsageError(
                    f"Cannot make a run in {folder}: {cause.strerror}. Choose a folder that you may write with "
                    "`--run DIR`."
                ) from error
            yield lock
        except BaseException:
            held = cls._held.get(place)
            if held is not None and held is not before:
                held.release()
            for each in made:
                with suppress(OSError):  # one that holds something by now stays
                    each.rmdir()
            raise

    @classmethod
    @contextmanager
    def training(cls, folder: str | os.PathLike[str]) -> Iterator[None]:
        """Hold the lock of the run in ``folder``. Raises ``UsageError`` if any process trains it, also this one."""
        lock = cls.take(folder)
        if lock.in_training:
            raise _refusal(Path(folder), _myself())
        lock.in_training = True
        try:
            yield
        finally:
            lock.release()

    @classmethod
    def check(cls, folder: str | os.PathLike[str]) -> None:
        """Raise ``CheckpointError`` if this process held the lock and does not any more.

        The folder may be gone, or be another by now. A process on another host may have taken the lock, when this one
        gave no sign for long: it stood still, or the file system did.
        """
        held = cls._held.get(Path(folder).resolve())
        if held is None or held._process != os.getpid():
            return
        if not held._is_there():
            if not held.folder.is_dir():
                raise unwritable(Path(folder), run_dir_missing())
            raise CheckpointError(
                f"{folder} is another folder than the one that this process trained in, or another process trains in "
                f"it: its {LOCK} was removed or replaced. See that the run is there and that nothing trains it, then "
                f"{RESUME}."
            )
        holder = _read(held._descriptor)
        if holder and holder != _myself():
            raise CheckpointError(
                f"The run {folder} was taken over by process {holder['pid']} on the host {holder['host']!a}, because "
                f"this one gave no sign for {SILENT} seconds. Nothing was written since: let the other one train."
            )

    @classmethod
    def release_all(cls) -> None:
        """Release what this process holds, at its end."""
        for lock in list(cls._held.values()):
            lock.release()

    def release(self) -> None:
        """Let others train the run."""
        self._released.set()
        if self._held.get(self.folder) is self:
            del self._held[self.folder]
        if self._descriptor >= 0:
            if self._process == os.getpid() and self._is_ours():
                with suppress(OSError):
                    os.unlink(self.folder / LOCK)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_ours(self) -> bool:
        """Whether nobody else, on another host, took what this process holds."""
        return self._is_there() and _read(self._descriptor) in ({}, _myself())

    def _is_there(self) -> bool:
        """Whether the file in the folder is the one that is locked, and not one that another made since."""
        return self._descriptor >= 0 and _is_same(self._descriptor, self.folder / LOCK)


atexit.register(RunLock.release_all)


def runs(process: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if process == os.getpid() or process <= 0:
        return False
    if os.name == "nt":
        return True  # cannot be asked there without ending it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove_temporaries(folder: Path) -> None:
    for entry in os.scandir(folder):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False) and not runs(int(match[1] or match[2])):
            with suppress(OSError):
                os.unlink(entry.path)


def _acquire(path: Path, folder: Path) -> int:
    """The descriptor of the locked file at ``path``; ``UsageError`` when another has it."""
    while True:
        refuse_links(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            free = _lock(descriptor)
            holder = _read(descriptor)
            if free is False or (holder and _may_run(holder, free, path)):
                raise _refusal(folder, holder)
            if _is_same(descriptor, path):  # else its holder removed it just now
                _write(descriptor, path)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the system gave the lock; ``None`` where it has none to give."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _may_run(holder: dict[str, Any], free: bool | None, path: Path) -> bool:
    """Whether the process that wrote the file may still train, although the system would give its lock away."""
    myself = _myself()
    if holder["boot"] == myself["boot"]:
        same = holder["started"] == _started(holder["pid"]) and runs(holder["pid"])
        return free is None and same
    # Of the same host, this machine has been started anew since.
    return holder["host"] != myself["host"] and _silence(path) < SILENT


def _silence(path: Path) -> float:
    """Seconds since the holder of the lock gave a sign, by the clock of the file system."""
    probe = path.with_name(f".probe-{os.getpid()}.tmp")
    try:
        probe.unlink(missing_ok=True)
        probe.touch(exist_ok=False)
        try:
            return probe.stat().st_mtime - path.stat().st_mtime
        finally:
            probe.unlink()
    except OSError:
        return 0.0


def _refusal(folder: Path, holder: dict[str, Any]) -> UsageError:
    myself = _myself()
    who = f"process {holder['pid']} on the host {holder['host']!a}" if holder else "another process"
    if holder and holder["host"] != myself["host"] and holder["boot"] != myself["boot"]:
        advice = (
            f"From this host ({myself['host']!a}) it cannot be seen: if it no longer runs, its lock counts for nothing "
            f"{SILENT} seconds after its last sign; or delete {folder / LOCK} now."
        )
    else:
        advice = "Wait for it to end or stop it, or choose another folder with `--run`."
    return UsageError(f"The run {folder} is being trained by {who}, and only one process may. {advice}")


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "boot": boot(), "started": _started(os.getpid())}


def boot() -> str:
    """What tells one start of this machine from any other; its name where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"host {platform.node()}"


def _started(process: int) -> int | None:
    """When the process began, in ticks since the machine did: a number used again has another."""
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _read(descriptor: int) -> dict[str, Any]:
    """Who wrote the file; empty when nobody can be made out."""
    try:
        holder = parse_json(os.pread(descriptor, 4096, 0))  # without moving in the file: a thread reads too
    except (OSError, ValueError):
        return {}
    if not isinstance(holder, dict) or not isinstance(holder.get("started", ""), (int, type(None))):
        return {}
    kinds = {"pid": int, "host": str, "boot": str}
    return holder if all(isinstance(holder.get(name), kind) for name, kind in kinds.items()) else {}


def _write(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, (json.dumps(_myself()) + "\n").encode())
        os.fsync(descriptor)
    except OSError as error:
        raise unwritable(path, error, needed=4096) from error


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        there, mine = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
