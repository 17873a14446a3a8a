# %% [markdown]
# # 08 · Captions to pictures: GLIDE
#
# **30 minutes** · any computer, a minute of its time · you need: lessons 03 and 05.
#
# After this you can steer a trained text-to-image model, measure whether it listens and to which
# words, and fill a hole in a picture. The formula is the one that you know:
#
# $$\hat\epsilon = \epsilon_{null} + s\,(\epsilon_{caption} - \epsilon_{null})$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import numpy as np

from common import data, devices, guidance, metrics, plot, sampler
from common.process import Prediction, to_float, to_uint8
from common.scenes.captions import caption
from common.scenes.scene import COLOURS, SHAPES
from glide import model
from glide.sample import SHIPPED, draw

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
devices.start()
config, params, _ = model.load(SHIPPED)
schedule, tokenizer = model.make_schedule(config), model.tokenizer(config)
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
#
# GLIDE is a U-Net that also sees a caption. The words enter twice: a vector for all of them joins
# the time embedding, and every attention layer may look at each word. One time in ten a caption was
# dropped in training, so the same network also knows pictures of *anything*. Everything about the
# text is computed once, before sampling begins:

# %%
texts = ["a red ball left of a blue cube", "a green heart on a white background"]
tokens = tokenizer.encode(texts)
cond = model.encode_text(config, params, tokens)
null_cond = model.encode_text(config, params, 0 * tokens)  # nothing but padding: the null caption
print({name: part.shape for name, part in cond.items()})
# %% [markdown]
# ## The obvious thing, and why it falls short
#
# Give the caption and sample ($s = 1$). A reader, a program that recognises shapes and colours
# without any network, counts how often the captions came true.


# %%
n, steps = (16, 10) if QUICK else (64, 30)
scenes, rng = data.load("scenes", "test"), np.random.default_rng(0)
prompts = [caption(scene, rng) for scene in scenes["scenes"][:n]]
share = {}
for s in (1.0, 3.0):
    images = draw(config, params, prompts, guidance_scale=s, steps=steps)
    share[s] = metrics.caption_accuracy(prompts, images)["shape_colour"]["accuracy"]
    print(f"s = {s:g}: shapes and colours right in {share[s]:.0%} of {n} pictures")
assert share[3.0] > share[1.0]  # told more strongly, it listens better
plot.grid(images[:8], captions=prompts[:8], scale=3)

# %% [markdown]
# Training pictures had captions that were sometimes wrong, and training stopped early: at $s = 1$
# the model hedges. Guidance exaggerates what the caption changes.
#
# ### Exercise 1 · guidance for a real network (8 minutes)
#
# Call the network once, with both halves: that costs less than two calls. A `Prediction` has `eps`
# and `v`, the learned variance; guide `eps` alone and keep the caption's `v`.


# %% tags=["exercise"]
def guided(denoise, null_cond, s):
    """denoise(x, t, cond) -> Prediction(eps, v); -> a denoiser of the same kind."""

    def denoise_guided(x, t, cond):
        # BEGIN SOLUTION
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null_cond)
        out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        eps, eps_null = jnp.split(out.eps, 2)
        return Prediction(eps_null + s * (eps - eps_null), jnp.split(out.v, 2)[0])
        # END SOLUTION

    return denoise_guided


# %% tags=["check"]
denoise = jax.jit(model.denoiser(config, params))
x, t = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)), jnp.array([600, 600])
calls = []
count = lambda x, t, cond: (calls.append(len(x)), denoise(x, t, cond))[1]  # noqa: E731
right = guidance.classifier_free(denoise, null_cond, 3.0)(x, t, cond)
got = guided(count, null_cond, 3.0)(x, t, cond)
assert isinstance(got, Prediction), "return Prediction(eps, v), as every denoiser does"
assert calls == [4], f"one call with both halves, 4 pictures, and not calls with {calls}"
assert got.eps.shape == x.shape, f"eps has shape {got.eps.shape}: as many rows as you were given"
assert jnp.allclose(got.eps, right.eps, atol=1e-4), "eps = eps_null + s (eps - eps_null)"
assert jnp.allclose(got.v, right.v, atol=1e-5), "v is the caption's own: it is not guided"

# %% [markdown]
# ## Predict, then run
#
# Which words does it use? Take real pictures of two objects, add noise, and compare the error under
# the true caption with that under a changed one. Two changes to "a red ball left of a blue cube":
# **replace** both colours by others, or **exchange** them ("a blue ball left of a red cube").
#
# **A** both cost nothing · **B** the same · **C** replacing costs more · **D** exchanging costs
# more. And what if the model had learned *which* colours there are, but not *whose*?
#
# ### Exercise 2 · the price of a wrong caption (5 minutes)


# %% tags=["exercise"]
def price(error_of, true, changed):
    """error_of(texts) -> squared error (B,) under these captions; mean rise by the change, a float.

    Both calls see the same pictures and the same noise.
    """
    # BEGIN SOLUTION
    return float((error_of(changed) - error_of(true)).mean())
    # END SOLUTION


# %% tags=["check"]
table = {"a": np.array([1.0, 2.0]), "b": np.array([1.5, 3.5])}
assert price(table.get, "a", "b") == 1.0, "mean error of the changed captions minus the true ones'"
assert price(table.get, "a", "a") == 0.0 and price(table.get, "b", "a") == -1.0
assert isinstance(price(table.get, "a", "b"), float), "one number: the mean over the batch"


# %% tags=["check"]
def two(scene):
    """Two objects that differ in shape and in colour."""
    a, b = (scene.objects * 2)[:2]
    return len(scene.objects) == 2 and a.shape != b.shape and a.colour != b.colour


