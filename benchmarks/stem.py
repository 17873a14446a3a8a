"""Is a space-to-depth stem worth it at equal training time?  python -m benchmarks.stem --minutes 5

Two U-Nets of like size, the shipped one (2x2 space-to-depth) and one at full resolution, train in
turns, some steps each, until each has had its minutes; both are scored on the same unseen pictures,
times and noise. Writes lessons/figures/glide_stem.json and .webp.
"""

import json
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro
from tqdm import tqdm

from common import data, devices, plot, train
from common.scenes.captions import phrasings
from glide.model import SMALL, init_params, tokenizer
from glide.train import TrainConfig, make_loss

SIZES = {
    "space-to-depth": SMALL.unet,
    "full resolution": replace(
        SMALL.unet, patch=1, multipliers=(1, 1, 1.5), blocks=1, attention=(4,)
    ),
}


@dataclass(frozen=True)
class StemConfig:
    minutes: float = 5.0  # of training, each
    turn: float = 15.0  # seconds of one before the other goes on
    seed: int = 0
    out: Path = Path("lessons/figures")


def main(c: StemConfig) -> None:
    devices.start()
    t = TrainConfig(seed=c.seed)
    batches = data.captioned(tokenizer(SMALL).encode, SMALL.size, t)
    unseen = data.load("scenes", "test", size=SMALL.size)
    tokens = phrasings(unseen["scenes"][:256], tokenizer(SMALL).encode, c.seed)
    held = {"image": jnp.asarray(unseen["image"][:256]), "tokens": jnp.asarray(tokens)}
    # The rate does not fall: the race may be stopped at any minute.
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0, t.lr, t.warmup))
    )

    runs = {}
    for name, unet in SIZES.items():
        config = replace(SMALL, unet=unet)
        state = train.init_state(
            lambda key, config=config: init_params(config, key), tx, jax.random.key(c.seed)
        )
        pure = train.make_train_step(make_loss(config, t.drop), tx, ema_decay=t.ema)
        score = devices.jit(make_loss(config, 0.0))
        loop = train.fit(
            devices.jit_step(pure, batches), state, jax.random.key(c.seed + 1),
            examples=len(batches["image"]), batch_size=t.batch_size, steps=10**9,
        )  # fmt: skip
        count = sum(p.size for p in jax.tree.leaves(state.params["unet"]))
        jax.block_until_ready(next(loop))  # compiles, outside the clock
        runs[name] = {"parameters": count, "loop": loop, "score": score, "seconds": 0.0, "rows": []}

    with tqdm(total=round(2 * 60 * c.minutes), unit="s", desc="racing") as bar:
        while min(run["seconds"] for run in runs.values()) < 60 * c.minutes:
            for run in runs.values():
                began, i, state = time.time(), 0, None
                while time.time() - began < c.turn:
                    i, state, metrics = next(run["loop"])
                    jax.block_until_ready(metrics["loss"])
                spent = time.time() - began
                run["seconds"] += spent
                keys = jax.random.split(jax.random.key(9), 256)
                mse = float(run["score"](state.ema_params, held, keys)[1]["mse"])
                run["rows"].append({"seconds": round(run["seconds"], 1), "steps": i, "mse": mse})
                bar.update(round(spent))

    results = {k: {n: run[n] for n in ("parameters", "rows")} for k, run in runs.items()}
    report = {
        "command": f"python -m benchmarks.stem --minutes {c.minutes:g} --seed {c.seed}",
        "measure": "mean square error of the velocity on 256 unseen pictures, averaged weights",
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__, "results": results,
    }  # fmt: skip
    c.out.mkdir(parents=True, exist_ok=True)
    (c.out / "glide_stem.json").write_text(json.dumps(report, indent=1) + "\n")
    series = {
        name: ([r["seconds"] / 60 for r in run["rows"]], [r["mse"] for r in run["rows"]])
        for name, run in runs.items()
    }
    figure = plot.curve(series, xlabel="minutes of training", ylabel="velocity error, unseen")
    plot.save(figure, c.out / "glide_stem.webp")
    for name, run in runs.items():
        print(name, run["parameters"], "parameters", run["rows"][-1])


if __name__ == "__main__":
    main(tyro.cli(StemConfig))
