"""The compiled functions of a task, shared by all trainers and samplers of a process that ask for the same ones.

A second run with the same model and settings (another seed, a resumed run, a search over data) compiles nothing. Cells
with options of their own are the exception: two such models are never equal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial, wraps
from threading import Lock
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec

from jaxgen.sampling.beam import beam_search
from jaxgen.sampling.decode import decode
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.training.data_parallel import (
    BATCH_AXIS,
    make_global_mesh,
    make_mesh,
    shard_eval_step,
    shard_train_steps,
    shard_train_steps_with_stop_flag,
)
from jaxgen.training.step import create_state, eval_step, train_steps
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches

#: How many functions of each kind stay compiled.
KEPT = 16


def cached(make: Callable[..., Callable]) -> Callable[..., Callable]:
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


#: The second output of the last function that was spread over the devices of a CPU.
_running: list[Any] = []
_turn = Lock()


def one_at_a_time(function: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """``function``, which is spread over devices, starting on a CPU only when no other such function runs.

    The devices of a CPU share threads. Of two functions in flight each can hold a thread in the middle of an exchange
    that the other needs to get to its own; XLA ends the process after 40 seconds of that.
    """
    if jax.default_backend() != "cpu":
        return function

    def call(*args: Any) -> tuple[Any, Any]:
        with _turn:
            with suppress(Exception):  # what went wrong there is told to whoever reads its results
                jax.block_until_ready(_running)
            first, second = function(*args)  # the first may be a state, which the next call uses up
            _running[:] = [second]
        return first, second

    return call


@cached
def jit_init_state(task: Any, optimizer: optax.GradientTransformation, rows: int) -> Callable:
    """``(key) -> TrainState``."""
    return jax.jit(partial(create_state, task, optimizer, rows=rows))


@cached
def jit_train_steps(
    task: Any, optimizer: optax.GradientTransformation, devices: int = 1, read: HostBatches | DeviceText = HOST_BATCHES
) -> Callable:
    """``(key, state, batches, count) -> (state, metrics)``; the state given is used up. ``read`` as in ``train_steps``.

    With several ``devices`` the batch is spread over them, and the state must be (``shard_state``). With several
    processes the functions are those of ``shard_train_steps_with_stop_flag``.
    """
    if devices == 1:
        return jax.jit(partial(train_steps, task, optimizer, read=read), donate_argnums=1)
    steps = shard_train_steps if jax.process_count() == 1 else shard_train_steps_with_stop_flag
    return one_at_a_time(jax.jit(steps(task, optimizer, make_global_mesh(devices), read), donate_argnums=1))


@cached
def jit_eval_step(task: Any, devices: int = 1) -> Callable:
    """``(params, carry, batch) -> (carry, totals)``, the batch spread over ``devices``."""
    if devices == 1:
        return jax.jit(partial(eval_step, task))
    return one_at_a_time(jax.jit(shard_eval_step(task, make_global_mesh(devices))))


@cached
def jit_prepare(task: Any) -> Callable:
    """``(params) -> weights`` as decoding reads them."""
    return jax.jit(task.prepare)


@cached
def jit_predict(task: Any) -> Callable:
    """``(weights, inputs) -> values``, a tree of arrays with a row for each input."""
    return jax.jit(task.predict)


@cached
def jit_encode(task: Any) -> Callable:
    """``(weights, inputs) -> (memory, carry, logits)``, from which a text is written for each input."""
    return jax.jit(task.init_decoder)


@cached
def jit_attention(task: Any) -> Callable:
    """``(weights, inputs, tokens) -> places``: where each step looks that reads these tokens."""
    return jax.jit(task.attention_weights)


@cached
def jit_initial_states(task: Any) -> Callable:
    """``(weights, condition) -> carry``, the state of a text of which something is known beforehand."""
    return jax.jit(task.initial_states)


@cached
def jit_prefill(task: Any) -> Callable:
    """``(weights, carry, logits, tokens, valid) -> (carry, logits)``."""
    return jax.jit(task.prefill)


@cached
def jit_decode_step(task: Any) -> Callable:
    """``(weights, carry, token) -> (carry, logits)``, one decoding step."""
    return jax.jit(task.step)


@cached
def jit_score(task: Any, top: int) -> Callable:
    """``(weights, carry, tokens, targets, reset, valid, initial) -> (carry, scored)`` with the ``top`` likeliest."""
    return jax.jit(partial(task.score, top=top))


@cached
def jit_decode_blocks(task: Any, kinds: tuple[type, ...], length: int, greedy: bool, devices: int) -> Callable:
    """``jit_decode`` of many blocks in turn: states, keys and what is drawn have an axis for them in front."""
    one = partial(decode, task.step, kinds, length=length, greedy=greedy, eos=EOS, pad=PAD)

    def many(weights: Any, states: Any, keys: Any) -> Any:
        return jax.lax.map(lambda each: one(weights, *each), (states, keys))

    if devices == 1:
        return jax.jit(many)
    whole, shared_out = PartitionSpec(), PartitionSpec(BATCH_AXIS)
    specs: dict[str, Any] = {"in_specs": (whole, shared_out, shared_out), "out_specs": shared_out}
    # Nothing is exchanged, so nothing is to be checked about what varies from device to device.
    return jax.jit(jax.shard_map(many, mesh=make_mesh(devices), check_vma=False, **specs))


@cached
def jit_decode(task: Any, kinds: tuple[type, ...], length: int, greedy: bool) -> Callable:
    """``(weights, state, keys) -> (state, drawn)``, ``length`` tokens with transforms of these ``kinds``."""
    return jax.jit(partial(decode, task.step, kinds, length=length, greedy=greedy, eos=EOS, pad=PAD))


@cached
def jit_beam_search(task: Any, kinds: tuple[type, ...], width: int, length: int, n_best: int) -> Callable:
    """``(weights, carry, logits, states, length_penalty) -> Hypotheses``, with transforms of these ``kinds``."""
    search = partial(beam_search, task.step, kinds, width=width, length=length, n_best=n_best)
    return jax.jit(partial(search, eos=EOS, pad=PAD))
