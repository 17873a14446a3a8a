"""Train the latent model: config, latents of all pictures, loss, optimiser, run."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, data, devices, plot, run, train
from common.process import target, to_float
from common.scenes.captions import EXAMPLES, phrasings
from ldm import autoencoder, retrieval
from ldm.inpaint import inpaint, masked, random_edit_mask
from ldm.model import (
    BESIDE,
    CLASSES,
    Ldm,
    LdmConfig,
    conditions,
    init_params,
    make_schedule,
    null_condition,
    with_first_stage,
)
from ldm.presets import MODELS
from ldm.sample import draw
from ldm.semantic import PALETTE, paint, segment
from ldm.upscale import shrink, upscale

MEASURED = 512  # latents that the scale is measured on


@dataclass(frozen=True)
class TrainConfig(run.RunConfig):
    """`python -m ldm train`: each field is an option."""

    out: Path = Path("runs/ldm")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    steps: int = 11_000
    preset: Literal[tuple(MODELS)] = "small"  # which model
    autoencoder: Path | None = Path("runs/autoencoder/weights.safetensors")  # None: on pixels
    latent_scale: float | None = None  # measured, unless given (1 for none)
    base: Path | None = None  # weights of this model to begin with
    text: Path | None = None  # weights whose text transformer to begin with, such as glide's
    text_lr: float = 1e-4  # of the text transformer (run.adam_with_text says why)
    drop: float = 0.1  # probability that a condition is dropped (what guidance needs)
    rho: float = 0.05  # caption noise: probability that a named shape or colour is wrong
    late: float = 0.0  # times are drawn in proportion to t^late; 0 is uniform, as in the paper
    examples: int = 24_000  # pictures used, of the 24,000 there are


@dataclass(frozen=True)
class RetrievalTrainConfig(TrainConfig):
    """`python -m ldm train-retrieval`: `train`, with pictures alike in the place of captions."""

    out: Path = Path("runs/ldm_retrieval")
    preset: Literal["tiny_retrieval", "small_retrieval"] = "small_retrieval"  # which model
    clip: Path = retrieval.CLIP  # whose embeddings the network sees
    neighbours: int = 4  # of each picture


@functools.cache
def compiled_encode(first_stage: autoencoder.AutoencoderConfig):
    """run(params, uint8 (B, H, W, 3)) -> (B, h, w, C), or 2C with the log variance, float16."""

    def run(params, images):
        model = autoencoder.Autoencoder(first_stage)
        z, logvar = model.apply({"params": params}, to_float(images), method="encode")
        z = z if logvar is None else jnp.concatenate([z, logvar], -1)
        return z.astype(jnp.float16)

    return devices.jit(run)


def encode_all(config: LdmConfig, first_stage: dict, images: np.ndarray) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3) -> moments (N, h, w, C or 2C) float16, found once for all steps.

    A few bytes a position: they live on the device, and the first stage rests during training.
    """
    run = compiled_encode(config.first_stage)
    return devices.in_chunks(lambda rows, i: run(first_stage, images[rows]),
                             len(images), 64, "encoding", len(images) > 1000)  # fmt: skip


def draw_latent(moments: jax.Array, keys: jax.Array, channels: int) -> jax.Array:
    """Moments (B, h, w, C or 2C) -> z (B, h, w, C), drawn anew from the posterior in every step."""
    mean, logvar = moments[..., :channels], moments[..., channels:]
    logvar = logvar.astype(jnp.float32) if logvar.shape[-1] else None
    return autoencoder.draw(mean.astype(jnp.float32), logvar, keys)


def measure_scale(moments: np.ndarray, channels: int) -> float:
    """1 / std of all elements of the first latents; the mean is not subtracted from them.

    latent-diffusion's scale_by_std. Paper: of the first batch, and not of VQ latents.
    """
    keys = jax.random.split(jax.random.key(0), len(moments[:MEASURED]))
    z = np.asarray(draw_latent(jnp.asarray(moments[:MEASURED]), keys, channels), np.float64)
    return float(f"{1 / z.std():.5g}")  # fewer digits than devices could differ in


