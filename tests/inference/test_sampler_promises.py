"""The same seed gives the same text through the whole sampler, whatever else is sampled beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import jitted
from jaxgen.errors import UsageError
from jaxgen.inference import sampler as sampler_module
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.sampling.decode import DECODE_ROWS, PREFILL_CHUNK, DecodeState, decode, prefill_chunks, sample_keys
from jaxgen.sampling.transforms import Forbid, NoRepeatNgram, RepetitionPenalty, TopK
from jaxgen.sampling.transforms.base import chain
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, PAD, UNK, CharTokenizer

TOKENIZER = CharTokenizer.train(["abcdefgh \n"])
V = TOKENIZER.vocab_size
LENGTH = 40  # more than one streaming chunk
WARM = GenerationConfig(length=LENGTH, temperature=1.0, seed=11)
#: Transforms that know the text.
PENALTIES = (RepetitionPenalty(1.3), NoRepeatNgram(3))
#: Compiles in half the time, for what is compared to a tolerance.
FAST = {"xla_backend_optimization_level": 0}
STEP = jax.jit(LanguageTask.step, static_argnums=0, compiler_options=FAST)


class CountingTask:
    """The language task, counting how often its decoding functions are traced."""

    def __init__(self, task):
        self.task, self.traces = task, {"prefill": 0, "step": 0}
        self.prepare, self.initial_carry = task.prepare, task.initial_carry

    def prefill(self, *args):
        self.traces["prefill"] += 1
        return self.task.prefill(*args)

    def step(self, *args):
        self.traces["step"] += 1
        return self.task.step(*args)


@pytest.fixture(scope="module")
def task():
    return CountingTask(LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=8, layers=2))


@pytest.fixture(scope="module")
def params(task):
    """Random weights, large enough that what was read matters for what is drawn."""
    normal = np.random.default_rng(0).normal
    shapes = jax.eval_shape(task.task.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes)


@pytest.fixture(scope="module")
def sampler(task, params):
    return Sampler(task, TOKENIZER, params)


@pytest.fixture(scope="module")
def texts(sampler):
    return sampler.sample("abc", WARM, num_samples=20)


def ids_of(sampler, settings, num_samples=1, prompt="abc"):
    """The tokens of each sample."""
    ids = [[] for _ in range(num_samples)]
    for piece in sampler.stream(prompt, settings, num_samples=num_samples):
        ids[piece.index] += piece.tokens.tolist()
    return ids


def test_copies_of_a_sampler_share_what_is_computed_from_the_weights(task, params):
    sampler = Sampler(task, TOKENIZER, params)
    one, other = sampler.exact(), sampler.exact()  # before anything was computed
    assert one.weights is other.weights is sampler.weights
    assert one.initial_state() is other.initial_state()
    changed = sampler.exact().with_params(jax.tree.map(jnp.negative, params))
    assert changed.weights is not sampler.weights
    assert sampler.weights is one.weights


@pytest.mark.parametrize("number", [1, 3, 9, 20])
def test_a_sample_is_the_same_alone_and_among_others(sampler, texts, number):
    assert sampler.sample("abc", WARM, num_samples=number) == texts[:number]


@pytest.mark.runs
@pytest.mark.parametrize("devices", [1, 2])
def test_blocks_that_go_together_into_one_call_give_the_same_texts(sampler, texts, monkeypatch, devices):
    monkeypatch.setattr(sampler_module, "MIN_BLOCKS", 4)
    monkeypatch.setattr(sampler_module, "MAX_ROWS", 8)
    monkeypatch.setattr(sampler_module.jax, "local_device_count", lambda: devices)
    sizes = []
    make = jitted.jit_decode_blocks
    monkeypatch.setattr(jitted, "jit_decode_blocks", lambda *how: sizes.append(how[-1]) or make(*how))
    assert sampler.sample("abc", WARM, num_samples=20) == texts
    assert sizes == [devices] * 3  # 8 and 8 and 4
    assert sampler.sample("abc", WARM, first=3, num_samples=17) == texts[3:]
    settings = replace(WARM, block=2, transforms=(NoRepeatNgram(3),), stop=("ab",), temperature=(1.0, 0.8))
    many = list(sampler.samples("abc", settings, num_samples=9))
    monkeypatch.setattr(sampler_module, "MIN_BLOCKS", 1000)
    alone = [next(sampler.samples("abc", settings, first=i)) for i in range(9)]
    assert [(s.text, s.end, s.tokens.tolist(), s.logp.tolist()) for s in many] == [
        (s.text, s.end, s.tokens.tolist(), s.logp.tolist()) for s in alone
    ]


@pytest.mark.parametrize(
    ("blocks", "rows", "number"),
    [(63, 1, 1), (64, 1, 64), (65, 1, 128), (999, 1, 256), (999, 3, 64), (999, 4, 64), (999, 8, 1)],
)
def test_blocks_go_together_in_powers_of_two_when_they_are_many_and_small(blocks, rows, number):
    assert sampler_module.blocks_per_call(blocks, rows) == number


@pytest.mark.runs
def test_larger_blocks_keep_the_promise_among_themselves(sampler, texts):
    settings = replace(WARM, block=16)
    many = sampler.sample("abc", settings, num_samples=20)
    assert sampler.sample("abc", settings, num_samples=18) == many[:18]
    assert sampler.sample("abc", settings, first=14, num_samples=5) == many[14:19]
    first = [text[:1] for text in many]
    assert first == [text[:1] for text in texts], "the keys do not follow from the sample's number"


@pytest.mark.parametrize("block", [0, -1, True, 2.0, 5_000])
def test_blocks_of_no_rows_or_too_many_are_an_error(block):
    with pytest.raises(UsageError, match="block size"):
        GenerationConfig(block=block)


def test_samples_differ_from_each_other(texts):
    assert len(set(texts)) == 20


@pytest.fixture(scope="module")
def primed(task, sampler):
    """The carry and logits after a prompt of any length, read in chunks."""
    prefill = jax.jit(task.task.prefill)

    def read(prompt):
        carry, logits = task.initial_carry(1), jnp.zeros((1, V), jnp.float32)
        for tokens, valid in prefill_chunks(prompt):
            carry, logits = prefill(sampler.weights, carry, logits, tokens, valid)
        return carry, logits

    return read


@pytest.mark.runs
def test_blocks_decoded_in_another_order_and_in_one_call_give_the_same_texts(task, sampler, primed, texts):
    chain = WARM.chain((PAD, UNK, EOS))
    options = {"length": LENGTH, "greedy": False, "eos": EOS, "pad": PAD}
    loop = jax.jit(partial(decode, task.task.step, chain.kinds, **options))
    carry, logits = primed(TOKENIZER.encode("abc"))
    for block in (16, 0, 8):
        state = DecodeState.start(chain, carry, logits)
        made = loop(sampler.weights, state, sample_keys(WARM.seed, jnp.arange(block, block + DECODE_ROWS)))[1].tokens
        wanted = texts[block : block + DECODE_ROWS]
        assert [TOKENIZER.decode(row) for row in np.asarray(made)][: len(wanted)] == wanted


def test_a_sample_resumed_in_the_middle_is_the_one_made_at_once(task, sampler, primed, texts):
    settings = replace(WARM, transforms=PENALTIES)
    chain = settings.chain((PAD, UNK, EOS))
    loop = jax.jit(
        partial(decode, task.task.step, chain.kinds, greedy=False, eos=EOS, pad=PAD), static_argnames="length"
    )
    keys = sample_keys(WARM.seed, jnp.arange(7, 7 + DECODE_ROWS))
    start = DecodeState.start(chain, *primed(TOKENIZER.encode("abc")), prompt=TOKENIZER.encode("abc"))
    state, begun = loop(sampler.weights, start, keys, length=LENGTH // 2)
    kept = jax.tree.map(np.asarray, state)  # as from a file
    rest = loop(sampler.weights, jax.tree.map(jnp.asarray, kept), keys, length=LENGTH // 2)[1]
    (whole,) = sampler.sample("abc", settings, first=7)
    assert TOKENIZER.decode(np.concatenate([begun.tokens[0], rest.tokens[0]])) == whole
    assert sampler.sample("abc", settings, first=7, skip=LENGTH // 2) == [whole[LENGTH // 2 :]]


def test_a_shorter_sample_is_the_beginning_of_a_longer_one(sampler, texts):
    for length in (1, 32, 33):
        settings = GenerationConfig(length=length, temperature=1.0, seed=WARM.seed)
        assert sampler.sample("abc", settings, num_samples=3) == [text[:length] for text in texts[:3]]


def test_the_pieces_add_up_to_the_text(sampler, texts):
    pieces = list(sampler.stream("abc", WARM, num_samples=3))
    assert ["".join(p.text for p in pieces if p.index == i) for i in range(3)] == texts[:3]


def test_each_sample_has_one_last_piece(sampler):
    pieces = list(sampler.stream("abc", WARM, num_samples=9))
    assert sorted(p.index for p in pieces if p.last) == list(range(9))


def test_no_block_is_decoded_for_samples_that_were_not_asked_for(sampler, monkeypatch):
    decode, calls = Sampler._decode, []
    monkeypatch.setattr(Sampler, "_decode", lambda *args: (calls.append(args), decode(*args))[1])
    assert len(sampler.sample("abc", replace(WARM, max_seconds=100), num_samples=2 * DECODE_ROWS)) == 2 * DECODE_ROWS
    assert len(calls) == 2


def test_a_length_of_0_gives_empty_texts(sampler):
    assert sampler.sample("abc", GenerationConfig(length=0), num_samples=3) == [""] * 3


def test_another_seed_gives_other_texts(sampler, texts):
    other = sampler.sample("abc", GenerationConfig(length=LENGTH, temperature=1.0, seed=0), num_samples=3)
    assert not set(other) & set(texts)


def test_another_prompt_gives_other_texts(sampler, texts):
    assert sampler.sample("abd", WARM, num_samples=3) != texts[:3]


def test_neither_seed_nor_option_values_nor_prompt_length_are_compiled_for(task, sampler, texts):
    before = dict(task.traces)
    for prompt, seed, temperature in (("h", 1, 0.3), ("abc " * 40, 2**32 - 1, 1.8)):
        sampler.sample(prompt, GenerationConfig(length=5, temperature=temperature, seed=seed), num_samples=2)
    assert task.traces == before


@pytest.mark.parametrize("length", [1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 2])
def test_a_prompt_read_in_chunks_is_the_prompt_stepped_token_by_token(task, sampler, primed, length):
    prompt = np.random.default_rng(length).integers(3, V, length).astype(np.int32)
    carry, logits = task.initial_carry(1), None
    for token in prompt:
        carry, logits = STEP(task.task, sampler.weights, carry, jnp.full(1, token))
    got_carry, got_logits = primed(prompt)
    np.testing.assert_allclose(got_logits, logits, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), got_carry, carry)


def test_greedy_ignores_the_seed_and_all_samples_are_one(sampler):
    made = [sampler.sample("abc", GenerationConfig(length=9, temperature=0, seed=s), num_samples=3) for s in (0, 5)]
    assert len({text for texts in made for text in texts}) == 1


def test_special_tokens_are_never_drawn_from_running_text(task, params):
    flat = Sampler(task, TOKENIZER, jax.tree.map(jnp.zeros_like, params))
    made = ids_of(flat, GenerationConfig(length=LENGTH, temperature=1.8), num_samples=16)
    assert set().union(*made) == set(range(V)) - {PAD, UNK, EOS}


@pytest.fixture(scope="module")
def documents(task, params):
    """A model of documents that finds every token equally likely."""
    return Sampler(task, TOKENIZER, jax.tree.map(jnp.zeros_like, params), documents=True)


def test_padding_and_unknown_are_never_drawn_from_documents(documents):
    made = ids_of(documents, GenerationConfig(length=LENGTH, temperature=1.8), num_samples=16)
    assert set().union(*made) == set(range(V)) - {PAD, UNK}


def test_a_document_ends_where_eos_is_drawn(documents):
    made = ids_of(documents, GenerationConfig(length=40, temperature=1.8), num_samples=48)
    assert 5 < np.mean([len(ids) for ids in made]) < 17  # one token in V = 13 ends it, less what 40 tokens cut off
    assert all(EOS not in ids[:-1] for ids in made)


def test_the_end_of_a_document_does_not_disturb_its_neighbours(documents):
    settings = GenerationConfig(length=40, temperature=1.8)
    alone = [ids_of(documents, settings, n)[-1] for n in (1, 2, 3)]
    assert alone == ids_of(documents, settings, 3)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, 10**9])
def test_a_number_of_samples_that_cannot_be_drawn_is_refused(sampler, number):
    with pytest.raises(UsageError, match="samples"):
        sampler.sample("abc", WARM, num_samples=number)


@pytest.mark.parametrize(
    "option",
    [
        *({"temperature": value} for value in (-0.5, float("nan"), float("inf"), 1e-40, 1e39)),
        *({"length": value} for value in (-1, 2.5, True, 10**12)),
        *({"seed": value} for value in (-1, 2**32, True, 1.5)),
        *({"temperature": value} for value in ((1.0, 0.0), (1.0, float("nan")), (), True, "warm")),
        *({"stop": value} for value in ("ab", ("",), (1,))),
        *({"max_seconds": value} for value in (0, -1.0, float("nan"), float("inf"))),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_compiled(option):
    with pytest.raises(UsageError, match=r"cannot be used|The (length|seed) is"):
        GenerationConfig(**option)


def test_one_sample_by_its_number_is_the_one_among_all(sampler, texts):
    for number in (0, 7, 19):
        assert sampler.sample("abc", WARM, first=number) == [texts[number]]
    assert sampler.sample("abc", WARM, first=5, num_samples=3) == texts[5:8]


@pytest.mark.parametrize("first", [-1, 1.0, True, 2**32])
def test_a_sample_whose_number_cannot_be_is_refused(sampler, first):
    with pytest.raises(UsageError, match="index of a sample"):
        sampler.sample("abc", WARM, first=first)


def test_the_size_of_the_streaming_chunk_changes_nothing(sampler, texts, monkeypatch):
    monkeypatch.setattr("jaxgen.inference.sampler.STREAM_CHUNK", 7)
    assert sampler.sample("abc", WARM, num_samples=2) == texts[:2]


def test_whole_samples_hold_what_the_model_gave_each_token(task, sampler, texts):
    made = list(sampler.samples("abc", WARM, num_samples=3))
    assert [sample.text for sample in made] == texts[:3]
    assert [(sample.index, sample.end) for sample in made] == [(i, "length") for i in range(3)]
    state = sampler.read("abc")
    for token, logp in zip(made[1].tokens, made[1].logp):
        np.testing.assert_allclose(logp, jax.nn.log_softmax(state.logits[0])[token], atol=2e-5)
        state, _ = sampler.step(state, int(token))


def test_the_best_of_many_are_the_likeliest_in_order(sampler):
    everything = list(sampler.samples("abc", WARM, num_samples=12))
    best = sampler.best("abc", WARM, of=12, keep=3)
    ranked = sorted(everything, key=lambda sample: -sample.logp.mean())
    assert [sample.index for sample in best] == [sample.index for sample in ranked[:3]]
    with pytest.raises(UsageError, match="13"):
        sampler.best("abc", WARM, of=12, keep=13)


def test_time_that_is_up_ends_every_text_where_it_is(sampler, texts, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("jaxgen.inference.sampler.time.monotonic", lambda: next(clock))
    made = list(sampler.samples("abc", replace(WARM, max_seconds=3.5), num_samples=4))
    # A look at the clock at the start, ahead of every chunk and behind a block: two chunks of the first text, no third.
    assert [sample.end for sample in made] == ["length", "time"][: len(made)]
    assert [sample.text for sample in made] == [texts[0], ""][: len(made)]
    assert len(made) < 4, "texts that no time was left to begin are not there"


def test_a_prompt_counts_for_a_repetition_penalty_however_it_was_read(sampler):
    settings = replace(WARM, transforms=(RepetitionPenalty(50.0), *PENALTIES[1:]))
    whole, state = sampler.sample("abcdefgh", settings), sampler.read("abcdefgh")
    assert sampler.sample("", settings, state=state) == whole
    assert sampler.sample("", settings, state=replace(state, tokens=state.tokens[:0])) != whole


@pytest.mark.runs
def test_decoding_ends_soon_after_every_text_has_ended(sampler, texts, monkeypatch):
    calls = []

    def counted(*args):
        decoder = decoding(*args)
        return lambda *more: calls.append(None) or decoder(*more)

    decoding = jitted.jit_decode
    monkeypatch.setattr(jitted, "jit_decode", counted)
    long = GenerationConfig(length=32 * 50, temperature=1.0, seed=11, block=2)
    both = sampler.sample("abc", replace(long, length=32), num_samples=2)
    calls.clear()
    stop = (both[0][20:24], both[1][10:14])
    ended = list(sampler.samples("abc", replace(long, stop=stop), num_samples=2))
    assert [sample.end for sample in ended] == ["stop", "stop"]
    assert len(calls) == 2  # the chunk in which both end, and the one that was under way meanwhile


def test_the_tokens_of_a_stopped_text_are_those_up_to_the_end_of_the_stop_string(sampler, texts):
    (sample,) = sampler.samples("abc", replace(WARM, stop=(texts[0][5:8],)))
    place = texts[0].index(texts[0][5:8])
    assert sample.text == texts[0][:place]
    assert TOKENIZER.decode(sample.tokens) == texts[0][: place + 3]
    assert sample.tokens.size == sample.logp.size


@pytest.mark.parametrize("skip", [1, 31, 32, 33, LENGTH, LENGTH + 5])
def test_a_text_resumed_behind_some_tokens_is_the_rest_of_it(sampler, texts, skip):
    made = list(sampler.samples("abc", WARM, num_samples=3, skip=skip))
    assert [sample.text for sample in made] == [text[skip:] for text in texts[:3]]
    assert [sample.tokens.size for sample in made] == [max(LENGTH - skip, 0)] * 3


def test_a_stop_string_that_begins_in_what_is_skipped_still_ends_the_text(sampler, texts):
    stop = (texts[0][8:12],)
    place = texts[0].index(stop[0])
    settings = replace(WARM, stop=stop)
    for skip in (place - 1, place + 1, place + 2):
        (sample,) = sampler.samples("abc", settings, skip=skip)
        assert (sample.text, sample.end) == (texts[0][skip:place], "stop")
    other = replace(WARM, stop=(texts[0][8:10] + "?",))  # held back over the place and then no stop string
    assert sampler.sample("abc", other, skip=9) == [texts[0][9:]]


def test_the_beginning_of_a_stop_string_at_the_end_of_a_text_belongs_to_it(sampler, texts):
    assert sampler.sample("abc", replace(WARM, stop=(texts[0][-2:] + "?",))) == texts[:1]


@pytest.mark.parametrize("skip", [-1, True, 1.0])
def test_a_number_of_skipped_tokens_that_cannot_be_is_refused(sampler, skip):
    with pytest.raises(UsageError, match="skip"):
        sampler.sample("abc", WARM, skip=skip)


@pytest.mark.parametrize("nested", [False, True])
def test_forbidding_all_that_could_be_drawn_is_refused(sampler, nested):
    """Padding, which is forbidden by itself, is all that would be left."""
    forbid = Forbid(tuple(range(EOS + 1, V)))
    with pytest.raises(UsageError, match="at least one"):
        sampler.stream("abc", replace(WARM, transforms=(chain(forbid),) if nested else (forbid,)))


def test_forbidden_tokens_stay_out_wherever_forbid_stands_in_the_chain(sampler):
    only = tuple(i for i in range(EOS + 1, V) if i != V - 1)
    settings = GenerationConfig(5, 1.0, transforms=(TopK(1), Forbid(only)))
    assert ids_of(sampler, settings) == [[V - 1] * 5]
