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
}
