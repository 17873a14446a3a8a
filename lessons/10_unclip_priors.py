# %% [markdown]
# # 10 · What would CLIP see? unCLIP's prior
#
# **35 minutes** · any computer, two minutes of its time · you need: lessons 02, 05 and 07.
#
# After this you can say why DALL·E 2 does not simply decode CLIP's embedding of the caption, and
# train and run what it does instead. A network f guesses a picture's embedding from a noised one:
#
# $$L = \frac1D\,\big\|\,f(\text{signal}_t\,z_0 + \text{noise}_t\,\epsilon,\ t,\ y) - z_0\,\big\|^2,
#   \qquad z_0 = \sqrt D\; z_i$$

# %%
import os
import sys
from dataclasses import replace

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

from common import data, devices, plot, sampler, train
from common.clip import zero_shot
from common.scenes.captions import caption, claims
from common.scenes.render import render
from common.scenes.scene import COLOURS, HELD_OUT, SHAPES
from glide.clip import class_prompts
from glide.model import tokenizer
from unclip import diffusion_prior as prior
from unclip.model import load, open_clip
from unclip.sample import SHIPPED, SHIPPED_CLIP, SHIPPED_PRIORS, decode
from unclip.scoring import read_one

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
devices.start()
clip = open_clip(SHIPPED_CLIP)
config, params, _ = prior.load(SHIPPED_PRIORS["diffusion"])
S, D = prior.make_schedule(config), config.dim
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# unCLIP draws twice. A *prior* draws $z_i$, CLIP's embedding of a picture that is not there yet,
# from the caption y; a *decoder*, a GLIDE that is also told $z_i$, draws the picture x:
# $P(x|y) = P(x|z_i, y)\,P(z_i|y)$. What is gained: $z_i$ can be looked at and changed in between.
#
# ## The obvious thing, and why it falls short
# Why learn a prior? CLIP has put captions into the same space (lesson 07): take the caption's
# embedding $z_t$ for $z_i$. How near are the two?

# %%
N, half = 1000, 500
test, rng = data.load("scenes", "test"), np.random.default_rng(0)
scenes, pictures = test["scenes"][:N], test["image"][:N]
texts = [caption(scene, rng) for scene in scenes]
z_i, z_t = clip.images(pictures), clip.texts(texts)
own, other = (z_i * z_t).sum(1).mean(), (z_i @ z_i.T - 2 * np.eye(N)).max(1).mean()
print(f"cosine of a picture with its caption {own:.2f}, with the nearest other picture {other:.2f}")

# %% [markdown]
# Near! (In OpenAI's CLIP, of photos from the web, a picture and its caption have a cosine of about
# 0.3, and any two pictures more: that is the *modality gap*.) But look what is in them, by two
# linear probes. Is it of a picture or of a caption? And, learned on pictures: which background?

# %%
probe = lambda z, labels: LogisticRegression(C=10, max_iter=300).fit(11 * z, labels)  # noqa: E731
kind = probe(np.concatenate([z_i[:half], z_t[:half]]), np.repeat(["picture", "caption"], half))
background = np.array([scene.background for scene in scenes])
ground = probe(z_i[:half], background[:half])
is_picture = lambda z: float((kind.predict(11 * z) == "picture").mean())  # noqa: E731
told, right = np.array(["background" in claims(text) for text in texts[half:]]), {}
for name, z, rows in (("picture", z_i, told | True), ("caption that names it", z_t, told),
                      ("caption that does not", z_t, ~told)):  # fmt: skip
    right[name] = (ground.predict(11 * z[half:]) == background[half:])[rows].mean()
    taken = is_picture(z[half:][rows])
    print(f"{name:22} background right {right[name]:.2f}, taken for a picture {taken:.2f}")

# %% [markdown]
# So there is a gap here, too, only a thin one: a plane parts the two kinds. And every picture has a
# background, while "a red ball" has none: its vector belongs to no picture, and a decoder learns
# from pictures' only. Many pictures fit a caption. Wanted is a *draw* from $P(z_i|y)$.
#
# ### Exercise 1 · the prior's loss (8 minutes)
# The formula at the top, its mean over the batch. CLIP's embeddings have length 1, so their numbers
# are small, but the noise is of size 1: hence the $\sqrt D$. `S.at(t, 2)` gives (signal, noise).

# %% tags=["exercise"]
def prior_loss(f, z_i, t, eps):
    """f(x, t) -> guess of z_0; z_i (B, D) of length 1, t (B,), eps (B, D) -> loss, a scalar."""
    # BEGIN SOLUTION
    z_0 = jnp.sqrt(z_i.shape[-1]) * z_i
    signal, noise = S.at(t, 2)
    return jnp.square(f(signal * z_0 + noise * eps, t) - z_0).mean()
    # END SOLUTION

