"""``jaxgen evaluate``: a reproducible table or JSON on standard output, and a plot."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
from edited import edit

from jaxgen import jitted
from jaxgen.cli.evaluate import COLUMNS, align_table, quote, report
from jaxgen.cli.main import main
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.quality import CopiedSpan, QualityReport, QualityRow
from jaxgen.inference.sampler import Sampler
from jaxgen.metrics import Cycle

TURNING = ("cycle", "cycle_text")


def test_the_table_has_a_row_for_each_temperature_and_one_for_real_text(evaluate, run):
    done = evaluate("--run", run, "--no-plot")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "validation"]
    assert lines[4] == ""
    assert max(map(len, lines[:4])) <= 80
    assert re.search(r"nearest to real text: temperature [01];", done.out)
    assert re.search(r"longest copy: \d+ characters at temperature [01], in sample \d", done.out)
    assert re.fullmatch(r"240 tokens drawn and measured in [0-9.]+ s\n", done.err)


def test_json_holds_every_number_and_two_runs_are_identical(evaluate, run, book):
    first, again = (evaluate(run, "--json", "--no-plot") for _ in range(2))
    assert first.code == 0, first.err
    assert first.out == again.out
    value = json.loads(first.out)
    assert value["settings"]["temperature"] == [0.0, 1.0]
    assert value["data"]["name"] == str(book)
    assert value["checkpoint"] == Sampler.load(run).digest
    texts = Sampler.load(run).sample(settings=GenerationConfig(length=40, temperature=1.0, block=32), num_samples=3)
    copy = value["rows"][1]["copy"]
    assert texts[copy["sample"]][copy["start"] :].startswith(copy["text"])
    assert book.read_text()[copy["source_start"] :].startswith(copy["text"])
    assert evaluate(run, "--json", "--no-plot", "--seed", 1).out != first.out


def test_the_picture_lies_in_the_run_or_where_it_is_wanted(evaluate, copied, here):
    done = evaluate("--run", copied)
    assert done.err.startswith(f"plot: {copied / 'quality.png'}\n")
    assert (copied / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert evaluate(copied, "--plot", "mine.png").code == 0
    assert (here / "mine.png").read_bytes() == (copied / "quality.png").read_bytes()


def test_the_newest_run_is_the_default(evaluate, run, here):
    shutil.copytree(run, here / "runs" / "language-1")
    assert evaluate("--no-plot").out == evaluate(run, "--no-plot").out


def test_the_installed_command_knows_it(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jaxgen", "evaluate", "nowhere"])
    assert main() == 4
    assert "nowhere" in capsys.readouterr().err


@pytest.fixture
def altered(copied, tmp_path):
    """A copy of the run whose data are another file."""
    edit(copied, "config", "data", value=[str(tmp_path / "moved.txt")])
    return copied


@pytest.mark.parametrize(("content", "said"), [(None, "no file or folder"), ("another text\n" * 40, "changed")])
def test_without_the_data_their_columns_are_empty_unless_they_are_required(content, said, evaluate, altered, tmp_path):
    if content is not None:
        (tmp_path / "moved.txt").write_text(content)
    done = evaluate(altered, "--no-plot")
    assert done.code == 0, done.err
    assert done.err.startswith("note: ")
    assert said in done.err
    rows = [line.split() for line in done.out.splitlines()[1:3]]
    assert [row[-2:] for row in rows] == [["-", "-"]] * 2
    assert "validation" not in done.out
    strict = evaluate(altered, "--no-plot", "--require-data")
    assert (strict.code, strict.out) == (3, "")
    assert said in strict.err


WRONG = {
    "--temperature 0.5 -1": ("temperature of -1",),
    "--temperature nan": ("nan",),
    "--temperature": ("--temperature", "without a value"),
    "--temperature hot": ("--temperature", "'hot'"),
    "--num-samples 0": ("samples is 0", "from 1"),
    "--length -1": ("length is -1",),
    "--length 0": ("length of the texts is 0",),
    "--block 0": ("block size is 0",),
    "--seed -1": ("seed is -1",),
    "--prompt ∑": ("'∑'", "--unk skip"),
    "--plot nowhere/q.png": ("--plot is 'nowhere/q.png'", "folder"),
    "--plot .": ("--plot is '.'", "folder"),
    "--plot thesis.tex": ("--plot is 'thesis.tex'", "ends in .png"),
    "--plot .png": ("--plot is '.png'", "ends in .png"),
    "--plot=": ("--plot is ''", "name a file"),
    "--plot q.png --no-plot": ("--plot", "--no-plot"),
    "--run other": ("--run", "other"),
}


@pytest.fixture
def nothing_compiles(monkeypatch):
    def refuse(*args):
        raise AssertionError("A function of the model was compiled before the input was checked.")

    for name in ("jit_eval_step", "jit_prepare", "jit_prefill", "jit_decode"):
        monkeypatch.setattr(jitted, name, lambda *_: refuse)


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_exit_with_2(flags, evaluate, run, nothing_compiles, here):
    done = evaluate(run, flags=flags)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert [part for part in WRONG[flags] if part not in done.err] == []
    assert not list(here.iterdir())


def test_a_folder_is_no_place_for_a_picture(evaluate, run, here, nothing_compiles):
    (here / "q.png").mkdir()
    done = evaluate(run, "--plot", "q.png")
    assert (done.code, done.out) == (2, "")
    assert "q.png" in done.err


def test_the_run_is_named_in_any_place_and_once(evaluate, run):
    first, last = evaluate(run, "--no-plot"), evaluate("--no-plot", run)
    assert (first.code, first.out) == (0, last.out)
    two = evaluate(run, run, "--no-plot")
    assert two.code == 2
    assert str(run) in two.err


def some_row(temperature, cycles, copy):
    turning = {"cycle": Cycle(cycles, 5 * cycles), "cycle_text": "x" * cycles} if cycles else dict.fromkeys(TURNING)
    return QualityRow(temperature, 9, 90, 90, -1.0, (0.1, 0.2, 0.3), 0.4, cycles, known_words=0.5, copy=copy, **turning)


def test_the_longest_copy_and_the_commonest_cycles_are_quoted():
    short, long = CopiedSpan("ab", 2, 0, 1, 0, 3), CopiedSpan("abcdef", 6, 4, 7, 2, 8)
    rows = [some_row(0.3, 1, short), some_row(0.7, 3, long), some_row(1.0, 2, None), some_row(1.3, 0, short)]
    told = report(QualityReport(rows, None, "word"), documents=True)
    assert "longest copy: 6 characters at temperature 0.7, in sample 4 from 7" in told
    assert 'in the training text from document 2, character 8\n  "abcdef"' in told
    assert 'cycle at temperature 0.7: period 3 from 15, in tokens\n  "xxx"' in told
    assert "longest copy" not in report(QualityReport(rows[2:3], None, "word"))


def test_what_is_no_run_exits_with_4(evaluate, here):
    assert evaluate("nowhere", flags="").code == 4
    done = evaluate(flags="")
    assert (done.code, done.out) == (4, "")
    assert "runs/" in done.err


def test_a_table_that_is_too_wide_goes_on_below():
    rows = [["t", "one", "two", "three"], ["0.5", "1", "22", "3"]]
    assert align_table(rows) == ["t    one  two  three", "0.5    1   22      3"]
    assert align_table(rows, 13) == ["t    one  two", "0.5    1   22", "", "t    three", "0.5      3"]
    assert align_table(rows, 1)[-2:] == ["t    three", "0.5      3"]


def test_quotations_are_one_line_without_control_characters():
    assert quote('a\n\tb\x1b[2J"') == '"a\\n\\tb\\x1b[2J""'
    assert len(quote("x" * 1000)) == 202
