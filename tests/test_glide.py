"""GLIDE as a program: training, resuming after a kill, sampling, and what wrong input gets."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made, program
from numpy.testing import assert_array_equal
from PIL import Image

from common import checkpoint, metrics
from glide.__main__ import COMMANDS
from glide.model import (
    PAPER,
    SMALL,
    TINY,
    Glide,
    denoiser,
    encode_text,
    init_params,
    load,
    tokenizer,
)
from glide.sample import SHIPPED, draw
from glide.train import make_loss

ROOT = Path(__file__).parent.parent
TRAIN = [
    "train", "--preset", "tiny", "--batch-size", "8", "--examples", "64", "--steps", "24",
    "--log-every", "2", "--save-every", "4", "--sample-every", "1000",
]  # fmt: skip


def glide(*args, check=True, start=False):
    """python -m glide ..., in a process of its own."""
    command = [sys.executable, "-m", "glide", *map(str, args)]
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if start:
        return subprocess.Popen(command, **options)
    return subprocess.run(command, **options, check=check, timeout=400)


def in_process(capsys, *args):
    return program(capsys, "glide", COMMANDS, *args)


def assert_one_line(result, *words):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def params():
    return made(lambda key: init_params(TINY, key))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A whole short training run and its folder."""
    out = tmp_path_factory.mktemp("run")
    glide(*TRAIN, "--out", out)
    return out


@pytest.mark.slow
def test_the_paper_preset_has_the_released_models_parameters():
    count = lambda c: sum(  # noqa: E731
        p.size for p in jax.tree.leaves(jax.eval_shape(lambda: init_params(c, jax.random.key(0))))
    )
    assert count(PAPER) == 385_030_726
    assert count(SMALL) * 2 < 5_000_000  # bytes in half precision


@pytest.mark.slow
def test_text_reaches_the_picture_by_both_ways(params):
    tokens = tokenizer(TINY).encode(["a red ball", "a blue ball"])
    cond = encode_text(TINY, params, tokens)
    x = jax.random.normal(jax.random.key(2), (1, 32, 32, 3))
    denoise = jax.jit(lambda c: denoiser(TINY, params)(x, jnp.array([300]), c).eps)
    eps = lambda **c: denoise(c)  # noqa: E731
    red, blue = (jax.tree.map(lambda a, i=i: a[i : i + 1], cond) for i in (0, 1))
    base = eps(**red)
    assert np.abs(base - eps(**{**red, "context": blue["context"]})).max() > 1e-5
    assert np.abs(base - eps(**{**red, "vector": blue["vector"]})).max() > 1e-5
    apply = lambda p: Glide(TINY).apply({"params": p}, x, jnp.array([300]), {"tokens": tokens[:1]})  # noqa: E731
    assert jax.eval_shape(apply, params).shape == (1, 32, 32, 6)


@pytest.mark.slow
def test_captions_are_dropped_to_the_null_caption_that_sampling_uses(params):
    """With drop = 1 the caption cannot matter, and equals training on empty captions."""
    tokens = tokenizer(TINY).encode(["a red ball", "a blue cube"])
    batch = {
        "image": jax.random.randint(jax.random.key(0), (2, 32, 32, 3), 0, 256).astype(jnp.uint8),
        "tokens": jnp.broadcast_to(tokens[:, None], (2, 4, TINY.text.length)),
    }
    null = {**batch, "tokens": jnp.zeros_like(batch["tokens"])}
    losses = {}
    for drop in (0.0, 1.0):
        loss = jax.jit(make_loss(TINY, drop))
        keys = lambda: jax.random.split(jax.random.key(1), 2)  # noqa: E731
        losses[drop] = [float(loss(params, b, keys())[0]) for b in (batch, null)]
    assert losses[1.0][0] == losses[1.0][1] == pytest.approx(losses[0.0][1], rel=1e-6)
    assert abs(losses[0.0][0] - losses[0.0][1]) > 1e-5 * losses[0.0][1]


