"""Karlo's published names find their places, once each, and its sums come out."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose
from PIL import Image
from test_pretrained import adm_layout, adm_network, linear, nhwc, norm, one_line
from test_pretrained import drawn as drawn_unet
from test_pretrained_ldm import unet_layout
from test_pretrained_ldm_networks import unet

from common import pretrained
from common.pretrained import official
from common.process import x0_from_eps
from common.schedule import cosine
from unclip import pretrained as karlo
from unclip.pretrained import KarloDecoderConfig, KarloPrior, KarloPriorConfig
from unclip.pretrained_sample import enlarge, noisy

PRIOR = KarloPriorConfig(dim=6, length=5, width=16, layers=2, heads=4)
SMALL = {"width": 32, "multipliers": (1, 2), "blocks": 1}
UNET = replace(KarloDecoderConfig().unet, **SMALL, attention=(2,), head_dim=16)
DECODER = KarloDecoderConfig(size=8, dim=6, context=12, unet=UNET)
SR = replace(karlo.SUPER_RESOLUTION, **SMALL)
RNG = np.random.default_rng


# What is published, by the constructors of the official code: {name: shape} of each network.


def prior_layout(c):
    """xf.py, PriorTransformer, under "model."."""
    layout = {"positional_embedding": (1, c.length + 4, c.width), "prd_emb": (1, 1, c.width)}
    layout |= linear("time_embed.0", c.width, c.width) | linear("time_embed.2", c.width, c.width)
    for name in ("text_enc_proj", "text_emb_proj", "clip_img_proj"):
        layout |= linear(name, c.dim, c.width)
    layout |= linear("out_proj", c.width, c.dim) | norm("final_ln", c.width)
    for i in range(c.layers):
        block = f"transformer.resblocks.{i}"
        layout |= norm(f"{block}.ln_1", c.width) | norm(f"{block}.ln_2", c.width)
        layout |= linear(f"{block}.attn.c_qkv", c.width, 3 * c.width)
        layout |= linear(f"{block}.attn.c_proj", c.width, c.width)
        layout |= linear(f"{block}.mlp.c_fc", c.width, 4 * c.width)
        layout |= linear(f"{block}.mlp.c_proj", 4 * c.width, c.width)
    return {f"model.{k}": v for k, v in layout.items()}


def decoder_layout(c):
    """unet.py, PLMImUNet."""
    layout = adm_layout(c.unet, 3, c.context) | {"cf_param": (c.dim,)}
    layout |= linear("clip_emb", c.dim, 4 * c.unet.width)
    layout |= linear("text_feat_proj", c.dim, 4 * c.unet.width)
    layout |= linear("clip_tok_proj", c.dim, c.extra_tokens * c.context)
    layout |= linear("text_seq_proj.0", c.dim, c.context) | norm("text_seq_proj.1", c.context)
    return {f"model.{k}": v for k, v in layout.items()}


def sr_layout(c):
    """unet.py, SuperResUNetModel, twice: the middle is two ResBlocks."""
    one = {k: v for k, v in unet_layout(c, 6, None).items() if not k.startswith("middle_block.1.")}
    one = {k.replace("middle_block.2", "middle_block.1"): v for k, v in one.items()}
    return {f"model_{part}.{k}": v for part in ("first_steps", "last_step") for k, v in one.items()}


PUBLISHED = {  # its layout, its loader, parameters and tensors
    "prior": (prior_layout, karlo.load_prior, KarloPriorConfig(), 1_022_028_544, 256),
    "decoder": (decoder_layout, karlo.load_decoder, KarloDecoderConfig(), 893_318_086, 595),
    "super-resolution": (sr_layout, karlo.load_super_resolution, karlo.SUPER_RESOLUTION,
                         2 * 691_579_523, 2 * 408),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_and_shape_is_used_once_and_they_are_as_many_as_published(
    monkeypatch, name
):
    make, load, config, parameters, tensors = PUBLISHED[name]
    layout = make(config)
    assert (sum(map(math.prod, layout.values())), len(layout)) == (parameters, tensors)
    zeros = {k: np.broadcast_to(np.float16(0), shape) for k, shape in layout.items()}
    monkeypatch.setattr(pretrained, "fill", pretrained.match)
    monkeypatch.setattr(pretrained, "load_tensors", lambda path: zeros)
    params = load("x.ckpt", config)[1]
    assert sum(math.prod(x.shape) for x in params.values()) == parameters


# Small ones of the same make, in files.


def drawn(layout, seed=0):
    rng = RNG(seed)
    return {k: np.float32(rng.normal(0, 0.5, shape)) for k, shape in layout.items()}


def saved(tmp_path, tensors):
    path = tmp_path / "karlo.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_small_file_of_every_kind_fills_every_parameter_in_float32(tmp_path, name):
    make, load, *_ = PUBLISHED[name]
    config = {"prior": PRIOR, "decoder": DECODER, "super-resolution": SR}[name]
    state = {k: x.astype(np.float16) for k, x in drawn(make(config)).items()}
    leaves = jax.tree.leaves(load(saved(tmp_path, state), config)[1])
    assert {x.dtype for x in leaves} == {np.dtype(np.float32)}
    values = [np.sort(np.concatenate([np.ravel(x) for x in xs])) for xs in (leaves, state.values())]
    np.testing.assert_array_equal(*values)


# What the official networks compute, in numpy, from official names.


def layer_norm(s, name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def apply(s, name, x):
    return x @ s[f"model.{name}.weight"].T + s[f"model.{name}.bias"]


def official_prior(s, c, x, t, text_sequence, text_embedding, mask):
    """xf.py, PriorTransformer.forward in numpy, padding and its mask included."""
    from scipy.special import erf

    half = c.width // 2
    angle = t[:, None] * np.exp(-np.log(1e4) * np.arange(half) / half)[None]
    time = apply(s, "time_embed.0", np.concatenate([np.cos(angle), np.sin(angle)], 1))
    time = apply(s, "time_embed.2", time / (1 + np.exp(-time)))
    query = np.broadcast_to(s["model.prd_emb"], (len(x), 1, c.width))
    parts = [apply(s, "text_emb_proj", text_embedding), time, apply(s, "clip_img_proj", x)]
    h = np.concatenate([apply(s, "text_enc_proj", text_sequence), np.stack(parts, 1), query], 1)
    h = h + s["model.positional_embedding"]
    n = h.shape[1]
    seen = np.concatenate([mask, np.ones((len(x), 4), bool)], 1)[:, None] & np.tri(n, dtype=bool)
    for i in range(c.layers):
        block = f"model.transformer.resblocks.{i}"
        qkv = apply(s, f"{block[6:]}.attn.c_qkv", layer_norm(s, f"{block}.ln_1", h))
        q, k, v = np.split(qkv.reshape(len(x), n, c.heads, -1), 3, axis=-1)
        weight = np.einsum("bthc,bshc->bhts", q, k) / np.sqrt(q.shape[-1])
        weight = np.exp(np.where(seen[:, None], weight, -np.inf))
        weight /= weight.sum(-1, keepdims=True)
        mixed = np.einsum("bhts,bshc->bthc", weight, v).reshape(len(x), n, -1)
        h = h + apply(s, f"{block[6:]}.attn.c_proj", mixed)
        u = apply(s, f"{block[6:]}.mlp.c_fc", layer_norm(s, f"{block}.ln_2", h))
        h = h + apply(s, f"{block[6:]}.mlp.c_proj", u * 0.5 * (1 + erf(u / np.sqrt(2))))
    return apply(s, "out_proj", layer_norm(s, "model.final_ln", h)[:, -1])


def test_the_loaded_prior_gives_what_the_official_one_gives_for_padded_texts(tmp_path):
    tensors, rng = drawn(prior_layout(PRIOR)), np.random.default_rng(1)
    _, params = karlo.load_prior(saved(tmp_path, tensors), PRIOR)
    x, text = np.float32(rng.normal(size=(2, 2, PRIOR.dim)))
    sequence, t = np.float32(rng.normal(size=(2, PRIOR.length, PRIOR.dim))), np.array([7, 700])
    for n in (2, 5):
        mask = np.broadcast_to(np.arange(PRIOR.length) < n, (2, PRIOR.length))
        want = official_prior(tensors, PRIOR, x, t, sequence, text, mask)
        cond = {"text_sequence": sequence[:, :n], "text_embedding": text}
        got = jax.jit(KarloPrior(PRIOR).apply)({"params": params}, x, t, cond)
        assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    # Our times count from 1, and eps is found with them.
    schedule = cosine(1000)
    denoise = official(karlo.prior_denoiser(PRIOR, params, schedule))
    eps = jax.jit(denoise)(x, t + 1, cond).eps
    assert_allclose(x0_from_eps(schedule, x, t + 1, eps), want, rtol=1e-3, atol=1e-3)


def faint(layout, prefix):
    """Values for what has this prefix, and the same in float64 without it."""
    names = {k.removeprefix(prefix): v for k, v in layout.items() if k.startswith(prefix)}
    state = drawn_unet(names)
    double = {k: x.astype(np.float64) for k, x in state.items()}
    return {prefix + k: x for k, x in state.items()}, double


def official_decoder(s, c, x, t, text_sequence, text_embedding, mask, z):
    """unet.py, PLMImUNet.forward, padding and its mask included; z None is cf_param."""
    z = np.broadcast_to(s["cf_param"], (len(x), c.dim)) if z is None else z
    dense = lambda name, x: x @ s[f"{name}.weight"].T + s[f"{name}.bias"]  # noqa: E731
    words = layer_norm(s, "text_seq_proj.1", dense("text_seq_proj.0", text_sequence))
    extra = dense("clip_tok_proj", z).reshape(len(x), -1, c.extra_tokens).swapaxes(1, 2)
    vector = dense("clip_emb", z) + dense("text_feat_proj", text_embedding)
    seen = np.pad(mask, [(0, 0), (c.extra_tokens, 0)], constant_values=True)
    context = np.concatenate([extra, words], 1)
    return adm_network(s, c.unet, x, t, None, vector, context, seen=seen)


X, T = RNG(3).standard_normal((2, 3, 8, 8)), np.array([1, 700])


@pytest.mark.slow
def test_the_loaded_decoder_guided_gives_what_the_official_one_gives_for_padded_texts(tmp_path):
    """Both embeddings added to the time's, four tokens of z in front, the token the minor axis;
    for "no embedding" and an empty text of another length, too: the null condition of its guidance.
    """
    (state, s), rng = faint(decoder_layout(DECODER), "model."), RNG(1)
    _, params = karlo.load_decoder(saved(tmp_path, state), DECODER)
    sequence, text = rng.normal(size=(2, 2, 5, 6)), rng.normal(size=(2, 2, 6))
    z, wanted, conds = rng.normal(size=(2, 6)), [], []
    for i, (n, embedding) in enumerate([(4, z), (2, None)]):
        mask = np.broadcast_to(np.arange(5) < n, (2, 5))
        given = sequence[i], text[i], mask, embedding
        wanted.append(np.moveaxis(official_decoder(s, DECODER, X, T - 1, *given), 1, -1))
        conds.append({"text_sequence": sequence[i][:, :n], "text_embedding": text[i]})
    conds[0]["image_embedding"] = z
    conds = jax.tree.map(jnp.float32, conds)
    denoise = official(karlo.decoder_denoiser(DECODER, params))
    run = jax.jit(lambda x, t, cond, null: karlo.guided(denoise, null, 8.0)(x, t, cond))
    out = run(nhwc(X), jnp.asarray(T), *conds)
    (eps, v), (null_eps, _) = (np.split(w, 2, axis=-1) for w in wanted)
    size = np.abs(wanted[0]).max()
    assert 0.1 < size < 100 and np.abs(eps - null_eps).max() > 0.01 * size
    assert_allclose(out.v, v, rtol=0, atol=2e-5 * size)
    assert_allclose(out.eps, null_eps + 8 * (eps - null_eps), rtol=0, atol=2e-4 * size)


def test_the_token_is_the_minor_axis_of_the_projected_embedding():
    tokens = karlo.to_tokens(jnp.arange(12)[None], 4)
    assert tokens.shape == (1, 4, 3) and tokens[0, 1].tolist() == [1, 5, 9]


def test_each_network_of_super_resolution_gives_what_the_official_one_gives(tmp_path):
    """x first, then the small picture; ResBlocks that resample; no attention in the middle."""
    parts = {p: faint(sr_layout(SR), f"model_{p}.") for p in ("first_steps", "last_step")}
    parts["last_step"][0]["model_last_step.out.2.bias"] += 1  # so that each is another
    parts["last_step"][1]["out.2.bias"] += 1
    state = parts["first_steps"][0] | parts["last_step"][0]
    _, params = karlo.load_super_resolution(saved(tmp_path, state), SR)
    low_res = RNG(4).standard_normal((2, 3, 8, 8))
    run = jax.jit(lambda params, *given: official(noisy(SR, params))(*given).eps)
    for name, (_, s) in parts.items():
        out = run(params[name], nhwc(X), jnp.asarray(T), {"low_res": nhwc(low_res)})
        wanted = unet(s, SR, np.concatenate([X, low_res], 1), T - 1)
        assert 0.1 < (size := np.abs(wanted).max()) < 100
        assert_allclose(np.moveaxis(np.asarray(out), -1, 1), wanted, rtol=0, atol=2e-5 * size)


def test_a_small_picture_is_enlarged_as_by_an_image_library():
    small = np.float32(RNG(0).uniform(-1, 1, (6, 6)))
    wanted = Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC)
    out = jax.jit(enlarge)(small[None, ..., None])
    assert_allclose(out[0, ..., 0], np.asarray(wanted), rtol=0, atol=1e-5)


def test_another_file_is_refused_in_one_line(tmp_path):
    tensors = drawn(prior_layout(PRIOR))
    path = saved(tmp_path, tensors)
    for load, config, words in (
        (karlo.load_decoder, DECODER, "Karlo's prior, not of Karlo's decoder"),
        (karlo.load_prior, replace(PRIOR, layers=1), "left over"),
        (karlo.load_prior, replace(PRIOR, layers=3), "missing"),
        (karlo.load_stats, PRIOR.dim, "no mean and deviation of 6 numbers"),
    ):
        one_line(path, words, lambda path, load=load, config=config: load(path, config))


def test_the_numbers_that_whiten_embeddings_are_read(tmp_path):
    path = saved(tmp_path, {"0": np.float32([1, 2]), "1": np.float16([3, 4])})
    mean, std = karlo.load_stats(path, 2)
    assert mean.tolist() == [1, 2] and std.tolist() == [3, 4] and std.dtype == np.float32


def test_guidance_with_texts_of_two_lengths_is_that_of_one_batch():
    calls = []

    def denoise(x, t, cond):
        calls.append(cond["n"])
        return karlo.Prediction(x * cond["n"], None)

    out = karlo.guided(denoise, {"n": 2.0}, 3.0)(jnp.ones(2), None, {"n": 5.0})
    assert_allclose(out.eps, 2 + 3 * (5 - 2))
    assert calls == [5.0, 2.0]
