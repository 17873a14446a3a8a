"""Scores for sets of pictures: distances between features, caption accuracy, preference, intervals.

Everything here is numpy in float64 and pure: the same sets and seed give the same number. The
distances take features (N, D) from any extractor; a number means something only beside numbers of
the same extractor, image size and N. With `scene_features` they are called FD-scenes and
KID-scenes, and are never to be compared with a published FID.
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

BLOCK = 1024  # rows of a pairwise table held in memory at once
SCENE_FEATURES = "random-conv-1"  # name of the extractor below, to be written beside its numbers


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between the Gaussians fitted to two sets of features.

    a (N, D), b (M, D)  ->  ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 sqrt(S_a S_b)),  in [0, inf)

    Covariances are unbiased. tr sqrt(S_a S_b) is the sum of the singular values of
    sqrt(S_a) sqrt(S_b), which needs no epsilon when a covariance is singular.
    Heusel et al. 2017 (arXiv:1706.08500), eq. 6.
    """
    a, b = _two_sets(a, b)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    (w_a, v_a), (w_b, v_b) = np.linalg.eigh(cov_a), np.linalg.eigh(cov_b)
    root_a, root_b = v_a * np.sqrt(w_a.clip(0)), v_b * np.sqrt(w_b.clip(0))
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    gap = a.mean(0) - b.mean(0)
    return float(max(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross, 0.0))


def kid(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 0, subset_size: int = 1000, seed: int = 0
) -> float:
    """Kernel distance: unbiased squared MMD with k(x, y) = (x.y / D + 1)^3; it may be negative.

    a (N, D), b (M, D)  ->  mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean k(a, b)

    The whole sets are used; with `subsets`, the mean over that many random subsets instead.
    Binkowski et al. 2018 (arXiv:1801.01401), section 4.
    """
    a, b = _two_sets(a, b)
    if not subsets:
        return _mmd2(a, b)
    size, rng = min(subset_size, len(a), len(b)), np.random.default_rng(seed)
    return float(np.mean([_mmd2(rng.permutation(a)[:size], rng.permutation(b)[:size])
                          for _ in range(subsets)]))  # fmt: skip


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision: share of fakes on the real manifold; recall: share of reals on the fake one.

    real (N, D), fake (M, D)  ->  (precision, recall), each in [0, 1]

    A set's manifold is the union of balls around its points, each reaching to the point's k-th
    nearest neighbour in the same set, itself not counted.
    Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.
    """
    real, fake = _two_sets(real, fake)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"each set needs more than k={k} points, got {len(real)} and {len(fake)}")
    return _covered(fake, real, k), _covered(real, fake, k)


def clip_score(image_embedding: np.ndarray, text_embedding: np.ndarray) -> float:
    """Mean cosine between each picture and its own text, times 100.

    image_embedding (N, D), text_embedding (N, D), any length  ->  [-100, 100]

    Hessel et al. 2021 (arXiv:2104.08718), eq. 1, with weight 100 and negative cosines kept.
    """
    x, y = (np.asarray(e, np.float64) for e in (image_embedding, text_embedding))
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"embeddings must both be (N, D), got {x.shape} and {y.shape}")
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(100 * np.mean((x * y).sum(1) / norms))


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a proportion (95% by default) that stays in [0, 1] and is honest at 0 and 1.

    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n),  p = successes / n

    Wilson 1927. With n = 0 nothing is known: (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    p, shrink = successes / n, 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / shrink
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / shrink
    low, high = float(centre - half), float(centre + half)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, *, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values (N,). Efron 1979."""
    values, rng = np.asarray(values, np.float64).ravel(), np.random.default_rng(seed)
    if not len(values):
        raise ValueError("a bootstrap interval needs at least one value")
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resampled(statistic: Callable, *sets: np.ndarray, seed: int = 0, resamples: int = 200) -> dict:
    """statistic(*sets) with its 95% bootstrap interval: {value, low, high, n}, n of the last set.

    sets: arrays (N, ...) whose rows are drawn again, each set by itself; statistic -> a number. The
    quantiles of the deviations from their own mean are put around the value: repeated rows make a
    Frechet distance too large, all of them alike. Efron 1979.
    """
    value, rng = statistic(*sets), np.random.default_rng(seed)
    again = lambda a: a[rng.integers(len(a), size=len(a))]  # noqa: E731
    found = np.array([statistic(*map(again, sets)) for _ in range(resamples)])
    low, high = value + np.quantile(found - found.mean(), [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high), "n": len(sets[-1])}


def difference(a: dict, b: dict) -> dict:
    """a - b of two numbers with intervals (from different pictures): {value, low, high}.

    low = a - b - sqrt((a - low_a)^2 + (high_b - b)^2), high alike: of two proportions with Wilson's
    intervals this is Newcombe 1998, method 10. Where a and b share captions it is on the safe side.
    """
    (x, low_x, high_x), (y, low_y, high_y) = ((number(e), e["low"], e["high"]) for e in (a, b))
    low, high = np.hypot(x - low_x, high_y - y), np.hypot(high_x - x, y - low_y)
    return {"value": x - y, "low": float(x - y - low), "high": float(x - y + high)}


def number(estimate: dict) -> float:
    """The number itself, of {value, low, high, n}, or of a share, {accuracy, low, high, n}."""
    return estimate["accuracy"] if "accuracy" in estimate else estimate["value"]


