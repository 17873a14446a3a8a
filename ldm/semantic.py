"""A picture from a map of what is where, by concatenation. Rombach et al. 2022, section 4.3.2.

The maps are the scenes' own: of every pixel, which shape covers it, or none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import data
from common.pictures import on_white, open_picture
from common.scenes.render import render
from common.scenes.scene import Scene
from ldm.model import SEGMENTS, LdmConfig
from ldm.sample import Options, draw, finish, repeat, start

LIT = 1e3  # times its colour, an object saturates every pixel that it touches; grass does not
PALETTE = np.array([(0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200),
                    (245, 130, 48), (145, 30, 180)], np.uint8)  # of SEGMENTS, in files  # fmt: skip


def segment(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Scenes -> maps uint8 (N, size, size), numbers of SEGMENTS, of all that an object touches.

    The renderer is asked for objects that shine, the first in red alone and the second in green.
    """
    tints = ((LIT, 0.0, 0.0), (0.0, LIT, 0.0))

    def lit(scene: Scene) -> Scene:
        objects = zip(scene.objects, tints, strict=False)
        objects = tuple(replace(o, tint=tint, material="matte") for o, tint in objects)
        return replace(scene, style="photo", background="grass", objects=objects)

    touched = render([lit(scene) for scene in scenes], size) == 255
    maps = np.zeros(touched.shape[:3], np.uint8)
    for i, scene in enumerate(scenes):
        for j, o in enumerate(scene.objects):
            maps[i][touched[i, ..., j]] = SEGMENTS.index(o.shape)
    return maps


def paint(config: LdmConfig, params: dict, maps: np.ndarray, **options) -> np.ndarray:
    """Maps (B, H, W) of SEGMENTS -> pictures uint8 (B, H, W, 3); options: those of sample.draw."""
    if "semantic" not in config.inputs:
        raise ValueError("these weights read no maps: train some with --preset small_semantic")
    options |= {"beside": {"semantic": maps}, "size": maps.shape[1]}
    return draw(config, params, [""] * len(maps), **options)


def from_colours(image: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) uint8, the number of the nearest colour of PALETTE."""
    return np.square(image[..., None, :] - PALETTE.astype(int)).sum(-1).argmin(-1).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class PaintConfig(Options):
    """`python -m ldm paint`: pictures of a semantic map."""

    map: Path | None = None  # a PNG in the colours that the grid shows; none: that of a test scene
    scene: int = 0  # which
    resize: bool = False  # crop and resize a map of another size, instead of refusing it


def main(c: PaintConfig) -> None:
    c, config, params, read = start(c)
    if c.map is None:
        scenes = data.load("scenes", "test", size=config.size)["scenes"]
        if not 0 <= c.scene < len(scenes):
            raise ValueError(f"scene must be in 0..{len(scenes) - 1}, not {c.scene}")
        given = segment(scenes[c.scene : c.scene + 1], config.size)[0]
    else:
        given = from_colours(on_white(open_picture(c.map, config.size, c.resize)))
    images = paint(config, params, repeat(c, given), steps=c.steps, solver=c.sampler, seed=c.seed,
                   read=read)  # fmt: skip
    finish(c, images, "semantic map", {"map": PALETTE[given]})
