"""The data of captioning: captioned images, their batches and evaluations, and reports."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt, Strict
from pydantic.dataclasses import dataclass as checked_dataclass

from jaxgen.data.files import SILENT, FilesDigest, ProgressReporter, read_bytes
from jaxgen.data.tables import fingerprint, hold_out
from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import STRICT, load_strict
from jaxgen.metrics import caption_scores
from jaxgen.runs.config import Beam, Fraction, NotNegative, Size, TrainConfig
from jaxgen.tasks.base import Inference, Metric, Seq2SeqConfig
from jaxgen.tasks.caption.annotations import find_captions, first_few, match_captions, read_captions
from jaxgen.tasks.caption.images import describe_skipped, find_images, read_features, read_image, read_images
from jaxgen.tasks.caption.shapes import SIZE, Scenes, shapes
from jaxgen.tasks.seq2seq.data import Examples, Seq2SeqData, decode_target, encode_target, token_label
from jaxgen.tokenizers import TOKENIZERS, SavedTokenizer
from jaxgen.tokenizers.base import EOS, Tokenizer
from jaxgen.types import AttentionMap

#: Settings that have no effect if features are given instead of images.
IMAGE_SETTINGS = ("image_size", "patch", "widths", "blocks", "flips", "grays", "strict")
#: The largest side of an image.
MAX_IMAGE = 1024


class CaptionConfig(Seq2SeqConfig):
    """An image in, a sentence about it out: a captioner."""

    task: ClassVar[str] = "caption"

    data: tuple[str, ...] = ("shapes",)
    """Built-in set (shapes), a folder of images with a captions file in it or beside it, or an .npz file of features
    with one beside it."""
    captions: str | None = None
    """Captions file: Flickr8k tokens, COCO JSON, or a CSV or TSV table. Default: the one that is found."""
    val_captions: str | None = None
    """Captions file of --val-data. Default: the one that is found."""
    image_column: str = "image"
    """Column with the name of the image, by name or by position from 1."""
    caption_column: str = "caption"
    """Column with the caption, by name or by position from 1."""
    image_size: Annotated[int, Field(ge=8, le=MAX_IMAGE)] = 64
    """Height and width to which images are resized."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do with images without captions and captions without images."""
    strict: bool = False
    """Refuse images that cannot be read, instead of skipping and counting them."""
    level: str = "word"
    """What a token of a caption is."""
    lowercase: bool | None = False
    """Convert captions to lower case."""
    max_length: Size = 60
    """Longest caption in tokens: longer ones are left out of training."""
    patch: Size = 2
    """Side in pixels of the image encoder's patches: larger ones are faster but miss fine details."""
    widths: tuple[Size, ...] = (32, 32, 64)
    """Channels of the image encoder's stages, multiples of 16; every stage after the first halves the sides."""
    blocks: tuple[NotNegative, ...] = (0, 1, 1)
    """Residual blocks of each stage."""
    grays: Fraction = 0.0
    """Share of training images converted to grey, at random: helps to recognise shapes in unseen colours."""
    flips: Fraction = 0.0
    """Share of training images that are mirrored, at random: not for captions that mention left or right."""
    beam: Beam = 3
    """Beams of the final evaluation; 0: greedy decoding, as during training."""

    examples: ClassVar[tuple[str, ...]] = (
        "python train.py caption --data photos                             a folder with a captions file",
        "python train.py caption --data Images --captions Flickr8k.token.txt",
        "python train.py caption --data features.npz --captions captions.csv",
    )
    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "tiny": (
            "a small network, 200 steps: to see that everything works",
            {"hidden": 64, "layers": 1, "batch_size": 32, "steps": 200},
        ),
        "small": (
            "LSTM 1x128 with attention over the image, a fifth of the images without colours, 5,000 steps: the "
            "built-in shapes in six minutes on 2 CPU cores",
            {"hidden": 128, "layers": 1, "embed": 64, "batch_size": 32, "grays": 0.2, "lr": 2e-3, "steps": 5000},
        ),
    }


