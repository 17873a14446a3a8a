# %% [markdown]
# # 00 · JAX in one sitting
#
# **40 minutes** · any computer, 10 seconds of its time · you need: NumPy, and what a gradient is.
#
# After this you can read every training loop of this book: you will have written one that is pure,
# takes its randomness as an argument, and runs hundreds of steps in one compiled call. Everything
# here serves one line, new parameters from old ones, with a rate $\eta$ and the gradient of a loss:
# $$\theta' = \theta - \eta\,\nabla_\theta L(\theta)$$

# %%
import os
import sys

sys.path.extend([os.environ.get("GUIDEBOOK", "."), "..", "../.."])  # where the guidebook may lie

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from common import plot, sampler, train

QUICK = bool(os.environ.get("QUICK"))  # the tests of this book run shorter
print("jax", jax.__version__, "on", jax.devices())

# %% [markdown]
# ## The idea
# In NumPy a function is something you *call*. In JAX it is also something you *transform*:
# `jax.grad(f)` is its derivative, `jax.vmap(f)` runs it on a batch, `jax.jit(f)` compiles it.
# The price is that `f` must be **pure**. Whatever it needs comes in through its arguments, whatever
# it makes goes out through `return`; nothing is kept in a hidden place. `jnp` is NumPy again, but
# its arrays never change: for `x[0] = 1` write `x = x.at[0].set(1)`, which makes a new one.
#
# ## The obvious thing, and why it falls short
# A noisy function as you would write it in NumPy, compiled. Call it twice.


# %%
@jax.jit
def shake(x):
    return x + np.random.normal(size=x.shape)


print(first := shake(jnp.zeros(3)), second := shake(jnp.zeros(3)))
assert jnp.array_equal(first, second)  # the "random" numbers are frozen

# %% [markdown]
# `jit` runs your Python **once** for each new shape and type, notes the array operations, and
# replays those: `np.random` ran then, and its numbers became constants. Hence **keys**, two numbers
# that you pass in: the same key gives the same draws. Never draw from one key twice, nor from one
# that you made others of: `split(key, n)` makes n, `fold_in(key, i)` number i of these.

# %%
key = jax.random.key(0)
data_key, model_key, noise_key = jax.random.split(key, 3)  # three unrelated keys
print(jax.random.normal(jax.random.key(9), (3,)), jax.random.fold_in(noise_key, 7))  # for step 7

# %% [markdown]
# ## Predict, then run
# Two machines share a batch of 4 points, 2 each. Both hold the same `key`, and draw noise for their
# half with `jax.random.normal(key, (2, 2))`. Stack the halves. Do you get **A** the (4, 2) noise of
# a single machine · **B** rows 3 and 4 that repeat rows 1 and 2 · **C** something different at each
# run? Write your letter down first.

# %%
mine, yours = jax.random.normal(key, (2, 2)), jax.random.normal(key, (2, 2))
print(jnp.concatenate([mine, yours]))
assert jnp.array_equal(mine, yours)

# %% [markdown]
# <details><summary>Answer</summary>
#
# **B.** A key does not know which machine it is on. Half of the noise is wasted, and nothing
# crashes. So this book gives **one key to each example**, made from its number in the whole batch.
# </details>
#
# ### Exercise 1 · noise with one key per row (5 minutes)
# `vmap`: write it for one, run it on many. `jax.vmap(jax.random.fold_in, (None, 0))(key, rows)`
# makes many keys: `key` is shared (`None`), the array `rows` has a batch axis (`0`, the default).
#
# <details><summary>Hint</summary>`rows` is `jnp.arange(B)`. A second `vmap`, over the keys, draws a
# row for each: its function has one argument, the key.</details>


# %% tags=["exercise"]
def noise_like(key, x):
    """Standard normal noise shaped like x (B, ...), B rows; row i depends on key and i, not B."""
    # BEGIN SOLUTION
    rows = jnp.arange(x.shape[0])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    # END SOLUTION


