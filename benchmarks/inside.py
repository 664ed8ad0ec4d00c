"""Write the table and the pictures of docs/inside.md: units of two runs, found on their validation texts.

    python -m benchmarks.inside

Trains ``runs/inside/shakespeare`` and ``runs/inside/python`` unless they exist.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jaxgen
from benchmarks import machine
from benchmarks.models import between
from jaxgen.fsutil import replace_file
from jaxgen.inference.inspection import FEATURES
from jaxgen.inference.loading import LoadedRun

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURES = ROOT / "docs" / "inside.md", ROOT / "docs" / "pictures"
#: Tokens of each text, and the further features that are looked for in it.
TOKENS = 50_000
RUNS = {
    "shakespeare": ({"data": "tinyshakespeare"}, ("[A-Z]+:",)),
    "python": ({"data": "python-source", "hidden": 128}, (r"#[^\n]*",)),
}
#: Prompts between which the states are interpolated.
WAY = ("What is th", "I will no")


def inspect(name: str, folder: Path) -> tuple[jaxgen.Model, jaxgen.Inspection, list[jaxgen.Found | str]]:
    """The model of a run, what it computes on its validation text, and what was found for each feature."""
    settings, patterns = RUNS[name]
    if not (folder / name / "report.json").exists():
        jaxgen.train(run=folder / name, resume=True, **settings)
    text = "".join(LoadedRun.open(folder / name).validation())
    model = jaxgen.load(folder / name)
    seen = model.inspect(text, probabilities=False, unk="skip", most=TOKENS)
    found: list[jaxgen.Found | str] = []
    for feature in (*FEATURES, *patterns):
        try:
            found.append(seen.find(feature))
        except jaxgen.DataError:
            found.append(feature)
    return model, seen, found


def row(run: str, found: jaxgen.Found | str) -> str:
    """A line of the table."""
    if isinstance(found, str):
        return f"| {run} | `{found}` | the text has none of it | | | |"
    told = "yes" if found.is_telling else "no"
    feature = found.feature.replace("|", "\\|")
    return f"| {run} | `{feature}` | `{found.best}` | {found.score:.2f} | {found.chance:.2f} | {told} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "inside", help="folder of the two runs")
    folder = parser.parse_args().runs
    jaxgen.keep_memory()
    rows = []
    for name in RUNS:
        model, seen, found = inspect(name, folder)
        rows += [row(name, each) for each in found]
        half = seen.tokens.size // 2
        feature = "line" if name == "shakespeare" else RUNS[name][1][0]
        (best,) = (each for each in found if not isinstance(each, str) and each.feature == feature)
        seen.unit(best.best)[half : half + 700].plot().save(PICTURES / f"inside-{name}.png")
        if name == "shakespeare":
            seen.plot(first=half, length=100).save(PICTURES / "inside-states.png")
            model.interpolate(*WAY, steps=11, length=0).plot().save(PICTURES / "inside-way.png")
    head = "| run | feature | best unit | held out | chance | tells it |\n|---|---|---|---|---|---|"
    text = between(PAGE.read_text(encoding="utf-8"), "found", "\n".join([head, *rows]))
    replace_file(PAGE, between(text, "machine", machine.line(machine.facts())).encode())


if __name__ == "__main__":
    main()
