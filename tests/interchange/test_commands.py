"""``jaxgen export`` and ``jaxgen import`` as commands, and PyTorch's logits of what was exported."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from builders import language_config, write

import jaxgen
from jaxgen.cells.torch import TORCH_KINDS
from jaxgen.cli.main import main
from jaxgen.inference.loading import LoadedRun
from jaxgen.interchange.weights import TORCH_CELLS, read_weights

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("quick_compiles")]

PAGE = Path(__file__).parents[2] / "docs" / "interchange.md"


def call(*args: object) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of ``jaxgen`` with these arguments."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), io.StringIO()
    patched = mock.patch.object(sys, "argv", ["jaxgen", *map(str, args)])
    with patched, contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    out.flush()
    return code, out.buffer.getvalue().decode(), err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, book):
    """From a cell (and other settings) to a run of no steps, whose weights are random."""
    made: dict[str, Path] = {}

    def train(cell: str, **more: object) -> Path:
        name = "-".join([cell, *map(str, more.values())])
        if name not in made:
            folder = tmp_path_factory.mktemp("run") / name
            jaxgen.start(language_config(book, folder, cell=cell, layers=2, steps=0, **more))
            made[name] = folder
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        yield train


SAMPLE = ["--prompt", "The", "--length", "60", "--num-samples", "2", "--seed", "3"]


@pytest.mark.parametrize(
    ("to", "more"),
    [("safetensors", {"documents": "line", "embed": 0}), ("safetensors", {"level": "word"}), ("torch", {"tie": True})],
    ids=str,
)
def test_an_exported_run_is_imported_with_the_same_texts(to, more, trained, tmp_path, book):
    run, file, copy = trained("lstm", **more), tmp_path / "model.safetensors", tmp_path / "copy"
    text = write(tmp_path / "text.txt", 50 * book.read_text())  # the default one takes seconds to read
    code, out, err = call("export", "--run", run, "--to", to, "--output", file)
    assert (code, out) == (0, ""), err
    code, out, err = call("import", file, "--run", copy, "--data", text)
    assert (code, out) == (0, ""), err
    texts = [call("sample", "--run", each, *SAMPLE) for each in (run, copy)]
    assert texts[0][0] == 0, texts[0][2]
    assert texts[0][:2] == texts[1][:2]
    scores = [call("score", "--run", each, "--text", "The cat") for each in (run, copy)]
    assert scores[0][0] == 0, scores[0][2]
    assert scores[0][:2] == scores[1][:2]


def test_the_header_says_what_the_model_is(trained, tmp_path):
    file = tmp_path / "model.safetensors"
    assert call("export", "--run", trained("lstm"), "--to", "safetensors", "--output", file)[0] == 0
    arrays, about = read_weights(str(file))
    known = ("lstm", "8", "2", str(len(arrays["embedding"])))
    assert tuple(about[name] for name in ("cell", "hidden", "layers", "vocabulary")) == known
    kernel = LoadedRun.open(trained("lstm")).params()[1]["stack"]["cells_1"]["recurrent_kernel"]
    np.testing.assert_array_equal(arrays["stack.cells_1.recurrent_kernel"], kernel)


@pytest.mark.parametrize("cell", TORCH_CELLS)
def test_pytorch_computes_the_logits_of_what_was_exported(cell, trained, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    run, file = trained(cell), tmp_path / "model.safetensors"
    assert call("export", "--run", run, "--to", "torch", "--output", file)[0] == 0
    (program,) = re.findall(r"```python\n(class .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope = {"torch": torch}
    exec(compile(program, "docs/interchange.md", "exec"), scope)
    kind = TORCH_CELLS[cell]
    rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(kind, torch.nn.RNN)
    options = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    entries = load_file(file)
    model = scope["LanguageModel"](len(entries["embedding.weight"]), 8, 8, 2, rnn, **options)
    model.load_state_dict(entries)
    sampler = jaxgen.Sampler.load(run)
    ids = sampler.prompt_ids("The cat ")
    with torch.no_grad():
        logits = model(torch.tensor(ids[None].tolist()))[0][0, -1].numpy()
    np.testing.assert_allclose(np.asarray(sampler.read("The cat ").logits[0]), logits, rtol=1e-4, atol=1e-5)


def test_every_kind_of_pytorch_has_a_cell():
    assert {*TORCH_CELLS.values()} == {*TORCH_KINDS}


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        ("--output x", 2, "--to"),
        ("--to torch", 2, "--output"),
        ("--to onnx --output x", 2, "onnx"),
        ("--to torch --output no/where", 2, "folder"),
        ("--to torch --output x --label a", 2, "--label"),
        ("--to stablehlo --output x --label a", 2, "label"),
        ("--to torch --output x --run nowhere", 4, "nowhere"),
    ],
)
def test_an_export_that_cannot_be_is_refused(flags, code, word, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = [] if "--run" in flags else ["--run", trained("lstm")]
    if "stablehlo" in flags:
        pytest.importorskip("flatbuffers")
    done = call("export", *run, *flags.split())
    assert done[0] == code, done[2]
    assert word in done[2]
    assert not list(tmp_path.iterdir())


def check_labels(run, file):
    """The state in the archive is that of the label."""
    pytest.importorskip("flatbuffers")
    code, _, err = call("export", "--run", run, "--to", "stablehlo", "--output", file, "--label", "b")
    assert code == 0, err
    with zipfile.ZipFile(file) as archive:
        state = dict(np.load(archive.open("state.npz")))
    sampler = jaxgen.Sampler.load(run)
    expected = {label: np.asarray(sampler.conditioned(label).initial_state().carry[0]) for label in "ab"}
    np.testing.assert_array_equal(state["carry.0"], expected["b"])
    assert not np.array_equal(state["carry.0"], expected["a"])


def test_models_that_a_format_cannot_hold_are_refused(trained, tmp_path, book):
    torch, file = ("--to", "torch", "--output", tmp_path / "x"), str(tmp_path / "table.csv")
    code, _, err = call("export", "--run", trained("lstm", embed=0), *torch)
    assert (code, "one-hot" in err) == (2, True), err
    code, _, err = call("export", "--run", trained("lstm", softmaxes=2), *torch)
    assert (code, "--softmaxes" in err) == (2, True), err
    write(file, "text,kind\n" + "".join(f"the cat sat {i},{'ab'[i % 2]}\n" for i in range(80)))
    labels = {
        "text_column": "text",
        "label_column": "kind",
        "embed": 8,
        "steps": 0,
        "val_fraction": 0.3,
    }
    jaxgen.start(language_config(file, tmp_path / "labelled", **labels))
    code, _, err = call("export", "--run", tmp_path / "labelled", *torch)
    assert (code, "labels" in err) == (2, True), err
    check_labels(tmp_path / "labelled", tmp_path / "x")
    assert call("export", "--run", tmp_path / "labelled", "--to", "safetensors", "--output", tmp_path / "x")[0] == 0
    code, _, err = call("import", tmp_path / "x", "--run", tmp_path / "copy")
    assert (code, "labels" in err) == (3, True), err
    counted = {"model": "ngram", "cell": "lstm", "hidden": 256, "batch_size": 4}
    jaxgen.start(language_config(book, tmp_path / "counted", **counted)).train()
    code, _, err = call("export", "--run", tmp_path / "counted", *torch)
    assert (code, "ngram" in err) == (2, True), err


def test_an_import_that_cannot_be_is_refused(trained, tmp_path):
    assert call("import")[0] == 2
    write(tmp_path / "x", "no weights")
    assert call("import", tmp_path / "x", "--tokenizer", "byte", "--run", tmp_path / "copy")[0] == 3
    assert call("export", "--run", trained("lstm"), "--to", "torch", "--output", tmp_path / "x")[0] == 0
    code, _, err = call("import", tmp_path / "x", "--tokenizer", "byte")
    assert (code, "--tokenizer" in err) == (2, True), err
    code, _, err = call("import", tmp_path / "x", "--run", trained("lstm"))
    assert (code, "--run" in err) == (2, True), err
