"""How the guidance scale and the number of steps decide what is drawn; measures of all studies."""

import math
import time

import jax
import numpy as np

from common import data, metrics, plot
from common.scenes.captions import caption, claims
from common.scenes.scene import COLOURS
from glide.sample import draw

SCALES = (0, 1, 1.1, 1.3, 1.5, 2, 3, 5)
STEPS = (5, 10, 25, 50, 100)


def asked(c, size: int, split: str = "test") -> tuple[list[str], np.ndarray]:
    """c.count captions of pictures that training never saw, and other real pictures."""
    scenes, rng = data.load("scenes", split, size=size), np.random.default_rng(c.seed)
    texts = [caption(scene, rng) for scene in scenes["scenes"][: c.count]]
    return texts, scenes["image"][c.count :]


def quality(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """FD-scenes, precision and recall (k = 3) of pictures uint8 against as many real ones and more.

    FD-scenes falls with the number of pictures: compare only at equal n.
    """
    fakes, reals = metrics.scene_features(images), metrics.scene_features(real[: len(images) * 2])
    precision, recall = metrics.precision_recall(reals[: len(fakes)], fakes)
    fd = metrics.frechet_distance(reals, fakes)
    return {"fd_scenes": fd, "precision": precision, "recall": recall}


def measure(texts: list[str], images: np.ndarray, real: np.ndarray) -> dict:
    """quality, and how many captions are true of their pictures, by the reader."""
    found = metrics.caption_accuracy(texts, images)
    return quality(images, real) | {k: found[k] for k in ("valid", "colour", "shape_colour")}


def tilted(scale: float, rho: float, K: int) -> float:
    """Share of the named value under p(x) p(y | x)^scale, if y is wrong with probability rho.

    (1 - rho)^s / ((1 - rho)^s + (K - 1) (rho / (K - 1))^s): what sampling the tilted law exactly
    would give; classifier-free guidance samples something else. At s = 0 it is 1 / K.
    """
    right, wrong = (1 - rho) ** scale, (K - 1) * (rho / (K - 1)) ** scale
    return right / (right + wrong)


def guidance(c, models: list) -> tuple[list[dict], object]:
    """Quality and accuracy over the scale: a line for each of c.weights, and the tilted law."""
    rows, series = [], {}
    for config, params, metadata in models:
        texts, real = asked(c, config.size)
        one = [t for t in texts if len(claims(t)["objects"]) == 1]
        rho, count = metadata["recipe"]["rho"], sum(p.size for p in jax.tree.leaves(params))
        name = f"rho {rho:g}, {count / 1e6:.1f} M"
        for scale in SCALES:
            images = draw(config, params, texts, guidance_scale=scale, steps=c.steps, seed=c.seed,
                          progress=True)  # fmt: skip
            alone = images[[len(claims(t)["objects"]) == 1 for t in texts]]
            colour = metrics.caption_accuracy(one, alone)["colour"]
            rows.append({"model": name, "rho": rho, "params": count, "guidance_scale": scale}
                        | measure(texts, images, real) | {"colour_of_one": colour,
                        "tilted": tilted(scale, rho, len(COLOURS))})  # fmt: skip
            print(name, scale, line(rows[-1]))
        mine = [r for r in rows if r["model"] == name]
        series[name] = band(mine, "guidance_scale", "colour_of_one")
        series[f"tilted law, rho {rho:g}"] = (SCALES, [r["tilted"] for r in mine])
    return rows, plot.curve(series, xlabel="guidance scale", ylabel="colour right, one object",
                            title="Classifier-free guidance and the tilted law")  # fmt: skip


def steps(c, models: list) -> tuple[list[dict], object]:
    """DDIM and ancestral steps with the learned variance, at guidance 3, over their number."""
    config, params, _ = models[0]
    texts, real = asked(c, config.size)
    rows, series = [], {}
    for name, eta in (("DDIM", 0.0), ("DDPM (eta 1)", 1.0)):
        for count in STEPS:
            began = time.time()
            images = draw(config, params, texts, guidance_scale=3.0, steps=count, seed=c.seed,
                          eta=eta, progress=True)  # fmt: skip
            cost = {"evaluations": 2 * count, "seconds": time.time() - began}
            rows.append({"sampler": name, "steps": count} | cost | measure(texts, images, real))
            print(name, count, line(rows[-1]))
        mine = [r for r in rows if r["sampler"] == name]
        series[name] = band(mine, "steps", "shape_colour")
    return rows, plot.curve(series, xlabel="steps", ylabel="shapes and colours right", logx=True,
                            title="Fewer steps for the same picture, guidance 3")  # fmt: skip


def band(rows: list[dict], x: str, y: str) -> tuple[list, ...]:
    """A line of plot.curve: x, and a proportion with its interval."""
    return [r[x] for r in rows], *([r[y][k] for r in rows] for k in ("accuracy", "low", "high"))


def line(row: dict) -> str:
    """A row's numbers, for whoever waits."""
    numbers = {k: v["accuracy"] if isinstance(v, dict) else v for k, v in row.items()}
    shown = {k: v for k, v in numbers.items() if isinstance(v, float) and math.isfinite(v)}
    return "  ".join(f"{k} {v:.3f}" for k, v in shown.items())
