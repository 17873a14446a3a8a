"""The published weights of GLIDE and of ADM, from files that the user has.

GLIDE   base.pt, upsample.pt, base_inpaint.pt, upsample_inpaint.pt: told apart by their shapes
        clip_image_enc.pt and clip_text_enc.pt: its noised CLIP, in two files
ADM     64x64_diffusion.pt, 256x256_classifier.pt, ...: called by their names

These networks learned to count t from 0: wrap what uses them in common.pretrained.official.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from common import bytepairs, clip, pretrained
from common.checkpoint import CheckpointError
from common.clip import ClipConfig
from common.guidance import Denoiser
from common.pretrained import Source, by_head, openai_unet, prefixed, source
from common.pretrained_clip import patches
from common.process import Prediction
from common.text import TextConfig
from common.unet import UNet, UNetConfig
from glide import classifier, model
from glide.classifier import ClassifierConfig
from glide.model import GlideConfig

RELEASED = (
    model.PAPER,
    model.PAPER_INPAINT,
    model.PAPER_UPSAMPLER,
    model.PAPER_UPSAMPLER_INPAINT,
)
TRANSFORMER = {
    "ln1": "ln_1",
    "out": "attn.c_proj",
    "ln2": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}


def load(path: str | Path, configs: tuple[GlideConfig, ...] = RELEASED) -> tuple[GlideConfig, dict]:
    """(config, params) of one of GLIDE's four models; its input channels say which.

    Use it as official(denoiser(config, params)), with the tokens that `tokens` makes of GLIDE's.
    CheckpointError, in one line, for anything but exactly one of `configs`.
    """
    tensors = pretrained.read(path, "GLIDE")
    first = tensors.get("input_blocks.0.0.weight", np.empty(0))
    channels = first.shape[1] if first.ndim == 4 else 0
    config = next((c for c in configs if input_channels(c) == channels), None)
    if config is None:
        raise CheckpointError(f"{path} has {channels} input channels, as no model of GLIDE's has")
    init = functools.partial(model.init_params, config)
    return config, pretrained.fill(path, tensors, glide_sources(config), init)


def input_channels(config: GlideConfig) -> int:
    beside = {"known": model.KNOWN, "low_res": config.channels}
    return config.channels + sum(beside[name] for name in config.inputs)


def glide_sources(config: GlideConfig) -> dict[str, Source]:
    """ADM's U-Net, and a text transformer beside it."""
    text = {
        "Embed_0": source("token_embedding", lambda x: np.roll(x, 1, axis=0)),  # see tokens
        "position": source("positional_embedding"),
        "padding": source("padding_embedding"),
        "Transformer_0/final_norm": source("final_ln"),
        "pooled": source("transformer_proj"),
    }
    for i in range(config.text.layers):
        block = f"transformer.resblocks.{i}"
        for ours, theirs in TRANSFORMER.items():
            text[f"Transformer_0/{ours}_{i}"] = source(f"{block}.{theirs}")
        heads = by_head(3, heads=config.text.heads)
        text[f"Transformer_0/qkv_{i}"] = source(f"{block}.attn.c_qkv", heads)
    return prefixed("unet", openai_unet(config.unet)) | prefixed("text", text)


def reader(config: GlideConfig, vocab: str | Path | None) -> Callable[[Sequence[str]], np.ndarray]:
    """read(prompts) -> tokens (B, L) of the loaded model; vocab: GPT-2's vocab.bpe."""
    if vocab is None:
        raise ValueError("these weights read byte pairs: give GPT-2's vocab.bpe with --vocab")
    pairs = bytepairs.glide(vocab, config.text.vocabulary, config.text.length)
    return lambda prompts: tokens(config, pairs.encode(prompts))


def tokens(config: GlideConfig, ids: np.ndarray) -> np.ndarray:
    """Ids of GLIDE's byte pairs (B, L) -> tokens (B, L) int32 for the loaded model.

    Padding, where GLIDE's mask is False, is its last id (50,256, the end of text) there and 0 here:
    each id is the row after its own, in the loaded embedding as in this.
    """
    return (np.asarray(ids, np.int32) + 1) % config.text.vocabulary


