"""A picture that can be watched while it forms: DDIM in pieces of a few steps, each one compiled.

`glide.sample.draw` and `glide.inpaint.inpaint` make the same picture in one scan.
"""

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import devices, sampler
from common.guidance import classifier_free
from common.process import to_float, to_uint8
from common.scenes.captions import canonical
from glide.inpaint import known
from glide.model import GlideConfig, denoiser, encode_text, load, make_schedule, tokenizer

STEPS, PIECE = 50, 5  # DDIM steps of a picture, and of one piece of it
ONE = threading.Lock()  # one computation at a time, also while the first program compiles

Frames = Iterator[np.ndarray]  # uint8 (n, H, W, 3) each, the last of the last is the picture
weights = functools.cache(load)


def frames(
    path: Path,
    prompt: str,
    guidance_scale: float,
    seed: int,
    image: np.ndarray,
    keep_mask: np.ndarray,
) -> Frames:
    """The pieces of the first picture that `draw` and `inpaint` draw with that seed.

    image uint8 (H, W, 3) where keep_mask (H, W, 1) is True. ValueError: unknown words.
    """
    config, params, _ = weights(path)
    tokens = tokenizer(config).encode([canonical(prompt)])
    ts = sampler.timesteps(config.T, STEPS)
    given = image[None], keep_mask[None], np.float32(guidance_scale)
    with ONE:
        x = _noise(config, jax.random.key(seed))
    for i in range(0, STEPS, PIECE):
        with ONE:
            x, piece = _compiled(config)(params, tokens, x, ts[i : i + PIECE + 1], *given)
            piece = np.asarray(piece)
        yield piece


@functools.cache
def _compiled(config: GlideConfig):
    """run(params, tokens, x, ts, images, keep_masks, scale) -> x at ts[-1], uint8 on the way."""
    schedule = make_schedule(config)

    def run(params, tokens, x, ts, images, keep_masks, scale):
        x0 = to_float(images)
        cond = encode_text(config, params, tokens)
        null_cond = encode_text(config, params, 0 * tokens)
        if "known" in config.inputs:
            beside = {"known": known(x0, keep_masks.astype(x0.dtype))}
            cond, null_cond = cond | beside, null_cond | beside

        def x0_fn(guess):
            return sampler.clip_x0(jnp.where(keep_masks, x0, guess))

        guided = classifier_free(denoiser(config, params), null_cond, scale)
        no_key = jax.random.key(0)  # DDIM draws nothing
        path = sampler.sample_path(guided, schedule, x, ts, cond, no_key, x0_fn=x0_fn)
        return path[-1], jnp.where(keep_masks, images, to_uint8(path[1:]))[:, 0]

    return devices.jit(run)


@functools.partial(jax.jit, static_argnums=0)
def _noise(config: GlideConfig, key: jax.Array) -> jax.Array:
    x_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    return sampler.noise_like(x_key, jnp.zeros((1, config.size, config.size, config.channels)))
