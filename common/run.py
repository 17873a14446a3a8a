"""A training run in a folder: resume, progress bar, metrics, sample grids, checkpoints, weights.

    out/checkpoints/<step>/    two newest states; the same command goes on from there
    out/metrics.jsonl          one row per log_every steps, means over them
    out/samples/<step>.png     what the averaged weights draw
    out/weights.safetensors    written at the end, with config and recipe inside

A run killed at any moment goes on from its last checkpoint as if nothing had happened; asked to
stop (control-C, SIGTERM of a preempted machine) it writes one first.
"""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from common import checkpoint, devices, plot, train


@dataclass(frozen=True)
class RunConfig:
    """What every `train` command has; the packages add their own and their defaults."""

    out: Path = Path("runs/model")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    seed: int = 0
    steps: int = 10_000
    batch_size: int = 32
    lr: float = 1e-3  # Adam; warms up, then falls to 0 as a cosine
    warmup: int = 200  # steps
    ema: float = 0.999  # decay of the averaged weights, which are the ones to sample with
    log_every: int = 50  # steps; the log holds means over these
    sample_every: int = 1_000  # steps; a labelled grid under samples/
    save_every: int = 500  # steps
    coordinator: str | None = None  # address:port of host 0, for several hosts
    hosts: int = 1
    host: int = 0  # this one's number


NOT_RECIPE = ("out", "sample_every", "coordinator", "hosts", "host")  # do not change the weights


