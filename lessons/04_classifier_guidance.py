# %% [markdown]
# # 04 · Classifier guidance
#
# **35 minutes** · any computer, 20 seconds of its time · you need: lesson 03, and Bayes' rule.
#
# After this you can steer a denoiser that knows nothing of labels to the label you want, with any
# function that says how well a noisy point fits. Bayes' rule, differentiated, is the whole trick:
#
# $$\nabla_{x} \log p(x_t | y) = \nabla_{x} \log p(x_t) + s\,\nabla_{x} \log p(y | x_t),
# \qquad s = 1$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from common import guidance, plot, process, sampler, schedule
from common.mixture import NULL, Mixture

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# How do I generate *something specific*? Sampling needs only the score, $\nabla \log p(x_t)$.
# For a picture of a dog it needs $\nabla \log p(x_t | \text{dog})$, and Bayes' rule says
# $p(x_t | y) = p(x_t)\,p(y | x_t)\,/\,p(y)$. Take logs and differentiate: $p(y)$ drops out. So the
# score of dogs is **the score you have, plus the gradient of a classifier**, and nobody must
# retrain the denoiser. Since $\text{score} = -\epsilon / \text{noise}_t$, in our currency:
#
# $$\hat\epsilon = \epsilon - s\;\text{noise}_t\,\nabla_{x} \log p(y | x_t)$$
#
# The classifier must judge $x_t$, *noise and all*. And nothing forces $s$ to be 1.
#
# Our world has three labels. The label we want, 0, comes in two flavours: one far from the other
# labels, one right between them.

# %%
world = Mixture(
    weight=jnp.full(4, 0.25),
    mean=jnp.array([[0, 1.3], [0, 0.35], [-1.1, -0.5], [1.1, -0.5]]),
    std=jnp.array([0.3, 0.3, 0.45, 0.45]),
    label=jnp.array([0, 0, 1, 2]),
)
S = schedule.linear()
exact, B = world.denoiser(S), 300 if QUICK else 600
data, label = world.sample(jax.random.key(0), B)
wanted, zero = {"label": jnp.zeros(B, jnp.int32)}, jnp.zeros(B, jnp.int32)
unconditional = lambda x, t, cond: exact(x, t, {"label": jnp.full(len(x), NULL)})  # noqa: E731


def show(clouds):
    """Clouds {title: (points (N, 2), colours)} side by side, over the data in grey."""
    _, axes = plt.subplots(1, len(clouds), figsize=(3.3 * len(clouds), 3.3), layout="constrained")
    for axis, (title, (x, colour)) in zip(axes, clouds.items(), strict=True):
        axis.scatter(*data.T, s=5, lw=0, color="#c9ccd1")
        axis.scatter(*np.asarray(x).T, s=7, alpha=0.6, lw=0, c=colour)
        axis.set(xlim=(-2.5, 2.5), ylim=(-2.2, 2.8), xticks=[], yticks=[], title=title)
    plt.show()

# %% [markdown]
# ## The obvious thing, and why it falls short
# Draw first, correct later: take finished points and climb $\log p(y | x_0)$ until the classifier
# is content.

# %%
classifier = world.log_prob(S)  # log p(y | x_t), exact, for every t; at t = 0 of clean points
climb = jax.jit(jax.grad(lambda x: classifier(x, zero, wanted).sum()))
x = data
for _ in range(100):
    x = x + 0.01 * climb(x)
ink = np.array(plot.COLOURS[:3])
show({"the data, by label": (data, ink[label]), "pushed until called 0": (x, ink[0])})

certainty = lambda x: float(jnp.exp(classifier(x, zero, wanted)).mean())  # noqa: E731
far, near = (lambda x, k=k: jnp.linalg.norm(x - world.mean[k][None], axis=1) for k in (0, 1))
share = lambda x: float((near(x) < far(x)).mean())  # noqa: E731  (of the near flavour)
true = share(data[label == 0])
print(f"called 0: {certainty(x):.1%}; share of the near flavour {share(x):.2f}, truly {true:.2f}")
assert certainty(x) > 0.95 and share(x) > 0.65 > 0.6 > true

