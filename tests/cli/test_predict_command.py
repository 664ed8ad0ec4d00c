"""``train.py classify`` and ``jaxgen predict``: lines in, labels out; errors."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxgen.cli.predict import main as predict_main
from jaxgen.cli.predict import text_lines
from jaxgen.cli.train import main as train_main
from jaxgen.errors import DataError
from jaxgen.inference.predictor import Predictor
from jaxgen.runs.directory import RunDirectory

TABLE = "text,kind\n" + "".join(f"{a} {b},{kind}\n" for kind, a, b in [
    ("sea", "fish", "wave"), ("sea", "wave", "ship"), ("sea", "ship", "fish"), ("sea", "fish", "ship"),
    ("land", "tree", "road"), ("land", "road", "hill"), ("land", "hill", "tree"), ("land", "tree", "hill"),
] * 3)  # fmt: skip
SMALL = "--level word --cell elman --hidden 8 --lr 0.05 --batch-size 8 --devices 1 --val-rows 4"
COLUMNS = "--text-column text --label-column kind"


@pytest.fixture(scope="session")
def learnt(tmp_path_factory: pytest.TempPathFactory, quick, command) -> tuple[Path, Any]:
    """A trained classifier, and what training it printed."""
    folder = tmp_path_factory.mktemp("learnt")
    (folder / "kinds.csv").write_text(TABLE)
    args = ["classify", "--data", folder / "kinds.csv", "--run", folder / "run"]
    with quick():
        done = command(train_main, args, f"{SMALL} {COLUMNS} --steps 30 --eval-every 15 --sample-every 15")
    assert done.code == 0, done.err
    return folder / "run", done


@pytest.fixture
def kinds(learnt: tuple[Path, Any]) -> Path:
    """The folder of the trained classifier."""
    return learnt[0]


@pytest.fixture
def predict(command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``jaxgen predict`` with these arguments and this standard input."""

    def run(*args: object, stdin: bytes | None = b"", **output: str) -> Any:
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        return command(predict_main, args, **output)

    return run


def labels(done: Any) -> list[str]:
    """The labels of lines, which are all that there is."""
    assert (done.code, done.err) == (0, "")
    assert done.out == "" or done.out.endswith("\n")
    for line in done.out.splitlines():
        assert re.fullmatch(r"(sea|land)\t[01]\.\d{4}", line)
    return [line.split("\t")[0] for line in done.out.splitlines()]


# What is answered


def test_training_prints_figures_for_every_label_the_matrix_and_what_to_type_next(learnt):
    run, done = learnt
    text = re.sub(r" +", " ", done.out)
    for part in (
        "20 to train on",
        "labels 2, from",
        "validation accuracy ",
        "calibration error",
        "land precision",
        "true \\ predicted 1 2",
        "1 land ",
        "2 sea ",
    ):
        assert part in text
    assert f"' | jaxgen predict --run {run}" in done.out.replace("\n", "")


def test_lines_of_standard_input_are_answered_in_order(predict, kinds):
    done = predict("--run", kinds, stdin=b"fish\ntree hill\nship wave\nroad\n")
    assert labels(done) == ["sea", "land", "sea", "land"]


def test_every_line_has_its_answer_be_it_empty_or_without_an_end(predict, kinds):
    done = predict("--run", kinds, stdin=b"fish\n\n  \r\ntree\r\n\nship")
    found = labels(done)
    assert len(found) == 6
    assert (found[0], found[3], found[5]) == ("sea", "land", "sea")
    lines = done.out.splitlines()
    assert lines[1] == lines[2] == lines[4]


def test_an_empty_file_has_a_note_in_place_of_answers(predict, kinds, here):
    (here / "empty.txt").write_text("")
    done = predict("--run", kinds, "empty.txt")
    assert (done.code, done.out) == (0, "")
    assert "empty" in done.err


def test_lines_of_files_follow_each_other_and_a_dash_is_standard_input(predict, kinds, here):
    (here / "a.txt").write_text("fish\ntree\n")
    (here / "b.txt").write_text("hill")
    assert labels(predict("--run", kinds, "a.txt", "-", "b.txt", stdin=b"wave\n")) == ["sea", "land", "sea", "land"]