@pytest.mark.slow
def test_a_picture_depends_on_its_seed_and_row_alone(params):
    prompts = ["a red ball"] * 3
    options = {"steps": 2, "seed": 5, "chunk": 4}
    three = draw(TINY, params, prompts, **options)
    six = draw(TINY, params, prompts * 2, **options)
    assert three.shape == (3, 32, 32, 3) and three.dtype == np.uint8
    # Batch sizes compile to different programs: rounding may move a pixel by one level.
    assert np.abs(three.astype(int) - six[:3]).max() <= 1
    assert np.abs(three[0].astype(int) - three[1]).max() > 10
    assert np.abs(six[:2].astype(int) - six[4:]).max() > 10  # rows of two chunks
    path = draw(TINY, params, prompts, path=True, **options)
    assert path.shape == (3, 3, 32, 32, 3)
    assert np.abs(path[-1].astype(int) - three).max() <= 1


@pytest.mark.slow
def test_dpm_solver_is_ddim_in_two_steps_and_looks_back_in_three(params):
    far = {}
    for steps in (2, 3):  # the first step and the last are of first order, as DDIM's
        ddim, dpm = (draw(TINY, params, ["a red ball"], steps=steps, eta=e) for e in (0.0, "dpm"))
        far[steps] = np.abs(ddim.astype(int) - dpm).max()
    assert far[2] <= 1 < far[3]


@pytest.mark.slow
def test_guidance_scale_zero_ignores_the_caption_and_scales_mix_in_a_batch(params):
    a, b = (
        draw(TINY, params, [p] * 3, guidance_scale=np.array([0, 1, 3]), steps=2)
        for p in ("a red ball", "a blue cube")
    )
    assert np.abs(a[0].astype(int) - b[0]).max() <= 1
    # 1 is the conditional model alone, 0 the same of the caption that dropping leaves: no words.
    alone, empty = (
        draw(TINY, params, [p] * 3, guidance_scale=1.0, steps=2) for p in ("a red ball", "")
    )
    assert np.abs(a[1].astype(int) - alone[1]).max() <= 1
    assert np.abs(a[0].astype(int) - empty[0]).max() <= 1
    assert all(np.abs(a[i].astype(int) - b[i]).max() > 1 for i in (1, 2))


def test_training_leaves_metrics_checkpoints_and_weights(uninterrupted):
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").open()]
    assert [r["step"] for r in rows] == list(range(2, 25, 2))
    assert all(np.isfinite(list(r.values())).all() for r in rows)
    assert checkpoint.latest(uninterrupted / "checkpoints") == 24
    _, metadata = checkpoint.load_weights(uninterrupted / "weights.safetensors")
    assert metadata["model"] == "glide" and metadata["recipe"]["steps"] == 24


