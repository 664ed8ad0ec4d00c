"""Scores as values: of single tokens, of a text, of one continuation among others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class TokenScores(NamedTuple):
    """Tokens in the order of the text, with what the model gave each and the ``top`` likeliest in its place."""

    tokens: np.ndarray  # int32 [n]
    logp: np.ndarray  # float32 [n], nats
    top: np.ndarray  # int32 [n, top], the likeliest first
    top_logp: np.ndarray  # float32 [n, top], nats


@dataclass(frozen=True)
class Score:
    """The log-probability of a text in nats, and how much text it is.

    ``tokens`` counts what was scored, <eos> too; ``chars`` and ``bytes`` the text it stands for, so that bits per
    character include what the end costs, as in a run's evaluations. ``unknown`` tokens count as <unk>, and bits
    are then a lower bound; those that were skipped are in none of these sums. ``forced`` counts cuts that may have
    changed a few ids.
    """

    logp: float = 0.0
    tokens: int = 0
    chars: int = 0
    bytes: int = 0
    unknown: int = 0
    forced: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def nats_per_token(self) -> float:
        """The mean negative log-likelihood; NaN without tokens, as everything below without what it divides by."""
        return -self.logp / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_char(self) -> float:
        return -self.logp / math.log(2) / self.chars if self.chars else math.nan

    @property
    def bits_per_byte(self) -> float:
        return -self.logp / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Candidate:
    """A continuation among others. ``rank`` counts from 1; those that are equally likely have the same."""

    rank: int
    index: int
    text: str
    score: Score
    tied: bool


def joined(parts: Sequence[TokenScores], top: int) -> TokenScores:
    """The tokens of several parts in order; ``top`` is how many likeliest they come with."""
    if not parts:
        none = np.zeros((0, top), np.float32)
        return TokenScores(np.zeros(0, np.int32), np.zeros(0, np.float32), none.astype(np.int32), none)
    return TokenScores(*(np.concatenate(field) for field in zip(*parts)))
