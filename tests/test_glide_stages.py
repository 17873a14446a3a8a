"""GLIDE's other models: inpainting, upsampler, class labels, classifier."""

import struct
import zlib
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made, program
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from common import checkpoint, run, train
from common.guidance import gradient_guidance
from common.process import Prediction, to_float
from glide import classes, classifier
from glide.__main__ import COMMANDS
from glide.inpaint import inpaint, known, random_keep_mask
from glide.loss import denoising_loss
from glide.model import (
    PRESETS,
    TINY,
    Glide,
    for_inpainting,
    init_params,
    load,
    make_schedule,
    tokenizer,
)
from glide.train import make_loss
from glide.upsampler import times, upsample

UPSAMPLER = PRESETS["tiny_upsampler"]
TOKENS = jnp.array([[5, 6, 7] + [0] * 21, [8] + [0] * 23])
ORANGE = np.full((2, 32, 32, 3), [250, 130, 10], np.uint8)


@pytest.fixture(scope="module")
def params():
    return made(lambda key: init_params(TINY, key))


def pictures(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# Inpainting


@pytest.mark.slow
@pytest.mark.parametrize("patch", [1, 2])
def test_a_model_made_for_inpainting_starts_as_the_one_it_came_from(patch):
    base = replace(TINY, unet=replace(TINY.unet, patch=patch, blocks=1, multipliers=(1, 1)))
    old = made(lambda key: init_params(base, key))
    config, new = for_inpainting(base, old)
    assert config == replace(base, inputs=("known",))
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, shapes)
    x, t = pictures(0, 2, 16, 16, 3), jnp.array([3, 700])
    beside = {"tokens": TOKENS, "known": pictures(2, 2, 16, 16, 4)}
    apply = jax.jit(lambda p: Glide(base).apply({"params": p}, x, t, {"tokens": TOKENS}))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def total(p):
        out = Glide(config).apply({"params": p}, x, t, beside)
        return jnp.square(out).sum(), out

    slopes, out = total(new)
    assert_allclose(out, apply(old), atol=1e-5)
    # Its new weights learn: the gradient by them is not zero.
    kernel = slopes["unet"]["conv_in"]["kernel"].reshape(3, 3, patch**2, 7, -1)
    assert np.all(np.abs(np.asarray(kernel)).max((0, 1, 2, 4)) > 0)


def test_random_masks_are_of_0_and_1_and_one_in_ten_keeps_nothing():
    masks = jax.vmap(lambda k: random_keep_mask(k, 32))(jax.random.split(jax.random.key(0), 2000))
    masks = np.asarray(masks)
    assert masks.shape == (2000, 32, 32, 1) and set(np.unique(masks)) == {0.0, 1.0}
    nothing = (masks == 0).all((1, 2, 3)).mean()
    assert 0.08 < nothing < 0.14  # and now and then three rectangles cover everything
    assert not (masks == 1).all((1, 2, 3)).any()
    rows = masks.mean((0, 2, 3))
    assert rows[16] < rows[0] - 0.1  # the middle is erased oftener than the border
    assert_array_equal(known(jnp.full((1, 2, 2, 3), 0.5), jnp.ones((1, 2, 2, 1)))[..., 3], 1)


@pytest.mark.parametrize("tuned", [True, False], ids=["fine-tuned", "replacement"])
def test_kept_pixels_come_back_exactly_and_the_hole_is_drawn(params, tuned):
    config, weights = for_inpainting(TINY, params) if tuned else (TINY, params)
    keep_masks = np.ones((2, 32, 32, 1))
    keep_masks[:, 8:24, 8:24] = 0
    prompts = ["a red ball", "a blue cube"]
    out = inpaint(config, weights, prompts, ORANGE, keep_masks, steps=3, seed=1)
    keep = np.broadcast_to(keep_masks == 1, out.shape)
    assert_array_equal(out[keep], ORANGE[keep])
    assert np.abs(out[~keep].astype(int) - ORANGE[~keep]).mean() > 5
    other = inpaint(config, weights, prompts, 255 - ORANGE, keep_masks, steps=3, seed=1)
    assert (out[~keep] != other[~keep]).any(), "the hole does not see its surroundings"


