"""Runs the notebooks of ``docs/notebooks`` and writes their outputs into them.

    python -m benchmarks.notebooks                   all of them: a quarter of an hour on two CPU cores
    python -m benchmarks.notebooks 3-four-shapes     this one

A new kernel runs each notebook from top to bottom in an empty folder. Needs the extra jaxgen[notebooks].
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "notebooks"
#: Seconds that a cell may take.
TIMEOUT = 900
#: Python code in the text of a notebook, which is that of answers to exercises.
ANSWER = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def read(path: Path) -> NotebookNode:
    """Returns the notebook in a file."""
    return nbformat.read(path, as_version=4)


def shortened(notebook: NotebookNode) -> NotebookNode:
    """Returns a copy that trains for a few steps only.

    The cell with the tag ``parameters`` has the short values in its metadata, as ``quick``. As with papermill, a cell
    that assigns them follows it.
    """
    short = copy.deepcopy(notebook)
    for index, cell in enumerate(notebook.cells):
        if "quick" in cell.metadata:
            assignments = "\n".join(f"{name} = {value!r}" for name, value in cell.metadata.quick.items())
            short.cells.insert(index + 1, v4.new_code_cell(assignments))
    return short


def with_answers(notebook: NotebookNode) -> NotebookNode:
    """Returns a copy in which the code of answers to exercises is run too, unless it downloads data."""
    solved = copy.deepcopy(notebook)
    solved.cells = []
    for cell in notebook.cells:
        solved.cells.append(copy.deepcopy(cell))
        if cell.cell_type == "markdown":
            answers = [code for code in ANSWER.findall(cell.source) if "# downloads" not in code]
            solved.cells += map(v4.new_code_cell, answers)
    return solved


def run(notebook: NotebookNode, folder: Path, environment: Mapping[str, str] = os.environ) -> NotebookNode:
    """Runs a notebook in ``folder``; its cells get their outputs.

    Raises:
        CellExecutionError: A cell raised an exception.
    """
    first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)}  # the command jaxgen, and the package
    paths = {name: os.pathsep.join(filter(None, [path, environment.get(name)])) for name, path in first.items()}
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # no warning that messages on this machine are not encrypted
        record_timing=False,
        coalesce_streams=True,
    )
    return client.execute(env={**environment, **paths})


def update(path: Path) -> None:
    """Runs the notebook in a file and writes it back with its outputs, without what differs between machines."""
    notebook = read(path)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def main() -> None:
    """Updates the notebooks that are named, or all."""
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        began = time.perf_counter()
        update(path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
