"""The noise-aware classifier and the guidance by its gradient (Dhariwal & Nichol 2021, section 4).

python -m glide train-classifier
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from common import checkpoint, run, train
from common.process import to_float
from common.unet import Encoder, UNetConfig
from glide.classes import CLASSES, load_labelled
from glide.model import SMALL, TINY, make_schedule


def _encoder(unet: UNetConfig) -> UNetConfig:
    return replace(unet, context=None, out_channels=len(CLASSES))


@dataclass(frozen=True)
class ClassifierConfig:
    """The encoder half of a U-Net; its schedule must be that of the model it guides."""

    size: int = 32  # pixels
    T: int = 1000  # diffusion times
    schedule: str = "cosine"
    unet: UNetConfig = field(default_factory=lambda: _encoder(SMALL.unet))


PRESETS = {"tiny": ClassifierConfig(unet=_encoder(TINY.unet)), "small": ClassifierConfig()}


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ClassifierConfig, key: jax.Array) -> dict:
    x = jnp.zeros((1, config.size, config.size, 3))
    return Encoder(config.unet).init(key, x, jnp.ones(1, jnp.int32))["params"]


def log_prob(config: ClassifierConfig, params: dict) -> Callable[..., jax.Array]:
    """log_prob(x, t, {"label": (B,)}) -> log p(label | x_t) (B,), for `gradient_guidance`."""

    def of_label(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        logits = Encoder(config.unet).apply({"params": params}, x, t)
        logs = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(logs, cond["label"][:, None], axis=1)[:, 0]

    return of_label


def load(path: Path) -> tuple[ClassifierConfig, dict, dict]:
    """(config, params, metadata); CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "glide.classifier", ClassifierConfig, init_params)


@dataclass(frozen=True)
class ClassifierTrainConfig(run.RunConfig):
    """`python -m glide train-classifier`: each field is an option."""

    out: Path = Path("runs/classifier")  # checkpoints, metrics.jsonl, weights.safetensors
    preset: Literal[tuple(PRESETS)] = "small"  # which model
    lr: float = 6e-4  # AdamW, ADM's rate at 64 px; warms up, then falls to 0 as a cosine
    decay: float = 0.05  # weight decay


def make_loss(config: ClassifierConfig) -> train.LossFn:
    """Cross-entropy at times drawn uniformly; `right_0` to `right_3`: accuracy per quarter of t.

    A quarter's accuracy is 4 times the share of the batch that is right and in it: a mean over the
    log's window, whatever the batch.
    """
    schedule = make_schedule(config)

    def loss_fn(params, batch, keys):
        x, t, _ = train.noise_batch(schedule, to_float(batch["image"]), keys)
        logits = Encoder(config.unet).apply({"params": params}, x, t)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        right = logits.argmax(-1) == batch["label"]
        quarter = (t - 1) * 4 // config.T
        shares = {f"right_{q}": 4 * (right & (quarter == q)).mean() for q in range(4)}
        return loss, shares

    return loss_fn


def main(c: ClassifierTrainConfig) -> None:
    run.start(c)
    config = PRESETS[c.preset]
    adamw = optax.adamw(run.learning_rate(c), weight_decay=c.decay)
    # Paper: trains on random crops against overfitting; our renders never repeat a place exactly.
    run.run(
        c,
        model="glide.classifier",
        config=config,
        init=lambda key: init_params(config, key),
        loss_fn=make_loss(config),
        batches=load_labelled(config.size),
        tx=adamw,
        command="train-classifier",
    )
