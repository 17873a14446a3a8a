"""Semantic maps and retrieval, LPIPS from files: against values by hand, without a training."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import made, program
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from common import checkpoint, clip, data
from common.scenes.scene import Object, Scene, draw_scene
from ldm import autoencoder, perceptual, retrieval, semantic, train_autoencoder
from ldm.__main__ import COMMANDS
from ldm.model import SEGMENTS, guide, init_params, latent_shape, shares
from ldm.presets import MODELS
from ldm.retrieval import context, nearest
from ldm.sample import draw
from ldm.semantic import PALETTE, from_colours, segment
from ldm.train import RetrievalTrainConfig, TrainConfig, load_data

SEMANTIC, RETRIEVAL = MODELS["tiny_semantic"], MODELS["tiny_retrieval"]


@functools.cache
def with_stage(config):
    first = made(lambda key: autoencoder.init_params(config.first_stage, key))
    return {**made(lambda key: init_params(config, key)), "first_stage": first}


def denoised(config, cond, scale=1.0):
    """eps of two rows of the same z, guided."""
    z = jnp.ones((2, *latent_shape(config)))

    @jax.jit
    def run(cond):
        denoise, cond = guide(config, with_stage(config), cond, jnp.full(2, scale))
        return denoise(z, jnp.full(2, 400), cond).eps

    return np.asarray(run(cond))


# Semantic maps


def test_a_map_says_what_the_renderer_drew_where():
    """A ball's share of the picture is that of its circle, and the later object lies on top."""
    ball = Object("ball", "green", "large", 0.3, 0.4)
    star = Object("star", "red", "small", 0.7, 0.6)
    over = Object("star", "red", "small", 0.3, 0.4)
    scenes = [Scene("white", "night", pair) for pair in ((ball, star), (ball, over), (ball,))]
    maps = segment(scenes, 64)
    kinds = [{SEGMENTS[i] for i in np.unique(m)} for m in maps]
    assert kinds == [{"ground", "ball", "star"}, {"ground", "ball", "star"}, {"ground", "ball"}]
    assert (SEGMENTS[maps[0, 25, 19]], SEGMENTS[maps[0, 38, 44]]) == ("ball", "star")
    assert (SEGMENTS[maps[1, 25, 19]], SEGMENTS[maps[2, 25, 19]]) == ("star", "ball")
    radius = 0.96 * ball.radius * 64
    inner, outer = (np.pi * (radius + r) ** 2 for r in (-0.5, 1.5))
    assert inner < (maps[2] > 0).sum() < outer


def test_maps_do_not_depend_on_colour_background_or_style():
    rng = np.random.default_rng(0)
    for scene in (draw_scene(rng) for _ in range(4)):
        other = [replace(o, colour="pink") for o in scene.objects]
        plain = replace(scene, style="photo", background="grass", objects=tuple(other))
        assert_array_equal(*segment([scene, plain], 32))


def test_shares_are_those_of_the_pixels_of_a_latent_position():
    maps = np.zeros((1, 8, 8), np.uint8)
    maps[0, :2, :2] = 3
    expected = np.zeros((2, 2, len(SEGMENTS)))
    expected[..., 0], expected[0, 0, [0, 3]] = 1, (0.75, 0.25)
    assert_allclose(shares(jnp.asarray(maps), 4)[0], expected)


def test_a_map_reaches_the_latent_at_its_place():
    maps = np.zeros((2, 32, 32), np.uint8)
    maps[1, 8:16, 8:16] = 2
    empty, square = denoised(SEMANTIC, {"semantic": maps})
    assert np.abs(square - empty).max() > 1e-4
    with pytest.raises(ValueError, match="use `paint`"):
        draw(SEMANTIC, with_stage(SEMANTIC), [""])
    with pytest.raises(ValueError, match="read no maps"):
        semantic.paint(RETRIEVAL, {}, maps)


def test_colours_of_a_file_become_numbers_again():
    numbers = np.arange(len(SEGMENTS), dtype=np.uint8)
    assert_array_equal(from_colours(PALETTE[numbers]), numbers)
    assert from_colours(np.array([250, 250, 40], np.uint8)) == 3


# Retrieval


def test_neighbours_are_the_nearest_and_a_picture_is_not_its_own():
    rng = np.random.default_rng(0)
    database = rng.normal(size=(30, 5))
    database /= np.linalg.norm(database, axis=1, keepdims=True)
    cosine = database @ database.T
    assert_array_equal(nearest(database, database, 3)[:, 0], np.arange(30))
    found = nearest(database, database, 3, own=True)
    np.fill_diagonal(cosine, -2)
    assert_array_equal(found, np.argsort(-cosine, 1)[:, :3])
    assert nearest(database, database[:2], 0).shape == (2, 0)
    for k in (-1, 31):
        with pytest.raises(ValueError, match=r"0..30"):
            nearest(database, database, k)


