# %% [markdown]
# # 13 · Many devices
#
# **25 minutes** · any computer, half a minute of its time · you need: lessons 00 and 02.
#
# After this you can spread a training step over all devices of a machine, by `pmap` and by sharded
# `jit`, prove that nothing but the speed has changed, and find a mistake that Adam hides. With a
# batch of $B$ examples on $D$ devices,
#
# $$\nabla L = \frac1B \sum_{i=1}^{B} \nabla L_i = \frac1D \sum_{d=1}^{D} \nabla L^{(d)}$$

# %%
import os
import sys

# Before jax is imported: it then shows this computer as eight devices. On a real TPU or GPU machine
# the line does nothing, and D below is what you have. (Restart the kernel if jax was imported.)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common import devices, plot, schedule, train

D = jax.local_device_count()
print("jax", jax.__version__, "on", D, jax.devices()[0].platform, "devices")

# %% [markdown]
# ## The idea
# Every device holds all of the parameters and a D-th of the batch, and computes the gradient of its
# own mean loss. A mean over equal parts' means is the mean over all: averaged over the devices, it
# is the gradient of the whole batch. All then take the same step, and stay alike.
#
# `pmap` runs one program per device, where *you* say what is exchanged: `jax.lax.pmean`. A sharded
# `jit` compiles one program for the whole batch, cut into pieces; the compiler finds out what must
# be exchanged. Simulated devices share one processor: nothing gets faster here, but the numbers are
# what eight real ones give, to rounding. Our model is small on purpose: two layers, in the plane.

# %%
S, B = schedule.linear(1000), 8 * D
points = np.random.default_rng(0).normal(size=(512, 2)).astype(np.float32) * [1.0, 0.3]

def init(key):
    a, b = jax.random.split(key)
    return {"in": jax.random.normal(a, (3, 32)), "out": 0.1 * jax.random.normal(b, (32, 2))}

def network(params, x, t):
    h = jnp.concatenate([x, t[:, None] / S.T], axis=1)
    return jnp.tanh(h @ params["in"]) @ params["out"]

def loss_fn(params, batch, keys):
    x, t, eps = train.noise_batch(S, batch, keys)
    return jnp.square(network(params, x, t) - eps).mean()

