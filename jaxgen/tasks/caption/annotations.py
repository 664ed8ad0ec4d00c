"""Captions files: reading the common formats, and matching captions to images."""

from __future__ import annotations

import json
import mmap
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from jaxgen.data.files import read_bytes, read_text
from jaxgen.data.tables import EXCEL_SEPARATOR, Column, FirstRow, check_same_style, read_rows
from jaxgen.errors import DataError, listed
from jaxgen.text import STANDARD

#: A line of the Flickr8k token format: ``name.jpg#0<TAB>caption``.
_TOKEN = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
#: The same with a blank in place of the tab.
_BLANK_FOR_TAB = re.compile(r"[^\t ,|]+\.[A-Za-z]{3,4}#[0-9]+ +\S")
_SUFFIXES = frozenset((".csv", ".json", ".jsonl", ".ndjson", ".token", ".tsv", ".txt"))
#: Number of bytes read to recognise the format of a file.
_BEGINNING = 1 << 16
_FORMATS = (
    "a Flickr8k token file (lines `name.jpg#0<TAB>caption`), COCO captions JSON (`images` and `annotations`), JSON of "
    "Karpathy's splits (`images` with `sentences`), a CSV, TSV or JSONL table, or a .txt file beside each image"
)
#: The default columns, and the names that they have in well-known data sets.
_COLUMNS = {
    "image": ("image", "file_name", "filename", "image_name", "image_path", "file", "path"),
    "caption": ("caption", "text", "comment", "captions", "sentence", "description"),
}


class Annotations(NamedTuple):
    """The captions of each image, in the order of the captions file."""

    captions: dict[str, list[str]]
    files: list[Path]  # those that were read
    splits: dict[str, str]  # the split of each image, where the file names it: train, val or test
    first_rows: tuple[FirstRow, ...]
    skipped: int  # how many captions have no words


class Matched(NamedTuple):
    """Images and their captions, in the order of the captions file."""

    names: list[str]  # image names, as in the folder or the features file
    captions: list[list[str]]  # one or more captions for each name
    images_left_out: list[str]  # images without captions
    captions_left_out: list[str]  # captioned images that do not exist
    unread: list[str]  # captioned images that exist in a format that is not read
    known_as: list[str]  # the name of each image in the captions file


def read_captions(
    path: Path | str,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    empty: str = "refuse",
    header: bool | None = None,
    names: Iterable[str] = (),
) -> Annotations:
    """Return the captions of images, by name.

    The format is recognised by the content: a Flickr8k token file, COCO captions JSON (in the order of its ``images``),
    JSON of Karpathy's splits, or a table. A table is tab-separated if the file ends in ``.tsv`` or its first row has a
    tab, lines of JSON, or else what ``read_rows`` takes a ``.csv`` file for. The default columns are also found under
    the names of well-known data sets. For a folder, the captions are the lines of its ``.txt`` files that are named as
    the images are. White space in a caption becomes single spaces.

    Args:
        path: the captions file, or a folder.
        image_column: the column of a table with the image names: a name in its header, or a position from 1.
        caption_column: the column with the captions, likewise.
        empty: what to do about captions without words, "refuse" or "skip".
        header: whether the first row of a table is a header, as in ``read_rows``.
        names: the names of the images, for a folder.

    Raises:
        DataError: for malformed content, naming the line, and if no caption is left.
    """
    path = Path(path)
    files = [path]
    splits: dict[str, str] = {}
    first_rows: list[FirstRow] = []
    if path.is_dir():
        beside = _sidecars(path, names)
        files = [*beside.values()]
        pairs = _sidecar_captions(beside)
    else:
        text = read_text(path)
        kind = _kind(text[:_BEGINNING], path)
        if kind == "json":
            is_karpathy = '"sentences"' in text and '"annotations"' not in text
            pairs = _karpathy(text, path, splits) if is_karpathy else _coco(text, path)
        elif kind == "token":
            pairs = _tokens(text, path)
        else:
            pairs = _columns(text, kind, path, image_column, caption_column, header, first_rows)
    captions: dict[str, list[str]] = {}
    skipped = 0
    for where, image, caption in pairs:
        words = " ".join(caption.split())
        if words:
            captions.setdefault(image, []).append(words)
        elif empty == "skip":
            skipped += 1
        else:
            raise DataError(
                f"{where}: the caption of {image!r} is empty. Write one, remove it, "
                "or have empty captions skipped (--empty skip)."
            )
    if not captions:
        raise DataError(f"{path} has no captions in it. Give a file with an image and a caption in each row.")
    return Annotations(captions, files, splits, tuple(first_rows), skipped)


