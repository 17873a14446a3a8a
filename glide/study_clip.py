"""Classifier-free against CLIP guidance, as in Figure 6 and Table 1 of GLIDE."""

import itertools
from pathlib import Path

import numpy as np

from common import clip as towers
from common import metrics, plot
from common.scenes.captions import agrees, claims
from common.scenes.reader import read
from glide import clip as glide_clip
from glide import clip_guidance
from glide.sample import JUDGE, draw
from glide.study_guidance import asked, line, measure

# python -m glide train-clip --noised --out runs/clip_noised makes it: it is not shipped.
GUIDE = Path("runs/clip_noised/weights.safetensors")
CFG, NOISED, CLEAN = (1, 1.5, 2, 3, 5), (0.5, 1, 2, 4), (0.5, 1, 2)  # scales


def clip(c, models: list) -> tuple[list[dict], object]:
    """Every kind of guidance over its scale, judged by the reader and by a CLIP of another seed.

    The un-noised baseline guides with the judge itself, so its CLIP score is marked as such.
    """
    config, params, _ = models[0]
    guide, judge = (glide_clip.load(path)[:2] for path in (GUIDE, JUDGE))
    texts, real = asked(c, config.size)
    embedding = towers.embed_texts(*judge, texts)
    kinds = {"CFG": (CFG, None), "CLIP, noised": (NOISED, guide), "CLIP, un-noised": (CLEAN, judge)}
    rows, drawn = [], {}
    for kind, (scales, by) in kinds.items():
        for scale in scales:
            options = {"guidance_scale": scale, "steps": c.steps, "seed": c.seed, "progress": True}
            if by is None:
                images = draw(config, params, texts, **options)
            else:
                images = clip_guidance.draw((config, params), by, texts, **options)
            score = metrics.clip_score(towers.embed_images(*judge, images), embedding)
            rows.append({"guidance": kind, "guidance_scale": scale, "clip_score": score,
                         "judge_guided": by is judge} | measure(texts, images, real))  # fmt: skip
            drawn[kind, scale] = images
            print(kind, scale, line(rows[-1]))
    players = {"unguided": ("CFG", 1), "CLIP 2": ("CLIP, noised", 2), "CFG 3": ("CFG", 3)}
    rows += preferences(texts, {name: drawn[key] for name, key in players.items()})
    series = {}
    for kind in kinds:
        mine = [r for r in rows if r.get("guidance") == kind]
        values = ([r["shape_colour"][k] for r in mine] for k in ("accuracy", "low", "high"))
        series[kind] = ([r["fd_scenes"] for r in mine], *values)
    return rows, plot.curve(series, xlabel="FD-scenes (lower is better)",
                            ylabel="shapes and colours right",
                            title="Guidance by caption dropping and by CLIP")  # fmt: skip


def preferences(texts: list[str], drawn: dict[str, np.ndarray]) -> list[dict]:
    """Elo of the players: realism (is it a scene?) and caption (how many claims hold?), ties 1/2.

    The reader's preference, where the paper asks people; with one tie of every pair added.
    """
    readings = {name: read(images) for name, images in drawn.items()}
    points = {name: {"realism": [float(r["valid"]) for r in found],
                     "caption": [sum(agrees(claims(text), r).values())
                                 for text, r in zip(texts, found, strict=True)]}
              for name, found in readings.items()}  # fmt: skip
    names, rows = list(drawn), [{"player": name, "n": len(texts)} for name in drawn]
    for question in ("realism", "caption"):
        wins = np.zeros((len(names), len(names)))
        for i, j in itertools.permutations(range(len(names)), 2):
            a, b = (np.array(points[names[k]][question]) for k in (i, j))
            wins[i, j] = (a > b).sum() + 0.5 * (a == b).sum()
        for row, rating in zip(rows, metrics.elo(wins, virtual_ties=1), strict=True):
            row[f"elo_{question}"] = float(rating)
    return rows
