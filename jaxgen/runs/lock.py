"""The lock that allows one trainer per run: a file lock of the system and, across hosts, a lease."""

from __future__ import annotations

import atexit
import math
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor
from pydantic import BaseModel, ConfigDict

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import (
    RESUME,
    parse_json,
    refuse_links,
    run_dir_missing,
    temporary_name,
    unwritable,
    write_errors,
)

LOCK = ".lock"
#: Seconds between two heartbeats of the holder, which set the time of the file.
HEARTBEAT_SECONDS = 20
#: Seconds without a heartbeat after which the lock of another host expires. Network file systems may show the time of a
#: file up to a minute late.
LEASE_SECONDS = 180


class Owner(BaseModel):
    """The process that wrote a lock file."""

    model_config = ConfigDict(strict=True, frozen=True)
    pid: int
    host: str
    #: The boot of that machine, see ``boot_id``.
    boot: str
    #: The ``pid_namespace`` in which ``pid`` counts.
    pids: str = ""
    #: Its ``start_time``, because process ids are reused.
    started: int | None = None

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(pid=pid, host=platform.node(), boot=boot_id(), pids=pid_namespace(), started=start_time(pid))

    @classmethod
    def read(cls, descriptor: int) -> Owner | None:
        """The owner named in an open lock file; ``None`` if it names none."""
        try:
            # Read at an offset: the heartbeat reads the same descriptor in its thread.
            return cls.model_validate(parse_json(os.pread(descriptor, 4096, 0)))
        except (OSError, ValueError):
            return None

    def may_run(self, locks_work: bool, path: Path) -> bool:
        """Whether the process may still be training, although the system shows no lock at ``path``."""
        if self.boot == boot_id() and locks_work:
            return False  # this machine would show its lock
        if self.is_near():
            return self.started == start_time(self.pid) and is_running(self.pid)
        silent = _seconds_since_heartbeat(path)
        # Machines may share a name. This one was restarted since only if the last heartbeat came before its start.
        restarted = self.host == platform.node() and silent > _uptime()
        return silent < LEASE_SECONDS and not restarted

    def is_near(self) -> bool:
        """Whether this process could see that one, on the same machine and in the same container."""
        return (self.boot, self.pids) == (boot_id(), pid_namespace())


class RunLock:
    """The right of this process to train the run in ``folder``: ``take`` it, and ``release`` it when done.

    The system releases the lock when the process ends, however it ends; the content that it leaves in the file is then
    ignored. On a file system without locks, the owner named in the file decides. A process on another host, whose lock
    may not be visible here, keeps updating the time of the file (its lease). Readers need no lock.
    """

    _held: dict[Path, RunLock] = {}

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.in_training = False
        self._descriptor = descriptor
        self._released = threading.Event()
        threading.Thread(target=self._heartbeat, name="run lock", daemon=True).start()

    def _heartbeat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS) and self.is_ours():
            with suppress(OSError):
                os.utime(self.folder / LOCK)

    @classmethod
    def take(cls, folder: str | os.PathLike[str]) -> RunLock:
        """The lock of the run in ``folder``, which this process may hold already.

        Raises:
            UsageError: names the process and the host that hold it.
            CheckpointError: the system refuses.
        """
        with write_errors(Path(folder) / LOCK, needed=4096):
            return cls._held_in(folder) or cls.take_new(folder)

    @classmethod
    def take_new(cls, folder: str | os.PathLike[str]) -> RunLock:
        """As ``take``, but the process must not hold the lock already. Raises the system's own errors."""
        if cls._held_in(folder) is not None:
            raise _refusal(Path(folder), Owner.current())
        place = _place(folder)
        cls._held[place] = lock = cls(place, _acquire(place / LOCK, Path(folder)))
        return lock

    @classmethod
    def _held_in(cls, folder: str | os.PathLike[str]) -> RunLock | None:
        held = cls._held.get(_place(folder))
        return held if held is not None and held._is_in_place() else None

    @classmethod
    def is_held(cls, folder: str | os.PathLike[str]) -> bool:
        """Whether a process seems to train the run, from what its lock says; nothing is locked."""
        if cls._held_in(folder) is not None:
            return True
        path = Path(folder) / LOCK
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return False
        try:
            owner = Owner.read(descriptor)
        finally:
            os.close(descriptor)
        return owner is not None and owner.may_run(False, path)

    @classmethod
    @contextmanager
    def kept(cls, folder: str | os.PathLike[str]) -> Iterator[RunLock]:
        """Take the lock, and keep it if the block succeeds. Raises as ``take``."""
        before = cls._held_in(folder)
        lock = cls.take(folder)
        try:
            yield lock
        except BaseException:
            if lock is not before:
                lock.release()
            raise

    @classmethod
    @contextmanager
    def training(cls, folder: str | os.PathLike[str]) -> Iterator[None]:
        """Hold the lock of the run in ``folder``. Raises ``UsageError`` if any process trains it, this one included."""
        lock = cls.take(folder)
        if lock.in_training:
            raise _refusal(Path(folder), Owner.current())
        lock.in_training = True
        try:
            yield
        finally:
            lock.release()

    @classmethod
    def check(cls, folder: str | os.PathLike[str]) -> None:
        """Raise ``CheckpointError`` if this process took the lock and has lost it.

        The folder may be gone or have been replaced. A process on another host may have taken the lock, if this process
        or the file system stalled for too long.
        """
        held = cls._held.get(_place(folder))
        if held is None:
            return
        if not held._is_in_place():
            if not held.folder.is_dir():
                raise unwritable(Path(folder), run_dir_missing())
            raise CheckpointError(
                f"{folder} is not the folder that this process trained in, or another process trains in it: its "
                f"{LOCK} was removed or replaced. Make sure that the run is there and that nothing trains it, then "
                f"{RESUME}."
            )
        owner = Owner.read(held._descriptor)
        if owner is not None and owner != Owner.current():
            raise CheckpointError(
                f"Process {owner.pid} on the host {owner.host!a} took over the run {folder}, because this process gave "
                f"no heartbeat for {LEASE_SECONDS} seconds. Nothing was written since: let the other one train."
            )

    @classmethod
    def release_all(cls) -> None:
        """Release all locks of this process, at its end."""
        for lock in list(cls._held.values()):
            lock.release()

    def release(self) -> None:
        """Let other processes train the run."""
        self._released.set()
        if self._held.get(self.folder) is self:
            if self.is_ours():
                with suppress(OSError):
                    os.unlink(self.folder / LOCK)
            del self._held[self.folder]
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @classmethod
    def _after_fork(cls) -> None:
        """In a forked child: hold no lock, and keep none of the parent's open when that ends."""
        for lock in cls._held.values():
            lock._close()
        cls._held.clear()

    def is_ours(self) -> bool:
        """Whether the lock is in place and nothing else has written into it."""
        return self._is_in_place() and Owner.read(self._descriptor) == Owner.current()

    def _is_in_place(self) -> bool:
        """Whether the file in the folder is the one that is locked, not one that was made since."""
        return _is_same_file(self._descriptor, self.folder / LOCK)


