"""The Python interface: what users pass by mistake is refused with the right call, and what they mean is accepted."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from builders import unpickled

import jaxgen
from jaxgen import errors
from jaxgen.errors import JaxgenError, UsageError
from jaxgen.inference.beam_search import beam
from jaxgen.inference.chat import ChatSession, continuations
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import interpolate
from jaxgen.tasks.classify.data import ClassifyCodec
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tokenizers import CharTokenizer
from jaxgen.trainer.callbacks import Callback, Note
from jaxgen.trainer.run import resume, start

WRONG = {
    "a setting of drawing": (lambda s: s.sample("a", length=10), r"GenerationConfig\(length"),
    "a length in place of settings": (lambda s: s.sample("a", 10), "GenerationConfig"),
    "several prompts": (lambda s: s.sample(["a"]), "one text"),
    "a number as prompt": (lambda s: s.read(3), "one text"),
    "a text as state": (lambda s: s.sample("a", state="b"), "DecoderState"),
    "best of a text": (lambda s: s.best("a", of="3"), "number"),
    "a folder to score with": (lambda s: Scorer("runs/a"), "Scorer.load"),
    "nothing to score": (lambda s: Scorer(s).score(None), "a text"),
    "an array to score": (lambda s: Scorer(s).score(np.array("ab")), "a text"),
    "arrays as prompt": (lambda s: Scorer(s).score("ab", np.array([1, 2])), "one text"),
    "an array as end": (lambda s: Scorer(s, end=np.array([1, 2])), "True, False or None"),
    "numbers to score": (lambda s: Scorer(s).score([1]), "one text"),
    "one text to score each": (lambda s: list(Scorer(s).score_each("abc")), "a list of texts"),
    "one candidate": (lambda s: Scorer(s).rank("a", "bc"), "two or more"),
    "no way for unknowns": (lambda s: Scorer(s, unk=None), "error, keep, skip"),
    "beams of a folder": (lambda s: beam("runs/a", "b"), "Sampler"),
    "a chat with a folder": (lambda s: ChatSession("runs/a"), "Sampler"),
    "continuations of a text": (lambda s: continuations(s, "a"), "sampler.read"),
    "between texts": (lambda s: interpolate("a", "b", 0.5), "sampler.read"),
    "a sampler of a folder": (lambda s: Sampler("runs/a"), "Sampler.load"),
    "a predictor of a folder": (lambda s: Predictor("runs/a"), "Predictor.load"),
    "a number as run": (lambda s: Sampler.load(5), "folder"),
    "several runs": (lambda s: Predictor.load(["a"]), "folder"),
    "data in place of settings": (lambda s: start("book.txt"), "LanguageConfig"),
    "a class of settings": (lambda s: start(LanguageConfig), "LanguageConfig"),
    "callbacks in second place": (lambda s: start(LanguageConfig(), [Callback()]), "callbacks="),
    "a function as callback": (lambda s: start(LanguageConfig(), callbacks=[print]), "jaxgen.Callback"),
    "no run to resume": (lambda s: resume(None), "folder"),
    "a dictionary to resume with": (lambda s: resume("runs/a", {"steps": 3}), "settings"),
    "settings without names": (lambda s: LanguageConfig("book.txt"), "data="),
    "settings that change": (lambda s: setattr(LanguageConfig(), "hidden", 3), "model_copy"),
    "settings copied wrongly": (lambda s: LanguageConfig().model_copy(update={"hiden": 3}), "hiden"),
    "settings copied from a number": (lambda s: LanguageConfig().model_copy(update=3), "dictionary"),
    "settings that are deleted": (lambda s: delattr(LanguageConfig(), "hidden"), "model_copy"),
    "an array as name": (lambda s: LanguageConfig(preset=np.arange(2)), "Unknown preset"),
    "an array as settings": (lambda s: s.sample("a", np.arange(2)), "GenerationConfig"),
    "a sampler of numbers": (lambda s: Sampler(1, 2, 3), "tokenizer"),
    "a text as weight": (lambda s: interpolate(s.read("a"), s.read("b"), "c"), "number"),
    "beams without transforms": (lambda s: beam(s, "b", transforms=None), "tuple"),
    "processes by number": (lambda s: start(LanguageConfig(), group=2), "single process"),
    "a schedule without horizon": (
        lambda s: jaxgen.make_schedule("cosine", lr=1, warmup=1, horizon=None, final=0),
        "horizon",
    ),
    "clip none": (lambda s: jaxgen.make_optimizer("sgd", "constant", clip=None), "number"),
    "a folder as schedule": (lambda s: jaxgen.make_optimizer("sgd", Path("a")), "function"),
    "weights without names": (lambda s: jaxgen.from_torch(None, "lstm"), "state dict"),
    "layers without names": (lambda s: jaxgen.stack_from_torch(3, "lstm"), "state dict"),
    "batches of an array": (lambda s: jaxgen.make_batches("stream", np.arange(9), 1, 2, 0), "prepare"),
    "a tokenizer by name": (lambda s: jaxgen.prepare(["a"], tokenizer="char"), "tokenizer"),
    "nothing to prepare": (lambda s: jaxgen.prepare(None), "data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_names_the_right_one(name, tiny):
    call, right = WRONG[name]
    with pytest.raises(UsageError, match=right):
        call(tiny)


def test_one_input_in_place_of_a_list_is_refused_at_once():
    codec = ClassifyCodec(CharTokenizer.train(["ab"]), ("x", "y"), False, 9)
    predictor = Predictor(None, codec, {})
    for wrong in ("ab", Path("a.png"), 5, None, np.array("ab")):
        with pytest.raises(UsageError, match="a list"):
            predictor.predict(wrong)
    with pytest.raises(UsageError, match="DecodingConfig"):
        predictor.predict(["ab"], GenerationConfig())


def test_inputs_that_are_no_texts_are_refused():
    predictor = Predictor(None, ClassifyCodec(CharTokenizer.train(["ab"]), ("x", "y"), False, 9), {})
    for wrong in (5, None, b"ab", ["ab"]):
        with pytest.raises(UsageError, match="one text"):
            list(predictor.predict([wrong]))


@pytest.mark.runs
def test_sizes_of_a_search_may_be_numbers_of_jax(tiny):
    sizes = {"width": jnp.int32(2), "length": np.array(3), "keep": jnp.int32(1)}
    assert len(beam(tiny, "a", **sizes)) == 1
    assert len(continuations(tiny, tiny.read("a"), jnp.int32(1), jnp.int32(2))) == 1


def test_settings_of_drawing_may_be_lists_and_numbers_of_numpy_and_jax():
    given = GenerationConfig(np.int64(5), [0.5, 0.6], jnp.int32(3), [], ["q"], np.float32(9), np.int16(8))
    assert given == GenerationConfig(5, (0.5, 0.6), 3, (), ("q",), 9.0, 8)
    assert type(given.seed) is int
    assert GenerationConfig(temperature=np.array([0.5, 0.25])).temperature == (0.5, 0.25)


def test_no_prompt_is_an_empty_one(tiny):
    np.testing.assert_array_equal(tiny.prompt_ids(None), tiny.prompt_ids(""))


def test_messages_name_settings_outside_of_commands_and_flags_in_them(monkeypatch):
    text = (
        "--final-lr 0.1 of '--x' in a--b: see `train.py --run R`, give --on-nan rollback, a --lr, or `--resume auto`, "
        "call `python train.py classify --run 'a b' --resume auto --steps 9 --plugin c.py`, or take --run DIR."
    )
    with errors.show_flags():
        assert str(UsageError(text)) == text
        assert Note(text).text == text
    monkeypatch.setattr(errors, "_flags_are_shown", False)
    named = (
        "final_lr=0.1 of '--x' in a--b: see `train.py --run R`, give on_nan='rollback', a lr, or `resume=True`, "
        "call `jaxgen.train(task='classify', run='a b', resume=True, steps=9)`, or take run=DIR."
    )
    assert str(UsageError(text)) == named
    assert Note(text).text == named
    with pytest.raises(JaxgenError) as refused:
        LanguageConfig(batch_size=0, final_lr=0.1, schedule="constant")
    assert "batch_size is 0" in str(refused.value)
    assert "--" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "known", "near"),
    [
        ("/temp", ["/stop", "/temperature"], "/temperature"),
        ("/nope", ["/new", "/stop", "/pick"], None),
        ("--nope", ["--stop", "--no-plot"], None),
        ("--hiden", ["--hidden", "--help"], "--hidden"),
        ("ltsm", ["gru", "lstm"], "lstm"),
        ("resume", ["preset"], None),
        ("LSTM", ["gru", "lstm"], "lstm"),
        ("", ["lstm"], None),
    ],
)
def test_only_names_that_were_probably_meant_are_suggested(given, known, near):
    assert errors.near_name(given, known) == near


@pytest.mark.runs
def test_samplers_and_scorers_can_be_pickled(tiny):
    settings = GenerationConfig(length=8)
    texts = tiny.sample("abc", settings)  # with something compiled
    again = unpickled(tiny)
    assert again.sample("abc", settings) == texts
    scorer = Scorer(tiny)
    score = scorer.score("abc")
    assert unpickled(scorer).score("abc") == score
