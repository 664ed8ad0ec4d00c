"""The host side of captioning: its options, its data, and what it reports."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from jaxgen.data.caption_codec import CaptionCodec, to_size
from jaxgen.data.captioned import SCENE_SETS, Captioned, CaptionedSplits, read_captioned
from jaxgen.data.task import Metric, Model
from jaxgen.data.watch import SILENT, Watch
from jaxgen.data.writing import Examples, WritingData, encode_target
from jaxgen.data.writing_config import WritingConfig
from jaxgen.errors import DataError, UsageError
from jaxgen.store.config import Beam, Fraction, NotNegative, Size, TrainConfig
from jaxgen.text import EOS, TOKENIZERS, Tokenizer
from jaxgen.text.overlap import caption_scores

#: Settings that are about images, which features computed beforehand have no use for.
OF_IMAGES = ("image_size", "patch", "widths", "blocks", "flips", "grays", "strict")
#: The largest side of an image.
MAX_IMAGE = 1024
#: Images on the contact sheet of a finished run.
SHEET = 12
#: Images of which it is drawn where the decoder looks.
LOOKS = 2


class CaptionConfig(WritingConfig):
    """An image in, a sentence about it out: a captioner."""

    task: ClassVar[str] = "caption"

    data: tuple[str, ...] = ("shapes",)
    """What to read: built-in (shapes), a folder of images with a captions file in it or beside it, or an .npz file of
    features with one beside it."""
    captions: str | None = None
    """The captions file: Flickr8k tokens, COCO JSON, or a CSV or TSV table. Default: the one that is found."""
    val_captions: str | None = None
    """The captions file of --val-data. Default: the one that is found."""
    image_column: str = "image"
    """Column of a table of captions that names the image, by name or by position from 1."""
    caption_column: str = "caption"
    """Column of a table of captions that holds the caption, by name or by position from 1."""
    image_size: Annotated[int, Field(ge=8, le=MAX_IMAGE)] = 64
    """Height and width to which images are brought."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do with images without captions and captions without images."""
    strict: bool = False
    """Refuse images that cannot be read, instead of leaving them out and saying so."""
    level: str = "word"
    """What a token of a caption is."""
    lowercase: bool | None = False
    """Learn captions in lower case."""
    max_length: Size = 60
    """Tokens of a caption at most: longer ones are left out of training."""
    patch: Size = 2
    """Side in pixels of the squares that are the first places of the image encoder: larger ones are faster and miss
    fine details."""
    widths: tuple[Size, ...] = (32, 32, 64)
    """Channels of the image encoder's stages, each of which but the first halves the sides; multiples of 16."""
    blocks: tuple[NotNegative, ...] = (0, 1, 1)
    """Residual blocks of each stage."""
    grays: Fraction = 0.0
    """Share of training images that lose their colours, at random: what has been seen in few colours is known in
    others."""
    flips: Fraction = 0.0
    """Share of training images that are mirrored, at random: not for captions that say left or right."""
    beam: Beam = 3
    """Beams of the final evaluation; 0: greedy, as during training."""

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


