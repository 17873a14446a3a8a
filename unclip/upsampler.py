"""The second stage: 32 -> 64 px from the small picture alone, which training blurs a little.

Neither caption nor embedding nor guidance, and no attention: "we observed no benefit from
conditioning the upsamplers on the caption". Ramesh et al. 2022, section 2.1 and appendix C.
"""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, data, devices, plot, run, sampler, train
from common.devices import in_chunks
from common.guidance import Denoiser
from common.process import to_float, to_uint8
from common.unet import UNet, UNetConfig
from glide import model as glide
from glide.loss import denoising_loss
from glide.model import make_schedule, predict

STEPS = 27  # of DDIM; the paper's number for its first upsampler
SIGMA = 0.6  # of the blur, kernel 3 x 3


@dataclass(frozen=True)
class UpsamplerConfig:
    """Defaults are the paper's 64 -> 256 px upsampler of 700 million parameters."""

    size: int = 256  # pixels, of the large picture
    low: int = 64  # pixels, of the small one
    T: int = 1000
    schedule: str = "cosine"
    prediction: str = "eps"
    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            out_channels=6,
            width=320,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention=(),
            middle_attention=False,
        )
    )

    @property
    def channels(self) -> int:
        return self.unet.out_channels // 2


_plain = {"attention": (), "middle_attention": False, "context": None, "patch": 4}
SMALL = UpsamplerConfig(64, 32, prediction="velocity", unet=replace(glide.SMALL.unet, **_plain))
TINY = replace(SMALL, unet=replace(glide.TINY.unet, **_plain))
PRESETS = {"tiny": TINY, "small": SMALL, "paper": UpsamplerConfig()}


@dataclass(frozen=True)
class UpsamplerTrainConfig(run.RunConfig):
    """`python -m unclip train-upsampler`: each field is an option."""

    out: Path = Path("runs/unclip_upsampler")  # checkpoints, samples, weights.safetensors
    steps: int = 4_000
    preset: Literal[tuple(PRESETS)] = "small"  # which model
    examples: int = 24_000  # pictures used, of the 24,000 there are


def blur(x: jax.Array, sigma: float = SIGMA) -> jax.Array:
    """Gaussian blur 3 x 3 of x (B, H, W, C), borders repeated."""
    w = jnp.exp(-0.5 * (jnp.arange(-1, 2) / sigma) ** 2)
    a, b = w[0] / w.sum(), w[1] / w.sum()
    for axis in (1, 2):
        pads = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        p, n = jnp.pad(x, pads, mode="edge"), x.shape[axis]
        part = [jax.lax.slice_in_dim(p, i, i + n, axis=axis) for i in range(3)]
        x = a * part[0] + b * part[1] + a * part[2]
    return x


def enlarge(low_res: jax.Array, size: int) -> jax.Array:
    """Bicubic, the same in training and sampling: (B, h, w, 3) -> (B, size, size, 3)."""
    return jax.image.resize(low_res, (len(low_res), size, size, low_res.shape[-1]), "bicubic")


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: UpsamplerConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, config.channels))
    return UNet(config.unet).init(key, x, jnp.ones(1, jnp.int32), channels=x)["params"]


def denoiser(config: UpsamplerConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction; cond is {"channels": what `enlarge` made}."""

    def denoise(x, t, cond):
        return predict(config, UNet(config.unet).apply({"params": params}, x, t, **cond), x, t)

    return denoise


def make_loss(config: UpsamplerConfig) -> train.LossFn:
    """Hybrid loss of a batch {"image": uint8 (B, H, W, 3)}: small pictures are blurred half the
    time.

    Paper: does not say how often. In half of the examples both a sharp and a soft small picture,
    as the decoder may draw them, are known.
    """
    factor = config.size // config.low

    def loss_fn(params, batch, keys):
        noise_keys, blur_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        x0 = to_float(batch["image"])
        B, H, W, C = x0.shape
        low = x0.reshape(B, H // factor, factor, W // factor, factor, C).mean((2, 4))
        soft = jax.vmap(jax.random.bernoulli)(blur_keys).reshape(B, 1, 1, 1)
        given = enlarge(jnp.where(soft, blur(low), low), config.size)
        apply = lambda x, t: UNet(config.unet).apply(  # noqa: E731
            {"params": params}, x, t, channels=given
        )
        return denoising_loss(config, apply, x0, noise_keys, 0.0)

    return loss_fn


@functools.cache
def compiled(config: UpsamplerConfig):
    """run(params, uint8 (B, h, w, 3), key) -> uint8 (B, H, W, 3)."""
    schedule, ts = make_schedule(config), sampler.timesteps(config.T, min(STEPS, config.T))

    def run(params, low_res, key):
        x_key, step_key = jax.random.split(key)
        # Nothing is blurred here: the decoder's pictures are soft enough.
        cond = {"channels": enlarge(to_float(low_res), config.size)}
        x = sampler.noise_like(x_key, cond["channels"])
        denoise = denoiser(config, params)
        return to_uint8(
            sampler.sample(denoise, schedule, x, ts, cond, step_key, x0_fn=sampler.clip_x0)
        )

    return devices.jit(run)


def upsample(
    config: UpsamplerConfig, params: dict, images: np.ndarray, *, seed: int = 0, chunk: int = 64
) -> np.ndarray:
    """Pictures uint8 (B, h, w, 3) -> uint8 (B, H, W, 3)."""
    key = jax.random.key(seed)

    def run(rows, i):
        return compiled(config)(params, images[rows], jax.random.fold_in(key, i))

    return in_chunks(run, len(images), chunk, "upsampling", False)


def load(path: Path) -> tuple[UpsamplerConfig, dict, dict]:
    """(config, params, metadata) of a released weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "unclip.upsampler", UpsamplerConfig, init_params)


def main(c: UpsamplerTrainConfig) -> None:
    """Train the upsampler from scratch, or go on where `out` stopped."""
    run.start(c)
    config = PRESETS[c.preset]
    images = data.load("scenes", "train", size=config.size)["image"][: c.examples]
    small = data.load("scenes", "test", size=config.low)["image"][:8]
    run.run(
        c,
        model="unclip.upsampler",
        config=config,
        init=lambda key: init_params(config, key),
        loss_fn=make_loss(config),
        batches={"image": images},
        sample=lambda params: plot.grid(upsample(config, params, small), columns=4),
        command="train-upsampler",
    )