@pytest.fixture
def files(params, tmp_path):
    """Pictures that are wrong in one way each, and weights that are never reached."""
    Image.fromarray(ORANGE[0]).save(tmp_path / "a.png")
    Image.new("L", (32, 32)).save(tmp_path / "hole.png")
    Image.new("L", (16, 32)).save(tmp_path / "small.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "all.png")
    (tmp_path / "text.png").write_text("no picture")
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0),
        b"IDAT": b"no pixels",
    }
    parts = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v))
             for k, v in chunks.items()]  # fmt: skip
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    config = {**vars(TINY), "unet": vars(TINY.unet), "text": vars(TINY.text)}
    path = tmp_path / "tiny.safetensors"
    checkpoint.save_weights(path, params, {"model": "glide", "config": config, "recipe": {}})
    return tmp_path


WRONG = {
    "mask of another size": ({"keep-mask": "small.png"}, "small.png is 16 x 32"),
    "picture of another size": ({"image": "small.png"}, "--resize"),
    "no picture": ({"image": "text.png"}, "cannot read"),
    "no mask": ({"keep-mask": "text.png"}, "cannot read"),
    "no file": ({"image": "none.png"}, "none.png"),
    "30,000 pixels": ({"image": "huge.png"}, "900000000 pixels"),
    "nothing to draw": ({"keep-mask": "all.png"}, "keeps every pixel"),
    "guidance": ({"guidance-scale": "nan"}, "finite number"),
    "infinite guidance": ({"guidance-scale": "inf"}, "finite number"),
    "prompt": ({"prompt": "a redd ball"}, "unknown word 'redd'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_to_inpaint_gets_one_line_and_code_2(name, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    changes, words = WRONG[name]
    options = {"image": "a.png", "keep-mask": "hole.png", "prompt": "a red ball",
               "weights": "tiny.safetensors", "out": "new.png"} | changes  # fmt: skip
    args = [part for k, v in options.items() for part in (f"--{k}", v)]
    result = program(capsys, "glide", COMMANDS, "inpaint", *args)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert words in result.stderr and not (files / "new.png").exists()


# Upsampler


def test_the_upsampler_takes_glides_27_times():
    official = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355,
                377, 399, 400, 500, 599, 600, 799, 800, 997]  # fmt: skip
    assert_array_equal(times(1000), [t + 1 for t in reversed(official)] + [0])


@pytest.mark.slow
def test_the_upsampler_sees_the_small_picture_and_the_caption():
    weights = made(lambda key: init_params(UPSAMPLER, key))
    x, t = pictures(0, 2, 64, 64, 3), jnp.array([3, 700])
    apply = jax.jit(lambda cond: Glide(UPSAMPLER).apply({"params": weights}, x, t, cond))
    cond = {"tokens": TOKENS, "low_res": pictures(1, 2, 32, 32, 3)}
    out = apply(cond)
    assert out.shape == (2, 64, 64, 6)
    assert np.abs(out - apply({**cond, "low_res": -cond["low_res"]})).max() > 1e-3
    assert np.abs(out - apply({**cond, "tokens": TOKENS[::-1]})).max() > 1e-4
    large = upsample(UPSAMPLER, weights, ["a red ball", "a cube"], ORANGE)
    assert large.shape == (2, 64, 64, 3) and large.dtype == np.uint8


@pytest.mark.parametrize("preset", ["tiny_inpaint", "tiny_upsampler"])
def test_training_gives_the_model_what_it_asks_for(preset):
    config = PRESETS[preset]
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, config.size, config.size, 3), dtype=np.uint8),
        "tokens": np.zeros((4, 4, 24), np.int32),
    }
    loss_fn = make_loss(config, 0.1, 1.0)
    abstract = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    keys = train.example_keys(jax.random.key(0), 0, 4)
    loss, metrics = jax.eval_shape(loss_fn, abstract, batch, keys)
    assert loss.shape == () and set(metrics) == {"mse", "vb"}


