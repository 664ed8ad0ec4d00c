"""Evaluation batches: every target exactly once in one fixed shape; windows follow from the seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.batches import Tokens, stream_eval, window_eval
from jaxgen.errors import UsageError
from jaxgen.tokenizers import EOS

GENERAL = settings(max_examples=80, deadline=None)


def running(n):
    return Tokens(np.arange(3, 3 + n, dtype=np.uint16), None, n, n)


def documents(lengths):
    ids = np.arange(3, 3 + sum(lengths) + len(lengths), dtype=np.uint16)
    ends = np.cumsum([n + 1 for n in lengths])
    ids[ends - 1] = EOS
    return Tokens(ids, np.concatenate([[0], ends[:-1]]).astype(np.int64), sum(lengths), sum(lengths))


def joined(batches):
    batches = list(batches)
    return type(batches[0])(*(np.concatenate(fields, axis=1) for fields in zip(*batches)))


@GENERAL
@given(
    n=st.integers(2, 300),
    lanes=st.integers(1, 6),
    t=st.integers(1, 9),
    burn_in=st.integers(0, 20),
)
def test_every_target_of_running_text_is_scored_once_with_its_own_past(n, lanes, t, burn_in):
    batches = list(stream_eval(running(n), lanes, t, burn_in))
    assert {field.shape for batch in batches for field in batch} == {(lanes, t)}
    assert [field.dtype for field in batches[0]] == [np.int32, np.int32, np.bool_, np.bool_]
    whole = joined(batches)
    assert sorted(whole.targets[whole.mask].tolist()) == list(range(4, 3 + n))
    assert np.array_equal(whole.targets[whole.mask], whole.tokens[whole.mask] + 1)
    assert whole.reset[:, 0].all()
    assert not whole.reset[:, 1:].any()
    for row in range(lanes):
        scored = np.flatnonzero(whole.mask[row])
        if scored.size:
            # What the lane read before its first scored target: the burn-in, or all there is.
            past = whole.tokens[row, : scored[0] + 1]
            assert past.size - 1 == min(burn_in, int(past[-1]) - 3)
            assert np.array_equal(past, np.arange(past[0], past[0] + past.size))


@GENERAL
@given(n=st.integers(2, 200), lanes=st.integers(1, 5), t=st.integers(1, 7), limit=st.integers(1, 250))
def test_a_part_of_running_text_is_scored_at_the_beginnings_of_all_lanes(n, lanes, t, limit):
    whole, part = (joined(stream_eval(running(n), lanes, t, burn_in=3, limit_tokens=most)) for most in (None, limit))
    used = int(whole.mask.any(axis=1).sum())
    for row in range(lanes):
        scored = whole.targets[row][whole.mask[row]]
        assert np.array_equal(part.targets[row][part.mask[row]], scored[: max(1, limit // used)])


def test_a_short_split_uses_fewer_lanes_in_the_same_shape():
    whole = joined(stream_eval(running(40), 8, 4, burn_in=16))
    assert whole.mask.any(axis=1).sum() == 2
    assert whole.mask.shape[0] == 8


@GENERAL
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    lanes=st.integers(1, 5),
    t=st.integers(1, 7),
    limit=st.none() | st.integers(1, 60),
)
def test_every_target_of_documents_is_scored_once_each_from_a_reset(lengths, lanes, t, limit):
    tokens = documents(lengths)
    batches = list(stream_eval(tokens, lanes, t, limit_tokens=limit))
    assert {field.shape for batch in batches for field in batch} == {(lanes, t)}
    whole = joined(batches)
    ends = np.cumsum([length + 1 for length in lengths])
    kept = len(ends) if limit is None else max(1, int((ends <= limit).sum()))
    assert Counter(whole.targets[whole.mask].tolist()) == Counter(tokens.ids[: ends[kept - 1]].tolist())
    assert np.count_nonzero(whole.reset & whole.mask) == kept
    assert (whole.tokens[whole.reset & whole.mask] == EOS).all()


@pytest.mark.parametrize("n", [0, 1])
def test_a_split_without_targets_yields_nothing(n):
    assert list(stream_eval(running(n), 4, 8)) == []
    assert list(stream_eval(Tokens(np.zeros(0, np.uint16), np.zeros(0, np.int64), 0, 0), 4, 8, limit_tokens=5)) == []


@GENERAL
@given(n=st.integers(0, 80), count=st.integers(1, 12), length=st.integers(1, 9), b=st.integers(1, 5))
def test_windows_are_counted_exactly_and_lie_in_the_split(n, count, length, b):
    batches = list(window_eval(running(n), count, length, 3, b))
    if n < length + 1:
        assert batches == []
        return
    assert {field.shape for batch in batches for field in batch} == {(b, length)}
    assert sum(int(batch.mask.sum()) for batch in batches) == count * length
    for batch in batches:
        assert np.array_equal(batch.targets, batch.tokens + 1)
        assert batch.targets.max() < 3 + n
        assert batch.reset[:, 0].all()
        assert not batch.reset[:, 1:].any()
        assert (batch.mask == batch.mask[:, :1]).all()


def test_windows_depend_on_the_seed_alone_and_not_on_the_batch_size():
    def starts(seed, b):
        batches = list(window_eval(running(5000), 40, 8, seed, b))
        return [int(row[0]) for batch in batches for row, mask in zip(batch.tokens, batch.mask) if mask[0]]

    assert starts(0, 40) == starts(0, 7)
    assert starts(0, 40) != starts(1, 40)
    assert min(starts(0, 40)) < 1000
    assert max(starts(0, 40)) > 4000


def test_windows_over_documents_reset_at_their_boundaries():
    for batch in window_eval(documents([4, 6, 3, 8]), 20, 7, 0, 5):
        assert np.array_equal(batch.reset[:, 1:], batch.tokens[:, 1:] == EOS)
        assert batch.reset[:, 0].all()


def test_arguments_are_checked_before_the_first_batch():
    with pytest.raises(UsageError, match="lanes"):
        next(stream_eval(running(9), 0, 4))
    with pytest.raises(UsageError, match="-1"):
        next(stream_eval(running(9), 1, 4, -1))
    with pytest.raises(UsageError, match="limit"):
        next(stream_eval(running(9), 1, 4, limit_tokens=0))
    with pytest.raises(UsageError, match="windows"):
        next(window_eval(running(9), 0, 4, 0, 1))
