"""The published weights of CLIP, from files that the user has.

OpenAI          ViT-B-32.pt, ViT-L-14.pt, ...: TorchScript archives, half in half precision
Hugging Face    model.safetensors: other names, and q, k and v apart; so is Stable Diffusion's text
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from common import clip, pretrained
from common.checkpoint import CheckpointError
from common.clip import ClipConfig
from common.pretrained import Source, source
from common.text import TextConfig

CLIP = {"ln1": "ln_1", "qkv": "attn.in_proj_", "out": "attn.out_proj", "ln2": "ln_2",
        "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"}  # fmt: skip
CLIP_HF = {"ln1": "layer_norm1", "qkv": "self_attn.", "out": "self_attn.out_proj",
           "ln2": "layer_norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}  # fmt: skip
_TEXT = TextConfig(vocabulary=49_408, length=77, width=768, layers=12, heads=12)
CLIPS = {  # by the names of OpenAI's files
    "ViT-B-32": ClipConfig(),
    "ViT-B-16": ClipConfig(patch=16),
    "ViT-L-14": ClipConfig(patch=14, width=1024, layers=24, heads=16, dim=768, text=_TEXT),
}
CLIPS["ViT-L-14-336px"] = replace(CLIPS["ViT-L-14"], size=336)
# Numbers and masks that OpenAI's archives and Hugging Face's buffers carry beside the weights.
CLIP_ASIDE = r"input_resolution|context_length|vocab_size|.*\.attn_mask|.*\.position_ids"


def patches(kernel: np.ndarray) -> np.ndarray:
    """A strided convolution (D, 3, p, p) as rows of a product with flat patches: (D, p p 3)."""
    return kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)


def _clip_transformer(layers: int, theirs: str, hugging_face: bool) -> dict[str, Source]:
    sources = {}
    for i in range(layers):
        for ours, name in (CLIP_HF if hugging_face else CLIP).items():
            name = f"{theirs}.{i}.{name}"
            if ours != "qkv":
                sources[f"Transformer_0/{ours}_{i}"] = source(name)
            elif hugging_face:
                sources[f"Transformer_0/qkv_{i}"] = Source(tuple(f"{name}{p}_proj" for p in "qkv"))
            else:  # rows of all queries, of all keys, of all values
                sources[f"Transformer_0/qkv_{i}/kernel"] = source(f"{name}weight")
                sources[f"Transformer_0/qkv_{i}/bias"] = source(f"{name}bias")
    return sources


def clip_text(c: ClipConfig, hugging_face: bool = False) -> dict[str, Source]:
    """Sources of a TextTower."""
    if hugging_face:
        return _clip_transformer(c.text.layers, "text_model.encoder.layers", True) | {
            "Embed_0": source("text_model.embeddings.token_embedding"),
            "position": source("text_model.embeddings.position_embedding.weight"),
            "Transformer_0/final_norm": source("text_model.final_layer_norm"),
            "out": source("text_projection"),
        }
    return _clip_transformer(c.text.layers, "transformer.resblocks", False) | {
        "Embed_0": source("token_embedding"),
        "position": source("positional_embedding"),
        "Transformer_0/final_norm": source("ln_final"),
        "out/kernel": source("text_projection", np.transpose),  # (in, out) already
    }


def clip_image(c: ClipConfig, hugging_face: bool = False) -> dict[str, Source]:
    """Sources of an ImageTower."""
    if hugging_face:
        return _clip_transformer(c.layers, "vision_model.encoder.layers", True) | {
            "patch": source("vision_model.embeddings.patch_embedding", patches),
            "class": source("vision_model.embeddings.class_embedding"),
            "position": source("vision_model.embeddings.position_embedding.weight"),
            "ln_pre": source("vision_model.pre_layrnorm"),  # the name has this slip
            "Transformer_0/final_norm": source("vision_model.post_layernorm"),
            "out": source("visual_projection"),
        }
    return _clip_transformer(c.layers, "visual.transformer.resblocks", False) | {
        "patch": source("visual.conv1", patches),
        "class": source("visual.class_embedding"),
        "position": source("visual.positional_embedding"),
        "ln_pre": source("visual.ln_pre"),
        "Transformer_0/final_norm": source("visual.ln_post"),
        "out/kernel": source("visual.proj", np.transpose),
    }


def load(
    path: str | Path, configs: Iterable[ClipConfig] = CLIPS.values()
) -> tuple[ClipConfig, dict]:
    """(config, params) of OpenAI's CLIP: its TorchScript archive, or safetensors by either names.

    The image tower's shapes say which of `configs` it is. Texts end with 49,407, see bytepairs.
    """
    tensors = pretrained.read(path, "CLIP", CLIP_ASIDE)
    hugging_face = "visual.class_embedding" not in tensors
    image = clip_image(ClipConfig(layers=0), hugging_face)
    names = [image["patch"].names[0] + ".weight", image["position"].names[0]]
    shapes = [tensors[name].shape if name in tensors else () for name in names]

    def fits(c: ClipConfig) -> bool:
        places = (c.size // c.patch) ** 2 + 1
        return shapes == [(c.width, 3, c.patch, c.patch), (places, c.width)]

    if (config := next(filter(fits, configs), None)) is None:
        raise CheckpointError(
            f"{path} is no CLIP of a known size: {' and '.join(map(str, shapes))}"
        )
    sources = pretrained.prefixed("image", clip_image(config, hugging_face))
    sources |= pretrained.prefixed("text", clip_text(config, hugging_face))
    sources["log_scale"] = source("logit_scale")
    return config, pretrained.fill(path, tensors, sources, partial(clip.init_params, config))
