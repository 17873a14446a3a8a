"""A small style-based GAN of the scenes: what SDEdit's rivals edit with.

    w = mapping(z);  G(w): a learned 4 x 4 start, doubled twice, every convolution steered by w

StyleGAN2 (Karras et al. 2020a) with ADA (Karras et al. 2020b): modulated convolutions, skips to
RGB, residual discriminator, logistic loss, R1, augmentations whose probability follows overfitting.
Named "GAN-32" in every table: it is neither paper's network.

    python -m sdedit train-gan
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, data, plot, run, train
from common.nn import avg_pool2, depth_to_space, nearest2, space_to_depth
from common.process import to_float

stop = jax.lax.stop_gradient
normal = nn.initializers.normal
SLOPE = 0.2  # of every leaky ReLU


@dataclass(frozen=True)
class GanConfig:
    size: int = 32  # pixels: 4 patch times a power of 2
    patch: int = 2  # both players see patch x patch pixels as one of more channels: 4 times cheaper
    dim: int = 64  # of z and w
    width: int = 48  # channels of every convolution
    mapping: int = 2  # layers from z to w


PRESETS = {"tiny": GanConfig(dim=8, width=8, mapping=1), "small": GanConfig()}


def leaky(h: jax.Array) -> jax.Array:
    """Leaky ReLU times sqrt 2, which keeps the variance."""
    return nn.leaky_relu(h, SLOPE) * 2**0.5


class ModulatedConv(nn.Module):
    """A convolution whose kernel is scaled by a style per input channel, then to unit length.

    w_ijk = s_i w_ijk,  w_ijk / sqrt(sum_ik w_ijk^2)  (StyleGAN2, eq. 1 and 3), done on the
    activations instead: h s before, times the inverse length after. RGB is not demodulated.
    """

    features: int
    kernel: int = 3
    demodulate: bool = True

    @nn.compact
    def __call__(self, h: jax.Array, w: jax.Array) -> jax.Array:
        C, k = h.shape[-1], self.kernel
        style = nn.Dense(C, bias_init=nn.initializers.ones, name="style")(w)
        kernel = self.param("kernel", normal((k * k * C) ** -0.5), (k, k, C, self.features))
        spec = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            h * style[:, None, None], kernel, (1, 1), "SAME", dimension_numbers=spec
        )
        if self.demodulate:
            square = jnp.square(style) @ jnp.square(kernel).sum((0, 1))
            out = out * jax.lax.rsqrt(square + 1e-8)[:, None, None]
        return out + self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]


class Generator(nn.Module):
    """z (B, dim) -> w (B, dim) by `to_w`; w -> x (B, H, W, 3) in about [-1, 1], not clipped.

    Paper: a noise input at every convolution draws what z does not; here z draws all.
    """

    config: GanConfig

    def setup(self):
        c = self.config
        self.levels = int(np.log2(c.size // c.patch // 4))
        self.map = [nn.Dense(c.dim) for _ in range(c.mapping)]
        self.start = self.param("start", normal(1.0), (4, 4, c.width))
        self.convs = [ModulatedConv(c.width) for _ in range(2 * self.levels + 1)]
        colours = 3 * c.patch**2
        self.rgbs = [ModulatedConv(colours, 1, demodulate=False) for _ in range(self.levels + 1)]

    def to_w(self, z: jax.Array) -> jax.Array:
        h = z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-8)
        for layer in self.map:
            h = leaky(layer(h))
        return h

    def __call__(self, w: jax.Array) -> jax.Array:
        h = jnp.broadcast_to(self.start[None], (len(w), *self.start.shape))
        h = leaky(self.convs[0](h, w))
        p = self.config.patch
        x = depth_to_space(self.rgbs[0](h, w), p)
        for i in range(self.levels):
            h = leaky(self.convs[2 * i + 1](nearest2(h), w))
            h = leaky(self.convs[2 * i + 2](h, w))
            x = nearest2(x) + depth_to_space(self.rgbs[i + 1](h, w), p)
        return x

    def draw(self, z: jax.Array) -> jax.Array:
        return self(self.to_w(z))


class Discriminator(nn.Module):
    """x (B, H, W, 3) -> logits (B,): residual blocks down to 4 x 4, then how alike the batch is."""

    config: GanConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config

        def conv(h, k=3):
            return nn.Conv(c.width, (k, k), kernel_init=normal((k * k * h.shape[-1]) ** -0.5))(h)

        h = leaky(conv(space_to_depth(x, c.patch), 1))
        while h.shape[1] > 4:
            skip = avg_pool2(conv(h, 1))
            h = (leaky(conv(avg_pool2(leaky(conv(h))))) + skip) * 0.5**0.5
        # Standard deviation over groups of 4: a generator that repeats itself is seen by it.
        groups = h.reshape(-1, min(4, len(h)), *h.shape[1:])
        spread = jnp.sqrt(groups.var(1) + 1e-8).mean((1, 2, 3))
        spread = jnp.repeat(spread, groups.shape[1])[:, None, None, None]
        h = jnp.concatenate([h, jnp.broadcast_to(spread, (*h.shape[:3], 1))], -1)
        h = leaky(conv(h)).reshape(len(h), -1)
        return nn.Dense(1)(leaky(nn.Dense(c.width)(h)))[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def init_generator(config: GanConfig, key: jax.Array) -> dict:
    """{"generator"}: what weights hold, since nothing else is needed once it is trained."""
    z = jnp.zeros((1, config.dim))
    return {"generator": Generator(config).init(key, z, method="draw")["params"]}


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: GanConfig, key: jax.Array) -> dict:
    """{"generator", "discriminator", "p": probability of augmentation}."""
    g_key, d_key = jax.random.split(key)
    x = jnp.zeros((4, config.size, config.size, 3))
    judge = Discriminator(config).init(d_key, x)["params"]
    return init_generator(config, g_key) | {"discriminator": judge, "p": jnp.zeros(())}


def augment(keys: jax.Array, x: jax.Array, p: jax.Array) -> jax.Array:
    """Each picture, with probability p each: mirrored, moved by up to 1/8, darker or brighter.

    Differentiable. As long as p < 1 the generator learns the pictures as they were (ADA, 2.2).
    """
    size = x.shape[1]

    def one(key, x):
        which, shift_key, light_key = jax.random.split(key, 3)
        mirror, move, light = jax.random.uniform(which, (3,)) < p
        x = jnp.where(mirror, x[:, ::-1], x)
        by = jax.random.randint(shift_key, (2,), -size // 8, size // 8 + 1)
        x = jnp.where(move, jnp.roll(x, by, (0, 1)), x)
        return x + jnp.where(light, 0.2 * jax.random.normal(light_key), 0.0)

    return jax.vmap(one)(keys, x)


@dataclass(frozen=True)
class GanTrainConfig(run.RunConfig):
    """`python -m sdedit train-gan`: each field is an option."""

    out: Path = Path("runs/gan")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    steps: int = 10_000
    batch_size: int = 16
    lr: float = 6e-4  # Adam, betas 0 and 0.99; constant
    preset: Literal[tuple(PRESETS)] = "small"
    r1: float = 0.05  # weight of the gradient penalty, gamma / 2: little, at so few pixels
    target: float = 0.6  # of mean sign D(real), which p is to keep
    adapt: float = 500_000.0  # pictures in which p can go from 0 to 1
    examples: int = 24_000  # pictures used, of the 24,000 there are


def make_loss(config: GanConfig, c: GanTrainConfig) -> train.LossFn:
    """Both players' losses of a batch {"image": uint8 (B, H, W, 3)}, and p's, in one sum.

    No gradient of one reaches the other's weights. G: softplus(-D(G)); D: softplus(D(G)) +
    softplus(-D(x)) + r1 |grad D(x)|^2; p: rises while mean sign D(x) is above target.
    Paper: players take turns, and R1 is lazy; here they step at once, R1 on a quarter of the batch.
    """
    judge = lambda params, x: Discriminator(config).apply({"params": params}, x)  # noqa: E731

    def loss_fn(params, batch, keys):
        x = to_float(batch["image"])
        z_keys, a_keys, b_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
        z = jax.vmap(lambda k: jax.random.normal(k, (config.dim,)))(z_keys)
        fake = Generator(config).apply({"params": params["generator"]}, z, method="draw")
        p = jnp.clip(stop(params["p"]), 0, 0.8)
        fake, real = augment(a_keys, fake, p), augment(b_keys, x, p)
        g = nn.softplus(-judge(stop(params["discriminator"]), fake)).mean()
        on_fake = judge(params["discriminator"], stop(fake))
        on_real = judge(params["discriminator"], real)
        few = real[: max(1, len(real) // 4)]
        slope = jax.grad(lambda x: judge(params["discriminator"], x).sum())(few)
        r1 = jnp.square(slope).sum((1, 2, 3)).mean()
        d = nn.softplus(on_fake).mean() + nn.softplus(-on_real).mean() + c.r1 * r1
        sign = stop(jnp.sign(on_real).mean())
        fall = jnp.sign(c.target - sign)  # the gradient of p: it is let down, or up, within 0..0.8
        at_end = jnp.where(fall > 0, stop(params["p"]) <= 0, stop(params["p"]) >= 0.8)
        towards = jnp.where(at_end, 0, fall) * (params["p"] - stop(params["p"]))
        metrics = {"g": g, "d": d, "r1": r1, "sign": sign, "p": p}
        return g + d + towards, metrics

    return loss_fn


def optimiser(c: GanTrainConfig) -> optax.GradientTransformation:
    """Adam for the players, at one rate; p moves by batch_size / adapt a step."""

    label = lambda params: {k: "p" if k == "p" else "players" for k in params}  # noqa: E731
    players = optax.adam(c.lr, b1=0.0, b2=0.99)
    chance = optax.sgd(c.batch_size / c.adapt)
    return optax.multi_transform({"players": players, "p": chance}, label)


def load(path: Path) -> tuple[GanConfig, dict, dict]:
    """(config, {"generator": params}, metadata); CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "sdedit.gan", GanConfig, init_generator)


def main(c: GanTrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped."""
    run.start(c)
    config = PRESETS[c.preset]
    images = data.load("scenes", "train", size=config.size)["image"][: c.examples]
    z = np.random.default_rng(c.seed).standard_normal((32, config.dim), np.float32)
    draw = jax.jit(lambda p: Generator(config).apply({"params": p}, z, method="draw"))

    def sample(params):
        return plot.grid(np.clip(np.asarray(draw(params["generator"])), -1, 1), columns=8)

    run.run(c, model="sdedit.gan", config=config, init=lambda key: init_params(config, key),
            loss_fn=make_loss(config, c), batches={"image": images}, tx=optimiser(c),
            sample=sample, command="train-gan")  # fmt: skip
    params, metadata = checkpoint.load_weights(c.out / "weights.safetensors")
    metadata = {k: metadata[k] for k in ("model", "config", "recipe")}
    alone = {"generator": params["generator"]}
    checkpoint.save_weights(c.out / "weights.safetensors", alone, metadata)
