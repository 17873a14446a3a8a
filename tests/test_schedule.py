"""The tables against float64 formulas and against numbers computed from the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import schedule

ALL = {
    "linear": lambda T: schedule.linear(T),
    "cosine": lambda T: schedule.cosine(T),
    "scaled_linear": lambda T: schedule.scaled_linear(T),
    "ve": lambda T: schedule.ve(T, 0.01, 50.0),
}
F32 = 1.5e-7  # relative: one rounding to float32


def tables(s):
    return np.asarray(s.signal, np.float64), np.asarray(s.noise, np.float64)


def assert_vp(s, alpha_bar):
    """signal and noise of t = 1..T are sqrt(alpha_bar) and sqrt(1 - alpha_bar) to float32."""
    signal, noise = tables(s)
    np.testing.assert_allclose(signal[1:], np.sqrt(alpha_bar), rtol=F32)
    np.testing.assert_allclose(noise[1:], np.sqrt(1 - alpha_bar), rtol=F32)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("T", [50, 1000])
def test_tables_are_T_plus_1_float32_and_start_at_the_clean_picture(name, T):
    s = ALL[name](T)
    assert s.T == T and s.signal.shape == s.noise.shape == (T + 1,)
    assert s.signal.dtype == s.noise.dtype == jnp.float32
    assert (s.signal[0], s.noise[0]) == (1, 0)


@pytest.mark.parametrize("name", ALL)
def test_every_step_is_noisier_than_the_last(name):
    signal, noise = tables(ALL[name](1000))
    assert (np.diff(noise[1:] / signal[1:]) > 0).all() and noise[1] > 0


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear"])
@pytest.mark.parametrize("T", [50, 1000])
def test_variance_preserving_tables_keep_unit_variance(name, T):
    signal, noise = tables(ALL[name](T))
    np.testing.assert_allclose(signal**2 + noise**2, 1, atol=2e-7)


def test_linear_is_the_running_product_of_1_minus_beta():
    alpha_bar, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        alpha_bar.append(product)
    assert_vp(schedule.linear(), np.array(alpha_bar))


@pytest.mark.parametrize("T", [100, 250, 4000])
def test_linear_scales_its_ends_by_1000_over_T(T):
    beta = np.linspace(1000 / T * 1e-4, 1000 / T * 0.02, T)
    assert_vp(schedule.linear(T), np.exp(np.cumsum(np.log1p(-beta))))


def test_linear_takes_other_ends():
    beta = np.linspace(1e-3, 0.01, 1000)
    assert_vp(schedule.linear(1000, 1e-3, 0.01), np.exp(np.cumsum(np.log1p(-beta))))


@pytest.mark.parametrize("T", [50, 1000])
def test_cosine_is_the_squared_cosine_until_the_cap_bites_at_the_last_time(T):
    u = np.arange(T + 1) / T
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = alpha_bar[1:] / alpha_bar[0]
    alpha_bar[-1] = 0.001 * alpha_bar[-2]  # beta = 0.999
    assert_vp(schedule.cosine(T), alpha_bar)


@pytest.mark.parametrize("T", [50, 1000])
def test_scaled_linear_has_a_linear_square_root_of_beta_and_does_not_scale_with_T(T):
    beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * np.arange(T) / (T - 1)) ** 2
    assert_vp(schedule.scaled_linear(T), np.exp(np.cumsum(np.log1p(-beta))))


def test_ve_keeps_the_signal_and_spaces_sigma_evenly_in_logarithm():
    signal, noise = tables(schedule.ve(1000, 0.01, 50.0))
    assert (signal == 1).all()
    t = np.arange(1, 1001)
    expected = np.exp(np.log(0.01) + t / 1000 * np.log(50.0 / 0.01))
    np.testing.assert_allclose(noise[1:], expected, rtol=F32)
    np.testing.assert_allclose(noise[1000], 50.0, rtol=F32)


def test_ends_are_those_of_the_official_tables():
    """Official index i is our t = i + 1."""
    cosine, linear = (tables(s)[0] for s in (schedule.cosine(), schedule.linear()))
    np.testing.assert_allclose(cosine[999] ** 2, 2.43e-6, rtol=2e-3)
    np.testing.assert_allclose(cosine[1000] ** 2, 2.43e-9, rtol=2e-3)
    np.testing.assert_allclose(1 / cosine[1000], 20291, rtol=5e-5)
    np.testing.assert_allclose(linear[1000] ** 2, 4.04e-5, rtol=2e-3)


# sigma = noise / signal at t0 = 0.1 ... 0.7 for pictures in [-1, 1]: the project's reference page.
SIGMAS = {
    "linear": (schedule.linear(), [0.34, 0.72, 1.23, 2.03, 3.42, 6.14, 11.9]),
    "cosine": (schedule.cosine(), [0.17, 0.34, 0.52, 0.74, 1.01, 1.39, 1.98]),
    "ve378": (schedule.ve(1000, 0.02, 756), [0.06, 0.17, 0.47, 1.36, 3.89, 11.2, 32.0]),
    "ve50": (schedule.ve(1000, 0.02, 100), [0.05, 0.11, 0.26, 0.60, 1.41, 3.31, 7.77]),
}


@pytest.mark.parametrize("name", SIGMAS)
def test_sigma_at_equal_t0_is_the_table_of_sdedit(name):
    s, expected = SIGMAS[name]
    signal, noise = tables(s)
    # Half a unit of the last printed digit, and one time step (the table counts from index t0 T).
    sigma = (noise / signal)[100:701:100]
    np.testing.assert_allclose(sigma, expected, atol=0.0051, rtol=0.006)


def test_add_noise_is_signal_x0_plus_noise_eps_row_by_row():
    s = schedule.linear()
    x0, eps = np.random.default_rng(0).standard_normal((2, 4, 3, 2, 1)).astype(np.float32)
    t = jnp.array([0, 1, 500, 1000])
    x = np.asarray(s.add_noise(x0, t, eps))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for row, i in [(1, 0), (2, 499), (3, 999)]:
        expected = np.sqrt(alpha_bar[i]) * x0[row] + np.sqrt(1 - alpha_bar[i]) * eps[row]
        np.testing.assert_allclose(x[row], expected, atol=1e-6)
    np.testing.assert_array_equal(x[0], x0[0])


def test_at_gives_columns_for_a_batch_of_times_and_ones_for_a_single_time():
    s = schedule.linear()
    signal, noise = s.at(jnp.array([3, 7]), 4)
    assert signal.shape == noise.shape == (2, 1, 1, 1)
    assert (signal[1, 0, 0, 0], noise[0, 0, 0, 0]) == (s.signal[7], s.noise[3])
    assert s.at(jnp.array(3), 4)[0].shape == (1, 1, 1, 1)


def test_a_schedule_is_a_pytree_of_two_arrays():
    assert len(jax.tree.leaves(schedule.cosine(10))) == 2


@pytest.mark.parametrize("make", [schedule.linear, schedule.cosine, schedule.scaled_linear])
@pytest.mark.parametrize("T", [10, 20, 40])
def test_short_schedules_are_finite_and_keep_some_signal(make, T):
    """linear(T) has beta > 1 for T < 20: a nan table must not come out without a word."""
    try:
        signal, noise = tables(make(T))
    except ValueError:
        return
    assert np.isfinite(signal).all() and np.isfinite(noise).all() and (signal > 0).all()


def test_tables_without_any_signal_at_T_are_refused():
    with pytest.raises(ValueError, match="alpha_bar must stay above 0"):
        schedule.from_alpha_bar(np.array([0.9, 0.5, 0.0]))
