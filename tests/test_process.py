"""Conversions, posterior and variational bound against ADM's float64 formulas, written out here.

Official index i is our t = i + 1 (and s = t - 1 = i).
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import process, schedule

RNG = np.random.default_rng
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "cosine": np.array(
        [
            min(1 - np.cos((i / 1000 + 0.001 + 0.008) / 1.008 * np.pi / 2) ** 2
                / np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2, 0.999)
            for i in range(1000)
        ]
    ),
}  # fmt: skip
SCHEDULES = {"linear": schedule.linear(), "cosine": schedule.cosine()}
VE = schedule.ve(1000, 0.01, 50.0)
T_ALL = np.arange(1, 1001)


def official(betas):
    """The tables of ADM's GaussianDiffusion.__init__, float64, by official index."""
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - before) / (1 - alpha_bar)
    return SimpleNamespace(
        betas=betas,
        alpha_bar=alpha_bar,
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(np.append(variance[1], variance[1:])),
        posterior_mean_coef1=betas * np.sqrt(before) / (1 - alpha_bar),
        posterior_mean_coef2=(1 - before) * np.sqrt(1 - betas) / (1 - alpha_bar),
    )


def coefficients(s, t, s_time):
    """What posterior multiplies x0 and x_t with, and its variance, for arrays of times."""
    one, zero = jnp.ones((len(t), 1)), jnp.zeros((len(t), 1))
    c1, variance = process.posterior(s, one, zero, jnp.asarray(t), jnp.asarray(s_time))
    c2, _ = process.posterior(s, zero, one, jnp.asarray(t), jnp.asarray(s_time))
    return (np.asarray(a, np.float64)[:, 0] for a in (c1, c2, variance))


# Predictions


@pytest.mark.parametrize("name", ["linear", "cosine", "ve"])
def test_eps_to_x0_and_score_and_back_is_the_identity(name):
    s = VE if name == "ve" else SCHEDULES[name]
    t = jnp.array([1, 5, 100, 500, 900])
    x0, eps = RNG(0).standard_normal((2, 5, 2, 2, 3)).astype(np.float32)
    x = s.add_noise(x0, t, eps)
    signal, noise = (np.asarray(a, np.float64)[np.asarray(t)] for a in s)
    # float32 in x is worth 1e-7 x / noise in eps, and 1e-7 x / signal in x0.
    reach = np.abs(np.asarray(x)).max((1, 2, 3))
    for row in range(5):
        np.testing.assert_allclose(
            process.x0_from_eps(s, x, t, eps)[row], x0[row],
            atol=3e-7 * (1 + reach[row] / signal[row]),
        )  # fmt: skip
        np.testing.assert_allclose(
            process.eps_from_x0(s, x, t, x0)[row], eps[row],
            atol=3e-7 * (1 + reach[row] / noise[row]),
        )  # fmt: skip
    # The score is grad_x log N(x; signal x0, noise^2), here in units of 1 / noise.
    score = process.score_from_eps(s, t, eps)
    column = noise.reshape(5, 1, 1, 1)
    np.testing.assert_allclose(np.asarray(score, np.float64) * column, -eps, atol=1e-6)
    np.testing.assert_allclose(process.eps_from_score(s, t, score), eps, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_velocity_is_the_derivative_along_the_angle_and_gives_eps_back(name):
    s = SCHEDULES[name]
    t = jnp.array([1, 5, 100, 500, 1000])
    x0, eps = RNG(1).standard_normal((2, 5, 4)).astype(np.float32)
    velocity = np.asarray(process.velocity(s, x0, t, eps))
    # x(angle) = cos(angle) x0 + sin(angle) eps; velocity is dx/dangle.
    angle = np.arctan2(np.asarray(s.noise, np.float64), np.asarray(s.signal, np.float64))[t][
        :, None
    ]
    h = 1e-6
    x_at = lambda a: np.cos(a) * x0 + np.sin(a) * eps  # noqa: E731
    expected = (x_at(angle + h) - x_at(angle - h)) / (2 * h)
    np.testing.assert_allclose(velocity, expected, atol=1e-6)
    x = s.add_noise(x0, t, eps)
    np.testing.assert_allclose(process.eps_from_velocity(s, x, t, velocity), eps, atol=1e-6)


@pytest.mark.parametrize("predicts", ["eps", "velocity", "x0"])
def test_eps_comes_back_from_what_a_network_is_trained_to_predict(predicts):
    s = SCHEDULES["linear"]
    t = jnp.array([1, 5, 100, 500, 1000])
    x0, eps = RNG(2).standard_normal((2, 5, 4)).astype(np.float32)
    wanted = process.target(predicts, s, x0, t, eps)
    apart = {"eps": eps, "x0": x0}.get(predicts, process.velocity(s, x0, t, eps))
    np.testing.assert_allclose(wanted, apart, atol=1e-6)
    found = process.eps_from(predicts, s, s.add_noise(x0, t, eps), t, wanted)
    np.testing.assert_allclose(found, eps, atol=2e-4)  # x0 at t = 1 is divided by noise


# Posterior


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_of_one_step_is_the_official_table_at_every_time(name):
    c1, c2, variance = coefficients(SCHEDULES[name], T_ALL, T_ALL - 1)
    want = official(BETAS[name])
    np.testing.assert_allclose(c1, want.posterior_mean_coef1, rtol=5e-5)
    np.testing.assert_allclose(c2, want.posterior_mean_coef2, rtol=5e-5)
    np.testing.assert_allclose(variance, want.posterior_variance, rtol=5e-5)
    assert (c2[0], variance[0]) == (0, 0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 27, 250])
