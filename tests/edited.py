"""A run whose configuration was altered by hand, for tests of what is said of it."""

from __future__ import annotations

import json
from pathlib import Path


def edit(run: Path, *keys: str, value: object) -> None:
    """Set one value in the run's ``config.json``."""
    saved = json.loads((run / "config.json").read_text())
    inner = saved
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (run / "config.json").write_text(json.dumps(saved))
