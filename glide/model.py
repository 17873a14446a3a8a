"""GLIDE: a text transformer beside an ADM U-Net, and its presets: base, upsampler, inpainting.

The text enters twice: its last token is added to the time embedding, and all its tokens stand in
front of the keys and values of every attention layer. Nichol et al. 2021, section 4. What an
upsampler enlarges and what inpainting keeps are further channels beside x.
"""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import checkpoint, schedule
from common.guidance import Denoiser
from common.process import Prediction, eps_from
from common.scenes.captions import VOCABULARY
from common.schedule import Schedule
from common.text import TextConfig, TextEncoder, WordTokenizer
from common.unet import UNet, UNetConfig

KNOWN = 4  # channels of the input "known": a picture with holes, and its keep_mask
SCHEDULES = {"linear": schedule.linear, "cosine": schedule.cosine}


@dataclass(frozen=True)
class GlideConfig:
    """One of the models. Defaults are the released 64 px base of 385 million parameters."""

    size: int = 64  # pixels
    T: int = 1000  # diffusion times
    schedule: str = "cosine"  # GLIDE's squaredcos_cap_v2
    prediction: str = "eps"  # what the network predicts: "eps" (GLIDE), "velocity" or "x0"
    inputs: tuple[str, ...] = ()  # pictures beside x: "known" (inpainting), then "low_res"
    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            out_channels=6,
            width=192,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention=(2, 4, 8),
            context="joint",
            dropout=0.1,
        )
    )
    text: TextConfig = field(default_factory=TextConfig)

    @property
    def channels(self) -> int:
        return self.unet.out_channels // 2  # the other half is the learned variance


class Glide(nn.Module):
    """Network output (B, H, W, 6) of x (B, H, W, 3), t (B,) and cond, a dict of

    tokens (B, L), or what `encode` made of them; known (B, H, W, 4), the picture where keep_mask
    is 1, else 0, and keep_mask; low_res (B, h, w, 3), enlarged bilinearly. GLIDE's channel order.
    """

    config: GlideConfig

    def setup(self):
        self.text = TextEncoder(self.config.text, 4 * self.config.unet.width)
        self.unet = UNet(self.config.unet)

    def encode(self, tokens: jax.Array) -> dict[str, jax.Array]:
        """tokens (B, L) -> the cond that the denoiser takes: context (B, L, D), vector (B, 4w)."""
        context, vector = self.text(tokens)
        return {"context": context, "vector": vector}

    def __call__(self, x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        if "tokens" in cond:
            cond = {**cond, **self.encode(cond["tokens"])}
        beside = []
        if "known" in self.config.inputs:
            beside.append(cond["known"])
        if "low_res" in self.config.inputs:
            B, H, W, C = x.shape
            beside.append(jax.image.resize(cond["low_res"], (B, H, W, C), "bilinear"))
        channels = jnp.concatenate(beside, -1) if beside else None
        text = {"context": cond["context"], "vector": cond["vector"]}
        return self.unet(x, t, channels=channels, **text)


# Text for the closed vocabulary of the scenes: 24 tokens are enough for every caption.
_words = TextConfig(vocabulary=len(VOCABULARY) + 1, length=24, width=128, layers=2, heads=4,
                    order=True)  # fmt: skip

PAPER = GlideConfig()
PAPER_INPAINT = replace(PAPER, inputs=("known",))
PAPER_UPSAMPLER = replace(
    PAPER,
    size=256,
    schedule="linear",
    inputs=("low_res",),
    unet=replace(PAPER.unet, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32)),
)
PAPER_UPSAMPLER_INPAINT = replace(PAPER_UPSAMPLER, inputs=("known", "low_res"))

# Paper: small differs in scale, in predicting velocity instead of eps, in the space-to-depth stem
# (a step of half the time; README.md has a race), and in dropping captions from the first step.
SMALL = GlideConfig(
    size=32,
    prediction="velocity",
    unet=UNetConfig(
        out_channels=6,
        width=48,
        multipliers=(1, 1.5),
        blocks=2,
        attention=(2,),
        context="joint",
        head_dim=24,
        groups=8,
        patch=2,
    ),
    text=_words,
)

