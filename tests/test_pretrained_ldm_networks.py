"""Published weights of latent diffusion and Stable Diffusion: what is loaded computes what the
official networks do, by an evaluation in numpy of the official names.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
from test_pretrained import (
    apply_conv,
    apply_linear,
    attend,
    downsample,
    group_norm,
    layer_norm,
    nhwc,
    silu,
    softmax,
    split,
    upsample,
)
from test_pretrained_ldm import RNG, SMALL, write

from common.pretrained import official
from ldm import model
from ldm import pretrained as ldm
from ldm.autoencoder import Autoencoder


@pytest.fixture
def loaded(tmp_path):
    """name -> (config, params, the file's tensors in float64)."""

    def of(name):
        state = write(path := tmp_path / "a.safetensors", name)
        config, params = ldm.load(path, SMALL.values())
        params = jax.tree.map(jnp.asarray, params)
        return config, params, {k: x.astype(np.float64) for k, x in state.items()}

    return of


# What the official networks compute, in numpy and float64, channels first, from official names.


def product(s, name, x):
    return x @ s[f"{name}.weight"].T


def gelu(x):
    return x * (1 + erf(x / 2**0.5)) / 2


def by_heads(x, heads):
    return x.reshape(*x.shape[:2], heads, -1)


def res(s, name, x, emb, resample=lambda x: x):
    h = resample(silu(group_norm(s, f"{name}.in_layers.0", x)))
    h, x = apply_conv(s, f"{name}.in_layers.2", h), resample(x)
    h = h + apply_linear(s, f"{name}.emb_layers.1", silu(emb))[:, :, None, None]
    h = apply_conv(s, f"{name}.out_layers.3", silu(group_norm(s, f"{name}.out_layers.0", h)))
    if f"{name}.skip_connection.weight" in s:
        x = apply_conv(s, f"{name}.skip_connection", x)
    return x + h


def cross_attend(s, name, x, context, heads):
    q = by_heads(product(s, f"{name}.to_q", x), heads)
    k = by_heads(product(s, f"{name}.to_k", context), heads)
    v = by_heads(product(s, f"{name}.to_v", context), heads)
    return apply_linear(s, f"{name}.to_out.0", attend(q, k, v))


def spatial_transformer(s, c, name, x, context):
    heads = c.heads
    h = apply_conv(s, f"{name}.proj_in", group_norm(s, f"{name}.norm", x, 1e-6))
    h, block = np.moveaxis(h.reshape(*h.shape[:2], -1), 1, 2), f"{name}.transformer_blocks.0"
    n = layer_norm(s, f"{block}.norm1", h)
    h = h + cross_attend(s, f"{block}.attn1", n, n, heads)
    h = h + cross_attend(s, f"{block}.attn2", layer_norm(s, f"{block}.norm2", h), context, heads)
    n = apply_linear(s, f"{block}.ff.net.0.proj", layer_norm(s, f"{block}.norm3", h))
    value, gate = np.split(n, 2, axis=-1)
    h = h + apply_linear(s, f"{block}.ff.net.2", value * gelu(gate))
    return x + apply_conv(s, f"{name}.proj_out", np.moveaxis(h, 2, 1).reshape(x.shape))


def attention_block(s, c, name, x, context):
    if f"{name}.transformer_blocks.0.norm1.weight" in s:
        return spatial_transformer(s, c, name, x, context)
    if f"{name}.qkv.weight" not in s:
        return x
    h = np.moveaxis(group_norm(s, f"{name}.norm", x).reshape(*x.shape[:2], -1), 1, 2)
    heads = c.heads or x.shape[1] // c.head_dim
    h = attend(*split(apply_linear(s, f"{name}.qkv", h), heads))
    return x + np.moveaxis(apply_linear(s, f"{name}.proj_out", h), 2, 1).reshape(x.shape)


def unet(s, c, x, t, context=None):
    """openaimodel.py; t counts from 0."""
    s = {k.removeprefix("model.diffusion_model."): w for k, w in s.items()}
    frequencies = np.exp(-np.log(10000) * np.arange(c.width // 2) / (c.width // 2))
    angles = np.asarray(t, float)[:, None] * frequencies
    emb = apply_linear(s, "time_embed.0", np.concatenate([np.cos(angles), np.sin(angles)], 1))
    emb = apply_linear(s, "time_embed.2", silu(emb))
    h = apply_conv(s, "input_blocks.0.0", x)
    skips, n = [h], 1
    while any(k.startswith(f"input_blocks.{n}.") for k in s):
        name = f"input_blocks.{n}"
        if f"{name}.0.op.weight" in s:
            h = apply_conv(s, f"{name}.0.op", h, 2)  # padded by 1 on all sides
        else:
            h = res(s, f"{name}.0", h, emb, *[downsample] * (n % (c.blocks + 1) == 0))
            h = attention_block(s, c, f"{name}.1", h, context)
        skips.append(h)
        n += 1
    h = attention_block(s, c, "middle_block.1", res(s, "middle_block.0", h, emb), context)
    last = 2 if "middle_block.2.in_layers.0.weight" in s else 1  # Karlo has no attention here
    h = res(s, f"middle_block.{last}", h, emb)
    for n, skip in enumerate(reversed(skips)):
        name = f"output_blocks.{n}"
        h = res(s, f"{name}.0", np.concatenate([h, skip], 1), emb)
        h = attention_block(s, c, f"{name}.1", h, context)
        for last in (1, 2):
            if f"{name}.{last}.conv.weight" in s:
                h = apply_conv(s, f"{name}.{last}.conv", upsample(h))
            if f"{name}.{last}.in_layers.0.weight" in s:
                h = res(s, f"{name}.{last}", h, emb, upsample)
    return apply_conv(s, "out.2", silu(group_norm(s, "out.0", h)))


def ae_res(s, name, x):
    h = apply_conv(s, f"{name}.conv1", silu(group_norm(s, f"{name}.norm1", x, 1e-6)))
    h = apply_conv(s, f"{name}.conv2", silu(group_norm(s, f"{name}.norm2", h, 1e-6)))
    if f"{name}.nin_shortcut.weight" in s:
        x = apply_conv(s, f"{name}.nin_shortcut", x)
    return x + h


def ae_attend(s, name, x):
    if f"{name}.q.weight" not in s:
        return x
    h = group_norm(s, f"{name}.norm", x, 1e-6)
    q, k, v = (apply_conv(s, f"{name}.{part}", h).reshape(*x.shape[:2], -1) for part in "qkv")
    weight = softmax(np.einsum("ncq,nck->nqk", q, k) * x.shape[1] ** -0.5)
    h = np.einsum("nqk,nck->ncq", weight, v).reshape(x.shape)
    return x + apply_conv(s, f"{name}.proj_out", h)


def ae_middle(s, half, h):
    h = ae_attend(s, f"{half}.mid.attn_1", ae_res(s, f"{half}.mid.block_1", h))
    return ae_res(s, f"{half}.mid.block_2", h)


def ae_out(s, half, h):
    return apply_conv(s, f"{half}.conv_out", silu(group_norm(s, f"{half}.norm_out", h, 1e-6)))


def encode(s, c, x):
    """Moments of KL, or z of VQ."""
    h = apply_conv(s, "encoder.conv_in", x)
    for level in range(len(c.multipliers)):
        for i in range(c.blocks):
            h = ae_res(s, f"encoder.down.{level}.block.{i}", h)
        if level + 1 < len(c.multipliers):
            h = apply_conv(s, f"encoder.down.{level}.downsample.conv", h, 2, [(0, 1), (0, 1)])
    return apply_conv(s, "quant_conv", ae_out(s, "encoder", ae_middle(s, "encoder", h)))


def decode(s, c, z):
    if c.kind == "vq":
        codes = s["quantize.embedding.weight"]
        rows = np.moveaxis(z, 1, -1)
        nearest = np.square(rows[..., None, :] - codes).sum(-1).argmin(-1)
        z = np.moveaxis(codes[nearest], -1, 1)
    h = ae_middle(
        s, "decoder", apply_conv(s, "decoder.conv_in", apply_conv(s, "post_quant_conv", z))
    )
    for level in reversed(range(len(c.multipliers))):
        for i in range(c.blocks + 1):
            h = ae_res(s, f"decoder.up.{level}.block.{i}", h)
        if level:
            h = apply_conv(s, f"decoder.up.{level}.upsample.conv", upsample(h))
    return ae_out(s, "decoder", h)


def bert(s, c, ids):
    h = s["token_emb.weight"][ids] + s["pos_emb.emb.weight"]
    for i in range(c.layers):
        a, f = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        n = layer_norm(s, f"{a}.0", h)
        q, k, v = (by_heads(product(s, f"{a}.1.to_{part}", n), c.heads) for part in "qkv")
        h = h + apply_linear(s, f"{a}.1.to_out", attend(q, k, v))
        n = gelu(apply_linear(s, f"{f}.1.net.0.0", layer_norm(s, f"{f}.0", h)))
        h = h + apply_linear(s, f"{f}.1.net.2", n)
    return layer_norm(s, "norm", h)


def clip_text(s, c, ids):
    """CLIPTextModel: causal, quick GELU, all states after the last norm."""
    s = {k.removeprefix("text_model."): x for k, x in s.items()}
    h = s["embeddings.token_embedding.weight"][ids] + s["embeddings.position_embedding.weight"]
    past = np.tril(np.ones((c.length, c.length), bool))
    for i in range(c.layers):
        name = f"encoder.layers.{i}"
        n = layer_norm(s, f"{name}.layer_norm1", h)
        q, k, v = (
            by_heads(apply_linear(s, f"{name}.self_attn.{p}_proj", n), c.heads) for p in "qkv"
        )
        logits = np.einsum("nqhc,nkhc->nhqk", q, k) / q.shape[-1] ** 0.5
        weight = softmax(np.where(past, logits, -np.inf))
        n = np.einsum("nhqk,nkhc->nqhc", weight, v).reshape(h.shape)
        h = h + apply_linear(s, f"{name}.self_attn.out_proj", n)
        n = apply_linear(s, f"{name}.mlp.fc1", layer_norm(s, f"{name}.layer_norm2", h))
        h = h + apply_linear(s, f"{name}.mlp.fc2", n / (1 + np.exp(-1.702 * n)))
    return layer_norm(s, "final_layer_norm", h)


def part(state, prefix):
    return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}


def assert_near(out, expected):
    out = np.asarray(out)
    out = np.moveaxis(out, -1, 1) if out.ndim == 4 else out
    assert out.shape == expected.shape and 0.1 < np.abs(expected).max() < 100
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


T = np.array([1, 700])
IDS = np.array([[0, 3, 10, 10, 10], [9, 8, 1, 2, 10]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd-v1", "text2img-large"])
def test_texts_and_their_unet_compute_what_the_official_networks_do(loaded, name):
    config, params, state = loaded(name)
    text = part(state, "cond_stage_model.transformer.")
    context = (bert if config.inner else clip_text)(text, config.text, IDS)
    cond = jax.jit(lambda ids: ldm.encode_text(config, params, ids))(jnp.asarray(IDS))
    assert_near(cond["context"], context)
    if name == "sd-v1":  # the U-Net of text2img-large is the same but for the text's width
        z = RNG(3).standard_normal((2, 4, 8, 8))
        out = jax.jit(official(model.denoiser(config, params)))(nhwc(z), jnp.asarray(T), cond)
        assert_near(out.eps, unet(state, config.unet, z, T - 1, context))


@pytest.mark.slow
def test_the_class_conditional_model_computes_what_the_official_network_does(loaded):
    """One head as wide as the features, and a context of one token; 4 is no class."""
    config, params, state = loaded("cin256-v2")
    z, label = RNG(3).standard_normal((2, 3, 8, 8)), np.array([2, 4])
    denoise = official(model.denoiser(config, params))
    out = jax.jit(denoise)(nhwc(z), jnp.asarray(T), {"label": jnp.asarray(label)})
    context = state["cond_stage_model.embedding.weight"][label][:, None]
    assert_near(out.eps, unet(state, config.unet, z, T - 1, context))


def test_inpainting_computes_what_the_official_network_does(loaded):
    """Heads that hold q, k and v together; ResBlocks that resample; the latent and the hole last"""
    config, params, state = loaded("inpainting_big")
    z, masked = RNG(3).standard_normal((2, 3, 8, 8)), RNG(4).standard_normal((2, 4, 8, 8))
    denoise = official(model.denoiser(config, params))
    out = jax.jit(denoise)(nhwc(z), jnp.asarray(T), {"masked": nhwc(masked)})
    assert_near(out.eps, unet(state, config.unet, np.concatenate([z, masked], 1), T - 1))


def test_the_unconditional_model_computes_what_the_official_network_does(loaded):
    """Self-attention with heads of so many channels; convolutions that resample."""
    config, params, state = loaded("celeba256")
    z = RNG(3).standard_normal((2, 3, 8, 8))
    out = jax.jit(official(model.denoiser(config, params)))(nhwc(z), jnp.asarray(T), {})
    assert_near(out.eps, unet(state, config.unet, z, T - 1))


@pytest.mark.parametrize("name", ["sd-v1", "inpainting_big"])
def test_first_stages_compute_what_the_official_networks_do(loaded, name):
    """KL with attention in the middle, VQ without; the encoder pads right and bottom only."""
    config, params, state = loaded(name)
    s, c = part(state, "first_stage_model."), config.first_stage
    x, z = RNG(5).standard_normal((2, 3, 16, 16)), RNG(6).standard_normal((2, c.channels, 8, 8))
    weights = {"params": params["first_stage"]}
    run = jax.jit(partial(Autoencoder(c).apply, weights), static_argnames="method")
    encoded = run(nhwc(x), method="encode")
    encoded = [a for a in encoded if a is not None]
    assert len(encoded) == (2 if c.kind == "kl" else 1)
    assert_near(jnp.concatenate(encoded, -1), encode(s, c, x))
    assert_near(run(nhwc(z), method="decode"), decode(s, c, z))
