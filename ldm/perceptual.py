"""LPIPS as published: VGG16 and learned weights, from two files that the user has.

    torchvision's vgg16-397923af.pth   features.0.weight (64, 3, 3, 3), ...
    LPIPS's vgg.pth, version 0.1       lin0.model.1.weight (1, 64, 1, 1), ..., lin4

Zhang et al. 2018; taming-transformers' lpips.py. Without them, losses.perceptual_distance.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common.checkpoint import CheckpointError
from common.tensorfile import load_tensors

NAME = "lpips-vgg16"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of x in [-1, 1]
# Numbers of torchvision's convolutions: five stages, halved between them; each ends in a feature.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)


def load(vgg: Path, lpips: Path) -> dict[str, np.ndarray]:
    """Kernels (3, 3, in, out), biases (out,) and the five layers' weights (C,), by official names.

    CheckpointError, in one line: not such files. What else VGG has, its classifier, is left.
    """
    found, fan_in = {}, 3
    tensors = {path: load_tensors(path) for path in {vgg, lpips}}

    def take(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
        x = tensors[path].get(name, np.empty(0))
        if x.shape != shape:
            raise CheckpointError(f"{path}: {name} is {list(x.shape)}, not {list(shape)}; give "
                                  "torchvision's vgg16 and LPIPS's vgg.pth")  # fmt: skip
        return np.array(x, np.float32)

    for i, (stage, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for n in stage:
            kernel = take(vgg, f"features.{n}.weight", (width, fan_in, 3, 3))
            found[f"kernel{n}"] = kernel.transpose(2, 3, 1, 0)
            found[f"bias{n}"] = take(vgg, f"features.{n}.bias", (width,))
            fan_in = width
        found[f"lin{i}"] = take(lpips, f"lin{i}.model.1.weight", (1, width, 1, 1)).ravel()
    return found


def distance(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """LPIPS of two batches (B, H, W, 3) in [-1, 1], (B,) at least 0; H and W at least 16.

    Sum over layers of the mean over places of w . (a - b)^2, a and b of unit length (eps 1e-10).
    """
    shift, scale = (jnp.array(a).reshape(1, 1, 1, 3) for a in (SHIFT, SCALE))
    h, total = (jnp.concatenate([x, y]) - shift) / scale, 0.0
    for i, stage in enumerate(STAGES):
        if i:
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for n in stage:
            spec = ("NHWC", "HWIO", "NHWC")
            h = jax.lax.conv_general_dilated(h, params[f"kernel{n}"], (1, 1), "SAME",
                                             dimension_numbers=spec)  # fmt: skip
            h = jax.nn.relu(h + params[f"bias{n}"].reshape(1, 1, 1, -1))
        # Paper: + 1e-10 outside of the root, whose gradient is not finite where all features are 0.
        unit = h / jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) + 1e-20)
        a, b = jnp.split(unit, 2)
        total += (jnp.square(a - b) @ params[f"lin{i}"]).mean((1, 2))
    return total
