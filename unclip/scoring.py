"""What the studies count: pictures read by the reader, with intervals, and who is compared."""

from dataclasses import dataclass

import numpy as np

from common import metrics
from common.scenes.captions import agrees, claims
from common.scenes.reader import read
from glide.sample import draw as glide_draw
from unclip.model import Clip, DecoderConfig
from unclip.sample import decode, embed

FREE = ("background", "style", "size", "place")  # what a caption of shape and colour leaves open
ALL = ("shape", "colour", *FREE)
KINDS = {"diffusion prior": "diffusion", "ar prior": "ar", "text embedding": "text",
         "text decoder": "text", "caption only": "none", "glide": "none"}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Everything a study draws with: decoder, CLIP, priors, GLIDE, and test pictures."""

    config: DecoderConfig
    params: dict
    digest: str
    clip: Clip
    priors: dict[str, tuple]
    glide: tuple
    text_decoder: tuple | None
    scenes: dict
    steps: int
    seed: int

    def embed(self, kind: str, texts: list[str], seed: int, **options) -> np.ndarray:
        """What stands for z_i (N, D) in the system `kind`."""
        name = KINDS[kind]
        options = {"seed": seed, **options} if name in self.priors else {}
        return embed(name, self.priors.get(name), self.clip, texts, **options)

    def pictures(self, kind: str, texts, z, *, scale: float, seed: int | None = None):
        """Its pictures uint8 (N, H, W, 3)."""
        options = {"guidance_scale": scale, "steps": self.steps, "progress": True}
        options["seed"] = self.seed if seed is None else seed
        if kind == "glide":
            return glide_draw(*self.glide, texts, **options)
        model = self.text_decoder if kind == "text decoder" else (self.config, self.params)
        return decode(*model, z, texts, **options)


def outcomes(texts: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """For each picture: is it a scene, are shapes and colours right, is all that is claimed?"""
    kept = [agrees(claims(t), r) for t, r in zip(texts, read(images), strict=True)]
    return {k: np.array([one[k] for one in kept]) for k in ("valid", "shape_colour", "all")}


def row(right) -> dict:
    """A share of trues with Wilson's 95% interval."""
    n, k = len(right), int(np.sum(right))
    low, high = metrics.wilson_interval(k, n)
    return {"value": k / n if n else float("nan"), "low": low, "high": high, "n": n}


def shown(values: np.ndarray) -> dict:
    """A mean with its bootstrap 95% interval."""
    low, high = metrics.bootstrap_interval(values)
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def ordering(claim: str, measure: str, a: np.ndarray, b: np.ndarray) -> dict:
    """Does a lie above b? Paired differences, mean and bootstrap 95% interval."""
    difference = shown(np.asarray(a, float) - np.asarray(b, float))
    verdict = "holds" if difference["low"] > 0 else "reversed" if difference["high"] < 0 else "open"
    return {"claim": claim, "measure": measure, "difference": difference, "verdict": verdict}


def read_one(images: np.ndarray) -> list[dict]:
    """The attributes, x and y of pictures with one object, {} of all others."""
    readings = read(images)
    ones = [r["valid"] and len(r["objects"]) == 1 for r in readings]
    flat = [{**r["objects"][0], "background": r["background"], "style": r["style"]} if one else {}
            for r, one in zip(readings, ones, strict=True)]  # fmt: skip
    return [{k: r[k] for k in (*ALL, "x", "y")} if r else {} for r in flat]


def diversity(images: np.ndarray, draws: int) -> np.ndarray:
    """(captions,) bits: the entropy of each free attribute over `draws` pictures, their mean.

    Of the pictures with one object; a caption without any has none. Biased low by the few draws:
    compare with as many real pictures.
    """
    readings, out = read_one(images), []
    for i in range(0, len(readings), draws):
        valid = [r for r in readings[i : i + draws] if r]
        bits = [0.0]
        for name in FREE if valid else ():
            counts = np.unique([r[name] for r in valid], return_counts=True)[1] / len(valid)
            bits.append(float(-(counts * np.log2(counts)).sum()))
        out.append(sum(bits) / len(FREE))
    return np.array(out)
