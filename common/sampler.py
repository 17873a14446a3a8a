"""Samplers: one step each, and one compiled scan around a step.

Times are a decreasing list that ends in 0 and may start anywhere: SDEdit is `sample` from t0, an
image variation is `sample` from an inverted x_T. The network always gets the original t; the step
recomputes what it needs from the schedule's tables, so respacing needs no second schedule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.guidance import Denoiser
from common.multistep import dpm_solver, plms
from common.process import (
    Prediction,
    eps_from_x0,
    log_variance,
    posterior,
    transition_variance,
    x0_from_eps,
)
from common.schedule import Schedule

__all__ = ["ancestral", "ancestral_step", "clip_x0", "ddim_step", "dpm_solver", "invert"]
__all__ += ["noise_like", "plms", "sample", "sample_path", "sections", "timesteps"]

Hook = Callable[[jax.Array], jax.Array]  # x0 -> x0
Shift = Callable[..., jax.Array]  # x, mean, t, s, cond -> what the mean moves by, over variance
Project = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # x_s, s, key -> x_s


def timesteps(T: int, steps: int) -> np.ndarray:
    """(steps + 1,) int32, evenly from T to 1 (both kept, as in ADM's respacing), then 0.

    With steps = T these are all times: respacing is then the identity. One step is T -> 0 (ADM's
    would be 1 -> 0, from the cleanest time).
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be in 1..{T} (the schedule has {T} times), not {steps}")
    indices = _strided(T, steps) if steps > 1 else np.array([T - 1])
    return np.append(indices[::-1] + 1, 0).astype(np.int32)


def sections(T: int, counts: str) -> np.ndarray:
    """Times from section counts such as "10,10,3,2,2", first the fifth with the least noise.

    Each of the equal sections is strided evenly, both its ends kept (ADM's respace.py); the first
    of GLIDE's 27 upsampler times is 998 of 1000, not 1000, which is left to the caller.
    """
    counts = [int(c) for c in counts.split(",")]
    size, extra = divmod(T, len(counts))
    lengths = [size + (i < extra) for i in range(len(counts))]
    for count, length in zip(counts, lengths, strict=True):
        if not 1 <= count <= length:
            raise ValueError(f"cannot take {count} steps from a section of {length} times")
    starts = np.cumsum([0, *lengths[:-1]])
    parts = [s + _strided(n, c) for s, n, c in zip(starts, lengths, counts, strict=True)]
    return np.append(np.concatenate(parts)[::-1] + 1, 0).astype(np.int32)


def _strided(length: int, count: int) -> np.ndarray:
    """`count` of 0..length-1 with both ends, rounded as ADM does: a running sum, half to even."""
    stride = (length - 1) / (count - 1) if count > 1 else 1.0
    return np.rint(np.cumsum([0.0] + [stride] * (count - 1)))


def clip_x0(x0: jax.Array) -> jax.Array:
    """The usual x0_fn of pictures: clip to [-1, 1] (cosine schedules need it: 1/signal_T > 1e4)."""
    return jnp.clip(x0, -1, 1)


def _x0_eps(schedule, x, eps, t, x0_fn):
    """Predicted x0, and the eps that belongs to it once x0_fn has moved it (as in ADM)."""
    x0 = x0_from_eps(schedule, x, t, eps)
    if x0_fn is None:
        return x0, eps
    x0 = x0_fn(x0)
    return x0, eps_from_x0(schedule, x, t, x0)


def ddim_step(
    schedule: Schedule,
    x: jax.Array,
    pred: Prediction,
    t: jax.Array,
    s: jax.Array,
    z: jax.Array,
    *,
    eta: float = 0.0,
    x0_fn: Hook | None = None,
) -> jax.Array:
    """x_t -> x_s: signal_s x0 + sqrt(noise_s^2 - sd^2) eps + sd z, s < t.

    sd = eta noise_s / noise_t sqrt(transition variance): eta = 0 is DDIM, eta = 1 is DDPM with
    the small variance. z (B, ...) standard normal; nothing of it enters at s = 0.
    Song, Meng & Ermon 2021, eq. 12 and 16.
    """
    x0, eps = _x0_eps(schedule, x, pred.eps, t, x0_fn)
    signal_s, noise_s = schedule.at(s, x.ndim)
    signal_t, noise_t = schedule.at(t, x.ndim)
    variance = eta**2 * transition_variance(schedule, t, s, x.ndim) * (noise_s / noise_t) ** 2
    # sqrt(noise_s^2 - variance), written so that at eta = 1 nothing cancels in float32.
    kept = (eta * signal_t * noise_s / (signal_s * noise_t)) ** 2
    direction = noise_s * jnp.sqrt(jnp.maximum(1 - eta**2 + kept, 0))
    return signal_s * x0 + direction * eps + jnp.sqrt(variance) * z


def ancestral_step(
    schedule: Schedule,
    x: jax.Array,
    pred: Prediction,
    t: jax.Array,
    s: jax.Array,
    z: jax.Array,
    *,
    variance: str = "small",
    x0_fn: Hook | None = None,
    shift: Hook | None = None,
    before: jax.Array | None = None,
) -> jax.Array:
    """x_t -> x_s: posterior mean + sd z, with the "small", "large" or "learned" variance.

    The mean goes through the (clipped) x0; no noise is added at s = 0. shift(mean) (B, ...) moves
    the mean by the variance times itself: classifier guidance as in ADM, Algorithm 1. before: the
    time of the step above t, which only the last one asks for, see process.log_variance.
    Ho et al. 2020, Algorithm 2; Nichol & Dhariwal 2021, eq. 15.
    """
    x0, _ = _x0_eps(schedule, x, pred.eps, t, x0_fn)
    mean, small = posterior(schedule, x0, x, t, s)
    sd = jnp.exp(0.5 * log_variance(schedule, t, s, x.ndim, variance, pred.v, before))
    if shift is not None:  # "small" is 0 at s = 0, where only its logarithm is another step's
        mean = mean + (small if variance == "small" else sd**2) * shift(mean)
    noise_s = schedule.at(s, x.ndim)[1]
    return jnp.where(noise_s == 0, mean, mean + sd * z)


def noise_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise shaped like x, one key per row.

    Row i depends on the key and i alone: not on the batch size, not on the device count.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def _run(step, denoise, x, ts, cond, key, project, keep):
    """Scan `step(x, pred, t, s, key) -> x` over consecutive times -> (last x, keep(x) stacked)."""
    ts = jnp.asarray(ts, jnp.int32)

    def body(x, times):
        t, s = times
        step_key, project_key = jax.random.split(jax.random.fold_in(key, t))
        x = step(x, denoise(x, jnp.full(x.shape[:1], t), cond), t, s, step_key)
        x = x if project is None else project(x, s, project_key)
        return x, keep(x)

    return jax.lax.scan(body, x, (ts[:-1], ts[1:]))


def _ddim(schedule, eta, x0_fn):
    """ddim_step with its noise drawn from a key; a plain eta of 0 draws none."""
    quiet = isinstance(eta, int | float) and eta == 0

    def step(x, pred, t, s, key):
        z = jnp.zeros_like(x) if quiet else noise_like(key, x)
        return ddim_step(schedule, x, pred, t, s, z, eta=eta, x0_fn=x0_fn)

    return step


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    ts: jax.Array,
    cond: Any,
    key: jax.Array,
    *,
    eta: float = 0.0,
    x0_fn: Hook | None = None,
    project: Project | None = None,
) -> jax.Array:
    """DDIM (eta = 0) to DDPM (eta = 1) from x at ts[0] down to ts[-1], one lax.scan.

    x (B, ...) at time ts[0], ts (steps + 1,) decreasing, cond a pytree leading with B.
    x0_fn(x0) -> x0 changes the predicted x0 (clipping, pasting); project(x_s, s, key) -> x_s
    changes each new x (a known region), s a scalar. -> x (B, ...) at time ts[-1].
    """
    step = _ddim(schedule, eta, x0_fn)
    return _run(step, denoise, x, ts, cond, key, project, lambda x: None)[0]


