# %% [markdown]
# # 11 · Change what CLIP sees: unCLIP's manipulations
#
# **35 minutes** · any computer, two minutes of its time · you need: lessons 03 and 10.
#
# After this you can take a picture apart into two latents, put it together again, and change one of
# them: variations, blends, and edits by words. One formula does the turning:
#
# $$\text{slerp}(a, b, \theta) = \frac{\sin((1 - \theta)\,\omega)\;a + \sin(\theta\,\omega)\;b}
#   {\sin \omega}, \qquad \cos \omega = \frac{a \cdot b}{|a|\,|b|}$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import numpy as np

from common import data, devices, plot, sampler, schedule
from common.mixture import Mixture
from unclip import manipulate
from unclip.model import load, open_clip
from unclip.sample import SHIPPED, SHIPPED_CLIP, first_noise
from unclip.scoring import ALL, read_one
from unclip.study_edits import psnr, truths

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
devices.start()
clip = open_clip(SHIPPED_CLIP)
config, params, _ = load(SHIPPED)  # the decoder
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# unCLIP's decoder makes a picture of two things: $z_i$, what CLIP sees, and the noise $x_T$ that it
# began with. DDIM (lesson 03) also runs backwards, so a given picture has both: $z_i$ by CLIP,
# $x_T$ by inversion. What is in which? In an exact world one can say. A class y plays $z_i$:

# %%
S, ts, key = schedule.linear(), sampler.timesteps(1000, 200), jax.random.key(0)
mean = jnp.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
std = jnp.array([0.2, 0.8, 0.4])
world = Mixture(jnp.full(3, 1 / 3), mean, std, label=jnp.arange(3))
exact = world.denoiser(S)
x0, y = world.sample(key, 300)

# %% [markdown]
# ### Exercise 1 · the same, in another class (8 minutes)
# Invert `x0` told its own class, then sample told the other: `sampler.invert(denoise, schedule, x,
# ts, cond)`, `sampler.sample(denoise, schedule, x, ts, cond, key)`, conditions `{"label": y}`.

# %% tags=["exercise"]
def swap(x0, y, other):
    """x0 (B, 2) of class y (B,) -> the points of class `other` (B,) with the same x_T (B, 2)."""
    # BEGIN SOLUTION
    x_T = sampler.invert(exact, S, x0, ts, {"label": y})
    return sampler.sample(exact, S, x_T, ts, {"label": other}, key)
    # END SOLUTION

# %% tags=["check"]
again, other = swap(x0, y, y), (y + 1) % 3
assert jnp.shape(again) == x0.shape, "return the points, (B, 2)"
far = float(jnp.abs(again - x0).max())
assert far < 0.1, f"with its own class a point must come back, and is {far:.2f} off: y both ways"
moved = swap(x0, y, other)
expected = mean[other] + std[other][:, None] * (x0 - mean[y]) / std[y][:, None]
far = float(jnp.abs(moved - expected).max())
assert far < 0.2, f"{far:.2f} off: invert told y, the class of x0, and sample told the other"

# %% [markdown]
# So $x_T$ is *where in its class* a point lies, $x_T = (x_0 - \text{mean}_y) / \text{std}_y$, and
# nothing of the class. (Of one Gaussian a class; of pictures, about.)

# %%
x_T, where = sampler.invert(exact, S, x0, ts, {"label": y}), (x0 - mean[y]) / std[y][:, None]
print(f"largest difference {jnp.abs(x_T - where).max():.3f} of {jnp.abs(where).max():.1f}")
assert jnp.allclose(x_T, where, atol=0.15)

# %% [markdown]
# To keep the class and forget the place, sample from $x_T$ with noise, eta > 0: a *variation*.

# %%
again = devices.jit(lambda eta: sampler.sample(exact, S, x_T, ts, {"label": y}, key, eta=eta))
etas, place, label = np.linspace(0, 1, 9), [], []
for eta in etas:
    x = again(eta)
    place.append(np.corrcoef(((x - mean[y]) / std[y][:, None]).ravel(), where.ravel())[0, 1])
    nearest = (jnp.linalg.norm(x[:, None] - mean[None], axis=2) / std[None]).argmin(1)
    label.append(np.mean(nearest == y))
plot.curve({"class kept": (etas, label), "place kept (correlation)": (etas, place)}, xlabel="eta",
           ylabel="kept", title="variations in the exact world")  # fmt: skip

