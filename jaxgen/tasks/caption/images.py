"""Image files of the common formats, read as 8-bit RGB arrays, and ``.npz`` files of precomputed features."""

from __future__ import annotations

import math
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxgen.data.files import NO_PROGRESS, ProgressReporter, walk_files
from jaxgen.errors import DataError, listed

if TYPE_CHECKING:  # importing the tasks does not load Pillow
    from PIL.Image import Image

#: A wider row may have 2**31 bits or more, for which Pillow raises ``MemoryError`` regardless of available memory.
WIDEST = 2**31 // 64 - 7
#: The formats that are read. Of Pillow's other formats, some run an external program (EPS), most are poorly maintained.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_ENDINGS = "apng avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
#: File name suffixes of images in a folder. The format itself is recognised by the content.
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split(" "))
#: Large images are first reduced by an integer factor, to at least this many times the target size.
REDUCING_GAP = 2.0


class Images(NamedTuple):
    """The result of ``read_images``: pixels, the paths they belong to, and the files that were skipped."""

    images: np.ndarray  # uint8 [N, H, W, 3]
    kept: list[int]  # indices into the list of paths, ascending
    skipped: list[tuple[str, str]]  # (path, reason), in the order of the paths


class _UnusableImage(Exception):
    """Why an image cannot be used; its text completes the message "The image X cannot be used: "."""


def find_images(folder: Path, watch: ProgressReporter = NO_PROGRESS) -> tuple[list[str], list[str]]:
    """Return the files under ``folder`` with a suffix in ``SUFFIXES``, and the others, as sorted paths with ``/``.

    Hidden files and folders are ignored, and runs, of which ``watch`` receives a note.

    Raises:
        DataError: if a folder cannot be listed.
    """
    images: list[str] = []
    others: list[str] = []
    for path in walk_files(folder, watch):
        (images if path.suffix.lower() in SUFFIXES else others).append(path.relative_to(folder).as_posix())
    return images, others


def read_image(path: Path | str, size: tuple[int, int]) -> np.ndarray:
    """Read one image and resize it to ``size`` (H, W), ignoring its aspect ratio; return uint8 [H, W, 3].

    All modes (CMYK, palettes, greys, the high byte of 16-bit channels) are converted to RGB without colour management.
    Transparent parts become white, the EXIF orientation is applied, and only the first frame of an animation is read.

    Raises:
        DataError: if the file is not an image, is damaged, truncated or too large, or has pixels without a defined
            white (floating-point numbers).
    """
    try:
        return _read(Path(path), size)
    except _UnusableImage as reason:
        raise DataError(f"The image {path} cannot be used: {reason}. Replace it, or leave it out.") from reason


def read_images(paths: Sequence[str], size: tuple[int, int], *, strict: bool = False) -> Images:
    """Read images as ``read_image`` does, one at a time, and skip those that cannot be used.

    Raises:
        DataError: if no image can be used, or if ``strict`` is set and one cannot.
    """
    images = np.empty((len(paths), *size, 3), np.uint8)
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    for i, path in enumerate(paths):
        try:
            images[len(kept)] = _read(Path(path), size)
            kept.append(i)
        except _UnusableImage as reason:
            if strict:
                raise DataError(
                    f"The image {path} cannot be used: {reason}. Replace it, remove it with its captions, or leave out "
                    "--strict to skip such files."
                ) from reason
            skipped.append((path, str(reason)))
    if not kept:
        path, first = skipped[0]
        raise DataError(f"None of the {len(paths)} images can be used; {path}: {first}. Check the folder.")
    return Images(images[: len(kept)], kept, skipped)


