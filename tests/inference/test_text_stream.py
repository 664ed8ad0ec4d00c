"""Streamed texts: where they end, and which are the most probable."""

from __future__ import annotations

import numpy as np
import pytest

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.text_stream import Sample, StreamingDetokenizer, select_best
from jaxgen.tokenizers import ByteTokenizer


def sample(index: int, logp: list[float], end: str = "length") -> Sample:
    return Sample(index, "", np.zeros(len(logp), np.int32), np.array(logp), end)


def test_the_likeliest_are_those_with_the_best_mean_and_not_the_best_sum():
    short, long, level = sample(0, [-1.0, -1.0]), sample(1, [-0.5] * 9), sample(2, [-0.5])
    assert [each.index for each in select_best([short, long, level], 3)] == [1, 2, 0]


def test_a_text_without_a_token_or_cut_by_the_clock_is_never_the_likeliest():
    samples = [sample(0, []), sample(1, [-0.1], "time"), sample(2, [-3.0]), sample(3, [], "time")]
    assert [each.index for each in select_best(samples, 4)] == [2, 0, 1, 3]


@pytest.mark.parametrize(("stop", "text", "end"), [((), "a\ufffd", "length"), (("\ufffd",), "a", "stop")])
def test_an_unfinished_character_at_the_end_is_text_like_any_other(stop, text, end):
    tokenizer = ByteTokenizer.train([])
    ids = tokenizer.encode("a€")[:2]
    maker = StreamingDetokenizer(tokenizer, 0, 0, GenerationConfig(length=2, stop=stop), skip=0)
    piece = maker.feed(ids, np.zeros(2))
    assert (piece.text, piece.end) == (text, end)
