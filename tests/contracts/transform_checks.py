"""What every logit transform must do, as functions that take a ``Subject`` and raise ``AssertionError``.

``test_transforms.py`` runs them over the registry; ``test_transform_checks_can_fail.py`` shows for each of them a
broken transform that it catches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.sampling.decode import draw, sample_keys
from jaxgen.sampling.transforms.base import Context, Last
from jaxgen.sampling.transforms.constraints import Forbid

R, T, V = 3, 5, 17
LARGE = 50_000
PAD, EOS = 0, 1
#: For ``jax.jit``: compiles in two thirds of the time.
FAST = {"xla_backend_optimization_level": 0}


class Case(NamedTuple):
    """Options to try a transform with, as functions of the size of the vocabulary."""

    options: Callable[[int], Sequence[Any]]  # some of them for the padding id, which is forbidden and must stay so
    identity: Callable[[int], Sequence[Any]]  # options with which it changes nothing


class Text(NamedTuple):
    """What the decode loop would have shown a transform."""

    prompt: np.ndarray  # [P]
    tokens: np.ndarray  # [T, R], the one drawn at each step
    logits: np.ndarray  # [T, R, V]


class Subject:
    """A transform under test and its functions, each compiled once for a shape. ``cuts``: it only takes tokens out."""

    def __init__(self, kind: type[Any], case: Case | None, reference: Callable | None, *, cuts: bool) -> None:
        assert case is not None, (
            f"{kind.__name__} has no options to try it with: write them in CASES of test_transforms.py."
        )
        assert reference is not None, (
            f"{kind.__name__} has no reference: write it in NumPy, a few lines, as a function (transform, row, prompt, "
            "drawn, eos) -> row in tests/contracts/transform_references.py, and name it in REFERENCES."
        )
        self.kind, self.case, self.reference, self.cuts = kind, case, reference, cuts
        self.traces = 0

    def text(self, vocab: int = V, seed: int = 0) -> Text:
        """Random logits, some of them -inf, and a text of few different tokens, so that it repeats itself."""
        rng = np.random.default_rng([seed, vocab])
        steps, rows = (2, 2) if vocab == LARGE else (T, R)
        logits = rng.normal(0, 2, (steps, rows, vocab))
        if vocab == LARGE:  # a few tokens high above the others: in the crowd, rounding would decide where a set ends
            logits = logits / 4 - 18
            logits[:, :, rng.integers(0, vocab, 12)] = rng.normal(0, 2, (steps, rows, 12))
        logits[:, :, PAD] = -np.inf if vocab > 2 else logits[:, :, PAD]
        logits[:, 1, vocab // 2 + 1 : -2] = -np.inf
        prompt, tokens = (rng.integers(0, min(vocab, 4), shape, np.int32) for shape in (6, (steps, rows)))
        return Text(prompt, tokens, logits.astype(np.float32))

    def init(self, transform: Any, text: Text, eos: int = EOS) -> Any:
        return transform.init(Context(text.logits.shape[1], text.logits.shape[2], text.prompt, eos))

    def _scan(self, state: Any, tokens: Any, logits: Any) -> Any:
        def one(carry: Any, now: Any) -> Any:
            (state, last), (token, logits) = carry, now
            state, logits = self.kind.update(state, logits, last)
            return (state, Last(last.t + 1, token)), logits

        self.traces += 1
        return lax.scan(one, (state, Last.none(tokens.shape[1])), (tokens, logits))[1]

    @cached_property
    def _compiled(self) -> Callable:
        return jax.jit(self._scan, compiler_options=FAST)

    def run(self, transform: Any, text: Text) -> np.ndarray:
        """The logits that the draw would see at each step of the text, [T, R, V]."""
        return np.asarray(self._compiled(self.init(transform, text), text.tokens, text.logits))

    def expected(self, transform: Any, text: Text) -> np.ndarray:
        """The same by the reference."""
        made = np.empty(text.logits.shape)
        for t, row in np.ndindex(made.shape[:2]):
            drawn, logits = text.tokens[:t, row].tolist(), np.float64(text.logits[t, row])
            made[t, row] = self.reference(transform, logits, text.prompt.tolist(), drawn, EOS)
        return made


def assert_same_logits(actual: Any, expected: Any) -> None:
    """The same tokens left, with the same logits up to rounding; a NaN is never right."""
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
    assert not np.isnan(actual).any()
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


def assert_same_bits(actual: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(actual).view(np.uint32), np.asarray(expected).view(np.uint32))


def check_it_agrees_with_the_reference(s: Subject) -> None:
    text = s.text()
    for transform in s.case.options(V):
        assert_same_logits(s.run(transform, text), s.expected(transform, text))


def check_it_agrees_with_the_reference_in_a_vocabulary_of_two(s: Subject) -> None:
    for seed in range(3):
        text = s.text(2, seed)
        for transform in s.case.options(2):
            assert_same_logits(s.run(transform, text), s.expected(transform, text))


def check_it_agrees_with_the_reference_in_a_vocabulary_of_50_000(s: Subject) -> None:
    text = s.text(LARGE)
    transform = s.case.options(LARGE)[0]
    assert_same_logits(s.run(transform, text), s.expected(transform, text))


def check_no_row_sees_another(s: Subject) -> None:
    text, other = s.text(), s.text(seed=1)
    rows = np.arange(R) == 0
    mixed = Text(
        text.prompt, np.where(rows, text.tokens, other.tokens), np.where(rows[:, None], text.logits, other.logits)
    )
    for transform in s.case.options(V):
        assert_same_bits(s.run(transform, mixed)[:, 0], s.run(transform, text)[:, 0])


def check_what_cannot_be_drawn_never_comes_back(s: Subject) -> None:
    text = s.text()
    for transform in s.case.options(V):
        assert np.isneginf(s.run(transform, text)[np.isneginf(text.logits)]).all()


def check_a_token_that_was_there_is_left(s: Subject) -> None:
    for vocab in (2, V):
        text = s.text(vocab)
        for alone in range(2):  # nothing but this token can be drawn, whatever the text and the options say
            logits = np.where(np.arange(vocab) == alone, text.logits.clip(-9, 9), np.float32(-np.inf))
            for transform in s.case.options(vocab):
                if isinstance(transform, Forbid):
                    logits = np.where(np.isin(np.arange(vocab), transform.ids), logits, text.logits.clip(-9, 9))
                made = s.run(transform, text._replace(logits=logits))
                assert np.isfinite(made).any(-1).all()
                assert not np.isnan(made).any()


def check_options_that_change_nothing_change_no_bit(s: Subject) -> None:
    for vocab in (2, V):
        text = s.text(vocab)
        for transform in s.case.identity(vocab):
            assert_same_bits(s.run(transform, text), text.logits)


def check_what_is_left_keeps_its_ratios(s: Subject) -> None:
    """A cut-off changes no logit of a token that it keeps; anything else takes none out."""
    text = s.text()
    for transform in s.case.options(V):
        made = s.run(transform, text)
        kept = ~np.isneginf(made)
        if s.cuts:
            assert_same_bits(made[kept], text.logits[kept])
        else:
            np.testing.assert_array_equal(kept, ~np.isneginf(text.logits))


def check_compiled_or_not_it_gives_the_same(s: Subject) -> None:
    text = s.text()
    transform = s.case.options(V)[0]
    _, logits = s.kind.update(s.init(transform, text), jnp.asarray(text.logits[0]), Last.none(R))
    assert_same_logits(np.asarray(logits), s.run(transform, text)[0])


def check_vmap_gives_what_one_call_after_the_other_gives(s: Subject) -> None:
    texts = [s.text(), s.text(seed=1)]
    transform = s.case.options(V)[0]
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *(s.init(transform, text) for text in texts))
    update = jax.jit(jax.vmap(s.kind.update, in_axes=(0, 0, None)), compiler_options=FAST)
    made = update(states, np.stack([text.logits[0] for text in texts]), Last.none(R))[1]
    assert_same_logits(np.asarray(made), np.stack([s.run(transform, text)[0] for text in texts]))


def check_other_options_need_no_second_trace(s: Subject) -> None:
    text = s.text()
    first, *others = s.case.options(V)
    s.run(first, text)
    before = s.traces
    for transform in others:
        s.run(transform, text)
    assert others
    assert s.traces == before


def check_the_state_is_arrays_that_keep_their_shape(s: Subject) -> None:
    text = s.text()
    for transform in s.case.options(V):
        state = s.init(transform, text)
        assert all(isinstance(leaf, jax.Array) and not leaf.aval.weak_type for leaf in jax.tree.leaves(state))
        after, logits = jax.eval_shape(s.kind.update, state, text.logits[0], Last.none(R))
        described = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type))
        assert described(after) == described(jax.eval_shape(lambda a: a, state))
        assert (logits.shape, logits.dtype) == ((R, V), np.float32)


def check_padding_is_never_drawn(s: Subject) -> None:
    text = s.text()
    text = text._replace(logits=np.where(np.arange(V) == PAD, -np.inf, text.logits - 50))
    for transform in s.case.options(V):
        assert (np.asarray(_draw_each_step(s.run(transform, text))) != PAD).all()


@partial(jax.jit, compiler_options=FAST)
def _draw_each_step(logits: jax.Array) -> jax.Array:
    return jax.vmap(partial(draw, sample_keys(3, jnp.arange(R))))(jnp.arange(T), logits)


#: For every transform of the registry.
CHECKS = (
    check_it_agrees_with_the_reference,
    check_it_agrees_with_the_reference_in_a_vocabulary_of_two,
    check_it_agrees_with_the_reference_in_a_vocabulary_of_50_000,
    check_no_row_sees_another,
    check_what_cannot_be_drawn_never_comes_back,
    check_a_token_that_was_there_is_left,
    check_options_that_change_nothing_change_no_bit,
    check_what_is_left_keeps_its_ratios,
    check_compiled_or_not_it_gives_the_same,
    check_vmap_gives_what_one_call_after_the_other_gives,
    check_other_options_need_no_second_trace,
    check_the_state_is_arrays_that_keep_their_shape,
    check_padding_is_never_drawn,
)
