"""Proposition 1, the bound on how far SDEdit goes from its guide, on an exact mixture."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from common import metrics
from common.mixture import NULL, Mixture
from common.process import Prediction
from sdedit import sde


def bounds(sigma: float, C: float, d: int, delta: float) -> tuple[float, float]:
    """(Proposition 1 as printed, one that holds) of ||guide - result||^2.

    If ||score||^2 <= C then with probability 1 - delta it is at most
    sigma^2 (C sigma^2 + d + 2 sqrt(-d ln delta) - 2 ln delta), sigma that of t0, says the paper.
    Paper: that counts the noise of the steps, sigma^2 in all, but not that of the start, as much
    again, nor the product of drift and noise. Both count in (C^(1/2) sigma^2 + sqrt(2) sigma |z|)^2
    with |z|^2 bounded as before.
    """
    noise = d + 2 * math.sqrt(-d * math.log(delta)) - 2 * math.log(delta)
    return sigma**2 * (C * sigma**2 + noise), sigma**2 * (sigma * C**0.5 + (2 * noise) ** 0.5) ** 2


def proposition1(seed: int, n: int = 2000, d: int = 16, steps: int = 50) -> list[dict]:
    """How often both bounds are broken, with the exact score of a mixture and with none at all.

    The score is shortened to ||score||^2 <= C where it is longer, so that what is assumed is true;
    C is d / std^2, that of a typical point of a component.
    """
    mean_key, data_key, key = jax.random.split(jax.random.key(seed), 3)
    means = jax.random.uniform(mean_key, (4, d), minval=-0.8, maxval=0.8)
    mixture = Mixture(jnp.full(4, 0.25), means, jnp.full(4, 0.2), jnp.arange(4))
    guides = mixture.sample(data_key, n)[0] + 0.3  # near the data, but not of it

    @jax.jit
    def distance(schedule, C, key):
        exact = mixture.denoiser(schedule)

        def denoise(x, t, cond):
            eps = exact(x, t, cond).eps
            longest = schedule.at(t, 2)[1] * jnp.sqrt(C)
            length = jnp.linalg.norm(eps, axis=-1, keepdims=True)
            return Prediction(eps * jnp.minimum(1, longest / length))

        cond = {"label": jnp.full(n, NULL)}
        return ((sde.edit(denoise, schedule, guides, cond, key, last="paper") - guides) ** 2).sum(1)

    rows = []
    for t0 in (0.1, 0.2, 0.3, 0.5):
        schedule = sde.ve(t0, steps)
        for score, C in (("exact", d / 0.2**2), ("none", 0.0)):
            key, run_key = jax.random.split(key)
            far = np.asarray(distance(schedule, C, run_key))
            for delta in (0.5, 0.1, 0.01):
                both = bounds(float(schedule.noise[-1]), C, d, delta)
                broken = [int((far > bound).sum()) for bound in both]
                low, high = zip(*(metrics.wilson_interval(b, n) for b in broken), strict=True)
                rows.append({"t0": t0, "score": score, "delta": delta, "n": n,
                             "mean_over_bound": [float(far.mean() / bound) for bound in both],
                             "broken": [b / n for b in broken],
                             "low": low, "high": high})  # fmt: skip
    return rows