def make_loss(
    config: LdmConfig, drop: float, late: float = 0.0, first_stage: Any = None
) -> train.LossFn:
    """Square error of a batch {"moments": (B, h, w, C or 2C), and what the config asks for}.

    tokens (B, P, L); label (B,); context (B, k, D); semantic (B, H, W); low_res and image
    uint8 (B, ..., 3), of which the masked one is encoded by the params first_stage.
    Rombach et al. 2022, eq. 3.
    Paper: times are uniform (late 0, see glide/loss.py); inpainting and others take |error|.
    """
    schedule = make_schedule(config)
    weights = jnp.arange(1, config.T + 1) ** late if late else None

    def loss_fn(params, batch, keys):
        noise_keys, latent_keys, phrase_keys, drop_keys, mask_keys = jax.vmap(
            lambda key: tuple(jax.random.split(key, 5))
        )(keys)
        z0 = draw_latent(batch["moments"], latent_keys, config.first_stage.channels)
        z0 = config.latent_scale * z0

        cond = {}
        if config.condition == "text":
            cond = train.one_phrasing(phrase_keys, batch, ("tokens",))
        elif config.condition == "class":
            cond["label"] = batch["label"]
        elif config.condition == "neighbours":
            cond["context"] = batch["context"].astype(jnp.float32)
        null_cond = jax.tree.map(jnp.asarray, null_condition(config))
        cond = train.drop_condition(drop_keys, cond, null_cond, drop)
        if "low_res" in config.inputs:
            cond["low_res"] = to_float(batch["low_res"])
        if "semantic" in config.inputs:
            cond["semantic"] = batch["semantic"]
        if "masked" in config.inputs:
            edit_masks = jax.vmap(lambda key: random_edit_mask(key, config.size))(mask_keys)
            frozen = {"first_stage": first_stage}
            cond["masked"] = masked(config, frozen, to_float(batch["image"]), edit_masks)

        z, t, eps = train.noise_batch(schedule, z0, noise_keys, weights)
        output = Ldm(config).apply({"params": params}, z, t, cond)
        return jnp.square(output - target(config.prediction, schedule, z0, t, eps)).mean()

    return loss_fn