# The noised CLIP.

NOISED_CLIP = ClipConfig(
    size=64, patch=4, T=1000, text=TextConfig(vocabulary=65_536, length=77, layers=12)
)  # glide_text2im/clip/config.yaml


def load_clip(
    image: str | Path, text: str | Path, config: ClipConfig = NOISED_CLIP
) -> tuple[ClipConfig, dict]:
    """(config, params) from clip_image_enc.pt and clip_text_enc.pt.

    Its times are 1..T already: row t - 1 of the tokens that the file counts from 0. Its texts are
    those of OpenAI's CLIP, see common.bytepairs.
    """
    params = {"log_scale": np.float32(math.log(clip.MAX_SCALE))}  # a constant, not in the files
    towers = {"image": (image, "images", _clip_image), "text": (text, "texts", _clip_text)}
    for tower, (path, what, sources) in towers.items():
        tensors = pretrained.read(path, f"GLIDE's noised CLIP, {what}")
        init = lambda key, tower=tower: clip.init_params(config, key)[tower]  # noqa: E731
        params[tower] = pretrained.fill(path, tensors, sources(config), init)
    return config, params


def _clip_transformer(layers: int) -> dict[str, Source]:
    """Blocks, and what stands behind them: gains g and biases b, matrices w, keys without bias."""
    norms = {"final_norm": "output.ln"}
    sources = {"out/kernel": source("blocks.output.f.w")}
    for i in range(layers):
        block = f"blocks.block_{i}"
        norms |= {f"ln1_{i}": f"block_{i}.f_attn.ln", f"ln2_{i}": f"block_{i}.f_mlp.ln"}
        q, k, v = (f"{block}.f_attn.f_{part}" for part in "qkv")
        sources[f"Transformer_0/qkv_{i}/kernel"] = Source((f"{q}.w", f"{k}.w", f"{v}.w"))
        sources[f"Transformer_0/qkv_{i}/bias"] = Source((f"{q}.b", None, f"{v}.b"))
        for ours, theirs in {
            "out": "f_attn.f_c",
            "mlp_in": "f_mlp.f_1",
            "mlp_out": "f_mlp.f_2",
        }.items():
            sources[f"Transformer_0/{ours}_{i}/kernel"] = source(f"{block}.{theirs}.w")
            sources[f"Transformer_0/{ours}_{i}/bias"] = source(f"{block}.{theirs}.b")
    for ours, theirs in norms.items():
        sources[f"Transformer_0/{ours}/scale"] = source(f"blocks.{theirs}.g")
        sources[f"Transformer_0/{ours}/bias"] = source(f"blocks.{theirs}.b")
    return sources


def _clip_image(config: ClipConfig) -> dict[str, Source]:
    return _clip_transformer(config.layers) | {
        "patch/kernel": source("blocks.input.patch_proj", patches),
        "time": source("blocks.input.w_t"),
        "position": source("blocks.input.w_pos"),
        "ln_pre/scale": source("blocks.input.ln.g"),
        "ln_pre/bias": source("blocks.input.ln.b"),
    }


def _clip_text(config: ClipConfig) -> dict[str, Source]:
    return _clip_transformer(config.text.layers) | {
        "Embed_0/embedding": source("blocks.input.w_voc"),
        "position": source("blocks.input.w_pos"),
    }


# ADM.


@dataclass(frozen=True)
class AdmConfig:
    """A diffusion model of ADM's, on classes or none, or an upsampler."""

    size: int  # pixels
    unet: UNetConfig
    schedule: str = "linear"
    low_res: int | None = None  # pixels of what an upsampler enlarges
    new_order: bool = False  # use_new_attention_order
    T: int = 1000


