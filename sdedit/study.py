"""The numbers of the package: realism against faithfulness over t0, and what else decides them.

The paper's Figure 3 and its strip of pictures, Table 3 (compositing) and Table 4 (the palette),
the repeats K, and Proposition 1 on an exact mixture.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import command, data, devices, metrics, plot
from common.mixture import NULL, Mixture
from common.process import Prediction
from common.scenes.reader import read
from common.scenes.render import render
from sdedit import blend, sde
from sdedit.guides import object_masks, strokes
from sdedit.model import SHIPPED, load
from sdedit.sample import draw

BLOCKS = 10  # disjoint parts of the pictures, whose distances give the interval of KID-scenes


@dataclass(frozen=True)
class StudyConfig:
    """`python -m sdedit study`: guides are stroke paintings of test pictures."""

    num: int = 256  # guides
    steps: int = 100  # of the reverse SDE
    t0: float = 0.5  # where it is not what varies
    points: int = 11  # values of t0 from 0 to 1
    colours: tuple[int, ...] = (3, 6, 16, 30, 50)
    repeats: tuple[int, ...] = (1, 2, 3)
    seed: int = 1
    weights: Path = SHIPPED
    out: Path = Path("lessons/figures")  # folder for sdedit_study.json and the figures


def main(c: StudyConfig) -> None:
    devices.start()
    config, params, metadata = load(c.weights)
    command.check_out(c.out)
    scenes = data.load("scenes", "test", size=config.size)
    truth, others = scenes["image"][: c.num], scenes["image"][c.num :]
    guides = strokes(truth)

    def edited(guides, **options):
        options = {"t0": c.t0, "steps": c.steps, "seed": c.seed} | options
        return draw(config, params, guides, progress=True, **options)

    t0s, films = np.linspace(0, 1, c.points), []
    rows = {"t0": [], "palette": [], "repeats": []}
    for name in ("vp", "ve"):
        for t0 in t0s:
            images = edited(guides, t0=t0, sde_name=name)
            at = {"sde": name, "t0": float(t0), "sigma": sigma_of(name, t0, c.steps)}
            rows["t0"].append(at | realism_and_distance(images, guides, others))
            films += [images[:6]] if name == "vp" else []
    for colours in c.colours:
        painted = strokes(truth, colours)
        row = realism_and_distance(edited(painted), painted, others)
        rows["palette"].append({"colours": colours} | row)
    for repeats in c.repeats:
        row = realism_and_distance(edited(guides, repeats=repeats), guides, others)
        rows["repeats"].append({"repeats": repeats} | row)
    rows["compositing"] = compositing(scenes["scenes"], scenes["image"], c.num, edited)
    rows["proposition_1"] = proposition1(c.seed)

    options = " ".join(f"--{k} {getattr(c, k)}" for k in ("num", "steps", "t0", "points", "seed"))
    report = {"command": f"python -m sdedit study {options}", "weights": metadata["digest"],
              "recipe": metadata["recipe"], "config": {k: str(v) for k, v in asdict(c).items()},
              "features": metrics.SCENE_FEATURES, "rows": rows}  # fmt: skip
    path = c.out / "sdedit_study.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    labels = [f"t0 {t0:g}" for t0 in t0s.round(2)]
    plot.save(plot.strip(np.stack(films), labels, scale=3), c.out / "sdedit_strip.webp")
    for x in ("t0", "sigma"):
        for y, label in (("kid", "KID-scenes"), ("l2", "squared L2 to the guide")):
            plot.save(curves(rows["t0"], x, y, label), c.out / f"sdedit_{y}_{x}.webp")
    print(f"numbers: {path}")


def sigma_of(name: str, t0: float, steps: int) -> float:
    """noise / signal from which an edit starts, in [-1, 1] units."""
    schedule = sde.SDES[name](t0, steps)
    return float(schedule.noise[-1] / schedule.signal[-1])


def realism_and_distance(images: np.ndarray, guides: np.ndarray, real: np.ndarray) -> dict:
    """KID-scenes to real pictures, squared L2 to the guides, share the reader takes for scenes.

    Each with its 95% interval. L2 is summed over pixels in [0, 1], as in Figure 3; KID is the mean
    over disjoint blocks of pictures, whose spread gives its interval.
    """
    blocks = max(1, min(BLOCKS, len(images) // 8))
    fakes, reals = (np.array_split(metrics.scene_features(x), blocks) for x in (images, real))
    kids = [metrics.kid(a, b) for a, b in zip(fakes, reals, strict=True)]
    gap = (images.astype(float) - guides.astype(float)) / 255
    l2 = (gap**2).sum((1, 2, 3))
    valid = sum(reading["valid"] for reading in read(images))
    found = {"n": len(images), "valid": valid / len(images)}
    found["valid_interval"] = metrics.wilson_interval(valid, len(images))
    for name, values in (("kid", kids), ("l2", l2)):
        found[name] = float(np.mean(values))
        found[f"{name}_interval"] = metrics.bootstrap_interval(values)
    return found


def compositing(scenes: list, images: np.ndarray, num: int, edited) -> list[dict]:
    """The object of one picture put into another, by every method: kept pixels, object found.

    `num` pairs of pictures of one object each; the background is drawn without its own.
    """
    alone = [i for i, scene in enumerate(scenes) if len(scene.objects) == 1][: 2 * num]
    masks = object_masks([scenes[i] for i in alone], images.shape[1])
    pairs = list(zip(range(0, len(alone), 2), range(1, len(alone), 2), strict=False))
    empty = [replace(scenes[alone[i]], objects=()) for i, _ in pairs]
    behind, before = render(empty, images.shape[1]), images[[alone[j] for _, j in pairs]]
    wanted = [scenes[alone[j]].objects[0] for _, j in pairs]
    edit_masks = masks[[j for _, j in pairs]]
    each = lambda method: np.stack([*map(method, behind, before, edit_masks)])  # noqa: E731
    naive = np.where(edit_masks, before, behind)
    results = {
        "naive paste": naive,
        "Poisson": each(blend.poisson),
        "Laplacian pyramid": each(blend.laplacian_pyramid),
        "SDEdit": edited(naive, edit_masks=edit_masks),
    }
    rows = []
    for name, pictures in results.items():
        right = sum(
            any((o["shape"], o["colour"]) == (w.shape, w.colour) for o in reading["objects"])
            for reading, w in zip(read(pictures), wanted, strict=True)
        )
        off = np.where(edit_masks, 0, (pictures.astype(float) - behind) / 255)
        rows.append({"method": name, "n": len(pairs), "object_found": right / len(pairs),
                     "interval": metrics.wilson_interval(right, len(pairs)),
                     "kept_l2": float((off**2).sum((1, 2, 3)).mean())})  # fmt: skip
    return rows


def bounds(sigma: float, C: float, d: int, delta: float) -> tuple[float, float]:
    """(Proposition 1 as printed, one that holds) of ||guide - result||^2.

    If ||score||^2 <= C then with probability 1 - delta it is at most
    sigma^2 (C sigma^2 + d + 2 sqrt(-d ln delta) - 2 ln delta), sigma that of t0, says the paper.
    Paper: that counts the noise of the steps, sigma^2 in all, but not that of the start, as much
    again, nor the product of drift and noise. Both count in (C^(1/2) sigma^2 + sqrt(2) sigma |z|)^2
    with |z|^2 bounded as before.
    """
    noise = d + 2 * math.sqrt(-d * math.log(delta)) - 2 * math.log(delta)
    return sigma**2 * (C * sigma**2 + noise), sigma**2 * (sigma * C**0.5 + (2 * noise) ** 0.5) ** 2


def proposition1(seed: int, n: int = 2000, d: int = 16, steps: int = 50) -> list[dict]:
    """How often both bounds are broken, with the exact score of a mixture and with none at all.

    The score is shortened to ||score||^2 <= C where it is longer, so that what is assumed is true;
    C is d / std^2, that of a typical point of a component.
    """
    mean_key, data_key, key = jax.random.split(jax.random.key(seed), 3)
    means = jax.random.uniform(mean_key, (4, d), minval=-0.8, maxval=0.8)
    mixture = Mixture(jnp.full(4, 0.25), means, jnp.full(4, 0.2), jnp.arange(4))
    guides = mixture.sample(data_key, n)[0] + 0.3  # near the data, but not of it

    @jax.jit
    def distance(schedule, C, key):
        exact = mixture.denoiser(schedule)

        def denoise(x, t, cond):
            eps = exact(x, t, cond).eps
            longest = schedule.at(t, 2)[1] * jnp.sqrt(C)
            length = jnp.linalg.norm(eps, axis=-1, keepdims=True)
            return Prediction(eps * jnp.minimum(1, longest / length))

        cond = {"label": jnp.full(n, NULL)}
        return ((sde.edit(denoise, schedule, guides, cond, key, last="paper") - guides) ** 2).sum(1)

    rows = []
    for t0 in (0.1, 0.2, 0.3, 0.5):
        schedule = sde.ve(t0, steps)
        for score, C in (("exact", d / 0.2**2), ("none", 0.0)):
            key, run_key = jax.random.split(key)
            far = np.asarray(distance(schedule, C, run_key))
            for delta in (0.5, 0.1, 0.01):
                both = bounds(float(schedule.noise[-1]), C, d, delta)
                broken = [int((far > bound).sum()) for bound in both]
                low, high = zip(*(metrics.wilson_interval(b, n) for b in broken), strict=True)
                rows.append({"t0": t0, "score": score, "delta": delta, "n": n,
                             "mean_over_bound": [float(far.mean() / bound) for bound in both],
                             "broken": [b / n for b in broken],
                             "low": low, "high": high})  # fmt: skip
    return rows


def curves(rows: list[dict], x: str, y: str, label: str):
    """One line per SDE, over t0 or over sigma (from t0 > 0 on, logarithmic)."""
    series = {}
    for name in ("vp", "ve"):
        chosen = [r for r in rows if r["sde"] == name and r[x] > -(x == "t0")]
        low, high = zip(*(r[f"{y}_interval"] for r in chosen), strict=True)
        series[name.upper()] = ([r[x] for r in chosen], [r[y] for r in chosen], low, high)
    axis = "sigma = noise / signal, pictures in [-1, 1]" if x == "sigma" else x
    return plot.curve(series, xlabel=axis, ylabel=label, logx=x == "sigma",
                      title="SDEdit on strokes, small")  # fmt: skip
