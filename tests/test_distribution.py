"""What is published: the files for PyPI, the image, and the documents and workflows around them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import jax
import pytest

from jaxgen.inference.receipts import VERSION as RECEIPT
from jaxgen.interchange import stablehlo
from jaxgen.runs.manifest import VERSION as CHECKPOINT
from jaxgen.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
#: A link or a picture, in Markdown or in HTML.
LINK = re.compile(r'\]\(([^)\s]+)\)|\b(?:href|src|srcset)="([^"]+)"')
INSTRUCTIONS = ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def instructions():
    """The instructions of the Dockerfile: name and argument."""
    lines = re.sub(r"(?m)^#.*\n", "", read("Dockerfile")).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def runs():
    """The commands that build the image, in order."""
    return [rest for kind, rest in instructions() if kind == "RUN"]


def copied():
    """What the image copies from the repository."""
    return [
        name for kind, rest in instructions() if kind == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    ]


def test_the_readme_on_pypi_has_absolute_links_to_files_that_exist():
    text = read("README.md") + '\n[![mark](docs/python.md)](docs/python.md) <img src="docs/python.md">'
    for each in README["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    repository = PROJECT["project"]["urls"]["Repository"]
    links = [first or second for first, second in LINK.findall(text)]
    assert len(links) > 10
    for link in links:
        assert link.startswith(("https://", "#")), link
        own = re.match(rf"{repository}/blob/main/([^#]+)|https://raw.githubusercontent.com/[^/]+/[^/]+/main/(.+)", link)
        assert own is None or (ROOT / (own[1] or own[2])).exists(), link


def test_all_documents_name_one_repository():
    names = ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "pyproject.toml"]
    names += [".github/ISSUE_TEMPLATE/config.yml"]
    found = {name: set(re.findall(r"github\.com/[\w-]+/jaxgen\b", read(name))) for name in names}
    assert set.union(*found.values()) == {PROJECT["project"]["urls"]["Repository"].removeprefix("https://")}
    assert all(found.values()), found


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = read("CHANGELOG.md")
    assert re.findall(r"(?m)^# .*", text) == ["# Changelog"]
    first, *versions = re.findall(r"(?m)^## (.*)", text)
    assert first == "[Unreleased]" or __version__ in first
    assert all(re.fullmatch(r"\[?\d+\.\d+\.\d+\]? - \d{4}-\d\d-\d\d", version) for version in versions), versions
    kinds = {"Added", "Changed", "Deprecated", "Fixed", "Removed", "Security"}
    assert {*re.findall(r"(?m)^### (.*)", text)} <= kinds


def test_the_page_on_stability_names_the_formats_of_this_version():
    text = read("docs/stability.md")
    model = re.search(r'"format": "(jaxgen-stablehlo-\d+)"', Path(stablehlo.__file__).read_text())[1]
    assert re.findall(r"(?m)^\|[^|]*\| (\d+|jaxgen-\S+) \|", text) == [str(CHECKPOINT), str(RECEIPT), model]


def test_workflows_run_commands_and_files_that_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").iterdir())
    for extra in re.findall(r'"\.\[(\w+)\]"', text):
        assert extra in PROJECT["project"]["optional-dependencies"], extra
    for name in re.findall(r"(?:uses: \./|python |-c )([\w./-]+\.(?:yml|py|txt))", text):
        assert (ROOT / name).exists(), name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    newest = PROJECT["project"]["classifiers"]
    asked = re.search(r"python: (\[.*\])", text)[1]
    assert json.loads(asked) == [each.split()[-1] for each in newest if re.search(r"Python :: 3\.\d", each)]


def test_the_report_of_a_bug_asks_for_the_output_of_the_doctor():
    asked = read(".github/ISSUE_TEMPLATE/bug.yml").split("- type: ")
    (doctor,) = [part for part in asked if "`jaxgen doctor`" in part]
    assert "required: true" in doctor


def test_the_image_copies_files_that_exist_and_reach_the_builder():
    ignored = read(".dockerignore").splitlines()
    assert ignored[1] == "*"  # nothing but what follows
    assert {line[1:] for line in ignored if line.startswith("!")} == {*copied()}
    for name in copied():
        assert (ROOT / name).exists(), name
    needed = {PROJECT["tool"]["hatch"]["version"]["path"], *(each["path"] for each in README["fragments"])}
    needed |= {"pyproject.toml", *PROJECT["project"]["license-files"]}
    assert all(any(name == each or name.startswith(f"{each}/") for each in copied()) for name in needed)


def test_the_image_has_a_fixed_base_a_user_without_rights_and_a_command_that_exists():
    steps = instructions()
    assert {kind for kind, _ in steps} <= {*INSTRUCTIONS}
    bases = [rest.split()[0] for kind, rest in steps if kind == "FROM"]
    python = min(each.split()[-1] for each in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d", each))
    assert {*bases} == {f"python:{python}-slim"}  # that of constraints.txt
    kinds = [kind for kind, _ in steps]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert int(dict(steps)["USER"]) > 0
    (command,) = json.loads(dict(steps)["ENTRYPOINT"])
    assert command in PROJECT["project"]["scripts"]


@pytest.mark.skipif(sys.platform == "win32", reason="the shell of the image")
@pytest.mark.parametrize(("value", "asked"), [("", "."), ("cuda", ".[cuda]"), ("cuda,bpe", ".[cuda,bpe]")])
def test_the_extras_of_the_image_are_those_of_the_package(value, asked):
    name = dict(instructions())["ARG"].removesuffix("=")
    (requirement,) = [each for step in runs() for each in re.findall(r'"\.[^"]*"', step)]
    shown = subprocess.run(
        ["sh", "-uec", f"printf %s {requirement}"], env={name: value}, capture_output=True, text=True, check=True
    )
    assert shown.stdout == asked
    assert {*filter(None, value.split(","))} <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.skipif(sys.platform == "win32", reason="the shell of the image")
def test_the_steps_of_the_image_are_programs_of_its_shell():
    for step in runs():
        subprocess.run(["sh", "-n", "-c", step], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the shell of the image")
def test_the_steps_of_the_image_install_a_package_that_samples(tmp_path):
    source, target, empty = tmp_path / "source", tmp_path / "jaxgen", tmp_path / "empty"
    source.mkdir()
    empty.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    # The dependencies are those of this environment: to download them again would say nothing about the package.
    install = runs()[0].replace("pip install", "pip install --no-deps").replace("/opt/jaxgen", shlex.quote(str(target)))
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean, "EXTRAS": "", "PIP_QUIET": "1", "PATH": path}
    subprocess.run(["sh", "-ec", install], cwd=source, env=environment, check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(target)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (entry,) = json.loads(dict(instructions())["ENTRYPOINT"])

    def run(*args):
        done = subprocess.run(
            [target / "bin" / entry, *args], cwd=empty, env=clean, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "sample" in run(*json.loads(dict(instructions())["CMD"]))
    where = [target / "bin" / "python", "-c", "import jaxgen; print(jaxgen.__file__)"]
    assert subprocess.check_output(where, cwd=empty, env=clean, text=True).startswith(str(target))
    before = {path: path.stat().st_mtime_ns for path in (packages / "jaxgen" / "pretrained").rglob("*")}
    assert len(run("sample", "--run", "pretrained:shakespeare", "--length", "40")) == 41
    assert before == {path: path.stat().st_mtime_ns for path in (packages / "jaxgen" / "pretrained").rglob("*")}
    assert any(path.suffix == ".safetensors" for path in before)
    page = Path("jaxgen") / "server" / "static"
    assert {path.name for path in (packages / page).iterdir()} == {path.name for path in (ROOT / page).iterdir()}
    assert [path for path in packages.iterdir() if path.name.startswith("jaxgen")] != []
    assert jax.__version__ in run("doctor")
