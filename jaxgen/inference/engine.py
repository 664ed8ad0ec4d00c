"""Decodes the samples of many requests together (continuous batching); each has the bits that ``Sampler`` gives it.

A request is a prompt with settings and a number of samples. It becomes rows, one for each sample, as follows:

1. *Check*, in the thread that submits: the prompt is encoded and the settings are checked. Nothing is compiled.
2. *Read*, in a thread of its own: the prompt is read once, one row at a time in chunks of ``PREFILL_CHUNK`` tokens, as
   ``Sampler`` reads it. Prompts take turns after each chunk, so a long one does not delay the others.
3. *Join*: the samples become rows that start from this state. Requests take turns. Rows join and leave between chunks
   of ``STREAM_CHUNK`` tokens, where nothing changes for the others. If there is no room for a request that has no row
   yet, requests with several rows give some up: these are parked with their states, and go on when there is room.
4. *Decode*: rows with the same weights and kinds of transforms are packed into blocks of a fixed number of rows
   (``GenerationConfig.block``), and several blocks into one compiled call (``jit_decode_slots``).

A sample of a block of one row is decoded by ``decode`` with its own state and key, which is what ``Sampler`` calls. In
a block of R rows, the model steps R rows at once, as in a block of ``Sampler``, whichever samples they are of: at a
fixed number of rows, a row's bits depend neither on its place nor on the others. Everything else, such as the
transforms, is computed for each row by itself (``decode_rows``).

So that few functions are compiled, the transforms of a request are filled up with those of ``NEUTRAL``, which change no
logit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen import jitted
from jaxgen.errors import JaxgenError, check_int
from jaxgen.inference.generation_config import MAX_LENGTH, GenerationConfig
from jaxgen.inference.sampler import (
    MAX_PARAMETERS,
    MAX_SAMPLES,
    MAX_STATE_BYTES,
    STREAM_CHUNK,
    Beginning,
    Sampler,
    count_devices,
)
from jaxgen.inference.state import DecoderState
from jaxgen.inference.text_stream import Chunk, Sample, StreamingDetokenizer, collect
from jaxgen.sampling.decode import MAX_SEED, DecodeState, sample_keys
from jaxgen.sampling.transforms import (
    TRANSFORMS,
    Bias,
    Forbid,
    FrequencyPenalty,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    TopK,
    TopP,
    TypicalP,
)
from jaxgen.sampling.transforms.base import Transform, chain
from jaxgen.training.data_parallel import BATCH_AXIS, make_mesh

_LOG = logging.getLogger("jaxgen.engine")
#: Transforms with options that change nothing. A request with some of these kinds gets all of them.
NEUTRAL: dict[type[Any], Transform] = {
    type(each): each
    for each in (
        Bias(()),
        RepetitionPenalty(1.0),
        PresencePenalty(0.0),
        FrequencyPenalty(0.0),
        TopK(2**31 - 1),
        TopP(1.0),
        MinP(0.0),
        TypicalP(1.0),
    )
}
#: Rows of a call of several blocks.
CALL_ROWS = 16
#: Groups without rows whose functions and weights are kept.
MAX_IDLE_GROUPS = 8


class BusyError(JaxgenError):
    """Too many requests wait, or the engine is closed.

    ``closed`` tells which; ``seconds`` is after how long it is worth another try.

    Example:
        >>> engine = jaxgen.Engine()
        >>> engine.close()
        >>> try:
        ...     engine.submit(print, jaxgen.Sampler.load("runs/language-1"), "the ")
        ... except jaxgen.BusyError as error:
        ...     print(error.closed)
        True
    """

    def __init__(self, message: str, seconds: float = 1.0, *, closed: bool = False) -> None:
        super().__init__(message)
        self.seconds, self.closed = seconds, closed


#: What a request is told: chunks of its samples, or the error that ended it.
Event = list[Chunk] | Exception


@dataclass(eq=False)
class Request:
    """A request that was submitted. ``start`` is the state after its prompt, once that is read."""

    sampler: Sampler
    settings: GenerationConfig
    begun: Beginning
    before: DecoderState | None
    notify: Callable[[Event], None]
    unstarted: deque[int]  # the indices of samples that have not begun
    number: int
    skip: int
    deadline: float
    whole: bool = False
    start: DecoderState | None = None
    leaves: list[np.ndarray] = field(default_factory=list)  # of the state of one row
    tree: Any = None
    group: _Group | None = None
    keys: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.uint32))  # of its samples, in order
    cancelled: bool = False
    events: list[Chunk] = field(default_factory=list)
    parked: deque[_Row] = field(default_factory=deque)  # rows that gave their place to another request

    @property
    def waits(self) -> bool:
        """Whether none of its samples has begun."""
        return not self.cancelled and len(self.unstarted) == self.running > 0

    def __post_init__(self) -> None:
        self.running = self.number

    def end(self, chunk: Chunk) -> None:
        """Add the last chunk of one of its samples."""
        self.running -= 1
        self.events.append(chunk)


@dataclass(eq=False)
class _Row:
    request: Request
    text: StreamingDetokenizer
    key: np.ndarray  # uint32 [1, 2]
    leaves: list[np.ndarray]
    made: int = 0

    @property
    def stays(self) -> bool:
        """Whether it has tokens to generate that have not been asked for."""
        return self.text.running and self.made < self.request.settings.length and not self.request.cancelled


@dataclass(eq=False)
class _Call:
    """Blocks that are decoded by one call; ``rows[i]`` is at ``places[i]`` (a block and a row in it)."""

    function: Callable[..., Any]
    rows: list[_Row]
    places: list[tuple[int, int]]
    state: Any
    keys: Any
    live: Any


#: A call that was started, its rows with the number of tokens that each needs of it, and what it draws.
_Started = tuple[_Call, list[tuple[_Row, int]], Any]


class _Group:
    """Rows that one compiled function decodes: with the same weights, kinds of transforms, and shapes."""

    def __init__(self, request: Request) -> None:
        settings = request.settings
        self.task, self.weights = request.sampler.task, request.sampler.weights_at(request.before)
        self.kinds, self.greedy, self.block = request.begun.kinds, settings.greedy, settings.block
        self.tree = request.tree
        self.rows: list[_Row] = []
        self.calls: list[_Call] = []
        #: Number of blocks -> the compiled function, the weights where it wants them, where it wants the rest.
        self.functions: dict[int, tuple[Callable[..., Any], Any, Any]] = {}
        self.compiling: set[int] = set()
        self.changed = False
        #: Whether nobody will ask for these weights any more.
        self.forgotten = False
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.weights))
        small = parameters <= MAX_PARAMETERS and sum(leaf.nbytes for leaf in request.leaves) <= MAX_STATE_BYTES
        #: Blocks of a large call.
        self.most = 1
        if small:
            blocks = max(CALL_ROWS // self.block, 1)
            self.most = max(1 << (blocks.bit_length() - 1), count_devices(jax.local_device_count()))

    def compile(self, blocks: int, leaves: list[np.ndarray]) -> None:
        """Make the function for this number of blocks; no block is live, so that this only compiles."""
        devices = count_devices(blocks)
        function = jitted.jit_decode_slots(self.task, self.kinds, STREAM_CHUNK, self.greedy, devices, self.block)
        weights, where = self.weights, next(iter(jax.tree.leaves(self.weights)[0].devices()))
        if devices > 1:
            mesh = make_mesh(devices)
            where = NamedSharding(mesh, PartitionSpec(BATCH_AXIS))
            weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
        none = np.zeros((blocks, self.block, 1, 2), np.uint32), np.zeros(blocks, bool)
        state = self._stack([leaves] * (blocks * self.block), blocks)
        jax.block_until_ready(function(weights, *jax.device_put((state, *none), where)))
        self.functions[blocks] = function, weights, where
        self.changed = True

    def wants(self) -> int | None:
        """The number of blocks of a function that should be compiled for the rows that there are."""
        needed = 1 if 1 not in self.functions else self.most if len(self.rows) > self.block else 1
        return None if needed in self.functions or needed in self.compiling else needed

    def _stack(self, leaves: Sequence[list[np.ndarray]], blocks: int) -> Any:
        stacked = [np.stack(each).reshape(blocks, self.block, *each[0].shape) for each in zip(*leaves)]
        return jax.tree.unflatten(self.tree, stacked)

    def repack(self) -> None:
        """Pack the rows that stay into calls. Waits for the calls before."""
        self.changed = False  # before anything is looked at: a function may be compiled meanwhile
        for call in self.calls:
            staying = [(row, place) for row, place in zip(call.rows, call.places) if row.stays]
            arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(call.state)] if staying else []
            for row, place in staying:
                row.leaves = [array[place] for array in arrays]
        self.rows, self.calls = [row for row in self.rows if row.stays], []
        left = list(self.rows)
        while left:
            blocks = self.most if len(left) > self.block and self.most in self.functions else 1
            size = blocks * self.block
            self.calls.append(self._call(left[:size], blocks))
            left = left[size:]

    def _call(self, rows: list[_Row], blocks: int) -> _Call:
        function, weights, where = self.functions[blocks]
        devices = count_devices(blocks)
        # Blocks are filled one after the other, on all devices in turn.
        order = [block for first in range(blocks // devices) for block in range(first, blocks, blocks // devices)]
        places = [(order[i // self.block], i % self.block) for i in range(len(rows))]
        at = {block * self.block + row: each for (block, row), each in zip(places, rows)}
        slots = [at.get(i, rows[0]) for i in range(blocks * self.block)]  # the others are filled with the first row
        state = self._stack([row.leaves for row in slots], blocks)
        keys = np.stack([row.key for row in slots]).reshape(blocks, self.block, 1, 2)
        live = np.isin(np.arange(blocks), [block for block, _ in places])
        return _Call(lambda *args: function(weights, *args), rows, places, *jax.device_put((state, keys, live), where))


class Engine:
    """Decodes the samples of many requests together. Safe to use from several threads.

    Args:
        rows: Samples that are decoded at the same time.
        waiting: Requests that may wait for their first sample to begin.

    Example:
        >>> sampler, settings = jaxgen.Sampler.load("runs/language-1"), jaxgen.GenerationConfig(length=20, seed=7)
        >>> with jaxgen.Engine() as engine:
        ...     samples = list(engine.samples(sampler, "the ", settings, num_samples=3))
        >>> [sample.text for sample in samples] == sampler.sample("the ", settings, num_samples=3)
        True
    """

    def __init__(self, *, rows: int = 256, waiting: int = 1_000) -> None:
        self.max_rows = check_int("The number of rows", rows, 1)
        self.max_waiting = check_int("The number of waiting requests", waiting, 1)
        self._wake = threading.Condition()
        self._requests: set[Request] = set()
        self._unread: deque[tuple[Request, Iterator[DecoderState] | None]] = deque()
        self._read: deque[Request] = deque()
        self._groups: OrderedDict[Any, _Group] = OrderedDict()
        self._closed = self._stopped = False
        #: Tokens that were generated, and how long the last round took, in seconds.
        self.tokens, self._seconds = 0, 0.1
        self._compiler = ThreadPoolExecutor(1, "jaxgen-compile")
        self._threads = [
            threading.Thread(target=target, name=f"jaxgen-{name}", daemon=True)
            for name, target in (("read", self._read_prompts), ("decode", self._decode))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # From any thread.

    def submit(
        self,
        notify: Callable[[Event], None],
        sampler: Sampler,
        prompt: str = "",
        settings: GenerationConfig | None = None,
        *,
        num_samples: int = 1,
        first: int = 0,
        skip: int = 0,
        state: DecoderState | None = None,
        unk: str = "error",
        seconds: float | None = None,
        whole: bool = False,
    ) -> Request:
        """Begin a request. Each sample has a last chunk, also those that were left no time to begin.

        Args:
            notify: Called from the engine's threads with the chunks of each round; must not wait.
            sampler: The model. The arguments after it are those of its ``stream``.
            seconds: A limit on the time, beside that of the settings.
            whole: Notify only once, when all samples have ended.

        Raises:
            UsageError: A value is out of range. Nothing was compiled.
            BusyError: Too many requests wait, or the engine is closed.
        """
        settings = GenerationConfig() if settings is None else settings
        check_int("The number of samples", num_samples, 1, MAX_SAMPLES)
        check_int("The index of a sample", first, 0, MAX_SEED - MAX_SAMPLES)
        check_int("The number of tokens to skip", skip, 0, MAX_LENGTH)
        self._check_room()
        begun = sampler.begin(prompt, with_neutral(settings), state, unk, 1)
        indices = deque(range(first, first + num_samples))
        limits = [each for each in (settings.max_seconds, seconds) if each is not None]
        deadline = time.monotonic() + min(limits, default=float("inf"))
        request = Request(sampler, settings, begun, state, notify, indices, num_samples, skip, deadline, whole)
        with self._wake:
            self._check_room()
            self._requests.add(request)
            self._unread.append((request, None))
            self._wake.notify_all()
        return request

    def stream(self, sampler: Sampler, prompt: str = "", *args: Any, **options: Any) -> _Stream:
        """As ``sampler.stream(prompt, ...)``, decoded together with all other requests."""
        events: SimpleQueue[Event] = SimpleQueue()
        return _Stream(self, self.submit(events.put, sampler, prompt, *args, **options), events)

    def samples(self, sampler: Sampler, prompt: str = "", *args: Any, **options: Any) -> Iterator[Sample]:
        """Whole samples in order, as ``sampler.samples(prompt, ...)``."""
        return collect(self.stream(sampler, prompt, *args, **options), sampler.tokenizer)

    @property
    def load(self) -> dict[str, int]:
        """How many requests wait and rows are decoded now, and how many tokens were generated."""
        with self._wake:
            waiting, rows = sum(each.waits for each in self._requests), self._live()
        return {"waiting": waiting, "rows": rows, "tokens": self.tokens}

    def forget(self, sampler: Sampler, state: DecoderState | None = None) -> None:
        """Keep nothing of these weights, or those that follow ``state``, once their last request has ended."""
        weights = sampler.weights_at(state)
        with self._wake:
            for group in self._groups.values():
                group.forgotten |= group.weights is weights
            self._wake.notify_all()

    def close(self, *, finish: bool = True, seconds: float | None = None) -> None:
        """Take no more requests, and end the threads.

        Args:
            finish: Finish the requests that there are; otherwise each of their samples ends as if time were up.
            seconds: How long to wait for them before they end so.
        """
        with self._wake:
            self._closed = True
            if finish:
                self._wake.wait_for(lambda: not self._requests, seconds)
            for request in self._requests:
                request.deadline = 0.0
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._requests, 60.0)
            self._stopped = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._compiler.shutdown(cancel_futures=True)

    def cancel(self, request: Request) -> None:
        """Stop a request: its rows are free at the next chunk, and nothing is notified any more."""
        with self._wake:
            request.cancelled = True
            self._wake.notify_all()

    def _check_room(self) -> None:
        with self._wake:
            waiting = sum(each.waits for each in self._requests)
        if self._closed:
            raise BusyError("The engine is closed: it takes no more requests.", closed=True)
        if waiting >= self.max_waiting:
            raise BusyError(f"{waiting:,} requests wait already: try again later.", max(self._seconds * 10, 1.0))

    def _live(self) -> int:
        return sum(row.stays for group in self._groups.values() for row in group.rows)

    # The thread that reads prompts.

    def _read_prompts(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._unread or self._stopped)
                if self._stopped:
                    return
                request, chunks = self._unread.popleft()
            if request.cancelled or not request.running or time.monotonic() >= request.deadline:
                self._join(request)
                continue
            try:
                if chunks is None:
                    begun = request.begun
                    chunks = request.sampler.read_in_chunks(begun.ids, begun.held, request.before)
                state = next(chunks, None)
                if state is None:
                    self._prepare(request)
                else:
                    request.start = state
                    jax.block_until_ready(state.logits)
            except Exception as error:
                self._fail([request], error)
                continue
            if state is None:
                self._join(request)
            else:
                with self._wake:
                    self._unread.append((request, chunks))

    def _prepare(self, request: Request) -> None:
        """Compute the state of one row, and find its group."""
        start, begun = request.start, request.begun
        assert start is not None
        none: tuple[Any, ...] = np.zeros(1, bool), np.int32(0), np.full(1, -1, np.int32)  # NumPy dispatches nothing
        state = DecodeState(start.carry, start.logits, begun.transforms, *none)
        leaves, request.tree = jax.tree.flatten(state)
        request.leaves = [np.asarray(leaf) for leaf in leaves]
        indices, size = np.array(request.unstarted, np.uint32), 16 if len(request.unstarted) <= 16 else 1024
        parts = [sample_keys(request.settings.seed, np.resize(part, size)) for part in _split(indices, size)]
        request.keys = np.concatenate([jax.random.key_data(part) for part in parts])[: indices.size]
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in request.leaves)
        weights = request.sampler.weights_at(request.before)
        name = id(weights), begun.kinds, request.settings.greedy, request.settings.block, shapes
        with self._wake:
            group = self._groups.get(name)
            if group is None:
                group = self._groups[name] = _Group(request)
            self._groups.move_to_end(name)
            request.group = group
            idle = [name for name, each in self._groups.items() if not each.rows and each is not group]
            for name in idle[: max(len(idle) - MAX_IDLE_GROUPS, 0)]:
                del self._groups[name]

    def _join(self, request: Request) -> None:
        with self._wake:
            self._read.append(request)
            self._wake.notify_all()

    # The thread that decodes.

    def _decode(self) -> None:
        pending: list[_Started] = []
        while not self._stopped:
            try:
                pending = self._round(pending)
            except Exception as error:  # of any kind: else all requests would wait without end
                _LOG.exception("The engine failed, and ends all its requests")
                pending = []
                with self._wake:
                    requests = list(self._requests)
                    self._read.clear()
                    self._groups.clear()
                self._fail(requests, error)

    def _round(self, pending: list[_Started]) -> list[_Started]:
        """Start the next chunk of all rows, and hand out ``pending``, the one before; returns what was started."""
        with self._wake:
            if not (pending or self._stopped or self._runnable()):
                self._wake.wait(self._next_deadline())
            if self._stopped:
                return []
            self._admit()
            groups = [group for group in self._groups.values() if group.rows]
        began = time.monotonic()
        started = []
        for group in groups:
            started += self._dispatch(group)
        for call, parts, drawn in pending:
            self._deliver(call, parts, drawn)
        self._end_late()
        self._notify()
        self._drop_forgotten()
        self._seconds = time.monotonic() - began
        return started

    def _runnable(self) -> bool:
        groups, requests = self._groups.values(), self._requests
        return (
            bool(self._read and self._live() < self.max_rows)
            or any(group.rows and group.functions for group in groups)
            or any(request.cancelled for request in requests)
        )

    def _next_deadline(self) -> float | None:
        soonest = min((each.deadline for each in self._requests), default=float("inf"))
        return None if soonest == float("inf") else max(soonest - time.monotonic(), 0.0)

    def _admit(self) -> None:
        """Begin samples of the requests that are read, one of each in turn, as long as there are rows free."""
        self._read = deque(sorted(self._read, key=lambda request: not request.waits))  # those without a row first
        self._park()
        free = self.max_rows - self._live()
        while self._read:
            request = self._read[0]
            if request.cancelled or request.group is None or not (request.unstarted or request.parked):
                self._read.popleft()
                continue
            if free <= 0:
                return
            self._read.rotate(-1)
            row, group = request.parked.popleft() if request.parked else self._begin(request), request.group
            if not row.stays:  # it has no tokens, or the last ones came after it was parked
                continue
            if group not in self._groups.values():  # it was idle for long
                self._groups[id(group)] = group
            group.rows.append(row)
            group.changed = True
            free -= 1

    def _begin(self, request: Request) -> _Row:
        """A row for the next sample of a request."""
        settings, sampler = request.settings, request.sampler
        key, index = request.keys[-len(request.unstarted)][None], request.unstarted.popleft()
        held, errors = request.begun.held, sampler.errors
        text = StreamingDetokenizer(sampler.tokenizer, index, 0, settings, request.skip, held, errors)
        if not settings.length:
            request.end(text.finish("length"))
        return _Row(request, text, key, request.leaves)

    def _park(self) -> None:
        """Take rows from requests that have several, as many as requests without a row need."""
        without = [each for each in self._read if each.waits and each.group is not None]
        needed = len(without) - (self.max_rows - self._live())
        if needed <= 0:
            return
        rows = [(group, row) for group in self._groups.values() for row in group.rows if row.stays]
        having = Counter(row.request for _, row in rows)
        share = max(self.max_rows // (len(having) + len(without)), 1)
        for group, row in reversed(rows):  # those that began last
            request = row.request
            if needed and having[request] > share:
                group.rows.remove(row)  # ``repack`` keeps its state
                group.changed = True
                request.parked.append(row)
                if request not in self._read:
                    self._read.append(request)
                having[request] -= 1
                needed -= 1

    def _dispatch(self, group: _Group) -> list[_Started]:
        """Start the next chunk of a group's rows; it is computed while the last one is read."""
        if not group.calls:
            group.rows = [row for row in group.rows if row.stays]
        wanted = group.wants()
        if wanted is not None and group.rows:
            group.compiling.add(wanted)
            self._compiler.submit(self._compile, group, wanted, group.rows[0].request.leaves)
        if not group.functions or not group.rows:
            return []
        started = []
        try:
            if group.changed or not all(row.stays for row in group.rows):
                group.repack()
            for call in group.calls:
                call.state, drawn = call.function(call.state, call.keys, call.live)
                parts = []
                for row in call.rows:
                    parts.append((row, min(STREAM_CHUNK, row.request.settings.length - row.made)))
                    row.made += STREAM_CHUNK
                started.append((call, parts, drawn))
        except Exception as error:
            self._fail([row.request for row in group.rows], error)
            group.rows, group.calls = [], []
        return started

    def _compile(self, group: _Group, blocks: int, leaves: list[np.ndarray]) -> None:
        try:
            group.compile(blocks, leaves)
        except Exception as error:
            if group.functions:  # it goes on with fewer blocks in a call
                _LOG.exception("%s blocks cannot be decoded in one call", blocks)
            else:
                group.compiling.discard(blocks)  # another request may try again
                self._fail([row.request for row in group.rows], error)
        with self._wake:
            self._wake.notify_all()

    def _deliver(self, call: _Call, parts: list[tuple[_Row, int]], drawn: Any) -> None:
        try:
            tokens, logp = (np.asarray(each) for each in drawn)
        except Exception as error:
            self._fail([row.request for row, _ in parts], error)
            return
        for (row, count), (block, place) in zip(parts, call.places):
            request = row.request
            if not row.text.running or request.cancelled:
                continue
            here = block, place, 0, slice(count)
            try:
                chunk = row.text.feed(tokens[here], logp[here])
            except Exception as error:
                self._fail([request], error)
                continue
            self.tokens += chunk.tokens.size
            if chunk.last:
                request.end(chunk)
            else:
                request.events.append(chunk)

    def _end_late(self) -> None:
        """End the samples whose time is up, and forget the requests that were cancelled."""
        now = time.monotonic()
        with self._wake:
            late = [each for each in self._requests if not each.cancelled and now >= each.deadline]
            rows = [row for group in self._groups.values() for row in group.rows] if late else []
            for request in late:
                for row in (*rows, *request.parked):
                    if row.request is request and row.text.running:
                        request.end(row.text.finish("time"))
                while request.unstarted:
                    nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
                    request.end(Chunk(request.unstarted.popleft(), "", *nothing, "time"))
                request.deadline = float("inf")
        if late:
            self._notify()

    def _notify(self) -> None:
        with self._wake:
            requests = [each for each in self._requests if each.events or each.cancelled]
            for request in requests:
                if request.cancelled or not request.running:
                    self._requests.discard(request)
            if requests:
                self._wake.notify_all()
        for request in requests:
            if request.whole and request.running:
                continue
            events, request.events = request.events, []
            if events and not request.cancelled:
                self._tell(request, events)

    def _drop_forgotten(self) -> None:
        with self._wake:
            for name in [name for name, group in self._groups.items() if group.forgotten and not group.rows]:
                del self._groups[name]

    def _tell(self, request: Request, event: Event) -> None:
        try:
            request.notify(event)
        except Exception as error:  # RuntimeError: the event loop of the receiver has ended
            if not isinstance(error, RuntimeError):
                _LOG.exception("A request cannot be told what was drawn: it ends")
            self.cancel(request)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        for request in dict.fromkeys(requests):
            with self._wake:
                known = request in self._requests
                self._requests.discard(request)
                self._wake.notify_all()
            if known and not request.cancelled:
                self.cancel(request)
                self._tell(request, error)


