"""``model.safetensors`` without jaxgen: other libraries find the weights by name and compute the same with them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxgen.cells import LSTM
from jaxgen.cells.torch import to_torch
from jaxgen.models import LanguageModel
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import unflatten

V, D, H, LAYERS = 11, 3, 4, 2
MODEL = LanguageModel(V, LSTM, hidden=H, layers=LAYERS, embed=D)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype("float32"), shapes)


@pytest.fixture(scope="module")
def arrays(params, tmp_path_factory):
    """What any reader of safetensors finds in the checkpoint of a language model."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    CheckpointStore(folder).save(20, {"params": params, "step": np.int32(20)}, {})
    return load_file(folder / "00000020" / "model.safetensors")


def test_the_weights_have_readable_names(arrays, params):
    assert set(arrays) == {
        "embedding",
        "output.kernel",
        "output.bias",
        *(
            f"stack.cells_{layer}.{name}"
            for layer in range(LAYERS)
            for name in ("input.kernel", "input.bias", "recurrent_kernel")
        ),
    }
    np.testing.assert_array_equal(arrays["embedding"], params["embedding"])
    np.testing.assert_array_equal(
        arrays["stack.cells_1.recurrent_kernel"], params["stack"]["cells_1"]["recurrent_kernel"]
    )


def test_torch_computes_the_same_with_them(arrays, params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
    cells = unflatten(arrays)["stack"]
    module = torch.nn.LSTM(D, H, LAYERS, batch_first=True)
    weights = {}
    for layer in range(LAYERS):
        weights |= to_torch(cells[f"cells_{layer}"], "lstm", layer)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    tokens = np.random.default_rng(1).integers(0, V, (2, 6))
    with torch.no_grad():
        states, _ = module(torch.from_numpy(arrays["embedding"][tokens]))
    _, logits = MODEL.apply({"params": params}, tokens, MODEL.initial_carry(2))
    expected = states.numpy() @ arrays["output.kernel"] + arrays["output.bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
