# %% [markdown]
# # 06 · The U-Net
#
# **35 minutes** · any computer, a minute of its time · you need: lesson 02.
#
# After this you can read ADM's network, block by block, and say what each part is there for. One
# line of it: how time enters, as a scale and a shift for every channel,
#
# $$h \leftarrow \text{norm}(h)\,(1 + \text{scale}_t) + \text{shift}_t$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from common import data, devices, plot, process, schedule, train
from common import nn as blocks

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
devices.start()
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# A denoiser must see *far*, to know that this is a seven, and *exactly*, as each pixel's noise is
# asked for. A U does both: the way down halves the picture until it is small enough to be seen as
# a whole, the way up doubles it again, and **skips** carry the exact pixels across.
#
# ## The obvious thing, and why it falls short
# Stack ten convolutions. What does one pixel of the result depend on? Its gradient tells.

# %%
class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(L - 1):
            x = nn.silu(blocks.conv3(8)(x))
        return blocks.conv3(1)(x)
L, x = 10, jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
params = jax.jit(Stack().init)(jax.random.key(1), x)
seen = jax.jit(jax.grad(lambda x: Stack().apply(params, x)[0, 16, 16, 0]))(x) != 0
print(f"{L} layers see {seen.sum()} of {seen.size} pixels")
assert seen.sum() == (2 * L + 1) ** 2  # one pixel further in each direction with every layer

# %% [markdown]
# Ten layers at full price, and far corners know nothing of each other. And nobody told it `t`.
#
# ### Exercise 1 · time as a vector (8 minutes)
# A network reads one number badly and a vector well: `half = width // 2` frequencies, from 1 down
# to nearly $10^{-4}$, all cosines first, then all sines:
#
# $$\omega_i = 10^{-4 i / half}, \qquad [\cos(t\,\omega_0), ..., \sin(t\,\omega_0), ...]$$

