"""Altered files are read or refused with a message: 100,000 of them in the slow lane."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import jaxgen
from jaxgen import jitted
from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.fsutil import parse_json
from jaxgen.inference.beam_search import BeamConfig
from jaxgen.inference.generation_config import GenerationConfig, transform_to_json
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.receipts import read_receipt, replay
from jaxgen.inference.sampler import Sampler
from jaxgen.runs.config import read_config, read_toml, validate, with_digest
from jaxgen.runs.directory import RunDirectory
from jaxgen.sampling.transforms import Bias, NoRepeatNgram, RepetitionPenalty, TopP
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import TOKENIZERS, load_tokenizer

from .mutation import altered, mutated_bytes

TEXT = "The cat sat on the mat. é∑\n" * 8
TOML = b"""# a run
hidden = 8
cell = "elman"
lr = 0.02
data = ["book.txt", "other.txt"]
cell-options = { activation = "relu" }
tie = false

[optimizer-options]
b2 = 0.99
"""
#: Files of each kind, in the default suite and in the slow one.
SOME = pytest.param(60, id="some")
MANY = pytest.param(16_000, id="many", marks=pytest.mark.slow)
FEWER = pytest.param(12_000, id="many", marks=pytest.mark.slow)


def refused_well(read: Callable[[bytes], object], raw: bytes, kinds: type | tuple[type, ...]) -> None:
    """Read ``raw``; what is not accepted must be refused with one of ``kinds``, in a sentence that can be shown."""
    told = "a sentence"
    try:
        read(raw)
    except kinds as error:
        told = str(error)
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {str(error)[:300]} for {raw[:500]!r}") from error
    assert told
    assert not re.search("pydantic|Traceback", told), told


@pytest.mark.parametrize("number", [SOME, MANY])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_altered_tokenizer_is_refused_or_works(kind, number):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    options = {"vocab_size": 300} if kind == "bpe" else {}
    raw = json.dumps(TOKENIZERS[kind].train(TEXT, **options).to_json()).encode()
    pick = random.Random(kind)

    def read(data: bytes) -> None:
        try:
            value = parse_json(data)
        except ValueError:
            return
        tokenizer = load_tokenizer(value)
        ids = tokenizer.encode(TEXT[:30])
        assert all(0 <= int(i) < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)

    for _ in range(number):
        refused_well(read, altered(raw, pick), CheckpointError)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, book: Path) -> Path:
    """A run that has begun: its settings are written, and nothing is trained."""
    path = tmp_path_factory.mktemp("begun") / "run"
    config = LanguageConfig(data=(str(book),), run=str(path), cell="elman", hidden=4, batch_size=2, seq_len=8, steps=2)
    jaxgen.start(config)
    return path


@pytest.mark.parametrize("number", [SOME, FEWER])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_run_with_an_altered_file_is_refused_or_opens(name, number, begun, tmp_path):
    for each in ("config.json", "tokenizer.json"):
        (tmp_path / each).write_bytes((begun / each).read_bytes())
    raw, pick = (begun / name).read_bytes(), random.Random(name)

    def read(data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        LoadedRun.open(tmp_path)

    for _ in range(number):
        data = altered(raw, pick)
        refused_well(read, data, CheckpointError)
        if name == "config.json":  # by whoever knows how its digest is made, too
            refused_well(read, forged(data), CheckpointError)


def forged(data: bytes) -> bytes:
    """``data`` as the ``config.json`` of a run, under a digest that is right; as it is where there is none."""
    try:
        return json.dumps(with_digest(parse_json(data))).encode()
    except (AttributeError, ValueError):
        return data


@pytest.mark.parametrize("every", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_the_settings_is_refused_or_means_the_same(every, begun, tmp_path):
    raw, path = (begun / "config.json").read_bytes(), tmp_path / "config.json"
    settings, same = parse_json(raw), 0

    def read(data: bytes) -> None:
        nonlocal same
        path.write_bytes(data)
        assert read_config(RunDirectory(tmp_path)) == settings
        same += 1  # a number may be written 1e-05 or 1E-05, and a space as the end of a line

    for place in range(0, 8 * len(raw), every):
        at, bit = divmod(place, 8)
        refused_well(read, raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :], CheckpointError)
    assert same < len(raw) / every


ORIGIN = {"unk": "error", "run": None, "checkpoint": "", "state": None, "receipt": 1}
TRANSFORMS = (RepetitionPenalty(1.2), NoRepeatNgram(3), Bias(((4, 1.5),)), TopP(0.9))
DRAWN = {"text": "at", "prompt": "The ", "tokens": [5, 6], "logp": [-1.0, -0.5], "end": "length", "seed": 1, "index": 0}
DRAWN |= {"settings": GenerationConfig(2, (1.0, 0.5), 1, TRANSFORMS, ("ab",)).to_json(), **ORIGIN}
FOUND = {
    "text": "at",
    "prompt": "The ",
    "tokens": [5, 6],
    "total_logp": -1.5,
    "score": -0.7,
    "end": "length",
    "rank": 1,
}
FOUND |= {"beam": {**BeamConfig()._asdict(), "transforms": [transform_to_json(Bias(((4, 1.5),)))]}, **ORIGIN}


@pytest.mark.parametrize("number", [SOME, FEWER])
@pytest.mark.parametrize("kind", ["sample", "beam"])
def test_an_altered_receipt_is_refused_or_drawn(kind, number, monkeypatch):
    tokenizer = TOKENIZERS["char"].train([TEXT])
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, cell="elman", cell_options={}, hidden=4)
    sampler = Sampler(task, tokenizer, task.init(jax.random.key(0)))
    pick, drawn = random.Random(kind), 0

    def end(*args: object, **options: object) -> None:
        nonlocal drawn
        drawn += 1
        raise DataError("The receipt was accepted.")

    monkeypatch.setattr(Sampler, "_stream", end)
    monkeypatch.setattr(jitted, "jit_beam_search", end)
    raw = json.dumps({"sample": DRAWN, "beam": FOUND}[kind]).encode()

    def read(data: bytes) -> None:
        try:
            value = parse_json(data)
        except ValueError:
            return
        replay(sampler, read_receipt(value))

    refused_well(read, raw, DataError)
    assert drawn == 1
    for _ in range(number):
        refused_well(read, altered(raw, pick), (DataError, CheckpointError))
    assert drawn < number


@pytest.mark.parametrize("number", [SOME, FEWER])
def test_an_altered_file_of_settings_is_refused_or_read(number, tmp_path):
    pick, path = random.Random("toml"), tmp_path / "settings.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        validate(LanguageConfig, read_toml(str(path)))

    for _ in range(number):
        refused_well(read, mutated_bytes(TOML, pick), UsageError)
