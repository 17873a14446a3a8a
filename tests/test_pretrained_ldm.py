"""Published weights of latent diffusion and Stable Diffusion: every published name finds its
place, exactly once, or the file is refused.
"""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors.numpy
from test_pretrained import linear, norm, one_line

from common import pretrained
from common.text import TextConfig
from ldm import pretrained as ldm
from ldm.presets import FIRST_STAGES

RNG = np.random.default_rng


# What is published, by the constructors of the official code: {name: shape} of each network.


def matrix(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs)}


def under(prefix, layout):
    return {prefix + name: shape for name, shape in layout.items()}


def resblock(c, name, inputs, outputs):
    layout = norm(f"{name}.in_layers.0", inputs)
    layout |= linear(f"{name}.in_layers.2", inputs, outputs, 3, 3)
    layout |= linear(f"{name}.emb_layers.1", 4 * c.width, outputs)
    layout |= norm(f"{name}.out_layers.0", outputs)
    layout |= linear(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        layout |= linear(f"{name}.skip_connection", inputs, outputs, 1, 1)
    return layout


def attention(c, name, C, context):
    if c.context != "cross":
        layout = norm(f"{name}.norm", C) | linear(f"{name}.qkv", C, 3 * C, 1)
        return layout | linear(f"{name}.proj_out", C, C, 1)
    layout = norm(f"{name}.norm", C) | linear(f"{name}.proj_in", C, C, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attn, D in (("attn1", C), ("attn2", context)):
        layout |= matrix(f"{block}.{attn}.to_q", C, C) | matrix(f"{block}.{attn}.to_k", D, C)
        layout |= matrix(f"{block}.{attn}.to_v", D, C) | linear(f"{block}.{attn}.to_out.0", C, C)
    layout |= linear(f"{block}.ff.net.0.proj", C, 8 * C) | linear(f"{block}.ff.net.2", 4 * C, C)
    for i in (1, 2, 3):
        layout |= norm(f"{block}.norm{i}", C)
    return layout | linear(f"{name}.proj_out", C, C, 1, 1)


def unet_layout(c, inputs, context):
    """openaimodel.py, UNetModel."""
    widths = [int(m * c.width) for m in c.multipliers]
    layout = linear("time_embed.0", c.width, 4 * c.width)
    layout |= linear("time_embed.2", 4 * c.width, 4 * c.width)
    layout |= linear("input_blocks.0.0", inputs, c.width, 3, 3)
    here, skips, n = c.width, [c.width], 1
    for level, width in enumerate(widths):
        for _ in range(c.blocks):
            layout |= resblock(c, f"input_blocks.{n}.0", here, width)
            if 2**level in c.attention:
                layout |= attention(c, f"input_blocks.{n}.1", width, context)
            here, n = width, n + 1
            skips.append(here)
        if level + 1 < len(widths):
            if c.updown == "conv":
                layout |= linear(f"input_blocks.{n}.0.op", here, here, 3, 3)
            else:
                layout |= resblock(c, f"input_blocks.{n}.0", here, here)
            skips.append(here)
            n += 1
    layout |= resblock(c, "middle_block.0", here, here)
    layout |= attention(c, "middle_block.1", here, context)
    layout |= resblock(c, "middle_block.2", here, here)
    n = 0
    for level, width in reversed(list(enumerate(widths))):
        for i in range(c.blocks + 1):
            layout |= resblock(c, f"output_blocks.{n}.0", here + skips.pop(), width)
            here, last = width, 1
            if 2**level in c.attention:
                layout |= attention(c, f"output_blocks.{n}.1", width, context)
                last = 2
            if level and i == c.blocks:
                name = f"output_blocks.{n}.{last}"
                layout |= (linear(f"{name}.conv", here, here, 3, 3) if c.updown == "conv"
                           else resblock(c, name, here, here))  # fmt: skip
            n += 1
    return layout | norm("out.0", here) | linear("out.2", here, c.out_channels, 3, 3)


def ae_resblock(name, inputs, outputs):
    layout = norm(f"{name}.norm1", inputs) | linear(f"{name}.conv1", inputs, outputs, 3, 3)
    layout |= norm(f"{name}.norm2", outputs) | linear(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        layout |= linear(f"{name}.nin_shortcut", inputs, outputs, 1, 1)
    return layout


def ae_attention(name, C):
    layout = norm(f"{name}.norm", C)
    for layer in ("q", "k", "v", "proj_out"):
        layout |= linear(f"{name}.{layer}", C, C, 1, 1)
    return layout


def ae_layout(c):
    """AutoencoderKL and VQModel."""
    widths = [m * c.width for m in c.multipliers]
    z = c.channels * (2 if c.kind == "kl" else 1)

    def middle(half, C):
        layout = ae_resblock(f"{half}.mid.block_1", C, C) | ae_resblock(f"{half}.mid.block_2", C, C)
        return layout | (ae_attention(f"{half}.mid.attn_1", C) if c.middle_attention else {})

    layout, here = linear("encoder.conv_in", 3, c.width, 3, 3), c.width
    for level, width in enumerate(widths):
        for i in range(c.blocks):
            layout |= ae_resblock(f"encoder.down.{level}.block.{i}", here, width)
            here = width
            if 2**level in c.attention:
                layout |= ae_attention(f"encoder.down.{level}.attn.{i}", here)
        if level + 1 < len(widths):
            layout |= linear(f"encoder.down.{level}.downsample.conv", here, here, 3, 3)
    layout |= middle("encoder", here) | norm("encoder.norm_out", here)
    layout |= linear("encoder.conv_out", here, z, 3, 3)
    layout |= linear("decoder.conv_in", c.channels, here, 3, 3) | middle("decoder", here)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(c.blocks + 1):
            layout |= ae_resblock(f"decoder.up.{level}.block.{i}", here, width)
            here = width
            if 2**level in c.attention:
                layout |= ae_attention(f"decoder.up.{level}.attn.{i}", here)
        if level:
            layout |= linear(f"decoder.up.{level}.upsample.conv", here, here, 3, 3)
    layout |= norm("decoder.norm_out", here) | linear("decoder.conv_out", here, 3, 3, 3)
    layout |= linear("quant_conv", z, z, 1, 1)
    layout |= linear("post_quant_conv", c.channels, c.channels, 1, 1)
    return layout | ({"quantize.embedding.weight": (c.codes, c.channels)} if c.kind == "vq" else {})


def bert_layout(c, inner):
    """TransformerWrapper of x_transformer.py, without its logits."""
    D = c.width
    layout = {"token_emb.weight": (c.vocabulary, D), "pos_emb.emb.weight": (c.length, D)}
    for i in range(c.layers):
        a, f = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        layout |= norm(f"{a}.0", D) | linear(f"{a}.1.to_out", inner, D)
        for part in "qkv":
            layout |= matrix(f"{a}.1.to_{part}", D, inner)
        layout |= norm(f"{f}.0", D) | linear(f"{f}.1.net.0.0", D, 4 * D)
        layout |= linear(f"{f}.1.net.2", 4 * D, D)
    return layout | norm("norm", D)


def clip_text_layout(c):
    """Hugging Face's CLIPTextModel."""
    D, layout = c.width, {}
    for name, rows in (("token", c.vocabulary), ("position", c.length)):
        layout[f"text_model.embeddings.{name}_embedding.weight"] = (rows, D)
    for i in range(c.layers):
        name = f"text_model.encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            layout |= linear(f"{name}.self_attn.{part}_proj", D, D)
        layout |= norm(f"{name}.layer_norm1", D) | norm(f"{name}.layer_norm2", D)
        layout |= linear(f"{name}.mlp.fc1", D, 4 * D) | linear(f"{name}.mlp.fc2", 4 * D, D)
    return layout | norm("text_model.final_layer_norm", D)


def parts_of(c):
    """{prefix in the file: layout}."""
    z, context = c.first_stage.channels, c.text.width
    parts = {"first_stage_model.": ae_layout(c.first_stage)}
    if c.condition == "class":
        parts["cond_stage_model."] = {"embedding.weight": (c.classes + 1, c.class_width)}
        context = c.class_width
    elif c.condition == "text":
        text = bert_layout(c.text, c.inner) if c.inner else clip_text_layout(c.text)
        parts["cond_stage_model.transformer."] = text
    inputs = z + (z + 1) * ("masked" in c.inputs)
    return {"model.diffusion_model.": unet_layout(c.unet, inputs, context)} | parts


def layout_of(c):
    return {name: shape for prefix, layout in parts_of(c).items()
            for name, shape in under(prefix, layout).items()}  # fmt: skip


def count(layout):
    return sum(math.prod(shape) for shape in layout.values())


PUBLISHED = {  # parameters and tensors of the U-Net, parameters of first stage and text
    "sd-v1": (ldm.STABLE_V1, 859_520_964, 686, 83_653_863, 123_060_480),
    "text2img-large": (ldm.PAPER, 872_300_484, 686, 83_653_863, 542_895_360),
    "cin256-v2": (ldm.PAPER_CLASS, 400_920_579, 688, 55_322_782, 1001 * 512),
    "inpainting_big": (ldm.PAPER_INPAINT, 387_245_827, 416, None, None),
    "celeba256": (ldm.PAPER_FACES, 274_056_163, 368, 55_322_782, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_and_shape_is_used_once_and_they_are_as_many_as_published(
    monkeypatch, name
):
    config, *counts = PUBLISHED[name]
    unet, first_stage, *text = parts_of(config).values()
    sizes = [count(unet), len(unet), count(first_stage), *map(count, text), None][:4]
    assert all(n is None or size == n for size, n in zip(sizes, counts, strict=True))
    layout = layout_of(config)
    zeros = {k: np.broadcast_to(np.float16(0), shape) for k, shape in layout.items()}
    monkeypatch.setattr(pretrained, "fill", pretrained.match)
    monkeypatch.setattr(pretrained, "load_tensors", lambda path: zeros)
    found, params = ldm.load("x.ckpt")
    assert found is config
    assert sum(math.prod(x.shape) for x in params.values()) == count(layout)


def test_the_parts_have_as_many_tensors_as_published():
    """BERTEmbedder also has logits, which nothing uses: they are left aside."""
    text = bert_layout(ldm.PAPER.text, ldm.PAPER.inner)
    text |= linear("to_logits", ldm.PAPER.text.width, ldm.PAPER.text.vocabulary)
    assert (count(text), len(text)) == (581_994_042, 422)
    assert len(ae_layout(ldm.STABLE_V1.first_stage)) == 248


@pytest.mark.parametrize("name, parameters", [
    ("paper_kl_f4", 55_312_063), ("paper_kl_f8", 83_653_863), ("paper_kl_f16", 69_610_963),
    ("paper_kl_f32", 103_880_131), ("paper_vq_f4", 55_322_782), ("paper_vq_f8", 67_717_295),
])  # fmt: skip
def test_first_stages_in_files_of_their_own_have_the_published_parameters(
    monkeypatch, name, parameters
):
    layout = ae_layout(config := FIRST_STAGES[name])
    assert count(layout) == parameters
    zeros = {k: np.broadcast_to(np.float16(0), shape) for k, shape in layout.items()}
    zeros["loss.discriminator.main.0.weight"] = np.zeros((64, 3, 4, 4), np.float32)
    monkeypatch.setattr(pretrained, "fill", pretrained.match)
    monkeypatch.setattr(pretrained, "load_tensors", lambda path: zeros)
    params = ldm.load_first_stage("model.ckpt", config)[1]
    assert sum(math.prod(x.shape) for x in params.values()) == parameters


# Small ones of the same make, in files.


def shrink(c):
    """The same kind of model with 32 channels, on pictures of 16 x 16 pixels and 8 x 8 latents.

    Three levels: an upsampling that stands behind attention, and one that does not.
    """
    unet = replace(c.unet, width=32, multipliers=(1, 1, 2), blocks=1, attention=(1, 4))
    unet = replace(unet, heads=c.unet.heads and min(c.unet.heads, 4), head_dim=16)
    first_stage = replace(c.first_stage, size=16, width=32, multipliers=(1, 2), blocks=1, codes=12)
    text = TextConfig(vocabulary=11, length=5, width=16, layers=2, heads=4)
    return replace(c, size=16, unet=unet, first_stage=first_stage, text=text, classes=4,
                   inner=c.inner and 24, class_width=16)  # fmt: skip


# What these give is faint where a norm sees it, so that its epsilon is seen in what comes out.
FAINT = ("input_blocks.0.0.", "input_blocks.1.0.out_layers.3.", "conv_in.", "token_emb", "pos")


def drawn(layout, seed=0):
    """Values for a layout, all in half precision or all in single."""
    rng, state = RNG(seed), {}
    for name, shape in layout.items():
        x = rng.standard_normal(shape)
        if len(shape) == 1:
            x = 0.3 * x + name.endswith("weight")
        elif "emb" not in name.rpartition(".")[0].rpartition(".")[2]:
            x = x / math.prod(shape[1:]) ** 0.5
        if any(faint in name for faint in FAINT):
            x = 0.01 * x
        state[name] = x.astype(np.float32)
    return state


SMALL = {name: shrink(config) for name, (config, *_) in PUBLISHED.items()}


def write(path, name):
    """A small file with all that files carry beside weights -> its weights."""
    state = drawn(layout_of(SMALL[name]))
    beside = {"betas": np.zeros(1000, np.float32), "alphas_cumprod": np.ones(1000)}
    beside["model_ema.num_updates"] = np.array(7, np.int32)
    text = "cond_stage_model.transformer"
    if name == "sd-v1":
        beside[f"{text}.text_model.embeddings.position_ids"] = np.arange(5)[None]
    if name == "text2img-large":
        beside[f"{text}.to_logits.weight"] = np.zeros((11, 16), np.float32)
    if name == "inpainting_big":  # the first stage is also what reads the condition
        first = {k: x for k, x in state.items() if k.startswith("first_stage_model.")}
        beside |= {k.replace("first_", "cond_", 1): x for k, x in first.items()}
    safetensors.numpy.save_file(state | beside, path)
    return state


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_small_file_of_every_kind_is_told_apart_and_fills_every_parameter(tmp_path, name):
    state = write(path := tmp_path / "a.safetensors", name)
    config, params = ldm.load(path, SMALL.values())
    assert config is SMALL[name]
    leaves = jax.tree.leaves(params)
    assert {x.dtype for x in leaves} == {np.dtype(np.float32)}
    values = [np.sort(np.concatenate([np.ravel(x) for x in xs])) for xs in (leaves, state.values())]
    np.testing.assert_array_equal(*values)


def test_the_moving_average_of_the_unet_is_loaded_where_there_is_one(tmp_path):
    config = SMALL["celeba256"]
    trained, average = drawn(layout_of(config), seed=1), drawn(layout_of(config), seed=2)
    state = dict(trained)
    for name, x in average.items():
        if name.startswith("model."):
            state["model_ema." + name.removeprefix("model.").replace(".", "")] = x
    state["scale_factor"] = np.array(0.5)  # of the latents, found while training
    safetensors.numpy.save_file(state, path := tmp_path / "a.safetensors")
    found, params = ldm.load(path, [config])
    assert found == replace(config, latent_scale=0.5)
    name = "model.diffusion_model.out.2.bias"
    np.testing.assert_array_equal(params["unet"]["conv_out"]["bias"], average[name])
    name = "first_stage_model.quant_conv.bias"
    np.testing.assert_array_equal(params["first_stage"]["quant_conv"]["bias"], trained[name])
    state["model_ema.diffusion_modelmore"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(state, path)
    one_line(path, "1 left over .model_ema.diffusion_modelmore", lambda p: ldm.load(p, [config]))


TEXT = "cond_stage_model.transformer.text_model."
WRONG = {
    "1 missing .*k_proj.bias": lambda s: s.pop(f"{TEXT}encoder.layers.1.self_attn.k_proj.bias"),
    "1 left over .more": lambda s: s.update(more=np.zeros(2)),
    "another kind.*5 input channels": lambda s: s.update({
        "model.diffusion_model.input_blocks.0.0.weight": np.zeros((32, 5, 3, 3))}),
    "6 of different precisions in one matrix .*q_proj": lambda s: s.update({
        (k := f"{TEXT}encoder.layers.{i}.self_attn.k_proj.weight"): s[k].astype(np.float16)
        for i in range(2)}),
    "another kind": lambda s: s.pop(f"{TEXT}final_layer_norm.weight"),
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_a_file_that_is_not_exactly_one_of_them_is_refused_in_one_line(tmp_path, said):
    state = drawn(layout_of(SMALL["sd-v1"]))
    WRONG[said](state)
    safetensors.numpy.save_file(state, path := tmp_path / "a.safetensors")
    one_line(path, said, lambda p: ldm.load(p, SMALL.values()))


def test_a_file_of_another_family_is_named(tmp_path):
    first = drawn(ae_layout(SMALL["sd-v1"].first_stage))
    safetensors.numpy.save_file(first, path := tmp_path / "a.safetensors")
    one_line(path, "of a first stage of latent diffusion, not of latent diffusion", ldm.load)
    safetensors.numpy.save_file({"w": np.zeros(9)}, path)
    one_line(path, "of another model, not of a first stage", ldm.load_first_stage)
