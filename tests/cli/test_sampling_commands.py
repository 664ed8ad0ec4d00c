"""``sample.py``: the text alone on standard output, and always the same text for the same seed."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
from pathlib import Path


def body(text: str) -> dict[str, str]:
    """heading -> the text under it."""
    parts = re.split(r"(?m)^--- (.*) ---\n", text)
    return dict(zip(parts[1::2], parts[2::2]))


def test_standard_output_is_the_text_alone(sample, run):
    done = sample("--run", run, "--prompt", "The cat", "--length", 30)
    assert done.code == 0
    assert done.out.startswith("The cat")
    assert len(done.out) == len("The cat") + 30 + 1
    assert done.out.endswith("\n")
    assert re.fullmatch(r"30 tokens in [0-9.]+ s \([0-9,]+ tokens/s, compilation included\)\n", done.err)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(sample, run):
    first, again, other = (sample("--run", run, "--length", 40, "--seed", seed).out for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_several_temperatures_have_a_headed_section_each_and_equal_those_drawn_alone(sample, run):
    both = body(sample("--run", run, "--length", 30, "--temperature", 0, 0.5).out)
    assert list(both) == ["temperature 0", "temperature 0.5"]
    for temperature in (0, 0.5):
        alone = sample("--run", run, "--length", 30, "--temperature", temperature).out
        assert both[f"temperature {temperature:g}"] == alone


def test_temperature_zero_does_not_depend_on_the_seed(sample, run):
    texts = {sample("--run", run, "--length", 20, "--temperature", 0, "--seed", seed).out for seed in (0, 1)}
    assert len(texts) == 1


def test_a_sample_is_the_same_however_many_are_drawn(sample, run):
    ten = body(sample("--run", run, "--length", 40, "--num-samples", 10).out)
    two = body(sample("--run", run, "--length", 40, "--num-samples", 2).out)
    assert list(ten) == [f"sample {i}" for i in range(10)]
    assert len(set(ten.values())) == 10
    assert {name: ten[name] for name in two} == two
    assert sample("--run", run, "--length", 40).out == two["sample 0"]


def test_a_longer_text_begins_with_the_shorter(sample, run):
    short, long = (sample("--run", run, "--length", length).out for length in (20, 70))
    assert long.startswith(short.removesuffix("\n"))


def test_the_prompt_comes_from_the_flag_a_file_or_standard_input(sample, run, here, monkeypatch):
    (here / "p.txt").write_bytes(b"The dogs ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The dogs ")))
    flag = sample("--run", run, "--length", 20, "--prompt", "The dogs ").out
    file = sample("--run", run, "--length", 20, "--prompt-file", "p.txt").out
    stdin = sample("--run", run, "--length", 20, "--prompt-file", "-").out
    assert flag.startswith("The dogs ")
    assert flag == file == stdin


def test_a_long_prompt_is_read_in_chunks(sample, run):
    prompt = "The cat sat on a mat. " * 10
    done = sample("--run", run, "--length", 5, "--prompt", prompt)
    assert done.code == 0
    assert done.out.startswith(prompt)


def test_top_k_of_one_is_greedy(sample, run):
    greedy = sample("--run", run, "--length", 20, "--temperature", 0).out
    assert sample("--run", run, "--length", 20, "--temperature", 1, "--top-k", 1).out == greedy
    assert sample("--run", run, "--length", 20, "--temperature", 1, "--top-p", 1e-6).out == greedy


def test_a_top_k_beyond_the_vocabulary_is_told_and_keeps_all(sample, run):
    done = sample("--run", run, "--length", 20, "--top-k", 10_000)
    assert done.code == 0
    assert "--top-k 10000 is more than the vocabulary" in done.err
    assert done.out == sample("--run", run, "--length", 20).out


def test_unknown_characters_can_be_skipped(sample, run):
    done = sample("--run", run, "--length", 20, "--prompt", "The ∑cat", "--unk", "skip")
    assert done.code == 0
    plain = sample("--run", run, "--length", 20, "--prompt", "The cat").out
    assert done.out.removeprefix("The ∑cat") == plain.removeprefix("The cat")


def test_a_length_of_zero_gives_the_prompt_back(sample, run):
    assert sample("--run", run, "--length", 0, "--prompt", "The").out == "The\n"


def test_a_run_copied_elsewhere_still_samples(sample, run, copied):
    assert sample("--run", copied, "--length", 20).out == sample("--run", run, "--length", 20).out


def test_the_newest_run_is_the_default(sample, run, here):
    for name in ("language-1", "language-2"):
        shutil.copytree(run, here / "runs" / name)
    later = time.time() + 100
    for path in (Path("runs/language-1/config.json"), *Path("runs/language-1/checkpoints").iterdir()):
        os.utime(path, (later, later))
    shutil.rmtree("runs/language-2/checkpoints")
    assert sample("--length", 5).code == 0


def test_control_characters_are_shown_escaped_on_a_terminal_only(capsys):
    from jaxgen.cli.sample import Writer

    Writer(escape=True).put("a\x1b[31m\tb\n")
    Writer(escape=False).put("\x1b")
    assert capsys.readouterr().out == "a\\x1b[31m\tb\n\x1b"
