"""Every sampler against the official formulas in float64 and on the exact mixture; no training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import process, sampler, schedule
from common.guidance import classifier_free, mean_shift
from common.mixture import NULL, Mixture
from common.process import Prediction

LINEAR, COSINE, VE = schedule.linear(), schedule.cosine(), schedule.ve(1000, 0.01, 50.0)
RNG = np.random.default_rng


# Times


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 27, 50, 100, 250, 999, 1000])
def test_timesteps_fall_from_T_to_0(steps):
    ts = sampler.timesteps(1000, steps)
    assert ts.shape == (steps + 1,) and ts.dtype == np.int32
    assert (ts[0], ts[-1]) == (1000, 0) and (np.diff(ts) < 0).all()
    assert steps == 1 or ts[-2] == 1


def test_all_timesteps_are_all_times():
    assert sampler.timesteps(1000, 1000).tolist() == list(range(1000, -1, -1))


@pytest.mark.parametrize("steps", [2, 5, 27, 75, 100, 250, 400])
def test_timesteps_are_those_of_adms_respacing(steps):
    """space_timesteps: a running sum of 999 / (steps - 1), rounded halves to even; plus 1."""
    index, running = [], 0.0
    for _ in range(steps):
        index.append(round(running))
        running += 999 / (steps - 1)
    assert sampler.timesteps(1000, steps).tolist() == [i + 1 for i in index[::-1]] + [0]


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_a_count_that_cannot_be_is_an_error_that_names_it(steps):
    with pytest.raises(ValueError, match=f"1..1000.*{steps}"):
        sampler.timesteps(1000, steps)


# glide-text2im's fast27 by official index, which puts 997 where striding gives 999.
FAST27 = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377,
          399, 400, 500, 599, 600, 799, 800, 999]  # fmt: skip


def test_sections_10_10_3_2_2_are_glides_27_upsampler_times():
    assert sampler.sections(1000, "10,10,3,2,2").tolist() == [i + 1 for i in FAST27[::-1]] + [0]


def test_sections_cover_a_T_that_does_not_divide_and_refuse_what_does_not_fit():
    assert sampler.sections(10, "4,3,3").tolist() == [*range(10, -1, -1)]
    assert sampler.sections(10, "1,2").tolist() == [10, 6, 1, 0]
    with pytest.raises(ValueError, match="4 steps from a section of 3"):
        sampler.sections(10, "4,4,2")


# One step


def draw(seed=0, n=6, d=3):
    return RNG(seed).standard_normal((4, n, d)).astype(np.float32)


def pairs():
    """Times t (6,) and s (6,), one and many apart."""
    return jnp.array([1000, 1000, 500, 500, 37, 2]), jnp.array([999, 700, 499, 1, 30, 1])


@pytest.mark.parametrize("s", [LINEAR, COSINE, VE], ids=["linear", "cosine", "ve"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_step_to_0_is_the_predicted_x0_exactly(s, eta):
    x, eps, _, z = draw()
    t = jnp.array([1, 2, 30, 500, 900, 1000])
    out = sampler.ddim_step(s, x, Prediction(eps), t, jnp.zeros_like(t), z, eta=eta)
    np.testing.assert_array_equal(out, process.x0_from_eps(s, x, t, eps))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_step_is_the_official_formula(name, eta):
    s = {"linear": LINEAR, "cosine": COSINE}[name]
    x, eps, _, z = draw()
    t, to = pairs()
    table = np.asarray(s.signal, np.float64) ** 2
    a, before = table[np.asarray(t)][:, None], table[np.asarray(to)][:, None]
    if name == "linear":
        table = np.append(1, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
        a, before = table[np.asarray(t)][:, None], table[np.asarray(to)][:, None]
    sigma = eta * np.sqrt((1 - before) / (1 - a)) * np.sqrt(1 - a / before)
    x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
    want = np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * eps + sigma * z
    out = sampler.ddim_step(s, x, Prediction(eps), t, to, z, eta=eta)
    # float32 carries 1e-7 of sqrt(before) x0, of which the eps term cancels most.
    atol = 1e-5 * (1 + np.abs(np.sqrt(before) * x0).max())
    np.testing.assert_allclose(out, want, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("s", [LINEAR, COSINE, VE], ids=["linear", "cosine", "ve"])
def test_eta_1_has_the_posterior_mean_and_the_small_variance_of_ancestral_sampling(s):
    x, eps, _, z = draw(1)
    t, to = pairs()
    x0 = jnp.asarray(draw(2)[0])
    x, pred = s.add_noise(x0, t, eps), Prediction(jnp.asarray(eps))
    ddim = lambda z: sampler.ddim_step(s, x, pred, t, to, z, eta=1.0)  # noqa: E731
    ancestral = lambda z: sampler.ancestral_step(s, x, pred, t, to, z)  # noqa: E731
    still, size = jnp.zeros_like(x), np.abs(np.asarray(x)).max()
    mean, variance = process.posterior(s, process.x0_from_eps(s, x, t, pred.eps), x, t, to)
    for step in (ddim, ancestral):
        np.testing.assert_allclose(step(still), mean, atol=3e-6 * size, rtol=1e-4)
        spread = np.asarray(step(jnp.asarray(z)) - step(still))
        np.testing.assert_allclose(spread, np.sqrt(variance) * z, atol=3e-6 * size, rtol=1e-4)


def official_step(betas, x, eps, index, z, variance, v=None, clip=True):
    """ADM's p_sample for one official index, float64; as p_mean_variance orders it."""
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    post = betas * (1 - before) / (1 - alpha_bar)
    low, high = np.log(np.append(post[1], post[1:])), np.log(betas)
    f = {"small": 0, "learned": None if v is None else (v + 1) / 2}.get(variance)
    log_variance = f * high[index] + (1 - f) * low[index] if f is not None else high[index]
    x0 = (x - np.sqrt(1 - alpha_bar[index]) * eps) / np.sqrt(alpha_bar[index])
    x0 = np.clip(x0, -1, 1) if clip else x0
    mean = (
        betas[index] * np.sqrt(before[index]) / (1 - alpha_bar[index]) * x0
        + (1 - before[index]) * np.sqrt(1 - betas[index]) / (1 - alpha_bar[index]) * x
    )
    return mean + (index > 0) * np.exp(0.5 * log_variance) * z


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_step_is_adms_clipped_p_sample(variance):
    betas = np.linspace(1e-4, 0.02, 1000)
    x, eps, v, z = draw(3)
    v = np.tanh(v)
    t = np.array([1, 2, 50, 500, 900, 1000])
    pred = Prediction(eps, v if variance == "learned" else None)
    out = sampler.ancestral_step(
        LINEAR,
        x,
        pred,
        jnp.asarray(t),
        jnp.asarray(t) - 1,
        z,
        variance=variance,
        x0_fn=sampler.clip_x0,
    )
    for row in range(6):
        want = official_step(betas, x[row], eps[row], t[row] - 1, z[row], variance, v[row])
        np.testing.assert_allclose(out[row], want, atol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("t", [1, 400, 1000])
def test_the_last_step_adds_no_noise_and_stays_finite(variance, t):
    x, eps, v, z = draw(4)
    step = lambda z: sampler.ancestral_step(  # noqa: E731
        COSINE, x, Prediction(eps, v), jnp.int32(t), jnp.int32(0), z, variance=variance
    )
    np.testing.assert_array_equal(step(z), step(100 * z))
    np.testing.assert_allclose(
        step(z), process.x0_from_eps(COSINE, x, jnp.int32(t), eps), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_a_guided_last_step_after_respacing_is_moved_by_the_respaced_variance(variance):
    """ADM's condition_mean at index 0: its FIXED_SMALL variance is 0, the others are of index 1."""
    x, eps, v, z = (jnp.asarray(a, jnp.float32) for a in draw(8))
    ts, v = np.array([900, 700, 300, 0]), jnp.tanh(v)
    alpha_bar = np.asarray(LINEAR.signal, float)[[300, 700, 900]] ** 2
    betas = 1 - alpha_bar / np.append(1, alpha_bar[:-1])
    low, f = betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1]), (np.asarray(v) + 1) / 2
    moved = {"small": 0, "large": low, "learned": betas[0] ** f * low ** (1 - f)}[variance]

    def run(ts, shift=None):
        denoise = lambda x, t, cond: Prediction(eps, v)  # noqa: E731
        return sampler.ancestral(denoise, LINEAR, x, ts, None, jax.random.key(0),
                                 variance=variance, shift=shift)  # fmt: skip

    shift = lambda x, mean, t, s, cond: jnp.where(s == 0, 100 * z, 0.0)  # noqa: E731
    np.testing.assert_allclose(run(ts, shift) - run(ts), 100 * moved * z, rtol=1e-4, atol=1e-4)


