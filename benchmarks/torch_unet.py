"""common/unet.py once more in PyTorch: what the benchmark runs against."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_nn import (
    AttentionBlock,
    ResBlock,
    SpatialTransformer,
    conv3,
    depth_to_space,
    space_to_depth,
    time_embedding,
)
from common.unet import UNetConfig


class UNet(nn.Module):
    """x (B, C, H, W), t (B,), context (B, L, D), vector (B, 4 width) -> (B, out_channels, H, W)."""

    def __init__(self, c: UNetConfig, inputs: int, context: int | None):
        super().__init__()
        self.c = c
        self.time1 = nn.Linear(c.width, 4 * c.width)
        self.time2 = nn.Linear(4 * c.width, 4 * c.width)
        C = int(c.multipliers[0] * c.width)
        self.conv_in = conv3(inputs * c.patch**2, C)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips = [C]

        def attention(C):
            heads = c.heads or C // c.head_dim
            if c.context == "cross":
                return SpatialTransformer(c, C, heads, context)
            return AttentionBlock(c.groups, c.eps, C, heads, context)

        for level, multiplier in enumerate(c.multipliers):
            for _ in range(c.blocks):
                stage = [ResBlock(c, C, C := int(multiplier * c.width))]
                stage += [attention(C)] if 2**level in c.attention else []
                self.down.append(nn.ModuleList(stage))
                skips.append(C)
            if level + 1 < len(c.multipliers):
                adm = c.updown == "resblock"
                self.down.append(
                    nn.ModuleList([ResBlock(c, C, C, "down") if adm else conv3(C, C, 2)])
                )
                skips.append(C)
        self.middle.extend([ResBlock(c, C, C), attention(C), ResBlock(c, C, C)])
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            for i in range(c.blocks + 1):
                stage = [ResBlock(c, C + skips.pop(), C := int(multiplier * c.width))]
                stage += [attention(C)] if 2**level in c.attention else []
                if level and i == c.blocks:
                    up = nn.Sequential(nn.Upsample(scale_factor=2.0), conv3(C, C))
                    stage.append(ResBlock(c, C, C, "up") if c.updown == "resblock" else up)
                self.up.append(nn.ModuleList(stage))
        self.norm_out = nn.GroupNorm(c.groups, C, c.eps)
        if c.patch > 1:
            self.patch_out = conv3(C, c.patch_features * c.patch**2)
            C = c.patch_features + inputs
        self.conv_out = conv3(C, c.out_channels)

    def _run(self, stage, h, emb, context):
        for block in stage:
            if isinstance(block, ResBlock):
                h = block(h, emb)
            elif isinstance(block, AttentionBlock | SpatialTransformer):
                h = block(h, context)
            else:
                h = block(h)
        return h

    def forward(self, x, t, context=None, vector=None):
        c = self.c
        emb = self.time2(F.silu(self.time1(time_embedding(t, c.width))))
        emb = emb if vector is None else emb + vector
        h = self.conv_in(space_to_depth(x, c.patch) if c.patch > 1 else x)
        skips = [h]
        for stage in self.down:
            h = self._run(stage, h, emb, context)
            skips.append(h)
        h = self._run(self.middle, h, emb, context)
        for stage in self.up:
            h = self._run(stage, torch.cat([h, skips.pop()], 1), emb, context)
        h = F.silu(self.norm_out(h))
        if c.patch > 1:
            h = torch.cat([x, F.silu(depth_to_space(self.patch_out(h), c.patch))], 1)
        return self.conv_out(h)
