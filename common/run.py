"""A training run in a folder: resume, progress bar, metrics, sample grids, checkpoints, weights.

    out/checkpoints/<step>/    two newest states; the same command goes on from there
    out/metrics.jsonl          one row per log_every steps, means over them
    out/samples/<step>.png     what the averaged weights draw
    out/weights.safetensors    written at the end, with config and recipe inside

A run killed at any moment goes on from its last checkpoint as if nothing had happened; asked to
stop (control-C, SIGTERM of a preempted machine) it writes one first. Batches whose loss is not
finite are skipped and counted in the log; SKIPPED of them in a row end the run. A save that fails,
as on a full disk, is told in one line, and the training goes on to the next one.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from common import checkpoint, devices, disk, plot, train


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
    shard: bool = False  # spread parameters and moments over all devices (FSDP)


SKIPPED = 10  # batches in a row without a finite loss, and the training stops
# These do not change the weights.
NOT_RECIPE = ("out", "sample_every", "coordinator", "hosts", "host", "shard")


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
    for name in ("steps", "batch_size", "log_every", "sample_every", "save_every", "hosts"):
        if getattr(c, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(c, name)}")
    for name, above in (("warmup", np.inf), ("ema", 1), ("host", c.hosts)):
        if not 0 <= getattr(c, name) < above:
            raise ValueError(f"{name} must be at least 0 and below {above}, not {getattr(c, name)}")
    if not 0 < c.lr < np.inf:
        raise ValueError(f"lr must be above 0, not {c.lr}")
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
    c.out.mkdir(parents=True, exist_ok=True)
    # What a checkpoint or weights must agree with, and what weights tell of their making.
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(c).items()}
    recipe = {k: v for k, v in plain.items() if k not in NOT_RECIPE}
    saved = {"model": asdict(config), "train": recipe}
    folder = c.out / "checkpoints"

    def abstract():
        state = jax.eval_shape(lambda: train.init_state(init, tx, init_key))
        return devices.spread(state) if c.shard else state

    if checkpoint.latest(folder) is None:
        shardings = jax.tree.map(lambda x: x.sharding, abstract()) if c.shard else None
        state, begin = train.init_state(init, tx, init_key, shardings), 0
        extra = {"seconds": 0.0, "window": [], "streak": 0}
    else:
        state, begin, extra = checkpoint.restore(folder, abstract(), saved)

    if c.hosts > 1 or c.shard:
        pure = train.make_train_step(loss_fn, tx, ema_decay=c.ema)
        step = devices.sharded_step(pure, batches, shard_state=c.shard)
    else:
        pure = train.make_train_step(loss_fn, tx, ema_decay=c.ema, axis_name=devices.AXIS)
        step = devices.pmap_step(pure, batches)

    first = jax.process_index() == 0
    record = recorder(c.out / "metrics.jsonl", begin) if first else lambda row: None
    began, window = time.time() - extra["seconds"], extra["window"]
    streak = extra.get("streak", 0)  # batches skipped in a row before the window
    examples = len(jax.tree.leaves(batches)[0])
    steps = train.fit(step, state, key, examples=examples, batch_size=c.batch_size, steps=c.steps)
    bar = tqdm(steps, total=c.steps, initial=begin, unit="it", disable=not first, desc="training")

    def save(step, state, window):
        floats = [{k: float(v) for k, v in m.items()} for m in window]
        extra = {"seconds": time.time() - began, "window": floats, "streak": streak}
        checkpoint.save(folder, step, state, saved, extra)

    with asked_to_stop(c.hosts == 1) as asked, devices.together():
        for i, state, metrics in bar:
            stop = bool(asked) or devices.preempted(i)
            window.append(metrics)
            if i % c.log_every == 0 or i == c.steps:
                row, longest, streak = means(window, streak)
                window = []
                bar.set_postfix(loss=f"{row.get('loss', np.nan):.4f}")
                record({"step": i, **row})
                if longest >= SKIPPED:
                    raise ValueError(
                        f"{longest} batches in a row up to step {i} had no finite loss or gradient:"
                        " start anew with a lower --lr, or look for broken examples"
                    )
            if sample and i % c.sample_every == 0:
                params = devices.local(state.ema_params)
                if first:
                    picture = sample(params)
                    with told(), disk.saving(f"the grid of step {i}"):
                        plot.save(picture, c.out / "samples" / f"{i:06d}.png")
            if i % c.save_every == 0 or i == c.steps or stop:
                with told(c.hosts == 1 and i < c.steps and not stop):
                    save(i, state, window)
            if stop and i < c.steps:
                where = f"step {i} is saved, the same command goes on from there"
                if asked and asked[0] == signal.SIGINT:
                    raise KeyboardInterrupt(where)
                tqdm.write(f"{model}: stopped {where}", file=sys.stderr)
                sys.exit(0)  # preempted: nothing has failed
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


def means(window: list[dict], streak: int) -> tuple[dict, int, int]:
    """Metrics of some steps -> means over those taken and how many were skipped; the longest run
    of skipped ones; the one that is still open. streak: the one open before."""
    taken, longest = [], streak
    for row in ({k: float(v) for k, v in m.items()} for m in window):
        streak = streak + 1 if row.pop("skipped", 0) else 0
        longest = max(longest, streak)
        if not streak:
            taken.append(row)
    mean = {k: float(np.mean([row[k] for row in taken])) for k in (taken[0] if taken else ())}
    return {**mean, "skipped": len(window) - len(taken)}, longest, streak


@contextlib.contextmanager
def asked_to_stop(listen: bool) -> Iterator[list]:
    """A list that a first control-C or SIGTERM fills; a second one stops at once.

    Several hosts do not listen, since one alone cannot write a checkpoint: jax hears SIGTERM there
    (devices.preempted).
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


@contextlib.contextmanager
def told(go_on: bool = True) -> Iterator[None]:
    """A write that fails within is told in one line and training goes on; else it is an error."""
    try:
        yield
    except disk.SaveError as error:
        if not go_on:
            raise
        tqdm.write(f"{error}; training goes on", file=sys.stderr)


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

    waiting = []  # rows that a full disk has not taken

    def record(row: dict) -> None:
        waiting.append(json.dumps(row) + "\n")
        with told(), disk.saving(f"row of step {row['step']} in {path}"), path.open("ab") as f:
            end = f.seek(0, os.SEEK_END)
            try:
                f.write("".join(waiting).encode())
                f.flush()
            except OSError:
                os.truncate(path, end)  # no half rows
                raise
            waiting.clear()

    return record


def command_line(c: RunConfig, model: str, command: str) -> str:
    """The command that repeats this run."""
    changed = [(k, v) for k, v in asdict(c).items() if v != getattr(type(c)(), k)]
    flag = lambda k, v: f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}")  # noqa: E731
    options = [flag(k, v) for k, v in changed if k not in ("out", "host")]
    return " ".join([f"python -m {model.split('.')[0]} {command}", *options])
