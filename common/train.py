"""One pure training step, and a loop that yields metrics.

`loss_fn(params, batch, keys) -> (loss, metrics)` is a mean over examples; `keys` (B,) holds one key
per example, so what is drawn does not depend on how the batch is spread over devices. Where the
step runs is not decided here: see devices.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from common.process import Prediction, variational_bound
from common.schedule import Schedule

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Metrics]]


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes; sample with ema_params."""

    step: jax.Array  # () int32, steps taken
    params: Any
    ema_params: Any
    opt_state: Any


def init_state(
    init: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    key: jax.Array,
    shardings: Any = None,
) -> TrainState:
    """A fresh TrainState from init(key) -> params, all of it under one jit.

    shardings: where its leaves shall lie; None is the default device. The weights are drawn by the
    "rbg" generator, which compiles four times faster than threefry.
    """
    seed = jax.random.key_data(key).ravel()
    key = jax.random.wrap_key_data(jnp.resize(seed, 4), impl="rbg")

    def build(key):
        params = init(key)
        # The copy keeps params and EMA from sharing buffers, which donation would refuse.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, ema, tx.init(params))

    return jax.jit(build, out_shardings=shardings)(key)


def begin_with(base: Any, fresh: Any) -> Any:
    """The params `fresh`, with those of `base` in their places; what base lacks stays fresh.

    ValueError: base has parameters of other names or shapes.
    """
    base, params = flatten_dict(base, sep="/"), flatten_dict(fresh, sep="/")
    for name, value in base.items():
        if name not in params or params[name].shape != value.shape:
            raise ValueError(f"cannot begin with these weights: no {name} {value.shape} in it")
    return unflatten_dict(params | {k: jnp.asarray(v) for k, v in base.items()}, sep="/")


def ema_decay_at(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + n) / (10 + n)) after n steps: a short run must forget its random start.

    ADM uses 0.9999 without a ramp, fit for 10^5 steps and more (improved-diffusion issue 59);
    latent-diffusion's LitEma has this one, counted from 1: n is one more there.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9999,
    axis_name: str | None = None,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]:
    """-> step(state, batch, keys) -> (state, metrics), pure.

    loss_fn returns the loss alone or (loss, metrics). axis_name: inside pmap, the axis over which
    gradients and metrics are averaged; None elsewhere. A batch whose loss or gradient is not finite
    changes nothing but the step number; metrics["skipped"] is 1 then, else 0. tx may be
    `importance_sampled`: the batch then gets "time_odds" (T,), and metrics return "drawn".
    """

    def with_metrics(params, batch, keys):
        out = loss_fn(params, batch, keys)
        return out if isinstance(out, tuple) else (out, {})

    def step(state: TrainState, batch: Any, keys: jax.Array) -> tuple[TrainState, Metrics]:
        if isinstance(state.opt_state, ImportanceState):
            batch = {**batch, "time_odds": time_odds(state.opt_state)}
        grad_fn = jax.value_and_grad(with_metrics, has_aux=True)
        (loss, metrics), grads = grad_fn(state.params, batch, keys)
        metrics = {"loss": loss, **metrics}
        drawn = metrics.pop("drawn", {})  # one entry per example, for the history of losses
        if axis_name is not None:
            metrics, grads = jax.lax.pmean((metrics, grads), axis_name)
            drawn = jax.lax.all_gather(drawn, axis_name, tiled=True)
        metrics["grad_norm"] = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **drawn)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
        # Not optax.apply_if_finite: it adds to the state, and at last lets the NaN through.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        metrics["skipped"] = 1.0 - finite
        old, new = (state.params, state.ema_params, state.opt_state), (params, ema, opt_state)
        kept = jax.tree.map(lambda o, n: jnp.where(finite, n, o), old, new)
        return TrainState(state.step + 1, *kept), metrics

    return step


def one_phrasing(
    keys: jax.Array, batch: dict[str, jax.Array], names: tuple[str, ...]
) -> dict[str, jax.Array]:
    """`names` of one caption (B, ...) of the P that each picture has (B, P, ...)."""

    def row(key, captions):
        i = jax.random.randint(key, (), 0, len(captions[names[0]]))
        return {name: each[i] for name, each in captions.items()}

    return jax.vmap(row)(keys, {name: batch[name] for name in names})


def drop_condition(keys: jax.Array, cond: Any, null_cond: Any, rate: float) -> Any:
    """Replace whole conditions by the null one, each example with probability `rate`.

    keys (B,), cond leaves (B, ...), null_cond leaves without B. Ho & Salimans 2022, Algorithm 1.
    """
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return jax.tree.map(
        lambda c, n: jnp.where(
            drop.reshape(drop.shape + (1,) * (c.ndim - 1)), jnp.broadcast_to(n, c.shape), c
        ),
        cond,
        null_cond,
    )


