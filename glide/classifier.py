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
import numpy as np
import optax

from common import checkpoint, devices, run, sampler, train
from common.guidance import Denoiser, gradient_guidance, mean_shift
from common.process import to_float, to_uint8
from common.unet import Encoder, UNetConfig
from glide import classes, model
from glide.classes import CLASSES, NULL, load_labelled
from glide.model import SMALL, GlideConfig, encode_text, make_schedule, tokenizer

Under = classes.ClassesConfig | GlideConfig  # the models that it guides
SHIPPED = Path(__file__).parent / "weights" / "classifier.safetensors"


def _encoder(unet: UNetConfig) -> UNetConfig:
    return replace(unet, context=None, num_classes=None, out_channels=len(CLASSES))


@dataclass(frozen=True)
class ClassifierConfig:
    """The encoder half of a U-Net; its schedule must be that of the model it guides."""

    size: int = 32  # pixels
    T: int = 1000  # diffusion times
    schedule: str = "cosine"
    unet: UNetConfig = field(default_factory=lambda: _encoder(SMALL.unet))


PRESETS = {name: ClassifierConfig(unet=_encoder(c.unet)) for name, c in classes.PRESETS.items()}


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


def told(config: Under, labels: np.ndarray) -> np.ndarray:
    """What tells the model underneath its classes: labels (B,), or GLIDE words, tokens (B, L)."""
    if isinstance(config, GlideConfig):
        return tokenizer(config).encode([classes.caption(label) for label in labels])
    return labels


def underneath(config: Under, params: dict, given: jax.Array) -> tuple[Denoiser, dict]:
    """(denoise, cond) of the model that is guided, given what `told` says."""
    if isinstance(config, GlideConfig):
        return model.denoiser(config, params), encode_text(config, params, given)
    return classes.denoiser(config, params), {"label": given}


@functools.cache
def compiled(config: Under, judge: ClassifierConfig, steps: int, how: str):
    """run(params, judge_params, given, wanted (B,), scale, key) -> uint8 (B, H, W, 3)."""
    schedule = make_schedule(config)
    ts = sampler.timesteps(config.T, steps)

    def sample(params, judge_params, given, wanted, scale, key):
        x_key, step_key = jax.random.split(key)
        shape = (len(given), config.size, config.size, config.channels)
        x = sampler.noise_like(x_key, jnp.zeros(shape))
        of_label = log_prob(judge, judge_params)
        towards = lambda x, t, cond: of_label(x, t, {"label": wanted})  # noqa: E731
        denoise, cond = underneath(config, params, given)
        args, options = (schedule, x, ts, cond, step_key), {"x0_fn": sampler.clip_x0}
        if how == "ddim":
            # Paper: ADM clips x0 first and leaves the guided one free; here it is clipped, too.
            guided = gradient_guidance(denoise, towards, schedule, scale)
            return to_uint8(sampler.sample(guided, *args, **options))
        shift = mean_shift(towards, scale, at=how)
        x = sampler.ancestral(denoise, *args, variance="learned", shift=shift, **options)
        return to_uint8(x)

    return devices.jit(sample)


def draw(
    under: tuple[Under, dict],
    judge: tuple[ClassifierConfig, dict],
    labels: np.ndarray,
    *,
    guidance_scale: float = 1.0,
    conditional: bool = True,
    how: Literal["x_t", "mean", "ddim"] = "x_t",
    steps: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """uint8 (B, H, W, 3) of B labels, by the classifier's gradient; scale 0 is the model alone.

    under: a class model, or GLIDE, which is told the class in words; conditional: is it told? how:
    ancestral steps whose mean moves by scale Sigma grad, taken at x_t (as ADM's code does) or at
    the mean (as its Algorithm 1), or DDIM with guided eps (Algorithm 2).
    """
    (config, params), (judge_config, judge_params) = under, judge
    wanted = np.asarray(labels, np.int32)
    given = told(config, wanted if conditional else np.full_like(wanted, NULL))
    run, key = compiled(config, judge_config, steps, how), jax.random.key(seed)

    def some(rows, i):
        args = (params, judge_params, given[rows], wanted[rows], np.float32(guidance_scale))
        return run(*args, jax.random.fold_in(key, i))

    return devices.in_chunks(some, len(wanted), devices.CHUNK, "drawing", progress)


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
