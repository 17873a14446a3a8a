"""Retrieval-augmented diffusion: the network sees the CLIP embeddings of k similar pictures.

    training    context = k pictures nearest to the own one, which is left out
    drawing     context = the text's embedding, and k pictures nearest to it, of any database

So another database is another style, without training. Blattmann et al. 2022 (RDM);
latent-diffusion's knn2img.py, whose null condition is zeros.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import checkpoint, clip, data
from common.clip import ClipConfig
from ldm.model import LdmConfig
from ldm.sample import SampleConfig, draw, finish, start

CLIP = Path("glide/weights/clip.safetensors")  # what `glide` ships
ROWS = 1024  # queries compared with the whole database at once


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(SampleConfig):
    """`python -m ldm retrieve`: pictures of a caption, by what resembles it."""

    clip: Path = CLIP  # the one of the training
    neighbours: int = 4  # 0: the text's embedding alone
    split: str = "train"  # of the scenes: the database
    style: str = ""  # of which only this style is searched: "night"
    examples: int = 24_000  # pictures searched, the first of the split


def load_clip(path: Path) -> tuple[ClipConfig, dict]:
    """CheckpointError: no weights of a CLIP."""
    return checkpoint.load_model(path, "glide.clip", ClipConfig, clip.init_params)[:2]


def nearest(database: np.ndarray, queries: np.ndarray, k: int, own: bool = False) -> np.ndarray:
    """database (M, D) and queries (N, D) of length 1 -> rows (N, k), the nearest first; exact.

    own: query i is row i of the database, and not its own neighbour.
    """
    if not 0 <= k <= len(database) - own:
        raise ValueError(f"neighbours must be in 0..{len(database) - own}, the pictures that are "
                         f"searched, not {k}")  # fmt: skip
    found = np.empty((len(queries), k), np.int64)
    for begin in range(0, len(queries), ROWS):
        cosine = queries[begin : begin + ROWS] @ database.T
        if own:
            np.fill_diagonal(cosine[:, begin:], -np.inf)
        found[begin : begin + ROWS] = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return found


def training_context(path: Path, k: int, count: int) -> np.ndarray:
    """Of the first `count` training pictures, the k neighbours' embeddings, float16 (count, k, D).

    path: CLIP's weights. Kept so, the embeddings stand on the device as the latents do.
    """
    config, params = load_clip(path)
    images = data.load("scenes", "train", size=config.size)["image"][:count]
    embeddings = clip.embed_images(config, params, images)
    return embeddings[nearest(embeddings, embeddings, k, own=True)].astype(np.float16)


def context(texts: np.ndarray, database: np.ndarray, k: int) -> np.ndarray:
    """Text embeddings (B, D), database (M, D) -> (B, 1 + k, D), the text first."""
    return np.concatenate([texts[:, None], database[nearest(database, texts, k)]], 1)


def retrieve(
    config: LdmConfig, params: dict, texts: np.ndarray, database: np.ndarray, k: int, **options
) -> np.ndarray:
    """Text embeddings (B, D), database (M, D) -> uint8 (B, H, W, 3); options: sample.draw's."""
    check(config)
    if (D := texts.shape[1]) != config.class_width:
        raise ValueError(f"this CLIP's embeddings are of {D} numbers, those of the training of "
                         f"{config.class_width}: give its --clip")  # fmt: skip
    return draw(config, params, [""] * len(texts), beside={"context": context(texts, database, k)},
                **options)  # fmt: skip


def check(config: LdmConfig) -> None:
    """ValueError unless the model sees neighbours."""
    if config.condition != "neighbours":
        raise ValueError("these weights see no neighbours: train some with `train-retrieval`")


def search(
    c: RetrieveConfig, config: ClipConfig, params: dict, text: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The database (M, D), and its pictures uint8 (k, H, W, 3) that are nearest to text (D,)."""
    scenes = data.load("scenes", c.split, size=config.size)
    kept = [i for i, s in enumerate(scenes["scenes"][: c.examples]) if c.style in ("", s.style)]
    if not kept:
        raise ValueError(f"no scene of {c.split} has the style {c.style!r}")
    images = scenes["image"][kept]
    database = clip.embed_images(config, params, images)
    return database, images[nearest(database, text[None], c.neighbours)[0]]


def main(c: RetrieveConfig) -> None:
    clip_config, clip_params = load_clip(c.clip)
    text = clip.embed_texts(clip_config, clip_params, [c.prompt])
    prompt, (c, config, params, _) = c.prompt, start(c)
    check(config)  # before the whole database is read
    database, found = search(c, clip_config, clip_params, text[0])
    images = retrieve(config, params, text.repeat(c.num, 0), database, c.neighbours,
                      guidance_scale=c.guidance_scale, steps=c.steps, solver=c.sampler,
                      size=c.size, seed=c.seed)  # fmt: skip
    times = images.shape[1] // max(1, found.shape[1])
    shown = {f"neighbour {i + 1}": x for i, x in enumerate(found.repeat(times, 1).repeat(times, 2))}
    finish(c, images, f"{prompt}   (guidance {c.guidance_scale:g})", shown)
