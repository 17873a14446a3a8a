"""Classifier guidance: the table of Dhariwal & Nichol 2021 (ADM, Table 4), and widths, small."""

from pathlib import Path

import jax
import numpy as np

from common import metrics, plot
from glide import classes as labelled
from glide import classifier
from glide.classes import NAMES, SEEN
from glide.sample import draw
from glide.scoring import band, claim, line, made_by, preferences, quality, trained

WIDE = Path("runs/classes_wide/weights.safetensors")
NARROW = Path("runs/classes_narrow/weights.safetensors")
MAKE = {
    WIDE: "train-classes --preset wide --steps 6000 --out runs/classes_wide",
    NARROW: "train-classes --preset narrow --steps 6000 --out runs/classes_narrow",
}
SCALES = (0, 1, 10)
WIDTH_SCALES = (1, 2, 3, 4)


def opened(path: Path) -> tuple:
    """(config, params, metadata) of class models that are not shipped."""
    return labelled.load(trained(path, MAKE.get(path, "train-classes")))


def described(c, images: np.ndarray, real: np.ndarray) -> dict[str, dict]:
    """quality, and the share of pictures that are of their class, by the reader."""
    right = metrics.caption_accuracy(prompts(c), images)["shape_colour"]
    return {**quality(images, real), "class": right}


def wanted(c) -> np.ndarray:
    return np.resize(np.array(SEEN, np.int32), c.num)


def prompts(c) -> list[str]:
    return [labelled.caption(i) for i in wanted(c)]


def classes(c, models: list) -> tuple[list[dict], list[dict], object]:
    """{unconditional, class-conditional} x scale: FD-scenes, precision, recall, class right.

    The model underneath is GLIDE, told no words, or the class in words.

    Ancestral steps with the learned variance and the mean shifted by scale Sigma grad, as there;
    and the gradient at the mean, DDIM, and classifier-free guidance in half the steps,
    which evaluates the network as often.
    """
    (*model, made), (*judge, judge_made) = models[0], classifier.load(classifier.SHIPPED)
    real = labelled.load_labelled(model[0].size, "test")["image"]
    options = {"steps": c.steps, "seed": c.seed, "progress": True}
    plan = [(name, scale, "x_t") for name in ("unconditional", "conditional") for scale in SCALES]
    plan += [("unconditional", SCALES[-1], how) for how in ("mean", "ddim")]
    rows, pictures = {}, []
    for name, scale, how in plan:
        images = classifier.draw(model, judge, wanted(c), guidance_scale=scale, how=how,
                                 conditional=name == "conditional", **options)  # fmt: skip
        rows[name, scale, how] = {"model": name, "guidance_scale": scale, "how": how,
                                  **described(c, images, real)}  # fmt: skip
        print(name, scale, how, line(rows[name, scale, how]))
        pictures += [images[:8]] if how == "x_t" else []
    half = max(1, c.steps // 2)
    images = draw(*model, prompts(c), guidance_scale=3.0, **options | {"steps": half})
    free = {"model": "conditional", "guidance_scale": 3, "how": "classifier-free DDIM, half",
            **described(c, images, real)}  # fmt: skip
    print("classifier-free", line(free))
    of = lambda name, scale: rows[name, scale, "x_t"]  # noqa: E731
    none, one, most = SCALES[0], SCALES[min(1, len(SCALES) - 2)], SCALES[-1]
    tests = []
    for text, key, a, b in (
        (f"conditional: scale {most} has more precision than {none}", "precision",
         of("conditional", most), of("conditional", none)),
        (f"conditional: scale {most} has less recall than {none}", "recall",
         of("conditional", none), of("conditional", most)),
        (f"unconditional: scale {most} brings the class more often than {none}", "class",
         of("unconditional", most), of("unconditional", none)),
        (f"unconditional: scale {most} is nearer to real pictures than {none}", "fd_scenes",
         of("unconditional", none), of("unconditional", most)),
        (f"conditional: scale {one} is nearer to real pictures than {most}", "fd_scenes",
         of("conditional", most), of("conditional", one)),
        ("at equal evaluations classifier-free guidance brings the class more often", "class",
         free, of("conditional", most)),
    ):  # fmt: skip
        tests.append(claim(text, a[key], b[key]))
    labels = [f"{name}, {scale:g}" for name, scale, how in plan if how == "x_t"]
    names = [NAMES[i] for i in wanted(c)[: len(pictures[0])]]
    figure = plot.grid(np.concatenate(pictures), row_labels=labels, column_labels=names, scale=2)
    weights = [made_by("model", made), made_by("classifier", judge_made)]
    return [*weights, *rows.values(), free], tests, figure


def widths(c, models: list) -> tuple[list[dict], list[dict], object]:
    """Guidance against parameters: two widths, trained alike, over the scale (GLIDE, Table 4)."""
    rows, drawn, series = {}, {}, {}
    for name, path in (("narrow", NARROW), ("wide", WIDE)):
        config, params, metadata = opened(path)
        rows[name] = made_by(name, metadata)
        real = labelled.load_labelled(config.size, "test")["image"]
        count = sum(p.size for p in jax.tree.leaves(params))
        for scale in WIDTH_SCALES:
            images = labelled.draw(config, params, wanted(c), guidance_scale=scale, steps=c.steps,
                                   seed=c.seed, progress=True)  # fmt: skip
            rows[name, scale] = {"model": name, "params": count, "guidance_scale": scale,
                                 **described(c, images, real)}  # fmt: skip
            drawn[f"{name}, {scale}"] = images
            print(name, scale, line(rows[name, scale]))
        mine = [rows[name, scale] for scale in WIDTH_SCALES]
        series[f"{name}, {count / 1e6:.2f} M"] = band(mine, "guidance_scale", "class")
    players = [f"{name}, {scale}" for name in ("narrow", "wide") for scale in (1, 3)]
    elo = preferences(prompts(c), {name: drawn[name] for name in players})
    tests = [claim("guidance 3 does more for the class than the parameters of the wide model",
                   rows["narrow", 3]["class"], rows["wide", 1]["class"])]  # fmt: skip
    ratings = {r["player"]: r for r in elo}
    for question in ("realism", "caption"):
        a, b = (ratings[name][f"elo_{question}"] for name in ("narrow, 3", "wide, 1"))
        tests.append(claim(f"{question}: the reader prefers narrow, 3 to wide, 1", a, b))
    figure = plot.curve(series, xlabel="guidance scale", ylabel="class right",
                        title="Guidance or parameters?")  # fmt: skip
    return [*rows.values(), *elo], tests, figure
