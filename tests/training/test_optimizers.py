"""Optimizers by name, compared with optax's own and with the formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.training.optimizer import OPTIMIZERS, make_optimizer

LR = 0.05
PARAMS = {
    "w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32),
    "b": jnp.array([1.0, -2.0]),
}


def gradients(seed, scale=1.0):
    normal = np.random.default_rng(seed).normal
    return jax.tree.map(lambda a: jnp.asarray(scale * normal(size=a.shape), jnp.float32), PARAMS)


def path(optimizer, steps=3):
    """The parameters after some steps on fixed gradients."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for seed in range(steps):
        updates, state = optimizer.update(gradients(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


def same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), path(ours), path(theirs))


def named(name, clip=0.0, **options):
    return make_optimizer(name, optax.constant_schedule(LR), clip=clip, options=options)


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("adam", {}, optax.adam(LR)),
        ("adam", {"b1": 0.8, "b2": 0.95, "eps": 1e-4}, optax.adam(LR, 0.8, 0.95, 1e-4)),
        ("adamw", {}, optax.adamw(LR, 0.9, 0.99, weight_decay=0.0)),
        (
            "adamw",
            {"weight_decay": 0.3, "b2": 0.95},
            optax.adamw(LR, 0.9, 0.95, weight_decay=0.3, mask={"w": True, "b": False}),
        ),
        ("rmsprop", {}, optax.rmsprop(LR, 0.95)),
        ("rmsprop", {"momentum": 0.5, "decay": 0.8}, optax.rmsprop(LR, 0.8, momentum=0.5)),
        ("sgd", {}, optax.sgd(LR, 0.9)),
        ("sgd", {"momentum": 0.0}, optax.sgd(LR)),
        ("sgd", {"nesterov": True}, optax.sgd(LR, 0.9, nesterov=True)),
        ("adan", {}, optax.adan(LR)),
        ("ademamix", {}, optax.contrib.ademamix(LR)),
        ("adopt", {"b1": 0.8}, optax.contrib.adopt(LR, 0.8)),
        ("lion", {"weight_decay": 0.0}, optax.lion(LR, weight_decay=0.0)),
        ("nadamw", {}, optax.nadamw(LR, 0.9, 0.99, weight_decay=0.0)),
        ("schedule-free", {"b2": 0.999}, optax.contrib.schedule_free_adamw(LR)),
    ],
)
def test_a_named_optimizer_takes_the_steps_of_optaxs_own(name, options, theirs):
    same(named(name, **options), theirs)


@pytest.mark.runs
def test_every_registered_optimizer_lowers_a_quadratic():
    for name in OPTIMIZERS:
        optimizer, params = named(name), PARAMS
        state = optimizer.init(params)
        for _ in range(20):
            updates, state = optimizer.update(params, state, params)  # the gradient of half the squared norm
            params = optax.apply_updates(params, updates)
        assert optax.tree.norm(params) < 0.9 * optax.tree.norm(PARAMS), name


def test_weight_decay_shrinks_matrices_and_leaves_vectors():
    optimizer = named("adamw", weight_decay=0.5)
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(nothing, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], -LR * 0.5 * PARAMS["w"], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], [0, 0])


def test_the_learning_rate_follows_the_schedule_by_step():
    rates = [0.0, 0.5, 0.25]
    optimizer = make_optimizer("sgd", lambda step: jnp.array(rates)[step], clip=0.0, options={"momentum": 0.0})
    state = optimizer.init(PARAMS)
    for rate in rates:
        updates, state = optimizer.update(gradients(0), state, PARAMS)
        jax.tree.map(np.testing.assert_array_equal, updates, jax.tree.map(lambda g, r=rate: -r * g, gradients(0)))


