"""The main job, `make run`: from captions to pictures, and how often they are right."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import command, data, devices, metrics, plot
from common.scenes.captions import EXAMPLES, caption
from glide.model import load
from glide.sample import SHIPPED, draw

SCALES = (0.0, 1.0, 3.0)


@dataclass(frozen=True)
class DemoConfig:
    """`python -m glide demo`: the shipped model on eight captions at guidance 0, 1 and 3."""

    out: Path = Path("out/first-light")  # folder for grid.png and film.webp
    num: int = 4  # pictures of each caption at each scale
    steps: int = 30  # DDIM steps
    seed: int = 0
    weights: Path = SHIPPED


def main(c: DemoConfig) -> None:
    began = time.time()
    devices.start()
    config, params, _ = load(c.weights)
    command.check_out(c.out)
    scenes = data.load("scenes", "test", size=config.size)

    # The same noise at every scale, so that a row of the grid shows what guidance changes.
    prompts = [prompt for prompt in EXAMPLES for _ in range(c.num)]
    paths, chunk = {}, 2 * c.num
    for scale in SCALES:
        print(f"guidance {scale:g}")
        paths[scale] = draw(config, params, prompts, guidance_scale=scale, steps=c.steps,
                            seed=c.seed, path=True, chunk=chunk, progress=True)  # fmt: skip

    print("\nshape and colour of every object right, by the reader:")
    for scale, path in paths.items():
        print(f"  guidance {scale:g}   {rate(prompts, path[-1])}")
    rng = np.random.default_rng(c.seed)
    texts = [caption(scene, rng) for scene in scenes["scenes"][:500]]
    print(f"  real renders {rate(texts, scenes['image'][:500])}: the reader's own ceiling\n")

    images = np.stack([path[-1] for path in paths.values()])  # (scale, caption and picture, ...)
    images = images.reshape(len(SCALES), len(EXAMPLES), c.num, *images.shape[2:]).swapaxes(0, 1)
    labels = [f"guidance {s:g}" if i == 0 else "" for s in SCALES for i in range(c.num)]
    sheet = plot.grid(images.reshape(-1, *images.shape[3:]), row_labels=EXAMPLES,
                      column_labels=labels, scale=3)  # fmt: skip
    grid = plot.save(sheet, c.out / "grid.png")
    film = c.out / "film.webp"
    path = paths[SCALES[-1]]
    frames = np.concatenate([path[:-1][:: max(1, c.steps // 25)], path[-1:]])
    plot.animate(frames, film, columns=2 * c.num)
    print(f"pictures     {grid}\ndenoising    {film}\nseconds      {time.time() - began:.0f}")


def rate(prompts: list[str], images: np.ndarray) -> str:
    """How often all named shapes and colours are right, with its 95% interval, as text."""
    r = metrics.caption_accuracy(prompts, images)["shape_colour"]
    return f"{r['accuracy']:6.1%} ({r['low']:.1%} to {r['high']:.1%}, n = {r['n']})"
