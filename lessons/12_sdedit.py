# %% [markdown]
# # 12 · Pictures from strokes: SDEdit
#
# **30 minutes** · any computer, two minutes of its time · you need: lessons 03 and 08.
#
# After this you can turn a daub into a picture and change a part of a photo, with a network that
# was never trained for it, and choose the one number that matters. The whole trick is its start:
#
# $$x_{t_0} = \text{signal}_{t_0}\,\text{guide} + \text{noise}_{t_0}\,z$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import numpy as np

from common import data, devices, plot
from common.process import Prediction, score_from_eps, transition_variance
from common.sampler import noise_like
from common.scenes.reader import read
from sdedit import sde
from sdedit.guides import grow, stroke_over, strokes
from sdedit.model import SHIPPED, load
from sdedit.sample import draw

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
devices.start()
config, params, _ = load(SHIPPED)  # GLIDE's own weights
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# You paint badly, but you know where things belong. Add noise to the painting: details drown first,
# the layout last. At some time $t_0$ a noised daub and a noised photo of the same layout can no
# longer be told apart. From there walk back with any denoiser: it goes to a *photo*, and the layout
# is still yours. Let us paint by program: big pixels, a median filter and six flat colours.

# %%
n, steps = (16, 25) if QUICK else (48, 60)
test = data.load("scenes", "test")
alone = [i for i, scene in enumerate(test["scenes"]) if len(scene.objects) == 1][:n]
colours, photos = [test["scenes"][i].objects[0].colour for i in alone], test["image"][alone]
small = photos.reshape(n, 16, 2, 16, 2, 3).mean((2, 4)).astype(np.uint8)
guides = strokes(small).repeat(2, 1).repeat(2, 2)

def judge(images):
    """-> share the reader takes for scenes; share in which it finds a thing of the right colour."""
    pairs = list(zip(read(images), colours, strict=True))
    found = [colour in [o["colour"] for o in seen["objects"]] for seen, colour in pairs]
    return float(np.mean([seen["valid"] for seen, _ in pairs])), float(np.mean(found))

def show(*rows, **options):
    return plot.grid(np.concatenate([row[:8] for row in rows]), columns=8, scale=3, **options)

print("photos", judge(photos), "daubs", judge(guides))
show(photos, guides, row_labels=["photos", "daubs"])

# %% [markdown]
# ## The obvious thing, and why it falls short
# A denoiser cleans pictures, so let it clean this one: a little noise, and back.
#
# ### Exercise 1 · one step back (8 minutes)
# A step of the reverse SDE from time `m` to `m - 1`: a long enough look along the score, the
# signal's growth, fresh noise.
#
# $$x \leftarrow (x + b\,\text{score})\,\frac{\text{signal}_{m-1}}{\text{signal}_m} + \sqrt{b}\,z$$
#
# `schedule.at(m, x.ndim)` gives (signal, noise); `score_from_eps(schedule, m, eps)` and
# `transition_variance(schedule, m, m - 1, x.ndim)`, which is $b$, are imported.

