"""The parameters of language models under the names and layouts of other programs, as jaxgen's parameter tree.

A layout is recognised by the name of an array. To add one, add a function and a line in ``LAYOUTS``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.cells.torch import stack_from_torch
from jaxgen.errors import JaxgenWarning, UsageError, listed
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


class Unrecorded(NamedTuple):
    """What a model does that its file does not say.

    Args:
        cell: ``elman-relu`` for a PyTorch ``nn.RNN`` of ReLUs.
        scale_embedding: Embedded tokens are multiplied by the square root of their width (RecurrentGemma).
        soft_cap: Logits are limited to this number (``LanguageModel.soft_cap``).
    """

    cell: str | None = None
    scale_embedding: bool = False
    soft_cap: float = 0.0


NOTHING = Unrecorded()


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
        if array.size == 0:
            raise UsageError(f"{name!a} is empty.")
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


def read_torch(arrays: Arrays, unrecorded: Unrecorded) -> Model:
    """A PyTorch model of ``nn.Embedding``, ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, and ``nn.Linear``.

    Without an output layer, or with one that equals the embedding, the two are one matrix.
    """
    entry = re.compile(r"(.*?)((?:weight|bias)_(?:ih|hh|hr)_l[0-9]{1,4}(?:_reverse)?)")
    matches = [match for name in arrays if (match := entry.fullmatch(name))]
    if len({match[1] for match in matches}) > 1:
        raise UsageError(f"It has several recurrent modules: {listed(sorted({match[1] for match in matches}))}.")
    state_dict = {match[2]: arrays.take(match[0], *([None] * (2 if "weight" in match[2] else 1))) for match in matches}
    rows, hidden = state_dict["weight_hh_l0"].shape
    kinds = {4 * hidden: "lstm", 3 * hidden: "gru", hidden: unrecorded.cell or "elman"}
    if rows not in kinds:
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


def read_recurrentgemma(arrays: Arrays, unrecorded: Unrecorded) -> Model:
    """A RecurrentGemma model in its PyTorch names, of recurrent blocks only (De et al. 2024, arXiv:2402.19427).

    Warns of the one difference: its code has no factor sqrt(1 - a^2) at the first token of a text.
    """
    ends = [name for name in arrays if name.endswith("rg_lru.a_param")]
    start = ends[0].partition("blocks.")[0]
    if any("attention_block" in name for name in arrays):
        raise UsageError(
            "It has blocks of attention with rotary positions, which jaxgen lacks: recurrent blocks alone fit."
        )
    embedding = arrays.take(f"{start}embedder.input_embedding", None, None)
    size, width = embedding.shape
    difference = "RecurrentGemma's code reads the first token of a text without the factor sqrt(1 - a^2) of the paper's"
    warnings.warn(JaxgenWarning(f"{difference} RG-LRU, which jaxgen has: the first logits differ."), stacklevel=2)
    cells, options, block_options = {}, {}, {}
    for layer in range(len(ends)):
        block = f"{start}blocks.{layer}."
        inside = f"{block}recurrent_block."
        decay = arrays.take(f"{inside}rg_lru.a_param", None)
        inner = len(decay)
        inputs = [_linear(arrays, f"{inside}linear_{branch}", inner, width) for branch in "xy"]
        gates = {}
        for gate, name in (("recurrence_gate", "a_gate"), ("input_gate", "input_gate")):
            kernel = arrays.take(f"{inside}rg_lru.{name}.w", None, None, None)
            bias = arrays.take(f"{inside}rg_lru.{name}.b", *kernel.shape[:2])
            gates[gate] = {"kernel": kernel, "bias": bias.reshape(-1)}
        convolution = arrays.take(f"{inside}conv_1d.w", None, inner)
        up = arrays.take(f"{block}mlp_block.ffw_up.w", 2, width, None)
        mlp = up.shape[-1]
        up_bias = arrays.take(f"{block}mlp_block.ffw_up.b", 2, 1, 1, mlp)
        cells[f"cells_{layer}"] = {
            "cell_norm": {"scale": 1 + arrays.take(f"{block}temporal_pre_norm.scale", width)},
            "input": {name: np.concatenate([each[name] for each in inputs], axis=-1) for name in ("kernel", "bias")},
            "convolution": {"kernel": convolution, "bias": arrays.take(f"{inside}conv_1d.b", inner)},
            "recurrence": {"decay": decay, **gates},
            "output": _linear(arrays, f"{inside}linear_out", width, inner),
            "mlp_norm": {"scale": 1 + arrays.take(f"{block}channel_pre_norm.scale", width)},
            "up": {"kernel": np.concatenate(list(up), axis=-1), "bias": up_bias.reshape(-1)},
            "down": _linear(arrays, f"{block}mlp_block.ffw_down", width, mlp),
        }
        options = {"blocks": float(len(kernel))}
        block_options = {"conv": float(len(convolution)), "expand": inner / width, "mlp": mlp / width}
    cells[f"cells_{len(ends) - 1}"]["final_norm"] = {"scale": 1 + arrays.take(f"{start}final_norm.scale", width)}
    settings: dict[str, Any] = {"cell": "rglru", "cell_options": options}
    settings |= {"block": "griffin", "block_options": block_options}
    settings |= {"hidden": width, "embed": width, "layers": len(ends), "tie": not unrecorded.scale_embedding}
    zeros = np.zeros(size, np.float32)
    if not unrecorded.scale_embedding:
        return Model(settings, {"embedding": embedding, "stack": cells, "output_bias": zeros})
    scale = np.float32(jnp.bfloat16(width**0.5))  # rounded as in RecurrentGemma
    output = {"kernel": embedding.T, "bias": zeros}
    return Model(settings, {"embedding": embedding * scale, "stack": cells, "output": output})


def read_mingru(arrays: Arrays, unrecorded: Unrecorded) -> Model:
    """A minGRU language model in the names of the package minGRU-pytorch, without convolutions.

    Each layer is a list of a convolution, a norm, the cell, a norm and a feed-forward network.
    """
    ends = [name for name in arrays if name.endswith("to_hidden_and_gate.weight")]
    start = ends[0].partition("layers.")[0]
    embedding = arrays.take(f"{start}token_emb.weight", None, None)
    size, width = embedding.shape

    def norm(name: str) -> dict[str, np.ndarray]:
        if f"{name}.gamma" in arrays:
            return {"scale": 1 + arrays.take(f"{name}.gamma", width)}
        return {"scale": arrays.take(f"{name}.weight", width)}

    cells, block_options = {}, {}
    for layer in range(len(ends)):
        block = f"{start}layers.{layer}."
        both = arrays.take(f"{block}2.to_hidden_and_gate.weight", None, width)
        inner = len(both) // 2
        hidden, gate = both[:inner], both[inner:]
        out = f"{block}2.to_out.weight"
        kernel = arrays.take(out, width, inner).T if out in arrays else np.eye(width, dtype=np.float32)
        up = arrays.take(f"{block}4.0.weight", None, width)
        cells[f"cells_{layer}"] = {
            "cell_norm": norm(f"{block}1"),
            "recurrence": {"input": {"kernel": np.concatenate([gate, hidden]).T, "bias": np.zeros(2 * inner, "f4")}},
            "output": {"kernel": kernel, "bias": np.zeros(width, np.float32)},
            "mlp_norm": norm(f"{block}3"),
            "up": {"kernel": up.T, "bias": arrays.take(f"{block}4.0.bias", len(up))},
            "down": _linear(arrays, f"{block}4.2", width, len(up)),
        }
        block_options = {"conv": 0.0, "exact_gelu": True, "expand": inner / width, "mlp": len(up) / width}
    cells[f"cells_{len(ends) - 1}"]["final_norm"] = norm(f"{start}norm")
    settings: dict[str, Any] = {"cell": "mingru", "block": "residual", "block_options": block_options}
    settings |= {"hidden": width, "embed": width, "layers": len(ends)}
    output = {"kernel": arrays.take(f"{start}to_logits.weight", size, width).T, "bias": np.zeros(size, np.float32)}
    return Model(settings, {"embedding": embedding, "stack": cells, "output": output})


def _linear(arrays: Arrays, name: str, outputs: int, inputs: int) -> dict[str, np.ndarray]:
    """PyTorch's ``nn.Linear`` of this name."""
    kernel = arrays.take(f"{name}.weight", outputs, inputs)
    return {"kernel": kernel.T, "bias": arrays.take(f"{name}.bias", outputs)}


