# %% [markdown]
# # 09 · Diffusion in a smaller space: latent diffusion
#
# **35 minutes** · any computer, a minute of its time · you need: lessons 05 and 06.
#
# After this you can say what Stable Diffusion's first stage does, where its 0.18215 comes from, and
# how words reach every place of a latent. The idea in one line:
#
# $$z_0 = a\,E(x), \qquad z_t = \text{signal}_t\,z_0 + \text{noise}_t\,\epsilon, \qquad
#   \hat x = D(\hat z_0 / a)$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import numpy as np

from common import data, devices, nn, plot, schedule
from common.process import to_float, to_uint8
from common.scenes.captions import agrees, claims
from common.scenes.reader import read
from ldm import autoencoder, losses, measure
from ldm.model import BESIDE, load
from ldm.sample import SHIPPED, draw
from ldm.train import measure_scale as library_scale
from ldm.upscale import shrink

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
devices.start()
stage, params, _ = autoencoder.load(SHIPPED.parent / BESIDE)
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# Most numbers in a picture are grain and soft shading that nobody would miss. An autoencoder,
# trained once, puts a picture into a small array z (its *latent*) and back. The diffusion model
# then learns z alone: every step, of training and of sampling, works on fewer places.

# %%
N = 64 if QUICK else 256
test = data.load("scenes", "test", size=64)
scenes, pictures = test["scenes"][:N], test["image"][:N]
apply = lambda method: jax.jit(lambda a: autoencoder.Autoencoder(stage).apply(  # noqa: E731
    {"params": params}, a, method=method))  # fmt: skip
encode, decode = apply("encode"), apply("decode")
x = to_float(jnp.asarray(pictures))
z, logvar = encode(x)  # E(x): the mean, and how sure of it the encoder is
print(f"a picture has {x[0].size} numbers, its latent {z[0].shape} has {z[0].size}")

# %% [markdown]
# ## The obvious thing, and why it falls short
# Why train anything? 16 x 16 pixels are 768 numbers, fewer yet. Shrink by 4, enlarge smoothly, and
# let the reader, who needs no network, say what is still to be seen.

# %%
small = shrink(pictures, stage.factor)
smooth = to_uint8(jax.image.resize(to_float(jnp.asarray(small)), x.shape, "bicubic"))
back = np.asarray(to_uint8(decode(z)))
kept = {}
for name, images in (("shrunk", np.asarray(smooth)), ("encoded", back)):
    kept[name] = measure.fidelity(images, pictures, scenes)
    shape, colour = (kept[name]["accuracy"][kind] for kind in ("shape", "colour"))
    psnr = kept[name]["psnr"]
    print(f"{name:8} {psnr:.1f} dB, shape still seen {shape:.2f}, colour {colour:.2f}")
rows = np.concatenate([a[:8] for a in (pictures, np.asarray(smooth), back)])
plot.grid(rows, columns=8, row_labels=["picture", "shrunk by 4", "encoded"], scale=2)

# %% [markdown]
# The latent spends its numbers on what matters. It is still an array of 16 x 16 places, each of
# which stands for 4 x 4 pixels: a U-Net feels at home there. Three of its channels as red, green
# and blue:

# %%
low, high = np.percentile(z[:8, ..., :3], [1, 99])
plot.grid(np.clip((np.asarray(z[:8, ..., :3]) - low) / (high - low), 0, 1), columns=8, scale=8)

# %% [markdown]
# ### Exercise 1 · what keeps the latent tame (8 minutes)
# The encoder gives a mean and a log variance per number. So that latents do not wander off, their
# distance to a standard normal is added to the loss, with a weight of only $10^{-6}$:
# $KL = \frac12 \sum (mean^2 + var - 1 - \log var)$, a sum over the latent, one value per picture.

# %% tags=["exercise"]
def gaussian_kl(mean, logvar):
    """mean, logvar (B, h, w, C) -> KL(N(mean, var) || N(0, 1)) (B,)."""
    # BEGIN SOLUTION
    terms = mean**2 + jnp.exp(logvar) - 1 - logvar
    return 0.5 * terms.sum((1, 2, 3))
    # END SOLUTION

