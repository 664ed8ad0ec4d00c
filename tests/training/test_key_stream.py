"""The random numbers of a seed in training (initial weights, dropout) equal the recorded ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.training.step import create_state, row_keys

KEY = jax.random.key(7, impl="threefry2x32")
#: Of rows 0 and 1 at step 3: the key, and the places of 16 that a dropout of one half keeps.
GOLDEN_KEYS = [[2785874591, 2637538571], [4073741833, 2748900490]]
GOLDEN_KEPT = [[0, 2, 3, 4, 5, 6, 7, 14], [0, 1, 2, 3, 4, 7, 9, 10, 11, 13, 14, 15]]
#: The first three numbers of each array.
GOLDEN_WEIGHTS = {
    "['embedding']": [-0.7427582, 0.36532003, -0.10171392],
    "['output']['kernel']": [0.832685, -1.0944496, 0.7526661],
    "['stack']['cells_0']['input']['kernel']": [0.66175056, 0.07643695, 0.43374917],
    "['stack']['cells_0']['recurrent_kernel']": [-0.28235543, 0.9593099, -0.79503846],
}


def advice(what: str, name: str, made: object) -> str:
    return (
        f"JAX {jax.__version__} draws other {what} from the same seed than the versions before it: a run that goes on "
        "under it is not bit for bit what it would have been, and the same command gives another model. JAX promises "
        "the distribution only, so this may not be a mistake of ours; if nothing in jaxgen changed what is drawn, say "
        f"so in CHANGELOG and replace {name} by {made}."
    )


def test_the_keys_of_dropout_are_those_that_were_released():
    keys = row_keys(KEY, jnp.int32(3), 2)
    made = jax.random.key_data(keys).tolist()
    assert made == GOLDEN_KEYS, advice("keys", "GOLDEN_KEYS", made)
    kept = [np.flatnonzero(np.asarray(jax.random.bernoulli(key, 0.5, (16,)))).tolist() for key in keys]
    assert kept == GOLDEN_KEPT, advice("masks of dropout", "GOLDEN_KEPT", kept)


def test_the_initial_weights_are_those_that_were_released():
    task = LanguageTask.build(vocab_size=5, cell="lstm", cell_options={}, hidden=2, layers=1, dropout=0.3)
    leaves = jax.tree_util.tree_leaves_with_path(create_state(task, optax.sgd(1.0), KEY, rows=2).params)
    first = {jax.tree_util.keystr(path): np.asarray(leaf).ravel()[:3].tolist() for path, leaf in leaves}
    made = {name: numbers for name, numbers in first.items() if "bias" not in name}
    assert made == {name: pytest.approx(numbers, rel=1e-5) for name, numbers in GOLDEN_WEIGHTS.items()}, advice(
        "initial weights", "GOLDEN_WEIGHTS", made
    )
