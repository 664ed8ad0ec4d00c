"""The parameters of language models under the names and layouts of other programs, as jaxgen's parameter tree.

A layout is recognised by the name of an array. To add one, add a function and a line in ``LAYOUTS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.cells.torch import stack_from_torch
from jaxgen.errors import UsageError, listed
from jaxgen.interchange.weights import TORCH_CELLS

#: What embeddings and output layers are called in PyTorch: the part of the name before ``.weight``.
EMBEDDINGS = (
    "embedding",
    "embeddings",
    "embed",
    "emb",
    "encoder",
    "token_emb",
    "embed_tokens",
    "word_embeddings",
    "wte",
)
OUTPUTS = ("output", "decoder", "fc", "fc_out", "linear", "out", "head", "lm_head", "to_logits", "proj", "classifier")


class Model(NamedTuple):
    """The settings that build a model, and its parameters. The vocabulary is in the file's order."""

    settings: dict[str, Any]
    params: dict[str, Any]


class Arrays:
    """The arrays of a file, of which a layout has to use every one."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._left = dict(arrays)

    def __iter__(self) -> Any:
        return iter(list(self._left))

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """The array of this name; ``None`` in its shape fits any size. Raises ``UsageError``."""
        if name not in self._left:
            raise UsageError(f"It has no array {name!a}. Those left are {listed(sorted(self._left)) or 'none'}.")
        array = self._left.pop(name)
        if array.ndim != len(shape) or any(want not in (None, size) for want, size in zip(shape, array.shape)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise UsageError(f"{name!a} has the shape {list(array.shape)}, but [{wanted}] fits the other arrays.")
        return array

    def find(self, parts: tuple[str, ...], ending: str) -> str | None:
        """The name that ends with one of ``parts`` and ``ending``; ``None`` if there is none."""
        found = [name for name in self if name.endswith(ending) and name.removesuffix(ending).split(".")[-1] in parts]
        if len(found) > 1:
            raise UsageError(f"It has several arrays of one kind: {listed(found)}. One of them can be used.")
        return found[0] if found else None

    def check_all_used(self) -> None:
        """Raise ``UsageError`` if an array is left."""
        if self._left:
            raise UsageError(f"It has arrays that no part of the model reads: {listed(sorted(self._left))}.")


def read_torch(arrays: Arrays, cell: str | None) -> Model:
    """A PyTorch model of ``nn.Embedding``, ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, and ``nn.Linear``.

    Safetensors do not say whether an ``nn.RNN`` has tanh or ReLU units: it has tanh unless ``cell`` is ``elman-relu``.
    Without an output layer, or with one that equals the embedding, the two are one matrix.
    """
    entry = re.compile(r"(.*?)((?:weight|bias)_(?:ih|hh|hr)_l[0-9]{1,4}(?:_reverse)?)")
    matches = [match for name in arrays if (match := entry.fullmatch(name))]
    if len({match[1] for match in matches}) > 1:
        raise UsageError(f"It has several recurrent modules: {listed(sorted({match[1] for match in matches}))}.")
    state_dict = {match[2]: arrays.take(match[0], *([None] * (2 if "weight" in match[2] else 1))) for match in matches}
    rows, hidden = state_dict["weight_hh_l0"].shape
    kinds = {4 * hidden: "lstm", 3 * hidden: "gru", hidden: "elman-relu" if cell == "elman-relu" else "elman"}
    if rows not in kinds or hidden == 0:
        raise UsageError(f"'weight_hh_l0' has the shape {[rows, hidden]}, which is none of an LSTM, a GRU or an RNN.")
    cells = stack_from_torch(state_dict, TORCH_CELLS[kinds[rows]])
    if above := [name for name in state_dict if int(re.findall("[0-9]+", name)[0]) >= len(cells)]:
        raise UsageError(f"It has {listed(above)}, but no 'weight_hh_l{len(cells)}'.")
    named = arrays.find(EMBEDDINGS, ".weight") or "embedding.weight"
    embedding = arrays.take(named, None, cells[0]["input"]["kernel"].shape[0])
    params = {"embedding": embedding, "stack": {f"cells_{i}": each for i, each in enumerate(cells)}}
    size, embed = embedding.shape
    weight, bias = (arrays.find(OUTPUTS, ending) for ending in (".weight", ".bias"))
    if weight is None and embed != hidden:
        raise UsageError(f"It has no output layer, which is called {listed(f'{name}.weight' for name in OUTPUTS)}.")
    kernel = embedding if weight is None else arrays.take(weight, size, hidden)
    offset = np.zeros(size, np.float32) if bias is None else arrays.take(bias, size)
    tied = np.array_equal(kernel, embedding)
    settings = {"cell": kinds[rows], "hidden": hidden, "layers": len(cells), "embed": embed, "tie": tied}
    output = {"output_bias": offset} if tied else {"output": {"kernel": kernel.T, "bias": offset}}
    return Model(settings, params | output)


#: The end of a name that only this layout has -> the function that reads it.
LAYOUTS: dict[str, Callable[[Arrays, str | None], Model]] = {
    "weight_hh_l0": read_torch,
}


def read_model(arrays: Mapping[str, np.ndarray], cell: str | None = None) -> Model:
    """The model that a file's arrays, float32, belong to. Raises ``UsageError`` if no layout fits them.

    ``cell`` is the kind of cell, where the names do not tell.
    """
    read = next((LAYOUTS[end] for end in LAYOUTS if any(name.endswith(end) for name in arrays)), None)
    if read is None:
        raise UsageError(
            f"Its arrays {listed(sorted(arrays), 5)} are those of no model that can be imported. The names of one that "
            f"can be end with {' or '.join(LAYOUTS)}."
        )
    left = Arrays(arrays)
    model = read(left, cell)
    left.check_all_used()
    return model
