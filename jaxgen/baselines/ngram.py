"""The n-gram baseline: modified Kneser-Ney smoothing as arrays, the task object, and its run."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.errors import DataError, UsageError, check_int, counted
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config import write_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.runtime import MIN_SECONDS
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.data import LanguageData
from jaxgen.tasks.language.objective import Scored, Totals
from jaxgen.tokenizers.base import EOS
from jaxgen.trainer.advice import advise_data
from jaxgen.trainer.callbacks import Callback, Emit, Finished, Note, Progress, ProgressEvents, Started
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.trainer.progress_state import ProgressState
from jaxgen.trainer.recorder import make_recorder
from jaxgen.trainer.run import note_edited_log, resolve_config
from jaxgen.trainer.signals import raise_on_signal
from jaxgen.trainer.trainer import RunTrainer
from jaxgen.training.step import TrainState
from jaxgen.types import Array, Batch, Key, Params

#: Discounts of an order whose counts of counts give no valid ones, for example if there are too few n-grams.
FALLBACK = (0.5, 1.0, 1.5)
#: Node numbers are int32, JAX's default integer type.
MAX_NODES = 2**31 - 1


class Level(NamedTuple):
    """The distinct n-grams of one length, sorted by their tokens."""

    parent: np.ndarray  # index in the previous level of the n-gram without its last token
    token: np.ndarray  # its last token
    suffix: np.ndarray  # index in the previous level of the n-gram without its first token
    counts: np.ndarray  # number of occurrences
    begins: np.ndarray  # whether it starts at the beginning of a text


def fit(tokens: Any, vocab_size: int, order: int, eos: int) -> tuple[NGramTask, dict[str, jax.Array]]:
    """Fit an n-gram model of up to ``order`` tokens to ``tokens`` [N]; return the task and its parameters.

    Every ``eos`` ends a text and begins the next one, and no n-gram spans two texts. The token ``eos`` is predicted at
    the end of a text and is the context at its beginning. Tokens without ``eos`` are a single text. Counting needs
    about 50 bytes of memory per token.

    For a context h (the tokens before w) and h' (h without its first token):

        p(w | h) = (a(h w) - D(a(h w))) / sum_v a(h v) + backoff(h) p(w | h'),
        backoff(h) = sum_v D(a(h v)) / sum_v a(h v)

    The recursion ends at the unigrams, which are interpolated with the uniform distribution, so no token has
    probability 0. For the longest n-grams, a is the count. For shorter ones it is the number of different tokens that
    precede them (Kneser & Ney 1995), except at the beginning of a text, where a is the count. The discounts D(1), D(2)
    and D(3 and more) follow from each order's counts of counts (Chen & Goodman 1999, section 3).

    Raises:
        UsageError: for ids outside the vocabulary.
        DataError: for no text or too many different n-grams.
    """
    ids = np.asarray(tokens)
    if ids.size == 0:
        raise DataError("There are no tokens to count n-grams of. Give more text.")
    if not 0 <= eos < vocab_size:
        raise UsageError(f"There is no token {eos} to end a text: ids go from 0 to {vocab_size - 1}.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size:
        raise UsageError(
            f"N-grams are counted of ids from 0 to {vocab_size - 1} in one row: encode the text with its tokenizer."
        )
    NGramTask(vocab_size, order, nodes=1, contexts=1)  # checks the order before counting
    levels = count(np.concatenate([[eos], ids]), vocab_size, order, eos)
    params = {name: jnp.asarray(leaf) for name, leaf in smooth_counts(levels).items()}
    return NGramTask(vocab_size, order, params["token"].size, params["backoff"].size), params


def count(text: np.ndarray, vocab_size: int, order: int, eos: int) -> list[Level]:
    """Count the n-grams of ``text``, which begins with ``eos``; return one level for each length from 1 to ``order``.

    The first level has the whole vocabulary. An n-gram is its first token followed by a shorter n-gram. So positions
    sorted by the shorter n-grams, then stably sorted by the token in front, are sorted by the longer n-grams. For
    tokens of at most 16 bits NumPy's stable sort takes linear time.
    """
    narrow = text.astype(np.min_scalar_type(vocab_size - 1))
    place = text.astype(np.int32)  # index, in its level, of the n-gram that begins at each position
    begins = np.arange(vocab_size) == eos
    nothing = np.zeros(vocab_size, np.int32)
    first = np.bincount(text[1:], minlength=vocab_size)
    levels = [Level(nothing, np.arange(vocab_size, dtype=np.int32), nothing, first, np.zeros(vocab_size, bool))]
    at, total = np.argsort(narrow, kind="stable"), vocab_size
    for length in range(2, order + 1):
        at = at[at > 0] - 1
        if length > 2:  # drop n-grams with an ``eos`` inside: they span two texts
            at = at[narrow[at + 1] != eos]
        at = at[np.argsort(narrow[at], kind="stable")]
        token, behind = narrow[at], place[at + 1]
        differs = np.ones(at.size, bool)
        differs[1:] = (token[1:] != token[:-1]) | (behind[1:] != behind[:-1])
        heads = np.flatnonzero(differs)
        one = at[heads]  # one position of each n-gram
        begins = begins[place[one]]
        last, counts = text[one + length - 1].astype(np.int32), np.diff(heads, append=at.size)
        levels.append(Level(place[one], last, behind[heads], counts, begins))
        place[at] = np.cumsum(differs, dtype=np.int32) - 1
        total += heads.size
        if total > MAX_NODES:
            raise DataError(f"This text has more than {MAX_NODES:,} different n-grams. Give a smaller --order.")
    return levels


def smooth_counts(levels: list[Level]) -> dict[str, np.ndarray]:
    """Return the parameters of ``NGramTask``: the concatenated levels, with log-probabilities.

    Node 0 is the empty context. The nodes of the vocabulary follow, then those of the pairs, and so on.
    """
    vocab = levels[0].token.size
    probability, logp, token = np.full(1, 1 / vocab), [np.zeros(1)], [np.zeros(1, np.int64)]
    backoff, children = [np.zeros(1)], [np.zeros(1, np.int64)]
    for level, longer in zip(levels, [*levels[1:], None]):
        share = level.counts if longer is None else preceded(level, longer)
        discount = np.array([0.0, *discounts(share)])[np.minimum(share, 3)]
        contexts = probability.size
        total, taken = (np.bincount(level.parent, each, contexts) for each in (share, discount))
        total = np.where(total > 0, total, 1.0)  # avoids 0 / 0 for contexts without successors
        left = taken / total
        probability = (share - discount) / total[level.parent] + left[level.parent] * probability[level.suffix]
        logp.append(np.log(probability))
        token.append(level.token)
        if level is not levels[0]:
            backoff.append(np.log(np.where(left > 0, left, 1.0)))
            children.append(np.bincount(level.parent, minlength=contexts))
    first = 1 + vocab + np.concatenate([[0], np.cumsum(np.concatenate(children))])
    return {
        "backoff": np.concatenate(backoff).astype(np.float32),
        "first": first.astype(np.int32),
        "logp": np.concatenate(logp).astype(np.float32),
        "token": np.concatenate(token).astype(np.int32),
    }


def preceded(level: Level, longer: Level) -> np.ndarray:
    """Return how many different tokens precede each n-gram; for those that begin a text, their count."""
    return np.where(level.begins, level.counts, np.bincount(longer.suffix, minlength=level.token.size))


def discounts(counts: np.ndarray) -> tuple[float, ...]:
    """Return the discounts of n-grams with counts 1, 2, and 3 or more (Chen & Goodman 1999, section 3)."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == i)) for i in range(1, 5))
    if min(n1, n2, n3, n4) == 0:
        return FALLBACK
    share = n1 / (n1 + 2 * n2)
    found = (1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3)
    return found if all(0 < value < most for most, value in enumerate(found, start=1)) else FALLBACK


#: Number of a context's children that are written into the logits at once.
WINDOW = 128


@dataclass(frozen=True)
class NGramTask:
    """A back-off n-gram model: p(token | the previous ``order`` - 1 tokens), from the tree counted by ``fit``.

    It is both the model and the task: its parameters are counted, not trained by gradients. All methods are pure.

    A node of the tree is an n-gram. Its children are the n-grams one token longer; they are contiguous and sorted by
    their last token. Node 0 is the empty n-gram and node 1 + w the token w. The parameters are

    - ``token`` int32 [nodes]: the last token of each node,
    - ``logp`` float32 [nodes]: its log-probability given the tokens before it, in nats,
    - ``first`` int32 [contexts + 1]: the first child of each node that may have children, and the end of the last list,
    - ``backoff`` float32 [contexts]: added to the log-probability of a token that is not a child of the node.

    The carry, int32 [B, order - 1], has the nodes of the last token, the last two tokens, and so on (0 if less text has
    been read, or if the context is not in the tree). The node of the last k + 1 tokens is a child of the previous node
    of the last k tokens, so each length needs a single search per step.
    """

    vocab_size: int
    order: int
    nodes: int
    contexts: int

    is_random = False

    def __post_init__(self) -> None:
        for field in fields(self):
            check_int(f"The n-gram model's `{field.name}`", getattr(self, field.name), 1)

    @classmethod
    def build(cls, **sizes: int) -> NGramTask:
        """Build the task from plain values: its fields."""
        return cls(**sizes)

    def resolved_options(self) -> dict[str, str]:
        """Return the options of ``build`` that depend on the device: none."""
        return {}

    def init(self, key: Key) -> Params:
        """Return the parameters of a model without counts: all tokens are equally likely."""
        del key
        nodes, contexts = jnp.arange(self.nodes, dtype=jnp.int32), jnp.full(self.contexts + 1, self.nodes, jnp.int32)
        logp = jnp.full(self.nodes, -jnp.log(float(self.vocab_size)), jnp.float32)
        return {"backoff": jnp.zeros(self.contexts, jnp.float32), "first": contexts, "logp": logp, "token": nodes}

    def initial_carry(self, rows: int) -> Array:
        """Return the carry before any input."""
        return jnp.zeros((rows, self.order - 1), jnp.int32)

    def read(self, params: Params, carry: Array, tokens: Array, reset: Array | None = None) -> Array:
        """Return the carry after each of ``tokens`` [B, T], nodes [B, T, order - 1].

        ``reset`` [B, T] clears the carry before a step. All steps are looked up at once: the nodes of k + 1 tokens
        follow from those of k tokens one step before.
        """
        lengths = [tokens + 1]
        for k in range(self.order - 2):
            before = jnp.concatenate([carry[:, k : k + 1], lengths[-1][:, :-1]], axis=1)
            if reset is not None:
                before = jnp.where(reset, 0, before)
            lengths.append(self.child(params, before, tokens))
        return jnp.stack(lengths, axis=-1)[..., : self.order - 1]

    def child(self, params: Params, node: Array, token: Array) -> Array:
        """Return the child of each ``node`` that ends in ``token`` (same shape), by bisection; 0 if there is none."""
        low, end = params["first"][node], params["first"][node + 1]

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = low + (high - low) // 2
            beyond = (low < high) & (params["token"].at[middle].get(mode="clip") < token)
            return jnp.where(beyond, middle + 1, low), jnp.where(beyond, high, middle)

        low, _ = lax.fori_loop(0, self.vocab_size.bit_length(), halve, (low, end))
        found = (low < end) & (params["token"].at[low].get(mode="clip") == token)
        return jnp.where(found, low, 0)

    def log_probability(self, params: Params, carry: Array, token: Array) -> Array:
        """Return the log-probability of ``token`` [...] for carries [..., order - 1], without computing all logits."""
        backoff = self._backoff(params, carry)
        logp = params["logp"][token + 1] + backoff[0]
        for k in range(self.order - 1):
            child = self.child(params, carry[..., k], token)
            logp = jnp.where(child > 0, params["logp"][child] + backoff[k + 1], logp)
        return logp

    def logits(self, params: Params, carry: Array) -> Array:
        """Return the log-probability of every next token, [B, order - 1] -> [B, V]."""
        backoff = self._backoff(params, carry)
        logits = params["logp"][None, 1 : self.vocab_size + 1] + backoff[0][:, None]
        for k in range(self.order - 1):
            logits = self._children(params, carry[:, k], backoff[k + 1], logits)
        return logits

    def _backoff(self, params: Params, carry: Array) -> list[Array]:
        """Return, for each context length from 0, the summed back-off weights of the longer contexts in ``carry``."""
        sums = [jnp.zeros(carry.shape[:-1], jnp.float32)]
        for k in reversed(range(self.order - 1)):
            sums.append(sums[-1] + params["backoff"][carry[..., k]])
        return sums[::-1]

    def _children(self, params: Params, node: Array, backoff: Array, logits: Array) -> Array:
        """Overwrite ``logits`` [B, V] at the tokens that are children of each row's ``node`` [B]."""
        begin, end = params["first"][node], params["first"][node + 1]
        width = min(self.vocab_size, WINDOW)
        rows, window = jnp.arange(node.shape[0])[:, None], jnp.arange(width, dtype=jnp.int32)[None, :]

        def place(i: Array | int, logits: Array) -> Array:
            at = begin[:, None] + (i * width + window)
            token = jnp.where(at < end[:, None], params["token"].at[at].get(mode="clip"), self.vocab_size)
            return logits.at[rows, token].set(params["logp"].at[at].get(mode="clip") + backoff[:, None], mode="drop")

        if width == self.vocab_size:
            return place(0, logits)
        return lax.fori_loop(0, -(-jnp.max(end - begin) // width), place, logits)

    def loss(self, params: Params, carry: Array, batch: Batch, row_keys: Key | None = None) -> tuple[Array, Totals]:
        """Return the carry after ``batch`` and the summed cross-entropy, starting from ``carry``."""
        del row_keys
        tokens, targets, reset, mask = (jnp.asarray(field) for field in batch)
        carries = self.read(params, carry, tokens, reset)
        nll = -self.log_probability(params, carries, targets)
        return carries[:, -1], Totals(jnp.sum(jnp.where(mask, nll, 0.0)), jnp.sum(mask, dtype=jnp.float32))

    def evaluate(self, params: Params, carry: Array, batch: Batch) -> tuple[Array, Totals]:
        """Return the loss; there is no dropout."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> Params:
        """Return ``params``: decoding needs no preparation."""
        return params

    def prefill(self, weights: Params, carry: Array, logits: Array, tokens: Array, valid: Array) -> tuple[Array, Array]:
        """Read a chunk of the prompt, ``tokens`` and ``valid`` [R, P]; return the carry and next-token logits [R, V].

        Valid tokens come first in each row. A row without valid tokens keeps its carry and the given ``logits``.
        """
        _, last, some = self._read_valid(weights, carry, tokens, valid)
        return jnp.where(some, last, carry), jnp.where(some, self.logits(weights, last), logits)

    def _read_valid(self, params: Params, carry: Array, tokens: Array, valid: Array) -> tuple[Array, Array, Array]:
        """Return the carry after each of ``tokens``, that after the last valid one, and whether there is one [R, 1]."""
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        carries = self.read(params, carry, tokens)
        return carries, carries[jnp.arange(tokens.shape[0]), jnp.maximum(count - 1, 0)], (count > 0)[:, None]

    def step(self, weights: Params, carry: Array, token: Array) -> tuple[Array, Array]:
        """Run one decoding step on ``token`` [R]; return the new carry and next-token log-probabilities [R, V]."""
        carry = self.read(weights, carry, token[:, None])[:, 0]
        return carry, self.logits(weights, carry)

    def outputs(self, params: Params, carry: Array, tokens: Array, valid: Array) -> tuple[Array, Array, Array]:
        """Return the carry after ``tokens`` [B, T], states [B, T, 0], of which there are none, and logits [B, T, V].

        Valid tokens come first in each row.
        """
        carries, last, some = self._read_valid(params, carry, tokens, valid)
        logits = self.logits(params, carries.reshape(-1, carries.shape[-1])).reshape(*tokens.shape, -1)
        return jnp.where(some, last, carry), jnp.zeros((*tokens.shape, 0), jnp.float32), logits

    def score(
        self,
        weights: Params,
        carry: Array,
        tokens: Array,
        targets: Array,
        reset: Array,
        valid: Array,
        initial: Array,
        *,
        top: int = 0,
    ) -> tuple[Array, Scored]:
        """Return the log-probability of each of ``targets`` [R, T] given ``tokens``, as ``LanguageTask.score`` does."""

        def one(carry: Array, now: tuple[Array, ...]) -> tuple[Array, Scored]:
            token, target, reset, valid = now
            carry = jnp.where(reset[:, None], initial, carry)
            carry = jnp.where(valid[:, None], self.read(weights, carry, token[:, None])[:, 0], carry)
            logp = jnp.where(valid, self.log_probability(weights, carry, target), 0.0)
            if not top:  # avoids computing the logits of the whole vocabulary
                return carry, Scored(logp, jnp.zeros((*target.shape, 0), jnp.int32), jnp.zeros((*target.shape, 0)))
            top_logp, ids = lax.top_k(self.logits(weights, carry), top)
            return carry, Scored(logp, ids.astype(jnp.int32), top_logp)

        carry, scored = lax.scan(one, carry, tuple(field.T for field in (tokens, targets, reset, valid)))
        return carry, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), scored)


#: Whether several processes can train one run.
SEVERAL_PROCESSES = False
#: The class of the pure half (see ``jaxgen.tasks.registry``).
Task = NGramTask


class NGramRun(RunTrainer):
    """A run without training steps, whose parameters are counted: one row of metrics, one checkpoint, no loss curve."""

    data: LanguageData

    def set_counted(self, params: Params, seconds: float = 0.0) -> NGramRun:
        """Set the parameters, and how long counting them took."""
        self.progress.seconds = seconds
        self.set_state(TrainState(jnp.zeros((), jnp.int32), params, (), ()))
        return self

    def __iter__(self) -> Generator[Progress, None, Finished]:
        """Evaluate the model, save it if it is not saved yet, and report. There are no steps."""
        yield from ()
        with self.recorder, raise_on_signal("in the evaluation of what was counted", str(self.run)):
            self.recorder.call("on_start", Started(str(self.run), self._summary(), 0, 0))
            params = self.state.params
            metrics = self._metrics(params, final=True)
            if self.recorder.store is not None and self.recorder.store.latest() is None:
                self._record(metrics)
            return self._conclude(0, 0, params, metrics)

    def _record(self, metrics: dict[str, Any]) -> None:
        tokens, seconds = self.data.corpus.train.ids.size, self.progress.seconds
        row = {
            "step": 0,
            "train_loss": None,
            **metrics,
            "learning_rate": None,
            "tokens_per_second": round(tokens / seconds) if seconds >= MIN_SECONDS else None,
            "seconds": round(seconds, 3),
        }
        self.progress.best = self.data.METRIC.cost(metrics)
        RunLock.check(self.run.path)
        MetricsLog(self.run.metrics_path).append(row)
        self.progress.log.add(row)
        self.save(0, self.progress.best)

    def _summary(self) -> dict[str, str]:
        ngrams, tokens = self.task.nodes - 1, self.data.corpus.train.ids.size
        return {
            **self.data.summary(),
            "model": f"{counted(ngrams, 'n-gram')} of up to {counted(self.task.order, 'token')}, modified Kneser-Ney "
            "smoothing",
            "training": f"{counted(tokens, 'token')} counted"
            + (f" in {self.progress.seconds:.1f} s" if self.progress.seconds else " before"),
            "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        }


def start(
    config: LanguageConfig, emit: Emit, callbacks: Sequence[Callback], make_run: Callable[[], RunDirectory]
) -> NGramRun:
    """A new run in the folder that ``make_run`` makes, its n-grams counted.

    Raises ``UsageError`` and ``DataError``.
    """
    with raise_on_signal("while n-grams were counted; there is no run yet"):
        data = LanguageData.load(config, None, ProgressEvents(emit))
        for text in advise_data(data):
            emit(Note(text))
        task, params, seconds = count_ngrams(data)
    run = make_run()
    options = {**data.model_options(), "nodes": task.nodes, "contexts": task.contexts}
    parameters = sum(leaf.size for leaf in params.values())
    resolved = {**resolve_config(data, options, parameters, devices=1), "steps": 0, "horizon": 0}
    resolved["data_folders"] = [run.relative_to_here()]
    run.write_json("tokenizer.json", data.codec.to_json())
    write_config(run, config, resolved)
    recorder = make_recorder(run, data, resolved, emit, callbacks)
    trainer = NGramRun(config, data, task, run, resolved, recorder, ProcessGroup())
    return trainer.set_counted(params, seconds)


def resume(
    saved: LoadedRun, config: LanguageConfig, data: LanguageData, emit: Emit, callbacks: Sequence[Callback] = ()
) -> NGramRun:
    """Reopen a finished run, to report on it again; one that was stopped before it was saved is counted again."""
    recorder = make_recorder(saved.directory, data, saved.resolved, emit, callbacks)
    trainer = NGramRun(config, data, saved.task, saved.directory, saved.resolved, recorder, ProcessGroup())
    if recorder.store.latest() is None:
        recorder.truncate_after(-1)
        with raise_on_signal("while n-grams were counted", str(saved.directory)):
            return trainer.set_counted(*count_ngrams(data)[1:])
    note_edited_log(saved.directory, ProgressState.read(recorder.store.host()), emit)
    emit(Note(f"The run {saved.directory} is finished: n-grams are counted once, there is nothing to continue."))
    return trainer.set_counted(saved.params()[1])


def count_ngrams(data: LanguageData) -> tuple[NGramTask, Params, float]:
    """The task with the n-grams of the training split, its parameters, and the seconds that counting took."""
    began = time.perf_counter()
    task, params = fit(data.corpus.train.ids, data.tokenizer.vocab_size, data.config.order, EOS)
    return task, params, time.perf_counter() - began
