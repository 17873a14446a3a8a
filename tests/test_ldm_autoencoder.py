"""First stages: shapes, published sizes, the posterior, the codebook."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made
from numpy.testing import assert_allclose, assert_array_equal

from common import checkpoint
from ldm import autoencoder
from ldm.autoencoder import (
    IDENTITY,
    Autoencoder,
    Encoder,
    code_numbers,
    draw,
    init_params,
    nearest,
    reconstruct,
    straight_through,
)
from ldm.presets import FIRST_STAGES, of_factor

TINY, TINY_VQ = FIRST_STAGES["tiny"], FIRST_STAGES["tiny_vq"]
PUBLISHED = {  # parameters of the released models, without their losses
    "paper_kl_f4": 55_312_063,
    "paper_kl_f8": 83_653_863,
    "paper_kl_f16": 69_610_963,
    "paper_kl_f32": 103_880_131,
    "paper_vq_f4": 55_322_782,
    "paper_vq_f8": 67_717_295,
}


def apply(config, params, x, method=None):
    run = jax.jit(lambda p, x: Autoencoder(config).apply({"params": p}, x, method=method))
    return run(params, x)


@pytest.fixture(scope="module")
def vq():
    return made(lambda key: init_params(TINY_VQ, key))


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("f", [1, 2, 4, 8, 16])
def test_every_factor_gives_latents_that_much_smaller_and_pictures_back(f, kind):
    config = of_factor(f, kind)
    assert config.factor == f

    def there_and_back(key):
        params = init_params(config, key)
        x = jnp.zeros((2, 128, 64, 3))  # not only of the size that it was trained on
        z, logvar = Autoencoder(config).apply({"params": params}, x, method="encode")
        return z, logvar, Autoencoder(config).apply({"params": params}, z, method="decode")

    z, logvar, x = jax.eval_shape(there_and_back, jax.random.key(0))
    assert z.shape == (2, 128 // f, 64 // f, config.channels) and x.shape == (2, 128, 64, 3)
    assert (logvar is not None) == (kind == "kl" and f > 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_in_the_released_first_stages(name):
    shapes = jax.eval_shape(lambda: init_params(FIRST_STAGES[name], jax.random.key(0)))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["small", "small_vq"])
def test_the_small_first_stage_fits_in_five_megabytes(name):
    shapes = jax.eval_shape(lambda: init_params(FIRST_STAGES[name], jax.random.key(0)))
    assert 2 * sum(p.size for p in jax.tree.leaves(shapes)) < 5_000_000


def test_the_encoder_pads_right_and_bottom_alone():
    """10 pixels become 5 and then 2; padded on both sides, as in the U-Net, they become 3."""
    config = replace(TINY, patch=1, multipliers=(1, 1, 1))
    shape = jax.eval_shape(
        lambda: Encoder(config).init_with_output(jax.random.key(0), jnp.zeros((1, 10, 10, 3)))[0]
    ).shape
    assert shape == (1, 2, 2, 8)


def test_a_posterior_is_drawn_with_its_mean_and_its_deviation():
    mean, logvar = jnp.full((4000, 1, 1, 2), 3.0), jnp.full((4000, 1, 1, 2), 2 * np.log(0.5))
    keys = jax.random.split(jax.random.key(0), 4000)
    z = np.asarray(draw(mean, logvar, keys))
    assert abs(z.mean() - 3) < 0.03 and abs(z.std() - 0.5) < 0.02
    assert len(np.unique(z)) > 7900  # no two pictures share their noise
    assert_array_equal(draw(mean, logvar, None), mean)
    assert_array_equal(draw(mean, None, None), mean)


def test_the_log_variance_is_clamped():
    params = made(lambda key: init_params(TINY, key))
    bias = jnp.array([0.0, 0, 0, 0, 1000, -1000, 0, 0])
    params = {**params, "quant_conv": {**params["quant_conv"], "bias": bias}}
    mean, logvar = apply(TINY, params, jnp.zeros((1, 32, 32, 3)), "encode")
    assert mean.shape == (1, 8, 8, 4)
    assert (logvar[..., 0] == 20).all() and (logvar[..., 1] == -30).all()
    assert np.abs(logvar[..., 2:]).max() < 20


def test_the_nearest_code_is_the_nearest():
    rng = np.random.default_rng(0)
    codebook, z = rng.normal(size=(7, 3)), rng.normal(size=(2, 4, 5, 3))
    codes, indices = nearest(jnp.float32(codebook), jnp.float32(z))
    distance = np.square(z[..., None, :] - codebook).sum(-1)
    assert_array_equal(indices, distance.argmin(-1))
    assert_allclose(codes, codebook[distance.argmin(-1)], rtol=1e-6)


def test_straight_through_gives_the_codes_and_hands_the_gradient_to_z():
    z, codes, w = jax.random.normal(jax.random.key(0), (3, 2, 4))
    assert_allclose(straight_through(z, codes), codes, atol=1e-6)
    by_z, by_codes = jax.grad(lambda z, c: (w * straight_through(z, c)).sum(), (0, 1))(z, codes)
    assert_array_equal(by_z, w)
    assert_array_equal(by_codes, np.zeros_like(w))


def test_vq_gives_what_is_not_quantised_and_decodes_what_is(vq):
    x = jax.random.normal(jax.random.key(2), (1, 32, 32, 3))
    z, logvar = apply(TINY_VQ, vq, x, "encode")
    assert logvar is None
    codes, _ = nearest(vq["codebook"], z)
    assert np.abs(z - codes).max() > 1e-3
    decoded = apply(TINY_VQ, vq, z, "decode")
    assert_array_equal(decoded, apply(TINY_VQ, vq, codes, "decode"))
    whole = apply(TINY_VQ, vq, x)
    assert_allclose(whole.x, decoded, atol=1e-5)
    assert_allclose(whole.codes, codes)


def test_pictures_are_reconstructed_in_chunks_each_by_itself(vq):
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    back, numbers = (f(TINY_VQ, vq, images) for f in (reconstruct, code_numbers))
    assert back.shape == images.shape and back.dtype == np.uint8
    assert numbers.shape == (70, 8, 8) and 0 <= numbers.min() < numbers.max() < 16
    again = reconstruct(TINY_VQ, vq, np.resize(images[64:], (64, 32, 32, 3)))[:6]
    assert np.abs(again.astype(int) - back[64:]).max() <= 1
    assert reconstruct(IDENTITY, {}, images) is images


def test_weights_are_saved_and_those_of_another_kind_refused(vq, tmp_path):
    path = tmp_path / "weights.safetensors"
    config = {**vars(TINY_VQ)}
    checkpoint.save_weights(path, vq, {"model": "ldm.autoencoder", "config": config})
    loaded, params, _ = autoencoder.load(path)
    assert loaded == TINY_VQ
    assert_allclose(params["codebook"], vq["codebook"], atol=1e-3)
    checkpoint.save_weights(path, vq, {"model": "ldm", "config": config})
    with pytest.raises(checkpoint.CheckpointError, match="weights of ldm, not of ldm.autoencoder"):
        autoencoder.load(path)
