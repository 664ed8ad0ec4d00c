"""The StableHLO archive: its program draws the sampler's texts in a process that has no jaxgen."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import language_config

import jaxgen
from jaxgen.cells import CELLS
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.interchange.stablehlo import PLATFORMS, export_stablehlo
from jaxgen.models.blocks import BLOCKS
from jaxgen.sampling.transforms import MinP, TopK, TopP
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import CharTokenizer

pytest.importorskip("flatbuffers")
#: As in the processes: with other optimisations the bits would differ.
pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "interchange.md"
#: Blocks the import of jaxgen, then runs the program of the page with its last line replaced.
ALONE = """
import sys
sys.modules["jaxgen"] = None
exec(compile({program!r}, "docs/interchange.md", "exec"))
import json
print(json.dumps([write(**case) for case in json.loads(sys.argv[2])]))
"""


def random_sampler(cell: str = "gru", *, documents: bool = False, layers: int = 2, block: str = "plain") -> Sampler:
    """A model whose weights are large enough that what was read matters for what is drawn."""
    tokenizer = CharTokenizer.train(["abcdefgh \n"])
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden": 8, "layers": layers}
    task = LanguageTask.build(cell=cell, cell_options={}, block=block, **sizes)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes)
    return Sampler(task, tokenizer, params, documents=documents)


def write_alone(data: bytes, cases: list[dict], folder: Path, environment: dict[str, str]) -> list[str]:
    """What the program on the page writes, in a process of its own."""
    (folder / "model.zip").write_bytes(data)
    program = re.search(r"```python\n(.*?)\nprint", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    code = ALONE.format(program=program)
    command = [sys.executable, "-I", "-c", code, str(folder / "model.zip"), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(export_stablehlo(random_sampler("elman", layers=1))))


def test_the_archive_is_for_every_platform_and_the_same_each_time(archive):
    for name in ("prefill", "step", "draw"):
        assert jax.export.deserialize(bytearray(archive.read(f"{name}.bin"))).platforms == PLATFORMS
    again = zipfile.ZipFile(io.BytesIO(export_stablehlo(random_sampler("elman", layers=1))))
    same = ["manifest.json", "weights.npz", "state.npz"]
    assert [archive.read(name) == again.read(name) for name in same] == [True] * 3


def test_the_step_of_the_archive_is_that_of_the_sampler(archive):
    sampler = random_sampler("elman", layers=1)
    weights, state = (dict(np.load(archive.open(f"{name}.npz"))) for name in ("weights", "state"))
    step = jax.export.deserialize(bytearray(archive.read("step.bin"))).call
    expected = sampler.initial_state()
    for token in (4, 7):
        state = step(weights, state, np.array([token], np.int32))
        expected, logits = sampler.step(expected, token)
        np.testing.assert_array_equal(state["logits"][0], logits)
    assert int(state["t"]) == 0  # nothing was drawn


@pytest.mark.runs
def test_without_jaxgen_the_texts_are_the_samplers_bit_for_bit(tmp_path, quick_environment):
    sampler, prompt = random_sampler(), "abc d" * 14  # longer than a chunk of the prefill
    settings = [
        (prompt, 3, GenerationConfig(70, seed=5)),
        ("", 0, GenerationConfig(40, 0.0)),
        ("h", 2**31, GenerationConfig(40, 1.3, 2**32 - 1, (TopK(5), TopP(0.9), MinP(0.01)))),
    ]
    cases = [
        {"prompt": prompt, "length": 70, "seed": 5, "sample": 3},
        {"prompt": "", "length": 40, "temperature": 0},
        {"prompt": "h", "length": 40, "temperature": 1.3, "seed": 2**32 - 1, "sample": 2**31, "top_k": 5}
        | {"top_p": 0.9, "min_p": 0.01},
    ]
    expected = [given + sampler.sample(given, each, first=first)[0] for given, first, each in settings]
    assert write_alone(export_stablehlo(sampler), cases, tmp_path, quick_environment) == expected
    assert len({*expected}) == 3


@pytest.mark.runs
def test_documents_begin_and_end_as_the_samplers(tmp_path, quick_environment):
    sampler = random_sampler("lstm", documents=True)
    cases = [{"prompt": prompt, "length": 80, "sample": i} for prompt in ("", "ab") for i in range(3)]
    expected = [
        each["prompt"] + sampler.sample(each["prompt"], GenerationConfig(80), first=each["sample"])[0] for each in cases
    ]
    assert write_alone(export_stablehlo(sampler), cases, tmp_path, quick_environment) == expected
    assert any(len(text) < 80 for text in expected)


@pytest.mark.slow
@pytest.mark.runs
def test_the_program_of_the_page_writes_what_the_command_writes(tmp_path, book):
    run, environment = tmp_path / "run", {**os.environ, "JAX_PLATFORMS": "cpu"}
    jaxgen.start(language_config(book, run, cell="lstm", hidden=32, steps=0))
    program = re.search(r"```python\n(import json.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    texts = []
    for command in (
        ["-m", "jaxgen", "export", "--run", run, "--to", "stablehlo", "--output", tmp_path / "model.zip"],
        ["-m", "jaxgen", "sample", "--run", run, "--prompt", "The ", "--length", 100, "--seed", 7],
        ["-I", "-c", f"import sys; sys.modules['jaxgen'] = None\n{program}", tmp_path / "model.zip"],
    ):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert len(texts[1]) > 100
    assert texts[1] == texts[2]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_exported_in_every_block(cell, block):
    archive = zipfile.ZipFile(io.BytesIO(export_stablehlo(random_sampler(cell, block=block))))
    assert jax.export.deserialize(bytearray(archive.read("draw.bin"))).platforms == PLATFORMS
