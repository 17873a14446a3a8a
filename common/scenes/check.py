"""How far the reader can be trusted, on renders, on disturbed renders, and on what is no scene."""

from collections import Counter

import numpy as np
from scipy import ndimage

from common.scenes.reader import read, truth
from common.scenes.render import render
from common.scenes.scene import Scene, draw_scene

ATTRIBUTES = ("valid", "count", "shape", "colour", "size", "place", "background", "style")


def accuracy(scenes: list[Scene], readings: list[dict]) -> dict[str, float]:
    """Share of right answers per attribute, and over "all"; objects of a wrong count are wrong."""
    right, asked = Counter(), Counter()

    def note(kind: str, is_right: bool) -> None:
        for name in (kind, "all"):
            asked[name] += 1
            right[name] += is_right

    for scene, got in zip(scenes, readings, strict=True):
        want = truth(scene)
        for kind in ("valid", "background", "style"):
            note(kind, want[kind] == got[kind])
        same_count = len(want["objects"]) == len(got["objects"])
        note("count", same_count)
        for i, o in enumerate(want["objects"]):
            for kind in ("shape", "colour", "size", "place"):
                note(kind, same_count and got["objects"][i][kind] == o[kind])
    return {name: right[name] / asked[name] for name in (*ATTRIBUTES, "all")}


def fresh(num: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Random scenes, every fourth with a held-out pair, and their renders at 32 pixels."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, held_out=i % 4 == 0) for i in range(num)]
    return scenes, render(scenes, 32)


def disturbed(images: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The same pictures a little off, as a model may draw them; uint8 (N, 32, 32, 3) each."""

    def noisy(x):
        return x + rng.normal(0, 6, images.shape)

    def blurred(x, sigma=0.5):
        return ndimage.gaussian_filter(x, (0, sigma, sigma, 0))

    x = images.astype(np.float32)
    shifted = x * rng.uniform(0.96, 1.04, (len(x), 1, 1, 3))
    return {
        "noise of std 6": _uint8(noisy(x)),
        "blur, sigma 0.5": _uint8(blurred(x)),
        "blur, sigma 0.7": _uint8(blurred(x, 0.7)),
        "colour shift 4%": _uint8(shifted),
        "all three": _uint8(noisy(blurred(shifted))),
    }


def no_scenes(
    scenes: list[Scene], images: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Pictures that are no scene, made from (or like) renders uint8 (N, 32, 32, 3)."""
    n, shape = len(images), images.shape
    x = images.astype(np.float32)
    colour = rng.uniform(0, 255, (n, 1, 1, 3)) * np.ones((1, 32, 32, 1))
    slope = np.linspace(0.8, 1.1, 32).reshape(1, 32, 1, 1)
    patches = x.reshape(n, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, 8, 8, 3)
    shuffled = np.stack([p[rng.permutation(16)] for p in patches]).reshape(n, 4, 4, 8, 8, 3)
    empty = [Scene(s.background, s.style, (), s.texture) for s in scenes]
    return {
        "uniform noise": _uint8(rng.uniform(0, 255, shape)),
        "Gaussian noise, std 64": _uint8(rng.normal(128, 64, shape)),
        "Gaussian noise, std 12": _uint8(rng.normal(128, 12, shape)),
        "one colour": _uint8(colour),
        "gradient": _uint8(colour * slope),
        "background alone": render(empty, 32),
        "half grey": _uint8((x + 128) / 2),
        "half another scene": _uint8((x + np.roll(x, 1, axis=0)) / 2),
        "shuffled patches": _uint8(shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(shape)),
    }


def _uint8(x: np.ndarray) -> np.ndarray:
    return x.round().clip(0, 255).astype(np.uint8)


def table(num: int = 5000, seed: int = 99) -> str:
    """The reader measured on `num` fresh renders, as lines of text, in percent."""
    scenes, images = fresh(num, seed)
    rng = np.random.default_rng([seed, 1])
    lines = [f"{num} scenes, seed {seed}: percent right"]
    lines.append(f"{'':24}" + "".join(f"{name:>11}" for name in (*ATTRIBUTES, "all")))
    for name, pictures in {"fresh": images, **disturbed(images, rng)}.items():
        row = accuracy(scenes, read(pictures))
        lines.append(f"{name:24}" + "".join(f"{100 * row[k]:11.2f}" for k in row))
    lines.append("percent called invalid")
    for name, pictures in no_scenes(scenes, images, rng).items():
        lines.append(f"{name:24}{100 * np.mean([not r['valid'] for r in read(pictures)]):11.2f}")
    return "\n".join(lines)