# %% tags=["check"]
tokens = tokenizer(config).encode(texts[:8])
batch = {"image_embedding": z_i[:8], "tokens": tokens[:, None], "text_embedding": z_t[:8, None]}
cond = {"tokens": tokens, "text_embedding": z_t[:8]}
f = jax.jit(lambda x, t: prior.Prior(config).apply({"params": params}, x, t, cond))
keys = jax.random.split(jax.random.key(0), 8)
noise_keys = jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)  # as the library splits them
_, t, eps = train.noise_batch(S, z_i[:8], noise_keys)
nought = prior_loss(lambda x, t: 0 * x, z_i[:8], t, eps)
assert jnp.shape(nought) == (), "one number: the mean over the batch and the D numbers"
assert jnp.isclose(nought, 1, atol=1e-3), f"guessing 0 must cost 1, not {nought:.3f}: scale z_i"
right_loss = jax.jit(prior.make_loss(config, drop=0.0))(params, batch, keys)[0]
got, why = prior_loss(f, z_i[:8], t, eps), "f sees signal z_0 + noise eps, and guesses z_0, not eps"
assert jnp.isclose(got, right_loss, rtol=1e-2), f"{got:.4f}, not {right_loss:.4f}: {why}"

# %% [markdown]
# What if nobody scales? Of 500 pictures, whose noised embedding is this? No guess is better than
# the one of the largest dot product; where that one is wrong, x has nothing to teach.

# %%
times, some, told = np.arange(50, 1000, 50), z_i[:500], {}
for name, factor in {"times sqrt(D)": D**0.5, "length 1": 1.0}.items():
    x = [S.signal[t] * factor * some + S.noise[t] * rng.standard_normal(some.shape) for t in times]
    told[name] = ((np.asarray(x) @ some.T).argmax(2) == np.arange(500)).mean(1)
plot.curve({k: (times, v) for k, v in told.items()}, xlabel="t", ylabel="told which picture")

# %% [markdown]
# ## Predict, then run
# At t = T the network sees noise alone, and its loss is a square. What does it guess for "a red
# ball"? **A** some red ball's embedding · **B** the mean of all red balls', shorter than a true
# one · **C** the caption's embedding.

# %%
M, text = 86 if QUICK else 258, "a red ball"
alone = [scene for scene in test["scenes"] if len(scene.objects) == 1][:M]
balls = [replace(s, objects=(replace(s.objects[0], shape="ball", colour="red"),)) for s in alone]
real, z_text = clip.images(render(balls, 32)), clip.texts([text] * M)
cond = {"tokens": tokenizer(config).encode([text] * M), "text_embedding": z_text}
x_T, at_T = jax.random.normal(jax.random.key(1), (M, D)), jnp.full(M, S.T)
guess = jax.jit(prior.Prior(config).apply)({"params": params}, x_T, at_T, cond)
draw = lambda cond, seed: prior.draw(  # noqa: E731
    config, params, *cond.values(), steps=32, best_of=1, seed=seed)
sets = real, z_text, np.asarray(prior.unscale(guess)), draw(cond, 0)
found = dict(zip(("real", "caption", "guess at T", "drawn"), sets, strict=True))
unit = lambda z: z / np.linalg.norm(z, axis=-1, keepdims=True)  # noqa: E731

def bits(labels):
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float((share * np.log2(1 / share)).sum())

seen = {name: (np.linalg.norm(z, axis=1).mean(), (unit(z) @ unit(real.mean(0))).mean(),
               is_picture(unit(z)), bits(ground.predict(11 * unit(z))))
        for name, z in found.items()}  # fmt: skip
line = "{:10} length {:.2f}, to the mean {:.2f}, a picture {:.2f}, background {:.1f} bits"
print(*(line.format(name, *row) for name, row in seen.items()), sep="\n")

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** The best guess in squares is the mean, and the mean of a cloud is not in the cloud: it is
# short. The caption lies near it, too. Sampling goes from there out to one member: of length 1, as
# far from the middle as real ones, with a background (2.3 bits: all five alike).
# </details>
#
# ### Exercise 2 · the better of two (5 minutes)
# A draw may miss the caption. unCLIP draws two and keeps the larger dot product with $z_t$.

# %% tags=["exercise"]
def best(z, text_embedding):
    """z (B, n, D): n draws for each caption; text_embedding (B, D) -> the best of each (B, D)."""
    # BEGIN SOLUTION
    pick = jnp.einsum("bnd,bd->bn", z, text_embedding).argmax(1)
    return z[jnp.arange(len(z)), pick]
    # END SOLUTION

