"""Ctrl-C at any moment: while modules load, during garbage collection, while a device computes."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from jaxgen.trainer.signals import Interrupted, interruptible, raise_on_signal


@pytest.fixture
def while_collecting():
    """Call something while Python collects garbage, once."""
    added: list[Callable[..., None]] = []

    def collect(action: Callable[[], object]) -> None:
        def called(phase: str, info: object) -> None:
            if not done:
                done.append(phase)
                action()

        done: list[str] = []
        added.append(called)
        gc.callbacks.append(called)
        gc.collect()
        time.sleep(5)

    yield collect
    for callback in added:
        gc.callbacks.remove(callback)


def test_an_interrupt_that_is_lost_comes_again(while_collecting, capfd):
    with pytest.raises(KeyboardInterrupt), interruptible():
        while_collecting(lambda: signal.raise_signal(signal.SIGINT))
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_would_be_lost_waits_until_it_is_not(while_collecting, number):
    with pytest.raises(Interrupted) as stopped, raise_on_signal("here"):
        while_collecting(lambda: signal.raise_signal(number))
    assert stopped.value.exit_code == 128 + number


def test_a_stop_is_no_exception_that_a_program_expects():
    with pytest.raises(KeyboardInterrupt, match="here"), suppress(Exception), raise_on_signal("here"):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_means_something_else_is_left_alone():
    heard = []
    former = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)
    assert heard == [1]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{folder}", "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_an_interrupt_while_a_module_loads_ends_the_process_without_a_traceback(tmp_path):
    (tmp_path / "loading.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = run("from jaxgen.trainer.signals import interruptible\nwith interruptible():\n    import loading", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(("code", "last"), [(130, ""), (143, ""), (0, "at the end\n"), (4, "at the end\n")])
def test_a_process_that_was_stopped_leaves_at_once_and_loses_no_output(tmp_path, code, last):
    lines = (
        "import atexit",
        "from jaxgen.cli.main import leave",
        "atexit.register(print, 'at the end')",
        "print('text')",
    )
    done = run("\n".join([*lines, f"leave({code})"]), tmp_path)
    assert (done.returncode, done.stdout) == (code, f"text\n{last}")
