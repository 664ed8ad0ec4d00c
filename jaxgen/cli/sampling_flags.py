"""Flags that say how texts are generated: the settings of ``sample.py``, logit transforms, labels and features."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

from jaxgen.cli.adaptation_flags import AdaptationConfig
from jaxgen.cli.common import log
from jaxgen.cli.flags import Flag, RunConfig, read_number
from jaxgen.cli.mixture_flags import MixtureConfig
from jaxgen.errors import UsageError, choose
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    import numpy as np

    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.sampler import Sampler
    from jaxgen.sampling.transforms.base import Transform
    from jaxgen.sampling.transforms.temperature import Linear
    from jaxgen.tasks.language.conditioning import Conditioning

#: Turns text into token ids.
Encode = Callable[[str], "np.ndarray"]


class SampleConfig(AdaptationConfig, MixtureConfig):
    """Flags of ``sample.py``; those of the logit transforms come from their registry."""

    common: ClassVar[tuple[str, ...]] = (
        *("run", "prompt", "prompt_file", "length", "temperature", "top_k", "top_p", "num_samples", "seed", "stop"),
        *("interactive", "json"),
    )

    in_adaptation: ClassVar[Group] = Group("Adaptation")
    adapt_to: str | None = None
    """Read this text file before the prompt and adapt the weights to it. --save-state keeps them."""

    in_prompt: ClassVar[Group] = Group("Prompt")
    prompt: str | None = None
    """Text to continue."""
    prompt_file: str | None = None
    """File with the text to continue; - for standard input. One line break at its end is removed."""
    state: str | None = None
    """Continue from the state in this file, which --save-state wrote; the prompt is read after it."""
    save_state: str | None = None
    """Write the state after the prompt to this file."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that are not in the vocabulary."""

    in_drawing: ClassVar[Group] = Group("Drawing")
    temperature: tuple[str, ...] = ("0.8",)
    """0: always the most probable token. Low: safe and repetitive. 1: the model's own distribution. High: varied.
    1.2,0.8 is one temperature for each token, the last for the rest; 1.5:0.5:200 is linear over 200 tokens."""
    greedy: bool = False
    """The same as --temperature 0."""
    seed: int = 0
    """Another seed gives other texts."""
    beam: int | None = None
    """Write the best texts (--num-samples of them) that beam search of this width finds, instead of drawing."""
    length_penalty: float = 1.0
    """With --beam: texts are ranked by log-probability / tokens ** this. 0 favours short texts, above 1 long ones."""

    in_texts: ClassVar[Group] = Group("Number and length of texts")
    num_samples: int = 1
    """Texts to draw. Text i is the same however many are drawn."""
    best_of: int | None = None
    """Draw this many texts and write the best (--num-samples of them) by mean log-probability per token."""
    sample_index: int | None = None
    """Draw only the text with this number, counted from 0."""
    length: int = 500
    """Tokens to generate."""
    skip: int = 0
    """Omit this many tokens at the start of each text, to continue where a shorter text ended. --length counts
    them."""
    stop: tuple[str, ...] = ()
    """End a text before the first of these strings; \\n, \\t and \\\\ stand for line break, tab and backslash."""
    max_seconds: float | None = None
    """End all texts after this time, start-up included (for each temperature)."""
    block: int | None = None
    """Rows that decode together (default: 1). More rows draw many texts faster, 256 two to four times. Text i can
    differ from the one drawn by default, but is the same for the same block size, which is printed with the speed."""

    in_tokens: ClassVar[Group] = Group("Which tokens may follow")  # the transforms

    in_output: ClassVar[Group] = Group("Output")
    separator: str = "---"
    """Written as a line between two texts; \\n, \\t and \\\\ stand for line break, tab and backslash. \\0: NUL
    alone, and no line break is added after a text."""
    interactive: bool = False
    """Continue texts line by line, with commands that change settings, undo, or offer the best next tokens: /help."""
    color: Literal["auto", "always", "never"] = "never"
    """Colour each token by the probability that the model gave it, before any setting. --color alone is auto: on a
    terminal, unless NO_COLOR is set. always: in pipes too (less -R)."""
    raw: bool = False
    """Do not escape control characters on a terminal."""


def generation_config(
    config: SampleConfig, temperature: str, transforms: tuple[Transform, ...] = ()
) -> GenerationConfig:
    """The settings of sampling that flags describe, for one of the temperatures."""
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.sampling.decode import DECODE_ROWS

    return GenerationConfig(
        config.length,
        read_temperature(temperature),
        config.seed,
        transforms,
        stop=tuple(map(unescape, config.stop)),
        max_seconds=config.max_seconds,
        block=DECODE_ROWS if config.block is None else config.block,
    )


