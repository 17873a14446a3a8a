"""Classifier guidance: the table of Dhariwal & Nichol 2021 (ADM, Table 4), small."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import devices, metrics, plot, sampler
from common.guidance import mean_shift
from common.process import to_uint8
from common.scenes.reader import read
from glide import classes as labelled
from glide import classifier
from glide.classes import CLASSES, NULL, SEEN
from glide.study_guidance import line, quality

# python -m glide train-classes, and train-classifier, make them: they are not shipped.
MODEL = Path("runs/classes/weights.safetensors")
CLASSIFIER = Path("runs/classifier/weights.safetensors")
SCALES = (0, 1, 10)


@functools.cache
def compiled(config, judge_config, steps: int, at: str):
    """run(params, judge_params, given (B,), wanted (B,), scale, key) -> uint8 (B, H, W, 3)."""
    schedule = labelled.make_schedule(config)
    ts = sampler.timesteps(config.T, steps)

    def run(params, judge_params, given, wanted, scale, key):
        x_key, step_key = jax.random.split(key)
        shape = (len(given), config.size, config.size, config.channels)
        x = sampler.noise_like(x_key, jnp.zeros(shape))
        log_prob = classifier.log_prob(judge_config, judge_params)
        shift = mean_shift(lambda x, t, cond: log_prob(x, t, {"label": wanted}), scale, at=at)
        x = sampler.ancestral(labelled.denoiser(config, params), schedule, x, ts,
                              {"label": given}, step_key, variance="learned",
                              x0_fn=sampler.clip_x0, shift=shift)  # fmt: skip
        return to_uint8(x)

    return devices.jit(run)


def classes(c, models: list) -> tuple[list[dict], object]:
    """{unconditional, class-conditional} x scale: FD-scenes, precision, recall, class right.

    Ancestral steps with the learned variance and the mean shifted by scale Sigma grad, as there.
    """
    config, params, _ = labelled.load(MODEL)
    judge_config, judge_params, _ = classifier.load(CLASSIFIER)
    alone = labelled.load_labelled(config.size, "test")["image"]
    wanted = np.resize(np.array(SEEN, np.int32), c.count)
    rows, pictures = [], []
    for name, given in (("unconditional", np.full_like(wanted, NULL)), ("conditional", wanted)):
        for scale in SCALES:
            run = compiled(config, judge_config, c.steps, "x_t")

            def some(rows, i, run=run, given=given, scale=scale):
                key = jax.random.fold_in(jax.random.key(c.seed), i)
                return run(params, judge_params, given[rows], wanted[rows], float(scale), key)

            images = devices.in_chunks(some, c.count, 64, "drawing", True)
            names = [CLASSES[i] for i in wanted]
            right = sum(len(r["objects"]) == 1 and
                        (r["objects"][0]["shape"], r["objects"][0]["colour"]) == want
                        for r, want in zip(read(images), names, strict=True))  # fmt: skip
            low, high = metrics.wilson_interval(right, c.count)
            rows.append({"model": name, "guidance_scale": scale} | quality(images, alone)
                        | {"class": {"accuracy": right / c.count, "low": low, "high": high,
                                     "n": c.count}})  # fmt: skip
            pictures.append(images[:8])
            print(name, scale, line(rows[-1]))
    labels = [f"{r['model']}, {r['guidance_scale']:g}" for r in rows]
    columns = [labelled.NAMES[i] for i in wanted[:8]]
    return rows, plot.grid(np.concatenate(pictures), columns=8, row_labels=labels,
                           column_labels=columns, scale=2)  # fmt: skip