TINY = replace(
    SMALL,
    unet=replace(SMALL.unet, width=24, multipliers=(1,), blocks=1, attention=(1,)),
    text=replace(_words, width=32, layers=1),
)

# 32 -> 64 px. Most of the picture is given, so it may work on patches of 4 x 4 pixels. Their noise
# is more than 48 channels can carry: a network that had to tell it would leave grain behind.
SMALL_UPSAMPLER = replace(
    SMALL,
    size=64,
    schedule="linear",
    prediction="x0",
    inputs=("low_res",),
    unet=replace(SMALL.unet, width=24, multipliers=(1, 1.25), head_dim=15, groups=6, patch=4),
    text=replace(_words, width=64, layers=1),
)

PRESETS = {
    "tiny": TINY,
    "tiny_inpaint": replace(TINY, inputs=("known",)),
    "tiny_upsampler": replace(TINY, size=64, inputs=("low_res",), unet=replace(TINY.unet, patch=4)),
    "small": SMALL,
    "small_inpaint": replace(SMALL, inputs=("known",)),
    "small_upsampler": SMALL_UPSAMPLER,
    "paper": PAPER,
    "paper_inpaint": PAPER_INPAINT,
    "paper_upsampler": PAPER_UPSAMPLER,
    "paper_upsampler_inpaint": PAPER_UPSAMPLER_INPAINT,
}


def make_schedule(config: GlideConfig) -> Schedule:
    return SCHEDULES[config.schedule](config.T)


def tokenizer(config: GlideConfig) -> WordTokenizer:
    """The scenes' words. (The released weights use byte pairs; their loader brings those.)"""
    return WordTokenizer(VOCABULARY, config.text.length)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: GlideConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, config.channels))
    cond = {"tokens": jnp.zeros((1, config.text.length), jnp.int32)}
    cond |= {"known": jnp.zeros((*x.shape[:3], KNOWN)), "low_res": x[:, ::4, ::4]}
    return Glide(config).init(key, x, jnp.ones(1, jnp.int32), cond)["params"]


def for_inpainting(config: GlideConfig, params: dict) -> tuple[GlideConfig, dict]:
    """A model that also sees `known`, from one that does not: the new weights are zero.

    So at first it does what the old one did. GLIDE's inpainting is fine-tuned from there (4.3).
    """
    C, patch = config.channels, config.unet.patch

    def insert(kernel, pixels):
        H, W, _, F = kernel.shape  # inputs: pixels of a patch, then channels, x first
        kernel = jnp.asarray(kernel).reshape(H, W, pixels, -1, F)
        new = jnp.zeros((H, W, pixels, KNOWN, F))
        kernel = jnp.concatenate([kernel[..., :C, :], new, kernel[..., C:, :]], 3)
        return kernel.reshape(H, W, -1, F)

    unet = dict(params["unet"])
    unet["conv_in"] = {**unet["conv_in"], "kernel": insert(unet["conv_in"]["kernel"], patch**2)}
    if patch > 1:  # the last convolution sees x and what is beside it, too
        unet["conv_out"] = {**unet["conv_out"], "kernel": insert(unet["conv_out"]["kernel"], 1)}
    return replace(config, inputs=("known", *config.inputs)), {**params, "unet": unet}


def predict(config: GlideConfig, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
    """Network output (B, H, W, 6) -> Prediction: the one border where its meaning is known."""
    value, v = jnp.split(output, 2, axis=-1)
    return Prediction(eps_from(config.prediction, make_schedule(config), x, t, value), v)


def denoiser(config: GlideConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction, cond from `encode_text` (or {"tokens": (B, L)})."""

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        return predict(config, Glide(config).apply({"params": params}, x, t, cond), x, t)

    return denoise


def encode_text(config: GlideConfig, params: dict, tokens: jax.Array) -> dict[str, jax.Array]:
    """tokens (B, L) -> cond; done once for all steps. All padding gives the null_cond."""
    return Glide(config).apply({"params": params}, tokens, method="encode")


def load(path: Path) -> tuple[GlideConfig, dict, dict]:
    """(config, params, metadata) of a released weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "glide", GlideConfig, init_params)