#: The end of a name that only this layout has -> the function that reads it.
LAYOUTS: dict[str, Callable[[Arrays, Unrecorded], Model]] = {
    "weight_hh_l0": read_torch,
    "rg_lru.a_param": read_recurrentgemma,
    "to_hidden_and_gate.weight": read_mingru,
}


def read_model(arrays: Mapping[str, np.ndarray], unrecorded: Unrecorded) -> Model:
    """The model that a file's arrays, float32, belong to. Raises ``UsageError`` if no layout fits them."""
    read = next((LAYOUTS[end] for end in LAYOUTS if any(name.endswith(end) for name in arrays)), None)
    if read is None:
        raise UsageError(
            f"Its arrays {listed(sorted(arrays), 5)} are those of no model that can be imported. The names of one that "
            f"can be end with {' or '.join(LAYOUTS)}."
        )
    left = Arrays(arrays)
    model = read(left, unrecorded)
    left.check_all_used()
    if unrecorded.cell not in (None, model.settings["cell"]):
        raise UsageError(f"Its cell is {model.settings['cell']!r}, not {unrecorded.cell!r}: leave out --cell.")
    if unrecorded.scale_embedding and read is not read_recurrentgemma:
        raise UsageError("It is not a RecurrentGemma: leave out --scale-embedding.")
    return model._replace(settings={**model.settings, "soft_cap": unrecorded.soft_cap})
