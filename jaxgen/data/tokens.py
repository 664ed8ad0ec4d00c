"""The token arrays of a split, and the keyed random numbers of splits and batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxgen.errors import check_int
from jaxgen.training.windows import Conditions

#: The keys of independent streams of random numbers; they must never change.
PURPOSES = {"split": 1, "stream": 2, "windows": 3, "documents": 4, "lanes": 5, "evaluation": 6}
PURPOSES |= {"dates": 7, "shapes": 8, "snippets": 9, "rows": 10, "row batches": 11}

#: All rows of a batch.
EVERY = slice(None)


@dataclass(frozen=True)
class Tokens:
    """The tokens of one split: ids [N].

    ``chars`` and ``bytes`` count the text of the ids (EOS has none), ``unknown`` the tokens outside the vocabulary.
    ``doc_starts`` (int64) has the index of each document's first id; a document ends with EOS, and the next one
    follows. It is None for running text. ``conditions`` are the labels and numbers of the documents, if there are any.
    """

    ids: np.ndarray
    doc_starts: np.ndarray | None
    chars: int
    bytes: int
    unknown: int = 0
    conditions: Conditions | None = None

    @property
    def chars_per_token(self) -> float:
        """Characters of text per id (NaN without ids)."""
        return self.chars / self.ids.size if self.ids.size else float("nan")

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 per id (NaN without ids)."""
        return self.bytes / self.ids.size if self.ids.size else float("nan")


def random_bits(n: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """Returns ``n`` random 64-bit numbers, uint64 [n], the same on every platform."""
    key = np.array([(PURPOSES[purpose] << 32) + seed, epoch], np.uint64)
    return np.random.Philox(key=key).random_raw(n)


def permutation(n: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """Returns a random order of 0 to n-1, int64 [n]."""
    return np.argsort(random_bits(n, seed, epoch, purpose), kind="stable")


def check_sizes(**sizes: int) -> None:
    """Raises ``UsageError`` unless every size is a whole number of at least 1 (a ``seed``: 0 to 2**32 - 1)."""
    for name, value in sizes.items():
        what = f"The {name.replace('_', ' ')}"
        if name == "seed":
            check_int(what, value, 0, (1 << 32) - 1)
        else:
            check_int(what, value, 1)
