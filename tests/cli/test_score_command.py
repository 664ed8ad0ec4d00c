"""``jaxgen score``: tables and JSON on standard output, notes and speed on standard error, exit codes."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys

import pytest

from jaxgen import jitted
from jaxgen.cli import score
from jaxgen.cli.common import write_out
from jaxgen.cli.score import ScoreTable, describe_speed, read_with_progress
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.tokenizers import ByteTokenizer
from jaxgen.tokenizers.base import token_text

TEXT = "The cat sat on a mat.\nDogs ran over hills.\n"


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Every function that scoring compiles, replaced by one that may not be called."""

    def refuse(*args):
        raise AssertionError("A function of the model was compiled before the input was checked.")

    for name in ("jit_prepare", "jit_prefill", "jit_score"):
        monkeypatch.setattr(jitted, name, lambda *_: refuse)


def rows(text: str) -> list[list[str]]:
    """The fields of each line."""
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def scorer(run):
    return Scorer(Sampler.load(run))


def test_a_text_has_a_line_with_its_figures(score, run, scorer, here):
    (here / "a.txt").write_text(TEXT)
    done, wanted = score("--run", run, "a.txt"), scorer.score(TEXT)
    assert done.code == 0, done.err
    head, line = rows(done.out)
    assert head == ["tokens", "logp", "nats/token", "perplexity", "ppl/word", "bits/char", "bits/byte", "text"]
    figures = [wanted.nats_per_token, wanted.perplexity, wanted.word_perplexity]
    figures += [wanted.bits_per_char, wanted.bits_per_byte]
    assert line[0] == str(len(TEXT))
    assert [float(each.replace(",", "")) for each in line[1:7]] == pytest.approx(
        [wanted.logp, *figures], rel=1e-3, abs=6e-4
    )
    assert line[7] == "a.txt"
    assert re.fullmatch(r"43 tokens in [0-9.]+ s\n", done.err)


def test_the_speed_leaves_compilation_out():
    assert describe_speed(20_000, 10.0, 6.0) == "20,000 tokens in 10.00 s; 5,000 tokens/s after 6.0 s of compiling"
    assert describe_speed(200, 10.0, 6.0) == "200 tokens in 10.00 s"
    assert describe_speed(20_000, 6.1, 6.0) == "20,000 tokens in 6.10 s"


def test_a_file_standard_input_and_the_flag_score_alike_and_several_are_added_up(score, run, here, monkeypatch):
    (here / "a.txt").write_text(TEXT)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    files, texts = score("--run", run, "a.txt", "-"), score("--run", run, "--text", TEXT, TEXT)
    _, *of_files = rows(files.out)
    _, *of_texts = rows(texts.out)
    assert [line[1:6] for line in of_files] == [line[1:6] for line in of_texts]
    assert [line[7] for line in of_files] == ["a.txt", "-", "all"]
    assert of_files[0][1:6] == of_files[1][1:6]
    assert of_files[2][0] == str(2 * len(TEXT))


def test_json_is_an_object_a_text_with_the_numbers_of_the_library(score, run, scorer):
    done = score("--run", run, "--json", "--text", TEXT, "")
    first, empty = map(json.loads, done.out.splitlines())
    wanted = scorer.score(TEXT)
    for name in ("logp", "tokens", "chars", "bytes", "nats_per_token", "perplexity", "bits_per_char", "bits_per_byte"):
        assert first[name] == getattr(wanted, name)
    assert (first["text"], first["state"], first["checkpoint"]) == (TEXT, "carried", scorer.sampler.digest)
    assert (empty["tokens"], empty["logp"], empty["bits_per_char"]) == (0, 0.0, None)


def test_json_has_the_tokens_too_and_they_add_up(score, run):
    done = score("--run", run, "--json", "--per-token", "--top", 2, "--text", TEXT)
    found = json.loads(done.out)
    assert "".join(token["token"] for token in found["per_token"]) == TEXT
    assert sum(token["logp"] for token in found["per_token"]) == pytest.approx(found["logp"], abs=1e-4)
    for token in found["per_token"]:
        first, second = token["top"]
        assert first["logp"] >= max(second["logp"], token["logp"])


def test_every_token_has_a_line_with_its_probability_and_the_likeliest(score, run, scorer):
    done = score("--run", run, "--per-token", "--top", 1, "--text", "a\nb")
    title, head, *lines = done.out.splitlines()[:5]
    assert (title, head.split()) == ("--- text 1 ---", ["position", "logp", "prob", "token"])
    logp = scorer.per_token("a\nb").logp
    for number, (line, token) in enumerate(zip(lines, ("'a'", r"'\n'", "'b'"))):
        position, nats, probability, name = line.split()[:4]
        assert (position, name) == (str(number + 1), token)
        assert float(nats) == pytest.approx(logp[number], abs=1e-4)
        assert float(probability) == pytest.approx(math.exp(logp[number]), abs=1e-4)
        assert re.search(r"  '.+' [01]\.\d{4}$", line)
    assert len(done.out.splitlines()) == 7  # and the table