# %% tags=["check"]
x, key = jnp.zeros((4, 3, 2)), jax.random.key(1)
got = noise_like(key, x)
assert hasattr(got, "shape"), f"{type(got).__name__} came back, no array: `return` all rows as one"
assert got.shape == x.shape, f"shape {got.shape}, not {x.shape}: draw x.shape[1:] for each row"
assert not jnp.array_equal(got[0], got[1]), "rows 0 and 1 are equal: did each row get its own key?"
assert jnp.array_equal(got, noise_like(key, x)), "same key, other numbers: draw with jax.random"
whole = jnp.array_equal(got, jax.random.normal(key, x.shape))
assert not whole, "one key drew the whole batch: fold the row's number into the key first"
close = jnp.allclose(got, sampler.noise_like(key, x), atol=1e-6)
assert close, "other numbers: draw row i from a normal with its own key, fold_in(key, i), i from 0"

# %% [markdown]
# ## Pytrees: parameters are nested dictionaries
# Points on a disc, and on a ring around it: a small network shall tell which. Its parameters are a
# **pytree**: arrays, its leaves, in nested dictionaries. `jax.tree.map(f, a, b)` is a pytree too:
# `f` of each leaf of `a` and the leaf of `b` in the same place.

# %%
n = 256
angle = jax.random.uniform(jax.random.fold_in(data_key, 0), (n,), maxval=2 * jnp.pi)
on_ring = jnp.arange(n) % 2
radius = 0.5 + on_ring + 0.2 * jax.random.normal(jax.random.fold_in(data_key, 1), (n,))
batch = {"x": radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1), "y": on_ring}
w = jax.random.normal(model_key, (3, 32))
params = {"hidden": {"w": w[:2], "b": jnp.zeros(32)}, "out": {"w": 0.1 * w[2], "b": jnp.zeros(())}}


def predict(params, x):
    """One point (2,) -> one number, its logit: positive for "on the ring"."""
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]


def loss_fn(params, batch, keys):
    """Mean cross-entropy: near 0 if logits are large and of the right sign. Keys shake points."""
    shaken = batch["x"] + 0.1 * jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    logit = jax.vmap(predict, (None, 0))(params, shaken)
    return jax.nn.softplus((1 - 2 * batch["y"]) * logit).mean()  # softplus(z) is log(1 + e^z)


keys = train.example_keys(noise_key, 0, n)  # as in exercise 1, of fold_in(noise_key, step 0)
loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)  # a pair; grads: like params
print(f"loss {loss:.3f}, gradient shapes {jax.tree.map(jnp.shape, grads)}")

# %% [markdown]
# ### Exercise 2 · one pure step (8 minutes)
# The line at the top: `params` is $\theta$, `loss_fn` is $L$, `rate` is $\eta$. `value_and_grad`
# takes the gradient by the first argument. The check compares with `common.train.make_train_step`,
# which trains everything in this book.


# %% tags=["exercise"]
def sgd_step(params, batch, keys, rate):
    """-> (new params, loss before the step); what was passed in stays as it was."""
    # BEGIN SOLUTION
    loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
    params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    return params, loss
    # END SOLUTION


# %% tags=["check"]
rate, tx = 0.5, optax.sgd(0.5)  # optax has the optimizers; sgd is the line at the top
step = train.make_train_step(loss_fn, tx)  # step(state, batch, keys) -> (state, metrics)
start = train.init_state(lambda key: params, tx, key)  # params, optimizer state, step number
wanted, metrics = step(start, batch, keys)
same = jax.jit(lambda *trees: jnp.array(jax.tree.leaves(jax.tree.map(jnp.allclose, *trees))).all())
out = sgd_step(given := jax.tree.map(jnp.copy, params), batch, keys, rate)
assert isinstance(out, tuple) and len(out) == 2, "return two things: new params, and the loss"
assert same(given, params), "you changed the params that you were given: make new ones instead"
assert jax.tree.structure(out[0]) == jax.tree.structure(params), "return (new params, loss)"
up = jax.tree.map(lambda p, g: p + rate * g, params, grads)
assert not same(out[0], up), "that walks uphill: the loss falls *against* the gradient"
assert same(out[0], wanted.params), "not p - rate * g in every leaf (p -= ... changes no array)"
assert jnp.allclose(out[1], metrics["loss"]), "return the loss of the params you were given"
assert sgd_step(out[0], batch, keys, rate)[1] < out[1], "loss ignores params: is it from above?"

