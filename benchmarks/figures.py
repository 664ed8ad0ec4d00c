"""Measure figures on public data, each by the commands that a user would type.

    python -m benchmarks.figures                     all of them, about half an hour on two CPU cores
    python -m benchmarks.figures shakespeare cells   some of them

Writes ``docs/figures.md``: for every figure its command, the data's digest, versions and machine. Sections that are not
measured anew stay as they are. Runs are kept in ``runs/figures`` and made afresh each time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/figures")
PAGE = ROOT / "docs" / "figures.md"
PROMPTS = ("Today ", "On Sunday ", "Moscow, ", "President ", "Little red riding hood ")
TEMPERATURES = ("0", "0.3", "0.8", "1.0", "1.3", "1.8")


def train(name: str, *flags: str) -> dict[str, Any]:
    """Run ``train.py`` in a process of its own; its report, with the wall time from process start to end."""
    run = RUNS / name
    shutil.rmtree(ROOT / run, ignore_errors=True)
    command = ["python", "train.py", "--run", str(run), *flags]
    began = time.perf_counter()
    first = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # as on a first start: everything is compiled
    subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=True, stdout=sys.stderr, env=first)
    seconds = time.perf_counter() - began
    folder = ROOT / run
    saved = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "command": shlex.join(command),
        "run": str(run),
        "seconds": seconds,
        "report": json.loads((folder / "report.json").read_text()),
        "resolved": saved["resolved"],
        "config": saved["config"],
        "train_seconds": rows[-1]["seconds"],
        "tokens_per_second": saved["resolved"]["steps"]
        * saved["config"]["batch_size"]
        * saved["config"]["seq_len"]
        / rows[-1]["seconds"],
    }


def sample(run: str, *flags: str) -> tuple[str, str]:
    """Run ``sample.py``; the command and its standard output."""
    command = ["python", "sample.py", "--run", run, *flags]
    return shlex.join(command), _sample(command).stdout


def _sample(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=True, capture_output=True, text=True)


def sampling_speed(run: str) -> float:
    """Tokens/s of ``sample.py --length 20000`` after the first chunk, as it says them itself."""
    told = _sample(["python", "sample.py", "--run", run, "--length", "20000"]).stderr
    return told_speed(told)


def told_speed(told: str) -> float:
    """The number in the line about speed that ``sample.py`` writes on standard error."""
    found = re.search(r"([0-9,]+) tokens/s after the first", told)
    if found is None:
        raise SystemExit(f"sample.py told no speed: {told!r}")
    return float(found[1].replace(",", ""))


def machine() -> str:
    """Processor, cores, versions."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    wide = "AVX-512" if info.exists() and "avx512f" in info.read_text() else "no AVX-512"
    return f"{names[0]} ({wide}), {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def provenance(result: dict[str, Any]) -> str:
    """The line under every figure."""
    resolved = result["resolved"]
    versions = ", ".join(f"{k} {v}" for k, v in resolved["versions"].items() if k != "python")
    data = resolved["data"]
    return (
        f"Data {data['name']}, sha256 `{data['sha256'][:16]}…`; {versions}; {machine()}; {time.strftime('%Y-%m-%d')}."
    )


def shakespeare() -> str:
    """tinyshakespeare from process start to the validation loss."""
    result = train("shakespeare", "--data", "tinyshakespeare")
    report = result["report"]
    command, text = sample(result["run"], "--prompt", "ROMEO:", "--length", "300", "--seed", "1")
    return f"""## tinyshakespeare, characters

    {result["command"]}

| figure | value |
|---|---|
| seconds from process start to the end, compilation and all evaluations included | {result["seconds"]:.0f} |
| validation loss, 2,400 seeded 64-character windows from a zero state, nats/char | {report["windows_64_loss"]:.4f} |
| the same on 600 windows of 256 characters | {report["windows_256_loss"]:.4f} |
| state carried over the whole split, nats/char (bits/char) | {report["val_loss"]:.4f} ({report["val_bpc"]:.4f}) |
| parameters | {result["resolved"]["parameters"]:,} |
| characters/s in training | {result["tokens_per_second"]:,.0f} |

{provenance(result)}

    {command}

```text
{text.rstrip()}
```
"""


def cells() -> str:
    """All cells on one corpus with one recipe."""
    lines, result = [], None
    for cell in ("lstm", "gru", "elman", "elman-relu"):
        flags = ["--lr", "1e-3"] if cell.startswith("elman") else []
        result = train(
            f"cell-{cell}",
            "--data",
            "tinyshakespeare",
            "--cell",
            cell,
            "--steps",
            "1000",
            "--sample-every",
            "0",
            *flags,
        )
        report = result["report"]
        lines.append(
            f"| `{cell}` | {result['resolved']['parameters']:,} | {result['config']['lr']:g} "
            f"| {report['val_loss']:.4f} | "
            f"{report['windows_64_loss']:.4f} | {result['tokens_per_second']:,.0f} | `{result['command']}` |"
        )
    table = "\n".join(lines)
    return f"""## Cells side by side, tinyshakespeare, 1,000 steps

| cell | parameters | lr | state carried, nats/char | 64-char windows | characters/s | command |
|---|---|---|---|---|---|---|
{table}

One recipe; the Elman cells need a lower learning rate. {provenance(result) if result else ""}
"""


