# %% [markdown]
# # 03 · Sampling
#
# **35 minutes** · any computer, 20 seconds of its time · you need: lessons 01 and 02.
#
# After this you can turn any denoiser into a generator, choose how many steps it takes and how much
# chance is in them, and run it backwards. All of it is one line, a step from time $t$ to $s < t$:
#
# $$x_s = \text{signal}_s\,\hat x_0 + \sqrt{\text{noise}_s^2 - \text{sd}^2}\;\hat\epsilon
# + \text{sd}\,z, \qquad \text{sd} = \eta\,\frac{\text{noise}_s}{\text{noise}_t}\sqrt{\beta}$$
#
# The denoiser gives $\hat\epsilon$, and $\hat x_0$ follows from it; $z$ is fresh noise; $\beta$ is
# the variance that the forward process adds between $s$ and $t$.

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from common import plot, process, sampler, schedule
from common.mixture import NULL, Mixture

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# A denoiser looks at a noisy $x_t$ and guesses its noise, hence also the clean $x_0$ beneath. Where
# there is much noise, that guess is an *average* over all clean points that could be there. So do
# not go all the way: take the guess, put **a little less noise** back on it, and look again.
# Which noise? The guessed one: then nothing is left to chance (**DDIM**). Or partly fresh noise
# (**DDPM**). A number $\eta$ says how much: 0 is DDIM, 1 is DDPM, and they are one step.
#
# Our data: eight petals of width 0.1 on a circle. Their exact denoiser is a formula
# (`common/mixture.py`), so every error below is the sampler's own.

# %%
angle = 2 * jnp.pi * jnp.arange(8) / 8
centre = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
petals = Mixture(jnp.full(8, 1 / 8), centre, jnp.full(8, 0.1), label=jnp.arange(8))
S = schedule.linear()
exact = petals.denoiser(S)
nothing = lambda x: {"label": jnp.full(len(x), NULL)}  # noqa: E731  (conditions: lesson 04)
denoise = lambda x, t: exact(x, jnp.full(len(x), t), nothing(x)).eps  # noqa: E731  (t a scalar)


def show(clouds, reach=1.7):
    """Clouds of points, {title: (B, 2)}, side by side -> the axes."""
    _, axes = plt.subplots(1, len(clouds), figsize=(3.6 * len(clouds), 3.8), layout="constrained")
    for axis, (title, x), colour in zip(axes, clouds.items(), plot.COLOURS, strict=False):
        axis.scatter(*np.asarray(x).T, s=6, alpha=0.5, lw=0, color=colour)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], title=title)
    return axes

# %% [markdown]
# ## The obvious thing, and why it falls short
# Draw pure noise $x_T$, ask the denoiser once, and take its $\hat x_0$.

# %%
data_key, noise_key, path_key = jax.random.split(jax.random.key(0), 3)
data, _ = petals.sample(data_key, B := 300 if QUICK else 600)
x_T = jax.random.normal(noise_key, (B, 2))
jump = process.x0_from_eps(S, x_T, S.T, denoise(x_T, S.T))
show({"the data": data, "one jump from pure noise": jump})
plt.show()
assert jnp.linalg.norm(jump, axis=1).max() < 0.05  # from the middle; the data are at 1

# %% [markdown]
# Every point lands in the middle, where no data are. From pure noise any petal is possible, and
# the best single guess is their average. (With pictures: one grey blur.)
#
# ### Exercise 1 · the step (10 minutes)
# Write the line at the top. `schedule.at(t, ndim)` gives `(signal_t, noise_t)`, shaped to multiply
# `x`. You may use `process.x0_from_eps(schedule, x, t, eps)` and, for $\beta$,
# `process.transition_variance(schedule, t, s, ndim)`.

# %% tags=["exercise"]
def ddim_step(schedule, x, eps, t, s, z, eta):
    """x_t (B, ...) -> x_s (B, ...); eps, z like x; t and s (B,) or scalars."""
    # BEGIN SOLUTION
    x0 = process.x0_from_eps(schedule, x, t, eps)
    _, noise_t = schedule.at(t, x.ndim)
    signal_s, noise_s = schedule.at(s, x.ndim)
    sd = eta * noise_s / noise_t * jnp.sqrt(process.transition_variance(schedule, t, s, x.ndim))
    return signal_s * x0 + jnp.sqrt(noise_s**2 - sd**2) * eps + sd * z
    # END SOLUTION

