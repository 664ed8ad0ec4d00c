"""The data of captioning: captioned images, their batches and evaluations, and reports."""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt, Strict, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from jaxgen.data.files import NO_PROGRESS, FilesDigest, ProgressReporter, expand_path, local_path, read_bytes
from jaxgen.data.in_memory import data_name
from jaxgen.data.tables import HEADERS, FirstRow, shared_files_notes
from jaxgen.errors import DataError, UsageError, listed
from jaxgen.fsutil import STRICT, replace_file
from jaxgen.metrics import caption_scores
from jaxgen.plots import AttentionMap
from jaxgen.runs.config import Beam, Fraction, Names, NotNegative, Size, TrainConfig
from jaxgen.runs.groups import Group
from jaxgen.tasks.base import Inference, Metric, changed_flags, check_same_level, shell_command
from jaxgen.tasks.caption.annotations import find_captions, match_captions, read_captions
from jaxgen.tasks.caption.images import describe_skipped, find_images, read_features, read_image, read_images
from jaxgen.tasks.caption.objective import CaptionTask, is_image
from jaxgen.tasks.caption.shapes import Scenes, shapes
from jaxgen.tasks.rows import RowSplits, refuse_builtin, refuse_flags, train_and_val, train_tokenizer
from jaxgen.tasks.seq2seq.data import Examples, Seq2SeqConfig, Seq2SeqData, TextWriter
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import EOS, Tokenizer

#: Settings that have no effect if features are given instead of images.
IMAGE_SETTINGS = ("image_size", "patch", "widths", "blocks", "flips", "grays", "strict")
#: The largest side of an image.
MAX_IMAGE = 1024


#: Built-in sets by name: functions from a seed to splits of scenes.
SCENE_SETS: dict[str, Callable[[int], dict[str, Scenes]]] = {"shapes": shapes}


class CaptionConfig(Seq2SeqConfig):
    """An image in, a sentence about it out: a captioner.

    Example:
        >>> jaxgen.CaptionConfig(data="shapes", cell="gru", minutes=5).cell
        'gru'
    """

    task: ClassVar[str] = "caption"

    common: ClassVar[tuple[str, ...]] = (
        *("data", "captions", "val_data", "val_captions", "image_size", "preset", "hidden", "dropout", "steps"),
        *("minutes", "run", "resume"),
    )

    in_data: ClassVar[Group] = Group("Data")
    data: Names = ("shapes",)
    """Built-in set (shapes), a folder of images with a captions file in it or beside it, or an .npz file of features
    with one beside it."""
    captions: str | None = None
    """Captions file: Flickr8k tokens, COCO or Karpathy JSON, or a CSV, TSV or JSONL table; or a folder with a .txt file
    for each image. Default: what is found."""
    val_captions: str | None = None
    """Captions file of --val-data. Default: the one that is found."""
    image_column: str = "image"
    """Column with the name of the image, by name or by position from 1. Default: image, file_name or the like."""
    caption_column: str = "caption"
    """Column with the caption, by name or by position from 1. Default: caption, text, comment or the like."""
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

    in_model: ClassVar[Group] = Group("Model")
    patch: Size = 2
    """Side in pixels of the image encoder's patches: larger ones are faster but miss fine details."""
    widths: tuple[Size, ...] = (32, 32, 64)
    """Channels of the image encoder's stages, multiples of 16; every stage after the first halves the sides."""
    blocks: tuple[NotNegative, ...] = (0, 1, 1)
    """Residual blocks of each stage."""

    in_training: ClassVar[Group] = Group("Training")
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

    built_from: ClassVar[tuple[str, ...]] = (
        *Seq2SeqConfig.built_from,
        *("attention", "patch", "widths", "blocks", "flips", "grays", "label_smoothing"),
    )

    @model_validator(mode="after")
    def _caption_fits(self) -> CaptionConfig:
        if self.val_captions is not None and self.val_data is None:
            raise ValueError("--val-captions was given without --val-data: say which images they belong to")
        if self.flips and self.data[0] in SCENE_SETS:
            raise ValueError(
                f"--flips {self.flips:g} mirrors images, but the captions of {self.data[0]} mention left and right: "
                "leave it out"
            )
        return self


class NamedFeatures(NamedTuple):
    """The features of one image from an ``.npz`` file, with its name."""

    name: str
    features: np.ndarray


