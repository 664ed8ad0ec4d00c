"""``sample.py`` and ``jaxgen sample``: write text to standard output, everything else to standard error."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import log, run_command
from jaxgen.cli.flags import Excludes, Needs, check_not_empty, check_rules, given_flags, parse, switch
from jaxgen.cli.progress import SampleWriter, SamplingSpeed
from jaxgen.errors import UsageError

if TYPE_CHECKING:
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.state import DecoderState
    from jaxgen.inference.text_stream import Chunk
    from jaxgen.sampling.transforms.base import Transform

DESCRIPTION = """Write text with a trained model. The same run, prompt, settings and seed always give the same text.

    python sample.py                                 the newest run in runs/
    python sample.py --prompt "The " --temperature 0.5
    python sample.py --temperature 0.3 0.8 1.3       one section for each
    python sample.py --temperature 1.5:0.5:200       linear over 200 tokens
    python sample.py --prompt "Q: " --stop "\\n" "A:"  ends before either string
    python sample.py --num-samples 1000 --block 256  many at once
    python sample.py --label Sports                  a text with this label
    echo "To be" | python sample.py --prompt-file -  prompt from standard input"""

JSON = """Write one JSON object for each text, with its tokens, log-probabilities and everything that determined it.
`jaxgen replay` reads them."""
#: With this many texts or more, a note recommends ``--block``.
MANY = 100


class SampleConfig(BaseModel):
    """Flags of ``sample.py``; those of the logit transforms come from their registry."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the newest in runs/."""
    prompt: str | None = None
    """Text to continue."""
    prompt_file: str | None = None
    """File with the text to continue; - for standard input. One line break at its end is removed."""
    label: tuple[str, ...] = ()
    """Write a text with this label (for a run trained with --label-column), or one between several labels with
    weights: Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """Write a text with these numbers, one for each of the --feature-columns that the run was trained with."""
    length: int = 500
    """Tokens to generate."""
    temperature: tuple[str, ...] = ("0.8",)
    """0: always the likeliest token. Low: safe and repetitive. 1: the model's own distribution. High: wild. Several
    values: one section for each. 1.2,0.8 is one temperature for each token, the last for the rest; 1.5:0.5:200 is
    linear over 200 tokens."""
    greedy: bool = False
    """The same as --temperature 0."""
    num_samples: int = 1
    """Texts to draw. Text i is the same however many are drawn."""
    sample_index: int | None = None
    """Draw only the text with this number, counted from 0."""
    skip: int = 0
    """Omit this many tokens at the start of each text, to continue where a shorter text ended. --length counts
    them."""
    best_of: int | None = None
    """Draw this many texts and write the likeliest (--num-samples of them) by mean log-probability per token."""
    beam: int | None = None
    """Write the likeliest texts (--num-samples of them) that beam search of this width finds, instead of drawing."""
    length_penalty: float = 1.0
    """With --beam: texts are ranked by log-probability / tokens ** this. 0 favours short texts, above 1 long ones."""
    seed: int = 0
    """Another seed gives other texts."""
    stop: tuple[str, ...] = ()
    """End a text before the first of these strings; \\n, \\t and \\\\ stand for line break, tab and backslash."""
    max_seconds: float | None = None
    """End all texts after this time, start-up included (for each temperature)."""
    block: int | None = None
    """Rows that decode together (default: 1). More rows draw many texts faster, 256 two to four times. Text i can
    differ from the one drawn by default, but is the same for the same block size, which is printed with the speed."""
    state: str | None = None
    """Continue from the state in this file, which --save-state wrote; the prompt is read after it."""
    save_state: str | None = None
    """Write the state after the prompt to this file."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that are not in the vocabulary."""
    interactive: bool = False
    """Continue texts line by line, with commands that change settings, undo, or offer the likeliest tokens: /help."""
    raw: bool = False
    """Do not escape control characters on a terminal."""