def find_captions(
    folder: Path | str,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    names: Iterable[str] = (),
) -> Path:
    """Return the only captions file in ``folder``, or else in its parent folder.

    If there is none, but a ``.txt`` file beside one of the images ``names``, return ``folder``.

    Raises:
        DataError: if there is none, or more than one.
    """
    folder = Path(folder)
    beside = _sidecars(folder, names)
    for place in (folder, folder.resolve().parent):
        try:
            files = sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
        except OSError as error:
            raise DataError(f"The folder {place} cannot be listed: {error.strerror}. Make it readable.") from error
        found = [path for path in files if _holds_captions(path, image_column, caption_column)]
        if len(found) > 1 and not (beside and place != folder):
            raise DataError(
                f"There are {len(found)} captions files in {place}: {listed([path.name for path in found], 3)}. "
                "Say which one to use (--captions)."
            )
        if len(found) == 1:
            return found[0]
    if beside:
        return folder
    raise DataError(
        f"There is no captions file in {folder} or beside it. Put one there or name it: {_FORMATS}. A table has the "
        f"columns {image_column!r} and {caption_column!r}, or others that --image-column and --caption-column name."
    )


def match_captions(
    captions: Mapping[str, Sequence[str]],
    names: Iterable[str],
    *,
    where: str,
    missing: str = "refuse",
    others: Iterable[str] = (),
) -> Matched:
    """Match ``captions`` to images (or features) by name, or by the last parts of the path if that is unambiguous.

    Either path may have more folders in front. Backslashes count as slashes. Letter case and the Unicode form of names
    matter only where they tell images apart.

    Args:
        captions: the captions of each image.
        names: the names of the images.
        where: the location of the images.
        missing: what to do about images without captions and captions without images: "refuse" or "skip".
        others: the names of other files at this location.

    Raises:
        DataError: if something is missing and ``missing`` is "refuse", and always if nothing matches.
    """
    names = list(names)
    known = _match(captions, names, where)
    found: dict[str, list[str]] = {}
    known_as: dict[str, str] = {}
    for image, name in known.items():
        found.setdefault(name, []).extend(captions[image])
        known_as.setdefault(name, image)
    lost = [image for image in captions if image not in known]
    unread = _match(lost, list(others), where)
    lost = [image for image in lost if image not in unread]
    bare = [name for name in names if name not in found]
    if unread and (not found or (missing == "refuse" and not lost)):
        skip = " Or have them skipped (--missing skip)." if found else ""
        raise DataError(
            f"{len(unread):,} of {len(captions):,} captioned images are there, in {where}, but in a format that is not "
            f"read: {listed(unread, 3)}. Convert them to JPEG or PNG, with names that end so.{skip}"
        )
    if not names:
        raise DataError(f"There are no images in {where}. Give a folder that has image files in it.")
    if not found:
        raise DataError(
            f"Not one of the {len(captions)} captioned images is in {where}: the captions name {listed(captions, 3)}, "
            f"the images are {listed(names, 3)}. Give the captions of these images."
        )
    if missing == "refuse" and (lost or bare):
        problem = f"images in {where} have no caption"
        if lost:
            problem = f"captioned images are not in {where}, or match several images there"
        some, total = (lost, len(captions)) if lost else (bare, len(names))
        raise DataError(
            f"{len(some)} of {total} {problem}: {listed(some, 3)}. Complete them, or have them skipped "
            "(--missing skip)."
        )
    return Matched(list(found), list(found.values()), bare, lost, list(unread), list(known_as.values()))


