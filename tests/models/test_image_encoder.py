"""Image encoders and image preprocessing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.models.image_encoder import FeatureEncoder, ImageEncoder, flip, grayscale, patches

B, M = 4, 8
SMALL = ImageEncoder((12, 8), M, patch=2, widths=(16, 16), blocks=(1, 0))
PLACES = 3 * 2
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (B, 12, 8, 3)).astype(np.uint8)
KEYS = jax.random.split(jax.random.key(0), B)


@pytest.fixture(scope="module")
def params():
    return jax.jit(SMALL.init)(jax.random.key(1), SMALL.example())


@pytest.fixture(scope="module")
def see():
    """The encoder compiled for one shape, which all tests share."""
    return jax.jit(SMALL.apply)


@pytest.fixture(scope="module")
def gradients():
    def loss(params, images):
        seen = SMALL.apply(params, images)
        return jnp.sum(jnp.sin(seen.places)) + jnp.sum(jnp.sin(seen.pooled))

    return jax.jit(jax.grad(loss))


def near(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def conv(x, layer, stride=1):
    """A 3 x 3 convolution of [Y, X, C], place by place; half a border is at the end (as everywhere in JAX)."""
    kernel = np.asarray(layer["kernel"], np.float64)
    sides = [-(-length // stride) for length in x.shape[:2]]
    missing = [max((side - 1) * stride + 3 - length, 0) for side, length in zip(sides, x.shape)]
    x = np.pad(x, [*((total // 2, total - total // 2) for total in missing), (0, 0)])
    out = np.empty((*sides, kernel.shape[-1]))
    for i in range(sides[0]):
        for j in range(sides[1]):
            window = x[i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[i, j] = np.einsum("yxc,yxck->k", window, kernel) + layer["bias"]
    return out


def rectify(x, norm):
    groups = x.reshape(-1, x.shape[-1] // 16, 16)
    groups = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-6)
    return np.maximum(groups.reshape(x.shape) * norm["scale"] + norm["bias"], 0)


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]


def test_the_encoder_is_what_its_equations_say(params, see):
    p = jax.tree.map(np.asarray, params["params"])
    seen = see(params, IMAGES)
    for image, places, pooled in zip(IMAGES, seen.places, seen.pooled):
        scaled = image / 127.5 - 1
        x = np.concatenate([scaled[y::2, x::2] for y in (0, 1) for x in (0, 1)], axis=-1)
        x = conv(x, p["Conv_0"])
        block = p["Block_0"]
        y = conv(rectify(x, block["GroupNorm_0"]), block["Conv_0"])
        x = x + conv(rectify(y, block["GroupNorm_1"]), block["Conv_1"])
        x = conv(rectify(x, p["GroupNorm_0"]), p["Conv_1"], stride=2)
        flat = rectify(x, p["GroupNorm_1"]).reshape(PLACES, 16)
        end = p["_Places_0"]
        wanted = dense(flat, end["Dense_0"]) + end["where"][0]
        near(places, wanted)
        near(pooled, dense(np.maximum(dense(wanted, end["Dense_1"]), 0).reshape(-1), end["Dense_2"]))


def test_a_picture_is_seen_alike_whatever_stands_beside_it(params, see):
    seen = see(params, IMAGES)
    others = GENERATOR.integers(0, 256, IMAGES.shape).astype(np.uint8)
    others[2] = IMAGES[2]
    for found, wanted in zip(see(params, others), seen):
        np.testing.assert_array_equal(found[2], wanted[2])
        assert np.all(np.any(np.asarray(found != wanted).reshape(B, -1), axis=1) == [True, True, False, True])
    for found, wanted in zip(see(params, IMAGES[::-1]), seen):
        np.testing.assert_array_equal(found[::-1], wanted)


def test_a_second_batch_compiles_nothing(params, see):
    see(params, IMAGES)
    compiled = see._cache_size()
    see(params, IMAGES[::-1].copy())
    assert see._cache_size() == compiled


@pytest.mark.parametrize(
    ("size", "patch", "widths", "places"),
    [
        ((64, 64), 2, (32, 32, 64), 64),
        ((64, 64), 4, (32, 64), 64),
        ((64, 64), 1, (16,), 4096),
        ((12, 8), 2, (16,), 24),
        ((13, 7), 2, (16, 32), 4 * 2),
        ((13, 7), 3, (16, 32), 3 * 2),
        ((1, 1), 4, (16, 16), 1),
    ],
)
def test_sides_are_divided_by_patches_halved_by_every_later_stage_and_rounded_up(size, patch, widths, places):
    encoder = ImageEncoder(size, M, patch, widths, [0] * len(widths))
    seen, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), encoder.example())
    assert (seen.places.shape, seen.places.dtype) == ((1, places, M), jnp.float32)
    assert (seen.pooled.shape, seen.pooled.dtype) == ((1, M), jnp.float32)


def test_every_weight_has_a_finite_gradient_and_one_colour_does_no_harm(params, gradients):
    images = IMAGES.copy()
    images[0], images[1] = 0, 255  # no variance to divide by
    for path, leaf in jax.tree.leaves_with_path(gradients(params, images)):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


def test_what_is_where_shows_in_the_pooled_vector(params, see):
    images = np.full_like(IMAGES, 128)
    images[0, :2, :2], images[1, -4:-2, -4:-2] = 0, 0
    pooled = np.asarray(see(params, images).pooled)
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-2
    np.testing.assert_array_equal(pooled[2], pooled[3])


def test_dropout_drops_by_a_row_s_own_key_and_is_off_without_keys(params):
    encoder = SMALL.clone(dropout=0.5)
    assert encoder.has_dropout
    assert not SMALL.has_dropout
    plain, dropped, turned = jax.jit(
        lambda params, keys: [
            encoder.apply(params, IMAGES),
            encoder.apply(params, IMAGES, keys),
            encoder.apply(params, IMAGES[::-1], keys[::-1]),
        ]
    )(params, KEYS)
    for whole, part, reversed_part in zip(plain, dropped, turned):
        whole, part = np.asarray(whole), np.asarray(part)
        kept = part != 0
        assert 0.2 < kept.mean() < 0.8
        near(part[kept], 2 * whole[kept])
        assert np.any(kept[0] != kept[1])
        np.testing.assert_array_equal(np.asarray(reversed_part)[::-1] != 0, kept)


def without_colours(images):
    red, green, blue = np.moveaxis(images.astype(np.float64), -1, 0)
    return np.repeat(np.round(0.299 * red + 0.587 * green + 0.114 * blue)[..., None], 3, -1).astype(np.uint8)


CHANGES = {"flips": lambda images: images[:, :, ::-1], "grays": without_colours}


@pytest.mark.parametrize("name", CHANGES)
def test_a_share_of_the_pictures_is_changed_in_training_alone(name, params, see):
    encoder = SMALL.clone(**{name: 0.5})
    assert encoder.has_dropout
    keys = jax.random.split(jax.random.key(3), 32)
    images = np.repeat(IMAGES[:1], 32, 0)
    there = jax.jit(encoder.apply)(params, images, keys).pooled
    plain, changed = (see(params, np.repeat(x, B, 0)).pooled[0] for x in (IMAGES[:1], CHANGES[name](IMAGES[:1])))
    is_plain, is_changed = (np.isclose(there, x[None], atol=1e-4).all(-1) for x in (plain, changed))
    assert np.all(is_plain ^ is_changed)
    assert 8 <= is_changed.sum() <= 24
    near(jax.jit(encoder.apply)(params, IMAGES).pooled, see(params, IMAGES).pooled)


@pytest.mark.parametrize(("change", "name"), [(flip, "flips"), (grayscale, "grays")])
def test_a_row_s_key_decides_whether_it_is_changed(change, name):
    images = jnp.asarray(IMAGES)
    both, alone, always, never = jax.jit(
        lambda k: (
            change(images, k, 0.5),
            change(images[1:2], k[1:2], 0.5),
            change(images, k, 1.0),
            change(images, k, 0.0),
        )
    )(KEYS)
    np.testing.assert_array_equal(both[1:2], alone)
    np.testing.assert_array_equal(always, CHANGES[name](IMAGES))
    np.testing.assert_array_equal(never, IMAGES)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_features_are_normalised_and_projected(shape):
    encoder = FeatureEncoder(shape, M)
    x = GENERATOR.normal(size=(B, *shape)).astype(np.float16)
    params = jax.jit(encoder.init)(jax.random.key(0), encoder.example())
    seen = jax.jit(encoder.apply)(params, x)
    p = jax.tree.map(np.asarray, params["params"])
    flat = x.astype(np.float64).reshape(B, -1, 5)
    flat = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, keepdims=True) + 1e-6)
    end = p["_Places_0"]
    places = dense(flat, end["Dense_0"]) + end["where"]
    near(seen.places, places)
    near(seen.pooled, dense(np.maximum(dense(places, end["Dense_1"]), 0).reshape(B, -1), end["Dense_2"]))


@pytest.mark.parametrize(("side", "rows", "columns"), [(1, 5, 4), (2, 3, 2), (3, 2, 2), (6, 1, 1)])
def test_patches_are_the_pixels_of_squares_with_zeros_at_the_end(side, rows, columns):
    images = GENERATOR.normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = np.asarray(jax.jit(lambda x: patches(x, side))(images))
    assert found.shape == (2, rows, columns, side * side * 3)
    padded = np.pad(images, [(0, 0), (0, rows * side - 5), (0, columns * side - 4), (0, 0)])
    for b in range(2):
        for i in range(rows):
            for j in range(columns):
                square = padded[b, side * i : side * (i + 1), side * j : side * (j + 1)]
                np.testing.assert_array_equal(found[b, i, j], square.reshape(-1))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ImageEncoder((0, 8)), "size"),
        (lambda: ImageEncoder((8, 8, 3)), "height"),
        (lambda: ImageEncoder(features=0), "`features` is 0"),
        (lambda: ImageEncoder(patch=0), "`patch` is 0"),
        (lambda: ImageEncoder(widths=()), "`widths` are"),
        (lambda: ImageEncoder(widths=(16, 20), blocks=(0, 0)), "multiples of 16"),
        (lambda: ImageEncoder(blocks=(1,)), "blocks"),
        (lambda: ImageEncoder(blocks=(1, -1, 0)), "blocks"),
        (lambda: ImageEncoder(dropout=1.0), "dropout"),
        (lambda: ImageEncoder(flips=-0.1), "`flips` is -0.1"),
        (lambda: ImageEncoder(grays=1.0), "`grays` is 1.0"),
        (lambda: FeatureEncoder(()), "shape"),
        (lambda: FeatureEncoder((3, 0)), "at least 1"),
        (lambda: FeatureEncoder((3,), dropout=float("nan")), "dropout"),
    ],
)
def test_sizes_and_rates_that_cannot_be_used_are_refused(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()


@pytest.mark.parametrize("images", [IMAGES[:, :, :6], IMAGES[..., :1], IMAGES.astype(np.float32), IMAGES[0]])
def test_pictures_of_another_size_or_type_are_refused(images, params):
    with pytest.raises(UsageError, match="uint8"):
        SMALL.apply(params, images)


def test_features_of_another_shape_are_refused():
    encoder = FeatureEncoder((3, 5), M)
    with pytest.raises(UsageError, match=r"\(4, 3, 6\)"):
        encoder.init(jax.random.key(0), np.zeros((4, 3, 6), np.float32))