atexit.register(RunLock.release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RunLock._after_fork)


@contextmanager
def creation_errors(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``UsageError``: no run can be made in ``folder``."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"Cannot make a run in {folder}: {error.strerror}. Choose a folder that you may write with `--run DIR`."
        ) from error


def _place(folder: str | os.PathLike[str]) -> Path:
    """The same path for every name of a folder; ``Path.resolve`` raises for a link to itself."""
    return Path(os.path.realpath(folder))


def is_running(pid: int) -> bool:
    """Whether another process with this id runs on this machine."""
    if pid == os.getpid() or pid <= 0:
        return False
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def boot_id() -> str:
    """An id of the current start of this machine; its name where the system gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"host {platform.node()}"


def pid_namespace() -> str:
    """The namespace of this process's id, which containers of one machine do not share; empty where there is none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _uptime() -> float:
    """Seconds since this machine started; infinite where the system does not say."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return math.inf if clock is None else time.clock_gettime(clock)


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine started; ``None`` if the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _acquire(path: Path, folder: Path) -> int:
    """The descriptor of the locked file at ``path``.

    Raises ``UsageError`` if another process holds it, and ``CheckpointError`` for a file that is not a lock of ours:
    its content is never changed.
    """
    while True:
        refuse_links(path)
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            stack.callback(os.close, descriptor)
            locked = _system_lock(descriptor)
            owner, status = Owner.read(descriptor), os.fstat(descriptor)
            if locked is False or (owner is not None and owner.may_run(locked is not None, path)):
                raise _refusal(folder, owner)
            if not _is_same_file(descriptor, path):  # its holder has just removed it
                continue
            if status.st_nlink > 1 or (owner is None and status.st_size):
                problem = "has several names (hard links)" if status.st_nlink > 1 else "is not a lock of jaxgen"
                raise CheckpointError(
                    f"{folder / LOCK} {problem}, so it was left as it is. Make sure that nothing trains the run and "
                    f"move the file away, then {RESUME}."
                )
            if not status.st_size:
                stack.callback(path.unlink, missing_ok=True)  # if it cannot be written
            os.ftruncate(descriptor, 0)
            os.write(descriptor, (Owner.current().model_dump_json() + "\n").encode())
            os.fsync(descriptor)
            stack.pop_all()
            return descriptor


def _system_lock(descriptor: int) -> bool | None:
    """Whether the system gave the lock; ``None`` if the file system has no locks."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return None


@contextmanager
def probe_file(folder: Path) -> Iterator[Path]:
    """A new file in ``folder``, which is removed afterwards."""
    probe = folder / temporary_name("probe")
    probe.touch(exist_ok=False)
    try:
        yield probe
    finally:
        probe.unlink()


def _seconds_since_heartbeat(path: Path) -> float:
    """Seconds since the holder of the lock set its time, by the clock of the file system."""
    with suppress(OSError), probe_file(path.parent) as probe:
        return probe.stat().st_mtime - path.stat().st_mtime
    return 0.0


def _refusal(folder: Path, owner: Owner | None) -> UsageError:
    who = "another process" if owner is None else f"process {owner.pid} on the host {owner.host!a}"
    advice = "Wait for it to end or stop it, or choose another folder with --run DIR."
    if owner is not None and not owner.is_near():
        advice = (
            f"If it no longer runs, its lock expires {LEASE_SECONDS} seconds after its last heartbeat; or delete "
            f"{folder / LOCK} now."
        )
    return UsageError(f"The run {folder} is being trained by {who}, and only one process may. {advice}")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False
