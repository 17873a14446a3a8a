"""What first stages are trained with, against values by hand, and who gets whose gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made
from numpy.testing import assert_allclose, assert_array_equal

from common import train
from ldm import losses
from ldm.autoencoder import Autoencoder
from ldm.presets import FIRST_STAGES
from ldm.train_autoencoder import STEP, AutoencoderTrainConfig, init, make_loss, optimiser

TRAIN = AutoencoderTrainConfig(steps=30, lr=2e-3, warmup=5, disc_start=15, disc_width=4)
TRAIN = replace(TRAIN, disc_layers=1)
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (4, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)


def keys(n=4, step=0):
    return train.example_keys(jax.random.key(7), step, n)


def test_kl_by_hand():
    mean, logvar = rng.normal(size=(2, 3, 4, 5, 2))
    by_hand = [
        sum(0.5 * (m**2 + np.exp(v) - 1 - v) for m, v in zip(a.ravel(), b.ravel(), strict=True))
        for a, b in zip(mean, logvar, strict=True)
    ]
    assert_allclose(losses.gaussian_kl(jnp.float32(mean), jnp.float32(logvar)), by_hand, rtol=1e-5)


@pytest.mark.parametrize(
    "beta_on, on_z, on_codes", [("codebook", 1, 0.25), ("commitment", 0.25, 1)]
)
def test_vq_loss_by_hand_and_the_two_places_of_beta(beta_on, on_z, on_codes):
    z, codes = rng.normal(size=(2, 3, 4, 2))
    loss = lambda z, c: losses.vq_loss(z, c, beta_on=beta_on)  # noqa: E731
    args = jnp.float32(z), jnp.float32(codes)
    assert_allclose(loss(*args), 1.25 * np.mean((z - codes) ** 2), rtol=1e-5)
    by_z, by_codes = jax.grad(loss, (0, 1))(*args)
    assert_allclose(by_z, on_z * 2 * (z - codes) / z.size, rtol=1e-4, atol=1e-7)
    assert_allclose(by_codes, on_codes * 2 * (codes - z) / z.size, rtol=1e-4, atol=1e-7)


def test_perplexity_counts_the_codes_in_use():
    assert_allclose(losses.perplexity(jnp.arange(16).reshape(4, 4), 16), 16, rtol=1e-5)
    assert_allclose(losses.perplexity(jnp.full((4, 4), 3), 16), 1, rtol=1e-5)
    assert_allclose(losses.perplexity(jnp.array([0, 0, 0, 5]), 16),
                    np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), rtol=1e-5)  # fmt: skip


def test_hinge_by_hand():
    real, fake = jnp.array([2.0, 0.5, -1.0]), jnp.array([-2.0, -0.25, 3.0])
    assert_allclose(losses.hinge(real, fake), 0.5 * ((0 + 0.5 + 2) / 3 + (0 + 0.75 + 4) / 3))


def test_the_perceptual_distance_sees_blur_and_each_picture_by_itself():
    x = jnp.asarray(IMAGES[:2], jnp.float32) / 127.5 - 1
    blurred = sum(jnp.roll(x, (i, j), (1, 2)) for i in range(-2, 3) for j in range(-2, 3)) / 25
    y = jnp.stack([blurred[0], x[1]])
    distance = losses.perceptual_distance(x, y)
    assert distance.shape == (2,) and distance[0] > 0.01 and distance[1] == 0
    assert_allclose(losses.perceptual_distance(y, x), distance, rtol=1e-6)
    # A change that no eye sees is near nothing: flat regions are not all noise.
    noise = 1e-3 * jax.random.normal(jax.random.key(0), x.shape)
    assert losses.perceptual_distance(x, x + noise).max() < 0.02 * distance[0]


@pytest.mark.parametrize("layers, out", [(1, 30), (2, 14), (3, 6)])
def test_the_discriminator_judges_patches(layers, out):
    shape = jax.eval_shape(lambda: losses.PatchDiscriminator(8, layers).init_with_output(
        jax.random.key(0), jnp.zeros((2, 64, 64, 3)))[0]).shape  # fmt: skip
    assert shape == (2, out, out, 1)


def test_the_discriminator_has_as_many_parameters_as_patchgan():
    """Convolutions without bias under their norms, whose gain and shift remain."""
    shapes = jax.eval_shape(
        lambda: losses.PatchDiscriminator().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    )
    widths, total = [3, 64, 128, 256, 512], 0
    for i, o in zip(widths[:-1], widths[1:], strict=True):
        total += 16 * i * o + (o if i == 3 else 2 * o)
    assert sum(p.size for p in jax.tree.leaves(shapes)) == total + 16 * 512 + 1


def test_the_adaptive_weight_is_the_ratio_of_the_two_gradients():
    """Against finite differences in float64, entry by entry of the kernel."""
    features, target = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    kernel = rng.normal(size=(4, 3))
    r = lambda y, np=jnp: np.square(y - target).sum()  # noqa: E731
    g = lambda y, np=jnp: -np.sin(y).mean()  # noqa: E731

    def norm(loss):
        total = 0
        for i in np.ndindex(kernel.shape):
            step = np.zeros_like(kernel)
            step[i] = 1e-6
            rise = loss(features @ (kernel + step), np) - loss(features @ (kernel - step), np)
            total += (rise / 2e-6) ** 2
        return np.sqrt(total)

    last_layer = lambda kernel: jnp.float32(features) @ kernel  # noqa: E731
    weight = losses.adaptive_weight(r, g, last_layer, jnp.float32(kernel))
    assert_allclose(weight, norm(r) / (norm(g) + 1e-4), rtol=1e-4)
    nothing = lambda y: 0 * y.sum()  # noqa: E731
    huge = lambda y: 1e6 * r(y)  # noqa: E731
    assert losses.adaptive_weight(huge, nothing, last_layer, jnp.float32(kernel)) == 1e4
    assert losses.adaptive_weight(nothing, g, last_layer, jnp.float32(kernel)) == 0
    slope = jax.grad(lambda k: losses.adaptive_weight(r, g, last_layer, k))(jnp.float32(kernel))
    assert_array_equal(slope, np.zeros_like(kernel))


@pytest.fixture(scope="module")
def both():
    """run(params) -> metrics, gradients of loss, judgement and adversarial; of a tiny KL stage."""
    config = FIRST_STAGES["tiny"]
    loss_fn = make_loss(config, TRAIN)
    params = made(lambda key: init(config, TRAIN, key))

    @jax.jit
    def run(params):
        def losses_of(params):
            loss, metrics = loss_fn(params, {"image": IMAGES}, keys())
            return (loss, metrics["judgement"], metrics["adversarial"]), metrics

        _, pull, metrics = jax.vjp(losses_of, params, has_aux=True)  # one pass forth for all three
        return metrics, *(pull(tuple(row))[0] for row in jnp.eye(3))

    return params, run


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_neither_loss_sends_its_gradient_to_the_others_weights(both):
    params, run = both
    metrics, _, judged, fooled = run({**params, "step": jnp.float32(STEP * 15)})
    assert largest(judged["autoencoder"]) == 0 < largest(judged["discriminator"])
    assert largest(fooled["discriminator"]) == 0 < largest(fooled["autoencoder"])
    assert metrics["weight"] > 0


@pytest.mark.slow
def test_the_discriminator_is_not_heard_and_does_not_learn_before_its_start(both):
    params, run = both
    for step, heard in ((14, False), (15, True)):
        metrics, grads, *_ = run({**params, "step": jnp.float32(STEP * step)})
        assert (metrics["weight"] > 0) == heard == (largest(grads["discriminator"]) > 0)
        assert largest(grads["autoencoder"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_vq"])
def test_kl_stages_sum_over_pixels_and_vq_stages_average(name):
    """1e-6 belongs to the two sums; the VQ terms to the two means."""
    config = FIRST_STAGES[name]
    c = replace(TRAIN, perceptual=0.0, disc_start=100)
    params = made(lambda key: init(config, c, key)) | {"step": jnp.zeros(())}
    loss = jax.jit(make_loss(config, c))(params, {"image": IMAGES}, keys())[0]
    x = jnp.asarray(IMAGES, jnp.float32) / 127.5 - 1
    whole = jax.jit(lambda p: Autoencoder(config).apply({"params": p}, x, keys()))
    out = jax.tree.map(lambda a: np.asarray(a, np.float64), whole(params["autoencoder"]))
    error = np.abs(np.asarray(x, np.float64) - out.x)
    if name == "tiny":
        kl = 0.5 * (out.z**2 + np.exp(out.logvar) - 1 - out.logvar).sum((1, 2, 3)).mean()
        assert_allclose(loss, error.sum((1, 2, 3)).mean() + 1e-6 * kl, rtol=1e-5)
    else:
        assert_allclose(loss, error.mean() + 1.25 * np.mean((out.z - out.codes) ** 2), rtol=1e-5)


@pytest.mark.slow
def test_a_first_stage_learns_a_batch_in_sixty_steps():
    config = replace(FIRST_STAGES["tiny_vq"], width=16)  # 8 channels need a hundred
    c = replace(TRAIN, steps=60, lr=5e-3, disc_start=50)
    tx = optimiser(c)
    step = jax.jit(train.make_train_step(make_loss(config, c), tx))
    state = train.init_state(lambda key: init(config, c, key), tx, jax.random.key(0))
    before, psnr = state.params["discriminator"], []
    for i in range(c.steps):
        state, metrics = step(state, {"image": IMAGES}, keys(step=i))
        psnr.append(float(metrics["psnr"]))
        moved = largest(jax.tree.map(jnp.subtract, state.params["discriminator"], before))
        assert (moved > 0) == (i >= c.disc_start)
    assert psnr[-1] > psnr[0] + 1
    assert state.params["step"] == c.steps * STEP
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
