"""Karlo's published files on the command line, and its loops: by numpy, from the official names."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import program
from PIL import Image
from test_pretrained import drawn as drawn_glide
from test_pretrained_bytepairs import MERGES, SIZE, lines
from test_pretrained_clip import double, openai_layout, openai_text
from test_pretrained_clip import drawn as drawn_clip
from test_pretrained_ldm_networks import unet
from test_unclip_pretrained import (
    decoder_layout,
    official_decoder,
    official_prior,
    prior_layout,
    sr_layout,
)
from test_unclip_pretrained import drawn as drawn_karlo

from common import bytepairs, pretrained_clip, sampler
from common.clip import ClipConfig
from common.text import TextConfig
from unclip import pretrained as karlo
from unclip import pretrained_sample as karlo_sample
from unclip.__main__ import COMMANDS

DIM, KARLO_UNET = 16, {"width": 32, "multipliers": (1,), "blocks": 1}
CLIP = ClipConfig(
    size=8, patch=4, width=16, layers=1, heads=2, dim=DIM, end=SIZE - 1,
    text=TextConfig(vocabulary=SIZE, length=12, width=DIM, layers=1, heads=2),
)  # fmt: skip
PRIOR = karlo.KarloPriorConfig(dim=DIM, length=12, width=16, layers=1, heads=2)
DECODER = karlo.KarloDecoderConfig(
    size=4, dim=DIM, context=16,
    unet=replace(karlo.KarloDecoderConfig().unet, **KARLO_UNET, attention=(1,), head_dim=16),
)  # fmt: skip
SR = replace(karlo.SUPER_RESOLUTION, **KARLO_UNET)
X = np.zeros((1, 4, 4, 3), np.uint8)


@pytest.fixture
def karlo_files(tmp_path, monkeypatch):
    """Small files of Karlo, and what its command is given of them."""
    pytest.importorskip("tokenizers")
    stats = {"0": np.full(DIM, 0.25, np.float32), "1": np.full(DIM, 0.5, np.float32)}
    contents = {
        "clip.pt": drawn_clip(openai_layout(CLIP)),
        "prior.ckpt": drawn_karlo(prior_layout(PRIOR)),
        "decoder.ckpt": drawn_glide(decoder_layout(DECODER)),
        "sr.ckpt": drawn_glide(sr_layout(SR)),
        "stats.th": stats,
    }
    for name, state in contents.items():
        safetensors.numpy.save_file(state, tmp_path / name)
    (tmp_path / "merges.txt").write_text(lines(MERGES))
    for name, config in (("prior", PRIOR), ("decoder", DECODER), ("super_resolution", SR)):
        of = getattr(karlo, f"load_{name}")
        monkeypatch.setattr(karlo, f"load_{name}", partial(of, config=config))
    monkeypatch.setattr(pretrained_clip, "load", partial(pretrained_clip.load, configs=[CLIP]))
    return ["--weights", tmp_path / "decoder.ckpt", "--prior-weights", tmp_path / "prior.ckpt",
            "--clip", tmp_path / "clip.pt", "--vocab", tmp_path / "merges.txt",
            "--stats", tmp_path / "stats.th"]  # fmt: skip


@pytest.mark.slow
def test_karlo_draws_from_its_own_files_and_enlarges(karlo_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(karlo_sample, "SR_STEPS", 3)  # at the first call, which is compiled
    words, up = ["--prompt", "lower low", *karlo_files], ["--upsampler", tmp_path / "sr.ckpt"]
    words += ["--num", "1", "--steps", "2"]
    for more, side in (([], 4), (up, 16), ([*up, "--size", "4"], 4)):
        out = ["--out", tmp_path / f"{len(more)}"]
        result = program(capsys, "unclip", COMMANDS, "sample", *words, *more, *out)
        assert result.returncode == 0, result.stderr
        image = Image.open(tmp_path / f"{len(more)}" / "0000.png")
        assert image.size == (side, side)
    assert image.text["guidance_scale"] == "8" and image.text["weights"] == "decoder.ckpt"
    for more, said in (
        (["--size", "9"], "size must be 4 or 16, not 9"),
        (["--best-of", "2"], "leave --prior and --best-of out"),
        (["--weights", tmp_path / "prior.ckpt"], "Karlo's prior, not of Karlo's decoder"),
        (["--clip", tmp_path / "sr.ckpt"], "Karlo's super-resolution, not of CLIP"),
        (["--stats", tmp_path / "sr.ckpt"], "no mean and deviation of 16 numbers"),
    ):
        result = program(capsys, "unclip", COMMANDS, "sample", *words, *more)
        assert result.returncode == 2 and said in result.stderr
        assert result.stderr.count("\n") == 1
    for more, said in (([], "give --vocab, CLIP's"), (karlo_files[6:8], "give --clip, OpenAI's"),
                       (karlo_files[4:8], "give --stats, ViT-L-14_stats")):  # fmt: skip
        result = program(capsys, "unclip", COMMANDS, "sample", *words[:6], *more)
        assert result.returncode == 2 and said in result.stderr


def test_karlo_reads_a_text_by_its_states_and_its_end(karlo_files):
    """Against the numpy evaluation of CLIP: not of length 1, padding cut off."""
    config, params = pretrained_clip.load(karlo_files[5])
    tokens = bytepairs.clip(karlo_files[7], SIZE, 12).encode(["lower low", ""])
    s = double(drawn_clip(openai_layout(CLIP)))
    model = karlo_sample.Karlo((config, params), None, None, None)
    for row, cond in zip(tokens, karlo_sample.read(model, tokens), strict=True):
        wanted = openai_text(s, CLIP, row[None])
        np.testing.assert_allclose(cond["text_embedding"], wanted, rtol=0, atol=2e-5)
        n = list(row).index(SIZE - 1) + 1
        assert cond["text_sequence"].shape == (1, n, DIM)
        last = cond["text_sequence"][:, -1] @ s["text_projection"]
        np.testing.assert_allclose(last, wanted, rtol=0, atol=2e-5)


def ddpm(predict, shape, steps, seed, bound=1.0):
    """Karlo's loop of p_sample with the cosine schedule respaced to `steps`, in float64.

    predict(x, index, abar, last) -> x0, and v of a learned variance or None for the small one. The
    noise is that of our sampler.
    """
    u = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1 - np.cos(u[1:]) ** 2 / np.cos(u[:-1]) ** 2, 0.999)
    at, kept = [], 0.0
    for _ in range(steps):
        at, kept = [*at, round(kept)], kept + 999 / (steps - 1)
    abar = np.cumprod(1 - betas)[at]
    before = np.append(1.0, abar[:-1])
    betas = 1 - abar / before
    small = betas * (1 - before) / (1 - abar)
    log_small = np.log(np.append(small[1], small[1:]))
    x_key, step_key = jax.random.split(jax.random.key(seed))
    noise = lambda key: np.asarray(sampler.noise_like(key, jnp.zeros(shape)), float)  # noqa: E731
    x = noise(x_key)
    for k in reversed(range(steps)):
        x0, v = predict(x, np.array([at[k]] * len(x)), abar[k], k == 0)
        x0 = x0.clip(-bound, bound)
        mean = betas[k] * before[k] ** 0.5 * x0 + (1 - before[k]) * (1 - betas[k]) ** 0.5 * x
        x = mean / (1 - abar[k])
        log = log_small[k]
        if v is not None:
            log = (v + 1) / 2 * np.log(betas[k]) + (1 - v) / 2 * log
        if k:
            z = noise(jax.random.split(jax.random.fold_in(step_key, at[k] + 1))[0])
            x = x + np.exp(log / 2) * z
    return x


def to_x0(x, eps, abar):
    return x / abar**0.5 - (1 / abar - 1) ** 0.5 * eps


@pytest.mark.slow
def test_karlo_draws_by_the_steps_of_its_own_loops(karlo_files, tmp_path, monkeypatch):
    """Prior: guided x0 within +-10, whitened back. Decoder: learned variance. Super-resolution: the
    second network in the last step. Guidance leaves the variance as it is."""
    monkeypatch.setattr(karlo_sample, "SR_STEPS", 3)
    rng, mask = np.random.default_rng(0), np.ones((1, 5), bool)
    made = {"text_sequence": (1, 5, DIM), "text_embedding": (1, DIM)}
    cond, null = ({k: np.float32(rng.normal(size=n)) for k, n in made.items()} for _ in range(2))
    short = {k: [c[k] for c in (cond, null)] for k in made}
    channels = lambda x: np.moveaxis(np.asarray(x, float), -1, 1)  # noqa: E731
    last = lambda x: np.moveaxis(x, 1, -1)  # noqa: E731

    params = karlo.load_prior(tmp_path / "prior.ckpt")[1]
    stats = karlo.load_stats(tmp_path / "stats.th", DIM)
    run = karlo_sample.compiled_prior(PRIOR, 25)
    found = run(params, stats, cond, null, 4.0, jax.random.key(5))
    s = drawn_karlo(prior_layout(PRIOR))
    pad = lambda a: np.pad(a, [(0, 0), (0, 12 - a.shape[1])] + [(0, 0)] * (a.ndim - 2))  # noqa: E731

    def x0_of(x, index, abar, final):
        both = [official_prior(s, PRIOR, x, index, pad(sequence), text, pad(mask))
                for sequence, text in zip(*short.values(), strict=True)]  # fmt: skip
        return both[1] + 4 * (both[0] - both[1]), None

    wanted = ddpm(x0_of, (1, DIM), 25, 5, bound=10)
    np.testing.assert_allclose(found, wanted * 0.5 + 0.25, rtol=0, atol=2e-3)
    assert wanted.std() > 0.5

    params, z = karlo.load_decoder(tmp_path / "decoder.ckpt")[1], np.float32(wanted)
    run = karlo_sample.compiled_decoder(DECODER, 2)
    found = run(params, {**cond, "image_embedding": z}, null, 8.0, jax.random.key(6))
    s = {k: x.astype(float) for k, x in drawn_glide(decoder_layout(DECODER)).items()}
    s = {k.removeprefix("model."): x for k, x in s.items()}

    def eps_of(x, index, abar, final):
        both = [last(official_decoder(s, DECODER, channels(x), index, sequence, text, mask, y))
                for sequence, text, y in zip(*short.values(), (z, None), strict=True)]  # fmt: skip
        (eps, v), (null_eps, _) = (np.split(out, 2, axis=-1) for out in both)
        return to_x0(x, null_eps + 8 * (eps - null_eps), abar), v

    wanted = ddpm(eps_of, (1, 4, 4, 3), 2, 6).clip(-1, 1)
    assert (np.abs(wanted) < 0.99).mean() > 0.2
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)

    params, x = karlo.load_super_resolution(tmp_path / "sr.ckpt")[1], np.float32(wanted)
    found = karlo_sample.compiled_super_resolution(SR)(params, x, jax.random.key(7))
    state = drawn_glide(sr_layout(SR))
    low_res = channels(jax.jit(karlo_sample.enlarge)(x))

    def eps_by_two(x, index, abar, final):
        prefix = "model_last_step." if final else "model_first_steps."
        s = {k.removeprefix(prefix): x.astype(float) for k, x in state.items() if prefix in k}
        eps = last(unet(s, SR, np.concatenate([channels(x), low_res], 1), index))
        return to_x0(x, eps, abar), None

    wanted = ddpm(eps_by_two, (1, 16, 16, 3), 3, 7)
    assert (np.abs(wanted) < 0.99).mean() > 0.2
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


def test_what_is_not_asked_for_is_as_karlo_has_it(karlo_files, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(karlo_sample, "draw", lambda *_, **options: asked.append(options) or X)
    words = ["--prompt", "low", *karlo_files, "--num", "1", "--out", tmp_path / "out"]
    assert program(capsys, "unclip", COMMANDS, "sample", *words).returncode == 0
    options = {"guidance_scale": 8, "prior_guidance": 4, "steps": 25}
    assert {name: asked[0][name] for name in options} == options
    assert (karlo_sample.PRIOR_STEPS, karlo_sample.SR_STEPS) == (25, 7)
