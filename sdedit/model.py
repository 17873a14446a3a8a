"""A denoiser for SDEdit to steer: DDPM's U-Net, and a small one of scenes that takes captions.

SDEdit itself needs no network of its own: `sde.edit` takes any denoiser. This is what the command
line runs, since it may not know the other papers' models.
"""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, schedule
from common.guidance import Denoiser
from common.process import Prediction, eps_from
from common.scenes.captions import VOCABULARY, canonical
from common.schedule import Schedule
from common.text import TextConfig, TextEncoder, WordTokenizer
from common.unet import UNet, UNetConfig
from sdedit import sde

# One network serves both: GLIDE's small base, 10% of whose captions were dropped in training.
SHIPPED = Path(__file__).parents[1] / "glide" / "weights" / "small.safetensors"


@dataclass(frozen=True)
class SdeditConfig:
    """Defaults are the official repository's model, of 114 million parameters."""

    size: int = 256  # pixels
    T: int = 1000  # diffusion times
    schedule: str = "linear"  # or "cosine"; "ve" sees its pictures scaled to one variance
    prediction: str = "eps"  # what the network predicts: "eps", "velocity" or "x0"
    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            width=128,
            multipliers=(1, 1, 2, 2, 4, 4),
            attention=(16,),
            heads=1,
            scale_shift=False,
            updown="conv_asym",
            time_order="sin_cos",
            eps=1e-6,
        )
    )
    text: TextConfig | None = None  # the paper's networks know no captions


class Network(nn.Module):
    """Network output (B, H, W, 3) of x (B, H, W, 3), t (B,) and cond: {}, or tokens or text."""

    config: SdeditConfig

    def setup(self):
        c = self.config
        self.text = TextEncoder(c.text, 4 * c.unet.width) if c.text else None
        self.unet = UNet(c.unet)

    def encode(self, tokens: jax.Array) -> dict[str, jax.Array]:
        return dict(zip(("context", "vector"), self.text(tokens), strict=True))

    def __call__(self, x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        return self.unet(x, t, **(self.encode(cond["tokens"]) if "tokens" in cond else cond))


PAPER = SdeditConfig()

# Paper: small differs in scale, in captions (dropped half of the time: without one it is the
# paper's unconditional model), in the cosine schedule (fewer times are spent where a small picture
# has long drowned), in velocity and the space-to-depth stem (steps of half the time).
SMALL = SdeditConfig(
    size=32,
    schedule="cosine",
    prediction="velocity",
    unet=UNetConfig(width=48, multipliers=(1, 1.5), attention=(2,), context="joint", head_dim=24,
                    groups=8, patch=2),
    text=TextConfig(vocabulary=len(VOCABULARY) + 1, length=24, width=128, layers=2, heads=4),
)  # fmt: skip

TINY = replace(
    SMALL,
    unet=replace(SMALL.unet, width=24, multipliers=(1,), blocks=1, attention=(1,)),
    text=replace(SMALL.text, width=32, layers=1),
)

# Real pictures have no captions here: digits of 8 px, patches of photographs of 32.
DIGITS = replace(TINY, size=8, text=None, unet=replace(TINY.unet, context=None, width=32, patch=1))
# Of photographs, whose every pixel differs, a short training of velocities leaves grain; x0 blurs.
PHOTOS = replace(
    DIGITS,
    size=32,
    prediction="x0",
    unet=replace(DIGITS.unet, multipliers=(1, 2), attention=(2,), head_dim=32, patch=2),
)

# Trained on VE's own objective: sigma is drawn as its schedule has it, and eps is what is missed
# (weight sigma^2 of the score's error; Song et al. 2021, eq. 7).
DIGITS_VE = replace(DIGITS, schedule="ve", prediction="eps")

PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER, "digits": DIGITS, "digits_ve": DIGITS_VE,
           "photos": PHOTOS}  # fmt: skip


def make_schedule(config: SdeditConfig) -> Schedule:
    if config.schedule == "ve":  # x / sqrt(1 + sigma^2): the network's input keeps its size
        with jax.ensure_compile_time_eval():  # a table, in whatever is being traced, too
            sigma = np.asarray(sde.ve(1, config.T).noise[1:], np.float64)
        return schedule.from_alpha_bar(1 / (1 + sigma**2))
    return {"linear": schedule.linear, "cosine": schedule.cosine}[config.schedule](config.T)


def tokenize(config: SdeditConfig, prompts: list[str]) -> np.ndarray:
    """(B, L) tokens of captions, "" is none at all; ValueError says which word is unknown."""
    if config.text is None and any(prompts):
        raise ValueError("these weights know no captions: leave the prompt away")
    length = config.text.length if config.text else 1
    return WordTokenizer(VOCABULARY, length).encode([canonical(p) for p in prompts])


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: SdeditConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, 3))
    cond = {"tokens": jnp.zeros((1, config.text.length), jnp.int32)} if config.text else {}
    return Network(config).init(key, x, jnp.ones(1, jnp.int32), cond)["params"]


def encode_text(config: SdeditConfig, params: dict, tokens: jax.Array) -> dict[str, jax.Array]:
    """tokens (B, L) -> cond, done once for all steps."""
    if config.text is None:
        return {}
    return Network(config).apply({"params": params}, tokens, method="encode")


def denoiser(config: SdeditConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction(eps), cond from `encode_text` (or {"tokens": (B, L)})."""

    def denoise(x: jax.Array, t: jax.Array, cond: Any) -> Prediction:
        output = Network(config).apply({"params": params}, x, t, cond)
        output = output[..., : x.shape[-1]]  # without a learned variance, which SDEdit has not
        return Prediction(eps_from(config.prediction, make_schedule(config), x, t, output))

    return denoise


def load(path: Path) -> tuple[SdeditConfig, dict, dict]:
    """(config, params, metadata) of weights of sdedit, or of a GLIDE base, which is such a network.

    CheckpointError says what is wrong.
    """
    if not path.exists():
        raise checkpoint.CheckpointError(f"no weights at {path}: make some with `python -m sdedit "
                                         f"train` and give them as --weights")  # fmt: skip
    return checkpoint.load_model(path, ("sdedit", "glide"), SdeditConfig, init_params)
