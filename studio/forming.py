"""Pictures that can be watched while they form: samplers in pieces of a few steps, each compiled.

The packages' own functions (`glide.sample.draw`, `sdedit.sample.draw`...) make the same pictures in
one scan: the noise of a step depends on the seed and on its time, not on where a scan begins.
"""

import functools
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import glide.model
import ldm.model
import sdedit.model
import unclip.model
from common import devices, sampler
from common.clip import ClipConfig
from common.guidance import classifier_free, gradient_guidance, mean_shift
from common.process import to_float, to_uint8
from common.schedule import Schedule
from glide import classifier, clip_guidance
from glide.inpaint import known
from sdedit import sde

STEPS, PIECE = 50, 5  # steps of a picture, and of one piece of it
ONE = threading.Lock()  # one computation at a time, also while the first program compiles

Frames = Iterator[np.ndarray]  # uint8 (n, H, W, 3) each, the last of the last is the picture


def stream(run: Callable, x: jax.Array, ts: np.ndarray, *given) -> Frames:
    """run(x at ts[0], ts, *given) -> (x at ts[-1], uint8 pictures on the way), piece by piece."""
    for i in range(0, len(ts) - 1, PIECE):
        with ONE:
            x, pictures = run(x, ts[i : i + PIECE + 1], *given)
            pictures = np.asarray(pictures)
        yield pictures


@functools.partial(jax.jit, static_argnums=0)
def start(shape: tuple, seed: int) -> tuple[jax.Array, jax.Array]:
    """(x_T (1, *shape), the key of the steps) of the first picture drawn with that seed."""
    x_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))
    return sampler.noise_like(x_key, jnp.zeros((1, *shape))), step_key


@functools.cache
def captioned(config: glide.model.GlideConfig, guide: ClipConfig | None = None):
    """run of GLIDE: (..., params, tokens, scale, images, keep_masks), and of its guide if any:

    clip_params, clip_tokens. images uint8 (1, H, W, 3) are given where keep_masks is True.
    """
    schedule = glide.model.make_schedule(config)

    def run(x, ts, params, tokens, scale, images, keep_masks, clip_params=None, clip_tokens=None):
        x0, denoise = to_float(images), glide.model.denoiser(config, params)
        cond, null_cond = (glide.model.encode_text(config, params, t) for t in (tokens, 0 * tokens))
        if "known" in config.inputs:
            beside = {"known": known(x0, keep_masks.astype(x0.dtype))}
            cond, null_cond = cond | beside, null_cond | beside
        if guide is None:
            guided = classifier_free(denoise, null_cond, scale)
        else:
            cond = clip_guidance.with_text(cond, guide, clip_params, clip_tokens)
            score = clip_guidance.unnoised_log_prob(guide, clip_params, denoise, schedule)
            guided = gradient_guidance(denoise, score, schedule, scale)

        def x0_fn(guess):
            return sampler.clip_x0(jnp.where(keep_masks, x0, guess))

        no_key = jax.random.key(0)  # DDIM draws nothing
        path = sampler.sample_path(guided, schedule, x, ts, cond, no_key, x0_fn=x0_fn)
        return path[-1], jnp.where(keep_masks, images, to_uint8(path[1:]))[:, 0]

    return devices.jit(run)


@functools.cache
def classified(config: glide.model.GlideConfig, judge: classifier.ClassifierConfig):
    """run of GLIDE without words, guided by a classifier: (..., params, judge_params, tokens,
    label, scale, key). Ancestral steps: one picture a piece."""
    schedule = glide.model.make_schedule(config)

    def run(x, ts, params, judge_params, tokens, label, scale, key):
        log_prob = classifier.log_prob(judge, judge_params)
        shift = mean_shift(lambda x, t, cond: log_prob(x, t, {"label": label}), scale)
        denoise, cond = classifier.underneath(config, params, tokens)
        x = sampler.ancestral(denoise, schedule, x, ts, cond, key,
                              variance="learned", x0_fn=sampler.clip_x0, shift=shift)  # fmt: skip
        return x, to_uint8(x)

    return devices.jit(run)


