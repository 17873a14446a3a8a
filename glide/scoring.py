"""What the studies measure with, and how a claim of the paper is held against the numbers.

Every number of a row is a dict with its 95% interval: a share is {accuracy, low, high, n}, any
other {value, low, high, n}. A claim is a difference that the paper says is above zero.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import data, metrics
from common.scenes import reader
from common.scenes.captions import agrees, caption, claims


def trained(path: Path, command: str) -> Path:
    """The weights that `command` leaves at path; ValueError says so if they are not there."""
    if not path.is_file():
        raise ValueError(f"no weights at {path}: `python -m glide {command}` makes them")
    return path


def made_by(name: str, metadata: dict) -> dict:
    """A row that says which weights a study took beside c.weights, and how they were made."""
    return {"weights_of": name, "digest": metadata["digest"], "recipe": metadata["recipe"]}


def asked(c, size: int, split: str = "test") -> tuple[list[str], np.ndarray]:
    """c.num captions of pictures that training never saw, and other real pictures."""
    scenes, rng = data.load("scenes", split, size=size), np.random.default_rng(c.seed)
    texts = [caption(scene, rng) for scene in scenes["scenes"][: c.num]]
    return texts, scenes["image"][c.num :]


def quality(images: np.ndarray, real: np.ndarray) -> dict[str, dict]:
    """FD-scenes, precision and recall (k = 3) of pictures uint8 against as many real ones and more.

    FD-scenes falls with the number of pictures: compare only at equal n. The intervals of precision
    and recall are of the counted set, the other one's manifold being given.
    """
    n = len(images)
    fakes, reals = metrics.scene_features(images), metrics.scene_features(real[: 2 * n])
    shares = metrics.precision_recall(reals[:n], fakes)
    precision, recall = (metrics.proportion(round(share * n), n) for share in shares)
    fd = metrics.resampled(metrics.frechet_distance, reals, fakes)
    return {"fd_scenes": fd, "precision": precision, "recall": recall}


def measure(texts: list[str], images: np.ndarray, real: np.ndarray) -> dict[str, dict]:
    """quality, and how many captions are true of their pictures, by the reader."""
    found = metrics.caption_accuracy(texts, images)
    return quality(images, real) | {k: found[k] for k in ("valid", "colour", "shape_colour")}


def singles(texts: Sequence[str]) -> np.ndarray:
    """Which captions name one object alone, bool."""
    return np.array([len(claims(text)["objects"]) == 1 for text in texts])


def tilted(scale: float, rho: float, K: int) -> float:
    """Share of the named value under p(x) p(y | x)^scale, if y is wrong with probability rho.

    (1 - rho)^s / ((1 - rho)^s + (K - 1) (rho / (K - 1))^s): what sampling the tilted law exactly
    would give; classifier-free guidance samples something else. At s = 0 it is 1 / K.
    """
    right, wrong = (1 - rho) ** scale, (K - 1) * (rho / (K - 1)) ** scale
    return right / (right + wrong)


def preferences(texts: list[str], drawn: dict[str, np.ndarray], resamples: int = 200) -> list[dict]:
    """Elo of the players by the reader, where the paper asks people; ties 1/2, as there.

    realism: the picture whose objects are nearer to what is rendered (the reader's misfit) wins, a
    scene against what is none; caption: the one of which more claims hold. One tie of every pair is
    added. Intervals: captions drawn again. GLIDE, Table 1.
    """
    points = {"realism": [], "caption": []}
    for images in drawn.values():
        readings, measured = reader.read(images), reader.measure(images)
        off = [max(g["misfit"].min() for g in m["regions"]) if r["valid"] else np.inf
               for r, m in zip(readings, measured, strict=True)]  # fmt: skip
        true = [sum(agrees(claims(t), r).values()) for t, r in zip(texts, readings, strict=True)]
        points["realism"].append(-np.array(off))
        points["caption"].append(true)

    def ratings(scores):  # (captions, players)
        a, b = scores[:, :, None], scores[:, None]
        return metrics.elo((a > b).sum(0) + 0.5 * (a == b).sum(0), virtual_ties=1)

    rows = [{"player": name} for name in drawn]
    for question, scores in points.items():
        scores = np.transpose(scores)
        for i, row in enumerate(rows):
            of_one = lambda scores, i=i: ratings(scores)[i]  # noqa: E731
            row[f"elo_{question}"] = metrics.resampled(of_one, scores, resamples=resamples)
    return rows


def claim(text: str, a: dict, b: dict) -> dict:
    """The paper's claim that a > b: the difference, its interval, and does it hold? yes, no, open

    (open: zero is inside the interval). Where less is better, call it with b and a.
    """
    found = metrics.difference(a, b)
    holds = "yes" if found["low"] > 0 else "no" if found["high"] < 0 else "open"
    return {"claim": text, **found, "holds": holds}


def band(rows: list[dict], x: str, y: str) -> tuple[list, ...]:
    """A line of plot.curve: x (an option, or a number's value), and y with its interval."""
    at = [metrics.number(r[x]) if isinstance(r[x], dict) else r[x] for r in rows]
    values = [(metrics.number(r[y]), r[y]["low"], r[y]["high"]) for r in rows]
    return at, *map(list, zip(*values, strict=True))


def line(row: dict) -> str:
    """A row's numbers, for whoever waits."""
    numbers = {k: metrics.number(v) for k, v in row.items() if isinstance(v, dict)}
    return "  ".join(f"{k} {v:.3f}" for k, v in numbers.items() if math.isfinite(v))
