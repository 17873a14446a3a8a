"""GAN inversion: the latent whose picture is nearest to a guide, found in three ways.

    encoder               w = mean + E(x), E kept small: near the mean pictures can be edited (e4e)
    encoder+optimisation  from there down |x - G(w)|^2 + |w - (mean + E(G(w)))|^2 (In-domain GAN)
    optimisation          from the mean down |x - G(w)|^2 (the projector of StyleGAN2-ADA)

Tov et al. 2021; Zhu et al. 2020; Karras et al. 2020. One w for all layers, small networks, squared
differences at two scales where those use LPIPS: named as small versions wherever they are shown.

    python -m sdedit train-encoder
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, data, devices, plot, run, train
from common.nn import avg_pool2, space_to_depth
from common.process import to_float, to_uint8
from sdedit import gan
from sdedit.gan import GanConfig, Generator, leaky

# Not shipped: from where the training commands leave them.
GAN, ENCODER = Path("runs/gan/weights.safetensors"), Path("runs/encoder/weights.safetensors")
WAYS = ("encoder", "encoder+optimisation", "optimisation")


class Encoder(nn.Module):
    """x (B, H, W, 3) -> the way from the mean w to w, (B, dim)."""

    config: GanConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, h = self.config, space_to_depth(x, self.config.patch)
        while h.shape[1] > 4:
            h = avg_pool2(leaky(nn.Conv(c.width, (3, 3))(leaky(nn.Conv(c.width, (3, 3))(h)))))
        return nn.Dense(c.dim, kernel_init=nn.initializers.zeros)(h.reshape(len(h), -1))


def mean_w(config: GanConfig, params: dict, n: int = 4096) -> jax.Array:
    """The mean of w over random z, (dim,)."""
    z = jax.random.normal(jax.random.key(0), (n, config.dim))
    return Generator(config).apply({"params": params["generator"]}, z, method="to_w").mean(0)


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared difference of the pixels and of 4 x 4 means, (B,)."""
    coarse = jnp.square(avg_pool2(avg_pool2(x - y)))
    return jnp.square(x - y).mean((1, 2, 3)) + coarse.mean((1, 2, 3))


@dataclass(frozen=True)
class EncoderTrainConfig(run.RunConfig):
    """`python -m sdedit train-encoder`: each field is an option."""

    out: Path = Path("runs/encoder")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    steps: int = 2_000
    gan: Path = GAN  # whose latents are to be found
    near: float = 1e-3  # weight of |E(x)|^2: how near to the mean w stays
    examples: int = 24_000  # pictures used, of the 24,000 there are


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: GanConfig, key: jax.Array) -> dict:
    return Encoder(config).init(key, jnp.zeros((1, config.size, config.size, 3)))["params"]


def make_loss(config: GanConfig, params: dict, mean: jax.Array, near: float) -> train.LossFn:
    """distance(x, G(mean + E(x))) + near |E(x)|^2 of a batch {"image": uint8 (B, H, W, 3)}."""

    def loss_fn(encoder, batch, keys):
        x = to_float(batch["image"])
        away = Encoder(config).apply({"params": encoder}, x)
        y = Generator(config).apply({"params": params["generator"]}, mean[None] + away)
        far, size = distance(x, y).mean(), jnp.square(away).sum(-1).mean()
        return far + near * size, {"distance": far, "away": size}

    return loss_fn


@functools.cache
def compiled(config: GanConfig, way: str, steps: int, rate: float = 0.05):
    """run(params, encoder, mean (dim,), uint8 (B, H, W, 3)) -> uint8 G(w) (B, H, W, 3)."""
    tx = optax.adam(rate)

    def run(params, encoder, mean, images):
        x = to_float(images)
        draw = lambda w: Generator(config).apply({"params": params["generator"]}, w)  # noqa: E731
        find = lambda x: mean[None] + Encoder(config).apply({"params": encoder}, x)  # noqa: E731

        def loss(w):
            y = draw(w)
            far = distance(x, y)
            if way == "encoder+optimisation":
                far = far + jnp.square(w - find(y)).mean(-1)
            return far.sum()

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state)
            return (optax.apply_updates(w, updates), state), None

        start = jnp.broadcast_to(mean, (len(x), *mean.shape))
        w = start if way == "optimisation" else find(x)
        if way != "encoder":
            w = jax.lax.scan(step, (w, tx.init(w)), length=steps)[0][0]
        return to_uint8(draw(w))

    return devices.jit(run)


def invert(
    model: tuple[GanConfig, dict],
    encoder: dict,
    images: np.ndarray,
    way: str,
    *,
    steps: int = 200,
    progress: bool = False,
) -> np.ndarray:
    """The GAN's nearest pictures to uint8 (B, H, W, 3), by one of WAYS."""
    config, params = model
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}, not {way}")
    mean, run = mean_w(config, params), compiled(config, way, steps)
    some = lambda rows, i: run(params, encoder, mean, images[rows])  # noqa: E731
    return devices.in_chunks(some, len(images), 64, "inverting", progress)


def load(path: Path = ENCODER) -> tuple[GanConfig, dict, dict]:
    """(config, encoder, metadata); CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "sdedit.encoder", GanConfig, init_params)


def main(c: EncoderTrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped."""
    run.start(c)
    config, params, _ = gan.load(c.gan)
    images = data.load("scenes", "train", size=config.size)["image"][: c.examples]

    def sample(encoder):
        found = invert((config, params), encoder, images[:8], "encoder")
        return plot.grid(np.concatenate([images[:8], found]), columns=8)

    run.run(c, model="sdedit.encoder", config=config, init=lambda key: init_params(config, key),
            loss_fn=make_loss(config, params, mean_w(config, params), c.near),
            batches={"image": images}, sample=sample, command="train-encoder")  # fmt: skip
