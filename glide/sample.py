"""Pictures from captions: classifier-free guided DDIM, the whole sampler in one compiled call."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import command, devices, plot, sampler
from common.devices import CHUNK, in_chunks
from common.guidance import classifier_free
from common.pretrained import defaults, is_published, official
from common.process import to_uint8
from common.scenes.captions import canonical
from glide import clip as glide_clip
from glide import clip_guidance, pretrained
from glide.model import GlideConfig, denoiser, encode_text, load, make_schedule, tokenizer
from glide.upsampler import upsample

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED, UPSAMPLER = WEIGHTS / "small.safetensors", WEIGHTS / "upsampler.safetensors"
JUDGE = WEIGHTS / "clip.safetensors"


@dataclass(frozen=True)
class DrawConfig:
    """What `sample` and `inpaint` have."""

    prompt: str  # what to draw, in the words of the scenes: "a small red ball above a blue cube"
    out: Path = Path("out/sample.png")  # a .png is a labelled grid; a folder, one PNG each
    guidance_scale: float = 3.0  # 0 ignores the caption, 1 follows it, more exaggerates it
    num: int = 8  # pictures
    steps: int = 50  # DDIM steps
    seed: int = 0
    weights: Path = SHIPPED


@dataclass(frozen=True)
class SampleConfig(DrawConfig):
    """`python -m glide sample`: pictures of a caption."""

    steps: int | None = None  # of DDIM: 50, of GLIDE's own weights 100 (and 27 of the upsampler)
    size: int | None = None  # pixels, the model's own or the upsampler's
    upsampler: Path = UPSAMPLER  # weights of the second stage, where size asks for it
    vocab: Path | None = None  # weights may be GLIDE's own .pt, which read GPT-2's byte pairs
    clip: Path | None = None  # guide by this CLIP's gradient instead; a noised one, or a clean one
    best_of: int = 1  # draw so many for each picture, keep what the judge likes best
    judge: Path = JUDGE  # weights of a clean CLIP


@functools.cache
def compiled(
    config: GlideConfig,
    steps: int,
    path: bool,
    eta: float | str = 0.0,
    published: bool = False,
    guided: bool = True,
):
    """sample(params, tokens (B, L), scales (B,), key) -> uint8 (B, H, W, 3), or its path.

    guided: False takes the conditional prediction alone, at half the cost, and no scales.
    """
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
        denoise = official(denoiser(config, params)) if published else denoiser(config, params)
        if guided:
            denoise = classifier_free(denoise, null_cond, scales)
        args, options = (denoise, schedule, x, ts, cond, step_key), {"x0_fn": sampler.clip_x0}
        if eta == "dpm":
            return to_uint8(sampler.dpm_solver(*args[:-1], **options))
        if eta == "learned":
            return to_uint8(sampler.ancestral(*args, variance="learned", **options))
        return to_uint8(run(*args, eta=eta, **options))

    return devices.jit(sample)


def draw(
    config: GlideConfig,
    params: dict,
    prompts: Sequence[str],
    *,
    guidance_scale: float | np.ndarray = 3.0,
    steps: int = 50,
    seed: int = 0,
    eta: float | str = 0.0,
    path: bool = False,
    chunk: int = CHUNK,
    progress: bool = False,
    read: Callable | None = None,
) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) of B prompts; with path every x on the way, (steps + 1, B, ...).

    guidance_scale: a number or one per prompt; eta: 0 is DDIM, 1 has the noise of DDPM, "learned"
    takes ancestral steps with the learned variance, "dpm" those of DPM-Solver++(2M) (both without
    path). Row i starts from noise that depends
    on seed, i and chunk alone. read: of published weights, pretrained.reader. ValueError: unknown
    words, too many of them, steps out of range.
    """
    tokens = read(prompts) if read else tokenizer(config).encode([canonical(p) for p in prompts])
    scales = np.broadcast_to(np.float32(guidance_scale), (len(prompts),))
    guided = bool((scales != 1).any())
    sample, key = compiled(config, steps, path, eta, bool(read), guided), jax.random.key(seed)

    def run(rows, i):
        return sample(params, tokens[rows], scales[rows], jax.random.fold_in(key, i))

    return in_chunks(run, len(prompts), chunk, "drawing", progress, int(path))