ONE_TEXT = "continues one text"
RULES = (
    Excludes("--prompt", ("--prompt-file",), "is the text to continue"),
    Excludes("--interactive", ("--prompt-file -",), "reads its lines from standard input"),
    Excludes("--interactive", ("--json",), "writes plain text"),
    Excludes("--interactive", ("--num-samples", "--skip", "--sample-index", "--best-of", "--block"), ONE_TEXT),
    Excludes("--interactive", ("several values of --temperature",), "uses one temperature at a time"),
    Excludes("--state", ("--label", "--features"), "continues a text whose condition is fixed"),
    Excludes("--greedy", ("--temperature",), "is --temperature 0"),
    Excludes(
        "--beam",
        (
            *("--best-of", "--block", "--max-seconds", "--sample-index", "--stop", "--greedy", "--interactive"),
            *("--skip", "--temperature", "--seed"),
        ),
        "draws nothing",
    ),
    Needs("--length-penalty", ("--beam",), "ranks the texts of beam search"),
    Excludes("--json", ("--skip",), "writes whole texts, so that they can be replayed,"),
    Excludes("--sample-index", ("--num-samples", "--best-of"), "draws one text"),
)


def main(args: Sequence[str] | None = None) -> int:
    """Sample; returns the exit code."""
    return run_command(lambda: sample(list(sys.argv[1:] if args is None else args)), text_only=True)


def sample(args: list[str]) -> None:
    """Parse ``args`` and write the texts that they ask for."""
    from jaxgen.cli.sampling_flags import (
        extra_transform_flags,
        read_temperature,
        read_transforms,
        transform_notes,
        unescape,
        with_condition_flags,
    )

    flags = [*extra_transform_flags(), switch("json", JSON)]
    config, extra = parse(SampleConfig, args, prog="sample.py", description=DESCRIPTION, extra=flags)
    check(config, args, extra)
    prompt = read_prompt(config)

    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.sampler import Sampler
    from jaxgen.runtime import need_backend
    from jaxgen.sampling.decode import DECODE_ROWS

    temperatures = ["0"] if config.greedy else config.temperature
    settings = [
        GenerationConfig(
            config.length,
            read_temperature(temperature),
            config.seed,
            stop=tuple(map(unescape, config.stop)),
            max_seconds=config.max_seconds,
            block=DECODE_ROWS if config.block is None else config.block,
        )
        for temperature in temperatures
    ]
    need_backend()
    sampler = Sampler.load(config.run)
    sampler = with_condition_flags(sampler, config.label, config.features, note=config.state is None)
    transforms = read_transforms(extra, sampler.tokenizer.encode)
    settings = [replace(each, transforms=transforms) for each in settings]
    for note in transform_notes(sampler, transforms):
        log(note)
    state = None if config.state is None else sampler.load_state(config.state)
    if config.save_state is not None:
        saved = sampler.read(prompt, state, unk=config.unk)
        sampler.save_state(config.save_state, saved)
        log(f"The state after {saved.tokens.size:,} tokens is in {config.save_state}.")
    if config.interactive:
        from jaxgen.cli.chat import chat
        from jaxgen.inference.chat import ChatSession

        chat(ChatSession(sampler, settings[0], state=state, unk=config.unk), extra, prompt, raw=config.raw)
        return
    writer = SampleWriter(escape=sys.stdout.isatty() and not config.raw)
    if config.beam is not None:
        write_beams(writer, sampler, config, transforms, prompt, state, as_json=extra["json"])
    else:
        write_samples(writer, sampler, config, dict(zip(temperatures, settings)), prompt, state, as_json=extra["json"])


def check(config: SampleConfig, args: Sequence[str], extra: Mapping[str, object]) -> None:
    """Raise ``UsageError`` for flags that contradict each other or have no effect."""
    check_not_empty(config, args, extra)
    given = given_flags(config, args, extra, even_default=("--temperature", "--seed", "--length-penalty"))
    if len(config.temperature) > 1:
        given.add("several values of --temperature")
    check_rules(RULES, given)
    if config.best_of is not None and not 1 <= config.num_samples <= config.best_of:
        raise UsageError(
            f"{config.num_samples} texts cannot be the best of {config.best_of}: give --best-of a number of at least "
            "--num-samples."
        )