def load_data(config: LdmConfig, c: TrainConfig) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(pictures uint8 (N, H, W, 3), conditions); those of classes have a single object."""
    scenes = data.load("scenes", "train", size=config.size)
    images, scenes = scenes["image"][: c.examples], scenes["scenes"][: c.examples]
    if config.condition == "class":
        alone = np.array([len(scene.objects) == 1 for scene in scenes])
        objects = [scene.objects[0] for scene in scenes if len(scene.objects) == 1]
        label = [CLASSES.index((o.shape, o.colour)) for o in objects]
        images, batches = images[alone], {"label": np.array(label, np.int32)}
    elif config.condition == "text":
        encode = lambda texts: conditions(config, texts)["tokens"]  # noqa: E731
        batches = {"tokens": phrasings(scenes, encode, c.seed, c.rho)}
    elif config.condition == "neighbours":
        if not isinstance(c, RetrievalTrainConfig):
            raise ValueError(f"{c.preset} sees neighbours: train it with `train-retrieval`")
        batches = {"context": retrieval.training_context(c.clip, c.neighbours, len(images))}
    else:
        batches = {}
    if "semantic" in config.inputs:
        batches["semantic"] = segment(scenes, config.size)
    if "low_res" in config.inputs:
        batches["low_res"] = shrink(images, config.first_stage.factor)
    if "masked" in config.inputs:
        batches["image"] = images
    return images, batches


def optimiser(c: TrainConfig) -> optax.GradientTransformation:
    """Adam, the text transformer at text_lr.

    Paper: AdamW, with one rate and a weight decay of 0.01.
    """
    return run.adam_with_text(c, c.text_lr)


def init_with(
    config: LdmConfig, base: Path | None, text: Path | None
) -> Callable[[jax.Array], dict]:
    """init(key) -> params: `base`'s, or with those of the text transformer of `text`.

    Paper: it is learned with the U-Net. What words mean is known already to a GLIDE that has
    learned it; its map into the time embedding is of another U-Net, and starts afresh.
    ValueError: weights without what is asked of them, or of another shape.
    """
    if base and text:
        raise ValueError("base has a text transformer of its own: leave out text")
    path = base or text
    if path is None:
        return lambda key: init_params(config, key)
    params, metadata = checkpoint.load_weights(path)
    if base:
        theirs = metadata.get("config", {})
        for name in ("autoencoder", "latent_scale", "prediction", "T", "beta_min", "beta_max"):
            if theirs.get(name) != (own := getattr(config, name)):
                raise ValueError(f"{base} is no base of these weights: it has {name} "
                                 f"{theirs.get(name)}, not {own}")  # fmt: skip
    if text:
        words = params.get("text", {}).items()
        params = {"text": {name: leaves for name, leaves in words if name != "pooled"}}
    init = lambda key: train.begin_with(params, init_params(config, key))  # noqa: E731
    try:
        if not any(params.values()):
            raise ValueError("there is none")
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        what = "is no base of" if base else "has no text transformer for"
        raise ValueError(f"{path} {what} these weights: {error}") from None
    return init


def preview(config: LdmConfig, params: dict, images: np.ndarray, batch: dict) -> np.ndarray:
    """What the model draws now: the examples, or what it makes of pictures (N, H, W, 3)."""
    if "low_res" in config.inputs:
        drawn = upscale(config, params, shrink(images, config.first_stage.factor), steps=25)
        return plot.grid(np.concatenate([images, drawn]), columns=len(images))
    if "masked" in config.inputs:
        edit_masks = np.zeros((*images.shape[:3], 1), bool)
        edit_masks[:, 4:-4, config.size // 2 :] = True
        drawn = inpaint(config, params, images, edit_masks, steps=25)
        return plot.grid(np.concatenate([images, drawn]), columns=len(images))
    if "semantic" in config.inputs:
        drawn = paint(config, params, batch["semantic"], steps=25)
        return plot.grid(np.concatenate([PALETTE[batch["semantic"]], drawn]), columns=len(images))
    if config.condition == "neighbours":
        beside = {"context": batch["context"].astype(np.float32)}
        drawn = draw(config, params, [""] * len(images), beside=beside, steps=25)
        return plot.grid(np.concatenate([images, drawn]), columns=len(images))
    one = [p for p in EXAMPLES if "above" not in p and "below" not in p and "left" not in p]
    prompts = one if config.condition == "class" else EXAMPLES
    return plot.grid(draw(config, params, prompts, steps=25), captions=prompts)


def main(c: TrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; the run is the same either way."""
    run.start(c)
    config, first_stage = with_first_stage(MODELS[c.preset]), {}
    if c.autoencoder:
        of_first, first_stage, metadata = autoencoder.load(c.autoencoder)
        config = with_first_stage(config, of_first, metadata["digest"])
        if of_first.size != config.size:
            raise ValueError(f"{c.autoencoder} is of {of_first.size} pixels, {c.preset} of "
                             f"{config.size}: choose one of that size")  # fmt: skip

    images, batches = load_data(config, c)
    moments = encode_all(config, first_stage, images)
    scale = c.latent_scale
    if scale is None:  # Paper: pixels are not scaled either
        scale = measure_scale(moments, config.first_stage.channels) if c.autoencoder else 1.0
    config = replace(config, latent_scale=scale)
    print(f"{len(images)} latents of {moments.shape[1:3]}, scaled by {scale:g}")

    first = {name: rows[:8] for name, rows in batches.items()}
    run.run(
        c,
        model="ldm",
        config=config,
        init=init_with(config, c.base, c.text),
        loss_fn=make_loss(config, c.drop, c.late, first_stage),
        batches={"moments": moments, **batches},
        tx=optimiser(c),
        sample=lambda params: preview(
            config, {**params, "first_stage": first_stage}, images[:8], first
        ),
        command="train-retrieval" if isinstance(c, RetrievalTrainConfig) else "train",
    )
    if c.autoencoder and jax.process_index() == 0:
        shutil.copyfile(c.autoencoder, c.out / BESIDE)