# %% [markdown]
# ## Predict, then run
# Now pictures: each is inverted with its $z_i$ and drawn again with eta 0, 0.5 and 1, no caption.
# Which of shape, colour, background, style, size and place does the reader still find at eta = 1?
# **A** shape and colour, which every caption names · **B** most of all six: CLIP sees them all
# (a linear probe of $z_i$ finds even the place) · **C** none: new noise, new picture.

# %%
n, steps = (16, 25) if QUICK else (32, 50)
test = data.load("scenes", "test")
alone = [i for i, scene in enumerate(test["scenes"]) if len(scene.objects) == 1][:n]
pictures, before = test["image"][alone], truths([test["scenes"][i] for i in alone])
z, options = clip.images(pictures), {"steps": steps, "chunk": 16}
noise = manipulate.invert(config, params, pictures, z, **options)

def draw(z, x, eta=0.0):
    return manipulate.reconstruct(config, params, z, x, eta=eta, **options)

def kept(images):
    """Share of each attribute that the reader finds as before, in a scene of one object."""
    pairs = list(zip(read_one(images), before, strict=True))
    return {k: float(np.mean([seen.get(k) == was[k] for seen, was in pairs])) for k in ALL}

again = {eta: draw(z, noise, eta) for eta in (0.0, 0.5, 1.0)}
same, close = ({eta: f(images) for eta, images in again.items()}
               for f in (kept, lambda images: float(psnr(images, pictures).mean())))  # fmt: skip
for eta in again:
    print(f"eta {eta}: {close[eta]:.1f} dB", *(f"{k} {v:.2f}" for k, v in same[eta].items()))
rows = np.concatenate([pictures[:8], *(images[:8] for images in again.values())])
plot.grid(rows, columns=8, row_labels=["picture", *(f"eta {eta}" for eta in again)], scale=3)

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** At eta = 0 all comes back, nearly to the pixel (the more steps, the nearer). At eta = 1 the
# grain is new, the exact position too, and most that has a name is as it was: that was in $z_i$.
# The place suffers most. It is in $z_i$, but this small decoder does not always look.
# </details>
#
# ## Blends: the obvious thing, and why it falls short
# What lies between two pictures? Fade one into the other, and you get a double exposure. Between
# two latents should lie a picture; but a straight line leaves the sphere where all x_T live:

# %%
fresh = first_noise(config, 2 * n, seed=0)
line, ends = (fresh[:n] + fresh[n:]) / 2, np.roll(np.arange(n), 1)
print(f"spread of x_T {fresh.std():.2f}, half way on the line {line.std():.2f}")

# %% [markdown]
# ### Exercise 2 · slerp (7 minutes)
# So one turns. The formula at the top; a row may have any shape: flatten it to find its angle.

# %% tags=["exercise"]
def slerp(a, b, theta):
    """a, b (B, ...), theta a number -> (B, ...), theta 0 is a, 1 is b."""
    # BEGIN SOLUTION
    rows_a, rows_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
    w = np.arccos((rows_a * rows_b).sum(1) / norms)[:, None]
    out = (np.sin((1 - theta) * w) * rows_a + np.sin(theta * w) * rows_b) / np.sin(w)
    return out.reshape(a.shape)
    # END SOLUTION

# %% tags=["check"]
a, b = fresh[:3], fresh[3:6]
assert np.shape(slerp(a, b, 0.5)) == a.shape, f"return rows of the shape of a, {a.shape}"
assert np.allclose(slerp(z[:3], z[3:6], 1.0), z[3:6], atol=1e-3), "theta = 1 must give b"
length = np.linalg.norm(slerp(z[:3], z[3:6], 0.3), axis=1)
assert np.allclose(length, 1, atol=1e-3), f"unit vectors stay of length 1, not {length[0]:.2f}"
right = manipulate.slerp(a, b, 0.3)
assert np.allclose(slerp(a, b, 0.3), right, atol=1e-2), "each row has an angle of its own"

# %%
between = manipulate.slerp(z, z[ends], 0.5)
half = {"faded": np.uint8((pictures / 2 + pictures[ends] / 2).round()),
        "x_T on the line": draw(between, line),
        "x_T turned": draw(between, manipulate.slerp(fresh[:n], fresh[n:], 0.5))}  # fmt: skip
scene = {k: np.mean([bool(r) for r in read_one(images)]) for k, images in half.items()}
print("a scene of one object:", *(f"{k} {v:.2f}" for k, v in scene.items()))
rows = np.concatenate([images[:8] for images in (pictures, pictures[ends], *half.values())])
plot.grid(rows, columns=8, row_labels=["a", "b", *half], scale=3)

