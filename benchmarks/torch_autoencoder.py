"""ldm/autoencoder.py (KL) once more in PyTorch, for the benchmark; see torch_nn.py."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_nn import AttentionBlock, conv3
from ldm.autoencoder import EPS, AutoencoderConfig


class ResBlock(nn.Module):
    def __init__(self, c: AutoencoderConfig, inputs: int, features: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(c.groups, inputs, EPS), conv3(inputs, features)
        self.norm2, self.conv2 = nn.GroupNorm(c.groups, features, EPS), conv3(features, features)
        self.skip = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


def _middle(c: AutoencoderConfig, C: int) -> list[nn.Module]:
    return [ResBlock(c, C, C), AttentionBlock(c.groups, EPS, C, 1), ResBlock(c, C, C)]


class _Coder(nn.Module):
    """conv_in, blocks, norm, SiLU, and the encoder's conv_out."""

    def forward(self, x):
        h = self.conv_in(x)
        for block in self.blocks:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Encoder(_Coder):
    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        C = c.width
        self.conv_in, self.blocks = conv3(3, C), nn.ModuleList()
        for level, multiplier in enumerate(c.multipliers):
            for _ in range(c.blocks):
                self.blocks.append(ResBlock(c, C, C := int(multiplier * c.width)))
            if level + 1 < len(c.multipliers):
                down = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(C, C, 3, 2)]
                self.blocks.append(nn.Sequential(*down))
        self.blocks.extend(_middle(c, C))
        self.norm_out, self.conv_out = nn.GroupNorm(c.groups, C, EPS), conv3(C, c.encoded)


class Decoder(_Coder):
    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        C = int(c.multipliers[-1] * c.width)
        self.conv_in, self.blocks = conv3(c.channels, C), nn.ModuleList(_middle(c, C))
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            for _ in range(c.blocks + 1):
                self.blocks.append(ResBlock(c, C, C := int(multiplier * c.width)))
            if level:
                self.blocks.append(nn.Sequential(nn.Upsample(scale_factor=2.0), conv3(C, C)))
        self.norm_out, self.conv_out = nn.GroupNorm(c.groups, C, EPS), nn.Identity()


class Autoencoder(nn.Module):
    """x (B, 3, H, W), eps like z or None -> x', mean, logvar."""

    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        assert c.kind == "kl" and c.patch == 1 and not c.attention and c.middle_attention
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = nn.Conv2d(c.encoded, c.encoded, 1)
        self.post_quant_conv = nn.Conv2d(c.channels, c.channels, 1)
        self.conv_out = conv3(c.width, 3)

    def forward(self, x, eps=None):
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        z = mean if eps is None else mean + torch.exp(0.5 * logvar) * eps
        return self.conv_out(self.decoder(self.post_quant_conv(z))), mean, logvar