# %% tags=["check"]
x, eps, z = jax.random.normal(jax.random.key(7), (3, 4, 2))
rows = jnp.array([1000, 700, 90, 2]), jnp.array([800, 20, 89, 1])
for t, s, eta, message in (
    (600, 400, 0.0, "wrong without chance (eta = 0), where x_s = signal_s x0 + noise_s eps"),
    (600, 400, 1.0, "right at eta = 0, wrong at 1. Is it sqrt(noise_s**2 - sd**2) eps + sd z?"),
    (600, 400, 0.5, "right at eta = 0 and 1, wrong between: eta belongs to sd, not to its square"),
    (*rows, 0.5, "right for one time, wrong for one time per row: use schedule.at(t, x.ndim)"),
):
    want = sampler.ddim_step(S, x, process.Prediction(eps), t, s, z, eta=eta)
    got = ddim_step(S, x, eps, t, s, z, eta)
    assert got is not None, "your function returns nothing: end it with `return`"
    assert got.shape == want.shape and jnp.allclose(got, want, rtol=1e-4, atol=1e-4), message
# And eta = 1 is DDPM, which draws x_s from q(x_s | x_t, x0) (Ho et al. 2020, eq. 6-7):
mean, variance = process.posterior(S, process.x0_from_eps(S, x, 600, eps), x, 600, 400)
step = sampler.ddim_step(S, x, process.Prediction(eps), 600, 400, z, eta=1.0)
assert jnp.allclose(step, mean + jnp.sqrt(variance) * z, atol=1e-4)

# %% [markdown]
# ## Many steps: one `lax.scan`
# A walk is the step, over the pairs of a falling list of times. `lax.scan` compiles the loop.

# %%
@jax.jit
def walk(x, ts, key, eta):
    """All points on the way from x (B, 2) at ts[0] to ts[-1]: (steps + 1, B, 2)."""

    def body(x, times):
        t, s = times
        z = sampler.noise_like(jax.random.fold_in(key, t), x)
        x = sampler.ddim_step(S, x, process.Prediction(denoise(x, t)), t, s, z, eta=eta)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(body, x, (ts[:-1], ts[1:]))[1]])


ts = sampler.timesteps(S.T, 50)  # 1000, 980, ... 1, 0
ddim, ddpm = walk(x_T, ts, path_key, 0.0), walk(x_T, ts, path_key, 1.0)
axes = show({"DDIM (eta = 0), 10 paths": ddim[-1], "DDPM (eta = 1), 2 paths": ddpm[-1]}, reach=2.6)
for axis, path in zip(axes, (ddim[:, :10], ddpm[:, :2]), strict=True):
    axis.plot(path[..., 0], path[..., 1], color=plot.COLOURS[5], lw=0.9)
    axis.scatter(*path[0].T, s=16, color="black", zorder=3)  # where they start
plt.show()

# %% [markdown]
# ## Predict, then run
# True petals are 0.10 wide. How wide do these 50-step walks draw them? **A** DDPM's come out too
# wide, for it adds noise · **B** DDPM's too narrow, more so than DDIM's · **C** both are right.
# Write your letter down.

# %%
to_centres = lambda x: jnp.linalg.norm(x[:, None] - centre[None], axis=-1)  # noqa: E731  (B, 8)
width = lambda x: float(jnp.median(to_centres(x).min(axis=1)) / 1.177)  # noqa: E731  (a std)
print(f"DDIM {width(ddim[-1]):.3f}, DDPM {width(ddpm[-1]):.3f}, data {width(data):.3f}")
assert width(ddpm[-1]) < width(ddim[-1]) - 0.004 < 0.095

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B**: about 0.08, and DDIM's 0.09. DDPM's sd is right for a *known* $x_0$. But $\hat x_0$ is a
# guess, so the true $x_s$ spreads more: a large step puts too little noise back. In small steps the
# difference vanishes. (Hence the learned variances of Nichol & Dhariwal.)
# </details>
#
# ### Exercise 2 · steps against error (5 minutes)
# DDIM follows a curve; its error is the distance from the curve's end. All 1000 steps stand for it.

# %%
fine = walk(x_T, sampler.timesteps(S.T, S.T), path_key, 0.0)[-1]

# %% tags=["exercise"]
def error(steps):
    """Mean distance from `fine` (B, 2), row by row, after `steps` DDIM steps from x_T."""
    # BEGIN SOLUTION
    end = walk(x_T, sampler.timesteps(S.T, steps), path_key, 0.0)[-1]
    return jnp.linalg.norm(end - fine, axis=-1).mean()
    # END SOLUTION

