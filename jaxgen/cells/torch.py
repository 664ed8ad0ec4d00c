"""Conversion of weights between PyTorch's ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and jaxgen's cells.

PyTorch is not needed: a state dict is a mapping of names to anything NumPy can read. All arrays are float32. A torch
layer has two biases, which it adds; jaxgen has one, and writes zeros for the other. So torch -> jaxgen -> torch
preserves the function, and jaxgen -> torch -> jaxgen preserves every bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxgen.errors import UsageError, check_kind, choose


class TorchKind(NamedTuple):
    """The layout of one layer of a torch module: ``gates`` blocks, in the order of the jaxgen cell.

    The recurrent biases of the last ``apart`` gates are a separate parameter (``recurrent_bias``), because the cell
    uses them inside a product; those of the other gates are added to the input's.
    """

    gates: int
    apart: int = 0


#: ``nn.RNN`` by its nonlinearity (cells ``elman`` and ``elman-relu``), ``nn.LSTM`` and ``nn.GRU``. To convert another
#: cell of this layout, add an entry.
TORCH_KINDS: dict[str, TorchKind] = {
    "rnn_tanh": TorchKind(gates=1),
    "rnn_relu": TorchKind(gates=1),
    "lstm": TorchKind(gates=4),
    "gru": TorchKind(gates=3, apart=1),
}


def _numpy(value: PyTree) -> np.ndarray:
    """A float32 copy of an array, or of a torch tensor on any device and of any precision."""
    if hasattr(value, "detach"):  # float(), because NumPy has no bfloat16
        value = value.detach().cpu().float().numpy()
    return np.array(value, dtype=np.float32)


def _suffix(layer: int, reverse: bool) -> str:
    return f"_l{layer}{'_reverse' if reverse else ''}"


def _take(arrays: Mapping[str, PyTree], name: str, where: str) -> np.ndarray:
    if name not in check_kind(f"The {where}", arrays, Mapping, "arrays by name"):
        known = ", ".join(sorted(map(str, arrays))) or "nothing"
        raise UsageError(f"The {where} has no {name!r}; it has {known}. Check `kind`, `layer` and `reverse`.")
    return _numpy(arrays[name])


def _fit(array: np.ndarray, shape: tuple[int | None, ...], name: str, kind: str) -> np.ndarray:
    """``array`` if it has ``shape`` (``None`` fits any size), else a ``UsageError``."""
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape)):
        wanted = f"({', '.join('any' if size is None else str(size) for size in shape)}{',' * (len(shape) == 1)})"
        raise UsageError(f"{name!r} has the shape {array.shape}: for {kind!r} it must be {wanted}. Check the `kind`.")
    return array


def from_torch(state_dict: Mapping[str, PyTree], kind: str, layer: int = 0, reverse: bool = False) -> dict[str, PyTree]:
    """One layer of a torch module's ``state_dict`` as the parameter tree of one jaxgen cell.

    ``kind`` is ``rnn_tanh``, ``rnn_relu``, ``lstm`` or ``gru``: the cells ``elman``, ``elman-relu``, ``lstm``, ``gru``.
    ``reverse`` takes the backward direction of a bidirectional module, for ``unroll(..., reverse=True)``. A module made
    with ``bias=False`` gives zero biases.

    Raises ``UsageError`` for an unknown kind, missing arrays and arrays of another shape.

    Example:
        >>> state_dict = {"weight_ih_l0": np.zeros((16, 3)), "weight_hh_l0": np.zeros((16, 4))}  # without biases
        >>> jaxgen.from_torch(state_dict, "lstm")["recurrent_kernel"].shape
        (4, 16)
    """
    gates, apart = TORCH_KINDS[choose(kind, TORCH_KINDS, "torch kind")]
    end = _suffix(layer, reverse)
    if f"weight_hr{end}" in check_kind("from_torch", state_dict, Mapping, "a state dict"):
        raise UsageError(
            f"The state dict has 'weight_hr{end}' (`proj_size`), which no jaxgen cell has: use proj_size=0."
        )
    recurrent = _take(state_dict, f"weight_hh{end}", "state dict")
    hidden = recurrent.shape[-1] if recurrent.ndim else 0
    recurrent = _fit(recurrent, (gates * hidden, hidden), f"weight_hh{end}", kind)
    kernel = _fit(_take(state_dict, f"weight_ih{end}", "state dict"), (gates * hidden, None), f"weight_ih{end}", kind)

    biases = []
    for name in (f"bias_ih{end}", f"bias_hh{end}"):
        bias = _take(state_dict, name, "state dict") if name in state_dict else np.zeros(gates * hidden, np.float32)
        biases.append(_fit(bias, (gates * hidden,), name, kind))
    bias, second = biases
    merged = (gates - apart) * hidden
    bias[:merged] += second[:merged]
    params = {"input": {"kernel": kernel.T.copy(), "bias": bias}, "recurrent_kernel": recurrent.T.copy()}
    return params | ({"recurrent_bias": second[merged:]} if apart else {})


def to_torch(params: Mapping[str, PyTree], kind: str, layer: int = 0, reverse: bool = False) -> dict[str, np.ndarray]:
    """The parameter tree of one jaxgen cell as a torch module's entries, the inverse of ``from_torch``.

    The names are torch's (``weight_ih_l0``, …), ready for ``load_state_dict`` after ``torch.from_numpy``; a
    module of several layers or directions takes the union of several calls. A cell that was initialised
    without an input has no torch counterpart.

    Raises ``UsageError`` for an unknown kind, missing parameters and parameters of another shape.

    Example:
        >>> params = {"input": {"kernel": np.zeros((3, 16)), "bias": np.zeros(16)}}
        >>> params["recurrent_kernel"] = np.zeros((4, 16))
        >>> jaxgen.to_torch(params, "lstm")["weight_ih_l0"].shape
        (16, 3)
    """
    gates, apart = TORCH_KINDS[choose(kind, TORCH_KINDS, "torch kind")]
    recurrent = _take(params, "recurrent_kernel", "parameter tree")
    hidden = recurrent.shape[0] if recurrent.ndim else 0
    recurrent = _fit(recurrent, (hidden, gates * hidden), "recurrent_kernel", kind)
    inner = params.get("input", {})
    kernel = _fit(_take(inner, "kernel", "part 'input' of the parameter tree"), (None, gates * hidden), "kernel", kind)
    bias = _fit(_take(inner, "bias", "part 'input' of the parameter tree"), (gates * hidden,), "bias", kind)
    second = np.zeros(gates * hidden, np.float32)
    if apart:
        own = _take(params, "recurrent_bias", "parameter tree")
        second[(gates - apart) * hidden :] = _fit(own, (apart * hidden,), "recurrent_bias", kind)

    end = _suffix(layer, reverse)
    return {
        f"weight_ih{end}": kernel.T.copy(),
        f"weight_hh{end}": recurrent.T.copy(),
        f"bias_ih{end}": bias,
        f"bias_hh{end}": second,
    }


def stack_from_torch(state_dict: Mapping[str, PyTree], kind: str) -> list[dict[str, PyTree]]:
    """Every layer of a torch module, lowest first: one parameter tree for each cell of a ``Stack``.

    Raises ``UsageError`` as ``from_torch`` does, and for a bidirectional module: convert its directions one by one.

    Example:
        >>> state_dict = {"weight_ih_l0": np.zeros((4, 3)), "weight_hh_l0": np.zeros((4, 4))}
        >>> state_dict |= {"weight_ih_l1": np.zeros((4, 4)), "weight_hh_l1": np.zeros((4, 4))}
        >>> len(jaxgen.stack_from_torch(state_dict, "rnn_tanh"))
        2
    """
    choose(kind, TORCH_KINDS, "torch kind")
    check_kind("stack_from_torch", state_dict, Mapping, "a state dict")
    if any(str(name).endswith("_reverse") for name in state_dict):
        raise UsageError(
            "The state dict is of a bidirectional module, and a stack runs one way: convert each layer's directions "
            "by `from_torch(..., layer)` and `from_torch(..., layer, reverse=True)`."
        )
    found = [re.fullmatch(r"weight_hh_l(\d+)", str(name)) for name in state_dict]
    layers = max((int(match[1]) + 1 for match in found if match), default=1)
    return [from_torch(state_dict, kind, layer) for layer in range(layers)]
