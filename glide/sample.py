"""Pictures from captions: classifier-free guided DDIM, the whole sampler in one compiled call."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from common import command, devices, plot, sampler
from common.guidance import classifier_free
from common.scenes.captions import canonical
from glide.model import GlideConfig, denoiser, encode_text, load, make_schedule, tokenizer

CHUNK = 64  # pictures drawn in one call
EXAMPLES = (
    "a small red ball above a large blue cube",
    "a photo of a large yellow star",
    "a green heart on a white background",
    "a drawing of a pink cone",
    "a large cyan ring left of a small orange ball",
    "a mosaic of a purple cube",
    "a blue ball at night",
    "a small yellow heart below a large red cone",
)
SHIPPED = Path(__file__).parent / "weights" / "small.safetensors"


@dataclass(frozen=True)
class SampleConfig:
    """`python -m glide sample`: pictures of a caption."""

    prompt: str  # what to draw, in the words of the scenes: "a small red ball above a blue cube"
    out: Path = Path("out/sample.png")  # a .png is a labelled grid; a folder, one PNG each
    guidance_scale: float = 3.0  # 0 ignores the caption, 1 follows it, more exaggerates it
    num: int = 8  # pictures
    steps: int = 50  # DDIM steps
    seed: int = 0
    weights: Path = SHIPPED


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
        null_cond = jax.tree.map(
            lambda a: a[0], encode_text(config, params, jnp.zeros_like(tokens[:1]))
        )
        guided = classifier_free(denoiser(config, params), null_cond, scales)
        x = run(guided, schedule, x, ts, cond, step_key, x0_fn=sampler.clip_x0)
        # Rounded, as in GLIDE's notebooks (ADM truncates).
        return jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return devices.jit(sample)


def draw(
    config: GlideConfig,
    params: dict,
    prompts: Sequence[str],
    *,
    guidance_scale: float | np.ndarray = 3.0,
    steps: int = 50,
    seed: int = 0,
    path: bool = False,
    chunk: int = CHUNK,
    progress: bool = False,
) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) of B prompts; with path every x on the way, (steps + 1, B, ...).

    guidance_scale: a number or one per prompt. Row i starts from noise that depends on seed, i and
    chunk alone. ValueError: unknown words, too many of them, steps out of range.
    """
    tokens = tokenizer(config).encode([canonical(p) for p in prompts])
    scales = np.broadcast_to(np.float32(guidance_scale), (len(prompts),))
    run = compiled(config, steps, path)
    key, axis, parts = jax.random.key(seed), int(path), []
    size = min(chunk, len(prompts))
    starts = range(0, len(prompts), size)
    for i in tqdm(starts, desc="drawing", unit="batch", disable=not progress):
        rows = np.arange(i, i + size) % len(prompts)  # the last chunk is filled up: one compilation
        images = run(params, tokens[rows], scales[rows], jax.random.fold_in(key, i // size))
        parts.append(np.asarray(images))
    return np.take(np.concatenate(parts, axis), np.arange(len(prompts)), axis)


def main(c: SampleConfig) -> None:
    if not c.prompt.strip():
        raise ValueError("the prompt is empty; say what to draw, such as 'a red ball'")
    if not math.isfinite(c.guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {c.guidance_scale}")
    if not 1 <= c.num <= 4096:
        raise ValueError(f"num must be in 1..4096, not {c.num}")
    devices.start()
    config, params, _ = load(c.weights)
    sampler.timesteps(config.T, c.steps)
    tokenizer(config).encode([canonical(c.prompt)])
    as_grid = command.check_out(c.out)
    images = draw(config, params, [c.prompt] * c.num, guidance_scale=c.guidance_scale,
                  steps=c.steps, seed=c.seed, progress=c.num > CHUNK)  # fmt: skip
    settings = {"prompt": c.prompt, "guidance_scale": f"{c.guidance_scale:g}",
                "steps": str(c.steps), "seed": str(c.seed), "weights": c.weights.name}  # fmt: skip
    if as_grid:
        title = f"{c.prompt}   (guidance {c.guidance_scale:g})"
        plot.save(plot.grid(images, title=title), c.out, settings)
    else:
        for i, image in enumerate(images):
            plot.save(image, c.out / f"{i:04d}.png", settings)
    print(f"{c.num} pictures: {c.out}")
