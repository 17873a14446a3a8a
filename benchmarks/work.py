"""What bench.py times: one train step, one forward pass, one guided sampler; ours and PyTorch's."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from benchmarks.cases import TIMES, Case, first, tensors
from common import devices, sampler, train
from common.guidance import classifier_free
from common.process import Prediction

SCALE = 3.0  # guidance


def contestants(case: Case, kind: str, batch: int, steps: int, compiled: bool) -> dict:
    """{name: run()}: ours, and each PyTorch network eager, channels_last and compiled."""
    inputs = case.inputs(batch)
    ours, theirs = {"train step": (_train, _torch_train), "forward": (_forward, _torch_forward),
                    "sampler": (_sampler, _torch_sampler)}[kind]  # fmt: skip
    runs = {"ours": ours(case, inputs, steps)}
    for name, net in case.nets.items():
        last = torch.channels_last
        nhwc = copy.deepcopy(net).to(memory_format=last)
        runs[name] = theirs(case, copy.deepcopy(net), tensors(inputs), steps)
        runs[f"{name} channels_last"] = theirs(case, nhwc, tensors(inputs, last), steps)
        if compiled:
            net = torch.compile(copy.deepcopy(net).to(memory_format=last))
            runs[f"{name} compile"] = theirs(case, net, tensors(inputs, last), steps)
    return runs


def _train(case: Case, inputs: list, steps: int) -> Callable[[], Any]:
    tx, batch = optax.adam(1e-4), jax.device_put(inputs)
    step = devices.jit_step(train.make_train_step(case.loss, tx))
    state = jax.device_put(train.TrainState(jnp.zeros((), jnp.int32), case.params,
                           jax.tree.map(np.copy, case.params), tx.init(case.params)))  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(inputs[0]))

    def run():
        nonlocal state
        state, metrics = step(state, batch, keys)
        jax.block_until_ready((state, metrics))

    return run


def _torch_train(case: Case, net: nn.Module, batch: list, steps: int) -> Callable[[], Any]:
    params = list(net.parameters())
    optimiser, ema = (
        torch.optim.Adam(params, 1e-4, fused=True),
        [p.detach().clone() for p in params],
    )

    def run():
        optimiser.zero_grad()
        case.torch_loss(net, batch).backward()
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1e-4)

    return run


def _forward(case: Case, inputs: list, steps: int) -> Callable[[], Any]:
    forward, given = devices.jit(case.apply), jax.device_put((case.params, *inputs))
    return lambda: forward(*given).block_until_ready()


def _torch_forward(case: Case, net: nn.Module, inputs: list, steps: int) -> Callable[[], Any]:
    @torch.inference_mode()
    def run():
        return first(net(*inputs))

    return run


def _sampler(case: Case, inputs: list, steps: int) -> Callable[[], Any]:
    """DDIM under classifier-free guidance, x0 clipped; the whole of it one program."""
    ts, key = sampler.timesteps(TIMES.T, steps), jax.random.key(0)

    @devices.jit
    def draw(params, x, cond):
        denoise = lambda x, t, cond: Prediction(case.apply(params, x, t, *cond))  # noqa: E731
        guided = classifier_free(denoise, jax.tree.map(jnp.zeros_like, cond), SCALE)
        return sampler.sample(guided, TIMES, x, ts, cond, key, x0_fn=sampler.clip_x0)

    params, (x, _, *cond) = jax.device_put((case.params, inputs))
    return lambda: draw(params, x, cond).block_until_ready()


def _torch_sampler(case: Case, net: nn.Module, inputs: list, steps: int) -> Callable[[], Any]:
    start, _, *cond = inputs
    both = [torch.cat([c, torch.zeros_like(c)]) for c in cond]
    ts = sampler.timesteps(TIMES.T, steps).tolist()
    signal, noise = np.array(TIMES.signal).tolist(), np.array(TIMES.noise).tolist()

    @torch.inference_mode()
    def run():
        x = start
        for t, s in zip(ts[:-1], ts[1:], strict=True):
            eps, null = net(torch.cat([x, x]), torch.full((2 * len(x),), t), *both).chunk(2)
            eps = null + SCALE * (eps - null)
            x0 = ((x - noise[t] * eps) / signal[t]).clamp(-1, 1)
            eps = (x - signal[t] * x0) / noise[t]
            x = signal[s] * x0 + noise[s] * eps
        return x

    return run
