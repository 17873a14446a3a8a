"""Pictures from captions: classifier-free guided DDIM, the whole sampler in one compiled call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from common import devices, sampler
from common.guidance import classifier_free
from glide.model import GlideConfig, denoiser, encode_text, make_schedule, tokenizer


@functools.cache
def compiled(config: GlideConfig, steps: int, path: bool):
    """sample(params, tokens (B, L), scales (B,), key) -> uint8 (B, H, W, 3), or its path."""
    schedule = make_schedule(config)
    ts = sampler.timesteps(config.T, steps)
    run = sampler.sample_path if path else sampler.sample

    def sample(params, tokens, scales, key):
        x_key, step_key = jax.random.split(key)
        shape = (len(tokens), config.size, config.size, config.channels)
        x = sampler.noise_like(x_key, jnp.zeros(shape))
        cond = encode_text(config, params, tokens)
        null_cond = encode_text(config, params, jnp.zeros_like(tokens[:1]))
        guided = classifier_free(denoiser(config, params), null_cond, scales)
        x = run(guided, schedule, x, ts, cond, step_key, x0_fn=sampler.clip_x0)
        # Rounded, as in GLIDE's notebooks (ADM truncates).
        return jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return devices.jit(sample)


def draw(
    config: GlideConfig,
    params: dict,
    prompts: list[str],
    *,
    guidance_scale: float | np.ndarray = 3.0,
    steps: int = 50,
    seed: int = 0,
    path: bool = False,
) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) of B prompts; with path every x on the way, (steps + 1, B, ...).

    guidance_scale: a number or one per prompt. Row i starts from noise that depends on seed and i
    alone. ValueError: unknown words, too many steps.
    """
    tokens = tokenizer(config).encode(prompts)
    scales = np.broadcast_to(np.float32(guidance_scale), (len(prompts),))
    images = compiled(config, steps, path)(params, tokens, scales, jax.random.key(seed))
    return np.asarray(images)
