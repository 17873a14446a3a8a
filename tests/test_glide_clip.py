"""CLIP in GLIDE: what guidance adds to eps, re-ranking, training that resumes, search."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common import checkpoint, clip, command, data
from common.clip import TINY
from common.guidance import gradient_guidance
from common.process import Prediction
from common.scenes.captions import agrees, caption, claims
from common.scenes.reader import truth
from common.scenes.scene import COLOURS, SHAPES, draw_scene
from common.schedule import cosine
from common.text import WordTokenizer
from glide import clip as glide_clip
from glide import model, search
from glide.clip import ClipTrainConfig
from glide.clip_guidance import clip_log_prob, rerank, unnoised_log_prob, with_text

CLEAN = replace(TINY, size=8, patch=4, width=16)
NOISED = replace(CLEAN, T=1000)
SCHEDULE = cosine(1000)
COMMANDS = {
    "search": (search.SearchConfig, search.main),
    "train-clip": (ClipTrainConfig, glide_clip.main),
}


def random_params(config, seed=0):
    """Every parameter away from zero."""
    shapes = jax.eval_shape(lambda: clip.init_params(config, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [0.3 * rng.standard_normal(a.shape, np.float32) for a in leaves]
    )


def tokens(*texts):
    return WordTokenizer(clip.VOCABULARY, TINY.text.length).encode(texts)


def noisy(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def scenes(monkeypatch):
    """In place of the data set: 40 scenes whose pictures are noise."""
    rng = np.random.default_rng(0)
    drawn = [draw_scene(rng) for _ in range(40)]
    images = rng.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    found = {"image": images, "scenes": drawn}
    monkeypatch.setattr(data, "load", lambda name, split, size: found)
    return drawn


def exit_of(capsys, *args):
    """Exit code and lines on stderr of `python -m glide ...`."""
    with pytest.raises(SystemExit) as stop:
        command.run("glide", COMMANDS, [str(a) for a in args])
    return stop.value.code, capsys.readouterr().err.splitlines()


# Guidance


def test_guidance_adds_100_times_the_gradient_of_each_pictures_own_cosine():
    """-s noise_t 100 grad cos: the logit scale is inside, and the batch is no mean."""
    params, x, t = random_params(NOISED), noisy(3), np.array([900, 500, 20])
    cond = with_text({}, NOISED, params, tokens("a red ball", "a blue cube", "a pink star"))
    conditional = lambda x, t, cond: Prediction(0.3 * x)  # noqa: E731
    guided = gradient_guidance(conditional, clip_log_prob(NOISED, params), SCHEDULE, 2.0)
    got = jax.jit(guided)(x, t, cond).eps - 0.3 * x

    def cosine_of_one(x, t, text_embedding):
        image = clip.encode_image(NOISED, params, x[None], t[None])[0]
        return image @ text_embedding

    gradient = jax.jit(jax.vmap(jax.grad(cosine_of_one)))(x, t, cond["text_embedding"])
    noise = np.asarray(SCHEDULE.noise)[t].reshape(3, 1, 1, 1)
    assert np.abs(got).max() > 0.1
    assert_allclose(got, -2 * noise * 100 * gradient, rtol=1e-3, atol=1e-4)


def test_guidance_reads_the_text_embedding_and_never_the_text_tower():
    """So the text is encoded once, before the loop; and GLIDE's denoiser lets the entry pass."""
    params = random_params(NOISED)
    cond = with_text({"tokens": tokens("a red ball")}, NOISED, params, tokens("a red ball"))
    image_side = {k: v for k, v in params.items() if k != "text"}
    x, t = noisy(1), np.array([500])
    got = jax.jit(clip_log_prob(NOISED, image_side))(x, t, cond)
    image = jax.jit(lambda x, t: clip.encode_image(NOISED, params, x, t))(x, t)
    assert_allclose(got, 100 * (image * cond["text_embedding"]).sum(1), rtol=1e-5)

    key = jax.random.key(0)
    glide = jax.eval_shape(lambda: model.init_params(model.TINY, key))
    denoise = lambda p, x: model.denoiser(model.TINY, p)(x, t, cond).eps  # noqa: E731
    assert jax.eval_shape(denoise, glide, jnp.zeros((1, 32, 32, 3))).shape == (1, 32, 32, 3)