# %% tags=["exercise"]
def step_back(schedule, x, m, eps, z):
    """x (B, H, W, 3) at time m, the network's eps for it, fresh noise z -> x at time m - 1."""
    # BEGIN SOLUTION
    (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
    b = transition_variance(schedule, m, m - 1, x.ndim)
    score = score_from_eps(schedule, m, eps)
    return (x + b * score) * next_signal / signal + jnp.sqrt(b) * z
    # END SOLUTION

# %% tags=["check"]
S = sde.vp(0.5, 8)
fake = lambda x, m, cond=None: Prediction(0.3 * x)  # noqa: E731
flat = jnp.linspace(-1, 1, 24).reshape(2, 2, 2, 3)

def walk(step, key):
    """The library's loop, and its noise, around your step."""
    start_key, step_key = jax.random.split(jax.random.split(key, 1)[0])
    x = S.add_noise(flat, jnp.array(S.T), noise_like(start_key, flat))
    for m in range(S.T, 0, -1):
        m = jnp.array(m)
        x = step(S, x, m, fake(x, m).eps, noise_like(jax.random.fold_in(step_key, m), x))
    return x

key, no, end = jax.random.key(0), jnp.zeros_like(flat), jnp.array(8)
grown = step_back(S, flat, end, no, no)
why = "without noise and score the signal must grow from signal_m to signal_(m-1)"
assert grown is not None and jnp.allclose(grown, flat * S.signal[7] / S.signal[8], rtol=1e-4), why
b, why = transition_variance(S, 8, 7, 0), "the noise of a step is sqrt(b) z, of variance b"
assert jnp.allclose(step_back(S, no, end, no, no + 1), b**0.5, rtol=1e-3), why
library = sde.edit(fake, S, flat, None, key, last="paper")
assert jnp.allclose(walk(step_back, key), library, atol=1e-3), "the score's part: + b score, inside"

# %% [markdown]
# `sdedit.sample.draw` takes these steps with the real network. Now with very little noise:

# %%
weak = draw(config, params, guides, t0=0.01, steps=steps)
print("t0 = 0.01:", judge(weak))
show(guides, weak, row_labels=["daubs", "t0 = 0.01"])

# %% [markdown]
# It has polished the daub. So little noise does not hide the blocks, and the network has to believe
# what it sees. It must forget more.
#
# ### Exercise 2 · how far from the guide? (4 minutes)
# Faithfulness, as the paper measures it: squared differences, pixels in [0, 1], **summed** over the
# picture, then the mean over pictures.

# %% tags=["exercise"]
def distance(images, guides):
    """uint8 (B, H, W, 3), twice -> float."""
    # BEGIN SOLUTION
    gap = (images.astype(float) - guides.astype(float)) / 255
    return float((gap**2).sum((1, 2, 3)).mean())
    # END SOLUTION

# %% tags=["check"]
black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
assert distance(black, black) == 0
got = distance(black, white)
assert got is not None and np.ndim(got) == 0, "one number: the mean over the pictures"
assert got > 0.1, "0 - 255 is 1 in uint8: make floats of them first"
assert np.isclose(got, 48), f"black to white is 48 = 4 x 4 x 3 for each picture, and not {got:.4g}"
assert np.isclose(distance(black, black + np.uint8(51)), 48 / 25), "square the differences"

# %% [markdown]
# ## Predict, then run
# From $t_0 = 0$, the daub itself, to 0.9. The distance to the guide can only rise. And the share of
# pictures in which the reader, who needs a crisp shape, finds something of the *guide's* colour?
# **A** it falls · **B** it rises · **C** it rises, then falls · **D** it stays.

# %%
t0s = [0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]
drawn = {t0: draw(config, params, guides, t0=t0, steps=steps) for t0 in t0s}
valid, found = np.array([judge(images) for images in drawn.values()]).T
far = np.square((np.stack([*drawn.values()]) - guides[None] * 1.0) / 255).sum((2, 3, 4)).mean(1)
for row in zip(t0s, valid, found, far, strict=True):
    print("t0 {:.2f}: a scene {:.2f}, the colour {:.2f}, distance {:5.1f}".format(*row))
plot.strip(np.stack([drawn[t0][:6] for t0 in t0s]), [f"t0 = {t0:g}" for t0 in t0s], scale=3)

# %%
series = {"taken for a scene": (t0s, valid), "guide's colour found": (t0s, found),
          "distance to the guide / largest": (t0s, far / far[-1])}  # fmt: skip
plot.curve(series, xlabel="t0", ylabel="share", title="the price of realism")

# %% [markdown]
# <details><summary>Answer</summary>
#
# **C.** A little forgetting turns blots into things; more forgets which. The best $t_0$ is small
# here, 0.2, where the paper recommends 0.3 to 0.6: it has 256 pixels a side. A thing of 6 pixels
# drowns much earlier than one of 60, having fewer pixels to average the noise away.
# </details>
#
# ## What you should see
# The colour is found in fewer than 0.65 of the daubs, in more than 0.75 at $t_0 = 0.2$ and in few
# at 0.9. The distance rises from 0 (the daub comes back, bit for bit) to more than 100.

# %%
assert (drawn[0.0] == guides).all() and (np.diff(far) > 0).all() and far[2] < 20 < 100 < far[-1]
assert judge(weak)[1] < found[2]  # very little noise is too little
assert found[0] < 0.65 < 0.75 < found[2] and found[-1] < 0.5 < valid[2]

# %% [markdown]
# Any picture is a guide. What the network calls realistic is what it was trained on, and no more:

# %%
DATA = os.environ.get("DATA", "digits")  # real ones; or "scenes", or of tfds: "mnist", "celeb_a"...
others = data.load(DATA, "test", size=32)["image"][:8]
rows = [others, *(draw(config, params, others, t0=t0, steps=steps) for t0 in (0.2, 0.5, 0.7))]
show(*rows, row_labels=[DATA, "t0 = 0.2", "0.5", "0.7"])

# %% [markdown]
# ### Exercise 3 · keep the rest (5 minutes)
# Paint into a photo, and only what is under the mask may change. So after each step the rest gets
# the *guide* once more, with the noise of time `m`, made of the step's own `z`. (A caption may
# help to tell what the stroke shall be.)

# %% tags=["exercise"]
def keep_rest(schedule, x, guide, edit_mask, m, z):
    """x (B, H, W, 3) after its step, edit_mask (B, H, W, 1) 1 = may change -> x, the rest kept."""
    # BEGIN SOLUTION
    return jnp.where(edit_mask == 1, x, schedule.add_noise(guide, m, z))
    # END SOLUTION

# %% tags=["check"]
half = jnp.zeros((2, 2, 2, 1)).at[:, :, 1].set(1)
got = keep_rest(S, flat, 0.5 - flat, half, end, flat**2)
right = S.add_noise(0.5 - flat, end, flat**2)
assert got is not None and jnp.allclose(got[:, :, 1], flat[:, :, 1]), "keep x where the mask is 1"
why = "where the mask is 0: the guide and not x, with the noise of time m and this z"
assert jnp.allclose(got[:, :, 0], right[:, :, 0], atol=1e-4), why

# %%
photo, purple = photos[5], (150, 50, 170)
guide, stroke = stroke_over(photo, [(13, 7), (19, 7)], purple, 7)
edit_mask = grow(stroke, 2)
text = ["a purple ball above an orange ball"] * n
many = lambda a: np.repeat(a[None], n, axis=0)  # noqa: E731
options = {"t0": 0.35, "steps": steps, "prompts": text}
edited = draw(config, params, many(guide), edit_masks=many(edit_mask), **options)
assert (edited == guide)[many(~edit_mask[..., 0])].all(), "kept pixels must be the photo's, exactly"
white = np.where(edit_mask, 255, 0 * guide).astype(np.uint8)
show(np.stack([photo, guide, white, *edited[:5]]), captions=["photo", "stroke", "mask", *[""] * 5])

# %% [markdown]
# ## Break it
# The mask the other way round: half of all programs call 1 what is *kept*.

# %%
wrong = draw(config, params, many(guide), edit_masks=many(~edit_mask), **options)
assert (wrong == guide)[many(edit_mask[..., 0])].all() and (wrong != guide).mean() > 0.5
show(np.stack([photo, guide, white, *wrong[:5]]), captions=["photo", "stroke", "mask", *[""] * 5])

# %% [markdown]
# All is repainted but your stroke, which stays a daub, to the pixel. Name masks by what 1 does.
#
# ## Summary
# You now understand `sde.edit` and `sample.draw` of `sdedit/`.
#
# - Any denoiser edits: noise the guide to $t_0$, walk back. Nothing is trained.
# - $t_0$ trades realism for faithfulness; where its best value lies depends on the size of things.
# - With a mask the rest is set again in every step, and comes out exactly as it was.
#
# Read: Meng et al. 2022 (SDEdit), sections 3 and 4.2; figure 3. Two open questions, a page each:
#
# 1. Run the edit three times with $t_0 = 0.1$ (`repeats`). Is that like once with 0.3? Why not?
# 2. Give the daubs captions (`prompts=`). Which words help at $t_0 = 0.35$? Which come too late?