def test_x0_fn_moves_x0_and_eps_is_derived_again_from_it():
    x, eps, _, z = draw(5)
    x, t, s = 2 * x, jnp.int32(600), jnp.int32(300)
    a, before = (np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[i] for i in (599, 299))
    x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
    assert (np.abs(x0) > 1).mean() > 0.3
    x0 = np.clip(x0, -1, 1)
    eps_again = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    out = sampler.ddim_step(LINEAR, x, Prediction(eps), t, s, z, x0_fn=sampler.clip_x0)
    want = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps_again
    np.testing.assert_allclose(out, want, atol=1e-5)


# Whole runs with a denoiser of which only t and x matter


def wave(x, t, cond):
    return Prediction(jnp.tanh(x) * jnp.cos(t / 10)[:, None])


def official_ddim(betas, index, x):
    """ADM's respaced DDIM in float64: new betas for the kept indices, the network gets the old."""
    alpha_bar = np.cumprod(1 - betas)[index]
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    alpha_bar = np.cumprod(1 - betas)
    for k in reversed(range(len(index))):
        eps = np.tanh(x) * np.cos((index[k] + 1) / 10)  # our t
        before = alpha_bar[k - 1] if k else 1.0
        x0 = (x - np.sqrt(1 - alpha_bar[k]) * eps) / np.sqrt(alpha_bar[k])
        x = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps
    return x


