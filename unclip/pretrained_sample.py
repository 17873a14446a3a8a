"""Pictures by Karlo's own files, drawn as its authors do: `python -m unclip sample`.

    prompt -> CLIP's text tower -> prior, 25 steps -> decoder, 25 -> super-resolution, 7 -> 256 px

All steps are DDPM's, none DDIM's. karlo/sampler/t2i.py, whose "fast" setting this is (the other one
takes 50 steps of the decoder).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import bytepairs, command, devices, pretrained_clip, sampler
from common.clip import ClipConfig, TextTower
from common.guidance import Denoiser
from common.pretrained import defaults, official
from common.process import Prediction, to_uint8
from common.schedule import cosine
from common.unet import UNet, UNetConfig
from glide.sample import check, save
from unclip import pretrained
from unclip.pretrained import KarloDecoderConfig, KarloPriorConfig, guided

T = 1000
PRIOR_STEPS, STEPS, SR_STEPS = 25, 25, 7
PRIOR_GUIDANCE, GUIDANCE = 4.0, 8.0
ENLARGED = 4  # what super-resolution does to a side
CHUNK = 8  # pictures drawn in one call


class Karlo(NamedTuple):
    """What a picture takes: (config, params) of each, and the numbers that whiten embeddings."""

    clip: tuple[ClipConfig, dict]
    prior: tuple[KarloPriorConfig, dict]
    decoder: tuple[KarloDecoderConfig, dict]
    stats: tuple[np.ndarray, np.ndarray]
    super_resolution: tuple[UNetConfig, dict] | None = None


def noisy(config: UNetConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) of one super-resolution network; cond has low_res (B, H, W, 3)."""

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        return Prediction(UNet(config).apply({"params": params}, x, t, channels=cond["low_res"]))

    return denoise


@functools.cache
def compiled_text(config: ClipConfig):
    """run(params, tokens (B, L)) -> states (B, L, D), embeddings (B, dim) not of length 1."""

    def run(params, tokens):
        states = TextTower(config, pooled=False).apply({"params": params["text"]}, tokens)
        end = jnp.argmax(tokens == config.end, axis=1)[:, None, None]
        last = jnp.take_along_axis(states, end, axis=1)[:, 0]
        return states, last @ params["text"]["out"]["kernel"]

    return devices.jit(run)


def read(karlo: Karlo, tokens: np.ndarray) -> list[dict[str, np.ndarray]]:
    """tokens (B, L) of B texts -> a cond of one row for each, without its padding."""
    config, params = karlo.clip
    states, embeddings = map(np.asarray, compiled_text(config)(params, tokens))
    lengths = (tokens == config.end).argmax(1) + 1
    return [{"text_sequence": s[None, :n], "text_embedding": z[None]}
            for s, z, n in zip(states, embeddings, lengths, strict=True)]  # fmt: skip


@functools.cache
def compiled_prior(config: KarloPriorConfig, steps: int):
    """run(params, stats, cond, null_cond, guidance_scale, key) -> image embeddings (B, D)."""
    schedule, ts = cosine(T), sampler.timesteps(T, steps)

    def run(params, stats, cond, null_cond, guidance_scale, key):
        x_key, step_key = jax.random.split(key)
        x = sampler.noise_like(x_key, cond["text_embedding"])
        denoise = official(pretrained.prior_denoiser(config, params, schedule))
        denoise = guided(denoise, null_cond, guidance_scale)
        x = sampler.ancestral(denoise, schedule, x, ts, cond, step_key, x0_fn=pretrained.clamp_x0)
        mean, std = stats
        return x * std[None] + mean[None]

    return devices.jit(run)


@functools.cache
def compiled_decoder(config: KarloDecoderConfig, steps: int):
    """run(params, cond, null_cond, guidance_scale, key) -> x (B, H, W, 3) in [-1, 1]."""
    schedule, ts = cosine(T), sampler.timesteps(T, steps)

    def run(params, cond, null_cond, guidance_scale, key):
        x_key, step_key = jax.random.split(key)
        shape = (len(cond["text_embedding"]), config.size, config.size, 3)
        x = sampler.noise_like(x_key, jnp.zeros(shape))
        denoise = guided(official(pretrained.decoder_denoiser(config, params)), null_cond,
                         guidance_scale)  # fmt: skip
        x = sampler.ancestral(denoise, schedule, x, ts, cond, step_key, variance="learned",
                              x0_fn=sampler.clip_x0)  # fmt: skip
        return jnp.clip(x, -1, 1)

    return devices.jit(run)