@functools.cache
def edited(config: sdedit.model.SdeditConfig):
    """run of SDEdit's VP-SDE: (..., params, tokens, scale, schedule, guide, edit_mask, key).

    `sde.edit` step by step; x and ts are its x and n.
    """
    trained = sdedit.model.make_schedule(config)

    def run(x, ts, params, tokens, scale, schedule, guide, edit_mask, key):
        guide = to_float(guide)
        cond, null_cond = (
            sdedit.model.encode_text(config, params, t) for t in (tokens, 0 * tokens)
        )
        denoise = classifier_free(sdedit.model.denoiser(config, params), null_cond, scale)
        denoise = sde.transfer(denoise, trained, schedule)

        def step(x, n):
            z = sampler.noise_like(jax.random.fold_in(key, n), x)
            pred = denoise(x, jnp.full(1, n), cond)
            x = sampler.ancestral_step(schedule, x, pred, n, n - 1, z, variance="large")
            x = jnp.where(edit_mask, x, schedule.add_noise(guide, n, z))
            return x, jnp.where(edit_mask | (n > 1), x, guide)

        x, path = jax.lax.scan(step, x, ts[:-1])
        return x, to_uint8(path)[:, 0]

    return devices.jit(run)


@jax.jit
def strokes_at(schedule: Schedule, guide: jax.Array, seed: int) -> tuple[jax.Array, jax.Array]:
    """(the noised guide, the key of the steps) where `sde.edit` begins."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    start_key, step_key = jax.random.split(jax.random.split(key, 1)[0])
    guide = to_float(guide)
    return schedule.add_noise(guide, schedule.T, sampler.noise_like(start_key, guide)), step_key


@functools.cache
def latent(config: ldm.model.LdmConfig):
    """run of a latent model: (..., params, cond, scales); beside each picture its latent."""
    schedule = ldm.model.make_schedule(config)

    def run(z, ts, params, cond, scales):
        denoise, cond = ldm.model.guide(config, params, cond, scales)
        path = sampler.sample_path(denoise, schedule, z, ts, cond, jax.random.key(0))[:, 0]
        pictures = to_uint8(ldm.model.to_picture(config, params, path[1:]))
        beside = tiles(to_uint8(path[1:] / 3), pictures.shape[1])
        return path[-1:], jnp.concatenate([pictures, beside], 2)

    return devices.jit(run)


def tiles(z: jax.Array, size: int) -> jax.Array:
    """The four channels of (n, h, w, 4) beside and below each other, grey (n, size, size, 3)."""
    n, h, w, _ = z.shape
    grey = z.reshape(n, h, w, 2, 2).transpose(0, 3, 1, 4, 2).reshape(n, 2 * h, 2 * w, 1)
    return jnp.tile(grey.repeat(size // (2 * h), 1).repeat(size // (2 * w), 2), 3)


@functools.cache
def latent_at(config: ldm.model.LdmConfig):
    """z at time t (1, h, w, C), of a picture uint8 (1, H, W, 3), where `ldm.sample.draw` begins."""
    schedule = ldm.model.make_schedule(config)

    def noised(params, images, t, z):
        return schedule.add_noise(ldm.model.to_latent(config, params, to_float(images)), t, z)

    return devices.jit(noised)


@functools.cache
def decoded(config: unclip.model.DecoderConfig):
    """run of unCLIP's decoder, neither guided nor clipped: (..., params, tokens, z_i, eta, key)."""
    schedule = glide.model.make_schedule(config)

    def run(x, ts, params, tokens, z, eta, key):
        cond = unclip.model.encode(config, params, tokens, z)
        denoise = unclip.model.denoiser(config, params)
        path = sampler.sample_path(denoise, schedule, x, ts, cond, key, eta=eta)
        return path[-1], to_uint8(path[1:, 0])

    return devices.jit(run)
