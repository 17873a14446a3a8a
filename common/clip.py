"""CLIP: a picture and its caption become two nearby vectors of length 1. Radford et al. 2021.

An image transformer and a causal text transformer, trained so that in a batch each picture is
nearest to its own caption. Given t it is GLIDE's noised CLIP: what it says of x_t guides sampling.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import devices
from common.devices import in_chunks
from common.nn import Transformer, dense, space_to_depth
from common.process import to_float
from common.scenes.captions import VOCABULARY, canonical
from common.text import PAD, TextConfig, WordTokenizer

MAX_SCALE = 100.0  # the logit scale is clipped here, and GLIDE guides with it
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's pictures, in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
CHUNK = 256  # pictures or texts embedded in one call
normal = nn.initializers.normal


@dataclass(frozen=True)
class ClipConfig:
    """Both towers. Defaults are OpenAI's ViT-B/32 of 151 million parameters."""

    size: int = 224  # pixels
    patch: int = 32  # pixels of one token
    width: int = 768  # of the image tower
    layers: int = 12
    heads: int = 12
    stem: tuple[int, ...] = ()  # channels of 3x3 convolutions in front; each halves the picture
    dim: int = 512  # of the embeddings
    T: int = 0  # > 0: a noised CLIP for the times 1..T of a schedule
    text: TextConfig = field(
        default_factory=lambda: TextConfig(vocabulary=49_408, length=77, layers=12)
    )
    end: int = 49_407  # the id that ends a text: its feature is read there
    dtype: str = "float32"

    @property
    def quick_gelu(self) -> bool:
        return not self.T  # OpenAI's CLIP has it, GLIDE's noised CLIP has the exact one


class ImageTower(nn.Module):
    """x (B, H, W, 3) in [-1, 1] -> (B, dim), not normalised.

    Patches without bias, a class token in front, + positions, LN, transformer, LN, and a linear map
    without bias of the class token. A noised CLIP has a learned token per time in its place: x is
    x_t then, t (B,) in 1..T; t = 0 or none, a clean picture, is read as t = 1.
    openai/CLIP model.py:206-240; glide_text2im/clip/encoders.py.
    """

    config: ClipConfig

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | None = None) -> jax.Array:
        c, B = self.config, x.shape[0]
        if t is not None and not c.T:
            raise ValueError("this CLIP reads clean pictures only: train one with --noised")
        mean, std = (jnp.array(a).reshape(1, 1, 1, 3) for a in (MEAN, STD))
        x = ((x + 1) / 2 - mean) / std
        for features in c.stem:
            x = nn.gelu(nn.Conv(features, (3, 3), 2, dtype=c.dtype)(x))
        # The official strided convolution is this product: its kernel (p, p, 3, D) as (p p 3, D).
        patch = c.patch >> len(c.stem)
        patches = space_to_depth(x, patch).reshape(B, -1, x.shape[-1] * patch**2)
        h = dense(c.width, c.dtype, bias=False, name="patch")(patches)
        random = normal(c.width**-0.5)
        if c.T:
            # All times start alike, so that what one learns at first helps the others.
            alike = lambda key, shape: jnp.broadcast_to(random(key, shape[1:]), shape)  # noqa: E731
            t = jnp.zeros(B, jnp.int32) if t is None else t
            times = self.param("time", alike, (c.T, c.width))
            first = jnp.take(times, jnp.maximum(t, 1) - 1, axis=0)
        else:
            first = jnp.broadcast_to(self.param("class", random, (c.width,))[None], (B, c.width))
        h = jnp.concatenate([first[:, None].astype(c.dtype), h], 1)
        h = h + self.param("position", random, h.shape[1:])[None].astype(c.dtype)
        h = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="ln_pre")(h)
        blocks = Transformer(c.layers, c.heads, dtype=c.dtype, quick_gelu=c.quick_gelu)
        return nn.Dense(c.dim, False, c.dtype, kernel_init=random, name="out")(blocks(h)[:, 0])


