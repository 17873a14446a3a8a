"""The commands that take a picture apart: vary, interpolate, text-diff."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common import command, devices, plot, sampler
from common.pictures import on_white, open_picture
from common.scenes.captions import canonical
from unclip.manipulate import STEPS, interpolate, invert, reconstruct, text_diff, vary
from unclip.sample import SHIPPED, SHIPPED_CLIP, first_noise, load_all


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """What all of them have."""

    image: Path  # the picture, a PNG or JPEG
    resize: bool = False  # crop and resize files of another size, instead of refusing them
    guidance_scale: float = 1.0  # above 1 the picture does not come back exactly
    steps: int = STEPS  # DDIM steps, of the inversion and back
    seed: int = 0
    weights: Path = SHIPPED  # of the decoder
    clip: Path = SHIPPED_CLIP


@dataclass(frozen=True, kw_only=True)
class VaryConfig(EditConfig):
    """`python -m unclip vary`: pictures with the same image embedding."""

    out: Path = Path("out/vary.png")  # a .png is a labelled grid; a folder, one PNG each
    etas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # 0 gives the picture back
    num: int = 6  # pictures of each


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(EditConfig):
    """`python -m unclip interpolate`: from one picture to another."""

    other: Path  # the picture at the end
    out: Path = Path("out/interpolate.png")  # a .png is a labelled strip; a folder, one PNG each
    frames: int = 9
    x_T: Literal["slerp", "fixed"] = "slerp"  # fixed: one random x_T, z_i alone turns


@dataclass(frozen=True, kw_only=True)
class TextDiffConfig(EditConfig):
    """`python -m unclip text-diff`: change a picture by the difference of two captions."""

    prompt: str  # what it is to become: "a drawing of a blue cube"
    source: str  # what it is: "a photo of a red ball"
    caption: bool = False  # the decoder reads the prompt, too: at guidance 2 it turns more often
    out: Path = Path("out/text_diff.png")  # a .png is a labelled strip; a folder, one PNG each
    theta: float = 0.5  # how far to turn: the last frame
    frames: int = 9


def open_all(c: EditConfig, others: tuple[Path, ...] = ()):
    """(config, params, CLIP, pictures, their z_i, their x_T)."""
    devices.start()
    config, params, _, clip = load_all(c)
    sampler.timesteps(config.T, c.steps)
    paths = (c.image, *others)
    images = np.stack([on_white(open_picture(p, config.size, c.resize)) for p in paths])
    command.check_out(c.out)
    z = clip.images(images)
    return config, params, clip, images, z, invert(config, params, images, z, c.steps)


def save(c: EditConfig, images: np.ndarray, labels: list[str], **grid) -> None:
    """Pictures with a label each, as a grid or one file each; the settings go inside."""
    settings = {"image": c.image.name, "steps": str(c.steps), "seed": str(c.seed),
                "guidance_scale": f"{c.guidance_scale:g}", "weights": c.weights.name}  # fmt: skip
    if c.out.suffix:
        plot.save(plot.grid(images, captions=labels, **grid), c.out, settings)
    else:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            plot.save(image, c.out / f"{i:04d}.png", settings | {"label": label})
    print(f"{len(images)} pictures: {c.out}")


def check_frames(frames: int) -> None:
    if not 2 <= frames <= 64:
        raise ValueError(f"frames must be in 2..64, not {frames}")


def vary_main(c: VaryConfig) -> None:
    if not c.etas or not all(0 <= eta <= 1 for eta in c.etas):
        raise ValueError("etas must lie in 0..1: 0 gives the picture back, 1 varies most")
    if not 1 <= c.num <= 64:
        raise ValueError(f"num must be in 1..64, not {c.num}")
    config, params, _, images, z, x = open_all(c)
    drawn = vary(config, params, z[0], x[0], c.etas, c.num, c.seed, steps=c.steps,
                 guidance_scale=c.guidance_scale)  # fmt: skip
    rows = np.concatenate([np.repeat(images[:, None], len(c.etas), 0), drawn], axis=1)
    labels = [t for eta in c.etas for t in ["given", *[f"eta {eta:g}"] * c.num]]
    save(c, rows.reshape(-1, *images.shape[1:]), labels, columns=c.num + 1)


def interpolate_main(c: InterpolateConfig) -> None:
    check_frames(c.frames)
    config, params, _, images, z, x = open_all(c, (c.other,))
    thetas = np.linspace(0, 1, c.frames)
    x = first_noise(config, 2, c.seed) if c.x_T == "fixed" else x
    drawn = interpolate(config, params, z, x, thetas, c.x_T == "fixed", steps=c.steps,
                        guidance_scale=c.guidance_scale)  # fmt: skip
    frames = np.concatenate([images[:1], drawn, images[1:]])
    labels = ["given", *(f"{theta:.2f}" for theta in thetas), "given"]
    save(c, frames, labels, columns=len(frames))


def text_diff_main(c: TextDiffConfig) -> None:
    check_frames(c.frames)
    if not 0 < c.theta <= 1:
        raise ValueError(f"theta must be in 0..1, not {c.theta}")
    if canonical(c.prompt) == canonical(c.source):
        raise ValueError("prompt and source are the same text: nothing is to be changed")
    config, params, clip, images, z, x = open_all(c)
    z_t, z_t0 = clip.texts([c.prompt, c.source])
    thetas = np.linspace(0, c.theta, c.frames)
    many = lambda a: np.repeat(a, c.frames, axis=0)  # noqa: E731
    turned = text_diff(many(z), many(z_t[None]), many(z_t0[None]), thetas)
    drawn = reconstruct(config, params, turned, many(x), steps=c.steps,
                        prompts=[c.prompt] * c.frames if c.caption else None,
                        guidance_scale=c.guidance_scale)  # fmt: skip
    labels = ["given", *(f"theta {theta:.2f}" for theta in thetas)]
    save(c, np.concatenate([images, drawn]), labels, columns=c.frames + 1,
         title=f"{c.source}  →  {c.prompt}")  # fmt: skip
