"""The published weights of Karlo, the open unCLIP, in these blocks, from files that the user has.

    prior-ckpt-step=01000000-of-01000000.ckpt      decoder-ckpt-step=01000000-of-01000000.ckpt
    improved-sr-ckpt-step=1.2M.ckpt                all v1.0.alpha, told apart by their names
    ViT-L-14_stats.th                              mean and deviation of CLIP's embeddings

All read OpenAI's CLIP ViT-L/14: embeddings of 768 numbers, not brought to length 1, and the text
tower's last states. These networks learned to count t from 0: wrap what uses them in
common.pretrained.official. Padding is masked there; here it is cut off, which is the same (keys
that are not there weigh nothing), but needs texts of one length in a batch.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import pretrained
from common.checkpoint import CheckpointError
from common.guidance import Denoiser
from common.nn import Transformer, dense, time_embedding
from common.pretrained import Source, by_head, openai_unet, source
from common.process import Prediction, eps_from_x0
from common.schedule import Schedule
from common.tensorfile import load_tensors
from common.unet import UNet, UNetConfig

CLIP_DIM = 768
BLOCK = {"ln1": "ln_1", "out": "attn.c_proj", "ln2": "ln_2", "mlp_in": "mlp.c_fc",
         "mlp_out": "mlp.c_proj"}  # fmt: skip


# The prior.


@dataclass(frozen=True)
class KarloPriorConfig:
    dim: int = CLIP_DIM
    length: int = 77  # tokens of CLIP's text
    width: int = 2048
    layers: int = 20
    heads: int = 32


class KarloPrior(nn.Module):
    """x (B, D), t (B,), cond text_sequence (B, n, D), text_embedding (B, D) -> x0 (B, D).

    x is whitened: (z_i - mean) / std with the numbers of Karlo's file ViT-L-14_stats.th. n counts
    the tokens of the text, begin and end with them; the four others keep their places behind 77.
    """

    config: KarloPriorConfig

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        c, B, n = self.config, len(x), cond["text_sequence"].shape[1]
        time = dense(c.width, name="time1")(time_embedding(t, c.width))
        query = self.param("query", nn.initializers.normal(0.01), (c.width,))
        parts = [
            dense(c.width, name="text")(cond["text_embedding"]),
            dense(c.width, name="time2")(nn.silu(time)),
            dense(c.width, name="image")(x),
            jnp.broadcast_to(query[None], (B, c.width)),
        ]
        words = dense(c.width, name="words")(cond["text_sequence"])
        shape = (c.length + len(parts), c.width)
        position = self.param("position", nn.initializers.normal(0.01), shape)
        position = jnp.concatenate([position[:n], position[c.length :]])
        h = jnp.concatenate([words, jnp.stack(parts, axis=1)], axis=1) + position[None]
        h = Transformer(c.layers, c.heads, causal=True)(h)
        return dense(c.dim, name="out")(h[:, -1])


def init_prior(config: KarloPriorConfig, key: jax.Array) -> dict:
    z = jnp.zeros((1, config.dim))
    cond = {"text_sequence": jnp.zeros((1, config.length, config.dim)), "text_embedding": z}
    return KarloPrior(config).init(key, z, jnp.ones(1, jnp.int32), cond)["params"]


def prior_sources(config: KarloPriorConfig) -> dict[str, Source]:
    sources = {
        "time1": source("model.time_embed.0"),
        "time2": source("model.time_embed.2"),
        "words": source("model.text_enc_proj"),
        "text": source("model.text_emb_proj"),
        "image": source("model.clip_img_proj"),
        "out": source("model.out_proj"),
        "position": source("model.positional_embedding", lambda x: x[0]),
        "query": source("model.prd_emb", lambda x: x[0, 0]),
        "Transformer_0/final_norm": source("model.final_ln"),
    }
    for i in range(config.layers):
        block = f"model.transformer.resblocks.{i}"
        for ours, theirs in BLOCK.items():
            sources[f"Transformer_0/{ours}_{i}"] = source(f"{block}.{theirs}")
        heads = by_head(3, heads=config.heads)
        sources[f"Transformer_0/qkv_{i}"] = source(f"{block}.attn.c_qkv", heads)
    return sources


def load_prior(
    path: str | Path, config: KarloPriorConfig = KarloPriorConfig()
) -> tuple[KarloPriorConfig, dict]:
    """(config, params) of Karlo's prior; CheckpointError, in one line, for anything else."""
    tensors = pretrained.read(path, "Karlo's prior")
    init = functools.partial(init_prior, config)
    return config, pretrained.fill(path, tensors, prior_sources(config), init)


