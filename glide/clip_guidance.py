"""Guiding with CLIP instead of the caption's own classifier, and re-ranking by it.

Never judge with the CLIP that guides: GLIDE's section 5.2 suspects that such guidance finds
pictures that fool it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import clip, devices, sampler
from common.clip import ClipConfig
from common.guidance import Denoiser, gradient_guidance
from common.process import to_uint8, x0_from_eps
from common.sampler import clip_x0
from common.scenes.captions import canonical
from common.schedule import Schedule
from common.text import WordTokenizer
from glide.model import GlideConfig, denoiser, encode_text, make_schedule, tokenizer

LogProb = Callable[[jax.Array, jax.Array, Any], jax.Array]


def with_text(cond: dict, config: ClipConfig, params: dict, tokens: jax.Array) -> dict:
    """The denoiser's cond, and "text_embedding" (B, D) to guide towards: once for all steps."""
    return {**cond, "text_embedding": clip.encode_text(config, params, tokens)}


def clip_log_prob(config: ClipConfig, params: dict, scale: float = clip.MAX_SCALE) -> LogProb:
    """log_prob(x_t, t, cond) -> (B,) of a noised CLIP, for guidance.gradient_guidance.

    scale <image embedding(x_t, t), text embedding>: the logit of CLIP's softmax, whose normaliser
    is left out. cond comes from with_text; the denoiser underneath stays conditional.
    GLIDE, section 2.4, whose logit scale is 100 (clip/config.yaml), and its guidance scale 2 to 3.
    """
    if not config.T:
        raise ValueError("a clean CLIP cannot read x_t: use unnoised_log_prob, or train --noised")

    def log_prob(x: jax.Array, t: jax.Array, cond: dict) -> jax.Array:
        return scale * clip.score(clip.encode_image(config, params, x, t), cond["text_embedding"])

    return log_prob


def unnoised_log_prob(
    config: ClipConfig,
    params: dict,
    denoise: Denoiser,
    schedule: Schedule,
    scale: float = clip.MAX_SCALE,
) -> LogProb:
    """As clip_log_prob, of a clean CLIP on the predicted x0, clipped: the baseline of appendix D.

    The gradient reaches x_t through the denoiser, so each step costs its backward pass, too. Where
    x0 is clipped nothing comes through.
    Paper: its baseline is a notebook with augmentations and further losses; this is its idea, as
    in k-diffusion's sample_clip_guided.py, with CLIP's own cosine instead of a spherical distance.
    """

    def log_prob(x: jax.Array, t: jax.Array, cond: dict) -> jax.Array:
        x0 = clip_x0(x0_from_eps(schedule, x, t, denoise(x, t, cond).eps))
        return scale * clip.score(clip.encode_image(config, params, x0), cond["text_embedding"])

    return log_prob


def rerank(
    config: ClipConfig, params: dict, images: np.ndarray, prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Best of n: images uint8 (B, n, H, W, 3) of B prompts -> best first, and cosines (B, n)."""
    B, n = images.shape[:2]
    embedding = clip.embed_images(config, params, images.reshape(B * n, *images.shape[2:]))
    text_embedding = clip.embed_texts(config, params, prompts)[:, None]
    scores = clip.score(embedding.reshape(B, n, -1), text_embedding)
    order = np.argsort(-scores, axis=1, kind="stable")
    pick = order[..., None, None, None]
    return np.take_along_axis(images, pick, 1), np.take_along_axis(scores, order, 1)


@functools.cache
def compiled(config: GlideConfig, clip_config: ClipConfig, steps: int):
    """run(params, clip_params, tokens, clip_tokens, scales (B,), key) -> uint8 (B, H, W, 3)."""
    schedule = make_schedule(config)
    ts = sampler.timesteps(config.T, steps)

    def run(params, clip_params, tokens, clip_tokens, scales, key):
        x_key, step_key = jax.random.split(key)
        shape = (len(tokens), config.size, config.size, config.channels)
        x = sampler.noise_like(x_key, jnp.zeros(shape))
        cond = encode_text(config, params, tokens)
        embedding = clip.encode_text(clip_config, clip_params, clip_tokens)

        def denoise(x, t, cond):  # the network's own cond has no place for the embedding
            return denoiser(config, params)(x, t, {k: cond[k] for k in ("context", "vector")})

        if clip_config.T:
            log_prob = clip_log_prob(clip_config, clip_params)
        else:
            log_prob = unnoised_log_prob(clip_config, clip_params, denoise, schedule)
        # Paper: GLIDE's notebook moves the mean of ancestral steps; here eps is moved.
        guided = gradient_guidance(denoise, log_prob, schedule, scales)
        cond |= {"text_embedding": embedding}
        return to_uint8(sampler.sample(guided, schedule, x, ts, cond, step_key, x0_fn=clip_x0))

    return devices.jit(run)


def draw(
    model: tuple[GlideConfig, dict],
    guide: tuple[ClipConfig, dict],
    prompts: Sequence[str],
    *,
    guidance_scale: float | np.ndarray = 2.0,
    steps: int = 50,
    seed: int = 0,
    chunk: int = 64,
    progress: bool = False,
) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) of B prompts by the conditional model and a CLIP's gradient.

    guide: a noised CLIP, or a clean one (the un-noised baseline, dearer). guidance_scale 0 is the
    conditional model alone: what classifier-free guidance calls 1.
    """
    (config, params), (clip_config, clip_params) = model, guide
    if clip_config.size != config.size or clip_config.T not in (0, config.T):
        raise ValueError(f"a CLIP of {clip_config.size} px, {clip_config.T} times cannot guide a "
                         f"model of {config.size} px, {config.T} times")  # fmt: skip
    texts = [canonical(p) for p in prompts]
    tokens = tokenizer(config).encode(texts)
    clip_tokens = WordTokenizer(tokenizer(config).words, clip_config.text.length).encode(texts)
    scales = np.broadcast_to(np.float32(guidance_scale), (len(prompts),))
    run, key = compiled(config, clip_config, steps), jax.random.key(seed)

    def some(rows, i):
        given = (params, clip_params, tokens[rows], clip_tokens[rows], scales[rows])
        return run(*given, jax.random.fold_in(key, i))

    return devices.in_chunks(some, len(prompts), chunk, "drawing", progress)