def learning_rate(c: RunConfig) -> optax.Schedule:
    """From 0 to lr in `warmup` steps (at most half of all), then down to 0 as a cosine."""
    return optax.warmup_cosine_decay_schedule(0, c.lr, min(c.warmup, c.steps // 2), c.steps)


def adam(c: RunConfig) -> optax.GradientTransformation:
    """Adam on gradients clipped to norm 1, with learning_rate(c)."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate(c)))


def adam_with_text(c: RunConfig, text_lr: float) -> optax.GradientTransformation:
    """adam(c), with params["text"], if there is one, at a rate of its own.

    At the U-Net's 1e-3 the words are noise to a network that cannot use them yet, and within a few
    hundred steps the transformer learns to give the same output for all of them: after 400 steps
    "a red ball" and "a blue ball" differed by 0.007 in the pooled vector, from 1.1 at the start,
    and by 0.1 at 1e-4. (GLIDE trains everything at 1e-4, for millions of steps.) The map to the
    pooled vector starts at zero and keeps the full rate.
    """

    def slow_text(updates, params=None):
        if "text" not in updates:
            return updates
        text = jax.tree.map(lambda u: text_lr / c.lr * u, updates["text"])
        if "pooled" in text:
            text["pooled"] = updates["text"]["pooled"]
        return {**updates, "text": text}

    # Adam scales gradients away, so scaling what comes out of it sets the rate.
    return optax.chain(adam(c), optax.stateless(slow_text))


def start(c: RunConfig) -> None:
    """Before anything else touches jax: hosts find each other, and bad options are refused."""
    devices.start(c.coordinator, c.hosts, c.host)
    devices.check_batch(c.batch_size, jax.device_count())


def run(
    c: RunConfig,
    *,
    model: str,
    config: Any,
    init: Callable[[jax.Array], Any],
    loss_fn: train.LossFn,
    batches: dict[str, np.ndarray],
    tx: optax.GradientTransformation | None = None,
    sample: Callable[[Any], np.ndarray] | None = None,
    command: str = "train",
) -> dict:
    """Train from scratch, or go on where `out` stopped (the run is the same either way).

    model, command: names, for the weights' metadata; config: the model's dataclass; init(key) ->
    params; batches: all examples, leaves (N, ...), kept on the devices; sample(params) -> a grid.
    -> the averaged params. CheckpointError: `out` holds another run.
    """
    key, init_key = jax.random.split(jax.random.key(c.seed))
    tx = adam(c) if tx is None else tx
    build = lambda: train.init_state(init, tx, init_key)  # noqa: E731
    c.out.mkdir(parents=True, exist_ok=True)
    # What a checkpoint or weights must agree with, and what weights tell of their making.
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(c).items()}
    recipe = {k: v for k, v in plain.items() if k not in NOT_RECIPE}
    saved = {"model": asdict(config), "train": recipe}
    folder = c.out / "checkpoints"
    if checkpoint.latest(folder) is None:
        state, begin, extra = build(), 0, {"seconds": 0.0, "window": []}
    else:
        state, begin, extra = checkpoint.restore(folder, jax.eval_shape(build), saved)

    if c.hosts > 1:
        step = devices.sharded_step(train.make_train_step(loss_fn, tx, ema_decay=c.ema), batches)
    else:
        pure = train.make_train_step(loss_fn, tx, ema_decay=c.ema, axis_name=devices.AXIS)
        step = devices.pmap_step(pure, batches)

    first = jax.process_index() == 0
    record = recorder(c.out / "metrics.jsonl", begin) if first else lambda row: None
    began, window = time.time() - extra["seconds"], extra["window"]
    examples = len(jax.tree.leaves(batches)[0])
    steps = train.fit(step, state, key, examples=examples, batch_size=c.batch_size, steps=c.steps)
    bar = tqdm(steps, total=c.steps, initial=begin, unit="it", disable=not first, desc="training")

    def save(step, state, window):
        means = [{k: float(v) for k, v in m.items()} for m in window]
        extra = {"seconds": time.time() - began, "window": means}
        checkpoint.save(folder, step, state, saved, extra)

    with asked_to_stop(c.hosts == 1) as asked:
        for i, state, metrics in bar:
            window.append(metrics)
            if i % c.log_every == 0 or i == c.steps:
                row = {k: float(np.mean([float(m[k]) for m in window])) for k in metrics}
                window = []
                bar.set_postfix(loss=f"{row['loss']:.4f}")
                record({"step": i, **row})
            if first and sample and i % c.sample_every == 0:
                (c.out / "samples").mkdir(exist_ok=True)
                picture = sample(devices.local(state.ema_params))
                plot.save(picture, c.out / "samples" / f"{i:06d}.png")
            if i % c.save_every == 0 or i == c.steps or asked:
                save(i, state, window)
            if asked and i < c.steps:
                raise KeyboardInterrupt(f"step {i} is saved, the same command goes on from there")
    params = devices.local(state.ema_params)
    if first:
        weights = c.out / "weights.safetensors"
        recipe |= {"command": command_line(c, model, command), "seconds": time.time() - began,
                   "jax": jax.__version__,
                   "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}  # fmt: skip
        metadata = {"model": model, "config": asdict(config), "recipe": recipe}
        checkpoint.save_weights(weights, params, metadata)
        print(f"weights: {weights}")
    return params


@contextlib.contextmanager
def asked_to_stop(listen: bool) -> Iterator[list]:
    """A list that a first control-C or SIGTERM fills; a second one stops at once.

    Several hosts do not listen: one alone cannot write a checkpoint.
    """
    asked, before = [], {}

    def hear(number, frame):
        asked.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in (signal.SIGINT, signal.SIGTERM) if listen else ():
        with contextlib.suppress(ValueError):  # not the main thread, as in some notebooks
            before[number] = signal.signal(number, hear)
    try:
        yield asked
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


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


def command_line(c: RunConfig, model: str, command: str) -> str:
    """The command that repeats this run."""
    changed = [(k, v) for k, v in asdict(c).items() if v != getattr(type(c)(), k)]
    flag = lambda k, v: f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}")  # noqa: E731
    options = [flag(k, v) for k, v in changed if k not in ("out", "host")]
    return " ".join([f"python -m {model.split('.')[0]} {command}", *options])
