"""The decode loop with a toy recurrence: keys, chunks, ends, and the distribution of samples."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import chdtrc, log_softmax

from jaxgen.errors import UsageError
from jaxgen.sampling.decode import (
    MAX_SEED,
    DecodeState,
    check_seed,
    decode,
    draw,
    log_probability,
    perturbed,
    prefill_chunks,
    sample_keys,
)
from jaxgen.sampling.transforms import (
    TRANSFORMS,
    Bias,
    EpsilonCutoff,
    EtaCutoff,
    Force,
    FrequencyPenalty,
    MinLength,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    TopK,
    TopP,
    TypicalP,
    WordsFrom,
)
from jaxgen.sampling.transforms.base import Context, Last, chain
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.sampling.transforms.temperature import Linear, Temperature

V, H, R = 11, 5, 4
PAD, EOS = 0, 2
#: Compiles in half the time; how fast these few steps run does not matter.
FAST = {"xla_backend_optimization_level": 0}
CHAIN = chain(Forbid((PAD,)), Temperature(0.9), TopK(8), TopP(0.95))
#: What a text depends on through more than the carry.
WITH_MEMORY = chain(CHAIN, RepetitionPenalty(1.2), FrequencyPenalty(0.3), NoRepeatNgram(2, 8), MinLength(4))
NO_PAD = chain(Forbid((PAD,)))
#: What seed 7 draws for samples 0…3, tokens 0…7, from GOLDEN_LOGITS.
GOLDEN_LOGITS = np.linspace(-1, 1, 6, dtype=np.float32)
GOLDEN_TOKENS = [[5, 5, 3, 5, 4, 4, 5, 3], [3, 3, 5, 0, 4, 4, 4, 2], [5, 0, 3, 3, 3, 5, 5, 5], [5, 5, 5, 5, 5, 2, 4, 5]]


def weights(seed=0):
    normal, shapes = np.random.default_rng(seed).normal, {"a": (H, H), "e": (V, H), "o": (H, V)}
    return {name: jnp.asarray(normal(0, 1.5, shape), jnp.float32) for name, shape in shapes.items()}


def step(w, carry, token):
    carry = jnp.tanh(carry @ w["a"] + w["e"][token])
    return carry, carry @ w["o"]


def start(whole=CHAIN, rows=R, prompt=()):
    """Rows that begin in different states."""
    carry = jnp.asarray(np.random.default_rng(1).normal(size=(rows, H)), jnp.float32)
    return DecodeState.start(whole, carry, carry @ weights()["o"], prompt=prompt, eos=EOS)


@partial(jax.jit, static_argnames=("kinds", "length", "greedy", "eos"))
def run(state, keys, kinds, *, length, greedy=False, eos=EOS):
    return decode(step, kinds, weights(), state, keys, length=length, greedy=greedy, eos=eos, pad=PAD)


def drawing(seed=0, *, state=None, indices=range(R), whole=CHAIN, length=12, **options):
    """The tokens and their log-probabilities, each [R, T]."""
    state = start(whole) if state is None else state
    keys = sample_keys(seed, jnp.asarray(list(indices)))
    return map(np.asarray, run(state, keys, whole.kinds, length=length, **options)[1])


def tokens(seed=0, **options):
    return next(drawing(seed, **options))


def test_a_length_made_in_parts_is_the_length_made_at_once_bitwise():
    keys, state, made = sample_keys(3, jnp.arange(R)), start(WITH_MEMORY), []
    for part in (1,) * 12:
        state, chunk = run(state, keys, WITH_MEMORY.kinds, length=part)
        made.append(chunk)
    whole, expected = run(start(WITH_MEMORY), keys, WITH_MEMORY.kinds, length=12)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *a: np.concatenate(a, 1), *made), expected)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_a_finished_row_gives_padding_to_the_end():
    made = tokens(length=12)
    ended = [row for row in made if EOS in row[:-1]]
    assert ended, "no row drew <eos>: choose another seed"
    assert all((row[list(row).index(EOS) + 1 :] == PAD).all() for row in ended)


def test_a_row_that_finishes_changes_no_other_row():
    stopping, endless = tokens(), tokens(eos=-1)
    others = [row for row in range(R) if EOS not in endless[row]]
    assert 0 < len(others) < R, "some rows must draw <eos> and some not: choose another seed"
    np.testing.assert_array_equal(stopping[others], endless[others])


def test_a_row_is_what_it_would_be_without_an_end_up_to_its_end():
    for stopped, endless in zip(tokens(), tokens(eos=-1)):
        upto = list(stopped).index(EOS) + 1 if EOS in stopped else stopped.size
        np.testing.assert_array_equal(stopped[:upto], endless[:upto])


def test_a_sample_draws_by_its_index_whatever_row_it_sits_in():
    order = [2, 0, 3, 1]
    state = jax.tree.map(lambda a: a[np.array(order)] if a.ndim and a.shape[0] == R else a, start())
    np.testing.assert_array_equal(tokens(state=state, indices=order), tokens()[order])


def test_samples_of_one_start_differ():
    state = start()._replace(carry=jnp.zeros((R, H)), logits=jnp.zeros((R, V)))
    assert len({row.tobytes() for row in tokens(state=state)}) == R


def test_seed_0_is_a_seed_of_its_own():
    assert (tokens(0) != tokens(1)).any()


def test_the_last_seed_is_no_other_seed():
    keys = [jax.random.key_data(sample_keys(seed, jnp.arange(2))).tobytes() for seed in (0, 1, 2**31, MAX_SEED)]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_seed_of_32_bits_is_accepted(seed):
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**32, True, False, 1.5, 1.0, "1", None])
def test_any_other_seed_is_refused(seed):
    with pytest.raises(UsageError, match=re.escape(repr(seed))):
        check_seed(seed)


def test_greedy_takes_the_largest_logit_at_every_step():
    state, expected = start(), []
    carry, logits = state.carry, state.logits
    for _ in range(12):
        expected.append(np.argmax(np.where(np.arange(V) == PAD, -np.inf, logits), axis=1))
        carry, logits = step(weights(), carry, expected[-1])
    made = tokens(whole=NO_PAD, greedy=True, eos=-1)
    np.testing.assert_array_equal(made, np.stack(expected, axis=1))


def test_greedy_ignores_the_seed():
    options = {"whole": NO_PAD, "greedy": True}
    np.testing.assert_array_equal(tokens(0, **options), tokens(99, **options))


def test_greedy_takes_the_lowest_of_equal_tokens():
    state = start(NO_PAD)._replace(logits=jnp.full((R, V), 0.25))
    made = tokens(state=state, whole=NO_PAD, greedy=True)
    np.testing.assert_array_equal(made[:, 0], np.full(R, PAD + 1))


N, L, W = 1000, 100, 6  # samples, their length, and the vocabulary of the tests on distributions
PLAIN = chain(Forbid(()), Temperature(1.0))


@partial(jax.jit, static_argnames=("kinds", "length"), compiler_options=FAST)
def run_constant(logits, state, keys, kinds, length):
    """The loop over a model that forgets: the logits are the same at every step."""
    return decode(lambda w, c, t: (c, w), kinds, logits, state, keys, length=length, greedy=False, eos=-1, pad=PAD)[1]


def constant_draws(logits, whole=PLAIN, *, rows=N, length=L, seed=5):
    """``rows`` samples of ``length`` tokens, every token from one distribution, drawn through the whole loop."""
    logits = jnp.broadcast_to(jnp.asarray(logits)[None, :], (rows, len(logits)))
    state = DecodeState.start(whole, (), logits)
    return np.asarray(run_constant(logits, state, sample_keys(seed, jnp.arange(rows)), whole.kinds, length).tokens)


def p_value(counts, shares):
    """The p-value of Pearson's chi-squared test of ``counts``, expected in the ratio of ``shares``."""
    expected = shares / shares.sum() * counts.sum()
    return chdtrc(counts.size - 1, ((counts - expected) ** 2 / expected).sum())


