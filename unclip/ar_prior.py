"""The autoregressive prior P(z_i | y): the embedding as a row of codes, drawn one by one.

PCA turns z_i into components of falling variance, each is cut into buckets, and a causal
transformer guesses one after the other, the coarse first. In front stand the text tokens, the text
embedding, and a token that says how well z_i is to fit the text: the quantised z_i . z_t.
Ramesh et al. 2022, section 2.2.
"""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, devices, train
from common.devices import in_chunks
from common.nn import Transformer, dense
from common.text import PAD, TextConfig
from unclip import diffusion_prior
from unclip.diffusion_prior import CHUNK, Words

normal = nn.initializers.normal


@dataclass(frozen=True)
class ArConfig:
    """Defaults are the paper's, whose text encoder is a transformer of its own."""

    dim: int = 1024  # of CLIP's embeddings
    components: int = 319  # of the PCA; less than 1% of the mean square is lost
    buckets: int = 1024  # of each component
    dots: int = 64  # buckets of the dot product
    text: TextConfig = field(  # ids and number of the tokens, and the transformer of it all
        default_factory=lambda: TextConfig(49_408, length=256, width=1664, layers=24, heads=26)
    )
    clip: str = ""  # digest of the CLIP whose embeddings it was trained on


PAPER = ArConfig()
SMALL = ArConfig(dim=128, components=48, buckets=128, dots=16, text=diffusion_prior.SMALL.text)
TINY = ArConfig(dim=16, components=8, buckets=16, dots=4, text=diffusion_prior.TINY.text)
PRESETS = {"tiny": TINY, "small": SMALL, "paper": PAPER}


class ArPrior(nn.Module):
    """cond tokens (B, L), text_embedding (B, D), dot (B,) in 0..dots (dots: none was said), and

    codes (B, K) -> logits (B, K, buckets), those of code k from the codes before it alone.
    Paper: leaves open how the text stands before the codes. Here all is one causal row, [words,
    text embedding, dot product, codes], of one transformer; bucket b is the same vector in every
    component, which its place tells apart.
    """

    config: ArConfig

    @nn.compact
    def __call__(self, cond: dict[str, jax.Array], codes: jax.Array) -> jax.Array:
        c, K = self.config.text, self.config.components
        embed = lambda n, name: nn.Embed(  # noqa: E731
            n, c.width, dtype=c.dtype, embedding_init=normal(1.0), name=name
        )
        z = math.sqrt(self.config.dim) * cond["text_embedding"]
        dots = embed(self.config.dots + 1, "dots")(cond["dot"])
        front = jnp.stack([dense(c.width, c.dtype, name="text")(z), dots], axis=1)
        words = Words(c, name="words")(cond["tokens"])
        behind = embed(self.config.buckets, "codes")(codes[:, :-1])
        h = jnp.concatenate([words, front, behind], axis=1)
        h = h + self.param("position", normal(0.02), h.shape[1:])[None].astype(c.dtype)
        h = Transformer(c.layers, c.heads, causal=True, dtype=c.dtype)(h)
        out = dense(self.config.buckets, c.dtype, zero=True, name="out")
        return out(h[:, -K:]).astype(jnp.float32)


# The code: embeddings to buckets and back. It is fitted, not trained, and kept with the weights.


def fit_code(
    config: ArConfig, image_embedding: np.ndarray, dot: np.ndarray
) -> dict[str, np.ndarray]:
    """PCA and bucket edges of z_i (N, D) and of dot products (M,) with their texts.

    Paper: does not say where buckets end. Ours hold equally many training values each (quantiles),
    and give back their mean; so the upper half of the buckets is the upper half of the values.
    """
    from sklearn.decomposition import PCA  # here: it takes a second to import

    pca = PCA(config.components, svd_solver="full").fit(image_embedding)
    values = pca.transform(image_embedding)  # (N, K), variance falling
    inner = np.arange(1, config.buckets) / config.buckets
    edges = np.quantile(values, inner, axis=0).T  # (K, buckets - 1)
    centres = np.empty((config.components, config.buckets))
    for k, column in enumerate(values.T):
        code = np.searchsorted(edges[k], column)
        count = np.bincount(code, minlength=config.buckets)
        total = np.bincount(code, column, config.buckets)
        middle = np.quantile(column, (np.arange(config.buckets) + 0.5) / config.buckets)
        centres[k] = np.where(count, total / np.maximum(count, 1), middle)
    code = {"mean": pca.mean_, "axes": pca.components_, "edges": edges, "centres": centres,
            "dots": np.quantile(dot, np.arange(1, config.dots) / config.dots)}  # fmt: skip
    return {name: np.float32(value) for name, value in code.items()}


def to_codes(code: dict, z: np.ndarray) -> np.ndarray:
    """Embeddings (N, D) -> int32 (N, K), component 0 being that of the largest variance."""
    values = (np.asarray(z) - code["mean"]) @ np.asarray(code["axes"]).T
    pairs = zip(code["edges"], values.T, strict=True)
    return np.stack([np.searchsorted(edges, column) for edges, column in pairs], 1).astype(np.int32)


