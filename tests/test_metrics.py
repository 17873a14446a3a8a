"""Each score is checked against a number that can be had without it."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from common import metrics

RNG = np.random.default_rng


def whitened(n, d, seed=0):
    """Points whose sample mean is exactly 0 and whose unbiased covariance is exactly I."""
    x = RNG(seed).standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    a = whitened(300, 4)
    mean, std = np.array([1.0, -2.0, 0.0, 0.5]), np.array([2.0, 0.5, 1.0, 3.0])
    expected = (mean**2).sum() + ((std - 1) ** 2).sum()
    np.testing.assert_allclose(metrics.frechet_distance(a, a * std + mean), expected, rtol=1e-9)


def test_frechet_distance_is_the_pytorch_fid_formula_when_covariances_do_not_commute():
    a = RNG(1).standard_normal((400, 12)) @ RNG(2).standard_normal((12, 12))
    b = RNG(3).standard_normal((500, 12)) @ RNG(4).standard_normal((12, 12)) + 0.3
    cov_a, cov_b, gap = np.cov(a.T), np.cov(b.T), a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    np.testing.assert_allclose(metrics.frechet_distance(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.frechet_distance(b, a), expected, rtol=1e-6)


def test_frechet_distance_of_identical_sets_is_zero_even_with_fewer_points_than_features():
    for n in (5, 500):
        a = RNG(0).standard_normal((n, 40)).astype(np.float32)
        assert metrics.frechet_distance(a, a) < 1e-9 * n


def test_kid_is_the_unbiased_mmd_written_out_by_hand():
    a, b = RNG(0).standard_normal((7, 3)), RNG(1).standard_normal((5, 3)) + 1

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    aa = np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    bb = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    ab = np.mean([k(x, y) for x in a for y in b])
    np.testing.assert_allclose(metrics.kid(a, b), aa + bb - 2 * ab, rtol=1e-12)


def test_kid_does_not_depend_on_the_block_size(monkeypatch):
    a, b = RNG(0).standard_normal((50, 3)), RNG(1).standard_normal((40, 3))
    whole = metrics.kid(a, b), metrics.precision_recall(a, b)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    np.testing.assert_allclose(metrics.kid(a, b), whole[0], rtol=1e-9)
    assert metrics.precision_recall(a, b) == whole[1]


def test_kid_has_mean_zero_under_one_distribution_and_grows_with_a_shift():
    draws = [RNG(s).standard_normal((2, 60, 8)) for s in range(300)]
    same = np.array([metrics.kid(a, b) for a, b in draws])
    assert abs(same.mean()) < 3 * same.std() / np.sqrt(len(same))
    assert (same < 0).any()
    assert metrics.kid(draws[0][0], draws[0][1] + 1) > 10 * same.std()


def test_kid_over_subsets_agrees_with_the_whole_and_repeats_with_its_seed():
    a, b = RNG(0).standard_normal((400, 5)), RNG(1).standard_normal((400, 5)) + 0.5
    parts = metrics.kid(a, b, subsets=50, subset_size=100)
    np.testing.assert_allclose(parts, metrics.kid(a, b), rtol=0.1)
    assert parts == metrics.kid(a, b, subsets=50, subset_size=100)


def test_precision_and_recall_are_those_counted_by_hand_on_a_line():
    real = np.array([[0.0], [1.0], [3.0]])  # k=1 radii 1, 1, 2: covers [-1, 5]
    fake = np.array([[-1.0], [5.0], [5.5], [9.0]])  # k=1 radii 6, .5, .5, 3.5: [-7, 6], [5.5, 12.5]
    assert metrics.precision_recall(real, fake, k=1) == (2 / 4, 3 / 3)
    far = np.array([[100.0], [101.0], [3.0]])  # radii 1, 1, 97: only the last reaches the reals
    assert metrics.precision_recall(real, far, k=1) == (1 / 3, 1.0)


def test_mode_dropping_lowers_recall_and_noise_lowers_precision():
    real = RNG(0).standard_normal((500, 2)) + np.where(RNG(1).random((500, 1)) < 0.5, 20, -20)
    half = RNG(2).standard_normal((500, 2)) + 20
    precision, recall = metrics.precision_recall(real, half)
    assert precision > 0.9 and 0.4 < recall < 0.6
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    noisy = real + 10 * RNG(3).standard_normal(real.shape)
    assert metrics.precision_recall(real, noisy)[0] < 0.3


def test_clip_score_is_the_mean_cosine_and_ignores_lengths():
    image = np.array([[3.0, 0.0], [0.0, 2.0]])
    text = np.array([[1.0, 0.0], [5.0, 5.0]])
    np.testing.assert_allclose(metrics.clip_score(image, text), 100 * (1 + 0.5**0.5) / 2)


def test_wilson_interval_matches_published_values_and_stays_in_bounds():
    np.testing.assert_allclose(metrics.wilson_interval(81, 263), (0.2553, 0.3662), atol=1e-4)
    np.testing.assert_allclose(metrics.wilson_interval(0, 10), (0, 0.2775), atol=1e-4)
    assert metrics.wilson_interval(10, 10)[1] == 1 and metrics.wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="successes"):
        metrics.wilson_interval(3, 2)


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    values = RNG(0).standard_normal(400) + 5
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / 20, rtol=0.1)
    assert metrics.bootstrap_interval(values) == (low, high)


def test_elo_of_two_players_is_400_log10_of_the_odds():
    ratings = metrics.elo(np.array([[0, 75], [25, 0]]))
    np.testing.assert_allclose(ratings[0] - ratings[1], 400 * np.log10(3), rtol=1e-9)
    np.testing.assert_allclose(ratings.mean(), 0, atol=1e-9)


def test_elo_is_the_maximum_likelihood_and_recovers_the_ratings_that_made_the_games():
    truth = np.array([300.0, 0.0, -100.0, -200.0])
    odds = 1 / (1 + 10 ** ((truth[None] - truth[:, None]) / 400))
    np.testing.assert_allclose(metrics.elo(1000 * odds), truth, atol=1e-6)
    wins = RNG(0).integers(1, 200, (5, 5)) * 1.0

    def loss(r):
        return (wins * np.log1p(10 ** ((r[None] - r[:, None]) / 400))).sum()

    found = metrics.elo(wins)
    best = minimize(loss, np.zeros(5), method="BFGS").x
    np.testing.assert_allclose(found, best - best.mean(), atol=0.1)
    assert loss(found) <= loss(best) + 1e-9


def test_elo_of_an_unbeaten_player_needs_virtual_ties():
    wins = np.array([[0, 10], [0, 0]])
    with pytest.raises(ValueError, match="virtual_ties"):
        metrics.elo(wins)
    ratings = metrics.elo(wins, virtual_ties=1)
    np.testing.assert_allclose(ratings[0] - ratings[1], 400 * np.log10(10.5 / 0.5), rtol=1e-9)


def test_features_of_the_wrong_shape_or_with_nan_are_refused_in_one_sentence():
    good = np.zeros((4, 3))
    for bad in (np.zeros((4, 2)), np.zeros(4), np.full((4, 3), np.nan), np.zeros((1, 3))):
        for score in (metrics.frechet_distance, metrics.kid, metrics.precision_recall):
            with pytest.raises(ValueError, match="features"):
                score(good, bad)


def blobs(n, seed, size=32):
    """Soft coloured discs on a grey ground: a stand-in for scenes that needs no other room."""
    rng = RNG(seed)
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(size / 4, 3 * size / 4, (n, 2, 1, 1))
    away = np.hypot(y - centre[:, 0], x - centre[:, 1])[..., None]
    disc = np.clip(rng.uniform(4, 9, (n, 1, 1, 1)) - away, 0, 1)
    colour = rng.uniform(0, 255, (n, 1, 1, 3))
    return (disc * colour + (1 - disc) * rng.uniform(90, 160, (n, 1, 1, 1))).astype(np.uint8)


def test_scene_features_are_deterministic_and_do_not_depend_on_the_batch():
    images = blobs(150, 0)
    features = metrics.scene_features(images)
    assert features.shape == (150, 120)
    np.testing.assert_allclose(metrics.scene_features(images[140:]), features[140:], rtol=1e-4)
    assert metrics.scene_features(blobs(3, 0, size=64)).shape == (3, 120)
    with pytest.raises(ValueError, match="uint8"):
        metrics.scene_features(images / 255)


def test_scene_features_find_damaged_and_undiverse_sets_further_away_than_fresh_ones():
    real, fresh = blobs(400, 0), blobs(400, 1)
    spread = fresh.astype(int) + RNG(2).integers(-20, 21, fresh.shape)
    blurred = gaussian_filter(fresh, (0, 0.7, 0.7, 0))
    sets = {"fresh": fresh, "noisy": spread.clip(0, 255).astype(np.uint8), "blurred": blurred,
            "red": np.concatenate([fresh[..., :1], fresh[..., 1:] // 2], -1),
            "few": fresh[np.arange(400) % 20]}  # fmt: skip
    features = {name: metrics.scene_features(x) for name, x in sets.items()}
    base = metrics.scene_features(real)
    assert np.linalg.matrix_rank(np.cov(base.T)) == 120
    distance = {name: metrics.frechet_distance(base, f) for name, f in features.items()}
    assert all(d > 3 * distance["fresh"] for name, d in distance.items() if name != "fresh")
    assert metrics.precision_recall(base, features["few"])[1] < 0.5


def drawn(n, seed, rho=0.0):
    """n random scenes: pictures (n, 32, 32, 3), and captions with values swapped at rate rho."""
    from common.scenes.captions import caption
    from common.scenes.render import render
    from common.scenes.scene import draw_scene

    rng = RNG(seed)
    scenes = [draw_scene(rng) for _ in range(n)]
    return render(scenes, 32), [caption(s, rng, rho) for s in scenes]


def test_captions_are_true_of_their_own_renders_and_false_ones_are_caught():
    images, captions = drawn(200, 0)
    found = metrics.caption_accuracy(captions, images)
    assert {"valid", "count", "shape", "colour", "size", "place", "all"} <= found.keys()
    assert all(f["accuracy"] > 0.97 for f in found.values()), found
    assert all(f["low"] <= f["accuracy"] <= f["high"] for f in found.values())
    assert found["shape"]["n"] == 200 > found["size"]["n"] > 0, "size is claimed only sometimes"
    images, captions = drawn(200, 0, rho=1.0)
    swapped = metrics.caption_accuracy(captions, images)
    assert swapped["colour"]["accuracy"] < 0.05 and swapped["shape"]["accuracy"] < 0.05
    assert swapped["valid"]["accuracy"] > 0.97 and swapped["all"]["accuracy"] < 0.05


def test_noise_is_no_scene_and_keeps_no_caption():
    noise = RNG(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    found = metrics.caption_accuracy(["a red ball"] * 20, noise)
    assert found["valid"]["accuracy"] == found["all"]["accuracy"] == 0
    assert found["all"]["high"] < 0.2
    with pytest.raises(ValueError, match="3 captions for 20 images"):
        metrics.caption_accuracy(["a red ball"] * 3, noise)