def chi_squared(draws, logits, temperature):
    """The p-value of draws that should follow softmax(logits / temperature)."""
    return p_value(np.bincount(draws.ravel(), minlength=W), np.exp(np.float64(logits) / temperature))


LOGITS = np.random.default_rng(2).normal(size=W).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.8])
def test_draws_follow_the_softmax_at_the_temperature(temperature):
    draws = constant_draws(LOGITS, chain(Forbid(()), Temperature(temperature)))
    assert chi_squared(draws, LOGITS, temperature) > 1e-4
    assert chi_squared(draws, LOGITS, 1.02 * temperature) < 1e-4, "100,000 draws tell two per cent apart"


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        pytest.param((0.5, 1.8), [0.5, 1.8, 1.8, 1.8], id="list"),
        pytest.param(Linear(0.5, 2.0, 3), [0.5, 1.0, 1.5, 2.0], marks=pytest.mark.runs, id="linear"),
        pytest.param(lambda t: 2.0 ** min(t, 3), [1, 2, 4, 8], marks=pytest.mark.runs, id="function"),
    ],
)
def test_a_schedule_changes_the_distribution_at_the_step_it_says(schedule, at):
    draws = constant_draws(LOGITS, chain(Temperature(schedule)), rows=25_000, length=4)
    for t, temperature in enumerate(at):
        assert chi_squared(draws[:, t], LOGITS, temperature) > 1e-4
    for t in np.flatnonzero(np.diff(at)):  # at the step before and the one behind, another temperature is told apart
        assert chi_squared(draws[:, t], LOGITS, at[t + 1]) < 1e-4
        assert chi_squared(draws[:, t + 1], LOGITS, at[t]) < 1e-4


