"""Guides at the paper's three levels: stroke paintings, strokes over a picture, pasted patches.

Pictures are uint8 (H, W, 3); an edit_mask is bool (H, W, 1), True = may change.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import binary_dilation

from common.scenes.render import render
from common.scenes.scene import Scene


def strokes(images: np.ndarray, colours: int = 6) -> np.ndarray:
    """Stroke paintings of pictures uint8 (N, H, W, 3): a median filter, then so many flat colours.

    The kernel is 23 pixels of 256, scaled to the picture and odd: 3 at 32, 5 at 64. The palette is
    adaptive, each picture its own. Meng et al. 2022, for its simulated strokes.
    """
    kernel = max(3, 2 * int(23 * images.shape[2] / 256 / 2) + 1)

    def paint(image):
        flat = Image.fromarray(image).filter(ImageFilter.MedianFilter(kernel))
        # Paper: the palette is the median cut's alone. Where objects are small, that mixes them
        # with the background to grey; rounds of k-means give each stroke the mean of its pixels.
        flat = flat.quantize(colours, Image.Quantize.MEDIANCUT, 4, dither=Image.Dither.NONE)
        return np.asarray(flat.convert("RGB"))

    return np.stack([paint(image) for image in images])


def stroke_over(
    image: np.ndarray, points: Sequence[tuple], colour: tuple[int, int, int], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """A stroke through the points (x, y) over a picture -> (guide, edit_mask of what it covers)."""
    mask = Image.new("1", image.shape[1::-1])
    ImageDraw.Draw(mask).line(points, fill=1, width=width, joint="curve")
    edit_mask = np.asarray(mask, bool)[..., None]
    return np.where(edit_mask, np.array(colour, np.uint8), image), edit_mask


def paste(
    background: np.ndarray, patch: np.ndarray, at: tuple[int, int], margin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A patch (h, w, 3), or 4 with alpha, with its corner at (x, y) -> (guide, edit_mask).

    What hangs over the edge is cut off. The mask is the patch where its alpha is not 0, grown by
    `margin` pixels, so that its surroundings may adapt.
    """
    x, y = at
    canvas = Image.new("RGBA", background.shape[1::-1])  # transparent
    canvas.paste(Image.fromarray(patch).convert("RGBA"), (x, y))
    alpha = np.asarray(canvas)[..., 3:]
    if not alpha.any():
        raise ValueError(f"the patch lies outside of the picture or is transparent: at {x},{y}")
    guide = Image.fromarray(background).convert("RGBA")
    guide.alpha_composite(canvas)
    return np.asarray(guide.convert("RGB")), grow(alpha != 0, margin)


def grow(edit_mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask (H, W, 1) and what is at most so many steps along an axis away from it."""
    return binary_dilation(edit_mask, np.ones((3, 3, 1)), pixels) if pixels else edit_mask


def object_masks(scenes: Sequence[Scene], size: int = 32) -> np.ndarray:
    """bool (N, size, size, 1): the pixels that each scene's first object changes, shadow too."""
    without = [replace(scene, objects=scene.objects[1:]) for scene in scenes]
    return (render(list(scenes), size) != render(without, size)).any(-1, keepdims=True)
