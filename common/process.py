"""What a network may predict, the exact posterior of one step, and the loss of a learned variance.

The one currency is `eps`. Networks that predict x0, velocity or score are converted once, at their
border, with the functions here; guidance and samplers then never ask what was predicted.

Paper: official code with x0 for its currency keeps it where hardly any signal is left. Here x0 goes
through eps and back, in float32, which moves it by about 1e-7 noise / signal: at the cosine's T by
2e-3, and by 1e-2 when guided 4 fold (Karlo's prior). The later steps forget most of that.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.schedule import Schedule


class Prediction(NamedTuple):
    """What a denoiser returns: eps (B, ...), and v (B, ...) if the variance is learned, else None.

    v says where log variance lies: -1 at the smallest ("small"), +1 at the largest ("large").
    """

    eps: jax.Array
    v: jax.Array | None = None


def x0_from_eps(schedule: Schedule, x: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x0 = (x_t - noise_t eps) / signal_t."""
    signal, noise = schedule.at(t, x.ndim)
    return (x - noise * eps) / signal


def eps_from_x0(schedule: Schedule, x: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """eps = (x_t - signal_t x0) / noise_t, for t >= 1."""
    signal, noise = schedule.at(t, x.ndim)
    return (x - signal * x0) / noise


def velocity(schedule: Schedule, x0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """velocity = signal_t eps - noise_t x0 (Salimans & Ho 2022, section 4)."""
    signal, noise = schedule.at(t, x0.ndim)
    return signal * eps - noise * x0


def eps_from_velocity(
    schedule: Schedule, x: jax.Array, t: jax.Array, velocity: jax.Array
) -> jax.Array:
    """eps = signal_t velocity + noise_t x_t; holds where signal^2 + noise^2 = 1."""
    signal, noise = schedule.at(t, x.ndim)
    return signal * velocity + noise * x


def target(
    predicts: str, schedule: Schedule, x0: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
    """What a network learns that predicts "eps", "velocity" or "x0"."""
    return {"eps": eps, "velocity": velocity(schedule, x0, t, eps), "x0": x0}[predicts]


def eps_from(
    predicts: str, schedule: Schedule, x: jax.Array, t: jax.Array, output: jax.Array
) -> jax.Array:
    """eps, from the output of a network that predicts "eps", "velocity" or "x0"."""
    if predicts == "velocity":
        return eps_from_velocity(schedule, x, t, output)
    return eps_from_x0(schedule, x, t, output) if predicts == "x0" else output


def score_from_eps(schedule: Schedule, t: jax.Array, eps: jax.Array) -> jax.Array:
    """score = grad_x log p(x_t) = -eps / noise_t, for t >= 1 (Song et al. 2021)."""
    return -eps / schedule.at(t, eps.ndim)[1]


def eps_from_score(schedule: Schedule, t: jax.Array, score: jax.Array) -> jax.Array:
    """eps = -noise_t score."""
    return -schedule.at(t, score.ndim)[1] * score


def transition_variance(schedule: Schedule, t: jax.Array, s: jax.Array, ndim: int) -> jax.Array:
    """Variance of q(x_t | x_s), s < t: noise_t^2 - (signal_t / signal_s)^2 noise_s^2.

    beta_t when s = t - 1. Written with noise, not as 1 - ratio^2, which loses its digits in
    float32 where there is little noise.
    """
    signal_t, noise_t = schedule.at(t, ndim)
    signal_s, noise_s = schedule.at(s, ndim)
    return noise_t**2 - (signal_t / signal_s) ** 2 * noise_s**2


def posterior(
    schedule: Schedule, x0: jax.Array, x: jax.Array, t: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean (B, ...) and variance (B, 1, ...) of q(x_s | x_t, x_0) for any s < t.

    variance = beta noise_s^2 / noise_t^2,
    mean = signal_s beta / noise_t^2 x0 + (signal_t / signal_s) noise_s^2 / noise_t^2 x_t,
    beta the transition variance. Ho et al. 2020, eq. 6-7, for VP and VE and any stride.
    """
    signal_t, noise_t = schedule.at(t, x.ndim)
    signal_s, noise_s = schedule.at(s, x.ndim)
    beta = transition_variance(schedule, t, s, x.ndim)
    mean = (signal_s * beta * x0 + signal_t / signal_s * noise_s**2 * x) / noise_t**2
    return mean, beta * noise_s**2 / noise_t**2


def log_variance(
    schedule: Schedule,
    t: jax.Array,
    s: jax.Array,
    ndim: int,
    variance: str,
    v: jax.Array | None,
    before: jax.Array | None = None,
) -> jax.Array:
    """Log variance of the reverse step t -> s: "small", "large", or "learned" between the two.

    small: log of the posterior variance; large: log of the transition variance (ADM's FIXED_SMALL
    and FIXED_LARGE); learned: f large + (1 - f) small with f = (v + 1) / 2, v not clamped
    (Nichol & Dhariwal 2021, eq. 15). At s = 0 the small one is log 0 and is replaced by that of
    the step before -> t, by default 2t -> t: ADM's "index 1 for index 0", which without respacing
    is 2 -> 1; by the large one if T -> 0 is the only step. No noise is added there.
    """
    t, s = jnp.asarray(t), jnp.asarray(s)
    first = s == 0
    before = jnp.minimum(2 * t, schedule.T) if before is None else before
    t_low, s_low = jnp.where(first, before, t), jnp.where(first, t, s)
    large = transition_variance(schedule, t, s, ndim)
    ratio = schedule.at(s_low, ndim)[1] / schedule.at(t_low, ndim)[1]
    small = jnp.log(transition_variance(schedule, t_low, s_low, ndim) * ratio**2)
    small = jnp.where(jnp.isneginf(small), jnp.log(large), small)
    if variance == "small":
        return small
    if variance == "large":
        # ADM puts the small variance of index 1 in front of the betas.
        first = first.reshape(first.shape + (1,) * (ndim - first.ndim))
        return jnp.where(first, small, jnp.log(large))
    if variance != "learned" or v is None:
        raise ValueError(f"variance must be small, large or learned (with v), not {variance!r}")
    f = (v + 1) / 2
    return f * jnp.log(large) + (1 - f) * small


def normal_kl(mean1, log_var1, mean2, log_var2) -> jax.Array:
    """KL(N1 || N2) elementwise, in nats: 0.5 (lv2 - lv1 - 1 + e^(lv1-lv2) + (m1-m2)^2 e^-lv2)."""
    return 0.5 * (
        log_var2
        - log_var1
        - 1
        + jnp.exp(log_var1 - log_var2)
        + (mean1 - mean2) ** 2 * jnp.exp(-log_var2)
    )


def discretized_nll(x0: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """-log p of 8-bit pixels x0 in [-1, 1] under a Gaussian, elementwise, in nats.

    Bins of half-width 1/255, open at both ends; the normal CDF by its tanh approximation, as in
    ADM's losses.py (so that numbers agree with theirs).
    """

    def cdf(z):
        return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = cdf((x0 - mean + 1 / 255) * jnp.exp(-log_std))
    lower = cdf((x0 - mean - 1 / 255) * jnp.exp(-log_std))
    probability = jnp.where(x0 < -0.999, upper, jnp.where(x0 > 0.999, 1 - lower, upper - lower))
    return -jnp.log(jnp.maximum(probability, 1e-12))


def variational_bound(
    schedule: Schedule, x0: jax.Array, x: jax.Array, t: jax.Array, prediction: Prediction
) -> jax.Array:
    """One term of the variational bound, (B,) bits per dimension: trains the variance alone.

    KL(q(x_{t-1} | x_t, x0) || p) for t > 1, discretised likelihood at t = 1. eps is stopped, so
    only v learns from it; x0 is not clipped. Nichol & Dhariwal 2021, section 3.1.
    """
    s = t - 1
    eps = jax.lax.stop_gradient(prediction.eps)
    mean, _ = posterior(schedule, x0_from_eps(schedule, x, t, eps), x, t, s)
    log_var = log_variance(schedule, t, s, x.ndim, "learned", prediction.v)
    true_mean, _ = posterior(schedule, x0, x, t, s)
    true_log_var = log_variance(schedule, t, s, x.ndim, "small", None)
    kl = normal_kl(true_mean, true_log_var, mean, log_var)
    nll = discretized_nll(x0, mean, 0.5 * log_var)
    axes = tuple(range(1, x.ndim))
    return jnp.where(s == 0, nll.mean(axes), kl.mean(axes)) / math.log(2)


def to_float(images: jax.Array) -> jax.Array:
    """Pixels uint8 -> float32 in [-1, 1], inside compiled code."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(x: jax.Array) -> jax.Array:
    """[-1, 1] -> uint8, clipped and rounded, as in GLIDE's notebooks (ADM truncates)."""
    return jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)
