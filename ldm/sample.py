"""Pictures from captions, and from pictures: noise or a noised latent, denoised, then decoded."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from common import command, devices, plot, sampler
from common.devices import CHUNK, in_chunks
from common.pictures import on_white, open_picture
from common.pretrained import defaults, is_published
from common.process import to_float, to_uint8
from ldm import pretrained
from ldm.model import (
    LdmConfig,
    conditions,
    guide,
    latent_shape,
    load,
    make_schedule,
    to_latent,
    to_picture,
)

SHIPPED = Path(__file__).parent / "weights" / "small.safetensors"
COMMANDS = {"masked": "inpaint", "low_res": "upscale", "semantic": "paint", "context": "retrieve"}
SOLVERS = {"ddim": sampler.sample, "plms": sampler.plms, "dpm": sampler.dpm_solver}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all commands that draw have."""

    out: Path = Path("out/ldm.png")  # a .png is a labelled grid; a folder, one PNG each
    num: int = 8  # pictures
    steps: int | None = None  # of the sampler: 50 (text2img-large 200)
    sampler: Literal[tuple(SOLVERS)] = "ddim"  # plms asks the network once more; dpm needs 20 steps
    seed: int = 0
    weights: Path = SHIPPED  # autoencoder.safetensors lies beside them; or a published .ckpt
    vocab: Path | None = None  # of published weights, also .safetensors: CLIP's or BERT's


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Options):
    """`python -m ldm sample`: pictures of a caption."""

    prompt: str  # what to draw, in the words of the scenes: "a small red ball above a blue cube"
    guidance_scale: float | None = None  # 0 ignores the caption, 1 follows it; 3 (LDM 5, SD 7.5)
    size: int | None = None  # pixels, also more than it was trained on: it is convolutional


@dataclass(frozen=True, kw_only=True)
class Img2ImgConfig(SampleConfig):
    """`python -m ldm img2img`: another picture of a caption, from a picture."""

    image: Path  # where to start
    strength: float = 0.6  # how much of it is forgotten: share of the steps that are taken
    resize: bool = False  # crop and resize a picture of another size, instead of refusing it


def solve(name, denoise, schedule, z, ts, cond, key) -> jax.Array:
    """One of SOLVERS from z at ts[0]. Latents are not clipped: nothing bounds them."""
    if name == "ddim":
        return sampler.sample(denoise, schedule, z, ts, cond, key)
    return SOLVERS[name](denoise, schedule, z, ts, cond)


def times(config: LdmConfig, steps: int, strength: float = 1.0) -> np.ndarray:
    """The last `strength` of the sampler's times, and 0."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in 0..1 and above 0, not {strength:g}")
    # Paper: the official ladder, 981, ..., 21, 1, is one that other step counts can fall off; it
    # ends at 1, with what noise is left there, and img2img starts one rung below where it noised.
    return sampler.timesteps(config.T, steps)[-1 - max(1, int(strength * steps)) :]


@functools.cache
def compiled(config: LdmConfig, solver: str, steps: int, strength: float, size: int | None):
    """run(params, images or None, cond, scales (B,), key, null_cond) -> uint8 (B, size, size, 3).

    null_cond: of published weights, else None.
    """
    schedule, ts = make_schedule(config), times(config, steps, strength)
    shape = latent_shape(config, size)

    def run(params, images, cond, scales, key, null_cond=None):
        z_key, step_key = jax.random.split(key)
        z = sampler.noise_like(z_key, jnp.zeros((len(scales), *shape)))
        if images is not None:
            start = jnp.full(len(scales), ts[0])
            # Paper: Stable Diffusion's img2img draws z of the encoder; here it is its mean.
            z = schedule.add_noise(to_latent(config, params, to_float(images)), start, z)
        denoise, cond = guide(config, params, cond, scales, null_cond)
        z = solve(solver, denoise, schedule, z, ts, cond, step_key)
        return to_uint8(to_picture(config, params, z))

    return devices.jit(run)


def draw(
    config: LdmConfig,
    params: dict,
    prompts: Sequence[str],
    *,
    guidance_scale: float | np.ndarray = 3.0,
    steps: int = 50,
    solver: str = "ddim",
    size: int | None = None,
    images: np.ndarray | None = None,
    strength: float = 1.0,
    beside: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    chunk: int = CHUNK,
    progress: bool = False,
    read: Callable | None = None,
) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) of B prompts, from noise or from images uint8 (B, H, W, 3).

    beside: the config's inputs (B, h, w, ...), or context of neighbours. read: of published
    weights, pretrained.reader. Row i starts from noise that depends on seed, i and chunk alone.
    ValueError: unknown words, too many of them, steps, strength or size out of range.
    """
    beside = beside or {}
    for name in (*config.inputs, *["context"] * (config.condition == "neighbours")):
        if name not in beside:
            raise ValueError(f"these weights need more than a prompt: use `{COMMANDS[name]}`")
    cond = {**(read(prompts) if read else conditions(config, prompts)), **beside}
    null_cond = {k: v[0] for k, v in read([""]).items()} if read else None
    scales = np.broadcast_to(np.float32(guidance_scale), (len(prompts),))
    run, key = compiled(config, solver, steps, strength, size), jax.random.key(seed)

    def rows_of(rows, i):
        given = jax.tree.map(lambda a: a[rows], (images, cond, scales))
        return run(params, *given, jax.random.fold_in(key, i), null_cond)

    return in_chunks(rows_of, len(prompts), chunk, "drawing", progress)


