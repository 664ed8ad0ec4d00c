"""Train the runs that are part of the package, in ``jaxgen/pretrained``, again.

    python -m benchmarks.pretrained            train, and write the examples of docs/sampling.md
    python -m benchmarks.pretrained --write    only write the examples

``JAXGEN_DATA`` names the folder with ``tinyshakespeare.txt``; otherwise it is downloaded. The plays are in the public
domain. The folder of a run in the package has its settings, its vocabulary, the weights of its best checkpoint, its
figures and a README: it can be used, and be the start of another run, but not be continued.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from jaxgen.cli.common import prepare_process

if __name__ == "__main__":
    prepare_process()  # before JAX is imported

from benchmarks.models import between
from jaxgen.fsutil import replace_file
from jaxgen.inference.loading import LoadedRun
from jaxgen.model import Model, train
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import write_config
from jaxgen.runs.directory import PRETRAINED, RunDirectory

#: The LSTM with layer normalisation, the best of docs/models.md in minutes, with half a million parameters.
SHAKESPEARE: dict[str, Any] = {
    "data": "tinyshakespeare",
    "cell": "layernorm-lstm",
    "hidden": 256,
    "optimizer": "muon",
    "lr": 1e-2,
    "weight_decay": 0.3,
    "steps": 6000,
    "dropout": 0.2,
    "cold_starts": 0.1,
}
NAME = "pretrained:shakespeare"
PAGE = machine.ROOT / "docs" / "sampling.md"
#: Temperatures of the example, and what to expect of each.
TEMPERATURES = {
    "0": "always the most probable character; such a text soon repeats itself",
    "0.3": "safe, dull",
    "0.8": "the default",
    "1.0": "the model as it is",
    "1.3": "more invented words",
    "1.8": "words fall apart",
}
#: Lines of each text that the example shows.
SHOWN = 5
#: Files that are copied as they are.
COPIED = ("tokenizer.json", "metrics.jsonl", "report.json")

README = """# {name}: a run that is part of jaxgen

```sh
jaxgen sample --run pretrained:{name}
jaxgen info pretrained:{name}
```

- model: {model}
- data: {data}, sha256 {sha256}
- validation: {loss:.4f} nats per character with the state carried, at step {step:,}
- trained on: {machine}

The text is in the public domain; the weights are under the license of jaxgen. `python -m benchmarks.pretrained` in a
clone of the repository trains it again.
"""


def pack(run: Path, target: Path, made_by: str) -> None:
    """Write a trained run to ``target``, a folder of the package, with the weights of its best checkpoint alone.

    ``made_by`` describes the machine and the commit.
    """
    saved, model = LoadedRun.open(run), Model(run)
    step, params = saved.params()
    figures = model.evaluate()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    directory = RunDirectory(target)
    for name in COPIED:
        shutil.copyfile(run / name, target / name)
    store = CheckpointStore(directory.checkpoints_path, run_digest=saved.resolved["run_digest"])
    store.save(step, {"params": params}, {}, saved.checkpoints.metric(step))
    write_config(directory, saved.config.model_copy(update={"run": None}), {**saved.resolved, "data_folders": ["."]})
    about = README.format(
        name=target.name,
        model=f"{saved.config.cell} {saved.config.layers}x{saved.config.hidden}, "
        f"{saved.resolved['parameters']:,} parameters",
        data=saved.resolved["data"]["name"],
        sha256=saved.resolved["data"]["sha256"],
        loss=figures["val_loss"],
        step=step,
        machine=made_by,
    )
    replace_file(target / "README.md", about.encode())


def command(*words: str) -> str:
    """The standard output of a command of jaxgen."""
    typed = [sys.executable, "-m", "jaxgen", *words]
    return subprocess.run(typed, check=True, cwd=machine.ROOT, stdout=subprocess.PIPE, encoding="utf-8").stdout


def write_examples() -> None:
    """Write what docs/sampling.md shows of the run."""
    report = RunDirectory(NAME).read_json("report.json")
    losses = (
        f"It reaches {report['val_loss']:.3f} nats per character on the validation text with the state carried, "
        f"{report['windows_64_loss']:.3f} in\n64-character windows."
    )
    drawn = command("sample", "--run", NAME, "--prompt", "ROMEO:", "--length", "220", "--temperature", *TEMPERATURES)
    parts = []
    for (temperature, about), text in zip(TEMPERATURES.items(), re.split(r"(?m)^---\n", drawn), strict=True):
        lines = text.splitlines()[1 : 1 + SHOWN]
        parts.append("\n".join([f"--- {temperature}: {about}", *lines]).rstrip())
    with tempfile.TemporaryDirectory() as folder:
        plot = str(Path(folder) / "quality.png")
        quality = command("evaluate", "--run", NAME, "--prompt", "The ", "--plot", plot).partition("\n\n")[0]
    texts = "\n".join(parts)
    page = between(PAGE.read_text(encoding="utf-8"), "losses", losses)
    page = between(page, "temperatures", f"```text\n{texts}\n```")
    replace_file(PAGE, between(page, "quality", f"```text\n{quality}\n```").encode())


def main() -> None:
    """Train and write the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="train nothing")
    if parser.parse_args().write:
        write_examples()
        return
    facts = machine.facts()
    if (facts["commit"] or "+").endswith("+"):
        raise SystemExit("Commit the changes of jaxgen/ first: the run names the commit that made it.")
    with tempfile.TemporaryDirectory() as folder:
        model = train(run=Path(folder) / "shakespeare", **SHAKESPEARE)
        pack(model.path, PRETRAINED / "shakespeare", machine.line(facts))
    write_examples()
    print(RunDirectory(NAME).path)


if __name__ == "__main__":
    main()