def sample_path(
    denoise: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    ts: jax.Array,
    cond: Any,
    key: jax.Array,
    *,
    eta: float = 0.0,
    x0_fn: Hook | None = None,
    project: Project | None = None,
) -> jax.Array:
    """As `sample`, but every x on the way: (steps + 1, B, ...), the given x first."""
    step = _ddim(schedule, eta, x0_fn)
    path = _run(step, denoise, x, ts, cond, key, project, lambda x: x)[1]
    return jnp.concatenate([x[None], path])


def ancestral(
    denoise: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    ts: jax.Array,
    cond: Any,
    key: jax.Array,
    *,
    variance: str = "small",
    x0_fn: Hook | None = None,
    project: Project | None = None,
    shift: Shift | None = None,
) -> jax.Array:
    """As `sample` with ancestral steps: the papers' DDPM sampling, learned variance included.

    shift(x, mean, t, s, cond) (B, ...) moves each mean by the variance times itself
    (`guidance.mean_shift`).
    """
    before = ts[-3] if len(ts) > 2 else None

    def step(x, pred, t, s, key):
        z = noise_like(key, x)
        move = None if shift is None else lambda mean: shift(x, mean, t, s, cond)
        return ancestral_step(schedule, x, pred, t, s, z, variance=variance, x0_fn=x0_fn,
                              shift=move, before=before)  # fmt: skip

    return _run(step, denoise, x, ts, cond, key, project, lambda x: None)[0]


def invert(
    denoise: Denoiser, schedule: Schedule, x: jax.Array, ts: jax.Array, cond: Any
) -> jax.Array:
    """DDIM run backwards: x (B, ...) at ts[-1] up to time ts[0], ts decreasing as for `sample`.

    Each step uses the eps found where it starts (there is none at t = 0, so t = 1 is asked);
    `sample` from the result returns near x, the nearer the more steps.
    Dhariwal & Nichol 2021, ddim_reverse_sample, which takes x for time 1, ends past T where no
    signal is left, and clips x0 by default: one of its steps is this one on [i + 2, i + 1].
    """
    ts = jnp.asarray(ts, jnp.int32)[::-1]

    def body(x, times):
        s, t = times
        eps = denoise(x, jnp.full(x.shape[:1], jnp.maximum(s, 1)), cond).eps
        signal, noise = schedule.at(t, x.ndim)
        return signal * x0_from_eps(schedule, x, s, eps) + noise * eps, None

    return jax.lax.scan(body, x, (ts[:-1], ts[1:]))[0]
