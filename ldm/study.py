"""The numbers and figures of the package, one part at a time, each a JSON and a WebP.

    guidance    the scale's sweep (Table 3)
    factors     quality against training for f in 1, 2, 4, 8, 16, under their ceilings (Fig. 6)
    vq          KL against VQ: what comes back, and the codes in use (Table 8)
    rescale     latents of unit variance or as they come, at the trained size and twice it (D.1)
    speed       latents against pixels: quality and pictures a second, by sampler steps (Fig. 7)
    upscale     regression against diffusion (Table 5)

All but the first train what they compare, with the package's own commands, into the folder `runs`,
and find it there the next time.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from common import command, data, devices, metrics, plot, report
from common.scenes.captions import EXAMPLES
from common.scenes.reader import read
from ldm import autoencoder, train, train_autoencoder
from ldm.measure import about, asked, fidelity, per_second, quality, reconstruction
from ldm.model import load
from ldm.sample import SHIPPED, SOLVERS, draw
from ldm.upscale import shrink, upscale

SCALES = (0, 1, 2, 3, 5, 8)
SHOWN = (0, 2, 8)  # none, enough, too much
STEPS = (5, 10, 25, 50)
QUICK = {"num": 96, "autoencoder_steps": 1_000, "latent_steps": 300, "examples": 4_000}


@dataclass(frozen=True)
class StudyConfig:
    """`python -m ldm study`: what the README's tables and the lessons' figures are made of."""

    part: Literal["guidance", "factors", "vq", "rescale", "speed", "upscale"] = "guidance"
    quick: bool = False  # the sizes of QUICK where none are given: an hour of a core for four parts
    num: int = 256  # captions, or pictures
    guidance_scale: float = 3.0  # where it is not what varies
    steps: int = 25  # of the sampler, where they are not what varies
    sampler: Literal[tuple(SOLVERS)] = "ddim"
    seed: int = 1
    weights: Path = SHIPPED  # of part guidance
    preset: Literal["tiny", "small"] = "small"  # what the other parts train
    factors: tuple[Literal[1, 2, 4, 8, 16], ...] = (1, 2, 4, 8, 16)
    autoencoder_steps: int = 3_000  # training of each first stage
    latent_steps: int = 1_200  # of each latent model; factors: a quarter and half of it, too
    examples: int = 8_000  # pictures that both are trained on
    runs: Path = Path("runs/ldm_study")  # where the trainings are kept
    out: Path = Path("lessons/figures")  # folder for ldm_PART.json and .webp

    @property
    def drawing(self) -> dict:
        return {"steps": self.steps, "solver": self.sampler, "seed": self.seed}


def main(c: StudyConfig) -> None:
    devices.start()
    command.check_out(c.out)
    words, plain = report.command("ldm study", c), StudyConfig()
    if c.quick:
        kept = [name for name in QUICK if getattr(c, name) == getattr(plain, name)]
        c = replace(c, **{name: QUICK[name] for name in kept})
    rows, figure = PARTS[c.part](c)
    numbers = {"command": words, "seed": c.seed, "n": c.num,
              "sizes": {name: getattr(c, name) for name in ("steps", *QUICK)},
              "intervals": "accuracies: 95% Wilson; PSNR: 95% bootstrap; FD-scenes: none",
              "features": metrics.SCENE_FEATURES, "rows": rows}  # fmt: skip
    report.save(c.out / f"ldm_{c.part}.json", numbers, figure)


# What is trained.


def first_stage(c: StudyConfig, f: int, kind: str = "kl") -> Path | None:
    """Weights of a first stage of factor f; None for f = 1, pixels."""
    if f == 1:
        return None
    name = "_".join([c.preset] + ["vq"] * (kind == "vq") + [f"f{f}"] * (f != 4))
    out, steps = c.runs / f"{name}_{c.autoencoder_steps}", c.autoencoder_steps
    if not (out / "weights.safetensors").exists():
        train_autoencoder.main(train_autoencoder.AutoencoderTrainConfig(
            preset=name, out=out, steps=steps, disc_start=3 * steps // 4, examples=c.examples,
            seed=c.seed, sample_every=steps + 1, save_every=steps,
        ))  # fmt: skip
    return out / "weights.safetensors"


def trained(c: StudyConfig, f: int, steps: int, preset: str = "", **options) -> tuple:
    """(config, params, metadata) of a latent model on a first stage of factor f."""
    kind = "_".join([c.preset + preset, f"ldm_f{f}", *map(str, options.values())])
    out = c.runs / f"{kind}_{c.autoencoder_steps}_{steps}"
    if not (out / "weights.safetensors").exists():
        train.main(train.TrainConfig(
            preset=c.preset + preset, autoencoder=first_stage(c, f), out=out, steps=steps,
            examples=c.examples, seed=c.seed, sample_every=steps + 1, save_every=steps, **options,
        ))  # fmt: skip
    return load(out / "weights.safetensors")


# What is compared: functions of the config -> (rows, figure).


def guidance(c: StudyConfig):
    config, params, metadata = load(c.weights)
    of, rows, shown = about(config.first_stage, metadata), [], []
    for scale in SCALES:
        found = quality(config, params, c.num, scale, **c.drawing)
        rows.append({"guidance_scale": scale, **of, **found})
        if scale in SHOWN:
            shown.append(draw(config, params, EXAMPLES, guidance_scale=scale, **c.drawing))
    labels = [f"guidance {scale}" for scale in SHOWN]
    figure = plot.grid(np.concatenate(shown), row_labels=labels, column_labels=EXAMPLES, scale=1)
    return rows, figure


def factors(c: StudyConfig):
    """The same U-Net and as many steps for each f; where it can, it works on as many places, too.

    Of classes, as in the paper: they are learned in fewer steps than words.
    Paper: the U-Net sees every position of the latent, which costs f = 1 its time. Here its stem
    takes several at once, and the cost of a step is nearly the same for all f up to 8. The rows
    have seconds, too: of a machine that may have had other work.
    """
    rows, series, ceilings = [], {}, {}
    for f in c.factors:
        mine = []
        for part in (4, 1) if c.quick else (4, 2, 1):
            config, params, metadata = trained(c, f, max(c.latent_steps // part, 1), "_class")
            found = quality(config, params, c.num, c.guidance_scale, **c.drawing)
            mine.append({**about(config.first_stage, metadata), **found})
        steps = [row["recipe"]["steps"] for row in mine]
        series[f"f = {f}"] = (steps, *_points(mine))
        ceilings[f"f = {f}"] = mine[-1]["ceiling"]["shape_colour"]["accuracy"]
        rows += mine
    return rows, plot.curve(series, xlabel="training steps of the latent model", logx=True,
                            ylabel="shapes and colours right",
                            title="Latents by factor; dashed: pictures encoded and decoded",
                            limits=ceilings)  # fmt: skip


def vq(c: StudyConfig):
    rows, shown, labels = [], [], []
    for f in sorted({4, 8} & set(c.factors)):
        for kind in ("kl", "vq"):
            config, params, metadata = autoencoder.load(first_stage(c, f, kind))
            rows.append(about(config, metadata) | reconstruction(config, params, c.num))
            images = data.load("scenes", "test", size=config.size)["image"][:8]
            shown += [*autoencoder.reconstruct(config, params, images)]
            labels.append(f"{kind} f={f}")
    shown, labels = [*images, *shown], ["given", *labels]
    return rows, plot.grid(np.stack(shown), columns=8, row_labels=labels)


def rescale(c: StudyConfig):
    """Scenes of the trained size, or quarters of pictures of twice the size: as many of each."""
    rows, shown, labels = [], [], []
    for options in ({}, {"latent_scale": 1.0}):
        config, params, metadata = trained(c, 4, c.latent_steps, "_class", **options)
        size, scale = config.size, config.latent_scale
        texts, real, _ = asked(config, c.num, c.seed)
        for times in (1, 2):
            images = draw(config, params, texts[:: times**2], guidance_scale=c.guidance_scale,
                          size=times * size, **c.drawing)  # fmt: skip
            labels.append(f"scale {scale:g}, {times}x")
            parts = images.reshape(-1, times, size, times, size, 3).swapaxes(2, 3)
            parts = parts.reshape(-1, size, size, 3)
            shown += [*parts[:4]]
            features = map(metrics.scene_features, (real, parts))
            valid = sum(reading["valid"] for reading in read(parts))
            rows.append({"latent_scale": scale, "size": times * size, "n": len(parts),
                         "fd": metrics.frechet_distance(*features), "valid": valid / len(parts),
                         "valid_interval": metrics.wilson_interval(valid, len(parts)),
                         **about(config.first_stage, metadata)})  # fmt: skip
    return rows, plot.grid(np.stack(shown), columns=4, row_labels=labels)


def speed(c: StudyConfig):
    rows, series = [], {}
    for f in (1, 4):
        config, params, metadata = trained(c, f, c.latent_steps, "_class")
        mine = []
        for steps in STEPS[: 3 if c.quick else None]:
            options = {**c.drawing, "steps": steps}
            found = quality(config, params, c.num, c.guidance_scale, **options)
            prompts = ["a red ball"] * min(c.num, 64)
            rate = per_second(lambda: draw(config, params, prompts, **options))  # noqa: B023
            mine.append({"steps": steps, "pictures_per_second": rate,
                         **about(config.first_stage, metadata), **found})  # fmt: skip
        rate = [row["pictures_per_second"] for row in mine]
        series["pixels" if f == 1 else f"latents, f = {f}"] = (rate, *_points(mine))
        rows += mine
    return rows, plot.curve(series, xlabel="pictures a second", ylabel="shapes and colours right",
                            title="Latents against pixels", logx=True)  # fmt: skip


def upscaling(c: StudyConfig):
    """One network for both: asked once, at t = T, its x0 is the mean of all answers: regression.

    Paper: a regression network of its own (SR3's), in pixels.
    """
    config, params, metadata = trained(c, 4, c.latent_steps, "_upscale")
    scenes = data.load("scenes", "test", size=config.size)
    truth, images = scenes["scenes"][: c.num], scenes["image"][: c.num]
    f = config.first_stage.factor
    small = shrink(images, f)
    drawn = {
        "pixels repeated": small.repeat(f, 1).repeat(f, 2),
        "regression": upscale(config, params, small, steps=1, seed=c.seed),
        "diffusion": upscale(config, params, small, **c.drawing),
        "reconstruction": autoencoder.reconstruct(
            config.first_stage, params["first_stage"], images
        ),
    }
    of = about(config.first_stage, metadata)
    rows = [{"by": name, **of, **fidelity(x, images, truth)} for name, x in drawn.items()]
    shown = np.concatenate([images[:8], *(x[:8] for x in drawn.values())])
    return rows, plot.grid(shown, columns=len(images[:8]), row_labels=["given", *drawn])


def _points(rows: list[dict]) -> tuple[list[float], ...]:
    found = [row["shape_colour"] for row in rows]
    return tuple([one[k] for one in found] for k in ("accuracy", "low", "high"))


PARTS = {
    "guidance": guidance,
    "factors": factors,
    "vq": vq,
    "rescale": rescale,
    "speed": speed,
    "upscale": upscaling,
}
