"""Inpainting by concatenation: beside z_t the network sees the masked picture's latent, and where.

Rombach et al. 2022, section 4.5; scripts/inpaint.py. An edit_mask is 1 where it may change.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import devices
from common.pictures import on_white, open_mask, open_picture
from common.process import to_float
from ldm.model import LdmConfig, to_latent
from ldm.sample import Options, draw, finish, repeat, start


def masked(config: LdmConfig, params: dict, x: jax.Array, edit_mask: jax.Array) -> jax.Array:
    """x (B, H, W, 3), edit_mask (B, H, W, 1) of 0 and 1 -> the input "masked" (B, h, w, C + 1).

    The hole is black, -1, before it is encoded; the mask is -1 and 1, of every f-th pixel.
    """
    hole = (1 - edit_mask) * x - edit_mask
    f = config.first_stage.factor
    small = 2 * edit_mask[:, ::f, ::f] - 1
    return jnp.concatenate([to_latent(config, params, hole), small], -1)


def random_edit_mask(key: jax.Array, size: int) -> jax.Array:
    """(size, size, 1) of 0 and 1: one to three rectangles, sides 1/4 to 3/4 of the picture's.

    Paper: LaMa's masks, which are thick strokes as well.
    """
    number_key, side_key, start_key = jax.random.split(key, 3)
    sides = jax.random.uniform(side_key, (3, 2), minval=0.25, maxval=0.75)
    starts = jax.random.uniform(start_key, (3, 2)) * (1 - sides)
    along = ((jnp.arange(size) + 0.5) / size)[None, None]
    inside = (along > starts[..., None]) & (along < (starts + sides)[..., None])  # (3, 2, size)
    rectangles = inside[:, 0, :, None] & inside[:, 1, None, :]
    drawn = jnp.arange(3) < jax.random.randint(number_key, (), 1, 4)
    return (rectangles & drawn[:, None, None]).any(0).astype(jnp.float32)[..., None]


@functools.cache
def compiled_masked(config: LdmConfig):
    run = lambda params, images, masks: masked(config, params, to_float(images), masks)  # noqa: E731
    return devices.jit(run)


def inpaint(
    config: LdmConfig,
    params: dict,
    images: np.ndarray,
    edit_masks: np.ndarray,
    prompts: Sequence[str] | None = None,
    **options,
) -> np.ndarray:
    """images uint8 (B, H, W, 3), edit_masks (B, H, W, 1) bool -> uint8, the other pixels exact.

    options: those of sample.draw. ValueError: weights that do not take a masked picture.
    """
    if "masked" not in config.inputs:
        raise ValueError("these weights do not inpaint: train some with --preset small_inpaint")
    edit_masks = np.asarray(edit_masks, np.float32)
    inputs = devices.in_chunks(
        lambda rows, i: compiled_masked(config)(params, images[rows], edit_masks[rows]),
        len(images), devices.CHUNK, "encoding", False,
    )  # fmt: skip
    prompts = [""] * len(images) if prompts is None else prompts
    options |= {"beside": {"masked": inputs}, "size": images.shape[1]}
    drawn = draw(config, params, prompts, **options)
    return np.where(edit_masks == 1, drawn, images)


@dataclass(frozen=True, kw_only=True)
class InpaintConfig(Options):
    """`python -m ldm inpaint`: draw anew what a mask says."""

    image: Path  # a PNG or JPEG
    edit_mask: Path  # another: white is drawn anew, black is kept exactly
    prompt: str = ""  # for weights that take one
    resize: bool = False  # crop and resize files of another size, instead of refusing them


def main(c: InpaintConfig) -> None:
    c, config, params, read = start(c, c.prompt)
    image = on_white(open_picture(c.image, config.size, c.resize))
    edit_mask = open_mask(c.edit_mask, config.size, c.resize)
    images = inpaint(config, params, repeat(c, image), repeat(c, edit_mask), [c.prompt] * c.num,
                     steps=c.steps, solver=c.sampler, seed=c.seed, read=read)  # fmt: skip
    hole = np.where(edit_mask, np.uint8(0), image)
    finish(c, images, "inpainting", {"given": hole})
