"""Super-resolution by concatenation: beside z_t the network sees the small picture's pixels.

They are as many as the latent's positions, so f is what it enlarges by. Rombach et al. 2022, 4.4.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.pictures import on_white, open_picture
from common.process import to_float
from ldm.model import LdmConfig
from ldm.sample import Options, draw, finish, repeat, start


def shrink(images: np.ndarray, factor: int) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, H/f, W/f, 3), means of f x f pixels, rounded as a file would be.

    Paper: bicubic, or in the released model a random chain of blur, noise and JPEG.
    """
    N, H, W, C = images.shape
    blocks = images.reshape(N, H // factor, factor, W // factor, factor, C)
    return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def upscale(config: LdmConfig, params: dict, images: np.ndarray, **options) -> np.ndarray:
    """Pictures uint8 (B, h, w, 3) -> (B, f h, f w, 3); options: those of sample.draw."""
    if "low_res" not in config.inputs:
        raise ValueError("these weights do not enlarge: train some with --preset small_upscale")
    size = images.shape[1] * config.first_stage.factor
    beside = {"low_res": to_float(images)}
    return draw(config, params, [""] * len(images), beside=beside, size=size, **options)


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig(Options):
    """`python -m ldm upscale`: a small picture, enlarged by the factor of the first stage."""

    image: Path  # a PNG or JPEG, of 16 x 16 pixels for the shipped weights
    resize: bool = False  # crop and shrink a larger picture, instead of refusing it


def main(c: UpscaleConfig) -> None:
    c, config, params, read = start(c)
    small = config.size // config.first_stage.factor
    image = on_white(open_picture(c.image, small, c.resize))
    images = upscale(config, params, repeat(c, image), steps=c.steps, solver=c.sampler,
                     seed=c.seed, read=read)  # fmt: skip
    shown = image.repeat(config.size // small, 0).repeat(config.size // small, 1)
    finish(c, images, "super-resolution", {"given": shown})
