"""The main job, `make run`: from captions to pictures, and how often they are right."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import command, data, devices, metrics, plot
from common.scenes.captions import caption
from glide.model import load
from glide.sample import SHIPPED, draw

PROMPTS = (
    "a small red ball above a large blue cube",
    "a photo of a large yellow star",
    "a green heart on a white background",
    "a drawing of a pink cone",
    "a large cyan ring left of a small orange ball",
    "a mosaic of a purple cube",
    "a blue ball at night",
    "a small yellow heart below a large red cone",
)
SCALES = (0.0, 1.0, 3.0)


@dataclass(frozen=True)
class DemoConfig:
    """`python -m glide demo`: the shipped model on eight captions at guidance 0, 1 and 3."""

    out: Path = Path("out/first-light")  # folder for grid.png and film.webp
    num: int = 4  # pictures of each caption at each scale
    steps: int = 50  # DDIM steps
    seed: int = 0
    weights: Path = SHIPPED


def main(c: DemoConfig) -> None:
    began = time.time()
    devices.start()
    config, params, _ = load(c.weights)
    command.check_out(c.out)
    scenes = data.load("scenes", "test", size=config.size)

    # One row of work per (caption, scale, picture), drawn in batches of one caption and scale set.
    prompts = [p for p in PROMPTS for _ in SCALES for _ in range(c.num)]
    scales = np.tile(np.repeat(np.float32(SCALES), c.num), len(PROMPTS))
    path = draw(
        config, params, prompts, guidance_scale=scales, steps=c.steps, seed=c.seed, path=True,
        chunk=2 * len(SCALES) * c.num, progress=True,
    )  # fmt: skip
    images = path[-1]

    print("\nshape and colour of every object right, by the reader:")
    for scale in SCALES:
        rows = scales == scale
        print(f"  guidance {scale:g}   {rate(np.array(prompts)[rows], images[rows])}")
    rng = np.random.default_rng(c.seed)
    texts = [caption(scene, rng) for scene in scenes["scenes"][:500]]
    print(f"  real renders {rate(texts, scenes['image'][:500])}: the reader's own ceiling\n")

    columns = len(SCALES) * c.num
    labels = [f"guidance {s:g}" if i == 0 else "" for s in SCALES for i in range(c.num)]
    sheet = plot.grid(images, columns=columns, row_labels=PROMPTS, column_labels=labels, scale=3)
    grid = plot.save(sheet, c.out / "grid.png")
    frames = path[:, scales == SCALES[-1]][:: max(1, c.steps // 25)]
    film = c.out / "film.webp"
    plot.animate(np.concatenate([frames, path[-1:, scales == SCALES[-1]]]), film, columns=2 * c.num)
    print(f"pictures     {grid}\ndenoising    {film}\nseconds      {time.time() - began:.0f}")


def rate(prompts, images) -> str:
    """"87.5% (78.3 to 93.1, n = 64)": how often all named shapes and colours are right."""
    r = metrics.caption_accuracy(list(prompts), images)["shape_colour"]
    return f"{r['accuracy']:6.1%} ({r['low']:.1%} to {r['high']:.1%}, n = {r['n']})"
