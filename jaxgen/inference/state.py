"""The state of a decoder after some tokens, as a value to save, continue, branch and interpolate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import CheckpointError, UsageError, check_kind, counted
from jaxgen.fsutil import dump_json, json_sha256, parse_json
from jaxgen.runs.manifest import array_sha256, decode_arrays, encode_arrays, header_bytes, metadata
from jaxgen.training.dynamic_evaluation import AdaptedState
from jaxgen.types import Array, Carry

#: The largest file of a state that is read.
MAX_BYTES = 2**30


def array_file(arrays: Mapping[str, np.ndarray], about: Mapping[str, object]) -> bytes:
    """The content of a safetensors file with the JSON values ``about``, and a digest of all, in its header."""
    values = json.loads(dump_json(dict(about)))
    return encode_arrays(arrays, {"about": json.dumps(values), "sha256": _digest(arrays, values)})


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The arrays and JSON values in an ``array_file``.

    Raises:
        CheckpointError: if the file is missing, altered, or is no ``array_file``.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would block
            raise CheckpointError(f"{path} is not a regular file. Give one that jaxgen wrote.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_BYTES // 2**20} MB, the most that is read.")
        with open(path, "rb") as file:
            sparse = not 0 < header_bytes(file.read(8)) < size  # such a file has no header
            file.seek(0)
            data = file.read(8 if sparse else size)
    except (OSError, ValueError) as error:  # a name with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {reason}.") from None
    try:
        arrays, header = decode_arrays(data), metadata(data)
        about = parse_json(header["about"].encode())
        if not isinstance(about, dict) or header["sha256"] != _digest(arrays, about):
            raise ValueError("its digest is not that of its content")
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged, or is not a state that this version of jaxgen saved. Save it again with --save-state."
        ) from error
    return arrays, about


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, object]) -> str:
    leaves = {name: [list(array.shape), array.dtype.name, array_sha256(array)] for name, array in arrays.items()}
    return json_sha256({"about": about, "arrays": leaves})


@dataclass(frozen=True, eq=False)
class AdaptedWeights:
    """Weights that have adapted to a text.

    ``state`` is that of the adaptation after the first ``read`` tokens, in whole segments. ``weights`` are its weights
    as decoding reads them; ``load_state`` leaves them out.
    """

    state: AdaptedState
    read: int
    weights: Any = None


@dataclass(frozen=True, eq=False)
class DecoderState:
    """The state of a model after ``tokens``: the carry (one row) and the logits [1, V] of the next token.

    ``held`` is a space at the end of the text that is not read yet, because it begins the next token; the logits of
    tokens without it are -inf. ``adapted`` are the weights that read what follows, if they are not those of the model
    (``Sampler.adapt``).

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> state = sampler.read(" cat", sampler.read("the"))
        >>> sampler.decode(state.tokens)
        'the cat'
    """

    carry: Carry
    logits: Array
    tokens: np.ndarray
    held: str = ""
    adapted: AdaptedWeights | None = None

    def __repr__(self) -> str:
        held = f" and the text {self.held!r}" if self.held else ""
        adapted = "" if self.adapted is None else ", with adapted weights"
        return f"<jaxgen.DecoderState after {counted(self.tokens.size, 'token')}{held}{adapted}>"

    def repeated(self, rows: int) -> tuple[Carry, Array]:
        """The carry and logits repeated for a batch of ``rows``."""
        return (self.carry, self.logits) if rows == 1 else _repeated((self.carry, self.logits), rows)


@partial(jax.jit, static_argnums=1)
def _repeated(state: tuple[Carry, Array], rows: int) -> tuple[Carry, Array]:
    return jax.tree.map(lambda a: jnp.repeat(a, rows, axis=0), state)


def interpolate(a: DecoderState, b: DecoderState, weight: float) -> DecoderState:
    """Linear interpolation of two states, from ``a`` (weight 0) to ``b`` (weight 1).

    The logits are interpolated too. Where the output layer reads the hidden state of the last layer, as with LSTM, GRU
    and Elman, they equal the logits of the interpolated state. The tokens are those of the nearer state.

    Raises:
        UsageError: if the weight is not in [0, 1] or the states cannot be interpolated.

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> between = jaxgen.interpolate(sampler.read("the cat"), sampler.read("a mat"), 0.25)
        >>> texts = sampler.sample(" ", jaxgen.GenerationConfig(length=20), state=between)
    """
    for state in (a, b):
        check_kind("interpolate", state, DecoderState, "two states, for example of sampler.read(text)")
    check_kind("interpolate", weight, Real | np.ndarray | jax.Array, "a number from 0 to 1 as weight")
    if not 0 <= weight <= 1:
        raise UsageError(
            f"The weight {weight} lies outside the two states: give a number from 0 (first) to 1 (second)."
        )
    if a.adapted is not None or b.adapted is not None:
        raise UsageError("The weights of one of these states have adapted to a text: interpolate others.")
    if a.held != b.held:
        raise UsageError("One of these two states ends with a space: give texts that both end with one, or neither.")
    shapes = [jax.tree.map(jnp.shape, (state.carry, state.logits)) for state in (a, b)]
    if shapes[0] != shapes[1]:
        raise UsageError("These two states belong to models of different shapes: take both from one model.")
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(a.carry)):
        raise UsageError("The states of this model are not real numbers and cannot be mixed: use a recurrent model.")
    if weight in (0, 1):  # 0 times the logit of a token without the held space would be NaN
        return b if weight else a
    carry, logits = jax.tree.map(lambda x, y: (1 - weight) * x + weight * y, (a.carry, a.logits), (b.carry, b.logits))
    return DecoderState(carry, logits, (a if weight < 0.5 else b).tokens, a.held)


def state_bytes(state: DecoderState, checkpoint: str) -> bytes:
    """The content of a file of ``state``, with the digest of the checkpoint that it belongs to."""
    arrays = _named_leaves("leaf", (state.carry, state.logits))
    arrays["tokens"] = np.asarray(state.tokens, np.int32)
    about: dict[str, object] = {"checkpoint": checkpoint, "held": state.held}
    if state.adapted is not None:
        arrays |= _named_leaves("adapted", state.adapted.state)
        about["adapted_to"] = state.adapted.read
    return array_file(arrays, about)


def load_state(
    path: str | Path, like: DecoderState, checkpoint: str, unadapted: Callable[[], AdaptedState]
) -> DecoderState:
    """The state in a file, which has the shapes of ``like`` and belongs to the checkpoint with this digest.

    Args:
        path: The file.
        like: A state of the model.
        checkpoint: The digest.
        unadapted: Returns a state of the adaptation, which has the shapes of that in the file.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds the state of another model.
    """
    arrays, about = load_arrays(Path(path))
    tokens, read, held = arrays.pop("tokens", np.zeros((), np.int32)), about.get("adapted_to"), about.get("held")
    own = about.get("checkpoint") == checkpoint
    start = unadapted() if own and read is not None else None
    expected = _shapes("leaf", (like.carry, like.logits)) | _shapes("adapted", start)
    same = {name: (array.shape, array.dtype) for name, array in arrays.items()} == expected
    readable = tokens.ndim == 1 and tokens.dtype == np.int32 and bool((tokens < like.logits.shape[-1]).all())
    readable = readable and (read is None or (type(read) is int and 0 <= read < tokens.size))
    if not (same and readable and held in ("", " ") and own):
        raise CheckpointError(
            f"The state in {path} belongs to another model (to the checkpoint {about.get('checkpoint')}, and this is "
            f"{checkpoint}). Write it again with --save-state."
        )
    carry, logits = _like("leaf", arrays, (like.carry, like.logits))
    adapted = AdaptedWeights(_like("adapted", arrays, start), read) if isinstance(read, int) else None
    return DecoderState(carry, logits, tokens, str(held), adapted)


def _named_leaves(name: str, tree: Any) -> dict[str, np.ndarray]:
    return {f"{name}{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _shapes(name: str, tree: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    return {f"{name}{i}": (leaf.shape, leaf.dtype) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _like(name: str, arrays: Mapping[str, np.ndarray], tree: Any) -> Any:
    """A tree of the structure of ``tree`` with these arrays as its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[f"{name}{i}"]) for i in range(len(leaves))])
