# %% [markdown]
# # 01 · The forward process
#
# **30 minutes** · any computer, 15 seconds of its time · you need: lesson 00 (keys, arrays).
#
# After this you can jump from clean data to any noise level in one line, build the tables that say
# how much, and predict when the noise has erased what you care about.
#
# $$x_t = \text{signal}_t\, x_0 + \text{noise}_t\, \epsilon, \qquad \epsilon \sim N(0, 1)$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from common import plot, schedule
from common.mixture import NULL, Mixture
from common.scenes import render, scene

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# To learn to make pictures, first learn how they come apart. Mix the data `x0` with noise `eps`, a
# little more at each time `t = 1..T`, until hardly anything else is left. A *schedule* says how
# much of each: `signal` falls from 1 to nearly 0, `noise` rises from 0 to nearly 1. What came
# apart in small steps can be put together in small steps: later lessons walk back from noise.
#
# Nothing is learnt yet. Our data are points in the plane, from two Gaussian bumps, because there
# every density is known exactly. The same line destroys a picture:

# %%
linear = schedule.linear(T=1000)  # a Schedule: the tables .signal and .noise; Ho et al. 2020
keys = jax.random.split(jax.random.key(0), 6)  # one a cell will do: one machine, no training
drawing = scene.draw_scene(np.random.default_rng(4))
picture = jnp.asarray(plot.from_uint8(render.render([drawing], 64)))  # (1, 64, 64, 3) in [-1, 1]
times = np.array([0, 50, 150, 300, 500, 1000])
eps = jax.random.normal(keys[0], picture.shape)
frames = [linear.add_noise(picture, jnp.array([t]), eps) for t in times]
plot.strip(jnp.concatenate(frames), [f"t = {t}" for t in times])  # shown by a notebook only

# %% [markdown]
# ## The obvious thing, and why it falls short
# The definition goes step by step: $x_t = \sqrt{1 - \beta_t}\,x_{t-1} + \sqrt{\beta_t}\,z$ with
# fresh noise $z$ and a small $\beta_t$. So walk.

# %%
m, std = 2.0, 0.3  # two bumps, at (-2, 0) and (2, 0)
mixture = Mixture(  # knows its exact density at every t; a label says which bump
    weight=jnp.array([0.5, 0.5]),
    mean=jnp.array([[-m, 0.0], [m, 0.0]]),
    std=jnp.array([std, std]),
    label=jnp.array([0, 1]),
)
x0, label = mixture.sample(keys[1], 2000)
betas = np.linspace(1e-4, 0.02, 1000)  # beta_t of t = 1..1000
x = x0
for t in range(1, 301):
    z = jax.random.normal(jax.random.fold_in(keys[2], t), x.shape)
    x = np.sqrt(1 - betas[t - 1]) * x + np.sqrt(betas[t - 1]) * z
z = jax.random.normal(keys[3], x0.shape)
jump = linear.add_noise(x0, jnp.full(2000, 300), z)
print("spread after 300 steps", x.std(0), " after one jump", jump.std(0))
assert jnp.allclose(x.std(0), jump.std(0), atol=0.06)

# %% [markdown]
# It works, but takes 300 draws to noise one point. A sum of *independent* Gaussian draws is one
# Gaussian, and variances add up. So all steps collapse into one: the signal is the *product* of the
# shrinkings, and a step turns a noise of variance $1 - \bar\alpha$ into one of
# $(1 - \beta_t)(1 - \bar\alpha) + \beta_t = 1 - (1 - \beta_t)\bar\alpha$, the same form again:
#
# $$\text{signal}_t = \sqrt{\bar\alpha_t}, \qquad \text{noise}_t = \sqrt{1 - \bar\alpha_t}, \qquad
# \bar\alpha_t = \textstyle\prod_{i \le t} (1 - \beta_i)$$
#
# ### Exercise 1 · the tables (5 minutes)
# Give them T + 1 entries, with `t = 0` for the clean end: signal 1, noise 0.
#
# <details><summary>Hint</summary>`np.cumprod`, and `np.concatenate([[1.0], ...])`.</details>


# %% tags=["exercise"]
def tables(betas):
    """beta (T,) of t = 1..T -> signal (T + 1,), noise (T + 1,)."""
    # BEGIN SOLUTION
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    signal = np.sqrt(alpha_bar)
    noise = np.sqrt(1 - alpha_bar)
    return signal, noise
    # END SOLUTION


