"""unCLIP's facts that are easily broken: what is scaled, what is dropped, what turns."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common import checkpoint, clip, sampler
from common.guidance import classifier_free
from common.mixture import Mixture
from common.process import x0_from_eps
from common.scenes.captions import VOCABULARY
from common.schedule import cosine
from common.text import WordTokenizer
from glide import model as glide
from unclip import ar_prior, diffusion_prior, model, train, upsampler
from unclip.manipulate import Components, slerp, text_diff
from unclip.sample import decode

DECODER, PRIOR, AR = model.TINY, diffusion_prior.TINY, ar_prior.TINY
D = DECODER.dim
TOKENS = WordTokenizer(VOCABULARY, 24).encode(["a red ball", "a blue cube", "a red star", ""])


def drawn(init, seed=0):
    """Parameters drawn by numpy, which compiles nothing; all away from zero."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.2, x.shape)), shapes)


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal((*shape, D))
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def keys(n=4):
    return jax.random.split(jax.random.key(3), n)


@pytest.fixture(scope="module")
def params():
    return drawn(lambda key: model.init_params(DECODER, key))


@pytest.fixture(scope="module")
def prior():
    return drawn(lambda key: diffusion_prior.init_params(PRIOR, key))


# The decoder.


def test_a_dropped_embedding_leaves_both_ways_into_the_network(params):
    """Zeros reach the added vector and the four tokens; the caption stays."""
    encode = jax.jit(lambda tokens, z: model.encode(DECODER, params, tokens, z))
    z = unit(4)
    one, other, none = (encode(TOKENS, a) for a in (z, unit(4, seed=1), 0 * z))
    for way in ("context", "vector"):
        assert np.abs(one[way] - other[way]).max() > 0.1
        assert np.abs(one[way] - none[way]).max() > 0.1
    extra = DECODER.extra_tokens
    assert one["context"].shape == (4, extra + 24, DECODER.text.width)
    assert_array_equal(one["context"][:, extra:], none["context"][:, extra:])  # the caption's
    # All rows without an embedding share four tokens: nothing of z is left in them.
    assert_allclose(none["context"][1:, :extra], none["context"][:-1, :extra], atol=1e-6)


def test_the_embedding_reaches_the_picture_by_both_ways(params):
    z, other = unit(1), unit(1, seed=1)
    encode = jax.jit(lambda z: model.encode(DECODER, params, TOKENS[:1], z))
    cond, changed = encode(z), encode(other)
    denoise = jax.jit(model.denoiser(DECODER, params))
    x, t = jax.random.normal(jax.random.key(2), (1, 32, 32, 3)), jnp.array([300])
    base = denoise(x, t, cond).eps
    for way in ("context", "vector"):
        assert np.abs(base - denoise(x, t, {**cond, way: changed[way]}).eps).max() > 1e-4