# %% [markdown]
# The classifier is content. But the points pile up right behind the border, where no heap belongs:
# $p(y|x)$ alone does not know what is likely. Both terms of the equation are needed, all the way.
#
# ### Exercise 1 · a classifier that knows noise (5 minutes)
# `world.log_density(S, x, t, label)` is $\log p(x_t, y)$, and $\log p(x_t)$ where the label is
# `NULL`. Make a classifier of it: $p(y | x_t) = p(x_t, y) / p(x_t)$.

# %% tags=["exercise"]
def log_prob(x, t, cond):
    """log p(y | x_t) (B,) of x (B, 2), t (B,), y = cond["label"] (B,)."""
    # BEGIN SOLUTION
    y = cond["label"]
    joint = world.log_density(S, x, t, y)
    return joint - world.log_density(S, x, t, jnp.full_like(y, NULL))
    # END SOLUTION

# %% tags=["check"]
t = jnp.full(B, 200)
x = S.add_noise(data, t, jax.random.normal(jax.random.key(1), data.shape))
got = log_prob(x, t, {"label": label})
assert got is not None and got.shape == (B,), "return one number for each row: shape (B,)"
assert (got <= 1e-4).all(), "a log-probability is never above 0: joint minus marginal, in logs"
total = sum(jnp.exp(log_prob(x, t, {"label": jnp.full(B, y)})) for y in range(3))
assert jnp.allclose(total, 1, atol=1e-4), "the labels do not sum to 1: divide by p(x_t) (in logs!)"
assert jnp.allclose(got, classifier(x, t, {"label": label}), atol=1e-4), "use the t and label given"

# %% [markdown]
# ### Exercise 2 · gradient guidance (10 minutes)
# From denoiser to denoiser, so that every sampler can use it unchanged.
#
# <details><summary>Hint</summary>`jax.grad` wants one number, and there are B. The rows do not know
# each other, so the gradient of their *sum* is each row's own gradient.</details>

# %% tags=["exercise"]
def gradient_guidance(denoise, log_prob, schedule, s):
    """-> guided(x, t, cond) with eps - s noise_t grad_x log_prob(x, t, cond)."""

    def guided(x, t, cond):
        # BEGIN SOLUTION
        eps = denoise(x, t, cond).eps
        gradient = jax.grad(lambda x: log_prob(x, t, cond).sum())(x)
        _, noise = schedule.at(t, x.ndim)
        return process.Prediction(eps - s * noise * gradient)
        # END SOLUTION

    return guided

# %% tags=["check"]
t = jnp.resize(jnp.array([1, 20, 200, 500, 900, 1000]), B)
x = S.add_noise(data, t, jax.random.normal(jax.random.key(2), data.shape))
got = gradient_guidance(unconditional, classifier, S, 2.0)(x, t, wanted)
want = guidance.gradient_guidance(unconditional, classifier, S, 2.0)(x, t, wanted)
plain = unconditional(x, t, wanted).eps
assert isinstance(got, process.Prediction), "a denoiser returns process.Prediction(eps)"
assert got.eps.shape == x.shape, "eps must be shaped like x: use schedule.at(t, x.ndim)"
push, right = got.eps - plain, want.eps - plain
assert jnp.abs(push).max() > 0.1, "hardly any push: did you average? Give jax.grad the sum of rows"
assert (push * right).sum() > 0, "the push goes the wrong way: eps points *against* the score"
assert not jnp.allclose(2 * push, right, atol=1e-4), "the scale s is missing"
assert jnp.allclose(push, right, atol=1e-4), "wrong size: multiply by noise_t, once"

# %% [markdown]
# Now the equation at the top, to rounding error: at $s = 1$ the guided denoiser **is** the
# conditional one, that of a model trained on label 0 alone.

# %%
guided = guidance.gradient_guidance(unconditional, classifier, S, 1.0)(x, t, wanted).eps
plain, conditional = unconditional(x, t, wanted).eps, exact(x, t, wanted).eps
print("largest difference:", float(jnp.abs(guided - conditional).max()))
assert jnp.abs(guided - conditional).max() < 1e-5 < 0.1 < jnp.abs(plain - conditional).max()

# %% [markdown]
# ## Predict, then run
# At $s = 1$ half of the points are of each flavour. What does $s = 3$ do? **A** both flavours grow
# sharper · **B** the flavour between the other labels vanishes · **C** nothing: 0 is already 0.

