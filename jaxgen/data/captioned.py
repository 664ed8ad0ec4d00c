"""From what the user names to captioned images: folders with captions, features in their place, built-in scenes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.batches import permutation
from jaxgen.data.captions import find_captions, first_few, match_captions, read_captions
from jaxgen.data.corpus import identity
from jaxgen.data.features import read_features
from jaxgen.data.files import FilesDigest, read_bytes
from jaxgen.data.images import Resize, find_images, read_images, say_skipped
from jaxgen.data.rows_config import VAL_FRACTION
from jaxgen.data.shapes import SIZE, Scenes, shapes
from jaxgen.errors import DataError, UsageError


@dataclass(frozen=True)
class Captioned:
    """Images, or features in their place, with one caption or more each."""

    arrays: Sequence[np.ndarray]  # [N], made when they are asked for or there already
    names: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, which: np.ndarray) -> Captioned:
        """Those at these indices, in their order."""
        chosen = which.tolist()
        return Captioned(
            [self.arrays[i] for i in chosen], [self.names[i] for i in chosen], [self.captions[i] for i in chosen]
        )


@dataclass(frozen=True)
class CaptionedSplits:
    """Captioned images by split: ``train``, ``val``, and others that are judged when a run has ended."""

    splits: dict[str, Captioned]
    name: str
    sha256: str
    shape: tuple[int, ...]
    notes: list[str] = field(default_factory=list)  # what was left out

    @property
    def identity(self) -> dict[str, str]:
        """What a run remembers of its data: their name and the digest of their bytes."""
        return {"name": self.name, "sha256": self.sha256}


class _Pictures(Sequence[np.ndarray]):
    """The pictures of scenes, drawn once each when they are first asked for."""

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes
        self._drawn: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, i: Any) -> Any:
        if i not in self._drawn:
            self._drawn[i] = self._scenes.image(i)
        return self._drawn[i]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


#: Built-in sets by name: from a seed to splits of scenes.
SCENE_SETS: dict[str, Callable[[int], dict[str, Scenes]]] = {"shapes": shapes}


def read_captioned(
    data: Sequence[str],
    val_data: Sequence[str] | None,
    resize: Resize,
    *,
    captions: str | None = None,
    val_captions: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    image_size: int = SIZE,
    missing: str = "refuse",
    empty: str = "skip",
    strict: bool = False,
    val_fraction: float | None = None,
    val_rows: int | None = None,
    seed: int = 0,
) -> CaptionedSplits:
    """Read images, a folder or an ``.npz`` of features each in ``data`` and ``val_data``, with their captions.

    ``captions`` and ``val_captions`` name the captions files of each; by default they are found. Without ``val_data``
    images are held out at random. Built-in scenes have splits of their own and leave nothing to say about reading.
    Raises ``DataError`` for data that cannot be used, ``UsageError`` for options that contradict them.
    """
    if val_captions is not None and val_data is None:
        raise UsageError("--val-captions was given without --val-data: say which images they belong to.")
    if len(data) == 1 and data[0] in SCENE_SETS:
        own = {"--captions": captions, "--val-data": val_data, "--val-fraction": val_fraction, "--val-rows": val_rows}
        given = [flag for flag, value in own.items() if value is not None]
        if given:
            raise UsageError(f"{given[0]} was given, but {data[0]} has captions and splits of its own: leave it out.")
        if image_size != SIZE:
            raise UsageError(
                f"--image-size is {image_size}, but the scenes of {data[0]} are drawn with {SIZE}: leave it out."
            )
        return _builtin(data[0], seed)
    options: dict[str, Any] = {
        "image_column": image_column,
        "caption_column": caption_column,
        "image_size": image_size,
        "missing": missing,
        "empty": empty,
        "strict": strict,
    }
    train, sha256, notes = _read(data, captions, resize, **options)
    if val_data is not None:
        val, val_sha256, more = _read(val_data, val_captions, resize, **options)
        more = [f"of the validation data {note}" for note in more]
        sha256, notes = identity("", sha256, val_sha256)["sha256"], notes + more
    else:
        held_out = val_rows or max(1, round(len(train) * (VAL_FRACTION if val_fraction is None else val_fraction)))
        if not 0 < held_out < len(train):
            raise DataError(
                f"{held_out:,} of {len(train):,} images cannot be held out for validation: at least one must be, and "
                "at least one must be left to train on. Give more images, or another --val-rows or --val-fraction."
            )
        order = permutation(len(train), seed, 0, "split")
        train, val = train.take(np.sort(order[held_out:])), train.take(np.sort(order[:held_out]))
    shapes_found = {array.shape for array in (train.arrays[0], val.arrays[0])}
    if len(shapes_found) > 1:
        raise DataError(
            f"The features of training and validation have different shapes: {sorted(shapes_found)}. Compute them in "
            "the same way."
        )
    return CaptionedSplits({"train": train, "val": val}, " + ".join(data), sha256, shapes_found.pop(), notes)


def _builtin(name: str, seed: int) -> CaptionedSplits:
    splits = {}
    digest = hashlib.sha256()
    for split, scenes in SCENE_SETS[name](seed).items():
        digest.update(scenes.digest.encode())
        numbers = range(len(scenes))
        names = [f"scene {i} of {split}" for i in numbers]
        splits[split] = Captioned(_Pictures(scenes), names, [[scenes.caption(i)] for i in numbers])
    return CaptionedSplits(splits, name, digest.hexdigest(), (SIZE, SIZE, 3))


def _read(
    data: Sequence[str],
    captions: str | None,
    resize: Resize,
    *,
    image_column: str,
    caption_column: str,
    image_size: int,
    missing: str,
    empty: str,
    strict: bool,
) -> tuple[Captioned, str, list[str]]:
    if len(data) != 1:
        raise UsageError(
            f"Captioned images are one folder or one .npz file of features, but {len(data)} were given: "
            f"{' '.join(data)}. Name the captions file with --captions."
        )
    place = Path(os.path.expanduser(data[0]))
    if data[0] in SCENE_SETS:
        raise UsageError(f"The built-in {data[0]} cannot stand in --val-data: it goes with no images but its own.")
    if not place.exists():
        raise DataError(
            f"There is no {data[0]!r}, and no built-in set of that name ({', '.join(SCENE_SETS)}). Give a folder of "
            "images, or an .npz file of features."
        )
    folder = place if place.is_dir() else place.parent
    columns = {"image_column": image_column, "caption_column": caption_column}
    file = Path(os.path.expanduser(captions)) if captions else find_captions(folder, **columns)
    found = read_captions(file, empty=empty, **columns)
    digest = FilesDigest()
    digest.add(read_bytes(file))
    if place.is_dir():
        matched = match_captions(found, find_images(place), where=str(place), missing=missing)
        paths = [place / name for name in matched.names]
        images = read_images(paths, (image_size, image_size), resize, strict=strict)
        for i in images.kept:  # what cannot be read has no bytes, or none that matter
            digest.add(read_bytes(paths[i]))
        arrays: Any = images.images
        kept, notes = images.kept, [say_skipped(images.skipped, len(paths))] if images.skipped else []
    else:
        features = read_features(place)
        digest.add(read_bytes(place))
        matched = match_captions(found, features.names, where=str(place), missing=missing)
        numbers = {name: i for i, name in enumerate(features.names)}
        arrays = features.features[[numbers[name] for name in matched.names]]
        kept, notes = list(range(len(matched.names))), []
    left_out = {
        "images without captions": matched.images_left_out,
        "captions without images": matched.captions_left_out,
    }
    notes += [f"{len(names):,} {what} left out ({first_few(names)})" for what, names in left_out.items() if names]
    names = [str(place / matched.names[i]) if place.is_dir() else matched.names[i] for i in kept]
    return Captioned(arrays, names, [matched.captions[i] for i in kept]), digest.hexdigest(), notes
