"""The captioning objective: loss, independent rows, features instead of images, a custom encoder, flips."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen.models import ImageFeatures
from jaxgen.tasks.caption.objective import CaptionTask
from jaxgen.tasks.seq2seq.objective import EOS, Seq2SeqTask
from jaxgen.types import Seq2SeqBatch

B, T, VOCAB, H, SIDE = 4, 5, 7, 8, 8
PAD = 0
#: Compiles in half the time; how fast these few steps run does not matter.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

build = partial(
    CaptionTask.build, vocab_size=VOCAB, cell="gru", cell_options={}, hidden=H, patch=2, widths=(16,), blocks=(0,)
)
graded = compiled(
    jax.value_and_grad(lambda p, task, batch, keys: task.loss(p, (), batch, keys)[1].nll), static_argnums=1
)
totals_of = compiled(lambda task, params, batch, keys=None: task.loss(params, (), batch, keys)[1], static_argnums=0)
logits_of = compiled(
    lambda task, params, inputs, tokens: task.model.apply({"params": params}, inputs, tokens), static_argnums=0
)
begin = compiled(
    lambda task, params, inputs: Seq2SeqTask.init_decoder(task, task.prepare(params), inputs), static_argnums=0
)


def captions(inputs):
    """Four pictures with a caption each, of different lengths; what follows depends on chance alone."""
    rng = np.random.default_rng(1)
    lengths = np.array([1, 4, 2, 3])
    text = rng.integers(3, VOCAB, (B, T)).astype(np.int32)
    places = np.arange(T)[None, :]
    targets = np.where(places < lengths[:, None], text, np.where(places == lengths[:, None], EOS, PAD)).astype(np.int32)
    tokens = np.concatenate([np.full((B, 1), EOS, np.int32), targets[:, :-1]], axis=1)
    return Seq2SeqBatch(inputs, tokens, targets, places <= lengths[:, None], np.zeros(B, np.float32))


def images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (B, SIDE, SIDE, 3)).astype(np.uint8)


def vectors(*shape):
    return np.random.default_rng(0).normal(size=(B, *shape)).astype(np.float32)


def random_params(task):
    normal = np.random.default_rng(0).normal
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda a: normal(0, 0.5, a.shape).astype(np.float32), shapes)


CASES = {
    "images": (images(), "general"),
    "images-unattended": (images(), "none"),
    "one-vector": (vectors(3), "none"),
    "vectors-of-places": (vectors(6, 3), "additive"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    inputs, attention = CASES[request.param]
    task = build(shape=inputs.shape[1:], attention=attention)
    return task, random_params(task), captions(inputs)


def test_the_totals_are_those_of_the_logits_by_hand(case):
    task, params, batch = case
    logits = np.asarray(logits_of(task, params, batch.inputs, batch.tokens), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    totals = totals_of(task, params, batch)
    given = np.take_along_axis(logp, batch.targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(totals.nll, -given[batch.mask].sum(), rtol=1e-5)
    assert totals.targets == batch.mask.sum()
    assert totals.correct == (logp.argmax(-1) == batch.targets)[batch.mask].sum()


def test_decoding_begins_where_training_does(case):
    task, params, batch = case
    _, _, first = begin(task, params, batch.inputs)
    whole = logits_of(task, params, batch.inputs, batch.tokens)
    np.testing.assert_allclose(first, whole[:, 0], rtol=1e-4, atol=1e-5)


def test_every_weight_gets_a_gradient(case):
    task, params, batch = case
    _, gradient = graded(params, task, batch, None)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(leaf), jax.tree_util.keystr(path)


def test_pictures_are_mirrored_in_training_alone():
    plain, flipping = (build(shape=(SIDE, SIDE, 3), flips=flips) for flips in (0.0, 0.999))
    params, batch = random_params(plain), captions(images())
    keys = jax.random.split(jax.random.key(0), B)
    mirrored = batch._replace(inputs=batch.inputs[:, :, ::-1])
    assert flipping.is_random
    assert not plain.is_random
    assert totals_of(flipping, params, batch, keys).nll == totals_of(plain, params, mirrored).nll
    assert totals_of(flipping, params, batch).nll == totals_of(plain, params, batch).nll


class Corners(nn.Module):
    """An encoder of one's own: the four corners of a picture are all that there is to see."""

    features: int
    has_dropout = False

    @nn.nowrap
    def example(self):
        return jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8)

    @nn.compact
    def __call__(self, inputs, row_keys=None):
        corners = inputs[:, :: SIDE - 1, :: SIDE - 1].reshape(inputs.shape[0], 4, 3).astype(jnp.float32) / 255
        places = nn.Dense(self.features)(corners)
        return ImageFeatures(places, places.reshape(places.shape[0], -1))


class CornersTask(CaptionTask):
    @classmethod
    def encoder(cls, shape, features, **options):
        return Corners(features)


@pytest.mark.runs
@pytest.mark.parametrize("attention", [pytest.param("none", marks=pytest.mark.slow), "general"])
def test_an_encoder_of_one_s_own_trains_in_place_of_ours(attention):
    task = CornersTask.build(
        vocab_size=VOCAB, shape=(SIDE, SIDE, 3), cell="gru", cell_options={}, hidden=H, attention=attention
    )
    assert isinstance(task, CornersTask)
    batch, params = captions(images()), task.init(jax.random.key(0))
    optimizer = optax.adam(0.03)
    state = optimizer.init(params)
    update = compiled(optimizer.update)
    before = np.asarray(params["encoder"]["encoder"]["Dense_0"]["kernel"])
    losses = []
    for _ in range(60):
        nll, gradient = graded(params, task, batch, None)
        losses.append(float(nll))
        change, state = update(gradient, state)
        params = optax.apply_updates(params, change)
    assert losses[-1] < losses[0] / 10
    assert np.abs(before - params["encoder"]["encoder"]["Dense_0"]["kernel"]).max() > 0.01
    middle = batch.inputs.copy()
    middle[:, 1:-1, 1:-1] = 0
    assert totals_of(task, params, batch._replace(inputs=middle)).nll == totals_of(task, params, batch).nll
