"""The networks of bench.py: each once ours and once in PyTorch, with equal weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import torch_autoencoder, torch_nn, torch_unet
from common import devices, schedule, train
from common.unet import UNet, UNetConfig
from ldm.autoencoder import Autoencoder, AutoencoderConfig

WIDTHS = (32, 64)
KL = 1e-6
TIMES = schedule.linear()

# At 32 px, three resolutions; at latents of 16 x 16 x 4, two; at 32 px, factor 4.
GLIDE = UNetConfig(width=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), groups=8,
                   head_dim=32, context="joint")  # fmt: skip
LDM = UNetConfig(out_channels=4, width=32, multipliers=(1, 2), blocks=1, attention=(1, 2), heads=2,
                 groups=8, context="cross", scale_shift=False, updown="conv")  # fmt: skip
STAGE = AutoencoderConfig(size=32, width=32, multipliers=(1, 2, 2), blocks=1, groups=8)
TEXT = (24, 128)  # tokens, width


@dataclass
class Case:
    """One network on both sides."""

    apply: Callable  # (params, *inputs) -> output
    loss: Callable  # (params, batch, keys) -> loss
    params: dict
    nets: dict[str, nn.Module]  # of PyTorch; "torch" has the same weights as params
    torch_loss: Callable  # (net, batch) -> loss
    inputs: Callable  # (batch size) -> arrays, the first the picture
    parameters: int = 0

    def __post_init__(self):
        """The same number of parameters everywhere, and the same output where weights are."""
        self.parameters = sum(p.size for p in jax.tree.leaves(self.params))
        for name, net in self.nets.items():
            count = sum(p.numel() for p in net.parameters())
            assert count == self.parameters, (name, count, self.parameters)
        inputs = self.inputs(2)
        ours = np.asarray(devices.jit(self.apply)(self.params, *inputs))
        with torch.inference_mode():
            theirs = first(self.nets["torch"](*tensors(inputs)))
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-3 * np.abs(ours).max())


def first(output) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def tensors(arrays, memory_format=torch.contiguous_format) -> list[torch.Tensor]:
    """Arrays, pictures as (B, C, H, W)."""
    turn = lambda a: a.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)  # noqa: E731
    return [turn(t) if t.ndim == 4 else t for t in map(torch.from_numpy, arrays)]


def random_params(init: Callable, *inputs) -> dict:
    """Weights from numpy, none of them zero: layers that start at zero would hide a difference."""
    rng = np.random.default_rng(0)

    def leaf(path, p):
        fan_in = np.prod(p.shape[:-1]) if path[-1].key == "kernel" else 100
        noise = rng.normal(size=p.shape) / np.sqrt(fan_in)
        return np.float32(noise + (path[-1].key == "scale"))

    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _unet(c: UNetConfig, size: int, channels: int, vector: bool) -> Case:
    def inputs(B):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(B, size, size, channels))
        t = rng.integers(1, 1001, B).astype(np.int32)
        more = [rng.normal(size=(B, *TEXT))] + [rng.normal(size=(B, 4 * c.width))] * vector
        return [np.float32(x), t, *map(np.float32, more)]

    def apply(params, x, t, context, vector=None):
        return UNet(c).apply({"params": params}, x, t, context=context, vector=vector)

    def loss(params, batch, keys):
        x0, _, *cond = batch
        x, t, eps = train.noise_batch(TIMES, x0, keys)
        return jnp.square(apply(params, x, t, *cond) - eps).mean()

    signal, noise = (torch.from_numpy(np.array(a)) for a in (TIMES.signal, TIMES.noise))

    def torch_loss(net, batch):
        x0, _, *cond = batch
        t, eps = torch.randint(1, 1001, x0.shape[:1]), torch.randn_like(x0)
        x = signal[t, None, None, None] * x0 + noise[t, None, None, None] * eps
        return F.mse_loss(net(x, t, *cond), eps)

    x, t, *cond = inputs(2)
    named = dict(zip(("context", "vector"), cond, strict=False))
    params = random_params(lambda key: UNet(c).init(key, x, t, **named))
    net = torch_nn.copy_params(params, torch_unet.UNet(c, channels, TEXT[1]))
    return Case(apply, loss, params, {"torch": net}, torch_loss, inputs)


def glide(width: int) -> Case:
    return _unet(replace(GLIDE, width=width), 32, 3, vector=True)


def ldm(width: int) -> Case:
    c = replace(LDM, width=width)
    case = _unet(c, 16, 4, vector=False)
    try:
        from diffusers import UNet2DConditionModel
    except ImportError:
        return case
    net = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=c.blocks,
        block_out_channels=[int(m * width) for m in c.multipliers], norm_num_groups=c.groups,
        down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=TEXT[1], attention_head_dim=c.heads, use_linear_projection=True,
    )  # fmt: skip
    return replace(case, nets={**case.nets, "diffusers": Diffusers(net)})


class Diffusers(nn.Module):
    """diffusers' U-Net, called as ours."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, context):
        return self.unet(x, t, context, return_dict=False)[0]


def autoencoder(width: int) -> Case:
    c = replace(STAGE, width=width)
    model = Autoencoder(c)

    def inputs(B):
        return [np.float32(np.random.default_rng(1).normal(size=(B, c.size, c.size, 3)))]

    def loss(params, batch, keys):
        out = model.apply({"params": params}, batch[0], keys)
        kl = 0.5 * (jnp.square(out.z) + jnp.exp(out.logvar) - 1 - out.logvar).sum((1, 2, 3))
        return jnp.abs(out.x - batch[0]).mean() + KL * kl.mean()

    def torch_loss(net, batch):
        (x,) = batch
        eps = torch.randn(len(x), c.channels, c.size // c.factor, c.size // c.factor)
        out, mean, logvar = net(x, eps)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3))
        return F.l1_loss(out, x) + KL * kl.mean()

    params = random_params(model.init, inputs(2)[0])
    net = torch_nn.copy_params(params, torch_autoencoder.Autoencoder(c))
    apply = lambda params, x: model.apply({"params": params}, x).x  # noqa: E731
    return Case(apply, loss, params, {"torch": net}, torch_loss, inputs)


# name: its network of a width, and what is measured: {work: the batch at each of WIDTHS}.
CASES: dict[str, tuple[Callable, dict]] = {
    "glide": (glide, {"train step": (64, 16), "forward": (64, 16), "sampler": (2, 1)}),
    "ldm": (ldm, {"train step": (64, 16), "forward": (64, 16), "sampler": (2, 1)}),
    "autoencoder": (autoencoder, {"train step": (16, 8), "forward": (16, 8)}),
}
