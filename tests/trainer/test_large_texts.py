"""A text larger than memory: file and tokens are mapped from disk, and anonymous memory stays small."""

import json
from pathlib import Path

import numpy as np
import pytest
from faults.fault import Unavailable
from faults.memory import run_watched

MB = 10**6
#: Train on the text of ``argv[1]`` and tell the growth of memory since the imports, and since a run on a small text.
TRAINING = """
import json
import jaxgen.trainer.trainer, jaxgen.plots
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.trainer.run import start

settings = dict(hidden=4, layers=1, cell="elman", batch_size=2, seq_len=8, steps=2, eval_every=2, sample_every=0,
                devices=1, val_data=("small.txt",))
imported = Peak()
start(LanguageConfig(data=("small.txt",), run="small", **settings)).train()
begun = Peak()
trainer = start(LanguageConfig(data=(sys.argv[1],), run="large", **settings))
trainer.train()
ids = trainer.data.corpus.train.ids
print(json.dumps({"imported": imported.growth(), "begun": begun.growth(), "tokens": ids.size, "type": ids.dtype.name,
                  "text": trainer.data.tokenizer.decode(ids[-30:])}))
"""


def write(path: Path, size: int) -> str:
    """A text of ``size`` bytes, the same million of them over and over, and its last 30 characters."""
    draw = np.random.default_rng(0)
    block = draw.choice(np.frombuffer(b"abcdefghij klmnop\n", np.uint8), MB).tobytes()
    with path.open("wb") as file:
        for _ in range(size // MB):
            file.write(block)
    return block[-30:].decode()


def trained(folder: Path, size: int) -> None:
    """Train on a text of ``size`` bytes within the memory that is allowed, whatever its size."""
    end = write(folder / "large.txt", size)
    write(folder / "small.txt", MB)
    try:
        told = run_watched(TRAINING, "large.txt", cwd=folder, env={"XDG_CACHE_HOME": str(folder / "cache")})
        found = json.loads(told.splitlines()[-1])
        assert (found["tokens"], found["type"], found["text"]) == (size, "uint8", end)
        (kept,) = (folder / "cache" / "jaxgen" / "tokens").iterdir()
        assert kept.stat().st_size >= size
        assert found["imported"] <= 500 * MB, f"{found['imported'] / MB:.0f} MB more than after the imports"
        assert found["begun"] <= 100 * MB, f"{found['begun'] / MB:.0f} MB more than with a small text"
        told = [f"{size / MB:,.0f} MB of text", *(f"{found[name] / MB:.0f} MB" for name in ("imported", "begun"))]
        print("{}: {} above the imports, {} above a small text".format(*told))
    except Unavailable as missing:
        pytest.skip(str(missing))
    finally:
        for path in (folder / "large.txt", *(folder / "cache").rglob("*.tokens")):
            path.unlink(missing_ok=True)


@pytest.mark.slow
def test_training_on_50_mb_takes_as_much_memory_as_on_one(tmp_path):
    trained(tmp_path, 50 * MB)


@pytest.mark.slow
def test_training_on_2_gb_takes_as_much_memory_as_on_one(tmp_path):
    trained(tmp_path, 2000 * MB)
