"""SDEdit: noise a guide up to time t0, then run the reverse SDE back to a picture.

Algorithms 1 to 5 of the paper are one loop over a Schedule of N steps, whose time n is the paper's
t = t0 n / N: with signal = 1 it is the VE-SDE (1, 2, 3), with signal^2 + noise^2 = 1 the VP-SDE
(4, 5). Any denoiser drives it: one trained on another schedule through `transfer`.
Meng et al. 2022 (arXiv:2108.01073).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import schedule
from common.guidance import Denoiser
from common.process import Prediction, score_from_eps, transition_variance
from common.sampler import noise_like
from common.schedule import Schedule

T = 1000  # levels of the official repository


def ve(t0: float, steps: int, sigma_min: float = 0.01, sigma_max: float = 378.0) -> Schedule:
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t, sigma(0) = 0, at t = t0 n / steps.

    The sigmas are the paper's, for pictures in [0, 1] (378: FFHQ 256); ours are in [-1, 1], where
    the same noise is twice as large, so the tables hold 2 sigma. At t0 = 0 there are no steps.
    """
    steps = _check(t0, steps)
    low = 2 * sigma_min
    return schedule.ve(steps, low, low * (sigma_max / sigma_min) ** t0)


def vp(t0: float, steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """alpha(t) = prod (1 - beta(t) dt), beta(t) = beta_min + (beta_max - beta_min) t, dt = t0 / N.

    signal^2 = alpha. At t0 = 0 there are no steps; near t0 = 1 it takes more than beta_max of them.
    """
    steps = _check(t0, steps)
    t = t0 * np.arange(1, steps + 1) / max(steps, 1)
    betas = (beta_min + (beta_max - beta_min) * t) * t0 / max(steps, 1)
    if (betas >= 1).any():
        raise ValueError(f"{steps} steps are too few for t0 = {t0:g}: more than "
                         f"{math.floor(betas.max() * steps)} are needed")  # fmt: skip
    return schedule.from_betas(betas)


def ddpm(t0: float, steps: int | None = None) -> Schedule:
    """The official repository's: the lowest t0 of the 1000 levels of DDPM, one step for each.

    Its `--t 500` is t0 = 0.5 (it counts from 0 and starts at index 499). `steps` is not heeded.
    """
    levels = round(T * _check(t0, 1) * t0)
    return Schedule(*(table[: levels + 1] for table in schedule.linear(T)))


SDES = {"vp": vp, "ve": ve, "ddpm": ddpm}


def _check(t0: float, steps: int) -> int:
    """The number of steps to take: none at t0 = 0, where the guide is the result."""
    if not 0 <= t0 <= 1:
        raise ValueError(f"t0 must be in 0..1 (0 keeps the guide, 1 forgets it), not {t0:g}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return steps if t0 else 0


def sigma_at(whole: Schedule, t0: float) -> float:
    """sigma = noise / signal at time t0 of a schedule that spans 0..1, in [-1, 1] units.

    The same t0 is not the same noise in two SDEs: compare them by sigma.
    """
    return float(np.interp(t0 * whole.T, np.arange(whole.T + 1), _sigma(whole)))


def t0_at(whole: Schedule, sigma: float) -> float:
    """The t0 whose noise / signal is sigma: the inverse of sigma_at, at most 1."""
    return float(np.interp(sigma, _sigma(whole), np.arange(whole.T + 1)) / whole.T)


def _sigma(schedule: Schedule) -> np.ndarray:
    return np.asarray(schedule.noise, np.float64) / np.asarray(schedule.signal, np.float64)


def transfer(denoise: Denoiser, trained: Schedule, to: Schedule) -> Denoiser:
    """A denoiser on the schedule `to`, from one trained on another: one network drives VE and VP.

    x is scaled to the variance the network knows (VE to VP: by 1 / sqrt(1 + sigma^2)), and the
    network is told its own time of nearest log sigma, sigma = noise / signal; eps is the same in
    both. The time is rounded, not interpolated: with DDPM's 1000 times off by at most 0.5% of sigma
    above time 100, by up to 10% at the lowest sigmas of `ve`; a sigma beyond the tables gets their
    first or last time. k-diffusion, external.py.
    """
    log_sigma = lambda schedule: jnp.log(schedule.noise / schedule.signal)  # noqa: E731
    size = lambda schedule: jnp.hypot(schedule.signal, schedule.noise)  # noqa: E731
    times = 1 + jnp.abs(log_sigma(to)[:, None] - log_sigma(trained)[None, 1:]).argmin(1)
    scales = size(trained)[times] / size(to)

    def transferred(x: jax.Array, n: jax.Array, cond: Any) -> Prediction:
        scale = scales[n].reshape(-1, *[1] * (x.ndim - 1))
        return Prediction(denoise(x * scale, times[n], cond).eps)

    return transferred


def edit(
    denoise: Denoiser,
    schedule: Schedule,
    guide: jax.Array,
    cond: Any,
    key: jax.Array,
    *,
    edit_mask: jax.Array | None = None,
    repeats: int = 1,
    last: str = "denoise",
    variance: str = "large",
    fresh: bool = True,
) -> jax.Array:
    """guide (B, ...) in [-1, 1] -> a picture near it, by `denoise` on this very schedule.

    x = signal_N guide + noise_N z;  for n = N..1:  x = (x + b score) signal_{n-1} / signal_n
    + sqrt(b) z,  b = noise_n^2 - (signal_n / signal_{n-1})^2 noise_{n-1}^2; all of it `repeats`
    times (the paper's K). For VE b = sigma_n^2 - sigma_{n-1}^2, for VP b = beta dt.

    edit_mask (B, ..., 1), 1 = change: elsewhere x is the guide at the noise of time n (one level
    above the edited part, which has just stepped down), with the same z.
    last: "paper" also adds noise in the last step, std 0.02 for VE, and the kept part ends with
    the noise of time 1; "denoise" returns the mean, and the guide itself where it is kept.
    variance: "large" is the paper's b, "small" that of the posterior, which is 0 in the last step;
    fresh: new z in every step for the kept part, else one a repeat. The official repository is
    ddpm with "small" and not fresh. Jit the caller: the loops are lax.scan.
    """
    if last not in ("denoise", "paper") or variance not in ("large", "small") or repeats < 1:
        raise ValueError(f"last is denoise or paper, variance large or small, repeats at least 1; "
                         f"not {last}, {variance}, {repeats}")  # fmt: skip

    def mix(changed, kept):
        return changed if edit_mask is None else jnp.where(edit_mask != 0, changed, kept)

    def repeat(x, key):
        start_key, step_key = jax.random.split(key)
        start_z = noise_like(start_key, x)

        def step(x, n):
            z = noise_like(jax.random.fold_in(step_key, n), x)
            (signal, noise), (next_signal, next_noise) = (
                schedule.at(t, x.ndim) for t in (n, n - 1)
            )
            score = score_from_eps(schedule, n, denoise(x, jnp.full(x.shape[:1], n), cond).eps)
            b = transition_variance(schedule, n, n - 1, x.ndim)
            sd = jnp.sqrt(b) * (1 if variance == "large" else next_noise / noise)
            sd = sd * (n > 1) if last == "denoise" else sd
            changed = (x + b * score) * next_signal / signal + sd * z
            return mix(changed, schedule.add_noise(guide, n, z if fresh else start_z)), None

        x = schedule.add_noise(mix(x, guide), schedule.T, start_z)
        return jax.lax.scan(step, x, jnp.arange(schedule.T, 0, -1))[0], None

    x = jax.lax.scan(repeat, guide, jax.random.split(key, repeats))[0]
    return x if last == "paper" else mix(x, guide)