class TextTower(nn.Module):
    """tokens (B, L) int32 -> (B, dim), not normalised.

    Causal: a place sees itself and what stands before it. The feature is read at the first place
    that holds `end`, OpenAI's end-of-text token. Our words have none, so theirs is the first
    padding, right behind the last word: the tokenizer always leaves one. What follows is not seen.
    Not pooled: all places (B, L, width) after the last norm, which Stable Diffusion attends to.
    """

    config: ClipConfig
    pooled: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c, dtype = self.config.text, self.config.text.dtype
        h = nn.Embed(c.vocabulary, c.width, dtype=dtype, embedding_init=normal(0.02))(tokens)
        h = h + self.param("position", normal(0.01), (c.length, c.width))[None].astype(dtype)
        blocks = Transformer(c.layers, c.heads, True, dtype, self.config.quick_gelu)
        if not self.pooled:
            return blocks(h)
        # OpenAI's rule, the largest id, decides where a text has no such token.
        end = jnp.argmax(jnp.where(tokens == self.config.end, c.vocabulary, tokens), axis=1)
        h = jnp.take_along_axis(blocks(h), end[:, None, None], axis=1)[:, 0]
        random = normal(c.width**-0.5)
        return nn.Dense(self.config.dim, False, dtype, kernel_init=random, name="out")(h)


class Clip(nn.Module):
    """x (B, H, W, 3), tokens (B, L), t (B,) -> image and text embeddings (B, dim), log scale ()."""

    config: ClipConfig

    def setup(self):
        self.image, self.text = ImageTower(self.config), TextTower(self.config)
        self.log_scale = self.param("log_scale", nn.initializers.constant(math.log(1 / 0.07)), ())

    def encode_image(self, x: jax.Array, t: jax.Array | None = None) -> jax.Array:
        return normalise(self.image(x, t).astype(jnp.float32))

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        return normalise(self.text(tokens).astype(jnp.float32))

    def __call__(self, x: jax.Array, tokens: jax.Array, t: jax.Array | None = None):
        return self.encode_image(x, t), self.encode_text(tokens), self.log_scale


# Text for the closed vocabulary of the scenes: 24 tokens are enough for every caption.
_words = TextConfig(vocabulary=len(VOCABULARY) + 1, length=24, width=128, layers=2, heads=4)

PAPER = ClipConfig()
# Paper: convolutions in front ("Early convolutions", Xiao et al. 2021), because patches alone tell
# shapes apart only after many more pictures than a CPU has time for.
SMALL = ClipConfig(size=32, patch=4, width=128, layers=4, heads=4, stem=(64, 128), dim=128,
                   text=_words, end=PAD)  # fmt: skip
TINY = ClipConfig(
    size=32, patch=8, width=32, layers=1, heads=2, stem=(8,), dim=16, end=PAD,
    text=TextConfig(vocabulary=len(VOCABULARY) + 1, length=24, width=32, layers=1, heads=2),
)  # fmt: skip
PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ClipConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, 3))
    tokens = jnp.full((1, config.text.length), config.end)
    return Clip(config).init(key, x, tokens)["params"]


def encode_image(
    config: ClipConfig, params: dict, x: jax.Array, t: jax.Array | None = None
) -> jax.Array:
    """x (B, H, W, 3) in [-1, 1], or x_t with t (B,) -> image embeddings (B, dim) of length 1."""
    return Clip(config).apply({"params": params}, x, t, method="encode_image")


def encode_text(config: ClipConfig, params: dict, tokens: jax.Array) -> jax.Array:
    """tokens (B, L) -> text embeddings (B, dim) of length 1."""
    return Clip(config).apply({"params": params}, tokens, method="encode_text")


