"""The blocks against plain float64 numpy evaluations of what the papers' code computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit, softmax

from common import nn

RNG = np.random.default_rng


def normal(*shape, seed=0, scale=1.0):
    return (scale * RNG(seed).standard_normal(shape)).astype(np.float32)


def build(module, *args, seed=0):
    """Output with random parameters everywhere (none at zero), and those in float64."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    leaves, tree = jax.tree.flatten(shapes)
    rng = RNG(seed)
    params = jax.tree.unflatten(
        tree, [0.3 * rng.standard_normal(a.shape, np.float32) for a in leaves]
    )
    out = jax.jit(module.apply)(params, *args)
    return np.asarray(out), jax.tree.map(lambda a: a.astype(np.float64), params["params"])


# Reference pieces in numpy


def silu(x):
    return x * expit(x)


def group_norm(x, groups, weight, bias, eps=1e-5):
    """The textbook: float64, two passes, (B, ..., C)."""
    x = np.asarray(x, np.float64)
    h = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = h.mean((1, 3), keepdims=True), h.var((1, 3), keepdims=True)
    return ((h - mean) / np.sqrt(variance + eps)).reshape(x.shape) * weight + bias


def layer_norm(x, p, eps=1e-5):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def conv(x, p):
    """3x3 or 1x1, same size, zeros around."""
    kernel, (H, W) = p["kernel"], x.shape[1:3]
    r = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
    size = range(2 * r + 1)
    return sum(x[:, i : i + H, j : j + W] @ kernel[i, j] for i in size for j in size) + p["bias"]


def attend(q, k, v, heads, causal=False):
    """One head at a time."""
    d, out = q.shape[-1] // heads, []
    for h in range(heads):
        a, b, c = (m[..., h * d : (h + 1) * d] for m in (q, k, v))
        logits = a @ b.transpose(0, 2, 1) / np.sqrt(d)
        if causal:
            logits = np.where(np.tri(*logits.shape[1:], dtype=bool), logits, -np.inf)
        out.append(softmax(logits, -1) @ c)
    return np.concatenate(out, -1)


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


# Time


@pytest.mark.parametrize("order", ["cos_sin", "sin_cos"])
@pytest.mark.parametrize("width", [8, 33, 192])
def test_time_embedding_has_the_official_order_and_frequencies(order, width):
    t, half = np.array([0, 1, 37, 1000]), width // 2
    divisor = half if order == "cos_sin" else half - 1
    angle = t[:, None] * np.exp(-np.log(10_000) * np.arange(half) / divisor)
    first, second = (np.cos, np.sin) if order == "cos_sin" else (np.sin, np.cos)
    want = np.zeros((4, width))
    want[:, : 2 * half] = np.concatenate([first(angle), second(angle)], -1)
    got = nn.time_embedding(jnp.asarray(t), width, order)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=2e-4)  # 1000 in float32 has digits down to 6e-5


# GroupNorm


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_group_norm_is_the_textbook(mean):
    x = normal(2, 5, 6, 12) * 2 + np.float32(mean)
    got, p = build(nn.GroupNorm(4), x)
    np.testing.assert_allclose(got, group_norm(x, 4, p["scale"], p["bias"]), atol=2e-5)


def test_group_norm_then_scale_then_shift():
    x, scale, shift = normal(2, 5, 6, 12), normal(2, 12, seed=1), normal(2, 12, seed=2)
    got, p = build(nn.GroupNorm(3), x, (scale, shift))
    want = group_norm(x, 3, p["scale"], p["bias"])
    want = want * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_group_norm_far_from_zero_loses_digits_but_not_its_head():
    """One-pass variance: at a mean of 100 deviations x^2 = 1e4 is known to 1e-3, so is it."""
    x = normal(2, 16, 16, 8) + np.float32(100)
    got, p = build(nn.GroupNorm(2), x)
    want = group_norm(x, 2, p["scale"], p["bias"])
    np.testing.assert_allclose(got, want, atol=3e-3 * np.abs(want).max())


def test_group_norm_of_a_constant_is_finite_though_the_variance_may_come_out_below_0():
    x = RNG(0).uniform(1e3, 1e4, (64, 1, 1, 1)).astype(np.float32)
    assert np.isfinite(build(nn.GroupNorm(2), np.broadcast_to(x, (64, 4, 4, 8)))[0]).all()


