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


def capped_lstm(params, carry, x):
    c, h = carry
    gates = x @ params["input"]["kernel"] + params["input"]["bias"] + h @ params["recurrent_kernel"]
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + np.minimum(sigmoid(i), 1 - sigmoid(f)) * np.tanh(g)
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


def minlstm(params, carry, x):
    f, i, candidate = np.split(x @ params["input"]["kernel"] + params["input"]["bias"], 3, axis=-1)
    f, i, n = sigmoid(f), sigmoid(i), np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
    h = f / (f + i) * carry + i / (f + i) * n
    return h, h


def lru(params, carry, x):
    b_real, b_imag, d = np.split(params["input"]["kernel"], 3, axis=-1)
    bias_real, bias_imag, bias_d = np.split(params["input"]["bias"], 3)
    c_real, c_imag = np.split(params["output_kernel"], 2)
    decay = np.exp(-np.exp(params["log_rate"]) + 1j * np.exp(params["log_angle"]))
    driven = x @ (b_real + 1j * b_imag) + bias_real + 1j * bias_imag
    h = decay * (carry[0] + 1j * carry[1]) + np.exp(params["log_gain"]) * driven
    return (h.real, h.imag), (h @ (c_real + 1j * c_imag)).real + x @ d + bias_d


def qrnn(params, carry, x):
    z, f, o = np.split(x @ params["input"]["kernel"] + params["input"]["bias"], 3, axis=-1)
    c = sigmoid(f) * carry + (1 - sigmoid(f)) * np.tanh(z)
    return c, sigmoid(o) * c


def sru(params, carry, x):
    n, f, r = np.split(x @ params["input"]["kernel"] + params["input"]["bias"], 3, axis=-1)
    c = sigmoid(f) * carry + (1 - sigmoid(f)) * n
    return c, sigmoid(r) * np.tanh(c) + (1 - sigmoid(r)) * (x @ params["skip"]["kernel"])


def rglru(params, carry, x):
    x = x @ params["input"]["kernel"]

    def gate(name):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        parts = np.split(x, len(kernel), axis=-1)
        return sigmoid(np.concatenate([part @ block for part, block in zip(parts, kernel)], axis=-1) + bias)

    a = np.exp(-8 * np.log(1 + np.exp(params["decay"])) * gate("recurrence_gate"))
    h = a * carry + np.sqrt(1 - a**2) * (gate("input_gate") * x)
    return h, h


def layernorm_lstm(params, carry, x):
    def norm(a):
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)

    c, h = carry
    gates = params["input_gain"] * norm(x @ params["input"]["kernel"]) + params["bias"]
    gates = gates + params["recurrent_gain"] * norm(h @ params["recurrent_kernel"])
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(params["cell_gain"] * norm(c) + params["cell_bias"])
    return (c, h), h


def mogrifier(params, carry, x):
    c, h = carry
    x = 2 * sigmoid(h @ params["q1"]) * x
    h = 2 * sigmoid(x @ params["r2"]) * h
    x = 2 * sigmoid(h @ params["q3"]) * x
    h = 2 * sigmoid(x @ params["r4"]) * h
    x = 2 * sigmoid(h @ params["q5"]) * x
    kernels = {"input": {"kernel": params["input_kernel"], "bias": params["bias"]}}
    return lstm({**kernels, "recurrent_kernel": params["recurrent_kernel"]}, (c, h), x)


def slstm(params, carry, x):
    """The paper's c, n and stabiliser m; the cell stores c / n and the logarithm of n without the stabiliser."""
    ratio, log_n, h = carry
    c, n, m = ratio * np.exp(log_n), np.exp(log_n), 0.0
    gates = x @ params["input"]["kernel"] + params["input"]["bias"] + h @ params["recurrent_kernel"][0]
    i, f, g, o = np.split(gates, 4, axis=-1)
    log_i, log_f = i, np.log(sigmoid(f))
    new_m = np.maximum(log_f + m, log_i)
    i, f = np.exp(log_i - new_m), np.exp(log_f + m - new_m)
    c, n = f * c + i * np.tanh(g), f * n + i
    h = sigmoid(o) * c / n
    return (c / n, np.log(n) + new_m, h), h


def attention(params, carry, x):
    """Four heads: softmax over the used ones of the last 256 steps, less slope times distance."""
    rows, width = x.shape[0], carry.keys.shape[2]
    heads, d = 4, width // 4
    q, *new = np.split(x @ params["input"]["kernel"] + params["input"]["bias"], 3, axis=-1)
    new.append(np.ones((rows, 1)))
    carry = type(carry)(*(np.concatenate([old[:, 1:], a[:, None]], axis=1) for old, a in zip(carry, new)))
    y = np.empty((rows, width))
    for row in range(rows):
        used = np.flatnonzero(carry.used[row, :, 0] > 0.5)
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            distance = carry.keys.shape[1] - 1 - used
            scores = carry.keys[row, used, part] @ q[row, part] / np.sqrt(d) - 2.0 ** (-2 * (head + 1)) * distance
            e = np.exp(scores - scores.max())
            y[row, part] = e / e.sum() @ carry.values[row, used, part]
    return carry, y


def gla(params, carry, x):
    """One head with keys half as wide as values."""
    wide = x @ params["input"]["kernel"] + params["input"]["bias"]
    value = wide.shape[1] // 3
    q, k, v, r = np.split(wide, [value // 2, value, 2 * value], axis=-1)
    decay = x @ params["decay_input"]["kernel"] @ params["decay"]["kernel"] + params["decay"]["bias"]
    state = np.empty_like(carry)
    for row in range(len(x)):
        state[row, 0] = np.diag(sigmoid(decay[row]) ** (1 / 16)) @ carry[row, 0] + np.outer(k[row], v[row])
    o = np.einsum("bk,bkv->bv", q, state[:, 0]) / np.sqrt(value // 2)
    o = o / np.sqrt(np.mean(o**2, axis=-1, keepdims=True) + 1e-6)
    return state, r * sigmoid(r) * params["gain"] * o


EQUATIONS = {
    "attention": attention,
    "capped-lstm": capped_lstm,
    "elman": _elman(np.tanh),
    "elman-relu": _elman(lambda a: np.maximum(a, 0)),
    "gla": gla,
    "gru": gru,
    "layernorm-lstm": layernorm_lstm,
    "lru": lru,
    "lstm": lstm,
    "mingru": mingru,
    "minlstm": minlstm,
    "mogrifier": mogrifier,
    "qrnn": qrnn,
    "rglru": rglru,
    "slstm": slstm,
    "sru": sru,
}
