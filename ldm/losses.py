"""What a first stage is trained with: reconstruction, perception, a discriminator, KL or codes.

    KL    sum over pixels (|x - x'| + p) + 1e-6 KL, summed over z,   mean over the batch
    VQ    mean over pixels (|x - x'| + p) + codebook and commitment terms, means too
    both  + w g, g = -mean D(x'), w = 0.5 |grad r| / |grad g| at the decoder's last kernel

The KL weight belongs to the two sums: both grow with the picture, so it holds at every size.
latent-diffusion's contperceptual.py and vqperceptual.py.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.nn import GroupNorm, avg_pool2

PERCEPTUAL = "random-conv-distance-1"  # name of the distance below


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, var) || N(0, 1)) (B,): 0.5 sum (mean^2 + var - 1 - logvar)."""
    terms = jnp.square(mean) + jnp.exp(logvar) - 1 - logvar
    return 0.5 * terms.sum(tuple(range(1, mean.ndim)))


def vq_loss(z: jax.Array, codes: jax.Array, beta: float = 0.25, beta_on: str = "codebook"):
    """mean (sg(codes) - z)^2 and mean (codes - sg(z))^2, one of the two times beta.

    The first commits the encoder to its codes, the second moves the codes. beta_on "codebook": as
    the released models were trained (taming's legacy=True), so that the commitment weighs 1;
    "commitment": as in van den Oord et al. 2017, eq. 3.
    """
    stop = jax.lax.stop_gradient
    commitment = jnp.square(stop(codes) - z).mean()
    codebook = jnp.square(codes - stop(z)).mean()
    if beta_on == "codebook":
        return commitment + beta * codebook
    return beta * commitment + codebook


def perplexity(indices: jax.Array, codes: int) -> jax.Array:
    """exp(entropy of how often each code is used): `codes` if evenly, 1 if one alone."""
    share = jnp.bincount(indices.ravel(), length=codes) / indices.size
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())


@functools.cache
def _filters() -> tuple[np.ndarray, ...]:
    """Kernels (3, 3, in, out), blind to flat colour. Not those of metrics.scene_features, which
    judge: RandomState has another seed here."""
    rng, kernels, channels = np.random.RandomState(1), [], 3
    for width in (16, 24, 32):
        w = rng.standard_normal((3, 3, channels, width))
        w -= w.mean((0, 1), keepdims=True)
        w *= 3 / np.sqrt(np.square(w).sum((0, 1, 2), keepdims=True))
        kernels.append(w.astype(np.float32))
        channels = width
    return tuple(kernels)


def perceptual_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """How differently two batches (B, H, W, 3) look, (B,) in [0, 1]: LPIPS on random features.

    Three layers of fixed random filters with ReLU, halved in between; per layer the mean over
    places of the squared difference of features of unit length; of these half the mean.
    Paper: VGG16's features with learned weights (Zhang et al. 2018), which cannot be had offline.
    """
    h, total = jnp.concatenate([x, y]), 0.0
    for i, kernel in enumerate(_filters()):
        h = avg_pool2(h) if i else h
        spec = ("NHWC", "HWIO", "NHWC")
        h = nn.relu(jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=spec))
        # Where the picture is flat these features are 0, and 0.1 keeps noise from being all there
        # is to see; VGG's never are (LPIPS: 1e-10).
        unit = h / jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) + 0.1**2)
        a, b = jnp.split(unit, 2)
        total += jnp.square(a - b).sum(-1).mean((1, 2))
    return total / (2 * len(_filters()))


class PatchDiscriminator(nn.Module):
    """x (B, H, W, 3) -> logits (B, h, w, 1), each of a patch of 16, 34 or 70 pixels a side.

    That is with 1, 2 or 3 layers. 4x4 convolutions, `layers` of them of stride 2 and two of 1;
    widths up to 8 times the first. Isola et al. 2017; taming's NLayerDiscriminator.
    """

    width: int = 64
    layers: int = 3
    groups: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(features, stride, bias=True):
            init = nn.initializers.normal(0.02)
            return nn.Conv(features, (4, 4), stride, padding=1, use_bias=bias, kernel_init=init)

        h = nn.leaky_relu(conv(self.width, 2)(x), 0.2)
        for n in range(1, self.layers + 1):
            stride = 2 if n < self.layers else 1
            h = conv(self.width * min(2**n, 8), stride, bias=False)(h)
            # Paper: batch norm, whose running means are hidden state, and which lets a picture's
            # verdict depend on its neighbours in the batch.
            h = nn.leaky_relu(GroupNorm(self.groups)(h), 0.2)
        return conv(1, 1)(h)


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss: 0.5 (mean relu(1 - D(x)) + mean relu(1 + D(x')))."""
    return 0.5 * (nn.relu(1 - real).mean() + nn.relu(1 + fake).mean())


def adaptive_weight(
    reconstruction: Callable[[jax.Array], jax.Array],
    adversarial: Callable[[jax.Array], jax.Array],
    last_layer: Callable[[jax.Array], jax.Array],
    kernel: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """|d reconstruction / d kernel| / (|d adversarial / d kernel| + 1e-4), in [0, 1e4].

    Both losses take x' = last_layer(kernel). So the discriminator pulls as hard as the picture
    does, whatever their units. It has no gradient itself. axis_name: inside pmap, to compare the
    gradients of the whole batch. Esser et al. 2021, eq. 7.
    """
    x, pull = jax.vjp(last_layer, kernel)
    (r,), (g,) = pull(jax.grad(reconstruction)(x)), pull(jax.grad(adversarial)(x))
    if axis_name is not None:
        r, g = jax.lax.pmean((r, g), axis_name)
    ratio = jnp.sqrt(jnp.square(r).sum()) / (jnp.sqrt(jnp.square(g).sum()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, 1e4))
