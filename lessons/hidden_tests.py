"""Hidden tests of the assignments: what a lesson's check asks, asked of other numbers.

HIDDEN[lesson][exercise] is code that runs after the visible check, inside a function, with the
names of the notebook. An instructor may keep another such file out of the repository:
python lessons/assignments.py --hidden mine.py
"""

HIDDEN = {
    "00_jax": {
        "noise_like": """
x, other = jnp.zeros((5, 2)), jax.random.key(11)
assert jnp.allclose(noise_like(other, x), sampler.noise_like(other, x), atol=1e-6)
assert jnp.array_equal(noise_like(other, x)[:3], noise_like(other, x[:3])), "depends on B"
""",
        "sgd_step": """
start = jax.tree.map(lambda p: 1.5 * p + 0.1, params)
loss, grads = jax.value_and_grad(loss_fn)(start, batch, keys)
got = sgd_step(start, batch, keys, 0.03)
assert same(got[0], jax.tree.map(lambda p, g: p - 0.03 * g, start, grads))
assert jnp.allclose(got[1], loss)
""",
        "run": """
other, at, losses = jax.random.key(12), start, []
for i in range(4):
    at, metrics = step(at, batch, train.example_keys(other, i, n))
    losses.append(metrics["loss"])
last, got = run(start, batch, other, 4)
assert same(last.params, at.params) and jnp.allclose(got, jnp.array(losses), atol=1e-5)
""",
    },
    "01_forward_process": {
        "tables": """
some = np.linspace(1e-3, 0.05, 50)
signal, noise = map(np.asarray, tables(some))
assert signal.shape == noise.shape == (51,)
assert np.allclose(signal[1:] ** 2, np.cumprod(1 - some)) and np.allclose(noise**2, 1 - signal**2)
""",
        "add_noise": """
table, t = schedule.cosine(T=50), jnp.array([0, 7, 50])
x0, eps = jax.random.normal(jax.random.key(11), (2, 3, 5, 4, 1))
got = add_noise(table.signal, table.noise, x0, t, eps)
assert jnp.allclose(got, table.add_noise(x0, t, eps), atol=1e-5)
""",
        "merge_time": """
table = schedule.scaled_linear()
t = int(np.argmax(np.asarray(table.noise / table.signal) >= np.sqrt(1.5**2 - 0.5**2)))
assert merge_time(table, 1.5, 0.5) == t
""",
    },
    "02_learning_to_denoise": {
        "eps_loss": """
keys = train.example_keys(jax.random.key(11), 5, 300)
x_t, t, eps = train.noise_batch(table, data[-300:], keys)
guess = lambda x, t: 0.5 * x + t[:, None] / 1000
right = jnp.square(guess(x_t, t) - eps).mean()
assert jnp.isclose(eps_loss(guess, data[-300:], keys), right, rtol=1e-4)
""",
        "x0_from_eps": """
other, t = schedule.cosine(), jnp.array([5, 300, 700])
x, eps = jax.random.normal(jax.random.key(11), (2, 3, 4, 4, 1))
got = x0_from_eps(other, x, t, eps)
assert jnp.allclose(got, process.x0_from_eps(other, x, t, eps), rtol=1e-4, atol=1e-4)
""",
    },
    "03_sampling": {
        "ddim_step": """
table, (x, eps, z) = schedule.cosine(), jax.random.normal(jax.random.key(11), (3, 2, 3, 3, 1))
t, s = jnp.array([800, 41]), jnp.array([799, 3])
want = sampler.ddim_step(table, x, process.Prediction(eps), t, s, z, eta=0.3)
assert jnp.allclose(ddim_step(table, x, eps, t, s, z, 0.3), want, rtol=1e-4, atol=1e-4)
""",
        "error": """
end = walk(x_T, sampler.timesteps(S.T, 7), path_key, 0.0)[-1]
assert np.isclose(error(7), np.linalg.norm(end - fine, axis=-1).mean(), rtol=1e-3)
""",
        "up_step": """
x = 0.5 * data[:9] + 0.1
want = sampler.invert(exact, S, x, [810, 130], nothing(x))
assert jnp.allclose(up_step(x, 130, 810), want, atol=1e-4)
""",
    },
    "04_classifier_guidance": {
        "log_prob": """
x, t = jax.random.normal(jax.random.key(11), (9, 2)), jnp.arange(9) * 100 + 50
y = {"label": jnp.arange(9) % 3}
assert jnp.allclose(log_prob(x, t, y), classifier(x, t, y), atol=1e-4)
""",
        "gradient_guidance": """
x, t = jax.random.normal(jax.random.key(11), (9, 2)), jnp.arange(9) * 100 + 50
y, table = {"label": jnp.arange(9) % 3}, schedule.cosine()
slope = lambda x, t, cond: -jnp.square(x - cond["label"][:, None]).sum(1)
want = guidance.gradient_guidance(unconditional, slope, table, 0.7)(x, t, y).eps
got = gradient_guidance(unconditional, slope, table, 0.7)(x, t, y).eps
assert jnp.allclose(got, want, atol=1e-4)
""",
    },
    "05_classifier_free_guidance": {
        "drop_condition": """
keys, label = jax.random.split(jax.random.key(11), 50), jnp.arange(50)
want = train.drop_condition(keys, {"label": label}, null, 0.7)["label"]
assert jnp.array_equal(drop_condition(keys, label, 0.7), want)
assert jnp.array_equal(drop_condition(keys, label, 0.0), label)
""",
        "classifier_free": """
x, t, y = jax.random.normal(jax.random.key(11), (9, 2)), jnp.arange(1, 10) * 90, jnp.arange(9) % K
denoise = lambda x, t, cond: Prediction(x * (2.0 + cond["label"][:, None]) + t[:, None] / 900)
for null_cond, s in ((null, 1.7), ({"label": jnp.array(2)}, -0.5)):
    want = guidance.classifier_free(denoise, null_cond, s)(x, t, {"label": y}).eps
    got = classifier_free(denoise, null_cond, s)(x, t, {"label": y}).eps
    assert jnp.allclose(got, want, atol=1e-4)
""",
    },
    "06_the_u_net": {
        "time_embedding": """
t = jnp.array([0, 7, 123, 1000])
assert jnp.allclose(time_embedding(t, 12), blocks.time_embedding(t, 12), atol=1e-3)
""",
        "adaptive_norm": """
h = 5 + jax.random.normal(jax.random.key(11), (3, 2, 5, 8)) * jnp.arange(1, 9)
ada, neutral = jnp.linspace(-1, 1, 24).reshape(3, 8), {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
want = blocks.GroupNorm(groups=2).apply({"params": neutral}, h, (ada, 2 * ada))
assert jnp.allclose(adaptive_norm(h, ada, 2 * ada, 2), want, atol=1e-2)
""",
        "attention": """
q, k, v = jax.random.normal(jax.random.key(11), (3, 3, 6, 12))
k, v = k[:, :5], v[:, :5]
for heads in (1, 3, 4):
    assert jnp.allclose(attention(q, k, v, heads), blocks.attention(q, k, v, heads), atol=1e-4)
""",
    },
    "07_clip_and_retrieval": {
        "info_nce": """
a, b = clip.normalise(jax.random.normal(jax.random.key(11), (2, 6, 4)))
want = clip.info_nce(a, b, jnp.arange(6)[:, None], jnp.array(1.5))[0]
assert jnp.isclose(info_nce(a, b, jnp.array(1.5)), want, atol=1e-4)
""",
        "zero_shot": """
some = np.random.default_rng(11)
prompts = np.asarray(clip.normalise(some.normal(size=(7, 3, 5)) + np.arange(3)[:, None]))
image = np.asarray(clip.normalise(some.normal(size=(90, 5))))
want = clip.zero_shot(image, clip.class_embeddings(prompts))
assert (np.asarray(zero_shot(image, prompts)) == np.asarray(want)).all()
""",
        "recall": """
table = np.random.default_rng(11).normal(size=(40, 40))
for k in (1, 4, 40):
    assert np.isclose(recall(table, k), clip.recall(table, np.eye(40, dtype=bool), k))
""",
    },
    "08_glide": {
        "guided": """
x, t = jax.random.normal(jax.random.key(11), (3, 4, 4, 3)), jnp.array([3, 50, 999])
toy = lambda x, t, cond: Prediction(x * cond["a"][:, None, None], 2 * x + cond["a"][:, None, None])
cond, nothing = {"a": jnp.arange(9.0).reshape(3, 3)}, {"a": jnp.ones((3, 3))}
got, want = (f(toy, nothing, 1.7)(x, t, cond) for f in (guided, guidance.classifier_free))
assert jnp.allclose(got.eps, want.eps, atol=1e-5) and jnp.allclose(got.v, want.v, atol=1e-5)
""",
        "price": """
table = {"a": np.array([0.5, 2.5, 1.0]), "b": np.array([4.0, 0.0, 3.5])}
assert np.isclose(price(table.get, "a", "b"), 3.5 / 3)
""",
        "paste": """
x0, known = jax.random.normal(jax.random.key(11), (2, 3, 5, 4, 3))
keep_mask = (jnp.arange(60).reshape(3, 5, 4, 1) % 3 == 0).astype(jnp.float32)
right = keep_mask * known + (1 - keep_mask) * x0
assert jnp.allclose(paste(x0, known, keep_mask), right, atol=1e-6)
""",
    },
    "10_unclip_priors": {
        "prior_loss": """
other, (x, eps) = z_i[100:140], jax.random.normal(jax.random.key(11), (2, 40, D))
t = 1 + 20 * jnp.arange(40)
f = lambda x, t: jnp.tanh(x) * (1 + t[:, None] / 900)
z_0 = D**0.5 * other
want = jnp.square(f(S.add_noise(z_0, t, eps), t) - z_0).mean()
assert jnp.isclose(prior_loss(f, other, t, eps), want, rtol=1e-3)
""",
        "best": """
some = jax.random.normal(jax.random.key(11), (30, 5, 7))
text = jax.random.normal(jax.random.key(12), (30, 7))
assert jnp.array_equal(best(some, text), prior.best(some, text))
""",
    },
    "11_unclip_manipulations": {
        "swap": """
other = (y + 2) % 3
want = mean[other] + std[other][:, None] * (x0 - mean[y]) / std[y][:, None]
assert jnp.abs(swap(x0, y, other) - want).max() < 0.2
""",
        "slerp": """
a, b = np.random.default_rng(11).normal(size=(2, 4, 3, 5)) * np.array([1, 2])[:, None, None, None]
for theta in (0.1, 0.8):
    assert np.allclose(slerp(a, b, theta), manipulate.slerp(a, b, theta), atol=1e-3)
""",
        "text_diff": """
v = np.random.default_rng(11).normal(size=(3, 6, 9))
v /= np.linalg.norm(v, axis=2, keepdims=True)
assert np.allclose(text_diff(*v, 0.7), manipulate.text_diff(*v, 0.7), atol=1e-3)
""",
    },
    "12_sdedit": {
        "step_back": """
other, (x, eps, z) = sde.vp(0.8, 20), jax.random.normal(jax.random.key(11), (3, 2, 2, 2, 3))
signal, noise = other.at(13, 4)
b = transition_variance(other, 13, 12, 4)
want = (x - b * eps / noise) * other.at(12, 4)[0] / signal + jnp.sqrt(b) * z
assert jnp.allclose(step_back(other, x, 13, eps, z), want, atol=1e-4)
""",
        "distance": """
some = np.random.default_rng(11).integers(0, 256, (2, 3, 5, 4, 3), dtype=np.uint8)
want = np.square(some[0] / 255 - some[1] / 255).sum() / 3
assert np.isclose(distance(*some), want)
""",
        "keep_rest": """
other, (x, guide, z) = sde.vp(0.8, 20), jax.random.normal(jax.random.key(11), (3, 2, 4, 4, 3))
mask = (jnp.arange(32).reshape(2, 4, 4, 1) % 3 == 0).astype(jnp.float32)
want = mask * x + (1 - mask) * other.add_noise(guide, 9, z)
assert jnp.allclose(keep_rest(other, x, guide, mask, 9, z), want, atol=1e-4)
""",
    },
    "13_many_devices": {
        "device_grads": """
keys = jax.random.split(jax.random.key(11), len(batch))
want = jax.value_and_grad(loss_fn)(params, batch, keys)
run = jax.pmap(device_grads, "data", in_axes=(None, 0, 0))
losses, grads = jax.device_get(run(params, cut(batch), cut(keys)))
assert np.allclose(losses, want[0], rtol=1e-4) and off(on_device(grads, D - 1), want[1]) < 1e-4
""",
        "split": """
x = np.arange(30).reshape(6, 5, 1)
assert (split(x, 3) == x.reshape(3, 2, 5, 1)).all()
try:
    split(x, 4)
except ValueError:
    pass
else:
    raise AssertionError("6 rows cannot be cut for 4 devices")
""",
    },
}
