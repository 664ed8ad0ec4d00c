"""``sample.py`` and ``jaxgen sample``: a prompt in, text out; everything that is not text goes to standard error."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import flag_value, log, parse_more, run_command
from jaxgen.cli.output import Speed, Writer
from jaxgen.errors import DataError, UsageError

if TYPE_CHECKING:
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.text_stream import Chunk

DESCRIPTION = """Write text with a trained model. The same run, prompt, settings and seed always give the same text.

    python sample.py                                      the newest run in runs/
    python sample.py --prompt "The " --temperature 0.5
    python sample.py --temperature 0.3 0.8 1.3            one section for each
    python sample.py --temperature 1.5:0.5:200            from 1.5 to 0.5 over 200 tokens
    python sample.py --prompt "Q: " --stop "\\n" "A:"      ends in front of either
    python sample.py --num-samples 1000 --block 256       many at once
    python sample.py --label Sports                       of a run trained with --label-column
    echo "To be" | python sample.py --prompt-file -       prompt from standard input"""


#: From so many texts on, it is worth being told of blocks.
MANY = 100
JSON = """Write an object for each text: tokens, log-probabilities and all that fixed it. `jaxgen replay` reads them."""


class SampleConfig(BaseModel):
    """Flags of ``sample.py``; those of the logit transforms come from their registry."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the newest in runs/."""
    prompt: str | None = None
    """Text to continue."""
    prompt_file: str | None = None
    """File with the text to continue; - for standard input. One line break at its end is left out."""
    label: tuple[str, ...] = ()
    """Write a text of this label, of a run trained with --label-column; or one between labels with their weights:
    Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """Write a text with these numbers, one for each of the --feature-columns that the run was trained with."""
    length: int = 500
    """Tokens to generate."""
    temperature: tuple[str, ...] = ("0.8",)
    """0: always the likeliest token. Low: safe and repetitive. 1: the model as it is. High: wild. Several: one
    section each. 1.2,0.8 is a temperature for each token, the last for the rest; 1.5:0.5:200 a line over 200 tokens."""
    greedy: bool = False
    """The same as --temperature 0."""
    num_samples: int = 1
    """Texts to draw; text i is the same however many are drawn."""
    sample_index: int | None = None
    """Draw just the text of this number, counted from 0."""
    skip: int = 0
    """Leave out the first tokens of each text, so many: it goes on where a shorter one ended. --length counts them."""
    best_of: int | None = None
    """Draw so many and write the likeliest (--num-samples of them), by mean log-probability of a token."""
    beam: int | None = None
    """Write the likeliest texts (--num-samples of them) that this many beams find, instead of drawing any."""
    length_penalty: float = 1.0
    """What beams are compared by: log-probability / tokens ** this. 0 favours short texts, more than 1 long ones."""
    seed: int = 0
    """Another seed, other texts."""
    stop: tuple[str, ...] = ()
    """End a text in front of the first of these strings that it comes to; \\n, \\t and \\\\ are understood."""
    max_seconds: float | None = None
    """End all texts after this time, start-up included (for each temperature)."""
    block: int | None = None
    """Rows that decode together (default: 1). More make many texts sooner, 256 two to four times. Text i may then be
    another text than by default, but is the same for the same number, which is printed with the speed."""
    state: str | None = None
    """Continue from the state in this file, which --save-state wrote; the prompt is read after it."""
    save_state: str | None = None
    """Write the state after the prompt to this file."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that the model has never seen."""
    interactive: bool = False
    """Continue texts line by line, with commands that change settings, take back, or offer the likeliest: /help."""
    raw: bool = False
    """Write control characters as they are on a terminal too."""


def main(args: Sequence[str] | None = None) -> int:
    """Sample; returns the exit code."""
    return run_command(lambda: sample(list(sys.argv[1:] if args is None else args)), text_alone=True)