def read_prompt(config: SampleConfig) -> str:
    """The prompt from the flag, a file or standard input. Raises ``DataError`` if it cannot be read."""
    if config.prompt_file is None:
        prompt = config.prompt or ""
        if surrogate := re.search("[\ud800-\udfff]", prompt):
            raise UsageError(f"--prompt is not UTF-8 at character {surrogate.start() + 1}: write it in UTF-8.")
        return prompt
    from jaxgen.data.files import read_pieces

    text = "".join(read_pieces(config.prompt_file))
    # `echo` and editors end every file with a line break, which the model would take for the end of the line.
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


def write_samples(
    writer: SampleWriter,
    sampler: Sampler,
    config: SampleConfig,
    settings: dict[str, GenerationConfig],
    prompt: str,
    state: DecoderState | None,
    *,
    as_json: bool,
) -> None:
    """Draw and write texts with each of ``settings``, which are named by their temperatures."""
    from jaxgen.inference.sampler import blocks_per_call
    from jaxgen.inference.text_stream import collect, select_best

    block = next(iter(settings.values())).block
    number = config.num_samples if config.best_of is None else config.best_of
    parallel = block * blocks_per_call(-(-number // block), block)
    speed = SamplingSpeed(parallel, note="" if config.block is None else f" in blocks of {block}")
    if number >= MANY and config.block is None:
        log(f"note: {number} texts, a row at a time; --block 256 is two to four times as fast, with other float bits.")
    first = config.sample_index or 0
    streams = [  # all arguments are checked before anything is drawn
        sampler.stream(prompt, each, num_samples=number, first=first, skip=config.skip, state=state, unk=config.unk)
        for each in settings.values()
    ]
    for (temperature, each), stream in zip(settings.items(), streams):
        ended: set[int] = set()
        chunks = _track_ends(speed.measure(stream), ended)
        if as_json:
            from jaxgen.inference.receipts import receipt

            samples = collect(chunks) if config.best_of is None else select_best(collect(chunks), config.num_samples)
            writer.write_json(
                receipt(sampler, each, sample, prompt=prompt, unk=config.unk, state_file=config.state)
                for sample in samples
            )
        else:
            if len(settings) > 1:
                writer.heading(f"temperature {temperature}")
            if config.best_of is None:
                writer.write_all(chunks, prompt, first, config.num_samples)
            else:
                writer.write_best(select_best(collect(chunks), config.num_samples), prompt, config.num_samples)
        if len(ended) < number:
            log(f"note: time was up before {number - len(ended):,} of {number:,} texts were begun.")
        if each.greedy and number > 1:
            log(f"note: at temperature 0 all {number} texts are the same.")
    log(str(speed))


def _track_ends(chunks: Iterator[Chunk], ended: set[int]) -> Iterator[Chunk]:
    """The same chunks; the index of every sample that ends is added to ``ended``."""
    for chunk in chunks:
        if chunk.last:
            ended.add(chunk.index)
        yield chunk


def write_beams(
    writer: SampleWriter,
    sampler: Sampler,
    config: SampleConfig,
    transforms: tuple[Transform, ...],
    prompt: str,
    state: DecoderState | None,
    *,
    as_json: bool,
) -> None:
    """Write the best texts of a beam search; if there are several, each has a heading with its score."""
    from jaxgen.inference.beam_search import BeamConfig, beam

    began = time.perf_counter()
    search = BeamConfig(config.beam or 0, config.length, config.length_penalty, config.num_samples, transforms)
    found = beam(sampler, prompt, **search._asdict(), state=state, unk=config.unk)
    for rank, each in enumerate(found, start=1):
        if as_json:
            from jaxgen.inference.receipts import beam_receipt

            found_by = beam_receipt(sampler, search, rank, each, prompt=prompt, unk=config.unk, state_file=config.state)
            writer.write_json([found_by])
            continue
        if config.num_samples > 1:
            writer.heading(f"rank {rank}, {each.logp:.2f} nats, score {each.score:.4f}")
        writer.write(prompt + each.text + "\n")
    if len(found) < config.num_samples:
        log(f"note: no more than {len(found)} texts are possible.")
    tokens = sum(each.tokens.size for each in found)
    log(f"{tokens:,} tokens by beam search of width {config.beam} in {time.perf_counter() - began:.2f} s")
