"""The page of ``jaxgen serve`` in a browser: what it shows is what the library computes."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex

import numpy as np
import pytest
from conftest import playwright
from PIL import Image
from serving import folder_of_runs, run_server, served, train_answering, wait_until

from jaxgen.colors import probability_color, signed_color
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.inspection import clamped, inspect_text
from jaxgen.inference.interpolation import interpolate_prompts
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.sampling.transforms import TopK
from jaxgen.server.completions import Limits

pytestmark = pytest.mark.browser
expect = playwright.expect
#: Text and background of each element of a coloured text.
READ = """box => [...box.children].map(each => [each.textContent, getComputedStyle(each).backgroundColor])"""
#: A file of these bytes as something that is dropped; the colour of a point of a canvas.
DROPPED = """data => {
    const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
    return transfer;
}"""
PIXEL = "canvas => [...canvas.getContext('2d').getImageData(15, 15, 1, 1).data].slice(0, 3)"
#: Tokens that take the page at least 500 frames.
LONG = 100_000
TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n" * 3


def write(page, prompt="ROMEO:", *, seed=0, length=60, **settings):
    """Generate a text with the page; returns when it has begun."""
    page.locator("#prompt").fill(prompt)
    for name, value in {"seed": seed, "max_tokens": length, "temperature": 0.8, **settings}.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_label("Keep it").check()
    page.get_by_role("button", name="Generate").click()


def finished(page):
    expect(page.locator("#status")).to_have_text("Done.")
    return page.locator("#output").evaluate(READ)


def check_colors(shown, colors):
    """The page computes colours from rounded numbers, so that they may differ by one."""
    parts = [[int(part) for part in color[4:-1].split(",")] for color in shown]
    np.testing.assert_allclose(parts, [*colors], atol=1)


def read_text(page, tab, button, text):
    page.get_by_role("tab", name=tab).click()
    panel = page.get_by_role("tabpanel", name=tab)
    panel.get_by_label("Text", exact=True).first.fill(text)
    panel.get_by_role("button", name=button).click()
    return panel


def test_the_text_is_that_of_the_sampler_with_its_probabilities_as_colours(server, sampler, open_page, capsys):
    page = open_page(server)
    write(page, top_k=20)
    (prompt, _), *tokens = finished(page)
    (sample,) = sampler.samples("ROMEO:", GenerationConfig(60, 0.8, 0, (TopK(20),)))
    assert prompt == "ROMEO:"
    assert "".join(text for text, _ in tokens) == sample.text
    check_colors((color for _, color in tokens), (probability_color(math.exp(each)) for each in sample.logp))
    command = shlex.split(page.locator("#receipt").text_content())
    assert command[:2] == ["jaxgen", "sample"]
    from jaxgen.cli.sample import main

    capsys.readouterr()
    assert main([*command[2:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == sample.text
    page.locator("#receipt-kind").select_option("python")
    exec(page.locator("#receipt").text_content(), {})
    assert capsys.readouterr().out == sample.text + "\n"
    page.locator("#receipt-kind").select_option("json")
    assert json.loads(page.locator("#receipt").text_content())["tokens"] == sample.tokens.tolist()


def test_an_alternative_begins_a_branch_and_undo_returns(server, sampler, open_page):
    page = open_page(server)
    write(page)
    before = finished(page)
    output, panel = page.locator("#output"), page.locator("#alternatives")
    output.locator("[tabindex='0']").focus()  # with the keyboard alone
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    prefix = "".join(text for text, _ in before[:10])
    logits = np.asarray(sampler.read(prefix).logits[0], np.float64)
    best = np.argsort(-logits)[:8].tolist()
    words = [sampler.tokenizer.decode([i]) for i in best]
    buttons = panel.get_by_role("button")
    expect(buttons).to_have_count(8)
    shown = [each.rsplit(" ", 2)[0] for each in buttons.all_text_contents()]
    assert shown == [word.replace(" ", "␣").replace("\n", "↵") for word in words]
    other = next(i for i, word in enumerate(words) if word != before[10][0])
    buttons.nth(other).press("Enter")
    expect(page.locator("#branches [aria-current]")).to_contain_text("token 10")
    expect(output.locator(":focus")).to_have_class(re.compile("forced"))  # the token that was picked has the focus
    branched = finished(page)
    expected = sampler.sample(prefix + words[other], GenerationConfig(60, 0.8, 0))[0]
    assert "".join(text for text, _ in branched) == prefix + words[other] + expected
    page.get_by_role("button", name="Undo").click()
    assert page.locator("#output").evaluate(READ) == before
    page.locator("#branches ul button").click()
    assert page.locator("#output").evaluate(READ) == branched


def test_stop_ends_a_text_at_once_and_frees_its_row(sampler, open_page):
    with run_server([served(sampler, "shakespeare")], Limits(tokens=LONG)) as running:
        page, engine = open_page(running), running.server.engine
        write(page, length=LONG)
        expect(page.locator("#output [role=button]").nth(2_000)).to_be_attached()
        page.get_by_role("button", name="Stop").first.click()
        expect(page.locator("#status")).to_have_text("Stopped.")
        expect(page.get_by_role("button", name="Stop").first).to_be_disabled()
        _, *tokens = stopped = page.locator("#output").evaluate(READ)
        wait_until(lambda: engine.load["rows"] == 0)
        assert page.locator("#output").evaluate(READ) == stopped
        (text,) = sampler.sample("ROMEO:", GenerationConfig(len(tokens), 0.8, 0))
        assert "".join(each for each, _ in tokens) == text
        expect(page.locator("#receipt")).to_contain_text(f"--length {len(tokens)} ")
        page.get_by_label("Length in tokens", exact=True).fill("20")
        page.get_by_role("button", name="Continue").click()  # what is there can be gone on with
        finished(page)
        assert page.locator("#output [role=button]").count() == len(tokens) + 20


def test_errors_are_shown_as_text(server, open_page):
    page = open_page(server)
    write(page, top_p=3)
    expect(page.get_by_role("alert")).to_contain_text("top-p")
    write(page, "<img src=x>", top_p=1)
    expect(page.get_by_role("alert")).to_contain_text("<")
    assert page.locator("img").count() == 0
    write(page)
    finished(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_three_temperatures_share_a_seed(server, sampler, open_page):
    page = open_page(server)
    write(page, length=40)
    finished(page)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Temperatures").fill("0.3, 0.8")
    page.get_by_role("tabpanel").get_by_role("button", name="Compare").click()
    expect(page.locator("#compare-stop")).to_be_enabled()
    expect(page.locator("#compare-stop")).to_be_disabled()
    texts = page.locator("#compared .tokens").all_text_contents()
    assert texts == ["ROMEO:" + sampler.sample("ROMEO:", GenerationConfig(40, t, 0))[0] for t in (0.3, 0.8)]


def test_texts_between_two_prompts_are_those_of_the_command(server, sampler, open_page):
    page = open_page(server)
    for name, value in {"seed": 5, "max_tokens": 40}.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_label("Keep it").check()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#way-steps").fill("3")
    page.get_by_role("button", name="Write all").click()
    expect(page.locator("#way .tokens")).to_have_count(3)
    expect(page.locator("#way-stop")).to_be_disabled()
    found = interpolate_prompts(sampler, "What is th", "I will no", GenerationConfig(40, 0.8, 5), steps=3)
    assert page.locator("#way .tokens").all_text_contents() == found.texts
    best = [sampler.tokenizer.decode([i]) for i in found.probabilities.argmax(axis=1).tolist()]
    titles = page.locator("#way h3").all_text_contents()
    assert [each.split("next ")[1].split()[0] for each in titles] == [word.replace(" ", "␣") for word in best]


def test_tokens_that_are_parts_of_a_character_are_one(server, open_page):
    page = open_page(server)
    found = page.evaluate(
        """async () => {
            const { Fitting } = await import("/static/write.js"), fitting = new Fitting();
            const token = (text) => ({ text, logp: -1, top: [] });
            fitting.add("a", [token("a"), token("\\\\xc3")]);
            fitting.take(9);
            const before = fitting.tokens.length;
            fitting.add("é\\\\x41b", [token("\\\\xa9"), token("\\\\x41b"), token("c")]);
            fitting.take(9);
            const tokens = fitting.tokens.map((each) => [each.text, each.logp]);
            return [before, tokens, fitting.isStuck, fitting.waiting.length];
        }"""
    )
    assert found == [1, [["a", -1], ["é", -2], ["\\x41b", -1]], False, 1]


def test_bits_and_the_most_surprising_places_are_shown(server, sampler, open_page):
    page = open_page(server)
    panel = read_text(page, "Surprise", "Show bits", TEXT)
    scored = Scorer(sampler).details(TEXT)
    expect(panel.locator("#bits")).to_contain_text(f"{scored.score.bits_per_char:.3f} bits per character")
    logp = scored.tokens.logp
    shown = (color for _, color in panel.locator("#scored").evaluate(READ))
    check_colors(shown, (probability_color(math.exp(each)) for each in logp))
    places = [float(each.split()[-2]) for each in panel.locator("#places li").all_text_contents()]
    np.testing.assert_allclose(places, np.sort(-logp / math.log(2))[::-1][:10], atol=0.06)
    panel.locator("#places button").first.click()
    expect(panel.locator("#scored .chosen")).to_have_count(1)
    expect(panel.locator("#scored-panel")).to_contain_text("bits")


def test_an_ngram_stands_beside_the_network(sampler, open_page, tmp_path):
    from jaxgen.cli.train import main as train

    (tmp_path / "text.txt").write_text(TEXT * 20)
    words = ["--model", "ngram", "--data", str(tmp_path / "text.txt"), "--run", str(tmp_path / "ngram")]
    assert train(words) == 0
    counts = Sampler.load(tmp_path / "ngram")
    with run_server([served(sampler, "shakespeare"), served(counts, "ngram")]) as running:
        page = open_page(running)
        page.get_by_role("tab", name="Surprise").click()
        page.get_by_label("Beside").select_option("ngram")
        panel = read_text(page, "Surprise", "Show bits", TEXT)
        own, other = (Scorer(each).details(TEXT) for each in (sampler, counts))
        expect(panel.locator("#bits")).to_contain_text(f"shakespeare: {own.score.bits_per_char:.3f} bits per character")
        expect(panel.locator("#beside-bits")).to_contain_text(f"ngram: {other.score.bits_per_char:.3f} bits per char")
        panel.get_by_label("Colours show").select_option("other")
        shown = (color for _, color in panel.locator("#scored").evaluate(READ))
        check_colors(shown, (probability_color(math.exp(each)) for each in other.tokens.logp))
        panel.get_by_label("By").select_option("worse")
        bits = (other.tokens.logp - own.tokens.logp) / math.log(2)
        assert panel.locator("#places li").count() == 10
        first = panel.locator("#places li").first.text_content().split()
        assert float(first[-5]) - float(first[-2]) == pytest.approx(bits.max(), abs=0.11)
        panel.locator("#places button").first.click()
        expect(panel.locator("#scored-panel")).to_contain_text("ngram:")


def test_units_are_shown_and_found_with_their_held_out_scores(server, sampler, open_page):
    page = open_page(server)
    panel = read_text(page, "Look inside", "Look inside", TEXT)
    seen = inspect_text(sampler, TEXT)
    expect(panel.locator("#unit-title")).to_have_text("Unit 0:c:0")
    for feature, words in (("line", None), ("", "[A-Z]+:")):
        panel.locator("#feature").select_option(feature)
        if words:
            panel.locator("#pattern").fill(words)
        panel.get_by_role("button", name="Find").click()
        found = seen.find(words or feature)
        expect(panel.locator("#verdict")).to_contain_text(found.verdict[1:])
        rows = panel.locator("#units tbody tr").evaluate_all("rows => rows.map(each => each.innerText.split(/\\s+/))")
        assert rows == [[str(each.unit), f"{each.chosen:.3f}", f"{each.score:.3f}"] for each in found.units]
    panel.locator("#units button").first.click()
    expect(panel.locator("#unit-title")).to_have_text(f"Unit {found.best}")
    values = seen.unit(found.best).values
    shown = (color for _, color in panel.locator("#valued").evaluate(READ))
    check_colors(shown, (signed_color(each / np.abs(values).max()) for each in values.tolist()))
    width, height, colors = panel.locator("#map").evaluate(
        "map => [map.width, map.height, "
        "new Set(new Uint32Array(map.getContext('2d').getImageData(0, 0, map.width, map.height).data.buffer)).size]"
    )
    assert (width, height) == (4 * seen.tokens.size, 2 * seen.arrays["0:c"].shape[1])
    assert colors > 50
    panel.locator("#pattern").fill("(")
    panel.get_by_role("button", name="Find").click()
    expect(page.get_by_role("alert")).to_contain_text("regular expression")


def test_a_unit_is_held_and_its_text_stands_beside_the_other(server, sampler, open_page, capsys):
    page = open_page(server)
    panel = read_text(page, "Look inside", "Look inside", TEXT)
    expect(panel.locator("#unit-title")).to_have_text("Unit 0:c:0")
    panel.get_by_label("Unit", exact=True).fill("110")
    panel.get_by_label("Unit", exact=True).blur()
    expect(panel.locator("#unit-title")).to_have_text("Unit 0:c:110")
    page.get_by_role("tab", name="Write").click()
    for name, value in {"seed": 1, "max_tokens": 80}.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_label("Keep it").check()
    page.get_by_role("tab", name="Look inside").click()
    panel.locator("#hold-value").fill("2.5")
    panel.get_by_label("Prompt").fill("ROMEO:")
    panel.get_by_role("button", name="Write both").click()
    expect(panel.locator("#held-note")).to_be_visible()
    settings = GenerationConfig(80, 0.8, 1)
    expected = [each.sample("ROMEO:", settings)[0] for each in (sampler, clamped(sampler, {"0:c:110": 2.5}))]
    assert expected[0] != expected[1]
    assert panel.locator("#held .tokens").all_text_contents() == ["ROMEO:" + text for text in expected]
    command = shlex.split(panel.locator("#held-command").text_content())
    assert command[:2] == ["jaxgen", "neurons"]
    from jaxgen.cli.neurons import main

    capsys.readouterr()
    assert main([*command[2:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["text"], found["clamped"]] == expected
    panel.get_by_label("Layer and array").select_option("0:f")  # a gate
    expect(panel.get_by_role("button", name="Write both")).to_be_hidden()


def test_the_distance_between_states_is_drawn_and_coloured(server, sampler, open_page):
    page = open_page(server)
    panel = read_text(page, "Look inside", "Look inside", TEXT)
    expect(panel.locator("#unit-title")).to_have_text("Unit 0:c:0")
    distance = inspect_text(sampler, TEXT).distance[:, 0]
    panel.get_by_label("Colours show").select_option("0")
    shown = (color for _, color in panel.locator("#valued").evaluate(READ))
    numbers = np.round(distance.astype(float), 4)
    check_colors(shown, (signed_color(each / numbers.max()) for each in numbers.tolist()))
    panel.get_by_text("As a table").click()
    rows = panel.locator("#distance tbody tr")
    expect(rows).not_to_have_count(0)
    assert rows.last.inner_text().split() == [str(distance.size), f"{float(f'{numbers[-1]:.4g}'):g}"]


def test_curves_of_runs_are_drawn_and_follow_one_that_trains(sampler, open_page, tmp_path):
    folder = folder_of_runs(tmp_path / "runs")
    log = MetricsLog(folder / "first" / "metrics.jsonl")
    last = log.read()[-1]
    with run_server([served(sampler, "shakespeare")], runs=folder) as running:
        page = open_page(running)
        page.get_by_role("tab", name="Runs").click()
        panel = page.get_by_role("tabpanel", name="Runs")
        expect(panel.locator("#runs-table tbody tr")).to_have_count(2)
        lines = panel.locator("#runs-loss polyline")
        expect(lines).to_have_count(4)  # training and validation of both
        chart = panel.locator("#runs-loss > svg")
        expect(chart).to_have_accessible_name(re.compile(f"first ends at {last['val_loss']:.4g}"))
        panel.get_by_label("Training loss").uncheck()
        expect(lines).to_have_count(2)
        panel.get_by_role("checkbox", name="sweep/second").uncheck()
        expect(lines).to_have_count(1)
        with RunLock.kept(folder / "first") as lock:
            log.append({**last, "step": last["step"] + 400, "val_loss": 1.25})
            expect(chart).to_have_accessible_name(re.compile("first ends at 1.25"))
            expect(panel.locator("#runs-table tbody tr").first).to_contain_text("training")
        lock.release()
        panel.get_by_text("As a table").click()
        rows = panel.locator("#runs-loss tbody tr")
        expect(rows).to_have_count(len(log.read()))
        assert rows.last.inner_text().split() == [f"{last['step'] + 400:,}", "1.25"]
        width = lines.bounding_box()["width"]
        panel.get_by_label("Logarithmic steps").check()
        assert lines.bounding_box()["width"] == pytest.approx(width, rel=0.01)
        chart.hover()
        expect(panel.locator(".told").first).to_contain_text("first, step")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_view_and_everybody_can_use_it(server, open_page, axe, scheme):
    page = open_page(server, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    write_open = page.locator("#settings summary")
    write_open.click()
    write(page)
    finished(page)
    page.locator("#output [role=button]").nth(3).click()
    read_text(page, "Surprise", "Show bits", TEXT[:150])
    expect(page.locator("#places")).to_be_visible()
    read_text(page, "Look inside", "Look inside", TEXT[:150])
    expect(page.locator("#unit-title")).to_have_text("Unit 0:c:0")
    page.get_by_role("button", name="Find").click()  # no quotation marks: an error
    expect(page.get_by_role("alert")).to_be_visible()
    page.evaluate(axe)
    for name in ("Write", "Compare", "Surprise", "Look inside", "Runs"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        found = page.evaluate("async () => (await axe.run()).violations.map(each => [each.id, each.nodes.length])")
        assert found == [], name


def test_a_key_is_asked_for_and_kept_in_memory_alone(sampler, open_page):
    with run_server([served(sampler, "shakespeare")], api_key="secret") as running:
        page = open_page(running)
        for key in ("wrong", "secret"):
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model option")).to_have_text("shakespeare")
        write(page, length=10)
        finished(page)
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_answers_of_a_classifier_and_a_captioner_are_shown(tmp_path, open_page):
    with run_server(train_answering(tmp_path)) as running:
        page = open_page(running)
        expect(page.get_by_role("tab")).to_have_text(["Tasks", "Runs"])  # nothing that writes is served
        page.get_by_label("Inputs").fill("fish wave\nroad")
        page.get_by_role("button", name="Answer").click()
        expected = list(Predictor.load(tmp_path / "classify").predict(["fish wave", "road"]))
        expect(page.locator("#answers .answer")).to_have_text([each["label"] for each in expected])
        page.locator("#task-model").select_option("caption")
        captioner = Predictor.load(tmp_path / "caption")
        for number in (1, 2):  # with the button, which the keyboard reaches too; and dropped
            file = tmp_path / "photos" / f"{number}.png"
            if number == 1:
                page.locator("#image").set_input_files(file)
            else:
                data = base64.b64encode(file.read_bytes()).decode()
                dropped = page.evaluate_handle(DROPPED, data)
                page.locator("#task-image").dispatch_event("drop", {"dataTransfer": dropped})
            (caption,) = captioner.predict([file])
            expect(page.locator("#answers .answer")).to_have_text([caption["text"]])
            looks = page.locator("#answers .looks figcaption")
            expect(looks).to_have_text(captioner.attention(file).written)
            pixels = page.locator("#answers canvas").first.evaluate(PIXEL)
            assert tuple(pixels) == Image.open(file).resize((240, 240), Image.Resampling.NEAREST).getpixel((15, 15))[:3]
        empty = page.evaluate_handle("new DataTransfer()")
        page.locator("#task-image").dispatch_event("drop", {"dataTransfer": empty})
        expect(page.get_by_role("alert")).to_contain_text("image")


def test_a_translation_is_shown_with_its_attention(tmp_path, open_page, axe):
    with run_server(train_answering(tmp_path, ("translate",))) as running:
        page = open_page(running, viewport={"width": 360, "height": 740})
        page.get_by_label("Inputs").fill("fish wave\n   \nroad")
        page.get_by_role("button", name="Answer").click()
        predictor = Predictor.load(tmp_path / "translate")
        expected = list(predictor.predict(["fish wave", "road"]))
        expect(page.locator("#answers .answer")).to_have_text([each["text"] for each in expected])
        found = predictor.attention("road", number=1)
        table = page.locator("#answers .attention").last
        expect(table.locator("tbody th")).to_have_text(found.written)
        expect(table.locator("thead th")).to_have_count(1 + len(found.source))
        shown = table.locator("tbody td").evaluate_all("cells => cells.map(each => Number(each.textContent))")
        np.testing.assert_allclose(shown, 100 * found.weights.ravel(), atol=0.6)
        page.evaluate(axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("async () => (await axe.run()).violations.map(each => each.id)") == []
