"""``sample.py`` and ``jaxgen sample``: write text to standard output, everything else to standard error."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxgen.cli.adaptation_flags import STEP_FLAGS
from jaxgen.cli.common import escape_controls, json_line, log
from jaxgen.cli.flags import Command, Excludes, Flag, Needs, Rules, check_flags, fill_value, parse
from jaxgen.cli.mixture_flags import MIXTURE_RULES, fill_mixture_flags, open_sampler
from jaxgen.cli.sampling_flags import (
    SampleConfig,
    extra_transform_flags,
    generation_config,
    read_transforms,
    transform_notes,
    unescape,
    with_condition_flags,
)
from jaxgen.cli.speed import SamplingSpeed
from jaxgen.errors import UsageError, counted
from jaxgen.fsutil import check_output

if TYPE_CHECKING:
    from jaxgen.cli.token_colors import TokenColors
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.receipts import StateOrigin
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.state import DecoderState
    from jaxgen.inference.text_stream import Chunk
    from jaxgen.sampling.transforms.base import Transform

DESCRIPTION = """Write text with a trained model. The same run, prompt, settings and seed always give the same text.

    python sample.py                                 the newest run in runs/
    python sample.py --run pretrained:shakespeare    a model that comes with jaxgen
    python sample.py --prompt "The " --temperature 0.5
    python sample.py --temperature 0.3 0.8 1.3       one text for each
    python sample.py --temperature 1.5:0.5:200       linear over 200 tokens
    python sample.py --prompt "Q: " --stop "\\n" "A:"  ends before either string
    python sample.py --num-samples 1000 --block 256  many at once
    python sample.py --mix runs/a:0.7 runs/b:0.3     two models at once
    python sample.py --label Sports                  a text with this label
    python sample.py --adapt-to book.txt             the model has read this first
    python sample.py --color                         how probable was each token?
    echo "To be" | python sample.py --prompt-file -  prompt from standard input"""

JSON = """Write one JSON object for each text, with its tokens, log-probabilities and everything that determined it.
`jaxgen replay` reads them."""
#: With this many texts or more, a note recommends ``--block``.
MANY = 100
NUL = "\0"
ONE_TEXT = "continues one text"
RULES: Rules = (
    *MIXTURE_RULES,
    Excludes("--prompt", ("--prompt-file",), "is the text to continue"),
    Excludes("--interactive", ("--prompt-file -",), "reads its lines from standard input"),
    Excludes("--interactive", ("--json",), "writes plain text"),
    Excludes("--interactive", ("--num-samples", "--skip", "--sample-index", "--best-of", "--block"), ONE_TEXT),
    Excludes("--interactive", ("several values of --temperature",), "uses one temperature at a time"),
    *(Needs(flag, ("--adapt-to",), "is about adaptation") for flag in STEP_FLAGS),
    Excludes("--state", ("--label", "--features"), "continues a text whose condition is fixed"),
    Excludes("--greedy", ("--temperature",), "is --temperature 0"),
    Excludes("--beam", ("--best-of", "--block", "--max-seconds", "--sample-index", "--stop"), "draws nothing"),
    Excludes("--beam", ("--greedy", "--interactive", "--skip", "--temperature", "--seed"), "draws nothing"),
    Needs("--length-penalty", ("--beam",), "ranks the texts of beam search"),
    Excludes("--json", ("--skip",), "writes whole texts, so that they can be replayed,"),
    Excludes("--color", ("--beam", "--interactive", "--json", "--skip"), "colours whole texts that are drawn"),
    Excludes("--separator", ("--json", "--interactive"), "stands between plain texts"),
    Excludes("--sample-index", ("--num-samples", "--best-of"), "draws one text"),
)
#: Flags that count as given even with their default value.
EVEN_DEFAULT = ("--temperature", "--seed", "--length-penalty", *STEP_FLAGS)


def sample(args: list[str]) -> None:
    """Parse ``args`` and write the texts that they ask for."""
    args = fill_value(fill_mixture_flags(args), "--color", "auto")
    flags = [*extra_transform_flags(), Flag("json", bool, False, JSON)]
    config, extra = parse(SampleConfig, args, prog="python sample.py", description=DESCRIPTION, extra=flags)
    several = ("several values of --temperature",) if len(config.temperature) > 1 else ()
    check_flags(RULES, config, args, extra, even_default=EVEN_DEFAULT, also=several)
    if config.save_state is not None:
        check_output(config.save_state, "--save-state")
    _ = config.adaptation  # raises ``UsageError`` for a value out of range
    prompt = read_prompt(config)

    from jaxgen.inference.sampler import check_best
    from jaxgen.runtime import need_backend

    if config.best_of is not None:
        check_best(config.num_samples, config.best_of)
    temperatures = ("0",) if config.greedy else config.temperature
    settings = [generation_config(config, temperature) for temperature in temperatures]
    need_backend()
    sampler = open_sampler(config, "sample", named=not config.interactive).exact()  # the chat names its run itself
    check_prompt(prompt, config, sampler.tokenizer.kind)
    sampler = with_condition_flags(sampler, config, note=config.state is None)
    transforms = read_transforms(extra, sampler.tokenizer.encode)
    settings = [replace(each, transforms=transforms) for each in settings]
    for note in transform_notes(sampler, transforms):
        log(note)
    state, origin = read_state(sampler, config)
    if config.save_state is not None:
        saved = sampler.read(prompt, state, unk=config.unk)
        sampler.save_state(config.save_state, saved)
        log(f"The state after {counted(saved.tokens.size, 'token')} is in {config.save_state}.")
    separator = NUL if config.separator in (NUL, "\\0") else unescape(config.separator)
    colors = None
    if config.color != "never":
        from jaxgen.cli.token_colors import open_colors

        colors = open_colors(config.color, sampler, sampler.open_prompt(prompt, state, config.unk)[1])
    shown = sys.stdout.isatty() or colors is not None
    writer = SampleWriter(shown and not config.raw, separator, colors)
    if config.interactive:
        from jaxgen.cli.chat import chat
        from jaxgen.inference.chat import ChatSession

        session = ChatSession(sampler, settings[0], state=state, unk=config.unk)
        chat(session, config.model_copy(update={"temperature": temperatures}), extra, prompt, writer.write)
        return
    if config.beam is not None:
        write_beams(writer, sampler, config, transforms, prompt, state, origin, as_json=extra["json"])
    else:
        write_samples(
            writer, sampler, config, dict(zip(temperatures, settings)), prompt, state, origin, as_json=extra["json"]
        )


main = Command(sample, text_only=True)


def read_prompt(config: SampleConfig) -> str:
    """The prompt from the flag, a file or standard input. Raises ``DataError`` if it cannot be read."""
    if config.prompt_file is None:
        return config.prompt or ""
    from jaxgen.data.files import read_pieces

    text = "".join(read_pieces(config.prompt_file, any_bytes=True))
    # `echo` and editors end every file with a line break, which the model would take for the end of the line.
    return re.sub(r"(\r\n|\r|\n)\Z", "", text)


def read_state(sampler: Sampler, config: SampleConfig) -> tuple[DecoderState | None, StateOrigin | None]:
    """The state before the prompt and where it comes from; None if the text begins with the prompt.

    Raises ``CheckpointError``, ``DataError`` and ``UsageError`` for files that cannot be used.
    """
    if config.state is None and config.adapt_to is None:
        return None, None

    from jaxgen.inference.receipts import AdaptedTo, StateFile, StateOrigin

    state = None if config.state is None else sampler.load_state(config.state)
    origin = StateOrigin(state=None if config.state is None else StateFile.of(config.state))
    if config.adapt_to is None:
        return state, origin
    adapted = AdaptedTo.of(config.adapt_to, config.adaptation, config.unk)
    state = adapted.adapt(sampler, state)
    segments = 0 if state.adapted is None else int(state.adapted.state.step)
    log(f"The weights adapted to {counted(segments, 'segment')} of {config.adapt_to}.")
    return state, origin.model_copy(update={"adapted_to": adapted})


def check_prompt(prompt: str, config: SampleConfig, level: str) -> None:
    """Raise an error for a prompt with bytes that are not UTF-8, unless the run is of the byte level."""
    surrogate = None if level == "byte" else re.search("[\ud800-\udfff]", prompt)
    if surrogate and config.prompt_file is None:
        raise UsageError(
            f"--prompt is not UTF-8 at character {surrogate.start() + 1}: write it in UTF-8, or take a "
            "run that was trained with --level byte."
        )
    if surrogate:
        from jaxgen.data.files import BYTE_RUN, not_utf8

        try:
            prompt.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            name = "Standard input" if config.prompt_file == "-" else f"The file {config.prompt_file}"
            raise not_utf8(name, error, remedy=BYTE_RUN) from None


#: A part of a text, and a function that adds the codes of its colour.
Span = tuple[str, Callable[[str], str]]


def _plain(chunk: Chunk) -> list[Span]:
    return [(chunk.text, str)]


class SampleWriter:
    """Writes samples to standard output in order: the first of a block as it is generated, the others after it.

    Each text ends with a line break, and a line with the separator stands between two texts. The separator NUL stands
    alone instead, and no line break is added anywhere. With ``colors``, tokens are coloured.
    """

    def __init__(self, escape: bool, separator: str = "---", colors: TokenColors | None = None) -> None:
        self.escape, self.separator = escape, separator
        self._spans: Callable[[Chunk], Iterable[Span]] = _plain if colors is None else colors.spans
        self._held, self._texts = "", 0

    def write(self, text: str) -> None:
        """Write text and flush. Bytes that are not UTF-8 are written as they are, on a terminal as U+FFFD."""
        self.write_spans([(text, str)])

    def write_spans(self, spans: Iterable[Span]) -> None:
        """Write parts of a text, each painted after its control characters are escaped, and flush."""
        sys.stdout.write("".join([paint(self._encodable(text)) for text, paint in spans]))
        sys.stdout.flush()

    def _encodable(self, text: str) -> str:
        """Text as standard output takes it, with control characters escaped for a terminal."""
        from jaxgen.tokenizers.base import text_bytes

        exact = not self.escape and getattr(sys.stdout, "errors", None) == "surrogateescape"
        text = text_bytes(text).decode("utf-8", "surrogateescape" if exact else "replace")
        if self.escape:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # the next character decides whether it is a line break
            text = escape_controls(text.removesuffix("\r"))
        return text

    def write_json(self, value: object) -> None:
        """Write a line of JSON; lone surrogates (in a stop string) are escaped."""
        self.write(re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", json_line(value)))

    def begin(self, *about: str) -> None:
        """Begin a text; what it is goes to standard error."""
        if self._texts:
            self.write(self.separator if self.separator == NUL else f"{self.separator}\n")
        self._texts += 1
        if heading := ", ".join(filter(None, about)):
            log(heading)

    def end(self) -> None:
        """End a text."""
        if self.separator != NUL:
            self.write("\n")

    def write_text(self, text: str, *about: str, drawn: Chunk | None = None) -> None:
        """Write a whole text, and what was ``drawn`` after it."""
        self.begin(*about)
        self.write(text)
        if drawn is not None:
            self.write_spans(self._spans(drawn))
        self.end()

    def write_all(self, stream: Iterator[Chunk], prompt: str, first: int, about: str, number: bool) -> None:
        """Write every sample of ``stream`` after its prompt; ``about`` and, with ``number``, its number head it."""
        turn, begun = first, False
        waiting: dict[int, list[Span]] = {}
        finished: set[int] = set()
        for chunk in stream:
            waiting.setdefault(chunk.index, []).extend(self._spans(chunk))
            if chunk.last:
                finished.add(chunk.index)
            while turn in waiting:
                if not begun:
                    self.begin(about, f"sample {turn}" if number else "")
                    self.write(prompt)
                self.write_spans(waiting.pop(turn))
                begun = turn not in finished
                if not begun:
                    self.end()
                    turn += 1


def write_samples(
    writer: SampleWriter,
    sampler: Sampler,
    config: SampleConfig,
    settings: dict[str, GenerationConfig],
    prompt: str,
    state: DecoderState | None,
    origin: StateOrigin | None,
    *,
    as_json: bool,
) -> None:
    """Draw and write texts with each of ``settings``, which are named by their temperatures."""
    from jaxgen.inference.sampler import blocks_per_call
    from jaxgen.inference.text_stream import collect, select_best

    shown = sampler.reading.text(prompt)
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
        chunks = speed.measure(stream)
        if as_json:
            from jaxgen.inference.receipts import receipt

            samples = collect(chunks) if config.best_of is None else select_best(collect(chunks), config.num_samples)
            for drawn in samples:
                value = receipt(sampler, each, drawn, prompt=prompt, unk=config.unk, origin=origin)
                writer.write_json(value)
        else:
            about = f"temperature {temperature}" if len(settings) > 1 else ""
            if config.best_of is None:
                writer.write_all(chunks, shown, first, about, config.num_samples > 1)
            else:
                for drawn in select_best(collect(chunks), config.num_samples):
                    selected = f"sample {drawn.index}, {drawn.mean_logp:.4f} nats a token"
                    writer.write_text(shown, about, selected, drawn=drawn)
        if speed.ended < number:
            log(f"note: time was up before {number - speed.ended:,} of {number:,} texts were begun.")
        if each.greedy and number > 1:
            log(f"note: at temperature 0 all {number} texts are the same.")
    log(str(speed))


def write_beams(
    writer: SampleWriter,
    sampler: Sampler,
    config: SampleConfig,
    transforms: tuple[Transform, ...],
    prompt: str,
    state: DecoderState | None,
    origin: StateOrigin | None,
    *,
    as_json: bool,
) -> None:
    """Write the best texts of a beam search; if there are several, standard error has the score of each."""
    from jaxgen.inference.beam_search import BeamConfig, beam

    began = time.perf_counter()
    search = BeamConfig(config.beam or 0, config.length, config.length_penalty, config.num_samples, transforms)
    found = beam(sampler, prompt, **search._asdict(), state=state, unk=config.unk)
    for rank, each in enumerate(found, start=1):
        if as_json:
            from jaxgen.inference.receipts import beam_receipt

            found_by = beam_receipt(sampler, search, rank, each, prompt=prompt, unk=config.unk, origin=origin)
            writer.write_json(found_by)
            continue
        about = f"rank {rank}, {each.logp:.2f} nats, score {each.score:.4f}" if config.num_samples > 1 else ""
        writer.write_text(sampler.reading.text(prompt) + each.text, about)
    if len(found) < config.num_samples:
        log(f"note: no more than {len(found)} texts are possible.")
    tokens = sum(each.tokens.size for each in found)
    log(f"{counted(tokens, 'token')} by beam search of width {config.beam} in {time.perf_counter() - began:.2f} s")