@checked_dataclass(frozen=True, config=STRICT)
class CaptionCodec(TextWriter):
    """Encodes images of ``shape`` (height, width, 3), or features of ``shape``, and decodes captions.

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
        return is_image(self.shape)

    @property
    def output_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def sources(self, paths: Sequence[str]) -> Iterator[str | NamedFeatures]:
        """Yields the inputs in files: an image each, or all features of ``.npz`` files in order.

        An unusable file of features is yielded as a path; ``encode`` then raises the error.
        """
        for path in paths:
            try:
                found = None if self.of_images or not path.lower().endswith(".npz") else read_features(path)
            except DataError:
                found = None
            yield from [path] if found is None else map(NamedFeatures, found.names, found.features)

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
        name, array = source if isinstance(source, NamedFeatures) else ("an array", np.asarray(source))
        if array.shape != self.shape:
            raise (DataError if isinstance(source, NamedFeatures) else UsageError)(
                f"The input {name} has the shape {array.shape}, but this run reads arrays of {self.shape}: give those."
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
        """Returns a caption as ``written_text`` does, with the name of its image if it has one."""
        name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", None)
        return {"image": name, **self.written_text(output)}

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as one line."""
        return " ".join(str(answer["text"]).split())

    def attention_map(self, source: Any, output: Any, weights: np.ndarray) -> AttentionMap:
        """Returns attention ``weights`` [.., S], labelled with the tokens of the caption and positions of the image."""
        written = self.written(output.tokens)[: output.tokens.size + output.ended]
        labels = [str(place + 1) for place in range(weights.shape[-1])]
        image, texts = self.encode(source) if self.of_images else None, (("output", self.written_text(output)["text"]),)
        return AttentionMap(labels, written, weights[: len(written)], image, texts)

    def to_json(self) -> dict[str, object]:
        """Returns the JSON values that ``load_strict`` reads."""
        return {"shape": list(self.shape), "max_length": self.max_length, "tokenizer": self.tokenizer.to_json()}


@dataclass(frozen=True)
class Captioned:
    """Images, or features instead, each with at least one caption; ``sha256`` is the digest of all files."""

    arrays: np.ndarray | list[np.ndarray]
    names: list[str]
    captions: list[list[str]]
    name: str
    sha256: str
    notes: tuple[str, ...] = ()  # what was left out
    splits: tuple[str, ...] = ()  # the split of each image, if the captions file names it
    first_rows: tuple[FirstRow, ...] = ()
    files: tuple[bytes, ...] = ()  # the digests of the images, or of the file of features

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Captioned:
        """Returns the images at ``indices``, in that order."""
        chosen = indices.tolist()
        arrays, names = [self.arrays[i] for i in chosen], [self.names[i] for i in chosen]
        splits = tuple(self.splits[i] for i in chosen) if self.splits else ()
        return replace(self, arrays=arrays, names=names, captions=[self.captions[i] for i in chosen], splits=splits)


def read_captioned(config: CaptionConfig, watch: ProgressReporter = NO_PROGRESS) -> RowSplits[Captioned]:
    """Reads captioned images: ``data`` and ``val_data`` each name a folder or an ``.npz`` file of features.

    Without ``val_data``, the validation images are those that the captions file names as such, or else images that are
    held out at random. Built-in scenes have their own splits.

    Raises:
        DataError: The data cannot be used.
        UsageError: A setting contradicts the data.
    """
    name = config.data[0]
    if config.data == (name,) and name in SCENE_SETS:
        refuse_flags(config, ("captions", "val_data", "val_fraction", "val_rows", "image_size"), name)
        return _builtin(name, config.seed)
    read = _read(config.data, config.captions, config, watch)
    val = _read(config.val_data, config.val_captions, config, watch) if config.val_data else None
    named = {split: read.take(np.flatnonzero(np.array(read.splits) == split)) for split in sorted({*read.splits})}
    if "val" in named and val is None:
        refuse_flags(config, ("val_fraction", "val_rows"), name)
    if named and "train" not in named:
        raise DataError(
            f"None of the images in {name} is in the split to train on: the captions file puts them into "
            f"{' and '.join(named)}. Give the folder that holds the images of the split train."
        )
    splits, sha256 = train_and_val(named.get("train", read), val or named.get("val"), config, unit="images")
    if named:
        sha256 = read.sha256 if val is None else sha256  # the captions file is part of the digest, with its splits
        splits |= {split: rows for split, rows in named.items() if split not in splits}
    shapes_found = sorted({split.arrays[0].shape for split in splits.values()})
    if len(shapes_found) > 1:
        raise DataError(
            f"The features of training and validation have different shapes: {shapes_found}. Compute them in the same "
            "way."
        )
    given = changed_flags(config, IMAGE_SETTINGS)
    if given and not is_image(shapes_found[0]):
        raise UsageError(f"{given[0]} applies to images, but {name} has features instead: leave it out.")
    notes = [*read.notes, *(f"of the validation data {note}" for note in (val.notes if val else ()))]
    notes += shared_files_notes(read.files, val.files) if val else []
    first_rows = read.first_rows + (val.first_rows if val else ())
    return RowSplits(splits, read.name, sha256, notes, first_rows)


