"""``sample.py``: the text alone on standard output, and always the same text for the same seed."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxgen.cli.sample import SampleConfig, Speed, Writer, read_prompt
from jaxgen.run import Piece


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
    assert re.fullmatch(r"30 tokens in [0-9.]+ s\n", done.err)


def test_the_speed_leaves_the_first_chunk_out_because_it_waits_for_compilation(sample, run):
    done = sample("--run", run, "--length", 70)
    speed = r"70 tokens in [0-9.]+ s; [0-9,]+ tokens/s after the first 32 \([0-9.]+ s to the first\)\n"
    assert re.fullmatch(speed, done.err)


@pytest.mark.parametrize(
    ("indices", "first", "later"),
    [([0], 1, 0), ([0, 1], 2, 0), ([0, 0, 0], 1, 2), ([0, 1, 0, 1], 2, 2), ([0, 1, 1], 2, 1), ([*range(9)], 8, 1)],
)
def test_the_first_chunk_holds_a_piece_of_every_sample_of_its_block(indices, first, later):
    speed = Speed(block=8)
    pieces = [Piece(index, "", np.zeros(1, np.int32), False) for index in indices]
    assert list(speed.timed(iter(pieces))) == pieces
    assert (speed.first_tokens, speed.later_tokens) == (first, later)


def test_another_block_is_printed_with_the_speed(sample, run):
    done = sample("--run", run, "--length", 5, "--num-samples", 4, "--block", 16)
    assert re.fullmatch(r"20 tokens in blocks of 16 in [0-9.]+ s\n", done.err)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_text_is_exact_utf8_whatever_the_system_chose_for_pipes(encoding, sample, run):
    args = ("--run", run, "--length", 30, "--prompt", "∑ é\r\nThe ", "--unk", "skip")
    done = sample(*args, encoding=encoding, newline="\r\n")
    assert done.code == 0, done.err
    assert done.out == sample(*args).out
    assert done.out.startswith("∑ é\r\nThe ")


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


@pytest.mark.parametrize(
    ("content", "prompt"),
    [("cat\n", "cat"), ("cat\r\n", "cat"), ("cat\n\n", "cat\n"), ("cat\r", "cat\r"), ("\n", ""), ("", "")],
)
def test_one_line_break_at_the_end_of_a_prompt_file_is_left_out(content, prompt, here, monkeypatch):
    (here / "p.txt").write_bytes(content.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert read_prompt(SampleConfig(prompt_file="p.txt")) == prompt
    assert read_prompt(SampleConfig(prompt_file="-")) == prompt
    assert read_prompt(SampleConfig(prompt=content)) == content


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
    Writer(escape=True).put("a\x1b[31m\tb\n")
    Writer(escape=False).put("\x1b")
    assert capsys.readouterr().out == "a\\x1b[31m\tb\n\x1b"


def test_a_windows_line_break_in_two_pieces_is_one_line_break_on_a_terminal(capsys):
    writer = Writer(escape=True)
    for text in ("a\r", "\nb\r", "c\r\n", "d\r", "", "\n"):
        writer.put(text)
    assert capsys.readouterr().out == "a\nb\\rc\nd\n"