def with_condition_flags(sampler: Sampler, config: RunConfig, *, note: bool = True) -> Sampler:
    """``sampler`` under the condition of ``--label`` and ``--features``.

    Without these flags it has none; for a run with labels or features, a note lists them.

    Raises:
        UsageError: The run has none, or a label or weight cannot be used.
    """
    known = sampler.conditioning
    if config.label or config.features:
        weights = None if not config.label or known is None else read_label_weights(config.label, known)
        return sampler.conditioned(weights, config.features or None)
    if note and known is not None:
        label = f"--label ({', '.join(known.labels)})" if known.labels else ""
        features = f"--features ({' '.join(known.features)})" if known.features else ""
        flags = " and ".join(filter(None, (label, features)))
        log(f"note: without {flags} a text starts from the mean of the training texts.")
    return sampler.with_condition(None)


def read_label_weights(words: Sequence[str], known: Conditioning) -> dict[str, float]:
    """Label -> weight from ``Sports`` or ``Sports:0.3 World:0.7``; a label may itself contain a colon.

    Raises:
        UsageError: A label is unknown or given twice, or a weight is missing or no number.
    """
    if not known.labels:
        return dict.fromkeys(words, 1.0)  # ``Conditioning.choose`` reports that there are none
    weights: dict[str, float] = {}
    for word in words:
        name, weight = word, None
        if word not in known.labels and ":" in word:
            name, _, number = word.rpartition(":")
            try:
                weight = float(number)
            except ValueError:
                raise UsageError(
                    f"--label {word!r} cannot be read: give a label, or several with weights, such as "
                    f"{known.labels[0]}:0.3 {known.labels[-1]}:0.7."
                ) from None
        choose(name, known.labels, "label")
        if weight is None and len(words) > 1:
            raise UsageError(
                f"--label {' '.join(words)} names {len(words)} labels, {name!r} without a weight: give one label, or "
                f"a weight with each, such as {name}:0.5."
            )
        if name in weights:
            raise UsageError(f"--label names {name!r} twice: give it once.")
        weights[name] = 1.0 if weight is None else weight
    return weights


class TransformFlag(NamedTuple):
    """The flag of a logit transform, made from the transform's first option."""

    name: str  # with hyphens
    transform: type[Any]
    option: Any  # the type of the first option

    @property
    def takes_tokens(self) -> bool:
        """Whether the option holds token ids, which the flag gives as texts."""
        return _mentions_tokens(self.option)

    @property
    def takes_weights(self) -> bool:
        """Whether the option is pairs of a token and a number."""
        return self.takes_tokens and bool(get_args(get_args(self.option)[0]))

    @property
    def default(self) -> tuple[()] | None:
        """The value that stands for a flag that was not given."""
        return () if self.takes_tokens else None

    @property
    def metavar(self) -> str:
        """What the help calls a value."""
        if self.takes_tokens:
            return "TEXT=NUMBER" if self.takes_weights else "TEXT"
        if self.is_text:
            return "FILE" if self.names_file else "PATTERN"
        return "N" if self.option is int else "X"

    @property
    def is_text(self) -> bool:
        """Whether the flag has one text, which is not split into tokens."""
        return self.option is str or self.names_file

    @property
    def names_file(self) -> bool:
        """Whether the option is the lines of a file, which the flag names."""
        return getattr(self.transform, "from_file", False)

    @property
    def help(self) -> str:
        """The first sentence of the transform's docstring; empty without one, as PYTHONOPTIMIZE=2 leaves it."""
        text = re.sub(r"\s+", " ", inspect.getdoc(self.transform) or "").replace("`", "")
        if text.startswith(f"{self.transform.__name__}("):  # what a dataclass has instead
            return ""
        return re.split(r"(?<=[.;)])\s+(?=[A-Z])", text)[0]

    def read(self, words: Sequence[str]) -> Any:
        """The value of the flag with these words after it."""
        if self.is_text:
            return " ".join(words)
        return tuple(words) if self.takes_tokens else read_number(self.name, words, self.option)

    def build(self, value: Any, encode: Encode) -> Transform:
        """The transform for a value of the flag. Raises ``UsageError`` for one that cannot be used."""
        from jaxgen.data.files import read_lines, read_text

        if self.takes_weights:
            value = _token_weights(value, self.name, encode)
        elif self.takes_tokens:
            value = _token_ids(value, self.name, encode, all_forms=not getattr(self.transform, "in_order", False))
        elif self.names_file:
            value = tuple(read_lines(iter([read_text(Path(value))])))
        built: Transform = self.transform(value)
        return built