@pytest.mark.slow
def test_captions_and_embeddings_are_dropped_independently_in_training(params):
    """Each drop alone makes the loss blind to what it drops, and to nothing else."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8)}
    batch |= {"tokens": TOKENS[:, None].repeat(4, 1), "image_embedding": unit(4)}
    words = {**batch, "tokens": batch["tokens"][::-1]}
    picture = {**batch, "image_embedding": unit(4, seed=1)}
    for drop, drop_embedding in ((1.0, 0.0), (0.0, 1.0)):
        loss = jax.jit(train.make_loss(DECODER, drop, drop_embedding))
        base, other_words, other_picture = (
            float(loss(params, b, keys())[0]) for b in (batch, words, picture)
        )
        assert (base == other_words) == (drop == 1.0)
        assert (base == other_picture) == (drop_embedding == 1.0)


def test_drops_happen_at_their_rates_and_know_nothing_of_each_other(monkeypatch):
    """What the decoder is given over many rows: 50% captions, 10% embeddings, 5% both."""
    seen = {}

    def spy(self, variables, x, t, cond):
        seen.update(cond)
        return jnp.zeros((*x.shape[:3], 6))

    monkeypatch.setattr(model.Decoder, "apply", spy)
    n = 2000
    batch = {"image": np.zeros((n, 4, 4, 3), np.uint8), "image_embedding": unit(n)}
    batch["tokens"] = np.ones((n, 4, 24), np.int32)
    train.make_loss(DECODER, 0.5, 0.1)({}, batch, keys(n))
    no_words = (seen["tokens"] == 0).all(1)
    no_picture = (seen["image_embedding"] == 0).all(1)
    assert abs(no_words.mean() - 0.5) < 0.05
    assert abs(no_picture.mean() - 0.1) < 0.03
    assert abs((no_words & no_picture).mean() - 0.05) < 0.02


def test_who_begins_with_glide_has_its_weights_and_zeros_beside(tmp_path):
    base = drawn(lambda key: glide.init_params(glide.TINY, key))
    path = tmp_path / "glide.safetensors"
    checkpoint.save_weights(path, base, {"model": "glide", "config": asdict(glide.TINY)})
    begun = jax.jit(lambda key: model.begin_with_glide(DECODER, path, key))(jax.random.key(0))
    kernel = base["unet"]["conv_in"]["kernel"]
    assert_allclose(begun["unet"]["conv_in"]["kernel"], kernel, atol=1e-3)
    # No vector yet, whatever the embedding; so time and caption are what they were.
    encode = jax.jit(lambda z: model.encode(DECODER, begun, TOKENS, z))
    with_z, without = encode(unit(4)), encode(0 * unit(4))
    assert_array_equal(with_z["vector"], without["vector"])
    with pytest.raises(ValueError, match="no base"):
        model.begin_with_glide(replace(DECODER, size=64), path, jax.random.key(0))


# The diffusion prior.


def known(z):
    """A prior that says z (D,) whatever it is shown: its last layer is a constant."""
    params = drawn(lambda key: diffusion_prior.init_params(PRIOR, key))
    bias = np.sqrt(D) * z
    return {**params, "out": {"kernel": 0 * params["out"]["kernel"], "bias": np.float32(bias)}}


def test_the_prior_draws_unscaled_embeddings_that_no_clamp_has_bent():
    """x0 is known to be z, most of whose scaled numbers lie outside of [-1, 1]: z comes out."""
    z = np.zeros(D)
    z[:2] = 0.6, -0.8
    assert np.abs(np.sqrt(D) * z).max() > 3
    out = diffusion_prior.draw(PRIOR, known(z), TOKENS, unit(4), steps=5)
    assert_allclose(out, np.broadcast_to(z, (4, D)), atol=1e-3)


def test_the_prior_trains_on_scaled_embeddings_with_the_plain_error_of_x0():
    """For a prior that knows z the loss is 0; for one that says 0, the scaled z's mean square."""
    z = unit(1)
    batch = {"tokens": TOKENS[:, None], "text_embedding": unit(4, 1, seed=1)}
    batch["image_embedding"] = z.repeat(4, 0)
    loss = jax.jit(diffusion_prior.make_loss(PRIOR, 0.1))
    assert_allclose(loss(known(z[0]), batch, keys())[0], 0, atol=1e-6)
    assert_allclose(loss(known(0 * z[0]), batch, keys())[0], 1, rtol=1e-5)


def test_dropping_the_text_does_not_null_the_diffusion_state(prior):
    """Without text the prior still sees x; with the text dropped always, it sees nothing of it."""
    apply = jax.jit(lambda x, cond: diffusion_prior.Prior(PRIOR).apply(
        {"params": prior}, x, jnp.full(4, 50), cond))  # fmt: skip
    null = diffusion_prior.null_cond(PRIOR, 4)
    assert set(null) == {"tokens", "text_embedding"}
    x = np.float32(np.random.default_rng(0).normal(size=(2, 4, D)))
    assert np.abs(apply(x[0], null) - apply(x[1], null)).min(0).max() > 1e-3
    cond = {"tokens": TOKENS, "text_embedding": unit(4)}
    assert np.abs(apply(x[0], cond) - apply(x[0], null))[:3].max(1).min() > 1e-3

    loss = jax.jit(diffusion_prior.make_loss(PRIOR, 1.0))
    batch = {"tokens": TOKENS[:, None], "text_embedding": unit(4, 1), "image_embedding": unit(4)}
    base = loss(prior, batch, keys())[0]
    other_text = {**batch, "text_embedding": unit(4, 1, seed=1), "tokens": TOKENS[::-1, None]}
    assert base == loss(prior, other_text, keys())[0]
    assert base != loss(prior, {**batch, "image_embedding": unit(4, seed=1)}, keys())[0]


