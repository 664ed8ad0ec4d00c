"""``train.py translate`` and ``jaxgen predict``: dates learnt in seconds, then translated."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jaxgen.cli.predict import main as predict_main
from jaxgen.cli.train import main as train_main
from jaxgen.inference.predictor import Predictor
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.translate.dates import dates

#: Everything has one width, 8 letters read and 12 written, so that each function is compiled once.
LONGEST = 11
FEW = "--preset tiny --hidden 16 --embed 8 --batch-size 8 --lr 0.03 --warmup 2 --eval-every 20 --steps 40 --devices 1 "
FEW += f"--max-length {LONGEST} --beam 5 --scheduled-sampling 0.2"


@pytest.fixture(scope="session")
def spelled() -> list[str]:
    """The sources of the twenty dates."""
    return [text for text, _ in pairs_of_dates()]


def pairs_of_dates() -> list[tuple[str, str]]:
    """Twenty dates in spellings of eight letters or fewer."""
    made = dates(0, train=400, val=1, held_out_dates=1, held_out_pairs=1)["train"]
    return [(source, target) for source, target in zip(*made) if len(source) <= 8][:20]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """Flags that name two parallel files of twenty dates, to train and to validate with."""
    folder = tmp_path_factory.mktemp("dates")
    names = folder / "spelled.txt", folder / "iso.txt"
    for path, texts in zip(names, zip(*pairs_of_dates())):
        path.write_text("\n".join(texts) + "\n")
    both = " ".join(map(str, names))
    return f"--data {both} --val-data {both}"


@pytest.fixture(scope="session")
def learnt(tmp_path_factory, data, command, quick, loss_plots) -> tuple[Path, Any]:
    """A finished run of these dates, and what training it printed in a window of 60 columns."""
    run = tmp_path_factory.mktemp("learnt") / "run"
    with quick(), loss_plots(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "60")
        done = command(train_main, ["translate", "--run", run], f"{data} {FEW}")
    assert done.code == 0, done.err
    return run, done


@pytest.fixture
def dated(learnt) -> Path:
    """The folder of the finished run."""
    return learnt[0]


@pytest.fixture
def predict(command, monkeypatch) -> Callable[..., Any]:
    """``jaxgen predict`` with these arguments, and with ``text`` on standard input."""

    def run(*args: object, text: str = "", terminal: bool = False) -> Any:
        stdin = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")
        stdin.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)
        return command(predict_main, args)

    return run


def json_lines(done: Any) -> list[dict]:
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


# Training


def test_training_shows_the_data_translations_and_figures_in_60_columns(learnt):
    _, done = learnt
    for part in (
        "20 to train on, 20 to validate",
        "char level, vocabularies of",
        "some validation pairs",
        "best so far",
        "    -> ",
        "sacrebleu: chrF",
        "chrF",
    ):
        assert part in done.out
    table = done.out[done.out.rindex("validation  ") : done.out.index("\nNext: ")]
    assert re.match(r"validation +[\d.]+% exactly right, tokens [\d.]+%", table)
    assert max(map(len, table.splitlines())) <= 60
    assert "|version:" in re.sub(r"\s", "", table), "long words are broken where the window ends"
    assert re.search(r"Next: echo .* \| jaxgen predict --run ", done.out)


def test_a_run_leaves_its_figures_and_pictures(learnt):
    run, _ = learnt
    rows = MetricsLog(run / "metrics.jsonl").read()
    assert [row["step"] for row in rows] == [20, 40]
    for name in ("train_loss", "val_loss", "val_bleu", "val_exact", "val_token_accuracy", "pairs_per_second"):
        assert name in rows[-1]
    report = json.loads((run / "report.json").read_text())
    assert {"val_chrf", "val_signature", "val_bleu", "val_exact", "val_loss"} <= set(report)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    for name, least in {"attention.png": (100, 100), "loss.png": (1000, 800)}.items():
        with Image.open(run / name) as image:
            assert image.size >= least


def test_scheduled_sampling_is_reproducible_and_matters(train, data, dated, here):
    def digest(name: str, more: str = "") -> str:
        done = train("translate", flags=f"{data} {FEW} --run {name} {more}")
        assert done.code == 0, done.err
        return CheckpointStore(here / name / "checkpoints").digest()

    assert digest("again") == CheckpointStore(dated / "checkpoints").digest()
    assert digest("sooner", "--scheduled-sampling-steps 1") != digest("later", "--scheduled-sampling-steps 100000")


def test_a_run_can_begin_from_one_of_another_vocabulary_whose_own_it_keeps(train, data, dated, here):
    (here / "b.tsv").write_text("".join(f"ЖЖ {n}\t2000-Ю-{n:03d}\n" for n in range(30)))
    flags = f"--data b.tsv --source-column 1 --target-column 2 {FEW} --run new"
    done = train("translate", "--init-from", dated, flags=flags)
    assert done.code == 0, done.err
    assert (here / "new" / "tokenizer.json").read_text() == (dated / "tokenizer.json").read_text()
    assert re.search(r"\d\d\.\d% and 10\.0% unknown in validation", " ".join(done.out.split()))
    refused = train("translate", "--init-from", dated, flags=flags.replace("new", "no") + " --level word")
    assert refused.code == 2
    assert "--level is word" in refused.err
    assert not (here / "no").exists()


WRONG_DATA = {
    "--data a.txt b.txt": (3, "line 3"),
    "--data a.txt nowhere.txt": (3, "'nowhere.txt'"),
    "--data a.txt latin.txt": (3, "latin.txt"),
    "--data empty.txt none.txt": (3, "empty.txt"),
    "--data holes.txt b.txt --empty refuse": (3, "holes.txt"),
    "--data t.tsv --source-column a --target-column c": (3, "'c'"),
    "--data t.tsv --source-column 1 --target-column 3": (3, "t.tsv"),
    "--data b.txt c.txt --max-length 1": (3, "tokens"),
    "--data c.txt d.txt --val-data a.txt b.txt": (3, "line 3"),
    "--data t.tsv": (2, "a table: give"),
    "--data a.txt": (2, "parallel"),
    "--data t.tsv --source-column a": (2, "--target-column"),
    "--val-rows 5": (2, "dates"),
    "--attention bahdanau": (2, "Unknown attention 'bahdanau'"),
    "--beam 100": (2, "--beam is 100"),
    "--model ngram": (2, "Unknown model"),
}


@pytest.mark.parametrize("flags", WRONG_DATA)
def test_what_cannot_be_trained_on_is_told_in_a_sentence_and_leaves_no_run(flags, train, here):
    (here / "a.txt").write_text("one\ntwo\nthree\n")
    (here / "b.txt").write_text("eins\nzwei\n")
    (here / "c.txt").write_text("un\ndeux\n")
    (here / "d.txt").write_text("uno\ndos\n")
    (here / "holes.txt").write_text("one\n\n")
    (here / "empty.txt").write_text("")
    (here / "none.txt").write_text("")
    (here / "latin.txt").write_bytes(b"f\xfcnf\n\n\n")
    (here / "t.tsv").write_text("a\tb\nc\td\n")
    code, sentence = WRONG_DATA[flags]
    done = train("translate", flags=flags)
    assert (done.code, done.out) == (code, "")
    assert sentence in done.err
    assert done.err.startswith("error: ")
    assert not list(here.glob("runs*"))


# Predicting


def test_lines_are_answered_in_order_each_by_a_line(predict, dated, spelled):
    done = predict("--run", dated, text="\n".join(spelled) + "\n")
    answers = done.out.splitlines()
    assert (done.code, len(answers), done.err) == (0, 20, "")
    assert len(set(answers)) > 5
    backwards = predict("--run", dated, text="\n".join(spelled[::-1]))
    assert backwards.out.splitlines() == answers[::-1]
    assert predict("--run", dated, text=spelled[7]).out == answers[7] + "\n"


def test_line_n_answers_line_n_also_where_lines_are_empty(predict, dated, spelled):
    first, second = spelled[:2]
    done = predict("--run", dated, text=f"\ufeff{first}\r\n\n   \n{second}")
    plain = predict("--run", dated, text=f"{first}\n{second}\n").out.splitlines()
    assert done.out == f"{plain[0]}\n\n\n{plain[1]}\n"
    assert predict("--run", dated, text="").out == ""
    assert predict("--run", dated, text="\n").out == "\n"


def test_files_are_read_one_after_the_other_zipped_or_not(predict, dated, spelled, here):
    lines = spelled
    (here / "a.txt").write_text("\n".join(lines[:3]))
    (here / "b.gz").write_bytes(gzip.compress("\n".join(lines[3:5]).encode()))
    done = predict("a.txt", "b.gz", "-", "--run", dated, text=lines[5])
    assert done.out == predict("--run", dated, text="\n".join(lines[:6])).out


def test_json_has_all_that_is_known_of_an_answer(predict, dated, spelled):
    lines = spelled[:3]
    plain = predict("--run", dated, text="\n".join(lines)).out.splitlines()
    answers = json_lines(predict("--run", dated, "--json", text="\n".join(lines)))
    assert [answer["source"] for answer in answers] == lines
    assert [answer["text"] for answer in answers] == plain
    for answer in answers:
        assert set(answer) == {"source", "text", "logp", "tokens", "ended", "cut"}
        assert answer["logp"] < 0
        assert answer["tokens"] == len(answer["text"])
        assert answer["ended"] == (answer["tokens"] < LONGEST)


def test_beams_find_texts_that_are_no_less_likely(predict, dated, spelled):
    lines = "\n".join(spelled[:6])
    greedy = json_lines(predict("--run", dated, "--json", text=lines))
    beams = json_lines(predict("--run", dated, "--json", "--beam", 5, "--length-penalty", 0, text=lines))
    assert sum(answer["logp"] for answer in beams) >= sum(answer["logp"] for answer in greedy) - 1e-3


def test_what_is_drawn_follows_from_the_seed(predict, dated, spelled):
    draw = lambda seed: predict("--run", dated, "--temperature", 1, "--seed", seed, text="\n".join(spelled)).out  # noqa: E731
    assert draw(1) == draw(1) != draw(2)


def test_no_answer_is_longer_than_asked(predict, dated, spelled):
    done = predict("--run", dated, "--length", 3, text="\n".join(spelled))
    assert max(map(len, done.out.splitlines())) == 3


def test_what_was_not_read_of_long_lines_is_told(predict, dated):
    done = predict("--run", dated, text="1" * (LONGEST + 1) + "\n12\n")
    assert done.err.startswith("1 input")
    assert len(done.out.splitlines()) == 2


def test_where_the_decoder_looks_is_drawn_beside_the_answers(predict, dated, spelled, here):
    lines = ["", *spelled]
    plain = predict("--run", dated, text="\n".join(lines))
    done = predict("--run", dated, "--attention", "map.png", text="\n".join(lines))
    assert (done.code, done.out, done.err) == (0, plain.out, "")
    with Image.open(here / "map.png") as image:
        assert image.size > (800, 200)
    one = predict("--run", dated, "--attention", "one.png", text=lines[1])
    assert one.code == 0
    with Image.open(here / "map.png") as several, Image.open(here / "one.png") as single:
        assert several.width > 2 * single.width


def test_where_it_looks_cannot_be_drawn_of_nothing_or_to_nowhere(predict, dated):
    nothing = predict("--run", dated, "--attention", "map.png", text="\n\n")
    assert (nothing.code, nothing.out) == (2, "")
    assert "--attention" in nothing.err
    nowhere = predict("--run", dated, "--attention", "no/where/map.png", text="a")
    assert (nowhere.code, nowhere.out) == (2, "")
    assert "no/where/map.png" in nowhere.err


def test_at_a_terminal_every_line_is_answered_at_once(predict, dated, spelled, monkeypatch):
    ahead = []
    answers = Predictor.predict

    def seen(self, inputs, writing=None, most=0, **more):
        ahead.append(most)
        return answers(self, inputs, writing, most, **more)

    monkeypatch.setattr(Predictor, "predict", seen)
    done = predict("--run", dated, text="\n".join(spelled), terminal=True)
    assert "Ctrl-D" in done.err
    assert done.out == predict("--run", dated, text="\n".join(spelled)).out
    assert ahead == [1, None]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--beam 5 --temperature 1", "--temperature"),
        ("--length-penalty 2", "--beam"),
        ("--seed 3", "--temperature"),
        ("--beam 5 --seed 3", "--seed"),
        ("--beam -1", "--beam is -1"),
        ("--beam 65", "64"),
        ("--length 65537", "65536"),
        ("--length 0", "--length is 0"),
        ("--temperature nan", "--temperature"),
        ("--temperature 1e-40", "temperature of 1e-40"),
        ("--seed -1 --temperature 1", "--seed is -1"),
        ("--length-penalty nan --beam 2", "--length-penalty"),
        ("--beem 3", "--beem"),
    ],
)
def test_flags_that_do_not_fit_exit_with_2(flags, sentence, predict, dated):
    done = predict("--run", dated, *flags.split(), text="a\n")
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (gzip.compress(b"good\n" * 99)[:-9], "lines.gz"),
        (b"\x1f\x8bnonsense", "lines.gz"),
    ],
    ids=["cut", "no gzip"],
)
def test_zipped_lines_that_cannot_be_read_exit_with_3(content, part, predict, dated, here):
    (here / "lines.gz").write_bytes(content)
    done = predict("lines.gz", "--run", dated)
    assert (done.code, done.out) == (3, "")
    assert part in done.err


def test_every_command_names_those_that_a_run_is_for(predict, sample, score, evaluate, dated, run):
    done = predict("--run", run, text="a")
    assert done.code == 2
    assert "`jaxgen sample`" in done.err
    for command in (sample("--run", dated), score("--text", "a", "--run", dated), evaluate("--run", dated)):
        assert command.code == 2
        assert "translate" in command.err
        assert "`jaxgen predict`" in command.err


def test_the_newest_run_that_answers_is_taken(predict, sample, dated, run, here):
    (here / "runs").mkdir()
    os.symlink(dated, here / "runs" / "translate-1")
    os.symlink(run, here / "runs" / "language-1")
    assert predict(text="a").code == 0
    assert sample("--length", 3).code == 0


def test_help_tells_what_there_is(predict, train):
    done = predict("--help")
    assert done.code == 0
    for part in ("--attention", "--beam", "--length-penalty", "[FILE ...]", "empty"):
        assert part in done.out
    done = train("translate", "--help-all")
    for part in (
        "jaxgen train translate",
        "--scheduled-sampling",
        "{none,additive,general}",
        "multi30k",
        "sentences",
    ):
        assert part in done.out
