"""Multistep samplers: better directions from the predictions already made, one call a step.

Both are doors of sampler.py. They are deterministic, and exact for more curved paths than DDIM is,
so that 20 steps do what DDIM needs 50 for.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from common.guidance import Denoiser
from common.process import eps_from_x0, x0_from_eps
from common.schedule import Schedule

# Adams-Bashforth weights of (newest, ..., oldest eps) by how many old ones there are.
ADAMS = (
    (1, 0, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _predict(denoise, schedule, x, t, cond, x0_fn):
    """(x0, eps) at scalar time t, eps re-derived where x0_fn has moved x0."""
    eps = denoise(x, jnp.full(x.shape[:1], t), cond).eps
    x0 = x0_from_eps(schedule, x, t, eps)
    if x0_fn is None:
        return x0, eps
    x0 = x0_fn(x0)
    return x0, eps_from_x0(schedule, x, t, x0)


def _move(schedule, x, t, s, eps):
    """The DDIM step t -> s along eps."""
    signal, noise = schedule.at(s, x.ndim)
    return signal * x0_from_eps(schedule, x, t, eps) + noise * eps


def plms(
    denoise: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    ts: jax.Array,
    cond: Any,
    *,
    x0_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Pseudo linear multistep: DDIM along an Adams-Bashforth mean of the last four eps.

    x (B, ...) at ts[0] -> at ts[-1]. The first step is a pseudo Heun one: it asks the network once
    more at the next time and takes the mean, the one extra call in all.
    Liu et al. 2022 (PNDM), eq. 12; latent-diffusion's plms.py.
    """
    ts = jnp.asarray(ts, jnp.int32)
    t, s = ts[0], ts[1]
    _, eps = _predict(denoise, schedule, x, t, cond, x0_fn)
    ahead = s if len(ts) > 2 else t  # a one-step ladder asks at t again, as the official loop does
    _, eps_ahead = _predict(denoise, schedule, _move(schedule, x, t, s, eps), ahead, cond, x0_fn)
    x = _move(schedule, x, t, s, (eps + eps_ahead) / 2)

    def body(carry, step):
        x, old = carry  # old (3, B, ...), newest first
        t, s, weights = step
        _, eps = _predict(denoise, schedule, x, t, cond, x0_fn)
        history = jnp.concatenate([eps[None], old])
        mean = jnp.tensordot(weights, history, axes=1)
        return (_move(schedule, x, t, s, mean), history[:3]), None

    count = jnp.minimum(jnp.arange(1, len(ts) - 1), 3)
    old = jnp.concatenate([eps[None], jnp.zeros((2, *x.shape), x.dtype)])
    steps = (ts[1:-1], ts[2:], jnp.asarray(ADAMS, jnp.float32)[count])
    return jax.lax.scan(body, (x, old), steps)[0][0]


def dpm_solver(
    denoise: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    ts: jax.Array,
    cond: Any,
    *,
    x0_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """DPM-Solver++(2M): x_s = noise_s/noise_t x + (signal_s - noise_s signal_t/noise_t) D.

    D = (1 + 1/(2r)) x0_t - 1/(2r) x0_before, r = h_before / h, h the step in log(signal / noise);
    D = x0_t on the first step, and on the last if it ends in 0, where h is infinite.
    x (B, ...) at ts[0] -> at ts[-1]. Lu et al. 2022, Algorithm 2.
    """
    ts = jnp.asarray(ts, jnp.int32)

    def log_snr(t):
        signal, noise = schedule.at(t, 0)
        return jnp.log(signal) - jnp.log(noise)

    def body(carry, times):
        x, x0_before, h_before = carry
        t, s = times
        x0, _ = _predict(denoise, schedule, x, t, cond, x0_fn)
        h = log_snr(s) - log_snr(t)
        # First order on the first step (no x0 before) and on the last (h infinite).
        weight = jnp.where((s == 0) | (h_before == 0), 0.0, h / (2 * h_before))
        D = x0 + weight * (x0 - x0_before)
        (signal_t, noise_t), (signal_s, noise_s) = (schedule.at(u, x.ndim) for u in (t, s))
        x = noise_s / noise_t * x + (signal_s - noise_s * signal_t / noise_t) * D
        return (x, x0, h), None

    start = (x, jnp.zeros_like(x), jnp.zeros(()))
    return jax.lax.scan(body, start, (ts[:-1], ts[1:]))[0][0]