def _match(images: Iterable[str], names: Sequence[str], where: str) -> dict[str, str]:
    """Map images, as captions name them, to ``names``; those that match none or several are left out."""
    matched: dict[str, str] = {}
    place = _path(str(Path(where).absolute()))
    for fold in (str, _folded):
        lost = [image for image in images if image not in matched]
        matched |= _match_paths(lost, names, fold(place), fold, {*matched.values()})
    return {image: matched[image] for image in images if image in matched}


def _match_paths(
    images: Iterable[str], names: Sequence[str], place: str, fold: Callable[[str], str], taken: Collection[str]
) -> dict[str, str]:
    """Map images to names whose last parts are equal after ``fold``; ``taken`` names have matched better."""
    whole: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for name in names:
        path = fold(_path(name))
        whole.setdefault(path, []).append(name)
        for end in _ends(path):
            ends.setdefault(end, []).append(name)
    sure: dict[str, str] = {}
    likely: dict[str, str] = {}
    for image in images:
        path = fold(_path(image))
        found = whole.get(path) or ends.get(path)
        if found is not None:  # the image's path is the end of the file's
            if len(found) == 1:
                sure[image] = found[0]
            elif image in found:
                sure[image] = image
            continue
        end = next((end for end in _ends(path) if end in whole), "")
        if len(whole.get(end, "")) != 1:
            continue
        name = whole[end][0]
        if f"/{place}/".endswith(f"/{path.removesuffix(end)}"):
            sure[image] = name
        else:
            likely[image] = name
    if fold is not str:  # another spelling is right if no other image has it
        likely, sure = likely | sure, {}
    taken = {*taken, *sure.values()}
    paths: dict[str, set[str]] = {}
    for image, name in likely.items():
        paths.setdefault(name, set()).add(_path(image))
    return sure | {image: name for image, name in likely.items() if name not in taken and len(paths[name]) == 1}


def _path(name: str) -> str:
    """Return a path with slashes, without empty parts and the folder ``.``."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _ends(path: str) -> list[str]:
    """Return a path without its first folder, without its first two, and so on."""
    parts = path.split("/")
    return ["/".join(parts[n:]) for n in range(1, len(parts))]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _kind(beginning: str, path: Path) -> str:
    """Return "json", "jsonl", "token", "tsv" or "csv". The columns of a table are not checked.

    Raises ``DataError`` for a first line with a blank in place of the tab.
    """
    suffix = path.suffix.lower()
    first, _, rest = beginning.lstrip().partition("\n")
    if suffix in (".jsonl", ".ndjson") or (rest.lstrip().startswith("{") and _keys(first)):
        return "jsonl"
    if first.startswith("{") or suffix == ".json":
        return "json"
    if _TOKEN.fullmatch(first):
        return "token"
    if _BLANK_FOR_TAB.match(first):
        raise DataError(
            f"Line 1 of {path} has a blank between the image and its caption: {first[:60]!r}. Put a tab there, as in "
            "`name.jpg#0<TAB>caption`."
        )
    return "tsv" if suffix == ".tsv" or "\t" in first else "csv"


def _keys(line: str) -> set[str]:
    """Return the keys of a line of JSON; none if it is no object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return set()
    return {*row} if isinstance(row, dict) else set()


def _find_columns(beginning: str, kind: str, image_column: str, caption_column: str) -> list[str] | None:
    """Return the names or positions of both columns, or None if the first row does not have them."""
    first, _, rest = beginning.lstrip().partition("\n")
    if EXCEL_SEPARATOR.fullmatch(first):
        first = rest.partition("\n")[0]
    rows = [[cell.strip(' "') for cell in first.split(separator)] for separator in ",;\t|"]
    for cells in [_keys(first)] if kind == "jsonl" else rows:
        wanted = (_COLUMNS.get(column, (column,)) for column in (image_column, caption_column))
        found = [next((name for name in names if name in cells), None) for names in wanted]
        if None not in found:
            return [name for name in found if name]
    positions = [int(name) for name in (image_column, caption_column) if name.isdecimal() and len(name) < 10]
    wide = len(positions) == 2 and any(1 < len(cells) >= max(positions) for cells in rows)
    return [image_column, caption_column] if wide else None


