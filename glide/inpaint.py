"""Inpainting: what keep_mask keeps is given, the rest is drawn to fit it and the caption.

A model fine-tuned for it sees the known pixels beside x; any other can still be held to them, by
replacing them in every x_s (the baseline of GLIDE's section 4.3). Both paste them into x0.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import command, devices, sampler
from common.devices import CHUNK, in_chunks
from common.guidance import classifier_free
from common.pictures import on_white, open_mask, open_picture
from common.process import to_float, to_uint8
from common.scenes.captions import canonical
from glide.model import GlideConfig, denoiser, encode_text, load, make_schedule, tokenizer
from glide.sample import DrawConfig, check, save

SHIPPED = Path(__file__).parent / "weights" / "inpaint.safetensors"


@dataclass(frozen=True, kw_only=True)
class InpaintConfig(DrawConfig):
    """`python -m glide inpaint`: draw what a caption says into a hole of a picture."""

    image: Path  # the picture, a PNG or JPEG
    keep_mask: Path  # a picture of its size: white is kept, black is drawn anew
    out: Path = Path("out/inpaint.png")  # a .png is a labelled grid; a folder, one PNG each
    resize: bool = False  # crop and resize files of another size, instead of refusing them
    weights: Path = SHIPPED  # fine-tuned, or a base model's, which is held to the known pixels


def random_keep_mask(key: jax.Array, size: int) -> jax.Array:
    """(size, size, 1) of 0 and 1 (keep): up to three rectangles erased, one time in ten everything.

    Paper: says only that random regions are erased. Sides are 1/4 to 3/4 of the picture's.
    """
    number_key, all_key, *keys = jax.random.split(key, 5)
    along = jnp.arange(size) + 0.5

    def rectangle(key):
        side_key, start_key = jax.random.split(key)
        sides = size * jax.random.uniform(side_key, (2,), minval=0.25, maxval=0.75)
        starts = jax.random.uniform(start_key, (2,)) * (size - sides)
        rows, columns = ((along > a) & (along < a + b) for a, b in zip(starts, sides, strict=True))
        return rows[:, None] & columns[None, :]

    number = jax.random.randint(number_key, (), 1, 4)
    erased = [rectangle(key) & (i < number) for i, key in enumerate(keys)]
    erased = functools.reduce(jnp.logical_or, erased) | jax.random.bernoulli(all_key, 0.1)
    return 1.0 - erased[..., None]


def known(x0: jax.Array, keep_mask: jax.Array) -> jax.Array:
    """x0 (B, H, W, 3), keep_mask (B, H, W, 1) -> the input "known" (B, H, W, 4)."""
    return jnp.concatenate([x0 * keep_mask, keep_mask], -1)


@functools.cache
def compiled(config: GlideConfig, steps: int):
    """run(params, tokens, uint8 images, keep_masks, scales (B,), key) -> uint8 (B, H, W, 3)."""
    schedule = make_schedule(config)
    ts = sampler.timesteps(config.T, steps)

    def run(params, tokens, images, keep_masks, scales, key):
        x_key, step_key = jax.random.split(key)
        x0 = to_float(images)
        cond = encode_text(config, params, tokens)
        null_cond = encode_text(config, params, jnp.zeros_like(tokens))
        project = None
        if "known" in config.inputs:
            cond, null_cond = ({**c, "known": known(x0, keep_masks)} for c in (cond, null_cond))
        else:

            def project(x, s, key):
                noisy = schedule.add_noise(x0, s, sampler.noise_like(key, x))
                return jnp.where(keep_masks == 1, noisy, x)

        def x0_fn(guess):
            return sampler.clip_x0(jnp.where(keep_masks == 1, x0, guess))

        guided = classifier_free(denoiser(config, params), null_cond, scales)
        x = sampler.noise_like(x_key, x0)
        x = sampler.sample(guided, schedule, x, ts, cond, step_key, x0_fn=x0_fn, project=project)
        return jnp.where(keep_masks == 1, images, to_uint8(x))

    return devices.jit(run)


def inpaint(
    config: GlideConfig,
    params: dict,
    prompts: Sequence[str],
    images: np.ndarray,
    keep_masks: np.ndarray,
    *,
    guidance_scale: float | np.ndarray = 3.0,
    steps: int = 50,
    seed: int = 0,
    chunk: int = CHUNK,
    progress: bool = False,
) -> np.ndarray:
    """images uint8 (B, H, W, 3), keep_masks (B, H, W, 1) of 0 and 1 -> uint8, kept pixels exact."""
    tokens = tokenizer(config).encode([canonical(p) for p in prompts])
    scales = np.broadcast_to(np.float32(guidance_scale), (len(prompts),))
    keep_masks, key = np.asarray(keep_masks, np.float32), jax.random.key(seed)

    def run(rows, i):
        given = (tokens[rows], images[rows], keep_masks[rows], scales[rows])
        return compiled(config, steps)(params, *given, jax.random.fold_in(key, i))

    return in_chunks(run, len(prompts), chunk, "inpainting", progress)


def main(c: InpaintConfig) -> None:
    check(c)
    devices.start()
    config, params, _ = load(c.weights)
    tokenizer(config).encode([canonical(c.prompt)])
    sampler.timesteps(config.T, c.steps)
    command.check_out(c.out)
    image = on_white(open_picture(c.image, config.size, c.resize))
    keep_mask = open_mask(c.keep_mask, config.size, c.resize)
    if keep_mask.all():
        raise ValueError(f"{c.keep_mask} keeps every pixel: paint black what is to be drawn")
    repeat = lambda a: np.broadcast_to(a, (c.num, *a.shape))  # noqa: E731
    drawn = inpaint(config, params, [c.prompt] * c.num, repeat(image), repeat(keep_mask),
                    guidance_scale=c.guidance_scale, steps=c.steps, seed=c.seed,
                    progress=c.num > CHUNK)  # fmt: skip
    hole = np.where(keep_mask, image, np.uint8(128))
    save(c, drawn, first={"picture": image, "hole": hole})
