"""Picture files of the user, in: whatever their kind, as arrays or as one clear line of refusal."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_SIDE = 4096  # no file of more pixels than a square of this side is opened


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
    """bool (size, size, 1) from a file: True where it is bright (above mid-grey) and opaque.

    Whether True means keep or change is the caller's word: keep_mask or edit_mask.
    """
    *rgb, alpha = np.moveaxis(open_picture(path, size, resize).astype(float), -1, 0)
    return (np.mean(rgb, 0) * alpha / 255 > 127.5)[..., None]