def _holds_captions(path: Path, image_column: str, caption_column: str) -> bool:
    """Whether a file looks like one for ``read_captions``, judged by its beginning (JSON: by the whole file)."""
    beginning = STANDARD.text(read_bytes(path, _BEGINNING).decode("utf-8", "ignore"))
    if not beginning.strip():
        return False
    kind = _kind(beginning, path)
    if kind == "json":
        formats = ("annotations", "caption"), ("sentences", "filename")
        return any(all(_occurs(f'"{key}"'.encode(), path) for key in keys) for keys in formats)
    return kind == "token" or _find_columns(beginning, kind, image_column, caption_column) is not None


def _occurs(needle: bytes, path: Path) -> bool:
    """Whether a file contains ``needle``, without reading it into memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(needle) >= 0


#: (position, image, caption) of each caption.
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
        yield f"Line {number} of {path}", found["image"], found["caption"]


def _columns(
    text: str,
    kind: str,
    path: Path,
    image_column: str,
    caption_column: str,
    header: bool | None,
    first_rows: list[FirstRow],
) -> _Pairs:
    if header is None:
        check_same_style([image_column, caption_column])
    first = text.lstrip().partition("\n")[0]
    if kind != "jsonl" and first and not {*first} & {*",;\t|"}:
        raise DataError(f"The format of the captions file {path} is not known. Give {_FORMATS}.")
    found = _find_columns(text[:_BEGINNING], kind, image_column, caption_column) or [image_column, caption_column]
    columns = [Column((found[0],), "--image-column"), Column((found[1],), "--caption-column")]
    for number, (image, caption) in read_rows(text, kind, path, columns, header, first_rows):
        yield f"Line {number} of {path}", image, caption


def _sidecars(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the ``.txt`` file beside each image that has one."""
    files = ((name, (folder / name).with_suffix(suffix)) for name in names for suffix in (".TXT", ".txt"))
    return {name: file for name, file in files if file.is_file()}


def _sidecar_captions(files: Mapping[str, Path]) -> _Pairs:
    for name, file in files.items():
        lines = [(n, line) for n, line in enumerate(read_text(file).split("\n"), 1) if line.strip()]
        yield from ((f"Line {n} of {file}", name, line) for n, line in lines or [(1, "")])


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


M = TypeVar("M", bound=BaseModel)


def _validated(model: type[M], text: str, path: Path, about: str) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"The file {path} is not {about}: {place}: {first['msg']}. Correct it, or download it again."
        ) from error


def _coco(text: str, path: Path) -> _Pairs:
    about = "COCO captions JSON (`images` with id and file_name, `annotations` with image_id and caption)"
    content = _validated(_Coco, text, path, about)
    captions: dict[int | str, list[tuple[str, str]]] = {image.id: [] for image in content.images}
    if len(captions) < len(content.images):
        raise DataError(f"Two images of {path} have the same id. Make the ids differ.")
    for number, annotation in enumerate(content.annotations):
        if annotation.image_id not in captions:
            raise DataError(
                f"Annotation {number} of {path} is of the image {annotation.image_id!r}, which is not among its "
                "`images`. Add the image, or remove the annotation."
            )
        captions[annotation.image_id].append((f"Annotation {number} of {path}", annotation.caption))
    for image in content.images:
        yield from ((where, image.file_name, caption) for where, caption in captions[image.id])


class _KarpathySentence(BaseModel):
    raw: StrictStr


class _KarpathyImage(BaseModel):
    filename: StrictStr
    filepath: StrictStr = ""
    split: Literal["train", "restval", "val", "test"]
    sentences: list[_KarpathySentence]


class _Karpathy(BaseModel):
    """The splits of Karpathy, without the fields that nothing reads."""

    images: list[_KarpathyImage]


def _karpathy(text: str, path: Path, splits: dict[str, str]) -> _Pairs:
    about = "JSON of Karpathy's splits (`images` with filename, split and `sentences` with raw)"
    for number, image in enumerate(_validated(_Karpathy, text, path, about).images):
        name = f"{image.filepath}/{image.filename}" if image.filepath else image.filename
        splits[name] = "train" if image.split == "restval" else image.split
        for sentence in image.sentences:
            yield f"Image {number} of {path}", name, sentence.raw