# %%
x_T, ts = jax.random.normal(jax.random.key(3), (B, 2)), sampler.timesteps(S.T, 100)


@jax.jit
def draw(s):
    """The same noise for every scale, so that only the scale makes the difference."""
    denoise = guidance.gradient_guidance(unconditional, classifier, S, s)
    return sampler.sample(denoise, S, x_T, ts, wanted, jax.random.key(4))


scales = [0.0, 1.0, 2.0, 3.0, 5.0]
drawn = {s: draw(s) for s in scales}
show({f"s = {s:g}": (drawn[s], ink[0]) for s in (0.0, 1.0, 3.0, 5.0)})

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** $s > 1$ asks for $p(x)\,p(y|x)^s$, roughly: more of the points of which the classifier is
# *sure*. Points near the other labels are true 0s, but doubtful ones. They go, then the rest
# crowds at the far side, beyond the data. Guidance buys certainty and pays with diversity.
# </details>
#
# ## What you should see
# From $s = 1$ to 3: certainty rises from 96% to above 99.9%, the mean moves up from 0.8 to 1.3,
# the std falls from 0.56 to 0.34, and the near flavour's share from a half to a tenth.

# %%
rows = [(certainty(x), x[:, 1].mean(), x[:, 1].std(), share(x)) for x in drawn.values()]
sure, height, spread, flavour = np.array(rows).T
for s, row in zip(scales, np.round(rows, 3), strict=True):
    print(f"s = {s:g}: certainty {row[0]}, height {row[1]}, std {row[2]}, near flavour {row[3]}")
assert 0.94 < sure[1] < 0.98 and sure[3] > 0.999
assert abs(height[1] - 0.8) < 0.08 and abs(height[3] - 1.34) < 0.08
assert 0.5 < spread[1] < 0.62 and spread[3] < 0.4
assert 0.4 < flavour[1] < 0.6 and flavour[3] < 0.15

# %% [markdown]
# ## Break it
# "I have a good classifier already, trained on photos." Give it noisy points: the clean
# $p(y | x_0)$, evaluated at $x_t$.

# %%
clean_only = lambda x, t, cond: classifier(x, jnp.zeros_like(t), cond)  # noqa: E731
broken = guidance.gradient_guidance(unconditional, clean_only, S, 1.0)
ruin = jax.jit(lambda x: sampler.sample(broken, S, x, ts, wanted, jax.random.key(5)))(x_T)
show({"knows noise, s = 1": (drawn[1.0], ink[0]), "knows clean points only, s = 1": (ruin, ink[1])})
t, x = jnp.full(B, 900), S.add_noise(data, jnp.full(B, 900), x_T)
slope = lambda f: jax.grad(lambda x: f(x, t, wanted).sum())(x)  # noqa: E731
honest, sure = (jnp.linalg.norm(slope(f), axis=1).mean() for f in (classifier, clean_only))
print(f"mean gradient at t = 900: {honest:.3f} or {sure:.1f}")
assert honest < 0.05 and sure > 5
assert certainty(ruin) > 0.99 and ruin[:, 0].std() < 0.15 < 0.25 < drawn[1.0][:, 0].std()

# %% [markdown]
# At $t = 900$ nobody can know the label, and the honest classifier hardly pushes. The other one is
# sure of everything and pushes a thousand times harder, all the way. The points crowd into a
# wedge. *Its certainty looks excellent*: never let the guide be the judge.
#
# ## Summary
# You now understand `gradient_guidance` of `common/guidance.py`, which serves CLIP too (lesson 08).
#
# - Conditional score = unconditional score + gradient of the log-classifier. Exactly.
# - The classifier must be trained on $x_t$, at every $t$, with the denoiser's schedule.
# - $s > 1$ trades diversity for certainty.
#
# Read: Dhariwal & Nichol 2021, section 4 and Algorithm 2. Two open questions, for a page each:
#
# 1. Does $s = 3$ sample $p(x)\,p(y|x)^3$? Compare the two at $t = 0$ by weighting data points.
# 2. What if the classifier is trained on noise, but wrong in one place? Who notices, and how?
