"""The numbers and figures of the package, one part at a time, each a JSON and a WebP.

    captions    caption accuracy by number of objects, seen and held-out pairs
    guidance    the scale's sweep against the closed form; several weights: caption noise, width
    clip        classifier-free against CLIP guidance, and the reader's preferences (GLIDE, Fig. 6)
    steps       DDIM and DDPM against the number of steps
    classes     the table of classifier guidance (ADM, Table 4)
    inpainting  a hole to be filled: fine-tuned, replaced, pasted; and the upsampler's numbers
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common import command, data, devices, metrics, plot
from common.scenes.captions import caption, claims
from glide import study_classes, study_clip, study_guidance, study_holes
from glide.model import load
from glide.sample import SHIPPED, draw

FIGURES = Path("lessons/figures")
QUICK = 96  # pictures of each point in a quick study
PARTS: dict[str, Callable] = {
    "guidance": study_guidance.guidance,
    "steps": study_guidance.steps,
    "clip": study_clip.clip,
    "classes": study_classes.classes,
    "inpainting": study_holes.inpainting,
}


@dataclass(frozen=True)
class StudyConfig:
    """`python -m glide study`: what the README's tables and the lessons' figures are made of."""

    part: Literal["captions", *PARTS] = "captions"
    quick: bool = False  # fewer pictures: minutes on two CPU cores
    num: int = 512  # captions (of each split, in part captions)
    scales: tuple[float, ...] = (0, 1, 2, 3, 5)  # of part captions
    steps: int = 50  # DDIM steps
    seed: int = 1
    weights: tuple[Path, ...] = (SHIPPED,)  # part guidance takes several
    out: Path = FIGURES  # folder for glide_PART.json and .webp

    @property
    def count(self) -> int:
        return min(self.num, QUICK) if self.quick else self.num


def main(c: StudyConfig) -> None:
    devices.start()
    models = [load(path) for path in c.weights]
    command.check_out(c.out)
    rows, figure = PARTS[c.part](c, models) if c.part in PARTS else captions(c, models)
    defaults = asdict(StudyConfig())
    changed = {k: v for k, v in asdict(c).items() if v != defaults[k] and k != "out"}
    plain = lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else str(v)  # noqa: E731
    flags = [f"--{k}" + ("" if v is True else f" {plain(v)}") for k, v in changed.items()]
    report = {
        "command": " ".join(["python -m glide study", *flags]), "seed": c.seed, "n": c.count,
        "weights": [metadata["digest"] for _, _, metadata in models],
        "recipe": [metadata["recipe"] for _, _, metadata in models],
        "accuracy": "all named attributes of the kind right, 95% Wilson interval",
        "features": metrics.SCENE_FEATURES, "rows": rows,
    }  # fmt: skip
    path = c.out / f"glide_{c.part}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot.save(figure, path.with_suffix(".webp"))
    print(f"numbers: {path}")


def captions(c: StudyConfig, models: list) -> tuple[list[dict], object]:
    """Caption accuracy over guidance, seen and held-out pairs, one and two objects apart."""
    config, params, _ = models[0]
    rows = []
    for split in ("test", "held_out"):
        scenes = data.load("scenes", split, size=config.size)
        rng = np.random.default_rng(c.seed)
        texts = [caption(scene, rng) for scene in scenes["scenes"][: c.count]]
        rows += table(split, "real renders", texts, scenes["image"][: c.count])
        for scale in c.scales:
            images = draw(config, params, texts, guidance_scale=scale, steps=c.steps,
                          seed=c.seed, progress=True)  # fmt: skip
            rows += table(split, scale, texts, images)
    return rows, curves(rows)


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
