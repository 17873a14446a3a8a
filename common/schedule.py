"""Noise schedules: how much signal and how much noise there is at each time t.

Every process here is x_t = signal_t x0 + noise_t eps, with t = 0 the clean picture and t = T the
noisiest. Variance preserving (DDPM, ADM, GLIDE, LDM) and variance exploding (SDEdit) schedules
differ only in the two tables.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
    """Two tables (T+1,) float32, a pytree; signal[0] = 1 and noise[0] = 0.

    That the clean end is in the table makes "the last step adds no noise" arithmetic, not an `if`.
    Official code counts from 0: its index i is our t = i + 1.
    """

    signal: jax.Array
    noise: jax.Array

    @property
    def T(self) -> int:
        return self.signal.shape[0] - 1

    def at(self, t: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
        """signal_t and noise_t of t (B,) or a scalar, shaped to multiply arrays of `ndim` axes."""
        t = jnp.asarray(t)
        shape = t.shape + (1,) * (ndim - t.ndim)
        return self.signal[t].reshape(shape), self.noise[t].reshape(shape)

    def add_noise(self, x0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
        """The forward process in one jump: x_t = signal_t x0 + noise_t eps.

        x0 (B, ...), t (B,) int32 in 0..T, eps (B, ...) standard normal -> x_t (B, ...).
        Ho et al. 2020, eq. 4.
        """
        signal, noise = self.at(t, x0.ndim)
        return signal * x0 + noise * eps


def from_alpha_bar(alpha_bar: np.ndarray) -> Schedule:
    """Variance-preserving tables from alpha_bar (T,) of t = 1..T: signal^2 + noise^2 = 1.

    ValueError where no signal is left ("zero terminal SNR"): there eps no longer tells x0.
    """
    alpha_bar = np.concatenate([[1.0], np.asarray(alpha_bar, np.float64)])
    if not (alpha_bar > 0).all():
        raise ValueError(f"alpha_bar must stay above 0, not fall to {alpha_bar.min():g}")
    return Schedule(
        jnp.asarray(np.sqrt(alpha_bar), jnp.float32),
        jnp.asarray(np.sqrt(1 - alpha_bar), jnp.float32),
    )


def from_betas(betas: np.ndarray) -> Schedule:
    """Variance-preserving tables from beta (T,): alpha_bar_t = prod_{i<=t} (1 - beta_i).

    ValueError unless 0 < beta < 1: at beta = 1 no signal is left, and eps no longer tells x0.
    """
    betas = np.asarray(betas, np.float64)
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"beta must stay between 0 and 1, not {betas.min():g} to {betas.max():g}")
    return from_alpha_bar(np.cumprod(1 - betas))


def linear(T: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    """beta rises linearly (Ho et al. 2020). For T != 1000 the ends scale by 1000 / T, as in ADM.

    With the usual ends T must be above 20, where beta would reach 1.
    """
    scale = 1000 / T
    return from_betas(np.linspace(scale * beta_min, scale * beta_max, T, dtype=np.float64))


def cosine(T: int = 1000) -> Schedule:
    """alpha_bar(u) = cos^2((u + 0.008) / 1.008 pi/2), beta capped at 0.999.

    Nichol & Dhariwal 2021, eq. 17; GLIDE calls it squaredcos_cap_v2. The cap bites only at t = T.
    """
    u = np.arange(T + 1, dtype=np.float64) / T
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def scaled_linear(T: int = 1000, beta_min: float = 8.5e-4, beta_max: float = 0.012) -> Schedule:
    """sqrt(beta) rises linearly: latent diffusion and Stable Diffusion (Rombach et al. 2022)."""
    return from_betas(np.linspace(beta_min**0.5, beta_max**0.5, T, dtype=np.float64) ** 2)


def ve(T: int, sigma_min: float, sigma_max: float) -> Schedule:
    """Variance exploding: signal = 1, noise_t = sigma_min (sigma_max / sigma_min)^(t/T), t >= 1.

    Song et al. 2021, eq. 30 (sigma(0) = 0 by definition). Sigmas are in units of the data: a sigma
    quoted for pictures in [0, 1] doubles for pictures in [-1, 1].
    """
    t = np.arange(1, T + 1, dtype=np.float64)
    noise = np.concatenate([[0.0], sigma_min * (sigma_max / sigma_min) ** (t / T)])
    return Schedule(jnp.ones(T + 1, jnp.float32), jnp.asarray(noise, jnp.float32))
