"""One configurable U-Net, and its encoder half: ADM, GLIDE, LDM and DDPM are configs, not forks."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn import (
    AttentionBlock,
    GroupNorm,
    ResBlock,
    SpatialTransformer,
    attention,
    conv3,
    dense,
    depth_to_space,
    nearest2,
    space_to_depth,
    time_embedding,
)


@dataclass(frozen=True)
class UNetConfig:
    """What the official U-Nets differ in. Defaults are ADM's."""

    out_channels: int = 3  # 6 with a learned variance
    width: int = 128  # channels at full resolution; the time embedding has four times as many
    multipliers: tuple[float, ...] = (1, 2, 3, 4)  # of width, one per level; each halves the size
    blocks: int = 2  # ResBlocks a level on the way down, one more on the way up
    attention: tuple[int, ...] = (4, 8)  # downsampling factors that have attention
    middle_attention: bool = True  # Karlo's super-resolution has none
    head_dim: int = 64  # channels an attention head, unless heads is set
    heads: int | None = None  # a fixed number of heads (LDM 8, DDPM 1)
    context: str | None = None  # text: None, "joint" (GLIDE) or "cross" (LDM)
    num_classes: int | None = None  # a learned embedding per class, added to the time embedding
    scale_shift: bool = True  # time modulates the norm (ADM, GLIDE); else is added (LDM, DDPM)
    updown: str = "resblock"  # "resblock" (ADM, GLIDE), "conv" (LDM), "conv_asym" (DDPM)
    time_order: str = "cos_sin"  # "sin_cos" for DDPM
    groups: int = 32  # of every GroupNorm
    eps: float = 1e-5  # of every GroupNorm; DDPM 1e-6
    dropout: float = 0.0
    patch: int = 1  # space-to-depth stem of p x p pixels; ours, for speed on CPU
    patch_features: int = 8  # channels a pixel in front of the full-resolution output convolution
    dtype: str = "float32"  # of the computation; parameters stay float32


def _attend(c: UNetConfig, h: jax.Array, context: jax.Array | None) -> jax.Array:
    heads = c.heads or h.shape[-1] // c.head_dim
    if c.context == "cross":
        return SpatialTransformer(heads, c.groups, c.dtype)(h, context)
    return AttentionBlock(heads, c.groups, c.eps, c.dtype)(h, context)


def _res(c: UNetConfig, h, emb, features: int, resample: str | None = None) -> jax.Array:
    block = ResBlock(features, c.scale_shift, resample, c.groups, c.eps, c.dropout, c.dtype)
    return block(h, emb)


def _down(c: UNetConfig, h: jax.Array, emb: jax.Array) -> jax.Array:
    C = h.shape[-1]
    if c.updown == "resblock":
        return _res(c, h, emb, C, "down")
    # DDPM pads right and bottom only; LDM all around.
    padding = ((0, 1), (0, 1)) if c.updown == "conv_asym" else 1
    return conv3(C, c.dtype, stride=2, padding=padding)(h)


def _up(c: UNetConfig, h: jax.Array, emb: jax.Array) -> jax.Array:
    C = h.shape[-1]
    return _res(c, h, emb, C, "up") if c.updown == "resblock" else conv3(C, c.dtype)(nearest2(h))


def _time(c: UNetConfig, t: jax.Array, label, vector) -> jax.Array:
    """(B, 4 width): MLP of the sinusoids, + class embedding, + vector."""
    emb = dense(4 * c.width, c.dtype, name="time1")(time_embedding(t, c.width, c.time_order))
    emb = dense(4 * c.width, c.dtype, name="time2")(nn.silu(emb))
    if c.num_classes:
        emb += nn.Embed(c.num_classes, 4 * c.width, dtype=c.dtype, name="classes")(label)
    return emb if vector is None else emb + vector


def _encode(c: UNetConfig, x: jax.Array, emb: jax.Array, context) -> tuple[jax.Array, list]:
    """Stem, the way down and the middle -> (features, one skip per block)."""
    h = conv3(int(c.multipliers[0] * c.width), c.dtype, name="conv_in")(x)
    skips = [h]
    for level, multiplier in enumerate(c.multipliers):
        for _ in range(c.blocks):
            h = _res(c, h, emb, int(multiplier * c.width))
            if 2**level in c.attention:
                h = _attend(c, h, context)
            skips.append(h)
        if level + 1 < len(c.multipliers):
            h = _down(c, h, emb)
            skips.append(h)
    h = _res(c, h, emb, h.shape[-1])
    if c.middle_attention:
        h = _attend(c, h, context)
    return _res(c, h, emb, h.shape[-1]), skips


class UNet(nn.Module):
    """x (B, H, W, C), t (B,) -> (B, H, W, out_channels); every condition is optional.

    label (B,) int32 class, -> added to the time embedding; vector (B, 4 width), likewise;
    context (B, L, D) text tokens for the attention; channels (B, H, W, ...) concatenated to x.
    H and W are multiples of patch 2^(levels - 1). t is fed as it is: official weights were trained
    with t - 1, which their loader subtracts. Dropout acts when a "dropout" key is given.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, x, t, *, label=None, vector=None, context=None, channels=None):
        c = self.config
        x = (x if channels is None else jnp.concatenate([x, channels], -1)).astype(c.dtype)
        emb = _time(c, t, label, vector)
        h, skips = _encode(c, space_to_depth(x, c.patch) if c.patch > 1 else x, emb, context)
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            for i in range(c.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], -1)
                h = _res(c, h, emb, int(multiplier * c.width))
                if 2**level in c.attention:
                    h = _attend(c, h, context)
                if level and i == c.blocks:
                    h = _up(c, h, emb)
        h = nn.silu(GroupNorm(c.groups, c.eps, name="norm_out")(h))
        if c.patch > 1:
            # One more convolution, at full resolution and with x in sight: without it the p x p
            # pixels of a patch are drawn independently and show as a checkerboard.
            h = conv3(c.patch_features * c.patch**2, c.dtype, name="patch_out")(h)
            h = jnp.concatenate([x, nn.silu(depth_to_space(h, c.patch))], -1)
        return conv3(c.out_channels, c.dtype, zero=True, name="conv_out")(h).astype(jnp.float32)


class AttentionPool(nn.Module):
    """(B, H, W, C) -> (B, K): the mean token asks all tokens (CLIP's and ADM's AttentionPool2d)."""

    features: int
    head_dim: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        B, C = h.shape[0], h.shape[-1]
        h = h.reshape(B, -1, C)
        h = jnp.concatenate([h.mean(1, keepdims=True), h], axis=1)
        position = self.param("position", nn.initializers.normal(C**-0.5), h.shape[1:])
        h = h + position[None].astype(h.dtype)
        q, k, v = jnp.split(dense(3 * C, self.dtype, name="qkv")(h), 3, axis=-1)
        pooled = attention(q[:, :1], k, v, C // self.head_dim)[:, 0]
        return dense(self.features, self.dtype, name="out")(pooled)


class Encoder(nn.Module):
    """The U-Net's encoder half as a noise-aware classifier: x_t (B, H, W, C), t -> (B, K).

    Way down, middle, norm, SiLU, attention pooling to out_channels. ADM, EncoderUNetModel.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        c = self.config
        x = x.astype(c.dtype)
        emb = _time(c, t, None, None)
        h, _ = _encode(c, space_to_depth(x, c.patch) if c.patch > 1 else x, emb, None)
        h = nn.silu(GroupNorm(c.groups, c.eps, name="norm_out")(h))
        return AttentionPool(c.out_channels, c.head_dim, c.dtype)(h).astype(jnp.float32)