def titles() -> str:
    """AG News titles as documents, five prompts at six temperatures."""
    result = train("titles", "--data", "ag_news", "--hidden", "128", "--steps", "3000", "--sample-every", "0")
    sections = []
    for prompt in PROMPTS:
        command, text = sample(result["run"], "--prompt", prompt, "--length", "120", "--temperature", *TEMPERATURES)
        sections.append(f"    {command}\n\n```text\n{text.rstrip()}\n```\n")
    return f"""## AG News titles, characters, documents

    {result["command"]}

Validation {result["report"]["val_loss"]:.4f} nats/token ({result["report"]["val_bpc"]:.4f} bits/char), whole run
{result["seconds"]:.0f} s. {provenance(result)}

Titles end by `<eos>`; temperature 0 falls into cycles; at 1.8 most words are invented.

{chr(10).join(sections)}"""


def temperature() -> str:
    """One prompt at six temperatures, from a better model of tinyshakespeare."""
    result = train("base", "--data", "tinyshakespeare", "--preset", "base", "--sample-every", "0")
    report = result["report"]
    command, text = sample(result["run"], "--prompt", "ROMEO:", "--length", "280", "--temperature", *TEMPERATURES)
    return f"""## Temperature, on one prompt

    {result["command"]}

{result["seconds"]:.0f} s from process start to the end; {report["windows_64_loss"]:.4f} nats/char on 64-character
windows, {report["val_loss"]:.4f} with the state carried. {provenance(result)}

    {command}

```text
{text.rstrip()}
```
"""


def ngrams() -> str:
    """n-grams beside the default recurrent model, tinyshakespeare."""
    rows, texts = [], []
    models = {f"ngram-{n}": (f"{n}-gram", ["--model", "ngram", "--order", str(n)]) for n in (3, 4, 5, 6, 7, 8)}
    models["ngrams-network"] = ("the default", ["--sample-every", "0"])
    for run, (name, flags) in models.items():
        result = train(run, "--data", "tinyshakespeare", *flags)
        report = result["report"]
        rows.append(
            f"| {name} | {report['val_loss']:.4f} | {report['windows_64_loss']:.4f} | {result['seconds']:.1f} "
            f"| {sampling_speed(result['run']):,.0f} | {result['resolved']['parameters']:,} | `{result['command']}` |"
        )
        if name in ("3-gram", "5-gram", "7-gram", "the default"):
            command, text = sample(result["run"], "--prompt", "ROMEO:", "--length", "160")
            texts.append(f"    {command}\n\n```text\n{text.rstrip()}\n```\n")
    return f"""## n-grams, tinyshakespeare

Counted, not trained (modified Kneser-Ney smoothing), beside the default network; nats/char on the whole validation
split and on 2,400 windows; seconds from process start to the end; characters/s of `sample.py --length 20000` after its
first chunk.

| model | state carried | 64-char windows | s, start to end | sampling, characters/s | parameters | command |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

{provenance(result)}

{chr(10).join(texts)}"""


def words() -> str:
    """A whole book at word level."""
    flags = ["--level", "word", "--epochs", "6", "--dropout", "0.4", "--batch-size", "16", "--seq-len", "32"]
    result = train("words", *flags, "--sample-every", "0")
    command, text = sample(
        result["run"], "--prompt", "The value of", "--length", "150", "--temperature", "0.5", "0.8", "1.0"
    )
    report = result["report"]
    return f"""## The Python language reference, words

    {result["command"]}

| figure | value |
|---|---|
| vocabulary | {result["resolved"]["model"]["vocab_size"]:,} |
| validation perplexity a token, state carried | {report["val_perplexity"]:.1f} |
| bits per character | {report["val_bpc"]:.4f} |
| seconds from process start to the end | {result["seconds"]:.0f} |

{provenance(result)}

    {command}

```text
{text.rstrip()}
```
"""


def first() -> str:
    """The first command of the README."""
    result = train("first")
    report = result["report"]
    return f"""## The first command

    {result["command"]}

{result["seconds"]:.0f} s from process start to the end; validation {report["val_bpc"]:.4f} bits per character
({report["val_loss"]:.4f} nats, state carried), best step {report["best_step"]:,} of {report["step"]:,}.
{provenance(result)}
"""


FIGURES: dict[str, Callable[[], str]] = {
    "first": first,
    "shakespeare": shakespeare,
    "cells": cells,
    "titles": titles,
    "temperature": temperature,
    "ngrams": ngrams,
    "words": words,
}
HEAD = """# Figures

Written by `python -m benchmarks.figures`; `JAXGEN_DATA` names the folder with the data sets. Each section names its
version, machine and date. Its commands used the presets of that version: in 0.1.0 the default was an LSTM with AdamW.
What today's presets reach is in [records.md](records.md).
"""


def read_page() -> dict[str, str]:
    """The sections there are, by name."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=<!-- |\Z)", text, re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], default=[], help="which figures; default all")
    names = parser.parse_args().names or list(FIGURES)
    for name in names:
        section = FIGURES[name]()
        sections = read_page() | {name: section.strip() + "\n\n"}
        body = "".join(f"<!-- {key} -->\n{sections[key]}" for key in FIGURES if key in sections)
        PAGE.write_text(f"{HEAD}\n{body.rstrip()}\n")
        print(section)


if __name__ == "__main__":
    main()
