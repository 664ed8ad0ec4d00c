"""A trained language model as one file that runs with JAX and NumPy alone, on CPU, GPU and TPU.

The file is a ZIP archive; nothing in it is unpickled:

- ``prefill.bin``, ``step.bin``, ``draw.bin``: functions as ``jax.export`` serializes them (StableHLO);
- ``weights.npz``, ``state.npz``: their first argument, and the state before a text;
- ``manifest.json``: the vocabulary, and everything else that a text depends on;
- ``tokenizer.json``: the tokenizer of the run.

``docs/interchange.md`` has a program that draws texts with it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import PyTree

from jaxgen.errors import UsageError
from jaxgen.fsutil import dump_json
from jaxgen.inference.sampler import STREAM_CHUNK, Sampler
from jaxgen.runs.config import versions
from jaxgen.runs.manifest import host_arrays, named_leaves
from jaxgen.sampling.decode import PREFILL_CHUNK, PRNG, DecodeState, Drawn, decode
from jaxgen.sampling.transforms import Forbid, MinP, Temperature, TopK, TopP
from jaxgen.sampling.transforms.base import Context, Last
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.types import Array, TokenId

PLATFORMS = ("cpu", "cuda", "tpu")
#: Arrays by dotted name. They stand for trees, whose classes a program without jaxgen does not have.
Named = Mapping[str, Array]
#: The options of ``draw``. ``top_k`` of the vocabulary's size, ``top_p`` of ``PARTS`` and ``min_p`` of 0 keep all.
OPTIONS = {
    "seed": jnp.uint32,
    "sample": jnp.uint32,
    "temperature": jnp.float32,
    "top_k": jnp.int32,
    "top_p": jnp.int32,
    "min_p": jnp.float32,
}


def require_flatbuffers() -> None:
    """Raise ``UsageError`` unless flatbuffers is installed, with which ``jax.export`` serializes."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UsageError(
            'StableHLO needs the package flatbuffers: pip install "jaxgen[export]", or give --to safetensors.'
        ) from None


def export_stablehlo(sampler: Sampler) -> bytes:
    """The archive of a model; texts begin under the condition of ``sampler``."""
    read = sampler.initial_state()
    start = DecodeState(read.carry, read.logits, (), jnp.zeros(1, bool), *Last.none(1))
    weights, state = host_arrays(sampler.weights), host_arrays(start)
    options = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in OPTIONS.items()}
    chunk = [jax.ShapeDtypeStruct((1, PREFILL_CHUNK), dtype) for dtype in (jnp.int32, jnp.bool_)]
    inputs: dict[str, list] = {"prefill": chunk, "step": [jax.ShapeDtypeStruct((1,), jnp.int32)], "draw": [options]}
    functions = _functions(sampler, start)
    content = {"manifest.json": dump_json(_manifest(sampler)), "tokenizer.json": dump_json(sampler.tokenizer.to_json())}
    for name, more in inputs.items():
        exported = export.export(jax.jit(functions[name]), platforms=PLATFORMS)(weights, state, *more)
        content[f"{name}.bin"] = bytes(exported.serialize())
    return _archive(content | {"weights.npz": _npz(weights), "state.npz": _npz(state)})


def _functions(sampler: Sampler, start: DecodeState) -> dict[str, Callable[..., PyTree]]:
    """``prefill``, ``step`` and ``draw`` of arrays by name.

    They are compiled as the sampler compiles them, so that the bits of a text are the same.
    """
    task = sampler.task
    forbidden = Forbid(tuple(map(TokenId, sampler.forbidden))).init(Context(1, sampler.tokenizer.vocab_size))

    def trees(weights: Named, state: Named) -> tuple[PyTree, DecodeState]:
        return _like(sampler.weights, weights), _like(start, state)

    def prefill(weights: Named, state: Named, tokens: Array, valid: Array) -> Named:
        tree, now = trees(weights, state)
        carry, logits = task.prefill(tree, now.carry, now.logits, tokens, valid)
        return dict(named_leaves(now._replace(carry=carry, logits=logits)))

    def step(weights: Named, state: Named, token: Array) -> Named:
        tree, now = trees(weights, state)
        carry, logits = task.step(tree, now.carry, token)
        return dict(named_leaves(now._replace(carry=carry, logits=logits)))

    def draw(weights: Named, state: Named, options: Named) -> tuple[Named, Array, Array]:
        tree, now = trees(weights, state)
        seed, sample, temperature = (options[name] for name in ("seed", "sample", "temperature"))
        key = jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(seed), seed]), impl=PRNG)
        keys = jax.random.fold_in(key, sample)[None]
        truncation = [(TopK, options["top_k"]), (TopP, options["top_p"]), (MinP, options["min_p"])]

        def generate(greedy: bool) -> tuple[DecodeState, Drawn]:
            heat = [] if greedy else [(Temperature, temperature[None])]
            kinds, states = zip((Forbid, forbidden), *heat, *truncation)
            begin, ends = now._replace(transforms=states), {"eos": EOS, "pad": PAD}
            after, drawn = decode(task.step, kinds, tree, begin, keys, length=STREAM_CHUNK, greedy=greedy, **ends)
            return after._replace(transforms=()), drawn

        after, drawn = jax.lax.cond(temperature == 0, partial(generate, True), partial(generate, False))
        return dict(named_leaves(after)), drawn.tokens, drawn.logp

    return {"prefill": prefill, "step": step, "draw": draw}


def _like(tree: PyTree, named: Named) -> PyTree:
    """The arrays ``named`` as a tree with the structure of ``tree``."""
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name, _ in named_leaves(tree)])


def _manifest(sampler: Sampler) -> dict[str, object]:
    return {
        "format": "jaxgen-stablehlo-1",
        "versions": versions(),
        "platforms": PLATFORMS,
        "checkpoint": sampler.digest,
        "level": sampler.tokenizer.kind,
        "pieces": [piece.hex() for piece in sampler.tokenizer.pieces],
        "eos": EOS,
        "before_prompt": [EOS] if sampler.documents else [],
        "empty_prompt": sampler.prompt_ids("").tolist(),
        "prefill_tokens": PREFILL_CHUNK,
        "draw_tokens": STREAM_CHUNK,
        "options": {name: np.dtype(dtype).name for name, dtype in OPTIONS.items()},
    }


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _archive(content: Mapping[str, bytes]) -> bytes:
    """A ZIP archive, the same for the same content: without the time of writing."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()
