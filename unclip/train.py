"""Train unCLIP's parts on captioned scenes: the decoder, the diffusion prior, the AR prior.

CLIP is frozen: pictures and captions are embedded once, before the first step.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import data, plot, run, train
from common.process import to_float
from common.scenes.captions import EXAMPLES
from glide.loss import denoising_loss
from glide.model import tokenizer
from glide.train import TrainConfig as GlideTrainConfig
from glide.train import optimiser
from unclip import ar_prior, diffusion_prior, model
from unclip.model import Clip, Decoder, DecoderConfig, for_clip, open_clip
from unclip.sample import SHIPPED_CLIP, decode


@dataclass(frozen=True)
class DecoderTrainConfig(GlideTrainConfig):
    """`python -m unclip train`: the decoder; each field is an option."""

    out: Path = Path("runs/unclip")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    steps: int = 3_500
    preset: Literal[tuple(model.PRESETS)] = "small"  # which model
    base: Path | None = None  # GLIDE's weights to begin with; what GLIDE has not begins at zero
    clip: Path = SHIPPED_CLIP
    embedding: Literal["image", "text"] = "image"  # text: train on the captions' (section 5.1)
    drop: float = 0.5  # probability that a caption is dropped
    drop_embedding: float = 0.1  # and, independently, an embedding


@dataclass(frozen=True)
class PriorTrainConfig(run.RunConfig):
    """`python -m unclip train-prior`: the diffusion prior."""

    out: Path = Path("runs/unclip_prior")  # checkpoints, metrics.jsonl, weights.safetensors
    steps: int = 3_000
    batch_size: int = 64
    lr: float = 1e-3  # AdamW; warms up, then falls to 0 as a cosine
    weight_decay: float = 0.06  # of matrices and embeddings; the paper's
    preset: Literal[tuple(diffusion_prior.PRESETS)] = "small"  # which model
    clip: Path = SHIPPED_CLIP
    drop: float = 0.1  # probability that a caption is dropped (what guidance needs)
    rho: float = 0.05  # caption noise: probability that a named shape or colour is wrong
    examples: int = 24_000  # pictures used, of the 24,000 there are


@dataclass(frozen=True)
class ArTrainConfig(PriorTrainConfig):
    """`python -m unclip train-ar-prior`: the autoregressive prior."""

    out: Path = Path("runs/unclip_ar_prior")  # checkpoints, metrics.jsonl, weights.safetensors
    steps: int = 4_000
    batch_size: int = 32  # its rows are three times as long
    weight_decay: float = 0.04  # of matrices and embeddings; the paper's


def make_loss(
    config: DecoderConfig, drop: float, drop_embedding: float, late: float = 0.0
) -> train.LossFn:
    """GLIDE's loss of {"image" (B, H, W, 3), "tokens" (B, P, L), "image_embedding" (B, D)}.

    Captions and embeddings are dropped independently; the embedding before its two ways part, so
    that both of them lose it. A decoder of text embeddings takes "text_embedding" (B, P, D).
    """

    def loss_fn(params, batch, keys):
        split = jax.vmap(lambda key: tuple(jax.random.split(key, 4)))(keys)
        noise_keys, phrase_keys, drop_keys, embedding_keys = split
        on_text = config.embedding == "text"
        cond = train.one_phrasing(phrase_keys, batch, ("tokens", "text_embedding")[: 1 + on_text])
        z = cond["text_embedding"] if on_text else batch["image_embedding"]
        tokens = cond["tokens"]
        cond = {
            "tokens": train.drop_condition(drop_keys, tokens, 0 * tokens[0], drop),
            "image_embedding": train.drop_condition(embedding_keys, z, 0 * z[0], drop_embedding),
        }
        apply = lambda x, t: Decoder(config).apply({"params": params}, x, t, cond)  # noqa: E731
        return denoising_loss(config, apply, to_float(batch["image"]), noise_keys, late)

    return loss_fn


def load_embedded(config, c, clip: Clip, texts: bool, images: bool) -> dict[str, np.ndarray]:
    """Tokens (N, P, L) and image embeddings (N, D) of the training scenes, of config's lengths;
    with `texts` text embeddings (N, P, D), with `images` the pictures."""
    batches = data.captioned(tokenizer(config).encode, config.size, c)
    batches["image_embedding"] = clip.images(batches["image"])
    if texts:
        tokens = batches["tokens"]
        words = tokenizer(config).decode(tokens.reshape(-1, tokens.shape[-1]))
        batches["text_embedding"] = clip.texts(words).reshape(*tokens.shape[:2], -1)
    return batches if images else {k: v for k, v in batches.items() if k != "image"}


def preview(config: DecoderConfig, params: dict, z: np.ndarray, images: np.ndarray):
    """Training pictures, and below each what the decoder makes of its embedding alone."""
    drawn = decode(config, params, z, steps=25, seed=0)
    return plot.grid(np.concatenate([images, drawn]), columns=len(images))


def main(c: DecoderTrainConfig) -> None:
    """Train the decoder from scratch, or go on where `out` stopped."""
    run.start(c)
    clip = open_clip(c.clip)
    config = replace(for_clip(model.PRESETS[c.preset], clip), embedding=c.embedding)
    init = lambda key: model.init_params(config, key)  # noqa: E731
    if c.base:
        init = lambda key: model.begin_with_glide(config, c.base, key)  # noqa: E731
        jax.eval_shape(init, jax.random.key(0))  # refuses other weights before the work
    batches = load_embedded(config, c, clip, c.embedding == "text", True)
    few = {k: v[: len(EXAMPLES)] for k, v in batches.items()}
    z = few["text_embedding"][:, 0] if c.embedding == "text" else few["image_embedding"]
    run.run(
        c,
        model="unclip",
        config=config,
        init=init,
        loss_fn=make_loss(config, c.drop, c.drop_embedding, c.late),
        batches=batches,
        tx=optimiser(c),
        sample=lambda params: preview(config, params, z, few["image"]),
    )


def adamw(c: PriorTrainConfig) -> optax.GradientTransformation:
    """AdamW with the paper's b2; biases, gains and what is not trained do not decay."""

    def matrices(params):
        network = params.get("network", params)
        decays = jax.tree.map(lambda p: p.ndim > 1, network)
        if "network" not in params:
            return decays
        return {"network": decays, "code": jax.tree.map(lambda p: False, params["code"])}

    b2 = 0.91 if isinstance(c, ArTrainConfig) else 0.96
    rate = run.learning_rate(c)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=b2, weight_decay=c.weight_decay, mask=matrices),
    )