ROWS = {
    "t.csv": "id,text\n1,fish\n2,\n3,hill\n",
    "t.tsv": "id\ttext\n1\tfish\n2\t\n3\thill\n",
    "t.jsonl": '{"text": "fish"}\n{"text": null}\n{"text": "hill"}\n',
}


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_tables_are_answered_in_order(predict, kinds, here, name, zipped):
    raw = ROWS[name].encode()
    (here / (name + zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    for columns in ([], ["--text-column", "text"]):  # the column of training
        found = labels(predict("--run", kinds, *columns, name + zipped))
        assert (len(found), found[0], found[2]) == (3, "sea", "land")
    assert len(labels(predict("--run", kinds, "--lines", name + zipped))) == ROWS[name].count("\n")


def test_a_table_by_position_says_what_its_first_row_is(predict, kinds, here):
    (here / "t.csv").write_text(ROWS["t.csv"])
    done = predict("--run", kinds, "t.csv", "--text-column", "2")
    assert (done.code, done.out.count("\n")) == (0, 3)
    assert "header" in done.err
    assert len(labels(predict("--run", kinds, "t.csv", "--text-column", "2", "--header", "no"))) == 4


def test_a_table_is_read_with_the_header_of_training(predict, command, here):
    (here / "t.csv").write_text("a,b\n" + "1,fish\n2,hill\n" * 4)
    columns = "--text-column 2 --label-column 1 --header yes"
    assert command(train_main, ["classify", "--data", "t.csv", "--run", "r"], f"{SMALL} {columns} --steps 1").code == 0
    done = predict("--run", "r", "t.csv")
    assert (done.code, done.out.count("\n")) == (0, 8)
    assert "header, as in training" in done.err


def test_a_column_that_is_not_there_and_a_file_that_is_no_table_are_refused(predict, kinds, here):
    (here / "t.csv").write_text(ROWS["t.csv"])
    (here / "t.txt").write_text("fish\n")
    done = predict("--run", kinds, "t.csv", "--text-column", "body")
    assert (done.code, done.out) == (3, "")
    assert "'body'" in done.err
    for files in (["t.txt"], []):
        done = predict("--run", kinds, *files, "--text-column", "text")
        assert (done.code, done.out) == (2, "")
        assert "no table" in done.err
    assert predict("--run", kinds, "t.csv", "--text-column", "text", "--lines").code == 2


def test_a_file_is_one_text_where_texts_had_several_lines(predict, command, quick, here):
    for n in range(4):
        for kind, words in (("sea", "fish\nwave\nship"), ("land", "tree\nroad\nhill")):
            path = here / "texts" / kind / f"{n}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(words)
    with quick():
        sizes = SMALL.replace("--val-rows 4", "--val-rows 2")
        assert command(train_main, ["classify", "--data", "texts", "--run", "run"], f"{sizes} --steps 20").code == 0
    (here / "a.txt").write_text("fish\n\nwave\n")
    (here / "b.txt").write_text("hill\n")
    done = predict("--run", "run", "--json", "a.txt", "b.txt")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["fish\n\nwave\n", "hill\n"]
    assert "--lines" in done.err
    assert len(labels(predict("--run", "run", "--lines", "a.txt", "b.txt"))) == 4
    assert predict("--run", "run", stdin=b"fish\nwave\n").out.count("\n") == 1
    assert predict("--run", "run", stdin=b"").out == ""
    (here / "t.csv").write_text(ROWS["t.csv"])
    assert len(labels(predict("--run", "run", "t.csv", "--text-column", "text"))) == 3
    assert predict("--run", "run", "t.csv").out.count("\n") == 3  # its column with a usual name
    (here / "t.csv").write_text(ROWS["t.csv"].replace("text", "remark"))
    done = predict("--run", "run", "t.csv")
    assert (done.code, done.out) == (2, "")
    assert "--text-column" in done.err
    assert "'remark'" in done.err


def test_json_has_all_that_is_known_of_an_answer(predict, kinds):
    done = predict("--run", kinds, "--json", stdin="fish\na façade\n".encode())
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert (first["text"], first["label"], [*first["probabilities"]]) == ("fish", "sea", ["sea", "land"])
    assert sum(second["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert second["text"] == "a façade"
    assert "façade" in done.out


def test_no_lines_have_no_answers(predict, kinds):
    done = predict("--run", kinds)
    assert (done.code, done.out) == (0, "")
    assert "empty" in done.err


def test_the_newest_run_that_answers_inputs_is_the_default(predict, kinds, run, here):
    shutil.copytree(kinds, here / "runs/classify-1")
    shutil.copytree(run, here / "runs/language-1")  # a newer one, which answers none
    done = predict(stdin=b"fish\n")
    assert (done.code, done.out.split()[0]) == (0, "sea")
    assert "runs/classify-1" in done.err


def test_a_copied_run_answers_the_same(predict, kinds, here):
    shutil.copytree(kinds, here / "copy")
    text = b"fish\ntree wave\n"
    assert predict("--run", "copy", stdin=text).out == predict("--run", kinds, stdin=text).out


def test_answers_are_utf8_whatever_the_system_chose_for_pipes(predict, kinds):
    done = predict("--run", kinds, "--json", stdin="café\n".encode(), encoding="utf-8", newline="\r\n")
    assert "café" in done.out
    assert "\r" not in done.out


# What is refused


def refused(done: Any, code: int, *parts: str) -> None:
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for part in parts:
        assert part in done.err


def test_a_run_that_answers_no_inputs_is_refused(predict, run):
    refused(predict("--run", run, stdin=b"a\n"), 2, "task language", "`jaxgen sample`")


def test_strict_reading_is_for_runs_that_answer_images(predict, kinds):
    refused(predict("--run", kinds, "--strict", stdin=b"a\n"), 2, "--strict", "answers lines")


@pytest.mark.parametrize("name", ["sample", "score", "evaluate"])
def test_commands_that_write_and_score_refuse_a_classifier(name, request, kinds):
    args = ["--run", kinds] + (["--text", "a"] if name == "score" else [])
    done = request.getfixturevalue(name)(*args)
    refused(done, 2, "task classify", "`jaxgen predict`")


def test_without_a_run_that_answers_inputs_it_is_said_how_to_make_one(predict, run, here):
    refused(predict(stdin=b"a\n"), 4, "runs/")
    shutil.copytree(run, here / "runs/language-1")
    refused(predict(stdin=b"a\n"), 4, "runs/", "classify")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("latin.txt", ("latin.txt", "not UTF-8", "0xe9", "ine 2")), ("nowhere.txt", ("nowhere.txt", "read"))],
)
def test_files_that_cannot_be_read_exit_with_3(name, parts, predict, kinds, here):
    (here / "latin.txt").write_bytes(b"fish\ncaf\xe9\n")
    refused(predict("--run", kinds, name), 3, *parts)


def test_a_folder_and_standard_input_that_is_no_utf8_exit_with_3(predict, kinds, here):
    (here / "folder").mkdir()
    refused(predict("--run", kinds, "folder"), 3, "folder", "read")
    refused(predict("--run", kinds, stdin=b"\xff\n"), 3, "tandard input", "not UTF-8", "0xff", "ine 1")


def test_a_line_longer_than_an_input_may_be_is_refused_by_its_number_and_not_read_whole(predict, kinds, here):
    with gzip.open(here / "long.txt.gz", "wb", compresslevel=1) as file:
        file.write(b"fish\n" + b"x" * (64 * 2**20))
    said = "16 MiB"
    refused(predict("--run", kinds, "long.txt.gz"), 3, said, "line")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=said):
            list(text_lines(["long.txt.gz"]))
        assert tracemalloc.get_traced_memory()[1] < 48 * 2**20
    finally:
        tracemalloc.stop()


def test_the_longest_line_that_an_input_may_be_is_answered(predict, kinds, monkeypatch):
    monkeypatch.setattr("jaxgen.cli.predict.MAX_LINE", 5)
    assert len(predict("--run", kinds, stdin=b"fish\nfishy").out.splitlines()) == 2
    refused(predict("--run", kinds, stdin=b"fishes\n"), 3, "input", "in line 1")


def test_standard_input_that_is_closed_is_told(predict, kinds):
    assert "closed" in predict("--run", kinds, stdin=None).err


def test_a_labels_file_of_another_run_is_refused(predict, kinds, here):
    copy = Path(shutil.copytree(kinds, here / "copy"))
    saved = RunDirectory(copy).read_json("tokenizer.json")
    (copy / "tokenizer.json").write_text(json.dumps(saved | {"labels": ["sea", "land", "sky"]}))
    refused(predict("--run", copy, stdin=b"a\n"), 4, "classes")


def test_ctrl_c_ends_with_130_and_no_traceback(predict, kinds, monkeypatch):
    def interrupted(*_, **__):
        yield {"label": "sea", "probabilities": {"sea": 1.0}, "cut": 0}
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", interrupted)
    done = predict("--run", kinds, stdin=b"fish\ntree\n")
    assert (done.code, done.err) == (130, "Stopped.\n")
    assert done.out == "sea\t1.0000\n"


def test_a_reader_that_has_gone_ends_predicting_quietly(kinds, monkeypatch, here):
    class Gone(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return spare.fileno()

    with (here / "spare").open("w") as spare:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fish\n")))
        monkeypatch.setattr(sys, "stdout", Gone(io.BytesIO()))
        assert predict_main(["--run", str(kinds)]) == 0


# Data that cannot be learnt from

FILES = {
    "good.csv": TABLE,
    "sky.csv": "text,kind\nthe bird,sky\n",
    "one.csv": "text,kind\nfish,sea\nwave,sea\n",
    "void.csv": "text,kind\n,sea\nfish,\n",
    "gaps.csv": TABLE + "fish,\n",
    "ragged.csv": "text,kind\nfish,sea\nwave\n",
    "latin.csv": b"text,kind\ncaf\xe9,sea\n",
    "header.csv": "text,kind\n",
    "loose/sea/a.txt": "fish",
    "loose/notes.txt": "about",
    "plain.txt": "fish",
}
DATA = {
    f"--data good.csv {COLUMNS.replace('kind', 'label')}": ("'label'", "'text', 'kind'"),
    "--data good.csv --text-column 3 --label-column 2": ("--text-column",),
    f"--data good.csv --val-data sky.csv {COLUMNS}": ("'sky'", "validation", "'land'"),
    f"--data one.csv {COLUMNS}": ("one.csv", "two"),
    f"--data void.csv {COLUMNS}": ("void.csv", "2"),
    f"--data header.csv {COLUMNS}": ("header.csv",),
    f"--data gaps.csv --empty refuse {COLUMNS}": ("25", "--empty skip"),
    f"--data ragged.csv {COLUMNS}": ("3",),
    f"--data latin.csv {COLUMNS}": ("latin.csv", "0xe9"),
    f"--data nowhere.csv {COLUMNS}": ("'nowhere.csv'",),
    "--data nowhere": ("'nowhere'",),
    "--data loose": ("loose/notes.txt", "--text-column"),
    f"--data good.csv --val-rows 24 {COLUMNS}": ("24", "--val-rows"),
}
USAGE = {
    "--data good.csv": ("good.csv", "--text-column and --label-column"),
    "--data good.csv --text-column text --label-column 2": ("name",),
    "--data plain.txt --text-column 1 --label-column 2": ("plain.txt",),
    "--text-column 1": ("stdlib-packages", "--text-column"),
    "--pooling sum": ("Unknown pooling 'sum'", "last, max, mean"),
    "--token-dropout 1": ("--token-dropout is 1.0", "less than 1"),
    "--empty keep": ("--empty is 'keep'", "'refuse'"),
    "--preset word": ("preset 'word'", "'words'"),
    "--val-rows 3 --val-fraction 0.1": ("--val-rows",),
    "--model ngram": ("'ngram'", "rnn"),
    "--level bytes": ("level 'bytes'", "'byte'"),
    "--min-count 2 --level byte": ("--min-count 2", "--level"),
}


@pytest.fixture
def material(here: Path) -> Path:
    for name, content in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return here


@pytest.mark.parametrize(("code", "flags"), [*((3, flags) for flags in DATA), *((2, flags) for flags in USAGE)])
def test_data_and_flags_that_cannot_be_used_are_told_and_leave_no_run(code, flags, train, material):
    done = train("classify", flags=flags)
    refused(done, code, *(DATA | USAGE)[flags])
    assert not (material / "runs").exists()


def test_rows_with_an_empty_part_are_skipped_and_counted(train, material):
    done = train("classify", "--data", "gaps.csv", flags=f"{COLUMNS} {SMALL} --steps 1")
    assert done.code == 0, done.err
    assert "20 to train on" in re.sub(r"\s+", " ", done.out)
    assert (material / "runs/classify-1/config.json").is_file()


def test_a_run_is_gone_on_with_by_its_own_task_which_need_not_be_named(command, kinds, tmp_path):
    shutil.copytree(kinds, tmp_path / "run")
    args = ["--run", tmp_path / "run", "--resume", "must"]
    assert command(train_main, args).code == 0
    refused(command(train_main, ["language", *args]), 2, "classify")