@dataclass(frozen=True)
class CaptionData(WritingData):
    """Captioned images with their batches and evaluations, as the trainer uses them."""

    config: CaptionConfig
    codec: CaptionCodec
    read: CaptionedSplits

    Config: ClassVar[type[TrainConfig]] = CaptionConfig
    METRIC: ClassVar[Metric] = Metric("val_cider", higher=True)
    UNIT: ClassVar[str] = "images"

    @staticmethod
    def read_codec(obj: Any) -> CaptionCodec:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        return CaptionCodec.from_json(obj)

    @staticmethod
    def sizes(codec: CaptionCodec) -> dict[str, Any]:
        """The options of the model that follow from the codec."""
        return {"vocab_size": codec.tokenizer.vocab_size, "shape": list(codec.shape)}

    @classmethod
    def load(cls, config: CaptionConfig, codec: CaptionCodec | None = None, watch: Watch = SILENT) -> CaptionData:
        """Read and split the images; a given ``codec`` (of a resumed run, or of ``--init-from``) is used as it is.

        Raises ``DataError`` for data that cannot be used, ``UsageError`` for settings that mean nothing with them.
        """
        del watch  # all of it is read into memory, which is soon done
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
        read = read_captioned(config.data, config.val_data, to_size(config.image_size), **options)
        _check_flags(config, read.shape)
        if codec is None:
            texts = [text for captions in read.splits["train"].captions for text in captions]
            codec = CaptionCodec(_tokenizer(config, texts), read.shape, config.max_length)
        elif codec.shape != read.shape or codec.tokenizer.kind != config.level:
            raise UsageError(
                f"The run to begin from reads arrays of {codec.shape} and writes tokens of the level "
                f"{codec.tokenizer.kind}, here they are {read.shape} and {config.level}: make them agree, or leave "
                "out --init-from."
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
        """What ``build`` of the model needs."""
        return {**self.sizes(self.codec), **_given(self.config)}

    @classmethod
    def foreseen(cls, config: CaptionConfig) -> dict[str, Any] | None:
        """What ``build`` will get, with the least vocabulary; ``None`` where the data have to be read for it."""
        if config.data[0] not in SCENE_SETS and not os.path.isdir(os.path.expanduser(config.data[0])):
            return None
        return {"vocab_size": EOS + 1, "shape": [config.image_size, config.image_size, 3], **_given(config)}

    def identity(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return self.read.identity

    def facts(self) -> dict[str, str]:
        """Lines for the reader: label and text."""
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
            "data": f"{self.read.name} (sha256 {self.identity()['sha256'][:12]})",
            "images": f"{len(train.groups):,} with {len(train.texts):,} captions to train on, "
            f"{len(self.read.splits['val']):,} to validate"
            + (f", {others} to judge at the end" if others else "")
            + "".join(f"; {note.removesuffix('.')}" for note in notes),
            "tokens": f"{self.config.level} level, vocabulary {self.codec.tokenizer.vocab_size:,}, "
            f"{train.lengths.mean():.0f} a caption on average",
        }

    def figures(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """BLEU-1 to BLEU-4 and CIDEr-D of words, and the share of captions that are letter for letter a reference."""
        exact = sum(text.strip() in {each.strip() for each in group} for text, group in zip(texts, references))
        return {**caption_scores(texts, references), "exact": exact / len(texts)}

    def draw(self, model: Model, report: Mapping[str, Any], folder: Path) -> None:
        """``captions.png``: some validation images with what the model writes about them, and ``attention.png``."""
        if not self.codec.of_images:
            return
        from jaxgen.store.attention_plot import draw_attention
        from jaxgen.store.sheet_plot import draw_sheet

        if self.config.attention != "none":
            first = self.splits["val"].groups[:LOOKS]
            looks = [model.attention(self.splits["val"].raw[rows[0]]) for rows in first]
            draw_attention(looks, folder / "attention.png")
        val = self.splits["val"]
        groups = range(min(SHEET, len(val.groups)))
        images = [val.inputs[val.groups[g][0]] for g in groups]
        answers = model.answer(images)
        texts = [answer["text"] for answer in answers]
        draw_sheet(images, texts, [val.references(g) for g in groups], folder / "captions.png")

    def headline(self, row: Mapping[str, Any]) -> str:
        """The quality of captions in a few words."""
        return f"CIDEr {row['val_cider']:.2f}, BLEU-4 {row['val_bleu_4']:.1f}, {row['val_exact']:.1%} exactly right"

    def summary(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
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
        """How to caption an image with the run, or features in its place."""
        return f"jaxgen predict --run {shlex.quote(run)} {'photo.png' if self.codec.of_images else 'features.npz'}"


def _check_flags(config: CaptionConfig, shape: tuple[int, ...]) -> None:
    """Raise ``UsageError`` for settings of images that mean nothing, or something false, with inputs of ``shape``."""
    if config.flips and config.data[0] in SCENE_SETS:
        raise UsageError(
            f"--flips {config.flips:g} mirrors images, and the captions of {config.data[0]} say what is left and what "
            "is right: leave it out."
        )
    preset = config.presets[config.preset][1]
    usual = {name: CaptionConfig.model_fields[name].default for name in OF_IMAGES}
    given = [name for name in OF_IMAGES if getattr(config, name) not in (usual[name], preset.get(name, usual[name]))]
    if len(shape) < 3 and given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is about images, and {config.data[0]} has features in their place, which "
            "are read as they are: leave it out."
        )


def _given(config: CaptionConfig) -> dict[str, Any]:
    """The options of ``build`` that are settings."""
    names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "precision")
    more = ("token_dropout", "attention", "patch", "widths", "blocks", "flips", "grays", "label_smoothing")
    return {name: getattr(config, name) for name in (*names, *more)}


def _tokenizer(config: CaptionConfig, texts: list[str]) -> Tokenizer:
    """A tokenizer of the training captions."""
    kind = TOKENIZERS[config.level]
    before = " " if config.level in ("bpe", "word") else ""
    texts = [text.lower() for text in texts] if config.lowercase else texts
    return kind.train((before + text for text in texts), **config.tokenizer_options())


def _encoded(each: Captioned, codec: CaptionCodec, most: int | None, lower: bool) -> Examples:
    """A row for each caption; with ``most`` without those that are longer."""
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


__all__ = ["CaptionCodec", "CaptionConfig", "CaptionData"]