@pytest.mark.runs
def test_top_p_draws_every_token_of_the_nucleus_in_its_ratio_and_no_other():
    draws = constant_draws(LOGITS, chain(TopP(0.8)))
    probability = np.exp(np.float64(LOGITS)) / np.exp(np.float64(LOGITS)).sum()
    falling = np.argsort(-probability)
    nucleus = falling[: np.searchsorted(np.cumsum(probability[falling]), 0.8) + 1]
    assert 1 < nucleus.size < W
    counts = np.bincount(draws.ravel(), minlength=W)
    assert set(np.flatnonzero(counts)) == set(nucleus)
    assert p_value(counts[nucleus], probability[nucleus]) > 1e-4


def test_successive_tokens_of_a_sample_are_independent():
    draws = constant_draws(np.zeros(W, np.float32))
    pairs = np.bincount((W * draws[:, 0::2] + draws[:, 1::2]).ravel(), minlength=W * W)
    assert p_value(pairs, np.ones(W * W)) > 1e-4


def test_the_same_step_of_neighbouring_samples_is_independent():
    draws = constant_draws(np.zeros(W, np.float32))
    pairs = np.bincount((W * draws[0::2] + draws[1::2]).ravel(), minlength=W * W)
    assert p_value(pairs, np.ones(W * W)) > 1e-4


def test_forbidden_tokens_are_never_drawn_from_a_flat_distribution():
    draws = constant_draws(np.zeros(W, np.float32), chain(Forbid((0, 1, 2)), Temperature(1.8)))
    assert set(draws.ravel()) == {3, 4, 5}


def test_bfloat16_logits_are_drawn_as_float32():
    narrow = jnp.asarray(np.random.default_rng(4).normal(size=(200, 64)), jnp.bfloat16)
    compiled = jax.jit(lambda logits: draw(sample_keys(7, jnp.arange(200)), 0, logits), compiler_options=FAST)
    np.testing.assert_array_equal(compiled(narrow), compiled(narrow.astype(jnp.float32)))


