"""The documentation site: examples in docstrings, examples of its pages, generated pages and links."""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from functools import partial
from operator import attrgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxgen
from jaxgen.cli.flags import COMMON
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.cli.score import ScoreConfig
from jaxgen.tasks.registry import DATA

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
#: What the examples of docstrings have imported.
SCOPE = {"jax": jax, "jaxgen": jaxgen, "jnp": jnp, "nn": nn, "np": np, "optax": optax, "partial": partial}
#: Names without an example: registries, which are dictionaries, and an error that only a failing training raises.
WITHOUT = {
    "AVERAGES",
    "BLOCKS",
    "CELLS",
    "OPTIMIZERS",
    "SCHEDULES",
    "TASKS",
    "TOKENIZERS",
    "TRANSFORMS",
    "DivergedError",
}
NAMES = sorted({*dir(jaxgen)} - WITHOUT - {"__version__"})
NAMES += [f"callbacks.{name}" for name in vars(jaxgen.callbacks) if not name.startswith("_") and name != "Callback"]
PARTS = {**jaxgen.TOKENIZERS, **jaxgen.TRANSFORMS}
TEXT = "the cat sat on the mat. a dog ran over the hill.\n" * 40
SIZES = {"holdout": 0.2, "cell": "elman", "hidden": 8, "steps": 2, "batch_size": 4, "seq_len": 8}
PLUGIN = "import jaxgen\n\n\nclass MyCell(jaxgen.Elman):\n    pass\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick):
    """A folder with a text, a plugin, and a run of a language model and of a classifier."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, quick():
        patch.chdir(folder)
        Path("book.txt").write_text(TEXT)
        Path("mycells.py").write_text(PLUGIN)
        Path("reviews.csv").write_text("text,label\n" + "a good film,good\na bad film,bad\n" * 40)
        jaxgen.start(jaxgen.LanguageConfig(data="book.txt", run="runs/language-1", **SIZES)).train()
        columns = {"text_column": "text", "label_column": "label"}
        sizes = {"hidden": 4, "steps": 2, "batch_size": 4}
        jaxgen.start(jaxgen.ClassifyConfig(data="reviews.csv", run="runs/classify-1", **columns, **sizes)).train()
    return folder


@pytest.fixture
def folder(trained, monkeypatch, tmp_path, without_plugins, quick_compiles):
    """The current folder is ``trained``; what examples cache goes elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(trained)
    return trained


def run_example(value, name, capsys):
    """Run the example in the docstring of a class or function."""
    (found,) = doctest.DocTestFinder(recurse=False).find(value, name, globs=dict(SCOPE))
    assert found.examples, f"{name} has no example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(found)
    assert not runner.failures, capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_gives_what_it_says(name, folder, capsys):
    run_example(attrgetter(name)(jaxgen), f"jaxgen.{name}", capsys)


@pytest.mark.parametrize("part", PARTS)
def test_the_example_of_a_tokenizer_or_transform_gives_what_it_says(part, capsys):
    run_example(PARTS[part], part, capsys)


def run_page(page, first=0, **replaced):
    """Run the Python examples of a page from the ``first`` on, with some of their text replaced."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[first:])
    for there, here in replaced.items():
        assert there in code
        code = code.replace(there, here)
    exec(compile(code, f"docs/{page}.md", "exec"), {})


@pytest.mark.parametrize("page", ["exactness", "files", "fine_tuning", "mixtures"])
def test_the_examples_of_a_page_run_in_a_folder_with_a_run(page, folder):
    run_page(page)


def test_the_examples_of_looking_inside_run(folder):
    text = {r"ROMEO:\nBut soft, what light\n": r"the cat sat\n" * 20, "c:110": "h:1", '["c"]': '["h"]'}
    run_page("inside", **{"runs/inside/shakespeare": "runs/language-1", **text})


@pytest.mark.slow
def test_the_first_example_trains_and_writes(folder, capsys):
    run_page("start", preset="steps=2, preset")
    assert len(capsys.readouterr().out) >= 200


def test_the_engine_of_the_page_on_serving_streams_a_text(folder, capsys):
    run_page("serving", first=1)  # the first asks a server: tests/server
    assert len(capsys.readouterr().out) == 100


@pytest.fixture(scope="module")
def generated():
    """The module that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_the_page_of_flags_has_the_flags_of_every_command(generated):
    page = generated.flags_page()
    kinds = [SampleConfig, ScoreConfig, *(data.Config for data in DATA.values())]
    names = (
        {name for kind in kinds for name in kind.model_fields} | {flag.name for flag in COMMON} | {"top_p", "resume"}
    )
    assert {name for name in names if f"| `--{name.replace('_', '-')}` |" not in page} == set()


def test_the_page_of_names_has_every_public_name(generated):
    page = generated.api_page()
    shown = {*re.findall(r"(?m)^(?:\.\. auto\w+:: jaxgen\.|### )(\w+)$", page)}
    assert shown == {*dir(jaxgen)} - {"__version__"}
    assert "jaxgen.callbacks.EarlyStopping" in page


def test_the_page_of_parts_describes_every_part(generated):
    page = generated.parts_page()
    parts = [*jaxgen.CELLS, *jaxgen.BLOCKS, *jaxgen.TOKENIZERS, *jaxgen.TRANSFORMS]
    assert [part for part in parts if not re.search(rf"(?m)^\| `{part}` \| \S", page)] == []


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_to_a_heading_lead_to_one(page):
    for target, anchor in re.findall(r"\]\(([^):]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"(?m)^[\w/]+$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {*listed} == {"index"}