# %% tags=["check"]
nought, m = jnp.zeros((2, 3, 3, 1)), jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
got = gaussian_kl(nought, nought)
assert jnp.shape(got) == (2,), f"one number for each picture, (2,), not {jnp.shape(got)}"
assert jnp.allclose(got, 0, atol=1e-6), "a standard normal is at distance 0 from itself"
wide = gaussian_kl(nought, nought + 1.0)
assert jnp.allclose(wide, 9 * (np.e - 2) / 2, rtol=1e-4), "log var = 1: half of e - 1 - 1, 9 times"
right = losses.gaussian_kl(m, -m)
assert jnp.allclose(gaussian_kl(m, -m), right, rtol=1e-4), "a sum over the latent, and halved"

# %%
spread = float(jnp.exp(0.5 * logvar).mean())
print(f"KL {losses.gaussian_kl(z, logvar).mean():.0f}, times 1e-6: next to nothing")
print(f"standard deviation over pictures {z.std():.2f}, within one picture's latent {spread:.4f}")

# %% [markdown]
# With so small a weight the latent is nearly a plain code: its own noise is a thousandth of its
# spread, so every digit may count, and nothing makes the spread 1. But the schedule was made for
# data of spread 1.
#
# ### Exercise 2 · the scale (6 minutes)
# One number, measured once on many latents: $a = 1 / \text{std}$ over all their elements. (Stable
# Diffusion's first stage happened to give $1 / 5.49 = 0.18215$.)

# %%
moments = np.concatenate([z, logvar], -1)  # what `python -m ldm train` keeps of each picture

# %% tags=["exercise"]
def measure_scale(z):
    """z (B, h, w, C) -> a, one number by which all latents are multiplied."""
    # BEGIN SOLUTION
    return 1 / jnp.std(z)
    # END SOLUTION

# %% tags=["check"]
got = measure_scale(z)
assert got is not None and jnp.size(got) == 1, "one number for all channels and places"
assert jnp.isclose(jnp.std(got * z), 1, atol=1e-3), "after scaling the spread of all must be 1"
assert jnp.isclose(got, library_scale(moments, stage.channels), rtol=1e-2), "as `ldm train` does"

# %% [markdown]
# ## Predict, then run
# Forget $a$: feed the schedule latents of the spread printed above. At t = 500, half of the time,
# is the latent **A** as noisy as it should be, **B** too noisy or **C** not noisy enough? And at
# t = T, where the sampler begins with pure noise: is less or more of the latent left than meant?

# %%
a = library_scale(moments, stage.channels)
S, t = schedule.scaled_linear(), np.arange(1, 1001)
ratio = lambda a: np.log10((a * float(z.std()) * S.signal[1:] / S.noise[1:]) ** 2)  # noqa: E731
off = 2 * np.log10(a)
print(f"scaling moves the whole curve by {off:+.2f}, whatever t")
assert np.allclose(ratio(a) - ratio(1.0), off, atol=1e-4)
plot.curve({"scaled": (t, ratio(a)), "not scaled": (t, ratio(1.0))}, xlabel="t",
           ylabel="log10 of signal to noise", title="the same schedule, two spreads")  # fmt: skip

# %% [markdown]
# <details><summary>Answer</summary>
#
# **C**. Signal to noise goes with the square of the spread, some 4 here: at every t it is about 17
# times what was meant, at T, too. The network would spend its training on the wrong noise levels,
# and the sampler would begin with purer noise than it has ever seen.
# </details>
#
# ### Exercise 3 · words, everywhere (10 minutes)
# In the U-Net every place asks the caption. Places give queries q, words give keys k and values v:
# $\text{softmax}(q k^T / \sqrt{d})\,v$. GLIDE put words in front of the places' own keys; latent
# diffusion gives them an attention of their own.

# %% tags=["exercise"]
def cross_attention(q, k, v):
    """q (B, places, d) of the picture, k and v (B, words, d) of the caption -> (B, places, d)."""
    # BEGIN SOLUTION
    logits = jnp.einsum("bpd,bwd->bpw", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bpw,bwd->bpd", jax.nn.softmax(logits, axis=-1), v)
    # END SOLUTION

# %% tags=["check"]
q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in enumerate((5, 3, 3)))
got = cross_attention(q, k, v)
assert jnp.shape(got) == (2, 5, 8), f"one answer a place, (2, 5, 8), not {jnp.shape(got)}"
same = cross_attention(q, k, jnp.ones_like(v))
assert jnp.allclose(same, 1, atol=1e-3), "if all words say 1, the answer is 1: weights sum to 1"
assert jnp.allclose(got, nn.attention(q, k, v, 1), atol=2e-3), "divide by sqrt(d), softmax of words"

