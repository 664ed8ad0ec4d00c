"""Built-in sets that separate kinds of memory: a sequence -> the symbol that is right after it.

| set | a text and its label | what it asks of the state | chance |
|---|---|---|---|
| ``copying`` | ``hbcaedfg.....>hb`` -> ``c`` | to hold symbols over a delay | 1/8 |
| ``selective-copying`` | ``h.b..caed.f.g>hb`` -> ``c`` | the same, and to ignore the dots between them | 1/8 |
| ``recall`` | ``a3K7x1?K`` -> ``7`` | to find the value of a key | 1/10 |
| ``parity`` | ``01101`` -> ``odd`` | to track one of two states | 1/2 |
| ``modular-sum`` | ``30421`` -> ``0`` | to track one of five states | 1/5 |

Copying is the task of Hochreiter & Schmidhuber (1997) in the form of Arjovsky et al. (2016, arXiv:1511.06464),
selective copying that of Gu & Dao (2023, arXiv:2312.00752, section 3.1), recall that of Ba et al. (2016,
arXiv:1610.06258, section 4.1; with many queries: Arora et al. 2023, arXiv:2312.04927). Parity and sums modulo 5 are
word problems of finite groups, which a linear recurrence with positive decays cannot solve at every length (Merrill et
al. 2024, arXiv:2404.08819; Grazzi et al. 2024, arXiv:2411.12537).

They are sets of ``classify``, so that the loss counts the answer alone, and the accuracy is that of the answer. An
answer of several symbols, a copy, is asked for one symbol at a time: a text ends with the beginning of the answer, and
the label is the symbol that follows, as a language model predicts it with the answer so far given.

Training and ``val`` have every length up to ``trained``; ``length_N`` has texts of exactly N. The length is the number
of digits or pairs, or for copies the delay: the number of dots.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxgen.data.batches import check_batch_sizes, random_bits
from jaxgen.data.tables import Labelled
from jaxgen.errors import choose

#: The number of symbols to copy, the symbols, and the keys of ``recall``.
COPIED, SYMBOLS, KEYS = 8, "abcdefgh", string.ascii_letters
#: The sum of digits below ``MODULUS`` is taken modulo it.
MODULUS = 5
# Random numbers of a text, besides one for each unit of its length. The last one chooses what is asked for, the one
# before it the length.
_BITS = 128
# Streams of random bits; those of ``length_N`` are N.
_TRAIN, _VAL = 1 << 20, (1 << 20) + 1


def _parity(length: int, bits: np.ndarray) -> tuple[str, str]:
    digits = bits[:length] % 2
    return _join(digits), "odd" if digits.sum() % 2 else "even"


def _modular_sum(length: int, bits: np.ndarray) -> tuple[str, str]:
    digits = bits[:length] % MODULUS
    return _join(digits), str(digits.sum() % MODULUS)


def _recall(length: int, bits: np.ndarray) -> tuple[str, str]:
    keys = [KEYS[k] for k in np.argsort(bits[: len(KEYS)])[:length]]
    values = bits[len(KEYS) : len(KEYS) + length] % 10
    asked = int(bits[-1] % length)
    pairs = "".join(f"{key}{value}" for key, value in zip(keys, values.tolist()))
    return f"{pairs}?{keys[asked]}", str(values[asked])


def _copying(length: int, bits: np.ndarray) -> tuple[str, str]:
    return _copy(np.arange(COPIED), length, bits)


def _selective_copying(length: int, bits: np.ndarray) -> tuple[str, str]:
    return _copy(np.argsort(bits[COPIED : 2 * COPIED + length])[:COPIED], length, bits)


def _copy(places: np.ndarray, length: int, bits: np.ndarray) -> tuple[str, str]:
    """Symbols at these places among ``length`` dots, and the beginning of their copy -> the next symbol of the copy."""
    shown = ["."] * (COPIED + length)
    symbols = [SYMBOLS[k] for k in bits[:COPIED] % len(SYMBOLS)]
    for place, symbol in zip(np.sort(places), symbols):
        shown[place] = symbol
    written = int(bits[-1] % COPIED)
    return "".join(shown) + ">" + "".join(symbols[:written]), symbols[written]


def _join(digits: np.ndarray) -> str:
    return "".join(map(str, digits.tolist()))


@dataclass(frozen=True)
class SequenceSet:
    """``write(length, bits)`` returns a text and its label; ``trained`` is the largest length in training."""

    write: Callable[[int, np.ndarray], tuple[str, str]]
    trained: int
    tested: tuple[int, ...]


_LENGTHS = (8, 16, 32, 64, 128, 256)
SEQUENCES: dict[str, SequenceSet] = {
    "copying": SequenceSet(_copying, 32, _LENGTHS),
    "selective-copying": SequenceSet(_selective_copying, 32, _LENGTHS),
    "recall": SequenceSet(_recall, 16, (4, 8, 16, 32, 48)),
    "parity": SequenceSet(_parity, 32, _LENGTHS),
    "modular-sum": SequenceSet(_modular_sum, 32, _LENGTHS),
}


def sequences(
    name: str, seed: int = 0, *, train: int = 40_000, val: int = 1_000, test: int = 1_000
) -> dict[str, Labelled]:
    """Returns the splits ``train``, ``val`` and ``length_N`` of one of ``SEQUENCES``, with that many texts each.

    The result depends on the arguments only. Short texts occur repeatedly, in training and in ``val``: there are only
    two texts of one binary digit.

    Raises:
        UsageError: The name is not known, or a number is out of range.
    """
    sizes = {"training": train, "validation": val, "test": test}
    check_batch_sizes(seed=seed, **{f"number_of_{split}_texts": number for split, number in sizes.items()})
    chosen = SEQUENCES[choose(name, SEQUENCES, "set of sequences")]
    every = range(1, chosen.trained + 1)
    splits = {"train": _texts(chosen, train, every, seed, _TRAIN), "val": _texts(chosen, val, every, seed, _VAL)}
    return splits | {f"length_{n}": _texts(chosen, test, range(n, n + 1), seed, n) for n in chosen.tested}


def _texts(chosen: SequenceSet, number: int, lengths: range, seed: int, stream: int) -> Labelled:
    """Returns ``number`` texts with random ``lengths``, from the random bits of ``stream``."""
    bits = random_bits(number * (_BITS + lengths[-1]), seed, stream, "sequences").reshape(number, -1)
    which = (bits[:, -2] % len(lengths)).astype(int)
    rows = [chosen.write(lengths[k], row) for k, row in zip(which, bits)]
    return Labelled([text for text, _ in rows], [label for _, label in rows])
