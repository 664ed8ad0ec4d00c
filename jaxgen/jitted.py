"""The compiled functions of a task, shared by all trainers and samplers of a process.

A second run with the same model and settings (another seed, a resumed run) compiles nothing. The functions of a task
that cannot be hashed are not shared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial, wraps
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from jaxgen.models.inspection import inspect_steps
from jaxgen.runtime import check_jax_settings
from jaxgen.sampling.beam import beam_search
from jaxgen.sampling.decode import PRNG, Drawn, decode, decode_rows
from jaxgen.tokenizers.base import EOS, PAD
from jaxgen.training.data_parallel import (
    BATCH_AXIS,
    make_global_mesh,
    make_mesh,
    shard_eval_step,
    shard_train_steps,
    shard_train_steps_with_stop_flag,
)
from jaxgen.training.dynamic_evaluation import dynamic_evaluation
from jaxgen.training.seeds import seed_train_steps
from jaxgen.training.step import create_state, eval_step, train_steps
from jaxgen.training.task import PromptedTask, Task, WritingTask
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches
from jaxgen.types import Array, Key

#: The largest number of compiled functions of each kind that are kept.
CACHE_SIZE = 16


def cached(make: Callable[..., Callable]) -> Callable[..., Callable]:
    """``make`` with a cache of its results; arguments that cannot be hashed are not cached.

    The result raises ``UsageError`` as ``check_jax_settings`` does.
    """
    cached_make = lru_cache(maxsize=CACHE_SIZE)(make)

    @wraps(cached_make)
    def get(*args: Any) -> Callable:
        check_jax_settings()
        try:
            hash(args)
        except TypeError:
            return make(*args)
        return cached_make(*args)

    return get


#: The second output of the last function that was sharded over the devices of a CPU.
_running: list[Any] = []
_turn = Lock()


def one_at_a_time(function: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """``function``, which is sharded over devices; on a CPU it starts only when no other such function runs.

    The devices of a CPU share threads. Two functions in flight can deadlock: each holds a thread in the middle of an
    exchange that the other needs for its own. XLA ends the process after 40 seconds.
    """
    if jax.default_backend() != "cpu":
        return function

    def call(*args: Any) -> tuple[Any, Any]:
        with _turn:
            with suppress(Exception):  # its error is raised where its results are read
                jax.block_until_ready(_running)
            first, second = function(*args)  # ``first`` may be a state, which the next call donates
            _running[:] = [second]
        return first, second

    return call


@cached
def jit_init_state(task: Task, optimizer: optax.GradientTransformation, rows: int) -> Callable:
    """``(key) -> TrainState``."""
    return jax.jit(partial(create_state, task, optimizer, rows=rows))


@cached
def jit_train_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    devices: int = 1,
    read: HostBatches | DeviceText = HOST_BATCHES,
    accumulate: int = 1,
) -> Callable:
    """``(key, state, batches, count, rates) -> (state, metrics)``; donates the state.

    ``read`` and ``accumulate`` as in ``train_steps``. With several ``devices`` the batch is sharded over them, and the
    state must be (``shard_state``). With several processes the functions are those of
    ``shard_train_steps_with_stop_flag``.
    """
    if devices == 1:
        return jax.jit(partial(train_steps, task, optimizer, read=read, accumulate=accumulate), donate_argnums=1)
    shard = shard_train_steps if jax.process_count() == 1 else shard_train_steps_with_stop_flag
    steps = shard(task, optimizer, make_global_mesh(devices), read, accumulate)
    return one_at_a_time(jax.jit(steps, donate_argnums=1))


@cached
def jit_seed_train_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    devices: int,
    read: HostBatches | DeviceText,
    shares_text: bool,
) -> Callable:
    """``(keys, states, batches, count, rates) -> (states, metrics)`` of several runs (``seed_train_steps``).

    Donates the states. The runs are spread over ``devices``.
    """
    mesh = None if devices == 1 else make_mesh(devices)
    return jax.jit(seed_train_steps(task, optimizer, read, shares_text, mesh), donate_argnums=1)


@cached
def jit_eval_step(task: Task, devices: int = 1) -> Callable:
    """``(params, carry, batch) -> (carry, totals)``, the batch sharded over ``devices``."""
    if devices == 1:
        return jax.jit(partial(eval_step, task))
    return one_at_a_time(jax.jit(shard_eval_step(task, make_global_mesh(devices))))


def _jit_method(name: str) -> Callable[[Any], Callable]:
    """``(task) -> the compiled method`` of that name."""
    return cached(lambda task: jax.jit(getattr(task, name)))


#: ``(params) -> weights`` as decoding reads them.
jit_prepare = _jit_method("prepare")
#: ``(weights, inputs) -> values``, a tree of arrays with a row for each input.
jit_predict = _jit_method("predict")
#: ``(weights, inputs) -> (memory, carry, logits)``, from which a text is decoded for each input.
jit_encode = _jit_method("init_decoder")
#: ``(weights, inputs, tokens) -> attention weights`` of each step that reads these tokens.
jit_attention = _jit_method("attention_weights")


@cached
def jit_initial_carry(task: PromptedTask, rows: int) -> Callable:
    """``() -> carry`` of ``rows`` rows before any input."""
    return jax.jit(partial(task.initial_carry, rows))


#: ``(weights, condition) -> carry``, the initial state of a text with known labels or features.
jit_initial_states = _jit_method("initial_states")
#: ``(weights, carry, logits, tokens, valid) -> (carry, logits)``.
jit_prefill = _jit_method("prefill")
#: ``(weights, carry, token) -> (carry, logits)``, one decoding step.
jit_decode_step = _jit_method("step")


@cached
def jit_score(task: PromptedTask, top: int) -> Callable:
    """``(weights, carry, tokens, targets, reset, valid, initial) -> (carry, scored)``, also the ``top`` best tokens."""
    return jax.jit(partial(task.score, top=top))


@cached
def jit_dynamic_evaluation(read: Callable) -> Callable:
    """``(trained, values, state, segments, count, rates) -> (state, outputs)``; donates the state.

    ``read`` is that of ``dynamic_evaluation`` with ``values``, a pytree that is not adapted, as its first argument.
    """

    def run(trained: PyTree, values: PyTree, *args: PyTree) -> PyTree:
        return dynamic_evaluation(partial(read, values), trained, *args)

    return jax.jit(run, donate_argnums=2)


@cached
def jit_inspect(model: Any) -> Callable:
    """``(params, carry, tokens) -> (carry, seen)``, ``inspect_steps`` of this model."""
    return jax.jit(partial(inspect_steps, model))


@cached
def jit_decode_blocks(task: WritingTask, kinds: tuple[type, ...], length: int, greedy: bool, devices: int) -> Callable:
    """``jit_decode`` of many blocks in turn: states, keys and outputs have a leading axis of blocks."""
    one = partial(decode, task.step, kinds, length=length, greedy=greedy, eos=EOS, pad=PAD)

    def many(weights: PyTree, states: PyTree, keys: Key) -> PyTree:
        return jax.lax.map(lambda each: one(weights, *each), (states, keys))

    return _over_devices(many, devices)


@cached
def jit_decode_slots(
    task: WritingTask, kinds: tuple[type, ...], length: int, greedy: bool, devices: int, rows: int
) -> Callable:
    """``(weights, states, keys, live) -> (states, drawn)`` of N blocks of ``rows`` rows that began at different times.

    All leaves have the axes [N, rows] before those of a block of one row; ``keys`` are data of keys [N, rows, 1, 2].
    Blocks that are not ``live`` [N] take no time. The blocks are spread over ``devices``.
    """
    options: dict[str, Any] = {"length": length, "greedy": greedy, "eos": EOS, "pad": PAD}

    def one(weights: PyTree, states: PyTree, data: Array) -> PyTree:
        keys = jax.random.wrap_key_data(data, impl=PRNG)
        if rows > 1:
            return decode_rows(task.step, kinds, weights, states, keys, **options)
        states, keys = jax.tree.map(lambda a: a[0], (states, keys))
        return jax.tree.map(lambda a: a[None], decode(task.step, kinds, weights, states, keys, **options))

    def skip(weights: PyTree, states: PyTree, data: Array) -> PyTree:
        shape = rows, 1, length
        return states, Drawn(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))

    def many(weights: PyTree, states: PyTree, data: Array, live: Array) -> PyTree:
        return jax.lax.map(lambda each: jax.lax.cond(each[2], one, skip, weights, *each[:2]), (states, data, live))

    return _over_devices(many, devices)


def _over_devices(many: Callable, devices: int) -> Callable:
    """The compiled ``many(weights, *arrays)``, whose arrays have a leading axis that is spread over ``devices``."""
    if devices == 1:
        return jax.jit(many)
    whole, shared_out = PartitionSpec(), PartitionSpec(BATCH_AXIS)

    def sharded(weights: PyTree, *arrays: PyTree) -> PyTree:
        specs: dict[str, Any] = {"in_specs": (whole, *(shared_out for _ in arrays)), "out_specs": shared_out}
        # The devices exchange nothing, so there is no need to check what varies between them.
        return jax.shard_map(many, mesh=make_mesh(devices), check_vma=False, **specs)(weights, *arrays)

    return jax.jit(sharded)


@cached
def jit_decode(task: WritingTask, kinds: tuple[type, ...], length: int, greedy: bool) -> Callable:
    """``(weights, state, keys) -> (state, drawn)``, ``length`` tokens with transforms of these ``kinds``."""
    return jax.jit(partial(decode, task.step, kinds, length=length, greedy=greedy, eos=EOS, pad=PAD))


@cached
def jit_beam_search(task: WritingTask, kinds: tuple[type, ...], width: int, length: int, n_best: int) -> Callable:
    """``(weights, carry, logits, states, length_penalty) -> Hypotheses``, with transforms of these ``kinds``."""
    search = partial(beam_search, task.step, kinds, width=width, length=length, n_best=n_best)
    return jax.jit(partial(search, eos=EOS, pad=PAD))
