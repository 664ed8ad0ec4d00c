"""The vocabulary of an imported model: which row of its embedding is which token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from jaxgen.errors import CheckpointError, DataError
from jaxgen.fsutil import parse_json, read_bounded
from jaxgen.tokenizers import EOS, PAD, TOKENIZERS, UNK, ByteTokenizer, Tokenizer, load_tokenizer

#: Tokens of a list that are no text.
SPECIAL = {"<pad>": PAD, "<unk>": UNK, "<eos>": EOS}
#: The bias of a token that the model lacks. Its probability is 0 in float32, unless there is a soft cap.
NEVER = -1e9


class Vocabulary(NamedTuple):
    """A tokenizer and, for each of its ids, the row of the model's embedding; -1 for a token that the model lacks."""

    tokenizer: Tokenizer
    rows: np.ndarray

    def reorder(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters with the vocabulary in the order of the tokenizer."""

        def rows(array: np.ndarray, fill: float = 0.0) -> np.ndarray:
            missing = (self.rows < 0).reshape(-1, *[1] * (array.ndim - 1))
            return np.where(missing, np.float32(fill), array[self.rows])

        if "output" in params:
            kernel, bias = params["output"]["kernel"], params["output"]["bias"]
            output: dict[str, Any] = {"output": {"kernel": rows(kernel.T).T, "bias": rows(bias, NEVER)}}
        else:
            output = {"output_bias": rows(params["output_bias"], NEVER)}
        return params | output | {"embedding": rows(params["embedding"])}


def read_vocabulary(path: str, size: int) -> Vocabulary:
    """The vocabulary of a model whose embedding has ``size`` rows.

    Args:
        path: ``byte`` for the 256 byte values, or a JSON file: a ``tokenizer.json`` of jaxgen, or a list with the token
            of each row. Tokens of a character each make a vocabulary of the char level, others one of the word level.
        size: The number of rows.

    Raises:
        DataError: The file cannot be read, or has the vocabulary of another model.
    """
    try:
        if path == "byte":
            return _of_pieces(ByteTokenizer(), {bytes([i]): i for i in range(256)}, {}, size)
        value = parse_json(read_bounded(Path(path).resolve()))
        if isinstance(value, dict):
            return with_tokenizer(load_tokenizer(value), size)
        if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
            raise ValueError("it is not a list of tokens")
        special = {SPECIAL[token]: row for row, token in enumerate(value) if token in SPECIAL}
        tokens = {token: row for row, token in enumerate(value) if token not in SPECIAL}
        if len(special) + len(tokens) != len(value):
            raise ValueError("it has a token twice")
        pieces = {token.encode(): row for token, row in tokens.items()}
        return _of_pieces(_tokenizer(list(tokens)), pieces, special, size)
    except (OSError, ValueError, CheckpointError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"The vocabulary {path} cannot be used: {reason.rstrip('.')}. Give the word byte, a tokenizer.json of "
            "jaxgen, or a JSON list with the token of each row of the model's embedding."
        ) from None


def with_tokenizer(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model in the order of ``tokenizer``. Raises ``ValueError`` if it has another size."""
    _check_size(tokenizer.vocab_size, size)
    return Vocabulary(tokenizer, np.arange(size))


def _of_pieces(tokenizer: Tokenizer, pieces: dict[bytes, int], special: dict[int, int], size: int) -> Vocabulary:
    _check_size(len(pieces) + len(special), size)
    ordinary = [pieces.get(piece, -1) for piece in tokenizer.pieces[len(SPECIAL) :]]
    return Vocabulary(tokenizer, np.array([*(special.get(i, -1) for i in range(len(SPECIAL))), *ordinary]))


def _check_size(tokens: int, size: int) -> None:
    if tokens != size:
        raise ValueError(f"it has {tokens:,} tokens, and the model has {size:,}")


def _tokenizer(tokens: list[str]) -> Tokenizer:
    """The tokenizer of these tokens. Raises ``ValueError`` if one cannot be a token."""
    fields: dict[str, Any] = {"kind": "word", "split_on": "punctuation", "words": [*dict.fromkeys([" ", *tokens])]}
    if all(len(token) == 1 for token in tokens):
        fields = {"kind": "char", "code_points": sorted(map(ord, tokens))}
    try:
        TOKENIZERS[fields["kind"]].Saved(**fields)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return load_tokenizer(fields)
