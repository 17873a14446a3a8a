"""Train a denoiser of the scenes for SDEdit: config, data, loss, run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from common import data, plot, run, train
from common.process import to_float, velocity
from common.scenes.captions import caption
from sdedit.guides import strokes
from sdedit.model import PRESETS, Network, SdeditConfig, init_params, make_schedule, tokenize
from sdedit.sample import draw

PHRASINGS = 4  # captions kept of each picture


@dataclass(frozen=True)
class TrainConfig(run.RunConfig):
    """`python -m sdedit train`: each field is an option."""

    out: Path = Path("runs/sdedit")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    preset: Literal[tuple(PRESETS)] = "small"  # which model
    text_lr: float = 1e-4  # of the text transformer (run.adam_with_text says why)
    drop: float = 0.5  # probability that a caption is dropped: without one it is unconditional
    rho: float = 0.05  # caption noise: probability that a named shape or colour is wrong
    examples: int = 24_000  # pictures used, of the 24,000 there are


def make_loss(config: SdeditConfig, drop: float) -> train.LossFn:
    """Square error of a batch {"image": uint8 (B, H, W, 3), "tokens": (B, PHRASINGS, L)}.

    Ho et al. 2020, eq. 14; the variance is not learned.
    """
    schedule = make_schedule(config)

    def loss_fn(params, batch, keys):
        x0 = to_float(batch["image"])
        noise_keys, phrase_keys, drop_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
        pick = jax.vmap(lambda k: jax.random.randint(k, (), 0, PHRASINGS))(phrase_keys)
        tokens = jnp.take_along_axis(batch["tokens"], pick[:, None, None], axis=1)[:, 0]
        tokens = train.drop_condition(drop_keys, tokens, jnp.zeros_like(tokens[0]), drop)
        x, t, eps = train.noise_batch(schedule, x0, noise_keys)
        cond = {"tokens": tokens} if config.text else {}
        output = Network(config).apply({"params": params}, x, t, cond)
        target = velocity(schedule, x0, t, eps) if config.prediction == "velocity" else eps
        return jnp.square(output - target).mean()

    return loss_fn


def main(c: TrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; the run is the same either way."""
    run.start(c)
    config = PRESETS[c.preset]
    scenes = data.load("scenes", "train", size=config.size)
    rng = np.random.default_rng(c.seed)
    images, chosen = scenes["image"][: c.examples], scenes["scenes"][: c.examples]
    words = lambda scene: caption(scene, rng, c.rho) if config.text else ""  # noqa: E731
    texts = [words(scene) for scene in chosen for _ in range(PHRASINGS)]
    tokens = tokenize(config, texts).reshape(len(images), PHRASINGS, -1)
    guides = strokes(images[:8])

    def sample(params):
        pictures = draw(config, params, guides, t0=0.5, steps=50)
        return plot.grid(np.concatenate([guides, pictures]), columns=len(guides))

    run.run(c, model="sdedit", config=config, init=lambda key: init_params(config, key),
            loss_fn=make_loss(config, c.drop), batches={"image": images, "tokens": tokens},
            tx=run.adam_with_text(c, c.text_lr), sample=sample)  # fmt: skip