class _Stream(Iterator[Chunk]):
    """The chunks of a request. It ends when the stream is closed, or nobody has the stream any more."""

    def __init__(self, engine: Engine, request: Request, events: SimpleQueue[Event]) -> None:
        self._engine, self._request, self._events = engine, request, events
        self._ready, self._left = deque[Chunk](), request.number

    def __next__(self) -> Chunk:
        while not self._ready:
            if not self._left:
                raise StopIteration
            event = self._events.get()
            if isinstance(event, Exception):
                self._left = 0
                raise event
            self._left -= sum(chunk.last for chunk in event)
            self._ready.extend(event)
        return self._ready.popleft()

    def close(self) -> None:
        """End the request."""
        self._left = 0
        self._ready.clear()
        self._engine.cancel(self._request)

    def __del__(self) -> None:
        self._request.cancelled = True  # without the lock, which this thread may be about to take or give


def _split(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[i : i + size] for i in range(0, array.size, size)]


def with_neutral(settings: GenerationConfig) -> GenerationConfig:
    """``settings`` with all kinds of ``NEUTRAL``, if it has some of them, no others, and in their order."""
    every = chain(*settings.transforms).transforms
    forbids, given = [[each for each in every if (type(each) is Forbid) == is_forbid] for is_forbid in (True, False)]
    kinds = [type(each) for each in given]
    order = [kind for kind in TRANSFORMS.values() if kind in NEUTRAL]
    if not given or kinds != [kind for kind in order if kind in kinds]:
        return settings
    filled = [given[kinds.index(kind)] if kind in kinds else NEUTRAL[kind] for kind in order]
    return replace(settings, transforms=(*forbids, *filled))
