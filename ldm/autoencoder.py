"""First stages: pictures to small latents and back, one with a KL term, one with a codebook.

    kl    x -> mean, logvar (B, H/f, W/f, C),  z = mean + exp(logvar / 2) eps          -> x'
    vq    x -> z (B, H/f, W/f, C),             nearest codes of z, straight-through    -> x'

The diffusion model learns z, of VQ before it is quantised: the quantiser is the decoder's first
layer. Rombach et al. 2022, section 3.1 and appendix G; blocks as in latent-diffusion's model.py.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, devices
from common.nn import (
    AttentionBlock,
    GroupNorm,
    conv3,
    depth_to_space,
    nearest2,
    space_to_depth,
    torch_init,
)
from common.process import to_float, to_uint8

EPS = 1e-6  # of every GroupNorm
PATCH_FEATURES = 8  # channels in front of the full-resolution output convolution of a patch stem
CHUNK = 64  # pictures in one call


@dataclass(frozen=True)
class AutoencoderConfig:
    """A first stage. Defaults are kl-f8, Stable Diffusion's, of 84 million parameters."""

    kind: str = "kl"  # "kl", "vq", or "identity": the pixels themselves, no weights (LDM-1)
    size: int = 256  # pixels it is trained on; it takes any multiple of its factor
    channels: int = 4  # of the latent
    codes: int = 16_384  # of the codebook ("vq")
    width: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # of width, one per level; each halves the size
    blocks: int = 2  # ResBlocks a level of the encoder, one more in the decoder
    attention: tuple[int, ...] = ()  # downsampling factors that have attention
    middle_attention: bool = True  # vq-f4-noattn has none
    groups: int = 32  # of every GroupNorm
    patch: int = 1  # space-to-depth stem of p x p pixels; ours, for speed on CPU
    dtype: str = "float32"  # of the computation; parameters stay float32

    @property
    def factor(self) -> int:
        """f: pixels along a side of one latent position."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def encoded(self) -> int:
        return self.channels * (2 if self.kind == "kl" else 1)  # mean and logvar


class ResBlock(nn.Module):
    """Twice norm, swish, convolution; + skip. No time enters, and it does not start at zero."""

    features: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for i in (1, 2):
            h = nn.silu(GroupNorm(self.groups, EPS, name=f"norm{i}")(h))
            h = conv3(self.features, self.dtype, name=f"conv{i}")(h)
        return h + (x if x.shape[-1] == self.features else _conv1(self.features, self.dtype)(x))


def _conv1(features: int, dtype: str) -> nn.Conv:
    return nn.Conv(features, (1, 1), dtype=dtype, kernel_init=torch_init)


def _level(c: AutoencoderConfig, h: jax.Array, level: int, blocks: int) -> jax.Array:
    for _ in range(blocks):
        h = ResBlock(int(c.multipliers[level] * c.width), c.groups, c.dtype)(h)
        if 2**level in c.attention:
            h = AttentionBlock(1, c.groups, EPS, c.dtype)(h)
    return h


def _middle(c: AutoencoderConfig, h: jax.Array) -> jax.Array:
    h = ResBlock(h.shape[-1], c.groups, c.dtype)(h)
    if c.middle_attention:
        h = AttentionBlock(1, c.groups, EPS, c.dtype)(h)  # one head as wide as h
    return ResBlock(h.shape[-1], c.groups, c.dtype)(h)


class Encoder(nn.Module):
    """x (B, H, W, 3) -> (B, H/f, W/f, C), or 2C with the log variance."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        h = space_to_depth(x.astype(c.dtype), c.patch)
        h = conv3(c.width, c.dtype, name="conv_in")(h)
        for level in range(len(c.multipliers)):
            h = _level(c, h, level, c.blocks)
            if level + 1 < len(c.multipliers):  # padded right and bottom, unlike LDM's U-Net
                h = conv3(h.shape[-1], c.dtype, stride=2, padding=((0, 1), (0, 1)))(h)
        h = nn.silu(GroupNorm(c.groups, EPS, name="norm_out")(_middle(c, h)))
        return conv3(c.encoded, c.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """z (B, h, w, C) -> (B, f h, f w, width): what one more convolution makes a picture of."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        c = self.config
        h = conv3(int(c.multipliers[-1] * c.width), c.dtype, name="conv_in")(z.astype(c.dtype))
        h = _middle(c, h)
        for level in reversed(range(len(c.multipliers))):
            h = _level(c, h, level, c.blocks + 1)
            if level:
                h = conv3(h.shape[-1], c.dtype)(nearest2(h))
        h = nn.silu(GroupNorm(c.groups, EPS, name="norm_out")(h))
        if c.patch > 1:
            h = conv3(PATCH_FEATURES * c.patch**2, c.dtype, name="patch_out")(h)
            h = nn.silu(depth_to_space(h, c.patch))
        return h


class Reconstruction(NamedTuple):
    """A picture, there and back, and what its loss asks for."""

    x: jax.Array  # (B, H, W, 3)
    features: jax.Array  # in front of the last convolution, see losses.adaptive_weight
    z: jax.Array  # (B, h, w, C), of KL the mean
    logvar: jax.Array | None  # of KL
    codes: jax.Array | None  # of VQ: nearest to z, before the straight-through estimator
    indices: jax.Array | None  # (B, h, w), theirs


class Autoencoder(nn.Module):
    """`encode` and `decode`; called, x (B, H, W, 3) and keys (B,) or None -> a Reconstruction."""

    config: AutoencoderConfig

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = _conv1(c.encoded, c.dtype)
        self.post_quant_conv = _conv1(c.channels, c.dtype)
        self.conv_out = last_convolution(c)
        if c.kind == "vq":
            uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-1, maxval=1)  # noqa: E731
            init = lambda key, shape: uniform(key, shape) / c.codes  # noqa: E731
            self.codebook = self.param("codebook", init, (c.codes, c.channels))

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """x (B, H, W, 3) -> mean and logvar (B, h, w, C) of KL; z and None of VQ."""
        if self.config.kind == "identity":
            return x, None
        z = self.quant_conv(self.encoder(x)).astype(jnp.float32)
        if self.config.kind == "vq":
            return z, None
        mean, logvar = jnp.split(z, 2, axis=-1)
        return mean, jnp.clip(logvar, -30, 20)

    def decode(self, z: jax.Array) -> jax.Array:
        """z (B, h, w, C), not quantised -> (B, H, W, 3)."""
        if self.config.kind == "identity":
            return z
        if self.config.kind == "vq":
            z, _ = nearest(self.codebook, z)
        return self.conv_out(self.features(z)).astype(jnp.float32)

    def features(self, z: jax.Array) -> jax.Array:
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> Reconstruction:
        z, logvar = self.encode(x)
        if self.config.kind == "vq":
            codes, indices = nearest(self.codebook, z)
            features = self.features(straight_through(z, codes))
        else:
            codes = indices = None
            features = self.features(draw(z, logvar, keys))
        x = self.conv_out(features).astype(jnp.float32)
        return Reconstruction(x, features, z, logvar, codes, indices)


def last_convolution(config: AutoencoderConfig) -> nn.Conv:
    return conv3(3, config.dtype)


def draw(mean: jax.Array, logvar: jax.Array | None, keys: jax.Array | None) -> jax.Array:
    """z = mean + exp(logvar / 2) eps, one key per row; the mean if there is no logvar or key."""
    if logvar is None or keys is None:
        return mean
    eps = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return mean + jnp.exp(0.5 * logvar) * eps


def nearest(codebook: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z (..., C) -> its nearest rows (..., C) of codebook (K, C), and their numbers (...)."""
    product = z.reshape(-1, z.shape[-1]) @ codebook.T
    distance = jnp.square(codebook).sum(1)[None] - 2 * product  # + |z|^2, the same for all
    indices = distance.argmin(1).reshape(z.shape[:-1])
    return codebook[indices], indices


def straight_through(z: jax.Array, codes: jax.Array) -> jax.Array:
    """The codes, with the gradient of z. van den Oord et al. 2017, section 3.2."""
    return z + jax.lax.stop_gradient(codes - z)


IDENTITY = AutoencoderConfig(kind="identity", channels=3, multipliers=(1,))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: AutoencoderConfig, key: jax.Array) -> dict:
    if config.kind == "identity":
        return {}
    return Autoencoder(config).init(key, jnp.zeros((1, config.size, config.size, 3)))["params"]


@functools.cache
def compiled(config: AutoencoderConfig):
    """run(params, uint8 (B, H, W, 3)) -> (uint8 as they come back, code numbers or None)."""

    def run(params, images):
        out = Autoencoder(config).apply({"params": params}, to_float(images))
        return to_uint8(out.x), out.indices

    return devices.jit(run)


def reconstruct(config: AutoencoderConfig, params: dict, images: np.ndarray) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3), as they come back from the mean of z."""
    if config.kind == "identity":
        return images
    run = lambda rows, i: compiled(config)(params, images[rows])[0]  # noqa: E731
    return devices.in_chunks(run, len(images), CHUNK, "reconstructing", False)


def code_numbers(config: AutoencoderConfig, params: dict, images: np.ndarray) -> np.ndarray:
    """Of a VQ stage: which codes (N, h, w) pictures uint8 (N, H, W, 3) become."""
    run = lambda rows, i: compiled(config)(params, images[rows])[1]  # noqa: E731
    return devices.in_chunks(run, len(images), CHUNK, "encoding", False)


def load(path: Path) -> tuple[AutoencoderConfig, dict, dict]:
    """(config, params, metadata) of a weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "ldm.autoencoder", AutoencoderConfig, init_params)
