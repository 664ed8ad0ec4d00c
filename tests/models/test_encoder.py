"""The encoder: against PyTorch and the layers by hand, what padding may not do, what it refuses."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, LSTM, Elman
from jaxgen.cells.torch_weights import from_torch
from jaxgen.errors import UsageError
from jaxgen.models import Encoder
from jaxgen.models.stack import dropout

B, S, H = 4, 5, 6
SMALL, LARGE = 11, 30  # fewer and more tokens than there are in a batch of B * S
COUNTS = np.array([5, 3, 1, 0])
VALID = np.arange(S)[None, :] < COUNTS[:, None]
FAST = {"xla_backend_optimization_level": 0}


def setup(vocab_size=SMALL, cell=GRU, dtype=np.float32, **options):
    """An encoder and random parameters; nothing is compiled."""
    model = Encoder(vocab_size, cell, H, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((B, S), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), shapes)


def draw(vocab_size=SMALL, shape=(B, S), seed=1):
    return np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)


def compiled(model):
    return jax.jit(lambda p, t, v, k=None: model.apply({"params": p}, t, v, k), compiler_options=FAST)


def encode(model, params, tokens, valid=None, keys=None):
    return jax.tree.map(np.asarray, compiled(model)(params, tokens, valid, keys))


def close(a, b, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), a, b)


def row_keys(*seeds):
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))


# What it computes


@pytest.mark.parametrize(("cell", "kind"), [(GRU, "GRU"), (LSTM, "LSTM")])
@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])  # with token tables in the first layer, and without
def test_two_bidirectional_layers_are_those_of_pytorch_over_packed_sequences(cell, kind, vocab_size):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(H, H, num_layers=2, bidirectional=True, batch_first=True)
    model, params = setup(vocab_size, cell, layers=2, bidirectional=True)
    state = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    for layer in range(2):
        for name, suffix in (("forwards", ""), ("backwards", "_reverse")):
            one = {key.replace(f"l{layer}{suffix}", "l0"): state[key] for key in state if key.endswith(f"l{layer}{suffix}")}
            params[f"{name}_{layer}"] = from_torch(cell(H), one)
    tokens = draw(vocab_size)
    x = torch.tensor(params["embedding"]["embedding"][tokens])
    real = COUNTS > 0  # PyTorch packs no row without a token
    packed = torch.nn.utils.rnn.pack_padded_sequence(x[real], COUNTS[real], batch_first=True)
    with torch.no_grad():
        outputs, last = theirs(packed)
        outputs = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=S)[0].numpy()
    got = encode(model, params, tokens, VALID)
    close(got.outputs[real], outputs)
    last = [leaf.numpy() for leaf in (last if kind == "LSTM" else (last,))]  # h, and c of an LSTM
    for layer in range(2):
        for direction in range(2):
            ours = got.finals[layer][direction]
            h, *c = (ours[1], ours[0]) if kind == "LSTM" else (ours,)
            for state, reference in zip((h, *c), last):
                close(state[real], reference[2 * layer + direction])