# %% [markdown]
# ## `scan`: the loop inside the compiled program
# `jax.lax.scan(body, carry, xs)` calls `carry, y = body(carry, x)` for every `x` of the array `xs`
# (for step numbers `jnp.arange(steps)`) and returns the last carry and all the `y`, stacked. `body`
# may read what stands around it, such as a batch or a key, but must not change it.
#
# ### Exercise 3 · the training loop (8 minutes)
# At step i, use `step(state, batch, keys)` from above with `train.example_keys(key, i, n)`. `step`
# returns (state, metrics): state holds params and step number, and `metrics["loss"]` is the loss.


# %% tags=["exercise"]
def run(state, batch, key, steps):
    """`steps` steps -> (last state, losses (steps,))."""
    # BEGIN SOLUTION
    body = jax.jit(lambda state, i: step(state, batch, train.example_keys(key, i, n)))
    state, metrics = jax.lax.scan(body, state, jnp.arange(steps))
    return state, metrics["loss"]
    # END SOLUTION


# %% tags=["check"]
wanted, losses = start, []
for i in range(3):  # the same three steps, as a loop in Python
    wanted, metrics = step(wanted, batch, train.example_keys(noise_key, i, n))
    losses.append(metrics["loss"])
out = run(start, batch, noise_key, 3)
assert isinstance(out, tuple) and hasattr(out[0], "step"), "return the last state and the losses"
assert int(out[0].step) == 3, f"{out[0].step} steps taken, not 3: is the state the carry?"
assert getattr(out[1], "shape", 0) == (3,), "not an array (3,): of the metrics, return the loss"
assert jnp.allclose(out[1][0], losses[0], atol=1e-5), "step 0 differs: its keys are those of i = 0"
assert jnp.allclose(out[1], jnp.array(losses), atol=1e-5), "later steps differ: own keys for each?"
program = str(jax.make_jaxpr(run, static_argnums=3)(start, batch, noise_key, 3))
assert "scan[" in program, "right, but the loop is Python's: let jax.lax.scan make the steps"

# %% [markdown]
# ## What you should see
# The loss falls from 0.7 to 0.1 or below. The network bends the black line, where its logit is 0,
# into a ring, and 19 points in 20, or more, lie on their side of it.

# %%
steps = 300 if QUICK else 1000
body = jax.jit(lambda state, i: step(state, batch, train.example_keys(noise_key, i, n)))
state, metrics = jax.lax.scan(body, start, jnp.arange(steps))
line = jnp.linspace(-2.4, 2.4, 121)
plane = jnp.stack(jnp.meshgrid(line, line), -1)  # (121, 121, 2): two vmaps, one per axis
logit = jax.vmap(jax.vmap(predict, (None, 0)), (None, 0))(state.params, plane)
right = (jax.vmap(predict, (None, 0))(state.params, batch["x"]) > 0) == on_ring
plt.figure(figsize=(4.5, 4.5))
plt.pcolormesh(line, line, jax.nn.sigmoid(logit), cmap="coolwarm", alpha=0.4, linewidth=0)
plt.contour(line, line, logit, [0], colors="black")
plt.scatter(*batch["x"].T, c=on_ring, cmap="coolwarm", s=16, edgecolors="white", linewidths=0.5)
plt.show()
assert metrics["loss"][-1] < (0.15 if QUICK else 0.1) and right.mean() > 0.95
plot.curve({"loss": (jnp.arange(steps), metrics["loss"])}, xlabel="step", ylabel="loss")

# %% [markdown]
# ## Break it
# Keep a diary inside a compiled function. Three calls with a number give **one** entry, and it is
# no number: it is a *tracer*, the stand-in with which JAX visited your code.

# %%
diary = []
peek = jax.jit(lambda x: diary.append(x) or 2 * x)
peek(1.0), peek(2.0), peek(3.0)
print(diary)
assert len(diary) == 1 and not isinstance(diary[0], float)

# %% [markdown]
# ## Summary
# - From inside you now know `train.make_train_step`, `train.example_keys`, `sampler.noise_like`.
# - `jit` visits your code once a shape: no argument means frozen, not returned means lost.
# - Read: Frostig et al. 2018, *Compiling machine learning programs via high-level tracing*.
#
# Open questions: (1) You resume a run at step 500. What must you have saved so that it goes on as
# if it had never stopped? (2) When is a Python loop wiser than one `scan`?
