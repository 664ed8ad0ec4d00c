"""The lock that allows one trainer per run: a file lock of the system and, across hosts, a lease."""

from __future__ import annotations

import atexit
import os
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor
from pydantic import BaseModel, ConfigDict

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import RESUME, parse_json, refuse_links, run_dir_missing, unwritable, write_errors

LOCK = ".lock"
#: Seconds between two heartbeats of the holder, which set the time of the file.
HEARTBEAT_SECONDS = 20
#: Seconds without a heartbeat after which the lock of another host expires. Network file systems may show the time of a
#: file up to a minute late.
LEASE_SECONDS = 180
#: Temporary files of ``replace_file`` and of probes, with the id of the process that writes them.
_TEMPORARY = re.compile(r"\.(?:.+\.([0-9]{1,9})-[0-9a-f]{8}|probe-([0-9]{1,9}))\.tmp")


class Owner(BaseModel):
    """The process that wrote a lock file."""

    model_config = ConfigDict(strict=True, frozen=True)
    pid: int
    host: str
    #: The boot of that machine, see ``boot_id``.
    boot: str
    #: Its ``start_time``, because process ids are reused.
    started: int | None = None

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls(pid=os.getpid(), host=platform.node(), boot=boot_id(), started=start_time(os.getpid()))

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
        here = Owner.current()
        if self.boot == here.boot:
            return not locks_work and self.started == start_time(self.pid) and is_running(self.pid)
        # This host with another boot was restarted since, so the process is gone.
        return self.host != here.host and _seconds_since_heartbeat(path) < LEASE_SECONDS


class RunLock:
    """The right of this process to train the run in ``folder``: ``take`` it, and ``release`` it when done.

    The system releases the lock when the process ends, however it ends; the content that it leaves in the file is then
    ignored. On a file system without locks, the owner named in the file decides. A process on another host, whose lock
    may not be visible here, keeps updating the time of the file (its lease). Readers need no lock.
    """

    _held: dict[Path, RunLock] = {}
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_held.clear)  # a fork holds no lock

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.in_training = False
        self._descriptor = descriptor
        self._released = threading.Event()
        threading.Thread(target=self._heartbeat, name="run lock", daemon=True).start()

    def _heartbeat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS) and self._is_ours():
            with suppress(OSError):
                os.utime(self.folder / LOCK)

    @classmethod
    def take(cls, folder: str | os.PathLike[str]) -> RunLock:
        """The lock of the run in ``folder``, which this process may hold already.

        Temporary files that killed processes left there are removed.

        Raises:
            UsageError: names the process and the host that hold it.
            CheckpointError: the system refuses.
        """
        with write_errors(Path(folder) / LOCK, needed=4096):
            return cls._take(Path(folder))

    @classmethod
    def _take(cls, folder: Path) -> RunLock:
        place = folder.resolve()
        held = cls._held.get(place)
        if held is not None and held._is_in_place():
            return held
        cls._held[place] = lock = cls(place, _acquire(place / LOCK, folder))
        _remove_temporaries(place)
        return lock

    @classmethod
    @contextmanager
    def kept(cls, folder: str | os.PathLike[str], new: bool = True) -> Iterator[RunLock]:
        """Take the lock, making the folder if needed, and keep it if the block succeeds.

        Otherwise it is released, and the folders that were made are removed again.

        Raises:
            UsageError: if another process holds the lock, or the system refuses and the run is ``new``.
            CheckpointError: if the system refuses and the run is not new.
        """
        place = Path(folder).resolve()
        before, made = cls._held.get(place), [each for each in (place, *place.parents) if not os.path.lexists(each)]
        try:
            with creation_errors(Path(folder)) if new else write_errors(Path(folder)):
                place.mkdir(parents=True, exist_ok=True)
                lock = cls._take(Path(folder))
            yield lock
        except BaseException:
            held = cls._held.get(place)
            if held is not None and held is not before:
                held.release()
            for each in made:
                with suppress(OSError):  # one that is not empty stays
                    each.rmdir()
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
        held = cls._held.get(Path(folder).resolve())
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
            if self._is_ours():
                with suppress(OSError):
                    os.unlink(self.folder / LOCK)
            del self._held[self.folder]
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_ours(self) -> bool:
        """Whether the lock is in place and no process on another host has taken it."""
        return self._is_in_place() and Owner.read(self._descriptor) in (None, Owner.current())

    def _is_in_place(self) -> bool:
        """Whether the file in the folder is the one that is locked, not one that was made since."""
        return _is_same_file(self._descriptor, self.folder / LOCK)


atexit.register(RunLock.release_all)


@contextmanager
def creation_errors(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``UsageError``: no run can be made in ``folder``."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"Cannot make a run in {folder}: {error.strerror}. Choose a folder that you may write with `--run DIR`."
        ) from error


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


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine started; ``None`` if the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _acquire(path: Path, folder: Path) -> int:
    """The descriptor of the locked file at ``path``. Raises ``UsageError`` if another process holds it."""
    while True:
        refuse_links(path)
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            stack.callback(os.close, descriptor)
            locked = _system_lock(descriptor)
            owner = Owner.read(descriptor)
            if locked is False or (owner is not None and owner.may_run(locked is not None, path)):
                raise _refusal(folder, owner)
            if _is_same_file(descriptor, path):  # otherwise its holder has just removed it
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
    probe = folder / f".probe-{os.getpid()}.tmp"
    probe.unlink(missing_ok=True)  # it may be a link
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
    here = Owner.current()
    who = "another process" if owner is None else f"process {owner.pid} on the host {owner.host!a}"
    advice = "Wait for it to end or stop it, or choose another folder with `--run`."
    if owner is not None and owner.host != here.host and owner.boot != here.boot:
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


def _remove_temporaries(folder: Path) -> None:
    for entry in os.scandir(folder):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and entry.is_file(follow_symlinks=False) and not is_running(int(match[1] or match[2])):
            with suppress(OSError):
                os.unlink(entry.path)
