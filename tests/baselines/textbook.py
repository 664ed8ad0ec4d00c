"""Interpolated modified Kneser-Ney by the formulas (Chen & Goodman 1999, section 3), one probability at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

BEGIN = "begin"


class Textbook:
    """Dictionaries of counts; ``eos`` ends a text, and a text that has begun is a token that is never predicted."""

    def __init__(self, ids: Sequence[int], vocab_size: int, order: int, eos: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.counts: Counter[tuple] = Counter()
        text: list = [BEGIN]
        for number, token in enumerate(ids):
            text.append(token)
            if token == eos or number == len(ids) - 1:
                for n in range(1, order + 1):
                    self.counts.update(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
                text = [BEGIN]
        del self.counts[BEGIN,]
        self.probability = cache(self._probability)
        self.discount = cache(self._discount)
        self.amount = cache(self._amount)

    def _amount(self, gram: tuple) -> int:
        """The count of a longest n-gram or of one that begins a text, the number of different tokens before others."""
        if len(gram) == self.order or gram[0] == BEGIN:
            return self.counts[gram]
        return len({longer[0] for longer in self.counts if longer[1:] == gram})

    def _discount(self, n: int) -> tuple[float, ...]:
        amounts = Counter(self.amount(gram) for gram in self.counts if len(gram) == n)
        n1, n2, n3, n4 = (amounts[i] for i in (1, 2, 3, 4))
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if 0 < found[0] < 1 and 0 < found[1] < 2 and 0 < found[2] < 3:
                return found
        return 0.5, 1.0, 1.5

    def _probability(self, token: int, context: tuple) -> float:
        context = context[len(context) - min(len(context), self.order - 1) :]
        shorter = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        amounts = [self.amount((*context, v)) for v in range(self.vocab_size)]
        if not sum(amounts):
            return shorter
        discounts = (0.0, *self.discount(len(context) + 1))
        left = sum(discounts[min(a, 3)] for a in amounts) / sum(amounts)
        own = amounts[token]
        return (own - discounts[min(own, 3)]) / sum(amounts) + left * shorter

    def loss(self, ids: Sequence[int]) -> float:
        """Mean nats of every token but the first of a running text, each after all those before it."""
        pairs = [(ids[i], tuple(ids[max(0, i - self.order + 1) : i])) for i in range(1, len(ids))]
        return -sum(math.log(self.probability(*pair)) for pair in pairs) / len(pairs)
