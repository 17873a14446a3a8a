"""Data sets as dicts of numpy arrays, small enough to live on the device as uint8.

"scenes" (drawn by this project) and "digits" (real, shipped with scikit-learn) need no network.
The others are read through tensorflow_datasets: no TensorFlow to read them once prepared, but
TensorFlow and a network to prepare them. What was decoded is kept in one .npz, which can also be
copied to another machine and is enough there.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.scenes.captions import phrasings

SIDES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "celeb_a": 64, "oxford_flowers102": 64}
NAMES = ("scenes", "digits", *SIDES)


class DataError(ValueError):
    """A data set that is unknown, not on this machine, or not to be had in the asked form."""


def load(
    name: str, split: str = "train", *, size: int | None = None, data_dir: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Load a whole split into memory.

    -> image (N, size, size, 3) uint8 (grey repeated); where the data set has them also
       label (N,) int32 and class_names (K,); "scenes" has scenes, its records, instead.

    size: None is the data set's own (32 for scenes, 64 for celeb_a and oxford_flowers102).
    data_dir: where tensorflow_datasets keeps things; default $TFDS_DATA_DIR or
    ~/tensorflow_datasets, and for scenes what its builder says.
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1, not {size}")
    if name == "scenes":
        from common.scenes import builder

        return builder.load(split, size=size or 32, data_dir=data_dir)
    if name == "digits":
        return _digits(split, size or 8)
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return _from_tfds(name, split, size or SIDES[name], root)


def captioned(encode: Callable, size: int, c: Any) -> dict[str, np.ndarray]:
    """The first c.examples training scenes: image (N, size, size, 3), tokens (N, PHRASINGS, L).

    encode(texts) -> (M, L). Captions follow from c.seed; c.rho is their noise.
    """
    scenes = load("scenes", "train", size=size)
    tokens = phrasings(scenes["scenes"][: c.examples], encode, c.seed, c.rho)
    return {"image": scenes["image"][: c.examples], "tokens": tokens}


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Centre-crop to a square and resize: mean over areas when shrinking, bicubic when growing.

    image (H, W, C) uint8, C = 1 or 3  ->  (size, size, 3) uint8
    """
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = np.broadcast_to(image[top : top + side, left : left + side], (side, side, 3))
    if side == size:
        return square
    how = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((size, size), how))


def _digits(split: str, size: int) -> dict[str, np.ndarray]:
    if split not in ("train", "test"):
        raise DataError(f"digits has the splits train and test, not {split!r}")
    if size % 8:
        raise DataError(f"digits are 8 x 8 and grow by whole factors: {size} is no multiple of 8")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits come with scikit-learn: pip install scikit-learn") from error
    found = load_digits()
    order = np.random.RandomState(0).permutation(len(found.images))  # its stream is frozen
    cut = round(0.8 * len(order))
    chosen = order[:cut] if split == "train" else order[cut:]
    image = np.rint(found.images[chosen] * (255 / 16)).astype(np.uint8)  # stored as 0..16
    image = image.repeat(size // 8, 1).repeat(size // 8, 2)[..., None].repeat(3, 3)
    return {
        "image": image,
        "label": found.target[chosen].astype(np.int32),
        "class_names": np.array([str(digit) for digit in found.target_names]),
    }


def _from_tfds(name: str, split: str, size: int, root: Path) -> dict[str, np.ndarray]:
    kept = root / "guidebook" / f"{name}-{quote(split, safe='')}-{size}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return dict(arrays)
    arrays = _decode(_open(name, split, root, kept), name, size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, kept)
    finally:
        partial.unlink(missing_ok=True)
    return arrays


def _open(name: str, split: str, root: Path, kept: Path) -> Sequence:
    import tensorflow_datasets as tfds

    can_prepare = importlib.util.find_spec("tensorflow") is not None
    random_access = {"file_format": "array_record"}  # tfds's own default cannot be indexed
    try:
        return tfds.data_source(
            name, split=split, data_dir=root, download=can_prepare, builder_kwargs=random_access
        )
    except Exception as error:  # tfds raises a different kind for each thing that is missing
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise DataError(
            f"cannot read {name} ({split}) from {root} ({type(error).__name__}: {reason}): install "
            f"the `datasets` extra (TensorFlow) and run once on a machine with a network, or copy "
            f"{kept.name} from one that did into {kept.parent}, or use 'scenes' or 'digits'"
        ) from error


def _decode(source: Sequence, name: str, size: int) -> dict[str, np.ndarray]:
    features = source.dataset_info.features
    image = np.empty((len(source), size, size, 3), np.uint8)
    label = np.empty(len(source), np.int32)
    for i in tqdm(range(len(source)), desc=f"decoding {name}", unit=" images"):
        example = source[i]
        image[i] = fit(example["image"], size)
        label[i] = example.get("label", 0)
    if "label" not in features:
        return {"image": image}
    return {"image": image, "label": label, "class_names": np.array(features["label"].names)}