def normalise(x: jax.Array) -> jax.Array:
    """x / |x| along the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def score(image_embedding: jax.Array, text_embedding: jax.Array) -> jax.Array:
    """Cosine of each picture with its own text: (B, D) of length 1, twice -> (B,) in [-1, 1]."""
    return (image_embedding * text_embedding).sum(-1)


def info_nce(
    image_embedding: jax.Array,
    text_embedding: jax.Array,
    tokens: jax.Array,
    log_scale: jax.Array,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """-> (loss, accuracy): in the batch, which text is the picture's, and which picture the text's?

    logits = e^log_scale I T^t; the mean cross-entropy of rows and columns, the diagonal being
    right. tokens (B, L) tell equal captions. axis_name: inside pmap, the axis over which the batch
    is split; embeddings are gathered, so that every device compares with the whole batch.

    Paper: pairs of equal captions are left out of the sums. Both would be right, and as negatives
    they would hold the loss above log(number of them) and push apart what belongs together.
    """
    gather = lambda a: jax.lax.all_gather(a, axis_name, tiled=True) if axis_name else a  # noqa: E731
    B, others = len(tokens), gather(tokens)
    own = jnp.arange(B) + (jax.lax.axis_index(axis_name) * B if axis_name else 0)
    twins = (tokens[:, None] == others[None]).all(-1)
    twins &= own[:, None] != jnp.arange(len(others))[None]

    def one_way(of, among):
        logits = jnp.where(twins, -jnp.inf, jnp.exp(log_scale) * of @ gather(among).T)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, own)
        return jnp.stack([loss.mean(), (logits.argmax(1) == own).mean()])

    rows = one_way(image_embedding, text_embedding)
    columns = one_way(text_embedding, image_embedding)
    return tuple((rows + columns) / 2)


def clip_scale() -> optax.GradientTransformation:
    """Last of the optimiser's chain: what it would take e^log_scale above 100 is left out.

    Clipped after the update, not in the loss, where no gradient would bring it back.
    """

    def clip(updates, params):
        room = math.log(MAX_SCALE) - params["log_scale"]
        return {**updates, "log_scale": jnp.minimum(updates["log_scale"], room)}

    return optax.stateless(clip)


def class_embeddings(text_embedding: np.ndarray) -> np.ndarray:
    """Zero-shot classes from prompts: (K, P, D) of length 1, P prompts each -> (K, D) of length 1.

    The mean over the prompts, normalised again (OpenAI's prompt ensembling).
    """
    mean = np.asarray(text_embedding).mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def zero_shot(image_embedding: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(B, D) and class_embeddings (K, D) -> the nearest class of each picture, (B,) in 0..K-1."""
    return (np.asarray(image_embedding) @ np.asarray(classes).T).argmax(1)


def recall(similarity: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Share of queries with a relevant one among the k most similar; both (queries, candidates)."""
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(relevant, nearest, axis=1).any(1).mean())


@functools.cache
def _compiled(config: ClipConfig):
    def image(params, x, t):
        return encode_image(config, params, to_float(x) if x.dtype == jnp.uint8 else x, t)

    def text(params, tokens):
        return encode_text(config, params, tokens)

    return devices.jit(image), devices.jit(text)


def embed_images(config: ClipConfig, params: dict, images: np.ndarray, t: int = 0) -> np.ndarray:
    """Many pictures (N, H, W, 3), uint8 or float in [-1, 1] -> (N, dim). t: they are x_t."""

    def run(rows, i):
        times = np.full(len(rows), t) if config.T else None
        return _compiled(config)[0](params, images[rows], times)

    return in_chunks(run, len(images), CHUNK, "embedding", False)


def embed_texts(config: ClipConfig, params: dict, texts: Sequence[str]) -> np.ndarray:
    """Texts in the words of the scenes -> (N, dim). ValueError: unknown words, too many of them."""
    tokens = WordTokenizer(VOCABULARY, config.text.length).encode([canonical(t) for t in texts])
    run = lambda rows, i: _compiled(config)[1](params, tokens[rows])  # noqa: E731
    return in_chunks(run, len(tokens), CHUNK, "embedding", False)