class NamedFeatures(NamedTuple):
    """The features of one image from an ``.npz`` file, with its name."""

    name: str
    features: np.ndarray
    file: str = ""


@checked_dataclass(frozen=True, config=STRICT)
class CaptionCodec:
    """Reads images of ``shape`` (height, width, 3), or features of that shape, and writes captions.

    The model was trained on captions of up to ``max_length`` tokens, including the end.
    """

    tokenizer: SavedTokenizer
    shape: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1, max_length=3)]
    max_length: PositiveInt

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = True

    @property
    def of_images(self) -> bool:
        """Whether inputs are images, not features."""
        return len(self.shape) == 3

    @property
    def longest(self) -> int:
        """Default limit of the tokens of a caption: the model was trained on none that are longer."""
        return self.max_length

    def sources(self, paths: Sequence[str]) -> Iterator[str | NamedFeatures]:
        """Yields the inputs in files: an image each, or all features of ``.npz`` files in order.

        An unusable file of features is yielded as a path; ``encode`` then raises the error.
        """
        for path in paths:
            if self.of_images or not path.lower().endswith(".npz"):
                yield path
            else:
                try:
                    found = read_features(path)
                except DataError:
                    yield path
                    continue
                yield from (NamedFeatures(name, features, path) for name, features in zip(found.names, found.features))

    def encode(self, source: str | Path | NamedFeatures | np.ndarray) -> np.ndarray:
        """Returns the array of an image file, of features, or an array unchanged.

        Raises:
            DataError: A file is not an image, or its features do not have the run's shape.
            UsageError: An array does not have the run's shape.
        """
        if isinstance(source, (str, Path)):
            if not self.of_images:
                if str(source).lower().endswith(".npz"):
                    read_features(source)  # raises an error about the file, if it is damaged
                raise DataError(
                    f"This run was trained on features of the shape {self.shape} and cannot read {source}: give "
                    "features that were computed in the same way (.npz), or train a run on images."
                )
            height, width = self.shape[:2]
            return read_image(source, (height, width))
        name, array, file = source if isinstance(source, NamedFeatures) else ("an array", np.asarray(source), "")
        if array.shape != self.shape:
            where = f" of {file}" if file else ""
            raise (DataError if isinstance(source, NamedFeatures) else UsageError)(
                f"The input {name}{where} has the shape {array.shape}, but this run reads arrays of "
                f"{self.shape}: give those."
            )
        if self.of_images and array.dtype != np.uint8:
            raise UsageError(f"The input {name} is of the type {array.dtype}: give an image of uint8, from 0 to 255.")
        return array

    def widths(self, array: np.ndarray) -> tuple[int, ...]:
        """Returns nothing: inputs are not padded."""
        del array
        return ()

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> np.ndarray:
        """Returns arrays as model inputs, padded to ``rows`` rows with zeros."""
        del widths
        packed = np.zeros((rows, *self.shape), np.uint8 if self.of_images else np.float32)
        for to, array in zip(packed, examples):
            to[:] = array
        return packed

    def answer(self, source: Any, output: Any) -> dict[str, Any]:
        """Returns a caption with its log-probability in nats, its number of tokens, and whether it ended."""
        return {
            "image": _name(source),
            "text": decode_target(self.tokenizer, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as one line."""
        return " ".join(str(answer["text"]).split())

    def attention_map(self, source: Any, output: Any, weights: np.ndarray) -> AttentionMap:
        """Where the decoder looked with each token of a caption, ``weights`` [.., P]: at places of the image."""
        ids = [*output.tokens, *[EOS] * output.ended]
        written = [token_label(self.tokenizer, i) for i in ids]
        labels = [str(place + 1) for place in range(weights.shape[-1])]
        return AttentionMap(labels, written, weights[: len(ids)], self.encode(source) if self.of_images else None)

    def to_json(self) -> dict[str, object]:
        """Returns what ``load_strict`` makes this codec of."""
        return {"shape": list(self.shape), "max_length": self.max_length, "tokenizer": self.tokenizer.to_json()}


def _name(source: Any) -> str | None:
    """Returns the name of an input, if it has one."""
    if isinstance(source, NamedFeatures):
        return source.name
    return str(source) if isinstance(source, (str, Path)) else None


@dataclass(frozen=True)
class Captioned:
    """Images, or features instead, each with at least one caption."""

    arrays: Sequence[np.ndarray]  # [N], drawn when first accessed, or in memory
    names: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Captioned:
        """Returns the images at ``indices``, in that order."""
        chosen = indices.tolist()
        return Captioned(
            [self.arrays[i] for i in chosen], [self.names[i] for i in chosen], [self.captions[i] for i in chosen]
        )


@dataclass(frozen=True)
class CaptionedSplits:
    """Captioned images by split: ``train``, ``val``, and others that are evaluated at the end of a run."""

    splits: dict[str, Captioned]
    name: str
    sha256: str
    shape: tuple[int, ...]
    notes: list[str] = field(default_factory=list)  # what was left out

    @property
    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return fingerprint(self.name, self.sha256)


class _SceneImages(Sequence[np.ndarray]):
    """The images of scenes, each drawn once, when first accessed."""

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


#: Built-in sets by name: functions from a seed to splits of scenes.
SCENE_SETS: dict[str, Callable[[int], dict[str, Scenes]]] = {"shapes": shapes}


def read_captioned(
    data: Sequence[str],
    val_data: Sequence[str] | None,
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
    """Reads captioned images: ``data`` and ``val_data`` each name a folder or an ``.npz`` file of features.

    Without ``val_data``, images are held out at random. Built-in scenes have their own splits. The arguments are the
    settings of ``CaptionConfig``.

    Raises:
        DataError: The data cannot be used.
        UsageError: A setting contradicts the data.
    """
    if val_captions is not None and val_data is None:
        raise UsageError("--val-captions was given without --val-data: say which images they belong to.")
    if len(data) == 1 and data[0] in SCENE_SETS:
        own = {"--captions": captions, "--val-data": val_data, "--val-fraction": val_fraction, "--val-rows": val_rows}
        given = [flag for flag, value in own.items() if value is not None]
        if given:
            raise UsageError(f"{given[0]} was given, but {data[0]} has its own captions and splits: leave it out.")
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
    train, sha256, notes = _read(data, captions, **options)
    if val_data is not None:
        val, val_sha256, more = _read(val_data, val_captions, **options)
        more = [f"of the validation data {note}" for note in more]
        sha256, notes = fingerprint("", sha256, val_sha256)["sha256"], notes + more
    else:
        train, val = hold_out(train, data[0], seed, val_rows=val_rows, val_fraction=val_fraction, unit="images")
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
        splits[split] = Captioned(_SceneImages(scenes), names, [[scenes.caption(i)] for i in numbers])
    return CaptionedSplits(splits, name, digest.hexdigest(), (SIZE, SIZE, 3))


def _read(
    data: Sequence[str],
    captions: str | None,
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
        raise UsageError(f"The built-in {data[0]} cannot be --val-data: it has its own validation images.")
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
        images = read_images(paths, (image_size, image_size), strict=strict)
        for i in images.kept:
            digest.add(read_bytes(paths[i]))
        arrays: Any = images.images
        kept, notes = images.kept, [describe_skipped(images.skipped, len(paths))] if images.skipped else []
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


#: Validation images on the contact sheet, and in the plot of attention.
SHEET_IMAGES, ATTENTION_IMAGES = 12, 2


@dataclass(frozen=True)
class CaptionData(Seq2SeqData):
    """``TaskData`` of captioned images."""

    config: CaptionConfig
    codec: CaptionCodec
    read: CaptionedSplits

    Config: ClassVar[type[TrainConfig]] = CaptionConfig
    METRIC: ClassVar[Metric] = Metric("val_cider", higher_is_better=True)
    UNIT: ClassVar[str] = "images"

    @staticmethod
    def read_codec(obj: object) -> CaptionCodec:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        return load_strict(CaptionCodec, obj, "caption tokenizer.json")

    @staticmethod
    def vocab_sizes(codec: CaptionCodec) -> dict[str, Any]:
        """The options of the model that follow from the codec."""
        return {"vocab_size": codec.tokenizer.vocab_size, "shape": list(codec.shape)}

    @classmethod
    def load(
        cls, config: CaptionConfig, codec: CaptionCodec | None = None, watch: ProgressReporter = SILENT
    ) -> CaptionData:
        """As ``TaskData.load``; also raises ``UsageError`` for settings that have no effect with these data."""
        del watch  # the data fit into memory and are read quickly
        names = (
            "captions",
            "val_captions",
            "image_column",
            "caption_column",
            "image_size",
            "missing",
            "empty",
            "strict",
        )
        options = {name: getattr(config, name) for name in (*names, "val_fraction", "val_rows", "seed")}
        read = read_captioned(config.data, config.val_data, **options)
        _check_flags(config, read.shape)
        if codec is None:
            texts = [text for captions in read.splits["train"].captions for text in captions]
            codec = CaptionCodec(_tokenizer(config, texts), read.shape, config.max_length)
        elif codec.shape != read.shape or codec.tokenizer.kind != config.level:
            raise UsageError(
                f"The run of --init-from reads arrays of {codec.shape} and writes tokens of the level "
                f"{codec.tokenizer.kind}, but these data have {read.shape} and --level is {config.level}: make them "
                "agree, or leave out --init-from."
            )
        else:
            codec = replace(codec, max_length=config.max_length)
        data = cls(config, codec, read)
        if not data.splits["train"].groups:
            raise DataError(
                f"Every caption of {read.name} to train on is longer than {config.max_length} tokens: give a larger "
                "--max-length."
            )
        return data

    @cached_property
    def splits(self) -> dict[str, Examples]:  # type: ignore[override]
        most = self.config.max_length
        return {
            name: _encoded(each, self.codec, most if name == "train" else None, bool(self.config.lowercase))
            for name, each in self.read.splits.items()
        }

    def model_options(self) -> dict[str, Any]:
        """The arguments of ``CaptionTask.build``."""
        return {**self.vocab_sizes(self.codec), **_build_options(self.config)}

    @classmethod
    def options_without_data(cls, config: CaptionConfig) -> dict[str, Any] | None:
        """Returns the arguments of ``build`` with the smallest vocabulary, or None if the data must be read first."""
        if config.data[0] not in SCENE_SETS and not os.path.isdir(os.path.expanduser(config.data[0])):
            return None
        return {"vocab_size": EOS + 1, "shape": [config.image_size, config.image_size, 3], **_build_options(config)}

    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return self.read.fingerprint

    def summary(self) -> dict[str, str]:
        """The data, their images and tokens in numbers."""
        train = self.splits["train"]
        others = ", ".join(
            f"{len(each):,} of {name.replace('_', ' ')}"
            for name, each in self.read.splits.items()
            if name not in ("train", "val")
        )
        longer = sum(map(len, self.read.splits["train"].captions)) - len(train.texts)
        notes = [*self.read.notes]
        if longer:
            notes.append(f"{longer:,} captions of more than {self.config.max_length:,} tokens left out of training")
        return {
            "data": f"{self.read.name} (sha256 {self.fingerprint()['sha256'][:12]})",
            "images": f"{len(train.groups):,} with {len(train.texts):,} captions to train on, "
            f"{len(self.read.splits['val']):,} to validate"
            + (f", {others} to judge at the end" if others else "")
            + "".join(f"; {note.removesuffix('.')}" for note in notes),
            "tokens": f"{self.config.level} level, vocabulary {self.codec.tokenizer.vocab_size:,}, "
            f"{train.lengths.mean():.0f} a caption on average",
        }

    def text_metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """BLEU-1 to BLEU-4 and CIDEr-D of words, and the share of captions that equal a reference exactly."""
        exact = sum(text.strip() in {each.strip() for each in group} for text, group in zip(texts, references))
        return {**caption_scores(texts, references), "exact": exact / len(texts)}

    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Saves ``captions.png``, validation images with the model's captions, and ``attention.png``."""
        if not self.codec.of_images:
            return
        from jaxgen.plots import draw_attention, draw_contact_sheet

        if self.config.attention != "none":
            first = self.splits["val"].groups[:ATTENTION_IMAGES]
            looks = [inference.attention(self.splits["val"].raw[rows[0]]) for rows in first]
            draw_attention(looks, folder / "attention.png")
        val = self.splits["val"]
        groups = range(min(SHEET_IMAGES, len(val.groups)))
        images = [val.inputs[val.groups[g][0]] for g in groups]
        answers = inference.predict(images)
        texts = [answer["text"] for answer in answers]
        draw_contact_sheet(images, texts, [val.references(g) for g in groups], folder / "captions.png")

    def headline(self, row: Mapping[str, Any]) -> str:
        """CIDEr, BLEU-4 and exact matches of an evaluation."""
        return f"CIDEr {row['val_cider']:.2f}, BLEU-4 {row['val_bleu_4']:.1f}, {row['val_exact']:.1%} exactly right"

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The final evaluation as labelled lines."""
        rows = []
        for name in self.read.splits:
            if f"{name}_exact" in report:
                scores = ", ".join(f"{report[f'{name}_bleu_{n}']:.1f}" for n in range(1, 5))
                line = f"{report[f'{name}_exact']:.2%} exactly right, CIDEr {report[f'{name}_cider']:.3f}, BLEU-1 to 4 "
                line += f"{scores}, {report[f'{name}_loss']:.4f} nats/token"
                rows.append(("validation" if name == "val" else name.replace("_", " "), line))
        return rows

    def next_command(self, run: str) -> str:
        """How to caption an image, or features, with the run."""
        return f"jaxgen predict --run {shlex.quote(run)} {'photo.png' if self.codec.of_images else 'features.npz'}"


def _check_flags(config: CaptionConfig, shape: tuple[int, ...]) -> None:
    """Raises ``UsageError`` for image settings that do not fit the data."""
    if config.flips and config.data[0] in SCENE_SETS:
        raise UsageError(
            f"--flips {config.flips:g} mirrors images, but the captions of {config.data[0]} mention left and right: "
            "leave it out."
        )
    preset = config.presets[config.preset][1]
    usual = {name: CaptionConfig.model_fields[name].default for name in IMAGE_SETTINGS}
    given = [
        name for name in IMAGE_SETTINGS if getattr(config, name) not in (usual[name], preset.get(name, usual[name]))
    ]
    if len(shape) < 3 and given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} applies to images, but {config.data[0]} has features instead: leave it "
            "out."
        )


def _build_options(config: CaptionConfig) -> dict[str, Any]:
    """Returns the arguments of ``CaptionTask.build`` that are settings."""
    names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "precision")
    more = ("token_dropout", "attention", "patch", "widths", "blocks", "flips", "grays", "label_smoothing")
    return {name: getattr(config, name) for name in (*names, *more)}


def _tokenizer(config: CaptionConfig, texts: list[str]) -> Tokenizer:
    """Trains a tokenizer on the training captions."""
    kind = TOKENIZERS[config.level]
    before = " " if config.level in ("bpe", "word") else ""
    texts = [text.lower() for text in texts] if config.lowercase else texts
    return kind.train((before + text for text in texts), **config.tokenizer_options())


def _encoded(each: Captioned, codec: CaptionCodec, most: int | None, lower: bool) -> Examples:
    """Encodes captioned images, a row for each caption; drops captions longer than ``most`` tokens."""
    inputs: list[Any] = []
    names: list[str] = []
    texts: list[str] = []
    targets: list[np.ndarray] = []
    groups: list[list[int]] = []
    for array, name, captions in zip(each.arrays, each.names, each.captions):
        group = []
        for text in captions:
            text = text.lower() if lower else text
            ids = encode_target(codec.tokenizer, text)
            if most is None or ids.size < most:
                group.append(len(texts))
                inputs.append(array)
                names.append(name)
                texts.append(text)
                targets.append(ids)
        if group:
            groups.append(group)
    lengths = np.array([ids.size + 1 for ids in targets], np.int64)[:, None]
    return Examples(inputs, inputs, names, texts, targets, lengths, groups)
