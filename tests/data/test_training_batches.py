"""Training batches: a pure function of (seed, step), every target once per epoch, nothing crosses a boundary."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.batches import BATCHES, Tokens, WindowLengths, make_batches, permutation, random_bits
from jaxgen.errors import DataError, UsageError
from jaxgen.tokenizers import EOS, PAD

GENERAL = settings(max_examples=60, deadline=None)
LAYOUTS = pytest.mark.parametrize("layout", BATCHES)


def running(n):
    """Ids that are all different, so that each is known by its value."""
    return Tokens(np.arange(3, 3 + n, dtype=np.int32), None, n, n)


def documents(lengths):
    """Documents of different ids throughout, each ending in EOS."""
    ids = np.arange(3, 3 + sum(lengths) + len(lengths), dtype=np.int32)
    ends = np.cumsum([n + 1 for n in lengths])
    ids[ends - 1] = EOS
    return Tokens(ids, np.concatenate([[0], ends[:-1]]).astype(np.int64), sum(lengths), sum(lengths))


def example(layout, seed=0):
    tokens = documents([3, 9, 1, 5, 2, 7, 4, 4, 6]) if layout == "documents" else running(101)
    return make_batches(layout, tokens, 3, 5, seed)


def lanes_of(batches, epoch=0):
    """One epoch as a single batch [B, steps * T]."""
    first = epoch * batches.steps_per_epoch
    steps = [batches.batch(first + k) for k in range(batches.steps_per_epoch)]
    return type(steps[0])(*(np.concatenate(fields, axis=1) for fields in zip(*steps)))


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


@LAYOUTS
def test_every_field_is_b_by_t_with_its_type(layout):
    batch = example(layout).batch(0)
    assert [field.dtype for field in batch] == [np.int32, np.int32, np.bool_, np.bool_]
    assert {field.shape for field in batch} == {(3, 5)}


@LAYOUTS
def test_a_batch_alone_equals_the_batch_in_sequence_in_any_order(layout):
    sequence = example(layout)
    expected = [sequence.batch(step) for step in range(25)]
    other = example(layout)
    for step in (24, 0, 7, 7, 13, 6):
        assert equal(other.batch(step), expected[step])


@LAYOUTS
def test_epochs_and_seeds_differ(layout):
    batches = example(layout)
    assert not equal(lanes_of(batches, 0), lanes_of(batches, 1))
    assert not equal(lanes_of(batches, 0), lanes_of(example(layout, seed=1), 0))
    assert not equal(lanes_of(batches, 0), lanes_of(example(layout, seed=2**32 - 1), 0))


@LAYOUTS
def test_changing_a_batch_does_not_change_the_next_call(layout):
    batches = example(layout)
    before = [field.copy() for field in batches.batch(0)]
    for field in batches.batch(0):
        field[:] = 0
    assert equal(batches.batch(0), before)


@LAYOUTS
@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (-1, 5), (3, 2.5), (True, 5)])
def test_sizes_that_are_no_positive_number_are_usage_errors(layout, sizes):
    with pytest.raises(UsageError, match="at least 1"):
        make_batches(layout, documents([9]) if layout == "documents" else running(99), *sizes, 0)


@LAYOUTS
@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_a_seed_out_of_range_is_a_usage_error(layout, seed):
    with pytest.raises(UsageError, match="seed"):
        example(layout, seed)


def test_the_random_bits_are_these_on_every_machine():
    assert random_bits(2, 0, 0, "stream").tolist() == [16801915894846331806, 5061229541627752400]
    assert sorted(permutation(50, 3, 1, "windows").tolist()) == list(range(50))
    assert permutation(6, 1, 2, "windows").tolist() == [5, 1, 0, 3, 4, 2]


@GENERAL
@given(n=st.integers(2, 200), b=st.integers(1, 5), t=st.integers(1, 9), epoch=st.integers(0, 3))
def test_stream_lanes_follow_the_text_and_score_no_target_twice(n, b, t, epoch):
    if n // b < t:
        return
    batches = make_batches("stream", running(n), b, t, 7)
    assert batches.steps_per_epoch == n // b // t
    lanes = lanes_of(batches, epoch)
    assert np.array_equal(lanes.tokens[:, 1:], lanes.targets[:, :-1])
    counts = Counter(lanes.targets[lanes.mask].tolist())
    assert set(counts.values()) <= {1}
    assert 3 not in counts
    # All but the remainder and, at the seam, the target that would join the end to the beginning.
    used = b * batches.steps_per_epoch * t
    assert len(counts) == used - np.count_nonzero(lanes.targets == 3)
    assert np.array_equal(lanes.targets[lanes.mask], lanes.tokens[lanes.mask] + 1)
    expected = lanes.tokens == 3
    expected[:, 0] = True
    assert np.array_equal(lanes.reset, expected)


def test_stream_starts_each_epoch_elsewhere():
    batches = make_batches("stream", running(1000), 2, 10, 0)
    assert len({int(lanes_of(batches, epoch).tokens[0, 0]) for epoch in range(6)}) == 6


def test_cold_starts_reset_a_share_of_the_rows_at_the_beginning_of_a_window_and_change_nothing_else():
    plain, cold = (make_batches("stream", running(1000), 4, 5, 7, cold_starts=share) for share in (0.0, 0.25))
    steps = range(2 * plain.steps_per_epoch)
    resets = []
    for step in steps:
        one, other = plain.batch(step), cold.batch(step)
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "targets", "mask"))
        assert np.array_equal(one.reset[:, 1:], other.reset[:, 1:])
        assert not np.any(one.reset & ~other.reset)
        resets.append(other.reset[:, 0] & ~one.reset[:, 0])
    drawn = np.array(resets)
    assert 0.2 < drawn.mean() < 0.3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.25, "rows are reset independently"
    again = make_batches("stream", running(1000), 4, 5, 7, cold_starts=0.25)
    assert np.array_equal(again.batch(33, slice(1, 3)).reset, cold.batch(33).reset[1:3])
    assert any(
        not np.array_equal(make_batches("stream", running(1000), 4, 5, 8, cold_starts=0.25).places(n).fresh, drawn[n])
        for n in steps[1:9]
    )


def test_cold_starts_of_other_layouts_are_refused():
    for layout, tokens in (("windows", running(50)), ("documents", documents([9]))):
        with pytest.raises(UsageError, match="--cold-starts"):
            make_batches(layout, tokens, 1, 5, 0, cold_starts=0.1)


def test_random_lengths_are_half_the_usual_one_or_a_normal_number_in_multiples_of_the_spread():
    lengths = WindowLengths(usual=70, spread=5).of_epoch(seed=3, epoch=0, steps=40_000)
    found = {length: np.mean(lengths == length) for length in np.unique(lengths).tolist()}
    assert found.keys() == {35, 60, 65, 70, 75, 80}
    assert found[35] == pytest.approx(0.05, abs=0.005)
    others = lengths[lengths != 35]
    assert others.mean() == pytest.approx(70, abs=0.1)
    assert others.std() == pytest.approx(5, abs=0.1)
    assert found[70] == pytest.approx(0.95 * 0.383, abs=0.01)
    other = WindowLengths(usual=70, spread=5)
    assert not np.array_equal(other.of_epoch(4, 0, 100), lengths[:100])
    assert not np.array_equal(other.of_epoch(3, 1, 100), lengths[:100])


def test_lengths_grow_in_quarters_over_the_steps_of_the_warm_up():
    lengths = WindowLengths(usual=16, warmup=6)
    whole = [4, 4, 8, 8, 12, 12, 16, 16, 16, 16]
    assert lengths.of_epoch(0, 0, 10).tolist() == whole
    assert [*lengths.of_epoch(0, 0, 5), *lengths.of_epoch(0, 1, 5)] == whole
    assert WindowLengths(usual=2, warmup=3).of_epoch(0, 0, 4).tolist() == [1, 1, 1, 2]
    both = WindowLengths(usual=16, spread=2, warmup=6).of_epoch(0, 0, 100)
    assert both[:6].tolist() == whole[:6]
    assert np.array_equal(both[6:], WindowLengths(usual=16, spread=2).of_epoch(0, 0, 100)[6:])


VARYING = [{"spread": 2}, {"warmup": 20}, {"spread": 2, "warmup": 7}]


@pytest.mark.parametrize("varying", VARYING)
def test_windows_of_a_stream_follow_each_other_whatever_their_lengths(varying):
    def made():
        return make_batches("stream", running(1000), 4, 8, 7, **varying)

    batches, rows = made(), [[] for _ in range(4)]
    plain = make_batches("stream", running(1000), 4, 8, 7)
    assert batches.steps_per_epoch == plain.steps_per_epoch == 31
    for step in range(31):
        batch = batches.batch(step)
        assert batch.tokens.shape == (4, batches.length_at(step))
        assert np.array_equal(made().batch(step).tokens, batch.tokens), "alone as in sequence"
        assert batch.reset[:, 0].all() == (step == 0)
        for row, tokens in zip(rows, batch.tokens):
            row.extend(tokens.tolist())
    begin = plain.batch(0).tokens[:, 0]
    for row, first in zip(rows, begin):
        assert row == [3 + (first - 3 + n) % 1000 for n in range(len(row))]
    assert batches.batch(31).reset[:, 0].all()
    assert np.array_equal(batches.batch(31).tokens[:, 0], plain.batch(31).tokens[:, 0])


def test_the_warm_up_of_shuffled_windows_reads_their_beginnings():
    short, plain = (make_batches("windows", running(200), 4, 8, 7, warmup=warmup) for warmup in (9, 0))
    for step, length in ((0, 2), (3, 4), (8, 6), (9, 8)):
        for one, other in zip(short.batch(step), plain.batch(step)):
            assert np.array_equal(one, other[:, :length])


@pytest.mark.parametrize("varying", VARYING)
def test_all_shapes_are_told_and_where_they_change(varying):
    batches = make_batches("stream", running(1000), 4, 8, 7, **varying)
    end = max(varying.get("warmup", 0), 1) + batches.steps_per_epoch
    lengths = [batches.length_at(step) for step in range(end + 31)]
    known = {batches.length_at(step): often for step, often in batches.shapes()}
    assert set(lengths[:end]) == set(known)
    assert sum(known.values()) == batches.steps_per_epoch
    for step in range(end):
        alike = range(step, step + batches.same_shape(step))
        assert {lengths[each] for each in alike if each < len(lengths)} == {lengths[step]}
        assert len({batches.rate_scale(each) for each in alike}) == 1


def test_a_drawn_length_scales_the_learning_rate_and_one_of_the_warm_up_does_not():
    batches = make_batches("stream", running(1000), 4, 8, 7, spread=2, warmup=6)
    for step in range(31):
        assert batches.relative_size(step) == batches.length_at(step) / 8
        assert batches.rate_scale(step) == (1 if step < 6 else batches.length_at(step) / 8)


def test_lengths_that_a_layout_cannot_have_are_refused():
    for layout, tokens in (("windows", running(50)), ("documents", documents([9]))):
        with pytest.raises(UsageError, match="--seq-len-spread"):
            make_batches(layout, tokens, 1, 5, 0, spread=1)
    with pytest.raises(UsageError, match="--seq-len-warmup"):
        make_batches("documents", documents([9]), 1, 5, 0, warmup=1)
    with pytest.raises(UsageError, match="give 2"):
        make_batches("stream", running(50), 1, 8, 0, spread=3)
    with pytest.raises(UsageError, match="warm-up"):
        make_batches("stream", running(50), 1, 8, 0, warmup=-1)
    with pytest.raises(DataError, match="--seq-len"):
        make_batches("stream", running(19), 2, 8, 0, spread=1)


def test_stream_says_how_much_text_it_needs():
    with pytest.raises(DataError, match="--batch-size"):
        make_batches("stream", running(99), 10, 10, 0)
    assert make_batches("stream", running(100), 10, 10, 0).steps_per_epoch == 1
    with pytest.raises(DataError, match="at least 2 "):
        make_batches("stream", running(1), 1, 1, 0)


@GENERAL
@given(n=st.integers(2, 120), b=st.integers(1, 5), t=st.integers(1, 9), stride=st.none() | st.integers(1, 12))
def test_windows_are_whole_shuffled_and_from_a_zero_state(n, b, t, stride):
    if n < t + 1:
        return
    batches = make_batches("windows", running(n), b, t, 7, stride)
    starts = range(0, n - t, stride or t)
    assert batches.steps_per_epoch == max(1, len(starts) // b)
    lanes = [batches.batch(k) for k in range(batches.steps_per_epoch)]
    seen = Counter(int(start) - 3 for batch in lanes for start in batch.tokens[:, 0])
    assert set(seen) <= set(starts)
    if len(starts) >= b:
        assert set(seen.values()) == {1}
    else:
        assert set(seen) == set(starts)
    for batch in lanes:
        assert np.array_equal(batch.targets, batch.tokens + 1)
        assert batch.mask.all()
        assert batch.reset[:, 0].all()
        assert not batch.reset[:, 1:].any()


def test_windows_say_how_much_text_they_need():
    with pytest.raises(DataError, match="10 tokens"):
        make_batches("windows", running(10), 4, 10, 0)


def test_a_stride_must_be_positive_and_belongs_to_windows():
    with pytest.raises(UsageError, match="stride"):
        make_batches("windows", running(50), 4, 10, 0, 0)
    with pytest.raises(UsageError, match="--layout windows"):
        make_batches("stream", running(50), 4, 10, 0, 5)
    with pytest.raises(UsageError, match="'windows'"):
        make_batches("window", running(50), 4, 10, 0)


lengths = st.lists(st.integers(1, 15), min_size=1, max_size=12)


@GENERAL
@given(lengths=lengths, b=st.integers(1, 5), t=st.integers(1, 9), epoch=st.integers(0, 3))
def test_each_document_is_read_whole_and_once_an_epoch(lengths, b, t, epoch):
    tokens = documents(lengths)
    lanes = lanes_of(make_batches("documents", tokens, b, t, 5), epoch)
    expected = Counter()
    for start, length in zip(tokens.doc_starts, lengths):
        ids = tokens.ids[start : start + length].tolist()
        expected[(EOS, *ids), (*ids, EOS)] += 1
    found = Counter()
    for row in range(b):
        end = int(lanes.mask[row].sum())
        assert lanes.mask[row, :end].all()
        starts = [*np.flatnonzero(lanes.reset[row, :end]).tolist(), end]
        assert starts[0] == 0
        for a, z in pairwise(starts):
            found[tuple(lanes.tokens[row, a:z].tolist()), tuple(lanes.targets[row, a:z].tolist())] += 1
        assert (lanes.tokens[row, end:] == PAD).all()
        assert (lanes.targets[row, end:] == PAD).all()
        assert lanes.reset[row, end : end + 1].all()
        assert not lanes.reset[row, end + 1 :].any()
    assert found == expected


@GENERAL
@given(lengths=lengths, b=st.integers(1, 5))
def test_document_lanes_are_balanced_and_as_long_in_every_epoch(lengths, b):
    batches = make_batches("documents", documents(lengths), b, 1, 5)
    total, longest = sum(lengths) + len(lengths), max(lengths) + 1
    assert batches.steps_per_epoch <= max(longest, total / b + longest)
    sizes = {tuple(sorted(lanes_of(batches, epoch).mask.sum(axis=1).tolist())) for epoch in range(3)}
    assert len(sizes) == 1
    assert max(next(iter(sizes))) == batches.steps_per_epoch


def test_documents_are_needed_for_their_layout():
    with pytest.raises(DataError, match="documents"):
        make_batches("documents", running(50), 2, 5, 0)


def test_one_token_a_step_simply_works():
    for layout in BATCHES:
        tokens = documents([2, 1]) if layout == "documents" else running(4)
        assert make_batches(layout, tokens, 1, 1, 0).batch(0).tokens.shape == (1, 1)


@pytest.mark.parametrize("together", [1, 4, 9, 1000])
def test_documents_laid_a_few_at_a_time_lie_as_all_at_once(together, monkeypatch):
    whole = [example("documents").text(step) for step in (0, 40)]
    monkeypatch.setattr("jaxgen.data.batches.COPIED_AT_ONCE", together)
    for step, text in zip((0, 40), whole):
        np.testing.assert_array_equal(example("documents").text(step), text)
