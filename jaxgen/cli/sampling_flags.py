"""Flags of ``sample.py`` that stand for logit transforms: one for each of ``TRANSFORMS``, made from its options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from jaxgen.errors import UsageError
from jaxgen.tokenizers.base import UNK
from jaxgen.types import TokenId

if TYPE_CHECKING:
    from jaxgen.inference.sampler import Sampler
from typing import TYPE_CHECKING

from jaxgen.cli.common import log
from jaxgen.errors import choose

if TYPE_CHECKING:
    from jaxgen.inference.sampler import Sampler
    from jaxgen.tasks.language.conditioning import Conditioning


def conditioned(sampler: Sampler, label: Sequence[str], features: Sequence[float], *, note: bool = True) -> Sampler:
    """``sampler`` under what the flags say; under nothing if they were not given, with a note of what they can be.

    Raises ``UsageError`` for a run that knows no such thing, for an unknown label and for weights that cannot be used.
    """
    if label or features:
        known = sampler.conditioning
        weights = None if not label or known is None else read_weights(label, known)
        return sampler.conditioned(weights, features or None)
    if note and sampler.conditioning is not None:
        log(f"note: without {flags(sampler.conditioning)} a text begins from the mean of the training texts.")
    return sampler


def read_weights(words: Sequence[str], known: Conditioning) -> dict[str, float]:
    """``Sports``, or ``Sports:0.3 World:0.7``, whose proportion counts; a label may have a colon of its own."""
    if not known.labels:
        return dict.fromkeys(words, 1.0)  # ``Conditioning.choose`` says that there are none
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


def flags(known: Conditioning) -> str:
    """The flags that a run understands, with what they can be."""
    label = f"--label ({', '.join(known.labels)})" if known.labels else ""
    features = f"--features ({' '.join(known.features)})" if known.features else ""
    return " and ".join(filter(None, (label, features)))


#: Turns text into token ids.
Encode = Callable[[str], Any]


def transform_flags() -> list[tuple[str, Any, Any]]:
    """Name, annotated type and default of a flag for the first option of every transform but the temperature."""
    import tyro

    flags = []
    for name, kind, option in _flagged():
        of_tokens = _takes_tokens(option)
        plain: Any = tuple[str, ...] if of_tokens else option | None
        metavar = f"{_word(option)} [{_word(option)} ...]" if of_tokens else None
        argument = tyro.conf.arg(help=_description(kind), metavar=metavar)
        flags.append((name.replace("-", "_"), Annotated[plain, argument], () if of_tokens else None))
    return flags


def read_transforms(values: Mapping[str, Any], encode: Encode) -> tuple[Any, ...]:
    """The transforms that flags ask for, in the order of ``TRANSFORMS``; ``UsageError`` for values out of range."""
    made = []
    for name, kind, option in _flagged():
        value = values[name.replace("-", "_")]
        if value is None or value == ():
            continue
        if _takes_tokens(option):
            all_forms = not getattr(kind, "in_order", False)
            value = _biases(value, name, encode) if _weighs(option) else _ids(value, name, encode, all_forms)
        made.append(kind(value))
    return tuple(made)


def described_transforms() -> dict[str, tuple[str, str]]:
    """Of every transform that has a flag: what stands behind it, and what it does."""
    return {name: (_word(option), _description(kind)) for name, kind, option in _flagged()}


def read_words(name: str, words: Sequence[str]) -> Any:
    """What the flag of the transform ``name`` would hold with these words behind it, for ``read_transforms``."""
    option = next(option for each, _, option in _flagged() if each == name)
    return tuple(words) if _takes_tokens(option) else read_number(name, words, option)


def read_number(name: str, words: Sequence[str], kind: type = int) -> Any:
    """The one number, of ``kind`` int or float, that ``words`` hold for the setting ``name``."""
    try:
        (word,) = words
        return kind(word)
    except ValueError:
        raise UsageError(
            f"--{name} {' '.join(words)!r} cannot be read: give a {'whole ' if kind is int else ''}number."
        ) from None


def read_temperature(text: str) -> Any:
    """``0.8``; ``1.2,0.8,0.5``, a token each, the last for all others; ``1.5:0.5:200``, a line over 200 tokens."""
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


def notes(sampler: Sampler, transforms: Iterable[Any]) -> Iterator[str]:
    """What the user may not expect of these settings with this model."""
    from jaxgen.sampling.transforms.constraints import MinLength
    from jaxgen.sampling.transforms.truncation import TopK

    vocab = sampler.tokenizer.vocab_size
    for each in transforms:
        if isinstance(each, TopK) and each.k > vocab:
            yield f"note: --top-k {each.k} is more than the vocabulary of {vocab}; all are kept."
        if isinstance(each, MinLength) and not sampler.documents:
            yield "note: --min-length does nothing: this model was trained on running text, which has no end."


def unescaped(text: str) -> str:
    r"""``\\n``, ``\\t`` and ``\\\\`` as the characters they stand for: shells pass a line break on only with effort."""
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)


def _flagged() -> Iterable[tuple[str, type, Any]]:
    """Name, class and type of the first option of each transform."""
    from jaxgen.sampling.transforms import TRANSFORMS

    for name, kind in TRANSFORMS.items():
        if name != "temperature":  # has a flag of its own, with a section for each value
            yield name, kind, get_type_hints(kind)[dataclasses.fields(kind)[0].name]


def _takes_tokens(option: Any) -> bool:
    return option is TokenId or any(_takes_tokens(part) for part in get_args(option))


def _weighs(option: Any) -> bool:
    """Whether the option is pairs of a token and a number."""
    return bool(get_args(get_args(option)[0]))


def _word(option: Any) -> str:
    """What a value of the option is called in the help."""
    if _takes_tokens(option):
        return "TEXT=NUMBER" if _weighs(option) else "TEXT"
    return "N" if option is int else "X"


def _ids(texts: Iterable[str], name: str, encode: Encode, all_forms: bool = True) -> tuple[int, ...]:
    """The tokens of each of ``texts``; with ``all_forms``, those with a blank in front that belongs to them too."""
    found: list[int] = []
    for text in map(unescaped, texts):
        plain, behind_blank = ([int(i) for i in encode(each)] for each in (text, " " + text))
        if not plain:
            raise UsageError(f"--{name} got an empty text: give one or more characters.")
        forms = [plain, behind_blank] if len(behind_blank) == len(plain) else [plain]
        known = [form for form in forms if UNK not in form]
        if not known:
            raise UsageError(
                f"--{name} {text!r} has something that the vocabulary lacks: give what the model can write."
            )
        found += [i for form in (known if all_forms else known[:1]) for i in form]
    return tuple(dict.fromkeys(found)) if all_forms else tuple(found)


def _biases(pairs: Iterable[str], name: str, encode: Encode) -> tuple[tuple[int, float], ...]:
    found = []
    for pair in pairs:
        text, sign, number = pair.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"--{name} {pair!r} cannot be read: give a text and a number, such as e=-1.5.")
        found += [(i, value) for i in _ids([text], name, encode)]
    return tuple(found)


def _description(kind: type) -> str:
    """The first sentence of a transform's docstring."""
    text = re.sub(r"\s+", " ", inspect.getdoc(kind) or "").replace("`", "")
    return re.split(r"(?<=[.;)])\s+(?=[A-Z])", text)[0]
