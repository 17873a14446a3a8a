"""The training step and loop, on a model small enough to be checked by eye."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common import devices, schedule, train
from common.process import Prediction


def line_loss(params, batch, keys):
    """Least squares on y = w x, with per-example noise from the keys."""
    noise = jax.vmap(jax.random.normal)(keys)
    return jnp.square(params["w"] * batch["x"] + 0.1 * noise - batch["y"]).mean()


def line_state(tx):
    return train.init_state(lambda key: {"w": jnp.zeros(())}, tx, jax.random.key(0))


def line_data(n=64):
    x = np.linspace(-1, 1, n, dtype=np.float32)
    return {"x": x, "y": 3 * x}


def test_a_step_is_gradient_descent_and_reports_its_loss():
    tx = optax.sgd(0.1)
    state, batch = line_state(tx), jax.tree.map(jnp.asarray, line_data(8))
    keys = train.example_keys(jax.random.key(1), 0, 8)
    noise = 0.1 * jax.vmap(jax.random.normal)(jax.random.clone(keys))
    new, metrics = train.make_train_step(line_loss, tx)(state, batch, keys)
    residual = noise - batch["y"]
    assert_allclose(metrics["loss"], np.mean(np.square(residual)), rtol=1e-6)
    assert_allclose(new.params["w"], -0.1 * np.mean(2 * residual * batch["x"]), rtol=1e-6)
    assert int(new.step) == 1


def test_the_loop_learns():
    tx = optax.adam(0.1)
    step = devices.jit_step(train.make_train_step(line_loss, tx), line_data())
    for i, state, metrics in train.fit(
        step, line_state(tx), jax.random.key(0), examples=64, batch_size=16, steps=150
    ):
        pass
    assert i == 150 and abs(float(state.params["w"]) - 3) < 0.1
    assert float(metrics["loss"]) < 0.05


def test_ema_forgets_the_start_and_then_moves_slowly():
    assert_allclose(train.ema_decay_at(jnp.array(0), 0.999), 0.1)
    assert_allclose(train.ema_decay_at(jnp.array(90), 0.999), 0.91)
    assert_allclose(train.ema_decay_at(jnp.array(10**6), 0.999), 0.999)
    tx = optax.sgd(1.0)
    state = line_state(tx).replace(step=jnp.array(90), ema_params={"w": jnp.array(2.0)})
    batch = jax.tree.map(jnp.asarray, line_data(8))
    keys = train.example_keys(jax.random.key(1), 0, 8)
    new, _ = train.make_train_step(line_loss, tx)(state, batch, keys)
    assert_allclose(new.ema_params["w"], 0.91 * 2 + 0.09 * new.params["w"], rtol=1e-6)


def test_keys_of_a_step_differ_and_do_not_depend_on_the_batch_size():
    data = lambda *a: jax.random.key_data(train.example_keys(jax.random.key(0), *a))  # noqa: E731
    assert_array_equal(data(3, 8)[:4], data(3, 4))
    assert len(np.unique(np.concatenate([data(3, 8), data(4, 8)]), axis=0)) == 16


def test_conditions_are_dropped_whole_at_the_given_rate():
    n, rate = 10_000, 0.2
    tokens = jnp.broadcast_to(jnp.array([5, 6, 7])[None], (n, 3))
    keys = train.example_keys(jax.random.key(0), 0, n)
    dropped = np.asarray(train.drop_condition(keys, tokens, jnp.zeros(3, jnp.int32), rate))
    gone = (dropped == 0).all(1)
    assert_array_equal(dropped[~gone], np.asarray(tokens)[~gone])
    assert abs(gone.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    none = train.drop_condition(jax.random.clone(keys), tokens, jnp.zeros(3, jnp.int32), 0.0)
    assert_array_equal(none, tokens)


def test_noise_is_drawn_for_every_time_including_the_last():
    s = schedule.cosine(20)
    keys = train.example_keys(jax.random.key(0), 0, 2000)
    x0 = jnp.full((2000, 2), 0.5)
    x, t, eps = train.noise_batch(s, x0, keys)
    assert set(np.asarray(t)) == set(range(1, 21))
    assert_allclose(x, s.add_noise(x0, t, eps))
    assert abs(float(eps.mean())) < 0.05 and abs(float(eps.std()) - 1) < 0.05


@pytest.mark.slow
def test_the_bound_trains_the_variance_alone_and_frozen_variance_would_show():
    s, t = schedule.cosine(1000), jnp.array([1, 10, 500])
    x0 = jnp.linspace(-0.9, 0.9, 12).reshape(3, 4)
    x = s.add_noise(x0, t, jnp.ones((3, 4)))

    def loss(eps, v):
        return train.hybrid_loss(s, Prediction(eps, v), eps - 1, x0, x, t)[0]

    eps, v = jnp.full((3, 4), 0.7), jnp.full((3, 4), 0.3)
    d_eps, d_v = jax.grad(loss, (0, 1))(eps, v)
    assert_allclose(d_eps, 2 * (eps - 1) / eps.size, rtol=1e-6)  # of the mean square alone
    assert np.all(np.abs(np.asarray(d_v)).max(1) > 0)
    without, metrics = train.hybrid_loss(s, Prediction(eps), eps - 1, x0, x, t)
    assert_allclose(without, 0.09, rtol=1e-5)
    assert "vb" not in metrics


@pytest.mark.parametrize("cut", [1, 7])
def test_a_loop_resumed_from_its_state_goes_on_to_the_last_bit(cut):
    tx = optax.adam(0.1)
    step = devices.jit_step(train.make_train_step(line_loss, tx), line_data())
    options = {"examples": 64, "batch_size": 16}

    def run(state, steps):
        losses = []
        for _, state, metrics in train.fit(step, state, jax.random.key(0), steps=steps, **options):
            losses.append(float(metrics["loss"]))
        return state, losses

    whole, losses = run(line_state(tx), 12)
    part, first = run(line_state(tx), cut)
    resumed, rest = run(part, 12)
    assert first + rest == losses
    jax.tree.map(assert_array_equal, resumed, whole)


def test_beginning_with_other_weights_keeps_them_and_leaves_what_they_lack_fresh():
    fresh = {"a": {"w": jnp.ones((2, 3)), "new": jnp.zeros(4)}}
    got = train.begin_with({"a": {"w": np.full((2, 3), 5.0)}}, fresh)
    assert_allclose(got["a"]["w"], 5)
    assert_allclose(got["a"]["new"], 0)
    for wrong in ({"a": {"w": np.zeros((3, 2))}}, {"b": np.zeros(1)}):
        with pytest.raises(ValueError, match="cannot begin with"):
            train.begin_with(wrong, fresh)
