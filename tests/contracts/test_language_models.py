"""A model computes the same in training, sampling and scoring, also with overrides and as any other module."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import FORMS, GRU, Elman
from jaxgen.cells.attention import Attention
from jaxgen.cells.gla import GLA
from jaxgen.cells.mingru import MinGRU
from jaxgen.errors import UsageError
from jaxgen.models import Decoder, Encoder, EncoderDecoder, GriffinBlock, LanguageModel
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tasks.seq2seq.objective import Seq2SeqTask
from jaxgen.types import Batch, ConditionedBatch, Seq2SeqBatch, TokenRows

from .language_model_checks import B, T, check_loss_score_prefill_and_step_agree, close, random_params

V, H, C = 7, 5, 2


class Sharper(LanguageModel):
    def logits(self, hidden):
        return 3.0 * jnp.flip(super().logits(hidden), axis=-1)


class ReadsOtherTokens(LanguageModel):
    def states(self, tokens, *args, **kwargs):
        return super().states(self.vocab_size - 1 - tokens, *args, **kwargs)


class WithoutTable(LanguageModel):
    def token_table(self):
        return None


class StartsElsewhere(LanguageModel):
    @nn.nowrap
    def initial_carry(self, batch):
        return jax.tree.map(lambda a: a + 0.5, super().initial_carry(batch))


class Bigrams(nn.Module):
    """No subclass of ``LanguageModel``: logits are rows of a matrix, and the state is the number of tokens read."""

    vocab_size: int
    condition = 0
    has_dropout = False

    def setup(self):
        self.matrix = self.param("matrix", nn.initializers.normal(), (self.vocab_size, self.vocab_size))

    @nn.nowrap
    def initial_carry(self, batch):
        return (jnp.zeros(batch, jnp.int32),)

    @nn.nowrap
    def chosen_form(self):
        return "scan"

    def token_table(self):
        return None

    def states(self, tokens, carry, reset=None, valid=None, initial=None, row_keys=None, table=None):
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        return (carry[0] + jnp.sum(valid, axis=0, dtype=jnp.int32),), jnp.asarray(self.matrix)[tokens]

    def logits(self, hidden):
        return hidden

    def __call__(self, tokens, carry=None):
        carry, states = self.states(tokens.T, self.initial_carry(tokens.shape[0]) if carry is None else carry)
        return carry, jnp.swapaxes(self.logits(states), 0, 1)


#: Cells whose states are matrices.
MATRIX = (partial(Attention, window=3), GLA)
SUBCLASSES = [LanguageModel, Sharper, ReadsOtherTokens, WithoutTable, StartsElsewhere]
IN_BLOCKS = LanguageModel(V, (GRU, Elman), H, layers=2, block=GriffinBlock)
MODELS = [
    *(kind(V, GRU, H, layers=2) for kind in SUBCLASSES),
    Sharper(V, GRU, H, tie=True),
    Bigrams(V),
    IN_BLOCKS,
    LanguageModel(V, MATRIX, 8, layers=2),
    LanguageModel(V, GRU, H, layers=2, skip_connections=True, softmaxes=2),
    LanguageModel(V, GRU, H, zoneout=0.3),  # whose evaluation is not the cell alone
]


@pytest.mark.parametrize(
    "model",
    [MODELS[0], *(pytest.param(model, marks=pytest.mark.runs) for model in MODELS[1:])],
    ids=lambda model: type(model).__name__,
)
def test_loss_score_prefill_and_step_agree(model):
    task = LanguageTask(model)
    check_loss_score_prefill_and_step_agree(task, random_params(task))


class TrainsTheBaseClass(LanguageTask):
    """The loss of the base class, whatever the model overrides."""

    def loss(self, params, carry, batch, row_keys=None):
        fields = {name: getattr(self.model, name) for name in ("vocab_size", "cell", "hidden", "layers")}
        return LanguageTask(LanguageModel(**fields)).loss(params, carry, batch, row_keys)


class ForgetsTheTable(LanguageTask):
    """Decodes with a table that is not that of the model."""

    def prepare(self, params):
        weights = super().prepare(params)
        return weights._replace(table=weights.table[::-1])


@pytest.mark.runs
@pytest.mark.parametrize(
    ("kind", "model"), [*((TrainsTheBaseClass, kind) for kind in SUBCLASSES[1:3]), (ForgetsTheTable, LanguageModel)]
)
def test_the_check_catches_what_it_is_for(kind, model):
    task = kind(model(V, GRU, H, layers=2))
    with pytest.raises(AssertionError):
        check_loss_score_prefill_and_step_agree(task, random_params(task))


def test_beside_a_layer_that_starts_from_a_condition_attention_starts_from_nothing():
    model = LanguageModel(V, MATRIX, 8, layers=2, condition=C)
    params = random_params(LanguageTask(model))
    cache, state = model.apply({"params": params}, jnp.ones((T, B, C)), method="initial_states")
    jax.tree.map(np.testing.assert_array_equal, cache, model.initial_carry(B)[0])
    assert state.shape == (T, *model.initial_carry(B)[1].shape)
    assert params["condition_kernel"].shape == (C, state[0, 0].size)


def test_attention_alone_can_neither_start_from_a_condition_nor_from_an_encoder():
    with pytest.raises(UsageError, match="condition"):
        LanguageModel(V, Attention, 8, condition=C)
    with pytest.raises(UsageError, match="source"):
        Decoder(V, Attention, 8)
    Decoder(V, Attention, 8, attention="general")


class ConditionsAsTheyAre(LanguageModel):
    def initial_states(self, condition):
        return (jnp.broadcast_to(jnp.sum(condition, axis=-1, keepdims=True), (*condition.shape[:-1], self.hidden)),)


@pytest.mark.runs
@pytest.mark.parametrize(
    "model", [ConditionsAsTheyAre(V, GRU, H, condition=C), LanguageModel(V, MATRIX, 8, layers=2, condition=C)]
)
def test_initial_states_are_trained_and_sampled(model):
    task = LanguageTask(model)
    params = random_params(task)
    ids = np.random.default_rng(1).integers(0, V, (B, T + 1)).astype(np.int32)
    reset, mask = np.arange(T)[None, :].repeat(B, 0) == 0, np.ones((B, T), bool)
    one = np.random.default_rng(2).normal(size=(B, C)).astype(np.float32)
    batch = ConditionedBatch(Batch(ids[:, :-1], ids[:, 1:], reset, mask), one[:, None].repeat(T, 1))
    _, totals = jax.jit(task.loss)(params, task.initial_carry(B), batch)
    weights = task.prepare(params)
    start = task.initial_states(weights, jnp.asarray(one))
    _, scored = jax.jit(task.score)(weights, start, ids[:, :-1], ids[:, 1:], ~mask, mask, start)
    close(-scored.logp.sum(), totals.nll)


class CallsElse(LanguageModel):
    def __call__(self, tokens, carry=None, **options):
        carry, logits = super().__call__(tokens, carry, **options)
        return carry, 2 * logits


def test_an_override_that_training_would_not_use_is_refused():
    with pytest.raises(UsageError, match="__call__"):
        CallsElse(V)


class OwnWeights(NamedTuple):
    kernel: jax.Array
    bias: jax.Array | None = None
    extra: tuple = ()


class HasOwnWeights(Elman):
    def weights(self):
        return OwnWeights(super().weights().kernel)


class HasOwnStep(Elman):
    @nn.nowrap
    def step(self, weights, carry, z):
        return super().step(weights, carry, z)


@pytest.mark.parametrize("cell", [Elman, HasOwnWeights, HasOwnStep, MinGRU, nn.GRUCell], ids=lambda cell: cell.__name__)
def test_the_form_that_is_recorded_is_the_form_that_runs(cell, monkeypatch):
    calls = []

    def recorded(name, form):
        def run(*args, **options):
            calls.append(name)
            return form.run(*args, **options)

        return dataclasses.replace(form, run=run)

    for name, form in FORMS.items():
        monkeypatch.setitem(FORMS, name, recorded(name, form))
    task = LanguageTask(LanguageModel(V, cell, H))
    jax.eval_shape(task.init, jax.random.key(0))
    assert task.resolved_options() == {"form": calls[0] if calls else "scan"}


class SharperDecoder(EncoderDecoder):
    def logits(self, features):
        return 3.0 * super().logits(features)


@pytest.mark.runs
@pytest.mark.parametrize(
    ("kind", "cell", "layers"), [(EncoderDecoder, GRU, 1), (SharperDecoder, GRU, 1), (EncoderDecoder, MATRIX, 2)]
)
def test_a_seq2seq_model_is_trained_as_it_decodes(kind, cell, layers):
    task = Seq2SeqTask(kind(Encoder(V, cell, 8, layers), Decoder(V, cell, 8, layers)))
    params = random_params(task)
    draw = np.random.default_rng(1).integers
    ids = draw(0, V, (B, T)).astype(np.int32)
    inputs = TokenRows(draw(0, V, (B, 4)).astype(np.int32), np.ones((B, 4), bool))
    read = np.concatenate([np.full((B, 1), task.eos, np.int32), ids[:, :-1]], axis=1)
    batch = Seq2SeqBatch(inputs, read, ids, np.ones((B, T), bool), np.zeros(B, np.float32))
    _, totals = jax.jit(task.loss)(params, (), batch)
    weights = jax.jit(task.prepare)(params)
    memory, carry, logits = jax.jit(task.init_decoder)(weights, inputs)
    step, nll = jax.jit(task.step), 0.0
    for t in range(T):
        nll -= jax.nn.log_softmax(logits)[np.arange(B), ids[:, t]].sum()
        carry, logits = step((weights, memory), carry, ids[:, t])
    close(nll, totals.nll)