# %% tags=["check"]
out = tables(betas)
assert out is not None and len(out) == 2, "return two tables, signal and noise"
signal, noise = map(np.asarray, out)
shapes = signal.shape, noise.shape
assert shapes == ((1001,),) * 2, f"shapes {shapes}, not (1001,) twice: is t = 0 in both tables?"
assert signal[0] == 1 and noise[0] == 0, "in front is t = 0, clean: signal (first table) 1, noise 0"
assert np.isfinite(signal).all() and signal.min() > 0, "the shrinkings multiply: a product, no sum"
square = np.allclose(signal, linear.signal**2, atol=1e-5)
assert not square, "this is alpha_bar: noise *variances* add up, so take the square root"
assert np.allclose(signal**2 + noise**2, 1, atol=1e-6), "signal^2 + noise^2 must be 1 at every t"
assert np.allclose(signal, linear.signal, atol=1e-5), "signal_t^2 multiplies 1 - beta_i, i = 1..t"

# %% [markdown]
# ### Exercise 2 · the jump (5 minutes)
# Every row has its own `t`. Write it for points (B, 2) and pictures (B, H, W, C) alike.
#
# <details><summary>Hint</summary>`signal[t]` is (B,): reshape it to (B, 1, ..., 1), with
# `x0.ndim` axes in all.</details>


# %% tags=["exercise"]
def add_noise(signal, noise, x0, t, eps):
    """signal, noise (T + 1,), x0 (B, ...), t (B,), eps (B, ...) -> x_t (B, ...)."""
    # BEGIN SOLUTION
    shape = (-1,) + (1,) * (x0.ndim - 1)
    signal_t = signal[t].reshape(shape)
    noise_t = noise[t].reshape(shape)
    return signal_t * x0 + noise_t * eps
    # END SOLUTION


# %% tags=["check"]
ones, zeros, t = jnp.ones((2, 2)), jnp.zeros((2, 2)), jnp.array([1, 1000])
got = add_noise(linear.signal, linear.noise, ones, t, zeros)
assert hasattr(got, "shape"), f"{type(got).__name__} came back: `return` one array"
assert got.shape == (2, 2), f"shape {got.shape}, not (2, 2): signal[t] must be (B, 1)"
columns = jnp.allclose(got, jnp.broadcast_to(linear.signal[t], (2, 2)))
assert not columns, "t ran along the columns: reshape signal[t] from (B,) to (B, 1)"
assert jnp.allclose(got, linear.signal[t][:, None]), "with eps = 0, row i must be signal[t_i] * x0"
got = add_noise(linear.signal, linear.noise, zeros, t, ones)
assert jnp.allclose(got, linear.noise[t][:, None]), "with x0 = 0, row i must be noise[t_i] * eps"
pictures = jax.random.normal(keys[4], (2, 2, 2, 3))
got = add_noise(linear.signal, linear.noise, pictures, t, pictures)
wanted = linear.add_noise(pictures, t, pictures)
alike = got.shape == wanted.shape and jnp.allclose(got, wanted, atol=1e-5)
assert alike, "right for points, wrong for pictures, where signal[t] must be (B, 1, 1, 1)"

# %% [markdown]
# ## Predict, then run
# Our two bumps stand at ±2 and are 0.3 wide. As `t` grows they move together and widen. From which
# `t` on does the density have **one** peak?
#
# **A** t ≈ 50 · **B** t ≈ 400 · **C** t ≈ 800 · **D** only at t = 1000. Write it down first.

# %%
line = jnp.linspace(-3.2, 3.2, 161)
along = jnp.stack([line, jnp.zeros_like(line)], axis=1)  # points on the x axis
times = [50, 350, 400, 800, 1000]
figure, axes = plt.subplots(2, 5, figsize=(11, 4.4), sharex=True, layout="constrained")
for t, (top, bottom) in zip(times, axes.T, strict=True):
    x_t = linear.add_noise(x0, jnp.full(2000, t), z)  # the same noise, more and more of it
    top.scatter(*x_t[:600].T, c=label[:600], cmap="coolwarm", s=3, alpha=0.6)
    # NULL in place of a label: both bumps together.
    log_density = mixture.log_density(linear, along, jnp.full(161, t), jnp.full(161, NULL))
    bottom.fill_between(line, jnp.exp(log_density), color="slategrey", alpha=0.5)
    top.set(title=f"t = {t}", aspect="equal", xlim=(-3.2, 3.2), ylim=(-2.6, 2.6), yticks=[])
    bottom.set(yticks=[], ylim=(0, None), xlabel="density at y = 0")
