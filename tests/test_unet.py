"""The configurable U-Net: the published sizes to the last parameter, and every wire connected."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.text import TextConfig, TextEncoder
from common.unet import Encoder, UNet, UNetConfig

RNG = np.random.default_rng


# Published sizes


def count(model, *args, **kwargs):
    """Number of parameters, without making any."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))
    return sum(a.size for a in jax.tree.leaves(shapes))


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


LABEL = {"label": zeros(1, dtype=jnp.int32)}
ADM = UNetConfig(6, 256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), num_classes=1000)
GLIDE = UNetConfig(6, 192, (1, 2, 3, 4), 3, (2, 4, 8), context="joint")
# fmt: off
STABLE = UNetConfig(4, 320, (1, 2, 4, 4), 2, (4, 2, 1), heads=8, context="cross", scale_shift=False,
                    updown="conv")
DDPM = UNetConfig(3, 128, (1, 1, 2, 2, 4, 4), 2, (16,), heads=1, scale_shift=False,
                  updown="conv_asym", time_order="sin_cos", eps=1e-6)
PUBLISHED = {  # name: parameters, config, picture, conditions
    "adm_64": (295_904_454, replace(ADM, width=192, multipliers=(1, 2, 3, 4), blocks=3,
                                    attention=(2, 4, 8)), (64, 64, 3), LABEL),
    "adm_128": (421_529_606, replace(ADM, multipliers=(1, 1, 2, 3, 4), attention=(4, 8, 16),
                                     heads=4), (128, 128, 3), LABEL),
    "adm_256": (553_838_086, ADM, (256, 256, 3), LABEL),
    "stable_diffusion_1": (859_520_964, STABLE, (64, 64, 4), {"context": zeros(1, 77, 768)}),
    "ddpm_sdedit": (113_673_219, DDPM, (256, 256, 3), {}),
}
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_in_the_official_model(name):
    expected, config, picture, conditions = PUBLISHED[name]
    t = zeros(1, dtype=jnp.int32)
    assert count(UNet(config), zeros(1, *picture), t, **conditions) == expected


def test_glide_base_has_385_million_parameters_77_of_them_for_text():
    text = count(TextEncoder(TextConfig(), 768), zeros(1, 128, dtype=jnp.int32))
    conditions = {"context": zeros(1, 128, 512), "vector": zeros(1, 768)}
    unet = count(UNet(GLIDE), zeros(1, 64, 64, 3), zeros(1, dtype=jnp.int32), **conditions)
    assert (text, unet + text) == (76_695_808, 385_030_726)


@pytest.mark.parametrize(
    "size, multipliers, blocks, attention, expected",
    [
        (64, (1, 2, 3, 4), 4, (2, 4, 8), 65_438_568),
        (128, (1, 1, 2, 3, 4), 2, (4, 8, 16), 42_568_040),
        (256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 54_096_360),
    ],
)
def test_classifiers_have_the_official_number_of_parameters(
    size, multipliers, blocks, attention, expected
):
    config = UNetConfig(1000, 128, multipliers, blocks, attention)
    assert count(Encoder(config), zeros(1, size, size, 3), zeros(1, dtype=jnp.int32)) == expected


# A tiny one with every condition


TINY = UNetConfig(
    out_channels=6, width=8, multipliers=(1, 2), blocks=1, attention=(2,), head_dim=8,
    context="joint", num_classes=3, groups=4,
)  # fmt: skip
SMALLEST = replace(
    TINY, multipliers=(1,), attention=(), middle_attention=False, context=None, num_classes=None
)
B = 2


def inputs(seed=0):
    rng = RNG(seed)
    f = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {
        "x": f(B, 8, 8, 3),
        "t": jnp.array([3, 700]),
        "label": jnp.array([0, 2]),
        "vector": f(B, 32),
        "context": f(B, 4, 5),
        "channels": f(B, 8, 8, 2),
    }