def test_cold_windows_and_lanes_are_those_of_the_library(score, run, scorer):
    for flags, options in (
        (["--state", "cold", "--window", 8], {"state": "cold", "window": 8}),
        (["--lanes", 2], {"lanes": 2}),
    ):
        found = json.loads(score("--run", run, "--json", "--text", TEXT, *flags).out)
        assert found["logp"] == pytest.approx(Scorer(scorer.sampler, **options).score(TEXT).logp)
        assert options.items() <= found.items()


def test_every_line_of_a_file_can_be_a_text(score, run, scorer, here):
    (here / "a.txt").write_text("The cat\n\nDogs ran\r\n a")
    lines = ["The cat", "Dogs ran", " a"]
    table = score("--run", run, "--lines", "a.txt")
    objects = list(map(json.loads, score("--run", run, "--lines", "--json", "a.txt").out.splitlines()))
    assert [(each["number"], each["text"]) for each in objects] == list(enumerate(lines, start=1))
    alone = [scorer.score(line).logp for line in lines]
    assert [each["logp"] for each in objects] == pytest.approx(alone, rel=1e-5)
    _, line = rows(table.out)
    assert float(line[1]) == pytest.approx(sum(alone), abs=1e-3)
    assert table.out.rstrip().endswith("a.txt (3 texts)")


def test_each_line_is_shown_with_its_tokens_if_they_are_asked_for(score, run, here):
    (here / "a.txt").write_text("The cat\nDogs")
    titles = re.findall(r"(?m)^--- (.*) ---$", score("--run", run, "--lines", "--per-token", "a.txt").out)
    assert titles == ["a.txt, text 1: 'The cat'", "a.txt, text 2: 'Dogs'"]


def test_a_prompt_is_read_and_not_scored(score, run, scorer):
    found = json.loads(score("--run", run, "--json", "--prompt", "The ", "--text", "cat").out)
    assert found["logp"] == pytest.approx(scorer.score("cat", "The ").logp)
    assert found["tokens"] == 3


def test_candidates_are_ranked_and_ties_stated(score, run):
    flags = ("--run", run, "--prompt", "The ", "--candidates", "cat", "tsht", "cat")
    done = score(*flags)
    head, *lines = rows(done.out)
    assert head == ["rank", "tokens", "logp", "logp/token", "candidate"]
    assert [(line[0], line[4]) for line in lines] == [("1=", "'cat'"), ("1=", "'cat'"), ("3", "'tsht'")]
    assert float(lines[0][3]) == pytest.approx(float(lines[0][2]) / 3, abs=1e-4)
    assert "equally likely" in done.err
    found = json.loads(score(*flags, "--json").out)
    assert [(each["rank"], each["index"], each["tied"]) for each in found["candidates"]] == [
        (1, 0, True),
        (1, 2, True),
        (3, 1, False),
    ]
    assert found["prompt"] == "The "


def test_the_end_of_a_candidate_is_not_scored_unless_it_is_asked_for(score, scorer, monkeypatch):
    sampler = scorer.sampler
    documents = Sampler(sampler.task, sampler.tokenizer, sampler.weights.params, documents=True)
    monkeypatch.setattr(Sampler, "load", lambda *_: documents)
    for flags, end, tokens in (([], False, 3), (["--end", "yes"], True, 4)):
        found = json.loads(score("--json", "--prompt", "The ", "--candidates", "cat", *flags).out)
        assert (found["candidates"][0]["tokens"], found["end"]) == (tokens, end)
    assert json.loads(score("--json", "--text", "cat").out)["tokens"] == 4


def test_bytes_that_are_no_utf_8_are_replacement_characters_in_the_text_of_json(capsys):
    write_out(json.dumps({"text": "caf\udce9"}, ensure_ascii=False))
    assert json.loads(capsys.readouterr().out) == {"text": "caf\ufffd"}