def test_transforms_see_float32_whatever_the_model_gives():
    """In bfloat16 the probabilities that top-p adds up have three digits."""

    class Spy(Forbid):
        @staticmethod
        def update(state, logits, last):
            seen.append(logits.dtype)
            return state, logits

    seen = []
    state = start(chain(Spy((PAD,))))
    state = state._replace(carry=(), logits=state.logits.astype(jnp.bfloat16))
    loop = partial(decode, lambda w, c, t: (c, w), (Spy,), length=1, greedy=False, eos=EOS, pad=PAD)
    jax.eval_shape(loop, state.logits, state, sample_keys(0, jnp.arange(R)))
    assert set(seen) == {jnp.dtype("float32")}


def drawn_now():
    """What the settings of this moment draw: traced anew at every call."""
    compiled = jax.jit(lambda logits: draw(sample_keys(7, jnp.arange(R)), 0, logits), compiler_options=FAST)
    return np.asarray(compiled(jnp.ones((R, 1000))))


@pytest.fixture(scope="module")
def drawn():
    return drawn_now()


def test_another_default_generator_does_not_change_what_is_drawn(drawn):
    with jax.default_prng_impl("rbg"):  # JAX_DEFAULT_PRNG_IMPL
        np.testing.assert_array_equal(drawn_now(), drawn)


def test_another_layout_of_random_bits_does_not_change_what_is_drawn(drawn):
    with jax.threefry_partitionable(False):  # JAX_THREEFRY_PARTITIONABLE
        np.testing.assert_array_equal(drawn_now(), drawn)


def test_the_key_stream_is_the_one_that_was_released():
    made = constant_draws(GOLDEN_LOGITS, seed=7)[:4, :8].tolist()
    assert made == GOLDEN_TOKENS, (
        f"JAX {jax.__version__} draws other tokens from the same keys than the versions before it: the same seed now "
        "gives other text. JAX promises the distribution only, so this may not be a mistake of ours; if nothing in "
        "jaxgen/sampling changed, say so in CHANGELOG (seeds of older releases no longer repeat) and replace "
        f"GOLDEN_TOKENS by {made}."
    )


