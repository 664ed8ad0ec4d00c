"""One time step of every registered cell, written in NumPy from the equations alone.

``(params, carry, x) -> (carry, y)`` with x [B, D] and ``params`` the parameter tree of one cell. These are the
contract suite's independent opinion: no fused gates, no folded scales, nothing shared with ``jaxgen.cells``.
"""

from __future__ import annotations

import numpy as np


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


def _elman(activation):
    def step(params, carry, x):
        inner = params["input"]
        h = activation(x @ inner["kernel"] + inner["bias"] + carry @ params["recurrent_kernel"])
        return h, h

    return step


def lstm(params, carry, x):
    c, h = carry
    gates = x @ params["input"]["kernel"] + params["input"]["bias"] + h @ params["recurrent_kernel"]
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def gru(params, carry, x):
    xr, xz, xn = np.split(x @ params["input"]["kernel"] + params["input"]["bias"], 3, axis=-1)
    hr, hz, hn = np.split(carry @ params["recurrent_kernel"], 3, axis=-1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * (hn + params["recurrent_bias"]))
    h = (1 - z) * n + z * carry
    return h, h


def mingru(params, carry, x):
    gate, candidate = np.split(x @ params["input"]["kernel"] + params["input"]["bias"], 2, axis=-1)
    z, n = sigmoid(gate), np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
    h = (1 - z) * carry + z * n
    return h, h


def rglru(params, carry, x):
    x = x @ params["input"]["kernel"]

    def gate(name):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        parts = np.split(x, len(kernel), axis=-1)
        return sigmoid(np.concatenate([part @ block for part, block in zip(parts, kernel)], axis=-1) + bias)

    a = np.exp(-8 * np.log(1 + np.exp(params["decay"])) * gate("recurrence_gate"))
    h = a * carry + np.sqrt(1 - a**2) * (gate("input_gate") * x)
    return h, h


EQUATIONS = {
    "elman": _elman(np.tanh),
    "elman-relu": _elman(lambda a: np.maximum(a, 0)),
    "gru": gru,
    "lstm": lstm,
    "mingru": mingru,
    "rglru": rglru,
}
