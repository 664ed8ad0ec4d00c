"""The contract of logit transforms: ``check_transform``, and its checks, functions that take a ``Subject``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.sampling.beam import beam_states
from jaxgen.sampling.decode import DecodeState, decode, draw, sample_keys
from jaxgen.sampling.transforms.base import Context, Last, chain
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.testing.checking import operations, require, run_checks

R, T, V = 3, 5, 17
LARGE = 50_000
PAD, EOS = 0, 1
#: For ``jax.jit``: compiles in two thirds of the time.
FAST = {"xla_backend_optimization_level": 0}

#: A transform, or a function from the size of the vocabulary to one (for options that are token ids).
Made = Any
#: ``(transform, row, prompt, drawn, eos) -> row`` in NumPy: the logits [V] that the draw should see, from those of one
#: row, the ids of the prompt and of the tokens drawn so far, and the id of <eos>.
Reference = Callable[[Any, np.ndarray, list[int], list[int], int], np.ndarray]


def check_transform(
    *transforms: Made, unchanged: Sequence[Made] = (), reference: Reference | None = None, cuts: bool = False
) -> None:
    """Run every check of the transforms' contract on one class of transforms.

    Args:
        transforms: at least two of the class, with different options. Their vocabularies have 2, 17 and 50,000 tokens:
            where the options are token ids, give functions of that size.
        unchanged: the same with options that change nothing.
        reference: what it computes. Without one nothing tells whether that is right.
        cuts: it only takes tokens out, and changes no logit of those that it keeps.

    Raises:
        AssertionError: a sentence for each check that fails.
    """
    case = Case(
        lambda vocab: [_at(vocab, transform) for transform in transforms],
        lambda vocab: [_at(vocab, transform) for transform in unchanged],
    )
    subject = Subject(type(_at(V, transforms[0])), case, reference, cuts=cuts)
    run_checks(subject.kind.__name__, CHECKS, subject)


def letters(vocab: int) -> tuple[str, ...]:
    """The texts of tokens: one or two letters, none of padding and <eos>."""
    return tuple("" if i in (PAD, EOS) else chr(97 + i % 26) * (1 + i // 26 % 2) for i in range(vocab))


def known(rows: int, vocab: int = V, eos: int = EOS) -> Context:
    """What transforms know before the first token, without a prompt."""
    return Context(rows, vocab, eos=eos, pieces=letters(vocab))


def _at(vocab: int, transform: Made) -> Any:
    return transform if hasattr(transform, "update") else transform(vocab)


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

    def __init__(self, kind: type[Any], case: Case, reference: Reference | None, *, cuts: bool) -> None:
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
        return transform.init(known(text.logits.shape[1], text.logits.shape[2], eos)._replace(prompt=text.prompt))

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

    def expected(self, reference: Reference, transform: Any, text: Text) -> np.ndarray:
        """The same by the reference."""
        made = np.empty(text.logits.shape)
        for t, row in np.ndindex(made.shape[:2]):
            drawn, logits = text.tokens[:t, row].tolist(), text.logits[t, row].astype(np.float64)
            made[t, row] = reference(transform, logits, text.prompt.tolist(), drawn, EOS)
        return made


def assert_same_logits(what: str, actual: Any, expected: Any) -> None:
    """The same tokens left, with the same logits up to rounding; a NaN is never right."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    require(not np.isnan(actual).any(), f"{what} are not numbers (NaN).")
    left, wanted = np.isfinite(actual), np.isfinite(expected)
    require(not np.isposinf(actual).any(), f"{what} are infinite.")
    require(
        np.array_equal(left, wanted),
        f"{what} keep other tokens than expected: {int(left.sum())} instead of {int(wanted.sum())} in all.",
    )
    far = np.abs(actual[left] - expected[left]) > 2e-6 * (1 + np.abs(expected[left]))
    require(not far.any(), f"{what} differ in {int(far.sum())} of {far.size} logits from what was expected.")


def assert_same_bits(what: str, actual: Any, expected: Any) -> None:
    differ = np.asarray(actual).view(np.uint32) != np.asarray(expected).view(np.uint32)
    require(not differ.any(), f"{what} differ in {int(differ.sum())} of {differ.size} logits.")


def _compare(s: Subject, transforms: Sequence[Any], text: Text) -> None:
    if s.reference is not None:
        for transform in transforms:
            assert_same_logits(
                f"The logits of {transform}", s.run(transform, text), s.expected(s.reference, transform, text)
            )