def compiled_text(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def has_sort(text):
    return re.search(r"= \S.* sort\(|\btopk\b.*sort", text) is not None


#: Every registered transform once, in order, but those that need the texts of tokens: each in the way of the others.
ALL = chain(
    Forbid((PAD,)),
    Bias(((PAD, 50.0), (5, 1.0))),
    RepetitionPenalty(1.2),
    PresencePenalty(0.5),
    FrequencyPenalty(0.2),
    NoRepeatNgram(1, 16),
    MinLength(3),
    Force((PAD, 4, PAD)),
    Temperature((1e-3, 1e6)),
    TopK(9),
    TopP(0.9),
    MinP(0.01),
    TypicalP(0.9),
    EpsilonCutoff(0.01),
    EtaCutoff(0.01),
)


@pytest.mark.runs
def test_a_decoding_step_holds_no_sort_whatever_the_transforms():
    assert ALL.kinds == tuple(kind for kind in TRANSFORMS.values() if kind not in (Regex, WordsFrom))
    wide = 50_000
    state = jax.eval_shape(lambda: DecodeState.start(ALL, jnp.zeros((R, H)), jnp.zeros((R, wide)), eos=EOS))
    loop = partial(decode, lambda w, c, t: (c, w), ALL.kinds, length=3, greedy=False, eos=EOS, pad=PAD)
    assert not has_sort(compiled_text(loop, state.logits, state, sample_keys(0, jnp.arange(R))))


@pytest.mark.runs
def test_padding_is_never_drawn_whatever_the_transforms():
    made = tokens(whole=ALL, length=40, eos=-1)
    assert (made != PAD).all()
    assert (made[:, 1] == 4).all(), "a token that may be drawn can be forced"


@pytest.mark.runs
def test_the_search_for_a_sort_finds_one():
    assert has_sort(compiled_text(lambda a: jnp.sort(a, axis=1), jnp.ones((R, V))))


@pytest.mark.parametrize("length", [1, 6, 7, 14, 15])
def test_prompt_chunks_of_one_shape_hold_the_prompt_in_order(length):
    prompt = np.arange(1, length + 1)
    chunks = prefill_chunks(prompt, chunk=7)
    assert {(t.shape, v.shape) for t, v in chunks} == {((1, 7), (1, 7))}
    np.testing.assert_array_equal(np.concatenate([t[v] for t, v in chunks]), prompt)


def test_an_empty_prompt_has_no_chunk():
    assert prefill_chunks(np.zeros(0, np.int32)) == []


def test_a_log_probability_is_that_of_the_models_own_logits():
    made, logp = drawing(whole=WITH_MEMORY)
    carry, logits = start().carry, start().logits
    for t in range(12):
        expected = log_softmax(np.float64(logits), axis=-1)[np.arange(R), made[:, t]]
        running = (made[:, :t] != EOS).all(axis=1)
        np.testing.assert_allclose(logp[running, t], expected[running], rtol=1e-5, atol=1e-6)
        carry, logits = step(weights(), carry, made[:, t])


def test_a_finished_row_has_log_probabilities_of_zero_behind_its_end():
    made, logp = drawing()
    ended = [(row, at) for row, at in zip(*np.nonzero(made == EOS)) if at < 11]
    assert ended, "no row drew <eos>: choose another seed"
    for row, at in ended:
        assert (logp[row, : at + 1] < 0).all()
        assert (logp[row, at + 1 :] == 0).all()


def test_a_log_probability_takes_logits_of_any_shape():
    logits = np.random.default_rng(0).normal(size=(2, 3, W)).astype(np.float32)
    chosen = np.array([[0, 1, 2], [3, 4, 5]])
    expected = np.take_along_axis(log_softmax(logits, axis=-1), chosen[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_probability(jnp.asarray(logits), jnp.asarray(chosen)), expected, rtol=1e-6)


def test_what_is_drawn_is_the_largest_of_the_perturbed_logits():
    logits, keys = (
        jnp.asarray(np.random.default_rng(0).normal(size=(200, W)), jnp.float32),
        sample_keys(1, jnp.arange(200)),
    )
    drawn, largest = jax.jit(lambda: (draw(keys, 3, logits), jnp.argmax(perturbed(keys, 3, logits), -1)))()
    np.testing.assert_array_equal(drawn, largest)


def test_the_transforms_are_told_the_step_and_the_token_before():
    class Spy(Forbid):
        """Writes down what it is told."""

        def init(self, context):
            return jnp.zeros((12, 2, context.rows), jnp.int32)

        @staticmethod
        def update(state, logits, last):
            now = jnp.stack([jnp.broadcast_to(last.t, last.token.shape), last.token])
            return state.at[last.t].set(now), logits

    whole = chain(Spy(()))
    state, drawn = run(start(whole), sample_keys(0, jnp.arange(R)), whole.kinds, length=12, eos=-1)
    np.testing.assert_array_equal(state.transforms[0][:, 0], np.tile(np.arange(12)[:, None], R))
    np.testing.assert_array_equal(state.transforms[0][0, 1], np.full(R, -1))
    np.testing.assert_array_equal(state.transforms[0][1:, 1], drawn.tokens.T[:-1])


def test_a_start_knows_the_prompt_and_the_end_of_sequence():
    state = start(chain(RepetitionPenalty(2.0), MinLength(3)), prompt=[4, 7])
    np.testing.assert_array_equal(np.flatnonzero(state.transforms[0].seen[0]), [4, 7])
    np.testing.assert_array_equal(np.flatnonzero(state.transforms[1].ends), [EOS])
    jax.tree.map(np.testing.assert_array_equal, Last(state.t, state.token), Last.none(R))
    assert Context(R, V).shape == (R, V)
