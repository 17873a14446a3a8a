"""Pictures from guides: paint (whole strokes), edit (under a mask), compose (a pasted patch)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from common import command, devices, plot
from common.guidance import classifier_free
from common.pictures import on_white, open_mask, open_picture
from common.pretrained import defaults, is_published, official
from common.process import to_float, to_uint8
from sdedit import pretrained, sde
from sdedit.guides import paste
from sdedit.model import SHIPPED, SdeditConfig, denoiser, encode_text, load, make_schedule, tokenize


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What all three commands have."""

    t0: float = 0.5  # how much is forgotten: 0 returns the guide, 1 no longer knows it
    target_l2: float | None = None  # instead of t0: how far from the guide, squared
    sde: Literal["vp", "ve", "ddpm"] | None = None  # vp; ddpm, the official code's, for its weights
    steps: int | None = None  # of the reverse SDE: 100, of official weights 500 (ddpm: 1000 t0)
    repeats: int = 1  # the whole edit, fed its own result (the paper's K)
    last: Literal["denoise", "paper"] = "denoise"  # paper: the last step adds noise, as printed
    prompt: str = ""  # a caption in the words of the scenes; without one, unconditional
    guidance_scale: float = 1.0  # 0 ignores the caption, 1 follows it, more exaggerates it
    num: int = 4  # pictures
    seed: int = 0
    resize: bool = False  # crop and resize files of another size, instead of refusing them
    weights: Path = SHIPPED  # also the official repository's .ckpt
    out: Path = Path("out/sdedit.png")  # a .png is a labelled grid; a folder, one PNG each


@dataclass(frozen=True, kw_only=True)
class PaintConfig(SampleConfig):
    """`python -m sdedit paint`: a picture from a stroke painting."""

    guide: Path  # what to start from, a PNG or JPEG


@dataclass(frozen=True, kw_only=True)
class EditConfig(PaintConfig):
    """`python -m sdedit edit`: change a picture, with strokes on it, under a mask only."""

    edit_mask: Path  # a picture: white may change, black is kept exactly


@dataclass(frozen=True, kw_only=True)
class ComposeConfig(SampleConfig):
    """`python -m sdedit compose`: make a pasted patch belong to its background."""

    background: Path  # the picture that is kept
    patch: Path  # what is pasted; its transparent pixels are not
    at: str  # x,y of the patch's top left corner, in pixels of the (resized) background
    margin: int = 1  # pixels around the patch that may change, too


@functools.cache
def compiled(
    config: SdeditConfig, sde_name: str, repeats: int, last: str, guided: bool, published: bool
):
    """run(params, schedule, guides, edit_masks, tokens, scales, key) -> uint8 (B, H, W, 3)."""
    trained = make_schedule(config)
    procedure = {"variance": "small", "fresh": False} if sde_name == "ddpm" else {}

    def run(params, schedule, guides, edit_masks, tokens, scales, key):
        denoise, cond = denoiser(config, params), encode_text(config, params, tokens)
        denoise = official(denoise) if published else denoise
        if guided:
            null_cond = encode_text(config, params, 0 * tokens)
            denoise = classifier_free(denoise, null_cond, scales)
        denoise = sde.transfer(denoise, trained, schedule)
        x = sde.edit(denoise, schedule, to_float(guides), cond, key, edit_mask=edit_masks,
                     repeats=repeats, last=last, **procedure)  # fmt: skip
        return to_uint8(x)

    return devices.jit(run)


