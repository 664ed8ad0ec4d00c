"""A recurrent language model: token in, distribution over the next token out, at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.cells.base import Cell
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.precision import PRECISIONS, dot_general, matmul
from jaxgen.cells.unroll import FORMS, choose_form
from jaxgen.errors import UsageError, choose
from jaxgen.models.layers import ONE_HOT_TABLE, Stack, dropout, state_size, unflatten_state
from jaxgen.types import Array, Carry, Key


class LanguageModel(nn.Module):
    """Embedding, ``layers`` recurrent layers of ``hidden`` units, and a linear output over the vocabulary.

    ``cell`` is called as ``cell(features=hidden)`` once a layer: a class of ``CELLS``, a ``functools.partial`` of
    one, or any Linen ``RNNCellBase``. ``embed=None`` makes the embedding as wide as the state; ``embed=0`` feeds
    one-hot vectors straight into the cell. ``tie`` uses the embedding as the output matrix (Press & Wolf 2017,
    arXiv:1608.05859) and needs ``embed`` equal to ``hidden``. ``form`` is how recurrences are computed (``unroll``).
    ``dropout`` acts on what a layer passes upwards (``Stack``), ``embed_dropout`` on the embeddings in the same way.
    ``precision`` is that of all matrix products (``jaxgen.cells.PRECISIONS``); other than ``float32`` it takes a jaxgen
    cell, which must hand it to its ``Affine``. ``condition`` is the width of the vectors that ``initial_states`` makes
    states of. Sizes that cannot be used raise ``UsageError``.
    """

    vocab_size: int
    cell: Callable[..., nn.RNNCellBase] = LSTM
    hidden: int = 256
    layers: int = 1
    embed: int | None = None
    dropout: float = 0.0
    tie: bool = False
    form: str = "auto"
    precision: str = "float32"
    embed_dropout: float = 0.0
    condition: int = 0

    def __post_init__(self) -> None:
        for name, least in {"vocab_size": 1, "hidden": 1, "layers": 1, "embed": 0, "condition": 0}.items():
            size = getattr(self, name)
            if (name, size) != ("embed", None) and not (isinstance(size, int | np.integer) and size >= least):
                raise UsageError(f"The model's `{name}` is {size!r}: it must be a whole number of {least} or more.")
        for name in ("dropout", "embed_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"The model's `{name}` is {getattr(self, name)!r}: it must be at least 0 and less than 1."
                )
        if self.tie and self.embed not in (None, self.hidden):
            raise UsageError(
                f"`tie` uses the embedding as the output matrix, so `embed` must equal `hidden`, but they are "
                f"{self.embed} and {self.hidden}: leave `embed` out, or do without `tie`."
            )
        choose(str(self.form), FORMS, "form")
        choose(str(self.precision), PRECISIONS, "precision")
        kind = getattr(self.cell, "func", self.cell)  # that of a partial
        if self.precision != "float32" and not (isinstance(kind, type) and issubclass(kind, Cell)):
            raise UsageError(
                f"The precision {self.precision!r} takes a jaxgen cell, and {getattr(kind, '__name__', kind)} is none: "
                'leave it at "float32", or use a cell of CELLS or one of your own.'
            )
        super().__post_init__()

    def setup(self) -> None:
        width = self.hidden if self.embed is None else self.embed
        if width:
            # A cell wants inputs of unit size; an output matrix (with ``tie``) wants rows of unit length.
            self.embedding = self.param(
                "embedding",
                nn.initializers.normal(width**-0.5 if self.tie else 1.0),
                (self.vocab_size, width),
                jnp.float32,
            )
        more = {} if self.precision == "float32" else {"precision": self.precision}  # Flax's cells know no such field
        cells = [self.cell(features=self.hidden, **more) for _ in range(self.layers)]
        self.stack = Stack(cells, self.dropout, self.form)
        if self.tie:
            self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab_size,))
        else:
            self.output = nn.Dense(self.vocab_size, dot_general=dot_general(self.precision))
        if self.condition:
            width = state_size(self.initial_carry(1))
            self.condition_kernel = self.param(
                "condition_kernel", nn.initializers.lecun_normal(), (self.condition, width), jnp.float32
            )
            self.condition_bias = self.param("condition_bias", nn.initializers.zeros_init(), (width,), jnp.float32)

    @nn.nowrap
    def initial_carry(self, batch: int) -> tuple[Carry, ...]:
        """The zero state of ``batch`` rows: one carry a layer."""
        cell = self.cell(features=self.hidden, parent=None)
        width = self.hidden if self.embed is None else self.embed or self.vocab_size
        zeros = [cell.initialize_carry(jax.random.key(0), (batch, width))]
        zeros += [cell.initialize_carry(jax.random.key(0), (batch, self.hidden)) for _ in range(self.layers - 1)]
        return tuple(zeros)

    def initial_states(self, condition: Array) -> tuple[Carry, ...]:
        """The state in which a text begins of which ``condition`` [..., C] is known: one carry a layer, [..., H].

        Linear for each array of each layer's state, with tanh where the cell keeps it bounded (``Cell.clamp_state``).
        Vectors between two conditions give states between theirs.
        """
        if not self.condition:
            raise UsageError("This model knows no conditions: make it with the width of their vectors, `condition`.")
        flat = matmul(condition.reshape(-1, self.condition), self.condition_kernel) + self.condition_bias[None, :]
        flat = flat.reshape(*condition.shape[:-1], -1)
        cell = self.cell(features=self.hidden, parent=None)
        states = unflatten_state(flat, self.initial_carry(1))
        return tuple(cell.clamp_state(state) if isinstance(cell, Cell) else state for state in states)

    @nn.nowrap
    def chosen_form(self) -> str:
        """What ``form`` comes to for this model's cell, on the device that JAX computes on by default."""
        return choose_form(self.form, self.cell(features=self.hidden, parent=None))

    def token_table(self) -> Array | None:
        """What the first layer's input projection gives for every token, [V, K]; ``None`` for cells without one.

        ``project(E)[tokens] == project(E[tokens])``: whoever looks up more tokens than there are in the
        vocabulary saves the difference.
        """
        first = self.stack.cells[0]
        if not isinstance(first, Cell) or (self.embed == 0 and self.vocab_size > ONE_HOT_TABLE):
            return None
        return first.project(self.embedded(jnp.arange(self.vocab_size)))

    def embedded(self, tokens: Array) -> Array:
        """What the first layer reads of ``tokens`` [..]: [.., E]; one-hot vectors if ``embed`` is 0."""
        if self.embed == 0:
            return jax.nn.one_hot(tokens, self.vocab_size, dtype=jnp.float32)
        return jnp.asarray(self.embedding)[tokens]

    def __call__(
        self,
        tokens: Array,
        carry: Sequence[Carry] | None = None,
        *,
        reset: Array | None = None,
        valid: Array | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: Key | None = None,
        table: Array | None = None,
    ) -> tuple[tuple[Carry, ...], Array]:
        """``tokens`` [B, T] and a carry (zeros by default) -> the carry after them and logits [B, T, V] in float32.

        ``reset``, ``valid`` [B, T] and ``initial`` as in ``jaxgen.unroll``; ``row_keys`` [B] switches dropout on;
        ``table`` is a ``token_table()`` made earlier, for callers that step through time themselves.
        """
        reset, valid = (None if mask is None else mask.T for mask in (reset, valid))
        if initial is not None:  # a state for each step, [B, T, H] -> [T, B, H]
            swap = lambda a, like: jnp.swapaxes(a, 0, 1) if a.ndim > like.ndim else a  # noqa: E731
            initial = jax.tree.map(swap, tuple(initial), self.initial_carry(tokens.shape[0]))
        carry, hidden = self.states(tokens.T, carry, reset, valid, initial, row_keys, table)
        return carry, jnp.swapaxes(self.logits(hidden), 0, 1)

    def states(
        self,
        tokens: Array,
        carry: Sequence[Carry] | None = None,
        reset: Array | None = None,
        valid: Array | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: Key | None = None,
        table: Array | None = None,
    ) -> tuple[tuple[Carry, ...], Array]:
        """``__call__`` without the output layer and with time in front: [T, B] -> the carry and states [T, B, H]."""
        if carry is None:
            carry = self.initial_carry(tokens.shape[1])
        dropping = row_keys is not None and self.embed_dropout > 0
        if table is None and self.vocab_size < tokens.size and not dropping:
            table = self.token_table()
        x = self.embedded(tokens) if table is None else jnp.asarray(table)[tokens]
        if dropping:  # of every occurrence anew, which no table of symbols can hold
            keys = jax.vmap(lambda key: jax.random.fold_in(key, self.layers))(row_keys)
            x = dropout(x, self.embed_dropout, keys)
        return self.stack(
            x, carry, projected=table is not None, reset=reset, valid=valid, initial=initial, row_keys=row_keys
        )

    def logits(self, hidden: Array) -> Array:
        """The output layer: states [..., H] -> float32 logits [..., V]."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.tie:
            logits = matmul(flat, self.embedding.T, self.precision) + self.output_bias[None, :]
        else:
            logits = self.output(flat)
        return logits.astype(jnp.float32).reshape(*hidden.shape[:-1], self.vocab_size)
