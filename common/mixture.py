"""An exact world: a Gaussian mixture whose every diffusion quantity has a closed form.

No network, no training: eps, log p(x_t) and log p(y | x_t) are exact, so that guidance and samplers
can be checked to rounding error and a lesson can show what is true before anything is learned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.process import Prediction
from common.schedule import Schedule

NULL = -1  # the label that stands for "no condition"


class Mixture(NamedTuple):
    """Isotropic components: weight (K,) summing to 1, mean (K, D), std (K,), label (K,) int32.

    Components may share a label: p(x0 | y) is then itself a mixture.
    """

    weight: jax.Array
    mean: jax.Array
    std: jax.Array
    label: jax.Array

    def sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """n draws of (x0 (n, D), label (n,))."""
        pick, noise = jax.random.split(key)
        k = jax.random.categorical(pick, jnp.log(self.weight), shape=(n,))
        eps = jax.random.normal(noise, (n, self.mean.shape[1]))
        return self.mean[k] + self.std[k][:, None] * eps, self.label[k]

    def _log_joint(self, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
        """log p(component, x_t) (B, K): x_t ~ N(signal mean_k, signal^2 std_k^2 + noise^2)."""
        signal, noise = schedule.at(t, 2)  # (B, 1)
        variance = (signal * self.std[None]) ** 2 + noise**2  # (B, K)
        distance = ((x[:, None] - signal[..., None] * self.mean[None]) ** 2).sum(-1)
        D = x.shape[-1]
        log_normal = -0.5 * (distance / variance + D * jnp.log(2 * jnp.pi * variance))
        return jnp.log(self.weight)[None] + log_normal

    def _of(self, label: jax.Array) -> jax.Array:
        """(B, K): which components belong to each label; all of them for NULL."""
        return (self.label[None] == label[:, None]) | (label[:, None] == NULL)

    def log_density(self, schedule: Schedule, x: jax.Array, t: jax.Array, label: jax.Array):
        """log p(x_t, y) (B,) of label (B,); log p(x_t) where the label is NULL."""
        joint = self._log_joint(schedule, x, t)
        return jax.nn.logsumexp(joint, axis=-1, where=self._of(label))

    def denoiser(self, schedule: Schedule):
        """The exact denoiser: cond = {"label": (B,)}, eps = -noise_t grad_x log p(x_t, y)."""

        def denoise(x: jax.Array, t: jax.Array, cond: Any) -> Prediction:
            total = lambda x: self.log_density(schedule, x, t, cond["label"]).sum()  # noqa: E731
            return Prediction(-schedule.at(t, x.ndim)[1] * jax.grad(total)(x))

        return denoise

    def log_prob(self, schedule: Schedule):
        """The exact noise-aware classifier: log_prob(x, t, cond) = log p(y | x_t), (B,)."""

        def log_prob(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
            label = cond["label"]
            return self.log_density(schedule, x, t, label) - self.log_density(
                schedule, x, t, jnp.full_like(label, NULL)
            )

        return log_prob
