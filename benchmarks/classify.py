"""Classifiers compared with a bag of words on the same texts and split: accuracy, macro-F1 and time.

    python -m benchmarks.classify                     ag_news, about ten minutes on two CPU cores
    python -m benchmarks.classify --only bag words    some rows of the table

Prints a table in Markdown. The bag of words is scikit-learn's (the extra ``bench``) with its own defaults: counts of
words by tf-idf and a logistic regression, none of it tuned to these texts. Ours is ``train.py classify`` with a preset,
in a process of its own that compiles everything; its accuracy is that of its best step, which is chosen by the same
validation rows, as that of every run is. ``JAXGEN_DATA`` names the folder with the data sets.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from jaxgen.data.tables import Table
from jaxgen.tasks.classify.data import ClassifyConfig, read_labelled
from jaxgen.tasks.rows import RowSplits

RUNS = Path("runs/benchmark-classify")
PRESETS = ("words", "characters")


class Row(NamedTuple):
    """What one classifier came to."""

    name: str
    accuracy: float
    macro_f1: float
    seconds: float  # from start to end
    processor: float  # seconds of all cores together
    command: str


def clock() -> tuple[float, float]:
    """Seconds by the wall clock, and those that processors have spent for this process and its children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def bag(splits: RowSplits[Table]) -> Row:
    """Tf-idf of words and a logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    began = clock()
    words = TfidfVectorizer()
    model = LogisticRegression(max_iter=1000).fit(words.fit_transform(splits.train.columns[0]), splits.train.columns[1])
    given, true = model.predict(words.transform(splits.val.columns[0])), splits.val.columns[1]
    wall, processor = (after - before for before, after in zip(began, clock()))
    score = float(accuracy_score(true, given)), float(f1_score(true, given, average="macro"))
    return Row("bag of words, logistic regression", *score, wall, processor, "scikit-learn")


def ours(preset: str, data: str, val_rows: int, seed: int) -> Row:
    """``train.py classify`` with a preset."""
    run = RUNS / preset
    shutil.rmtree(machine.ROOT / run, ignore_errors=True)
    flags = {"data": data, "preset": preset, "val-rows": val_rows, "seed": seed, "run": run}
    command = ["python", "train.py", "classify", *(part for name in flags for part in (f"--{name}", str(flags[name])))]
    first = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # as on a first start: everything is compiled
    began = clock()
    subprocess.run([sys.executable, *command[1:]], cwd=machine.ROOT, check=True, stdout=sys.stderr, env=first)
    wall, processor = (after - before for before, after in zip(began, clock()))
    report = json.loads((machine.ROOT / run / "report.json").read_text())
    config = json.loads((machine.ROOT / run / "config.json").read_text())["config"]
    name = f"{config['cell'].upper()} {config['layers']}x{config['hidden']}, {config['level']} level"
    return Row(name, report["val_accuracy"], report["val_macro_f1"], wall, processor, shlex.join(command))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classify", description="Classifiers beside each other.")
    parser.add_argument("--data", default="ag_news", help="a named set (default: ag_news)")
    parser.add_argument("--val-rows", type=int, default=1000, help="rows held out (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of training (default: 0)")
    parser.add_argument("--only", nargs="+", choices=("bag", *PRESETS), default=("bag", *PRESETS))
    asked = parser.parse_args()
    splits = read_labelled(ClassifyConfig(data=(asked.data,), val_rows=asked.val_rows, seed=asked.seed))
    about = machine.line(machine.facts())
    rows = [bag(splits) if each == "bag" else ours(each, asked.data, asked.val_rows, asked.seed) for each in asked.only]
    print(f"\n{asked.data}, sha256 {splits.sha256[:12]}: {len(splits.train):,} texts to train on, ", end="")
    print(f"{len(splits.val):,} to validate, split by the seed {asked.seed}.\n")
    print("| classifier | accuracy | macro-F1 | seconds | processor seconds | command |\n|---|---|---|---|---|---|")
    for row in rows:
        figures = f"{row.accuracy:.1%} | {row.macro_f1:.3f} | {row.seconds:.0f} | {row.processor:.0f}"
        print(f"| {row.name} | {figures} | `{row.command}` |")
    print(f"\n{about}")


if __name__ == "__main__":
    main()
