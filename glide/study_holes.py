"""Filling holes, and enlarging: how well the second half of GLIDE does what it is asked."""

import numpy as np
from PIL import Image

from common import data, metrics, plot
from common.scenes.reader import read
from common.scenes.render import halve
from common.scenes.scene import COLOURS, HELD_OUT, SHAPES
from glide import inpaint
from glide.model import load
from glide.sample import UPSAMPLER, draw
from glide.study_guidance import asked
from glide.upsampler import upsample

HALVES = {"left": np.s_[:, :16], "right": np.s_[:, 16:], "top": np.s_[:16], "bottom": np.s_[16:]}
WORDS = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}


def holes(c) -> tuple[list[str], np.ndarray, np.ndarray, list[tuple]]:
    """Pictures of two objects, the half of one of them erased, and a caption with a new one there.

    -> captions, images uint8 (B, 32, 32, 3), keep_masks (B, 32, 32, 1), wanted (shape, colour)
    """
    scenes, rng = data.load("scenes", "test", size=32), np.random.default_rng(c.seed)
    pairs = [i for i, scene in enumerate(scenes["scenes"]) if len(scene.objects) == 2][: c.count]
    seen = [(s, k) for s in SHAPES for k in COLOURS if (s, k) not in HELD_OUT]
    texts, keep_masks, wanted = [], np.ones((len(pairs), 32, 32, 1), np.float32), []
    for i, keep_mask in zip(pairs, keep_masks, strict=True):
        kept, erased = scenes["scenes"][i].objects
        shape, colour = new = seen[rng.integers(len(seen))]
        keep_mask[HALVES[erased.place]] = 0
        text = f"a {colour} {shape} {WORDS[erased.place]} a {kept.colour} {kept.shape}"
        texts.append(text.replace("a orange", "an orange"))
        wanted.append((*new, erased.place))
    return texts, scenes["image"][pairs], keep_masks, wanted


def seam(images: np.ndarray, keep_masks: np.ndarray) -> float:
    """Mean step in brightness (0..255) between neighbours of which one is kept, one drawn."""
    x, steps = images.astype(float).mean(-1), []
    for axis in (1, 2):
        edge = np.diff(keep_masks[..., 0], axis=axis) != 0
        steps.append(np.abs(np.diff(x, axis=axis))[edge])
    return float(np.concatenate(steps).mean())


def inpainting(c, models: list) -> tuple[list[dict], object]:
    """Fine-tuned, replaced and pasted: is the new object in the hole, is the seam seen?"""
    config, params, _ = models[0]
    tuned = load(inpaint.SHIPPED)[:2]
    texts, images, keep_masks, wanted = holes(c)
    options = {"guidance_scale": 3.0, "steps": c.steps, "seed": c.seed, "progress": True}
    whole = draw(config, params, texts, **options)
    results = {
        "fine-tuned": inpaint.inpaint(*tuned, texts, images, keep_masks, **options),
        "replacement": inpaint.inpaint(config, params, texts, images, keep_masks, **options),
        "pasted": np.where(keep_masks == 1, images, whole),
    }
    rows = []
    for name, filled in {"real picture": images, **results}.items():
        there = sum((w in [(o["shape"], o["colour"], o["place"]) for o in r["objects"]])
                    for w, r in zip(wanted, read(filled), strict=True))  # fmt: skip
        low, high = metrics.wilson_interval(there, len(texts))
        kept = np.abs(np.where(keep_masks == 1, filled - images.astype(float), 0)).max()
        rows.append({"method": name, "seam": seam(filled, keep_masks), "kept_error": float(kept),
                     "object_in_hole": {"accuracy": there / len(texts), "low": low,
                                        "high": high, "n": len(texts)}})  # fmt: skip
        print(f"{name:14} object in the hole {there / len(texts):.3f}  seam {rows[-1]['seam']:.1f}")
    rows += enlarged(c, config, params)
    shown = np.stack([images, np.where(keep_masks == 1, images, np.uint8(128)), *results.values()])
    return rows, plot.grid(shown[:, :6].swapaxes(0, 1).reshape(-1, *images.shape[1:]), columns=5,
                           column_labels=["picture", "hole", *results], row_labels=texts[:6],
                           scale=2)  # fmt: skip


def enlarged(c, config, params) -> list[dict]:
    """The upsampler on halved renders, against bilinear, and on drawn pictures, by the reader."""
    second = load(UPSAMPLER)[:2]
    texts, _ = asked(c, 32)
    real = data.load("scenes", "test", size=64)["image"][: c.count]
    small = np.asarray(halve(real))
    bilinear = np.stack([np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BILINEAR))
                         for i in small])  # fmt: skip
    sharp = upsample(*second, texts, small, seed=c.seed, progress=True)
    psnr = lambda a: [float(10 * np.log10(255**2 / np.square(x - y.astype(float)).mean()))  # noqa: E731
                      for x, y in zip(real, a, strict=True)]  # fmt: skip
    rows = []
    for name, images in (("bilinear", bilinear), ("upsampler", sharp)):
        values = psnr(images)
        found = metrics.caption_accuracy(texts, images)["shape_colour"]
        rows.append({"of": "real renders", "method": name, "psnr": float(np.mean(values)),
                     "psnr_interval": metrics.bootstrap_interval(values),
                     "shape_colour": found})  # fmt: skip
    drawn = draw(config, params, texts, guidance_scale=3.0, steps=c.steps, seed=c.seed)
    for name, images in (("32 px", drawn), ("64 px", upsample(*second, texts, drawn, seed=c.seed))):
        found = metrics.caption_accuracy(texts, images)["shape_colour"]
        rows.append({"of": "drawn, guidance 3", "method": name, "shape_colour": found})
    for row in rows:
        print({k: v if not isinstance(v, dict) else v["accuracy"] for k, v in row.items()})
    return rows