def test_group_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(normal(2, 8, 8, 8) + 2, jnp.bfloat16)
    got, p = build(nn.GroupNorm(2), x)
    assert got.dtype == jnp.bfloat16
    want = group_norm(np.asarray(x, np.float64), 2, p["scale"], p["bias"])
    # Nothing is lost but the last rounding, half of 2^-8.
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 0.1])
def test_group_norm_adds_eps_to_the_variance(eps):
    x = normal(1, 4, 4, 4, scale=1e-3)
    got, p = build(nn.GroupNorm(2, eps), x)
    np.testing.assert_allclose(got, group_norm(x, 2, p["scale"], p["bias"], eps), atol=2e-5)


# Resampling


def test_average_pooling_and_nearest_upsampling():
    x = normal(2, 4, 6, 3)
    want = np.stack(
        [
            [[x[b, i : i + 2, j : j + 2].mean((0, 1)) for j in (0, 2, 4)] for i in (0, 2)]
            for b in (0, 1)
        ]
    )
    np.testing.assert_allclose(nn.avg_pool2(x), want, atol=1e-6)
    np.testing.assert_array_equal(nn.nearest2(x), x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(nn.avg_pool2(nn.nearest2(x)), x, atol=1e-6)


@pytest.mark.parametrize("p", [2, 4])
def test_depth_to_space_undoes_space_to_depth_and_a_patch_stays_together(p):
    x = jnp.asarray(normal(2, 8, 12, 3))
    deep = nn.space_to_depth(x, p)
    assert deep.shape == (2, 8 // p, 12 // p, p * p * 3)
    np.testing.assert_array_equal(deep[1, 1, 2], x[1, p : 2 * p, 2 * p : 3 * p].reshape(-1))
    np.testing.assert_array_equal(nn.depth_to_space(deep, p), x)


# ResBlock


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_res_block_is_the_official_order(scale_shift, resample):
    """norm, SiLU, resample, conv; norm, (1 + scale), shift, SiLU, conv; + resampled skip."""
    x, emb = normal(2, 4, 4, 4), normal(2, 6, seed=1)
    got, p = build(nn.ResBlock(8, scale_shift, resample, groups=2, eps=1e-6), x, emb)
    move = {
        None: lambda x: x,
        "up": lambda x: x.repeat(2, 1).repeat(2, 2),
        "down": lambda x: x.reshape(2, 2, 2, 2, 2, -1).mean((2, 4)),
    }[resample]
    h = silu(group_norm(x, 2, p["norm1"]["scale"], p["norm1"]["bias"], 1e-6))
    h = conv(move(h), p["Conv_0"])
    time = linear(silu(emb.astype(np.float64)), p["Dense_0"])[:, None, None]
    affine = p["norm2"]["scale"], p["norm2"]["bias"]
    if scale_shift:
        h = group_norm(h, 2, *affine, 1e-6) * (1 + time[..., :8]) + time[..., 8:]
    else:
        h = group_norm(h + time, 2, *affine, 1e-6)
    want = conv(silu(h), p["Conv_1"]) + conv(move(x.astype(np.float64)), p["Conv_2"])
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("name", ["ResBlock", "AttentionBlock", "SpatialTransformer"])
def test_branches_start_at_zero_and_the_skip_has_weights_only_where_widths_differ(name):
    x = normal(2, 4, 4, 4)
    block, second = {
        "ResBlock": (nn.ResBlock(4, groups=2), normal(2, 6, seed=1)),
        "AttentionBlock": (nn.AttentionBlock(2, 2), None),
        "SpatialTransformer": (nn.SpatialTransformer(2, 2), normal(2, 3, 5)),
    }[name]
    out, params = jax.jit(block.init_with_output)(jax.random.key(0), x, second)
    np.testing.assert_array_equal(out, x)
    assert "Conv_2" not in params["params"]


def test_dropout_acts_only_when_a_key_is_given():
    x, emb = jnp.asarray(normal(2, 4, 4, 4)), jnp.asarray(normal(2, 6, seed=1))
    got, p = build(nn.ResBlock(4, groups=2, dropout=0.5), x, emb)
    params = {"params": jax.tree.map(jnp.float32, p)}
    apply = jax.jit(nn.ResBlock(4, groups=2, dropout=0.5).apply)
    plain = nn.ResBlock(4, groups=2)
    np.testing.assert_allclose(got, jax.jit(plain.apply)(params, x, emb), atol=1e-6)
    dropped = apply(params, x, emb, rngs={"dropout": jax.random.key(0)})
    assert np.abs(np.asarray(dropped) - got).max() > 1e-2


# Attention


def test_attention_block_has_one_softmax_over_text_and_pixels():
    x, context = normal(2, 3, 4, 8), normal(2, 5, 6, seed=1)
    got, p = build(nn.AttentionBlock(2, groups=4), x, context)
    norm = p["GroupNorm_0"]
    h = group_norm(x, 4, norm["scale"], norm["bias"]).reshape(2, 12, 8)
    q, k, v = np.split(linear(h, p["qkv"]), 3, -1)
    text_k, text_v = np.split(linear(context, p["context_kv"]), 2, -1)  # no norm
    h = attend(q, np.concatenate([text_k, k], 1), np.concatenate([text_v, v], 1), heads=2)
    want = x + linear(h, p["out"]).reshape(x.shape)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_attention_block_without_text_is_self_attention():
    x = normal(2, 3, 4, 8)
    got, p = build(nn.AttentionBlock(4, groups=4), x)
    norm = p["GroupNorm_0"]
    h = group_norm(x, 4, norm["scale"], norm["bias"]).reshape(2, 12, 8)
    h = attend(*np.split(linear(h, p["qkv"]), 3, -1), heads=4)
    np.testing.assert_allclose(got, x + linear(h, p["out"]).reshape(x.shape), atol=1e-4)
    assert "context_kv" not in p


def test_cross_attention_to_a_single_token_is_a_constant_and_to_itself_is_not():
    x, one = normal(2, 7, 8), normal(2, 1, 6, seed=1)
    got, p = build(nn.CrossAttention(2), x, one)
    want = linear(linear(one.astype(np.float64), p["v"]), p["out"])
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-5)
    itself, p = build(nn.CrossAttention(2), x)
    want = linear(attend(*(linear(x, p[name]) for name in "qkv"), heads=2), p["out"])
    np.testing.assert_allclose(itself, want, atol=1e-5)
    assert itself.std(1).min() > 1e-2


def test_spatial_transformer_is_self_attention_cross_attention_then_geglu_value_first():
    x, context = normal(2, 2, 3, 8), normal(2, 5, 6, seed=1)
    got, p = build(nn.SpatialTransformer(2, groups=4), x, context)
    norm = p["GroupNorm_0"]
    h = group_norm(x, 4, norm["scale"], norm["bias"], 1e-6).reshape(2, 6, 8)
    h = linear(h, p["proj_in"])
    a, own = p["self_attention"], layer_norm(h, p["LayerNorm_0"])
    h = h + linear(attend(*(linear(own, a[name]) for name in "qkv"), heads=2), a["out"])
    a, own = p["cross_attention"], layer_norm(h, p["LayerNorm_1"])
    q, k, v = linear(own, a["q"]), linear(context, a["k"]), linear(context, a["v"])
    h = h + linear(attend(q, k, v, heads=2), a["out"])
    value, gate = np.split(linear(layer_norm(h, p["LayerNorm_2"]), p["ff_in"]), 2, -1)
    h = h + linear(value * gelu(gate), p["ff_out"])
    want = x + linear(h, p["proj_out"]).reshape(x.shape)
    np.testing.assert_allclose(got, want, atol=3e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_transformer_is_pre_norm_with_exact_gelu_and_a_final_norm(causal):
    x = normal(2, 5, 8)
    got, p = build(nn.Transformer(2, 2, causal), x)
    h = x.astype(np.float64)
    for i in range(2):
        qkv = linear(layer_norm(h, p[f"ln1_{i}"]), p[f"qkv_{i}"])
        h = h + linear(attend(*np.split(qkv, 3, -1), 2, causal), p[f"out_{i}"])
        hidden = gelu(linear(layer_norm(h, p[f"ln2_{i}"]), p[f"mlp_in_{i}"]))
        h = h + linear(hidden, p[f"mlp_out_{i}"])
    np.testing.assert_allclose(got, layer_norm(h, p["final_norm"]), atol=3e-5)


def test_weights_start_as_pytorchs_uniform_in_one_over_root_fan_in():
    kernel = nn.torch_init(jax.random.key(0), (3, 3, 16, 64))
    bound = (3 * 3 * 16) ** -0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.02)


def test_bfloat16_blocks_keep_float32_parameters_and_are_close():
    x, emb = normal(2, 4, 4, 4), normal(2, 6, seed=1)
    full, p = build(nn.ResBlock(4, groups=2), x, emb)
    half, p16 = build(nn.ResBlock(4, groups=2, dtype=jnp.bfloat16), x, emb)
    np.testing.assert_allclose(half, full, atol=0.1)
    assert np.abs(half - full).max() > 1e-5
    shapes = jax.eval_shape(
        nn.ResBlock(4, groups=2, dtype=jnp.bfloat16).init, jax.random.key(0), x, emb
    )
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