def _builtin(name: str, seed: int) -> RowSplits[Captioned]:
    splits = SCENE_SETS[name](seed)
    sha256 = hashlib.sha256("".join(scenes.digest for scenes in splits.values()).encode()).hexdigest()
    read = {}
    for split, scenes in splits.items():
        numbers = range(len(scenes))
        names, captions = [f"scene {i} of {split}" for i in numbers], [[scenes.caption(i)] for i in numbers]
        read[split] = Captioned([scenes.image(i) for i in numbers], names, captions, name, sha256)
    return RowSplits(read, name, sha256)


def _read(data: Sequence[str], captions: str | None, config: CaptionConfig, watch: ProgressReporter) -> Captioned:
    """Reads a folder of images or a file of features, with its captions."""
    refuse_builtin(data, SCENE_SETS)
    if len(data) != 1:
        raise UsageError(
            f"Captioned images are one folder or one .npz file of features, but {len(data)} were given: "
            f"{data_name(data)}. Name the captions file with --captions."
        )
    place = expand_path(data[0])
    if not place.exists():
        raise DataError(
            f"There is no {data[0]!r}, and no built-in set of that name ({', '.join(SCENE_SETS)}). Give a folder of "
            "images, or an .npz file of features."
        )
    columns = {"image_column": config.image_column, "caption_column": config.caption_column}
    folder = place if place.is_dir() else place.parent
    features = None if place.is_dir() else read_features(place)
    there, others = find_images(place, watch) if features is None else (features.names, [])
    file = local_path(captions, watch) if captions else find_captions(folder, names=there, **columns)
    found = read_captions(file, empty=config.empty, header=HEADERS[config.header], names=there, **columns)
    matched = match_captions(found.captions, there, where=str(place), missing=config.missing, others=others)
    digest, notes = FilesDigest(), []
    if file.is_dir():
        watch.note(f"The captions are the lines of the .txt files in {file} that are named as the images are.")
    for each in found.files:
        digest.add(read_bytes(each))
    if features is None:
        names = [str(place / name) for name in matched.names]
        images = read_images(names, (config.image_size, config.image_size), strict=config.strict)
        for i in images.kept:
            digest.add(read_bytes(Path(names[i])))
        notes += describe_skipped(images.skipped, len(names))
        arrays, kept = images.images, images.kept
    else:
        digest.add(read_bytes(place))
        numbers = {name: i for i, name in enumerate(there)}
        names, kept = matched.names, list(range(len(matched.names)))
        arrays = features.features[[numbers[name] for name in names]]
    lacking = {
        "images without captions": matched.images_left_out,
        "captioned images that are not there": matched.captions_left_out,
        "captioned images in a format that is not read": matched.unread,
    }
    notes += [f"{len(each):,} {what} left out ({listed(each, 3)})" for what, each in lacking.items() if each]
    notes += [f"{found.skipped:,} captions without words skipped"] if found.skipped else []
    names, texts = [names[i] for i in kept], [matched.captions[i] for i in kept]
    splits = tuple(found.splits[matched.known_as[i]] for i in kept) if found.splits else ()
    files = tuple(digest.digests[len(found.files) :])
    return Captioned(arrays, names, texts, data[0], digest.hexdigest(), tuple(notes), splits, found.first_rows, files)


#: Validation images on the contact sheet.
SHEET_IMAGES = 12
#: An image in the folder of a run, to try the model with.
EXAMPLE = "example.png"


