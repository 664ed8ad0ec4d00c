"""Beam search compared with exhaustive search, the greedy loop, and a search in plain Python."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import UsageError
from jaxgen.sampling.beam import beam_search, beam_states, tile_beams
from jaxgen.sampling.decode import DecodeState, decode, sample_keys
from jaxgen.sampling.transforms import Bias, Force, MinLength
from jaxgen.sampling.transforms.base import Context, chain
from jaxgen.sampling.transforms.constraints import Forbid

V, L, B = 4, 5, 3
EOS, PAD = 2, 9  # padding that is no token, to be told from all of them
#: Every sequence of at most L tokens that ends or has L of them: 1 + 3 + 9 + 27 + 81 + 243.
ALL = 364
#: Every sequence shorter than L: the model of these tests has logits of its own for each.
NODES = (V**L - 1) // (V - 1)
#: The same transforms everywhere, so that the searches share what is compiled; these leave all as it is.
NEUTRAL = {"forbid": (), "bias": (), "least": 0, "force": ()}
#: One entry each time that the step below is traced.
TRACES = []


def random_tables(seed=0, spread=2.0):
    """The logits of B models [B, NODES, V] behind everything that they can have read."""
    return np.random.default_rng(seed).normal(0, spread, (B, NODES, V)).astype(np.float32)


def repeating(*logits):
    """B models that go by the last token alone: a row of logits for the first step and one behind each token."""
    rows = np.asarray(logits, np.float32)
    last = np.concatenate([[0], np.arange(NODES - 1) % V + 1])
    return np.broadcast_to(rows[last], (B, NODES, V))


def constant(*logits):
    """B models that forget: the same logits at every step."""
    return repeating(*[logits] * (V + 1))


def probabilities(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(rows))


def step(weights, carry, token):
    """One token down the tree of sequences. Beams must take both leaves of the carry along.

    Which model a row reads never changes, so that it lies among the weights.
    """
    TRACES.append(None)
    tables, problem = weights
    node = V * (carry["parent"] + carry["place"]) + token + 1
    return {"parent": node - token, "place": token}, tables[problem, node]


def start(tables, width):
    """The weights, and the carry and logits before the first token, whose node is 0."""
    nothing, problem = jnp.zeros(len(tables), jnp.int32), jnp.arange(len(tables))
    carry = {"parent": nothing, "place": nothing}
    return (jnp.asarray(tables), tile_beams(problem, width)), carry, jnp.asarray(tables[:, 0])


def transforms(forbid, bias, least, force):
    return chain(Forbid(forbid), Bias(bias), MinLength(least), Force(force))


@partial(jax.jit, static_argnums=(0, 7, 8))
def run(kinds, weights, carry, logits, states, alpha, eos, width, n_best):
    sizes = {"width": width, "length": L, "n_best": n_best}
    return beam_search(step, kinds, weights, carry, logits, states, alpha, eos=eos, pad=PAD, **sizes)


def search(tables, alpha=1.0, *, width, n_best, eos=EOS, **options):
    """The hypotheses of models with these tables."""
    chosen = transforms(**NEUTRAL | options)
    states = beam_states(chosen, Context(len(tables) * width, V, eos=eos))
    return run(chosen.kinds, *start(tables, width), states, alpha, eos, width, n_best)


def listed(found, b=0):
    """What was found for problem b, as (tokens, logp, score); checks the padding."""
    tokens, lengths, logp, scores = (np.asarray(each)[b] for each in found[:4])
    assert all((row[size:] == PAD).all() and (row[:size] != PAD).all() for row, size in zip(tokens, lengths))
    return [
        (tuple(row[:size].tolist()), total, score)
        for row, size, total, score in zip(tokens, lengths.tolist(), logp.tolist(), scores.tolist())
    ]


def tokens_of(found, b=0):
    return [tokens for tokens, *_ in listed(found, b)]


def assert_alike(found, expected):
    """The same hypotheses in the same order."""
    assert [tokens for tokens, *_ in found] == [tokens for tokens, *_ in expected]
    for part in (1, 2):
        np.testing.assert_allclose([h[part] for h in found], [h[part] for h in expected], rtol=1e-5, atol=1e-5)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def extensions(table, hypothesis):
    """A hypothesis (tokens, node, logp) with every token behind it."""
    tokens, node, logp = hypothesis
    return [((*tokens, v), V * node + v + 1, logp + more) for v, more in enumerate(log_softmax(table[node]))]


def ranked(hypotheses, alpha):
    scored = [(tokens, logp, logp / len(tokens) ** alpha) for tokens, _, logp in hypotheses]
    return sorted(scored, key=lambda hypothesis: -hypothesis[2])


def every_sequence(table, alpha, eos=EOS):
    """All sequences that end or have the whole length, the best first."""
    running, finished = [((), 0, 0.0)], []
    for _ in range(L):
        extended = [longer for hypothesis in running for longer in extensions(table, hypothesis)]
        finished += [h for h in extended if h[0][-1] == eos]
        running = [h for h in extended if h[0][-1] != eos]
    return ranked(finished + running, alpha)


def plain_search(table, alpha, width, eos=EOS):
    """The search in Python, without an early end."""
    running, finished = [((), 0, 0.0)], []
    for _ in range(L):
        extended = [longer for hypothesis in running for longer in extensions(table, hypothesis)]
        extended.sort(key=lambda hypothesis: -hypothesis[2])
        finished += [h for h in extended[:width] if h[0][-1] == eos]
        running = [h for h in extended if h[0][-1] != eos][:width]
        if len(finished) >= width:
            return ranked(finished, alpha)
    return ranked(finished + running, alpha)


@pytest.mark.parametrize("eos", [EOS, -1])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0, -0.7])
def test_beams_for_all_sequences_find_what_trying_all_finds_in_the_same_order(alpha, eos):
    tables = random_tables()
    found = search(tables, alpha, width=ALL, n_best=ALL, eos=eos)
    for b in range(B):
        assert_alike(listed(found, b), every_sequence(tables[b], alpha, eos)[:ALL])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0, -0.7])
def test_an_early_end_leaves_the_best_of_all_sequences(alpha):
    tables = random_tables(spread=4.0)
    found = search(tables, alpha, width=ALL, n_best=2)
    for b in range(B):
        assert_alike(listed(found, b), every_sequence(tables[b], alpha)[:2])


@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 3, 3]),
    alpha=st.floats(-2, 3),
    spread=st.sampled_from([0.3, 1.0, 4.0]),
    eos=st.sampled_from([EOS, EOS, EOS, -1]),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_model_is_searched_as_by_a_search_in_plain_python(seed, width, alpha, spread, eos):
    tables, n_best = random_tables(seed, spread), min(width, 2)
    found = search(tables, alpha, width=width, n_best=n_best, eos=eos)
    for b in range(B):
        assert_alike(listed(found, b), plain_search(tables[b], alpha, width, eos)[:n_best])


def test_what_is_left_after_forbidding_shares_the_whole_mass():
    found = search(random_tables(), width=ALL, n_best=ALL, forbid=(1,))
    np.testing.assert_allclose(np.exp(np.asarray(found.logp, np.float64)).sum(axis=1), 1, rtol=1e-5)


def test_fewer_beams_find_nothing_likelier_than_the_likeliest_of_all():
    tables = random_tables(3)
    best = search(tables, 0.0, width=ALL, n_best=2).logp[:, 0]
    fewer = [search(tables, 0.0, width=width, n_best=n_best).logp[:, 0] for width, n_best in ((1, 1), (3, 2))]
    assert all((each <= best + 1e-5).all() for each in fewer)
    assert (fewer[0] < best - 0.1).any(), "the greedy loop found them too: choose another seed"


@partial(jax.jit, static_argnums=0)
def greedy_loop(kinds, weights, state, keys, eos):
    return decode(step, kinds, weights, state, keys, length=L, greedy=True, eos=eos, pad=PAD)[1]


def greedy(tables, eos=EOS, **options):
    chosen = transforms(**NEUTRAL | options)
    weights, carry, logits = start(tables, 1)
    state = DecodeState.start(chosen, carry, logits, eos=eos)
    return greedy_loop(chosen.kinds, weights, state, sample_keys(0, jnp.arange(B)), eos)


@pytest.mark.parametrize("eos", [EOS, -1])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0, -2.0])
def test_one_beam_is_the_greedy_loop_whatever_the_length_penalty(alpha, eos):
    for seed in range(8):
        tables = random_tables(seed)
        found, expected = search(tables, alpha, width=1, n_best=1, eos=eos), greedy(tables, eos)
        np.testing.assert_array_equal(found.tokens[:, 0], expected.tokens)
        np.testing.assert_allclose(found.logp[:, 0], expected.logp.sum(axis=1), rtol=1e-5)


def test_one_beam_with_transforms_is_the_greedy_loop_with_them():
    options = {"forbid": (0,), "bias": ((1, 1.5),), "least": 3, "force": (3, 1)}
    tables = random_tables()
    found = search(tables, width=1, n_best=1, **options)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy(tables, **options).tokens)


@pytest.mark.parametrize(
    "logits", [(1.0, np.nextafter(np.float32(1), np.float32(2)), 0.9, 0.9), (-1.0, -0.0, 0.0, -1.0)], ids=["near", "0"]
)
def test_one_beam_takes_what_the_greedy_loop_takes_of_logits_that_hardly_differ(logits):
    """A sum with what a text has so far would round them together, and top_k tells -0.0 from 0.0."""
    tables = constant(*logits)
    found = search(tables, width=1, n_best=1, eos=-1)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy(tables, eos=-1).tokens)
    assert tokens_of(found) == [(1,) * L]


def test_ties_go_to_the_lower_beam_and_then_to_the_lower_token():
    found = search(constant(0, 0, 0, 0), width=ALL, n_best=ALL, eos=-1, forbid=(2, 3))
    assert tokens_of(found) == [*itertools.product((0, 1), repeat=L)] + [()] * (ALL - 2**L)


def test_of_equal_scores_the_one_that_finished_first_is_in_front():
    """Half of the mass ends at once; the other half is sure to go on once and to end then."""
    end = (0, 0, 1, 0)
    tables = repeating(*probabilities((0.5, 0, 0.5, 0), end, end, end, end))
    assert tokens_of(search(tables, 0.0, width=3, n_best=2)) == [(2,), (0, 2)]


def test_where_fewer_sequences_are_possible_than_asked_for_the_rest_is_empty():
    found = search(random_tables(), width=3, n_best=2, force=(0, 1, 3, 2))
    assert listed(found) == [((0, 1, 3, 2), 0, 0), ((), -np.inf, -np.inf)]


@pytest.mark.parametrize(("alpha", "steps"), [(0.0, 2), (-1.0, 2), (1.0, 4), (3.0, L)])
def test_the_loop_ends_as_soon_as_nothing_can_come_in_front_of_the_kept_and_no_sooner(alpha, steps):
    """A step ends with p = 0.5 and goes on with 0.3 or 0.2; the best two are kept.

    The likeliest running one, of t tokens, has log p = t log 0.3. With alpha = 1 the kept have log(0.5) and
    log(0.3 * 0.5) / 2 = -0.95, which 3 log(0.3) / 5 = -0.72 can still beat and 4 log(0.3) / 5 = -0.96 cannot.
    """
    tables = constant(*probabilities((0.3, 0.2, 0.5, 0))[0])
    assert int(search(tables, alpha, width=ALL, n_best=2).steps) == steps


@pytest.mark.parametrize(
    ("alpha", "rows", "late"),
    [
        # (2,) and (1, 2) have -0.51 and -0.60 a token; (0, 0) is at -1.15 and gets to -0.46 at length 5, not at 3.
        (1.0, [(0.1, 0.3, 0.6, 0), (1, 0, 0, 0), (0, 0, 1, 0), (1, 0, 0, 0), (1, 0, 0, 0)], (0,) * L),
        # With alpha = -1 (1, 2) has -7.5; (3, 0) would have -8.0 at length 5, but -4.8 at 3.
        (
            -1.0,
            [(0, 0.375, 0.25, 0.375), (0, 0, 1, 0), (0.47, 0, 0.06, 0.47), (1, 0, 0, 0), (0.5, 0.5, 0, 0)],
            (3, 0, 2),
        ),
    ],
)
def test_a_hypothesis_that_catches_up_is_waited_for_whichever_length_is_best_for_it(alpha, rows, late):
    tables = repeating(*probabilities(*rows))
    found = listed(search(tables, alpha, width=ALL, n_best=2))
    assert_alike(found, every_sequence(tables[0], alpha)[:2])
    assert late in [tokens for tokens, *_ in found]


@pytest.fixture(scope="module")
def together_and_alone():
    """What is found for several problems in one search, and for each in one of its own (under vmap)."""
    tables = random_tables(spread=4.0)
    alone = jax.vmap(lambda table: search(table[None], 0.0, width=3, n_best=2))(jnp.asarray(tables))
    alone = [jax.tree.map(lambda a, b=b: a[b], alone) for b in range(B)]
    return search(tables, 0.0, width=3, n_best=2), alone


def test_a_problem_is_solved_alike_alone_and_among_others(together_and_alone):
    together, alone = together_and_alone
    for b in range(B):
        assert_alike(listed(together, b), listed(alone[b]))


def test_the_loop_ends_with_the_last_of_the_problems(together_and_alone):
    together, alone = together_and_alone
    steps = [int(each.steps) for each in alone]
    assert len(set(steps)) > 1, "some must take longer: choose another seed"
    assert int(together.steps) == max(steps)


def test_no_other_length_penalty_or_option_is_compiled_for():
    search(random_tables(), 1.0, width=3, n_best=2)
    before = len(TRACES)
    search(random_tables(), 0.25, width=3, n_best=2, forbid=(0,), least=2)
    assert len(TRACES) == before > 0


def test_forbidden_tokens_never_occur_however_many_beams_look_for_some():
    found = search(random_tables(), width=ALL, n_best=ALL, forbid=(0, 3))
    made = [tokens for b in range(B) for tokens in tokens_of(found, b)]
    assert set().union(*made) == {1, EOS}
    assert sum(map(bool, made)) == B * (L + 1)  # an end at each place, or nowhere


def test_the_end_occurs_at_the_end_alone():
    found = search(random_tables(), width=ALL, n_best=ALL)
    made = [tokens for b in range(B) for tokens in tokens_of(found, b)]
    assert all(EOS not in tokens[:-1] and (tokens[-1] == EOS or len(tokens) == L) for tokens in made)
    assert {tokens[-1] == EOS for tokens in made} == {True, False}


def test_a_least_length_and_forced_tokens_hold_for_every_beam():
    found = search(random_tables(), width=3, n_best=2, least=4, force=(3, 1))
    made = [tokens for b in range(B) for tokens in tokens_of(found, b)]
    assert all(tokens[:2] == (3, 1) and len(tokens) >= 4 for tokens in made)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"width": 0}, "1 to 1,024"),
        ({"width": 1025}, "1025"),
        ({"width": 2.0}, "2.0"),
        ({"width": True}, "True"),
        ({"length": 0}, "1 to 100,000"),
        ({"n_best": 3}, "1 to 2"),
        ({"n_best": 0}, "2 beams is 0"),
        ({"n_best": True}, "True"),
    ],
)
def test_sizes_out_of_range_are_refused_before_anything_is_compiled(sizes, sentence):
    tables = random_tables()
    sizes = {"width": 2, "length": L, "n_best": 1} | sizes
    with pytest.raises(UsageError, match=sentence):
        beam_search(step, (), *start(tables, 2), (), 1.0, eos=EOS, pad=PAD, **sizes)
