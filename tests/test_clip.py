"""CLIP against float64 numpy, its loss by hand, and that it learns to tell a few colours apart."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import erf, expit, log_softmax, softmax

from common import clip, devices, train
from common.clip import PAPER, SMALL, Clip, ClipConfig
from common.text import TextConfig

MINI = ClipConfig(
    size=8, patch=4, width=8, layers=2, heads=2, dim=6, end=0,
    text=TextConfig(vocabulary=9, length=5, width=12, layers=2, heads=3),
)  # fmt: skip
NOISED = replace(MINI, T=7)
TOKENS = np.array([[3, 1, 0, 0, 0], [8, 2, 5, 4, 0], [0, 0, 0, 0, 0]], np.int32)


def random_params(config, seed=0):
    """Every parameter away from zero."""
    shapes = jax.eval_shape(lambda: clip.init_params(config, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [0.3 * rng.standard_normal(a.shape, np.float32) for a in leaves]
    )


def pictures(n, seed=0, size=8):
    return np.random.default_rng(seed).uniform(-1, 1, (n, size, size, 3)).astype(np.float32)


def embeddings(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# The towers in numpy


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def transformer(h, p, layers, heads, causal, quick):
    for i in range(layers):
        linear = lambda x, name, i=i: x @ p[f"{name}_{i}"]["kernel"] + p[f"{name}_{i}"]["bias"]  # noqa: E731
        B, L, D = h.shape
        qkv = linear(layer_norm(h, p[f"ln1_{i}"]), "qkv").reshape(B, L, 3, heads, D // heads)
        q, k, v = np.moveaxis(qkv, 2, 0)
        logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(D // heads)
        if causal:
            logits[..., np.triu(np.ones((L, L), bool), 1)] = -np.inf
        h = h + linear(np.einsum("bhij,bjhd->bihd", softmax(logits, -1), v).reshape(B, L, D), "out")
        a = linear(layer_norm(h, p[f"ln2_{i}"]), "mlp_in")
        a = a * expit(1.702 * a) if quick else a * (1 + erf(a / np.sqrt(2))) / 2
        h = h + linear(a, "mlp_out")
    return layer_norm(h, p["final_norm"])


def image_features(config, p, x, t):
    c, mean = config, np.array([0.48145466, 0.4578275, 0.40821073])
    x = ((x.astype(np.float64) + 1) / 2 - mean) / np.array([0.26862954, 0.26130258, 0.27577711])
    kernel = p["patch"]["kernel"].reshape(c.patch, c.patch, 3, c.width)  # as a strided convolution
    places = range(0, c.size, c.patch)
    tokens = [np.einsum("bijc,ijcd->bd", x[:, i : i + c.patch, j : j + c.patch], kernel)
              for i in places for j in places]  # fmt: skip
    first = np.tile(p["class"], (len(x), 1)) if t is None else p["time"][t - 1]
    h = layer_norm(np.stack([first, *tokens], 1) + p["position"], p["ln_pre"])
    h = transformer(h, p["Transformer_0"], c.layers, c.heads, False, quick=t is None)
    return h[:, 0] @ p["out"]["kernel"]


def text_features(config, p, tokens):
    c = config.text
    h = p["Embed_0"]["embedding"][tokens] + p["position"]
    h = transformer(h, p["Transformer_0"], c.layers, c.heads, True, quick=not config.T)
    lengths = [list(row).index(config.end) for row in tokens]
    return h[np.arange(len(tokens)), lengths] @ p["out"]["kernel"]


@pytest.mark.parametrize("config", [MINI, NOISED], ids=["clean", "noised"])
def test_both_towers_are_the_official_ones_and_their_outputs_have_length_1(config):
    params, x = random_params(config), pictures(3)
    t = np.array([1, 4, 7]) if config.T else None
    images, texts, _ = jax.jit(Clip(config).apply)({"params": params}, x, TOKENS, t)
    p = jax.tree.map(np.float64, params)
    for got, want in (
        (images, image_features(config, p["image"], x, t)),
        (texts, text_features(config, p["text"], TOKENS)),
    ):
        assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), atol=2e-5)


def test_the_presets_have_the_sizes_that_they_promise():
    def count(config):
        shapes = jax.eval_shape(lambda: clip.init_params(config, jax.random.key(0)))
        return sum(p.size for p in jax.tree.leaves(shapes))

    assert count(PAPER) == 151_277_313
    assert 1_000_000 < count(SMALL) < count(replace(SMALL, T=1000)) < 2_250_000  # two bytes each


def test_the_text_feature_is_read_behind_the_last_word_and_sees_nothing_after():
    params = random_params(MINI)
    encode = jax.jit(lambda tokens: clip.encode_text(MINI, params, tokens))
    base = np.array([[3, 1, 0, 0, 0]] * 4)
    changed = base.copy()
    changed[1, 3:] = 5, 7  # behind its place
    changed[2, 1] = 2  # before it
    changed[3, 2] = 4  # one word more
    got, want = encode(changed), encode(base)
    assert_array_equal(got[1], want[1])
    assert np.abs(got[2:] - want[2:]).max(1).min() > 1e-3


def test_a_noised_clip_knows_t_only_through_the_token_of_t():
    params, x = random_params(NOISED), np.repeat(pictures(1), 4, axis=0)
    encode = jax.jit(lambda params, t: clip.encode_image(NOISED, params, x, t))
    t = np.array([0, 1, 4, 7])
    out = encode(params, t)
    assert_array_equal(out[0], out[1])  # a clean picture is read as t = 1
    assert np.abs(out[1] - out[2]).max() > 1e-3 and np.abs(out[2] - out[3]).max() > 1e-3
    time = params["image"]["time"]
    swapped = {**params, "image": {**params["image"], "time": time[::-1]}}  # rows of t and 8 - t
    assert_array_equal(encode(swapped, np.array([7, 7, 4, 1])), out)


def test_a_clean_clip_refuses_a_time():
    with pytest.raises(ValueError, match="clean pictures only"):
        clip.encode_image(MINI, random_params(MINI), pictures(1), np.array([1]))


# The loss


def loss_by_hand(image, text, tokens, log_scale):
    """Row by row in float64, leaving out other pairs with an equal caption."""
    logits, total, right = np.exp(log_scale) * image @ text.T, 0.0, 0
    for square in (logits, logits.T):
        for i, row in enumerate(square):
            kept = [j for j in range(len(row))
                    if j == i or tuple(tokens[j]) != tuple(tokens[i])]  # fmt: skip
            total -= log_softmax(row[kept])[kept.index(i)]
            right += kept[int(np.argmax(row[kept]))] == i
    return total / (2 * len(tokens)), right / (2 * len(tokens))


@pytest.mark.parametrize("copies", [[], [(0, 3), (3, 5), (1, 2)]], ids=["distinct", "duplicates"])
def test_info_nce_is_the_mean_cross_entropy_of_rows_and_columns(copies):
    image, text = embeddings(6, 4), embeddings(6, 4, seed=1)
    tokens = np.arange(12).reshape(6, 2)
    for a, b in copies:
        tokens[b], text[b] = tokens[a], text[a]
    got = clip.info_nce(*map(jnp.float32, (image, text)), tokens, jnp.float32(1.5))
    assert_allclose(got, loss_by_hand(image, text, tokens, 1.5), rtol=1e-5)


def test_equal_captions_do_not_hold_the_loss_up():
    """All pictures alike, two captions, four times each: with twins as negatives it is log 4."""
    two = np.eye(2, 4, dtype=np.float32)[[0, 1] * 4]
    tokens = np.array([[1], [2]] * 4)
    loss, accuracy = clip.info_nce(two, two, tokens, jnp.log(100.0))
    assert loss < 1e-6 and accuracy == 1
    gradient = jax.grad(lambda a: clip.info_nce(a, two, tokens, jnp.log(100.0))[0])(two)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_a_batch_split_over_devices_has_the_loss_and_gradient_of_the_whole():
    """vmap with an axis name stands for pmap; train.py averages both over the axis."""
    maps = (np.random.default_rng(2).standard_normal((4, 3)), np.eye(4, 3))
    params = {"image": jnp.float32(maps[0]), "text": jnp.float32(maps[1]), "s": jnp.float32(1)}
    tokens = np.array([[1], [2], [3], [1], [4], [2]])
    data = {"image": jnp.float32(embeddings(6, 4)), "text": jnp.float32(embeddings(6, 4, 1))}

    def loss(params, data, tokens, axis):
        image, text = (clip.normalise(data[k] @ params[k]) for k in ("image", "text"))
        return clip.info_nce(image, text, tokens, params["s"], axis)[0]

    value_and_grad = jax.value_and_grad(loss)
    whole = value_and_grad(params, data, tokens, None)
    split = lambda a: a.reshape(2, 3, *a.shape[1:])  # noqa: E731
    part = jax.vmap(lambda d, k: value_and_grad(params, d, k, "data"), axis_name="data")
    parts = part(jax.tree.map(split, data), split(tokens))
    jax.tree.map(lambda a, b: assert_allclose(a.mean(0), b, rtol=1e-5, atol=1e-6), parts, whole)


def test_the_logit_scale_stops_at_100_and_can_come_back():
    tx = optax.chain(optax.sgd(1.0), clip.clip_scale())
    params = {"log_scale": jnp.log(80.0), "w": jnp.zeros(2)}
    state, seen = tx.init(params), []
    for push in (-0.1, -5.0, -0.3, 0.2):
        grads = {"log_scale": jnp.float32(push), "w": jnp.ones(2)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(jnp.exp(params["log_scale"])))
    assert_allclose(seen, [80 * np.exp(0.1), 100, 100, 100 * np.exp(-0.2)], rtol=1e-6)
    assert_array_equal(params["w"], [-4, -4])


# Zero-shot and retrieval


def test_zero_shot_averages_the_prompts_of_a_class_at_length_1_and_takes_the_nearest():
    prompts = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1.0]]])
    classes = clip.class_embeddings(prompts)
    assert_allclose(classes, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]])
    # Were the mean not normalised, class 0 would lose the last picture to class 1.
    images = np.array([[0.9, 0.1, 0.42], [0.1, 0.1, 0.99], [0.53, 0.53, 0.66]])
    assert_array_equal(clip.zero_shot(images, classes), [0, 1, 0])


def test_recall_counts_queries_with_a_relevant_one_among_the_first_k():
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.1, 0.3], [0.5, 0.6, 0.4]])
    relevant = np.eye(3, dtype=bool)
    assert [clip.recall(similarity, relevant, k) for k in (1, 2, 3)] == [1 / 3, 1 / 3, 1]
    relevant[2, 1] = True
    assert clip.recall(similarity, relevant, 1) == 2 / 3


def test_embedding_many_pictures_takes_bytes_or_floats_in_chunks(monkeypatch):
    params = random_params(MINI)
    images = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    whole = clip.embed_images(MINI, params, images)
    monkeypatch.setattr(clip, "CHUNK", 2)
    assert_allclose(
        clip.embed_images(MINI, params, images / np.float32(127.5) - 1), whole, atol=1e-6
    )
    assert whole.shape == (5, 6)
    want = clip.encode_image(MINI, params, jnp.float32(images[:1]) / 127.5 - 1)
    assert_allclose(whole[:1], want, atol=1e-5)


@pytest.mark.slow
def test_sixty_steps_on_pictures_of_one_colour_pair_each_with_its_word():
    config = replace(MINI, width=32, layers=1, dim=16)
    colours = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, 1, 1]])
    x = np.broadcast_to(colours[:, None, None], (6, 8, 8, 3)).astype(np.float32)
    tokens = np.zeros((6, 5), np.int32)
    tokens[:, 0] = np.arange(1, 7)
    tx = optax.chain(optax.adam(3e-3), clip.clip_scale())

    def loss_fn(params, batch, keys):
        image, text, log_scale = Clip(config).apply({"params": params}, *batch)
        loss, accuracy = clip.info_nce(image, text, batch[1], log_scale)
        return loss, {"accuracy": accuracy}

    init = lambda key: clip.init_params(config, key)  # noqa: E731
    state = train.init_state(init, tx, jax.random.key(0))
    step = devices.jit_step(train.make_train_step(loss_fn, tx), (x, tokens))
    accuracy = []
    for i in range(60):
        keys = train.example_keys(jax.random.key(1), i, 6)
        state, metrics = step(state, np.arange(6), keys)
        accuracy.append(float(metrics["accuracy"]))
    assert accuracy[0] < 0.5 and accuracy[-1] == 1
    images = clip.encode_image(config, state.params, x)
    texts = clip.encode_text(config, state.params, tokens)
    assert clip.recall(np.asarray(texts @ images.T), np.eye(6, dtype=bool), 1) == 1
