"""``train.py`` and ``jaxgen train``: flags in, a training run on the screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jaxgen.cli.common import flag_value, guarded, parse, without_flag
from jaxgen.errors import UsageError, choose

EPILOG = """Train a recurrent generative network. Without flags: a character-level LSTM on Python's own language
reference, about two minutes on two CPU cores.

    python train.py --data book.txt                     any text
    python train.py --data book.txt --level word        words instead of characters
    python train.py --data names.txt --documents line   a text per line, each ending by itself
    python train.py --run runs/language-1 --resume auto  go on where a run stopped

A preset sets several flags at once; --config FILE.toml reads any of them from a file; flags win over both."""


def main(args: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    return guarded(lambda: train(list(sys.argv[1:] if args is None else args)))


def train(args: list[str]) -> None:
    from jaxgen.run.host import keep_memory, quiet

    quiet()
    keep_memory()
    from jaxgen.data import DATA

    task = "language"
    if args and not args[0].startswith("-"):
        task = choose(args.pop(0), DATA, "task")
    config, resuming = read_config(DATA[task].Config, args)

    from jaxgen.cli.progress import Screen
    from jaxgen.run import resume, start

    screen = Screen()
    try:
        trainer = resume(config.run, config, screen.show) if resuming else start(config, screen.show)
        trainer.train()
    finally:
        screen.close()


def read_config(kind: Any, args: list[str]) -> tuple[Any, bool]:
    """Flags over ``--config`` over ``--preset`` over defaults; or, when resuming, flags over the saved settings."""
    from jaxgen.store import RunDirectory
    from jaxgen.store.config import read_toml, validate

    if flag_value(args, "--resume") is not None or "--resume" in args:
        mode = choose(flag_value(args, "--resume") or "", ("auto", "never", "must"), "value for --resume")
    else:
        mode = "never"
    file, run = flag_value(args, "--config"), flag_value(args, "--run")
    args = without_flag(without_flag(args, "--resume"), "--config")
    resuming = False
    if mode != "never":
        if run is None:
            raise UsageError(f"--resume {mode} needs to know which run: give --run DIR.")
        resuming = mode == "must" or RunDirectory(run).exists()
    if resuming and run is not None:
        values = {**RunDirectory.open(run).read_json("config.json").get("config", {}), "run": run}
        if file is not None:
            values |= read_toml(file)
    else:
        settings = read_toml(file) if file is not None else {}
        name = flag_value(args, "--preset") or settings.get("preset") or kind.model_fields["preset"].default
        preset = dict(kind.presets[choose(name, kind.presets, "preset")][1])
        preset.pop("steps", None)  # a default for the number of steps, which --epochs and --minutes replace
        values = {**preset, "preset": name, **settings}
    default = validate(kind, values, f"{file}: " if file else "")
    config = parse(kind, args, prog="train.py", description=EPILOG + _presets(kind), default=default)
    return config, resuming


def _presets(kind: Any) -> str:
    return "\n\nPresets:\n" + "\n".join(f"    {name:7s} {text}" for name, (text, _) in kind.presets.items())
