"""The command ``python -m tests.faults``: counts, table and exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import __main__ as command
from .fault import Fault, Unavailable

#: All in this process.
ONE = ["--jobs", "1"]


def survives(folder, draw):
    return "went on" if draw.integers(2**32) % 2 else "fell | back"


def fails(folder, draw):
    raise AssertionError(f"lost {folder}/a\nfile")


def breaks(folder, draw):
    return 1 / 0


def cannot(folder, draw):
    raise Unavailable("no root")


def fault(inject):
    return Fault(inject.__name__, "goes on", inject, times=4)


@pytest.fixture(autouse=True)
def no_machine(monkeypatch):
    monkeypatch.setattr(command, "facts", dict)
    monkeypatch.setattr(command, "line", lambda _: "some machine")


def test_what_was_survived_is_counted_by_outcome(capsys):
    assert command.main(ONE, [fault(survives)]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| survives | goes on | 4 | 4 | ")
    assert "went on" in row
    assert "fell \\| back" in row


@pytest.mark.parametrize(
    ("inject", "told"), [(fails, "lost FOLDER/a file (4)"), (breaks, "ZeroDivisionError division by zero (4)")]
)
def test_what_was_not_survived_is_told_once_and_the_command_ends_with_1(inject, told, capsys):
    assert command.main(ONE, [fault(inject), fault(survives)]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == f"| {inject.__name__} | goes on | 4 | 0 | **not survived**: {told} |"
    assert rows[3].startswith("| survives")


def test_what_cannot_be_made_here_is_listed_and_no_failure(capsys):
    assert command.main(ONE, [fault(cannot)]) == 0
    assert "| cannot | goes on | 0 | 0 | not injected here: no root |" in capsys.readouterr().out


def test_some_are_chosen_by_name_and_made_another_number_of_times(capsys):
    assert command.main([*ONE, "--only", "viv", "--times", "2"], [fault(survives), fault(fails)]) == 0
    assert "| survives | goes on | 2 | 2 |" in capsys.readouterr().out


def test_several_at_a_time_make_the_same_table(capfd):
    faults = [fault(survives), fault(fails), fault(cannot), fault(breaks)]
    tables = []
    for jobs in ("1", "2"):
        assert command.main(["--jobs", jobs], faults) == 1
        tables.append(capfd.readouterr().out)
    assert tables[0] == tables[1]
    assert "| survives | goes on | 4 | 4 |" in tables[1]


@pytest.mark.parametrize("flags", [["--only", "nothing"], ["--times", "0"], ["--jobs", "0"]])
def test_nothing_to_try_is_a_usage_error(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(flags, [fault(survives)])
    assert stop.value.code == 2


def test_the_table_replaces_the_one_on_the_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{command.BEGIN}old\n{command.END}below\n")
    for _ in range(2):
        command.main([*ONE, "--write", str(page)], [fault(cannot)])
    text = page.read_text()
    assert "old" not in text
    assert text.count("| cannot |") == 1
    assert text.startswith("above\n")
    assert text.endswith("0 minutes on some machine\n\n" + command.END + "below\n")


def test_with_only_some_the_others_stay_on_the_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{command.BEGIN}{command.END}")
    piped = Fault("reads (`| head`)", "goes on", survives, times=1)
    faults = [fault(survives), piped, fault(cannot)]
    command.main([*ONE, "--write", str(page)], faults)
    before = page.read_text().splitlines()
    command.main([*ONE, "--only", "surv", "--times", "9", "--write", str(page)], faults)
    after = page.read_text().splitlines()
    rows = [line for line in after if line.startswith("| ")]
    assert len(rows) == 4
    assert set(before) - set(after) == {line for line in before if line.startswith("| survives")}
    assert [line for line in after if line.startswith("| survives | goes on | 9 |")] == rows[1:2]
    assert "0 minutes on some machine" in after
    assert "Repeated later: survives; 0 minutes on some machine" in after


def test_a_page_without_the_markers_is_refused(tmp_path, capsys):
    (tmp_path / "page.md").write_text("text\n")
    with pytest.raises(SystemExit, match="lines"):
        command.main([*ONE, "--write", str(tmp_path / "page.md")], [fault(cannot)])


@pytest.mark.parametrize("optimize", ["0", pytest.param("2", marks=pytest.mark.slow)])  # 2 compiles all of JAX's source
def test_it_starts_as_the_documents_say(quick_environment, optimize):
    command = [sys.executable, "-m", "tests.faults", "--help"]
    env = quick_environment | {"PYTHONOPTIMIZE": optimize}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
