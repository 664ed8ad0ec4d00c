"""``jaxgen explain``: the probabilities of the next token, before and after each transform, and greedy cycles."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from jaxgen.cli.common import json_line, log, write_out
from jaxgen.cli.evaluate import align_table, quote
from jaxgen.cli.flags import Command, Excludes, Flag, check_flags, parse
from jaxgen.cli.mixture_flags import MIXTURE_RULES, MixtureConfig, fill_mixture_flags, open_sampler
from jaxgen.cli.sampling_flags import (
    extra_transform_flags,
    read_temperature,
    read_transforms,
    transform_notes,
    with_condition_flags,
)
from jaxgen.errors import UsageError, check_int, counted, listed
from jaxgen.metrics import LEAST, ROUNDS, Cycle, find_cycle
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.next_token import Step
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.state import DecoderState
    from jaxgen.inference.text_stream import Sample

DESCRIPTION = """Show the probabilities of the next token after a text: those of the model, and those with which
sample.py would draw it after all transforms. Also whether greedy decoding from here enters a cycle.

    jaxgen explain "play"
    jaxgen explain "To be, or" --temperature 0.5 --top-k 5
    jaxgen explain "To be" --run runs/language-1 --top 20 --length 2000
    jaxgen explain "To be" --json"""
PROMPT = "The text before the token; without it, the first token of a text is explained."
JSON = "Write one JSON object, log-probabilities in nats."

RULES = (*MIXTURE_RULES, Excludes("--state", ("--label", "--features"), "continues a text whose condition is fixed"))
MAX_TOP = 1_000
#: Columns of a token at most, and of a bar at least and at most.
TOKEN_WIDTH, MIN_BAR, MAX_BAR = 20, 4, 40
#: Eighths of a block, by which a bar grows.
EIGHTHS = " ▏▎▍▌▋▊▉"


class ExplainConfig(MixtureConfig):
    """Flags of ``jaxgen explain``; those of the logit transforms come from their registry."""

    in_text: ClassVar[Group] = Group("Text")
    state: str | None = None
    """Continue from the state in this file, which `sample.py --save-state` wrote; the text is read after it."""
    unk: Literal["error", "skip"] = "error"
    """What to do with characters that are not in the vocabulary."""

    in_drawing: ClassVar[Group] = Group("Drawing")
    temperature: str = "0.8"
    """The temperature of drawing; 0: always the most probable token. Of a schedule, that of the first token counts."""

    in_tokens: ClassVar[Group] = Group("Which tokens may follow")  # the transforms

    in_output: ClassVar[Group] = Group("Output")
    top: int = 10
    """Show this many of the most probable tokens, before and after the transforms; at most 1,000."""
    length: int = 500
    """Look for a cycle in this many tokens of greedy decoding; 0: do not look."""


def explain(args: list[str]) -> None:
    """Parse ``args`` and write the distribution that they ask for."""
    args = fill_mixture_flags(args)
    flags = [
        Flag("texts", tuple[str, ...], (), PROMPT, "[TEXT]", positional=True),
        *extra_transform_flags(),
        Flag("json", bool, False, JSON, negatable=False),
    ]
    config, extra = parse(ExplainConfig, args, prog="jaxgen explain", description=DESCRIPTION, extra=flags)
    check_flags(RULES, config, args, {name: value for name, value in extra.items() if name != "texts"})
    if len(extra["texts"]) > 1:
        raise UsageError(f"{len(extra['texts'])} texts were given, {listed(extra['texts'], 3)}: put one in quotes.")
    text = "".join(extra["texts"])
    check_int("The number of most probable tokens (--top)", config.top, 1, MAX_TOP)

    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.next_token import distribution_steps
    from jaxgen.runtime import need_backend

    settings = GenerationConfig(config.length, read_temperature(config.temperature))
    need_backend()
    sampler = open_sampler(config, "explain")
    sampler = with_condition_flags(sampler, config, note=config.state is None)
    transforms = read_transforms(extra, sampler.tokenizer.encode)
    settings = replace(settings, transforms=transforms)
    for note in transform_notes(sampler, transforms):
        log(note)
    before = None if config.state is None else sampler.load_state(config.state)
    state = sampler.read(text, before, unk=config.unk)
    if state.held:
        log("note: the text ends with a space, which begins the next token; others cannot follow.")
    steps = distribution_steps(sampler, state, settings)
    greedy = decode_greedily(sampler, state, settings) if config.length else None
    if extra["json"]:
        write_out(json_line(to_json(sampler, state, settings, steps, greedy, config.top)))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    write_out("\n".join([*bar_lines(sampler, steps, config.top, width), "", *step_lines(steps)]) + "\n")
    if greedy is not None:
        write_out("\n" + "\n".join(greedy_lines(sampler, greedy, width)) + "\n")


main = Command(explain, text_only=True)


def decode_greedily(sampler: Sampler, state: DecoderState, settings: GenerationConfig) -> Sample:
    """The most probable tokens after ``state`` under the same transforms, one after the other."""
    (greedy,) = sampler.samples(settings=replace(settings, temperature=0.0), state=state)
    return greedy


# What is written


def shown_tokens(steps: Sequence[Step], top: int) -> list[int]:
    """The ``top`` most probable tokens of the model and of the last step, in the order of the model."""
    first, last = steps[0], steps[-1]
    shown = {*first.best(top).tolist(), *last.best(top).tolist()}
    return sorted(shown, key=lambda token: (-first.logp[token], -last.logp[token], token))


def bar_lines(sampler: Sampler, steps: Sequence[Step], top: int, width: int) -> Iterator[str]:
    """A table of tokens with two bars each: their probability under the model, and that of being drawn."""
    from rich.cells import cell_len, set_cell_size

    from jaxgen.tokenizers.base import quote_token

    shown = shown_tokens(steps, top)
    both = [np.exp(step.logp.astype(np.float64)) for step in (steps[0], steps[-1])]
    names = [quote_token(sampler.tokenizer, token) for token in shown]
    rows = [(name, [each[token] for each in both]) for name, token in zip(names, shown)]
    if others := both[0].size - len(shown):
        rest = [np.delete(each, shown).sum() for each in both]
        rows.append((counted(others, "other"), rest))
    wide = min(max(cell_len(name) for name, _ in rows), TOKEN_WIDTH)
    bar = min(max((width - wide - 20) // 2, MIN_BAR), MAX_BAR)
    most = max(max(values) for _, values in rows)
    heads = (f"{name:{bar + 8}}" for name in ("the model", "drawn"))
    yield f"{'token':{wide}}  {'  '.join(heads)}".rstrip()
    for name, values in rows:
        name = name if cell_len(name) <= wide else set_cell_size(name, wide - 1) + "…"
        columns = (f"{format(p, '7.2%') if p else '      -'} {draw_bar(p / most, bar)}" for p in values)
        yield f"{set_cell_size(name, wide)}  {'  '.join(columns)}".rstrip()


def draw_bar(share: float, width: int) -> str:
    """A bar that fills ``share`` of ``width`` columns, in eighths where the output has the characters for it."""
    try:
        EIGHTHS.encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return ("#" * round(share * width)).ljust(width)
    whole, eighth = divmod(round(share * width * 8), 8)
    return ("█" * whole + EIGHTHS[eighth : eighth + 1] * (eighth > 0)).ljust(width)


def step_lines(steps: Sequence[Step]) -> list[str]:
    """A table of the steps: how many tokens can be drawn after each, and how uncertain the next one is."""
    rows = [(step.name, f"{step.tokens:,}", f"{step.entropy:.2f} bits") for step in steps]
    return align_table([("after", "tokens", "entropy"), *rows])


def greedy_lines(sampler: Sampler, greedy: Sample, width: int) -> Iterator[str]:
    """Whether greedy decoding has entered a cycle, and what was checked."""
    tokens = greedy.tokens.tolist()
    cycle = find_cycle(tokens)
    if cycle is None:
        end = "ends" if greedy.end == "eos" else "is in no cycle"
        said = f"Greedy decoding {end} after {counted(len(tokens), 'token')}."
        checked = f"no end of them has {LEAST} tokens or more and repeats {ROUNDS} times or more"
    else:
        start = f"After {counted(cycle.start, 'token')}" if cycle.start else "From its first token on"
        same = "token" if cycle.period == 1 else f"{cycle.period:,} tokens"
        said = f"Greedy decoding has entered a cycle. {start} it repeats the same {same}:"
        equal = len(tokens) - cycle.start - cycle.period
        checked = f"each of the last {equal:,} of {len(tokens):,} tokens equals the one {cycle.period:,} before it"
    yield from textwrap.wrap(said, width)
    if cycle is not None:
        yield f"  {quote(cycle_text(sampler, greedy, cycle))}"
    yield from textwrap.wrap(f"Checked: {checked}.", width)


def cycle_text(sampler: Sampler, greedy: Sample, cycle: Cycle) -> str:
    """The text that is repeated."""
    return sampler.decode(greedy.tokens[cycle.start :][: cycle.period])


def to_json(
    sampler: Sampler,
    state: DecoderState,
    settings: GenerationConfig,
    steps: Sequence[Step],
    greedy: Sample | None,
    top: int,
) -> dict[str, Any]:
    """All that is written as JSON values."""
    values = settings.to_json()
    found = {
        "text": sampler.decode(state.tokens) + state.held,
        "settings": {name: values[name] for name in ("temperature", "transforms")},
        "steps": [step.to_json(sampler.tokenizer, top) for step in steps],
        "greedy": None,
        **sampler.origin(),
    }
    if greedy is not None:
        cycle = find_cycle(greedy.tokens.tolist())
        about = None if cycle is None else {**cycle._asdict(), "text": cycle_text(sampler, greedy, cycle)}
        found["greedy"] = {"tokens": greedy.tokens.size, "end": greedy.end, "text": greedy.text, "cycle": about}
    return found
