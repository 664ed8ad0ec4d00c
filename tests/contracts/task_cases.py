"""Eight examples and a tiny model that memorizes them, for every task: one entry in ``CASES`` each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.testing import Case, Examples

#: Words that begin with letters of their own, of three to seven letters.
WORDS = ["ant", "bear", "camel", "donkey", "elk", "ferret", "giraffe", "hare"]
SIZES = {"ant": "small", "bear": "large", "camel": "large", "donkey": "large", "elk": "large", "ferret": "small"}
SIZES |= {"giraffe": "large", "hare": "small"}


def labelled(folder: Path) -> Examples:
    """Animals, large and small."""
    path = folder / "animals.csv"
    path.write_text("animal,size\n" + "".join(f"{word},{SIZES[word]}\n" for word in WORDS))
    settings = {"data": (str(path),), "val_data": (str(path),), "text_column": ("animal",), "label_column": "size"}
    return Examples(settings, WORDS, [SIZES[word] for word in WORDS])


def lines(folder: Path) -> Examples:
    """Words of which the first letter tells the rest."""
    path = folder / "animals.txt"
    path.write_text("\n".join(WORDS) + "\n")
    settings = {"data": (str(path),), "val_data": (str(path),), "documents": "line", "layout": "documents"}
    return Examples(settings, [word[:1] for word in WORDS], [word[1:] for word in WORDS])


def continued(run: Path, prompts: list[Any]) -> list[str]:
    """The likeliest texts behind prompts."""
    sampler = Sampler.load(run)
    return [sampler.sample(prompt, GenerationConfig(12, temperature=0.0))[0] for prompt in prompts]


def reversals(folder: Path) -> Examples:
    """Words, and the same backwards."""
    path = folder / "reversals.tsv"
    path.write_text("word\tbackwards\n" + "".join(f"{word}\t{word[::-1]}\n" for word in WORDS))
    columns = {"source_column": "word", "target_column": "backwards"}
    settings = {"data": (str(path),), "val_data": (str(path),), **columns, "beam": 0}
    return Examples(settings, WORDS, [word[::-1] for word in WORDS])


def pictures(folder: Path) -> Examples:
    """Animals as eight by eight pixels at random."""
    rng, paths = np.random.default_rng(0), [str(folder / f"{word}.png") for word in WORDS]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    rows = "".join(f"{word}.png,{word}\n" for word in WORDS)
    (folder / "captions.csv").write_text(f"image,caption\n{rows}")
    sizes = {"image_size": 8, "patch": 2, "widths": (16,), "blocks": (0,), "level": "char", "beam": 0}
    return Examples({"data": (str(folder),), "val_data": (str(folder),), **sizes}, paths, WORDS)


SMALL = {"preset": "tiny", "cell": "gru", "hidden": 16, "lr": 0.03, "steps": 60}

CASES: dict[str, Case] = {
    "caption": Case(pictures, SMALL | {"steps": 90}, lambda answer: answer["text"]),
    "classify": Case(labelled, SMALL, lambda answer: answer["label"]),
    "language": Case(
        lines,
        SMALL | {"seq_len": 10, "steps": 120},
        str,
        continued,
        # Which of eight words it is takes ln 8 nats, spread over the letters and ends of all.
        floor=8 * math.log(8) / sum(len(word) + 1 for word in WORDS),
    ),
    "translate": Case(reversals, SMALL | {"steps": 150}, lambda answer: answer["text"]),
}