# %%
one = nn.attention(q, k[:, :1], v[:, :1], 1)
same = bool(jnp.allclose(one, one[:, :1], atol=1e-4))
print("with a single word all places hear the same:", same)

# %% [markdown]
# So a class given as one token moves all places alike: its "attention map" is 1 everywhere.
#
# ## All of it
# Noise of 16 x 16 places, 25 steps of DDIM guided by the words, one call of the decoder:

# %%
prompts = ["a red ball", "a blue cube", "a yellow star", "a green ring"]
config, weights, _ = load(SHIPPED)
drawn = draw(config, weights, prompts, guidance_scale=3.0, steps=25)
plot.grid(drawn, captions=prompts, scale=3)

# %%
seen = zip(prompts, read(drawn), strict=True)
asked = sum(agrees(claims(prompt), reading)["shape_colour"] for prompt, reading in seen)
print(f"the reader finds what was asked for in {asked} of {len(prompts)}")

# %% [markdown]
# ## What you should see
# The reader finds shape and colour in nearly all encoded pictures, and in fewer of the shrunk ones;
# the latent's own noise is about a thousandth of its spread; most of the words are drawn.

# %%
assert asked >= 2
assert kept["encoded"]["accuracy"]["shape"] > 0.98 > kept["shrunk"]["accuracy"]["shape"]
assert kept["encoded"]["psnr"] > kept["shrunk"]["psnr"] + 2 and spread < z.std() / 20

# %% [markdown]
# ## Break it
# A decoder is no generator. Draw z from a normal of the right mean and spread, at every place and
# channel, and decode: the diffusion model's whole work is to know which z are pictures. And decode
# real latents without undoing the scale, D(z0) in place of D(z0 / a):

# %%
rng = np.random.default_rng(0)
guess = z.mean(0) + z.std(0) * jnp.asarray(rng.standard_normal(z[:8].shape, np.float32))
made, wrong = (np.asarray(to_uint8(decode(b))) for b in (guess, a * z[:8]))
valid = [np.mean([r["valid"] for r in read(b)]) for b in (back[:8], made, wrong)]
print("scenes, says the reader: encoded {:.2f}, made up {:.2f}, not unscaled {:.2f}".format(*valid))
names = ["D(E(x))", "D(made up)", "D(a E(x))"]
assert valid[0] > 0.9 and valid[1] < 0.1 and valid[2] < 0.5
plot.grid(np.concatenate([back[:8], made, wrong]), columns=8, row_labels=names, scale=2)

# %%
DATA = os.environ.get("DATA", "digits")  # not what it learned; of tfds: "mnist", "celeb_a"...
other = data.load(DATA, "test", size=64)["image"][:8]
again = np.asarray(to_uint8(decode(encode(to_float(jnp.asarray(other)))[0])))
gap = [np.abs(a.astype(float) - b).mean() for a, b in ((back, pictures), (again, other))]
print(f"lost on the way, of 255: scenes {gap[0]:.1f}, {DATA} {gap[1]:.1f}")
plot.grid(np.concatenate([other, again]), columns=8, row_labels=[DATA, "D(E(x))"], scale=2)

# %% [markdown]
# ## Summary
# You now understand `gaussian_kl` (`ldm/losses.py`), `measure_scale` (`ldm/train.py`), `attention`
# (`common/nn.py`), and the two commands `python -m ldm train-autoencoder` and `train`.
#
# - Two trainings: one learns what a picture is made of, once; the other what goes together.
# - No model of the latents can be better than the first stage's own reconstructions.
# - The scale belongs to the first stage: it is measured, stored with the weights, and undone.
#
# Read: Rombach et al. 2022, sections 3.1 to 3.3 and appendix G. Two open questions, a page each:
#
# 1. Which details does this first stage lose, and would a diffusion model have learned them?
# 2. Factor 8 in place of 4: what becomes cheaper, what is lost, and who notices first?
