"""What the built-in sets of the tasks are made of: columns of text of equal length, and a digest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple


class Pairs(NamedTuple):
    """Parallel texts: ``source[i]`` is to become ``target[i]``. As a tuple its length is 2; count ``source``."""

    source: list[str]
    target: list[str]


class Labelled(NamedTuple):
    """Texts with their classes: ``texts[i]`` belongs to ``labels[i]``. As a tuple its length is 2; count ``texts``."""

    texts: list[str]
    labels: list[str]


def digest(splits: Mapping[str, Pairs | Labelled]) -> str:
    """SHA-256, in hexadecimal, of the names of the splits and all their texts in order."""
    content = json.dumps([[name, *columns] for name, columns in splits.items()])
    return hashlib.sha256(content.encode()).hexdigest()