def elo(wins: np.ndarray, *, virtual_ties: float = 0.0) -> np.ndarray:
    """Preference ratings: the maximum likelihood of all duels, with mean zero.

    wins (M, M), wins[i, j] = times i beat j, a tie adding 1/2 to both  ->  ratings (M,)
    P(i beats j) = 1 / (1 + 10^((r_j - r_i) / 400))

    One who never lost has no finite rating; `virtual_ties` played by every pair keeps all finite.
    Nichol et al. 2022 (GLIDE, arXiv:2112.10741), Table 1.
    """
    wins = np.asarray(wins, np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or (wins < 0).any():
        raise ValueError(f"wins must be a square table of counts >= 0, got {wins.shape}")
    players = len(wins)
    wins = (wins + virtual_ties / 2) * (1 - np.eye(players))
    if (np.linalg.matrix_power((wins > 0) + np.eye(players), players) == 0).any():
        raise ValueError("some player never lost (or won) against the rest; pass virtual_ties=1")
    games = wins + wins.T

    r = np.zeros(players)
    for _ in range(1000):  # Newton's method on the concave log-likelihood, in steps of at most 1
        p = 1 / (1 + np.exp(r[None, :] - r[:, None]))
        pairs = games * p * (1 - p)
        slope = (wins - games * p).sum(1)
        curvature = np.diag(pairs.sum(1)) - pairs + 1  # the 1 only moves what all share
        step = np.linalg.solve(curvature, slope)
        r += step / max(1.0, abs(step).max())
        if abs(step).max() < 1e-10:
            break
    return (r - r.mean()) * 400 / np.log(10)


def caption_accuracy(captions: list[str], images: np.ndarray) -> dict[str, dict]:
    """How often pictures show what their captions claim, per attribute, refereed by the reader.

    captions: N texts; images (N, H, W, 3) uint8  ->  {attribute: {accuracy, low, high, n}}

    An attribute counts only where its caption names it (n times); low and high are Wilson's 95%.
    "valid" is the share the reader takes for a scene at all, "all" that with every claim true.
    """
    from common.scenes.captions import agrees, claims
    from common.scenes.reader import read

    if len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    verdicts: dict[str, list[bool]] = {}
    for text, reading in zip(captions, read(images), strict=True):
        for name, right in agrees(claims(text), reading).items():
            verdicts.setdefault(name, []).append(bool(right))
    return {name: proportion(sum(v), len(v)) for name, v in verdicts.items()}


def scene_features(images: np.ndarray) -> np.ndarray:
    """Describe pictures by 120 numbers, without any training: a crude stand-in for Inception.

    images (N, H, W, 3) uint8, H and W multiples of 4  ->  (N, 120) float64

    48 mean colours of a 4 x 4 grid of cells, then three layers of fixed random 3x3 filters with
    ReLU, blind to flat colour (16, 24, 32 channels, size halved in between), each averaged over
    the picture, as log(0.03 + mean): edges, texture, a little of form. They feel colour, layout,
    blur and noise well, the identity of shapes poorly: caption_accuracy is the judge of that.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    if images.shape[1] % 4 or images.shape[2] % 4:
        raise ValueError(f"image sides must be multiples of 4, got {images.shape[1:3]}")
    rng, filters, channels = np.random.RandomState(0), [], 3  # RandomState: its stream is frozen
    for width in (16, 24, 32):
        w = rng.standard_normal((channels, 9, width))
        w = (w - w.mean(1, keepdims=True)).reshape(-1, width)
        filters.append((3 * w / np.linalg.norm(w, axis=0)).astype(np.float32))
        channels = width
    parts = [_describe(images[i : i + 128], filters) for i in range(0, len(images), 128)]
    return np.concatenate(parts or [np.zeros((0, 120))]).astype(np.float64)


def _describe(images: np.ndarray, filters: list[np.ndarray]) -> np.ndarray:
    x = images.astype(np.float32) / 127.5 - 1
    found = [_shrink(x, images.shape[1] // 4, images.shape[2] // 4).reshape(len(x), -1)]
    for w in filters:
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        x = np.maximum(windows.reshape(*windows.shape[:3], -1) @ w, 0)
        found.append(np.log(0.03 + x.mean((1, 2))))
        x = _shrink(x, 2, 2)
    return np.concatenate(found, 1)


def _shrink(x: np.ndarray, by_h: int, by_w: int) -> np.ndarray:
    b, h, w, c = x.shape
    x = x[:, : h // by_h * by_h, : w // by_w * by_w]
    return x.reshape(b, h // by_h, by_h, w // by_w, by_w, c).mean((2, 4))


def _two_sets(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D), N, M >= 2: {a.shape}, {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold NaN or infinity")
    return a, b


def _mmd2(a: np.ndarray, b: np.ndarray) -> float:
    def total(x, y):
        return sum((((x[i : i + BLOCK] @ y.T) / x.shape[1] + 1) ** 3).sum()
                   for i in range(0, len(x), BLOCK))  # fmt: skip

    def within(x):
        self_pairs = (((x * x).sum(1) / x.shape[1] + 1) ** 3).sum()
        return (total(x, x) - self_pairs) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b)))


def _covered(points: np.ndarray, support: np.ndarray, k: int) -> float:
    inside = np.zeros(len(points), bool)
    for block in np.split(support, range(BLOCK, len(support), BLOCK)):
        radii = np.partition(cdist(block, support), k, axis=1)[:, k]  # 0 is the point itself
        inside |= (cdist(points, block) <= radii).any(1)
    return float(inside.mean())


def proportion(successes: int, n: int) -> dict:
    """{accuracy, low, high, n}: a share with Wilson's 95% interval."""
    low, high = wilson_interval(successes, n)
    return {"accuracy": successes / n, "low": low, "high": high, "n": n}