def draw(
    config: SdeditConfig,
    params: dict,
    guides: np.ndarray,
    *,
    t0: float,
    sde_name: str = "vp",
    steps: int = 100,
    edit_masks: np.ndarray | None = None,
    repeats: int = 1,
    last: str = "denoise",
    prompts: list[str] | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
    published: bool = False,
) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) from guides of that kind, one each; edit_masks (B, H, W, 1).

    Row i gets noise that depends on seed, i and devices.CHUNK alone. published: weights that count
    times from 0, see pretrained.load. ValueError: t0, steps, prompts.
    """
    schedule = sde.SDES[sde_name](t0, steps)
    B, key = len(guides), jax.random.key(seed)
    edit_masks = np.ones((*guides.shape[:3], 1), bool) if edit_masks is None else edit_masks
    tokens = tokenize(config, prompts or [""] * B)
    scales = np.full(B, guidance_scale, np.float32)
    run = compiled(config, sde_name, repeats, last, guidance_scale != 1, published)

    def some(rows, i):
        given = (guides[rows], edit_masks[rows], tokens[rows], scales[rows])
        return run(params, schedule, *given, jax.random.fold_in(key, i))

    return devices.in_chunks(some, B, devices.CHUNK, "editing", progress)


def bisect(
    draw: Callable[[float], np.ndarray], guides: np.ndarray, target: float, rounds: int = 6
) -> float:
    """The t0 at which draw(t0) is as far from uint8 guides as asked, to 2^-rounds.

    Distance: mean of ||picture - guide||^2 over pixels in [0, 1], which rises with t0. Meng et al.
    2022, section 4.2, bisect by eye, on one picture, for all that are alike.
    """
    low, high = 0.0, 1.0
    for _ in range(rounds):
        t0 = (low + high) / 2
        far = np.square((draw(t0).astype(float) - guides) / 255).sum((1, 2, 3)).mean()
        low, high = (t0, high) if far < target else (low, t0)
    return (low + high) / 2


def paint(c: PaintConfig) -> None:
    c, config, params = _start(c)
    guide = on_white(open_picture(c.guide, config.size, c.resize))
    _finish(c, config, params, guide, None)


def edit(c: EditConfig) -> None:
    c, config, params = _start(c)
    guide = on_white(open_picture(c.guide, config.size, c.resize))
    edit_mask = open_mask(c.edit_mask, config.size, c.resize)
    if not edit_mask.any():
        raise ValueError(f"{c.edit_mask} keeps every pixel: paint white what may change")
    _finish(c, config, params, guide, edit_mask)


def compose(c: ComposeConfig) -> None:
    try:
        x, y = map(int, c.at.split(","))
    except ValueError:
        raise ValueError(f"at must be two whole numbers such as 12,8, not {c.at!r}") from None
    if c.margin < 0:
        raise ValueError(f"margin must be 0 or more, not {c.margin}")
    c, config, params = _start(c)
    background = on_white(open_picture(c.background, config.size, c.resize))
    guide, edit_mask = paste(background, open_picture(c.patch), (x, y), c.margin)
    _finish(c, config, params, guide, edit_mask)


def _start(c: SampleConfig) -> tuple[SampleConfig, SdeditConfig, dict]:
    """Everything that can be refused without a picture; then c without None, and the weights."""
    published = is_published(c.weights)
    c = defaults(c, sde="ddpm", steps=500) if published else defaults(c, sde="vp", steps=100)
    sde.SDES[c.sde](c.t0, c.steps)
    if not math.isfinite(c.guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {c.guidance_scale}")
    if not 1 <= c.num <= 4096:
        raise ValueError(f"num must be in 1..4096, not {c.num}")
    if c.target_l2 is not None and not c.target_l2 > 0:
        raise ValueError(f"target_l2 must be above 0, not {c.target_l2}")
    if c.repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {c.repeats}")
    devices.start()
    config, params = (pretrained.load if published else load)(c.weights)[:2]
    tokenize(config, [c.prompt])
    if config.text is None and c.guidance_scale != 1:
        raise ValueError("these weights know no captions: leave the guidance_scale away")
    command.check_out(c.out)
    return c, config, params


def _finish(c, config, params, guide, edit_mask) -> None:
    """Draw c.num pictures of one guide, save and name them."""
    repeat = lambda a: np.broadcast_to(a, (c.num, *a.shape))  # noqa: E731
    edited = functools.partial(
        draw, config, params, repeat(guide), sde_name=c.sde, steps=c.steps,
        edit_masks=None if edit_mask is None else repeat(edit_mask), repeats=c.repeats,
        last=c.last, prompts=[c.prompt] * c.num, guidance_scale=c.guidance_scale, seed=c.seed,
        progress=c.num > devices.CHUNK, published=is_published(c.weights),
    )  # fmt: skip
    if c.target_l2 is not None:
        c = replace(c, t0=bisect(lambda t0: edited(t0=t0), guide, c.target_l2))
    images = edited(t0=c.t0)
    names = ("t0", "sde", "steps", "repeats", "last", "prompt", "guidance_scale", "seed")
    settings = {name: str(getattr(c, name)) for name in names} | {"weights": c.weights.name}
    if c.out.suffix:
        title = f"{c.prompt or 'no caption'}   (t0 {c.t0:g}, {c.sde})"
        captions = ["guide", *[""] * c.num]
        plot.save(plot.grid([guide, *images], captions=captions, title=title), c.out, settings)
    else:
        for i, image in enumerate(images):
            plot.save(image, c.out / f"{i:04d}.png", settings)
    print(f"{c.num} pictures, t0 {c.t0:g}: {c.out}")
