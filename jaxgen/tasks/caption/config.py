"""The settings of a captioner's run."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from jaxgen.runs.config import Beam, Fraction, NotNegative, Size
from jaxgen.tasks.rows_config import Seq2SeqConfig

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
