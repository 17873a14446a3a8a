"""PLMS and DPM-Solver++ on the exact mixture and against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from common import mixture, sampler, schedule
from common.process import Prediction

S = schedule.scaled_linear(1000)
WORLD = mixture.Mixture(
    jnp.array([0.3, 0.7]),
    jnp.array([[-1.0, 0.5], [1.0, -0.5]]),
    jnp.array([0.2, 0.3]),
    jnp.array([0, 1]),
)
COND = {"label": jnp.full(64, mixture.NULL)}


@pytest.mark.parametrize("method", [sampler.plms, sampler.dpm_solver])
def test_multistep_samplers_come_nearer_to_the_exact_path_than_ddim_with_as_many_steps(method):
    """Down to t = 100: below, even times are few and far apart in log(signal / noise)."""
    denoise, key = WORLD.denoiser(S), jax.random.key(1)
    x = jax.random.normal(jax.random.key(0), (64, 2))
    exact = sampler.sample(denoise, S, x, np.arange(1000, 99, -1), COND, key)
    errors = {}
    for steps in (10, 20):
        ts = np.rint(np.linspace(1000, 100, steps + 1)).astype(np.int32)
        errors[steps] = float(jnp.abs(method(denoise, S, x, ts, COND) - exact).mean())
    ddim = float(jnp.abs(sampler.sample(denoise, S, x, ts, COND, key) - exact).mean())
    assert errors[20] < 0.3 * ddim
    assert errors[20] < 0.35 * errors[10]  # second order: a quarter


def linear_denoise(calls):
    """eps = 0.3 x + 0.001 t, and a list of the times it was asked at."""

    def denoise(x, t, cond):
        jax.debug.callback(lambda t: calls.append(int(t[0])), t, ordered=True)
        return Prediction(0.3 * x + 0.001 * t.reshape(-1, 1))

    return denoise


def tables():
    return np.asarray(S.signal, np.float64), np.asarray(S.noise, np.float64)


def test_plms_is_the_official_recursion_and_costs_one_extra_call():
    signal, noise = tables()
    eps = lambda x, t: 0.3 * x + 0.001 * t  # noqa: E731
    ts = sampler.timesteps(S.T, 7)

    def move(x, t, s, e):
        return signal[s] * (x - noise[t] * e) / signal[t] + noise[s] * e

    x, old = np.array([[0.7], [-1.2]]), []
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        e = eps(x, t)
        if not old:
            mean = (e + eps(move(x, t, s, e), s)) / 2
        elif len(old) == 1:
            mean = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            mean = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mean = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x, old = move(x, t, s, mean), [*old, e]

    calls = []
    start = jnp.array([[0.7], [-1.2]])
    ours = sampler.plms(linear_denoise(calls), S, start, ts, {})
    jax.effects_barrier()
    assert_allclose(ours, x, rtol=2e-4)
    assert sorted(calls, reverse=True) == sorted([*ts[:-1], ts[1]], reverse=True)


def test_a_ladder_of_one_step_asks_plms_at_its_time_again_wherever_it_ends():
    # As plms.py's t_next = time_range[min(i + 1, len(time_range) - 1)].
    for ts in ([982, 962], [982, 0]):
        calls = []
        sampler.plms(linear_denoise(calls), S, jnp.ones((2, 1)), jnp.array(ts), {})
        jax.effects_barrier()
        assert calls == [982, 982]


def test_dpm_solver_is_its_formula_and_first_order_at_both_ends():
    signal, noise = tables()
    ts = sampler.timesteps(S.T, 6)
    x, before, h_before = np.array([[0.7], [-1.2]]), None, None
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        x0 = (x - noise[t] * (0.3 * x + 0.001 * t)) / signal[t]
        if before is None or s == 0:
            D, h = x0, None if s == 0 else np.log(signal[s] / noise[s] * noise[t] / signal[t])
        else:
            h = np.log(signal[s] / noise[s] * noise[t] / signal[t])
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = noise[s] / noise[t] * x + (signal[s] - noise[s] * signal[t] / noise[t]) * D
        before, h_before = x0, h
    ours = sampler.dpm_solver(linear_denoise([]), S, jnp.array([[0.7], [-1.2]]), ts, {})
    assert_allclose(ours, x, rtol=2e-4)


@pytest.mark.parametrize("method", [sampler.plms, sampler.dpm_solver])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_ladders_stay_finite_and_x0_fn_is_kept(method, steps):
    x = jax.random.normal(jax.random.key(0), (64, 2))
    ts = sampler.timesteps(S.T, steps)
    out = method(WORLD.denoiser(S), S, x, ts, COND, x0_fn=lambda x0: jnp.clip(x0, -0.1, 0.1))
    assert np.isfinite(out).all()
    if method is sampler.dpm_solver:  # its last step returns x0 itself
        assert np.abs(out).max() <= 0.1 + 1e-6
