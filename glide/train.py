"""Train GLIDE's base model on captioned scenes: config, data, model, step, loop, checkpoint."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from common import checkpoint, data, devices, plot, train
from common.process import velocity
from common.scenes.captions import caption
from glide.model import (
    PRESETS,
    Glide,
    GlideConfig,
    init_params,
    make_schedule,
    predict,
    tokenizer,
)
from glide.sample import EXAMPLES, draw

PHRASINGS = 4  # captions kept of each picture
NOT_RECIPE = ("out", "sample_every", "coordinator", "hosts", "host")  # do not change the weights


@dataclass(frozen=True)
class TrainConfig:
    """`python -m glide train`: each field is an option."""

    preset: Literal["tiny", "small", "paper"] = "small"  # which model
    out: Path = Path("runs/glide")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    seed: int = 0
    steps: int = 4_000
    batch_size: int = 32
    lr: float = 1e-3  # Adam; warms up, then falls to 0 as a cosine
    warmup: int = 200  # steps
    drop: float = 0.1  # probability that a caption is dropped (what guidance needs)
    rho: float = 0.05  # caption noise: probability that a named shape or colour is wrong
    ema: float = 0.999  # decay of the averaged weights, which are the ones to sample with
    examples: int = 24_000  # pictures used, of the 24,000 there are
    log_every: int = 50  # steps; the log holds means over these
    sample_every: int = 1_000  # steps; a labelled grid under samples/
    save_every: int = 500  # steps, a multiple of log_every
    coordinator: str | None = None  # address:port of host 0, for several hosts
    hosts: int = 1
    host: int = 0  # this one's number


def make_loss(config: GlideConfig, drop: float) -> train.LossFn:
    """Hybrid loss of a batch {"image": uint8 (B, H, W, 3), "tokens": (B, PHRASINGS, L)}."""
    schedule = make_schedule(config)

    def loss_fn(params, batch, keys):
        x0 = batch["image"].astype(jnp.float32) / 127.5 - 1
        noise_keys, phrase_keys, drop_keys = jax.vmap(lambda k: tuple(jax.random.split(k, 3)))(keys)
        pick = jax.vmap(lambda k: jax.random.randint(k, (), 0, PHRASINGS))(phrase_keys)
        tokens = jnp.take_along_axis(batch["tokens"], pick[:, None, None], axis=1)[:, 0]
        tokens = train.drop_condition(drop_keys, tokens, jnp.zeros_like(tokens[0]), drop)
        x, t, eps = train.noise_batch(schedule, x0, noise_keys)
        output = Glide(config).apply({"params": params}, x, t, {"tokens": tokens})
        target = velocity(schedule, x0, t, eps) if config.prediction == "velocity" else eps
        error = output[..., : config.channels] - target
        return train.hybrid_loss(schedule, predict(config, output, x, t), error, x0, x, t)

    return loss_fn


def load_captioned(config: GlideConfig, c: TrainConfig) -> dict[str, np.ndarray]:
    """The training pictures and PHRASINGS tokenized captions of each, with caption noise rho."""
    scenes = data.load("scenes", "train", size=config.size)
    rng = np.random.default_rng(c.seed)
    chosen = scenes["scenes"][: c.examples]
    texts = [caption(scene, rng, c.rho) for scene in chosen for _ in range(PHRASINGS)]
    tokens = tokenizer(config).encode(texts)
    return {
        "image": scenes["image"][: c.examples],
        "tokens": tokens.reshape(-1, PHRASINGS, tokens.shape[-1]),
    }


def optimiser(c: TrainConfig) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0, c.lr, min(c.warmup, c.steps // 2), c.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def recorder(path: Path, start: int) -> Callable[[dict], None]:
    """A function that appends records to a JSON-lines file; what came after `start` is cut.

    A run killed after its last checkpoint has logged steps that will be taken again, and may have
    left half a line.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(line for line in whole if json.loads(line)["step"] <= start))
    draft.replace(path)

    def record(row: dict) -> None:
        with path.open("a") as f:
            f.write(json.dumps(row) + "\n")

    return record


def main(c: TrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; the run is the same either way."""
    devices.start(c.coordinator, c.hosts, c.host)
    devices.check_batch(c.batch_size, jax.device_count())
    if c.save_every % c.log_every:
        raise ValueError(f"save_every must be a multiple of log_every ({c.log_every})")
    config = PRESETS[c.preset]
    key, init_key = jax.random.split(jax.random.key(c.seed))

    batches = load_captioned(config, c)
    tx = optimiser(c)
    build = lambda: train.init_state(lambda k: init_params(config, k), tx, init_key)  # noqa: E731
    c.out.mkdir(parents=True, exist_ok=True)
    # What a checkpoint or weights must agree with, and what weights tell of their making.
    recipe = {k: v for k, v in asdict(c).items() if k not in NOT_RECIPE}
    saved = {"model": asdict(config), "train": recipe}
    folder = c.out / "checkpoints"
    if checkpoint.latest(folder) is None:
        state, start, seconds = build(), 0, 0.0
    else:
        state, start, extra = checkpoint.restore(folder, jax.eval_shape(build), saved)
        seconds = extra["seconds"]

    loss_fn = make_loss(config, c.drop)
    if c.hosts > 1:
        step = devices.sharded_step(train.make_train_step(loss_fn, tx, ema_decay=c.ema), batches)
    else:
        pure = train.make_train_step(loss_fn, tx, ema_decay=c.ema, axis_name=devices.AXIS)
        step = devices.pmap_step(pure, batches)

    first = jax.process_index() == 0
    record = recorder(c.out / "metrics.jsonl", start) if first else lambda row: None
    began, window = time.time() - seconds, []
    run = train.fit(step, state, key, examples=len(batches["image"]), batch_size=c.batch_size,
                    steps=c.steps)
    bar = tqdm(run, total=c.steps, initial=start, unit="it", disable=not first, desc="training")
    for i, state, metrics in bar:
        window.append(metrics)
        if i % c.log_every == 0 or i == c.steps:
            row = {k: float(np.mean([m[k] for m in window])) for k in metrics}
            window = []
            bar.set_postfix(loss=f"{row['loss']:.4f}")
            record({"step": i, **row})
        if first and i % c.sample_every == 0:
            params = devices.local(state.ema_params)
            images = draw(config, params, EXAMPLES, guidance_scale=3.0, steps=25, seed=0)
            (c.out / "samples").mkdir(exist_ok=True)
            plot.save(plot.grid(images, captions=EXAMPLES), c.out / "samples" / f"{i:06d}.png")
        if i % c.save_every == 0 or i == c.steps:
            checkpoint.save(folder, i, state, saved, {"seconds": time.time() - began})
    if first:
        weights = c.out / "weights.safetensors"
        recipe |= {"command": command(c), "seconds": time.time() - began, "jax": jax.__version__,
                   "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
        metadata = {"model": "glide", "config": asdict(config), "recipe": recipe}
        checkpoint.save_weights(weights, devices.local(state.ema_params), metadata)
        print(f"weights: {weights}")


def command(c: TrainConfig) -> str:
    """The command line that repeats this run."""
    changed = [(k, v) for k, v in asdict(c).items() if v != getattr(TrainConfig(), k)]
    options = [f"--{k.replace('_', '-')} {v}" for k, v in changed if k not in ("out", "host")]
    return " ".join(["python -m glide train", *options])