plt.show()

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** Equal bumps at $\pm c$ of width $w$ merge when $c = w$: in the middle the second derivative
# of their sum has the sign of $c^2 - w^2$, a valley above 0, a peak below. Here $c$ is
# $\text{signal}_t m$, $w^2$ is $\text{signal}_t^2\,\text{std}^2 + \text{noise}_t^2$: merged when
#
# $$\text{noise}_t / \text{signal}_t \ge \sqrt{m^2 - \text{std}^2}$$
#
# Only the ratio `sigma` = noise / signal counts. A sampler (lesson 03) walks back from noise and
# must choose its bump around this `t`: coarse things are decided at large `t`, details at small.
# </details>
#
# ### Exercise 3 · when do they merge? By the formula of the answer above (5 minutes)


# %% tags=["exercise"]
def merge_time(table, m, std):
    """The first t, one int, at which bumps at -m and m, of width std, make one peak.

    table: a Schedule, such as `linear`; table.signal and table.noise are (T + 1,).
    """
    # BEGIN SOLUTION
    sigma = table.noise / table.signal
    merged = sigma >= np.sqrt(m**2 - std**2)
    return int(jnp.argmax(merged))
    # END SOLUTION


# %% tags=["check"]
def curvature(table, t):
    """Of the exact log density at the origin: above 0 in a valley, below 0 on a peak."""

    def log_density(x):
        return mixture.log_density(table, x[None], jnp.array([t]), jnp.array([NULL]))[0]

    return jax.hessian(log_density)(jnp.zeros(2))[0, 0]  # second derivative along x


for name, table in {"linear": linear, "cosine": schedule.cosine()}.items():
    t = merge_time(table, m, std)
    assert np.ndim(t) == 0 and t in range(1001), f"{name}: no whole number 0..1000: {str(t)[:40]}"
    t = int(t)
    assert 0 < t < 1000, f"{name}: t = {t}? argmax finds the first True: is it at 0, or nowhere?"
    assert curvature(table, t) <= 0, f"{name}: still two peaks at t = {t}: too early"
    assert curvature(table, t - 1) > 0, f"{name}: one peak already before t = {t}: too late"
    print(f"{name}: one peak from t = {t}, noise {table.noise[t]:.3f}")

# %% [markdown]
# ## What you should see
# At `t = T` hardly anything is left: mean 0, spread 1, and less than 1 / 150 of `x0`. In the log of
# (signal / noise)^2, the signal-to-noise ratio, every schedule is a path from clean to noise; this
# linear one, "cosine" and "scaled_linear" differ in where they spend their steps.

# %%
t = jnp.arange(1, 1000)
kinds = {"linear": linear, "cosine": schedule.cosine(), "scaled_linear": schedule.scaled_linear()}
ratio = {name: (t, jnp.log10((s.signal[t] / s.noise[t]) ** 2)) for name, s in kinds.items()}
x_T = linear.add_noise(x0, jnp.full(2000, 1000), jax.random.normal(keys[5], x0.shape))
print("mean", x_T.mean(0), "spread", x_T.std(0), "signal left", linear.signal[1000])
assert abs(x_T.mean()) < 0.05 and abs(x_T.std() - 1) < 0.05 and linear.signal[1000] < 1 / 150
plot.curve(ratio, xlabel="t", ylabel="log10 (signal / noise)^2")

# %% [markdown]
# ## Break it
# Forget to scale pictures to [-1, 1], and noise 0..255. The schedule still ends at signal 0.006,
# but 0.006 of 255 is not small: `x_T` knows how bright the picture was, and pure noise does not.

# %%
raw = (picture + 1) * 127.5
x_T = linear.add_noise(raw, jnp.array([1000]), eps)
print(f"mean of x_T {x_T.mean():.2f}, of the noise alone {eps.mean():.2f}")
assert x_T.mean() > 0.2 and abs(eps.mean()) < 0.03

# %% [markdown]
# ## Summary
# - From inside you now know `schedule.linear` and `Schedule.add_noise`; all training starts there.
# - Only sigma = noise / signal decides what can still be seen. Coarse structure dies last.
# - Read: Ho, Jain & Abbeel 2020, section 2; Nichol & Dhariwal 2021, section 3.2 (the cosine).
#
# Open questions: (1) A 256-pixel picture survives more noise than its 64-pixel copy. Why, and what
# does that ask of its schedule? (2) What would go wrong if the last `t` had signal exactly 0?