def open_weights(path: Path, vocab: Path | None) -> tuple[GlideConfig, dict, Callable | None]:
    """(config, params, read): our weights, whose words `draw` knows, or GLIDE's .pt with vocab."""
    if not is_published(path, vocab):
        return *load(path)[:2], None
    config, params = pretrained.load(path)
    return config, params, pretrained.reader(config, vocab)


def check(c: DrawConfig) -> None:
    """ValueError for options that no model could take."""
    if not c.prompt.strip():
        raise ValueError("the prompt is empty; say what to draw, such as 'a red ball'")
    if not math.isfinite(c.guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {c.guidance_scale}")
    if not 1 <= c.num <= 4096:
        raise ValueError(f"num must be in 1..4096, not {c.num}")


def save(c: DrawConfig, images: np.ndarray, first: dict[str, np.ndarray] | None = None) -> None:
    """Write pictures as c.out says, with the settings inside; a grid begins with `first`."""
    settings = {"prompt": c.prompt, "guidance_scale": f"{c.guidance_scale:g}",
                "steps": str(c.steps), "seed": str(c.seed), "weights": c.weights.name}  # fmt: skip
    if c.out.suffix:
        title = f"{c.prompt}   (guidance {c.guidance_scale:g})"
        labels = [*first, *[""] * len(images)] if first else None
        sheet = plot.grid([*(first or {}).values(), *images], captions=labels, title=title)
        plot.save(sheet, c.out, settings)
    else:
        for i, image in enumerate(images):
            plot.save(image, c.out / f"{i:04d}.png", settings)
    print(f"{len(images)} pictures: {c.out}")


def main(c: SampleConfig) -> None:
    c = defaults(c, steps=100 if is_published(c.weights, c.vocab) else 50)
    check(c)
    if not 1 <= c.best_of <= 4096 // c.num:
        raise ValueError(f"best_of must be in 1..{4096 // c.num}, not {c.best_of}")
    devices.start()
    config, params, read = open_weights(c.weights, c.vocab)
    if config.inputs:
        raise ValueError(f"{c.weights} does more than draw from captions: use its own command")
    if read and (c.clip or c.best_of > 1):
        raise ValueError("GLIDE's own weights do not go with --clip and --best-of: leave them out")
    sampler.timesteps(config.T, c.steps)
    read([c.prompt]) if read else tokenizer(config).encode([canonical(c.prompt)])
    second = None
    if c.size not in (None, config.size) or read and c.size is None and c.upsampler != UPSAMPLER:
        *second, read_again = open_weights(c.upsampler, c.vocab)
        if second[0].inputs != ("low_res",) or bool(read) != bool(read_again):
            raise ValueError(f"{c.upsampler} is no second stage of {c.weights}")
        if c.size not in (None, second[0].size):
            raise ValueError(f"size must be {config.size} or {second[0].size}, not {c.size}")
    guide = glide_clip.load(c.clip)[:2] if c.clip else None
    judge = glide_clip.load(c.judge)[:2] if c.best_of > 1 else None
    command.check_out(c.out)
    n = c.num * c.best_of
    options = {"guidance_scale": c.guidance_scale, "steps": c.steps, "seed": c.seed,
               "progress": n > CHUNK}  # fmt: skip
    if guide:
        images = clip_guidance.draw((config, params), guide, [c.prompt] * n, **options)
    else:
        images = draw(config, params, [c.prompt] * n, read=read, **options)
    if judge:
        groups = images.reshape(c.num, c.best_of, *images.shape[1:])
        images = clip_guidance.rerank(*judge, groups, [c.prompt] * c.num)[0][:, 0]
    if second:
        prompts = [c.prompt] * c.num
        images = upsample(*second[:2], prompts, images, seed=c.seed, chunk=CHUNK, read=read)
    save(c, images)
