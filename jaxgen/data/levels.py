"""The settings that make a tokenizer, which all tasks on text have: ``level``, ``vocab_size`` and ``min_count``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jaxgen.errors import choose
from jaxgen.text import MAX_VOCAB, TOKENIZERS

#: Larger vocabularies are typing errors.
VocabSize = Annotated[int, Field(gt=0, le=MAX_VOCAB)]


def tokenizer_options(config: Any) -> dict[str, int]:
    """The tokenizer options that were given; the level's own defaults hold for the rest."""
    given = {"min_count": config.min_count, "vocab_size": config.vocab_size}
    return {name: value for name, value in given.items() if value is not None}


def check_level(config: Any) -> None:
    """Raise ``ValueError`` for a level that is none, and for an option that its tokenizer has not."""
    known = TOKENIZERS[choose(config.level, TOKENIZERS, "level")].OPTIONS
    for name, value in tokenizer_options(config).items():
        if name not in known:
            levels = " or ".join(level for level, kind in TOKENIZERS.items() if name in kind.OPTIONS)
            raise ValueError(
                f"--{name.replace('_', '-')} {value} has no meaning with --level {config.level}: leave it out, "
                f"or give --level {levels}"
            )