def test_neighbours_are_found_in_every_block(monkeypatch):
    database = np.eye(7)[np.arange(7)] + 0.1 * np.eye(7)[(np.arange(7) + 1) % 7]
    whole = nearest(database, database, 2, own=True)
    monkeypatch.setattr(retrieval, "ROWS", 3)
    assert_array_equal(nearest(database, database, 2, own=True), whole)


def test_the_text_stands_before_its_neighbours():
    texts, database = np.eye(3)[:2], np.eye(3)[::-1]
    out = context(texts, database, 1)
    assert_array_equal(out, [[texts[0], database[2]], [texts[1], database[1]]])


@pytest.mark.slow
def test_neighbours_reach_the_latent_and_guidance_0_ignores_them():
    one, other = np.float32(np.random.default_rng(0).normal(size=(2, 3, 16)))
    cond = {"context": np.stack([one, other])}
    a, b = denoised(RETRIEVAL, cond)
    assert np.abs(a - b).max() > 1e-4
    a, b = denoised(RETRIEVAL, cond, 0.0)
    assert_allclose(a, b, atol=1e-6)
    null = denoised(RETRIEVAL, {"context": 0 * cond["context"]})[0]
    assert_allclose(a, null, atol=1e-6)
    # In which order they stand is not told.
    turned = denoised(RETRIEVAL, {"context": cond["context"][:, ::-1]})
    assert_allclose(turned, denoised(RETRIEVAL, cond), atol=1e-5)


@pytest.fixture
def clip_weights(tmp_path):
    path = tmp_path / "clip.safetensors"
    params = made(lambda key: clip.init_params(clip.TINY, key))
    checkpoint.save_weights(path, params, {"model": "glide.clip", "config": checkpoint._plain(
        vars(clip.TINY) | {"text": vars(clip.TINY.text)})})  # fmt: skip
    return path


def test_training_is_given_neighbours_and_maps(clip_weights, monkeypatch):
    whole = data.load
    monkeypatch.setattr(data, "load", lambda name, split, **o: whole(name, "test", **o))
    c = RetrievalTrainConfig(preset="tiny_retrieval", clip=clip_weights, neighbours=2, examples=8)
    images, batches = load_data(RETRIEVAL, c)
    config, params = retrieval.load_clip(clip_weights)
    embeddings = clip.embed_images(config, params, images)
    own = (batches["context"] @ embeddings[..., None]).squeeze(-1)  # (8, 2) cosines
    assert batches["context"].shape == (8, 2, 16) and (own[:, 0] >= own[:, 1] - 1e-3).all()
    with pytest.raises(ValueError, match="train-retrieval"):
        load_data(RETRIEVAL, TrainConfig(preset="tiny_retrieval", examples=8))
    images, batches = load_data(SEMANTIC, TrainConfig(preset="tiny_semantic", examples=8))
    assert_array_equal(batches["semantic"], segment(whole("scenes", "test")["scenes"][:8], 32))


def test_commands_paint_and_retrieve(clip_weights, tmp_path, capsys, monkeypatch):
    told = {}

    def fake(config, params, prompts, **options):
        told.update(options)
        return np.zeros((len(prompts), 32, 32, 3), np.uint8)

    for module in (semantic, retrieval):
        monkeypatch.setattr(module, "draw", fake)

    def run(name, *options):
        config = MODELS[f"tiny_{name}"]
        monkeypatch.setattr("ldm.sample.load", lambda path: (config, with_stage(config), {}))
        command = {"semantic": "paint", "retrieval": "retrieve"}[name]
        return program(capsys, "ldm", COMMANDS, command, "--num", 2, "--out",
                       tmp_path / "grid.png", *options)  # fmt: skip

    Image.fromarray(PALETTE[np.eye(32, dtype=int)]).save(tmp_path / "map.png")
    result = run("semantic", "--map", tmp_path / "map.png")
    assert result.returncode == 0, result.stderr
    assert_array_equal(told["beside"]["semantic"], np.eye(32)[None].repeat(2, 0))
    assert run("semantic", "--scene", 1).returncode == 0
    assert set(np.unique(told["beside"]["semantic"])) > {0}
    assert "0..1999" in run("semantic", "--scene", -1).stderr
    options = ["--prompt", "a red ball", "--clip", clip_weights, "--split", "test"]
    result = run("retrieval", *options, "--examples", 60, "--style", "night", "--neighbours", 3)
    assert result.returncode == 0, result.stderr
    assert told["beside"]["context"].shape == (2, 4, 16) and told["guidance_scale"] == 3
    assert "no scene" in run("retrieval", *options, "--style", "nigt").stderr