# %% [markdown]
# ### Exercise 3 · edits by words (6 minutes)
# The way from "a red ball" to "a blue cube" in CLIP's space is the difference of the two captions'
# embeddings, made length 1: $z_d = (z_t - z_{t0}) / |z_t - z_{t0}|$. Turn $z_i$ towards it.

# %% tags=["exercise"]
def text_diff(z_i, z_t, z_t0, theta):
    """z_i (B, D), z_t and z_t0 (B, D), the new and the old caption -> the turned z_i (B, D)."""
    # BEGIN SOLUTION
    diff = z_t - z_t0
    z_d = diff / np.linalg.norm(diff, axis=1, keepdims=True)
    return manipulate.slerp(z_i, z_d, theta)
    # END SOLUTION

# %% tags=["check"]
z_t, z_t0 = clip.texts(["a blue cube", "a cyan ring"]), clip.texts(["a red ball", "a pink star"])
assert np.allclose(text_diff(z[:2], z_t, z_t0, 0.0), z[:2], atol=1e-3), "theta = 0 leaves z_i alone"
got, right = (f(z[:2], z_t, z_t0, 0.4) for f in (text_diff, manipulate.text_diff))
assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-3), "turn (slerp): the length stays 1"
why = "towards what changes, new minus old; each difference of length 1"
assert np.allclose(got, right, atol=1e-3), why

# %%
noun = lambda colour, shape: f"a {colour} {shape}".replace("a o", "an o")  # noqa: E731
goal = [("red" if was["colour"] == "blue" else "blue", was["shape"]) for was in before]
new = clip.texts([noun(*words) for words in goal])
old = clip.texts([noun(was["colour"], was["shape"]) for was in before])
edited = {t: draw(manipulate.text_diff(z, new, old, t), noise) for t in (0.2, 0.35, 0.5)}
flips = {}
for theta, images in edited.items():
    seen = [r.get("colour") for r in read_one(images)]
    flips[theta] = np.mean([a == b for a, (b, _) in zip(seen, goal, strict=True)])
    rest = np.mean([v for k, v in kept(images).items() if k != "colour"])
    print(f"theta {theta}: the new colour in {flips[theta]:.2f}, the rest is kept in {rest:.2f}")
rows = np.concatenate([pictures[:8], *(images[:8] for images in edited.values())])
plot.grid(rows, columns=8, row_labels=["picture", *(f"theta {t}" for t in edited)], scale=3)

# %% [markdown]
# ## What you should see
# In the exact world the class is kept at every eta, the place until about 0.3. Pictures come back
# with over 30 dB; at eta = 1 most keep colour and background. Few faded pairs are a scene, most
# blends are (on the line, too: this decoder forgives). From theta 0.35 many have the new colour.

# %%
assert min(label) > 0.98 and place[0] > 0.99 and place[2] > 0.5 > 0.1 > abs(place[-1])
assert close[0.0] > 30 > close[1.0] + 3 and close[0.5] > close[1.0]
assert min(same[1.0]["background"], same[1.0]["colour"]) > 0.6 and line.std() < 0.75
assert scene["faded"] < 0.3 < 0.5 < scene["x_T turned"] and flips[0.5] > flips[0.2] + 0.15

# %% [markdown]
# ## Break it
# Invert each picture with the $z_i$ of another one, and draw it with its own:

# %%
broken = draw(z, manipulate.invert(config, params, pictures, z[ends], **options))
lost = close[0.0] - float(psnr(broken, pictures).mean())
print(f"{lost:.0f} dB lost: x_T then has to undo what the other z_i says")
assert lost > 5
plot.grid(np.concatenate([pictures[:8], again[0.0][:8], broken[:8]]), columns=8, scale=3,
          row_labels=["picture", "its own z_i", "another's"])  # fmt: skip

# %% [markdown]
# ## Summary
# You now understand `unclip/manipulate.py` and `python -m unclip vary | interpolate | text-diff`.
#
# - A picture is two latents: $z_i$ by CLIP, $x_T$ by DDIM run backwards, told $z_i$.
# - Keep $z_i$ and noise the rest: variations. What varies shows what CLIP does not see.
# - Latents live on spheres: turn them. Captions give directions to turn to.
#
# Read: Ramesh et al. 2022 (unCLIP), sections 3.1 to 3.3. Two open questions, for a page each:
#
# 1. With guidance on the way back (`guidance_scale=3`) eta = 0 no longer returns. Why?
# 2. Which text diff would move an object? Lesson 07 knows why that is hard.
