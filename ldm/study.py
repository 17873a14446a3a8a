"""The numbers of the package, of weights that are given: compression, guidance, speed.

Letters as in `rows`: (a) Figure 6, quality against training time for first stages of several
factors, below the ceiling of each; (b) Table 8, KL against VQ; (d) Table 3, guidance; (e) speed.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from common import command, data, devices, metrics, plot
from common.scenes.captions import caption
from common.scenes.check import accuracy
from common.scenes.reader import read
from ldm import autoencoder
from ldm.autoencoder import AutoencoderConfig, reconstruct
from ldm.losses import perplexity
from ldm.model import load
from ldm.sample import SHIPPED, SOLVERS, draw


@dataclass(frozen=True)
class StudyConfig:
    """`python -m ldm study`: give weights trained for different times, on different latents."""

    weights: tuple[Path, ...] = (SHIPPED,)  # latent models; (d) is of the first
    autoencoders: tuple[Path, ...] = ()  # first stages to compare, beside those of the weights
    num: int = 256  # captions, and pictures to reconstruct
    scales: tuple[float, ...] = (0, 1, 2, 3, 5, 8)
    guidance_scale: float = 3.0  # where it is not what varies
    steps: int = 50
    sampler: Literal[tuple(SOLVERS)] = "ddim"
    seed: int = 1
    out: Path = Path("lessons/figures")  # folder for ldm_study.json and the figures


def main(c: StudyConfig) -> None:
    devices.start()
    models = [load(path) for path in c.weights]
    firsts = [autoencoder.load(path) for path in c.autoencoders]
    command.check_out(c.out)
    options = {"steps": c.steps, "solver": c.sampler, "seed": c.seed}

    rows = {"a": [], "b": [], "d": [], "e": []}
    for config, params, metadata in models:
        row = about(config.first_stage, metadata)
        rows["a"].append(row | quality(config, params, c.num, c.guidance_scale, **options))
        rows["b"].append(row | reconstruction(config.first_stage, params["first_stage"], c.num))
        rows["e"].append(row | speed(config, params, min(c.num, 64), **options))
    for config, params, metadata in firsts:
        rows["b"].append(about(config, metadata) | reconstruction(config, params, c.num))
    config, params, _ = models[0]
    for scale in c.scales if config.condition != "none" else ():
        drawn = quality(config, params, c.num, scale, **options)
        rows["d"].append({"guidance_scale": scale, **drawn})

    given = " ".join(f"--{k} {getattr(c, k)}" for k in ("num", "steps", "sampler", "seed"))
    report = {"command": f"python -m ldm study {given}", "features": metrics.SCENE_FEATURES,
              "device": jax.devices()[0].device_kind, "rows": rows}  # fmt: skip
    path = c.out / "ldm_study.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot.save(f_curve(rows["a"]), c.out / "ldm_f.webp")
    if rows["d"]:
        plot.save(guidance_curve(rows["d"]), c.out / "ldm_guidance.webp")
    print(f"numbers: {path}")


def about(first_stage: AutoencoderConfig, metadata: dict) -> dict:
    """Which weights a row is of."""
    return {"f": first_stage.factor, "kind": first_stage.kind, "digest": metadata["digest"],
            "recipe": metadata["recipe"]}  # fmt: skip


def reconstruction(config: AutoencoderConfig, params: dict, num: int = 512) -> dict:
    """What a first stage loses on `num` test pictures: no model of its latents can do better.

    PSNR, FD-scenes, the reader's accuracies on what comes back beside those on the originals, and
    of VQ the share of codes in use (perplexity / codes).
    """
    scenes = data.load("scenes", "test", size=config.size)
    truth, images = scenes["scenes"][:num], scenes["image"][:num]
    back, indices = reconstruct(config, params, images)
    error = np.square((back.astype(float) - images) / 255).mean((1, 2, 3))
    psnr = -10 * np.log10(np.maximum(error, 1e-10))
    found = {"n": len(images), "psnr": float(psnr.mean()),
             "psnr_interval": metrics.bootstrap_interval(psnr),
             "fd": metrics.frechet_distance(*map(metrics.scene_features, (images, back))),
             "accuracy": accuracy(truth, read(back)),
             "accuracy_originals": accuracy(truth, read(images))}  # fmt: skip
    if indices is not None:
        found["codes_used"] = float(perplexity(indices, config.codes)) / config.codes
    return found


def quality(config, params: dict, num: int, guidance_scale: float, **options) -> dict:
    """Pictures of `num` test captions: FD-scenes to real ones, and what the reader finds right.

    ceiling: the same of the captions' own pictures, encoded and decoded.
    """
    scenes = data.load("scenes", "test", size=config.size)
    rng = np.random.default_rng(options["seed"])
    kept = [i for i, scene in enumerate(scenes["scenes"])
            if config.condition != "class" or len(scene.objects) == 1][:num]  # fmt: skip
    texts = [caption(scenes["scenes"][i], rng) for i in kept]
    prompts = texts if config.condition != "none" else [""] * len(texts)
    images = draw(config, params, prompts, guidance_scale=guidance_scale, progress=True, **options)
    features = map(metrics.scene_features, (scenes["image"][: 4 * num], images))
    back, _ = reconstruct(config.first_stage, params["first_stage"], scenes["image"][kept])
    return {"n": len(images), "fd": metrics.frechet_distance(*features),
            **metrics.caption_accuracy(texts, images),
            "ceiling": metrics.caption_accuracy(texts, back)}  # fmt: skip


def speed(config, params: dict, num: int, **options) -> dict:
    """Pictures a second, after a first call that compiles; median of three."""
    prompts, seconds = ["a red ball" if config.condition != "none" else ""] * num, []
    for _ in range(4):
        began = time.perf_counter()
        draw(config, params, prompts, **options)
        seconds.append(time.perf_counter() - began)
    return {"num": num, "pictures_per_second": num / float(np.median(seconds[1:]))}


def f_curve(rows: list[dict]):
    """Shapes and colours right over training time: for each factor a line, and its ceiling."""
    series = {}
    for f in sorted({row["f"] for row in rows}):
        chosen = [row for row in rows if row["f"] == f]
        chosen.sort(key=lambda row: row["recipe"]["seconds"])
        x = [row["recipe"]["seconds"] for row in chosen]
        series[f"f = {f}"] = (x, *_points([row["shape_colour"] for row in chosen]))
        ceiling = [row["ceiling"]["shape_colour"]["accuracy"] for row in chosen]
        series[f"f = {f}, reconstructions"] = (x, ceiling)
    return plot.curve(series, xlabel="training, seconds", ylabel="shapes and colours right",
                      title="Latent diffusion by downsampling factor", logx=True)  # fmt: skip


def guidance_curve(rows: list[dict]):
    x = [row["guidance_scale"] for row in rows]
    series = {"shapes and colours": (x, *_points([row["shape_colour"] for row in rows]))}
    return plot.curve(series, xlabel="guidance scale", ylabel="shapes and colours right",
                      title="Latent diffusion, guided")  # fmt: skip


def _points(found: list[dict]) -> tuple[list[float], ...]:
    return tuple([f[k] for f in found] for k in ("accuracy", "low", "high"))