class CaptionData(Seq2SeqData):
    """``TaskData`` of captioned images."""

    Config: ClassVar[type[TrainConfig]] = CaptionConfig
    Objective: ClassVar[Any] = CaptionTask
    Codec: ClassVar[type[CaptionCodec]] = CaptionCodec
    METRIC: ClassVar[Metric] = Metric("val_cider", higher_is_better=True, label="CIDEr-D (of 10)", most=10)
    UNIT: ClassVar[str] = "images"

    read = staticmethod(read_captioned)

    @staticmethod
    def new_codec(config: CaptionConfig, raw: RowSplits[Captioned]) -> CaptionCodec:
        texts = (text for captions in raw.train.captions for text in captions)
        tokenizer = train_tokenizer(config, texts, bool(config.lowercase))
        return CaptionCodec(tokenizer, raw.train.arrays[0].shape, config.max_length)

    @staticmethod
    def reuse_codec(codec: CaptionCodec, config: CaptionConfig, raw: RowSplits[Captioned]) -> CaptionCodec:
        check_same_level(config.level, codec.tokenizer)
        shape = raw.train.arrays[0].shape
        if codec.shape != shape:
            raise UsageError(
                f"The run of --init-from reads arrays of {codec.shape}, but these data have {shape}: make them agree, "
                "or leave out --init-from."
            )
        return replace(codec, max_length=config.max_length)

    @staticmethod
    def vocab_sizes(codec: CaptionCodec) -> dict[str, Any]:
        return {"vocab_size": codec.tokenizer.vocab_size, "shape": list(codec.shape)}

    def encoded(self, read: Captioned, leave_out: bool) -> Examples:
        """Encodes captioned images, a row for each caption; with ``leave_out``, drops captions that are too long."""
        lower, most = bool(self.config.lowercase), self.config.max_length
        numbers: list[int] = []  # of the image of each row
        texts: list[str] = []
        targets: list[np.ndarray] = []
        groups: list[list[int]] = []
        for number, captions in enumerate(read.captions):
            group = []
            for text in captions:
                text = text.lower() if lower else text
                ids = self.codec.encode_target(text)
                if not leave_out or ids.size < most:
                    group.append(len(texts))
                    numbers.append(number)
                    texts.append(text)
                    targets.append(ids)
            if group:
                groups.append(group)
        inputs, names = [read.arrays[n] for n in numbers], [read.names[n] for n in numbers]
        lengths = np.array([ids.size + 1 for ids in targets], np.int64)[:, None]
        too_long = sum(map(len, read.captions)) - len(texts)
        return Examples(inputs, inputs, names, texts, targets, lengths, groups, too_long)

    @classmethod
    def options_without_data(cls, config: CaptionConfig) -> dict[str, Any] | None:
        """Returns the arguments of ``build`` with the smallest vocabulary, or None if the data must be read first."""
        if config.data[0] not in SCENE_SETS and not expand_path(config.data[0]).is_dir():
            return None
        shape = [config.image_size, config.image_size, 3]
        return {"vocab_size": EOS + 1, "shape": shape, **config.build_options()}

    def summary(self) -> dict[str, str]:
        train = self.splits["train"]
        return {
            **super().summary(),
            "tokens": f"{self.config.level} level, vocabulary {self.codec.tokenizer.vocab_size:,}, "
            f"{len(train.texts):,} captions of {train.lengths.mean():.0f} on average to train on",
        }

    def text_metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """BLEU-1 to BLEU-4 and CIDEr-D of words, and the share of captions that equal a reference exactly."""
        exact = sum(text.strip() in {each.strip() for each in group} for text, group in zip(texts, references))
        return {**caption_scores(texts, references), "exact": exact / len(texts)}

    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Saves ``attention.png``, and ``captions.png``: validation images with the model's captions.

        Of built-in scenes, which are in no file, it also saves one as ``example.png``.
        """
        if not self.codec.of_images:
            return
        from PIL import Image

        from jaxgen.plots import draw_contact_sheet

        super().save_plots(inference, report, folder)
        val = self.splits["val"]
        groups = range(min(SHEET_IMAGES, len(val)))
        images = val.raw_inputs(groups)
        if not Path(val.names[0]).is_file():
            picture = io.BytesIO()
            Image.fromarray(np.squeeze(images[0])).save(picture, "png")
            replace_file(folder / EXAMPLE, picture.getvalue())
        texts = [answer["text"] for answer in inference.predict(images)]
        draw_contact_sheet(images, texts, [val.references(g) for g in groups], folder / "captions.png")

    def headline(self, row: Mapping[str, Any]) -> str:
        return f"CIDEr {row['val_cider']:.2f}, BLEU-4 {row['val_bleu_4']:.1f}, {row['val_exact']:.1%} exactly right"

    def metrics_lines(self, metrics: Mapping[str, Any]) -> list[str]:
        scores = ", ".join(f"{metrics[f'bleu_{n}']:.1f}" for n in range(1, 5))
        line = f"{metrics['exact']:.2%} exactly right, CIDEr {metrics['cider']:.3f}, BLEU-1 to 4 "
        return [f"{line}{scores}, {metrics['loss']:.4f} nats/token"]

    def next_command(self, run: str) -> str:
        file = expand_path(self.config.data[0])
        if self.codec.of_images:
            named = Path(self.splits["val"].names[0])
            file = named if named.is_file() else Path(run, EXAMPLE)
        return f"{shell_command('predict')} --run {shlex.quote(run)} {shlex.quote(str(file))}"
