"""The small GAN and its inversions: the layers, who learns from what, and that a search finds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sdedit import gan, invert
from sdedit.gan import GanTrainConfig, Generator, ModulatedConv

CONFIG = replace(gan.PRESETS["tiny"], size=16)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: gan.init_params(CONFIG, key))(jax.random.key(0))


def test_a_modulated_convolution_has_a_kernel_of_unit_length_for_every_style():
    rng = np.random.default_rng(0)
    h, w = (rng.standard_normal(s).astype(np.float32) for s in ((2, 5, 5, 3), (2, 4)))
    layer = ModulatedConv(6)
    params = layer.init(jax.random.key(0), h, w)["params"]
    got = layer.apply({"params": params}, h, w)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    style = w @ p["style"]["kernel"] + p["style"]["bias"]
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i in range(2):
        kernel = p["kernel"] * style[i][:, None]
        kernel /= np.sqrt(np.square(kernel).sum((0, 1, 2)))
        windows = np.lib.stride_tricks.sliding_window_view(padded[i], (3, 3), (0, 1))
        assert_allclose(got[i], np.einsum("yxcij,ijcf->yxf", windows, kernel), atol=1e-5)


@pytest.mark.slow
def test_each_player_learns_from_its_own_loss_and_the_chance_from_the_signs(params):
    c = GanTrainConfig()
    loss = gan.make_loss(CONFIG, c)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    keys = jax.random.split(jax.random.key(1), 8)

    @jax.jit
    def grads(params):
        def of(pick):
            value = lambda p: pick(*loss(p, {"image": images}, jax.random.clone(keys)))  # noqa: E731
            return jax.grad(value)(params)

        return of(lambda total, m: total), of(lambda total, m: m["g"]), of(lambda total, m: m["d"])

    for p, sign in ((0.3, None), (0.0, "down"), (0.8, "up")):
        both, g, d = grads({**params, "p": jnp.float32(p)})
        jax.tree.map(
            lambda a, b: assert_allclose(a, b, atol=1e-6), both["generator"], g["generator"]
        )
        jax.tree.map(
            lambda a, b: assert_allclose(a, b, atol=1e-6), both["discriminator"], d["discriminator"]
        )
        assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(d["generator"]))
        assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(g["discriminator"]))
        slope = float(both["p"])
        assert abs(slope) == 1 if sign is None else slope <= 0 if sign == "down" else slope >= 0
    total, m = loss({**params, "p": jnp.float32(0.3)}, {"image": images}, jax.random.clone(keys))
    assert np.sign(c.target - m["sign"]) == float(grads({**params, "p": jnp.float32(0.3)})[0]["p"])


def test_augmentation_is_off_at_0_and_changes_all_pictures_at_1():
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3))
    keys = jax.random.split(jax.random.key(1), 6)
    assert_array_equal(gan.augment(keys, x, 0.0), x)
    moved = np.asarray(gan.augment(jax.random.clone(keys), x, 1.0))
    assert (moved != x).reshape(6, -1).any(1).all()
    light = (moved - moved.mean((1, 2, 3), keepdims=True)).reshape(6, -1)
    was = (x - x.mean((1, 2, 3), keepdims=True)).reshape(6, -1)
    assert_allclose(np.sort(light, 1), np.sort(was, 1), atol=1e-5)  # moved, mirrored, not redrawn


def test_a_batch_whose_pictures_are_alike_is_told_from_one_whose_are_not(params):
    judge = lambda x: gan.Discriminator(CONFIG).apply({"params": params["discriminator"]}, x)  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    alone, alike = judge(x)[0], judge(jnp.repeat(x[:1], 4, axis=0))[0]
    assert abs(float(alone - alike)) > 1e-4


@pytest.mark.slow
def test_every_way_of_inversion_comes_nearer_than_the_mean_where_it_searches(params):
    w = 2 * jax.random.normal(jax.random.key(3), (3, CONFIG.dim))
    draw = jax.jit(lambda w: Generator(CONFIG).apply({"params": params["generator"]}, w))
    images = np.asarray(gan_pixels(draw(w)))
    encoder = jax.jit(lambda key: invert.init_params(CONFIG, key))(jax.random.key(1))
    mean = draw(invert.mean_w(CONFIG, params)[None])
    off = lambda y: np.square(y.astype(float) - images).mean()  # noqa: E731
    found = {way: invert.invert((CONFIG, params), encoder, images, way, steps=60)
             for way in invert.WAYS}  # fmt: skip
    # An untrained encoder says nothing: its answer is the mean picture, where the searches begin.
    assert_array_equal(found["encoder"], np.broadcast_to(gan_pixels(mean), images.shape))
    assert off(found["optimisation"]) < 0.6 * off(found["encoder"])
    assert off(found["optimisation"]) <= off(found["encoder+optimisation"]) < off(found["encoder"])
    with pytest.raises(ValueError, match="way must be one of encoder"):
        invert.invert((CONFIG, params), encoder, images, "magic")


def gan_pixels(x):
    return np.asarray(jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8))
