"""unCLIP's decoder: GLIDE that also sees an image embedding, P(x | z_i, y).

The embedding of CLIP enters beside the caption, by the same two ways: projected and added to the
time embedding, and as four more tokens in front of every attention layer. Ramesh et al. 2022,
section 2.1. Both ways begin at one vector, and a zero vector stands for "no embedding".
"""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, clip, train
from common.checkpoint import CheckpointError
from common.clip import ClipConfig
from common.guidance import Denoiser
from common.nn import dense
from common.process import Prediction
from common.text import TextEncoder
from common.unet import UNet
from glide import model as glide
from glide.clip import load as load_clip
from glide.model import GlideConfig, predict


@dataclass(frozen=True)
class DecoderConfig(GlideConfig):
    """GLIDE's fields, and what the embedding adds. Defaults are the paper's 64 px decoder."""

    dim: int = 1024  # of CLIP's embeddings
    extra_tokens: int = 4
    embedding: str = "image"  # what it was trained on: "image", or "text" embeddings (5.1)
    clip: str = ""  # digest of the CLIP whose embeddings it was trained on


class Decoder(nn.Module):
    """Network output (B, H, W, 6) of x (B, H, W, 3), t (B,) and cond, a dict of

    tokens (B, L) and image_embedding (B, dim), of length 1 or all zero; or what `encode` made of
    them. Names of the parameters that GLIDE has, too, are GLIDE's.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.text = TextEncoder(c.text, 4 * c.unet.width)
        self.unet = UNet(c.unet)
        # At zero, so that who begins with GLIDE's weights draws at first almost what they drew
        # (the four tokens are there, and take a little of the attention).
        self.embedding_vector = dense(4 * c.unet.width, c.unet.dtype, zero=True)
        self.embedding_tokens = dense(c.extra_tokens * c.text.width, c.unet.dtype, zero=True)

    def encode(self, tokens: jax.Array, image_embedding: jax.Array) -> dict[str, jax.Array]:
        """-> the cond that the denoiser takes: context (B, 4 + L, D) and vector (B, 4 w)."""
        c = self.config
        context, vector = self.text(tokens)
        z = math.sqrt(c.dim) * image_embedding  # numbers near 1, as a layer expects them
        extra = self.embedding_tokens(z).reshape(len(z), c.extra_tokens, c.text.width)
        context = jnp.concatenate([extra, context], axis=1)
        return {"context": context, "vector": vector + self.embedding_vector(z)}

    def __call__(self, x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        if "tokens" in cond:
            cond = self.encode(cond["tokens"], cond["image_embedding"])
        return self.unet(x, t, context=cond["context"], vector=cond["vector"])


def from_glide(config: GlideConfig, **fields) -> DecoderConfig:
    return DecoderConfig(**{**vars(config), **fields})


PAPER = DecoderConfig()
SMALL = from_glide(glide.SMALL, dim=clip.SMALL.dim)
TINY = from_glide(glide.TINY, dim=clip.TINY.dim)
PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: DecoderConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, config.channels))
    cond = {"tokens": jnp.zeros((1, config.text.length), jnp.int32)}
    cond["image_embedding"] = jnp.zeros((1, config.dim))
    return Decoder(config).init(key, x, jnp.ones(1, jnp.int32), cond)["params"]


def begin_with_glide(config: DecoderConfig, path: Path, key: jax.Array) -> dict:
    """Params of a decoder that begins with GLIDE's weights; what GLIDE has not starts afresh."""
    base, params, _ = glide.load(path)
    for name in ("size", "T", "schedule", "prediction", "inputs"):
        if getattr(config, name) != getattr(base, name):
            raise ValueError(f"{path} is no base of this decoder: it has {name} "
                             f"{getattr(base, name)}, not {getattr(config, name)}")  # fmt: skip
    try:
        return train.begin_with(params, init_params(config, key))
    except ValueError as error:
        raise ValueError(f"{path} is no base of this decoder: {error}") from None


def encode(
    config: DecoderConfig, params: dict, tokens: jax.Array, image_embedding: jax.Array
) -> dict[str, jax.Array]:
    """tokens (B, L), image_embedding (B, dim) -> cond; done once for all steps.

    null_cond: all padding and zeros, both. Zeros alone are "caption only" (the paper's Figure 8).
    """
    arguments = tokens, image_embedding
    return Decoder(config).apply({"params": params}, *arguments, method="encode")


def denoiser(config: DecoderConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction, cond from `encode`."""

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        return predict(config, Decoder(config).apply({"params": params}, x, t, cond), x, t)

    return denoise


def load(path: Path) -> tuple[DecoderConfig, dict, dict]:
    """(config, params, metadata) of a released weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "unclip", DecoderConfig, init_params)


class Clip(NamedTuple):
    """The frozen CLIP: pictures and captions to embeddings of length 1."""

    config: ClipConfig
    params: dict
    digest: str

    def images(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) -> (N, dim)."""
        return clip.embed_images(self.config, self.params, images)

    def texts(self, texts) -> np.ndarray:
        """N texts -> (N, dim)."""
        return clip.embed_texts(self.config, self.params, texts)


def open_clip(path: Path) -> Clip:
    """ValueError: no weights there, or a CLIP of noised pictures."""
    if not Path(path).is_file():
        raise CheckpointError(
            f"no CLIP weights at {path}: train them with `python -m glide train-clip`, "
            f"then give --clip runs/clip/weights.safetensors"
        )
    config, params, metadata = load_clip(path)
    if config.T:
        raise CheckpointError(f"{path} is a noised CLIP: give one trained without --noised")
    return Clip(config, params, metadata["digest"])


def check_clip(config, model: Clip, path: Path) -> None:
    """Embeddings of another CLIP look alike and mean nothing: ValueError unless it is the one."""
    if config.clip != model.digest:
        raise ValueError(f"{path} was trained on the embeddings of another CLIP: give its --clip")


def for_clip(config, model: Clip):
    """The config of a model (decoder or prior) that is to be trained on this CLIP's embeddings."""
    if getattr(config, "size", model.config.size) != model.config.size:
        raise ValueError(f"CLIP reads {model.config.size} px, the decoder draws {config.size} px")
    return replace(config, dim=model.config.dim, clip=model.digest)
