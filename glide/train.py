"""Train GLIDE's base model on captioned scenes: config, data, loss, optimiser, run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import data, plot, run, train
from common.process import to_float, to_uint8
from common.scenes.captions import EXAMPLES
from glide.inpaint import inpaint, known, random_keep_mask
from glide.loss import denoising_loss
from glide.model import (
    PRESETS,
    Glide,
    GlideConfig,
    for_inpainting,
    init_params,
    load,
    tokenizer,
)
from glide.sample import draw
from glide.upsampler import upsample


@dataclass(frozen=True)
class TrainConfig(run.RunConfig):
    """What is shared with the decoder of unCLIP."""

    out: Path = Path("runs/glide")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    steps: int = 12_000
    preset: Literal[tuple(PRESETS)] = "small"  # which model
    base: Path | None = None  # weights to begin with; what they lack starts as without them
    text_lr: float = 1e-4  # of the text transformer (run.adam_with_text says why)
    drop: float = 0.1  # probability that a caption is dropped (what guidance needs)
    rho: float = 0.05  # caption noise: probability that a named shape or colour is wrong
    late: float = 1.0  # times are drawn in proportion to t^late; 0 is uniform, as in the paper
    examples: int = 24_000  # pictures used, of the 24,000 there are


@dataclass(frozen=True)
class GlideTrainConfig(TrainConfig):
    """`python -m glide train`: each field is an option."""

    importance: bool = False  # draw times by how large the loss is there; needs --late 0


def make_loss(config: GlideConfig, drop: float, late: float = 0.0) -> train.LossFn:
    """Hybrid loss of a batch {"image": uint8 (B, H, W, 3), "tokens": (B, P, L)}."""

    def loss_fn(params, batch, keys):
        x0 = to_float(batch["image"])
        count = 3 + ("known" in config.inputs)
        split = jax.vmap(lambda k: tuple(jax.random.split(k, count)))(keys)
        noise_keys, phrase_keys, drop_keys, *mask_keys = split
        tokens = train.one_phrasing(phrase_keys, batch, ("tokens",))["tokens"]
        tokens = train.drop_condition(drop_keys, tokens, jnp.zeros_like(tokens[0]), drop)
        cond = {"tokens": tokens}
        if "known" in config.inputs:
            keep_masks = jax.vmap(lambda k: random_keep_mask(k, config.size))(mask_keys[0])
            cond["known"] = known(x0, keep_masks)
        if "low_res" in config.inputs:  # no noise or blur is added to it, as in ADM and GLIDE
            cond["low_res"] = nn.avg_pool(x0, (2, 2), (2, 2))
        apply = lambda x, t: Glide(config).apply({"params": params}, x, t, cond)  # noqa: E731
        return denoising_loss(config, apply, x0, noise_keys, late, batch.get("time_odds"))

    return loss_fn


def optimiser(c: TrainConfig) -> optax.GradientTransformation:
    """Adam, the text transformer at text_lr."""
    return run.adam_with_text(c, c.text_lr)


def preview(config: GlideConfig, params: dict, batches: dict[str, np.ndarray]) -> np.ndarray:
    """What the model draws now: the examples, or the first training pictures mended or enlarged."""
    images = batches["image"][: len(EXAMPLES)]
    prompts = tokenizer(config).decode(batches["tokens"][: len(EXAMPLES), 0])
    if "low_res" in config.inputs:
        small = np.asarray(to_uint8(nn.avg_pool(to_float(images), (2, 2), (2, 2))))
        return plot.grid(upsample(config, params, prompts, small), captions=prompts)
    if "known" in config.inputs:
        keep_masks = np.ones((*images.shape[:3], 1))
        keep_masks[:, 4:-4, config.size // 2 :] = 0
        drawn = inpaint(config, params, prompts, images, keep_masks, steps=25)
        return plot.grid(drawn, captions=prompts)
    images = draw(config, params, EXAMPLES, guidance_scale=3.0, steps=25, seed=0)
    return plot.grid(images, captions=EXAMPLES)


def main(c: GlideTrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; the run is the same either way."""
    if c.importance and c.late:
        raise ValueError(f"importance and late {c.late:g} both say how times are drawn: --late 0")
    run.start(c)
    config = PRESETS[c.preset]

    batches = data.captioned(tokenizer(config).encode, config.size, c)
    init = lambda key: init_params(config, key)  # noqa: E731
    if c.base:
        begun, params, _ = load(c.base)
        if "known" in config.inputs and "known" not in begun.inputs:
            begun, params = for_inpainting(begun, params)
        init = lambda key: train.begin_with(params, init_params(config, key))  # noqa: E731
        try:
            jax.eval_shape(init, jax.random.key(0))
        except ValueError as error:
            raise ValueError(f"{c.base} is no base of {c.preset}: {error}") from None

    run.run(
        c,
        model="glide",
        config=config,
        init=init,
        loss_fn=make_loss(config, c.drop, c.late),
        batches=batches,
        tx=train.importance_sampled(optimiser(c), config.T) if c.importance else optimiser(c),
        sample=lambda params: preview(config, params, batches),
    )