def exchange(text, words):
    """The two words of the kind change places."""
    a, b = (w for w in text.split() if w in words)
    return " ".join({a: b, b: a}.get(w, w) for w in text.split())


def replace(text, words):
    """Each word of the kind becomes the next one of the list."""
    words = list(words)
    after = {w: words[(i + 1) % len(words)] for i, w in enumerate(words)}
    return " ".join(after.get(w, w) for w in text.split())


rows = [i for i, scene in enumerate(scenes["scenes"]) if two(scene)][: 32 if QUICK else 128]
true = [caption(scenes["scenes"][i], rng) for i in rows]
x0 = to_float(jnp.asarray(scenes["image"][rows]))
eps, at = jax.random.normal(jax.random.key(1), x0.shape), jnp.full(len(rows), 800)
x_t = schedule.add_noise(x0, at, eps)
ids = tokenizer.encode
wrong = jax.jit(lambda x, tokens: denoise(x, at, {"tokens": tokens}).eps - eps)
error_of = lambda texts: np.square(wrong(x_t, ids(texts))).mean((1, 2, 3))  # noqa: E731
cost = {}  # a thousandth of the squared error in eps is the unit
for name, words in (("colours", COLOURS), ("shapes", SHAPES)):
    for change in (replace, exchange):
        changed = [change(text, words) for text in true]
        cost[change.__name__, name] = price(error_of, true, changed)
        print(f"{change.__name__:9} {name:8} {1000 * cost[change.__name__, name]:7.2f}")
assert cost["replace", "colours"] > cost["exchange", "colours"] > 0

# %% [markdown]
# ## What you should see
#
# <details><summary>Answer</summary>
#
# **C**, and exchanging costs a good part of it: the *set* of colours is still right. A model that
# reads a caption as a bag of words pays **nothing** for it. An earlier version did: it drew
# one object right in 94% of cases, two in 23%, and only this table told why (`TextConfig.order`).
# </details>
#
# ### Exercise 3 · a hole in a picture (5 minutes)
#
# The sampler hands each guess of `x0` to `x0_fn`. Put the known pixels there (`keep_mask` is 1
# where they are kept), and what is drawn must fit them. No training is needed.


# %% tags=["exercise"]
def paste(x0, known, keep_mask):
    """x0, known (B, H, W, 3), keep_mask (B, H, W, 1) of 0 and 1 -> x0 with what is known."""
    # BEGIN SOLUTION
    return jnp.where(keep_mask == 1, known, x0)
    # END SOLUTION


# %% tags=["check"]
half = jnp.concatenate([jnp.ones((1, 4, 2, 1)), jnp.zeros((1, 4, 2, 1))], axis=2)
got = paste(jnp.full((1, 4, 4, 3), 0.5), jnp.full((1, 4, 4, 3), -1.0), half)
assert got.shape == (1, 4, 4, 3), f"shape {got.shape}, not that of x0"
assert jnp.allclose(got[:, :, :2], -1), "where keep_mask is 1 the known pixels must stand"
assert jnp.allclose(got[:, :, 2:], 0.5), "where keep_mask is 0 the guess must stay"

# %%
place = next(i for i in rows if scenes["scenes"][i].objects[1].place == "right")
kept = scenes["scenes"][place].objects[0]
wish = [f"a {kept.colour} {kept.shape} left of a purple star".replace("a orange", "an orange")] * 4
known = jnp.repeat(to_float(jnp.asarray(scenes["image"][place]))[None], 4, axis=0)
keep_mask = jnp.zeros((4, 32, 32, 1)).at[:, :, :16].set(1.0)
wish_cond = model.encode_text(config, params, tokenizer.encode(wish))
nothing = model.encode_text(config, params, 0 * tokenizer.encode(wish))


@jax.jit
def fill(x, key):
    def project(x, s, key):  # and in every x_s the known pixels, as noisy as it is
        noisy = schedule.add_noise(known, s, sampler.noise_like(key, x))
        return jnp.where(keep_mask == 1, noisy, x)

    x0_fn = lambda x0: jnp.clip(paste(x0, known, keep_mask), -1, 1)  # noqa: E731
    steered, ts = guided(denoise, nothing, 3.0), sampler.timesteps(config.T, steps)
    out = sampler.sample(steered, schedule, x, ts, wish_cond, key, x0_fn=x0_fn, project=project)
    return to_uint8(paste(out, known, keep_mask))


# %% tags=["check"]
filled = fill(jax.random.normal(jax.random.key(2), known.shape), jax.random.key(3))
assert (filled[:, :, :16] == to_uint8(known)[:, :, :16]).all(), "kept pixels must not change at all"
plot.grid(np.concatenate([to_uint8(known[:1]), filled]), title=wish[0], scale=3)

# %% [markdown]
# ## Break it
#
# If three is better than one, take twenty.

# %%
wild = draw(config, params, prompts, guidance_scale=20.0, steps=steps)
found = metrics.caption_accuracy(prompts, wild)["shape_colour"]["accuracy"]
print(f"s = 20: right in {found:.0%}, and the colours burn")
assert np.asarray(wild, float).std() > np.asarray(images, float).std()
plot.grid(wild[:8], captions=prompts[:8], scale=3)

# %% [markdown]
# ## Summary
#
# - From inside you now know `guidance.classifier_free`, the null caption and `x0_fn`.
# - Ask a model what a *changed* caption costs it: the loss does not tell whether it reads.
# - Read: Nichol et al. 2021 (GLIDE), sections 2.3, 4.1 and 4.3; Ho & Salimans 2022.
#
# Open questions: (1) Which `t` would show the price of a wrong *place*? (2) A model fine-tuned for
# holes sees the known pixels as more channels: what can it know that ours cannot?
