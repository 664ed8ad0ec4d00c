"""The notebooks of ``docs/notebooks`` run, and what is committed is the output of one run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: Where the notebooks are published; Colab opens them from there.
REPOSITORY = "jaxgen/jaxgen"
MAX_BYTES = 300_000
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@each
def test_the_outputs_are_those_of_one_run_from_top_to_bottom(path):
    codes = cells(path, "code")
    assert [cell["execution_count"] for cell in codes] == [*range(1, len(codes) + 1)]
    outputs = [output for cell in codes for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/png" in output.get("data", {}) for output in outputs) or path.stem.startswith("6")
    assert not re.search(r"/(home|root|tmp|Users)/", json.dumps(outputs))
    assert path.stat().st_size <= MAX_BYTES


@each
def test_colab_opens_this_notebook_and_installs_jaxgen_from_the_same_place(path):
    assert f"github/{REPOSITORY}/blob/main/docs/notebooks/{path.name}" in "".join(cells(path, "markdown")[0]["source"])
    assert f"git+https://github.com/{REPOSITORY}\n" in "".join(cells(path, "code")[0]["source"]) + "\n"


@each
def test_the_links_of_a_notebook_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#:]+)\)", "".join(cell["source"])):
            assert (FOLDER / target).exists(), target


@each
def test_the_short_run_changes_parameters_that_exist(path):
    (cell,) = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", ())]
    assigned = re.findall(r"(?m)^(\w+) = ", "".join(cell["source"]))
    assert {*cell["metadata"]["quick"]} == {*assigned}


def test_the_page_lists_every_notebook():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d-[a-z-]+\.ipynb)\)", page) == [path.name for path in NOTEBOOKS]


def execute(path: Path, folder: Path, environment: Mapping[str, str], quick: bool) -> None:
    notebooks = pytest.importorskip("benchmarks.notebooks", exc_type=ImportError)  # needs jaxgen[notebooks]
    notebook = notebooks.read(path)
    notebook = notebooks.shortened(notebook) if quick else notebooks.with_answers(notebook)
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "IPYTHONDIR": str(folder / "ipython")}
    notebooks.run(notebook, folder, {**environment, **own})


@each
@pytest.mark.notebooks
def test_the_notebook_runs_with_few_steps(path, tmp_path, quick_environment):
    execute(path, tmp_path, quick_environment, quick=True)


@each
@pytest.mark.slow
def test_the_whole_notebook_and_its_answers_run(path, tmp_path):
    execute(path, tmp_path, os.environ, quick=False)
