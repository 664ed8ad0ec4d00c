"""Batches of padded rows: each row once per epoch, a function of (seed, step), at most the given number of widths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.bucketing import PAD_ROW, Buckets, RowBatches, bucket_batches, bucket_width, pad_rows
from jaxgen.errors import UsageError

#: Lengths of rows with one field, or with two.
LENGTHS = st.integers(1, 2).flatmap(
    lambda fields: st.lists(st.lists(st.integers(0, 300), min_size=fields, max_size=fields), min_size=1, max_size=60)
)


def told(rows, widths, step):
    """A batch that says what it was made of."""
    return rows.tolist(), widths, step


def batches(lengths, most=8, size=4, seed=0):
    return RowBatches(Buckets(np.array(lengths), most), size, seed, told)


def epoch(made, number=0):
    first = number * made.steps_per_epoch
    return [made.batch(step) for step in range(first, first + made.steps_per_epoch)]


# Widths


WIDTHS = sorted([2**k for k in range(3, 22)] + [3 * 2**k for k in range(2, 20)])


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_width_is_the_next_power_of_two_or_one_and_a_half_times_one(length):
    assert bucket_width(length) == min(width for width in WIDTHS if width >= length)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_longer_row_is_never_padded_to_less(a, b):
    assert (bucket_width(a) <= bucket_width(b)) or a > b


@settings(deadline=None)
@given(st.integers(9, 10**6))
def test_less_than_a_third_of_a_width_is_padding(length):
    assert 3 * (bucket_width(length) - length) < bucket_width(length)


# Groups


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 10))
def test_there_are_no_more_groups_than_asked_and_every_row_fits_its_own(lengths, most):
    buckets = Buckets(np.array(lengths), most)
    assert len(buckets) <= most
    assert len({*buckets.widths}) == len(buckets)
    assert {*buckets.bucket_of.tolist()} == {*range(len(buckets))}
    for row, bucket in zip(lengths, buckets.bucket_of):
        assert all(length <= width for length, width in zip(row, buckets.widths[bucket], strict=True))


@settings(deadline=None)
@given(LENGTHS)
def test_with_as_many_groups_as_widths_no_row_is_padded_beyond_its_own(lengths):
    buckets = Buckets(np.array(lengths), 64)
    for row, bucket in zip(lengths, buckets.bucket_of):
        assert max(buckets.widths[bucket]) == bucket_width(max(row))


def test_of_too_many_groups_the_smallest_joins_the_next_longer():
    lengths = [5] * 9 + [10] * 2 + [15] * 5 + [20]
    assert Buckets(np.array(lengths), 3).widths == [(8,), (16,), (24,)]
    assert Buckets(np.array(lengths), 2).widths == [(8,), (24,)]
    assert Buckets(np.array(lengths), 1).widths == [(24,)]


def test_each_field_has_the_width_of_its_own_longest():
    assert Buckets(np.array([[3, 30], [14, 29], [9, 3]])).widths == [(12, 8), (16, 32)]


def test_groups_are_at_least_one():
    with pytest.raises(UsageError, match="0"):
        Buckets(np.array([3]), 0)


# Batches


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_every_row_is_in_one_batch_of_an_epoch_and_every_batch_is_full(lengths, most, size, seed, number):
    made = epoch(batches(lengths, most, size, seed), number)
    rows = [row for batch, _, _ in made for row in batch]
    assert sorted(row for row in rows if row != PAD_ROW) == list(range(len(lengths)))
    assert {len(batch) for batch, _, _ in made} == {size}
    assert len({widths for _, widths, _ in made}) <= most


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9))
def test_filler_stands_behind_the_rows_of_the_last_batch_of_a_group(lengths, size):
    made = epoch(batches(lengths, 4, size))
    filled: dict[tuple[int, ...], int] = {}
    for rows, widths, _ in made:
        there = [row != PAD_ROW for row in rows]
        assert there == sorted(there, reverse=True)
        assert any(there)
        filled[widths] = filled.get(widths, 0) + (not all(there))
    assert max(filled.values()) <= 1


LONG = np.random.default_rng(0).integers(0, 100, 200)


def test_a_batch_follows_from_seed_and_step_alone():
    one, other = batches(LONG, seed=3), batches(LONG, seed=3)
    steps = range(3 * one.steps_per_epoch)
    assert [one.batch(step) for step in steps] == [other.batch(step) for step in reversed(steps)][::-1]


def test_another_seed_and_another_epoch_are_another_order():
    made = batches(LONG)
    one, later, other = (
        sorted(rows for rows, _, _ in each) for each in (epoch(made), epoch(made, 1), epoch(batches(LONG, seed=1)))
    )
    assert one != later
    assert one != other


def test_long_and_short_batches_take_turns():
    widths = [widths for _, widths, _ in epoch(batches(LONG))]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_the_step_reaches_what_makes_the_batch():
    made = batches(LONG)
    assert [made.batch(step)[2] for step in (0, 7, 500)] == [0, 7, 500]


def test_steps_of_the_same_shape_are_counted_up_to_the_end_of_the_epoch():
    made = batches(LONG, most=3)
    end = made.steps_per_epoch
    widths = [widths for _, widths, _ in epoch(made)]
    for step in range(end):
        same = made.same_shape(step)
        assert {*widths[step : step + same]} == {widths[step]}
        assert step + same == end or widths[step + same] != widths[step]


def test_every_shape_has_a_step_and_its_share_of_the_epoch():
    made = batches(LONG, most=3)
    widths = [widths for _, widths, _ in epoch(made)]
    assert {widths[step]: often for step, often in made.shapes()} == Counter(widths)


@pytest.mark.parametrize(("sizes", "said"), [({"size": 0}, "batch size is 0"), ({"seed": -1}, "seed is -1")])
def test_sizes_that_are_none_are_refused(sizes, said):
    with pytest.raises(UsageError, match=said):
        batches(LONG, **sizes)


def test_for_an_evaluation_rows_stay_in_order():
    rows = [row for _, part in bucket_batches(Buckets(np.array([3, 20, 4, 21, 5])), 2) for row in part.tolist()]
    assert rows == [0, 2, 4, PAD_ROW, 1, 3]


def test_rows_are_padded_behind_their_ids():
    ids, valid = pad_rows([np.array([5, 6, 7]), np.array([], np.int64), np.array([8])], 4, 9)
    assert ids.tolist() == [[5, 6, 7, 9], [9, 9, 9, 9], [8, 9, 9, 9]]
    assert valid.tolist() == [[True] * 3 + [False], [False] * 4, [True] + [False] * 3]
    assert (ids.dtype, valid.dtype) == (np.int32, bool)