def test_times_drawn_late_have_the_density_asked_for():
    s = make_schedule(TINY)
    keys = train.example_keys(jax.random.key(0), 0, 4000)
    _, t, _ = train.noise_batch(s, jnp.zeros((4000, 1)), keys, jnp.arange(1, 1001) ** 1.0)
    assert abs(float(t.mean()) - 2 / 3 * 1000) < 20  # uniform: 500
    assert float((t > 500).mean()) == pytest.approx(0.75, abs=0.03)


def test_the_bound_trains_the_variance_and_leaves_the_mean_to_the_square_error():
    """Fails if the variance is frozen, or if the bound reaches the mean."""
    x0, out = jnp.tanh(pictures(0, 2, 4, 4, 3)), 0.1 * pictures(1, 2, 4, 4, 6)
    keys = jax.random.split(jax.random.key(3), 2)

    def loss(out, name=None):
        again = jax.random.clone(keys)
        total, metrics = denoising_loss(TINY, lambda x, t: out, x0, again, 0.0)
        return metrics[name] if name else total

    slope, of_mse = jax.grad(loss)(out), jax.grad(partial(loss, name="mse"))(out)
    assert_allclose(slope[..., :3], of_mse[..., :3], rtol=1e-5)
    assert np.abs(slope[..., 3:]).max() > 0 and np.abs(of_mse[..., 3:]).max() == 0


# Classes


def test_43_of_48_classes_are_shown_in_training_and_null_is_none_of_them():
    batch = classes.load_labelled(32)
    assert len(classes.CLASSES) == classes.NULL == 48 and len(classes.SEEN) == 43
    assert set(batch["label"]) == set(classes.SEEN)
    assert len(batch["image"]) == len(batch["label"]) > 10_000


@pytest.mark.slow
def test_a_dropped_label_is_the_unconditional_model():
    config = classes.PRESETS["tiny"]
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "label": np.array([0, 1, 2, 3], np.int32),
    }
    weights = made(lambda key: classes.init_params(config, key))
    losses, given = [], batch["label"]
    for drop, label in (
        (1.0, given),
        (0.0, np.full(4, classes.NULL)),
        (0.0, given),
    ):
        keys = train.example_keys(jax.random.key(0), 0, 4)
        loss_fn = jax.jit(classes.make_loss(config, drop))
        losses.append(float(loss_fn(weights, {**batch, "label": label}, keys)[0]))
    # Two programs, so rounding may differ.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert abs(losses[2] - losses[1]) > 1e-5 * losses[1]


def test_guidance_0_ignores_the_label_and_every_way_of_sampling_draws():
    config = classes.PRESETS["tiny"]
    weights = made(lambda key: classes.init_params(config, key))
    first = classes.draw(config, weights, [0, 9], guidance_scale=0.0, steps=2)
    assert_array_equal(first, classes.draw(config, weights, [5, 7], guidance_scale=0.0, steps=2))
    assert (first != classes.draw(config, weights, [5, 7], guidance_scale=3.0, steps=2)).any()
    drawn = classes.draw(config, weights, [5, 7], steps=2, ancestral=True)
    assert drawn.shape == (2, 32, 32, 3) and drawn.dtype == np.uint8


# Classifier


def test_the_classifier_is_a_distribution_that_depends_on_the_time_and_guides():
    config = classifier.PRESETS["tiny"]
    weights = made(lambda key: classifier.init_params(config, key))
    x, t = pictures(0, 2, 32, 32, 3), jnp.array([3, 700])
    log_prob = classifier.log_prob(config, weights)
    every = jax.jit(jax.vmap(lambda y: log_prob(x, t, {"label": jnp.stack([y, y])})))
    logs = every(jnp.arange(48))
    assert_allclose(jnp.exp(logs).sum(0), 1, rtol=1e-5)
    one = jax.jit(log_prob)
    later = one(x, t + 200, {"label": jnp.array([0, 0])})
    assert np.abs(later - logs[0]).max() > 1e-4

    s, cond = make_schedule(TINY), {"label": jnp.array([1, 2])}
    guided = gradient_guidance(lambda x, t, c: Prediction(0 * x), log_prob, s, 10.0)
    downhill = x - jax.jit(guided)(x, t, cond).eps * 0.05 / s.at(t, 4)[1]
    assert np.all(one(downhill, t, cond) > one(x, t, cond))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["x_t", "mean", "ddim"])
