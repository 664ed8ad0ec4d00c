"""Features of images, computed beforehand by any program, in place of the images: an ``.npz`` file."""

from __future__ import annotations

import collections
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen.data.captions import first_few
from jaxgen.errors import DataError


class Features(NamedTuple):
    """Vectors computed beforehand in place of images."""

    names: list[str]
    features: np.ndarray  # float32 [N, F] or [N, P, F]


def read_features(path: Path | str) -> Features:
    """``features`` [N, F] or [N, P, F] and ``names`` [N] of an ``.npz`` file; nothing in it is unpickled.

    Features of any real type become float32. Shapes are read and compared before anything is allocated. Raises
    ``DataError`` for arrays that are missing, of other shapes or types, damaged, not finite, or names that repeat.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            shape, names_shape = (_header(archive, name, path) for name in ("features", "names"))
        if len(shape) not in (2, 3) or 0 in shape or names_shape != shape[:1]:
            raise DataError(
                f"The features of {path} have the shape {shape} and their names {names_shape}: "
                "they must be [N, F] or [N, P, F], and [N], with nothing of size 0."
            )
        with np.load(path, allow_pickle=False) as arrays, np.errstate(over="ignore"):
            features = arrays["features"].astype(np.float32, copy=False)
            names = [name.decode() if isinstance(name, bytes) else name for name in arrays["names"].tolist()]
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror or error}. Check the path.") from error
    except MemoryError as error:
        raise DataError(f"The features of {path} need more memory than there is. Store them as float16.") from error
    except DataError:
        raise
    except Exception as error:  # what is damaged makes zipfile and NumPy raise nearly everything: TokenError, …
        raise DataError(
            f"The file {path} is not an .npz file, or is damaged ({error}). "
            "Write it with numpy.savez(path, features=..., names=...)."
        ) from error
    _check_features(features, names, path)
    return Features(names, features)


def _header(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[int, ...]:
    """The shape of an array in an ``.npz`` file; its type and the bytes there are checked, and nothing is allocated."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        names = ", ".join(sorted(item.removesuffix(".npy") for item in archive.namelist())) or "nothing"
        raise DataError(
            f"The file {path} has no array {name!r}; it has: {names}. "
            "Write it with numpy.savez(path, features=..., names=...)."
        ) from None
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise DataError(
                f"The array {name!r} of {path} is of a kind that is not read. Store plain numbers or strings."
            )
        try:
            shape, _, dtype = read[version](file)
        except MemoryError as error:  # a header is a line of Python, and this is one that nests too deeply
            raise ValueError("a header is no description of an array") from error
        there, needed = entry.file_size - file.tell(), math.prod(shape) * dtype.itemsize
    if dtype.kind not in ("US" if name == "names" else "fiu"):
        wanted = "strings: numpy.array(names, dtype=str)" if name == "names" else "real numbers"
        raise DataError(f"The array {name!r} of {path} is of the type {dtype}. It must be of {wanted}.")
    if there != needed:
        raise DataError(
            f"The array {name!r} of {path} should be {needed} bytes, but {there} are there. Write it again."
        )
    return shape


def _check_features(features: np.ndarray, names: Sequence[str], path: Path) -> None:
    finite = np.isfinite(features.reshape(len(names), -1)).all(axis=1)
    if not finite.all():
        worst = int(np.argmin(finite))
        raise DataError(
            f"The features of {int((~finite).sum())} of {len(names)} images in {path} are not finite numbers "
            f"(as float32), the first those of {names[worst]!r}. Compute them again, or leave them out."
        )
    if len(set(names)) < len(names) or "" in names:
        counts = collections.Counter(names)
        odd = [name for name, count in counts.items() if count > 1 or not name]
        raise DataError(f"The names in {path} must differ and not be empty, but these do not: {first_few(odd)}.")