# %% tags=["exercise"]
def time_embedding(t, width):
    """t (B,) int32 -> (B, width), cosines first; width is even."""
    # BEGIN SOLUTION
    half = width // 2
    angle = t[:, None] * 10.0 ** (-4 * jnp.arange(half) / half)[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    # END SOLUTION

# %% tags=["check"]
got, right = (f(jnp.array([0, 1, 10, 999]), 8) for f in (time_embedding, blocks.time_embedding))
assert got is not None and got.shape == (4, 8), "one row of `width` numbers for each t"
assert jnp.allclose(got[0], right[0]), "t = 0 must give ones, then zeros: all cosines come first"
assert jnp.allclose(got[1, 0], jnp.cos(1)), "the first frequency is 1: i counts from 0"
assert jnp.allclose(got, right, atol=1e-3), "frequencies 10^(-4 i / half), i = 0 .. half - 1"

# %%
times = jnp.arange(0, 1001, 5)
embedding = blocks.time_embedding(times, 64)
alike = embedding @ embedding[100] / 32  # with t = 500; each vector has length sqrt(32)
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
shown = left.imshow(embedding.T, aspect="auto", cmap="RdBu", extent=(0, 1000, 64, 0))
left.set(xlabel="t", ylabel="entry: cosines, then sines", title="each column is one time")
plt.colorbar(shown, ax=left)
right.plot(times, alike, color=plot.COLOURS[0])
right.set(xlabel="t", ylabel="cosine with t = 500", title="near times look alike")
plt.show()
assert np.isclose(alike[100], 1) and alike[98] > 0.6 > 0.4 > alike[60] > alike[0]

# %% [markdown]
# ### Exercise 2 · time in every block: AdaGN (8 minutes)
# GroupNorm first: in each example, the channels form `groups` neighbouring groups, and each group's
# numbers (all pixels, all its channels) get mean 0 and variance 1. Then the line at the top.

# %% tags=["exercise"]
def adaptive_norm(h, scale, shift, groups, eps=1e-5):
    """h (B, H, W, C), scale and shift (B, C) -> norm(h) (1 + scale) + shift."""
    # BEGIN SOLUTION
    g = h.reshape(*h.shape[:3], groups, -1)
    mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
    normal = ((g - mean) / jnp.sqrt(var + eps)).reshape(h.shape)
    return normal * (1 + scale[:, None, None]) + shift[:, None, None]
    # END SOLUTION

# %% tags=["check"]
h = jnp.arange(1, 7) * (3 + jax.random.normal(jax.random.key(2), (2, 4, 4, 6)))
ada, neutral = jnp.arange(12.0).reshape(2, 6), {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
library = lambda *ada: blocks.GroupNorm(groups=3).apply({"params": neutral}, h, ada)  # noqa: E731
plain, got = adaptive_norm(h, 0 * ada, 0 * ada, 3), adaptive_norm(h, ada, 10 - ada, 3)
assert plain is not None and plain.shape == h.shape, "return features like h"
assert jnp.abs(plain).max() > 0, "scale 0 must change nothing, and not erase: 1 + scale"
why = "scale = shift = 0 is GroupNorm: statistics of one example, one group, over all pixels"
assert jnp.allclose(plain, library(0 * ada, 0 * ada), atol=1e-3), why
assert jnp.allclose(got, library(ada, 10 - ada), atol=1e-2), "scale multiplies, shift is added"

# %% [markdown]
# ### Exercise 3 · attention (8 minutes)
# In the small pictures in the middle every pixel may ask every other one. Each head has its own
# `d = D / heads` neighbouring channels:
#
# $$\text{softmax}(q\,k^\top / \sqrt{d})\,v$$

# %% tags=["exercise"]
def attention(q, k, v, heads):
    """q (B, L, D), k and v (B, M, D) -> (B, L, D)."""
    # BEGIN SOLUTION
    q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
    logits = jnp.einsum("blhd,bmhd->bhlm", q, k) / jnp.sqrt(q.shape[-1])
    out = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(logits, axis=-1), v)
    return out.reshape(*out.shape[:2], -1)
    # END SOLUTION

# %% tags=["check"]
q, k, v = jax.random.normal(jax.random.key(3), (3, 2, 5, 8))
k, v = k[:, :4], v[:, :4]  # another number of keys than of queries
equal, mean = attention(q, 0 * k, v, 2), v.mean(1, keepdims=True)
assert equal is not None and equal.shape == (2, 5, 8), "one row for each query: (B, L, D)"
assert jnp.allclose(equal, mean, atol=1e-4), "equal keys, so the mean of v: softmax over the keys"
for heads, why in ((1, "divide q k by sqrt(d)"), (2, "each head its own channels, d = D / heads")):
    library = blocks.attention(q, k, v, heads)
    assert jnp.allclose(attention(q, k, v, heads), library, atol=1e-4), f"{heads} heads: {why}"

# %% [markdown]
# ## All of it: a U in fifteen lines
# `blocks.ResBlock` is norm, SiLU, convolution, **your norm**, SiLU, convolution, + input. Two
# switches, `skips` and `clock` (1 or 0), let us take things out.

# %%
class U(nn.Module):
    @nn.compact
    def __call__(self, x, t, skips=1.0, clock=1.0):
        res = lambda features, h: blocks.ResBlock(features, groups=4)(h, emb)  # noqa: E731
        emb = blocks.dense(64)(blocks.time_embedding(t, 16)) * clock
        h, kept = blocks.conv3(16)(x), []
        for features in (16, 32):  # the way down: 8 x 8, 4 x 4
            h = res(features, h)
            kept.append(h)
            h = blocks.avg_pool2(h)
        h = blocks.AttentionBlock(heads=2, groups=4)(res(32, h))  # 2 x 2
        for features in (32, 16):  # the way up
            h = jnp.concatenate([blocks.nearest2(h), skips * kept.pop()], axis=-1)
            h = res(features, h)
        return blocks.conv3(1, zero=True)(nn.silu(blocks.GroupNorm(4)(h)))

def loss_fn(params, batch, keys):
    x, t, eps = train.noise_batch(S, batch["x0"], keys)
    return jnp.square(U().apply(params, x, t, batch["skips"], batch["clock"]) - eps).mean()
DATA = os.environ.get("DATA", "digits")  # real ones; or "scenes", or of tfds: "mnist", "celeb_a"...
small = lambda a: np.stack([data.fit(x, 8) for x in a["image"][:2000]])[..., :1]  # noqa: E731
x0, test = (process.to_float(jnp.asarray(small(data.load(DATA, s)))) for s in ("train", "test"))
S, tx, test, steps = schedule.cosine(1000), optax.adam(2e-3), test[:256], 100 if QUICK else 400
step = devices.jit(train.make_train_step(loss_fn, tx, ema_decay=0.98))
init = lambda key: U().init(key, x0[:1], jnp.ones(1, jnp.int32))  # noqa: E731
fresh = train.init_state(init, tx, jax.random.key(4))
answer = devices.jit(lambda params, x, t, switch: U().apply(params, x, t, **switch))

def learn(switch):
    feed = lambda state, rows, keys: step(state, {"x0": x0[rows], **switch}, keys)  # noqa: E731
    sizes = {"examples": len(x0), "batch_size": 64, "steps": steps}
    for _, state, _ in train.fit(feed, fresh, jax.random.key(5), **sizes):
        pass
    return state.ema_params

def error(name, t, told=None):
    """Mean square error of eps on test digits at time t, and x0; perhaps told another time."""
    at, eps = jnp.full(256, t), jax.random.normal(jax.random.key(6), test.shape)
    x = S.add_noise(test, at, eps)
    out = answer(trained[name], x, jnp.full(256, told or t), switches[name])
    return float(jnp.square(out - eps).mean()), process.x0_from_eps(S, x, at, out)

# %% [markdown]
# ## Predict, then run
# Three networks learn the same: a whole one, one **without skips**, one **not told the time**. Who
# suffers most, and where? **A** no skips, only at small t · **B** no skips, most of all at large
# t · **C** no time, everywhere · **D** no time, at large t.

# %%
switches = {name: {"skips": float(name != "no skips"), "clock": float(name != "no time")}
            for name in ("whole", "no skips", "no time")}  # fmt: skip
trained = {name: learn(switch) for name, switch in switches.items()}
ts = [20, 50, 100, 200, 350, 500, 700, 900]
errors = {name: np.array([error(name, t)[0] for t in ts]) for name in switches}
plot.curve({k: (ts, v) for k, v in errors.items()}, xlabel="t", ylabel="square error of eps")

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** At large t the task is easy: x is nearly all noise, so copy it. But exact pixels cannot get
# through the small middle, not in so few steps. Without time the loss is small: with 64 pixels
# before its eyes, a network nearly sees how noisy they are.
# </details>
#
# ## What you should see
# At t = 900 the whole network's error is below 0.05, and more than ten times as large without
# skips. Without time it is larger at every t, by a few hundredths.

# %%
print(*(f"{name:9} {values.round(3)}" for name, values in errors.items()), sep="\n")
assert errors["whole"][-1] < 0.05 and errors["no skips"][-1] > 10 * errors["whole"][-1]
lost = errors["no time"] - errors["whole"]
assert lost.min() > 0 and lost.mean() < 0.1 < (errors["no skips"] - errors["whole"]).mean()
one_changed = test[:1] + jnp.pad(jnp.eye(64), ((0, 192), (0, 0))).reshape(256, 8, 8, 1)
corner = answer(trained["whole"], one_changed, jnp.full(256, 500), switches["whole"])[:, 0, 0, 0]
assert (corner[:64] != corner[64]).all(), "the corner must depend on each of the 64 pixels"

# %% [markdown]
# ## Break it
# Keep the clock, but set it wrong: x is of t = 350, and the network is told another time. Told too
# early it leaves noise standing, told too late it greys the digit.

# %%
costs, guesses = zip(*(error("whole", 350, told=told) for told in (350, 50, 800)), strict=True)
noisy = S.add_noise(test, jnp.full(256, 350), jax.random.normal(jax.random.key(6), test.shape))
labels = [f"told {t}: error {c:.2f}" for t, c in zip((350, 50, 800), costs, strict=True)]
assert min(costs[1:]) > (1.5 if DATA == "digits" else 1) * costs[0]
plot.grid(np.concatenate([x[:8] for x in (test, noisy, *guesses)]), columns=8, scale=8,
          row_labels=[DATA, "noised, t = 350", *labels])  # fmt: skip

# %% [markdown]
# ## Summary
# You can now read `common/nn.py` and `common/unet.py`: ADM's U, or DDPM's, by its config.
# - Down to see the whole, up to draw it, skips for the exact pixels: they matter most.
# - Time enters every block as a scale and a shift for each channel, and so can a class or a text.
# - Attention only where the picture is small: its price grows with the square of the pixels.
#
# Read: Dhariwal & Nichol 2021 (ADM), section 3. Two open questions, for a page each:
#
# 1. The last convolution starts at zero, as each block's: what does an untrained U answer, and why?
# 2. With 64 pixels, the U without time did well. Would it with one? With a million?
