"""Latent diffusion: conditioning, the latent scale, samplers, tasks, and the commands."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made, program
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from common import checkpoint, command, data, sampler, train
from common.nn import CrossAttention
from ldm import autoencoder, measure, sample, study, train_autoencoder
from ldm import train as ldm_train
from ldm.__main__ import COMMANDS
from ldm.inpaint import inpaint, masked, random_edit_mask
from ldm.model import (
    BESIDE,
    Ldm,
    conditions,
    denoiser,
    guide,
    init_params,
    latent_shape,
    load,
    null_condition,
    to_latent,
    to_picture,
    with_first_stage,
)
from ldm.presets import FIRST_STAGES, MODELS, of_factor
from ldm.sample import SOLVERS, draw, times
from ldm.train import (
    TrainConfig,
    draw_latent,
    encode_all,
    init_with,
    make_loss,
    measure_scale,
    optimiser,
)
from ldm.upscale import shrink, upscale

TINY = MODELS["tiny"]
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3)).astype(np.uint8)
IMAGES = IMAGES.repeat(8, 1).repeat(8, 2)
PUBLISHED = {
    "paper": {"unet": 872_300_484, "text": 542_895_360},  # text2img-large
    "paper_class": {"unet": 400_920_579, "classes": 1001 * 512},  # cin256-v2
    "paper_faces": {"unet": 274_056_163},  # celeba, ffhq, beds
    "paper_inpaint": {"unet": 387_245_827},  # inpainting_big
}


@functools.cache
def with_stage(config):
    params = made(lambda key: init_params(config, key))
    return {
        **params,
        "first_stage": made(lambda key: autoencoder.init_params(config.first_stage, key)),
    }


@pytest.fixture(scope="module")
def params():
    return with_stage(TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_in_the_released_models(name):
    shapes = jax.eval_shape(lambda: init_params(MODELS[name], jax.random.key(0)))
    counts = {k: sum(p.size for p in jax.tree.leaves(v)) for k, v in shapes.items()}
    assert counts == PUBLISHED[name]


def test_the_small_model_fits_in_five_megabytes():
    shapes = jax.eval_shape(lambda: init_params(MODELS["small"], jax.random.key(0)))
    assert 2 * sum(p.size for p in jax.tree.leaves(shapes)) < 4_950_000  # names and recipe, too


# Conditioning


def test_attention_to_one_token_is_the_same_everywhere():
    x, one = jax.random.normal(jax.random.key(0), (2, 9, 8)), jnp.ones((2, 1, 5))
    layer = CrossAttention(heads=2)
    weights = layer.init(jax.random.key(1), x, one)
    out = layer.apply(weights, x, one)
    assert_allclose(out, jnp.broadcast_to(out[:, :1], out.shape), atol=1e-6)
    two = layer.apply(weights, x, jax.random.normal(jax.random.key(2), (2, 2, 5)))
    assert np.abs(two - two[:, :1]).max() > 1e-3


def test_captions_become_tokens_or_a_class_or_are_refused():
    assert conditions(TINY, ["a red ball", ""])["tokens"].shape == (2, 24)
    classes = MODELS["tiny_class"]
    label = conditions(classes, ["a photo of a red ball", "a blue heart", ""])["label"]
    assert_array_equal(label, [0, 5 * 8 + 5, 48])
    for prompt in ("a ball", "a red ball and a blue cube"):
        with pytest.raises(ValueError, match="one shape and its colour"):
            conditions(classes, [prompt])
    assert conditions(MODELS["tiny_inpaint"], [""]) == {}
    with pytest.raises(ValueError, match="no prompt"):
        conditions(MODELS["tiny_inpaint"], ["a red ball"])


@pytest.mark.parametrize("name", ["tiny", "tiny_class"])
def test_the_condition_reaches_the_latent_and_guidance_0_ignores_it(name):
    config = MODELS[name]
    params = with_stage(config)
    z = jax.random.normal(jax.random.key(3), (1, *latent_shape(config))).repeat(3, 0)
    t = jnp.full(3, 400)

    @jax.jit
    def eps(cond, scales):
        denoise, cond = guide(config, params, cond, scales)
        return denoise(z, t, cond).eps

    red = conditions(config, ["a red ball"] * 3)
    blue = conditions(config, ["a blue cube"] * 3)
    none = conditions(config, [""] * 3)
    scales = jnp.array([0.0, 1.0, 3.0])
    a, b, n = (np.asarray(eps(cond, scales)) for cond in (red, blue, none))
    assert_allclose(a[0], b[0], atol=1e-5)
    assert_allclose(a[0], n[1], atol=1e-5)
    assert np.abs(a[1] - b[1]).max() > 1e-4
    assert_allclose(a[2], a[0] + 3 * (a[1] - a[0]), atol=1e-4)


@pytest.mark.slow
def test_text_reaches_the_latent_by_attention_and_by_the_time_embedding(params):
    z, t = jnp.ones((1, *latent_shape(TINY))), jnp.array([9])
    denoise = jax.jit(lambda cond: denoiser(TINY, params)(z, t, cond))
    red, blue = (
        Ldm(TINY).apply({"params": params}, conditions(TINY, [p]), method="encode")
        for p in ("a red ball", "a blue cube")
    )
    base = denoise(red).eps
    for name in ("context", "vector"):
        assert np.abs(base - denoise({**red, name: blue[name]}).eps).max() > 1e-5, name


def test_captions_are_dropped_to_the_null_caption_that_sampling_uses(params):
    network = {k: v for k, v in params.items() if k != "first_stage"}
    tokens = conditions(TINY, ["a red ball", "a blue cube"])["tokens"]
    moments = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float16)
    batch = {"moments": moments, "tokens": tokens[:, None].repeat(4, 1)}
    null = {**batch, "tokens": 0 * batch["tokens"] + null_condition(TINY)["tokens"]}
    loss = jax.jit(lambda drop, b, keys: make_loss(TINY, drop)(network, b, keys))
    keys = lambda: train.example_keys(jax.random.key(1), 0, 2)  # noqa: E731
    losses = {d: [float(loss(d, b, keys())) for b in (batch, null)] for d in (0.0, 1.0)}
    assert losses[1.0][0] == losses[1.0][1] == losses[0.0][1]
    assert losses[0.0][0] != losses[0.0][1]


def test_the_text_transformer_learns_at_a_rate_of_its_own():
    c = TrainConfig(warmup=0, lr=1e-3, text_lr=1e-4)
    params = {"text": {"pooled": jnp.ones(3), "word": jnp.ones(3)}, "unet": jnp.ones(3)}
    tx = optimiser(c)
    updates, _ = tx.update(params, tx.init(params), params)
    assert_allclose(updates["text"]["word"], 0.1 * updates["unet"], rtol=1e-5)
    assert_allclose(updates["text"]["pooled"], updates["unet"], rtol=1e-5)
    assert np.abs(updates["unet"]).min() > 5e-4
    assert set(tx.update({"unet": jnp.ones(3)}, tx.init({"unet": jnp.ones(3)}))[0]) == {"unet"}


# The latent


def test_the_latent_scale_makes_unit_variance(params):
    images = IMAGES.repeat(32, 0)
    moments = encode_all(TINY, params["first_stage"], images)
    assert moments.shape == (128, 8, 8, 8) and moments.dtype == np.float16
    scale = measure_scale(moments, 4)
    keys = jax.random.split(jax.random.key(5), 128)
    z = scale * np.asarray(draw_latent(jnp.asarray(moments), keys, 4))
    assert_allclose(z.std(), 1, atol=0.03)
    # Of the posterior, not of its mean; and without a log variance the mean is drawn.
    mean = np.float32(moments[..., :4])
    assert abs(scale * mean.std() - 1) > 0.1
    assert_array_equal(draw_latent(jnp.asarray(moments[..., :4]), keys, 4), mean)


def test_the_scale_is_applied_at_the_encoder_and_taken_back_at_the_decoder(params):
    x = jnp.asarray(IMAGES[:1], jnp.float32) / 127.5 - 1
    there = jax.jit(lambda s: to_latent(replace(TINY, latent_scale=s), params, x))
    back = jax.jit(lambda s, z: to_picture(replace(TINY, latent_scale=s), params, z))
    z = {s: there(s) for s in (1.0, 4.0)}
    assert_allclose(z[4.0], 4 * z[1.0], rtol=1e-5)
    assert_allclose(back(4.0, z[4.0]), back(1.0, z[1.0]), atol=1e-5)


def test_latents_of_pixels_are_the_pixels():
    config = with_first_stage(TINY)
    moments = encode_all(config, {}, IMAGES)
    assert_allclose(moments, IMAGES / 127.5 - 1, atol=1e-3)


@pytest.mark.parametrize("f, patch", [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1)])
def test_the_same_unet_serves_latents_of_every_factor(f, patch):
    stage = of_factor(f)
    config = with_first_stage(MODELS["small_class"], stage, "abc")
    assert config.unet.out_channels == stage.channels and config.autoencoder == "abc"
    assert config.unet.patch == patch and latent_shape(config) == (64 // f, 64 // f, stage.channels)
    assert with_first_stage(MODELS["paper"], stage).unet.patch == 1


# Sampling


def test_plms_and_dpm_are_the_ones_of_common():
    assert SOLVERS["plms"] is sampler.plms and SOLVERS["dpm"] is sampler.dpm_solver


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_sampler_draws_every_row_another(params, solver):
    prompts = ["a red ball", "a blue cube"]
    small = draw(TINY, params, prompts, solver=solver, steps=2)
    assert small.shape == (2, 32, 32, 3) and small.dtype == np.uint8
    assert np.abs(small[0].astype(int) - small[1]).max() > 3


def test_it_draws_at_a_larger_size_than_it_was_trained_on(params):
    assert draw(TINY, params, ["a red ball"], steps=2, size=64).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="multiple of 8"):
        draw(TINY, params, ["a red ball"], size=36)


def test_a_row_depends_on_its_seed_and_number_alone(params):
    prompts = ["a red ball"] * 3
    three = draw(TINY, params, prompts, steps=2, chunk=2).astype(int)
    five = draw(TINY, params, [*prompts, "", ""], steps=2, chunk=2).astype(int)
    assert np.abs(three - five[:3]).max() <= 1
    assert np.abs(three[0] - draw(TINY, params, prompts, steps=2, chunk=2, seed=1)[0]).max() > 3


@pytest.mark.slow
def test_strength_decides_what_is_left_of_a_picture():
    """With a network that predicts no velocity: little noise gives the picture back."""
    config = replace(TINY, prediction="velocity")
    params = with_stage(config)
    last = jax.tree.map(np.zeros_like, params["unet"]["conv_out"])
    params = {**params, "unet": {**params["unet"], "conv_out": last}}
    back = autoencoder.reconstruct(TINY.first_stage, params["first_stage"], IMAGES[:2])
    drawn = draw(config, params, [""] * 2, images=IMAGES[:2], strength=0.02, steps=50)
    far = lambda a: np.abs(a.astype(int) - back).mean()  # noqa: E731
    assert far(drawn) < 0.2 * far(back[::-1])  # the two pictures tell how far apart others are
    assert_array_equal(times(TINY, 50, 1.0), sampler.timesteps(1000, 50))
    assert len(times(TINY, 50, 0.6)) == 31 and times(TINY, 50, 0.6)[-1] == 0
    for strength in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="strength"):
            times(TINY, 50, strength)


# Inpainting and super-resolution


def test_a_hole_is_black_and_its_mask_is_minus_one_and_one():
    config = with_first_stage(MODELS["tiny_inpaint"])
    x = jnp.full((1, 4, 4, 3), 0.5)
    edit_mask = jnp.zeros((1, 4, 4, 1)).at[:, :2].set(1)
    out = masked(config, {"first_stage": {}}, x, edit_mask)
    assert_array_equal(out[0, :2], np.broadcast_to([-1.0, -1, -1, 1], (2, 4, 4)))
    assert_array_equal(out[0, 2:], np.broadcast_to([0.5, 0.5, 0.5, -1], (2, 4, 4)))


def test_the_mask_of_a_latent_is_that_of_its_first_pixel():
    config = MODELS["tiny_inpaint"]
    edit_mask = jnp.zeros((1, 32, 32, 1)).at[:, 4, 8].set(1).at[:, 9, 9].set(1)
    out = jax.jit(lambda: masked(config, with_stage(config), jnp.zeros((1, 32, 32, 3)), edit_mask))
    small = out()[..., -1]
    assert small[0, 1, 2] == 1 and small.sum() == 1 - 63


def test_random_masks_are_of_0_and_1_and_mean_a_third():
    masks = jax.vmap(lambda k: random_edit_mask(k, 32))(jax.random.split(jax.random.key(0), 1000))
    masks = np.asarray(masks)
    assert masks.shape == (1000, 32, 32, 1) and set(np.unique(masks)) == {0.0, 1.0}
    assert 0.3 < masks.mean() < 0.5 and (masks.sum((1, 2, 3)) >= 8 * 8 - 16).all()
    assert masks[:, 16].mean() > masks[:, 0].mean() + 0.1


def test_inpainting_keeps_every_other_pixel_and_sees_the_surroundings():
    config = MODELS["tiny_inpaint"]
    params = with_stage(config)
    edit_masks = np.zeros((2, 32, 32, 1), bool)
    edit_masks[:, 8:24, 8:24] = True
    images = IMAGES[:2]
    out = inpaint(config, params, images, edit_masks, steps=2)
    hole = np.broadcast_to(edit_masks, out.shape)
    assert_array_equal(out[~hole], images[~hole])
    other = inpaint(config, params, 255 - images, edit_masks, steps=2)
    assert (out[hole] != other[hole]).any()
    inside = np.where(edit_masks, 255 - images, images)  # what is under the mask is not seen
    assert_array_equal(inpaint(config, params, inside, edit_masks, steps=2), out)
    with pytest.raises(ValueError, match="do not inpaint"):
        inpaint(TINY, params, images, edit_masks)
    with pytest.raises(ValueError, match="more than a prompt: use `inpaint`"):
        draw(config, params, [""])


def test_super_resolution_sees_the_small_picture():
    config = MODELS["tiny_upscale"]
    params = with_stage(config)
    small = shrink(IMAGES[:2], 4)
    assert_array_equal(small, IMAGES[:2, ::4, ::4])  # flat blocks
    large = upscale(config, params, small, steps=2)
    assert large.shape == (2, 32, 32, 3) and large.dtype == np.uint8
    assert (large != upscale(config, params, 255 - small, steps=2)).any()
    with pytest.raises(ValueError, match="do not enlarge"):
        upscale(TINY, params, small)


KINDS = ["class", "inpaint", "upscale", "semantic", "retrieval"]


@pytest.mark.parametrize("name", [f"tiny_{kind}" for kind in KINDS])
def test_training_gives_the_model_what_it_asks_for(name):
    config = MODELS[name]
    batch = {
        "moments": np.zeros((2, 8, 8, 8), np.float16),
        "label": np.zeros(2, np.int32),
        "image": IMAGES[:2],
        "low_res": shrink(IMAGES[:2], 4),
        "semantic": np.zeros((2, 32, 32), np.uint8),
        "context": np.zeros((2, 3, 16), np.float16),
    }
    first_stage = with_stage(config)["first_stage"]
    weights = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    loss_fn = make_loss(config, 0.1, 1.0, first_stage)
    loss = jax.eval_shape(loss_fn, weights, batch, train.example_keys(jax.random.key(0), 0, 2))
    assert loss.shape == ()


# Commands


def ldm(capsys, *args):
    return program(capsys, "ldm", COMMANDS, *args)


def assert_one_line(result, *words):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def fake_draw(config, params, prompts, **options):
    """In the place of sample.draw where it is not what is tested: compiling it takes seconds."""
    size = options.get("size") or config.size
    return np.resize(IMAGES, (len(prompts), size, size, 3))


RUN = ["--batch-size", 4, "--steps", 2, "--log-every", 1, "--save-every", 2, "--examples", 16]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A first stage and a latent model, two steps each, as the commands leave them."""
    out = tmp_path_factory.mktemp("ldm")
    whole = data.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, split, **o: whole(name, "test", **o))
        first = ["train-autoencoder", "--preset", "tiny_vq", "--disc-start", 1, "--disc-width", 4]
        first += ["--disc-layers", 1, *RUN, "--sample-every", 2, "--out", out / "first"]
        command.run("ldm", COMMANDS, [str(a) for a in first])
        latent = ["train", "--preset", "tiny", *RUN, "--sample-every", 2, "--out", out / "latent"]
        latent += ["--autoencoder", out / "first" / "weights.safetensors"]
        patch.setattr(ldm_train, "draw", fake_draw)
        command.run("ldm", COMMANDS, [str(a) for a in latent])
    return out


