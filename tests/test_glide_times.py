"""Importance-sampled times: unbiased, learned from the losses, uniform before, and resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import program
from numpy.testing import assert_allclose, assert_array_equal

from common import devices, schedule, train
from common.process import Prediction
from glide.__main__ import COMMANDS
from glide.model import TINY, init_params
from glide.train import make_loss

T = 8
S = schedule.cosine(T)
SIZE = np.array([1, 1, 1, 1, 1, 1, 1, 4.0], np.float32)  # of the error at each time


def loss_fn(params, batch, keys):
    """A network whose error is SIZE[t - 1] times a parameter."""
    odds = batch.get("time_odds")
    x, t, _ = train.noise_batch(S, batch["x"], keys, odds)
    error = jnp.asarray(SIZE)[t - 1][:, None] * params["w"] * jnp.ones_like(x)
    return train.hybrid_loss(S, Prediction(error), error, batch["x"], x, t, odds)


def start(rate=0.0):
    tx = train.importance_sampled(optax.sgd(rate), T)
    return tx, train.init_state(lambda key: {"w": jnp.ones(())}, tx, jax.random.key(0))


def trained(state, tx, steps):
    step = devices.jit_step(train.make_train_step(loss_fn, tx), {"x": np.zeros((4, 2), np.float32)})
    rows = []
    for _, state, metrics in train.fit(  # noqa: B007
        step, state, jax.random.key(1), examples=4, batch_size=16, steps=steps
    ):
        rows.append({k: float(v) for k, v in metrics.items()})
    return state, rows


def test_times_are_uniform_until_all_have_a_history_and_then_follow_the_losses():
    tx, state = start()
    assert_allclose(train.time_odds(state.opt_state), 1 / T)
    state, rows = trained(state, tx, 3)
    assert_allclose(train.time_odds(state.opt_state), 1 / T)  # 48 draws: not 10 of each
    state, more = trained(state, tx, 120)
    assert float(state.opt_state.count.sum()) == 120 * 16
    want = 0.999 * SIZE**2 / (SIZE**2).sum() + 0.001 / T
    assert_allclose(train.time_odds(state.opt_state), want, rtol=1e-5)
    # The loss is still that of uniform times, in the mean, and now has no variance at all but for
    # the uniform part: each loss divided by T p(t) is nearly the same number.
    late = np.array([row["loss"] for row in more[60:]])
    assert_allclose(late, (SIZE**2).mean(), rtol=0.01)
    assert "drawn" not in more[0] and np.std([row["loss"] for row in rows]) > 0.1


def test_a_new_loss_weighs_a_tenth_and_the_first_ten_the_same():
    tx, state = start()
    state = state.opt_state
    for loss in range(1, 13):
        given = {"t": jnp.array([3]), "losses": jnp.array([float(loss)])}
        _, state = tx.update({"w": jnp.zeros(())}, state, {"w": jnp.zeros(())}, **given)
        if loss == 10:
            assert_allclose(state.square[2], np.mean(np.arange(1, 11.0) ** 2), rtol=1e-5)
    mean = np.mean(np.arange(1, 11.0) ** 2)
    assert_allclose(state.square[2], 0.9 * (0.9 * mean + 0.1 * 121) + 0.1 * 144, rtol=1e-5)
    assert_array_equal(state.count, 12 * (np.arange(T) == 2))


def test_the_history_belongs_to_the_state_so_a_resumed_run_is_the_same():
    tx, state = start(1e-3)
    whole, losses = trained(state, tx, 40)
    tx, state = start(1e-3)
    part, first = trained(state, tx, 25)
    resumed, rest = trained(part, tx, 40)
    assert first + rest == losses
    jax.tree.map(assert_array_equal, resumed, whole)


def test_many_devices_share_one_history():
    """Inside pmap every device's losses are gathered: the history of one is that of all."""
    tx, state = start()
    step = train.make_train_step(loss_fn, tx, axis_name="data")
    keys = train.example_keys(jax.random.key(2), 0, 16)
    new, _ = jax.vmap(step, (None, 0, 0), axis_name="data")(
        state, {"x": jnp.zeros((4, 4, 2))}, keys.reshape(4, 4)
    )
    assert_array_equal(new.opt_state.count[0], new.opt_state.count[3])
    assert float(new.opt_state.count[0].sum()) == 16


def test_glides_loss_draws_with_them_and_two_ways_of_drawing_are_refused(tmp_path, capsys):
    tx = train.importance_sampled(optax.sgd(0.1), TINY.T)
    state = jax.eval_shape(
        lambda: train.init_state(lambda key: init_params(TINY, key), tx, jax.random.key(0))
    )
    batch = {"image": np.zeros((2, 32, 32, 3), np.uint8), "tokens": np.zeros((2, 4, 24), np.int32)}
    step = train.make_train_step(make_loss(TINY, 0.1), tx)
    keys = train.example_keys(jax.random.key(0), 0, 2)
    new, metrics = jax.eval_shape(step, state, batch, keys)
    assert jax.tree.structure(new) == jax.tree.structure(state) and "drawn" not in metrics
    result = program(capsys, "glide", COMMANDS, "train", "--importance", "--out", tmp_path / "no")
    assert result.returncode == 2 and "--late 0" in result.stderr
    assert not (tmp_path / "no").exists()