def test_unknown_characters_are_kept_or_left_out_with_a_note(score, run):
    keep, skip = (score("--run", run, "--json", "--text", "cat∑", "--unk", unk) for unk in ("keep", "skip"))
    assert (json.loads(keep.out)["tokens"], json.loads(skip.out)["tokens"]) == (4, 3)
    assert "<unk>" in keep.err
    assert "lower bound" not in skip.err
    assert "left out" in skip.err


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["score", "--text TEXT"]),
        (["a.txt", "--text", "a"], ["--text", "files"]),
        (["a.txt", "--candidates", "a"], ["--candidates ranks", "files"]),
        (["--text", "a", "--lines"], ["file"]),
        (["-", "-"], ["given twice"]),
        (["--text", "a", "--window", "8"], ["--window", "--state cold"]),
        (["--text", "a", "--state", "cold", "--lanes", "2"], ["--lanes"]),
        (["--candidates", "a", "--lanes", "2"], ["--lanes"]),
        (["--text", "a", "--state", "cold", "--prompt", "b"], ["--prompt needs", "--state cold"]),
        (["--candidates", "a", "--state", "cold"], ["--candidates"]),
        (["--text", "a", "--top", "2"], ["--top", "--per-token"]),
        (["--candidates", "a", "--per-token"], ["candidates"]),
        (["--text", "a", "--per-token", "--top", "1000"], ["--top", "0"]),
        (["--text", "a", "--state", "cold", "--window", "0"], ["window is 0"]),
        (["--text", "a", "--end", "yes"], ["no end"]),
        (["--text", "a∑"], ["'∑'"]),
        (["--prompt", "∑", "--candidates", "a"], ["prompt", "∑"]),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_exit_code_2(flags, parts, score, run, here, nothing_compiles):
    (here / "a.txt").write_text("a")
    done = score("--run", run, *flags)
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.startswith("error: ")
    assert all(part in done.err for part in parts), done.err


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [("missing.txt", None, "missing.txt"), ("latin.txt", b"caf\xe9 x", "0xe9")],
)
def test_data_that_cannot_be_read_is_a_sentence_and_exit_code_3(
    name, content, part, score, run, here, nothing_compiles
):
    if content is not None:
        (here / name).write_bytes(content)
    for flags in ([], ["--per-token"], ["--json"], ["--json", "--lines"]):
        done = score("--run", run, name, *flags)
        assert (done.code, done.out) == (3, "")
        assert part in done.err
        assert content is None or "a run" in done.err  # `score` has no --level


def test_what_could_disturb_a_terminal_is_escaped(scorer):
    tokenizer = ByteTokenizer()
    sampler = Sampler(scorer.sampler.task, tokenizer, {})
    assert [ScoreTable(Scorer(sampler), True)._quoted(token) for token in (1, 3 + 65, 3 + 0x1B, 3 + 0xE2)] == [
        "<unk>",
        "'A'",
        r"'\x1b'",
        r"'\xe2'",
    ]
    assert token_text(tokenizer, 3 + 0xE2) == r"\xe2"
    assert [token_text(tokenizer, token) for token in range(3)] == ["<pad>", "<unk>", "<eos>"]


def test_a_large_file_has_a_progress_bar_on_a_terminal(here, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    (here / "a.txt").write_text(TEXT * 50)
    for large, bar in ((10, True), (1 << 20, False)):
        monkeypatch.setattr(score, "LARGE", large)
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert "".join(read_with_progress("a.txt", ByteTokenizer(), bar=True)) == TEXT * 50
        assert ("scoring" in sys.stderr.getvalue()) == bar


# Not ``ru_maxrss``, which begins at the size of the process that started this one.
MEASURED = """
import re, sys
from jaxgen.cli.score import main
assert main(sys.argv[1:]) == 0
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


def peak(run, *flags) -> int:
    """Megabytes that scoring a.txt takes in a process of its own."""
    fresh = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # compiling takes memory: always or never
    command = [sys.executable, "-c", MEASURED, "--run", run, "a.txt", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=fresh)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak of memory where Linux tells it")
@pytest.mark.parametrize("flags", [[], ["--state", "cold"], ["--lanes", "64"]])
def test_memory_does_not_grow_with_the_file(flags, run, book, here):
    peaks = []
    for size in (1_000_000, 12_000_000):
        text = book.read_text()
        (here / "a.txt").write_text(text * (size // len(text)))
        peaks.append(peak(run, *flags))
    assert peaks[1] - peaks[0] < 30  # megabytes; the ids of the larger file alone would be 48


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak of memory where Linux tells it")
def test_memory_does_not_grow_with_the_number_of_lanes(run, book, here):
    text = book.read_text()
    (here / "a.txt").write_text(text * (4_500_000 // len(text)))  # as much as 1,024 lanes would hold at once
    peaks = [peak(run, "--lanes", lanes) for lanes in ("2", "1024")]
    assert peaks[1] - peaks[0] < 60  # megabytes