def transform_flags() -> dict[str, TransformFlag]:
    """Name -> flag, one for each of ``TRANSFORMS`` but the temperature, which has a flag of its own."""
    from jaxgen.sampling.transforms import TRANSFORMS

    return {
        name: TransformFlag(name, kind, get_type_hints(kind)[dataclasses.fields(kind)[0].name])
        for name, kind in TRANSFORMS.items()
        if name != "temperature"
    }


def extra_transform_flags() -> list[Flag]:
    """The flags of the transforms for the parser."""
    extra = []
    for flag in transform_flags().values():
        kind: Any = tuple[str, ...] if flag.takes_tokens else (str if flag.is_text else flag.option) | None
        metavar = f"{flag.metavar} ..." if flag.takes_tokens else flag.metavar if flag.is_text else None
        name, group = flag.name.replace("-", "_"), "Which tokens may follow"
        extra.append(Flag(name, kind, flag.default, flag.help, metavar, group=group))
    return extra


def read_transforms(values: Mapping[str, Any], encode: Encode) -> tuple[Transform, ...]:
    """The transforms that flags ask for, in the order of ``TRANSFORMS``.

    Args:
        values: The value of each transform's flag, by its name with underscores.
        encode: Turns text into token ids.

    Raises:
        UsageError: A value is out of range or not in the vocabulary.
    """
    given = ((flag, values[name.replace("-", "_")]) for name, flag in transform_flags().items())
    return tuple(flag.build(value, encode) for flag, value in given if value != flag.default)


def read_temperature(text: str) -> float | tuple[float, ...] | Linear:
    """A temperature: ``0.8``, one for each token (``1.2,0.8,0.5``), or a line over tokens (``1.5:0.5:200``)."""
    from jaxgen.sampling.transforms.temperature import Linear

    try:
        if ":" in text:
            start, end, steps = text.split(":")
            return Linear(float(start), float(end), int(steps))
        values = tuple(float(value) for value in text.split(","))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"--temperature {text!r} cannot be read: give a number such as 0.8, one a token such as 1.2,0.8,0.5, "
            "or a line such as 1.5:0.5:200, from 1.5 to 0.5 over 200 tokens."
        ) from None
    return values if len(values) > 1 else values[0]


def transform_notes(sampler: Sampler, transforms: Iterable[Transform]) -> Iterator[str]:
    """Notes on transforms that have less effect on this model than the user may expect."""
    from jaxgen.sampling.transforms.constraints import MinLength
    from jaxgen.sampling.transforms.truncation import TopK

    vocab = sampler.tokenizer.vocab_size
    for each in transforms:
        if isinstance(each, TopK) and each.k > vocab:
            yield f"note: --top-k {each.k} is more than the vocabulary of {vocab}; all tokens are kept."
        if isinstance(each, MinLength) and not sampler.documents:
            yield "note: --min-length has no effect: this model was trained on running text, which has no end."


def unescape(text: str) -> str:
    r"""Replace ``\n``, ``\t`` and ``\\`` by the characters they stand for, which are hard to type in a shell."""
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)


def _mentions_tokens(option: Any) -> bool:
    from jaxgen.types import TokenId

    return option is TokenId or any(_mentions_tokens(part) for part in get_args(option))


def _token_ids(texts: Iterable[str], name: str, encode: Encode, all_forms: bool = True) -> tuple[int, ...]:
    """The tokens of each text; with ``all_forms`` also those of the text after a space, where that adds no token."""
    from jaxgen.tokenizers.base import UNK

    found: list[int] = []
    for text in map(unescape, texts):
        plain, after_space = ([int(i) for i in encode(each)] for each in (text, " " + text))
        if not plain:
            raise UsageError(f"--{name} got an empty text: give one or more characters.")
        forms = [plain, after_space] if len(after_space) == len(plain) else [plain]
        known = [form for form in forms if UNK not in form]
        if not known:
            raise UsageError(f"--{name} {text!r} is not in the vocabulary: give text that the model can write.")
        found += [i for form in (known if all_forms else known[:1]) for i in form]
    return tuple(dict.fromkeys(found)) if all_forms else tuple(found)


def _token_weights(pairs: Iterable[str], name: str, encode: Encode) -> tuple[tuple[int, float], ...]:
    found = []
    for pair in pairs:
        text, sign, number = pair.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"--{name} {pair!r} cannot be read: give a text and a number, such as e=-1.5.")
        found += [(i, value) for i in _token_ids([text], name, encode)]
    return tuple(found)