def enlarge(x: jax.Array) -> jax.Array:
    """(B, h, w, C) -> (B, 4 h, 4 w, C), bicubic as in PIL (a = -1/2, weights of 1 in all)."""
    B, h, w, C = x.shape
    return jax.image.resize(x, (B, ENLARGED * h, ENLARGED * w, C), "bicubic")


@functools.cache
def compiled_super_resolution(config: UNetConfig):
    """run(params, x (B, h, w, 3), key) -> (B, 4 h, 4 w, 3); the last step has its own network."""
    schedule, ts = cosine(T), sampler.timesteps(T, SR_STEPS)

    def run(params, x, key):
        x_key, step_key = jax.random.split(key)
        cond = {"low_res": enlarge(x)}
        first, last = (official(noisy(config, params[p])) for p in ("first_steps", "last_step"))
        x = sampler.noise_like(x_key, cond["low_res"])
        x = sampler.ancestral(first, schedule, x, ts[:-1], cond, step_key, x0_fn=sampler.clip_x0)
        pred = last(x, jnp.full(len(x), ts[-2]), cond)
        return sampler.ancestral_step(schedule, x, pred, ts[-2], ts[-1], jnp.zeros_like(x),
                                      x0_fn=sampler.clip_x0)  # fmt: skip

    return devices.jit(run)


def draw(
    karlo: Karlo,
    tokens: np.ndarray,
    num: int,
    *,
    guidance_scale: float = GUIDANCE,
    prior_guidance: float = PRIOR_GUIDANCE,
    steps: int = STEPS,
    prior_steps: int = PRIOR_STEPS,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """tokens (2, L) of a prompt and of "" -> `num` pictures uint8 (num, H, W, 3) of the prompt."""
    both, key = read(karlo, tokens), jax.random.key(seed)
    (prior, prior_params), (decoder, params) = karlo.prior, karlo.decoder

    def some(rows, i):
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        cond, null = ({k: np.broadcast_to(v, (len(rows), *v.shape[1:])) for k, v in c.items()}
                      for c in both)  # fmt: skip
        z = compiled_prior(prior, prior_steps)(
            prior_params, karlo.stats, cond, null, prior_guidance, keys[0]
        )
        x = compiled_decoder(decoder, steps)(
            params, {**cond, "image_embedding": z}, null, guidance_scale, keys[1]
        )
        if karlo.super_resolution:
            config, sr_params = karlo.super_resolution
            x = compiled_super_resolution(config)(sr_params, x, keys[2])
        return to_uint8(x)

    return devices.in_chunks(some, num, CHUNK, "drawing", progress)


def main(c) -> None:
    """`python -m unclip sample` where its weights are Karlo's decoder; c: sample.SampleConfig."""
    left = {f.name for f in dataclasses.fields(c) if getattr(c, f.name) == f.default}
    c = defaults(c, guidance_scale=GUIDANCE, prior_guidance=PRIOR_GUIDANCE, steps=STEPS, best_of=1)
    check(c)
    sampler.timesteps(T, c.steps)
    if c.prior != "diffusion" or c.best_of != 1:
        raise ValueError("Karlo draws each picture from one embedding of its diffusion prior: "
                         "leave --prior and --best-of out")  # fmt: skip
    for name, what in {
        "vocab": "CLIP's bpe_simple_vocab_16e6.txt.gz or merges.txt",
        "clip": "OpenAI's ViT-L-14.pt",
        "stats": "ViT-L-14_stats.th",
        "prior_weights": "its prior's .ckpt",
    }.items():
        if name in left:
            option = name.replace("_", "-")
            raise ValueError(f"Karlo's weights need more of its files: give --{option}, {what}")
    devices.start()
    decoder = pretrained.load_decoder(c.weights)
    size = decoder[0].size
    if c.size not in (None, size, ENLARGED * size):
        raise ValueError(f"size must be {size} or {ENLARGED * size}, not {c.size}")
    clip = pretrained_clip.load(c.clip)
    pieces = bytepairs.clip(c.vocab, clip[0].text.vocabulary, clip[0].text.length)
    tokens = pieces.encode([c.prompt, ""])
    stats = pretrained.load_stats(c.stats, decoder[0].dim)
    command.check_out(c.out)
    large = c.size == ENLARGED * size or c.size is None and "upsampler" not in left
    second = pretrained.load_super_resolution(c.upsampler) if large else None
    karlo = Karlo(clip, pretrained.load_prior(c.prior_weights), decoder, stats, second)
    images = draw(karlo, tokens, c.num, guidance_scale=c.guidance_scale, steps=c.steps,
                  prior_guidance=c.prior_guidance, seed=c.seed, progress=c.num > CHUNK)  # fmt: skip
    save(c, images)