def test_training_killed_at_any_moment_resumes_to_the_last_bit(uninterrupted, tmp_path):
    """kill -9, SIGTERM and kill -9, saves included; then the same curve and the same weights."""
    chance, kills = random.Random(0), 0
    metrics = tmp_path / "metrics.jsonl"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        before = checkpoint.latest(tmp_path / "checkpoints") or 0
        process = glide(*TRAIN, "--out", tmp_path, start=True)
        # Until it has logged or begun to save something new, then a random moment more.
        while process.poll() is None:
            steps = [int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*")]
            if max(steps, default=0) > before:
                break
            time.sleep(0.01)
        time.sleep(chance.random() * 0.3)
        process.send_signal(number)
        _, err = process.communicate()
        kills += process.returncode in (-signal.SIGKILL, 0)
        if number == signal.SIGTERM and "stopped step" in err:  # told in time: nothing is lost
            step = int(err.split("stopped step ")[1].split()[0])
            assert step == checkpoint.latest(tmp_path / "checkpoints") and step > before
    assert kills >= 2
    glide(*TRAIN, "--out", tmp_path)
    assert metrics.read_text() == (uninterrupted / "metrics.jsonl").read_text()
    ours, theirs = (
        checkpoint.load_weights(out / "weights.safetensors")[0] for out in (tmp_path, uninterrupted)
    )
    jax.tree.map(assert_array_equal, ours, theirs)


def test_a_run_goes_on_only_with_its_own_settings(uninterrupted, capsys):
    result = in_process(capsys, *TRAIN, "--out", uninterrupted, "--lr", "0.5")
    assert_one_line(result, "lr is 0.001 there, 0.5 here")


def test_sample_writes_a_grid_or_a_folder_and_says_where(uninterrupted, tmp_path):
    weights = ["--weights", uninterrupted / "weights.safetensors", "--steps", 2, "--num", 2]
    prompt = ["--prompt", "a small red ball above a blue cube", "--seed", 0]
    result = glide("sample", *prompt, *weights, "--out", tmp_path / "new" / "grid.png")
    assert str(tmp_path / "new" / "grid.png") in result.stdout
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.width > 200 and image.text["prompt"] == prompt[1]
    glide("sample", *prompt, *weights, "--out", tmp_path / "folder")
    files = sorted((tmp_path / "folder").iterdir())
    assert [f.name for f in files] == ["0000.png", "0001.png"]
    assert Image.open(files[0]).size == (32, 32)


WRONG = {
    "unknown word": (["--prompt", "a redd ball"], ["unknown word 'redd'", "red"]),
    "empty prompt": (["--prompt", "  "], ["prompt is empty"]),
    "long prompt": (["--prompt", "red " * 40], ["40 words", "at most 23"]),
    "negative steps": (["--prompt", "a red ball", "--steps", "-5"], ["steps", "1..1000", "-5"]),
    "steps over T": (["--prompt", "a red ball", "--steps", "1001"], ["1..1000", "1001"]),
    "no pictures": (["--prompt", "a red ball", "--num", "0"], ["num", "1..4096"]),
    "nan guidance": (["--prompt", "a red ball", "--guidance-scale", "nan"], ["finite"]),
    "no weights": (["--prompt", "a red ball", "--weights", "none.safetensors"], ["no weights at"]),
    "out not writable": (["--prompt", "a red ball", "--out", "/proc/x/a.png"], ["cannot write"]),
    "out of another kind": (["--prompt", "a red ball", "--out", "a.txt"], [".png", "a.txt"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_line_and_code_2_and_writes_nothing(
    name, uninterrupted, tmp_path, capsys
):
    options, words = WRONG[name]
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"mine")
    defaults = ["--weights", uninterrupted / "weights.safetensors", "--out", kept]
    given = [o for o in zip(defaults[::2], defaults[1::2], strict=True) if o[0] not in options]
    result = in_process(capsys, "sample", *[x for pair in given for x in pair], *options)
    assert_one_line(result, *words)
    assert kept.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [kept]


def test_weights_of_another_config_or_kind_are_refused(uninterrupted, tmp_path, capsys):
    params, metadata = checkpoint.load_weights(uninterrupted / "weights.safetensors")
    other = tmp_path / "other.safetensors"
    wide = replace(TINY, unet=replace(TINY.unet, width=48))
    config = json.loads(json.dumps(metadata["config"])) | {"unet": vars(wide.unet)}
    checkpoint.save_weights(other, params, metadata | {"config": config})
    run = lambda: in_process(  # noqa: E731
        capsys, "sample", "--prompt", "a red ball", "--weights", other
    )
    assert_one_line(run(), "fit another model")
    checkpoint.save_weights(other, params, metadata | {"model": "ldm"})
    assert_one_line(run(), "weights of ldm")
    other.write_bytes(b"\x80\x04not safetensors")
    assert_one_line(run(), "no safetensors file")


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "glide", *TRAIN, "--batch-size", "30"]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **flags}, text=True, capture_output=True
    )
    assert_one_line(result, "batch of 30", "8 devices")


@pytest.mark.slow
def test_the_shipped_model_draws_what_it_is_asked_for_and_gives_each_object_its_own_colour():
    """glide/README.md has the numbers, of 512 captions."""
    config, params, _ = load(SHIPPED)
    one = ["red ball", "yellow star", "green heart", "pink cone", "purple cube", "cyan ring"]
    two = [f"a {a} and a {b}" for a, b in zip(one, one[1:] + one[:1], strict=True)]
    prompts = [f"a {thing}" for thing in one] * 2 + two * 2
    images = draw(config, params, prompts, steps=25, chunk=24)
    alone = metrics.caption_accuracy(prompts[:12], images[:12])
    pairs = metrics.caption_accuracy(prompts[12:], images[12:])
    assert alone["shape_colour"]["accuracy"] >= 0.75, alone
    assert pairs["shape_colour"]["accuracy"] >= 0.4, pairs  # a bag of words gets a quarter
