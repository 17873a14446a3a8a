"""Typical wrong answers to the exercises of the lessons; the check of each must refuse them all.

WRONG[lesson][exercise] is a list of texts, each put where the solution stands. The name of an
exercise is that of its function.
"""

WRONG = {
    "00_jax": {
        "noise_like": [
            "return jax.random.normal(key, x.shape)",  # one key for the batch
            "return jax.vmap(lambda row: jax.random.normal(key, row.shape))(x)",  # one for each row
            """
            keys = jax.random.split(key, x.shape[0])
            jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
            """,  # nothing returned
            """
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
            return jax.vmap(lambda key: jax.random.normal(key, x.shape))(keys)
            """,  # a whole batch per row
            """
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, 1 + jnp.arange(x.shape[0]))
            return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
            """,  # rows counted from 1
            """
            keys = jax.random.split(key, x.shape[0])
            return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
            """,  # not normal
        ],
        "sgd_step": [
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.tree.map(lambda p, g: p + rate * g, params, grads), loss
            """,  # uphill
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.tree.map(lambda p, g: p - g, params, grads), loss
            """,  # no rate
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.tree.map(lambda g: rate * g, grads), loss
            """,  # the update, not the params
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.tree.map(lambda p, g: p - rate * g, params, grads)
            """,  # no loss
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            for layer in params:
                for name in params[layer]:
                    params[layer][name] = params[layer][name] - rate * grads[layer][name]
            return params, loss
            """,  # in place
            """
            grads = jax.grad(loss_fn)(params, batch, keys)
            params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
            return params, loss_fn(params, batch, keys)
            """,  # the loss after the step
        ],
        "run": [
            """
            keys = train.example_keys(key, 0, n)
            state, metrics = jax.lax.scan(
                lambda state, i: step(state, batch, keys), state, jnp.arange(steps)
            )
            return state, metrics["loss"]
            """,  # the same keys at every step
            """
            body = lambda state, i: step(state, batch, train.example_keys(key, i, n))
            return jax.lax.scan(body, state, jnp.arange(1, steps + 1))[0], jnp.zeros(steps)
            """,
            """
            body = lambda state, i: step(state, batch, train.example_keys(key, i, n))
            state, metrics = jax.lax.scan(body, state, jnp.arange(1, steps + 1))
            return state, metrics["loss"]
            """,  # steps counted from 1
            """
            body = lambda state, i: step(state, batch, train.example_keys(key, i, n))
            return jax.lax.scan(body, state, jnp.arange(steps))[0]
            """,  # no losses
            """
            body = lambda s, i: (s, step(state, batch, train.example_keys(key, i, n))[1]["loss"])
            return jax.lax.scan(body, state, jnp.arange(steps))
            """,  # the state never moves on
        ],
    },
    "01_forward_process": {
        "tables": [
            """
            signal = np.sqrt(np.cumprod(1 - betas))
            return signal, np.sqrt(1 - signal**2)
            """,  # no t = 0
            """
            alpha_bar = np.append(np.cumprod(1 - betas), 1.0)
            return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
            """,  # t = 0 at the wrong end
            """
            alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
            return alpha_bar, 1 - alpha_bar
            """,  # no roots
            """
            signal = np.sqrt(np.concatenate([[1.0], np.cumprod(1 - betas)]))
            return signal, 1 - signal
            """,  # noise = 1 - signal
            """
            alpha_bar = np.concatenate([[1.0], 1 - np.cumsum(betas)])
            with np.errstate(invalid="ignore"):
                return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
            """,  # a sum
            """
            alpha_bar = np.concatenate([[1.0], 1 - betas])
            return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
            """,  # one step, not all
        ],
        "add_noise": [
            "return signal[t] * x0 + noise[t] * eps",  # (B,) along the columns
            """
            shape = (-1,) + (1,) * (x0.ndim - 1)
            return noise[t].reshape(shape) * x0 + signal[t].reshape(shape) * eps
            """,  # swapped
            """
            shape = (-1,) + (1,) * (x0.ndim - 1)
            return signal[t].reshape(shape) * x0 + (1 - signal[t]).reshape(shape) * eps
            """,
            """
            shape = (-1,) + (1,) * (x0.ndim - 1)
            return signal[t - 1].reshape(shape) * x0 + noise[t - 1].reshape(shape) * eps
            """,  # times from 0
            "return signal[t[0]] * x0 + noise[t[0]] * eps",  # one t for all
            """
            shape = (-1,) + (1,) * x0.ndim
            return signal[t].reshape(shape) * x0 + noise[t].reshape(shape) * eps
            """,  # one axis too many
        ],
        "merge_time": [
            "return int(jnp.argmax(table.noise >= np.sqrt(m**2 - std**2)))",  # noise, not sigma
            "return int(jnp.argmax(table.noise / table.signal >= m))",  # width forgotten
            "return int(jnp.argmax(table.noise / table.signal >= m**2 - std**2))",  # no root
            "return int(jnp.argmax(table.noise / table.signal >= 2 * m))",  # the whole distance
            "return int(jnp.argmax(table.noise >= table.signal))",
        ],
    },
    "02_learning_to_denoise": {
        "eps_loss": [
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.square(denoise(x_t, t) - eps).sum()
            """,
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.square(denoise(x_t, t) - eps).sum(1).mean()
            """,  # summed over the axes
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.square(denoise(x_t, t) - eps).mean(1)
            """,  # one per example
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.abs(denoise(x_t, t) - eps).mean()
            """,
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.square(denoise(x_t, t) - x0).mean()
            """,  # the wrong target
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.square(denoise(x0, t) - eps).mean()
            """,  # shown the clean data
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return jnp.square(denoise(x_t, jnp.full_like(t, 500)) - eps).mean()
            """,  # told another t
            """
            x_t, t, eps = train.noise_batch(table, x0, keys)
            return (denoise(x_t, t) - eps).mean()
            """,
        ],
        "x0_from_eps": [
            """
            signal, noise = table.at(t, x.ndim)
            return x - noise * eps
            """,
            """
            signal, noise = table.at(t, x.ndim)
            return (x - signal * eps) / noise
            """,
            """
            signal, noise = table.at(t, x.ndim)
            return x / signal - noise * eps
            """,
            """
            signal, noise = table.at(t, x.ndim)
            return (x + noise * eps) / signal
            """,
        ],
    },
    "03_sampling": {
        "ddim_step": [
            """
            x0 = process.x0_from_eps(schedule, x, t, eps)
            signal_t, noise_t = schedule.at(t, x.ndim)
            return signal_t * x0 + noise_t * eps
            """,  # the noise of t: stays where it is
            """
            x0 = process.x0_from_eps(schedule, x, t, eps)
            signal_s, noise_s = schedule.at(s, x.ndim)
            sd = eta * noise_s / schedule.at(t, x.ndim)[1]
            sd = sd * jnp.sqrt(process.transition_variance(schedule, t, s, x.ndim))
            return signal_s * x0 + noise_s * eps + sd * z
            """,  # fresh noise on top of all the old
            """
            x0 = process.x0_from_eps(schedule, x, t, eps)
            signal_s, noise_s = schedule.at(s, x.ndim)
            sd = eta * noise_s / schedule.at(t, x.ndim)[1]
            sd = sd * process.transition_variance(schedule, t, s, x.ndim)
            return signal_s * x0 + jnp.sqrt(noise_s**2 - sd**2) * eps + sd * z
            """,  # a variance for a standard deviation
            """
            x0 = process.x0_from_eps(schedule, x, t, eps)
            signal_s, noise_s = schedule.at(s, x.ndim)
            beta = process.transition_variance(schedule, t, s, x.ndim)
            variance = eta * beta * (noise_s / schedule.at(t, x.ndim)[1]) ** 2
            return signal_s * x0 + jnp.sqrt(noise_s**2 - variance) * eps + jnp.sqrt(variance) * z
            """,  # eta inside the root
            """
            x0 = process.x0_from_eps(schedule, x, t, eps)
            signal_s, noise_s = schedule.signal[s], schedule.noise[s]
            sd = eta * noise_s / schedule.noise[t]
            sd = sd * jnp.sqrt(process.transition_variance(schedule, t, s, 0))
            return signal_s * x0 + jnp.sqrt(noise_s**2 - sd**2) * eps + sd * z
            """,  # scalar times only
        ],
        "error": [
            """
            end = walk(x_T, sampler.timesteps(S.T, steps), path_key, 1.0)[-1]
            return jnp.linalg.norm(end - fine, axis=-1).mean()
            """,  # with chance
            """
            end = walk(x_T, sampler.timesteps(S.T, steps), path_key, 0.0)[-1]
            return jnp.linalg.norm(end - fine)
            """,  # the batch for one vector
            """
            end = walk(x_T, sampler.timesteps(S.T, steps), path_key, 0.0)[-1]
            return jnp.abs(end - fine).mean()
            """,
            """
            end = walk(x_T, sampler.timesteps(S.T, steps), path_key, 0.0)
            return jnp.linalg.norm(end - fine[None], axis=-1).mean()
            """,  # all of the path
            """
            end = walk(x_T, sampler.timesteps(S.T, steps), path_key, 0.0)[-1]
            return jnp.linalg.norm(end - fine, axis=-1)
            """,  # no mean
        ],
        "up_step": [
            """
            x0 = process.x0_from_eps(S, x, s, denoise(x, s))
            return S.add_noise(x0, jnp.asarray(t), denoise(x, s))
            """,  # asked at time 0
            """
            eps = denoise(x, t)
            return S.add_noise(process.x0_from_eps(S, x, t, eps), jnp.asarray(t), eps)
            """,  # stays where it is
            """
            eps = denoise(x, jnp.maximum(s, 1))
            return S.add_noise(x, jnp.asarray(t), eps)
            """,  # x taken for x0
            """
            eps = denoise(x, t)
            return S.add_noise(process.x0_from_eps(S, x, s, eps), jnp.asarray(t), eps)
            """,  # the eps of t
        ],
    },
    "04_classifier_guidance": {
        "log_prob": [
            'return world.log_density(S, x, t, cond["label"])',  # the joint
            """
            y = cond["label"]
            joint = world.log_density(S, x, t, y)
            return world.log_density(S, x, t, jnp.full_like(y, NULL)) - joint
            """,  # upside down
            """
            y = cond["label"]
            joint = world.log_density(S, x, t, y)
            return jnp.exp(joint - world.log_density(S, x, t, jnp.full_like(y, NULL)))
            """,  # p, not log p
            """
            y = cond["label"]
            joint = world.log_density(S, x, t, y)
            return joint / world.log_density(S, x, t, jnp.full_like(y, NULL))
            """,  # logs divided
            """
            y, t = cond["label"], jnp.zeros_like(t)
            joint = world.log_density(S, x, t, y)
            return joint - world.log_density(S, x, t, jnp.full_like(y, NULL))
            """,  # knows no noise
        ],
        "gradient_guidance": [
            """
            gradient = jax.grad(lambda x: log_prob(x, t, cond).mean())(x)
            _, noise = schedule.at(t, x.ndim)
            return process.Prediction(denoise(x, t, cond).eps - s * noise * gradient)
            """,
            """
            gradient = jax.grad(lambda x: log_prob(x, t, cond).sum())(x)
            _, noise = schedule.at(t, x.ndim)
            return process.Prediction(denoise(x, t, cond).eps + s * noise * gradient)
            """,
            """
            gradient = jax.grad(lambda x: log_prob(x, t, cond).sum())(x)
            return process.Prediction(denoise(x, t, cond).eps - s * gradient)
            """,  # no noise_t
            """
            gradient = jax.grad(lambda x: log_prob(x, t, cond).sum())(x)
            _, noise = schedule.at(t, x.ndim)
            return process.Prediction(denoise(x, t, cond).eps - noise * gradient)
            """,  # no scale
            """
            gradient = jax.grad(lambda x: log_prob(x, t, cond).sum())(x)
            _, noise = schedule.at(t, x.ndim)
            return denoise(x, t, cond).eps - s * noise * gradient
            """,  # an array
        ],
    },
    "05_classifier_free_guidance": {
        "drop_condition": [
            "return jnp.where(jax.random.bernoulli(keys[0], rate), NULL, label)",  # all or none
            """
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
            return jnp.where(keep, label, NULL)
            """,
            """
            drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
            return jnp.where(drop, 0, label)
            """,  # label 0 for the null
            """
            drop = jax.random.bernoulli(keys[0], rate, label.shape)
            return jnp.where(drop, NULL, label)
            """,  # one key for all
        ],
        "classifier_free": [
            """
            null = {"label": jnp.full_like(cond["label"], null_cond["label"])}
            eps_cond, eps_null = denoise(x, t, cond).eps, denoise(x, t, null).eps
            return Prediction((1 + s) * eps_cond - s * eps_null)
            """,  # Ho & Salimans' w
            """
            null = {"label": jnp.full_like(cond["label"], null_cond["label"])}
            eps_cond, eps_null = denoise(x, t, cond).eps, denoise(x, t, null).eps
            return Prediction(eps_null + s * (eps_null - eps_cond))
            """,
            """
            null = {"label": jnp.full_like(cond["label"], null_cond["label"])}
            return Prediction(denoise(x, t, null).eps + s * denoise(x, t, cond).eps)
            """,
            """
            null = {"label": jnp.full_like(cond["label"], null_cond["label"])}
            eps_cond, eps_null = denoise(x, t, cond).eps, denoise(x, t, null).eps
            return Prediction(eps_null + s**2 * (eps_cond - eps_null))
            """,
            """
            null = {"label": jnp.full_like(cond["label"], null_cond["label"])}
            eps_cond, eps_null = denoise(x, t, cond).eps, denoise(x, t, null).eps
            return eps_null + s * (eps_cond - eps_null)
            """,  # an array
        ],
    },
    "06_the_u_net": {
        "time_embedding": [
            """
            angle = t[:, None] * 10.0 ** (-4 * jnp.arange(width // 2) / (width // 2))[None]
            return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
            """,  # DDPM's order
            """
            half = width // 2
            angle = t[:, None] * 10.0 ** (-4 * jnp.arange(half) / (half - 1))[None]
            return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
            """,  # DDPM's frequencies
            """
            angle = t[:, None] * 10.0 ** (-4 * jnp.arange(1, width // 2 + 1) / (width // 2))[None]
            return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
            """,  # counted from 1
            """
            angle = t[:, None] * 10.0 ** (-4 * jnp.arange(width // 2) / (width // 2))[None]
            return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1).reshape(len(t), -1)
            """,  # cosines and sines in turn
            """
            angle = t[:, None] * 10.0 ** (-4 * jnp.arange(width) / width)[None]
            return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
            """,  # twice as long
        ],
        "adaptive_norm": [
            """
            g = h.reshape(*h.shape[:3], groups, -1)
            mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
            normal = ((g - mean) / jnp.sqrt(var + eps)).reshape(h.shape)
            return normal * scale[:, None, None] + shift[:, None, None]
            """,  # no 1 +
            """
            g = h.reshape(*h.shape[:3], groups, -1)
            mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
            normal = ((g - mean) / jnp.sqrt(var + eps)).reshape(h.shape)
            return normal * (1 + shift[:, None, None]) + scale[:, None, None]
            """,  # swapped
            """
            mean, var = h.mean((1, 2), keepdims=True), h.var((1, 2), keepdims=True)
            normal = (h - mean) / jnp.sqrt(var + eps)
            return normal * (1 + scale[:, None, None]) + shift[:, None, None]
            """,  # every channel for itself
            """
            g = h.reshape(*h.shape[:3], groups, -1)
            mean, var = g.mean(4, keepdims=True), g.var(4, keepdims=True)
            normal = ((g - mean) / jnp.sqrt(var + eps)).reshape(h.shape)
            return normal * (1 + scale[:, None, None]) + shift[:, None, None]
            """,  # every pixel for itself
            """
            g = h.reshape(*h.shape[:3], -1, groups)
            mean, var = g.mean((1, 2, 3), keepdims=True), g.var((1, 2, 3), keepdims=True)
            normal = ((g - mean) / jnp.sqrt(var + eps)).reshape(h.shape)
            return normal * (1 + scale[:, None, None]) + shift[:, None, None]
            """,  # groups of far channels
            """
            g = h.reshape(*h.shape[:3], groups, -1)
            mean, var = g.mean((0, 1, 2, 4), keepdims=True), g.var((0, 1, 2, 4), keepdims=True)
            normal = ((g - mean) / jnp.sqrt(var + eps)).reshape(h.shape)
            return normal * (1 + scale[:, None, None]) + shift[:, None, None]
            """,  # of the whole batch
        ],
        "attention": [
            """
            q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
            weight = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", q, k), axis=-1)
            return jnp.einsum("bhlm,bmhd->blhd", weight, v).reshape(*q.shape[:2], -1)
            """,  # no sqrt(d)
            """
            D = q.shape[-1]
            q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
            weight = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", q, k) / jnp.sqrt(D), axis=-1)
            return jnp.einsum("bhlm,bmhd->blhd", weight, v).reshape(*q.shape[:2], -1)
            """,  # D for d
            """
            q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
            logits = jnp.einsum("blhd,bmhd->bhlm", q, k) / jnp.sqrt(q.shape[-1])
            weight = jax.nn.softmax(logits, axis=-2)
            return jnp.einsum("bhlm,bmhd->blhd", weight, v).reshape(*q.shape[:2], -1)
            """,  # softmax over the queries
            """
            logits = q @ k.swapaxes(1, 2) / jnp.sqrt(q.shape[-1])
            return jax.nn.softmax(logits, axis=-1) @ v
            """,  # one head whatever was asked
            """
            q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
            logits = jnp.einsum("blhd,bmhd->bhlm", q, k) / jnp.sqrt(q.shape[-1])
            return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(logits, axis=-1), v)
            """,  # heads not joined
        ],
    },
    "07_clip_and_retrieval": {
        "info_nce": [
            """
            logits = jnp.exp(log_scale) * image @ text.T
            return -jnp.diagonal(jax.nn.log_softmax(logits, axis=1)).mean()
            """,  # one way
            """
            logits = log_scale * image @ text.T
            rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
            return -(rows + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))).mean() / 2
            """,  # the log of the scale
            """
            logits = jnp.exp(log_scale) * image @ text.T
            rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
            return -(rows + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))).mean()
            """,  # not halved
            """
            logits = jnp.exp(log_scale) * image @ text.T
            rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
            return -(rows + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))).sum() / 2
            """,
            """
            logits = jnp.exp(log_scale) * image @ text.T
            rows = jax.nn.log_softmax(logits, axis=1)
            return -(rows + jax.nn.log_softmax(logits, axis=0)).mean() / 2
            """,  # all pairs are right
            """
            logits = jnp.exp(-log_scale) * image @ text.T
            rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
            return -(rows + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))).mean() / 2
            """,  # a temperature
        ],
        "zero_shot": [
            "return (image @ prompts.mean(1).T).argmax(1)",  # the mean is shorter than 1
            """
            mean = prompts.mean(1)
            classes = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
            return (image @ classes.T).argmax(0)
            """,  # a picture for each class
            """
            mean = prompts.mean(1)
            classes = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
            return (image @ classes.T).argmin(1)
            """,
            "return (image @ prompts.reshape(-1, prompts.shape[-1]).T).argmax(1)",  # of a prompt
            """
            mean = prompts.mean(0)
            classes = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
            return (image @ classes.T).argmax(1)
            """,  # over the classes
        ],
        "recall": [
            """
            nearest = np.argsort(similarity, axis=1)[:, :k]
            return float((nearest == np.arange(len(similarity))[:, None]).any(1).mean())
            """,  # the least similar
            """
            nearest = np.argsort(-similarity, axis=0)[:k].T
            return float((nearest == np.arange(len(similarity))[:, None]).any(1).mean())
            """,  # captions of a picture
            """
            nearest = np.argsort(-similarity, axis=1)[:, k - 1]
            return float((nearest == np.arange(len(similarity))).mean())
            """,  # the k-th only
            """
            nearest = np.argsort(-similarity, axis=1)[:, :k]
            return float((nearest == np.arange(len(similarity))[:, None]).mean())
            """,  # divided by k
        ],
    },
    "08_glide": {
        "guided": [
            """
            eps = denoise(x, t, cond).eps
            eps_null = denoise(x, t, null_cond).eps
            return Prediction(eps_null + s * (eps - eps_null), denoise(x, t, cond).v)
            """,  # three calls
            """
            both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null_cond)
            out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
            eps, eps_null = jnp.split(out.eps, 2)
            return Prediction(eps_null + s * (eps - eps_null), jnp.split(out.v, 2)[1])
            """,  # the null caption's variance
            """
            both = jax.tree.map(lambda c, n: jnp.concatenate([n, c]), cond, null_cond)
            out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
            eps, eps_null = jnp.split(out.eps, 2)
            return Prediction(eps_null + s * (eps - eps_null), jnp.split(out.v, 2)[1])
            """,  # away from the caption
            """
            both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null_cond)
            out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
            eps, eps_null = jnp.split(out.eps, 2)
            return Prediction(eps + s * (eps - eps_null), jnp.split(out.v, 2)[0])
            """,  # Ho and Salimans' w taken for s
            """
            both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null_cond)
            out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
            eps, eps_null = jnp.split(out.eps, 2)
            return Prediction(jnp.concatenate([eps_null + s * (eps - eps_null)] * 2), out.v)
            """,  # twice as many rows
        ],
        "price": [
            "return float((error_of(true) - error_of(changed)).mean())",  # a gain
            "return error_of(changed) - error_of(true)",  # no mean
            "return float((error_of(changed) / error_of(true)).mean())",  # a ratio
            "return float((error_of(changed) - error_of(true)).sum())",
        ],
        "paste": [
            "return jnp.where(keep_mask == 1, x0, known)",  # the other way round
            "return x0 + known * keep_mask",  # both
            "return known * keep_mask",  # nothing drawn
        ],
    },
    "09_latent_diffusion": {
        "gaussian_kl": [
            """
            terms = mean**2 + jnp.exp(logvar) - 1 - logvar
            return terms.sum((1, 2, 3))
            """,  # not halved
            """
            terms = mean**2 + jnp.exp(logvar) - 1 - logvar
            return 0.5 * terms.mean((1, 2, 3))
            """,  # a mean, to which the weight does not belong
            """
            terms = mean**2 + jnp.exp(logvar) - 1 - logvar
            return 0.5 * terms.sum()
            """,  # over the batch, too
            """
            terms = mean**2 + jnp.exp(0.5 * logvar) - 1 - logvar
            return 0.5 * terms.sum((1, 2, 3))
            """,  # a standard deviation
            """
            terms = mean**2 + jnp.exp(logvar) - 1 + logvar
            return 0.5 * terms.sum((1, 2, 3))
            """,
        ],
        "measure_scale": [
            "return jnp.std(z)",
            "return 1 / jnp.std(z) ** 2",
            "return 1 / jnp.std(z, axis=(0, 1, 2))",  # one for each channel
            "return 1 / jnp.abs(z).max()",
        ],
        "cross_attention": [
            """
            logits = jnp.einsum("bpd,bwd->bpw", q, k)
            return jnp.einsum("bpw,bwd->bpd", jax.nn.softmax(logits, axis=-1), v)
            """,  # not divided
            """
            logits = jnp.einsum("bpd,bwd->bpw", q, k) / jnp.sqrt(q.shape[-1])
            return jnp.einsum("bpw,bwd->bpd", jax.nn.softmax(logits, axis=1), v)
            """,  # places compete for words
            """
            logits = jnp.einsum("bpd,bwd->bpw", q, k) / q.shape[-1]
            return jnp.einsum("bpw,bwd->bpd", jax.nn.softmax(logits, axis=-1), v)
            """,
            """
            logits = jnp.einsum("bpd,bwd->bpw", q, v) / jnp.sqrt(q.shape[-1])
            return jnp.einsum("bpw,bwd->bpd", jax.nn.softmax(logits, axis=-1), k)
            """,  # keys and values exchanged
        ],
    },
    "10_unclip_priors": {
        "prior_loss": [
            """
            signal, noise = S.at(t, 2)
            return jnp.square(f(signal * z_i + noise * eps, t) - z_i).mean()
            """,  # not scaled
            """
            z_0 = jnp.sqrt(z_i.shape[-1]) * z_i
            signal, noise = S.at(t, 2)
            return jnp.square(f(signal * z_0 + noise * eps, t) - eps).mean()
            """,  # lesson 02's, of eps
            """
            z_0 = jnp.sqrt(z_i.shape[-1]) * z_i
            signal, noise = S.at(t, 2)
            return jnp.square(f(signal * z_i + noise * eps, t) - z_0).mean()
            """,  # scaled after the noise
            """
            z_0 = jnp.sqrt(z_i.shape[-1]) * z_i
            signal, noise = S.at(t, 2)
            return jnp.square(f(noise * z_0 + signal * eps, t) - z_0).mean()
            """,  # swapped
            """
            z_0 = jnp.sqrt(z_i.shape[-1]) * z_i
            return jnp.square(f(z_0, t) - z_0).mean()
            """,  # no noise
            """
            z_0 = jnp.sqrt(z_i.shape[-1]) * z_i
            signal, noise = S.at(t, 2)
            return jnp.square(f(signal * z_0 + noise * eps, t) - z_0).sum(-1).mean()
            """,  # not divided by D
            """
            z_0 = z_i.shape[-1] * z_i
            signal, noise = S.at(t, 2)
            return jnp.square(f(signal * z_0 + noise * eps, t) - z_0).mean()
            """,  # by D, not its root
        ],
        "best": [
            """
            pick = jnp.einsum("bnd,bd->bn", z, text_embedding).argmin(1)
            return z[jnp.arange(len(z)), pick]
            """,  # the worst
            "return z.mean(1)",
            "return jnp.einsum('bnd,bd->bn', z, text_embedding).argmax(1)",  # its number
            """
            every = z.reshape(-1, z.shape[-1])
            return every[(text_embedding @ every.T).argmax(1)]
            """,  # among the draws of all captions
            "return z[:, 0]",
            """
            pick = jnp.einsum("bnd,bd->n", z, text_embedding).argmax()
            return z[:, pick]
            """,  # one number for all
        ],
    },
    "11_unclip_manipulations": {
        "swap": [
            """
            x_T = sampler.invert(exact, S, x0, ts, {"label": other})
            return sampler.sample(exact, S, x_T, ts, {"label": other}, key)
            """,  # inverted as what it is not
            """
            x_T = sampler.invert(exact, S, x0, ts, {"label": y})
            return sampler.sample(exact, S, x_T, ts, {"label": y}, key)
            """,  # comes back
            "return sampler.sample(exact, S, x0, ts, {'label': other}, key)",  # not inverted
            "return sampler.invert(exact, S, x0, ts, {'label': y})",  # x_T itself
            """
            x_T = sampler.invert(exact, S, x0, ts, {"label": y})
            return sampler.sample(exact, S, x_T, ts, {"label": other}, key, eta=1.0)
            """,  # with noise
            """
            x_T = sampler.invert(exact, S, x0, ts, {"label": -jnp.ones_like(y)})
            return sampler.sample(exact, S, x_T, ts, {"label": other}, key)
            """,  # inverted as no class
        ],
        "slerp": [
            "return (1 - theta) * a + theta * b",
            """
            line = (1 - theta) * a + theta * b
            rows = line.reshape(len(a), -1)
            norm = np.linalg.norm(a.reshape(len(a), -1), axis=1)[:, None]
            return (norm * rows / np.linalg.norm(rows, axis=1)[:, None]).reshape(a.shape)
            """,  # of the right length, not evenly
            """
            rows_a, rows_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
            norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
            w = np.arccos((rows_a * rows_b).sum(1) / norms)[:, None]
            out = np.sin((1 - theta) * w) * rows_a + np.sin(theta * w) * rows_b
            return out.reshape(a.shape)
            """,  # not divided
            """
            w = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
            return (np.sin((1 - theta) * w) * a + np.sin(theta * w) * b) / np.sin(w)
            """,  # one angle for all rows
            """
            rows_a, rows_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
            norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
            w = np.arccos((rows_a * rows_b).sum(1) / norms)[:, None]
            out = (np.sin(theta * w) * rows_a + np.sin((1 - theta) * w) * rows_b) / np.sin(w)
            return out.reshape(a.shape)
            """,  # from b to a
            """
            rows_a, rows_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
            norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
            w = np.arccos((rows_a * rows_b).sum(1) / norms)[:, None]
            return (np.sin((1 - theta) * w) * rows_a + np.sin(theta * w) * rows_b) / np.sin(w)
            """,  # flat
        ],
        "text_diff": [
            """
            diff = z_t0 - z_t
            return manipulate.slerp(z_i, diff / np.linalg.norm(diff, axis=1, keepdims=True), theta)
            """,  # the other way
            "return manipulate.slerp(z_i, z_t - z_t0, theta)",  # not of length 1
            "return manipulate.slerp(z_i, z_t, theta)",  # to the caption
            "return z_i + theta * (z_t - z_t0)",
            """
            diff = z_t - z_t0
            return manipulate.slerp(z_i, diff / np.linalg.norm(diff), theta)
            """,  # one length for all rows
            """
            diff = z_t - z_t0
            z_d = diff / np.linalg.norm(diff, axis=1, keepdims=True)
            return (1 - theta) * z_i + theta * z_d
            """,  # straight
        ],
    },
    "12_sdedit": {
        "step_back": [
            """
            (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
            b = transition_variance(schedule, m, m - 1, x.ndim)
            score = score_from_eps(schedule, m, eps)
            return (x - b * score) * next_signal / signal + jnp.sqrt(b) * z
            """,  # away from the data
            """
            (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
            b = transition_variance(schedule, m, m - 1, x.ndim)
            score = score_from_eps(schedule, m, eps)
            return (x + b * score) * next_signal / signal + b * z
            """,  # a variance for a deviation
            """
            (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
            b = transition_variance(schedule, m, m - 1, x.ndim)
            score = score_from_eps(schedule, m, eps)
            return (x + b * score) * signal / next_signal + jnp.sqrt(b) * z
            """,  # shrinks
            """
            (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
            b = transition_variance(schedule, m, m - 1, x.ndim)
            score = score_from_eps(schedule, m, eps)
            return x * next_signal / signal + b * score + jnp.sqrt(b) * z
            """,  # the score's part not grown
            """
            (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
            b = transition_variance(schedule, m, m - 1, x.ndim)
            score = score_from_eps(schedule, m, eps)
            return (x + b * eps) * next_signal / signal + jnp.sqrt(b) * z
            """,  # eps for the score
            """
            (signal, _), (next_signal, _) = schedule.at(m, x.ndim), schedule.at(m - 1, x.ndim)
            b = transition_variance(schedule, m, m - 1, x.ndim)
            score = score_from_eps(schedule, m, eps)
            return (x + b * score) * next_signal / signal
            """,  # no noise
        ],
        "distance": [
            "return float((((images - guides) / 255) ** 2).sum((1, 2, 3)).mean())",  # uint8 wraps
            """
            gap = images.astype(float) - guides.astype(float)
            return float((gap**2).sum((1, 2, 3)).mean())
            """,  # not in [0, 1]
            """
            gap = (images.astype(float) - guides.astype(float)) / 255
            return float((gap**2).mean())
            """,  # the mean over pixels
            """
            gap = (images.astype(float) - guides.astype(float)) / 255
            return float((gap**2).sum())
            """,  # summed over pictures
            """
            gap = (images.astype(float) - guides.astype(float)) / 255
            return float(np.abs(gap).sum((1, 2, 3)).mean())
            """,
        ],
        "keep_rest": [
            "return jnp.where(edit_mask == 1, schedule.add_noise(guide, m, z), x)",  # inverted
            "return jnp.where(edit_mask == 1, x, guide)",  # clean among the noisy
            "return jnp.where(edit_mask == 1, x, schedule.add_noise(guide, m - 1, z))",
            "return jnp.where(edit_mask == 1, x, schedule.add_noise(x, m, z))",  # not the guide
        ],
    },
    "13_many_devices": {
        "device_grads": [
            "return jax.value_and_grad(loss_fn)(params, batch, keys)",  # nothing exchanged
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.lax.psum((loss, grads), "data")
            """,  # the sum
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.lax.pmean(loss, "data"), grads
            """,  # the loss alone
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.lax.pmean(loss, "data"), jax.lax.psum(grads, "data")
            """,
            """
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, keys)
            return jax.lax.pmean(grads, "data")
            """,  # no loss
        ],
        "split": [
            "return batch.reshape(len(batch) // devices, devices, *batch.shape[1:])",
            "return batch.reshape(-1, devices, *batch.shape[1:]).swapaxes(0, 1)",  # dealt out
            """
            each = len(batch) // devices
            return batch[: each * devices].reshape(devices, each, *batch.shape[1:])
            """,  # loses the rest
        ],
    },
}
