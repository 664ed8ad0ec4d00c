"""Token arrays of a split, and the keyed permutations by which batches are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxgen.errors import check_int
from jaxgen.training.windows import Conditions

PURPOSES = {"split": 1, "stream": 2, "windows": 3, "documents": 4, "lanes": 5, "evaluation": 6}


#: All rows of a batch.
EVERY = slice(None)


@dataclass(frozen=True)
class Tokens:
    """One split: ids [N]; ``chars`` and ``bytes`` count the text they stand for (EOS stands for none), ``unknown`` what
    of it the vocabulary lacks.

    ``doc_starts`` (int64, layout ``documents``) has the index of each document's first id; a document's ids end
    in EOS and the next one follows. It is None for running text. ``conditions`` is what is known of the documents
    beside their text, if anything is.
    """

    ids: np.ndarray
    doc_starts: np.ndarray | None
    chars: int
    bytes: int
    unknown: int = 0
    conditions: Conditions | None = None

    @property
    def chars_per_token(self) -> float:
        """Characters of text for each id (NaN when there are no ids)."""
        return self.chars / self.ids.size if self.ids.size else float("nan")

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 for each id (NaN when there are no ids)."""
        return self.bytes / self.ids.size if self.ids.size else float("nan")


def random_bits(n: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """``n`` random 64-bit numbers, uint64 [n], the same on every platform."""
    key = np.array([(PURPOSES[purpose] << 32) + seed, epoch], np.uint64)
    return np.random.Philox(key=key).random_raw(n)


def permutation(n: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """A random order of 0 … n-1, int64 [n]."""
    return np.argsort(random_bits(n, seed, epoch, purpose), kind="stable")


def check_sizes(**sizes: int) -> None:
    """Raises ``UsageError`` unless every size is a whole number of at least 1 (a ``seed``: 0 to 2**32 - 1)."""
    for name, value in sizes.items():
        what = f"The {name.replace('_', ' ')}"
        if name == "seed":
            check_int(what, value, 0, (1 << 32) - 1)
        else:
            check_int(what, value, 1)
