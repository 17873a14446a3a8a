"""Guides at the paper's three levels: stroke paintings, strokes over a picture, pasted patches.

And the way in for a user's own files. Pictures are uint8 (H, W, 3); an edit_mask is bool
(H, W, 1), True = may change.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy.ndimage import binary_dilation

from common.scenes.render import render
from common.scenes.scene import Scene

MAX_SIDE = 4096  # no file of more pixels than a square of this side is opened


def strokes(images: np.ndarray, colours: int = 6) -> np.ndarray:
    """Stroke paintings of pictures uint8 (N, H, W, 3): a median filter, then so many flat colours.

    The kernel is 23 pixels of 256, scaled to the picture and odd: 3 at 32, 5 at 64. The palette is
    adaptive, each picture its own. Meng et al. 2022, for its simulated strokes.
    """
    kernel = max(3, 2 * int(23 * images.shape[2] / 256 / 2) + 1)

    def paint(image):
        flat = Image.fromarray(image).filter(ImageFilter.MedianFilter(kernel))
        flat = flat.convert("P", palette=Image.Palette.ADAPTIVE, colors=colours)
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


def open_picture(path: Path, size: int | None = None, resize: bool = False) -> np.ndarray:
    """A picture file as uint8 RGBA (H, W, 4), whatever its kind; ValueError in one line if not.

    Grey is repeated, 16 bits become 8, an orientation tag is followed, of a film the first frame is
    taken. size: it must be that square, or with `resize` is cropped and resized to it.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_SIDE**2:
                raise ValueError(f"it has {width} x {height} pixels")
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
                grey = np.asarray(image).clip(0, 65535) / 257
                image = Image.fromarray(np.rint(grey).astype(np.uint8))
            image = ImageOps.exif_transpose(image).convert("RGBA")
    except Exception as error:  # Pillow raises a different kind for each kind of damage
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason.rstrip('.')}; give a PNG or JPEG of at most "
                         f"{MAX_SIDE} x {MAX_SIDE} pixels") from error  # fmt: skip
    if size is not None and image.size != (size, size):
        if not resize:
            raise ValueError(f"{path} is {image.width} x {image.height}, the model draws "
                             f"{size} x {size}: give such a picture, or add --resize")  # fmt: skip
        how = Image.Resampling.BOX if min(image.size) > size else Image.Resampling.BICUBIC
        image = ImageOps.fit(image, (size, size), how)
    return np.asarray(image)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA (H, W, 4) -> RGB: what is transparent shows white paper."""
    paper = Image.new("RGBA", rgba.shape[1::-1], "white")
    paper.alpha_composite(Image.fromarray(rgba))
    return np.asarray(paper.convert("RGB"))


def open_mask(path: Path, size: int, resize: bool = False) -> np.ndarray:
    """An edit_mask (size, size, 1) from a file: change where it is brighter than mid-grey.

    What is transparent is kept. ValueError if nothing would change.
    """
    *rgb, alpha = np.moveaxis(open_picture(path, size, resize).astype(float), -1, 0)
    edit_mask = (np.mean(rgb, 0) * alpha / 255 > 127.5)[..., None]
    if not edit_mask.any():
        raise ValueError(f"{path} keeps every pixel: paint white what may change")
    return edit_mask
