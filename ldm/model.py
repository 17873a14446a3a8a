"""Latent diffusion: a U-Net that denoises the latents of a frozen first stage.

    picture --encode, times latent_scale--> z0 --noise--> z_t --U-Net--> z0 --decode--> picture

Text, class and neighbours enter by cross-attention; a masked or a small picture and a map of what
is where as channels beside z_t. Rombach et al. 2022, sections 3.2 and 3.3.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint
from common.clip import ClipConfig, TextTower
from common.guidance import Denoiser, classifier_free
from common.nn import dense
from common.pretrained import official
from common.process import Prediction, eps_from
from common.scenes.captions import VOCABULARY, canonical, claims
from common.scenes.scene import COLOURS, SHAPES
from common.schedule import Schedule, scaled_linear
from common.text import TextConfig, TextEncoder, WordTokenizer
from common.unet import UNet, UNetConfig
from ldm import autoencoder
from ldm.autoencoder import IDENTITY, Autoencoder, AutoencoderConfig
from ldm.text import TextTransformer

BESIDE = "autoencoder.safetensors"  # the first stage, in the folder of the weights that need it
SEGMENTS = ("ground", *SHAPES)  # of a semantic map
CLASSES = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)

STABLE = UNetConfig(out_channels=4, width=320, multipliers=(1, 2, 4, 4), attention=(1, 2, 4),
                     heads=8, context="cross", scale_shift=False, updown="conv")  # fmt: skip


@dataclass(frozen=True)
class LdmConfig:
    """Defaults are text2img-large: 872 million parameters, beside 543 million for the text."""

    size: int = 256  # pixels; it draws any multiple of the factors of first stage and U-Net
    first_stage: AutoencoderConfig = AutoencoderConfig()  # kl-f8
    autoencoder: str = ""  # digest of the first stage's weights
    latent_scale: float = 0.18215  # 1 / standard deviation of the latents
    T: int = 1000  # diffusion times
    beta_min: float = 8.5e-4  # sqrt(beta) rises linearly
    beta_max: float = 0.012
    prediction: str = "eps"  # what the network predicts: "eps" (LDM), "velocity" or "x0"
    condition: str = "text"  # "text", "class", "neighbours" (of CLIP) or "none"
    inputs: tuple[str, ...] = ()  # beside z_t: "masked" (inpainting), "low_res", "semantic"
    unet: UNetConfig = STABLE
    text: TextConfig = TextConfig(vocabulary=30_522, length=77, width=1280, layers=32)
    inner: int | None = 512  # width of tau_theta's attention; None: GLIDE's text, 0: CLIP's
    classes: int = len(CLASSES)  # one more label stands for none of them
    class_width: int = 512  # of a class's token; of neighbours, CLIP's dim


class Ldm(nn.Module):
    """Network output (B, h, w, C) of z_t (B, h, w, C), t (B,) and cond, a dict of

    tokens (B, L) or label (B,) or semantic (B, H, W), numbers of SEGMENTS, or what `encode` made of
    them; context (B, k, D) of neighbours; masked (B, h, w, C + 1), the latent of the picture with a
    hole, and the hole; low_res (B, h, w, 3).
    """

    config: LdmConfig

    def setup(self):
        c = self.config
        if c.condition == "text":
            # Paper: GLIDE's encoder, in the small models, also moves the time embedding.
            if c.inner is None:
                self.text = TextEncoder(c.text, 4 * c.unet.width)
            elif c.inner:
                self.text = TextTransformer(c.text, c.inner)
            else:  # Stable Diffusion: all places of CLIP's last states
                self.text = TextTower(ClipConfig(text=c.text), pooled=False)
        elif c.condition == "class":
            self.classes = nn.Embed(c.classes + 1, c.class_width)
        if "semantic" in c.inputs:
            self.segments = dense(3, bias=False)
        self.unet = UNet(c.unet)

    def encode(self, cond: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """cond with context (B, L, D) (and vector) for tokens or label; done once for all steps."""
        cond = dict(cond)
        if "tokens" in cond:
            out = self.text(cond.pop("tokens"))
            context, vector = out if self.config.inner is None else (out, None)
            cond |= {"context": context} | ({} if vector is None else {"vector": vector})
        if "label" in cond:  # a single token: attention to it adds the same at every place
            cond["context"] = self.classes(cond.pop("label"))[:, None]
        if "semantic" in self.config.inputs and cond["semantic"].ndim == 3:
            f = self.config.first_stage.factor
            cond["semantic"] = self.segments(shares(cond["semantic"], f))
        return cond

    def __call__(self, z: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        cond = self.encode(cond)
        channels = [cond[name] for name in self.config.inputs]
        channels = jnp.concatenate(channels, -1) if channels else None
        given = {name: cond[name] for name in ("context", "vector") if name in cond}
        return self.unet(z, t, channels=channels, **given)


def shares(semantic: jax.Array, f: int) -> jax.Array:
    """(B, H, W) -> (B, h, w, K): how much of each latent position belongs to which of SEGMENTS.

    latent-diffusion's SpatialRescaler: one-hot, shrunk, then three channels by a 1x1 map.
    """
    B, H, W = semantic.shape
    return jax.nn.one_hot(semantic, len(SEGMENTS)).reshape(B, H // f, f, W // f, f, -1).mean((2, 4))


def with_first_stage(
    config: LdmConfig, first_stage: AutoencoderConfig = IDENTITY, digest: str = ""
) -> LdmConfig:
    """The same U-Net for other latents; without a first stage, for pixels.

    One with a space-to-depth stem gets another for another factor, and so works on as many places
    as before where it can: what it computes, and nearly all of its parameters, stay the same.
    """
    patch = config.unet.patch
    if patch > 1:
        patch = max(1, patch * config.first_stage.factor // first_stage.factor)
    unet = replace(config.unet, out_channels=first_stage.channels, patch=patch)
    return replace(config, first_stage=first_stage, autoencoder=digest, unet=unet)


def make_schedule(config: LdmConfig) -> Schedule:
    return scaled_linear(config.T, config.beta_min, config.beta_max)


def latent_shape(config: LdmConfig, size: int | None = None) -> tuple[int, int, int]:
    """(h, w, C) of a picture of `size` pixels; ValueError if it cannot have that size."""
    size, c = size or config.size, config.first_stage
    step = c.factor * config.unet.patch * 2 ** (len(config.unet.multipliers) - 1)
    if size < step or size % step:
        raise ValueError(f"size must be a multiple of {step}, not {size}")
    return size // c.factor, size // c.factor, c.channels


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: LdmConfig, key: jax.Array) -> dict:
    """Of the network alone; the first stage's are put beside them, as "first_stage"."""
    h, w, C = latent_shape(config)
    z, one = jnp.zeros((1, h, w, C)), jnp.ones(1, jnp.int32)
    cond = {"masked": jnp.zeros((1, h, w, C + 1)), "low_res": jnp.zeros((1, h, w, 3)),
            "semantic": jnp.zeros((1, config.size, config.size), jnp.int32)}  # fmt: skip
    if config.condition == "text":
        cond["tokens"] = jnp.zeros((1, config.text.length), jnp.int32)
    if config.condition == "class":
        cond["label"] = one
    if config.condition == "neighbours":
        cond["context"] = jnp.zeros((1, 1, config.class_width))
    return Ldm(config).init(key, z, one, cond)["params"]


