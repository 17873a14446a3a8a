"""The data set on disk: a tfds builder that needs no TensorFlow, and a loader of arrays."""

import contextlib
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from common.scenes.captions import caption
from common.scenes.render import SIZE, VERSION, halve, render
from common.scenes.scene import draw_scene, scene_from_json, scene_to_json

SPLITS = {
    "train": 24_000,
    "test": 2_000,
    "held_out": 1_000,
}  # held_out: scenes with a held-out pair
_SEED = 2022
_BATCH = 1024  # scenes in memory while preparing


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Captioned scenes: image (64, 64, 3), one true caption, and the whole scene as JSON."""

    name = "scenes"
    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            "scene": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="One or two shaded objects, drawn and captioned by guidebook.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # scenes are drawn independently: their order is already random
        )

    def _split_generators(self, dl_manager):
        bar = tqdm(total=sum(SPLITS.values()), desc="preparing scenes", unit="scene")
        return {split: self._generate_examples(split, bar) for split in SPLITS}

    def _generate_examples(self, split: str, bar: tqdm):
        rng = np.random.default_rng([_SEED, list(SPLITS).index(split)])
        for start in range(0, SPLITS[split], _BATCH):
            count = min(_BATCH, SPLITS[split] - start)
            scenes = [draw_scene(rng, held_out=split == "held_out") for _ in range(count)]
            with ThreadPoolExecutor() as pool:  # compression is the slowest step and frees the GIL
                files = list(pool.map(_png, render(scenes)))
            for i, (scene, file) in enumerate(zip(scenes, files, strict=True)):
                yield (
                    start + i,
                    {
                        "image": file,
                        "caption": caption(scene, rng),
                        "scene": scene_to_json(scene),
                    },
                )
                bar.update()
        if split == list(SPLITS)[-1]:
            bar.close()


def _png(image: np.ndarray) -> io.BytesIO:
    """tfds without TensorFlow takes an image only as encoded bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    file.seek(0)
    return file


def default_data_dir() -> Path:
    """$GUIDEBOOK_DATA, or ~/.cache/guidebook/data."""
    return Path(os.environ.get("GUIDEBOOK_DATA") or Path.home() / ".cache" / "guidebook" / "data")


def prepare(data_dir: str | Path | None = None) -> Scenes:
    """The builder with its data on disk: written on the first call, under a progress bar.

    tfds writes into a temporary folder and renames it at the end, so a killed one is redone; the
    version of the pictures is part of the path, so those of an older renderer are never read.
    """
    root = Path(data_dir or default_data_dir())
    builder = Scenes(data_dir=str(root), file_format="array_record")
    if builder.is_prepared():
        return builder
    root.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()  # ours tells the time that remains
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()
    return builder


def load(split: str, size: int = 32, data_dir: str | Path | None = None) -> dict:
    """One split: {"image": uint8 (N, size, size, 3), "scenes": list of N Scene}, size 32 or 64.

    Decoded arrays are kept beside the data set as .npz, so only the first call decodes PNGs.
    """
    if split not in SPLITS:
        raise ValueError(f"no split '{split}' in scenes: choose one of {', '.join(SPLITS)}")
    if size not in (32, 64):
        raise ValueError(f"scenes have 32 or 64 pixels, not {size}")
    root = Path(data_dir or default_data_dir())
    cached = root / f"scenes-{VERSION}-{split}-{size}.npz"
    if not cached.exists():
        _decode(prepare(root), split, size, cached)
    with np.load(cached) as arrays:
        lines = arrays["scenes"].tobytes().decode().splitlines()
        return {"image": arrays["image"], "scenes": [scene_from_json(line) for line in lines]}


def _decode(builder: Scenes, split: str, size: int, path: Path) -> None:
    """Reads a split through tfds.data_source and writes its arrays to path, all or nothing."""
    source = builder.as_data_source(split)
    images = np.empty((len(source), size, size, 3), np.uint8)
    lines = []
    for i, example in enumerate(tqdm(source, f"decoding {split}", leave=False, unit="scene")):
        images[i] = example["image"] if size == SIZE else halve(example["image"][None])[0]
        lines.append(example["scene"])
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, image=images, scenes=np.frombuffer(b"\n".join(lines), np.uint8))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
