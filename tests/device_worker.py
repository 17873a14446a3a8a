"""Run by test_devices.py in a process of its own: some steps on simulated devices, as JSON.

    device_worker.py agree                       8 devices: jit, pmap and sharded on one
    device_worker.py samples                     pictures for a seed, on all devices there are
    device_worker.py host COORDINATOR HOSTS HOST one of several processes, sharded
"""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import made

from common import devices, sampler, schedule, train
from common.process import velocity
from glide.model import TINY, Glide, denoiser, encode_text, init_params

BATCH, STEPS = 16, 3
# Quick to compile.
MODEL = replace(TINY, size=16)


def loss_fn(params, batch, keys):
    """A real model and its square error: every random number comes from the example's own key.

    Without the bound, whose logarithms of tiny probabilities amplify rounding tenfold.
    """
    s = schedule.cosine(MODEL.T)
    x0 = batch["image"].astype(jnp.float32) / 127.5 - 1
    x, t, eps = train.noise_batch(s, x0, keys)
    output = Glide(MODEL).apply({"params": params}, x, t, {"tokens": batch["tokens"]})
    return jnp.square(output[..., :3] - velocity(s, x0, t, eps)).mean()


def run(wrap, axis_name=None):
    """A few SGD steps (Adam would hide a wrong gradient scale) -> losses, parameters."""
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8),
        "tokens": rng.integers(0, 9, (64, MODEL.text.length), dtype=np.int32),
    }
    tx = optax.sgd(0.01)
    params = made(lambda key: init_params(MODEL, key))  # none is zero: all have a gradient
    state = train.init_state(lambda key: jax.tree.map(jnp.asarray, params), tx, jax.random.key(0))

    def flat():
        return np.concatenate([np.asarray(p).ravel() for p in jax.tree.leaves(state.params)])

    start = flat()
    step = wrap(train.make_train_step(loss_fn, tx, axis_name=axis_name), data)
    losses = []
    for _, state, metrics in train.fit(
        step, state, jax.random.key(1), examples=64, batch_size=BATCH, steps=STEPS
    ):
        losses.append(float(metrics["loss"]))
    return {"losses": losses, "params": flat(), "moved": float(np.abs(flat() - start).max())}


def report(**values):
    print(json.dumps(values))


if __name__ == "__main__":
    command = sys.argv[1]
    if command == "agree":
        one = run(devices.jit_step)
        for wrap, axis in ((devices.pmap_step, devices.AXIS), (devices.sharded_step, None)):
            other = run(wrap, axis)
            report(
                name=wrap.__name__,
                devices=jax.device_count(),
                loss=float(np.abs(np.divide(other["losses"], one["losses"]) - 1).max()),
                params=float(np.abs(one["params"] - other["params"]).max()),
                moved=one["moved"],
            )
    elif command == "samples":
        params = made(lambda key: init_params(MODEL, key))
        s, ts = schedule.cosine(MODEL.T), sampler.timesteps(MODEL.T, 4)
        tokens = devices.shard(np.tile(np.arange(MODEL.text.length, dtype=np.int32) % 5, (8, 1)))

        @jax.jit
        def draw(params, tokens, key):
            x = sampler.noise_like(key, jnp.zeros((8, 16, 16, 3)))
            cond = encode_text(MODEL, params, tokens)
            denoise = denoiser(MODEL, params)
            return sampler.sample(denoise, s, x, ts, cond, key, eta=1.0, x0_fn=sampler.clip_x0)

        x = draw(devices.replicate(params), tokens, jax.random.key(3))
        report(devices=jax.device_count(), x=np.asarray(x, np.float64).ravel()[::97].tolist())
    elif command == "host":
        coordinator, hosts, host = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
        if hosts > 1:
            devices.start(coordinator, hosts, host)
        result = run(devices.sharded_step)
        report(
            devices=jax.device_count(),
            losses=result["losses"],
            params=result["params"][::101].astype(float).tolist(),
        )
