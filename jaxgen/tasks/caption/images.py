"""Read image files of the common formats as 8-bit RGB arrays, and ``.npz`` files of precomputed features."""

from __future__ import annotations

import collections
import math
import stat
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxgen.data.files import walk_files
from jaxgen.errors import DataError, UsageError
from jaxgen.tasks.caption.annotations import first_few

if TYPE_CHECKING:  # importing the tasks does not load Pillow
    from PIL.Image import Image

#: Images with more pixels are refused before decoding. This is Pillow's own limit, 256 MiB of RGB.
MOST_PIXELS = 89_478_485
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


def find_images(folder: Path) -> list[str]:
    """Return the files under ``folder`` with a suffix in ``SUFFIXES``, as sorted relative paths with ``/``.

    Hidden files and folders are ignored.

    Raises:
        DataError: if a folder cannot be listed.
    """
    names = (path.relative_to(folder).as_posix() for path in walk_files(folder) if path.suffix.lower() in SUFFIXES)
    return sorted(names)


def read_image(path: Path | str, size: tuple[int, int], *, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read one image and resize it to ``size`` (H, W), ignoring its aspect ratio; return uint8 [H, W, 3].

    All modes (CMYK, palettes, greys, the high byte of 16-bit channels) are converted to RGB without colour management.
    Transparent parts become white, the EXIF orientation is applied, and only the first frame of an animation is read.

    Raises:
        DataError: if the file is not an image, is damaged, truncated or too large, or has pixels without a defined
            white (floating-point numbers).
    """
    _check_size(size)
    try:
        return _read(Path(path), size, most_pixels)
    except _UnusableImage as reason:
        raise DataError(f"The image {path} cannot be used: {reason}. Replace it, or leave it out.") from reason


def read_images(
    paths: Iterable[Path | str], size: tuple[int, int], *, strict: bool = False, most_pixels: int = MOST_PIXELS
) -> Images:
    """Read images as ``read_image`` does, one at a time, and skip those that cannot be used.

    Raises:
        DataError: if no image can be used, or if ``strict`` is set and one cannot.
    """
    _check_size(size)
    paths = list(paths)
    images = np.empty((len(paths), *size, 3), np.uint8)
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    for i, path in enumerate(paths):
        try:
            images[len(kept)] = _read(Path(path), size, most_pixels)
            kept.append(i)
        except _UnusableImage as reason:
            if strict:
                raise DataError(
                    f"The image {path} cannot be used: {reason}. Replace it, remove it with its captions, or leave out "
                    "--strict to skip such files."
                ) from reason
            skipped.append((str(path), str(reason)))
    if not kept:
        raise DataError(
            f"None of the {len(paths)} images can be used; {skipped[0][0]}: {skipped[0][1]}. Check the folder."
            if paths
            else "No images were given. Give a folder that has image files in it."
        )
    return Images(images[: len(kept)], kept, skipped)


def describe_skipped(skipped: Sequence[tuple[str, str]], total: int, most: int = 3) -> list[str]:
    """Return a note about the files that ``read_images`` skipped, if any, with the first ``most`` reasons."""
    reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:most])
    more = "; …" if len(skipped) > most else ""
    return [f"{len(skipped)} of {total} images skipped ({reasons}{more})"] if skipped else []


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"The size of the images is {size!r}: give a height and a width of at least 1.")


def _read(path: Path, size: tuple[int, int], most_pixels: int) -> np.ndarray:
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example about damaged metadata: only the pixels matter
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=formats) as image:
                if image.width * image.height > most_pixels:
                    raise _UnusableImage(
                        f"{image.width} x {image.height} pixels are more than the limit of {most_pixels:,}"
                    )
                try:
                    return _pixels(image, size)
                except MemoryError as error:
                    if image.width <= WIDEST:
                        raise
                    raise _UnusableImage(
                        f"its rows of {image.width:,} pixels are too long: up to {WIDEST:,} pixels can be decoded"
                    ) from error
    except _UnusableImage:
        raise
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise _UnusableImage(f"it has too many pixels: {error}".rstrip(".")) from error
    except pillow.UnidentifiedImageError as error:
        raise _UnusableImage(f"its content is none of {', '.join(formats)}, or its beginning is damaged") from error
    except MemoryError as error:
        raise _UnusableImage("it needs more memory than there is") from error
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
        raise _UnusableImage("its pixels are floating-point numbers, of which it is not known what is white")
    if not image.mode.startswith("I"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = np.asarray(image)  # Pillow would clip 16-bit values to 255
    if values.min() < 0 or values.max() > 0xFFFF:
        raise _UnusableImage("its pixels are integers of more than 16 bits, of which it is not known what is white")
    grey = pillow.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey.convert("RGB")
    grey.putalpha(pillow.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey.convert("RGBA")


class Features(NamedTuple):
    """Precomputed feature vectors, used instead of images."""

    names: list[str]
    features: np.ndarray  # float32 [N, F] or [N, P, F]


def read_features(path: Path | str) -> Features:
    """Read ``features`` [N, F] or [N, P, F] and ``names`` [N] from an ``.npz`` file without unpickling anything.

    Features of any real type become float32. Shapes are checked before anything is allocated.

    Raises:
        DataError: for arrays that are missing, damaged, not finite or of another shape or type, and for repeated names.
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
    except Exception as error:  # zipfile and NumPy raise almost any exception for damaged files: TokenError, …
        raise DataError(
            f"The file {path} is not an .npz file, or is damaged ({error}). "
            "Write it with numpy.savez(path, features=..., names=...)."
        ) from error
    _check_features(features, names, path)
    return Features(names, features)


def _header(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[int, ...]:
    """Return the shape of an array in an ``.npz`` file; check its type and its size in bytes without allocating it."""
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
        except MemoryError as error:  # the header is a Python literal, and this one is nested too deeply
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
