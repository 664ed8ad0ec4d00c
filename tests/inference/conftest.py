"""A small model with random weights for tests of the whole sampler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.inference.sampler import Sampler
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import CharTokenizer


@pytest.fixture(scope="session")
def tiny() -> Sampler:
    """Weights large enough that what was read matters for what is drawn."""
    tokenizer = CharTokenizer.train(["abcdefgh \n"])
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, cell="elman", cell_options={}, hidden=8, layers=2)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    return Sampler(task, tokenizer, jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes))