def to_latent(
    config: LdmConfig, params: dict, x: jax.Array, keys: jax.Array | None = None
) -> jax.Array:
    """x (B, H, W, 3) -> z0 = latent_scale E(x): with keys (B,) a sample of it, else the mean."""
    encoded = _first_stage(config, params, x, "encode")
    return config.latent_scale * autoencoder.draw(*encoded, keys)


def to_picture(config: LdmConfig, params: dict, z: jax.Array) -> jax.Array:
    """z0 (B, h, w, C) -> x (B, H, W, 3) = D(z0 / latent_scale)."""
    return _first_stage(config, params, z / config.latent_scale, "decode")


def _first_stage(config, params, x, method):
    weights = {"params": params["first_stage"]}
    return Autoencoder(config.first_stage).apply(weights, x, method=method)


def conditions(config: LdmConfig, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Captions -> {"tokens": (B, L)} or {"label": (B,)}; "" is none. ValueError: words, classes."""
    if config.condition == "text":
        words = WordTokenizer(VOCABULARY, config.text.length)
        return {"tokens": words.encode([canonical(prompt) for prompt in prompts])}
    if config.condition == "class":
        return {"label": np.array([_label(config, prompt) for prompt in prompts], np.int32)}
    if any(prompts):
        raise ValueError("these weights take no prompt: leave it away")
    return {}


def _label(config: LdmConfig, prompt: str) -> int:
    if not prompt.strip():
        return config.classes
    objects = claims(prompt)["objects"]
    if len(objects) != 1 or "colour" not in objects[0]:
        raise ValueError(f"these weights know classes: name one shape and its colour, such as "
                         f"'a red ball', not '{prompt}'")  # fmt: skip
    return CLASSES.index((objects[0]["shape"], objects[0]["colour"]))


def null_condition(config: LdmConfig) -> dict[str, np.ndarray]:
    """What a dropped condition is replaced by, without B: no words, no class, or zeros."""
    if config.condition == "class":
        return {"label": np.int32(config.classes)}
    if config.condition == "neighbours":
        return {"context": np.zeros(config.class_width, np.float32)}
    return {"tokens": np.zeros(config.text.length, np.int32)} if config.condition == "text" else {}


def predict(config: LdmConfig, output: jax.Array, z: jax.Array, t: jax.Array) -> Prediction:
    """Network output -> Prediction(eps): the one border where its meaning is known."""
    return Prediction(eps_from(config.prediction, make_schedule(config), z, t, output))


def denoiser(config: LdmConfig, params: dict) -> Denoiser:
    """denoise(z, t, cond) -> Prediction, cond as in Ldm."""

    def denoise(z: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        network = {name: leaves for name, leaves in params.items() if name != "first_stage"}
        return predict(config, Ldm(config).apply({"params": network}, z, t, cond), z, t)

    return denoise


def guide(
    config: LdmConfig,
    params: dict,
    cond: dict[str, jax.Array],
    scales: jax.Array,
    null_cond: dict[str, jax.Array] | None = None,
) -> tuple[Denoiser, dict]:
    """(denoiser, cond) for a sampler, from a cond of tokens, label or context, and inputs.

    Guided by scales (B,) if there is anything to drop; the inputs never are. null_cond: of
    published weights, which count t from 0 and have tokens of their own for no words.
    """

    def encode(cond):
        network = {name: leaves for name, leaves in params.items() if name != "first_stage"}
        return Ldm(config).apply({"params": network}, cond, method="encode")

    denoise = denoiser(config, params)
    denoise, null_cond = ((denoise, null_condition(config)) if null_cond is None
                          else (official(denoise), null_cond))  # fmt: skip
    if not null_cond:
        return denoise, cond
    null_cond = {k: jnp.broadcast_to(v, cond[k].shape) for k, v in null_cond.items()}
    return classifier_free(denoise, encode({**cond, **null_cond}), scales), encode(cond)


def load(path: Path) -> tuple[LdmConfig, dict, dict]:
    """(config, params, metadata) of weights and of the first stage beside them.

    CheckpointError says what is wrong, also when it is not the first stage they were trained with.
    """
    config, params, metadata = checkpoint.load_model(path, "ldm", LdmConfig, init_params)
    if config.first_stage.kind == "identity":
        return config, {**params, "first_stage": {}}, metadata
    beside = path.with_name(BESIDE)
    _, first_stage, of_first = autoencoder.load(beside)
    if of_first["digest"] != config.autoencoder:
        raise checkpoint.CheckpointError(f"{beside} is not the autoencoder that {path} was trained "
                                         f"with: put that one in its place")  # fmt: skip
    return config, {**params, "first_stage": first_stage}, metadata
