"""Reference transforms in NumPy float64: one row at a time, with sorts and loops over the whole text.

A reference takes the transform (for its options), the row [V], the prompt, the tokens drawn so far and the id of
<eos>, and returns the row that the draw should see.
"""

from __future__ import annotations

import numpy as np
import regex as rx

from jaxgen.testing.transforms import letters


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def only(kept, row):
    """The row without what is not kept; as it was if that were nothing."""
    left = np.where(kept, row, -np.inf)
    return left if np.isfinite(left).any() else row


def without(ids, row):
    return only(~np.isin(np.arange(row.size), list(ids)), row)


def smallest(score, p, mass):
    """The tokens of highest ``score`` that reach the ``mass``, and those level with the last of them."""
    order = np.argsort(-score, kind="stable")
    needed = min(np.searchsorted(np.cumsum(p[order]), mass), score.size - 1)
    return score >= score[order[needed]]


def surprise(row):
    p = softmax(row)
    with np.errstate(divide="ignore"):
        surprise = -np.log(p)
    return p, surprise, np.sum(p[p > 0] * surprise[p > 0])


def forbid(o, row, prompt, drawn, eos):
    return without(o.ids, row)


def regex(o, row, prompt, drawn, eos, pattern=None):
    pattern, pieces = rx.compile(o.pattern if pattern is None else pattern), letters(row.size)
    text = "".join(pieces[i] for i in drawn)
    kept = [piece != "" and pattern.fullmatch(text + piece, partial=True) is not None for piece in pieces]
    kept[eos] = pattern.fullmatch(text) is not None
    stray = any(pieces[i] == "" for i in drawn)  # after <eos> or padding nothing matches
    return row if stray else only(np.array(kept), row)


def words_from(o, row, prompt, drawn, eos):
    word = "|".join(o.words)
    return regex(o, row, prompt, drawn, eos, rf"\W*(?:(?:{word})(?:\W+(?:{word}))*\W*)?")


def bias(o, row, prompt, drawn, eos):
    row = row.copy()
    for i, value in o.biases:
        row[i] += value
    return row


def repetition_penalty(o, row, prompt, drawn, eos):
    seen = np.isin(np.arange(row.size), [*prompt, *drawn])
    return np.where(seen, np.where(row < 0, row * o.penalty, row / o.penalty), row)


def presence_penalty(o, row, prompt, drawn, eos):
    return row - o.penalty * np.isin(np.arange(row.size), drawn)


def frequency_penalty(o, row, prompt, drawn, eos):
    return row - o.penalty * np.bincount(np.asarray(drawn, int), minlength=row.size)


def no_repeat_ngram(o, row, prompt, drawn, eos):
    text, before = [*prompt, *drawn][-o.window :], o.n - 1
    end = text[len(text) - before :]
    return without({text[i] for i in range(before, len(text)) if text[i - before : i] == end}, row)


def min_length(o, row, prompt, drawn, eos):
    return without({eos} if len(drawn) < o.n else (), row)


def force(o, row, prompt, drawn, eos):
    return only(np.arange(row.size) == o.ids[len(drawn)], row) if len(drawn) < len(o.ids) else row


def temperature(o, row, prompt, drawn, eos):
    t = len(drawn)
    if callable(o.value):
        return row / o.value(t)
    return row / (o.value[min(t, len(o.value) - 1)] if isinstance(o.value, tuple) else o.value)


def top_k(o, row, prompt, drawn, eos):
    return only(row >= np.sort(row)[-min(o.k, row.size)], row)


def top_p(o, row, prompt, drawn, eos):
    return only(smallest(row, softmax(row), o.p), row)


def min_p(o, row, prompt, drawn, eos):
    p = softmax(row)
    return only(p >= o.p * p.max(), row)


def typical_p(o, row, prompt, drawn, eos):
    p, each, mean = surprise(row)
    return only(smallest(-np.abs(each - mean), p, o.p), row)


def epsilon_cutoff(o, row, prompt, drawn, eos):
    return only((softmax(row) >= o.epsilon) | (row == row.max()), row)


def eta_cutoff(o, row, prompt, drawn, eos):
    p, _, mean = surprise(row)
    return only((p >= min(o.epsilon, np.sqrt(o.epsilon) * np.exp(-mean))) | (row == row.max()), row)


REFERENCES = {
    "forbid": forbid,
    "regex": regex,
    "words-from": words_from,
    "bias": bias,
    "repetition-penalty": repetition_penalty,
    "presence-penalty": presence_penalty,
    "frequency-penalty": frequency_penalty,
    "no-repeat-ngram": no_repeat_ngram,
    "min-length": min_length,
    "force": force,
    "temperature": temperature,
    "top-k": top_k,
    "top-p": top_p,
    "min-p": min_p,
    "typical-p": typical_p,
    "epsilon-cutoff": epsilon_cutoff,
    "eta-cutoff": eta_cutoff,
}
