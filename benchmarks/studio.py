"""Take the pictures of docs/studio.md: the page of ``jaxgen serve`` with the pretrained run and small ones.

    python -m benchmarks.studio

Trains the small runs in ``runs/studio`` unless they exist. Needs ``pip install "jaxgen[browser,serve]"`` and a
``chromium``.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

import jaxgen
from jaxgen.inference.loading import LoadedRun

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
RUN = "pretrained:shakespeare"
#: Colours of a picture, which keep it small.
COLORS = 256
#: Characters of the validation text in which units are looked for.
CHARACTERS = 8_000
#: The small runs: task and settings.
SHORT = {"data": "tinyshakespeare", "hidden": 64, "batch_size": 16, "steps": 800, "eval_every": 100}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "ngram": ("language", {"data": "tinyshakespeare", "model": "ngram"}),
    "elman": ("language", {**SHORT, "cell": "elman"}),
    "gru": ("language", {**SHORT, "cell": "gru"}),
    "lstm": ("language", {**SHORT, "cell": "lstm"}),
    "dates": ("translate", {"data": "dates", "preset": "tiny", "steps": 600}),
}
SURPRISING = """ROMEO:
But soft, what light through yonder window breaks?
It is the east, and Juliet is the sun.

MENENIUS:
The password of my wifi is broken, good sir.
"""


def save(page: Any, name: str) -> None:
    """Write what the page shows as a small PNG."""
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(COLORS, Image.Quantize.MAXCOVERAGE).save(PICTURES / f"studio-{name}.png", optimize=True)


def write(page: Any, length: int = 260) -> None:
    """Generate a text."""
    page.fill("#prompt", "ROMEO:\n")
    page.fill("#seed", "7")
    page.check("#lock")
    page.fill("#max_tokens", str(length))
    page.click("#generate")
    expect(page.locator("#status")).to_have_text("Done.")


def read(page: Any, view: str, text: str) -> None:
    """Show a text in a view."""
    page.click(f"#tab-{view}")
    page.fill(f"#{view}-text", text)
    page.click(f"#{view}-form .primary")


def take(browser: Any, url: str) -> None:
    """Take all pictures."""
    page = browser.new_page(viewport={"width": 1000, "height": 1000})
    page.set_default_timeout(300_000)  # the first requests compile
    page.goto(url)
    write(page)
    page.locator("#output [role=button]").nth(35).click()
    page.locator("#alternatives button").nth(1).click()
    expect(page.locator("#branches [aria-current]")).to_contain_text("instead")
    expect(page.locator("#status")).to_have_text("Done.")
    page.locator("#output [role=button]").nth(50).hover()
    save(page, "write")

    page.click("#tab-compare")
    page.click("#compare-form .primary")
    expect(page.locator("#compare-stop")).to_be_enabled()
    expect(page.locator("#compare-stop")).to_be_disabled()
    page.set_viewport_size({"width": 1000, "height": 620})
    save(page, "compare")

    page.click("#tab-surprise")
    page.select_option("#beside", "ngram")
    read(page, "surprise", SURPRISING)
    page.set_viewport_size({"width": 1000, "height": 1050})
    page.locator("#places button").first.click()
    page.mouse.wheel(0, -2_000)
    save(page, "surprise")

    read(page, "inside", "".join(LoadedRun.open(RUN).validation())[:CHARACTERS])
    expect(page.locator("#unit-title")).to_have_text("Unit 0:c:0")
    page.select_option("#feature", "line")
    page.click("#find-form button")
    page.locator("#units button").first.click()
    expect(page.locator("#unit-title")).not_to_have_text("Unit 0:c:0")
    page.set_viewport_size({"width": 1000, "height": 1250})
    page.evaluate("scrollTo(0, document.getElementById('inside-result').offsetTop)")
    save(page, "inside")

    page.fill("#hold-value", "2.5")
    page.evaluate("document.getElementById('max_tokens').value = 150")  # of a view that is hidden
    page.fill("#hold-prompt", "ROMEO:")
    page.click("#hold-form .primary")
    expect(page.locator("#held-note")).to_be_visible()
    page.set_viewport_size({"width": 1000, "height": 760})
    page.evaluate("scrollTo(0, document.getElementById('hold-part').offsetTop)")
    save(page, "hold")

    page.click("#tab-tasks")
    page.fill("#inputs", "March 9, 1987\nthe 24th of October 2004")
    page.click("#tasks-form .primary")
    expect(page.locator("#answers .attention").last).to_be_visible()
    page.set_viewport_size({"width": 1000, "height": 900})
    page.evaluate("scrollTo(0, 0)")
    save(page, "tasks")

    page.click("#tab-runs")
    expect(page.locator("#runs-loss polyline").first).to_be_visible()
    page.select_option("#runs-task", "language")
    expect(page.locator("#runs-loss polyline").nth(5)).to_be_visible()
    page.set_viewport_size({"width": 1000, "height": 800})
    page.wait_for_timeout(500)  # drawn at its width
    save(page, "runs")

    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark", device_scale_factor=2)
    phone.goto(url)
    phone.click("#settings summary")
    write(phone, 120)
    phone.click("#settings summary")
    phone.locator("#output [role=button]").nth(20).click()
    phone.evaluate("scrollTo(0, document.getElementById('output-title').offsetTop)")
    save(phone, "phone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studio"), help="folder of the small runs")
    folder = parser.parse_args().runs
    for name, (task, settings) in RUNS.items():
        if not (folder / name / "report.json").exists():
            jaxgen.train(task=task, run=folder / name, resume=(folder / name).exists(), **settings)
    served = [RUN, str(folder / "ngram"), str(folder / "dates")]
    command = [sys.executable, "-m", "jaxgen", "serve", "--run", *served, "--runs", str(folder), "--port", "0"]
    expect.set_options(timeout=300_000)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(line.split()[-1] for line in server.stderr if line.startswith("Serving"))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                take(browser, url)
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
