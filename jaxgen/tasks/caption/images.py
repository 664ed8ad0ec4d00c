"""Image files of any common kind to 8-bit RGB, one at a time (pillow, the extra ``[image]``).

Pictures come in all sizes. A picture is reduced by whole factors where it is read, so that it fits a canvas of
``CANVAS`` times the size wanted, whatever its own size; the exact size is then made of many canvases of one shape at
once, by a function that the caller hands in (``resize``).
"""

from __future__ import annotations

import collections
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import DataError, UsageError
from jaxgen.tasks.caption.annotations import first_few

#: Pictures of more pixels than this are refused before they are decoded: pillow's own limit, 256 MiB of RGB.
MOST_PIXELS = 89_478_485
#: Rows of more pixels than this may have 2**31 bits: pillow then says that the memory is short, however much there is.
WIDEST = 2**31 // 64 - 7
#: A canvas is so many times as high and as wide as the pictures wanted.
CANVAS = 4
#: The formats that are read. Not pillow's others: some start another program (EPS), most have no care taken of them.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ENDINGS = "apng avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
#: What names of image files end in, for finding them in folders; what a file is, its content says.
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split(" "))
#: How many canvases are made to the exact size in one call: always so many, so that one shape is compiled.
TOGETHER = 32
#: The same for a picture by itself. Not one: the loop over pictures would be compiled to something else than a loop.
ALONE = 2
_ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values but 1 (upright)
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
#: Canvases [N, 4H, 4W, 3] and the heights and widths used of each, int32 [N, 2] -> uint8 [N, H, W, 3].
Resize = Callable[[np.ndarray, np.ndarray], Any]


class Images(NamedTuple):
    """What ``read_images`` found: pixels, which of the paths they are of, and what was left out."""

    images: np.ndarray  # uint8 [N, H, W, 3]
    kept: list[int]  # positions in the list of paths, ascending
    skipped: list[tuple[str, str]]  # (path, why), in the order of the paths


class _Unusable(Exception):
    """Why a file gives no picture: the end of the sentence "The image X cannot be used: "."""


def find_images(folder: Path) -> list[str]:
    """The files under ``folder`` whose names end as those of images do, as sorted paths relative to it with ``/``.

    Hidden files and folders are left out. Raises ``DataError`` for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"The folder {error.filename} cannot be listed: {error.strerror}. Make it readable.")

    found = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(here, name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def read_image(path: Path | str, size: tuple[int, int], *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """One picture as uint8 [h, w, 3], reduced by whole factors until h <= 4H and w <= 4W for the ``size`` (H, W).

    Reduction is by averages over blocks of pixels, each axis by itself, and never to less than twice the size wanted.
    CMYK, palettes, greys, 16-bit channels (their high byte) and others become RGB without colour management;
    transparent parts are laid over white, the EXIF orientation is followed, of several frames the first is read.
    Raises ``DataError`` naming the file and the reason: no image, damaged, cut off, more than ``most_pixels``, or
    pixels whose white is not known (floating point).
    """
    pillow = _pillow()
    try:
        return _read(pillow, Path(path), _checked(size), most_pixels)
    except _Unusable as reason:
        raise DataError(f"The image {path} cannot be used: {reason}. Replace it, or leave it out.") from reason


def read_exactly(path: Path | str, size: tuple[int, int], resize: Resize) -> np.ndarray:
    """One picture as uint8 [H, W, 3], bit for bit that of ``read_images``; raises ``DataError`` as ``read_image``."""
    picture = read_image(path, size)
    canvases = np.zeros((ALONE, CANVAS * size[0], CANVAS * size[1], 3), np.uint8)
    extents = np.ones((ALONE, 2), np.int32)
    canvases[0, : picture.shape[0], : picture.shape[1]] = picture
    extents[0] = picture.shape[:2]
    exact: np.ndarray = np.asarray(resize(canvases, extents))[0]
    return exact


def read_images(
    paths: Iterable[Path | str],
    size: tuple[int, int],
    resize: Resize,
    *,
    strict: bool = False,
    most_pixels: int = MOST_PIXELS,
) -> Images:
    """The pictures of ``paths`` at exactly ``size`` (H, W); those that cannot be used are left out and said.

    ``resize`` gets canvases and the part used of each (``Resize``). One file is decoded at a time. ``strict`` raises
    ``DataError`` for the first that cannot be used instead; without it the same is raised when none can be.
    """
    pillow, (height, width), paths = _pillow(), _checked(size), list(paths)
    images = np.empty((len(paths), height, width, 3), np.uint8)
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    canvases = np.zeros((TOGETHER, CANVAS * height, CANVAS * width, 3), np.uint8)
    extents = np.ones((TOGETHER, 2), np.int32)
    waiting = 0
    for place, path in enumerate(paths):
        try:
            picture = _read(pillow, Path(path), size, most_pixels)
        except _Unusable as reason:
            if strict:
                raise DataError(
                    f"The image {path} cannot be used: {reason}. Replace it or remove it with its captions, "
                    "or have such files skipped by leaving strict reading (--strict) out."
                ) from reason
            skipped.append((str(path), str(reason)))
            continue
        canvases[waiting, : picture.shape[0], : picture.shape[1]] = picture
        extents[waiting] = picture.shape[:2]
        kept.append(place)
        waiting += 1
        if waiting == TOGETHER:
            images[len(kept) - waiting : len(kept)] = resize(canvases, extents)
            waiting = 0
    if waiting:
        images[len(kept) - waiting : len(kept)] = np.asarray(resize(canvases, extents))[:waiting]
    if not kept:
        raise DataError(
            f"None of the {len(paths)} images can be used; {skipped[0][0]}: {skipped[0][1]}. Check the folder."
            if paths
            else "No images were given. Give a folder that has image files in it."
        )
    return Images(images[: len(kept)], kept, skipped)


def say_skipped(skipped: Sequence[tuple[str, str]], total: int, most: int = 3) -> str:
    """A sentence on what ``read_images`` left out of ``total`` files: how many, the first ``most`` with reasons."""
    if not skipped:
        return f"All {total} images can be used."
    names = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    more = "; …" if len(skipped) > most else ""
    verb = "was" if len(skipped) == 1 else "were"
    return f"{len(skipped)} of {total} images {verb} skipped ({names}{more})."


def _pillow() -> ModuleType:
    """``PIL.Image`` with its formats loaded; raises ``UsageError`` where pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            'Reading image files needs pillow. Install it with: pip install "jaxgen[image]", '
            "or give features computed beforehand (.npz)."
        ) from error
    Image.init()
    return Image


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"The size of the images is {size!r}: give a height and a width of at least 1.")
    return size


