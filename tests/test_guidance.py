"""The thesis: on an exact mixture, classifier and classifier-free guidance are one thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import sampler, schedule
from common.guidance import classifier_free, gradient_guidance
from common.mixture import NULL, Mixture
from common.process import Prediction

# Four components, three labels: p(x0 | y = 1) is itself a mixture.
MIXTURE = Mixture(
    weight=jnp.array([0.2, 0.35, 0.15, 0.3]),
    mean=jnp.array([[1.0, 1.0], [-1.0, 0.5], [0.0, -1.0], [0.5, 0.2]]),
    std=jnp.array([0.3, 0.5, 0.2, 0.4]),
    label=jnp.array([0, 1, 1, 2]),
)
SCHEDULES = {
    "linear": schedule.linear(),
    "cosine": schedule.cosine(),
    "ve": schedule.ve(1000, 0.01, 20.0),
}
B = 48
NOTHING = {"label": jnp.array(NULL)}


def batch(s, seed=0):
    """x_t at six times from the first to the last, and labels, not those that x came from."""
    x_key, eps_key, label_key = jax.random.split(jax.random.key(seed), 3)
    t = jnp.tile(jnp.array([1, 20, 200, 500, 900, 1000]), B // 6)
    x0, _ = MIXTURE.sample(x_key, B)
    x = s.add_noise(x0, t, jax.random.normal(eps_key, x0.shape))
    return x, t, {"label": jax.random.randint(label_key, (B,), 0, 3)}


def unconditional(s):
    exact = MIXTURE.denoiser(s)
    return lambda x, t, cond: exact(x, t, {"label": jnp.full_like(cond["label"], NULL)})


# Compiled once for all schedules and scales: both are arguments.
@jax.jit
def exact(s, x, t, cond):
    return MIXTURE.denoiser(s)(x, t, cond).eps


@jax.jit
def free(s, x, t, cond, scale):
    return classifier_free(MIXTURE.denoiser(s), NOTHING, scale)(x, t, cond).eps


@jax.jit
def by_classifier(s, x, t, cond, scale):
    guided = gradient_guidance(unconditional(s), MIXTURE.log_prob(s), s, scale)
    return guided(x, t, cond).eps


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_classifier_guidance_is_classifier_free_guidance(name, scale):
    s = SCHEDULES[name]
    args = (s, *batch(s), jnp.float32(scale))
    np.testing.assert_allclose(free(*args), by_classifier(*args), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_classifier_guidance_at_scale_1_is_the_conditional_denoiser(name):
    s = SCHEDULES[name]
    x, t, cond = batch(s)
    conditional = exact(s, x, t, cond)
    guided = by_classifier(s, x, t, cond, jnp.float32(1))
    np.testing.assert_allclose(guided, conditional, atol=1e-5, rtol=1e-5)
    nothing = exact(s, x, t, {"label": jnp.full(B, NULL)})
    assert np.abs(conditional - nothing).max() > 0.1  # or the test would say nothing


def test_scale_0_is_unconditional_1_conditional_and_beyond_it_is_the_same_straight_line():
    s = SCHEDULES["linear"]
    x, t, cond = batch(s)
    eps = {a: np.asarray(free(s, x, t, cond, jnp.float32(a))) for a in (0, 0.5, 1, 4)}
    nothing = exact(s, x, t, {"label": jnp.full(B, NULL)})
    np.testing.assert_allclose(eps[0], nothing, atol=1e-6)
    np.testing.assert_allclose(eps[1], exact(s, x, t, cond), atol=1e-6)
    np.testing.assert_allclose(eps[0.5], (eps[0] + eps[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(eps[4], eps[0] + 4 * (eps[1] - eps[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [free, by_classifier])
def test_every_row_may_have_its_own_scale(guidance):
    s = SCHEDULES["cosine"]
    scales = jnp.linspace(0, 5, B)
    together = guidance(s, *batch(s), scales)
    for row in (0, 17, B - 1):
        alone = guidance(s, *batch(s), scales[row])
        np.testing.assert_allclose(together[row], alone[row], atol=1e-6)


@pytest.mark.parametrize("guidance", [free, by_classifier])
def test_rows_do_not_know_each_other(guidance):
    """Permuted in, permuted out; a row alone is as in company (the gradient is no batch mean)."""
    s = SCHEDULES["linear"]
    x, t, cond = batch(s)
    label = cond["label"]
    order = np.random.default_rng(0).permutation(B)
    whole = guidance(s, x, t, cond, jnp.float32(3))
    shuffled = guidance(s, x[order], t[order], {"label": label[order]}, jnp.float32(3))
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-6)
    alone = guidance(s, x[2:3], t[2:3], {"label": label[2:3]}, jnp.float32(3))
    np.testing.assert_allclose(alone, whole[2:3], atol=1e-6)


class Counting:
    """A denoiser that notes what it is asked; eps and v tell which row of cond they saw."""

    def __init__(self, learned=True):
        self.calls, self.learned = [], learned

    def __call__(self, x, t, cond):
        self.calls.append((x, t, cond))
        eps = x * cond["number"].mean(-1)[:, None]
        return Prediction(eps, 10 + eps if self.learned else None)


def ask(null, learned=True):
    denoise = Counting(learned)
    x, t = jnp.arange(1.0, 7.0).reshape(3, 2), jnp.array([5, 6, 7])
    cond = {"number": jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])}
    return denoise, x, t, cond, classifier_free(denoise, {"number": null}, 3.0)(x, t, cond)


def test_the_network_is_called_once_with_both_halves_and_the_same_x_and_t():
    denoise, x, t, cond, _ = ask(jnp.zeros(2))
    assert len(denoise.calls) == 1
    x_seen, t_seen, cond_seen = denoise.calls[0]
    np.testing.assert_array_equal(x_seen, np.concatenate([x, x]))
    np.testing.assert_array_equal(t_seen, np.concatenate([t, t]))
    np.testing.assert_array_equal(
        cond_seen["number"], np.concatenate([cond["number"], np.zeros((3, 2))])
    )


def test_eps_is_guided_and_the_variance_stays_the_conditional_one():
    _, x, _, cond, pred = ask(jnp.full(2, 0.5))
    number = np.array([[1.0], [2.0], [3.0]])
    np.testing.assert_allclose(pred.eps, x * (0.5 + 3 * (number - 0.5)))
    np.testing.assert_allclose(pred.v, 10 + x * number)


def test_without_a_learned_variance_there_is_none_after_guidance():
    assert ask(jnp.zeros(2), learned=False)[-1].v is None


def test_gradient_guidance_keeps_the_variance_and_adds_minus_noise_times_the_gradient():
    s = SCHEDULES["linear"]
    denoise = lambda x, t, cond: Prediction(jnp.zeros_like(x), x)  # noqa: E731
    log_prob = lambda x, t, cond: (x * cond).sum(-1) * t  # gradient: t cond  # noqa: E731
    x, t, cond = jnp.ones((2, 3)), jnp.array([10, 700]), jnp.array([[1.0, 2, 3], [4, 5, 6]])
    pred = gradient_guidance(denoise, log_prob, s, 2.0)(x, t, cond)
    np.testing.assert_array_equal(pred.v, x)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[9, 699]]
    expected = -2 * np.sqrt(1 - alpha_bar)[:, None] * np.array([[10.0], [700.0]]) * cond
    np.testing.assert_allclose(pred.eps, expected, rtol=1e-6)


def test_x0_bounded_before_the_gradient_is_ADMs_guided_DDIM_step():
    # gaussian_diffusion.py: p_mean_variance clips, condition_score moves eps, x0 follows unclipped.
    s, (t, to) = SCHEDULES["linear"], (700, 660)
    x, gradient = np.array([[3.0, -0.2, 0.5]]), np.array([[0.4, -0.3, 0.2]])
    log_prob = lambda x, t, cond: (x * gradient).sum(-1)  # noqa: E731
    denoise = lambda x, t, cond: Prediction(0.1 * x)  # noqa: E731
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[t - 1, to - 1]]
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x0 = np.clip((x - noise[0] * 0.1 * x) / signal[0], -1, 1)
    eps = (x - signal[0] * x0) / noise[0] - noise[0] * 2.5 * gradient
    x0 = (x - noise[0] * eps) / signal[0]
    assert np.abs(x0).max() > 1
    guided = gradient_guidance(denoise, log_prob, s, 2.5, x0_fn=lambda x0: jnp.clip(x0, -1, 1))
    got = sampler.sample(guided, s, jnp.array(x), jnp.array([t, to]), {}, jax.random.key(0))
    np.testing.assert_allclose(got, signal[1] * x0 + noise[1] * eps, rtol=1e-5)


def test_the_null_condition_may_lead_with_B_or_not():
    short, full = ask(jnp.array([0.25, 0.75])), ask(jnp.tile(jnp.array([[0.25, 0.75]]), (3, 1)))
    np.testing.assert_array_equal(short[-1].eps, full[-1].eps)


# The mixture itself


def test_exact_eps_is_the_mean_noise_by_numerical_integration():
    """eps = E[(x_t - signal x0) / noise | x_t], integrated over x0 in one dimension."""
    weight, mean, std = (
        np.array([0.3, 0.5, 0.2]),
        np.array([-1.0, 0.4, 1.5]),
        np.array([0.2, 0.4, 0.3]),
    )
    label = np.array([0, 1, 0])
    mixture = Mixture(jnp.array(weight), jnp.array(mean)[:, None], jnp.array(std), jnp.array(label))
    ask = jax.jit(lambda s, x, t, label: mixture.denoiser(s)(x, t, {"label": label}).eps[:, 0])
    x0 = np.linspace(-5, 5, 40_001)
    bells = (
        weight[:, None] * np.exp(-0.5 * ((x0 - mean[:, None]) / std[:, None]) ** 2) / std[:, None]
    )
    for s in SCHEDULES.values():
        for t in (100, 500, 1000):
            signal, noise = float(s.signal[t]), float(s.noise[t])
            x = (signal * np.array([-2.0, -0.3, 0.1, 1.2]) + noise * np.array([0.5, -1, 0.2, 1.3]))[
                :, None
            ]
            for y in (0, 1, NULL):
                p = bells[(label == y) | (y == NULL)].sum(0)
                log = -0.5 * ((x - signal * x0) / noise) ** 2
                p = p * np.exp(log - log.max(1, keepdims=True))
                want = (p * (x - signal * x0) / noise).sum(1) / p.sum(1)
                eps = ask(s, x.astype(np.float32), np.full(4, t), np.full(4, y))
                np.testing.assert_allclose(eps, want, atol=2e-5)


def test_exact_eps_is_minus_noise_times_the_slope_of_the_log_density():
    s = SCHEDULES["linear"]
    x, t, cond = batch(s)
    weight, mean, std, label = (
        np.asarray(a, np.float64 if a.dtype == jnp.float32 else None) for a in MIXTURE
    )
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.asarray(t) - 1][:, None]

    def log_density(x, wanted):
        variance = alpha_bar * std**2 + 1 - alpha_bar  # (B, K)
        distance = ((x[:, None] - np.sqrt(alpha_bar)[..., None] * mean) ** 2).sum(-1)
        p = weight * np.exp(-0.5 * distance / variance) / (2 * np.pi * variance)
        return np.log((p * wanted).sum(1))

    x64 = np.asarray(x, np.float64)
    for y in (np.asarray(cond["label"]), np.full(B, NULL)):
        wanted = (label == y[:, None]) | (y[:, None] == NULL)
        given = {"label": jnp.asarray(y)}
        np.testing.assert_allclose(
            MIXTURE.log_density(s, x, t, given["label"]),
            log_density(x64, wanted),
            atol=2e-4,
            rtol=2e-5,
        )
        eps = exact(s, x, t, given)
        for d, step in enumerate(1e-6 * np.eye(2)):
            slope = (log_density(x64 + step, wanted) - log_density(x64 - step, wanted)) / 2e-6
            want = -np.sqrt(1 - alpha_bar[:, 0]) * slope
            np.testing.assert_allclose(eps[:, d], want, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_probabilities_of_the_labels_sum_to_1(name):
    s = SCHEDULES[name]
    x, t, _ = batch(s)
    log_prob = jax.jit(lambda s, *args: MIXTURE.log_prob(s)(*args))
    p = [np.exp(log_prob(s, x, t, {"label": jnp.full(B, y)})) for y in range(3)]
    np.testing.assert_allclose(sum(p), 1, atol=1e-5)
    assert min(a.min() for a in p) < 0.05 and max(a.max() for a in p) > 0.95


def test_drawing_from_the_mixture_gives_its_weights_means_and_widths():
    x, label = (np.asarray(a) for a in MIXTURE.sample(jax.random.key(0), 40_000))
    np.testing.assert_allclose(np.bincount(label) / len(x), [0.2, 0.5, 0.3], atol=0.01)
    np.testing.assert_allclose(x[label == 0].mean(0), [1, 1], atol=0.015)
    np.testing.assert_allclose(x[label == 0].std(0), 0.3, atol=0.01)
    np.testing.assert_allclose(
        x[label == 1].mean(0), [(0.35 * -1) / 0.5, (0.175 - 0.15) / 0.5], atol=0.03
    )
