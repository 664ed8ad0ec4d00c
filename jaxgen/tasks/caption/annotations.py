"""Captions files: reading the common formats, and matching captions to images."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from jaxgen.data.files import read_bytes, read_text
from jaxgen.data.tables import Column, check_same_style, column_position, read_rows
from jaxgen.errors import DataError, listed
from jaxgen.text import STANDARD

#: A line of the Flickr8k token format: ``name.jpg#0<TAB>caption``.
_TOKEN = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
_SUFFIXES = frozenset((".csv", ".json", ".token", ".tsv", ".txt"))
#: Number of bytes read to recognise the format of a file.
_BEGINNING = 1 << 16
_FORMATS = (
    "a Flickr8k token file (lines `name.jpg#0<TAB>caption`), COCO captions JSON (`images` and `annotations`), "
    "or a CSV or TSV table with a header"
)


class Matched(NamedTuple):
    """Images and their captions, in the order of the captions file."""

    names: list[str]  # image names, as in the folder or the features file
    captions: list[list[str]]  # one or more captions for each name
    images_left_out: list[str]  # images without captions
    captions_left_out: list[str]  # captioned images that do not exist


def read_captions(
    path: Path | str, *, image_column: str = "image", caption_column: str = "caption", empty: str = "refuse"
) -> dict[str, list[str]]:
    """Return a dictionary from image names to their captions, both in the order of the file.

    The format is recognised by the content: a Flickr8k token file, COCO captions JSON (in the order of its ``images``),
    or a table. A table is tab-separated without quoting if the file ends in ``.tsv`` or its first row has a tab, else
    CSV. White space in a caption becomes single spaces.

    Args:
        path: the captions file.
        image_column: the column of a table with the image names: a name in its header, or a position from 1.
        caption_column: the column with the captions, likewise.
        empty: what to do about captions without words, "refuse" or "skip".

    Raises:
        DataError: for malformed content, naming the line, and if no caption is left.
    """
    path = Path(path)
    text = read_text(path)
    kind = _kind(text[:_BEGINNING], path)
    if kind in ("json", "token"):
        pairs = (_coco if kind == "json" else _tokens)(text, path)
    else:
        pairs = _columns(text, kind, path, image_column, caption_column)
    captions: dict[str, list[str]] = {}
    for where, image, caption in pairs:
        words = " ".join(caption.split())
        if words:
            captions.setdefault(image, []).append(words)
        elif empty == "refuse":
            raise DataError(
                f"{where} of {path}: the caption of {image!r} is empty. Write one, remove it, "
                "or have empty captions skipped (--empty skip)."
            )
    if not captions:
        raise DataError(f"The file {path} has no captions in it. Give a file with an image and a caption in each row.")
    return captions


def find_captions(folder: Path | str, *, image_column: str = "image", caption_column: str = "caption") -> Path:
    """Return the only captions file in ``folder``, or else in its parent folder.

    Raises:
        DataError: if there is none, or more than one.
    """
    folder = Path(folder)
    for place in (folder, folder.resolve().parent):
        try:
            files = sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
        except OSError as error:
            raise DataError(f"The folder {place} cannot be listed: {error.strerror}. Make it readable.") from error
        found = [path for path in files if _holds_captions(path, image_column, caption_column)]
        if len(found) > 1:
            raise DataError(
                f"There are {len(found)} captions files in {place}: {listed([path.name for path in found], 3)}. "
                "Say which one to use (--captions)."
            )
        if found:
            return found[0]
    raise DataError(
        f"There is no captions file in {folder} or beside it. Put one there or name it: {_FORMATS} "
        f"with the columns {image_column!r} and {caption_column!r}."
    )


def match_captions(
    captions: Mapping[str, Sequence[str]], names: Iterable[str], *, where: str, missing: str = "refuse"
) -> Matched:
    """Match ``captions`` to images (or features) by name, or by the last part of the path.

    The last part ("a.jpg" of "x/a.jpg") is used only if it is unique.

    Args:
        captions: the captions of each image.
        names: the names of the images.
        where: the location of the images, for error messages.
        missing: what to do about images without captions and captions without images: "refuse" or "skip".

    Raises:
        DataError: if something is missing and ``missing`` is "refuse", and always if nothing matches.
    """
    names = list(names)
    if not names:
        raise DataError(f"There are no images in {where}. Give a folder that has image files in it.")
    known = _by_last_part(names) | {name: name for name in names}
    found: dict[str, list[str]] = {}
    lost = []
    for image, texts in captions.items():
        if image in known:
            found.setdefault(known[image], []).extend(texts)
        else:
            lost.append(image)
    if not found:
        raise DataError(
            f"Not one of the {len(captions)} captioned images is in {where}: the captions name {listed(captions, 3)}, "
            f"the images are {listed(names, 3)}. Give the captions of these images."
        )
    bare = [name for name in names if name not in found]
    if missing == "refuse" and (lost or bare):
        problem = f"captioned images are not in {where}" if lost else f"images in {where} have no caption"
        some, total = (lost, len(captions)) if lost else (bare, len(names))
        raise DataError(
            f"{len(some)} of {total} {problem}: {listed(some, 3)}. Complete them, or have them skipped "
            "(--missing skip)."
        )
    return Matched(list(found), list(found.values()), bare, lost)


def _kind(beginning: str, path: Path) -> str:
    """Return "json", "token", "tsv" or "csv". The columns of a table are not checked."""
    first = beginning.lstrip().partition("\n")[0]
    if first.startswith("{") or path.suffix.lower() == ".json":
        return "json"
    if _TOKEN.fullmatch(first):
        return "token"
    return "tsv" if path.suffix.lower() == ".tsv" or "\t" in first else "csv"


def _holds_captions(path: Path, image_column: str, caption_column: str) -> bool:
    """Whether a file looks like one for ``read_captions``, judged by its beginning (JSON: by the whole file)."""
    beginning = STANDARD.text(read_bytes(path, _BEGINNING).decode("utf-8", "ignore"))
    if not beginning.strip():
        return False
    kind = _kind(beginning, path)
    if kind == "json":
        return all(_occurs(f'"{key}"'.encode(), path) for key in ("annotations", "caption"))
    if kind == "token":
        return True
    header = beginning.lstrip("\n").partition("\n")[0]
    cells = [cell.strip('"') for cell in header.split("\t" if kind == "tsv" else ",")]
    positions = [column_position(column, "") for column in (image_column, caption_column)]
    if None not in positions:  # columns given by position, so no header; a table with fewer columns does not qualify
        return len(cells) > 1 and all(position <= len(cells) for position in positions if position)
    return {image_column, caption_column} <= set(cells)


def _occurs(needle: bytes, path: Path) -> bool:
    """Whether a file contains ``needle``, without reading it into memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(needle) >= 0


