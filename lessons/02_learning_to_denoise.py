# %% [markdown]
# # 02 · Learning to denoise
#
# **40 minutes** · any computer, 30 seconds of its time · you need: lessons 00 and 01.
#
# After this you can train a denoiser, read its error in three currencies (eps, x0, velocity), and
# say why its loss stops falling long before it reaches zero. The whole of it is one line:
#
# $$L = E\,\|\hat\epsilon(x_t, t) - \epsilon\|^2$$

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

from common import plot, process, schedule, train
from common.mixture import NULL, Mixture

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
#
# Take clean data `x0`, draw a time `t` and noise `eps`, make `x_t`, and ask a network: which noise
# did I add? That is all of training; no sampler is involved. The network cannot know, since many
# pairs (`x0`, `eps`) give the same `x_t`. Squared error then teaches it the *average* answer,
# $E[\epsilon \mid x_t]$, and this average is worth having: going against it leads to data.
#
# Our data are three bumps in the plane. There the average is known exactly, so that we can mark the
# network's work.

# %%
table = schedule.linear(T=1000)
angle = 2 * jnp.pi * jnp.arange(3) / 3
mixture = Mixture(
    weight=jnp.ones(3) / 3,
    mean=1.5 * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=1),
    std=jnp.full(3, 0.3),
    label=jnp.arange(3),
)
data_key, noise_key, model_key, fit_key = jax.random.split(jax.random.key(0), 4)
data, label = mixture.sample(data_key, 8192)
denoiser, anything = mixture.denoiser(table), jnp.full(8192, NULL)  # NULL: no condition
exact = jax.jit(lambda x, t: denoiser(x, t, {"label": anything[: len(x)]}).eps)

# %% [markdown]
# ## The obvious thing, and why it falls short
#
# Why not go from noise to data in one jump: learn `x0` from `x_T`? Even the *perfect* network
# disappoints. Here it is, at four times.

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharex=True, sharey=True)
for ax, at in zip(axes, [1000, 500, 250, 50], strict=True):
    x0, t = data[:600], jnp.full(600, at)
    x_t = table.add_noise(x0, t, jax.random.normal(noise_key, x0.shape))
    guess = process.x0_from_eps(table, x_t, t, exact(x_t, t))
    ax.scatter(*x0.T, s=3, color="lightgrey")
    ax.scatter(*guess.T, s=3, c=label[:600], cmap="viridis")
    ax.set(title=f"best x0 from t = {at}", aspect="equal")
    if at == 1000:
        assert guess.std() < 0.1 and x0.std() > 1  # all noise gets one answer: the mean
plt.show()

# %% [markdown]
# From pure noise the best answer is the mean of all data, where there is no data at all: a blur. An
# average is a good guess only where little is unknown. So we ask at *every* `t`, and let a sampler
# (lesson 03) take small steps.
#
# ### Exercise 1 · the loss (8 minutes)
#
# `train.noise_batch(table, x0, keys)` returns `(x_t, t, eps)`: one `t` and one `eps` for each row,
# from its own key.


# %% tags=["exercise"]
def eps_loss(denoise, x0, keys):
    """denoise(x_t, t) -> eps_hat; mean square error over all of the batch, a scalar."""
    # BEGIN SOLUTION
    x_t, t, eps = train.noise_batch(table, x0, keys)
    error = denoise(x_t, t) - eps
    return jnp.square(error).mean()
    # END SOLUTION


# %% tags=["check"]
keys = train.example_keys(noise_key, 0, 2000)
x_t, t, eps = train.noise_batch(table, data[:2000], keys)
nothing = eps_loss(lambda x, t: jnp.zeros_like(x), data[:2000], keys)
assert jnp.shape(nothing) == (), (
    f"shape {jnp.shape(nothing)}, not (): take the mean over everything"
)
assert nothing < 1.5, f"answering 0 must cost about 1, not {nothing:.1f}: a mean, not a sum"
peek = eps_loss(lambda x, t: eps, data[:2000], keys)
assert peek < 1e-6, "the true eps must cost 0: is it compared with eps, and not with x0?"
assert jnp.isclose(nothing, jnp.square(eps).mean(), rtol=1e-4), "the error must be squared"
right = jnp.square(exact(x_t, t) - eps).mean()
assert jnp.isclose(eps_loss(exact, data[:2000], keys), right), "show the network x_t and its t"

# %% [markdown]
# ## Predict, then run
#
# The exact denoiser answers $E[\epsilon \mid x_t]$; nothing can do better. Its loss, for `t` in ten
# buckets from little noise to much: where is it **largest**?
#
# **A** nowhere, a perfect denoiser has loss 0 · **B** at small `t` · **C** in the middle · **D** at
# large `t`. Write it down; then train a network, and see both.


# %%
class Network(nn.Module):
    """x (B, 2), t (B,) -> eps (B, 2): three layers, shown t as the noise level that it means."""

    @nn.compact
    def __call__(self, x, t):
        signal, noise = table.at(t, 2)
        log_sigma = jnp.log(noise / signal)
        h = jnp.concatenate([x, signal, noise, log_sigma, jnp.sin(log_sigma)], axis=-1)
        for _ in range(3):
            h = nn.silu(nn.Dense(96)(h))
        return nn.Dense(2)(h)


def loss_fn(params, rows, keys):
    """What train.make_train_step wants; rows are numbers of examples."""
    x_t, t, eps = train.noise_batch(table, data[rows], keys)
    return jnp.square(Network().apply(params, x_t, t) - eps).mean()


