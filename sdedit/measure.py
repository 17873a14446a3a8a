"""What the studies measure: realism, faithfulness, seconds, and which of two is the larger."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from common import data, metrics
from common.scenes.reader import read
from sdedit import gan, invert
from sdedit.model import SdeditConfig, load
from sdedit.sample import draw

REAL = 512  # pictures that realism is measured against


@dataclass(frozen=True)
class World:
    """The network, and test pictures: guides are made of the first `num`, others are the judge."""

    c: object  # the study's config
    config: SdeditConfig
    params: dict
    digest: str
    scenes: list
    images: np.ndarray  # uint8 (N, H, W, 3)

    @cached_property
    def real(self) -> np.ndarray:
        """Features of REAL pictures that no guide was made of."""
        return metrics.scene_features(self.images[self.c.num :][:REAL])

    @property
    def truth(self) -> np.ndarray:
        return self.images[: self.c.num]

    def edited(self, guides: np.ndarray, **options) -> np.ndarray:
        """What SDEdit makes of the guides, by the study's options unless others are given."""
        options = {"t0": self.c.t0, "steps": self.c.steps, "seed": self.c.seed} | options
        return draw(self.config, self.params, guides, progress=True, **options)

    @cached_property
    def inversions(self) -> dict[str, Callable]:
        """{name: function of guides} for the three ways of GAN inversion."""
        for path, verb in ((self.c.gan, "train-gan"), (self.c.encoder, "train-encoder")):
            if not path.exists():
                raise ValueError(f"no weights at {path}: make them with `python -m sdedit {verb}`")
        config, params, _ = gan.load(self.c.gan)
        encoder = invert.load(self.c.encoder)[1]
        names = ("GAN-32, encoder (e4e)", "GAN-32, encoder+optimisation (In-domain)",
                 "GAN-32, optimisation (StyleGAN2-ADA)")  # fmt: skip
        return {
            name: lambda guides, way=way: invert.invert((config, params), encoder, guides, way)
            for name, way in zip(names, invert.WAYS, strict=True)
        }


def open_world(c: object) -> World:
    config, params, metadata = load(c.weights)
    scenes = data.load("scenes", "test", size=config.size)
    return World(c, config, params, metadata["digest"], scenes["scenes"], scenes["image"])


def realism_and_distance(images: np.ndarray, guides: np.ndarray, real: np.ndarray) -> dict:
    """{kid: KID to features `real`, l2: squared L2 to the guides} of uint8 pictures (N, H, W, 3).

    Each {value, low, high, n}, 95%. L2 is summed over pixels in [0, 1], as in the paper's Figure 3.
    """
    features = metrics.scene_features(images)
    return {"kid": metrics.resampled(lambda x: metrics.kid(x, real), features),
            "l2": mean(squared(images, guides))}  # fmt: skip


def with_reader(images: np.ndarray, guides: np.ndarray, real: np.ndarray) -> dict:
    """The same and the share that the reader takes for scenes."""
    valid = sum(reading["valid"] for reading in read(images))
    share = metrics.proportion(valid, len(images))
    return realism_and_distance(images, guides, real) | {"valid": share}


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """||a - b||^2 of pictures (N, H, W, 3), 0..255, as of numbers in [0, 1] -> (N,)."""
    return np.square((a.astype(float) - b) / 255).sum((1, 2, 3))


def mean(values: np.ndarray) -> dict:
    """{value, low, high, n} of a mean, 95% bootstrap."""
    low, high = metrics.bootstrap_interval(values)
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def timed(method: Callable, guides: np.ndarray) -> tuple[np.ndarray, float]:
    """(pictures, processor seconds a picture of a second call, which compiles nothing)."""
    method(guides)
    began = time.process_time()
    return jax.device_get(method(guides)), (time.process_time() - began) / len(guides)


def claim(name: str, metric: str, rows: dict[str, dict], larger: str, smaller: str) -> dict:
    """Is a number of one row above that of another? "open" where the interval contains 0."""
    found = metrics.difference(rows[larger][metric], rows[smaller][metric])
    holds = "yes" if found["low"] > 0 else "no" if found["high"] < 0 else "open"
    return {"claim": name, "metric": metric, "larger": larger, "smaller": smaller, **found,
            "holds": holds}  # fmt: skip