def sample(args: list[str]) -> None:
    from jaxgen.cli import chat as interactive
    from jaxgen.cli.sampling_flags import (
        conditioned,
        notes,
        read_temperature,
        read_transforms,
        transform_flags,
        unescaped,
    )

    flags = [*transform_flags(), ("json", Annotated[bool, _help(JSON)], False)]
    config, more = parse_more(SampleConfig, args, prog="sample.py", description=DESCRIPTION, more=flags)
    check(config, args, more)
    if config.interactive:
        interactive.check(config, more["json"])
    prompt = read_prompt(config)

    from jaxgen.inference.chat import ChatSession
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.sampler import Sampler
    from jaxgen.runtime import need_backend
    from jaxgen.sampling.decode import DECODE_ROWS

    block = DECODE_ROWS if config.block is None else config.block
    limits = {"stop": tuple(map(unescaped, config.stop)), "max_seconds": config.max_seconds, "block": block}
    names = ["0"] if config.greedy else config.temperature
    plain = [GenerationConfig(config.length, read_temperature(name), config.seed, **limits) for name in names]
    need_backend()
    sampler = Sampler.load(config.run)
    sampler = conditioned(sampler, config.label, config.features, note=config.state is None)
    transforms = read_transforms(more, sampler.tokenizer.encode)
    settings = [replace(each, transforms=transforms) for each in plain]
    for note in notes(sampler, transforms):
        log(note)
    options = {"prompt": prompt, "unk": config.unk, "first": config.sample_index or 0, "skip": config.skip}
    options["state"] = None if config.state is None else sampler.load_state(config.state)
    if config.save_state is not None:
        state = sampler.read(prompt, options["state"], unk=config.unk)
        sampler.save_state(config.save_state, state)
        log(f"The state after {state.tokens.size:,} tokens is in {config.save_state}.")
    if config.interactive:
        talk = ChatSession(sampler, settings[0], state=options["state"], unk=config.unk)
        interactive.interact(talk, config, more, prompt)
        return

    writer = Writer(escape=sys.stdout.isatty() and not config.raw)
    if config.beam is not None:
        start = {"prompt": prompt, "state": options["state"], "unk": config.unk}
        write_beams(writer, sampler, config, transforms, as_json=more["json"], **start)
        return
    write_samples(writer, sampler, config, list(zip(names, settings)), as_json=more["json"], **options)


