"""Train the runs that are part of the package, in ``jaxgen/pretrained``, again.

    python -m benchmarks.pretrained

``JAXGEN_DATA`` names the folder with ``tinyshakespeare.txt``; otherwise it is downloaded. The plays are in the public
domain. The folder of a run in the package has its settings, its vocabulary, the weights of its best checkpoint, its
figures and a README: it can be used, and be the start of another run, but not be continued.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from jaxgen.cli.common import prepare_process

if __name__ == "__main__":
    prepare_process()  # before JAX is imported

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


def main() -> None:
    """Train and write the run."""
    facts = machine.facts()
    if (facts["commit"] or "+").endswith("+"):
        raise SystemExit("Commit the changes of jaxgen/ first: the run names the commit that made it.")
    with tempfile.TemporaryDirectory() as folder:
        model = train(run=Path(folder) / "shakespeare", **SHAKESPEARE)
        pack(model.path, PRETRAINED / "shakespeare", machine.line(facts))
    print(RunDirectory("pretrained:shakespeare").path)


if __name__ == "__main__":
    main()
