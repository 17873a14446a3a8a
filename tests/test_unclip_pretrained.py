"""Karlo's published names find their places, once each, and its sums come out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose

from common.checkpoint import CheckpointError
from common.pretrained import official
from common.process import x0_from_eps
from common.schedule import cosine
from unclip import pretrained as karlo
from unclip.pretrained import KarloDecoder, KarloDecoderConfig, KarloPrior, KarloPriorConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

PRIOR = KarloPriorConfig(dim=6, length=5, width=16, layers=2, heads=4)
UNET = replace(
    KarloDecoderConfig().unet, width=16, multipliers=(1, 2), blocks=1, attention=(2,), head_dim=8,
    groups=8,
)  # fmt: skip
DECODER = KarloDecoderConfig(dim=6, context=12, unet=UNET)
SR = replace(karlo.SUPER_RESOLUTION, width=16, multipliers=(1, 2), blocks=1, groups=8)


def count(init, config):
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return sum(p.size for p in jax.tree.leaves(shapes))


def test_the_networks_have_the_parameters_of_the_published_ones():
    assert count(karlo.init_prior, KarloPriorConfig()) == 1_022_028_544
    assert count(karlo.init_decoder, KarloDecoderConfig()) == 893_318_086
    assert count(karlo.init_super_resolution, karlo.SUPER_RESOLUTION) == 2 * 691_579_523


def linear(name, inputs, outputs, *kernel):
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def drawn(layout, seed=0):
    rng = np.random.default_rng(seed)
    return {k: np.float32(rng.normal(0, 0.5, shape)) for k, shape in layout.items()}


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


def resblock(c, name, inputs, outputs):
    layout = norm(f"{name}.in_layers.0", inputs) | norm(f"{name}.out_layers.0", outputs)
    layout |= linear(f"{name}.in_layers.2", inputs, outputs, 3, 3)
    layout |= linear(f"{name}.emb_layers.1", 4 * c.width, (1 + c.scale_shift) * outputs)
    layout |= linear(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    return layout | (linear(f"{name}.skip_connection", inputs, outputs, 1, 1)
                     if inputs != outputs else {})  # fmt: skip


def attention(name, C, context):
    layout = norm(f"{name}.norm", C) | linear(f"{name}.qkv", C, 3 * C, 1)
    return layout | linear(f"{name}.encoder_kv", context, 2 * C, 1) | linear(
        f"{name}.proj_out", C, C, 1)  # fmt: skip


def unet_layout(c, inputs, context=None):
    """unet.py, UNetModel, with two levels of one block each."""
    a, b = (int(m * c.width) for m in c.multipliers)
    attend = (lambda name: attention(name, b, context)) if c.attention else lambda name: {}
    end = 2 if c.attention else 1
    layout = linear("time_embed.0", c.width, 4 * c.width)
    layout |= linear("time_embed.2", 4 * c.width, 4 * c.width)
    layout |= linear("input_blocks.0.0", inputs, c.width, 3, 3) | resblock(
        c, "input_blocks.1.0", a, a)  # fmt: skip
    layout |= resblock(c, "input_blocks.2.0", a, a) | resblock(c, "input_blocks.3.0", a, b)
    layout |= attend("input_blocks.3.1") | resblock(c, "middle_block.0", b, b)
    layout |= attend("middle_block.1") if c.middle_attention else {}
    layout |= resblock(c, f"middle_block.{end}", b, b)
    layout |= resblock(c, "output_blocks.0.0", 2 * b, b) | attend("output_blocks.0.1")
    layout |= resblock(c, "output_blocks.1.0", b + a, b) | attend("output_blocks.1.1")
    layout |= resblock(c, f"output_blocks.1.{end}", b, b)
    layout |= resblock(c, "output_blocks.2.0", b + a, a)
    layout |= resblock(c, "output_blocks.3.0", 2 * a, a)
    return layout | norm("out.0", a) | linear("out.2", a, c.out_channels, 3, 3)


def decoder_layout(c):
    """unet.py, PLMImUNet."""
    layout = unet_layout(c.unet, 3, c.context) | {"cf_param": (c.dim,)}
    layout |= linear("clip_emb", c.dim, 4 * c.unet.width)
    layout |= linear("text_feat_proj", c.dim, 4 * c.unet.width)
    layout |= linear("clip_tok_proj", c.dim, c.extra_tokens * c.context)
    layout |= linear("text_seq_proj.0", c.dim, c.context) | norm("text_seq_proj.1", c.context)
    return {f"model.{k}": v for k, v in layout.items()}


def saved(tmp_path, tensors):
    path = tmp_path / "karlo.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


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


def test_the_loaded_decoder_takes_every_tensor_and_every_condition(tmp_path):
    tensors, rng = drawn(decoder_layout(DECODER)), np.random.default_rng(1)
    _, params = karlo.load_decoder(saved(tmp_path, tensors), DECODER)
    x, t = jnp.asarray(rng.normal(size=(1, 8, 8, 3)), jnp.float32), jnp.array([300])
    run = jax.jit(lambda cond: KarloDecoder(DECODER).apply({"params": params}, x, t, cond))
    names = {"text_sequence": (1, 3, 6), "text_embedding": (1, 6), "image_embedding": (1, 6)}
    cond = {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in names.items()}
    base = run(cond)
    assert base.shape == (1, 8, 8, 6)
    for name in names:
        assert np.abs(run({**cond, name: 1 + cond[name]}) - base).max() > 1e-3
    none = {**cond, "image_embedding": jnp.asarray(tensors["model.cf_param"])[None]}
    without = run({k: v for k, v in cond.items() if k != "image_embedding"})
    assert_allclose(run(none), without, rtol=1e-4, atol=1e-4)


def test_the_token_is_the_minor_axis_of_the_projected_embedding():
    tokens = karlo.to_tokens(jnp.arange(12)[None], 4)
    assert tokens.shape == (1, 4, 3) and tokens[0, 1].tolist() == [1, 5, 9]


def test_super_resolution_has_two_networks_and_each_finds_its_tensors(tmp_path):
    one = unet_layout(SR, 6)
    both = {f"model_{part}.{k}": v for part in ("first_steps", "last_step") for k, v in one.items()}
    tensors = drawn(both)
    _, params = karlo.load_super_resolution(saved(tmp_path, tensors), SR)
    for part in ("first_steps", "last_step"):
        kernel = params[part]["conv_in"]["kernel"]
        official = tensors[f"model_{part}.input_blocks.0.0.weight"]
        assert_allclose(kernel, official.transpose(2, 3, 1, 0))


def test_another_file_is_refused_in_one_line(tmp_path):
    tensors = drawn(prior_layout(PRIOR))
    path = saved(tmp_path, tensors)
    for load, config, words in (
        (karlo.load_decoder, DECODER, "Karlo's prior, not of Karlo's decoder"),
        (karlo.load_prior, replace(PRIOR, layers=1), "left over"),
        (karlo.load_prior, replace(PRIOR, layers=3), "missing"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            load(path, config)
        assert "\n" not in str(caught.value)


def test_guidance_with_texts_of_two_lengths_is_that_of_one_batch():
    calls = []

    def denoise(x, t, cond):
        calls.append(cond["n"])
        return karlo.Prediction(x * cond["n"], None)

    out = karlo.guided(denoise, {"n": 2.0}, 3.0)(jnp.ones(2), None, {"n": 5.0})
    assert_allclose(out.eps, 2 + 3 * (5 - 2))
    assert calls == [5.0, 2.0]