def test_unnoised_guidance_sees_the_clipped_x0_and_its_gradient_goes_through_the_denoiser():
    """With eps = a x: x0 = x (1 - noise a) / signal, and so is its gradient; 0 where clipped."""
    params, t, a = random_params(CLEAN), np.array([300, 600]), 0.4
    cond = with_text({}, CLEAN, params, tokens("a red ball", "a blue cube"))
    denoise = lambda x, t, cond: Prediction(a * x)  # noqa: E731
    log_prob = unnoised_log_prob(CLEAN, params, denoise, SCHEDULE)
    signal, noise = (np.asarray(s)[t].reshape(2, 1, 1, 1) for s in SCHEDULE)
    factor, x = (1 - noise * a) / signal, noisy(2)
    x0 = np.clip(factor * x, -1, 1)
    score = lambda x0: clip.score(  # noqa: E731
        clip.encode_image(CLEAN, params, x0), cond["text_embedding"]
    )

    def value_and_grad(f, x):
        value, pullback = jax.vjp(f, x)
        return value, pullback(jnp.ones(2))[0]

    got, gradient = jax.jit(lambda x: value_and_grad(lambda x: log_prob(x, t, cond), x))(x)
    scores, at_x0 = jax.jit(lambda x0: value_and_grad(score, x0))(x0)
    assert_allclose(got, 100 * scores, rtol=1e-4, atol=1e-4)
    through = factor * (np.abs(factor * x) < 1)
    assert 0.1 < (through == 0).mean() < 0.9
    want = 100 * through * at_x0
    assert np.abs(want).max() > 0.1
    assert_allclose(gradient, want, rtol=1e-3, atol=1e-4)


def test_a_clean_clip_is_refused_as_a_guide_at_x_t():
    with pytest.raises(ValueError, match="train --noised"):
        clip_log_prob(CLEAN, {})


def test_reranking_puts_the_pictures_nearest_to_their_own_prompt_first():
    params, prompts = random_params(CLEAN), ["a red ball", "a blue cube"]
    images = np.random.default_rng(1).integers(0, 256, (2, 5, 8, 8, 3)).astype(np.uint8)
    ranked, scores = rerank(CLEAN, params, images, prompts)
    assert ranked.shape == images.shape and (np.diff(scores) < 0).all()
    for i, prompt in enumerate(prompts):
        own = (
            clip.embed_images(CLEAN, params, ranked[i])
            @ clip.embed_texts(CLEAN, params, [prompt]).T
        )
        assert_allclose(own[:, 0], scores[i], atol=1e-5)
        assert sorted(map(bytes, ranked[i])) == sorted(map(bytes, images[i]))


# Evaluation


def test_matches_are_the_scenes_of_which_all_claims_are_true():
    rng = np.random.default_rng(4)
    scenes = [draw_scene(rng) for _ in range(60)]
    texts = [caption(scene, rng) for scene in scenes]
    want = [[agrees(claims(text), truth(scene))["all"] for scene in scenes] for text in texts]
    got = glide_clip.matches(texts, scenes)
    assert_array_equal(got, want)
    assert got.diagonal().all() and got.sum() > 60


def test_a_clip_that_knows_shapes_and_colours_is_measured_as_such(scenes, monkeypatch):
    """Embeddings that say which shapes and colours there are, and nothing else."""
    words = [*SHAPES, *COLOURS]

    def embed(objects):
        row = np.array([sum(w in o for o in objects) for w in words], float)
        return row / np.linalg.norm(row)

    drawn = np.stack([embed([(o.shape, o.colour) for o in s.objects]) for s in scenes])
    said = lambda text: [(o["shape"], o["colour"]) for o in claims(text)["objects"]]  # noqa: E731
    monkeypatch.setattr(clip, "embed_images", lambda config, params, images, t: drawn)
    monkeypatch.setattr(
        clip, "embed_texts", lambda config, params, texts: np.stack([embed(said(t)) for t in texts])
    )
    rows = {row["task"]: row for row in glide_clip.evaluate(TINY, {})}
    for task, chance in (("zero-shot shape", 1 / 6), ("zero-shot colour", 1 / 8)):
        assert rows[task]["accuracy"] == 1 and rows[task]["chance"] == chance
        assert rows[task]["n"] == sum(len(s.objects) == 1 for s in scenes)
    own = rows["caption to its picture, of 1"]
    assert own["chance"] == 1 / 40 < own["accuracy"] and own["ceiling"] <= 1
    assert rows["caption to its picture, of 5"]["accuracy"] >= own["accuracy"]
    for row in rows.values():
        assert row["low"] <= row["accuracy"] <= row["high"]