def test_both_trainings_leave_weights_numbers_and_pictures(trained):
    config, params, metadata = autoencoder.load(trained / "first" / "weights.safetensors")
    assert config == FIRST_STAGES["tiny_vq"] and "discriminator" not in params
    numbers = metadata["numbers"]
    assert numbers == json.loads((trained / "first" / "reconstruction.json").read_text())
    assert numbers["n"] == 16 and 0 < numbers["codes_used"] <= 1
    logged = [json.loads(line) for line in (trained / "first" / "reconstruction.jsonl").open()]
    assert [row["step"] for row in logged] == [2] and logged[0]["perplexity"] >= 1
    assert {k: logged[0][k] for k in ("psnr", "fd")} == {k: numbers[k] for k in ("psnr", "fd")}
    assert "random-conv" in metadata["perceptual"]
    config, params, metadata = load(trained / "latent" / "weights.safetensors")
    assert config.first_stage.kind == "vq" and set(params) == {"first_stage", "text", "unet"}
    assert config.latent_scale != 1 and metadata["recipe"]["steps"] == 2
    assert metadata["recipe"]["command"].startswith("python -m ldm train ")
    for run in ("first", "latent"):
        assert (trained / run / "samples" / "000002.png").exists()
        rows = [json.loads(line) for line in (trained / run / "metrics.jsonl").open()]
        assert [r["step"] for r in rows] == [1, 2]
        assert all(np.isfinite(list(r.values())).all() for r in rows)