def from_codes(code: dict, codes: jax.Array) -> jax.Array:
    """Codes (B, K) -> embeddings (B, D)."""
    each = jnp.arange(codes.shape[1])[None]
    return jnp.asarray(code["centres"])[each, codes] @ code["axes"] + code["mean"][None]


def to_dot(code: dict, dot: np.ndarray) -> np.ndarray:
    """Dot products -> their buckets, int32 in 0..dots - 1."""
    return np.searchsorted(code["dots"], dot).astype(np.int32)


def components_needed(z: np.ndarray, lost: float = 0.01) -> int:
    """How many components keep all but `lost` of the mean square of z (N, D) about its mean."""
    share = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(share) / share.sum(), 1 - lost)) + 1


def init_params(config: ArConfig, key: jax.Array, code: dict | None = None) -> dict:
    """{"network": what is trained, "code": what fit_code found, or zeros}."""
    cond = null_cond(config, 1)
    codes = jnp.zeros((1, config.components), jnp.int32)
    network = ArPrior(config).init(key, cond, codes)["params"]
    K = config.components
    shapes = {"mean": (config.dim,), "axes": (K, config.dim), "edges": (K, config.buckets - 1),
              "centres": (K, config.buckets), "dots": (config.dots - 1,)}  # fmt: skip
    code = code or {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return {"network": network, "code": jax.tree.map(jnp.asarray, code)}


def null_cond(config: ArConfig, B: int) -> dict[str, jax.Array]:
    """No text: all padding, zeros for its embedding, and no word on the dot product with it."""
    tokens = jnp.full((B, config.text.length), PAD, jnp.int32)
    z, dot = jnp.zeros((B, config.dim)), jnp.full(B, config.dots, jnp.int32)
    return {"tokens": tokens, "text_embedding": z, "dot": dot}


def make_loss(config: ArConfig, drop: float) -> train.LossFn:
    """Cross-entropy, nats per code, of {"tokens", "text_embedding", "dot" (B, P), "codes" (B, K)}.

    The text is dropped with its embedding and the dot product.
    """

    def loss_fn(params, batch, keys):
        phrase_keys, drop_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        cond = train.one_phrasing(phrase_keys, batch, ("tokens", "text_embedding", "dot"))
        null = jax.tree.map(lambda a: a[0], null_cond(config, 1))
        cond = train.drop_condition(drop_keys, cond, null, drop)
        logits = ArPrior(config).apply({"params": params["network"]}, cond, batch["codes"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["codes"])
        return loss.mean(), {"first": loss[:, 0].mean(), "last": loss[:, -1].mean()}

    return loss_fn


@functools.cache
def compiled(config: ArConfig):
    """run(params, cond, scales (B,), key) -> z_i (B, D): K passes of the network, one scan."""

    def run(params, cond, scales, key):
        B, K = len(scales), config.components
        null = null_cond(config, B)
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null)
        row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))

        def step(codes, k):
            twice = jnp.concatenate([codes, codes])
            logits = ArPrior(config).apply({"params": params["network"]}, both, twice)
            logits = jax.lax.dynamic_index_in_dim(logits, k, axis=1, keepdims=False)
            with_text, without = jnp.split(logits, 2)
            logits = without + scales[:, None] * (with_text - without)
            keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, k)
            return codes.at[:, k].set(jax.vmap(jax.random.categorical)(keys, logits)), None

        codes, _ = jax.lax.scan(step, jnp.zeros((B, K), jnp.int32), jnp.arange(K))
        return from_codes(params["code"], codes)

    return devices.jit(run)


def draw(
    config: ArConfig,
    params: dict,
    tokens: np.ndarray,
    text_embedding: np.ndarray,
    *,
    guidance_scale: float = 1.0,
    percentile: float = 50,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """tokens (B, L), text_embedding (B, D) -> image embeddings (B, D), of length near 1.

    percentile: the dot product is drawn from what lies above it in training (0: from all of it).
    """
    lowest = min(int(config.dots * percentile / 100), config.dots - 1)
    dots = np.random.default_rng(seed).integers(lowest, config.dots, len(tokens), np.int32)
    scales, key = np.full(len(tokens), guidance_scale, np.float32), jax.random.key(seed)

    def run(rows, i):
        cond = {"tokens": tokens[rows], "text_embedding": text_embedding[rows], "dot": dots[rows]}
        return compiled(config)(params, cond, scales[rows], jax.random.fold_in(key, i))

    return in_chunks(run, len(tokens), CHUNK, "prior", progress)


def load(path: Path) -> tuple[ArConfig, dict, dict]:
    """(config, params, metadata) of a released weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "unclip.ar_prior", ArConfig, init_params)