@pytest.mark.parametrize("steps", [50, 10])
def test_sampling_respaces_as_adm_and_hands_the_network_the_original_time(steps):
    """All steps: respacing is the identity; fewer: the tables are those of the kept times."""
    s, betas = schedule.linear(50, 1e-4, 0.01), 20 * np.linspace(1e-4, 0.01, 50)
    x = draw(6)[0]
    ts = sampler.timesteps(50, steps)
    out = sampler.sample(wave, s, x, ts, None, jax.random.key(0))
    want = official_ddim(betas, ts[-2::-1] - 1, x.astype(float))
    np.testing.assert_allclose(out, want, atol=1e-5, rtol=1e-5)


def test_sample_is_the_last_of_sample_path_which_starts_with_what_was_given():
    x, ts = jnp.asarray(draw(7)[0]), sampler.timesteps(1000, 7)
    args = (wave, LINEAR, x, ts, None, jax.random.key(1))
    path = sampler.sample_path(*args, eta=1.0)
    assert path.shape == (8, *x.shape)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_allclose(path[-1], sampler.sample(*args, eta=1.0), atol=1e-5)


@pytest.mark.parametrize("run", [sampler.sample, sampler.ancestral])
def test_a_row_does_not_depend_on_the_size_of_its_batch(run):
    x = jax.random.normal(jax.random.key(2), (8, 3))
    kwargs = {"eta": 1.0} if run is sampler.sample else {}
    ts, key = sampler.timesteps(1000, 7), jax.random.key(3)
    few, many = (run(wave, LINEAR, x[:n], ts, None, key, **kwargs) for n in (4, 8))
    np.testing.assert_allclose(few, many[:4], atol=1e-6)
    assert np.abs(many[:4] - many[4:]).min() > 1e-4  # the rows have their own noise


def test_every_step_has_its_own_noise_and_another_key_another_run():
    """eps = 0 and a random walk (VE): each step's increment is the noise itself."""
    still = lambda x, t, cond: Prediction(x / VE.noise[t][:, None])  # x0 = 0  # noqa: E731
    x, ts = jnp.zeros((200, 2)), np.array([300, 299, 298, 297], np.int32)
    path = sampler.sample_path(still, VE, x, ts, None, jax.random.key(0), eta=1.0)
    step = np.diff(np.asarray(path), axis=0).reshape(3, -1)
    assert np.abs(np.corrcoef(step) - np.eye(3)).max() < 0.15
    other = sampler.sample(still, VE, x, ts, None, jax.random.key(1), eta=1.0)
    assert np.abs(other - path[-1]).min() > 0


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_sampling_draws_with_the_variance_it_was_asked_for(variance):
    """eps = 0 and x = 0: what one step leaves is its noise; the three sizes are 13% apart."""
    zero = lambda x, t, cond: Prediction(jnp.zeros_like(x), jnp.zeros_like(x))  # noqa: E731
    x, ts = jnp.zeros((2000, 2)), np.array([700, 300], np.int32)
    out = sampler.ancestral(zero, LINEAR, x, ts, None, jax.random.key(0), variance=variance)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    now, then = alpha_bar[699], alpha_bar[299]
    large = 1 - now / then
    small = large * (1 - then) / (1 - now)
    want = {"small": small, "large": large, "learned": np.sqrt(small * large)}[variance]
    np.testing.assert_allclose(out.std(), np.sqrt(want), rtol=0.04)


