"""Guidance: functions from a denoiser to a denoiser. Samplers never know about it.

A denoiser is `denoise(x, t, cond) -> Prediction`, with x (B, ...), t (B,) int32 in 1..T and cond a
pytree whose leaves lead with B. One convention for the strength, everywhere:

    guidance_scale = 0   unconditional
                     1   conditional (the slides' "explicit")
                   > 1   guided; the slides' gamma, and w + 1 in Ho & Salimans

The thesis of this project, exact on the Gaussian mixture and a test:

    gradient_guidance(uncond, log p(y | x_t), s)  ==  classifier_free(cond, null, s)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from common.process import Prediction, eps_from_x0, x0_from_eps
from common.schedule import Schedule

Denoiser = Callable[[jax.Array, jax.Array, Any], Prediction]


def _per_example(scale: float | jax.Array, ndim: int) -> jax.Array:
    """A scalar, or one scale per example (B,), shaped to multiply (B, ...)."""
    scale = jnp.asarray(scale, jnp.float32)
    return scale.reshape(scale.shape + (1,) * (ndim - scale.ndim))


def classifier_free(
    denoise: Denoiser, null_cond: Any, guidance_scale: float | jax.Array
) -> Denoiser:
    """eps = eps_null + s (eps_cond - eps_null); v stays the conditional one.

    null_cond: what the network was shown when the condition was dropped; leaves shaped like
    cond's, with or without the leading B. guidance_scale: a number, or one per example (B,).
    The batch is doubled inside: one call of the network, not two.
    Ho & Salimans 2022, eq. 6 with s = w + 1; GLIDE, eq. 8.
    """

    def guided(x: jax.Array, t: jax.Array, cond: Any) -> Prediction:
        both = jax.tree.map(
            lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape)]), cond, null_cond
        )
        pred = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        eps_cond, eps_null = jnp.split(pred.eps, 2)
        scale = _per_example(guidance_scale, x.ndim)
        v = None if pred.v is None else jnp.split(pred.v, 2)[0]
        return Prediction(eps_null + scale * (eps_cond - eps_null), v)

    return guided


def gradient_guidance(
    denoise: Denoiser,
    log_prob: Callable[[jax.Array, jax.Array, Any], jax.Array],
    schedule: Schedule,
    guidance_scale: float | jax.Array,
    *,
    x0_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> Denoiser:
    """eps = eps - s noise_t grad_x log p(y | x_t): classifier guidance and CLIP guidance alike.

    log_prob(x, t, cond) -> (B,): a noise-aware classifier's log-probability, or CLIP's scaled
    cosine. The gradient is taken at x_t, as in ADM's code; it is summed over the batch, whose
    rows do not know each other. Dhariwal & Nichol 2021, Algorithm 2.
    x0_fn: bounds x0 before the gradient is added, as ADM's DDIM does, whose guided x0 is free; the
    sampler then gets none. By default the sampler bounds what is guided: other pictures.
    """

    def guided(x: jax.Array, t: jax.Array, cond: Any) -> Prediction:
        pred = denoise(x, t, cond)
        if x0_fn is not None:
            x0 = x0_fn(x0_from_eps(schedule, x, t, pred.eps))
            pred = pred._replace(eps=eps_from_x0(schedule, x, t, x0))
        gradient = jax.grad(lambda x: log_prob(x, t, cond).sum())(x)
        noise = schedule.at(t, x.ndim)[1]
        return pred._replace(eps=pred.eps - _per_example(guidance_scale, x.ndim) * noise * gradient)

    return guided


def mean_shift(
    log_prob: Callable[[jax.Array, jax.Array, Any], jax.Array],
    guidance_scale: float | jax.Array,
    *,
    at: str = "x_t",
) -> Callable[..., jax.Array]:
    """shift(x, mean, t, s, cond) = guidance_scale grad log p(y | .), for `sampler.ancestral`.

    Ancestral steps have a variance, so guidance may move their mean instead of eps: mean + s Sigma
    grad. at: "x_t", as ADM's code takes the gradient, or "mean", as its Algorithm 1 is derived
    (there log_prob gets the time s, or 1 in the last step); the authors saw no difference.
    """

    def shift(x, mean, t, s, cond):
        x, time = (x, t) if at == "x_t" else (mean, jnp.maximum(s, 1))
        time = jnp.broadcast_to(time, x.shape[:1])
        gradient = jax.grad(lambda x: log_prob(x, time, cond).sum())(x)
        return _per_example(guidance_scale, x.ndim) * gradient

    return shift
