"""What one can do with a picture's two latents: z_i, what CLIP sees, and x_T, all the rest.

x_T is found by DDIM run backwards with the decoder conditioned on z_i; from (z_i, x_T) the decoder
gives the picture back. Then either is changed: more noise (variations), a second picture
(interpolations), a second caption (text diffs), fewer components of z_i. Ramesh et al. 2022,
sections 3 and 4. The decoder reads no caption here, unless a text diff gives it the new one.
"""

from collections.abc import Sequence

import numpy as np

from common.clip import normalise
from unclip.model import DecoderConfig
from unclip.sample import decode

STEPS = 100  # of the inversion and back: each step takes eps as constant, which is its only error
SMALL_ANGLE = 1e-4  # radians: below, the straight line is the arc to float32's last digit


def slerp(a: np.ndarray, b: np.ndarray, theta: float | np.ndarray) -> np.ndarray:
    """Spherical interpolation: (sin((1 - theta) w) a + sin(theta w) b) / sin(w), w their angle.

    a, b (B, ...), theta a number or (B,): 0 is a, 1 is b. A rotation in the plane of both: if a and
    b have one length, so have all in between. Opposite vectors have no such plane: ValueError.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    flat = lambda v: v.reshape(len(v), -1)  # noqa: E731
    shape = (-1,) + (1,) * (a.ndim - 1)
    norms = np.linalg.norm(flat(a), axis=1) * np.linalg.norm(flat(b), axis=1)
    cosine = (flat(a) * flat(b)).sum(1) / norms
    w = np.arccos(cosine.clip(-1, 1)).reshape(shape)
    if (np.pi - w < SMALL_ANGLE).any():
        raise ValueError("opposite vectors cannot be interpolated: no arc between them is shortest")
    theta = np.broadcast_to(np.asarray(theta, np.float64), (len(a),)).reshape(shape)
    near = w < SMALL_ANGLE
    safe = np.where(near, 1.0, w)
    to_a = np.where(near, 1 - theta, np.sin((1 - theta) * safe) / np.sin(safe))
    to_b = np.where(near, theta, np.sin(theta * safe) / np.sin(safe))
    return np.float32(to_a * a + to_b * b)


def text_diff(
    z: np.ndarray, text_embedding: np.ndarray, source: np.ndarray, theta: float | np.ndarray
) -> np.ndarray:
    """Rotate z_i towards what changes between two texts: slerp(z_i, z_d, theta), theta 0 is z_i.

    z_d = (z_t - z_t0) / |z_t - z_t0|; all (B, D) of length 1. source: z_t0, the embedding of a
    caption of the picture, or of a neutral one ("a photo").
    """
    diff = np.asarray(text_embedding, np.float64) - source
    if (np.linalg.norm(diff, axis=1) < 1e-6).any():
        raise ValueError("both texts have one embedding: nothing is to be changed")
    return slerp(z, diff / np.linalg.norm(diff, axis=1, keepdims=True), theta)


def invert(
    config: DecoderConfig, params: dict, images: np.ndarray, z: np.ndarray, steps: int = STEPS,
    **options,
) -> np.ndarray:  # fmt: skip
    """Pictures uint8 (B, H, W, 3) and their z_i (B, D) -> x_T (B, H, W, 3).

    Without guidance and without clipping, both of which `reconstruct` then does without, too.
    """
    x0 = np.float32(images) / 127.5 - 1
    return decode(config, params, z, x=x0, guidance_scale=1.0, clip=False, backwards=True,
                  steps=steps, **options)  # fmt: skip


def reconstruct(
    config: DecoderConfig, params: dict, z: np.ndarray, x: np.ndarray, *, eta: float = 0.0,
    steps: int = STEPS, **options,
) -> np.ndarray:  # fmt: skip
    """(z_i, x_T) -> pictures uint8 (B, H, W, 3); eta = 0 gives back what was inverted."""
    options = {"guidance_scale": 1.0, "clip": False} | options
    return decode(config, params, z, x=x, eta=eta, steps=steps, **options)


def vary(
    config: DecoderConfig, params: dict, z: np.ndarray, x: np.ndarray, etas: Sequence[float],
    num: int, seed: int = 0, **options,
) -> np.ndarray:  # fmt: skip
    """Variations of one picture, z (D,) and x (H, W, 3): uint8 (etas, num, H, W, 3).

    What stays at eta = 1 is in z_i; what stays at eta = 0 alone was in x_T (Figure 3).
    """
    many = lambda a: np.repeat(a[None], num, axis=0)  # noqa: E731
    each = [reconstruct(config, params, many(z), many(x), eta=e, seed=seed, **options)
            for e in etas]  # fmt: skip
    return np.stack(each)


def interpolate(
    config: DecoderConfig, params: dict, z: np.ndarray, x: np.ndarray, thetas: Sequence[float],
    fixed: bool = False, **options,
) -> np.ndarray:  # fmt: skip
    """From one picture to another, z (2, D) and x (2, H, W, 3): uint8 (thetas, H, W, 3).

    x_T turns with z_i, or is `fixed` at x[0]: one x_T for the whole row (Figure 4).
    """
    thetas = np.asarray(thetas)
    ends = lambda a: (np.repeat(a[i : i + 1], len(thetas), axis=0) for i in (0, 1))  # noqa: E731
    xs = np.repeat(x[:1], len(thetas), axis=0) if fixed else slerp(*ends(x), thetas)
    return reconstruct(config, params, slerp(*ends(z), thetas), xs, **options)


class Components:
    """PCA of image embeddings: what the first k components of z_i still hold (Figure 7)."""

    def __init__(self, z: np.ndarray):
        from sklearn.decomposition import PCA  # here: it takes a second to import

        self.pca = PCA(svd_solver="full").fit(z)

    def keep(self, z: np.ndarray, k: int) -> np.ndarray:
        """z (B, D) -> its projection on the mean and the first k components, of length 1."""
        axes = self.pca.components_[:k]
        kept = (z - self.pca.mean_) @ axes.T @ axes + self.pca.mean_
        return np.asarray(normalise(np.float32(kept)))