def test_commands_draw_from_captions_and_from_pictures(trained, tmp_path, capsys, monkeypatch):
    weights = ["--weights", trained / "latent" / "weights.safetensors", "--steps", 2, "--num", 2]
    prompt = ["--prompt", "a small red ball"]
    result = ldm(capsys, "sample", *prompt, *weights, "--out", tmp_path / "grid.png")
    assert result.returncode == 0 and "2 pictures" in result.stdout
    with Image.open(tmp_path / "grid.png") as image:
        assert image.text["prompt"] == "a small red ball" and image.text["sampler"] == "ddim"
    Image.fromarray(IMAGES[0]).save(tmp_path / "given.png")
    given = ["--image", tmp_path / "given.png", "--strength", 0.5, "--sampler", "dpm"]
    told = {}

    def note(*args, **options):
        told.update(options)
        return fake_draw(*args, **options)

    monkeypatch.setattr(sample, "draw", note)
    result = ldm(capsys, "img2img", *prompt, *given, *weights, "--out", tmp_path / "folder")
    assert result.returncode == 0, result.stderr
    assert (told["strength"], told["solver"], told["steps"]) == (0.5, "dpm", 2)
    assert_array_equal(told["images"], np.stack([IMAGES[0]] * 2))
    files = sorted((tmp_path / "folder").iterdir())
    assert [f.name for f in files] == ["0000.png", "0001.png"]
    assert Image.open(files[0]).size == (32, 32)


