"""What lies in a folder of checkpoints, and changes to it that are told of when the system refuses them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxgen.errors import CheckpointError
from jaxgen.store.files import removed, sync_folder, unwritable
from jaxgen.store.format import DamagedCheckpointError, UnreadableCheckpointError, check_files, read_record


def entries(directory: Path) -> list[Path]:
    """What lies in ``directory``, none when it does not exist. Refused: a link, which leads to the files of others."""
    try:
        mode = os.lstat(directory).st_mode
        if not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "not a folder"
            raise CheckpointError(
                f"{directory} is {what}: a run keeps its checkpoints in a folder of its own. Put that folder there."
            )
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableCheckpointError(
            f"{directory} cannot be read now: {error.strerror}. Nothing was changed. Repeat the command once it can be."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether it is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()


def is_whole(folder: Path, step: int) -> bool:
    """Whether a checkpoint is as it was saved. Raises ``CheckpointError`` if none can tell now."""
    try:
        check_files(folder, step, read_record(folder, step))
    except DamagedCheckpointError:
        return False
    return True


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """What the system refuses while entered is the ``CheckpointError`` of a ``directory`` that cannot be written."""
    try:
        yield
    except OSError as error:
        raise unwritable(directory, error) from error


def size_on_disk(folder: Path) -> int:
    """The bytes that the files of ``folder`` take, in whole blocks where the system tells them."""
    with suppress(OSError):
        found = [path.stat() for path in folder.rglob("*")]
        return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in found)
    return 0


def sync_tree(folder: Path) -> None:
    """Ask the system to put all that lies in ``folder`` on the disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "r+b") as file:  # Windows syncs files open for writing only
                os.fsync(file.fileno())


@contextmanager
def staying(folder: Path, partial: Path) -> Iterator[None]:
    """``FileNotFoundError`` unless ``folder``, into whose ``partial`` the block writes, is there until its end.

    Where it is removed or moved meanwhile, Orbax makes anew whatever is missing above its files, and a run would go on
    where nothing else of it is. What was made so is removed.
    """
    there = [(each, _held(each)) for each in (folder, folder.parent)]  # held, so that no other gets their numbers
    try:
        try:
            yield
        except Exception as error:
            if not _is_still(*there[0]):
                raise removed() from error
            raise
        if not _is_still(*there[0]):
            raise removed()
    finally:
        if not _is_still(*there[0]):
            shutil.rmtree(partial, ignore_errors=True)
        for each, descriptor in there:
            with suppress(OSError):  # one that holds something by now was not made by Orbax alone
                if not _is_still(each, descriptor):
                    each.rmdir()
            if descriptor is not None:
                os.close(descriptor)


def _held(folder: Path) -> int | None:
    """A descriptor of a folder; ``None`` on Windows, which gives none and removes no folder that is written to."""
    return None if os.name == "nt" else os.open(folder, getattr(os, "O_PATH", os.O_RDONLY))


def _is_still(folder: Path, descriptor: int | None) -> bool:
    try:
        return descriptor is None or os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except OSError:
        return False