def describe_skipped(skipped: Sequence[tuple[str, str]], total: int, most: int = 3) -> list[str]:
    """Return a note about the files that ``read_images`` skipped, if any, with the first ``most`` reasons."""
    reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    more = "; …" if len(skipped) > most else ""
    return [f"{len(skipped)} of {total} images skipped ({reasons}{more})"] if skipped else []


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a file, or raise ``_UnusableImage``."""
    import PIL.Image as pillow

    pillow.init()
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _UnusableImage(f"it cannot be reached ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise _UnusableImage("it is not a file")
    if not status.st_size:
        raise _UnusableImage("it is empty")
    formats = [name for name in FORMATS if name in pillow.OPEN]
    width = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example about damaged metadata: only the pixels matter
            warnings.simplefilter("error", pillow.DecompressionBombWarning)  # more than 89 million pixels
            with pillow.open(path, formats=formats) as image:
                width = image.width
                return _pixels(image, size)
    except _UnusableImage:
        raise
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise _UnusableImage(f"it has too many pixels: {error}".rstrip(".")) from error
    except pillow.UnidentifiedImageError as error:
        raise _UnusableImage(f"its content is none of {', '.join(formats)}, or its beginning is damaged") from error
    except MemoryError as error:
        reason = "it needs more memory than there is"
        if width > WIDEST:
            reason = f"its rows of {width:,} pixels are too long: up to {WIDEST:,} pixels can be decoded"
        raise _UnusableImage(reason) from error
    except Exception as error:  # decoders raise almost any exception for damaged files: SyntaxError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _UnusableImage(f"it cannot be decoded: {reason}") from error


def _pixels(image: Image, size: tuple[int, int]) -> np.ndarray:
    """Decode an open image and resize it to ``size``, uint8 [H, W, 3]."""
    from PIL import Image as pillow
    from PIL import ImageOps

    side = math.ceil(REDUCING_GAP * max(size))
    image.draft(None, (side, side))  # decodes a JPEG at 1/2, 1/4 or 1/8 of its size, but not smaller than this
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    height, width = size
    image = _to_rgb(image).resize((width, height), pillow.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
    if image.mode == "RGBA":
        white = pillow.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.asarray(image)


def _to_rgb(image: Image) -> Image:
    """Convert a loaded image to the mode RGB, or to RGBA if it has transparency."""
    from PIL import Image as pillow

    if image.mode == "F":
        raise _UnusableImage("its pixels are floating-point numbers, and it is not known which is white")
    if not image.mode.startswith("I"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = np.asarray(image)  # Pillow would clip 16-bit values to 255
    if values.min() < 0 or values.max() > 0xFFFF:
        raise _UnusableImage("its pixels are integers of more than 16 bits, and it is not known which is white")
    grey = pillow.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey.convert("RGB")
    grey.putalpha(pillow.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey.convert("RGBA")


class Features(NamedTuple):
    """Precomputed feature vectors, used instead of images."""

    names: list[str]
    features: np.ndarray  # float32 [N, F] or [N, S, F]


def read_features(path: Path | str) -> Features:
    """Read ``features`` [N, F] or [N, S, F] and ``names`` [N] from an ``.npz`` file without unpickling anything.

    Features of any real type become float32.

    Raises:
        DataError: for arrays that are missing, damaged, not finite or of another shape or type, and for repeated names.
    """
    try:
        _check_npz_sizes(path)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            features, names = arrays["features"], arrays["names"]
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror or error}. Check the path.") from error
    except MemoryError as error:
        raise DataError(f"The features of {path} need more memory than there is. Store them as float16.") from error
    except Exception as error:  # zipfile and NumPy raise almost any exception for damaged files: TokenError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _unusable(path, f"cannot be read ({reason})") from error
    if names.dtype.kind not in "US" or features.dtype.kind not in "fiu":
        raise _unusable(path, f"are of the types {features.dtype} and {names.dtype}, not real numbers and strings")
    if features.ndim not in (2, 3) or 0 in features.shape or names.shape != features.shape[:1]:
        raise _unusable(path, f"have the shapes {features.shape} and {names.shape}, not [N, F] or [N, S, F], and [N]")
    try:
        labels = names.tolist() if names.dtype.kind == "U" else [name.decode() for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise _unusable(path, f"have a name that is not UTF-8 ({error})") from error
    with np.errstate(over="ignore"):
        features = features.astype(np.float32, copy=False)
    finite = np.isfinite(features.reshape(len(labels), -1)).all(axis=1)
    if not finite.all():
        odd = [labels[i] for i in np.flatnonzero(~finite)]
        raise _unusable(path, f"are not finite numbers (as float32) for {listed(odd, 3)}")
    if odd := [name for name, count in Counter(labels).items() if count > 1 or not name]:
        raise _unusable(path, f"have names that are empty or occur twice: {listed(odd, 3)}")
    return Features(labels, features)


def _check_npz_sizes(path: Path | str) -> None:
    """Raise ``ValueError`` if an array is not as large as its header says: NumPy allocates what the header says."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                newer = np.lib.format.read_magic(file) > (1, 0)
                read = np.lib.format.read_array_header_2_0 if newer else np.lib.format.read_array_header_1_0
                shape, _, dtype = read(file)
                needed, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
            if needed != there and not dtype.hasobject:  # NumPy refuses objects
                raise ValueError(f"{entry.filename} should have {needed} bytes of numbers and has {there}")


def _unusable(path: Path | str, problem: str) -> DataError:
    return DataError(
        f"The arrays `features` and `names` of {path} {problem}. Write the file again with numpy.savez(path, "
        "features=..., names=...)."
    )
