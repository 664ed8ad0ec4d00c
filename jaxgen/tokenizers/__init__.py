"""Tokenizers convert text to token ids and back. To add one, add a file and a line in ``TOKENIZERS``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from jaxgen.errors import CheckpointError, UsageError, choose
from jaxgen.tokenizers.base import EOS, MAX_VOCAB, PAD, UNK, StreamDecoder, Tokenizer, text_bytes
from jaxgen.tokenizers.bpe import BpeTokenizer
from jaxgen.tokenizers.byte import ByteTokenizer
from jaxgen.tokenizers.char import CharTokenizer
from jaxgen.tokenizers.word import WordTokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "word": WordTokenizer,
    "bpe": BpeTokenizer,
}


def load_tokenizer(obj: object) -> Tokenizer:
    """Returns the tokenizer that ``to_json`` described.

    Raises:
        CheckpointError: The description is malformed.
    """
    kind = obj.get("kind") if isinstance(obj, dict) else None
    try:
        choose(str(kind), TOKENIZERS, "kind of tokenizer")
    except UsageError as error:
        raise CheckpointError(f"{error} Copy the run folder again, or use the version that wrote it.") from None
    return TOKENIZERS[str(kind)].from_json(obj)


#: A field of a codec that is validated with ``load_strict``: a tokenizer, or what its ``to_json`` returned.
SavedTokenizer = Annotated[
    Tokenizer, BeforeValidator(lambda value: value if isinstance(value, Tokenizer) else load_tokenizer(value))
]


__all__ = [
    "EOS",
    "MAX_VOCAB",
    "PAD",
    "TOKENIZERS",
    "UNK",
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "SavedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "text_bytes",
]