def test_the_noised_embedding_is_the_same_whether_the_text_is_dropped_or_not(monkeypatch):
    """In training for every row, and in sampling for both halves of guidance's batch."""
    seen = []

    def spy(self, variables, x, t, cond):
        seen.append(x)
        return 0.5 * x

    monkeypatch.setattr(diffusion_prior.Prior, "apply", spy)
    batch = {"tokens": TOKENS[:, None], "text_embedding": unit(4, 1), "image_embedding": unit(4)}
    for drop in (0.0, 1.0):
        diffusion_prior.make_loss(PRIOR, drop)({}, batch, keys())
    assert_array_equal(seen[0], seen[1])
    # A prior that looks at nothing but x says the same with and without text, at any scale.
    config = replace(PRIOR, T=90)  # none that another test has compiled
    options = {"steps": 3, "best_of": 1}
    one, five = (
        diffusion_prior.draw(config, {}, TOKENS, unit(4), guidance_scale=s, **options)
        for s in (1.0, 5.0)
    )
    assert_allclose(one, five, atol=2e-4)  # a scale of 5 is also 5 times the rounding


def test_the_prior_is_causal_in_the_order_text_time_image_query(prior):
    """The hidden state at each place changes with what stands at or before it, and no other."""
    cond = {"tokens": TOKENS[:1], "text_embedding": unit(1)}
    x, t = np.sqrt(D) * unit(1, seed=1), jnp.array([50])

    def states(x, t, cond):
        _, kept = diffusion_prior.Prior(PRIOR).apply(
            {"params": prior}, x, t, cond, capture_intermediates=True, mutable=["intermediates"]
        )
        return kept["intermediates"]["Transformer_0"]["__call__"][0][0]

    states = jax.jit(states)
    base, L = states(x, t, cond), 24
    assert base.shape[0] == L + 4
    changes = {
        L: states(x, t, {**cond, "text_embedding": unit(1, seed=2)}),
        L + 1: states(x, jnp.array([51]), cond),
        L + 2: states(-x, t, cond),
        1: states(x, t, {**cond, "tokens": np.where(np.arange(L) == 1, 7, TOKENS[:1])}),
    }
    for place, other in changes.items():
        moved = np.abs(np.asarray(other - base)).max(1) > 1e-5
        assert not moved[:place].any() and moved[place] and moved[-1]


def test_the_better_of_two_is_the_one_nearer_to_the_text():
    z, text = unit(5, 3), unit(5, seed=1)
    kept = diffusion_prior.best(z, text)
    dots = np.einsum("bnd,bd->bn", z, text)
    assert_allclose((kept * text).sum(1), dots.max(1), rtol=1e-5)


def test_guiding_the_prior_mixes_its_two_answers(prior):
    """At one time, guided x0 = x0_null + s (x0_text - x0_null): eps and x0 agree on it."""
    schedule = diffusion_prior.make_schedule(PRIOR)
    cond = {"tokens": TOKENS, "text_embedding": unit(4)}
    null = diffusion_prior.null_cond(PRIOR, 4)
    x, t = unit(4, seed=1), jnp.full(4, 40)
    denoise = jax.jit(diffusion_prior.denoiser(PRIOR, prior))
    x0 = lambda eps: x0_from_eps(schedule, x, t, eps)  # noqa: E731
    a, b = x0(denoise(x, t, cond).eps), x0(denoise(x, t, null).eps)
    guided = classifier_free(denoise, null, 3.0)(x, t, cond).eps
    assert_allclose(x0(guided), b + 3 * (a - b), atol=1e-3)


# The autoregressive prior.