# Training


def settings(out, **changes):
    return ClipTrainConfig(
        out=out, preset="tiny", noised=True, steps=6, batch_size=8, group=1, lr=0.01, warmup=1,
        rho=0.1, examples=32, log_every=1, save_every=2, **changes,
    )  # fmt: skip


@pytest.mark.slow
def test_training_stopped_halfway_resumes_to_the_last_bit(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(glide_clip, "evaluate", lambda config, params, t: [])
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    glide_clip.main(settings(whole))
    save, saved = checkpoint.save, []

    def save_once(folder, step, *rest):
        save(folder, step, *rest)
        saved.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_once)
    with pytest.raises(KeyboardInterrupt):
        glide_clip.main(settings(halves))
    monkeypatch.setattr(checkpoint, "save", save)
    glide_clip.main(settings(halves))
    assert saved == [2]
    metrics = (halves / "metrics.jsonl").read_text()
    assert metrics == (whole / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in metrics.splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert rows[0]["scale"] == pytest.approx(1 / 0.07) and rows[5]["loss"] < rows[0]["loss"]
    (config, params, metadata), (_, others, _) = (
        glide_clip.load(out / "weights.safetensors") for out in (halves, whole)
    )
    jax.tree.map(assert_array_equal, params, others)
    assert config == replace(TINY, T=1000) and metadata["recipe"]["noised"]
    assert metadata["recipe"]["command"].startswith("python -m glide train-clip --steps 6")
    with pytest.raises(checkpoint.CheckpointError, match="rho is 0.1 there, 0.2 here"):
        glide_clip.main(replace(settings(whole), rho=0.2))


def test_a_noised_clip_begins_with_a_clean_one_whose_class_token_is_that_of_every_time(tmp_path):
    params = random_params(TINY)
    path = tmp_path / "clip.safetensors"
    checkpoint.save_weights(path, params, {"model": "glide.clip", "config": asdict(TINY)})
    noised = replace(TINY, T=1000)
    begun = glide_clip.begin_with(noised, path)(jax.random.key(0))
    shapes = jax.eval_shape(lambda: clip.init_params(noised, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, shapes)
    mine, theirs = begun["image"], params["image"]
    assert_allclose(mine["time"], np.tile(theirs["class"], (1000, 1)), atol=2e-3)
    assert_allclose(mine["patch"]["kernel"], theirs["patch"]["kernel"], atol=2e-3)
    with pytest.raises(ValueError, match="is no base of this CLIP"):
        glide_clip.begin_with(clip.SMALL, path)


def test_groups_are_of_the_same_colours_and_compared_as_one_batch():
    rng = np.random.default_rng(0)
    drawn = [draw_scene(rng) for _ in range(400)]
    rows = glide_clip.in_groups({"row": np.arange(400)}, drawn, 4, seed=0)["row"]
    assert rows.shape == (100, 4) and len(set(rows.ravel())) == 400
    colours = [[sorted(o.colour for o in drawn[i].objects) for i in group] for group in rows]
    assert np.mean([all(c == group[0] for c in group) for group in colours]) > 0.5
    apart = glide_clip.in_groups({"row": np.arange(400)}, drawn, 4, seed=1)["row"]
    assert (rows != apart).any()

    params = random_params(CLEAN)
    texts = tokens(*[caption(scene, rng) for scene in drawn[:4]])[:, None]
    batch = {"image": rng.integers(0, 256, (4, 8, 8, 3), np.uint8), "tokens": texts}
    groups = {name: rows.reshape(2, 2, *rows.shape[1:]) for name, rows in batch.items()}
    loss = jax.jit(glide_clip.make_loss(CLEAN))
    one, _ = loss(params, batch, jax.random.split(jax.random.key(0), 4))
    two, _ = loss(params, groups, jax.random.split(jax.random.key(1), 2))
    assert_allclose(two, one, rtol=1e-5)


def test_the_optimiser_decays_matrices_alone_and_holds_the_scale_at_100(tmp_path):
    tx = glide_clip.optimiser(replace(settings(tmp_path), lr=0.5))
    start = {"log_scale": np.log(90.0), "matrix": np.ones((2, 2)), "gain": np.ones(2)}
    params = jax.tree.map(jnp.float32, start)
    grads = {**jax.tree.map(jnp.zeros_like, params), "log_scale": jnp.float32(-1)}

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):  # the first at rate 0
        params, state = step(params, state)
    assert_allclose(jnp.exp(params["log_scale"]), 100, rtol=1e-6)
    assert_array_equal(params["gain"], 1)
    assert (params["matrix"] < 0.95).all()


def test_a_size_that_patches_do_not_fill_is_refused(tmp_path, capsys):
    code, lines = exit_of(capsys, "train-clip", "--size", 30, "--out", tmp_path)
    assert code == 2 and len(lines) == 1 and "multiple of the patch (4)" in lines[0]


# Search


def test_search_gives_the_nearest_first_and_of_near_duplicates_the_best():
    degrees = np.deg2rad([40, 10, 12, 90, 11, 41])
    embeddings = np.stack([np.cos(degrees), np.sin(degrees)], 1)
    query = np.array([1.0, 0])
    rows, scores = search.search(query, embeddings, 3, duplicates=0.99)
    assert_array_equal(rows, [1, 0, 3])
    assert_allclose(scores, np.cos(degrees[rows]), atol=1e-6)
    assert_array_equal(search.search(query, embeddings, 4, duplicates=1.0)[0], [1, 4, 2, 0])
    assert len(search.search(query, embeddings, 9, duplicates=0.99)[0]) == 3


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "clip.safetensors"
    config = {**vars(TINY), "text": vars(TINY.text)}
    checkpoint.save_weights(path, random_params(TINY), {"model": "glide.clip", "config": config})
    return path


def test_search_prints_the_hits_and_draws_them(scenes, weights, tmp_path, capsys):
    out = tmp_path / "new" / "hits.png"
    options = ["--weights", weights, "--num", 3, "--duplicates", 1, "--out", out]
    command.run("glide", COMMANDS, [str(a) for a in ["search", "A red sphere", *options]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and str(out) in lines[-1] and out.is_file()
    rank, score, split, row, *words = lines[0].split()
    assert (rank, split) == ("1", "test") and -1 <= float(score) <= 1
    assert " ".join(words) == search.describe(scenes[int(row)])
    command.run(
        "glide", COMMANDS, [str(a) for a in ["search", "a red ball", *options[:-1], tmp_path / "f"]]
    )
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [
        "0000.png",
        "0001.png",
        "0002.png",
    ]


WRONG = {
    "no weights": (["a red ball", "--weights", "none.safetensors"], "python -m glide train-clip"),
    "unknown word": (["a redd ball"], "unknown word 'redd'"),
    "empty query": (["  "], "query is empty"),
    "no hits wanted": (["a red ball", "--num", "0"], "num and count must be at least 1"),
    "out of another kind": (["a red ball", "--out", "a.txt"], "a.txt"),
    "split": (["a red ball", "--split", "no"], "no split 'no'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_to_search_gets_one_line_and_code_2(name, weights, tmp_path, capsys):
    options, words = WRONG[name]
    defaults = ["--weights", str(weights), "--out", str(tmp_path / "a.png")]
    given = [o for o in zip(defaults[::2], defaults[1::2], strict=True) if o[0] not in options]
    code, lines = exit_of(capsys, "search", *options, *[x for pair in given for x in pair])
    assert code == 2 and len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "a.png").exists() and not Path("a.txt").exists()
