"""GLIDE's base model: a text transformer beside an ADM U-Net, and its presets.

The text enters twice: its last token is added to the time embedding, and all its tokens stand in
front of the keys and values of every attention layer. Nichol et al. 2021, section 4.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import checkpoint, schedule
from common.guidance import Denoiser
from common.process import Prediction, eps_from_velocity
from common.scenes.captions import VOCABULARY
from common.schedule import Schedule
from common.text import TextConfig, TextEncoder, WordTokenizer
from common.unet import UNet, UNetConfig

SCHEDULES = {"linear": schedule.linear, "cosine": schedule.cosine}


@dataclass(frozen=True)
class GlideConfig:
    """The base model. Defaults are the released 64 px model of 385 million parameters."""

    size: int = 64  # pixels
    T: int = 1000  # diffusion times
    schedule: str = "cosine"  # GLIDE's squaredcos_cap_v2
    prediction: str = "eps"  # what the network predicts: "eps" (GLIDE) or "velocity"
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
    """Network output (B, H, W, 6) of x (B, H, W, 3), t (B,), and either tokens or encoded text."""

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
            cond = self.encode(cond["tokens"])
        return self.unet(x, t, context=cond["context"], vector=cond["vector"])


# Text for the closed vocabulary of the scenes: 24 tokens are enough for every caption.
_words = TextConfig(vocabulary=len(VOCABULARY) + 1, length=24, width=128, layers=2, heads=4)

PAPER = GlideConfig()

# Paper: small differs in scale, in predicting velocity instead of eps, in the space-to-depth stem
# (both learn faster in the minutes a CPU gives), and in dropping captions from the first step.
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
    unet=replace(SMALL.unet, width=24, multipliers=(1, 1), blocks=1),
    text=replace(_words, width=32, layers=1),
)

PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}


def make_schedule(config: GlideConfig) -> Schedule:
    return SCHEDULES[config.schedule](config.T)


def tokenizer(config: GlideConfig) -> WordTokenizer:
    """The scenes' words. (The released weights use byte pairs; their loader brings those.)"""
    return WordTokenizer(VOCABULARY, config.text.length)


def init_params(config: GlideConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, config.channels))
    tokens = jnp.zeros((1, config.text.length), jnp.int32)
    return Glide(config).init(key, x, jnp.ones(1, jnp.int32), {"tokens": tokens})["params"]


def predict(config: GlideConfig, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
    """Network output (B, H, W, 6) -> Prediction: the one border where its meaning is known."""
    value, v = jnp.split(output, 2, axis=-1)
    if config.prediction == "velocity":
        value = eps_from_velocity(make_schedule(config), x, t, value)
    return Prediction(value, v)


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
    _, metadata = checkpoint.load_weights(path)
    if metadata.get("model") != "glide":
        kind = metadata.get("model", "an unnamed model")
        raise checkpoint.CheckpointError(f"{path} holds weights of {kind}, not of glide")
    fields = metadata["config"]
    unet = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["unet"].items()}
    config = replace(
        PAPER, **{**fields, "unet": UNetConfig(**unet), "text": TextConfig(**fields["text"])}
    )
    abstract = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params, metadata = checkpoint.load_weights(path, abstract)
    return config, params, metadata