# %% tags=["check"]
end = walk(x_T, sampler.timesteps(S.T, 20), path_key, 0.0)[-1]
got, distance = error(20), np.linalg.norm(end - fine, axis=-1)
assert got is not None and np.shape(got) == (), "return one number: the mean over all points"
assert got < 0.1, "too large: walk from x_T with eta = 0, take [-1], norm with axis=-1, then mean"
assert np.isclose(got, distance.mean(), rtol=1e-3), "a distance is the norm of both coordinates"

# %% [markdown]
# ### Exercise 3 · backwards (5 minutes)
# Without chance, the way can be walked back **up**, from a clean point to the noise that makes it:
# $x_t = \text{signal}_t\,\hat x_0 + \text{noise}_t\,\hat\epsilon$, with the guesses made where
# we stand, at $s < t$. A denoiser knows no time 0: ask it at 1 there.

# %% tags=["exercise"]
def up_step(x, s, t):
    """x_s (B, 2) -> x_t (B, 2), scalars s < t: DDIM the other way."""
    # BEGIN SOLUTION
    eps = denoise(x, jnp.maximum(s, 1))
    x0 = process.x0_from_eps(S, x, s, eps)
    return S.add_noise(x0, jnp.asarray(t), eps)
    # END SOLUTION

# %% tags=["check"]
for s, t in (300, 400), (0, 20):
    got, want = up_step(data, s, t), sampler.invert(exact, S, data, [t, s], nothing(data))
    assert got is not None and got.shape == want.shape, "return x_t, shaped like x"
    message = f"wrong from {s} to {t}: eps and x0 are found at s (or 1), signal and noise are of t"
    assert jnp.allclose(got, want, atol=1e-4), message

# %% [markdown]
# ## What you should see
# Twice the steps, half the error: 0.019 with 50, 0.009 with 100. Up to $x_T$ and down again comes
# home to within 0.03 in 100 steps. With chance on the way down ($\eta = 1$) it never comes home.

# %%
counts, down, home = [10, 20, 50, 100], [], []
distance = jax.jit(lambda a, b: jnp.linalg.norm(a - b, axis=1).mean())
for ts in (sampler.timesteps(S.T, n) for n in counts):
    top = sampler.invert(exact, S, data, ts, nothing(data))
    down.append(distance(walk(x_T, ts, path_key, 0.0)[-1], fine))
    home.append(distance(walk(top, ts, path_key, 0.0)[-1], data))
assert 1.7 < down[2] / down[3] < 2.5 and home[3] < 0.03
assert distance(walk(top, ts, path_key, 1.0)[-1], data) > 1

_, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
axis.loglog(counts, down, "o-", color=plot.COLOURS[0], label="down: distance from the fine path")
axis.loglog(counts, home, "s-", color=plot.COLOURS[2], label="up and down: distance from home")
axis.loglog(counts, down[3] * 100 / np.array(counts), ":", color="grey", label="1 / steps")
axis.set(xlabel="steps", ylabel="mean distance", xticks=counts, xticklabels=counts)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Break it
# The classic bug: the network gets the *number of the step* (50, 49, ...), not the *time*.

# %%
wrong_time = lambda x, t, cond: exact(x, jnp.maximum(t * 50 // S.T, 1), cond)  # noqa: E731
dots = sampler.sample(wrong_time, S, x_T, sampler.timesteps(S.T, 50), nothing(x_T), path_key)
show({"the right times": ddim[-1], "step numbers as times": dots})
plt.show()
first = dots[to_centres(dots).argmin(axis=1) == 0]
assert first.std(axis=0).max() < 0.01 and jnp.linalg.norm(dots, axis=1).min() > 1.1

# %% [markdown]
# Nothing crashed. It overcorrects in every step, and ends in eight dots beside the centres. (A
# trained network, never shown so much noise at so small a t, paints fog.)
#
# ## Summary
# You now understand `ddim_step`, `sample` and `invert` of `common/sampler.py`.
#
# - A step is: guess $x_0$, put less noise back. $\eta$ says how much of that noise is fresh.
# - Without chance, sampling is a map: same noise, same picture; and it runs backwards.
# - The error falls as 1 / steps. (`plms` and `dpm_solver`, of higher order, fall faster.)
#
# Read: Song, Meng & Ermon 2021 (DDIM), section 4. Two open questions, for a page each:
#
# 1. Give the denoiser a small error. Which $\eta$ forgives it best, and why may chance help?
# 2. Where on the way are the steps needed most? Place 20 times better than evenly.