def test_pictures_guided_by_a_classifier_are_of_its_class_more_and_scale_0_is_the_model(how):
    model = (config := classes.PRESETS["tiny"]), made(lambda key: classes.init_params(config, key))
    judge = (of := classifier.PRESETS["tiny"]), made(lambda key: classifier.init_params(of, key))
    labels, options = [3, 40], {"steps": 3, "how": how}
    drawn = {
        s: classifier.draw(model, judge, labels, guidance_scale=s, **options) for s in (0, 300)
    }
    log_prob = jax.jit(classifier.log_prob(*judge))
    found = {}
    for s, x in drawn.items():
        found[s] = log_prob(to_float(x), jnp.array([1, 1]), {"label": jnp.array(labels)})
    assert np.all(found[300] > found[0])
    other = classifier.draw(model, judge, [7, 8], guidance_scale=0, conditional=False, **options)
    free = classifier.draw(model, judge, labels, guidance_scale=0, conditional=False, **options)
    assert_array_equal(free, other)
    assert (free != drawn[0]).any()


@pytest.mark.slow
def test_a_classifier_guides_glide_which_is_told_the_class_in_words_or_nothing(params):
    judge = (of := classifier.PRESETS["tiny"]), made(lambda key: classifier.init_params(of, key))
    assert classes.caption(1) == "an orange ball" and classes.caption(classes.NULL) == ""
    tokens = tokenizer(TINY).encode(["an orange ball", ""])
    assert_array_equal(classifier.told(TINY, [1, classes.NULL]), tokens)
    options = {"guidance_scale": 0.0, "steps": 3}
    told = [classifier.draw((TINY, params), judge, y, **options) for y in ([3, 3], [40, 40])]
    free = [classifier.draw((TINY, params), judge, y, conditional=False, **options)
            for y in ([3, 3], [40, 40])]  # fmt: skip
    assert (told[0] != told[1]).any() and (told[0] != free[0]).any()
    assert_array_equal(*free)
    pushed = classifier.draw((TINY, params), judge, [3, 3], **options | {"guidance_scale": 300.0})
    log_prob = jax.jit(classifier.log_prob(*judge))
    of = lambda x: log_prob(to_float(x), jnp.array([1, 1]), {"label": jnp.array([3, 3])})  # noqa: E731
    assert np.all(of(pushed) > of(told[0]))


def test_accuracies_per_quarter_of_t_add_up_to_the_accuracy():
    config = classifier.PRESETS["tiny"]
    weights = made(lambda key: classifier.init_params(config, key))
    out = weights["AttentionPool_0"]["out"]
    out["kernel"] = 0 * out["kernel"]
    one = np.zeros(48)
    one[7] = 9.0  # a classifier that always says 7
    out["bias"] = jnp.asarray(one, jnp.float32)
    batch = {"image": ORANGE.repeat(8, 0), "label": np.array([7, 0] * 8, np.int32)}
    keys = train.example_keys(jax.random.key(0), 0, 16)
    _, metrics = jax.jit(classifier.make_loss(config))(weights, batch, keys)
    assert_allclose(sum(float(v) for v in metrics.values()) / 4, 0.5)


@pytest.mark.slow
def test_weights_of_another_model_are_refused_by_name(tmp_path):
    config = classifier.PRESETS["tiny"]
    c = run.RunConfig(out=tmp_path, steps=1, batch_size=2, log_every=1, save_every=1)
    batches = {k: v[:4] for k, v in classes.load_labelled(32).items()}
    params = run.run(
        c, model="glide.classifier", config=config, loss_fn=classifier.make_loss(config),
        init=lambda key: classifier.init_params(config, key), batches=batches,
    )  # fmt: skip
    loaded, weights, metadata = classifier.load(tmp_path / "weights.safetensors")
    assert loaded == config and metadata["recipe"]["command"].startswith("python -m glide train")
    assert_allclose(weights["time1"]["kernel"], params["time1"]["kernel"], atol=1e-3)
    with pytest.raises(checkpoint.CheckpointError, match="glide.classifier, not of glide"):
        load(tmp_path / "weights.safetensors")
