"""The compiled functions of a task, shared by all trainers and samplers of a process that ask for the same ones.

A second run with the same model and settings (another seed, a resumed run, a search over data) compiles nothing. Cells
with options of their own are the exception: two such models are never equal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any

import jax
import optax

from jaxgen.sampling import decode
from jaxgen.text import EOS, PAD
from jaxgen.training import create_state, eval_step, train_steps

#: How many functions of each kind stay compiled.
KEPT = 16


def shared(make: Callable[..., Callable]) -> Callable[..., Callable]:
    """Remember what ``make`` returned for equal arguments; for those that cannot be compared, make it anew."""
    known = lru_cache(maxsize=KEPT)(make)

    @wraps(known)
    def get(*args: Any) -> Callable:
        try:
            hash(args)
        except TypeError:
            return make(*args)
        return known(*args)

    return get


@shared
def fresh_state(task: Any, optimizer: optax.GradientTransformation, rows: int) -> Callable:
    """``(key) -> TrainState``."""
    return jax.jit(partial(create_state, task, optimizer, rows=rows))


@shared
def training_steps(task: Any, optimizer: optax.GradientTransformation) -> Callable:
    """``(key, state, batches, count) -> (state, metrics)``; the state given is used up."""
    return jax.jit(partial(train_steps, task, optimizer), donate_argnums=1)


@shared
def evaluation(task: Any) -> Callable:
    """``(params, carry, batch) -> (carry, totals)``."""
    return jax.jit(partial(eval_step, task))


@shared
def preparation(task: Any) -> Callable:
    """``(params) -> weights`` as decoding reads them."""
    return jax.jit(task.prepare)


@shared
def priming(task: Any) -> Callable:
    """``(weights, carry, logits, tokens, valid) -> (carry, logits)``."""
    return jax.jit(task.prime)


@shared
def decoding(task: Any, kinds: tuple[type, ...], length: int, greedy: bool) -> Callable:
    """``(weights, state, keys) -> (state, tokens)``, ``length`` tokens with transforms of these ``kinds``."""
    return jax.jit(partial(decode, task.step, kinds, length=length, greedy=greedy, eos=EOS, pad=PAD))