# LPIPS


def small_lpips(tmp_path, monkeypatch):
    """Files as published, of an eighth of the channels, and the tensors in them."""
    widths = (4, 4, 8, 8, 8)
    monkeypatch.setattr(perceptual, "WIDTHS", widths)
    rng, vgg, lins, fan_in = np.random.default_rng(0), {}, {}, 3
    for i, (stage, width) in enumerate(zip(perceptual.STAGES, widths, strict=True)):
        for n in stage:
            kernel = rng.normal(size=(width, fan_in, 3, 3))
            vgg[f"features.{n}.weight"] = kernel / np.sqrt(9 * fan_in)
            vgg[f"features.{n}.bias"] = 0.1 * rng.normal(size=width)
            fan_in = width
        lins[f"lin{i}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1))
    vgg["classifier.0.weight"] = np.zeros((2, 2))
    paths = tmp_path / "vgg16.safetensors", tmp_path / "lpips.safetensors"
    for path, tensors in zip(paths, (vgg, lins), strict=True):
        tensors = {k: np.float32(v) for k, v in tensors.items()}
        safetensors.numpy.save_file(tensors, path)
    return paths, vgg, lins


def by_hand(vgg, lins, x, y):
    """LPIPS in float64 by loops over the taps of each kernel, in PyTorch's layout."""

    def features(x):  # (3, H, W) in [-1, 1]
        shift, scale = (np.array(a)[:, None, None] for a in (perceptual.SHIFT, perceptual.SCALE))
        h, found = (x - shift) / scale, []
        for i, stage in enumerate(perceptual.STAGES):
            if i:
                C, H, W = h.shape
                h = h.reshape(C, H // 2, 2, W // 2, 2).max((2, 4))
            for n in stage:
                w, (_, H, W) = vgg[f"features.{n}.weight"], h.shape
                p = np.pad(h, ((0, 0), (1, 1), (1, 1)))
                h = sum(np.einsum("oi,ihw->ohw", w[:, :, a, b], p[:, a : a + H, b : b + W])
                        for a in range(3) for b in range(3))  # fmt: skip
                h = np.maximum(h + vgg[f"features.{n}.bias"][:, None, None], 0)
            found.append(h / (np.sqrt((h**2).sum(0)) + 1e-10))
        return found

    pairs = zip(features(x), features(y), strict=True)
    return sum((lins[f"lin{i}.model.1.weight"][0] * (a - b) ** 2).sum(0).mean()
               for i, (a, b) in enumerate(pairs))  # fmt: skip


def test_lpips_of_files_is_its_formula(tmp_path, monkeypatch):
    paths, vgg, lins = small_lpips(tmp_path, monkeypatch)
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 2, 16, 16, 3))
    params = perceptual.load(*paths)
    run = jax.jit(lambda x, y: perceptual.distance(params, x, y))
    out = run(jnp.float32(x), jnp.float32(y))
    hand = [by_hand(vgg, lins, a.transpose(2, 0, 1), b.transpose(2, 0, 1))
            for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert_allclose(out, hand, rtol=2e-4)
    assert_allclose(run(jnp.float32(x), jnp.float32(x)), 0, atol=1e-9)
    grad = jax.jit(jax.grad(lambda y: perceptual.distance(params, jnp.zeros_like(y), y).sum()))
    assert np.isfinite(grad(jnp.zeros((1, 16, 16, 3)))).all()


def test_training_takes_lpips_from_both_files_or_none(tmp_path, monkeypatch):
    (vgg, lpips), _, _ = small_lpips(tmp_path, monkeypatch)
    c = train_autoencoder.AutoencoderTrainConfig()
    assert train_autoencoder.seen_by(c)[0] == "random-conv-distance-1"
    assert train_autoencoder.seen_by(replace(c, vgg=vgg, lpips=lpips))[0] == "lpips-vgg16"
    with pytest.raises(ValueError, match="both --vgg"):
        train_autoencoder.seen_by(replace(c, vgg=vgg))
    with pytest.raises(checkpoint.CheckpointError, match="vgg16.safetensors: lin0.model.1.weight"):
        perceptual.load(vgg, vgg)
    with pytest.raises(checkpoint.CheckpointError, match="features.0.weight is .0., not .4, 3, 3"):
        perceptual.load(lpips, lpips)
