"""The diffusion prior P(z_i | y): a causal transformer that denoises an image embedding.

The sequence is [text tokens, text embedding, time, noised image embedding, query]; the output at
the query is z_i without noise. Ramesh et al. 2022, section 2.2:

    L = E || f(z_t, t, y) - z_i ||^2

Embeddings have length 1, numbers of size 1 / sqrt(D): too small for a process whose noise has size
1. They are scaled by sqrt(D) at the entrance and unscaled at the exit, here and nowhere else.
"""

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, devices, sampler, train
from common.devices import in_chunks
from common.guidance import Denoiser, classifier_free
from common.nn import Transformer, dense, time_embedding, torch_init
from common.process import Prediction, eps_from_x0
from common.scenes.captions import VOCABULARY
from common.schedule import Schedule, cosine
from common.text import PAD, TextConfig

CHUNK = 256  # embeddings drawn in one call
normal = nn.initializers.normal


@dataclass(frozen=True)
class PriorConfig:
    """Defaults are the paper's (1.0 billion parameters)."""

    dim: int = 1024  # of CLIP's embeddings
    T: int = 1000  # diffusion times, of a cosine schedule
    text: TextConfig = field(  # ids and number of the tokens, and the transformer of it all
        default_factory=lambda: TextConfig(49_408, length=77, width=2048, layers=24, heads=32)
    )
    clip: str = ""  # digest of the CLIP whose embeddings it was trained on


PAPER = PriorConfig()
_words = TextConfig(len(VOCABULARY) + 1, length=24, width=96, layers=4, heads=4, order=True)
SMALL = PriorConfig(dim=128, text=_words)
TINY = PriorConfig(dim=16, T=100, text=replace(_words, width=32, layers=1, heads=2))
PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}


class Words(nn.Module):
    """tokens (B, L) -> (B, L, width), before they get their places; causal.

    With `order` (see common.text.TextConfig) each word has the two before it beside it: "ball" of
    "a red ball" is a red one from the first layer on.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        h = nn.Embed(c.vocabulary, c.width, dtype=c.dtype, embedding_init=normal(1.0))(tokens)
        if c.order:
            words = jnp.where((tokens == PAD)[..., None], 0, h)
            before = nn.Conv(c.width, (3,), padding=((2, 0),), use_bias=False, dtype=c.dtype,
                             kernel_init=torch_init, name="neighbours")  # fmt: skip
            sinusoids = time_embedding(jnp.arange(c.length), c.width).astype(c.dtype)
            h = h + before(words) + sinusoids[None]
        return h


class Prior(nn.Module):
    """x (B, D), the scaled and noised z_i; t (B,); cond tokens (B, L), text_embedding (B, D)

    -> the scaled z_i (B, D). Causal: what stands in front does not see the picture, the query sees
    all. Padding is a word like others.
    Paper: "encoded text" comes first, of an encoder it does not describe; here the words do, and
    the layers of the prior, causal as they are, encode them.
    """

    config: PriorConfig

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        c, B, D = self.config.text, len(x), self.config.dim
        time = dense(c.width, c.dtype, name="time1")(time_embedding(t, c.width))
        parts = [
            dense(c.width, c.dtype, name="text")(math.sqrt(D) * cond["text_embedding"]),
            dense(c.width, c.dtype, name="time2")(nn.silu(time)),
            dense(c.width, c.dtype, name="image")(x),
            jnp.broadcast_to(self.param("query", normal(0.02), (c.width,))[None], (B, c.width)),
        ]
        h = jnp.concatenate([Words(c)(cond["tokens"]), jnp.stack(parts, axis=1)], axis=1)
        h = h + self.param("position", normal(0.02), h.shape[1:])[None].astype(c.dtype)
        h = Transformer(c.layers, c.heads, causal=True, dtype=c.dtype)(h)
        return dense(D, c.dtype, zero=True, name="out")(h[:, -1]).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: PriorConfig, key: jax.Array) -> dict:
    cond = null_cond(config, 1)
    return Prior(config).init(key, cond["text_embedding"], jnp.ones(1, jnp.int32), cond)["params"]


def null_cond(config: PriorConfig, B: int) -> dict[str, jax.Array]:
    """No text: all padding, and zeros for its embedding. There is no image embedding in it: that
    is the diffusion's state, which a model without text must see, too."""
    tokens = jnp.full((B, config.text.length), PAD, jnp.int32)
    return {"tokens": tokens, "text_embedding": jnp.zeros((B, config.dim))}


