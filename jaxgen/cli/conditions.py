"""``--label`` and ``--features``: what a text is to be about, of a run that knows such things of its texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxgen.cli.common import say
from jaxgen.errors import UsageError, choose

if TYPE_CHECKING:
    from jaxgen.data.conditioning import Conditioning
    from jaxgen.run import Sampler


def conditioned(sampler: Sampler, label: Sequence[str], features: Sequence[float], *, note: bool = True) -> Sampler:
    """``sampler`` under what the flags say; under nothing if they were not given, with a note of what they can be.

    Raises ``UsageError`` for a run that knows no such thing, for an unknown label and for weights that cannot be used.
    """
    if label or features:
        known = sampler.conditioning
        weights = None if not label or known is None else read_weights(label, known)
        return sampler.conditioned(weights, features or None)
    if note and sampler.conditioning is not None:
        say(f"note: without {flags(sampler.conditioning)} a text begins from the mean of the training texts.")
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
