"""The engine: requests that are decoded together have the texts that the sampler writes one after the other."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.adaptation import Adaptation
from jaxgen.inference.engine import BusyError, Engine, with_neutral
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.mixture import mix
from jaxgen.inference.text_stream import StreamingDetokenizer
from jaxgen.sampling.transforms import (
    Bias,
    Forbid,
    FrequencyPenalty,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    TopK,
    TopP,
    TypicalP,
)

PROMPTS = ["", "a", "abc\n", "hgf ed", "c" * 70, "ab " * 50]
TRANSFORMS = [
    (),
    (Forbid((4,)),),
    (TopK(3),),
    (TopP(0.8), MinP(0.05)),
    (RepetitionPenalty(1.4), PresencePenalty(0.2), FrequencyPenalty(0.3)),
    (Forbid((5,)), Bias(((4, 2.5),)), TypicalP(0.7)),
    (NoRepeatNgram(2, 8),),
]


def mixed_settings(pick: random.Random, block: int) -> GenerationConfig:
    return GenerationConfig(
        length=pick.choice([0, 1, 31, 32, 33, 70, 100]),
        temperature=pick.choice([0.0, 0.5, 0.9, 1.3]),
        seed=pick.randrange(2**32),
        transforms=pick.choice(TRANSFORMS),
        stop=pick.choice([(), (), ("ab",), ("\n", "h")]),
        block=block,
    )


def ask(engine, sampler, requests, pick, done):
    """Submit requests at random moments from several threads; ``done[i]`` are the samples of request i."""
    turns = list(enumerate(requests))

    def client(mine, rng):
        for i, (prompt, settings, number, first) in mine:
            time.sleep(rng.expovariate(300))
            done[i] = list(engine.samples(sampler, prompt, settings, num_samples=number, first=first))

    threads = [threading.Thread(target=client, args=(turns[k::6], random.Random(pick.random()))) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("block", [1, 4])
def test_requests_at_random_moments_have_the_texts_of_the_sampler(tiny, block):
    pick = random.Random(block)
    requests = [
        (pick.choice(PROMPTS), mixed_settings(pick, block), pick.choice([1, 1, 2, 5]), pick.choice([0, 0, 3, 1000]))
        for _ in range(60)
    ]
    done = {}
    with Engine(rows=8) as engine:  # so few that rows give way to others
        ask(engine, tiny, requests, pick, done)
    for i, (prompt, settings, number, first) in enumerate(requests):
        alone = list(tiny.samples(prompt, settings, num_samples=number, first=first))
        assert [s.index for s in done[i]] == [s.index for s in alone]
        for together, expected in zip(done[i], alone):
            assert together.text == expected.text
            assert together.end == expected.end
            assert together.tokens.tolist() == expected.tokens.tolist()
            assert together.logp.tobytes() == expected.logp.tobytes()


def test_states_adapted_weights_and_mixtures_decode_beside_others(tiny):
    settings = GenerationConfig(length=40, seed=5)
    adapted = tiny.adapt("abcd " * 30, adaptation=Adaptation(rate=0.1, segment=16))
    mixed, state = mix([tiny, tiny], [3, 1]), tiny.read("hgf ")
    asked = [(tiny, None), (tiny, adapted), (mixed, None), (tiny, state)] * 3
    with Engine() as engine:
        streams = [engine.samples(each, "ab", settings, state=before) for each, before in asked]
        texts = [[sample.text for sample in stream] for stream in streams]
    expected = [each.sample("ab", settings, state=before) for each, before in asked]
    assert texts == expected
    assert len({text for (text,) in expected}) == 3  # a mixture of a model with itself is that model


def test_the_engine_frees_a_cancelled_row_and_refuses_more_than_it_may_hold(tiny):
    long = GenerationConfig(length=10_000_000)
    with Engine(rows=1, waiting=1) as engine:
        endless = engine.stream(tiny, "a", long)
        next(endless)
        waiting = engine.stream(tiny, "a", replace(long, length=5))
        with pytest.raises(BusyError, match="wait"):
            engine.stream(tiny, "b", long)
        endless.close()
        assert sum(chunk.tokens.size for chunk in waiting) == 5


def test_a_request_ends_when_its_time_is_up(tiny):
    limited = GenerationConfig(length=10_000_000, max_seconds=0.3)
    with Engine(rows=1) as engine:
        first, second = (engine.samples(tiny, "a", limited) for _ in range(2))
        (begun,), (never,) = first, second
    assert begun.end == never.end == "time"
    assert begun.tokens.size > 0
    assert never.text == ""


@pytest.mark.parametrize("closed", [True, False])
def test_a_stream_that_nobody_reads_ends_its_request(tiny, closed):
    with Engine() as engine:
        stream = engine.stream(tiny, "a", GenerationConfig(length=10_000_000))
        while not engine.load["rows"]:
            time.sleep(0.001)
        if closed:
            stream.close()
        del stream
        while engine.load["rows"]:
            time.sleep(0.001)


@pytest.mark.parametrize("finish", [True, False])
def test_a_closed_engine_finishes_or_ends_what_it_has_and_takes_no_more(tiny, finish):
    engine = Engine()
    stream = engine.samples(tiny, "a", GenerationConfig(length=400 if finish else 10_000_000))
    engine.close(finish=finish)
    (sample,) = stream
    assert sample.end == ("length" if finish else "time")
    with pytest.raises(BusyError):
        engine.stream(tiny)


def test_wrong_values_are_refused_by_the_thread_that_submits(tiny):
    with Engine() as engine:
        for prompt, options in (("xyz", {}), ("a", {"num_samples": 0}), ("a", {"first": -1})):
            with pytest.raises(UsageError):
                engine.stream(tiny, prompt, **options)
        assert engine.load["waiting"] == 0


def test_an_error_of_one_request_reaches_only_its_client(tiny, monkeypatch):
    with Engine() as engine:
        broken = tiny.with_condition(None)
        monkeypatch.setattr(broken, "read_in_chunks", lambda *_: (_ for _ in [1 / 0]), raising=False)
        with pytest.raises(ZeroDivisionError):
            list(engine.stream(broken, "a"))
        assert [s.text for s in engine.samples(tiny, "a")] == tiny.sample("a")


def test_a_request_with_many_rows_gives_some_up_for_one_that_has_none(tiny):
    settings = [GenerationConfig(length=length, seed=length) for length in (600, 5)]
    with Engine(rows=2) as engine:
        endless = engine.stream(tiny, "a", GenerationConfig(length=10_000_000), num_samples=2)
        next(endless)
        many, short = (engine.samples(tiny, "b", each, num_samples=n) for each, n in zip(settings, (4, 1)))
        assert [sample.text for sample in short] == tiny.sample("b", settings[1])
        assert {next(endless).index for _ in range(20)}  # it goes on too
        endless.close()
        assert [sample.text for sample in many] == tiny.sample("b", settings[0], num_samples=4)


def test_a_row_that_gave_way_ends_with_the_time_of_its_request(tiny):
    with Engine(rows=2) as engine:
        limited = engine.samples(tiny, "a", GenerationConfig(length=10_000_000, max_seconds=1.0), num_samples=2)
        endless = [engine.stream(tiny, "a", GenerationConfig(length=10_000_000)) for _ in range(2)]
        assert next(endless[0]).index == 0
        assert [sample.end for sample in limited] == ["time", "time"]
        for stream in endless:
            stream.close()


@pytest.mark.parametrize("where", ["_admit", "_dispatch", "_end_late", "_notify"])
def test_an_error_of_the_engine_ends_its_requests_and_it_goes_on(tiny, monkeypatch, where):
    with Engine() as engine:
        with monkeypatch.context() as patch:
            former = getattr(engine, where)

            def fail(*args):
                if engine._requests:
                    raise RuntimeError("out of order")
                return former(*args)

            patch.setattr(engine, where, fail)
            with pytest.raises(RuntimeError, match="out of order"):
                list(engine.stream(tiny, "a"))
        assert [sample.text for sample in engine.samples(tiny, "a")] == tiny.sample("a")


def test_a_request_that_cannot_be_told_ends_and_no_other_does(tiny):
    def broken(event):
        raise ValueError("no place for it")

    with Engine() as engine:
        engine.submit(broken, tiny, "a", GenerationConfig(length=10_000_000))
        assert [sample.text for sample in engine.samples(tiny, "a")] == tiny.sample("a")
        while engine.load["rows"]:
            time.sleep(0.01)


def test_a_text_that_cannot_be_decoded_ends_its_request_alone(tiny, monkeypatch):
    feed = StreamingDetokenizer.feed

    def fail(self, tokens, logp):
        if self.index == 7:
            raise ZeroDivisionError
        return feed(self, tokens, logp)

    monkeypatch.setattr(StreamingDetokenizer, "feed", fail)
    with Engine() as engine:
        other = engine.samples(tiny, "a", GenerationConfig(length=100))
        with pytest.raises(ZeroDivisionError):
            list(engine.stream(tiny, "a", first=7))
        assert [sample.text for sample in other] == tiny.sample("a", GenerationConfig(length=100))


def test_weights_that_are_forgotten_are_kept_until_their_last_request_ends(tiny):
    settings, adapted = GenerationConfig(length=300), tiny.adapt("abcd " * 30, adaptation=Adaptation(segment=16))
    for state in (None, adapted):
        with Engine() as engine:
            stream = engine.samples(tiny, "a", settings, state=state)
            while not engine.load["rows"]:
                time.sleep(0.001)
            engine.forget(tiny, state)
            assert [sample.text for sample in stream] == tiny.sample("a", settings, state=state)
            while engine._groups:
                time.sleep(0.01)


def test_neutral_transforms_fill_up_what_is_given():
    filled = with_neutral(GenerationConfig(transforms=(Forbid((4,)), TopK(3))))
    assert type(filled.transforms[0]) is Forbid
    assert len(filled.transforms) == 9
    for kept in ((), (NoRepeatNgram(2),), (TopP(0.5), TopK(3)), (Forbid((4,)),)):
        settings = GenerationConfig(transforms=kept)
        assert with_neutral(settings) == settings


def test_a_sampler_can_be_used_by_several_threads(tiny):
    texts, settings = {}, GenerationConfig(length=40)
    fresh = tiny.with_condition(None)
    fresh._prepared = None
    threads = [threading.Thread(target=lambda i=i: texts.update({i: fresh.sample("ab", settings)})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.unique([texts[i] for i in range(8)]).tolist() == tiny.sample("ab", settings)