def load_stats(path: str | Path, dim: int = CLIP_DIM) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) of image embeddings: the prior draws (z_i - mean) / std."""
    stats = load_tensors(path)
    if {name: x.shape for name, x in stats.items()} != {"0": (dim,), "1": (dim,)}:
        raise CheckpointError(f"{path} is no mean and deviation of {dim} numbers: give Karlo's "
                              f"ViT-L-14_stats.th")  # fmt: skip
    return np.float32(stats["0"]), np.float32(stats["1"])


def prior_denoiser(config: KarloPriorConfig, params: dict, schedule: Schedule) -> Denoiser:
    """For official: eps of the whitened embedding, x0 clamped to +-10 as there.

    They guide x0 before they clamp it: give sampler.sample clamp_x0 as its x0_fn, and to whiten
    back, multiply by std and add the mean. Guidance 4, its null text is "".
    """

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        x0 = KarloPrior(config).apply({"params": params}, x, t, cond)
        return Prediction(eps_from_x0(schedule, x, t + 1, x0))  # official hands us t - 1

    return denoise


def clamp_x0(x0: jax.Array) -> jax.Array:
    return jnp.clip(x0, -10, 10)


# The decoder.


@dataclass(frozen=True)
class KarloDecoderConfig:
    size: int = 64  # pixels
    dim: int = CLIP_DIM
    context: int = 1536  # width of the tokens in front of the attention
    extra_tokens: int = 4
    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            out_channels=6, width=320, blocks=3, attention=(2, 4, 8), context="joint", dropout=0.1
        )
    )


class KarloDecoder(nn.Module):
    """x (B, 64, 64, 3), t, cond text_sequence (B, n, D), text_embedding, image_embedding (B, D).

    -> (B, 64, 64, 6). cond may have no image_embedding: a learned one stands for "none". Both of
    CLIP's embeddings are added to the time's.
    """

    config: KarloDecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        c, B = self.config, len(x)
        none = self.param("no_embedding", nn.initializers.normal(0.01), (c.dim,))
        z = cond.get("image_embedding", jnp.broadcast_to(none[None], (B, c.dim)))
        text = dense(4 * c.unet.width, name="text")(cond["text_embedding"])
        vector = dense(4 * c.unet.width, name="image")(z) + text
        extra = dense(c.extra_tokens * c.context, name="image_tokens")(z)
        extra = to_tokens(extra, c.extra_tokens)
        words = dense(c.context, name="words")(cond["text_sequence"])
        words = nn.LayerNorm(epsilon=1e-5, name="words_norm")(words)
        context = jnp.concatenate([extra, words], axis=1)
        return UNet(c.unet, name="unet")(x, t, vector=vector, context=context)


def to_tokens(x: jax.Array, tokens: int) -> jax.Array:
    """(B, D n) -> (B, n, D): here, unlike in our decoder, the token is the minor axis."""
    return x.reshape(len(x), -1, tokens).swapaxes(1, 2)


def init_decoder(config: KarloDecoderConfig, key: jax.Array) -> dict:
    z, side = jnp.zeros((1, config.dim)), 2 ** len(config.unet.multipliers)
    cond = {"text_sequence": z[None], "text_embedding": z}
    x = jnp.zeros((1, side, side, 3))
    return KarloDecoder(config).init(key, x, jnp.ones(1, jnp.int32), cond)["params"]


def under(prefix: str, sources: dict[str, Source]) -> dict[str, Source]:
    """The same tensors, by names with a prefix."""
    return {k: s._replace(names=tuple(prefix + n for n in s.names)) for k, s in sources.items()}


def decoder_sources(config: KarloDecoderConfig) -> dict[str, Source]:
    sources = {
        "no_embedding": source("model.cf_param"),
        "text": source("model.text_feat_proj"),
        "image": source("model.clip_emb"),
        "image_tokens": source("model.clip_tok_proj"),
        "words": source("model.text_seq_proj.0"),
        "words_norm": source("model.text_seq_proj.1"),
    }
    unet = under("model.", openai_unet(config.unet))
    return sources | {f"unet/{k}": s for k, s in unet.items()}


def load_decoder(
    path: str | Path, config: KarloDecoderConfig = KarloDecoderConfig()
) -> tuple[KarloDecoderConfig, dict]:
    """(config, params) of Karlo's decoder; CheckpointError, in one line, for anything else."""
    tensors = pretrained.read(path, "Karlo's decoder")
    init = functools.partial(init_decoder, config)
    return config, pretrained.fill(path, tensors, decoder_sources(config), init)


def decoder_denoiser(config: KarloDecoderConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction, for official; cosine schedule, guidance 8."""

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        out = KarloDecoder(config).apply({"params": params}, x, t, cond)
        return Prediction(*jnp.split(out, 2, axis=-1))

    return denoise


def guided(denoise: Denoiser, null_cond: dict, guidance_scale: float) -> Denoiser:
    """classifier_free for a null text of another length, which cannot share a batch: two calls."""

    def guided(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        pred, null = denoise(x, t, cond), denoise(x, t, null_cond)
        return pred._replace(eps=null.eps + guidance_scale * (pred.eps - null.eps))

    return guided


# Super-resolution, 64 -> 256 px in seven steps, of which the last has a network of its own.

SUPER_RESOLUTION = UNetConfig(
    out_channels=3, width=320, blocks=3, attention=(), middle_attention=False, scale_shift=False
)


def init_super_resolution(config: UNetConfig, key: jax.Array) -> dict:
    side = 2 ** len(config.multipliers)
    x = jnp.zeros((1, side, side, 3))
    one = lambda key: UNet(config).init(key, x, jnp.ones(1, jnp.int32), channels=x)  # noqa: E731
    first, last = jax.random.split(key)
    return {"first_steps": one(first)["params"], "last_step": one(last)["params"]}


def load_super_resolution(
    path: str | Path, config: UNetConfig = SUPER_RESOLUTION
) -> tuple[UNetConfig, dict]:
    """(config, {"first_steps": params, "last_step": params}), each UNet's, which takes the small
    picture, enlarged bicubically, as channels. CheckpointError, in one line, for anything else."""
    tensors = pretrained.read(path, "Karlo's super-resolution")
    sources = {f"{part}/{k}": s for part in ("first_steps", "last_step")
               for k, s in under(f"model_{part}.", openai_unet(config)).items()}  # fmt: skip
    init = functools.partial(init_super_resolution, config)
    return config, pretrained.fill(path, tensors, sources, init)
