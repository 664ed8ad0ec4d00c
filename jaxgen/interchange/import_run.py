"""A run from the weights of another program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.fsutil import parse_json
from jaxgen.interchange.layouts import NOTHING, Unrecorded, read_model
from jaxgen.interchange.vocabulary import read_vocabulary
from jaxgen.interchange.weights import READING, SETTINGS, TOKENIZER, read_weights
from jaxgen.runs.config import validate
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.manifest import named_leaves, unflatten
from jaxgen.tasks.language.config import BUILT_FROM, LanguageConfig
from jaxgen.tasks.registry import objective
from jaxgen.tokenizers import EOS, Tokenizer, load_tokenizer
from jaxgen.trainer.run import start
from jaxgen.types import Params

#: The settings that a file may choose. All others, such as paths, are the user's.
FROM_FILE = {*BUILT_FROM["rnn"], *READING}


class Weights:
    """A tokenizer and weights from elsewhere, as ``jaxgen.trainer.run.Source``."""

    def __init__(self, codec: Tokenizer, params: Params) -> None:
        self.codec, self._params = codec, params

    def params(self, like: Params) -> tuple[int, Params]:
        """The weights, after 0 steps."""
        return 0, self._params


def import_run(
    path: str,
    run: str | None = None,
    tokenizer: str | None = None,
    data: Sequence[str] = (),
    unrecorded: Unrecorded = NOTHING,
) -> RunDirectory:
    """A new run, of 0 steps, of the model in a safetensors file.

    Args:
        path: The file.
        run: The folder of the run. Default: the next free ``runs/language-N``.
        tokenizer: The vocabulary, as ``read_vocabulary`` reads it, of a file that has none.
        data: The texts that training continues with, if the run is resumed. Default: that of every run.
        unrecorded: What the file does not say.

    Raises:
        DataError: The file or its vocabulary cannot be used.
        UsageError: ``run`` cannot be a new run, or ``tokenizer`` is missing or not needed.
    """
    arrays, about = read_weights(path)
    if not {SETTINGS, TOKENIZER} <= about.keys():
        about = {}  # jaxgen did not write it
    if (tokenizer is None) == (TOKENIZER not in about):
        advice = "leave out --tokenizer" if tokenizer else "give --tokenizer FILE, or --tokenizer byte"
        raise UsageError(f"The weights {path} have {'a' if tokenizer else 'no'} vocabulary in their header: {advice}.")
    try:
        config, codec, named = _read(arrays, about, tokenizer, unrecorded)
    except (TypeError, ValueError, KeyError, CheckpointError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The weights {path} cannot be imported. {str(error).splitlines()[0]}") from None
    own = {name: value for name, value in (("run", run), ("data", tuple(data))) if value}
    params = jax.tree.map(jnp.asarray, unflatten(named))
    return start(config.model_copy(update=own), source=Weights(codec, params)).run


def _read(
    arrays: dict[str, np.ndarray], about: dict[str, str], vocabulary: str | None, unrecorded: Unrecorded
) -> tuple[LanguageConfig, Tokenizer, dict[str, np.ndarray]]:
    """The settings, the tokenizer and the parameters by dotted name. Raises ``ValueError`` and the like."""
    settings = _saved_settings(about)
    if settings and unrecorded != NOTHING:
        raise UsageError("Its header says what the model does: leave out --cell, --scale-embedding and --soft-cap.")
    if settings and about.get("format") != "pt":
        named = arrays
    else:
        if settings.get("cell") == "elman-relu":
            unrecorded = Unrecorded(cell="elman-relu")
        model = read_model(arrays, unrecorded)
        settings, params = settings | model.settings, model.params
        if vocabulary is not None:
            known = read_vocabulary(vocabulary, len(params["embedding"]))
            codec, params = known.tokenizer, known.reorder(params)
            settings |= {"level": codec.kind}
            settings |= {"layout": "documents", "documents": "line"} if known.rows[EOS] >= 0 else {}
        named = dict(named_leaves(params))
    if "condition_kernel" in named:
        raise UsageError("Its texts have labels or features, which cannot be imported: copy the folder of the run.")
    if vocabulary is None:
        codec = load_tokenizer(parse_json(about[TOKENIZER].encode()))
    config = validate(LanguageConfig, {**settings, "steps": 0, "schedule": "constant"})
    _check_shapes(config, codec.vocab_size, named)
    return config, codec, named


def _saved_settings(about: dict[str, str]) -> dict[str, Any]:
    """The settings in the header of a file that jaxgen wrote; none in another. Raises ``ValueError``."""
    settings = parse_json(about.get(SETTINGS, "{}").encode())
    if not isinstance(settings, dict) or not FROM_FILE.issuperset(settings):
        raise ValueError("The settings in its header are not those of a model.")
    return settings


def _check_shapes(config: LanguageConfig, vocab_size: int, named: dict[str, np.ndarray]) -> None:
    """Raise ``UsageError`` unless the arrays are the parameters of the model that ``config`` describes."""
    task = objective(config.task, config.model).build(
        vocab_size=vocab_size, **config.model_arguments(BUILT_FROM[config.model])
    )
    model = {name: list(leaf.shape) for name, leaf in named_leaves(jax.eval_shape(task.init, jax.random.key(0)))}
    file = {name: list(array.shape) for name, array in named.items()}
    for name in sorted({*model, *file}):
        if model.get(name) != file.get(name):
            raise UsageError(
                f"{name!a} has the shape {file.get(name, 'of no array')} in the file, and {model.get(name, 'none')} in "
                f"a model of {config.layers} layers of {config.hidden} {config.cell} units and {vocab_size:,} tokens."
            )