@pytest.mark.parametrize("run", [sampler.sample, sampler.ancestral])
def test_project_is_applied_after_every_step_so_a_known_coordinate_ends_exact(run):
    known = jnp.array([0.25, -0.5, 0.75, 1.0])

    def project(x, s, key):
        eps = jax.random.normal(key, known.shape)
        return x.at[:, 0].set(LINEAR.signal[s] * known + LINEAR.noise[s] * eps)

    x = jax.random.normal(jax.random.key(0), (4, 3))
    args = (wave, LINEAR, x, sampler.timesteps(1000, 7), None, jax.random.key(1))
    out, free = run(*args, project=project), run(*args)
    np.testing.assert_array_equal(out[:, 0], known)
    assert np.abs(out[:, 0] - free[:, 0]).max() > 1e-2
    if run is sampler.sample:
        path = sampler.sample_path(*args, project=project)
        np.testing.assert_allclose(path[-1], out, atol=1e-5)


# The exact mixture


MIXTURE = Mixture(
    weight=jnp.array([0.2, 0.3, 0.5]),
    mean=jnp.array([[2.0, 0.0], [-1.0, 1.5], [-0.5, -1.5]]),
    std=jnp.array([0.25, 0.35, 0.15]),
    label=jnp.array([0, 1, 1]),
)
N = 1200
ALL_STEPS = np.arange(1000, -1, -1, dtype=np.int32)


def assert_recovers(x, weight=MIXTURE.weight, n=N, bias=0.02):
    """Weights, means and widths within four standard errors and the bias of a finite step."""
    x = np.asarray(x)
    assert x.shape == (n, 2) and np.isfinite(x).all()
    mean, std = np.asarray(MIXTURE.mean), np.asarray(MIXTURE.std)
    nearest = ((x[:, None] - mean) ** 2).sum(-1).argmin(1)
    share = np.bincount(nearest, minlength=3) / n
    np.testing.assert_allclose(share, weight, atol=4 * 0.5 / n**0.5)
    for k in np.flatnonzero(np.asarray(weight)):
        mine, count = x[nearest == k], share[k] * n
        np.testing.assert_allclose(mine.mean(0), mean[k], atol=std[k] * (4 / count**0.5 + bias))
        np.testing.assert_allclose(mine.std(0), std[k], rtol=4 / (2 * count) ** 0.5 + bias)


def start(s, key=0):
    return s.noise[-1] * jax.random.normal(jax.random.key(key), (N, 2))


def nothing(n=N):
    return {"label": jnp.full(n, NULL)}


@jax.jit
def run_ddim(s, x, cond, eta):
    """All steps of sample, on any schedule."""
    return sampler.sample(MIXTURE.denoiser(s), s, x, ALL_STEPS, cond, jax.random.key(1), eta=eta)


