"""The published DDPM networks that SDEdit's official repository runs: bedroom, church, celeba_hq.

Their names count levels (down.4.block.0), blocks and attention apart; `up` is stored from the
finest level to the coarsest, though it runs the other way. They learned to count t from 0: use
them as official(denoiser(config, params)).
"""

import functools
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from common import pretrained
from common.pretrained import Source
from common.unet import UNetConfig
from sdedit.model import PAPER, SdeditConfig, init_params

LAYERS = {
    "ResBlock": {
        "norm1": "norm1",
        "Conv_0": "conv1",
        "Dense_0": "temb_proj",
        "norm2": "norm2",
        "Conv_1": "conv2",
        "Conv_2": "nin_shortcut",  # only where the number of channels changes
    },
    "AttentionBlock": {"GroupNorm_0": "norm", "qkv": "q k v", "out": "proj_out"},
    "Conv": {"": "conv"},
}


def load(path: str | Path, config: SdeditConfig = PAPER) -> tuple[SdeditConfig, dict]:
    """(config, params). CheckpointError, in one line, for anything but exactly such a network."""
    tensors = pretrained.read(path, "a DDPM")
    sources = pretrained.prefixed("unet", ddpm_sources(config.unet))
    init = functools.partial(init_params, config)
    return config, pretrained.fill(path, tensors, sources, init)


def ddpm_sources(c: UNetConfig) -> dict[str, Source]:
    """q, k and v are three convolutions there, one head, and one matrix here."""
    sources = {
        "time1": ["temb.dense.0"],
        "time2": ["temb.dense.1"],
        "conv_in": ["conv_in"],
        "norm_out": ["norm_out"],
        "conv_out": ["conv_out"],
    }
    number = {kind: count() for kind in LAYERS}
    for kind, theirs in ddpm_blocks(c):
        ours = f"{kind}_{next(number[kind])}"
        for layer, names in LAYERS[kind].items():
            sources[f"{ours}/{layer}".rstrip("/")] = [f"{theirs}.{name}" for name in names.split()]
    return {ours: Source(tuple(names)) for ours, names in sources.items()}


def ddpm_blocks(c: UNetConfig) -> Iterator[tuple[str, str]]:
    """(kind of our block, official block), in the order in which they are called."""
    levels = range(len(c.multipliers))
    for level in levels:
        for i in range(c.blocks):
            yield "ResBlock", f"down.{level}.block.{i}"
            if 2**level in c.attention:
                yield "AttentionBlock", f"down.{level}.attn.{i}"
        if level < levels[-1]:
            yield "Conv", f"down.{level}.downsample"
    yield "ResBlock", "mid.block_1"
    yield "AttentionBlock", "mid.attn_1"
    yield "ResBlock", "mid.block_2"
    for level in reversed(levels):
        for i in range(c.blocks + 1):
            yield "ResBlock", f"up.{level}.block.{i}"
            if 2**level in c.attention:
                yield "AttentionBlock", f"up.{level}.attn.{i}"
        if level:
            yield "Conv", f"up.{level}.upsample"