#: (position in the file, image, caption) of each caption.
_Pairs = Iterator[tuple[str, str, str]]


def _tokens(text: str, path: Path) -> _Pairs:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _TOKEN.fullmatch(line)
        if found is None:
            raise DataError(
                f"Line {number} of {path} is not `name.jpg#0<TAB>caption`, as its first line is: {line[:60]!r}. "
                "Correct or remove that line."
            )
        yield f"Line {number}", found["image"], found["caption"]


def _columns(text: str, kind: str, path: Path, image_column: str, caption_column: str) -> _Pairs:
    check_same_style([image_column, caption_column])
    if text.strip() and ("\t" if kind == "tsv" else ",") not in text.lstrip().partition("\n")[0]:
        raise DataError(f"The format of the captions file {path} is not known. Give {_FORMATS}.")
    columns = [Column((image_column,), "--image-column"), Column((caption_column,), "--caption-column")]
    for number, (image, caption) in read_rows(text, kind, path, columns):
        yield f"Line {number}", image, caption


class _CocoImage(BaseModel):
    id: StrictInt | StrictStr
    file_name: StrictStr


class _CocoCaption(BaseModel):
    image_id: StrictInt | StrictStr
    caption: StrictStr


class _Coco(BaseModel):
    """COCO captions, without the fields that nothing reads."""

    images: list[_CocoImage]
    annotations: list[_CocoCaption]


def _coco(text: str, path: Path) -> _Pairs:
    try:
        content = _Coco.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"The file {path} is not COCO captions JSON (`images` with id and file_name, `annotations` with image_id "
            f"and caption): {place}: {first['msg']}. Correct it, or download it again."
        ) from error
    captions: dict[int | str, list[tuple[str, str]]] = {image.id: [] for image in content.images}
    if len(captions) < len(content.images):
        raise DataError(f"Two images of {path} have the same id. Make the ids differ.")
    for number, annotation in enumerate(content.annotations):
        if annotation.image_id not in captions:
            raise DataError(
                f"Annotation {number} of {path} is of the image {annotation.image_id!r}, which is not among its "
                "`images`. Add the image, or remove the annotation."
            )
        captions[annotation.image_id].append((f"Annotation {number}", annotation.caption))
    for image in content.images:
        yield from ((where, image.file_name, caption) for where, caption in captions[image.id])


def _by_last_part(names: Sequence[str]) -> dict[str, str]:
    """Map the part after the last slash to the name, for parts that are unique."""
    parts = [name.rpartition("/")[2] for name in names]
    counts = Counter(parts)
    return {part: name for part, name in zip(parts, names) if counts[part] == 1}