def test_posterior_of_a_long_step_is_that_of_the_respaced_process(name, steps):
    """ADM's respacing: beta_k = 1 - alpha_bar_k / alpha_bar_(k-1) of the kept times."""
    index = np.round(np.linspace(0, 999, steps)).astype(int)
    alpha_bar = official(BETAS[name]).alpha_bar[index]
    want = official(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    t = index + 1
    c1, c2, variance = coefficients(SCHEDULES[name], t, np.append(0, t[:-1]))
    np.testing.assert_allclose(c1, want.posterior_mean_coef1, rtol=5e-5)
    np.testing.assert_allclose(c2, want.posterior_mean_coef2, rtol=5e-5)
    np.testing.assert_allclose(variance, want.posterior_variance, rtol=5e-5)


def test_posterior_of_ve_is_that_of_a_random_walk():
    t, s = np.array([1000, 700, 300, 2, 1]), np.array([999, 100, 299, 1, 0])
    sigma = np.append(0, 0.01 * 5000 ** (T_ALL / 1000))
    low, high = sigma[s] ** 2, sigma[t] ** 2
    c1, c2, variance = coefficients(VE, t, s)
    np.testing.assert_allclose(c1, 1 - low / high, rtol=5e-5)
    np.testing.assert_allclose(c2, low / high, rtol=5e-5)
    np.testing.assert_allclose(variance, low * (high - low) / high, rtol=5e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_transition_variance_of_one_step_is_beta(name):
    beta = process.transition_variance(
        SCHEDULES[name], jnp.asarray(T_ALL), jnp.asarray(T_ALL - 1), 1
    )
    np.testing.assert_allclose(beta, BETAS[name], rtol=5e-5)


# Learned variance


def log_variance(s, variance, v=None, t=T_ALL):
    v = None if v is None else jnp.full((len(t), 1), v)
    out = process.log_variance(s, jnp.asarray(t), jnp.asarray(t) - 1, 2, variance, v)
    return np.asarray(out, np.float64)[:, 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_small_and_large_variance_are_adms_with_index_1_in_place_of_index_0(name):
    want = official(BETAS[name])
    small, large = (log_variance(SCHEDULES[name], v) for v in ("small", "large"))
    np.testing.assert_allclose(small, want.posterior_log_variance_clipped, atol=5e-5)
    np.testing.assert_allclose(
        large, np.log(np.append(want.posterior_variance[1], want.betas[1:])), atol=5e-5
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_learned_variance_runs_from_small_at_minus_1_to_large_at_plus_1(name):
    s, want = SCHEDULES[name], official(BETAS[name])
    np.testing.assert_allclose(
        log_variance(s, "learned", -1.0), log_variance(s, "small"), rtol=1e-6
    )
    # At t = 1 ADM's upper end is log beta_0, though its FIXED_LARGE is not.
    np.testing.assert_allclose(
        log_variance(s, "learned", 1.0)[1:], log_variance(s, "large")[1:], rtol=1e-6
    )
    np.testing.assert_allclose(log_variance(s, "learned", 1.0), np.log(want.betas), atol=5e-5)
    # Between and beyond: linear in the logarithm, v is not clamped.
    for v in (0.3, 2.0):
        f = (v + 1) / 2
        expected = f * np.log(want.betas) + (1 - f) * want.posterior_log_variance_clipped
        np.testing.assert_allclose(log_variance(s, "learned", v), expected, atol=2e-4)


def test_learned_variance_without_v_or_with_another_name_is_an_error():
    for name in ("learned", "medium"):
        with pytest.raises(ValueError, match=name):
            log_variance(SCHEDULES["linear"], name)


# Discretised likelihood and the variational bound


def levels(*shape, seed=0):
    """8-bit pictures in [-1, 1], both ends among them."""
    pixels = RNG(seed).integers(0, 256, shape)
    pixels.flat[:2] = 0, 255
    return (pixels / 127.5 - 1).astype(np.float32)


def official_nll(x0, mean, log_std):
    """-discretized_gaussian_log_likelihood of ADM's losses.py in float64, nats."""
    cdf = lambda z: 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    centred, inv = x0 - mean, np.exp(-log_std)
    plus, minus = cdf(inv * (centred + 1 / 255)), cdf(inv * (centred - 1 / 255))
    log = lambda p: np.log(np.maximum(p, 1e-12))  # noqa: E731
    return -np.where(
        x0 < -0.999, log(plus), np.where(x0 > 0.999, log(1 - minus), log(plus - minus))
    )


def test_where_T_to_0_is_the_only_step_its_variance_is_the_large_one():
    s, T = SCHEDULES["cosine"], jnp.array([T_ALL.size])
    for variance, v in (("small", None), ("large", None), ("learned", 1.5)):
        got = process.log_variance(s, T, jnp.array([0]), 2, variance, v)
        np.testing.assert_allclose(got, np.log(1 - float(s.signal[-1]) ** 2), atol=1e-6)


@pytest.mark.parametrize("mean", [-1.2, -0.5, 0.013, 0.99])
@pytest.mark.parametrize("std", [0.003, 0.05, 1.0])
def test_the_256_levels_of_a_pixel_have_probability_1_together(mean, std):
    x0 = jnp.arange(256) / 127.5 - 1
    nll = process.discretized_nll(x0, jnp.full(256, mean), jnp.full(256, np.log(std)))
    np.testing.assert_allclose(jnp.exp(-nll).sum(), 1, atol=3e-5)


def test_discretised_likelihood_is_adms_and_close_to_the_exact_gaussian():
    from scipy.stats import norm

    x0 = levels(500)
    mean = x0 + RNG(1).normal(0, 0.02, 500).astype(np.float32)
    nll = np.asarray(process.discretized_nll(x0, mean, np.full(500, np.log(0.02), np.float32)))
    np.testing.assert_allclose(
        nll, official_nll(x0.astype(float), mean.astype(float), np.log(0.02)), rtol=1e-3, atol=1e-4
    )
    lower = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
    upper = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
    exact = -np.log(norm.cdf(upper, mean, 0.02) - norm.cdf(lower, mean, 0.02))
    near = np.abs(x0 - mean) < 0.05
    np.testing.assert_allclose(nll[near], exact[near], atol=0.02)


def official_vb(betas, x0, x, index, eps, v):
    """ADM's _vb_terms_bpd for one row, float64: clip_denoised=False, LEARNED_RANGE."""
    tab = official(betas)
    alpha_bar = tab.alpha_bar[index]
    pred_x0 = np.sqrt(1 / alpha_bar) * x - np.sqrt(1 / alpha_bar - 1) * eps
    c1, c2 = tab.posterior_mean_coef1[index], tab.posterior_mean_coef2[index]
    f = (v + 1) / 2
    min_log = tab.posterior_log_variance_clipped[index]
    log_var = f * np.log(tab.betas[index]) + (1 - f) * min_log
    mean, true_mean = c1 * pred_x0 + c2 * x, c1 * x0 + c2 * x
    if index == 0:
        return official_nll(x0, mean, 0.5 * log_var).mean() / np.log(2)
    kl = 0.5 * (-1 + log_var - min_log + np.exp(min_log - log_var)
                + (true_mean - mean) ** 2 * np.exp(-log_var))  # fmt: skip
    return kl.mean() / np.log(2)


TIMES = np.array([1, 1, 2, 3, 10, 100, 500, 900, 999, 1000])


@pytest.fixture(scope="module")
def batch():
    x0 = levels(len(TIMES), 4, 4, 3)
    eps, error = RNG(2).standard_normal((2, *x0.shape)).astype(np.float32)
    v = RNG(3).uniform(-1, 1, x0.shape).astype(np.float32)
    return x0, eps, eps + 0.3 * error, v


bound = jax.jit(
    lambda s, x0, x, t, eps, v: process.variational_bound(s, x0, x, t, process.Prediction(eps, v))
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_variational_bound_is_adms_in_bits_per_dimension_the_likelihood_at_t_1_included(
    name, batch
):
    s, (x0, eps, predicted, v) = SCHEDULES[name], batch
    x = np.asarray(s.add_noise(x0, jnp.asarray(TIMES), eps))
    ours = np.asarray(bound(s, x0, x, jnp.asarray(TIMES), predicted, v))
    rows = zip(*(a.astype(np.float64) for a in (x0, x, predicted, v)), TIMES - 1, strict=True)
    theirs = [official_vb(BETAS[name], a, b, index, c, d) for a, b, c, d, index in rows]
    # At cosine's t = 1000 the x0 found is of size 1e4 and cancels: hence 1e-3, not 1e-5.
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_variational_bound_is_zero_for_the_true_posterior_and_never_negative(batch):
    s, (x0, eps, predicted, v) = SCHEDULES["linear"], batch
    t = jnp.asarray(TIMES)
    x = s.add_noise(x0, t, eps)
    exact = bound(s, x0, x, t, eps, jnp.full(x0.shape, -1.0))
    np.testing.assert_allclose(exact[2:], 0, atol=1e-5)
    assert (np.asarray(bound(s, x0, x, t, predicted, v)) > 0).all()


def test_variational_bound_teaches_the_variance_and_leaves_eps_alone(batch):
    s, (x0, eps, predicted, v) = SCHEDULES["linear"], batch
    t = jnp.asarray(TIMES)
    x = s.add_noise(x0, t, eps)
    total = lambda eps, v: bound(s, x0, x, t, eps, v).sum()  # noqa: E731
    to_eps, to_v = jax.grad(total, (0, 1))(jnp.asarray(predicted), jnp.asarray(v))
    assert (np.asarray(to_eps) == 0).all()
    size = np.abs(np.asarray(to_v)).max((1, 2, 3))
    # Small and large variance are nearly one late in the process, so v has little to say there.
    assert np.isfinite(size).all() and (size > 0).all() and (size[:5] > 1e-4).all()


def test_pixels_survive_the_way_to_floats_and_back_and_are_rounded_not_cut():
    pixels = jnp.arange(256, dtype=jnp.uint8)
    floats = process.to_float(pixels)
    np.testing.assert_allclose(floats[jnp.array([0, 255])], [-1, 1])
    np.testing.assert_array_equal(process.to_uint8(floats), pixels)
    np.testing.assert_array_equal(process.to_uint8(floats + 0.45 / 127.5), pixels)
    np.testing.assert_array_equal(process.to_uint8(jnp.array([-9.0, 9.0])), [0, 255])
