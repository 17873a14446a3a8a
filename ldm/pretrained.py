"""The published weights of latent diffusion and Stable Diffusion v1, from files the user has.

    text2img-large, cin256-v2, inpainting_big, celeba256, ...   model.ckpt
    Stable Diffusion 1.1 to 1.5                                 sd-v1-4.ckpt, *.safetensors

One file holds the U-Net, the first stage and what reads the text; its names and shapes say which
model it is. These networks learned to count t from 0: use official(denoiser(config, params)). Where
a file has the moving average of the U-Net, that is loaded: it is what is sampled from.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import jax
import numpy as np

from common import bytepairs, pretrained
from common.checkpoint import CheckpointError
from common.clip import ClipConfig
from common.pretrained import Source, openai_unet, source
from common.pretrained_clip import CLIP_ASIDE, clip_text
from common.text import TextConfig
from ldm import autoencoder, model
from ldm.autoencoder import AutoencoderConfig
from ldm.model import LdmConfig
from ldm.presets import PAPER, PAPER_CLASS, PAPER_FACES, PAPER_INPAINT, PAPER_KL

# inner 0: the text is read by CLIP's text tower, all its places.
_TEXT = TextConfig(vocabulary=49_408, length=77, width=768, layers=12, heads=12)
STABLE_V1 = replace(PAPER, size=512, text=_TEXT, inner=0)
RELEASED = (STABLE_V1, PAPER, PAPER_CLASS, PAPER_INPAINT, PAPER_FACES)

# What files carry beside weights: the schedule, counters, logits that only the text transformer's
# constructor makes, losses of the first stage, and the first stage again where it conditions.
SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
)  # fmt: skip
ASIDE = "|".join((
    *SCHEDULE, CLIP_ASIDE,
    r"model_ema\.(decay|num_updates)", r"cond_stage_model\.transformer\.to_logits\..*",
    r"(first_stage_model\.)?loss\..*",
    r"cond_stage_model\.(encoder|decoder|loss|quantize|quant_conv|post_quant_conv)\..*",
))  # fmt: skip


def load(path: str | Path, configs: Iterable[LdmConfig] = RELEASED) -> tuple[LdmConfig, dict]:
    """(config, params), the first stage among them; what conditions the U-Net says which model.

    CheckpointError, in one line, for anything but exactly one of `configs`.
    """
    tensors = averaged(pretrained.read(path, "latent diffusion", ASIDE))
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight", np.empty(0))
    channels = first.shape[1] if first.ndim == 4 else 0

    def fits(c: LdmConfig) -> bool:
        z = c.first_stage.channels
        return _reader(c) in tensors and channels == z + (z + 1) * ("masked" in c.inputs)

    if (config := next(filter(fits, configs), None)) is None:
        raise CheckpointError(
            f"{path} is latent diffusion of another kind than is known here: {channels} input "
            "channels; give text2img-large, Stable Diffusion v1, cin256-v2 or inpainting_big"
        )
    if "scale_factor" in tensors:  # found while training, from the first batch's latents
        config = replace(config, latent_scale=float(tensors.pop("scale_factor")))
    return config, pretrained.fill(path, tensors, sources(config), partial(init_params, config))


def _reader(config: LdmConfig) -> str:
    """A tensor of what reads the condition, or of the U-Net where nothing does."""
    if config.condition == "none":
        return "model.diffusion_model.input_blocks.0.0.weight"
    names = {"class": "embedding.weight", 0: "transformer.text_model.final_layer_norm.weight"}
    which = config.inner if config.condition == "text" else "class"
    return f"cond_stage_model.{names.get(which, 'transformer.token_emb.weight')}"


def averaged(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The U-Net's tensors replaced by their moving averages, whose names have lost their dots."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.startswith("model.")]:
        average = "model_ema." + name.removeprefix("model.").replace(".", "")
        tensors[name] = tensors.pop(average, tensors[name])
    return tensors


def load_first_stage(
    path: str | Path, config: AutoencoderConfig = PAPER_KL
) -> tuple[AutoencoderConfig, dict]:
    """(config, params) of an autoencoder in a file of its own: kl-f8, or config of its presets."""
    tensors = pretrained.read(path, "a first stage of latent diffusion", ASIDE)
    init = partial(autoencoder.init_params, config)
    return config, pretrained.fill(path, tensors, first_stage_sources(config), init)


def init_params(config: LdmConfig, key: jax.Array) -> dict:
    """Names and shapes of a file: network, text and first stage."""
    keys = jax.random.split(key)
    first_stage = {"first_stage": autoencoder.init_params(config.first_stage, keys[0])}
    return model.init_params(config, keys[1]) | first_stage


def usual(config: LdmConfig) -> dict[str, float]:
    """What the scripts that came with the weights draw with, unless they are told otherwise.

    Stable Diffusion 50 steps and 7.5; text2img-large 200 and 5 (scripts/txt2img.py); inpainting 50.
    The faces' script takes 50, too, but with eta = 1 where this draws with 0.
    """
    if config.condition != "text":
        return {"steps": 50, "guidance_scale": 3.0}
    return {"steps": 200, "guidance_scale": 5.0} if config.inner else {
        "steps": 50, "guidance_scale": 7.5
    }  # fmt: skip


def reader(config: LdmConfig, vocab: str | Path | None) -> Callable[[Sequence[str]], dict]:
    """read(prompts) -> {"tokens": (B, L)} or {"label": (B,)}, "" being the null condition.

    vocab: the vocabulary file of a text model, see common.bytepairs. Classes are given by number.
    """
    if config.condition == "none":
        return _nothing
    if config.condition == "class":
        return lambda prompts: {"label": np.array([_number(config, p) for p in prompts], np.int32)}
    size, length = config.text.vocabulary, config.text.length
    if vocab is None:
        name = "vocab.txt of bert-base-uncased" if config.inner else "CLIP's merges.txt"
        raise ValueError(f"these weights read pieces of words: give their --vocab, {name}")
    if config.inner:
        pieces = bytepairs.bert(vocab, size, length)
    else:
        pieces = bytepairs.clip(vocab, size, length, pad_with_end=True)
    return lambda prompts: {"tokens": pieces.encode(prompts)}


def _nothing(prompts: Sequence[str]) -> dict:
    if any(prompts):
        raise ValueError("these weights take no prompt: leave it away")
    return {}


def _number(config: LdmConfig, prompt: str) -> int:
    if not prompt.strip():
        return config.classes
    if not prompt.strip().isdecimal() or int(prompt) >= config.classes:
        raise ValueError(f"these weights know classes by number: 0 to {config.classes - 1}, "
                         f"not {prompt!r}")  # fmt: skip
    return int(prompt)


def encode_text(config: LdmConfig, params: dict, tokens: jax.Array) -> dict[str, jax.Array]:
    """tokens (B, 77) -> {"context": (B, 77, D)}, the cond of the denoiser."""
    network = {name: leaves for name, leaves in params.items() if name != "first_stage"}
    return model.Ldm(config).apply({"params": network}, {"tokens": tokens}, method="encode")


# Whose tensor is whose.


def sources(config: LdmConfig) -> dict[str, Source]:
    """Everything in a file: ADM's names for the U-Net, DDPM's for the first stage."""
    first_stage = first_stage_sources(config.first_stage)
    parts = {
        "unet": ("model.diffusion_model.", openai_unet(config.unet)),
        "first_stage": ("first_stage_model.", first_stage),
    }
    if config.condition == "class":
        parts["classes"] = ("cond_stage_model.", {"": source("embedding")})
    elif config.condition == "text" and config.inner == 0:
        text = clip_text(ClipConfig(text=config.text), hugging_face=True)
        parts["text"] = ("cond_stage_model.transformer.", text)
    elif config.condition == "text":
        parts["text"] = ("cond_stage_model.transformer.", text_sources(config.text))
    return {
        f"{ours}/{layer}".rstrip("/"): Source(tuple(theirs + name for name in names), reorder)
        for ours, (theirs, layers) in parts.items()
        for layer, (names, reorder) in layers.items()
    }


def text_sources(c: TextConfig) -> dict[str, Source]:
    """x_transformer.py: attention and MLP are layers of their own, each behind its norm."""
    table = {
        "Embed_0": "token_emb",
        "position": "pos_emb.emb.weight",
        f"LayerNorm_{2 * c.layers}": "norm",
    }
    for i in range(c.layers):
        attend, mlp = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        table |= {f"LayerNorm_{2 * i}": f"{attend}.0", f"LayerNorm_{2 * i + 1}": f"{mlp}.0"}
        table |= {f"{part}_{i}": f"{attend}.1.to_{part}" for part in ("q", "k", "v", "out")}
        table |= {f"mlp_in_{i}": f"{mlp}.1.net.0.0", f"mlp_out_{i}": f"{mlp}.1.net.2"}
    return {ours: source(theirs) for ours, theirs in table.items()}


RESBLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "Conv_0": "nin_shortcut",  # only where the number of channels changes
}
LAYERS = {
    "ResBlock": {ours: [theirs] for ours, theirs in RESBLOCK.items()},
    "AttentionBlock": {"GroupNorm_0": ["norm"], "qkv": ["q", "k", "v"], "out": ["proj_out"]},
    "Conv": {"": ["conv"]},
}


def first_stage_sources(c: AutoencoderConfig) -> dict[str, Source]:
    """As in sdedit's DDPM, q, k and v are three convolutions; the halves are apart."""
    found = {
        "quant_conv": ["quant_conv"],
        "post_quant_conv": ["post_quant_conv"],
        "conv_out": ["decoder.conv_out"],
        "codebook": ["quantize.embedding.weight"],
    }
    for half, blocks in (("encoder", encoder_blocks(c)), ("decoder", decoder_blocks(c))):
        found |= {f"{half}/{name}": [f"{half}.{name}"] for name in ("conv_in", "norm_out")}
        number = {kind: count() for kind in LAYERS}
        for kind, theirs in blocks:
            ours = f"{half}/{kind}_{next(number[kind])}"
            for layer, names in LAYERS[kind].items():
                names = [f"{half}.{theirs}.{name}" for name in names]
                found[f"{ours}/{layer}".rstrip("/")] = names
    found["encoder/conv_out"] = ["encoder.conv_out"]
    return {ours: Source(tuple(names)) for ours, names in found.items()}


def encoder_blocks(c: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    """(kind of our block, official block), in the order in which they are called."""
    for level in range(len(c.multipliers)):
        yield from _level(c, f"down.{level}", level, c.blocks)
        if level + 1 < len(c.multipliers):
            yield "Conv", f"down.{level}.downsample"
    yield from _middle(c)


def decoder_blocks(c: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    """The same; `up` is stored from the finest level to the coarsest and runs the other way."""
    yield from _middle(c)
    for level in reversed(range(len(c.multipliers))):
        yield from _level(c, f"up.{level}", level, c.blocks + 1)
        if level:
            yield "Conv", f"up.{level}.upsample"


def _level(c: AutoencoderConfig, name: str, level: int, blocks: int) -> Iterator[tuple[str, str]]:
    for i in range(blocks):
        yield "ResBlock", f"{name}.block.{i}"
        if 2**level in c.attention:
            yield "AttentionBlock", f"{name}.attn.{i}"


def _middle(c: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    yield "ResBlock", "mid.block_1"
    if c.middle_attention:
        yield "AttentionBlock", "mid.attn_1"
    yield "ResBlock", "mid.block_2"
