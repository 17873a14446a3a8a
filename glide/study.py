"""The numbers of the package: how often the reader finds what the caption asked for."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import command, data, devices, metrics, plot
from common.scenes.captions import caption, claims
from glide.model import load
from glide.sample import SHIPPED, draw

FIGURES = Path("lessons/figures")


@dataclass(frozen=True)
class StudyConfig:
    """`python -m glide study`: caption accuracy against guidance, seen and held-out pairs."""

    num: int = 512  # captions of each split
    scales: tuple[float, ...] = (0, 1, 2, 3, 5)
    steps: int = 50  # DDIM steps
    seed: int = 1
    weights: Path = SHIPPED
    out: Path = FIGURES  # folder for glide_captions.json and .webp


def main(c: StudyConfig) -> None:
    devices.start()
    config, params, metadata = load(c.weights)
    command.check_out(c.out)
    rows = []
    for split in ("test", "held_out"):
        scenes = data.load("scenes", split, size=config.size)
        rng = np.random.default_rng(c.seed)
        texts = [caption(scene, rng) for scene in scenes["scenes"][: c.num]]
        rows += table(split, "real renders", texts, scenes["image"][: c.num])
        for scale in c.scales:
            images = draw(config, params, texts, guidance_scale=scale, steps=c.steps,
                          seed=c.seed, progress=True)  # fmt: skip
            rows += table(split, scale, texts, images)
    report = {
        "command": f"python -m glide study --num {c.num} --scales "
                   f"{' '.join(f'{s:g}' for s in c.scales)} --steps {c.steps} --seed {c.seed}",
        "weights": metadata["digest"], "recipe": metadata["recipe"], "sampler": f"DDIM {c.steps}",
        "accuracy": "all named attributes of the kind right, 95% Wilson interval", "rows": rows,
    }  # fmt: skip
    path = c.out / "glide_captions.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot.save(curves(rows), c.out / "glide_captions.webp")
    print(f"numbers: {path}")


def table(split: str, scale: float | str, texts: list[str], images: np.ndarray) -> list[dict]:
    """Accuracy of one and two objects apart; prints a line for each and returns the rows."""
    rows, counts = [], np.array([len(claims(text)["objects"]) for text in texts])
    for count in (1, 2):
        chosen = counts == count
        result = metrics.caption_accuracy(list(np.array(texts)[chosen]), images[chosen])
        rows.append({"split": split, "guidance_scale": scale, "objects": count, **result})
        shown = "  ".join(f"{k} {result[k]['accuracy']:.3f}" for k in ("shape_colour", "all"))
        print(f"{split:9} guidance {scale}  {count} object(s)  {shown}  n = {chosen.sum()}")
    return rows


def curves(rows: list[dict]):
    """Shape-and-colour accuracy over the guidance scale, a line per split and object count."""
    series = {}
    for split in ("test", "held_out"):
        for count in (1, 2):
            points = [(r["guidance_scale"], r["shape_colour"]) for r in rows
                      if r["split"] == split and r["objects"] == count
                      and not isinstance(r["guidance_scale"], str)]  # fmt: skip
            x, y = zip(*points, strict=True)
            name = f"{split.replace('_', '-')}, {count} object{'s' * (count - 1)}"
            series[name] = (x, *([p[k] for p in y] for k in ("accuracy", "low", "high")))
    return plot.curve(series, xlabel="guidance scale", ylabel="shapes and colours right",
                      title="GLIDE small, read by the reader")  # fmt: skip
