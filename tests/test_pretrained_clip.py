"""Published CLIPs: OpenAI's by either names, and GLIDE's noised one. Every name finds its place,
what is loaded computes what the official networks do, by an evaluation in numpy.
"""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy.special import erf
from test_pretrained import apply_linear, layer_norm, linear, norm, one_line, softmax

from common import clip, pretrained, pretrained_clip
from common.pretrained_clip import CLIPS
from common.text import TextConfig
from glide import pretrained as glide

RNG = np.random.default_rng


# What is published, by the constructors of the official code: {name: shape} of each network.


def openai_blocks(name, layers, D):
    layout = {}
    for i in range(layers):
        block = f"{name}.resblocks.{i}"
        layout |= {
            f"{block}.attn.in_proj_weight": (3 * D, D),
            f"{block}.attn.in_proj_bias": (3 * D,),
        }
        layout |= linear(f"{block}.attn.out_proj", D, D) | norm(f"{block}.ln_1", D)
        layout |= linear(f"{block}.mlp.c_fc", D, 4 * D) | linear(f"{block}.mlp.c_proj", 4 * D, D)
        layout |= norm(f"{block}.ln_2", D)
    return layout


def openai_layout(c):
    """CLIP of clip/model.py with a VisionTransformer."""
    W, D, places = c.width, c.text.width, (c.size // c.patch) ** 2 + 1
    layout = {"positional_embedding": (c.text.length, D), "text_projection": (D, c.dim)}
    layout |= {"logit_scale": (), "visual.class_embedding": (W,), "visual.proj": (W, c.dim)}
    layout |= {"visual.positional_embedding": (places, W)}
    layout |= {"visual.conv1.weight": (W, 3, c.patch, c.patch)}
    layout |= norm("visual.ln_pre", W) | norm("visual.ln_post", W)
    layout |= openai_blocks("visual.transformer", c.layers, W)
    layout |= openai_blocks("transformer", c.text.layers, D)
    return layout | {"token_embedding.weight": (c.text.vocabulary, D)} | norm("ln_final", D)


def hugging_face_blocks(name, layers, D):
    layout = {}
    for i in range(layers):
        block = f"{name}.encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            layout |= linear(f"{block}.self_attn.{part}_proj", D, D)
        layout |= norm(f"{block}.layer_norm1", D) | norm(f"{block}.layer_norm2", D)
        layout |= linear(f"{block}.mlp.fc1", D, 4 * D) | linear(f"{block}.mlp.fc2", 4 * D, D)
    return layout


def hugging_face_layout(c):
    """CLIPModel."""
    W, D, places = c.width, c.text.width, (c.size // c.patch) ** 2 + 1
    layout = {"logit_scale": (), "vision_model.embeddings.class_embedding": (W,)}
    layout |= {"vision_model.embeddings.patch_embedding.weight": (W, 3, c.patch, c.patch)}
    layout |= {"vision_model.embeddings.position_embedding.weight": (places, W)}
    layout |= {"text_model.embeddings.token_embedding.weight": (c.text.vocabulary, D)}
    layout |= {"text_model.embeddings.position_embedding.weight": (c.text.length, D)}
    layout |= norm("vision_model.pre_layrnorm", W) | norm("vision_model.post_layernorm", W)
    layout |= norm("text_model.final_layer_norm", D)
    layout |= hugging_face_blocks("vision_model", c.layers, W)
    layout |= hugging_face_blocks("text_model", c.text.layers, D)
    return layout | {"visual_projection.weight": (c.dim, W), "text_projection.weight": (c.dim, D)}


def noised_layout(layers, D, dim):
    """Blocks and output of glide_text2im/clip/encoders.py."""
    gains = lambda name: {f"{name}.g": (D,), f"{name}.b": (D,)}  # noqa: E731
    layout = gains("blocks.output.ln") | {"blocks.output.f.w": (dim, D)}
    for i in range(layers):
        for part, bias in (("f_q", True), ("f_k", False), ("f_v", True), ("f_c", True)):
            name = f"blocks.block_{i}.f_attn.{part}"
            layout |= {f"{name}.w": (D, D)} | ({f"{name}.b": (D,)} if bias else {})
        mlp = f"blocks.block_{i}.f_mlp"
        layout |= {f"{mlp}.f_1.w": (4 * D, D), f"{mlp}.f_1.b": (4 * D,)}
        layout |= {f"{mlp}.f_2.w": (D, 4 * D), f"{mlp}.f_2.b": (D,)}
        layout |= gains(f"blocks.block_{i}.f_attn.ln") | gains(f"{mlp}.ln")
    return layout


def noised_layouts(c):
    places, W = (c.size // c.patch) ** 2 + 1, c.width
    image = {"w_t": (c.T, W), "patch_proj": (W, 3, c.patch, c.patch), "w_pos": (places, W),
             "ln.g": (W,), "ln.b": (W,)}  # fmt: skip
    text = {"w_voc": (c.text.vocabulary, D := c.text.width), "w_pos": (c.text.length, D)}
    image = {f"blocks.input.{name}": shape for name, shape in image.items()}
    text = {f"blocks.input.{name}": shape for name, shape in text.items()}
    return (image | noised_layout(c.layers, W, c.dim),
            text | noised_layout(c.text.layers, c.text.width, c.dim))  # fmt: skip


def count(layout):
    return sum(math.prod(shape) for shape in layout.values())


def zeros(layout):
    return {k: np.broadcast_to(np.float16(0), shape) for k, shape in layout.items()}


LAYOUTS = {"openai": openai_layout, "hugging face": hugging_face_layout}


@pytest.mark.parametrize("name, parameters, tensors", [
    ("ViT-B-32", 151_277_313, 302), ("ViT-L-14", 427_616_513, 446),
])  # fmt: skip
@pytest.mark.parametrize("names", LAYOUTS)
def test_every_published_name_and_shape_is_used_once_and_they_are_as_many_as_published(
    monkeypatch, names, name, parameters, tensors
):
    layout = LAYOUTS[names](CLIPS[name])
    assert count(layout) == parameters
    assert names == "hugging face" or len(layout) == tensors
    beside = {"input_resolution": np.array(224), "context_length": np.array(77)}
    beside |= {"transformer.resblocks.0.attn_mask": np.zeros((77, 77), np.float16)}
    beside |= {"vocab_size": np.array(49408), "text_model.embeddings.position_ids": np.arange(77)}
    monkeypatch.setattr(pretrained, "fill", pretrained.match)
    monkeypatch.setattr(pretrained, "load_tensors", lambda path: zeros(layout) | beside)
    config, params = pretrained_clip.load("x.pt")
    assert config is CLIPS[name]
    assert sum(math.prod(x.shape) for x in params.values()) == parameters


def test_both_files_of_the_noised_clip_are_used_up(monkeypatch):
    image, text = noised_layouts(config := glide.NOISED_CLIP)
    monkeypatch.setattr(pretrained, "fill", pretrained.match)
    monkeypatch.setattr(
        pretrained, "load_tensors", lambda path: zeros({"i.pt": image, "t.pt": text}[path])
    )
    _, params = glide.load_clip("i.pt", "t.pt")
    keys_without_bias = config.layers * config.width + config.text.layers * config.text.width
    found = sum(math.prod(x.shape) for tower in ("image", "text") for x in params[tower].values())
    assert found - keys_without_bias == count(image) + count(text)
    one_line("t.pt", "GLIDE's noised CLIP, texts, not", lambda path: glide.load_clip(path, path))


# Small ones of the same make, in files.

SMALL = clip.ClipConfig(
    size=8, patch=4, width=24, layers=2, heads=3, dim=12, end=10,
    text=TextConfig(vocabulary=11, length=6, width=16, layers=2, heads=4),
)  # fmt: skip


def drawn(layout, seed=0):
    """Half precision for matrices, single for all else, as OpenAI's archives mix them."""
    rng, state = RNG(seed), {}
    for name, shape in layout.items():
        x = rng.standard_normal(shape)
        if len(shape) == 1 and "class" not in name:
            x = 0.3 * x + name.endswith(("weight", "g"))
        elif "emb" not in name and "w_" not in name:
            x = x / math.prod(shape[1:]) ** 0.5
        # Faint where a norm sees it, so that its epsilon is seen in what comes out.
        if any(part in name for part in ("embed", "w_", "conv1", "patch")):
            x = 0.01 * x
        state[name] = np.asarray(x, np.float16 if len(shape) > 1 else np.float32)
    return state


def double(state):
    return {k: x.astype(np.float64) for k, x in state.items()}


# What the official networks compute, in numpy and float64, from official names.


def transformer(h, heads, layers, block, gelu, causal):
    """Pre-LN; block(i) -> (norm, qkv, out, norm, mlp in, mlp out), functions of h."""
    past = np.tril(np.ones((h.shape[1],) * 2, bool)) if causal else True
    for i in range(layers):
        norm1, qkv, out, norm2, mlp_in, mlp_out = block(i)
        q, k, v = (x.reshape(*h.shape[:2], heads, -1) for x in qkv(norm1(h)))
        logits = np.einsum("nqhc,nkhc->nhqk", q, k) / q.shape[-1] ** 0.5
        weight = softmax(np.where(past, logits, -np.inf))
        h = h + out(np.einsum("nhqk,nkhc->nqhc", weight, v).reshape(h.shape))
        h = h + mlp_out(gelu(mlp_in(norm2(h))))
    return h


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu(x):
    return x * (1 + erf(x / 2**0.5)) / 2


def openai_block(s, name):
    def block(i):
        at = f"{name}.resblocks.{i}"
        qkv = lambda x: np.split(  # noqa: E731
            x @ s[f"{at}.attn.in_proj_weight"].T + s[f"{at}.attn.in_proj_bias"], 3, axis=-1
        )
        apply = lambda layer: lambda x: apply_linear(s, f"{at}.{layer}", x)  # noqa: E731
        ln = lambda layer: lambda x: layer_norm(s, f"{at}.{layer}", x)  # noqa: E731
        return (ln("ln_1"), qkv, apply("attn.out_proj"), ln("ln_2"), apply("mlp.c_fc"),
                apply("mlp.c_proj"))  # fmt: skip

    return block


def patched(kernel, pictures, p):
    """Pictures (N, H, W, 3) in [-1, 1], normalised, through a strided convolution -> tokens."""
    x = ((pictures + 1) / 2 - clip.MEAN) / clip.STD
    N, H, W, _ = x.shape
    x = x.reshape(N, H // p, p, W // p, p, 3)
    return np.einsum("nipjqc,dcpq->nijd", x, kernel).reshape(N, -1, len(kernel))


def openai_image(s, c, pictures):
    h = patched(s["visual.conv1.weight"], pictures, c.patch)
    first = np.broadcast_to(s["visual.class_embedding"], (len(h), 1, c.width))
    h = np.concatenate([first, h], 1) + s["visual.positional_embedding"]
    h = layer_norm(s, "visual.ln_pre", h)
    block = openai_block(s, "visual.transformer")
    h = transformer(h, c.heads, c.layers, block, quick_gelu, causal=False)
    return layer_norm(s, "visual.ln_post", h[:, 0]) @ s["visual.proj"]


def openai_text(s, c, ids):
    h = s["token_embedding.weight"][ids] + s["positional_embedding"]
    block = openai_block(s, "transformer")
    h = transformer(h, c.text.heads, c.text.layers, block, quick_gelu, causal=True)
    h = layer_norm(s, "ln_final", h)
    return h[np.arange(len(h)), ids.argmax(-1)] @ s["text_projection"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


X = RNG(1).uniform(-1, 1, (2, 8, 8, 3))
IDS = np.array([[8, 3, 10, 0, 0, 0], [8, 1, 2, 4, 9, 10]])  # 10 ends a text and 0 fills up
TIMES = np.array([1, 3])


@pytest.fixture(scope="module")
def embeddings():
    """(config, params) -> image and text embeddings, and the scale."""
    return lambda config, params, *t: jax.jit(clip.Clip(config).apply)(
        {"params": params}, jnp.float32(X), jnp.asarray(IDS), *t
    )


def test_openai_clip_computes_what_the_official_network_does(tmp_path, embeddings):
    """Class token, positions, quick GELU, causal text read at its largest id."""
    state = drawn(openai_layout(SMALL))
    assert {x.dtype.itemsize for x in state.values()} == {2, 4}
    safetensors.numpy.save_file(state, path := tmp_path / "a.safetensors")
    config, params = pretrained_clip.load(path, [SMALL])
    s = double(state)
    image, text, scale = embeddings(config, params)
    np.testing.assert_allclose(image, unit(openai_image(s, SMALL, X)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(text, unit(openai_text(s, SMALL, IDS)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(scale, s["logit_scale"], rtol=1e-6)


HUGGING_FACE = {
    r"^visual\.transformer\.resblocks": "vision_model.encoder.layers",
    r"^transformer\.resblocks": "text_model.encoder.layers",
    r"^visual\.conv1": "vision_model.embeddings.patch_embedding",
    r"^visual\.class": "vision_model.embeddings.class",
    r"^visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.ln_pre": "vision_model.pre_layrnorm",
    r"^visual\.ln_post": "vision_model.post_layernorm",
    r"^visual\.proj": "visual_projection.weight",
    r"^positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"^token_embedding": "text_model.embeddings.token_embedding",
    r"^ln_final": "text_model.final_layer_norm",
    r"^text_projection": "text_projection.weight",
    r"\.ln_(\d)": r".layer_norm\1",
    r"\.attn\.": ".self_attn.",
    r"\.c_fc": ".fc1",
    r"\.c_proj": ".fc2",
}


def test_the_same_clip_by_the_names_of_hugging_face_gives_the_same_parameters(tmp_path):
    """q, k and v apart, projections as linear layers."""
    state, renamed = drawn(openai_layout(SMALL)), {}
    for name, x in state.items():
        for old, new in HUGGING_FACE.items():
            name = re.sub(old, new, name)
        if "in_proj_" in name:
            for part, rows in zip("qkv", np.split(x, 3), strict=True):
                renamed[name.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            renamed[name] = np.ascontiguousarray(x.T) if "projection" in name else x
    assert {k: x.shape for k, x in renamed.items()} == hugging_face_layout(SMALL)
    safetensors.numpy.save_file(state, tmp_path / "a")
    safetensors.numpy.save_file(renamed, tmp_path / "b")
    a, b = (pretrained_clip.load(tmp_path / name, [SMALL])[1] for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a, b)


def noised(s, c, h, layers, heads, causal):
    """Keys have no bias; exact GELU; the norm behind the blocks. -> all places."""
    ln = lambda name, x: layer_norm(  # noqa: E731
        {f"{name}.weight": s[f"{name}.g"], f"{name}.bias": s[f"{name}.b"]}, name, x
    )
    affine = lambda name, x: x @ s[f"{name}.w"].T + s.get(f"{name}.b", 0.0)  # noqa: E731

    def block(i):
        attn, mlp = f"blocks.block_{i}.f_attn", f"blocks.block_{i}.f_mlp"
        qkv = lambda x: [affine(f"{attn}.f_{part}", x) for part in "qkv"]  # noqa: E731
        return (lambda x: ln(f"{attn}.ln", x), qkv, lambda x: affine(f"{attn}.f_c", x),
                lambda x: ln(f"{mlp}.ln", x), lambda x: affine(f"{mlp}.f_1", x),
                lambda x: affine(f"{mlp}.f_2", x))  # fmt: skip

    return ln("blocks.output.ln", transformer(h, heads, layers, block, gelu, causal))


def test_the_noised_clip_of_glide_computes_what_the_official_network_does(tmp_path, embeddings):
    """Of x_t with a token per time, which the files count from 0 and we from 1."""
    c = replace(SMALL, T=4)
    paths, states = (tmp_path / "i", tmp_path / "t"), [drawn(x) for x in noised_layouts(c)]
    for path, state in zip(paths, states, strict=True):
        safetensors.numpy.save_file(state, path)
    config, params = glide.load_clip(*paths, c)
    image, text, scale = embeddings(config, params, jnp.asarray(TIMES))
    s = double(states[0])
    h = patched(s["blocks.input.patch_proj"], X, c.patch)
    h = np.concatenate([s["blocks.input.w_t"][TIMES - 1][:, None], h], 1) + s["blocks.input.w_pos"]
    gain = {"ln.weight": s["blocks.input.ln.g"], "ln.bias": s["blocks.input.ln.b"]}
    h = noised(s, c, layer_norm(gain, "ln", h), c.layers, c.heads, causal=False)
    expected = unit(h[:, 0] @ s["blocks.output.f.w"].T)
    np.testing.assert_allclose(image, expected, rtol=0, atol=2e-5)
    s = double(states[1])
    h = s["blocks.input.w_voc"][IDS] + s["blocks.input.w_pos"]
    h = noised(s, c, h, c.text.layers, c.text.heads, causal=True)
    lengths = (IDS == 10).argmax(1) + 1
    expected = unit(h[np.arange(len(h)), lengths - 1] @ s["blocks.output.f.w"].T)
    np.testing.assert_allclose(text, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.exp(scale), 100, rtol=1e-6)


def test_what_is_no_known_clip_is_refused_in_one_line(tmp_path):
    state = drawn(openai_layout(replace(SMALL, patch=2)))
    safetensors.numpy.save_file(state, path := tmp_path / "a.safetensors")
    said = r"no CLIP of a known size: \(24, 3, 2, 2\) and \(17, 24\)"
    one_line(path, said, lambda path: pretrained_clip.load(path, [SMALL]))
    state = {"visual.class_embedding": np.zeros(24, np.float32)}
    safetensors.numpy.save_file(state, path)
    one_line(path, "no CLIP of a known size", pretrained_clip.load)
    state = {"blocks.input.w_t": np.zeros((4, 24), np.float32)}
    safetensors.numpy.save_file(state, path)
    one_line(path, "of GLIDE's noised CLIP, images, not of CLIP", pretrained_clip.load)
