"""The loss of every model here: what it predicts, and how far its variance may be."""

import jax
import jax.numpy as jnp

from common import train
from common.process import target
from glide.model import make_schedule, predict


def denoising_loss(config, apply, x0: jax.Array, keys: jax.Array, late: float, time_odds=None):
    """(loss, metrics) of output = apply(x_t, t), whatever else `apply` is given.

    time_odds (T,): times are drawn so, and the loss is weighted back (train.importance_sampled).

    Paper: times are uniform (late 0). What is an object's colour and shape is settled at large t,
    before it can be seen in x_t; more draws from there teach the words sooner.
    """
    schedule = make_schedule(config)
    weights = jnp.arange(1, schedule.T + 1) ** late if late else time_odds
    x, t, eps = train.noise_batch(schedule, x0, keys, weights)
    output = apply(x, t)
    error = output[..., : config.channels] - target(config.prediction, schedule, x0, t, eps)
    return train.hybrid_loss(schedule, predict(config, output, x, t), error, x0, x, t, time_odds)