@pytest.fixture(scope="module")
def code():
    """A code of embeddings whose variance falls, and those embeddings."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3000, D)) * np.linspace(1, 0.05, D) + 0.3
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return ar_prior.fit_code(AR, z, rng.normal(size=500)), np.float32(z)


def test_codes_are_in_order_of_variance_and_give_back_the_embedding(code):
    code, z = code
    codes = ar_prior.to_codes(code, z)
    assert codes.shape == (3000, AR.components) and codes.min() == 0
    assert codes.max() == AR.buckets - 1
    spread = np.asarray(code["centres"]).var(1)
    assert (np.diff(spread) < 0).all()
    counts = np.bincount(codes[:, 0], minlength=AR.buckets)
    assert counts.max() - counts.min() <= 2  # quantiles
    back = np.asarray(ar_prior.from_codes(code, jnp.asarray(codes)))
    kept = (z - code["mean"]) @ code["axes"].T @ code["axes"] + code["mean"]
    lost = lambda a: np.square(a - z).sum() / np.square(z - z.mean(0)).sum()  # noqa: E731
    assert lost(back) < lost(kept) + 0.02
    assert ar_prior.components_needed(z, 0.5) < ar_prior.components_needed(z, 0.01) <= D


def test_a_code_is_guessed_from_those_before_it_and_from_the_whole_prefix():
    params = drawn(lambda key: ar_prior.init_params(AR, key))["network"]
    apply = jax.jit(lambda cond, codes: ar_prior.ArPrior(AR).apply({"params": params}, cond, codes))
    cond = {"tokens": TOKENS, "text_embedding": unit(4), "dot": np.arange(4, dtype=np.int32)}
    codes = np.random.default_rng(0).integers(0, AR.buckets, (4, AR.components), np.int32)
    base = apply(cond, codes)
    assert base.shape == (4, AR.components, AR.buckets)
    for k in (0, 3, AR.components - 1):
        changed = codes.copy()
        changed[:, k] = (changed[:, k] + 5) % AR.buckets
        moved = np.abs(np.asarray(apply(cond, changed) - base)).max((0, 2)) > 1e-5
        assert_array_equal(moved, np.arange(AR.components) > k)
    for name, other in (
        ("tokens", TOKENS[::-1].copy()), ("text_embedding", unit(4, seed=1)),
        ("dot", np.arange(4, dtype=np.int32)[::-1].copy()),
    ):  # fmt: skip
        assert np.abs(np.asarray(apply({**cond, name: other}, codes) - base))[:, 0].max() > 1e-3


def test_the_dot_product_is_drawn_from_the_upper_half(code, monkeypatch):
    code, z = code
    params = {"network": drawn(lambda key: ar_prior.init_params(AR, key))["network"], "code": code}
    seen = []
    real = ar_prior.compiled(AR)
    spy = lambda config: lambda p, cond, *a: seen.append(cond) or real(p, cond, *a)  # noqa: E731
    monkeypatch.setattr(ar_prior, "compiled", spy)
    tokens, texts = TOKENS.repeat(4, 0), unit(16)
    out = ar_prior.draw(AR, params, tokens, texts, seed=1)
    ar_prior.draw(AR, params, tokens, texts, percentile=0, seed=1)
    half, whole = (set(np.asarray(cond["dot"]).tolist()) for cond in seen)
    assert half == {2, 3} and whole == {0, 1, 2, 3}
    values = np.random.default_rng(0).normal(size=4000)
    buckets = ar_prior.to_dot({"dots": np.quantile(values, [0.25, 0.5, 0.75])}, values)
    assert (buckets[values > np.median(values)] >= 2).all()
    # What is drawn are values of the code.
    codes = ar_prior.to_codes(code, out)
    assert_allclose(ar_prior.from_codes(code, jnp.asarray(codes)), out, atol=0.15)


def test_the_ar_prior_drops_text_embedding_and_dot_product_together(code):
    params = {"network": drawn(lambda key: ar_prior.init_params(AR, key))["network"]}
    batch = {"tokens": TOKENS[:, None], "text_embedding": unit(4, 1)}
    batch |= {"dot": np.zeros((4, 1), np.int32), "codes": np.ones((4, AR.components), np.int32)}
    other = {"tokens": TOKENS[::-1, None], "text_embedding": unit(4, 1, seed=1)}
    other["dot"] = np.full((4, 1), 2, np.int32)
    loss = jax.jit(ar_prior.make_loss(AR, 1.0))
    base = loss(params, batch, keys())[0]
    for name, value in other.items():
        assert base == loss(params, {**batch, name: value}, keys())[0]
    loss = jax.jit(ar_prior.make_loss(AR, 0.0))
    base = loss(params, batch, keys())[0]
    for name, value in other.items():
        assert base != loss(params, {**batch, name: value}, keys())[0]


# The upsampler.


def test_the_blur_is_a_gaussian_of_three_pixels_that_keeps_the_mean():
    x = np.zeros((1, 7, 7, 1), np.float32)
    x[0, 3, 3] = 1
    out = np.asarray(upsampler.blur(jnp.asarray(x)))[0, :, :, 0]
    side = np.exp(-0.5 / 0.6**2) / (1 + 2 * np.exp(-0.5 / 0.6**2))
    line = np.array([0, 0, side, 1 - 2 * side, side, 0, 0])
    assert_allclose(out[3], (1 - 2 * side) * line, rtol=1e-5)
    assert_allclose(out.sum(), 1, rtol=1e-6)
    assert_allclose(upsampler.blur(jnp.ones((1, 4, 4, 3))), 1, rtol=1e-6)


# Manipulations.


@pytest.mark.parametrize("shape", [(16,), (4, 4, 3)])
def test_slerp_is_a_rotation(shape):
    """The norm is kept, the ends are exact, and the angle grows evenly."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, *shape))
    flat = lambda v: v.reshape(5, -1)  # noqa: E731
    length = np.linalg.norm(flat(a), axis=1)
    b *= (length / np.linalg.norm(flat(b), axis=1)).reshape(-1, *[1] * len(shape))
    angle = lambda u, v: np.arccos((flat(u) * flat(v)).sum(1) / length**2)  # noqa: E731
    for theta in (0.2, 0.5, 0.9):
        c = slerp(a, b, theta)
        assert_allclose(np.linalg.norm(flat(c), axis=1), length, rtol=1e-5)
        assert_allclose(angle(a, c), theta * angle(a, b), atol=1e-3)
        assert_allclose(angle(c, b), (1 - theta) * angle(a, b), atol=1e-3)
    assert_array_equal(slerp(a, b, 0), np.float32(a))
    assert_array_equal(slerp(a, b, 1), np.float32(b))
    assert_allclose(slerp(a, a, 0.3), np.float32(a), rtol=1e-6)
    each = slerp(a, b, np.linspace(0, 1, 5))  # one theta per row
    assert_allclose(each[2], slerp(a, b, 0.5)[2], rtol=1e-5)
    with pytest.raises(ValueError, match="opposite"):
        slerp(a, -a, 0.5)


