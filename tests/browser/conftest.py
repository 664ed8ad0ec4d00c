"""A server with the pretrained run, and pages of it in Chromium."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, folder_of_runs, run_server, served

from jaxgen.inference.sampler import Sampler
from jaxgen.server.completions import Limits

playwright = pytest.importorskip("playwright.sync_api", reason='needs `pip install "jaxgen[browser]"`')
#: Milliseconds that the page may take; the first requests compile.
PATIENCE = 120_000


@pytest.fixture(scope="session")
def sampler() -> Sampler:
    return Sampler.load("pretrained:shakespeare")


@pytest.fixture(scope="session")
def server(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    runs = folder_of_runs(tmp_path_factory.mktemp("studio") / "runs")
    with run_server([served(sampler, "shakespeare")], Limits(prompt=2_000, texts=4), runs=runs) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("There is no chromium: install Debian's package of this name.")
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server. At the end, it has had no error."""
    contexts, errors = [], []

    def opened(running: Running, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: request.url.startswith(running.url) or errors.append(request.url))
        page.goto(running.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, which checks accessibility."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("There is no npm, which fetches axe-core.")
    done = subprocess.run([npm, "pack", "--silent", "axe-core@4"], cwd=folder, capture_output=True, timeout=120)
    files = list(Path(folder).glob("axe-core-*.tgz"))
    if done.returncode or not files:
        pytest.skip("npm cannot fetch axe-core.")
    with tarfile.open(files[0]) as package:
        member = package.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()