def randomised(model, given, seed=1):
    """Random parameters in every leaf: what starts at zero would hide the rest."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **given))
    leaves, tree = jax.tree.flatten(shapes)
    rng = RNG(seed)
    draws = [
        jnp.asarray((0.5 / max(np.prod(a.shape[:-1]), 4) ** 0.5 if a.ndim > 1 else 0.3)
                    * rng.standard_normal(a.shape) + (a.ndim == 1), jnp.float32)
        for a in leaves
    ]  # fmt: skip
    return jax.tree.unflatten(tree, draws)


class Compiled:
    """One model, one compilation: outputs, and gradients of a random functional of them."""

    def __init__(self, model, given):
        self.model, self.given, self.params = model, given, randomised(model, given)

        def value(params, given):
            out = model.apply(params, **given)
            weight = jnp.asarray(RNG(9).standard_normal(out.shape), jnp.float32)
            return (out * weight).sum(), out

        self.run = jax.jit(jax.value_and_grad(value, has_aux=True))

    def __call__(self, params=None, **changes):
        (_, out), gradient = self.run(params or self.params, {**self.given, **changes})
        return np.asarray(out), gradient


@pytest.fixture(scope="module")
def tiny():
    return Compiled(UNet(TINY), inputs())


def assert_every_leaf_learns(gradient):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        size = np.abs(np.asarray(leaf)).max()
        assert np.isfinite(size) and size > 1e-5, (jax.tree_util.keystr(path), size)


@pytest.mark.slow
def test_the_output_has_the_pictures_size_and_the_configured_channels(tiny):
    out, _ = tiny()
    assert out.shape == (B, 8, 8, 6) and out.dtype == np.float32 and np.isfinite(out).all()


def test_a_fresh_network_predicts_zero_and_only_for_its_last_convolution():
    model = UNet(SMALLEST)
    given = {k: inputs()[k] for k in ("x", "t")}
    params = jax.jit(model.init)(jax.random.key(0), **given)["params"]
    run = jax.jit(model.apply)
    np.testing.assert_array_equal(run({"params": params}, **given), 0)
    last = jax.tree.map(jnp.ones_like, params["conv_out"])
    assert np.abs(run({"params": {**params, "conv_out": last}}, **given)).max() > 0.1


@pytest.mark.slow
def test_every_parameter_has_a_gradient(tiny):
    assert_every_leaf_learns(tiny()[1])


@pytest.mark.parametrize("name", ["x", "t", "label", "vector", "context", "channels"])
def test_every_input_changes_the_output_of_its_own_row_alone(tiny, name):
    given = tiny.given[name]
    other = jnp.array([1, 2]) if name == "label" else given.at[0].set(given[0] + 1)
    before, after = tiny()[0], tiny(**{name: other})[0]
    assert np.abs(after[0] - before[0]).max() > 1e-3
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)


def test_the_order_of_the_extra_channels_is_x_first(tiny):
    """Official checkpoints: [x, low_res] and [x, image keep_mask, keep_mask]."""
    kernel = tiny.params["params"]["conv_in"]["kernel"]
    assert kernel.shape == (3, 3, 5, 8)
    params = {"params": {**tiny.params["params"]}}
    params["params"]["conv_in"] = {
        **tiny.params["params"]["conv_in"], "kernel": kernel.at[:, :, 3:].set(0)
    }  # fmt: skip
    before, after = (
        tiny(params, channels=c)[0] for c in (tiny.given["channels"], jnp.ones((B, 8, 8, 2)))
    )
    np.testing.assert_array_equal(before, after)


# Other layouts


VARIANTS = {
    "ldm": replace(
        TINY, multipliers=(1,), attention=(1,), context="cross", scale_shift=False, heads=2,
        num_classes=None,
    ),
    "ddpm": replace(
        SMALLEST, multipliers=(1, 2), middle_attention=True, heads=1, scale_shift=False,
        updown="conv_asym", time_order="sin_cos", eps=1e-6,
    ),
    "patch_2": replace(SMALLEST, patch=2, middle_attention=True),
    "patch_2_bfloat16": replace(SMALLEST, patch=2, middle_attention=True, dtype="bfloat16"),
}  # fmt: skip


@pytest.fixture(scope="module")
def variants():
    """Each compiled on first use."""
    made = {}

    def get(name):
        keep = ["x", "t"] + (["context"] if VARIANTS[name].context else [])
        if name not in made:
            made[name] = Compiled(UNet(VARIANTS[name]), {k: inputs()[k] for k in keep})
        return made[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_layout_keeps_the_size_and_trains_every_parameter(variants, name):
    out, gradient = variants(name)()
    assert out.shape == (B, 8, 8, 6)
    assert_every_leaf_learns(gradient)


def test_a_patch_stem_works_at_half_the_size_and_still_sees_every_pixel(variants):
    model = variants("patch_2")
    assert model.params["params"]["conv_in"]["kernel"].shape[2] == 2 * 2 * 3
    before, x = model()[0], model.given["x"]
    for row, column in ((0, 0), (3, 5), (2, 4), (7, 7)):  # far away, and in its own patch
        after = model(x=x.at[0, row, column].add(3))[0]
        assert np.abs(after - before)[0, 3, 4].max() > 1e-6
    # Within a patch each pixel has weights of its own.
    assert np.abs(before[0, 2:4, 4:6] - before[0, 2, 4]).reshape(4, -1).max(1)[1:].min() > 1e-3


@pytest.mark.slow
def test_bfloat16_computes_near_float32_keeps_float32_parameters_and_answers_in_float32(variants):
    full, low = variants("patch_2"), variants("patch_2_bfloat16")
    a, b = full()[0], low()[0]
    assert b.dtype == np.float32 and 1e-4 < np.abs(a - b).max() < 0.1 * np.abs(a).max()
    shapes = jax.eval_shape(lambda: low.model.init(jax.random.key(0), **low.given))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("updown, row", [("conv", 1), ("conv_asym", 2)])
def test_strided_convolutions_pad_as_ldm_all_around_and_as_ddpm_right_and_bottom(updown, row):
    """A 3x3 kernel with stride 2, all zeros but its first tap: output 1 reads input row 1 or 2."""
    from common.unet import _down

    class Down(nn.Module):
        @nn.compact
        def __call__(self, x):
            return _down(replace(TINY, updown=updown), x, None)

    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    out = Down().apply({"params": {"Conv_0": {"kernel": kernel, "bias": jnp.zeros(1)}}}, x)
    assert out.shape == (1, 3, 3, 1) and out[0, 1, 1, 0] == x[0, row, row, 0]


# Encoder


def test_the_encoder_gives_one_logit_per_class_and_trains_every_parameter():
    config = replace(SMALLEST, out_channels=5, multipliers=(1, 2), attention=(2,))
    given = {k: v for k, v in inputs().items() if k in ("x", "t")}
    model = Compiled(Encoder(config), given)
    out, gradient = model()
    assert out.shape == (B, 5) and out.dtype == np.float32
    assert_every_leaf_learns(gradient)
    for name in ("x", "t"):
        other = model(**{name: given[name].at[0].set(given[name][0] + 1)})[0]
        assert np.abs(other[0] - out[0]).max() > 1e-4
        np.testing.assert_allclose(other[1], out[1], atol=1e-5)


def test_the_encoder_has_a_patch_stem_too():
    config = replace(TINY, out_channels=5, context=None, num_classes=None, patch=2)
    given = {k: v for k, v in inputs().items() if k in ("x", "t")}
    shape = jax.eval_shape(lambda: Encoder(config).init_with_output(jax.random.key(0), **given)[0])
    assert shape.shape == (B, 5)
