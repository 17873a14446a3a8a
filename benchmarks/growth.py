"""How time and memory grow: python -m benchmarks.growth

A train step against batch, picture size and simulated devices (the same global batch), the guided
sampler against its steps; compile times without and with the cache on disk. `exponent` is the
slope of log(time) over log(what grows), `memory_exponent` that of the program's working memory.
Writes lessons/figures/growth.json and .webp.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.experimental.compilation_cache import compilation_cache

from common import devices, plot, sampler, schedule, train
from common.guidance import classifier_free
from common.process import Prediction
from common.unet import UNet, UNetConfig

GROWS = {"steps": (5, 20, 80), "batch": (8, 16, 32), "size": (16, 32, 64),
         "devices": (1, 2, 4, 8)}  # fmt: skip
CONFIG = UNetConfig(width=32, multipliers=(1, 2), blocks=1, attention=(2,), groups=8, head_dim=32,
                    context="joint", patch=2)  # fmt: skip
BATCH, SIZE = 16, 32


@dataclass(frozen=True)
class GrowthConfig:
    rounds: int = 5  # times each is run; medians count
    out: Path = Path("lessons/figures")


def clock() -> float:
    """CPU seconds of this process: others may use the machine."""
    return time.process_time()


def exponent(x, y) -> float:
    """b of the least-squares y = a x^b."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 2)


def arguments(batch: int, size: int = SIZE) -> tuple:
    """(x, t, context) of a batch, one key per example."""
    rng = np.random.default_rng(0)
    x, context = (np.float32(rng.normal(size=s)) for s in ((batch, size, size, 3), (batch, 24, 64)))
    return (x, np.full(batch, 500, np.int32), context), jax.random.split(jax.random.key(0), batch)


def apply(params: dict, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
    return UNet(CONFIG).apply({"params": params}, x, t, context=context)


def step_of(batch: int, size: int = SIZE) -> tuple[Callable, tuple]:
    """A pure train step (Adam, EMA) and its arguments, weights from numpy."""
    rng, tx, (data, keys) = np.random.default_rng(0), optax.adam(1e-3), arguments(batch, size)
    x, t, context = data
    init = lambda key: UNet(CONFIG).init(key, x, t, context=context)["params"]  # noqa: E731
    shapes = jax.eval_shape(init, keys[0])
    params = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape) / 10), shapes)
    ema = jax.tree.map(np.copy, params)
    state = train.TrainState(np.zeros((), np.int32), params, ema, tx.init(params))
    loss = lambda params, data, keys: jnp.square(apply(params, *data)).mean()  # noqa: E731
    return train.make_train_step(loss, tx), (state, data, keys)


def guided(steps: int) -> tuple[Callable, tuple]:
    """DDIM at guidance 3, and its arguments."""
    times = schedule.cosine()
    ts = sampler.timesteps(times.T, steps)
    (x, _, context), _ = arguments(8)

    def draw(params, x, context):
        denoise = lambda x, t, cond: Prediction(apply(params, x, t, cond))  # noqa: E731
        denoise = classifier_free(denoise, jnp.zeros_like(context), 3.0)
        return sampler.sample(denoise, times, x, ts, context, jax.random.key(0))

    return draw, (step_of(1)[1][0].params, x, context)


def measure(fn: Callable, args: tuple, rounds: int) -> dict:
    """Compile and run: {seconds, memory_mb (beside arguments and results), compile_s}."""
    began = clock()
    lowered = devices.jit(fn).lower(*args)
    traced = clock() - began
    compiled = lowered.compile()
    found = {"trace_s": round(traced, 2), "compile_s": round(clock() - began - traced, 2)}
    args, times = jax.device_put(args), []
    for _ in range(rounds + 1):
        began = clock()
        jax.block_until_ready(compiled(*args))
        times.append(clock() - began)
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return {
        "seconds": round(float(np.median(times[1:])), 4),
        "memory_mb": round(memory, 2),
        **found,
    }


def on_devices(rounds: int) -> None:
    """In a process of its own: the sharded step over all devices; prints a row."""
    pure, (state, data, keys) = step_of(BATCH)
    step, times = devices.sharded_step(pure), []
    for _ in range(rounds + 1):
        began = clock()
        state, _ = jax.block_until_ready(step(state, data, keys))
        times.append(clock() - began)
    print(json.dumps({"seconds": round(float(np.median(times[1:])), 4)}))


def rows_of(what: str, rounds: int):
    """Yield a row for each value of what grows."""
    for value in GROWS[what]:
        if what == "devices":
            code = f"from benchmarks.growth import on_devices; on_devices({rounds})"
            flags = (
                f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={value}"
            )
            env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
            out = subprocess.run([sys.executable, "-c", code], env=env, check=True,
                                 capture_output=True, text=True).stdout  # fmt: skip
            row = json.loads(out.splitlines()[-1])
        elif what == "steps":
            row = measure(*guided(value), rounds)
        elif what == "size":
            row = measure(*step_of(BATCH, value), rounds)
        else:
            row = measure(*step_of(value), rounds)
        print(what, value, row, flush=True)
        yield {what: value, **row}


def start_up() -> dict:
    """Compile seconds of the train step: nothing on disk, then from the cache that left."""
    pure, args = step_of(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        cold = measure(pure, args, 1)
        jax.clear_caches()
        warm = measure(pure, args, 1)
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()  # it would go on writing into the folder
    return {"cold": {k: cold[k] for k in ("trace_s", "compile_s")},
            "warm": {k: warm[k] for k in ("trace_s", "compile_s")}}  # fmt: skip


def main(c: GrowthConfig) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    report = {
        "command": f"python -m benchmarks.growth --rounds {c.rounds}",
        "clock": "CPU seconds of the process",
        "machine": {"cpu": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "versions": {k: metadata.version(k) for k in ("jax", "jaxlib", "flax")},
        "model": f"U-Net of width {CONFIG.width}, {SIZE} px; batch {BATCH} (sampler 8) where fixed",
        "compile": start_up(), "results": {},
    }  # fmt: skip
    series = {}
    for what, values in GROWS.items():
        rows = list(rows_of(what, c.rounds))
        times = [r["seconds"] for r in rows]
        found = {"exponent": exponent(values, times)}
        if what != "devices":
            found["memory_exponent"] = exponent(values, [r["memory_mb"] for r in rows])
        report["results"][what] = found | {"rows": rows}
        relative = np.array(values) / values[0], np.array(times) / times[0]
        series[f"{what}, exponent {found['exponent']:.2f}"] = relative
        print(what, found, flush=True)
        c.out.mkdir(parents=True, exist_ok=True)
        (c.out / "growth.json").write_text(json.dumps(report, indent=1) + "\n")
        figure = plot.curve(series, xlabel="times as much", ylabel="times as long", logx=True,
                            logy=True, title="A training step; steps: the sampler")  # fmt: skip
        plot.save(figure, c.out / "growth.webp")


if __name__ == "__main__":
    main(tyro.cli(GrowthConfig))
