"""Scores, answers, states, what the model computes, metrics, and the lines of the documents."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_sampler
from PIL import Image
from serving import folder_of_runs, served, train_answering

from jaxgen.cells import CELLS
from jaxgen.cli.serve import open_models
from jaxgen.inference.adaptation import Adaptation
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.inspection import clamped, inspect_text
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.receipts import read_receipt, replay
from jaxgen.inference.run_facts import curves
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import interpolate
from jaxgen.models.blocks import BLOCKS
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.server.completions import Limits
from jaxgen.server.models import Loaded, Served

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
COMMANDS = re.findall(r"^curl .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_scores_are_those_of_the_scorer(server, tiny):
    found = server.post("/v1/score", text=["abc", "hg"], prompt="d", top=2).json()["data"]
    for text, each in zip(("abc", "hg"), found):
        expected = Scorer(tiny, top=2).details(text, "d")
        assert each["logp"] == expected.score.logp
        assert [token["logp"] for token in each["per_token"]] == np.round(
            expected.tokens.logp.astype(float), 6
        ).tolist()
        assert [[best["id"] for best in token["top"]] for token in each["per_token"]] == expected.tokens.top.tolist()
    assert server.post("/v1/score", text="xyz").status_code == 400


def test_a_state_is_continued_branched_and_interpolated(server, tiny, tmp_path):
    names = {}
    for text in ("abc", "hgf"):
        names[text] = server.post("/v1/states", prompt=text).json()["id"]
    states = {text: tiny.read(text) for text in names}
    settings = GenerationConfig(20, 1.0, 3)
    for prompt in ("", "d", "e"):  # branches
        (choice,) = server.complete(state=names["abc"], prompt=prompt, max_tokens=20, seed=3)
        assert choice["text"] == tiny.sample(prompt, settings, state=states["abc"])[0]
    between = server.post("/v1/states", state=names["abc"], to=names["hgf"], weight=0.25).json()
    (choice,) = server.complete(state=between["id"], max_tokens=20, seed=3)
    assert choice["text"] == tiny.sample("", settings, state=interpolate(states["abc"], states["hgf"], 0.25))[0]
    longer = server.post("/v1/states", state=names["abc"], tokens=[4, 5]).json()["id"]
    (choice,) = server.complete(state=longer, max_tokens=20, seed=3)
    assert choice["text"] == tiny.sample("", settings, state=tiny.read_tokens([4, 5], states["abc"]))[0]
    file = tmp_path / choice["receipt"]["state"]["file"]
    file.write_bytes(server.http.get(f"/v1/states/{longer}").content)
    loaded = tiny.load_state(file)
    assert tiny.sample("", settings, state=loaded) == [choice["text"]]
    assert server.http.delete(f"/v1/states/{longer}").json()["deleted"]
    assert server.http.get(f"/v1/states/{longer}").status_code == 404
    for body in ({"to": names["abc"]}, {"tokens": [99]}, {"tokens": [4], "prompt": "a"}, {"state": "state-1"}):
        assert server.post("/v1/states", **body).status_code in (400, 404)


def test_a_state_of_another_model_is_refused(serve, tiny):
    with serve([served(tiny), served(tiny.with_condition(None), "other")]) as running:
        name = running.post("/v1/states", model="tiny", prompt="a").json()["id"]
        assert running.post("/v1/completions", model="other", state=name).status_code == 400
        assert running.post("/v1/completions", state=name).status_code == 400  # which model?


def test_the_distribution_of_the_next_token_and_hidden_units_are_shown(server, tiny):
    found = server.post("/v1/inspect", text="abc", top=3, top_k=2, temperature=0.5, units=["0:h:0", "1:7"]).json()
    assert found["next"][0]["after"] == "the model"
    assert found["next"][-1]["tokens"] == 2
    logits = np.asarray(tiny.read("abc").logits[0], np.float64)
    logp = logits - np.log(np.exp(logits).sum())
    best = np.argsort(-logp)[:3]
    assert [each["id"] for each in found["next"][0]["top"]] == best.tolist()
    np.testing.assert_allclose([each["logp"] for each in found["next"][0]["top"]], logp[best], atol=1e-4)
    assert "".join(found["tokens"]) == "abc"
    seen = inspect_text(tiny, "abc")
    for unit in ("0:h:0", "1:7"):
        assert found["units"][unit] == seen.unit(unit).values.tolist()
    assert server.post("/v1/inspect", text="abc", units=["0:h:8"]).status_code == 400


def test_units_that_tell_a_feature_are_found(server, tiny):
    text = "abcdefgh" * 20
    found = server.post("/v1/inspect", text=text, find="[ab]", array="1:h").json()
    seen = inspect_text(tiny, text)
    units = seen.find("[ab]")
    assert found["found"]["score"] == units.score
    assert found["found"]["chance"] == units.chance
    assert [each["unit"] for each in found["found"]["units"]] == [str(each.unit) for each in units.units]
    assert found["arrays"] == {name: array.shape[1] for name, array in seen.arrays.items()}
    np.testing.assert_allclose(found["array"], seen.states[1]["h"], atol=6e-4)
    for wrong in ({"find": "("}, {"find": "(?au)a"}, {"array": "9:h"}, {"find": "x"}):
        assert server.post("/v1/inspect", text=text, **wrong).status_code == 400


#: States that differ: a window of steps, a matrix, complex numbers, two arrays, and a block with a state of its own.
#: `pytest -m slow` has the others.
TOLD_APART = [("attention", "plain"), ("gla", "plain"), ("lru", "plain"), ("lstm", "plain"), ("lstm", "griffin")]
EVERY = [*((cell, "plain") for cell in CELLS), *(("lstm", block) for block in BLOCKS if block != "plain")]


@pytest.mark.runs
@pytest.mark.parametrize(
    ("cell", "block"),
    [*TOLD_APART, *(pytest.param(*each, marks=pytest.mark.slow) for each in EVERY if each not in TOLD_APART)],
)
def test_every_cell_and_block_is_shown_and_a_unit_of_it_is_held(server, monkeypatch, cell, block):
    """What the state is called comes from the cell."""
    sampler, text = tiny_sampler(cell, block=block, block_options={}), "abcdefgh" * 2
    monkeypatch.setitem(server.server.models.by_name, "other", served(sampler, "other"))
    found = server.post("/v1/inspect", model="other", text=text, units=[]).json()
    seen = inspect_text(sampler, text)
    assert found["arrays"] == {name: array.shape[1] for name, array in seen.arrays.items()}
    assert found["gates"] == [f"{layer}:{name}" for layer, gates in enumerate(seen.gates) for name in gates]
    np.testing.assert_allclose(found["distance"], seen.distance.T, atol=1e-4)
    unit = next(f"0:{name}:3" for name in seen.states[0] if name != "conv")
    body = {"model": "other", "clamp": {unit: 0.75}}
    found = server.post("/v1/inspect", **body, text=text, units=[unit]).json()
    assert set(found["units"][unit]) == {0.75}
    (choice,) = server.complete(**body, prompt="abc", max_tokens=20, seed=3)
    held = clamped(sampler, {unit: 0.75})
    assert choice["text"] == held.sample("abc", GenerationConfig(20, 1.0, 3))[0]


def test_a_held_unit_is_in_the_receipt_and_replayed(server, tiny):
    (choice,) = server.complete(prompt="abc", max_tokens=20, seed=3, clamp={"0:h:2": 3, "1:4": -1.0})
    saved = choice["receipt"]
    assert saved["clamp"] == {"0:h:2": 3.0, "1:h:4": -1.0}
    assert replay(tiny, read_receipt(saved)).identical
    assert not replay(tiny, read_receipt({**saved, "clamp": {}})).identical
    for wrong in ({"0:h:8": 1.0}, {"9:0": 1.0}, {"x": 1.0}, {"0:h:0": "a"}):
        assert server.post("/v1/completions", prompt="a", clamp=wrong).status_code == 400, wrong


def test_a_slow_regular_expression_ends(server, monkeypatch):
    monkeypatch.setattr("jaxgen.inference.inspection.SECONDS", 0.2)
    response = server.post("/v1/inspect", text="a" * 199 + "b", find="(a|a)*c|b")
    assert response.status_code == 400
    assert "seconds" in response.json()["error"]["message"]


def test_runs_are_listed_with_their_curves_while_one_trains(serve, tiny, tmp_path):
    folder = folder_of_runs(tmp_path / "runs")
    log = MetricsLog(folder / "first" / "metrics.jsonl")
    with serve([served(tiny)], runs=folder) as running:
        listed = running.http.get("/v1/runs").json()
        assert {each["id"] for each in listed["data"]} == {"first", "sweep/second"}
        assert listed["left_out"] == 1
        assert not any(each["training"] for each in listed["data"])
        found = running.http.get("/v1/runs/sweep/second").json()["curves"]
        rows = log.read()
        assert found["val_loss"] == [[row["step"], row["val_loss"]] for row in rows]
        assert listed["data"][0]["best"] == min(row["val_loss"] for row in rows)
        lock = RunLock.take(folder / "first")
        try:
            log.append({"step": 9_000, "train_loss": 1.0, "val_loss": float("nan")})
            first, second = running.http.get("/v1/runs").json()["data"]
            assert (first["id"], first["step"], first["training"], second["training"]) == ("first", 9_000, True, False)
        finally:
            lock.release()
        found = running.http.get("/v1/runs/first").json()["curves"]
        assert found["train_loss"][-1] == [9_000, 1.0]
        assert len(found["val_loss"]) == len(rows)
        for name in ("damaged", "empty", "nothing", "..%2Fruns%2Ffirst", str(folder / "first")):
            assert running.http.get(f"/v1/runs/{name}").status_code == 404, name


def test_long_curves_are_thinned_and_end_with_the_last_point(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(f'{{"step": {step}, "train_loss": {step / 2}}}\n' for step in range(1, 1_235)))
    found = curves(RunDirectory(tmp_path), "val_loss")
    assert found["train_loss"][-1] == (1_234, 617.0)
    assert 400 < len(found["train_loss"]) <= 500
    assert found["val_loss"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="memory of a process is not limited there")
@pytest.mark.parametrize("expression", ["(?R)", "(?:a{60000}){60000}"])
def test_a_regular_expression_that_needs_much_memory_is_refused(server, monkeypatch, expression):
    monkeypatch.setattr("jaxgen.inference.inspection.MEMORY", 2**28)
    response = server.post("/v1/inspect", text="a" * 199 + "b", find=expression)
    assert response.status_code == 400
    assert "memory" in response.json()["error"]["message"]


def test_more_probabilities_than_a_response_may_have_are_refused(server, serve, tiny):
    with serve([served(tiny)], Limits(prompt=100_000)) as running:
        for path, body in (
            ("score", {"text": ["a" * 50_000] * 2, "top": 100}),
            ("inspect", {"text": "a" * 100_000, "units": ["0:h:0"] * 60}),
        ):
            response = running.post(f"/v1/{path}", **body)
            assert response.status_code == 400
            assert "probabilities" in response.json()["error"]["message"]


def test_scores_and_units_of_adapted_weights_are_refused(serve, tiny):
    before = tiny.adapt("abcd " * 30, adaptation=Adaptation(segment=16))
    adapted = Served.of("tiny", "language", lambda: Loaded(tiny, None, before), [])
    with serve([adapted]) as running:
        for path, body in (("score", {"text": "ab"}), ("inspect", {"text": "ab", "units": ["0"]})):
            response = running.post(f"/v1/{path}", **body)
            assert response.status_code == 400
            assert "--adapt-to" in response.json()["error"]["message"]
        assert running.post("/v1/inspect", text="ab").status_code == 200
        (choice,) = running.complete(prompt="ab", max_tokens=20, seed=3)
        assert choice["text"] == tiny.sample("ab", GenerationConfig(20, 1.0, 3), state=before)[0]


def test_metrics_count_requests_and_tokens(server):
    before = server.server.engine.tokens
    server.complete(prompt="ab", max_tokens=40)
    page = server.http.get("/metrics").text
    assert re.search(r'jaxgen_requests_total\{path="/v1/completions",status="200"\} \d+', page)
    assert server.server.engine.tokens >= before + 40
    assert "jaxgen_waiting 0.0" in page


def test_the_schema_lists_the_routes(server):
    schema = server.http.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/predict", "/v1/score", "/v1/inspect", "/v1/states"} <= set(schema["paths"])


@pytest.fixture(scope="module")
def answering(tmp_path_factory, serve, quick_compiles):
    """A server of a classifier and a captioner, and the folders of both."""
    folder = tmp_path_factory.mktemp("answers")
    with serve(train_answering(folder)) as running:
        yield running, folder


def test_answers_are_those_of_the_predictor(answering):
    running, folder = answering
    texts = ["fish wave", "road"]
    found = running.post("/v1/predict", model="classify", input=texts).json()["data"]
    predictor = Predictor.load(folder / "classify")
    expected = list(predictor.predict(texts))
    assert predictor.digest == LoadedRun.open(folder / "classify").params_and_digest()[2]
    assert running.http.get("/v1/models/classify").json()["checkpoint"] == predictor.digest
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected, default=float))
    assert running.post("/v1/completions", model="classify", prompt="a").status_code == 400


def test_an_image_is_captioned(answering):
    running, folder = answering
    file = folder / "photos" / "1.png"
    (expected,) = Predictor.load(folder / "caption").predict([file])
    data = base64.b64encode(file.read_bytes()).decode()
    for image in (data, f"data:image/png;base64,{data}"):
        (found,) = running.post("/v1/predict", model="caption", image=image).json()["data"]
        assert found["text"] == expected["text"]
        assert found["image"] is None
    broken = io.BytesIO()
    Image.new("RGB", (4, 4)).save(broken, "PNG")
    for image in ("no base64!", base64.b64encode(b"text").decode(), base64.b64encode(broken.getvalue()[:40]).decode()):
        response = running.post("/v1/predict", model="caption", image=image)
        assert response.status_code == 400
        assert "tmp" not in response.text
    assert running.post("/v1/predict", model="caption", input="a").status_code == 400
    assert running.post("/v1/predict", model="classify").status_code == 400


def test_attention_is_returned_for_few_inputs_of_a_model_that_has_it(answering):
    running, folder = answering
    models = {each["id"]: each for each in running.http.get("/v1/models").json()["data"]}
    assert (models["caption"]["attention"], models["classify"]["attention"]) == (True, False)
    file = folder / "photos" / "1.png"
    data = base64.b64encode(file.read_bytes()).decode()
    (found,) = running.post("/v1/predict", model="caption", image=data, attention=True).json()["data"]
    expected = Predictor.load(folder / "caption").attention(file)
    assert found["attention"]["written"] == expected.written
    assert found["attention"]["grid"] == expected.is_grid
    np.testing.assert_allclose(found["attention"]["weights"], expected.weights, atol=6e-5)
    for wrong in ({"input": "a"}, {"input": ["a"] * 17}):
        assert running.post("/v1/predict", model="classify", attention=True, **wrong).status_code == 400


@pytest.fixture(scope="module")
def shakespeare(serve):
    """A server of the model of the documents."""
    from jaxgen.cli.serve import ServeConfig

    with serve(open_models(ServeConfig(run=("pretrained:shakespeare",)))) as running:
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_curl_lines_of_the_page_run_as_written(shakespeare, command):
    words = shlex.split(command.replace("http://127.0.0.1:8000", shakespeare.url))
    done = subprocess.run(
        [*words, "--fail-with-body", "--max-time", "300"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_the_example_of_the_page_runs_as_written(shakespeare, capsys):
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "OpenAI" in b)
    exec(compile(block.replace("http://127.0.0.1:8000", shakespeare.url), "docs/serving.md", "exec"), {})
    assert len(capsys.readouterr().out) == 101


def test_the_engine_of_the_page_writes_the_text_of_the_sampler(capsys):
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1]
    exec(compile(block, "docs/serving.md", "exec"), {})
    settings = GenerationConfig(length=100, seed=3)
    assert capsys.readouterr().out == Sampler.load("pretrained:shakespeare").sample("ROMEO:", settings)[0]