WRONG = {
    "unknown word": (["--prompt", "a redd ball"], ["unknown word 'redd'", "red"]),
    "empty prompt": (["--prompt", "  "], ["prompt is empty"]),
    "steps over T": (["--prompt", "a red ball", "--steps", "1001"], ["1..1000", "1001"]),
    "no pictures": (["--prompt", "a red ball", "--num", "0"], ["num", "1..4096"]),
    "nan guidance": (["--prompt", "a red ball", "--guidance-scale", "nan"], ["finite"]),
    "odd size": (["--prompt", "a red ball", "--size", "50"], ["multiple of 8", "50"]),
    "no weights": (["--prompt", "a red ball", "--weights", "none.safetensors"], ["no weights at"]),
    "out of another kind": (["--prompt", "a red ball", "--out", "a.txt"], [".png", "a.txt"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_line_and_code_2(name, trained, tmp_path, capsys):
    options, words = WRONG[name]
    weights = ["--weights", trained / "latent" / "weights.safetensors"]
    weights = [] if "--weights" in options else weights
    assert_one_line(ldm(capsys, "sample", *weights, *options), *words)


def test_training_begins_with_the_words_of_other_weights_of_the_same_shape(trained, tmp_path):
    params = made(lambda key: init_params(TINY, key))
    words = jax.tree.map(lambda p: np.asarray(p) + 1, params["text"])
    checkpoint.save_weights(tmp_path / "glide.safetensors", {"text": words, "unet": {}}, {})
    begun = init_with(TINY, None, tmp_path / "glide.safetensors")(jax.random.key(0))
    assert_allclose(begun["text"]["position"], words["position"], rtol=1e-3)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, params)
    with pytest.raises(ValueError, match="weights.safetensors has no text transformer"):
        init_with(TINY, None, trained / "first" / "weights.safetensors")
    with pytest.raises(ValueError, match="no text transformer for these weights: cannot begin"):
        init_with(MODELS["small"], None, tmp_path / "glide.safetensors")


def test_training_goes_on_from_weights_of_the_same_model_alone(trained):
    path = trained / "latent" / "weights.safetensors"
    config, params, _ = load(path)
    begun = init_with(config, path, None)(jax.random.key(5))
    jax.tree.map(assert_allclose, begun, {k: v for k, v in params.items() if k != "first_stage"})
    wider = replace(config, unet=replace(config.unet, width=32))
    with pytest.raises(ValueError, match="is no base of these weights: cannot begin"):
        init_with(wider, path, None)
    with pytest.raises(ValueError, match="it has prediction x0, not eps"):
        init_with(replace(config, prediction="eps"), path, None)
    with pytest.raises(ValueError, match="leave out text"):
        init_with(config, path, path)


def test_weights_without_their_first_stage_or_beside_another_are_refused(trained, tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((trained / "latent" / "weights.safetensors").read_bytes())
    sample = ["sample", "--prompt", "a red ball", "--weights", weights]
    assert_one_line(ldm(capsys, *sample), "no weights at", BESIDE)
    params, metadata = checkpoint.load_weights(trained / "latent" / BESIDE)
    params["codebook"] = params["codebook"] + 1
    checkpoint.save_weights(tmp_path / BESIDE, params, metadata)
    assert_one_line(ldm(capsys, *sample), "not the autoencoder", "trained with")


def test_options_that_do_not_go_together_are_refused(trained, tmp_path, capsys):
    weights = trained / "latent" / "weights.safetensors"
    Image.fromarray(IMAGES[0]).save(tmp_path / "given.png")
    image = ["--image", tmp_path / "given.png", "--weights", weights]
    mask = ["--edit-mask", tmp_path / "given.png"]
    assert_one_line(ldm(capsys, "inpaint", *image, *mask), "do not inpaint")
    assert_one_line(ldm(capsys, "upscale", *image, "--resize"), "do not enlarge")
    strength = ["--strength", 1.5, "--prompt", "a red ball"]
    assert_one_line(ldm(capsys, "img2img", *image, *strength), "strength")
    train = ["train", "--out", tmp_path / "run", "--preset", "small", "--autoencoder"]
    result = ldm(capsys, *train, trained / "first" / "weights.safetensors")
    assert_one_line(result, "32 pixels", "64")
    assert_one_line(ldm(capsys, *train, weights), "weights of ldm, not of ldm.autoencoder")
    width = ["--disc-width", 6, "--out", tmp_path / "run"]
    assert_one_line(ldm(capsys, "train-autoencoder", *width), "multiple of 4")


STUDY = {  # what each part must say, and how many rows
    "guidance": ("shape_colour", 6),
    "factors": ("ceiling", 6),
    "vq": ("codes_used", 2),
    "rescale": ("valid_interval", 4),
    "speed": ("pictures_per_second", 8),
    "upscale": ("sharpness", 4),
}


@pytest.mark.parametrize("part", STUDY)
def test_the_study_writes_its_numbers(part, trained, tmp_path, capsys, monkeypatch):
    """With weights of two steps in the place of everything that it would train."""
    first, latent = (trained / name / "weights.safetensors" for name in ("first", "latent"))
    asked = []

    def stand_in(c, f, steps, preset="", **options):
        asked.append((f, steps, preset, options))
        return load(latent)

    monkeypatch.setattr(study, "trained", stand_in)
    monkeypatch.setattr(study, "first_stage", lambda c, f, kind="kl": first)
    monkeypatch.setattr(study, "upscale", lambda config, params, small, **o: IMAGES.repeat(2, 0))
    for module in (study, measure):
        monkeypatch.setattr(module, "draw", fake_draw)
    monkeypatch.setattr(data, "load", functools.cache(data.load))
    result = ldm(capsys, "study", "--part", part, "--weights", latent, "--num", 8, "--out",
                 tmp_path, "--factors", 1, 4)  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / f"ldm_{part}.json").read_text())
    name, count = STUDY[part]
    assert len(report["rows"]) == count and name in report["rows"][-1]
    assert report["n"] == 8 and report["sizes"]["latent_steps"] == 1200
    assert f"--part {part}" in report["command"] + " --part guidance"
    assert all(row["digest"] and row["recipe"] for row in report["rows"])
    assert (tmp_path / f"ldm_{part}.webp").exists()
    if part == "factors":
        assert [a[:2] for a in asked] == [(f, s) for f in (1, 4) for s in (300, 600, 1200)]
        assert {a[2] for a in asked} == {"_class"}


@pytest.mark.slow
def test_the_study_trains_what_it_misses_and_finds_it_again(tmp_path, monkeypatch):
    c = study.StudyConfig(preset="tiny", runs=tmp_path, autoencoder_steps=8, seed=3)
    begun = []

    def note(given):
        begun.append(given)
        given.out.mkdir()
        (given.out / "weights.safetensors").touch()

    monkeypatch.setattr(train_autoencoder, "main", note)
    monkeypatch.setattr(ldm_train, "main", note)
    monkeypatch.setattr(study, "load", lambda path: path)
    path = study.trained(c, 4, 5, latent_scale=1.0)
    assert study.trained(c, 4, 5, latent_scale=1.0) == path and len(begun) == 2
    stage, latent = begun
    assert (stage.preset, stage.steps, stage.disc_start, stage.seed) == ("tiny", 8, 6, 3)
    assert latent.autoencoder == stage.out / "weights.safetensors" and latent.latent_scale == 1
    study.trained(c, 1, 5)
    assert begun[-1].autoencoder is None and len(begun) == 3
    study.first_stage(c, 4, "vq")
    assert begun[-1].preset == "tiny_vq"


def test_quick_sizes_stand_where_none_are_given(tmp_path, capsys, monkeypatch):
    given = []
    blank = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setitem(study.PARTS, "vq", lambda c: given.append(c) or ([], blank))
    options = ["--part", "vq", "--quick", "--latent-steps", 7, "--out", tmp_path]
    assert ldm(capsys, "study", *options).returncode == 0
    assert (given[0].latent_steps, given[0].num) == (7, study.QUICK["num"])
    report = json.loads((tmp_path / "ldm_vq.json").read_text())
    assert report["command"] == "python -m ldm study --part vq --quick --latent-steps 7"
    assert report["sizes"]["autoencoder_steps"] == study.QUICK["autoencoder_steps"]
