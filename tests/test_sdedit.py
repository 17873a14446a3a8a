"""SDEdit's algorithms against loops in float64 numpy and on the exact mixture; nothing trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common import sampler, schedule
from common.mixture import NULL, Mixture
from common.process import Prediction
from sdedit import sde
from sdedit.proposition import bounds, proposition1

MEANS = np.array([[-0.6, -0.3], [0.5, 0.6], [0.6, -0.6]])
STD, WEIGHT = 0.2, np.array([0.5, 0.3, 0.2])
MIXTURE = Mixture(
    jnp.asarray(WEIGHT, jnp.float32), jnp.asarray(MEANS, jnp.float32), jnp.full(3, STD),
    jnp.arange(3),
)  # fmt: skip


def cond(n):
    return {"label": jnp.full(n, NULL)}


@functools.partial(jax.jit, static_argnames=("repeats", "last", "variance", "fresh"))
def run(grid, guide, key, edit_mask=None, **options):
    """sde.edit with the exact denoiser of the mixture."""
    return sde.edit(MIXTURE.denoiser(grid), grid, guide, cond(len(guide)), key,
                    edit_mask=edit_mask, **options)  # fmt: skip


def guides(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (n, 2)), jnp.float32)


MASK = jnp.asarray(np.arange(32).reshape(16, 2) % 3 > 0)  # some of each row's coordinates


# Schedules and t0


TABLE = {  # t0: DDPM linear, cosine, VE 378, VE 50 (reference values of noise / signal)
    0.1: (0.34, 0.17, 0.06, 0.05),
    0.2: (0.72, 0.34, 0.165, 0.11),  # 0.01 x 2 x 37800^0.2 = 0.1646
    0.3: (1.23, 0.52, 0.47, 0.26),
    0.4: (2.03, 0.74, 1.36, 0.60),
    0.5: (3.42, 1.01, 3.89, 1.41),
    0.6: (6.14, 1.39, 11.2, 3.31),
    0.7: (11.9, 1.98, 32.0, 7.77),
}


@pytest.mark.parametrize("t0", TABLE)
def test_the_same_t0_is_another_sigma_in_every_sde(t0):
    whole = sde.ddpm(1), schedule.cosine(), sde.ve(1, 1000), sde.ve(1, 1000, sigma_max=50)
    found = [sde.sigma_at(s, t0) for s in whole]
    half_a_digit = [0.5 * 10.0 ** (-2 if x < 10 else -1) for x in TABLE[t0]]
    assert (np.abs(np.array(found) - TABLE[t0]) <= np.array(half_a_digit) * 1.02).all(), found
    assert_allclose([sde.t0_at(s, sigma) for s, sigma in zip(whole, found, strict=True)], t0)


def test_t0_converts_between_ve_and_vp_through_sigma_and_its_ends_are_kept():
    vp, ve = sde.vp(1, 1000), sde.ve(1, 1000)
    t0 = sde.t0_at(ve, sde.sigma_at(vp, 0.5))
    assert_allclose(sde.sigma_at(ve, t0), sde.sigma_at(vp, 0.5), rtol=1e-6)
    assert 0.48 < t0 < 0.5
    assert sde.sigma_at(ve, 0) == 0 and sde.t0_at(ve, 0) == 0
    assert sde.t0_at(vp, 1e9) == 1


def test_schedules_are_the_papers_formulas_on_the_steps_of_the_edit():
    t = 0.45 * np.arange(1, 8) / 7
    assert_allclose(sde.ve(0.45, 7).noise[1:], 2 * 0.01 * 37800**t, rtol=1e-6)
    assert_allclose(sde.ve(0.45, 7).signal, 1)
    alpha = np.cumprod(1 - (0.1 + 19.9 * t) * 0.45 / 7)
    assert_allclose(sde.vp(0.45, 7).signal[1:] ** 2, alpha, rtol=1e-6)
    assert_allclose(sde.ddpm(0.5).signal, schedule.linear().signal[:501])


@pytest.mark.parametrize("name", sde.SDES)
@pytest.mark.parametrize("t0", [-0.1, 1.01, float("nan")])
def test_a_t0_outside_of_0_to_1_is_refused(name, t0):
    with pytest.raises(ValueError, match=r"t0 must be in 0..1 .*not"):
        sde.SDES[name](t0, 10)


def test_too_few_steps_are_refused_with_the_number_that_is_needed():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        sde.ve(0.5, 0)
    with pytest.raises(ValueError, match="19 steps are too few for t0 = 1: more than 20"):
        sde.vp(1.0, 19)
    sde.vp(1.0, 21)


# The algorithms, as loops


def draws(key, x, repeats, steps):
    """The noise that sde.edit draws: [(start z, {n: z})]."""
    for k in jax.random.split(key, repeats):
        start_key, step_key = jax.random.split(k)
        z = {n: sampler.noise_like(jax.random.fold_in(step_key, n), x) for n in range(1, steps + 1)}
        yield np.float64(sampler.noise_like(start_key, x)), {n: np.float64(a) for n, a in z.items()}


def score(x, signal, noise):
    """grad log p of the noised mixture, float64."""
    variance = (signal * STD) ** 2 + noise**2
    gap = x[:, None] - signal * MEANS
    log_w = np.log(WEIGHT) - (gap**2).sum(-1) / (2 * variance)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    return -(w[..., None] * gap).sum(1) / variance


def algorithm_3(x_g, omega, t0, N, K, noises):
    """VE-SDE, masked (omega = 1: algorithms 1 and 2), sigmas of pictures in [-1, 1]."""
    sigma = lambda t: 0.0 if t <= 1e-12 else 2 * 0.01 * 37800**t  # noqa: E731
    dt, x0, x = t0 / N, x_g, x_g
    for _ in range(K):
        z, zs = next(noises)
        x = (1 - omega) * x0 + omega * x + sigma(t0) * z
        for n in range(N, 0, -1):
            t = t0 * n / N
            epsilon = np.sqrt(sigma(t) ** 2 - sigma(t - dt) ** 2)
            moved = x + epsilon**2 * score(x, 1, sigma(t)) + epsilon * zs[n]
            x = (1 - omega) * (x0 + sigma(t) * zs[n]) + omega * moved
    return x


def algorithm_5(x_g, omega, t0, N, K, noises):
    """VP-SDE, masked (omega = 1: algorithm 4)."""
    beta = lambda t: 0.1 + 19.9 * t  # noqa: E731
    dt, x0, x = t0 / N, x_g, x_g
    alpha = np.cumprod([1.0] + [1 - beta(n * t0 / N) * dt for n in range(1, N + 1)])
    for _ in range(K):
        z, zs = next(noises)
        x = np.sqrt(alpha[N]) * ((1 - omega) * x0 + omega * x) + np.sqrt(1 - alpha[N]) * z
        for n in range(N, 0, -1):
            b = beta(t0 * n / N) * dt
            s = score(x, np.sqrt(alpha[n]), np.sqrt(1 - alpha[n]))
            moved = (x + b * s) / np.sqrt(1 - b) + np.sqrt(b) * zs[n]
            kept = np.sqrt(alpha[n]) * x0 + np.sqrt(1 - alpha[n]) * zs[n]
            x = (1 - omega) * kept + omega * moved
    return x


def repository(x_g, omega, level, K, noises):
    """runs of `--t level --sample_step K`: its indices count from 0, one e per repeat."""
    betas = np.linspace(1e-4, 0.02, 1000)
    a = np.cumprod(1 - betas)
    x0 = x_g.copy()
    for _ in range(K):
        e, zs = next(noises)
        x = np.sqrt(a[level - 1]) * x0 + np.sqrt(1 - a[level - 1]) * e
        for i in range(level - 1, -1, -1):
            eps = -np.sqrt(1 - a[i]) * score(x, np.sqrt(a[i]), np.sqrt(1 - a[i]))
            mean = (x - betas[i] / np.sqrt(1 - a[i]) * eps) / np.sqrt(1 - betas[i])
            before = a[i - 1] if i else 1.0
            variance = max(betas[i] * (1 - before) / (1 - a[i]), 1e-20)
            x_ = mean + (i > 0) * np.sqrt(variance) * zs[i + 1]
            x = np.sqrt(a[i]) * x0 + np.sqrt(1 - a[i]) * e
            x[omega == 1] = x_[omega == 1]
        x0[omega == 1] = x[omega == 1]
    return x, x0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(
    "grid, algorithm", [(sde.ve, algorithm_3), (sde.vp, algorithm_5)], ids=["VE", "VP"]
)
def test_the_scan_is_the_papers_loop(grid, algorithm, repeats, masked):
    x_g, t0, N = guides(16), 0.45, 12
    omega = np.asarray(MASK, float) if masked else np.ones((16, 2))
    noises = draws(jax.random.key(3), x_g, repeats, N)
    expected = algorithm(np.float64(x_g), omega, t0, N, repeats, noises)
    found = run(grid(t0, N), x_g, jax.random.key(3), MASK if masked else None, repeats=repeats,
                last="paper")  # fmt: skip
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_ddpm_procedure_is_the_official_repositorys_loop(repeats):
    x_g, level = guides(16), 40
    noises = draws(jax.random.key(4), x_g, repeats, level)
    saved, x0 = repository(np.float64(x_g), np.asarray(MASK, float), level, repeats, noises)
    found = {
        last: run(sde.ddpm(0.04), x_g, jax.random.key(4), MASK, repeats=repeats, last=last,
                  variance="small", fresh=False)
        for last in ("paper", "denoise")
    }  # fmt: skip
    assert_allclose(found["paper"], saved, rtol=1e-5, atol=1e-5)
    assert_allclose(found["denoise"], x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [sde.ve(0.5, 6), sde.vp(0.5, 6)], ids=["VE", "VP"])
def test_the_denoise_ending_is_commons_ancestral_step_with_the_large_variance(grid):
    x_g, denoise = guides(8), MIXTURE.denoiser(grid)
    start, zs = next(draws(jax.random.key(5), x_g, 1, 6))
    x = grid.add_noise(x_g, 6, jnp.asarray(start, jnp.float32))
    for n in range(6, 0, -1):
        pred = denoise(x, jnp.full(8, n), cond(8))
        z = jnp.asarray(zs[n], jnp.float32)
        x = sampler.ancestral_step(grid, x, pred, n, n - 1, z, variance="large")
    assert_allclose(run(grid, x_g, jax.random.key(5)), x, atol=2e-5)


# Ends


@pytest.mark.parametrize("name", sde.SDES)
def test_t0_of_0_returns_the_guide_bit_for_bit(name):
    x_g, grid = guides(16), sde.SDES[name](0, 10)
    for last, edit_mask, fresh in (("denoise", None, True), ("paper", MASK, False)):
        found = run(grid, x_g, jax.random.key(0), edit_mask, repeats=2, last=last, fresh=fresh)
        assert_array_equal(np.asarray(found).view(np.int32), np.asarray(x_g).view(np.int32))


@pytest.mark.parametrize("grid", [sde.ve(1, 200), sde.vp(1, 200)], ids=["VE", "VP"])
def test_t0_of_1_forgets_the_guide_and_draws_the_data(grid):
    n = 4000
    low, high = (run(grid, jnp.full((n, 2), x), jax.random.key(1)) for x in (-1.0, 1.0))
    # The same noise leads to the same point; only where two components meet a few rows differ.
    assert (np.abs(low - high).max(1) < 0.05).mean() > 0.97
    nearest = np.linalg.norm(np.asarray(low)[:, None] - MEANS, axis=-1).argmin(1)
    assert_allclose(np.bincount(nearest) / n, WEIGHT, atol=0.04)
    for k in range(3):
        points = np.asarray(low)[nearest == k]
        assert_allclose(points.mean(0), MEANS[k], atol=0.03)
        assert_allclose(np.cov(points.T), STD**2 * np.eye(2), atol=0.006)


def test_between_the_ends_the_distance_to_the_guide_rises_with_t0():
    x_g = guides(1000)
    for name in ("ve", "vp"):
        far = [((run(sde.SDES[name](t0, 40), x_g, jax.random.key(2)) - x_g) ** 2).sum(1).mean()
               for t0 in np.linspace(0, 1, 6)]  # fmt: skip
        assert far[0] == 0 and (np.diff(far) > 0).all(), far


# What the printed last step leaves behind


def test_algorithm_1_as_printed_leaves_noise_of_0_01_on_0_to_1_and_denoise_none():
    point = Mixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.full(1, 1e-4), jnp.zeros(1, jnp.int32))
    grid = sde.ve(0.5, 500)
    found = {}
    for last in ("paper", "denoise"):
        x = sde.edit(point.denoiser(grid), grid, jnp.zeros((2000, 2)), cond(2000),
                     jax.random.key(7), last=last)  # fmt: skip
        found[last] = float(jnp.std(x)) / 2  # of [-1, 1] to of [0, 1]
    assert_allclose(found["paper"], 0.01 * 37800**0.001, rtol=0.03)  # sigma(dt) = 0.0101
    assert found["denoise"] < 2e-4


def test_kept_pixels_are_exact_and_as_printed_they_carry_the_noise_of_the_first_time():
    n = 4000
    x_g, kept = guides(n), jnp.broadcast_to(jnp.array([[True, False]]), (n, 2))
    for grid in (sde.ve(0.4, 20), sde.vp(0.4, 20)):
        edited = run(grid, x_g, jax.random.key(8), ~kept, repeats=2)
        assert_array_equal(edited[:, 0], x_g[:, 0])
        assert (edited[:, 1] != x_g[:, 1]).all()
        printed = run(grid, x_g, jax.random.key(8), ~kept, last="paper")
        residual = printed[:, 0] - grid.signal[1] * x_g[:, 0]
        assert_allclose(jnp.std(residual), grid.noise[1], rtol=0.05)
    repo = {"variance": "small", "fresh": False}
    saved = run(sde.ddpm(0.02), x_g, jax.random.key(8), ~kept, last="paper", **repo)
    assert_allclose(jnp.std(saved[:, 0] - x_g[:, 0]), 0.01, rtol=0.05)


def test_the_edited_part_fits_what_is_kept():
    """In this mixture the first coordinate tells the second: 0.5 and 0.6 go with two values."""
    x_g = jnp.tile(jnp.array([[-0.6, 0.9]]), (500, 1))
    edited = run(sde.ve(1, 100), x_g, jax.random.key(9), jnp.array([[False, True]]), repeats=2)
    assert_allclose(edited[:, 1].mean(), -0.3, atol=0.08)


# One network for both


@pytest.mark.slow
def test_a_vp_network_drives_ve_exactly_where_its_times_have_the_sigmas():
    grid = sde.ve(0.6, 15)
    sigma = np.asarray(grid.noise[1:], np.float64)
    trained = schedule.from_alpha_bar(1 / (1 + sigma**2))
    denoise = jax.jit(sde.transfer(MIXTURE.denoiser(trained), trained, grid))
    x, exact = 3 * guides(16), MIXTURE.denoiser(grid)
    for n in (1, 8, 15):
        t = jnp.full(16, n)
        assert_allclose(denoise(x, t, cond(16)).eps, exact(x, t, cond(16)).eps, atol=1e-4)
    driven = jax.jit(lambda key: sde.edit(denoise, grid, x, cond(16), key))(jax.random.key(6))
    assert_allclose(driven, run(grid, x, jax.random.key(6)), atol=1e-3)


@pytest.mark.parametrize("trained", [schedule.linear(), schedule.cosine()], ids=["DDPM", "cosine"])
def test_a_vp_network_of_1000_times_drives_ve_nearly_as_the_exact_score_does(trained):
    grid, x_g = sde.ve(0.5, 40), guides(500)
    denoise = sde.transfer(MIXTURE.denoiser(trained), trained, grid)
    driven = jax.jit(lambda key: sde.edit(denoise, grid, x_g, cond(500), key))(jax.random.key(6))
    gap = np.abs(driven - run(grid, x_g, jax.random.key(6))).max(1)
    assert np.quantile(gap, 0.95) < 0.02, np.quantile(gap, [0.5, 0.95, 1])


def test_the_rounding_of_the_time_is_as_documented():
    trained, grid = schedule.linear(), sde.ve(0.7, 4000)
    asked = sde.transfer(lambda x, t, c: Prediction(t[:, None] * jnp.ones((1, 2))), trained, grid)
    n = jnp.arange(1, 4001)
    t = np.asarray(asked(jnp.zeros((4000, 2)), n, None).eps[:, 0], int)
    off = np.abs(np.asarray(trained.noise / trained.signal)[t] / np.asarray(grid.noise)[n] - 1)
    assert off[t > 100].max() < 0.0055 and 0.05 < off.max() < 0.1
    assert (np.diff(t) >= 0).all()


# Compilation


def test_steps_and_repeats_are_scans_not_loops():
    def equations(N, repeats):
        grid = sde.ve(0.5, N)
        edit = lambda x, key: sde.edit(MIXTURE.denoiser(grid), grid, x, cond(2), key,  # noqa: E731
                                       repeats=repeats)  # fmt: skip
        return len(str(jax.make_jaxpr(edit)(guides(2), jax.random.key(0))).splitlines())

    assert equations(5, 1) == equations(50, 7)


def test_unknown_options_are_refused():
    for options in ({"last": "none"}, {"variance": "learned"}, {"repeats": 0}):
        with pytest.raises(ValueError, match="last is denoise or paper"):
            run(sde.ve(0.5, 2), guides(2), jax.random.key(0), **options)


# Proposition 1


def test_proposition_1_holds_if_all_noise_is_counted_and_as_printed_only_where_the_drift_is_large():
    for row in proposition1(seed=0, n=1000, d=16, steps=20):
        printed, counted = row["broken"]
        assert counted <= row["delta"], row
        if row["score"] == "exact" and row["t0"] >= 0.3:
            assert printed <= row["delta"], row
        elif row["score"] == "none" or row["t0"] == 0.1:  # the noise of the start is not in it
            assert row["low"][0] > row["delta"], row


def test_the_printed_bound_is_the_papers_formula():
    sigma, C, d, delta = 0.7, 3.0, 12, 0.05
    ln = np.log(delta)
    expected = sigma**2 * (C * sigma**2 + d + 2 * np.sqrt(-d * ln) - 2 * ln)
    assert_allclose(bounds(sigma, C, d, delta)[0], expected)
