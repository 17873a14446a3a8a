"""Classifier-free against CLIP guidance, as in Figure 6 and Table 1 of GLIDE."""

from pathlib import Path

import numpy as np
from PIL import Image

from common import clip as towers
from common import metrics, plot
from common.scenes.captions import claims
from common.scenes.scene import COLOURS, SHAPES
from glide import clip as glide_clip
from glide import clip_guidance
from glide.sample import JUDGE, draw
from glide.scoring import (
    asked,
    band,
    claim,
    line,
    made_by,
    measure,
    preferences,
    singles,
    trained,
)

GUIDE = Path("runs/clip_noised/weights.safetensors")
MAKE_GUIDE = (
    "train-clip --noised --base glide/weights/clip.safetensors --steps 400 --lr 5e-4 "
    "--out runs/clip_noised"
)
CFG, NOISED, CLEAN = (1, 1.5, 2, 3, 5), (1, 2, 4), (1, 2)  # scales
PANELS = (("recall", "precision"), ("fd_scenes", "judge_right"), ("fd_scenes", "clip_score"),
          ("fd_scenes", "shape_colour"))  # fmt: skip
NAMES = {"fd_scenes": "FD-scenes (lower is better)", "clip_score": "CLIP score of the judge",
         "judge_right": "shape and colour, by the judge",
         "shape_colour": "shapes and colours, by the reader"}  # fmt: skip


def clip(c, models: list) -> tuple[list[dict], list[dict], object]:
    """Every kind of guidance over its scale, judged by the reader and by a CLIP.

    The un-noised baseline guides with the judge itself, and the noised guide began with its
    weights, so their CLIP scores are marked as such: only the reader is apart from all.
    """
    config, params, _ = models[0]
    *guide, guide_made = glide_clip.load(trained(GUIDE, MAKE_GUIDE))
    *judge, judge_made = glide_clip.load(JUDGE)
    texts, real = asked(c, config.size)
    kinds = {"CFG": (CFG, None), "CLIP, noised": (NOISED, guide), "CLIP, un-noised": (CLEAN, judge)}
    rows, drawn = {}, {}
    for kind, (scales, by) in kinds.items():
        for scale in scales:
            options = {"guidance_scale": scale, "steps": c.steps, "seed": c.seed, "progress": True}
            if by is None:
                images = draw(config, params, texts, **options)
            else:
                images = clip_guidance.draw((config, params), by, texts, **options)
            rows[kind, scale] = {"guidance": kind, "guidance_scale": scale,
                                 "judge_guided": by is not None, **by_clip(judge, texts, images),
                                 **measure(texts, images, real)}  # fmt: skip
            drawn[kind, scale] = images
            print(kind, scale, line(rows[kind, scale]))
    players = {"unguided": ("CFG", 1), "CLIP 2": ("CLIP, noised", 2), "CFG 3": ("CFG", 3)}
    elo = {r["player"]: r for r in preferences(texts, {n: drawn[k] for n, k in players.items()})}
    tests = []
    for text, key, a, b in (
        ("CFG 3 is right more often than CLIP 2, by the reader", "shape_colour", "CFG 3", "CLIP 2"),
        ("CFG 3 has more precision than CLIP 2", "precision", "CFG 3", "CLIP 2"),
        ("CLIP 2 has a higher CLIP score than CFG 3", "clip_score", "CLIP 2", "CFG 3"),
    ):
        tests.append(claim(text, *(rows[players[name]][key] for name in (a, b))))
    for question in ("realism", "caption"):
        key = f"elo_{question}"
        for a, b in (("CFG 3", "CLIP 2"), ("CLIP 2", "unguided")):
            text = f"{question}: the reader prefers {a} to {b}"
            tests.append(claim(text, elo[a][key], elo[b][key]))
    by_kind = {kind: [r for (k, _), r in rows.items() if k == kind] for kind in kinds}
    figures = [plot.curve({k: band(mine, x, y) for k, mine in by_kind.items() if mine},
                          xlabel=NAMES.get(x, x), ylabel=NAMES.get(y, y), size=(4.2, 3.0))
               for x, y in PANELS]  # fmt: skip
    weights = [made_by("guide", guide_made), made_by("judge", judge_made)]
    return [*weights, *rows.values(), *elo.values()], tests, two_by_two(figures)


def by_clip(judge: tuple, texts: list[str], images: np.ndarray) -> dict[str, dict]:
    """CLIP score, and the judge's zero-shot shape and colour of one object: what a network thinks.

    (The paper's network is an Inception; the share that it recognises stands for its score.)
    """
    embedding = towers.embed_images(*judge, images)
    cosines = 100 * towers.score(embedding, towers.embed_texts(*judge, texts))
    low, high = metrics.bootstrap_interval(cosines)
    one = singles(texts)
    wanted = [claims(t)["objects"][0] for t, alone in zip(texts, one, strict=True) if alone]
    shapes, colours = (
        towers.zero_shot(embedding[one], k) for k in glide_clip.class_prompts(*judge)
    )
    right = sum((SHAPES[s], list(COLOURS)[k]) == (o["shape"], o["colour"])
                for s, k, o in zip(shapes, colours, wanted, strict=True))  # fmt: skip
    score = {"value": float(cosines.mean()), "low": low, "high": high, "n": len(texts)}
    return {"clip_score": score, "judge_right": metrics.proportion(right, len(wanted))}


def two_by_two(figures: list[Image.Image]) -> Image.Image:
    """Four figures of one size on one page."""
    width, height = figures[0].size
    page = Image.new("RGB", (2 * width, 2 * height))
    for i, figure in enumerate(figures):
        page.paste(figure, (i % 2 * width, i // 2 * height))
    return page