def train_prior(c: PriorTrainConfig) -> None:
    """Train the diffusion prior from scratch, or go on where `out` stopped."""
    run.start(c)
    clip = open_clip(c.clip)
    config = for_clip(diffusion_prior.PRESETS[c.preset], clip)
    run.run(
        c,
        model="unclip.prior",
        config=config,
        init=lambda key: diffusion_prior.init_params(config, key),
        loss_fn=diffusion_prior.make_loss(config, c.drop),
        batches=load_embedded(replace(clip.config, text=config.text), c, clip, True, False),
        tx=adamw(c),
        command="train-prior",
    )


def train_ar_prior(c: ArTrainConfig) -> None:
    """Fit the code and train the AR prior from scratch, or go on where `out` stopped."""
    run.start(c)
    clip = open_clip(c.clip)
    config = for_clip(ar_prior.PRESETS[c.preset], clip)
    batches = load_embedded(replace(clip.config, text=config.text), c, clip, True, False)
    z = batches.pop("image_embedding")
    dots = np.einsum("nd,npd->np", z, batches["text_embedding"])
    config = replace(config, components=min(config.components, ar_prior.components_needed(z)))
    code = ar_prior.fit_code(config, z, dots)
    batches |= {"codes": ar_prior.to_codes(code, z), "dot": ar_prior.to_dot(code, dots)}
    back = np.asarray(ar_prior.from_codes(code, jnp.asarray(batches["codes"])))
    lost = np.square(back - z).sum() / np.square(z - z.mean(0)).sum()
    print(f"{config.components} components, {config.buckets} buckets: {lost:.1%} of the mean "
          f"square of the embeddings is lost")  # fmt: skip
    run.run(
        c,
        model="unclip.ar_prior",
        config=config,
        init=lambda key: ar_prior.init_params(config, key, code),
        loss_fn=ar_prior.make_loss(config, c.drop),
        batches=batches,
        tx=adamw(c),
        command="train-ar-prior",
    )