@pytest.mark.parametrize("s", [LINEAR, COSINE, VE], ids=["linear", "cosine", "ve"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_and_ddpm_recover_the_mixture_from_noise(s, eta):
    assert_recovers(run_ddim(s, start(s), nothing(), eta))


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_sampling_recovers_the_mixture_with_every_variance(variance):
    exact = MIXTURE.denoiser(LINEAR)

    def denoise(x, t, cond):
        pred = exact(x, t, cond)
        return pred._replace(v=0.2 * jnp.sin(9 * x)) if variance == "learned" else pred

    x = sampler.ancestral(
        denoise, LINEAR, start(LINEAR), ALL_STEPS, nothing(), jax.random.key(2), variance=variance
    )
    assert_recovers(x)


def test_conditional_sampling_recovers_the_components_of_the_label():
    x = run_ddim(LINEAR, start(LINEAR), {"label": jnp.full(N, 1)}, 0.0)
    assert_recovers(x, weight=np.array([0, 0.375, 0.625]))


@jax.jit
def run_from(x, ts):
    """50 steps from wherever ts starts: one compiled length for all."""
    cond = nothing(len(x))
    return sampler.sample(MIXTURE.denoiser(LINEAR), LINEAR, x, ts, cond, jax.random.key(5))


@pytest.mark.parametrize("t0", [50, 300, 700])
def test_sampling_may_start_anywhere(t0):
    """From an exact draw of q(x_t0) the rest of the way leads to the mixture."""
    n = 4000
    x0, _ = MIXTURE.sample(jax.random.key(3), n)
    x = LINEAR.add_noise(x0, jnp.full(n, t0), jax.random.normal(jax.random.key(4), x0.shape))
    # 14 times a step shrink the narrowest component by a tenth.
    assert_recovers(run_from(x, np.rint(np.linspace(t0, 0, 51)).astype(np.int32)), n=n, bias=0.1)


def test_inversion_then_sampling_returns_the_nearer_the_more_steps():
    x0, label = MIXTURE.sample(jax.random.key(6), 64)
    cond, denoise, gaps = {"label": label}, MIXTURE.denoiser(COSINE), []

    @jax.jit
    def there_and_back(ts):
        x = sampler.invert(denoise, COSINE, x0, ts, cond)
        return sampler.sample(denoise, COSINE, x, ts, cond, jax.random.key(7))

    for steps in (10, 40, 160):
        ts = sampler.timesteps(1000, steps)[1:]  # not from T, where a cosine step is a leap
        gaps.append(float(np.abs(there_and_back(ts) - x0).mean()))
    assert gaps[1] < gaps[0] / 2 and gaps[2] < gaps[1] / 2 and gaps[2] < 0.02, gaps


def test_inversion_leads_to_the_noise_of_that_time():
    x0, label = MIXTURE.sample(jax.random.key(8), N)
    ts = sampler.timesteps(1000, 160)
    x = sampler.invert(MIXTURE.denoiser(LINEAR), LINEAR, x0, ts, nothing())
    np.testing.assert_allclose(x.mean(0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=0.1)


def test_guidance_at_scale_3_moves_away_from_the_other_classes():
    close = MIXTURE._replace(mean=MIXTURE.mean / 4, std=jnp.array([0.5, 0.5, 0.5]))
    exact, n = close.denoiser(LINEAR), 500
    cond, ts = {"label": jnp.zeros(n, jnp.int32)}, sampler.timesteps(1000, 50)

    @jax.jit
    def certainty(scale):
        guided = classifier_free(exact, {"label": jnp.array(NULL)}, scale)
        x = sampler.sample(guided, LINEAR, start(LINEAR)[:n], ts, cond, jax.random.key(0))
        return x.mean(0), close.log_prob(LINEAR)(x, jnp.zeros(n, jnp.int32), cond).mean()

    means, logs = zip(*(certainty(scale) for scale in (0.0, 1.0, 3.0)), strict=True)
    assert logs[0] < logs[1] - 0.3 and logs[1] < logs[2] - 0.3, logs
    away = np.asarray(close.mean[0] - (0.3 * close.mean[1] + 0.5 * close.mean[2]) / 0.8)
    np.testing.assert_allclose(means[1], close.mean[0], atol=0.1)
    assert (means[2] - means[1]) @ away / np.linalg.norm(away) > 0.2


@pytest.mark.parametrize("at", ["x_t", "mean"])
def test_means_shifted_by_the_exact_classifier_draw_from_the_class(at):
    exact, log_prob = MIXTURE.denoiser(LINEAR), MIXTURE.log_prob(LINEAR)
    shift = mean_shift(log_prob, 1.0, at=at)
    cond = {"label": jnp.full(N, 1)}
    ignorant = lambda x, t, cond: exact(x, t, nothing(len(x)))  # noqa: E731
    x = sampler.ancestral(
        ignorant, LINEAR, start(LINEAR), ALL_STEPS, cond, jax.random.key(3), shift=shift
    )
    assert_recovers(x, weight=np.array([0, 0.375, 0.625]), bias=0.04)


def test_a_shifted_mean_moves_by_the_variance_times_scale_times_gradient():
    x, z = jnp.ones((2, 3)), jnp.zeros((2, 3))
    pred, t, s = Prediction(0.5 * x), jnp.array([900, 300]), jnp.array([700, 100])
    log_prob = lambda x, t, cond: cond * (x**2).sum(-1)  # noqa: E731
    shift = mean_shift(log_prob, 3.0)
    move = lambda mean: shift(x, mean, t, s, jnp.array([1.0, 2.0]))  # noqa: E731
    step = lambda **kw: sampler.ancestral_step(COSINE, x, pred, t, s, z, variance="large", **kw)  # noqa: E731
    variance = np.exp(process.log_variance(COSINE, t, s, 2, "large", None))
    expected = variance * 3 * 2 * np.array([[1.0], [2.0]])  # the gradients are 2 x and 4 x, x = 1
    np.testing.assert_allclose(step(shift=move) - step(), expected * np.ones(3), rtol=1e-5)