def start(c: Options, prompt: str = "") -> tuple[Options, LdmConfig, dict, Callable | None]:
    """All that can be refused without a picture; then (c without None, config, params, read)."""
    if not math.isfinite(getattr(c, "guidance_scale", 1) or 0):
        raise ValueError(f"guidance_scale must be a finite number, not {c.guidance_scale}")
    if not 1 <= c.num <= 4096:
        raise ValueError(f"num must be in 1..4096, not {c.num}")
    devices.start()
    config, params, read = open_weights(c.weights, c.vocab)
    usual = pretrained.usual(config) if read else {"steps": 50, "guidance_scale": 3.0}
    c = defaults(c, **{k: v for k, v in usual.items() if hasattr(c, k)})
    times(config, c.steps, getattr(c, "strength", 1.0))
    latent_shape(config, getattr(c, "size", None))
    read([prompt]) if read else conditions(config, [prompt])
    command.check_out(c.out)
    return c, config, params, read


def open_weights(path: Path, vocab: Path | None) -> tuple[LdmConfig, dict, Callable | None]:
    """(config, params, read): our weights, whose words `draw` knows, or published ones."""
    if not is_published(path, vocab):
        return *load(path)[:2], None
    config, params = pretrained.load(path)
    return config, params, pretrained.reader(config, vocab)


def finish(c: Options, images: np.ndarray, title: str, first: dict[str, np.ndarray] | None = None):
    """Write pictures as c.out says, settings inside; `first` stand before them in a grid."""
    names = ("prompt", "guidance_scale", "strength", "sampler", "steps", "seed")
    settings = {name: str(getattr(c, name)) for name in names if hasattr(c, name)}
    settings["weights"] = c.weights.name
    if c.out.suffix:
        labels = [*first, *[""] * len(images)] if first else None
        sheet = plot.grid([*(first or {}).values(), *images], captions=labels, title=title)
        plot.save(sheet, c.out, settings)
    else:
        for i, image in enumerate(images):
            plot.save(image, c.out / f"{i:04d}.png", settings)
    print(f"{len(images)} pictures: {c.out}")


def repeat(c: Options, a: np.ndarray) -> np.ndarray:
    """(...) -> (num, ...), the same for each picture that is asked for."""
    return np.broadcast_to(a, (c.num, *a.shape))


def main(c: SampleConfig) -> None:
    if not c.prompt.strip():
        raise ValueError("the prompt is empty; say what to draw, such as 'a red ball'")
    c, config, params, read = start(c, c.prompt)
    images = draw(config, params, [c.prompt] * c.num, guidance_scale=c.guidance_scale,
                  steps=c.steps, solver=c.sampler, size=c.size, seed=c.seed, read=read,
                  progress=c.num > CHUNK)  # fmt: skip
    finish(c, images, f"{c.prompt}   (guidance {c.guidance_scale:g})")


def img2img(c: Img2ImgConfig) -> None:
    c, config, params, read = start(c, c.prompt)
    image = on_white(open_picture(c.image, c.size or config.size, c.resize))
    images = draw(config, params, [c.prompt] * c.num, guidance_scale=c.guidance_scale,
                  steps=c.steps, solver=c.sampler, size=c.size, images=repeat(c, image),
                  strength=c.strength, seed=c.seed, read=read, progress=c.num > CHUNK)  # fmt: skip
    finish(c, images, f"{c.prompt}   (strength {c.strength:g})", {"given": image})