# %% tags=["check"]
many = jnp.asarray(z_i[:60].reshape(20, 3, D))
got, right_best = best(many, z_t[:20]), prior.best(many, z_t[:20])
assert jnp.shape(got) == (20, D), f"one embedding for each caption, (20, {D}), not {jnp.shape(got)}"
why = "of each caption's own n draws, as it is, the one with the *largest* dot product"
assert (got == right_best).all(), why

# %%
pairs = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT] * (M // 43)
asked = [f"a {c} {s}".replace("a o", "an o") for s, c in pairs]
every = {"tokens": tokenizer(config).encode(asked), "text_embedding": clip.texts(asked)}
prompts = class_prompts(clip.config, clip.params)  # of the shapes, of the colours
draws = [draw(every, seed) for seed in (1, 2)]
two = np.asarray(prior.best(jnp.stack(draws, axis=1), every["text_embedding"]))
want, fits = np.array([(SHAPES.index(s), [*COLOURS].index(c)) for s, c in pairs]), {}
for name, z in {"one draw": draws[0], "better of two": two}.items():
    said = np.stack([zero_shot(unit(z), classes) for classes in prompts], axis=1)  # lesson 07
    fits[name] = (said == want).all(1).mean()
    print(f"{name:13} has its caption's shape and colour, says CLIP: {fits[name]:.2f}")

# %% [markdown]
# ## The caption's embedding, fed to the decoder
# Whose pictures are red balls, of various backgrounds? (The decoder gets no caption here.)

# %%
few, steps = (16, 25) if QUICK else (48, 50)
decoder, weights, _ = load(SHIPPED)
made, rows = {}, []
for name in ("caption", "drawn", "real"):
    images = decode(decoder, weights, found[name][:few], steps=steps, chunk=16, seed=1)
    one = [r for r in read_one(images) if r]  # the reader's scenes of one object
    hit = [r["shape"] == "ball" and r["colour"] == "red" for r in one]
    made[name] = sum(hit) / few, bits([r["background"] for r in one])
    print("{:8} a red ball {:.2f}, background {:.1f} bits".format(name, *made[name]))
    rows.append(images[:8])
plot.grid(np.concatenate(rows), columns=8, row_labels=[*made], scale=3)

# %% [markdown]
# Captions give red balls, too, for the gap is thin here; but the decoder has to make up the rest,
# and likes a few grounds best. The paper: FID 16.6 from captions' embeddings, 8.0 with a prior.
#
# ## What you should see
# Probes take fewer than 5% of captions for pictures, more than 90% of draws. Draws have length 1,
# the guess at T less than 0.9. At t = 500 only scaled embeddings can be told apart.

# %%
assert right["picture"] > 0.95 > 0.4 > right["caption that does not"]
assert seen["guess at T"][0] < 0.9 < 0.95 < seen["drawn"][0] < 1.05 and seen["guess at T"][1] > 0.95
assert seen["caption"][2] < 0.05 < 0.9 < seen["drawn"][2] and seen["real"][2] > 0.95
assert seen["caption"][3] < 0.1 < 1.6 < seen["drawn"][3] < seen["real"][3] + 0.3
assert fits["better of two"] > fits["one draw"] + 0.02 and made["caption"][1] < made["drawn"][1]
assert told["times sqrt(D)"][9] > 0.9 > 0.1 > told["length 1"][9]  # at t = 500

# %% [markdown]
# ## Break it
# Samplers of pictures clip every guess to [-1, 1]. An embedding has no such range: of the scaled
# numbers one in three lies outside. Clip, from habit:

# %%
walk = prior.denoiser(config, params), S, x_T, sampler.timesteps(S.T, 32), cond
clipped = sampler.sample(*walk, jax.random.key(2), eta=1.0, x0_fn=sampler.clip_x0)
short = float(np.linalg.norm(prior.unscale(clipped), axis=1).mean())
outside = (abs(prior.scale(real)) > 1).mean()
print(f"{outside:.0%} of real numbers are outside; clipped draws have length {short:.2f}")
assert 0.25 < outside < 0.4 and short < 0.85

# %% [markdown]
# ## Summary
# You now understand `unclip/diffusion_prior.py` and `python -m unclip train-prior | sample`.
#
# - A caption is a point, the pictures that fit it are a cloud: to generate is to draw from it.
# - The prior is a diffusion model of 128 numbers; it guesses $z_0$, and its scale must be 1.
# - A mean is no member: what a square loss guesses at once, sampling reaches in many steps.
#
# Read: Ramesh et al. 2022 (unCLIP), sections 2.2, 5.1. Two open questions, a page each:
#
# 1. A decoder could be trained on captions' embeddings. What would it win, what would be lost?
# 2. The better of *twenty*: which captions gain, and what do the pictures lose?