def scale(z: jax.Array) -> jax.Array:
    """Length 1 -> length sqrt(D), numbers of size 1.

    Paper: by 17.2 of sqrt(1024) = 32, so that the variance is that of pixels in [-1, 1].
    """
    return math.sqrt(z.shape[-1]) * z


def unscale(z: jax.Array) -> jax.Array:
    return z / math.sqrt(z.shape[-1])


def make_schedule(config: PriorConfig) -> Schedule:
    return cosine(config.T)


def make_loss(config: PriorConfig, drop: float) -> train.LossFn:
    """Loss of a batch {"tokens" (B, P, L), "text_embedding" (B, P, D), "image_embedding" (B, D)}.

    P captions of each picture, of which one is taken. The text is dropped with its embedding.
    """
    schedule = make_schedule(config)

    def loss_fn(params, batch, keys):
        split = jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys)
        noise_keys, phrase_keys, drop_keys = split
        x0 = scale(batch["image_embedding"])
        cond = train.one_phrasing(phrase_keys, batch, ("tokens", "text_embedding"))
        null = jax.tree.map(lambda a: a[0], null_cond(config, 1))
        cond = train.drop_condition(drop_keys, cond, null, drop)
        x, t, _ = train.noise_batch(schedule, x0, noise_keys)
        mse = jnp.square(Prior(config).apply({"params": params}, x, t, cond) - x0).mean()
        return mse, {"mse": mse}

    return loss_fn


def denoiser(config: PriorConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction: the border where x0 becomes eps, x the scaled embedding.

    Guiding eps is guiding x0: at one t the two are linear in each other.
    """
    schedule = make_schedule(config)

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        x0 = Prior(config).apply({"params": params}, x, t, cond)
        return Prediction(eps_from_x0(schedule, x, t, x0))

    return denoise


def best(z: jax.Array, text_embedding: jax.Array) -> jax.Array:
    """Of n samples (B, n, D) the one with the larger dot product with its text (B, D): (B, D)."""
    pick = jnp.einsum("bnd,bd->bn", z, text_embedding).argmax(1)
    return jnp.take_along_axis(z, pick[:, None, None], axis=1)[:, 0]


@functools.cache
def compiled(config: PriorConfig, steps: int, best_of: int):
    """run(params, cond, scales (B,), key) -> z_i (B, D)."""
    schedule, ts = make_schedule(config), sampler.timesteps(config.T, steps)

    def run(params, cond, scales, key):
        x_key, step_key = jax.random.split(key)
        B = len(scales)
        many = lambda a: jnp.repeat(a, best_of, axis=0)  # noqa: E731
        x = sampler.noise_like(x_key, jnp.zeros((B * best_of, config.dim)))
        null = null_cond(config, B * best_of)
        guided = classifier_free(denoiser(config, params), null, many(scales))
        # Paper: Analytic-DPM, 64 steps. DDPM's are as random. No x0_fn: an embedding has no range
        # to be clipped to, and scaled ones leave [-1, 1] one time in three.
        cond_many = jax.tree.map(many, cond)
        x = sampler.sample(guided, schedule, x, ts, cond_many, step_key, eta=1.0)
        return best(unscale(x).reshape(B, best_of, -1), cond["text_embedding"])

    return devices.jit(run)


def draw(
    config: PriorConfig,
    params: dict,
    tokens: np.ndarray,
    text_embedding: np.ndarray,
    *,
    guidance_scale: float = 1.0,
    steps: int = 64,
    best_of: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """tokens (B, L), text_embedding (B, D) -> image embeddings (B, D), of length near 1."""
    scales, key = np.full(len(tokens), guidance_scale, np.float32), jax.random.key(seed)

    def run(rows, i):
        cond = {"tokens": tokens[rows], "text_embedding": text_embedding[rows]}
        key_i = jax.random.fold_in(key, i)
        return compiled(config, steps, best_of)(params, cond, scales[rows], key_i)

    return in_chunks(run, len(tokens), CHUNK, "prior", progress)


def load(path: Path) -> tuple[PriorConfig, dict, dict]:
    """(config, params, metadata) of a released weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "unclip.prior", PriorConfig, init_params)
