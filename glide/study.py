"""The numbers and figures of the package, one part at a time, each a JSON and a WebP.

    captions    caption accuracy by number of objects, seen and held-out pairs
    guidance    the scale's sweep against the closed form, for two levels of caption noise
    clip        classifier-free against CLIP guidance, and the reader's preferences (GLIDE, Fig. 6)
    steps       DDIM and DDPM against the number of steps, guided and not at equal evaluations
    classes     the table of classifier guidance (ADM, Table 4)
    widths      guidance against parameters (GLIDE, Table 4)
    inpainting  a hole to be filled: fine-tuned, replaced, pasted; and the upsampler's numbers

A part trains nothing: what it needs beyond the shipped weights it takes from where the training
commands leave it, and says which command makes what is missing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import command, devices, metrics, report
from common.pretrained import defaults
from glide import study_classes, study_clip, study_guidance, study_holes
from glide.model import load
from glide.sample import SHIPPED

FIGURES = Path("lessons/figures")
QUICK = {"num": 96, "steps": 20}
FULL = {"num": 512, "steps": 50}
PARTS: dict[str, Callable] = {
    "captions": study_guidance.captions,
    "guidance": study_guidance.guidance,
    "steps": study_guidance.steps,
    "clip": study_clip.clip,
    "classes": study_classes.classes,
    "widths": study_classes.widths,
    "inpainting": study_holes.inpainting,
}


@dataclass(frozen=True)
class StudyConfig:
    """`python -m glide study`: what the README's tables and the lessons' figures are made of."""

    part: Literal[tuple(PARTS)] = "captions"
    quick: bool = False  # fewer pictures and steps: minutes on two CPU cores
    num: int | None = None  # captions (of each split, in part captions): 512, quick 96
    scales: tuple[float, ...] = (0, 1, 2, 3, 5)  # of part captions
    steps: int | None = None  # of the sampler: 50, quick 20
    seed: int = 1
    weights: tuple[Path, ...] = (SHIPPED,)  # part guidance takes several
    out: Path = FIGURES  # folder for glide_PART.json and .webp


def main(given: StudyConfig) -> None:
    c = defaults(given, **(QUICK if given.quick else FULL))
    if not 8 <= c.num <= 1000:
        raise ValueError(f"num must be in 8..1000, not {c.num}")
    if c.steps < 1:
        raise ValueError(f"steps must be at least 1, not {c.steps}")
    if not all(math.isfinite(s) for s in c.scales):
        raise ValueError("scales must be finite numbers")
    devices.start()
    models = [load(path) for path in c.weights]
    command.check_out(c.out)
    rows, claims, figure = PARTS[c.part](c, models)
    numbers = {
        "command": report.command("glide study", given), "seed": c.seed, "n": c.num,
        "steps": c.steps, "weights": [metadata["digest"] for _, _, metadata in models],
        "recipe": [metadata["recipe"] for _, _, metadata in models],
        "intervals": "95%: Wilson of shares, bootstrap of the rest; of differences Newcombe's",
        "features": metrics.SCENE_FEATURES, "rows": rows, "claims": claims,
    }  # fmt: skip
    report.save(c.out / f"glide_{c.part}.json", numbers, figure)
