"""The commands as a user starts them: scripts and the installed command in their own processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxgen
from jaxgen.cli.main import main
from jaxgen.runs.checkpoints import CheckpointStore

ROOT = Path(jaxgen.__file__).parent.parent
ENTRY = "from jaxgen.cli.main import run; run()"


def digest(run):
    return CheckpointStore(run / "checkpoints").digest()


@pytest.fixture
def script(quick_environment, here):
    """Run Python with these arguments, from a folder that is not the repository."""

    def run(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, args)]
        return subprocess.run(
            command, cwd=here, env=quick_environment, capture_output=True, text=True, timeout=200, **more
        )

    return run


@pytest.mark.slow
def test_the_scripts_train_and_sample_from_any_folder(script, small, course, run, here):
    train = script(ROOT / "train.py", *small, *course)
    assert train.returncode == 0, train.stderr
    assert train.stderr == ""
    assert "sample.py --run runs/language-1 --prompt " in train.stdout.splitlines()[-1]
    first = script(ROOT / "sample.py", "--length", 20, "--prompt-file", "-", input="The ")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The ")
    assert len(first.stdout) == 25
    installed = script("-c", ENTRY, "sample", "--length", 20, "--prompt", "The ")
    assert installed.stdout == first.stdout, "another process gave another text"
    assert digest(here / "runs/language-1") == digest(run), "another process gave other weights"


#: What would change the bits of a run if the commands let it.
CHANGED = {
    "JAX_RANDOM_SEED_OFFSET": "3",
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
}


@pytest.mark.slow
def test_settings_of_jax_in_the_environment_change_no_bit(script, small, course, run, here, quick_environment):
    quick_environment |= CHANGED
    try:
        done = script(ROOT / "train.py", *small, *course, "--run", "other")
        texts = script(ROOT / "sample.py", "--run", run, "--length", 20)
    finally:
        for name in CHANGED:
            del quick_environment[name]
    assert done.returncode == 0, done.stderr
    assert digest(here / "other") == digest(run)
    assert texts.stdout == script(ROOT / "sample.py", "--run", run, "--length", 20).stdout


def test_a_reader_that_leaves_early_ends_sampling_quietly(quick_environment, run, here):
    command = [sys.executable, ROOT / "sample.py", "--run", run, "--length", "100000"]
    errors = here / "errors"  # a file: a pipe that nobody reads would fill up
    with (
        errors.open("w") as file,
        subprocess.Popen(
            command, cwd=here, env=quick_environment, stdout=subprocess.PIPE, stderr=file, text=True
        ) as process,
    ):
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        process.wait(timeout=120)
    assert process.returncode == 0
    assert errors.read_text() == ""


@pytest.mark.parametrize("arguments", [["-c", ENTRY], pytest.param([ROOT / "train.py"], marks=pytest.mark.slow)])
def test_help_that_nobody_reads_ends_quietly(arguments, here):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, *arguments, "--help"], cwd=here, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_no_file_takes_the_place_of_standard_output_that_was_closed(number, here):
    code = f"""if True:
        import os
        os.close({number})
        from jaxgen.cli.common import hold_descriptors
        hold_descriptors()
        with open("mine", "w") as file:
            os.write({number}, b"from a library") if {number} else os.read({number}, 1)
            os._exit(file.fileno() <= {number})
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=here).returncode == 0
    assert (here / "mine").read_bytes() == b""


@pytest.mark.parametrize("name", ["train.py", "sample.py"])
def test_an_interrupt_while_modules_load_leaves_no_traceback(name, script, here):
    (here / name).write_bytes((ROOT / name).read_bytes())
    (here / "jaxgen").mkdir()
    swallowed = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    1 / 0\n"
    (here / "jaxgen/__init__.py").write_text(swallowed)
    done = script(here / name)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_wrong_input_leaves_no_traceback_and_the_exit_code_of_its_kind(script):
    done = script(ROOT / "sample.py", "--run", "nowhere")
    assert done.returncode == 4
    assert done.stderr.startswith("error: nowhere")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        ([], 2, "usage: jaxgen COMMAND"),
        (["--help"], 0, "write text"),
        (["--version"], 0, "jaxgen 0."),
        (["smaple"], 2, "Did you mean 'sample'?"),
        (["sample", "--run", "nowhere"], 4, "nowhere"),
        (["score", "--text", "a", "--run", "nowhere"], 4, "nowhere"),
        (["train", "--lr", "nan"], 2, "--lr"),
    ],
)
def test_the_installed_command_hands_over_to_each(args, code, part, monkeypatch, capsys, here):
    monkeypatch.setattr(sys, "argv", ["jaxgen", *args])
    assert main() == code
    captured = capsys.readouterr()
    assert part in captured.out + captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("JAX_NUM_CPU_DEVICES", "0", "JAX_NUM_CPU_DEVICES=0"),
        ("JAX_NUM_CPU_DEVICES", "two", "JAX_NUM_CPU_DEVICES|jax_num_cpu_devices"),
        ("JAX_PLATFORMS", "abacus", "JAX_PLATFORMS=abacus"),
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda"),
    ],
)
def test_settings_that_jax_refuses_are_told_in_a_sentence(quick_environment, here, name, value, sentence):
    if value == "cuda" and jax.default_backend() != "cpu":
        pytest.skip("JAX can use a GPU here")
    for command in ("train.py", "sample.py"):
        done = subprocess.run(
            [sys.executable, ROOT / command],
            cwd=here,
            env=quick_environment | {name: value},
            capture_output=True,
            text=True,
        )
        assert re.match(f"error: .*({sentence})", done.stderr), done.stderr
        assert (done.stderr.count("\n"), done.returncode) == (1, 2)


def test_the_pipe_to_a_process_of_a_job_takes_no_place_of_a_stream_that_was_closed(here):
    code = """if True:
        import os
        from jaxgen.cli import train
        from jaxgen.distributed import launcher
        os.close(0), os.close(1)
        launcher.launch = lambda job, work, log: 7 if min(os.pipe()) > 2 else 8
        os._exit(train.main("--coordinator a:1 --num-processes 1 --process-id 0".split()))
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=here).returncode == 7


@pytest.mark.slow
def test_python_without_docstrings_runs_every_command(script, small, run, here):
    done = script("-OO", ROOT / "train.py", *small, "--steps", 2, "--eval-every", 0, "--run", "r")
    assert (done.returncode, done.stderr) == (0, "")
    lines = "/help\n/pick 2\n/save s.safetensors\n"
    chat = script("-OO", ROOT / "sample.py", "--interactive", "--run", run, "--prompt", "The ", input=lines)
    assert (chat.returncode, "error:" in chat.stderr, "/save FILE" in chat.stderr) == (0, False, True)
    assert (here / "s.safetensors").exists()
    for command in (["train"], ["train", "classify"], ["sample"], ["score"], ["predict"], ["evaluate"], ["replay"]):
        shown = script("-OO", "-c", ENTRY, *command, "--help")
        assert shown.returncode == 0, command
        assert "(ids: " not in shown.stdout
    assert "(ids: " not in chat.stdout + chat.stderr
