"""Train a denoiser for SDEdit, of the scenes or of real pictures: config, data, loss, run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from common import data, plot, run, train
from common.process import target, to_float
from common.scenes.captions import phrasings
from sdedit.guides import strokes
from sdedit.model import PRESETS, Network, SdeditConfig, init_params, make_schedule, tokenize
from sdedit.sample import draw


@dataclass(frozen=True)
class TrainConfig(run.RunConfig):
    """`python -m sdedit train`: each field is an option."""

    out: Path = Path("runs/sdedit")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    preset: Literal[tuple(PRESETS)] = "small"  # which model
    dataset: Literal[(*data.NAMES, "photos")] = "scenes"  # the others have no captions
    text_lr: float = 1e-4  # of the text transformer (run.adam_with_text says why)
    drop: float = 0.5  # probability that a caption is dropped: without one it is unconditional
    rho: float = 0.05  # caption noise: probability that a named shape or colour is wrong
    examples: int = 24_000  # pictures used, of the 24,000 there are


def pictures(name: str, split: str, size: int) -> dict[str, np.ndarray]:
    """data.load, and "photos": patches of the photographs that scikit-learn ships, every 4 pixels.

    At half their size; the third quarter of each photograph, from the left, is the test split.
    """
    if name != "photos":
        return data.load(name, split, size=size)
    from sklearn.datasets import load_sample_images

    parts = []
    for photo in load_sample_images().images:
        quarters = np.array_split(np.asarray(Image.fromarray(photo).reduce(2)), 4, axis=1)
        train_set = [np.concatenate(quarters[:2], 1), quarters[3]]
        for part in [quarters[2]] if split == "test" else train_set:
            windows = np.lib.stride_tricks.sliding_window_view(part, (size, size), (0, 1))
            parts.append(windows[::4, ::4].transpose(0, 1, 3, 4, 2).reshape(-1, size, size, 3))
    return {"image": np.concatenate(parts)}


def make_loss(config: SdeditConfig, drop: float) -> train.LossFn:
    """Square error of a batch {"image": uint8 (B, H, W, 3), "tokens": (B, P, L)}.

    Ho et al. 2020, eq. 14; the variance is not learned.
    """
    schedule = make_schedule(config)

    def loss_fn(params, batch, keys):
        x0 = to_float(batch["image"])
        noise_keys, phrase_keys, drop_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
        tokens = train.one_phrasing(phrase_keys, batch, ("tokens",))["tokens"]
        tokens = train.drop_condition(drop_keys, tokens, jnp.zeros_like(tokens[0]), drop)
        x, t, eps = train.noise_batch(schedule, x0, noise_keys)
        cond = {"tokens": tokens} if config.text else {}
        output = Network(config).apply({"params": params}, x, t, cond)
        return jnp.square(output - target(config.prediction, schedule, x0, t, eps)).mean()

    return loss_fn


def main(c: TrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; the run is the same either way."""
    run.start(c)
    config = PRESETS[c.preset]
    if c.dataset != "scenes" and config.text:
        config = replace(config, text=None, unet=replace(config.unet, context=None))
    found = pictures(c.dataset, "train", config.size)
    images = found["image"][: c.examples]
    encode = lambda texts: tokenize(config, texts)  # noqa: E731
    if config.text:
        tokens = phrasings(found["scenes"][: c.examples], encode, c.seed, c.rho)
    else:
        tokens = encode([""] * len(images))[:, None]
    guides = strokes(images[:8])

    def sample(params):
        pictures = draw(config, params, guides, t0=0.5, steps=50)
        return plot.grid(np.concatenate([guides, pictures]), columns=len(guides))

    run.run(c, model="sdedit", config=config, init=lambda key: init_params(config, key),
            loss_fn=make_loss(config, c.drop), batches={"image": images, "tokens": tokens},
            tx=run.adam_with_text(c, c.text_lr), sample=sample)  # fmt: skip