def first_update(clip, scale):
    optimizer = named("sgd", clip, momentum=0.0)
    return optimizer.update(gradients(0, scale), optimizer.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize("scale", [2.0, 1e3, 1e6])
def test_a_long_gradient_is_cut_to_the_clipping_norm(scale):
    np.testing.assert_allclose(optax.tree.norm(first_update(0.5, scale)), LR * 0.5, rtol=1e-5)


def test_the_gradient_is_clipped_and_not_the_step_that_momentum_makes_of_it():
    same(named("sgd", clip=0.5), optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(LR, 0.9)))


def test_a_clipped_gradient_keeps_its_direction():
    short, full = first_update(0.5, 100.0), gradients(0)
    ratio = np.concatenate([np.ravel(a / b) for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(full))])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


@pytest.mark.parametrize(("clip", "scale"), [(100.0, 1.0), (0.0, 1e6)])
def test_a_gradient_within_the_norm_or_without_one_is_not_touched(clip, scale):
    expected = jax.tree.map(lambda g: -LR * g, gradients(0, scale))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first_update(clip, scale), expected)


def test_an_unknown_optimizer_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'adamw'"):
        named("admw")


def test_an_option_the_optimizer_lacks_is_refused_with_those_it_has():
    with pytest.raises(UsageError, match="momentum"):
        named("sgd", beta=0.9)


ROLES = {"embedding": jnp.full((3, 2), 2.0), "kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 3.0)}
ROLES |= {"output": {"kernel": jnp.full((2, 3), 4.0)}}


def update_of_nothing(**options):
    """The update of SGD for a gradient of zeros."""
    optimizer = named("sgd", momentum=0.0, **options)
    return optimizer.update(jax.tree.map(jnp.zeros_like, ROLES), optimizer.init(ROLES), ROLES)[0]


def test_each_role_of_parameters_may_have_a_weight_decay_of_its_own():
    found = update_of_nothing(weight_decay=0.5, decay_embedding=0.0, decay_output=0.25, decay_other=0.1)
    rates = {"embedding": 0.0, "kernel": 0.5, "bias": 0.1, "output": {"kernel": 0.25}}
    expected = jax.tree.map(lambda rate, p: -LR * rate * p, rates, ROLES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_an_l2_norm_is_part_of_the_gradient():
    optimizer = named("sgd", momentum=0.0, l2=0.2)
    updates, _ = optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)
    loss = lambda params: 0.1 * jnp.sum(params["w"] ** 2)  # noqa: E731
    expected = jax.tree.map(lambda g, more: -LR * (g + more), gradients(0), jax.grad(loss)(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_each_layer_has_a_rate_smaller_by_a_factor_than_the_one_above_it():
    layers = {"cells_0": {"kernel": jnp.ones((2, 2))}, "cells_1": {"kernel": jnp.ones((2, 2))}}
    params = {"embedding": jnp.ones((3, 2)), "stack": layers, "output": {"kernel": jnp.ones((2, 3))}}
    optimizer = named("sgd", momentum=0.0, layer_decay=0.5)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    factors = jax.tree.map(lambda u: float(u[0, 0] / -LR), updates)
    expected = {"embedding": 0.125, "stack": {"cells_0": {"kernel": 0.25}, "cells_1": {"kernel": 0.5}}}
    assert factors == jax.tree.map(pytest.approx, {**expected, "output": {"kernel": 1.0}})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {"layer_decay": 0.0}),
        ("adam", {"decay_output": -1.0}),
        ("soap", {"every": 0.5}),
        ("schedule-free", {"b1": 0.0}),
        ("adamw", {"b1": 1.0}),
        ("sgd", {"momentum": -0.5}),
        ("ademamix", {"warmup": float("inf")}),
        ("lion", {"b2": float("nan")}),
        ("adam", {"eps": True}),
    ],
)
def test_an_option_out_of_its_range_is_refused(name, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        named(name, **options)


def test_schedule_free_refuses_a_schedule_that_decays():
    with pytest.raises(UsageError, match="constant"):
        make_optimizer("schedule-free", "cosine")


def test_ademamix_may_begin_as_adam():
    adamix = named("ademamix", warmup=1e6, b2=0.99)
    same(adamix, named("adam", b2=0.99))