def _read(pillow: Any, path: Path, size: tuple[int, int], most_pixels: int) -> np.ndarray:
    """``read_image``, with ``_Unusable`` for every file that gives no picture."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _Unusable(f"it cannot be reached ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise _Unusable("it is not a file")
    if not status.st_size:
        raise _Unusable("it is empty")
    formats = [name for name in FORMATS if name in pillow.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata and the like: the pixels are what counts
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=formats) as image:
                if image.width * image.height > most_pixels:
                    raise _Unusable(f"{image.width} x {image.height} pixels are more than the limit of {most_pixels:,}")
                try:
                    return _pixels(pillow, image, size)
                except MemoryError as error:
                    if image.width <= WIDEST:
                        raise
                    raise _Unusable(
                        f"its rows of {image.width:,} pixels are longer than what can be decoded: up to {WIDEST:,} "
                        "pixels always can"
                    ) from error
    except _Unusable:
        raise
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise _Unusable(f"it has too many pixels: {error}".rstrip(".")) from error
    except pillow.UnidentifiedImageError as error:
        raise _Unusable(f"its content is none of {', '.join(formats)}, or its beginning is damaged") from error
    except MemoryError as error:
        raise _Unusable("it needs more memory than there is") from error
    except Exception as error:  # what is damaged makes decoders raise nearly everything: SyntaxError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _Unusable(f"it cannot be decoded: {reason}") from error


def _pixels(pillow: Any, image: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an open image, as ``read_image`` says."""
    if image.format in ("JPEG", "MPO"):  # these decode at 1/2, 1/4 or 1/8 directly, to no less than what is asked for
        rows, columns = size[::-1] if _turned(image) else size
        image.draft(None, (2 * columns, 2 * rows))
    image.load()
    turn, turned = image.getexif().get(_ORIENTATION), _turned(image)  # anew: pillow turns TIFFs while it loads them
    image = _colours(pillow, image)
    rows, columns = size[::-1] if turned else size
    image = image.reduce((max(1, image.width // (2 * columns)), max(1, image.height // (2 * rows))))
    if image.mode == "RGBA":
        white = pillow.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    if turn in _TURNS:
        image = image.transpose(pillow.Transpose[_TURNS[turn]])
    return np.asarray(image)


def _turned(image: Any) -> bool:
    """Whether the EXIF orientation makes columns of the rows."""
    return image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)


def _colours(pillow: Any, image: Any) -> Any:
    """The loaded image in the mode RGB, or RGBA if any of it may be transparent."""
    if image.mode == "F":
        raise _Unusable("its pixels are floating-point numbers, of which it is not known what is white")
    if not image.mode.startswith("I"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = np.asarray(image)  # pillow would clip 16 bits to 255
    if values.min() < 0 or values.max() > 0xFFFF:
        raise _Unusable("its pixels are whole numbers of more than 16 bits, of which it is not known what is white")
    grey = pillow.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey.convert("RGB")
    grey.putalpha(pillow.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey.convert("RGBA")


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
