"""The second stage: a small picture and its caption -> a large one, by DDIM without guidance.

GLIDE's notebook: 27 steps, most of them at little noise, from noise a little colder than standard.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from common import devices, sampler
from common.devices import in_chunks
from common.pretrained import official
from common.process import to_float, to_uint8
from common.scenes.captions import canonical
from glide.model import GlideConfig, denoiser, encode_text, make_schedule, tokenizer

STEPS = "10,10,3,2,2"  # of each fifth of the times, the least noisy first
TEMPERATURE = 0.997  # of the first noise; 1 is sharper and grainy, says the notebook


def times(T: int) -> np.ndarray:
    """The 27 times and 0. The noisiest is T - 2: at T itself DDIM leaves artefacts (respace.py)."""
    ts = sampler.sections(T, STEPS)
    ts[0] = T - 2
    return ts


@functools.cache
def compiled(config: GlideConfig, published: bool = False):
    """run(params, tokens (B, L), low_res uint8 (B, h, w, 3), key) -> uint8 (B, H, W, 3)."""
    schedule = make_schedule(config)
    ts = times(config.T)

    def run(params, tokens, low_res, key):
        x_key, step_key = jax.random.split(key)
        shape = (len(tokens), config.size, config.size, config.channels)
        x = TEMPERATURE * sampler.noise_like(x_key, jnp.zeros(shape))
        # The pictures come rounded to 256 levels, as training saw them.
        cond = {**encode_text(config, params, tokens), "low_res": to_float(low_res)}
        denoise = official(denoiser(config, params)) if published else denoiser(config, params)
        x = sampler.sample(denoise, schedule, x, ts, cond, step_key, x0_fn=sampler.clip_x0)
        return to_uint8(x)

    return devices.jit(run)


def upsample(
    config: GlideConfig,
    params: dict,
    prompts: Sequence[str],
    images: np.ndarray,
    *,
    seed: int = 0,
    chunk: int = 64,
    progress: bool = False,
    read: Callable | None = None,
) -> np.ndarray:
    """Pictures uint8 (B, h, w, 3) and their B prompts -> uint8 (B, H, W, 3) of the model's size.

    read: of published weights, pretrained.reader.
    """
    tokens = read(prompts) if read else tokenizer(config).encode([canonical(p) for p in prompts])
    step, key = compiled(config, bool(read)), jax.random.key(seed)

    def run(rows, i):
        return step(params, tokens[rows], images[rows], jax.random.fold_in(key, i))

    return in_chunks(run, len(prompts), chunk, "upsampling", progress)
