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
}
