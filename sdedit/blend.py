"""Baselines for compositing that know nothing of pictures: gradients or frequencies are blended.

background, source uint8 (H, W, 3) of one size, edit_mask bool (H, W, 1): where the source shall
appear -> uint8 (H, W, 3). The naive baseline is np.where(edit_mask, source, background).
"""

import numpy as np
from scipy import sparse
from scipy.ndimage import convolve1d
from scipy.sparse.linalg import spsolve


def poisson(background: np.ndarray, source: np.ndarray, edit_mask: np.ndarray) -> np.ndarray:
    """Keep the source's gradients inside, the background's colours at the border and outside.

    laplacian f = laplacian source inside, f = background outside. Perez et al. 2003, eq. 7. The
    source is needed one pixel beyond the mask; with the pasted picture as source, the answer is
    the pasted picture.
    """
    H, W = background.shape[:2]
    inside = edit_mask.ravel() != 0
    if inside.all():
        raise ValueError("the edit mask covers the whole picture: no background to blend into")
    beside = lambda n: sparse.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(n, n))  # noqa: E731
    neighbours = sparse.kronsum(beside(W), beside(H)).tocsr()
    laplacian = (sparse.diags_array(neighbours.sum(1)) - neighbours).tocsr()[inside]
    f, g = (x.reshape(-1, 3).astype(float) for x in (background, source))
    target = laplacian @ g - laplacian[:, ~inside] @ f[~inside]
    f[inside] = spsolve(laplacian[:, inside].tocsc(), target)
    return np.rint(f.clip(0, 255)).astype(np.uint8).reshape(background.shape)


def laplacian_pyramid(
    background: np.ndarray, source: np.ndarray, edit_mask: np.ndarray, levels: int = 4
) -> np.ndarray:
    """Mix each band of frequencies under a mask as blurred as the band is coarse.

    L_i = G_i - expand(G_{i+1}); the sum of mask_i L_i(source) + (1 - mask_i) L_i(background).
    Burt & Adelson 1983, section 3.
    """

    def blur(x):
        for axis in (0, 1):
            x = convolve1d(x, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="mirror")
        return x

    def expand(x, shape):
        out = np.zeros((*shape[:2], x.shape[2]))
        out[::2, ::2] = x
        return 4 * blur(out)

    def gaussian(x):
        pyramid = [x.astype(float)]
        for _ in range(levels - 1):
            pyramid.append(blur(pyramid[-1])[::2, ::2])
        return pyramid

    def laplacian(x):
        g = gaussian(x)
        bands = [a - expand(b, a.shape) for a, b in zip(g, g[1:], strict=False)]
        return [*bands, g[-1]]

    masks = gaussian(edit_mask != 0)
    bands = zip(masks, laplacian(source), laplacian(background), strict=True)
    *bands, x = [m * s + (1 - m) * b for m, s, b in bands]
    for band in reversed(bands):
        x = band + expand(x, band.shape)
    return np.rint(x.clip(0, 255)).astype(np.uint8)
