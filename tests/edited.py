"""A run whose configuration was edited by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxgen.runs.config import with_digest


def edit(run: Path, *keys: str, value: object) -> None:
    """Set one value in the run's ``config.json``, and its digest anew, so that what lies behind that check is met."""
    saved = json.loads((run / "config.json").read_text())
    inner = saved
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write(run, saved)


def write(run: Path, saved: dict[str, Any]) -> None:
    """Make ``saved`` the run's ``config.json``, under a digest that is right."""
    (run / "config.json").write_text(json.dumps(with_digest(saved)))