_adm = UNetConfig(6, 256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), num_classes=1000)
_lsun = replace(_adm, num_classes=None, dropout=0.1)
# fmt: off
ADM = {  # by the names of the files, with the flags of ADM's README
    "64x64_diffusion": AdmConfig(
        64, replace(_adm, width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(2, 4, 8),
                    dropout=0.1), "cosine", new_order=True),
    "128x128_diffusion": AdmConfig(
        128, replace(_adm, multipliers=(1, 1, 2, 3, 4), attention=(4, 8, 16), heads=4)),
    "256x256_diffusion": AdmConfig(256, _adm),
    "256x256_diffusion_uncond": AdmConfig(256, replace(_adm, num_classes=None)),
    "512x512_diffusion": AdmConfig(
        512, replace(_adm, multipliers=(0.5, 1, 1, 2, 2, 4, 4), attention=(16, 32, 64))),
    "64_256_upsampler": AdmConfig(256, replace(_adm, width=192, heads=4), low_res=64),
    "128_512_upsampler": AdmConfig(512, replace(_adm, width=192, attention=(16, 32)), low_res=128),
    "lsun_bedroom": AdmConfig(256, _lsun),
    "lsun_cat": AdmConfig(256, _lsun),
    "lsun_horse": AdmConfig(256, _lsun),
    "lsun_horse_nodropout": AdmConfig(256, replace(_lsun, dropout=0.0)),
}
CLASSIFIERS = {
    "64x64_classifier": ClassifierConfig(
        64, 1000, "cosine", UNetConfig(1000, 128, (1, 2, 3, 4), 4, (2, 4, 8))),
    "128x128_classifier": ClassifierConfig(
        128, 1000, "linear", UNetConfig(1000, 128, (1, 1, 2, 3, 4), 2, (4, 8, 16))),
    "256x256_classifier": ClassifierConfig(
        256, 1000, "linear", UNetConfig(1000, 128, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32))),
    "512x512_classifier": ClassifierConfig(
        512, 1000, "linear", UNetConfig(1000, 128, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64))),
}
# fmt: on


def load_adm(path: str | Path, config: AdmConfig | None = None) -> tuple[AdmConfig, dict]:
    """(config, params) of a diffusion model or upsampler; without a config, by the file's name."""
    config = config or _by_name(path, ADM)
    tensors = pretrained.read(path, "an ADM diffusion model")
    sources = openai_unet(config.unet, new_order=config.new_order)
    return config, pretrained.fill(path, tensors, sources, functools.partial(init_adm, config))


def load_classifier(
    path: str | Path, config: ClassifierConfig | None = None
) -> tuple[ClassifierConfig, dict]:
    """(config, params), for official(classifier.log_prob(config, params)); as load_adm."""
    config = config or _by_name(path, CLASSIFIERS)
    tensors = pretrained.read(path, "an ADM classifier")
    sources = openai_unet(config.unet, encoder=True)
    init = functools.partial(classifier.init_params, config)
    return config, pretrained.fill(path, tensors, sources, init)


def _by_name(path: str | Path, table: dict):
    if (name := Path(path).stem) not in table:
        known = ", ".join(f"{known}.pt" for known in table)
        raise CheckpointError(f"which model is {path}? name the file as published: {known}")
    return table[name]


def inputs(config: AdmConfig, x: jax.Array, cond: dict) -> dict:
    """What the UNet takes of cond: label (B,) of the 1000 classes; low_res (B, h, w, 3)."""
    given = {"label": cond["label"]} if config.unet.num_classes else {}
    if config.low_res:
        given["channels"] = jax.image.resize(cond["low_res"], x.shape, "bilinear")
    return given


def init_adm(config: AdmConfig, key: jax.Array) -> dict:
    x, one = jnp.zeros((1, config.size, config.size, 3)), jnp.ones(1, jnp.int32)
    given = inputs(config, x, {"label": one, "low_res": x})
    return UNet(config.unet).init(key, x, one, **given)["params"]


def adm_denoiser(config: AdmConfig, params: dict) -> Denoiser:
    """denoise(x, t, cond) -> Prediction, for official; cond has a label, low_res, both or none."""

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> Prediction:
        out = UNet(config.unet).apply({"params": params}, x, t, **inputs(config, x, cond))
        return Prediction(*jnp.split(out, 2, axis=-1))

    return denoise