def noise_batch(
    schedule: Schedule, x0: jax.Array, keys: jax.Array, weights: jax.Array | None = None
):
    """Draw t (B,) in 1..T and eps like x0, one key per row -> (x_t, t, eps).

    Uniform as in the papers, or with probabilities proportional to `weights` (T,).
    """

    def draw(key):
        t_key, eps_key = jax.random.split(key)
        if weights is None:
            t = jax.random.randint(t_key, (), 1, schedule.T + 1)
        else:
            t = 1 + jax.random.categorical(t_key, jnp.log(weights))
        return t, jax.random.normal(eps_key, x0.shape[1:])

    t, eps = jax.vmap(draw)(keys)
    return schedule.add_noise(x0, t, eps), t, eps


def hybrid_loss(
    schedule: Schedule,
    prediction: Prediction,
    error: jax.Array,
    x0: jax.Array,
    x: jax.Array,
    t: jax.Array,
    time_odds: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """L = mean square error + T / 1000 * bound, the bound training the variance alone.

    error (B, ...) of whatever the network predicts; the bound (bits a dimension) enters only if
    the prediction has v. Nichol & Dhariwal 2021, eq. 16; ADM's RESCALED_MSE. time_odds (T,): t was
    drawn with these probabilities, and each loss is divided by T p(t), so that the mean is still
    that of uniform times; metrics["drawn"] tells `importance_sampled` of them.
    """
    weight = jnp.ones(len(x)) if time_odds is None else 1 / (schedule.T * time_odds[t - 1])
    losses = jnp.square(error).mean(tuple(range(1, error.ndim)))
    metrics = {"mse": (weight * losses).mean()}
    if prediction.v is not None:
        vb = variational_bound(schedule, x0, x, t, prediction)
        losses += schedule.T / 1000 * vb
        metrics["vb"] = (weight * vb).mean()
    if time_odds is not None:
        metrics["drawn"] = {"t": t, "losses": losses}
    return (weight * losses).mean(), metrics


RECENT = 10  # losses of each time that its history weighs


class ImportanceState(NamedTuple):
    """Optimiser state that also knows how large the loss is at each time."""

    square: jax.Array  # (T,) mean of the squares of recent losses
    count: jax.Array  # (T,) losses seen
    inner: Any  # of the optimiser itself


def time_odds(state: ImportanceState) -> jax.Array:
    """p(t) (T,) ~ sqrt(E[L_t^2]), with 0.001 of uniform in it; uniform until all t have a history.

    Nichol & Dhariwal 2021, eq. 18; improved-diffusion's LossSecondMomentResampler.
    """
    T, root = len(state.square), jnp.sqrt(state.square)
    p = 0.999 * root / jnp.maximum(root.sum(), 1e-12) + 0.001 / T
    return jnp.where((state.count >= RECENT).all(), p, 1 / T)


def importance_sampled(tx: optax.GradientTransformation, T: int) -> optax.GradientTransformation:
    """tx, whose state keeps what importance-sampled times need: so it is saved and resumed with it.

    Paper: the mean is over the last 10 losses of a time; here a running one, in which a new loss
    weighs 1/10 (before there are 10, all weigh the same). It has no queue to keep in order.
    """

    def init(params):
        return ImportanceState(jnp.zeros(T), jnp.zeros(T), tx.init(params))

    def update(grads, state, params=None, *, t, losses):
        add = lambda values: jnp.zeros(T).at[t - 1].add(values)  # noqa: E731
        new = add(1.0)
        count = state.count + new
        share = jnp.minimum(new / jnp.clip(count, 1, RECENT), 1)  # of what is new in the mean
        square = (1 - share) * state.square + share * add(losses**2) / jnp.maximum(new, 1)
        updates, inner = tx.update(grads, state.inner, params)
        return updates, ImportanceState(square, count, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def example_keys(key: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """(B,) keys of one step: fold_in(fold_in(key, step), index in the global batch)."""
    key = jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def fit(
    step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]],
    state: TrainState,
    key: jax.Array,
    *,
    examples: int,
    batch_size: int,
    steps: int,
) -> Iterator[tuple[int, TrainState, Metrics]]:
    """Train until `steps` steps are taken in all; yield (steps taken, state, metrics) after each.

    step takes row numbers (batch_size,) of data that it holds on the device (devices.py). Rows and
    keys depend on the key and the step number alone, so a resumed run goes on as if never stopped.
    The metrics are still on the device: reading them waits for the step. The state yielded is
    given away to the next step.
    """
    order_key, noise_key = jax.random.split(key)

    @jax.jit
    def draw(i):
        rows_key = jax.random.fold_in(order_key, i)
        rows = jax.random.randint(rows_key, (batch_size,), 0, examples)
        return rows, example_keys(noise_key, i, batch_size)

    for i in range(int(state.step), steps):
        state, metrics = step(state, *draw(i))
        yield i + 1, state, metrics