def check_it_agrees_with_the_reference(s: Subject) -> None:
    """The transform and its reference in NumPy must give the same logits."""
    _compare(s, s.case.options(V), s.text())


def check_it_agrees_with_the_reference_in_a_vocabulary_of_two(s: Subject) -> None:
    """Options may be larger than the vocabulary."""
    for seed in range(3):
        _compare(s, s.case.options(2), s.text(2, seed))


def check_it_agrees_with_the_reference_in_a_vocabulary_of_50_000(s: Subject) -> None:
    """Token ids need more than 16 bits, and sums over the vocabulary lose precision in float32."""
    _compare(s, s.case.options(LARGE)[:1], s.text(LARGE))


def check_no_row_sees_another(s: Subject) -> None:
    """Rows are independent: reduce over the last axis only."""
    text, other = s.text(), s.text(seed=1)
    rows = np.arange(R) == 0
    mixed = Text(
        text.prompt, np.where(rows, text.tokens, other.tokens), np.where(rows[:, None], text.logits, other.logits)
    )
    for transform in s.case.options(V):
        changed, alone = s.run(transform, mixed)[:, 0], s.run(transform, text)[:, 0]
        assert_same_bits(f"With other rows beside it, the logits of row 0 behind {transform}", changed, alone)


def check_what_cannot_be_drawn_never_comes_back(s: Subject) -> None:
    """A logit of -inf stays -inf."""
    text = s.text()
    for transform in s.case.options(V):
        back = np.isneginf(text.logits) & ~np.isneginf(s.run(transform, text))
        require(not back.any(), f"{transform} gives {int(back.sum())} logits of -inf another value.")


def check_a_token_that_was_there_is_left(s: Subject) -> None:
    """Keep at least one of the tokens whose logits are not -inf, in every row."""
    for vocab in (2, V):
        text = s.text(vocab)
        for alone in range(2):  # nothing but this token can be drawn, whatever the text and the options say
            logits = np.where(np.arange(vocab) == alone, text.logits.clip(-9, 9), np.float32(-np.inf))
            for transform in s.case.options(vocab):
                if isinstance(transform, Forbid):
                    logits = np.where(np.isin(np.arange(vocab), transform.ids), logits, text.logits.clip(-9, 9))
                made = s.run(transform, text._replace(logits=logits))
                require(not np.isnan(made).any(), f"{transform} gives logits that are not numbers (NaN).")
                require(np.isfinite(made).any(-1).all(), f"{transform} leaves a row without a token to draw.")


def check_options_that_change_nothing_change_no_bit(s: Subject) -> None:
    """With such options the logits are returned as they are, not recomputed."""
    for vocab in (2, V):
        text = s.text(vocab)
        for transform in s.case.identity(vocab):
            assert_same_bits(f"The logits behind {transform}", s.run(transform, text), text.logits)


def check_what_is_left_keeps_its_ratios(s: Subject) -> None:
    """A transform that cuts changes no logit of a token that it keeps; any other takes no token out."""
    text = s.text()
    for transform in s.case.options(V):
        made = s.run(transform, text)
        kept = ~np.isneginf(made)
        if s.cuts:
            assert_same_bits(f"The logits that {transform} keeps", made[kept], text.logits[kept])
        else:
            out = ~kept & ~np.isneginf(text.logits)
            require(not out.any(), f"{transform} takes {int(out.sum())} tokens out and is not said to (`cuts`).")


def check_compiled_or_not_it_gives_the_same(s: Subject) -> None:
    """`update` is a pure function of arrays."""
    text = s.text()
    transform = s.case.options(V)[0]
    _, logits = s.kind.update(s.init(transform, text), jnp.asarray(text.logits[0]), Last.none(R))
    assert_same_logits(f"The logits of {transform} without compilation", logits, s.run(transform, text)[0])


def check_vmap_gives_what_one_call_after_the_other_gives(s: Subject) -> None:
    """What `update` needs is in its arguments, not in the class."""
    texts = [s.text(), s.text(seed=1)]
    transform = s.case.options(V)[0]
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *(s.init(transform, text) for text in texts))
    update = jax.jit(jax.vmap(s.kind.update, in_axes=(0, 0, None)), compiler_options=FAST)
    made = update(states, np.stack([text.logits[0] for text in texts]), Last.none(R))[1]
    alone = np.stack([s.run(transform, text)[0] for text in texts])
    assert_same_logits(f"The logits of {transform} under vmap", made, alone)