def write_samples(
    writer: Writer,
    sampler: Sampler,
    config: SampleConfig,
    settings: Sequence[tuple[str, GenerationConfig]],
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Texts drawn with each of ``settings``, which are named by their temperatures."""
    from jaxgen.inference.batch_decode import count_together
    from jaxgen.inference.receipts import receipt
    from jaxgen.inference.text_stream import collect, select_best

    block = settings[0][1].block
    number = config.num_samples if config.best_of is None else config.best_of
    arriving = block * count_together(-(-number // block), block)  # so many texts have their first chunk at once
    speed = Speed(arriving, note="" if config.block is None else f" in blocks of {block}")
    if number >= MANY and config.block is None:
        log(f"note: {number} texts, a row at a time; --block 256 is two to four times as fast, with other float bits.")
    streams = [sampler.stream(settings=each, num_samples=number, **options) for _, each in settings]
    for (name, each), stream in zip(settings, streams):
        ended: set[int] = set()
        pieces = noted(speed.timed(stream), ended)
        if as_json:
            made = collect(pieces) if config.best_of is None else select_best(collect(pieces), config.num_samples)
            fixed = {"prompt": options["prompt"], "unk": config.unk, "state_file": config.state}
            writer.write_json(receipt(sampler, each, sample, **fixed) for sample in made)
        else:
            if len(settings) > 1:
                writer.heading(f"temperature {name}")
            if config.best_of is None:
                writer.write_all(pieces, options["prompt"], options["first"], config.num_samples)
            else:
                writer.write_best(
                    select_best(collect(pieces), config.num_samples), options["prompt"], config.num_samples
                )
        if len(ended) < number:
            log(f"note: time was up before {number - len(ended):,} of {number:,} texts were begun.")
        if each.greedy and number > 1:
            log(f"note: at temperature 0 all {number} texts are the same.")
    log(str(speed))


def noted(pieces: Iterator[Chunk], ended: set[int]) -> Iterator[Chunk]:
    """The pieces, with the numbers of the texts that they end put into ``ended``."""
    for piece in pieces:
        if piece.last:
            ended.add(piece.index)
        yield piece


def check(config: SampleConfig, args: Sequence[str], more: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for flags that contradict each other or say nothing."""
    if not config.temperature:
        raise UsageError("--temperature was given without a number: give one or more, for example 0.8.")
    empty = {"stop": config.stop, "label": config.label, **more}
    for flag in [flag for flag, value in empty.items() if value == () and f"--{flag}" in args]:
        raise UsageError(f"--{flag} was given without a text: give one or more, or leave it out.")
    if config.features == () and "--features" in args:
        raise UsageError("--features was given without a number: give one for each feature, or leave it out.")
    if config.state is not None and (config.label or config.features):
        flag = "--label" if config.label else "--features"
        raise UsageError(f"--state goes on from a text that has begun, and {flag} says where one begins: give one.")
    if config.greedy and flag_value(args, "--temperature") is not None:
        raise UsageError(
            "--greedy and --temperature were given together: --greedy is --temperature 0, give one of them."
        )
    if config.beam is None and flag_value(args, "--length-penalty") is not None:
        raise UsageError("--length-penalty is what beams are compared by: give --beam too, or leave it out.")
    if config.beam is not None:
        single = ("best_of", "block", "max_seconds", "sample_index")
        drawn = [f"--{name.replace('_', '-')}" for name in single if getattr(config, name) is not None]
        drawn += ["--stop"] * bool(config.stop) + ["--greedy"] * config.greedy + ["--interactive"] * config.interactive
        drawn += ["--skip"] * bool(config.skip)
        drawn += [flag for flag in ("--temperature", "--seed") if flag_value(args, flag) is not None]
        if drawn:
            raise UsageError(f"--beam draws nothing, so that {drawn[0]} means nothing to it: leave one of them out.")
    if config.skip and more["json"]:
        raise UsageError("--json writes whole texts, which can be replayed, and --skip parts: leave one of them out.")
    if config.sample_index is not None and (config.num_samples != 1 or config.best_of is not None):
        other = "--num-samples" if config.num_samples != 1 else "--best-of"
        raise UsageError(f"--sample-index asks for one text and {other} for others: give one of them.")
    if config.best_of is not None and not 1 <= config.num_samples <= config.best_of:
        raise UsageError(
            f"{config.num_samples} texts cannot be the best of {config.best_of}: give --best-of a number of at least "
            "--num-samples."
        )


def write_beams(
    writer: Writer, sampler: Sampler, config: SampleConfig, transforms: tuple[Any, ...], *, as_json: bool, **start: Any
) -> None:
    """The best texts of a beam search, each headed by its score if there are several."""
    from jaxgen.inference.beam_search import Search, beam
    from jaxgen.inference.receipts import beam_receipt

    began = time.perf_counter()
    search = Search(config.beam or 0, config.length, config.length_penalty, config.num_samples, transforms)
    found = beam(sampler, **search._asdict(), **start)
    for rank, each in enumerate(found, start=1):
        if as_json:
            fixed = {"prompt": start["prompt"], "unk": config.unk, "state_file": config.state}
            writer.write_json([beam_receipt(sampler, search, rank, each, **fixed)])
            continue
        if config.num_samples > 1:
            writer.heading(f"rank {rank}, {each.logp:.2f} nats, score {each.score:.4f}")
        writer.put(start["prompt"] + each.text + "\n")
    if len(found) < config.num_samples:
        log(f"note: no more than {len(found)} texts are possible.")
    tokens = sum(each.tokens.size for each in found)
    log(f"{tokens:,} tokens by beam search of width {config.beam} in {time.perf_counter() - began:.2f} s")


def _help(text: str) -> Any:
    import tyro

    return tyro.conf.arg(help=text)


def read_prompt(config: SampleConfig) -> str:
    """The prompt from the flag, a file or standard input."""
    if config.prompt is not None and config.prompt_file is not None:
        raise UsageError("--prompt and --prompt-file were given together: give one of them.")
    if config.prompt_file is None:
        prompt = config.prompt or ""
        if place := re.search("[\ud800-\udfff]", prompt):
            raise UsageError(f"--prompt is not UTF-8 at character {place.start() + 1}: write it in UTF-8.")
        return prompt
    if config.prompt_file == "-" and sys.stdin is None:
        raise DataError("--prompt-file - reads standard input, which is closed: give a file, or --prompt TEXT.")
    try:
        raw = sys.stdin.buffer.read() if config.prompt_file == "-" else Path(config.prompt_file).read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"The prompt in {config.prompt_file} is not UTF-8 at byte offset {error.start}. Convert it to UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"The prompt file {config.prompt_file} cannot be read: {error.strerror}.") from None
    # `echo` and editors end every file in a line break, which a model would take for the end of the line.
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
