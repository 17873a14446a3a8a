"""64 px pictures two ways: latent diffusion, and GLIDE's base with its upsampler.

python -m benchmarks.cascade        Writes lessons/figures/ldm_cascade.json and .webp.

The shipped weights draw the same captions in turns; what counts is the ratio of the times in each
turn, and how many captions came true, by the reader.
"""

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from tqdm import tqdm

import ldm.model
import ldm.sample
from common import checkpoint, data, devices, metrics, plot
from common.scenes.captions import caption
from glide import model
from glide.sample import SHIPPED, UPSAMPLER, draw
from glide.upsampler import upsample


@dataclass(frozen=True)
class CascadeConfig:
    num: int = 256  # captions of one object
    batch: int = 32  # drawn in a turn
    steps: int = 50  # of DDIM in both; the upsampler has its own 27
    guidance_scale: float = 3.0
    seed: int = 0
    out: Path = Path("lessons/figures")


def main(c: CascadeConfig) -> None:
    devices.start()
    base, large, latent = (f(p) for f, p in ((model.load, SHIPPED), (model.load, UPSAMPLER),
                                             (ldm.model.load, ldm.sample.SHIPPED)))  # fmt: skip
    options = {"guidance_scale": c.guidance_scale, "steps": c.steps}

    def cascade(texts, seed):
        small = draw(*base[:2], texts, seed=seed, **options)
        return upsample(*large[:2], texts, small, seed=seed)

    def latents(texts, seed):
        return ldm.sample.draw(*latent[:2], texts, seed=seed, **options)

    rng = np.random.default_rng(c.seed)
    single = [s for s in data.load("scenes", "test", size=64)["scenes"] if len(s.objects) == 1]
    texts = [caption(scene, rng) for scene in single[: c.num // c.batch * c.batch]]
    ways = {"glide, base and upsampler": cascade, "latent diffusion": latents}
    drawn, seconds = {name: [] for name in ways}, {name: [] for name in ways}
    for way in ways.values():
        way(texts[: c.batch], 0)  # compiles
    for i in tqdm(range(0, len(texts), c.batch), desc="drawing", unit="turn"):
        for name, way in ways.items():
            start = time.perf_counter()
            drawn[name].append(way(texts[i : i + c.batch], i))
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in ways:
        images = np.concatenate(drawn[name])
        right = metrics.caption_accuracy(texts, images)["shape_colour"]
        row = {
            "name": name,
            "shape_colour": right,
            "seconds_a_picture": sum(seconds[name]) / len(texts),
        }
        rows.append(row)
        true = f"{right['accuracy']:.3f} ({right['low']:.3f} to {right['high']:.3f})"
        print(
            f"{name:26} {row['seconds_a_picture']:.3f} s a picture, shape and colour right {true}"
        )
    ratios = np.divide(seconds["latent diffusion"], seconds["glide, base and upsampler"])
    report = {
        "command": f"python -m benchmarks.cascade --num {c.num} --batch {c.batch}",
        "config": {k: v if isinstance(v, int | float) else str(v) for k, v in vars(c).items()},
        "weights": [checkpoint.load_weights(p)[1]["digest"]
                    for p in (SHIPPED, UPSAMPLER, ldm.sample.SHIPPED)],
        "machine": f"{len(jax.devices())} x {jax.devices()[0].platform}, {platform.machine()}",
        "rows": rows,
        "ratio": {"median": float(np.median(ratios)), "low": float(ratios.min()),
                  "high": float(ratios.max())},
    }  # fmt: skip
    path = c.out / "ldm_cascade.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    shown = np.concatenate([np.concatenate(drawn[name])[:8] for name in ways])
    plot.save(plot.grid(shown, columns=8, row_labels=list(ways)), path.with_suffix(".webp"))
    print(f"latent / cascade: {report['ratio']['median']:.2f} of the time: {path}")


if __name__ == "__main__":
    main(tyro.cli(CascadeConfig, description=__doc__))
