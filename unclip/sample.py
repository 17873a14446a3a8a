"""Pictures from captions in two draws: a prior's image embedding, and the decoder's picture."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from common import command, devices, sampler
from common.devices import CHUNK, in_chunks
from common.guidance import classifier_free
from common.pretrained import defaults, is_published
from common.process import to_uint8
from common.scenes.captions import canonical
from glide.model import make_schedule, tokenizer
from glide.sample import JUDGE, check, save
from unclip import ar_prior, diffusion_prior, pretrained_sample, upsampler
from unclip.model import (
    Clip,
    DecoderConfig,
    check_clip,
    denoiser,
    encode,
    load,
    open_clip,
)

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "small.safetensors"  # the decoder
PRIORS = {"diffusion": diffusion_prior, "ar": ar_prior}
SHIPPED_PRIORS = {kind: WEIGHTS / f"{kind}_prior.safetensors" for kind in PRIORS}
SHIPPED_CLIP = JUDGE
UPSAMPLER = WEIGHTS / "upsampler.safetensors"


@dataclass(frozen=True)
class SampleConfig:
    """`python -m unclip sample`: pictures of a caption."""

    prompt: str  # what to draw, in the words of the scenes: "a small red ball above a blue cube"
    out: Path = Path("out/unclip.png")  # a .png is a labelled grid; a folder, one PNG each
    prior: Literal["diffusion", "ar", "text", "none"] = "diffusion"  # text: its own embedding;
    # none: no embedding, the decoder has the caption alone
    guidance_scale: float | None = None  # of the decoder: 1 follows, more exaggerates; 2 (Karlo 8)
    prior_guidance: float | None = None  # 1 (Karlo 4)
    best_of: int | None = None  # draws of the prior, the one nearest the text is kept; 2 (Karlo 1)
    num: int = 8  # pictures
    steps: int | None = None  # of the decoder: 50 of DDIM (Karlo 25 of DDPM)
    seed: int = 0
    weights: Path = SHIPPED  # of the decoder, also Karlo's .ckpt
    prior_weights: Path | None = None  # of the prior
    clip: Path = SHIPPED_CLIP  # for Karlo OpenAI's ViT-L-14.pt
    size: int | None = None  # pixels, the decoder's own or the upsampler's
    upsampler: Path = UPSAMPLER  # weights of the second stage, where size asks for it
    vocab: Path | None = None  # for Karlo: CLIP's byte pairs
    stats: Path | None = None  # for Karlo: ViT-L-14_stats.th


@functools.cache
def compiled(config: DecoderConfig, steps: int, guided: bool, clip: bool, backwards: bool):
    """run(params, tokens (B, L), z_i (B, D), scales (B,), x, eta, key) -> x at the other end.

    x (B, H, W, 3) is x_T, or backwards x_0; guided False leaves out the half of the work that a
    guidance scale of 1 would throw away.
    """
    schedule, ts = make_schedule(config), sampler.timesteps(config.T, steps)

    def run(params, tokens, image_embedding, scales, x, eta, key):
        cond, denoise = encode(config, params, tokens, image_embedding), denoiser(config, params)
        if guided:
            null = encode(config, params, 0 * tokens[:1], 0 * image_embedding[:1])
            denoise = classifier_free(denoise, jax.tree.map(lambda a: a[0], null), scales)
        if backwards:
            return sampler.invert(denoise, schedule, x, ts, cond)
        x0_fn = sampler.clip_x0 if clip else None
        return to_uint8(sampler.sample(denoise, schedule, x, ts, cond, key, eta=eta, x0_fn=x0_fn))

    return devices.jit(run)


def first_noise(config: DecoderConfig, num: int, seed: int) -> np.ndarray:
    """x_T (num, H, W, 3); row i is the same whatever num."""
    shape = (num, config.size, config.size, config.channels)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def decode(
    config: DecoderConfig,
    params: dict,
    image_embedding: np.ndarray,
    prompts: Sequence[str] | None = None,
    *,
    x: np.ndarray | None = None,
    guidance_scale: float | np.ndarray = 2.0,
    eta: float = 0.0,
    steps: int = 50,
    clip: bool = True,
    backwards: bool = False,
    seed: int = 0,
    chunk: int = CHUNK,
    progress: bool = False,
) -> np.ndarray:
    """z_i (B, D) -> pictures uint8 (B, H, W, 3), or with backwards from x = x_0 to x_T.

    prompts: B captions, or none; x: x_T, else noise of the seed. z_i is brought to length 1, zeros
    stay zeros and mean none. clip False lets x0 leave [-1, 1], as what was inverted may want to.
    Paper: does not say whether a prior's samples are brought to CLIP's length; decoders have seen
    no other.
    """
    B, length = len(image_embedding), config.text.length
    texts = [canonical(p) for p in prompts or [""] * B]
    tokens = tokenizer(config).encode(texts) if B else np.zeros((0, length), np.int32)
    norm = np.linalg.norm(image_embedding, axis=1, keepdims=True)
    z = np.float32(image_embedding / np.where(norm == 0, 1, norm))
    scales = np.broadcast_to(np.float32(guidance_scale), (B,))
    x = first_noise(config, B, seed) if x is None else x
    run_one = compiled(config, steps, bool((scales != 1).any()), clip, backwards)
    key = jax.random.key(seed)

    def run(rows, i):
        given = tokens[rows], z[rows], scales[rows], x[rows], np.float32(eta)
        return run_one(params, *given, jax.random.fold_in(key, i))

    return in_chunks(run, B, chunk, "inverting" if backwards else "drawing", progress)


def embed(
    kind: str,
    prior: tuple | None,
    clip: Clip,
    prompts: Sequence[str],
    **options,
) -> np.ndarray:
    """What stands for z_i (B, D) of B prompts: a prior's draw, the text's own embedding, or none.

    prior: (config, params) of kind "diffusion" or "ar"; options go to its `draw`.
    """
    z_t = clip.texts(prompts)
    if kind in ("text", "none"):
        return z_t if kind == "text" else np.zeros_like(z_t)
    config, params = prior
    tokens = tokenizer(config).encode([canonical(p) for p in prompts])
    return PRIORS[kind].draw(config, params, tokens, z_t, **options)


def load_all(c) -> tuple[DecoderConfig, dict, dict, Clip]:
    """Decoder and CLIP of a command: (config, params, metadata, CLIP), which fit each other."""
    clip = open_clip(c.clip)
    config, params, metadata = load(c.weights)
    check_clip(config, clip, c.weights)
    return config, params, metadata, clip


def load_prior(kind: str, path: Path | None, clip: Clip) -> tuple | None:
    """(config, params) of a prior that fits the CLIP; None for the kinds that need none."""
    if kind not in PRIORS:
        return None
    path = path or SHIPPED_PRIORS[kind]
    config, params, _ = PRIORS[kind].load(path)
    check_clip(config, clip, path)
    return config, params


def main(c: SampleConfig) -> None:
    if is_published(c.weights, c.vocab):
        return pretrained_sample.main(c)
    c = defaults(c, guidance_scale=2.0, prior_guidance=1.0, best_of=2, steps=50)
    check(c)
    if not 1 <= c.best_of <= 64:
        raise ValueError(f"best_of must be in 1..64, not {c.best_of}")
    devices.start()
    config, params, _, clip = load_all(c)
    prior = load_prior(c.prior, c.prior_weights, clip)
    sampler.timesteps(config.T, c.steps)
    prompts, second = [c.prompt] * c.num, None
    if c.size not in (None, config.size):
        second = upsampler.load(c.upsampler)
        if (second[0].low, second[0].size) != (config.size, c.size):
            raise ValueError(f"size must be {config.size} or {second[0].size}, not {c.size}")
    tokenizer(config).encode([canonical(c.prompt)])
    command.check_out(c.out)
    options = {"guidance_scale": c.prior_guidance, "seed": c.seed}
    options |= {"best_of": c.best_of} if c.prior == "diffusion" else {}
    z = embed(c.prior, prior, clip, prompts, **options)
    images = decode(config, params, z, prompts, guidance_scale=c.guidance_scale, steps=c.steps,
                    seed=c.seed, progress=c.num > CHUNK)  # fmt: skip
    if second:
        images = upsampler.upsample(*second[:2], images, seed=c.seed)
    save(c, images)