params, batch = init(jax.random.key(0)), jnp.float32(points[:B])
keys = train.example_keys(jax.random.key(1), 0, B)  # one for each example
whole_loss, whole = jax.device_get(jax.jit(jax.value_and_grad(loss_fn))(params, batch, keys))
cut = lambda a: a.reshape(D, B // D, *a.shape[1:])  # noqa: E731

def size(tree):
    """Length of all of a tree of numpy arrays, as one vector."""
    return float(np.sqrt(sum(np.square(a).sum() for a in jax.tree.leaves(tree))))

def off(a, b):
    """Distance of two trees of numpy arrays, as a share of the second one's size."""
    return size(jax.tree.map(np.subtract, a, b)) / size(b)

on_device = lambda tree, d: jax.tree.map(lambda a: a[d], tree)  # noqa: E731

# %% [markdown]
# ## The obvious thing, and why it falls short
# Compute the gradient everywhere. And then?

# %%
alone = jax.pmap(jax.grad(loss_fn), in_axes=(None, 0, 0))(params, cut(batch), cut(keys))
alone = jax.device_get(alone)  # every leaf has a new first axis: the device
each = np.array([off(on_device(alone, d), whole) for d in range(D)])
mean = jax.tree.map(lambda a: a.mean(0), alone)
print(f"off the whole batch's gradient: {each.round(2)}, but their mean {off(mean, whole):.0e}")
assert off(mean, whole) < 1e-5 and (D == 1 or min(each) > 0.05)

# %% [markdown]
# D different gradients: one step of each, and the devices hold D different models. Their mean is
# the gradient of the whole batch, as the formula says.
#
# ### Exercise 1 · the same inside (6 minutes)
# Inside a pmapped function `jax.lax.pmean(tree, "data")` is the mean over the devices of the axis
# "data"; every device gets it.

# %% tags=["exercise"]
def device_grads(params, batch, keys):
    """One device's (B / D, 2) and (B / D,) keys -> (loss, grads) of the *whole* batch."""
    # BEGIN SOLUTION
    loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
    return jax.lax.pmean((loss, grads), "data")
    # END SOLUTION

# %% tags=["check"]
got = jax.pmap(device_grads, "data", in_axes=(None, 0, 0))(params, cut(batch), cut(keys))
assert isinstance(got, tuple) and len(got) == 2, "return (loss, grads)"
losses, grads = jax.device_get(got)
assert np.allclose(losses, losses[0]), "the loss must be alike on all devices: pmean it, too"
assert np.allclose(losses, whole_loss, rtol=1e-4), "loss: the mean over devices, not the sum"
first, last = on_device(grads, 0), on_device(grads, D - 1)
assert off(first, last) < 1e-5, "devices got different gradients: average them over devices"
ratio = size(first) / size(whole)
assert abs(ratio - 1) < 1e-3, f"{ratio:.3g} times as large: the mean over devices, not the sum"
assert off(first, whole) < 1e-4, "not the gradient of the whole batch"

# %% [markdown]
# ### Exercise 2 · cut the batch (4 minutes)
# What if the devices do not divide the batch? Dropping the rest would change the numbers, silently.

# %% tags=["exercise"]
def split(batch, devices):
    """(B, ...) -> (devices, B / devices, ...), in order; ValueError if that is not possible."""
    # BEGIN SOLUTION
    B = len(batch)
    if B % devices:
        raise ValueError(f"a batch of {B} does not divide over {devices} devices")
    return batch.reshape(devices, B // devices, *batch.shape[1:])
    # END SOLUTION

# %% tags=["check"]
got = split(np.arange(24).reshape(12, 2), 4)
assert got is not None and got.shape == (4, 3, 2), "(devices, B / devices, ...)"
assert (got.reshape(12, 2) == np.arange(24).reshape(12, 2)).all(), "neighbours stay together"
try:
    split(np.arange(10), 4)
except ValueError as error:
    assert "10" in str(error) and "4" in str(error), "say in the message which sizes do not fit"
else:
    raise AssertionError("10 examples on 4 devices must raise ValueError, not lose two")

# %% [markdown]
# The library's `devices.pmap_step` does both, and `devices.sharded_step` the other way. Each takes
# the same pure step. Three steps of SGD, on the same keys:

# %%
def run(wrap, axis_name=None, tx=None, loss=loss_fn):
    """-> the losses and the parameters after three steps."""
    tx = tx or optax.sgd(0.3)
    step = wrap(train.make_train_step(loss, tx, axis_name=axis_name))
    state = train.init_state(init, tx, jax.random.key(0))
    losses = []
    for i in range(3):
        step_keys = train.example_keys(jax.random.key(1), i, B)
        state, metrics = step(state, jnp.float32(points[i * B : (i + 1) * B]), step_keys)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)

losses, params_one = run(devices.jit_step)
for name, (other, params_other) in {
    "pmap": run(devices.pmap_step, devices.AXIS),
    "sharded jit": run(devices.sharded_step),
}.items():
    print(f"{name:12} losses {np.round(other, 6)}, off one: {off(params_other, params_one):.0e}")
    assert off(params_other, params_one) < 1e-5 and np.allclose(other, losses, rtol=1e-5)

# %%
pieces = devices.shard(batch)  # what sharded_step does with its batch: eight pieces of one array
print(pieces.sharding.spec, [shard.data.shape for shard in pieces.addressable_shards])
assert pieces.sharding == NamedSharding(devices.mesh(), PartitionSpec(devices.AXIS))
assert {s.data.shape for s in pieces.addressable_shards} == {(B // D, 2)}
jax.debug.visualize_array_sharding(pieces)

# %% [markdown]
# ## Predict, then run
# The usual way to draw noise: each device gets a key, made from the step's. With 1, 2, 4 and 8
# devices, the same seed and the same data, the losses of the first step are **A** equal, to
# rounding · **B** different · **C** equal on average, since the noise is normal anyway.

# %%
i, seed = np.arange(B), jax.random.key(1)
fold = jax.random.fold_in
draw_keys = jax.jit(jax.vmap(lambda d, i: fold(fold(seed, d), i)))
mean_loss = jax.jit(loss_fn)  # compiled anew for each number of devices
losses = {"a key per device": [], "a key per example": []}
counts = [d for d in (1, 2, 4, 8) if d <= D]
for d in counts:
    spread = NamedSharding(Mesh(np.array(jax.devices()[:d]), "data"), PartitionSpec("data"))
    places = [(i // (B // d), i % (B // d)), (0 * i, i)]  # device, place on it; or in the batch
    for of_method, which in zip(losses.values(), places, strict=True):
        placed = jax.device_put((batch, draw_keys(*which)), spread)
        of_method.append(float(mean_loss(params, *placed)))
plot.curve({name: (counts, values) for name, values in losses.items()}, xlabel="devices",
           ylabel="loss of the first step", title="the same seed and data, other luck")  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B**. C is true and no comfort: you cannot tell a bug from luck. With one key per *example*, made
# from its place in the whole batch (`train.example_keys`), the noise does not know how many devices
# there are. Every number of this book is made that way.
# </details>
#
# ## What you should see
# One key per example: losses alike to 1e-5. One per device: they differ by more than a percent.

# %%
by_device, by_example = map(np.array, losses.values())
print("per device", by_device.round(4), "per example", by_example.round(4))
assert np.ptp(by_example) < 1e-5
assert D == 1 or np.ptp(by_device) > 0.01 * by_device.mean()

# %% [markdown]
# ## Break it
# Sum the gradients instead of averaging. With SGD the step is D times too long. With Adam, which
# divides by the gradient's own size?

# %%
summed = lambda *args: D * loss_fn(*args)  # the sum over devices of their gradients  # noqa: E731
start = jax.device_get(train.init_state(init, optax.sgd(1.0), jax.random.key(0)).params)
for name, tx in {"SGD": optax.sgd(0.001), "Adam": optax.adam(0.01)}.items():
    both = [run(devices.pmap_step, devices.AXIS, tx, loss)[1] for loss in (loss_fn, summed)]
    moved = [size(jax.tree.map(np.subtract, params, start)) for params in both]
    print(f"{name:5} moved {moved[0]:.5f}, with summed gradients {moved[1]:.5f}")
    assert abs(moved[1] / moved[0] - 1) < 1e-3 if name == "Adam" else moved[1] > 0.8 * D * moved[0]

# %% [markdown]
# Adam hides it, until you clip gradients or decay weights. Test device code with SGD. The other
# mistake announces itself:

# %%
try:
    devices.check_batch(B + 1, D)
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# ## Summary
# You now understand `pmap_step`, `sharded_step`, `check_batch` (`common/devices.py`) and why
# `make_train_step` (`common/train.py`) takes an `axis_name`.
#
# - Mean over examples in the loss, mean over devices of the gradients: the device count drops out.
# - One key per example makes that true of the noise as well, and so testable.
# - New code shards a `jit`: the same step, and the compiler adds the mean. `pmap` says it aloud.
#
# Read: "Distributed arrays and automatic parallelization" in JAX's documentation, and its page on
# moving from pmap; Goyal et al. 2017, section 2.3. Two open questions, for a page each:
#
# 1. CLIP's loss (lesson 07) compares each picture with all captions of the batch. Is the mean of
#    the devices' losses still the loss of the batch? What must be exchanged (`info_nce`)?
# 2. All devices hold the parameters, their mean and Adam's two moments. What would you cut first?
