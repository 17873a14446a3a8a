"""Published weights on the command line: small files by the published names, and any words."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import program
from PIL import Image
from test_pretrained import ddpm_layout, ddpm_network, glide_layout, shrink
from test_pretrained import drawn as drawn_glide
from test_pretrained_bytepairs import GPT2, GPT2_SIZE, MERGES, SIZE, lines
from test_pretrained_ldm import SMALL, drawn, layout_of

from common import command, pretrained, sampler
from common.guidance import classifier_free
from common.pretrained import official
from common.process import to_uint8
from glide import model
from glide import pretrained as glide
from glide import sample as glide_sample
from glide.__main__ import COMMANDS as GLIDE
from ldm import model as ldm_model
from ldm import pretrained as ldm
from ldm import sample as ldm_sample
from sdedit import pretrained as sdedit
from sdedit.__main__ import COMMANDS as SDEDIT


def smaller(name, **changes):
    """One of test_pretrained_ldm's models with a single level of 64 channels.

    With one channel a group, norms would take out what the time adds.
    """
    config = replace(SMALL[name], **changes)
    return replace(config, unet=replace(config.unet, width=64, multipliers=(1,), attention=(1,)))


def run(program, module, *words):
    argv = ["sample", *map(str, words), "--num", "1", "--steps", "2"]
    command.run(program, {"sample": (module.SampleConfig, module.main), "x": (tuple, len)}, argv)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """base.pt, upsample.pt and vocab.bpe of a small GLIDE."""
    pytest.importorskip("tokenizers")
    text = replace(shrink(model.PAPER).text, vocabulary=GPT2_SIZE, length=16)
    base = replace(shrink(model.PAPER), text=text)
    up = replace(shrink(model.PAPER_UPSAMPLER), text=text, size=16)
    for name, config in (("base.pt", base), ("upsample.pt", up)):
        safetensors.numpy.save_file(drawn_glide(glide_layout(config)), tmp_path / name)
    (tmp_path / "vocab.bpe").write_text(lines(GPT2))
    monkeypatch.setattr(glide, "load", partial(glide.load, configs=[base, up]))
    return tmp_path


X = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.slow
def test_glide_samples_from_its_own_files_and_enlarges(files, capsys, monkeypatch):
    weights = ["--weights", files / "base.pt", "--vocab", files / "vocab.bpe"]
    prompt = ["--prompt", "a panda, so"]
    up = ["--upsampler", files / "upsample.pt"]
    run("glide", glide_sample, *prompt, *weights, *up, "--out", files / "large")
    assert Image.open(files / "large" / "0000.png").size == (16, 16)
    asked = []
    monkeypatch.setattr(glide_sample, "draw", lambda *_, **options: asked.append(options) or X)
    out = ["--num", "1", "--out", files / "small"]
    assert program(capsys, "glide", GLIDE, "sample", *prompt, *weights, *out).returncode == 0
    assert (asked[0]["steps"], asked[0]["guidance_scale"]) == (100, 3.0)  # GLIDE's notebook
    for words, said in (
        (weights[:2], "give GPT-2's vocab.bpe with --vocab"),
        ([*weights, "--best-of", "2"], "do not go with --clip"),
        ([*weights, "--upsampler", files / "base.pt"], "is no second stage"),
        ([*weights, "--prompt", "panda " * 9], "shorten it"),
    ):
        with pytest.raises(SystemExit):
            run("glide", glide_sample, *prompt, *words)
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_glides_own_weights_are_asked_for_the_times_that_they_learned(files):
    config, params, read = glide_sample.open_weights(files / "base.pt", files / "vocab.bpe")
    found = glide_sample.draw(config, params, ["panda"], read=read, steps=2)

    @jax.jit
    def expected(params, tokens, x):
        cond, null = (model.encode_text(config, params, t) for t in (tokens, 0 * tokens))
        denoise = classifier_free(official(model.denoiser(config, params)), null, 3.0)
        ts = sampler.timesteps(config.T, 2)
        return to_uint8(sampler.sample(denoise, model.make_schedule(config), x, ts, cond,
                                       jax.random.key(0), x0_fn=sampler.clip_x0))  # fmt: skip

    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    x = sampler.noise_like(key, jnp.zeros((1, 8, 8, 3)))
    tokens = jnp.asarray(read(["panda"]))
    np.testing.assert_allclose(found.astype(int), expected(params, tokens, x), atol=1)


@pytest.mark.slow
def test_stable_diffusion_samples_from_its_own_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tokenizers")
    small = smaller("sd-v1", text=replace(SMALL["sd-v1"].text, vocabulary=SIZE))
    safetensors.numpy.save_file(drawn(layout_of(small)), path := tmp_path / "sd.ckpt")
    (tmp_path / "merges.txt").write_text(lines(MERGES))
    monkeypatch.setattr(ldm, "load", partial(ldm.load, configs=[small]))
    weights, out = ["--weights", path, "--vocab", tmp_path / "merges.txt"], tmp_path / "out"
    run("ldm", ldm_sample, "--prompt", "low", *weights, "--out", out)
    image = Image.open(out / "0000.png")
    assert image.size == (16, 16) and image.text["guidance_scale"] == "7.5"
    with pytest.raises(SystemExit):
        run("ldm", ldm_sample, "--prompt", "low", *weights[:2])
    assert "--vocab, CLIP's merges.txt" in capsys.readouterr().err


def test_classes_are_given_by_number_and_nothing_is_the_null_class():
    read = ldm.reader(SMALL["cin256-v2"], None)
    assert read(["3", "", " 0"])["label"].tolist() == [3, 4, 0]
    for prompt in ("4", "a dog", "-1"):
        with pytest.raises(ValueError, match="know classes by number: 0 to 3"):
            read([prompt])


@pytest.mark.slow
def test_the_null_prompt_of_published_weights_is_read_not_zero(tmp_path):
    """guide: with a null_cond, times are the official ones and the null condition is that."""
    config, z = smaller("cin256-v2"), jnp.ones((1, 8, 8, 3))
    safetensors.numpy.save_file(drawn(layout_of(config)), path := tmp_path / "a.ckpt")
    params = ldm.load(path, [config])[1]

    @jax.jit
    def both(params, label, null):
        denoise, cond = ldm_model.guide(config, params, {"label": label}, jnp.float32([3]), null)
        plain = official(ldm_model.denoiser(config, params))
        t = jnp.array([7])
        cond_eps, null_eps = (plain(z, t, {"label": x}).eps for x in (label, jnp.array([1])))
        return denoise(z, t, cond).eps, null_eps + 3 * (cond_eps - null_eps)

    found, wanted = both(params, jnp.array([2]), {"label": jnp.int32(1)})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


# The DDPM of SDEdit.


@pytest.mark.slow
def test_sdedit_paints_with_the_official_file_by_the_official_procedure(
    tmp_path, capsys, monkeypatch
):
    small = shrink(sdedit.PAPER, width=64, multipliers=(1,), attention=(1,))
    state = drawn_glide(ddpm_layout(small.unet))  # one to which it matters what time it is
    state |= {k: x * 5 for k, x in state.items() if "temb" in k or "conv_out" in k}
    safetensors.numpy.save_file(state, path := tmp_path / "bedroom.ckpt")
    monkeypatch.setattr(sdedit, "load", partial(sdedit.load, config=small))
    guide = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(guide).save(tmp_path / "guide.png")
    options = ["--guide", tmp_path / "guide.png", "--weights", path, "--num", "1", "--t0", "0.02"]
    result = program(capsys, "sdedit", SDEDIT, "paint", *options, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    image = Image.open(tmp_path / "out" / "0000.png")
    assert image.text["sde"] == "ddpm" and image.text["repeats"] == "1"

    # The official loop, by the official betas and the same noise.
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    key, levels = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 1)[0], 20
    start_key, step_key = jax.random.split(key)
    noise = lambda key: np.asarray(sampler.noise_like(key, jnp.zeros((1, 8, 8, 3))))  # noqa: E731
    s = {k: x.astype(np.float64) for k, x in state.items()}
    x = kept[19] ** 0.5 * (guide / 127.5 - 1)[None] + (1 - kept[19]) ** 0.5 * noise(start_key)
    for i in reversed(range(levels)):
        eps = np.moveaxis(ddpm_network(s, small.unet, np.moveaxis(x, -1, 1), np.array([i])), 1, -1)
        x = (x - betas[i] / (1 - kept[i]) ** 0.5 * eps) / (1 - betas[i]) ** 0.5
        if i:
            variance = betas[i] * (1 - kept[i - 1]) / (1 - kept[i])
            x = x + variance**0.5 * noise(jax.random.fold_in(step_key, i + 1))
    wanted = np.clip(np.rint((x[0] + 1) * 127.5), 0, 255)
    np.testing.assert_allclose(np.asarray(image).astype(int), wanted, atol=1)

    for words, said in (
        (["--prompt", "a red ball"], "know no captions: leave the prompt"),
        (["--guidance-scale", "3"], "know no captions: leave the guidance_scale"),
        (["--t0", "2"], "t0 must be in 0..1"),
    ):
        result = program(capsys, "sdedit", SDEDIT, "paint", *options, *words)
        assert result.returncode == 2 and said in result.stderr


def test_what_is_not_asked_for_is_as_the_papers_have_it():
    """DDPM's 500 steps of SDEdit by its own weights; ours have their own."""
    c = SDEDIT["paint"][0](guide=Path("g.png"))
    assert (c.sde, c.steps, c.repeats, c.t0) == (None, None, 1, 0.5)
    assert ldm.usual(ldm.STABLE_V1) == {"steps": 50, "guidance_scale": 7.5}
    assert ldm.usual(ldm.PAPER) == {"steps": 200, "guidance_scale": 5.0}
    filled = pretrained.defaults(replace(c, sde="ve"), sde="ddpm", steps=500)
    assert (filled.sde, filled.steps) == ("ve", 500)
    for name, vocab, published in (("a.pt", None, True), ("a.ckpt", None, True),
                                   ("a.safetensors", None, False),
                                   ("a.safetensors", Path("merges.txt"), True)):  # fmt: skip
        assert pretrained.is_published(Path(name), vocab) == published
