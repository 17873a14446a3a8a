"""Search the scenes by words, as the CLIP-retrieval page does with LAION: nearest embeddings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from common import clip, command, data, devices, plot
from common.scenes.scene import Scene
from glide.clip import load

SHIPPED = Path(__file__).parent / "weights" / "clip.safetensors"


@dataclass(frozen=True)
class SearchConfig:
    """`python -m glide search "a red ball"`: the scenes nearest to a text, by CLIP."""

    query: Positional[str]  # what to look for, in the words of the scenes: "a red ball"
    num: int = 8  # hits
    out: Path = Path("out/hits.png")  # a .png is a labelled grid; a folder, one PNG each
    split: str = "test"  # of the scenes: train, test or held_out
    count: int = 2_000  # scenes searched, the first of the split
    duplicates: float = 0.94  # leave out hits whose cosine with a better hit is above; 1 keeps all
    weights: Path = SHIPPED


def search(
    query: np.ndarray, embeddings: np.ndarray, num: int, duplicates: float
) -> tuple[np.ndarray, np.ndarray]:
    """query (D,), embeddings (N, D) -> rows and cosines of the `num` nearest, near-duplicates out.

    The better of two near-duplicates stays. (clip-retrieval, with 0.94 as well, keeps one of each
    connected component: here, where most pictures have a close neighbour, chains would swallow
    hits that differ.) Fewer than `num` come back if no more are left.
    """
    from sklearn.neighbors import NearestNeighbors  # here: it takes a second to import

    index = NearestNeighbors(metric="cosine").fit(embeddings)
    distances, rows = index.kneighbors(query[None], n_neighbors=len(embeddings))
    kept = []
    for i, row in enumerate(rows[0]):
        if all(embeddings[row] @ embeddings[rows[0, j]] <= duplicates for j in kept):
            kept.append(i)
        if len(kept) == num:
            break
    return rows[0, kept], 1 - distances[0, kept]


def describe(scene: Scene) -> str:
    """What there is: "small red ball, large blue cube; sand, photo"."""
    objects = ", ".join(f"{o.size} {o.colour} {o.shape}" for o in scene.objects)
    return f"{objects}; {scene.background}, {scene.style}"


def main(c: SearchConfig) -> None:
    if not c.query.strip():
        raise ValueError("the query is empty; say what to look for, such as 'a red ball'")
    if min(c.num, c.count) < 1:
        raise ValueError(f"num and count must be at least 1, not {c.num} and {c.count}")
    if not c.weights.is_file():
        raise ValueError(
            f"no CLIP weights at {c.weights}: train them with `python -m glide train-clip`, "
            f"then give --weights runs/clip/weights.safetensors"
        )
    devices.start()
    config, params, _ = load(c.weights)
    query = clip.embed_texts(config, params, [c.query])[0]
    as_grid = command.check_out(c.out)
    scenes = data.load("scenes", c.split, size=config.size)
    images = scenes["image"][: c.count]
    rows, scores = search(query, clip.embed_images(config, params, images), c.num, c.duplicates)
    labels = [f"{score:.3f}" for score in scores]
    for rank, (row, label) in enumerate(zip(rows, labels, strict=True), 1):
        print(f"{rank:3}  {label}  {c.split} {row:5}  {describe(scenes['scenes'][row])}")
    settings = {"query": c.query, "split": c.split, "weights": c.weights.name}
    if as_grid:
        plot.save(plot.grid(images[rows], captions=labels, title=c.query), c.out, settings)
    else:
        for rank, row in enumerate(rows):
            plot.save(images[row], c.out / f"{rank:04d}.png", settings)
    print(f"{len(rows)} of {len(images)} pictures: {c.out}")
