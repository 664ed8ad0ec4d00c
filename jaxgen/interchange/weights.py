"""The weights of a language model as one safetensors file, under jaxgen's names or PyTorch's, and the file read back.

The header's metadata has what the model is: ``cell``, ``hidden``, ``layers`` and ``vocabulary`` in words, all settings
that it is built from as JSON (``settings``), and its tokenizer (``tokenizer``, as in ``tokenizer.json``).
"""

from __future__ import annotations

import json
import os

import numpy as np

from jaxgen.cells.torch import to_torch
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.manifest import decode_arrays, encode_arrays, header_bytes, host_arrays, metadata
from jaxgen.tasks.language.config import BUILT_FROM
from jaxgen.types import Params

#: The cell of each kind of PyTorch layer in ``TORCH_KINDS``.
TORCH_CELLS = {"elman": "rnn_tanh", "elman-relu": "rnn_relu", "lstm": "lstm", "gru": "gru"}
#: Settings, beyond those of the model, that an imported run takes over: how it reads text, and what a text is.
READING = ("level", "newlines", "layout", "documents")
#: The metadata of a file that jaxgen wrote.
SETTINGS, TOKENIZER = "settings", "tokenizer"


def export_safetensors(saved: LoadedRun, params: Params) -> bytes:
    """A safetensors file with jaxgen's own names and layouts; ``jaxgen import`` makes the same model of it."""
    return _encode(saved, host_arrays(params), "flax")


def export_torch(saved: LoadedRun, params: Params) -> bytes:
    """A PyTorch state dict as a safetensors file, of the module in ``docs/interchange.md``.

    Raises:
        UsageError: The model has a part that PyTorch's ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` do not have.
    """
    config, model = saved.config, saved.resolved["model"]
    kind = TORCH_CELLS[choose(config.cell, TORCH_CELLS, "cell for --to torch")]
    if config.block != "plain" or config.layers_pattern is not None or model.get("soft_cap"):
        raise UsageError("PyTorch has no module for --block, --layers-pattern and --soft-cap: give another --to.")
    if "embedding" not in params:
        raise UsageError("A model of one-hot vectors (--embed 0) has no embedding to export: give --to safetensors.")
    if "condition_kernel" in params:
        raise UsageError("PyTorch's layers have no labels or features: export this run with --to stablehlo.")
    if config.zoneout:
        raise UsageError("PyTorch's layers have no zoneout (--zoneout): export this run with --to stablehlo.")
    if model.get("skip_connections") or model.get("softmaxes", 1) > 1 or "output_projection" in params:
        raise UsageError(
            "The module has one matrix that reads the last layer, and no --skip-connections, --softmaxes or projection "
            "(--tie with --embed unlike --hidden): export this run with --to stablehlo."
        )
    arrays: dict[str, np.ndarray] = {"embedding.weight": np.asarray(params["embedding"])}
    for layer in range(config.layers):
        entries = to_torch(params["stack"][f"cells_{layer}"], kind, layer)
        arrays |= {f"rnn.{name}": array for name, array in entries.items()}
    tied = "output_bias" in params
    arrays["output.weight"] = arrays["embedding.weight"] if tied else np.asarray(params["output"]["kernel"]).T
    arrays["output.bias"] = np.asarray(params["output_bias"] if tied else params["output"]["bias"])
    return _encode(saved, arrays, "pt")


def _encode(saved: LoadedRun, arrays: dict[str, np.ndarray], framework: str) -> bytes:
    config = saved.config.model_dump(mode="json")
    about = {name: str(config[name]) for name in ("cell", "hidden", "layers")}
    about |= {"format": framework, "vocabulary": str(saved.resolved["model"]["vocab_size"])}
    settings = {name: config[name] for name in (*BUILT_FROM["rnn"], *READING)}
    settings["precision"] = saved.resolved["model"]["precision"]  # what ``auto`` was when the run started
    about |= {SETTINGS: json.dumps(settings), TOKENIZER: json.dumps(saved.codec.to_json())}
    try:
        return encode_arrays(arrays, about)
    except ValueError as error:
        raise UsageError(f"{saved.directory} cannot be written to one file: {error}") from None


def read_weights(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file from anywhere, as float32, and the metadata in its header.

    Raises:
        DataError: The file cannot be read, is not a safetensors file, or has numbers that are no finite floats.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device would block
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < header_bytes(file.read(8)) < size:  # before a large file is read that is of another kind
                raise ValueError("it is not a safetensors file")
            file.seek(0)
            data = file.read(size)
        arrays, about = decode_arrays(data), metadata(data)
        for name, array in arrays.items():
            if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
                raise ValueError(f"{name!a} is of the type {array.dtype.name}, and weights are floats")
            with np.errstate(over="ignore"):
                arrays[name] = array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise ValueError(f"{name!a} has numbers that are not finite in float32")
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "out of memory"
        raise DataError(
            f"The weights {path} cannot be read: {reason}. Give a safetensors file of float arrays."
        ) from None
    return arrays, about
