"""Published weights on the command line: small files by the published names, and any words."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from test_pretrained import drawn as drawn_glide
from test_pretrained import glide_layout, shrink
from test_pretrained_bytepairs import GPT2, GPT2_SIZE, MERGES, SIZE, lines
from test_pretrained_ldm import SMALL, drawn, layout_of

from common import command, sampler
from common.guidance import classifier_free
from common.pretrained import official
from common.process import to_uint8
from glide import model
from glide import pretrained as glide
from glide import sample as glide_sample
from ldm import model as ldm_model
from ldm import pretrained as ldm
from ldm import sample as ldm_sample

pytestmark = pytest.mark.usefixtures("quick_compile")


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


def test_glide_samples_from_its_own_files_and_enlarges(files, capsys):
    weights = ["--weights", files / "base.pt", "--vocab", files / "vocab.bpe"]
    prompt = ["--prompt", "a panda, so"]
    up = ["--upsampler", files / "upsample.pt"]
    run("glide", glide_sample, *prompt, *weights, *up, "--out", files / "large")
    assert Image.open(files / "large" / "0000.png").size == (16, 16)
    for words, said in (
        (weights[:2], "give GPT-2's vocab.bpe with --vocab"),
        ([*weights, "--best-of", "2"], "do not go with --clip"),
        ([*weights, "--upsampler", files / "base.pt"], "is no second stage"),
        ([*weights, "--prompt", "panda " * 9], "shorten it"),
    ):
        with pytest.raises(SystemExit):
            run("glide", glide_sample, *prompt, *words)
        assert said in capsys.readouterr().err


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


def test_stable_diffusion_samples_from_its_own_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tokenizers")
    small = smaller("sd-v1", text=replace(SMALL["sd-v1"].text, vocabulary=SIZE))
    safetensors.numpy.save_file(drawn(layout_of(small)), path := tmp_path / "sd.ckpt")
    (tmp_path / "merges.txt").write_text(lines(MERGES))
    monkeypatch.setattr(ldm, "load", partial(ldm.load, configs=[small]))
    weights, out = ["--weights", path, "--vocab", tmp_path / "merges.txt"], tmp_path / "out"
    run("ldm", ldm_sample, "--prompt", "low", *weights, "--out", out)
    assert Image.open(out / "0000.png").size == (16, 16)
    with pytest.raises(SystemExit):
        run("ldm", ldm_sample, "--prompt", "low", *weights[:2])
    assert "--vocab, CLIP's merges.txt" in capsys.readouterr().err


def test_classes_are_given_by_number_and_nothing_is_the_null_class():
    read = ldm.reader(SMALL["cin256-v2"], None)
    assert read(["3", "", " 0"])["label"].tolist() == [3, 4, 0]
    for prompt in ("4", "a dog", "-1"):
        with pytest.raises(ValueError, match="know classes by number: 0 to 3"):
            read([prompt])


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