def test_a_text_diff_at_theta_0_is_the_identity_and_turns_towards_the_difference():
    z, target, source = unit(4), unit(4, seed=1), unit(4, seed=2)
    assert_array_equal(text_diff(z, target, source, 0), z)
    diff = (target - source) / np.linalg.norm(target - source, axis=1, keepdims=True)
    assert_allclose(text_diff(z, target, source, 1), diff, atol=1e-6)
    with pytest.raises(ValueError, match="nothing"):
        text_diff(z, target, target, 0.5)


def test_more_components_hold_more_of_an_embedding():
    z = unit(200)
    pca = Components(z)
    errors = [np.square(pca.keep(z, k) - z).sum() for k in (0, 4, 8, D)]
    assert (np.diff(errors) < 0).all() and errors[-1] < 1e-6
    assert_allclose(np.linalg.norm(pca.keep(z, 3), axis=1), 1, rtol=1e-5)


def test_inversion_and_sampling_give_back_points_of_the_exact_mixture():
    """x0 -> x_T -> x0 with the closed-form denoiser: nearer the more steps, exact in the limit."""
    means = jax.random.uniform(jax.random.key(0), (3, 8), minval=-1, maxval=1)
    mixture = Mixture(jnp.full(3, 1 / 3), means, jnp.array([0.2, 0.3, 0.4]), jnp.arange(3))
    schedule = cosine(1000)
    x0, label = mixture.sample(jax.random.key(1), 64)
    cond, denoise = {"label": label}, mixture.denoiser(schedule)
    worst = []
    for steps in (50, 200, 1000):
        ts = sampler.timesteps(1000, steps)

        @jax.jit
        def back(x0, key, ts=ts):
            x = sampler.invert(denoise, schedule, x0, ts, cond)
            return x, sampler.sample(denoise, schedule, x, ts, cond, key)

        x, again = back(x0, jax.random.key(2))
        worst.append(float(np.sqrt(np.square(again - x0).mean())))
    assert worst[0] > worst[1] > worst[2] and worst[2] < 0.01
    assert abs(float(x.std()) - 1) < 0.1


@pytest.mark.slow
def test_noise_of_a_row_is_the_same_for_all_numbers_of_rows_and_prompts_matter(params):
    z = unit(3)
    options = {"steps": 2, "seed": 5, "chunk": 4}
    three = decode(DECODER, params, z, **options)
    named = decode(DECODER, params, z, ["a red ball"] * 3, **options)
    two = decode(DECODER, params, z[:2], **{**options, "chunk": 4})
    assert three.shape == (3, 32, 32, 3) and three.dtype == np.uint8
    assert np.abs(three[:2].astype(int) - two).max() <= 1
    assert (three != named).mean() > 0.1 > (three[:2] != two).mean()
    longer = decode(DECODER, params, 3 * z, **options)
    assert np.abs(three.astype(int) - longer).max() <= 1  # brought to CLIP's length


def test_the_clip_of_the_presets_fits_them():
    for preset in ("tiny", "small"):
        sizes = {clip.PRESETS[preset].dim, model.PRESETS[preset].dim}
        sizes |= {diffusion_prior.PRESETS[preset].dim, ar_prior.PRESETS[preset].dim}
        assert len(sizes) == 1
