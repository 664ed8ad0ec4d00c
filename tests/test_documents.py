"""The code and commands in the documents work as written."""

from __future__ import annotations

import contextlib
import re
from functools import cache
from pathlib import Path

import pytest

import jaxgen
from jaxgen.cli.completion import flags_of, spellings
from jaxgen.cli.main import COMMANDS
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.registry import DATA
from jaxgen.testing import check_cell

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

#: The commands beside those that have a script.
OTHERS = [command for command in COMMANDS if command not in ("train", "sample")]


@cache
def known(*words: str) -> set[str]:
    """The flags of a command."""
    return {spelling for flag in flags_of(*words) for spelling in spellings(flag)}


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_readme_example_trains_and_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("README.md")
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) >= 300
    assert (tmp_path / "runs" / "reference" / "config.json").exists()


@pytest.mark.slow
def test_the_loop_of_the_page_on_python_trains_and_samples(capsys):
    loop, by_hand = python_blocks("docs/python.md")[-2:]
    exec(compile(loop, "docs/python.md", "exec"), scope := {})
    *steps, text = capsys.readouterr().out.split("\n", 3)
    assert [int(line.split()[0]) for line in steps] == [50, 100, 150]
    assert float(steps[-1].split()[1]) < 2.2
    assert len(text) > 400
    exec(compile(by_hand, "docs/python.md", "exec"), scope)
    assert int(scope["state"].step) == 1


@pytest.mark.slow
def test_the_callbacks_of_the_page_on_python_stop_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = python_blocks("docs/python.md")[1].replace("< 1.5", "< 9").replace("preset=", "steps=20, hidden=8, preset=")
    exec(compile(block, "docs/python.md", "exec"), {})
    assert len((tmp_path / "runs" / "callbacks" / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_run_in_a_loop_of_the_page_on_python_has_its_own_optimizer(tmp_path, monkeypatch, without_plugins, capsys):
    monkeypatch.chdir(tmp_path)
    block = python_blocks("docs/python.md")[2].replace("< 2:", "< 9:").replace("preset=", "hidden=8, preset=")
    exec(compile(block, "docs/python.md", "exec"), scope := {})
    assert (scope["model"].config.optimizer, scope["model"].config.schedule) == ("signs", "line")
    assert capsys.readouterr().out.count("\n") < 9


@pytest.mark.slow
def test_the_sampling_page_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = LanguageConfig(data=(str(ROOT / "README.md"),), hidden=4, steps=2, batch_size=2, seq_len=4, eval_every=0)
    jaxgen.start(config).train()
    blocks = python_blocks("docs/sampling.md")
    scope: dict = {}
    exec(compile("\n".join(blocks).replace("length=200", "length=20"), "docs/sampling.md", "exec"), scope)
    assert Path("to-be.safetensors").exists()
    assert len(scope["texts"][0]) == 20


@pytest.mark.slow
def test_the_page_on_nnx_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks("docs/nnx.md")
    try:
        exec(compile("\n".join(blocks), "docs/nnx.md", "exec"), {})
    finally:
        jaxgen.CELLS.pop("minimal-gate", None)
    tagger, bits, text = capsys.readouterr().out.split("\n", 2)
    assert float(tagger.split()[2]) < 0.2 < float(tagger.split()[0])
    assert float(bits.split()[0]) < 4.0
    assert len(text) >= 40


def test_the_sampling_page_names_every_transform_in_its_order():
    page = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    named = re.findall(r"(?m)^\| `--([a-z-]+)[^|]*?(?:`--([a-z-]+)[^|]*)?\|", page)
    assert [name for pair in named for name in pair if name] == list(jaxgen.TRANSFORMS)


@pytest.mark.slow
def test_the_worked_cell_trains_and_samples_and_keeps_the_contract(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    try:
        exec(compile(python_blocks("docs/extending.md")[0], "docs/extending.md", "exec"), scope)
    finally:
        jaxgen.CELLS.pop("mgu", None)
    bits, text = capsys.readouterr().out.split("\n", 1)
    assert float(bits.split()[0]) < 4.0
    assert len(text) >= 40
    check_cell(scope["MGU"], strict=True)


@pytest.mark.slow
def test_the_worked_linear_cell_keeps_the_contract_in_all_forms(capsys):
    (block,) = [block for block in python_blocks("docs/extending.md") if "LinearCell)" in block]
    exec(compile(block, "docs/extending.md", "exec"), {})
    forms = re.search(r"print\(.*\)  # (.*)", block)[1]
    assert capsys.readouterr().out.splitlines()[0] == forms


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_of_train_that_a_document_types_exists(document):
    for command in re.findall(r"^.*python train\.py.*$", document.read_text(encoding="utf-8"), re.MULTILINE):
        with contextlib.suppress(ValueError):
            command = command[: command.index("#")]
        task = [name for name in re.findall(r"train\.py ([a-z]+)", command) if name in DATA]
        assert set(re.findall(r"--[a-z][a-z-]*", command)) <= known("train", *task), command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.parametrize("command", OTHERS)
def test_every_flag_of_another_command_that_a_document_types_exists(document, command):
    for typed in re.findall(rf"jaxgen {command}\b.*$", document.read_text(encoding="utf-8"), re.MULTILINE):
        assert set(re.findall(r"--[a-z][a-z-]*", typed.split("#")[0].split("`")[0])) <= known(command), typed


def test_the_documents_type_every_command():
    texts = " ".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [command for command in OTHERS if f"jaxgen {command} " not in texts] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_of_sample_that_a_document_types_exists(document):
    for command in re.findall(r"python sample\.py.*$", document.read_text(encoding="utf-8"), re.MULTILINE):
        assert set(re.findall(r"--[a-z][a-z-]*", command.split("#")[0].split("`")[0])) <= known("sample"), command