def check_other_options_need_no_second_trace(s: Subject) -> None:
    """`init` puts options into arrays whose shapes do not depend on them."""
    text = s.text()
    first, *others = s.case.options(V)
    require(others, "There is one transform: give two with different options.")
    s.run(first, text)
    before = s.traces
    for transform in others:
        s.run(transform, text)
    require(s.traces == before, "Other options are compiled again.")


def check_the_state_is_arrays_that_keep_their_shape(s: Subject) -> None:
    """`init` returns arrays (`np.array(value, np.float32)`), and `update` keeps their shapes and dtypes."""
    text = s.text()
    for transform in s.case.options(V):
        state = s.init(transform, text)
        leaves = jax.tree.leaves(state)
        arrays = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        require(
            arrays and not any(getattr(leaf, "weak_type", False) for leaf in leaves),
            f"The state of {transform} has leaves that are no arrays, or of a weak type.",
        )
        after, logits = jax.eval_shape(s.kind.update, state, text.logits[0], Last.none(R))
        described = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type))
        was, is_now = described(jax.eval_shape(lambda a: a, state)), described(after)
        require(is_now == was, f"`update` of {transform} changes the shapes or types of its state: {was}, {is_now}.")
        require(
            (logits.shape, logits.dtype) == ((R, V), np.float32),
            f"{transform} makes logits of {logits.dtype} and shape {logits.shape} of float32 {(R, V)}.",
        )


def check_padding_is_never_drawn(s: Subject) -> None:
    """A logit of -inf stays -inf, also where all others are very low."""
    text = s.text()
    text = text._replace(logits=np.where(np.arange(V) == PAD, -np.inf, text.logits - 50))
    for transform in s.case.options(V):
        drawn = np.asarray(_draw_each_step(s.run(transform, text)))
        require((drawn != PAD).all(), f"Behind {transform} a token is drawn whose logit was -inf.")


@partial(jax.jit, compiler_options=FAST)
def _draw_each_step(logits: jax.Array) -> jax.Array:
    return jax.vmap(partial(draw, sample_keys(3, jnp.arange(R))))(jnp.arange(T), logits)


def check_its_options_are_the_fields_of_a_frozen_dataclass(s: Subject) -> None:
    """Decorate the class with `@dataclass(frozen=True)`: settings are compared and hashed."""
    frozen = is_dataclass(s.kind) and s.kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, f"{s.kind.__name__} is not a frozen dataclass.")


def check_decoding_with_it_sorts_nothing(s: Subject) -> None:
    """Sorting 50,000 logits takes longer than a decoding step: find thresholds by bisection (`truncation.py`)."""
    steps = chain(s.case.options(LARGE)[0])
    state = jax.eval_shape(
        lambda: DecodeState.start(steps, jnp.zeros((R, 1)), jnp.zeros((R, LARGE)), eos=EOS, pieces=letters(LARGE))
    )
    loop = partial(decode, lambda w, c, t: (c, w), steps.kinds, length=3, greedy=False, eos=EOS, pad=PAD)
    program = jax.make_jaxpr(loop)(state.logits, state, jax.eval_shape(lambda: sample_keys(0, jnp.arange(R))))
    sorts = SORTS & {each.primitive.name for each in operations(program.jaxpr)}
    require(not sorts, f"A decoding step with {s.kind.__name__} calls {', '.join(sorted(sorts))}.")


SORTS = {"sort", "top_k", "approx_top_k"}


def check_beam_search_takes_it_unless_its_state_has_rows(s: Subject) -> None:
    """Beam search reorders rows: a state that has no row axis must not depend on the number of rows."""
    for transform in s.case.options(V):
        few, more = (jax.tree.map(jnp.shape, transform.init(known(rows))) for rows in (6, 7))
        try:
            states = beam_states(chain(transform), known(6))
        except UsageError as error:
            require(few != more, f"Beam search refuses {transform}: {error}")
            require(s.kind.__name__ in str(error), f"Beam search refuses {transform} and does not name it: {error}")
        else:
            require(few == more, f"Beam search takes {transform}, whose state has a row for each beam.")
            for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(transform.init(known(6)))):
                require(np.array_equal(a, b), f"Beam search begins with another state than that of {transform}.")


#: All checks.
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
    check_its_options_are_the_fields_of_a_frozen_dataclass,
    check_decoding_with_it_sorts_nothing,
    check_beam_search_takes_it_unless_its_state_has_rows,
)