steps = 600 if QUICK else 3000
tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
step = jax.jit(train.make_train_step(loss_fn, tx, ema_decay=0.995))
t_one = jnp.ones(1, jnp.int32)
start = train.init_state(lambda key: Network().init(key, data[:1], t_one), tx, model_key)
losses = []
for _, state, metrics in train.fit(
    step, start, fit_key, examples=8192, batch_size=256, steps=steps
):
    params = state.ema_params
    losses.append(metrics["loss"])
losses = np.array(jax.device_get(losses)).reshape(-1, 50).mean(1)  # means of 50 steps
denoise = jax.jit(lambda x, t: Network().apply(params, x, t))
done = 50 * np.arange(1, len(losses) + 1)
plot.curve({"loss": (done, losses), "zero": (done, 0 * losses)}, xlabel="step", ylabel="loss")

# %% [markdown]
# The curve falls for an instant, then lies flat far above zero. Is the network bad? Cut the loss
# into buckets of `t`, and put the exact denoiser beside it.
#
# ## What you should see
#
# Two curves lie on each other: the plateau is no fault of the network but a **floor**, the variance
# of `eps` that `x_t` does not reveal. The network adds only its distance from the exact answer:
#
# $$E\,\|\hat\epsilon - \epsilon\|^2 = E\,\|\hat\epsilon - \epsilon^*\|^2 +
# E\,\|\epsilon^* - \epsilon\|^2, \qquad \epsilon^* = E[\epsilon \mid x_t]$$

# %%
many = train.example_keys(noise_key, 1, len(data))
x_t, t, eps = train.noise_batch(table, data, many)
ours, best = denoise(x_t, t), exact(x_t, t)
mean = jax.jit(lambda error: jnp.square(error).mean())
which = jax.nn.one_hot((t - 1) // 100, 10)  # (N, 10): which bucket of t a row falls into
cut = jax.jit(lambda error: jnp.square(error).mean(1) @ which / which.sum(0))
loss, regret, floor = mean(ours - eps), mean(ours - best), mean(best - eps)
print(f"loss {loss:.3f} = {regret:.4f} from the exact answer + {floor:.3f} that nobody can know")
assert (
    abs(loss - regret - floor) < 0.01 and regret < (0.03 if QUICK else 0.01) and 0.2 < floor < 0.3
)
middle = 100 * np.arange(10) + 50
curves = {"network": (middle, cut(ours - eps)), "exact": (middle, cut(best - eps))}
curves["between the two"] = (middle, cut(ours - best))
plot.curve(curves, xlabel="t", ylabel="squared error in eps")

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** With little noise nobody can tell a bit of noise from a bit of data: answering 0 is nearly
# optimal, and costs nearly 1. Near t = 250 `x_t` stops telling which bump it came from: a shoulder.
# With much noise, `x_t` *is* the noise. Watch the loss per bucket; the total says little.
# </details>
#
# ### Exercise 2 · the same answer as x0 (4 minutes)
#
# Solve $x_t = \text{signal}_t x_0 + \text{noise}_t \epsilon$ for `x0`.


# %% tags=["exercise"]
def x0_from_eps(table, x, t, eps):
    """x (B, ...), t (B,), eps (B, ...) -> the x0 that they imply."""
    # BEGIN SOLUTION
    signal, noise = table.at(t, x.ndim)
    return (x - noise * eps) / signal
    # END SOLUTION


# %% tags=["check"]
got = x0_from_eps(table, x_t, t, eps)
assert got.shape == data.shape, f"shape {got.shape}, not {data.shape}: table.at(t, x.ndim) helps"
assert not jnp.allclose(got, table.at(t, 2)[0] * data, atol=1e-2), "divide by signal at the end"
assert jnp.allclose(got, data, atol=1e-2), "with the true eps you must get the data back"

# %% [markdown]
# There is a third currency: velocity $= \text{signal}_t\,\epsilon - \text{noise}_t\,x_0$. The same
# answer, the same mistake, weighed differently:
#
# $$\|\hat x_0 - x_0\| = \frac{\text{noise}_t}{\text{signal}_t}\|\hat\epsilon - \epsilon\|, \qquad
# \|\hat v - v\| = \frac{1}{\text{signal}_t}\|\hat\epsilon - \epsilon\|$$
#
# At large `t` a tiny mistake in eps is a huge one in `x0`; a network that answers in velocity is
# scolded for it, one that answers in eps is not.

# %%
signal, noise = table.at(t, 2)
ours_x0 = process.x0_from_eps(table, x_t, t, ours)
in_velocity = process.velocity(table, ours_x0, t, ours) - process.velocity(table, data, t, eps)
for wrong, weight in ((ours_x0 - data, noise / signal), (in_velocity, 1 / signal)):
    assert jnp.allclose(jnp.abs(wrong), weight * jnp.abs(ours - eps), rtol=1e-2, atol=1e-2)

# %% [markdown]
# ## Break it
#
# A sampler with 50 steps numbers them 1..50 and hands the network that *number* instead of the `t`
# it stands for. No shape is wrong and nothing crashes; the network merely believes that there is
# hardly any noise, and finds hardly any. It might almost as well answer 0.

# %%
broken = mean(denoise(x_t, (t + 19) // 20) - eps)
print(f"loss {broken:.2f} instead of {loss:.2f}; answering 0 costs {mean(eps):.2f}")
assert broken > 3 * loss

# %% [markdown]
# ## Summary
#
# - From inside you now know `train.noise_batch`, `process.x0_from_eps` and what `eps` means.
# - A denoiser answers with an average; its loss has a floor, high at small `t`.
# - Read: Ho et al. 2020, section 3.2 to 3.4; Salimans & Ho 2022, section 4 (velocity).
#
# Open questions: (1) Which `t` would you train more often, if time were short, and how would you
# know? (2) The network beats the exact denoiser *on its training data*. When could that happen?
