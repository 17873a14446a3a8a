"""The blocks of common/nn.py once more in PyTorch, as its users write them, for the benchmark.

Modules are named or ordered as the flax ones, so that `copy_params` needs no table.
"""

import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.unet import UNetConfig

FLAX_NAMES = {"Linear": "Dense", "Conv2d": "Conv"}


def copy_params(params: dict, module: nn.Module) -> nn.Module:
    """Put flax parameters (nested dicts) into the module of the same structure; -> the module.

    A submodule is found by its name, or by its class and its number among the unnamed.
    """
    counts, used = Counter(), set()
    for name, child in _children(module):
        if name not in params:
            kind = FLAX_NAMES.get(type(child).__name__, type(child).__name__)
            name = f"{kind}_{counts[kind]}"
            counts[kind] += 1
        copy_params(params[name], child)
        used.add(name)
    for name, value in params.items():
        if name in used:
            continue
        value = torch.from_numpy(np.array(value))
        if name == "kernel":  # (kh, kw, I, O) -> (O, I, kh, kw), (I, O) -> (O, I)
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        weight = module.get_parameter("bias" if name == "bias" else "weight")
        assert weight.shape == value.shape, (name, weight.shape, value.shape)
        weight.data.copy_(value)
    return module


def _children(module: nn.Module):
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from _children(child)
        elif any(True for _ in child.parameters()):
            yield name, child


def conv3(inputs: int, features: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, features, 3, stride, 1)


def time_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    half = width // 2
    angle = t[:, None].float() * torch.exp(-math.log(1e4) * torch.arange(half) / half)
    return torch.cat([angle.cos(), angle.sin()], -1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def to_tokens(h: torch.Tensor) -> torch.Tensor:
    return h.flatten(2).transpose(1, 2)


def from_tokens(h: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return h.transpose(1, 2).reshape(like.shape)


class ResBlock(nn.Module):
    def __init__(self, c: UNetConfig, inputs: int, features: int, resample: str | None = None):
        super().__init__()
        self.scale_shift, self.resample = c.scale_shift, resample
        self.norm1 = nn.GroupNorm(c.groups, inputs, c.eps)
        self.conv1 = conv3(inputs, features)
        self.time = nn.Linear(4 * c.width, features * (2 if c.scale_shift else 1))
        self.norm2 = nn.GroupNorm(c.groups, features, c.eps)
        self.conv2 = conv3(features, features)
        self.skip = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def forward(self, x, emb):
        h = F.silu(self.norm1(x))
        if self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
        elif self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h, time = self.conv1(h), self.time(F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        return self.skip(x) + self.conv2(F.silu(h))


class AttentionBlock(nn.Module):
    """GLIDE's: the text's keys and values stand in front of the pixels'."""

    def __init__(self, groups: int, eps: float, C: int, heads: int, context: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.GroupNorm(groups, C, eps), nn.Linear(C, 3 * C)
        self.context_kv = nn.Linear(context, 2 * C) if context else None
        self.out = nn.Linear(C, C)

    def forward(self, x, context=None):
        q, k, v = self.qkv(to_tokens(self.norm(x))).chunk(3, -1)
        if self.context_kv is not None:
            context_k, context_v = self.context_kv(context).chunk(2, -1)
            k, v = torch.cat([context_k, k], 1), torch.cat([context_v, v], 1)
        return x + from_tokens(self.out(attend(q, k, v, self.heads)), x)


class CrossAttention(nn.Module):
    def __init__(self, C: int, heads: int, context: int):
        super().__init__()
        self.heads, self.q = heads, nn.Linear(C, C, bias=False)
        self.k, self.v = (nn.Linear(context, C, bias=False) for _ in range(2))
        self.out = nn.Linear(C, C)

    def forward(self, x, context):
        return self.out(attend(self.q(x), self.k(context), self.v(context), self.heads))


class SpatialTransformer(nn.Module):
    """LDM's: self-attention, cross-attention, GEGLU."""

    def __init__(self, c: UNetConfig, C: int, heads: int, context: int):
        super().__init__()
        self.norm, self.proj_in = nn.GroupNorm(c.groups, C, 1e-6), nn.Linear(C, C)
        self.ln = nn.ModuleList(nn.LayerNorm(C) for _ in range(3))
        self.self_attention = CrossAttention(C, heads, C)
        self.cross_attention = CrossAttention(C, heads, context)
        self.ff_in, self.ff_out = nn.Linear(C, 8 * C), nn.Linear(4 * C, C)
        self.proj_out = nn.Linear(C, C)

    def forward(self, x, context):
        h = self.proj_in(to_tokens(self.norm(x)))
        y = self.ln[0](h)
        h = h + self.self_attention(y, y)
        h = h + self.cross_attention(self.ln[1](h), context)
        value, gate = self.ff_in(self.ln[2](h)).chunk(2, -1)
        h = h + self.ff_out(value * F.gelu(gate))
        return x + from_tokens(self.proj_out(h), x)


def space_to_depth(x: torch.Tensor, p: int) -> torch.Tensor:
    """Channels of a patch in the order of common.nn (F.pixel_unshuffle has another)."""
    B, C, H, W = x.shape
    return x.reshape(B, C, H // p, p, W // p, p).permute(0, 3, 5, 1, 2, 4).reshape(
        B, p * p * C, H // p, W // p
    )  # fmt: skip


def depth_to_space(x: torch.Tensor, p: int) -> torch.Tensor:
    B, C, H, W = x.shape
    x = x.reshape(B, p, p, C // (p * p), H, W).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(B, C // (p * p), H * p, W * p)
