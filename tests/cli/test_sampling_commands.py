"""``sample.py``: only the text on standard output, and the same text for the same seed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxgen.cli.sample import SampleWriter, main, read_prompt
from jaxgen.cli.sampling_flags import SampleConfig, read_transforms, unescape
from jaxgen.cli.speed import SamplingSpeed
from jaxgen.inference.text_stream import Chunk
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.tokenizers import WordTokenizer


def body(done) -> dict[str, str]:
    """heading on standard error -> the text on standard output with its line break."""
    headings = re.findall(r"(?m)^((?:temperature|sample|rank) .*)$", done.err)
    texts = done.out.removesuffix("\n").split("\n---\n")
    assert len(headings) == len(texts)
    return dict(zip(headings, (f"{text}\n" for text in texts)))


def test_standard_output_is_the_text_only(sample, run):
    done = sample("--run", run, "--prompt", "The cat", "--length", 30)
    assert done.code == 0
    assert done.out.startswith("The cat")
    assert len(done.out) == len("The cat") + 30 + 1
    assert done.out.endswith("\n")
    assert re.fullmatch(r"30 tokens in [0-9.]+ s\n", done.err)


def test_the_speed_leaves_the_first_chunk_out_because_it_waits_for_compilation(sample, run, monkeypatch):
    short = sample("--run", run, "--length", 70)
    assert re.fullmatch(r"70 tokens in [0-9.]+ s\n", short.err), "a speed of so little time says nothing"
    monkeypatch.setattr("jaxgen.cli.speed.MIN_SECONDS", 0.0)
    done = sample("--run", run, "--length", 70)
    speed = r"70 tokens in [0-9.]+ s; [0-9,]+ tokens/s after the first 32 \([0-9.]+ s to the first\)\n"
    assert re.fullmatch(speed, done.err)


@pytest.mark.parametrize(
    ("indices", "first", "later"),
    [([0], 1, 0), ([0, 1], 2, 0), ([0, 0, 0], 1, 2), ([0, 1, 0, 1], 2, 2), ([0, 1, 1], 2, 1), ([*range(9)], 8, 1)],
)
def test_the_first_chunk_holds_a_piece_of_every_sample_of_its_block(indices, first, later):
    speed = SamplingSpeed(parallel=8)
    pieces = [Chunk(index, "", np.zeros(1, np.int32), np.zeros(1)) for index in indices]
    assert list(speed.measure(iter(pieces))) == pieces
    assert (speed.first_tokens, speed.later_tokens) == (first, later)


def test_another_block_is_printed_with_the_speed(sample, run):
    done = sample("--run", run, "--length", 5, "--num-samples", 4, "--block", 16)
    assert re.fullmatch(r"20 tokens in blocks of 16 in [0-9.]+ s", done.err.splitlines()[-1])


def test_who_draws_many_texts_one_by_one_is_told_of_blocks(sample, run):
    assert "--block 256" in sample("--run", run, "--length", 1, "--num-samples", 100).err
    assert "--block 256" not in sample("--run", run, "--length", 1, "--num-samples", 100, "--block", 50).err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_text_is_exact_utf8_whatever_the_system_chose_for_pipes(encoding, sample, run):
    args = ("--run", run, "--length", 30, "--prompt", "∑ é\r\nThe ", "--unk", "skip")
    done = sample(*args, encoding=encoding, newline="\r\n")
    assert done.code == 0, done.err
    assert done.out == sample(*args).out
    assert done.out.startswith("∑ é\nThe ")


def test_the_same_seed_gives_the_same_text_and_another_seed_another(sample, run):
    first, again, other = (sample("--run", run, "--length", 40, "--seed", seed).out for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_several_temperatures_have_a_heading_each_and_equal_those_drawn_alone(sample, run):
    both = body(sample("--run", run, "--length", 30, "--temperature", 0, 0.5))
    assert list(both) == ["temperature 0", "temperature 0.5"]
    for temperature in (0, 0.5):
        alone = sample("--run", run, "--length", 30, "--temperature", temperature).out
        assert both[f"temperature {temperature:g}"] == alone


def test_temperature_zero_does_not_depend_on_the_seed(sample, run):
    texts = {sample("--run", run, "--length", 20, "--temperature", 0, "--seed", seed).out for seed in (0, 1)}
    assert len(texts) == 1


def test_a_sample_is_the_same_however_many_are_drawn(sample, run):
    ten = body(sample("--run", run, "--length", 40, "--num-samples", 10))
    two = body(sample("--run", run, "--length", 40, "--num-samples", 2))
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
    [("cat\n", "cat"), ("cat\r\n", "cat"), ("cat\n\n", "cat\n"), ("cat\r", "cat"), ("\n", ""), ("", "")],
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
    assert "--top-k" in done.err
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


@pytest.mark.filterwarnings("default::jaxgen.errors.JaxgenWarning")
def test_what_cannot_be_read_in_the_folder_of_runs_is_left_out_with_a_note(sample, run, here):
    shutil.copytree(run, here / "runs" / "language-1")
    (here / "runs" / "loop").symlink_to("loop")
    done = sample("--length", 5)
    assert done.code == 0
    assert "runs/loop (Too many levels" in done.err
    assert "Warning" not in done.err


def test_control_characters_are_shown_escaped_on_a_terminal_only(capsys):
    SampleWriter(escape=True).write("a\x1b[31m\tb\n")
    SampleWriter(escape=False).write("\x1b")
    assert capsys.readouterr().out == "a\\x1b[31m\tb\n\x1b"


def test_a_windows_line_break_in_two_pieces_is_one_line_break_on_a_terminal(capsys):
    writer = SampleWriter(escape=True)
    for text in ("a\r", "\nb\r", "c\r\n", "d\r", "", "\n"):
        writer.write(text)
    assert capsys.readouterr().out == "a\nb\\rc\nd\n"


def objects(text: str) -> list[dict]:
    """The receipts on standard output."""
    return [json.loads(line) for line in text.splitlines()]


def test_a_text_ends_in_front_of_a_stop_string(sample, run):
    whole = sample("--run", run, "--length", 60, "--seed", 2).out
    stop = whole[20:23]
    assert sample("--run", run, "--length", 60, "--seed", 2, "--stop", stop).out == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(r"\n", "\n"), (r"a\tb", "a\tb"), (r"\\n", r"\n"), (r"\\\n", "\\\n"), ("n", "n"), (r"\x", r"\x")],
)
def test_stop_strings_understand_escapes(typed, meant):
    assert unescape(typed) == meant


def test_the_separator_stands_between_texts_only_and_nul_adds_no_line_breaks(sample, run):
    args = ("--run", run, "--length", 6, "--prompt", "The ", "--num-samples", 2, "--temperature", 0, 1)
    plain = sample(*args)
    headings = [f"temperature {t}, sample {i}" for t in (0, 1) for i in (0, 1)]
    assert list(body(plain)) == headings
    texts = [text[:-1] for text in body(plain).values()]
    assert [len(text) for text in texts] == [10] * 4
    assert sample(*args, "--separator", r"\0").out == "\0".join(texts)
    assert sample(*args, "--separator", r"a\n\\b").out == "\na\n\\b\n".join(texts) + "\n"
    assert sample(*args, "--separator", "").out == "\n\n".join(texts) + "\n"
    one = sample("--run", run, "--length", 6, "--prompt", "The ", "--separator", r"\0")
    assert len(one.out) == 10
    for flag in ("--json", "--interactive"):
        assert sample(*args[:2], flag, "--separator", "x").code == 2


def test_one_text_by_its_number_is_the_one_among_all(sample, run):
    ten = body(sample("--run", run, "--length", 30, "--num-samples", 5))
    assert sample("--run", run, "--length", 30, "--sample-index", 3).out == ten["sample 3"]


def test_the_likeliest_of_many_come_first_with_their_numbers(sample, run):
    all_of_them = objects(sample("--run", run, "--length", 20, "--num-samples", 6, "--json").out)
    ranked = sorted(all_of_them, key=lambda each: -sum(each["logp"]))
    best = body(sample("--run", run, "--length", 20, "--best-of", 6, "--num-samples", 2))
    means = [f"sample {each['index']}, {sum(each['logp']) / 20:.4f} nats a token" for each in ranked[:2]]
    assert list(best) == means
    assert list(best.values()) == [each["text"] + "\n" for each in ranked[:2]]


def test_a_state_is_saved_and_continued(sample, run):
    done = sample("--run", run, "--prompt", "The ", "--length", 0, "--save-state", "s.npz")
    assert re.search(r"The state after 4 tokens is in s\.npz\.", done.err)
    expected = sample("--run", run, "--prompt", "The cat", "--length", 30).out.removeprefix("The ")
    assert sample("--run", run, "--state", "s.npz", "--prompt", "cat", "--length", 30).out == expected


def test_a_state_file_that_is_none_exits_with_4(sample, run, here):
    (here / "s.npz").write_text("text")
    done = sample("--run", run, "--state", "s.npz")
    assert (done.code, done.out) == (4, "")
    assert "s.npz" in done.err


@pytest.mark.slow
def test_every_transform_has_a_flag_that_does_something(sample, run):
    plain = sample("--run", run, "--length", 40, "--temperature", 1.5).out
    for flags in (
        "--forbid e",
        "--bias e=9",
        "--repetition-penalty 5",
        "--presence-penalty 5",
        "--frequency-penalty 5",
        "--no-repeat-ngram 1",
        "--force mat",
        "--top-k 2",
        "--top-p 0.3",
        "--min-p 0.5",
        "--typical-p 0.1",
        "--epsilon-cutoff 0.2",
        "--eta-cutoff 0.5",
    ):
        done = sample("--run", run, "--length", 40, "--temperature", 1.5, *flags.split())
        assert done.code == 0, done.err
        assert done.out != plain, f"{flags} changes nothing"


def test_a_least_length_without_an_end_is_told(sample, run):
    assert "--min-length" in sample("--run", run, "--length", 5, "--min-length", 3).err


def test_a_schedule_of_temperatures_is_a_setting_of_one_section(sample, run):
    line = sample("--run", run, "--length", 30, "--temperature", "1.0:1.0:5").out
    assert line == sample("--run", run, "--length", 30, "--temperature", "1.0,1.0").out
    assert line == sample("--run", run, "--length", 30, "--temperature", 1).out
    hot = sample("--run", run, "--length", 30, "--temperature", "1,1,1,1,1,1,1,1,1,1,50").out
    assert (hot[:10], hot != line) == (line[:10], True)


def test_a_receipt_holds_all_that_fixed_the_text(sample, run):
    args = ("--run", run, "--prompt", "The ", "--length", 12, "--seed", 4, "--top-p", 0.9)
    (value,) = objects(sample(*args, "--json").out)
    assert value["prompt"] + value["text"] + "\n" == sample(*args).out
    assert (value["seed"], value["index"], value["end"]) == (4, 0, "length")
    assert len(value["tokens"]) == len(value["logp"]) == 12
    assert value["settings"]["transforms"] == [{"name": "top-p", "options": {"p": 0.9}}]
    assert re.fullmatch("[0-9a-f]{16}", value["checkpoint"])
    assert {"jaxgen", "jax", "jaxlib"} <= set(value["versions"])
    assert value["device"].startswith("cpu ")


@pytest.fixture
def receipts(sample, run, here):
    """A file with three receipts."""
    done = sample("--run", run, "--length", 40, "--num-samples", 3, "--repetition-penalty", 1.3, "--json")
    (here / "s.jsonl").write_text(done.out)
    return here / "s.jsonl"


def test_a_replay_says_that_all_is_identical(replay, receipts):
    done = replay(receipts)
    assert (done.code, done.err) == (0, "All 3 samples are identical.\n")
    assert done.out == "".join(f"{i + 1}: sample {i} of seed 0: identical (40 tokens)\n" for i in range(3))


def test_a_replay_in_another_environment_is_a_warning(replay, receipts, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    done = replay(receipts)
    assert done.code == 0
    assert done.err.count("WARNING") == 3
    assert "XLA_FLAGS its default then, --xla_cpu_enable_fast_math=true now" in done.err
    values = objects(receipts.read_text())
    values[0]["versions"]["jax"] = "0.0.1"
    receipts.write_text(json.dumps(values[0]))
    assert "jax 0.0.1 then" in replay(receipts).err


def test_a_replay_finds_the_token_that_differs_and_ends_with_1(replay, receipts):
    values = objects(receipts.read_text())
    values[1]["tokens"][7] = 3 + (values[1]["tokens"][7] - 2) % 5
    receipts.write_text("\n".join(map(json.dumps, values)))
    done = replay(receipts)
    assert done.code == 1
    assert re.search(
        r"2: sample 1 of seed 0: differs from token 7 on: '.+' was drawn, now '.+', by a margin of", done.out
    )
    assert done.err.startswith("error: 1 of 3 samples")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("{}", "receipt"), ("text", "Line 1 of"), ('{"receipt": 1}', "lacks"), ("[1]", "receipt")],
)
def test_a_file_without_receipts_exits_with_3(content, message, replay, here):
    (here / "s.jsonl").write_text(content)
    done = replay("s.jsonl")
    assert (done.code, done.out) == (3, "")
    assert message in done.err


def test_a_run_that_is_gone_exits_with_4(replay, receipts):
    assert replay(receipts, "--run", "nowhere").code == 4


def test_other_weights_are_told(replay, receipts, copied):
    values = objects(receipts.read_text())
    receipts.write_text("\n".join(json.dumps(each | {"checkpoint": "f" * 16}) for each in values))
    assert "note: Line 1" in replay(receipts, "--run", copied).err


def test_beam_search_writes_the_likeliest_texts_in_order(sample, run, replay, here):
    found = objects(sample("--run", run, "--length", 8, "--beam", 3, "--num-samples", 2, "--json").out)
    assert [each["rank"] for each in found] == [1, 2]
    assert found[0]["score"] > found[1]["score"]
    done = sample("--run", run, "--length", 8, "--beam", 3, "--num-samples", 2)
    assert list(body(done).values()) == [each["text"] + "\n" for each in found]
    assert sample("--run", run, "--length", 8, "--beam", 3).out == found[0]["text"] + "\n"
    greedy = sample("--run", run, "--length", 8, "--greedy").out
    assert sample("--run", run, "--length", 8, "--beam", 1).out == greedy
    (here / "b.jsonl").write_text("\n".join(map(json.dumps, found)))
    assert (
        replay("b.jsonl").out
        == "1: rank 1 of 3 beams: identical (8 tokens)\n2: rank 2 of 3 beams: identical (8 tokens)\n"
    )


def test_the_length_penalty_reaches_the_search(sample, run):
    args = ("--run", run, "--length", 6, "--beam", 2, "--json")
    (mean,), (total,) = (objects(sample(*args, "--length-penalty", penalty).out) for penalty in (1, 0))
    assert mean["score"] == pytest.approx(mean["total_logp"] / 6)
    assert total["score"] == pytest.approx(total["total_logp"])


def test_one_text_chosen_among_many_is_alone_on_standard_output(sample, run):
    done = sample("--run", run, "--length", 20, "--best-of", 4)
    assert len(done.out) == 21
    assert re.search(r"sample \d, -[0-9.]+ nats a token", done.err)


def test_texts_go_on_where_shorter_ones_ended(sample, run):
    whole = sample("--run", run, "--length", 50, "--prompt", "The ").out
    rest = sample("--run", run, "--length", 50, "--prompt", "The ", "--skip", 20).out
    assert rest == "The " + whole[len("The ") + 20 :]


def test_who_wants_several_greedy_texts_is_told_that_they_are_one(sample, run):
    assert "the same" in sample("--run", run, "--length", 4, "--greedy", "--num-samples", 3).err


def test_texts_that_no_time_was_left_for_are_told(sample, run, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("jaxgen.inference.sampler.time.monotonic", lambda: next(clock))
    done = sample("--run", run, "--length", 32, "--num-samples", 50, "--max-seconds", 20)
    assert re.search(r"note: time was up before \d+ of 50 texts were begun", done.err)
    assert len(body(done)) < 50


def test_a_top_k_beyond_all_numbers_keeps_all(sample, run):
    assert sample("--run", run, "--length", 9, "--top-k", 99999999999).out == sample("--run", run, "--length", 9).out


def test_control_characters_are_escaped_where_standard_output_is_a_terminal(run):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    out = Terminal(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(["--run", str(run), "--length", "0", "--prompt", "a\x1b", "--unk", "skip"]) == 0
        assert main(["--run", str(run), "--length", "0", "--prompt", "b\x1b", "--unk", "skip", "--raw"]) == 0
    out.flush()
    assert out.buffer.getvalue() == b"a\\x1b\nb\x1b\n"


def test_closed_standard_input_is_told(sample, replay, score, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for done in (sample("--run", run, "--prompt-file", "-"), replay("-"), score("--run", run, "-")):
        assert (done.code, "closed" in done.err, "Traceback" in done.err) == (3, True, False)


def test_a_state_that_cannot_be_written_is_told_without_advice_of_another_command(sample, run):
    done = sample("--run", run, "--save-state", "nowhere/s.npz")
    assert (done.code, "nowhere/s.npz" in done.err, "--resume" in done.err) == (2, True, False)


def test_a_word_is_named_with_and_without_the_blank_that_its_token_may_have():
    tokenizer = WordTokenizer.train(["le café est le café\nle café\nle est " * 3])
    ids = {text: tokenizer.encode(text).tolist() for text in ("le", " le", " café")}
    flags = {name.replace("-", "_"): () if name in ("bias", "forbid", "force") else None for name in TRANSFORMS}
    (forbid,) = read_transforms({**flags, "forbid": ("le", "café")}, tokenizer.encode)
    assert set(forbid.ids) == {*ids["le"], *ids[" le"], *ids[" café"]}
    (force,) = read_transforms({**flags, "force": ("le", " le")}, tokenizer.encode)
    assert list(force.ids) == [*ids["le"], *ids[" le"]]
