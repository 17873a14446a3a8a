"""Train a first stage and its discriminator: config, loss, optimiser, run; then measure it."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, data, devices, plot, run, train
from common.process import to_float
from ldm import losses, perceptual
from ldm.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    init_params,
    last_convolution,
    reconstruct,
)
from ldm.measure import reconstruction
from ldm.presets import FIRST_STAGES

STEP = 2.0**-10  # what a step counts: exact in float32, and half precision does not overflow


@dataclass(frozen=True)
class AutoencoderTrainConfig(run.RunConfig):
    """`python -m ldm train-autoencoder`: each field is an option."""

    out: Path = Path("runs/autoencoder")  # checkpoints, metrics, weights, reconstruction.json(l)
    steps: int = 6_000
    batch_size: int = 8
    lr: float = 1e-3  # Adam, betas 0.5 and 0.9; warms up, then falls to 0 as a cosine
    preset: Literal[tuple(FIRST_STAGES)] = "small"  # which first stage
    kl_weight: float = 1e-6  # of the KL term, both it and the pixels being summed
    codebook_weight: float = 1.0  # of the VQ terms
    beta_on: Literal["codebook", "commitment"] = "codebook"  # the VQ term that is quartered
    perceptual: float = 1.0  # weight of the perceptual distance beside the absolute difference
    vgg: Path | None = None  # torchvision's vgg16 .pth, and
    lpips: Path | None = None  # LPIPS's vgg.pth: the published distance, in the place of ours
    disc_start: int = 5_000  # step from which the discriminator learns and is listened to
    disc_weight: float = 0.5  # of its loss, beside the adaptive weight
    disc_layers: Literal[1, 2, 3] = 2  # it judges patches of 16, 34 or 70 pixels with 1, 2 or 3
    disc_width: int = 16  # its channels, a multiple of 4
    examples: int = 24_000  # pictures used, of the 24,000 there are


def make_loss(
    config: AutoencoderConfig,
    c: AutoencoderTrainConfig,
    axis_name: str | None = None,
    distance: Callable = losses.perceptual_distance,
) -> train.LossFn:
    """Both losses of a batch {"image": uint8 (B, H, W, 3)}, in one.

    Paper: the discriminator's step comes after the autoencoder's. Here both are taken at once: no
    gradient of either loss reaches the other's weights, so their sum is two losses in one pass.
    """
    stop = jax.lax.stop_gradient
    judge = losses.PatchDiscriminator(c.disc_width, c.disc_layers)

    def loss_fn(params, batch, keys):
        x = to_float(batch["image"])
        first_stage, discriminator = params["autoencoder"], params["discriminator"]
        out = Autoencoder(config).apply({"params": first_stage}, x, keys)
        reduce = jnp.mean if config.kind == "vq" else lambda r: r.sum() / len(x)

        def reconstruction_loss(y):
            # Paper: divided by a learned output variance, which its optimiser is never given.
            return reduce(jnp.abs(x - y) + c.perceptual * distance(x, y).reshape(-1, 1, 1, 1))

        def adversarial(y):
            return -judge.apply({"params": stop(discriminator)}, y).mean()

        def last_layer(kernel):
            last = {**stop(first_stage["conv_out"]), "kernel": kernel}
            y = last_convolution(config).apply({"params": last}, stop(out.features))
            return y.astype(jnp.float32)

        kernel = stop(first_stage["conv_out"]["kernel"])
        weight = c.disc_weight * losses.adaptive_weight(
            reconstruction_loss, adversarial, last_layer, kernel, axis_name
        )
        if config.kind == "vq":
            latent = losses.vq_loss(out.z, out.codes, beta_on=c.beta_on)
            penalty = c.codebook_weight * latent
            metrics = {"vq": latent, "perplexity": losses.perplexity(out.indices, config.codes)}
        else:
            latent = losses.gaussian_kl(out.z, out.logvar).mean()
            penalty, metrics = c.kl_weight * latent, {"kl": latent}

        on = (params["step"] >= STEP * c.disc_start).astype(jnp.float32)
        pair = jnp.concatenate([x, stop(out.x)])
        real, fake = jnp.split(judge.apply({"params": discriminator}, pair), 2)
        judgement, g = losses.hinge(real, fake), adversarial(out.x)
        loss = reconstruction_loss(out.x) + penalty + on * weight * g + on * judgement
        psnr = -10 * jnp.log10(jnp.square(x - out.x).mean() / 4)
        metrics |= {"psnr": psnr, "adversarial": g, "weight": on * weight, "judgement": judgement,
                    "real": real.mean(), "fake": fake.mean()}  # fmt: skip
        return loss, metrics

    return loss_fn


def seen_by(c: AutoencoderTrainConfig) -> tuple[str, Callable]:
    """(name, distance(x, y) -> (B,)) of how differently two pictures look: LPIPS, if there is one.

    ValueError: one of its two files is missing. CheckpointError: they are something else.
    """
    if c.vgg is None and c.lpips is None:
        return losses.PERCEPTUAL, losses.perceptual_distance
    if c.vgg is None or c.lpips is None:
        raise ValueError("LPIPS is in two files: give both --vgg, torchvision's, and --lpips")
    return perceptual.NAME, functools.partial(perceptual.distance, perceptual.load(c.vgg, c.lpips))


def init(config: AutoencoderConfig, c: AutoencoderTrainConfig, key: jax.Array) -> dict:
    """Everything that is trained, and the step, which the loss asks for."""
    key, disc_key = jax.random.split(key)
    x = jnp.zeros((1, config.size, config.size, 3))
    judge = losses.PatchDiscriminator(c.disc_width, c.disc_layers)
    return {
        "autoencoder": init_params(config, key),
        "discriminator": judge.init(disc_key, x)["params"],
        "step": jnp.zeros(()),
    }


def optimiser(c: AutoencoderTrainConfig) -> optax.GradientTransformation:
    """Adam as the paper's, without clipping; the step counts itself.

    Paper: a constant rate of 4.5e-6 per picture of the batch, for a hundred times as long.
    """
    count = lambda updates, params=None: {**updates, "step": jnp.float32(STEP)}  # noqa: E731
    adam = optax.adam(run.learning_rate(c), b1=0.5, b2=0.9)
    return optax.chain(adam, optax.stateless(count))


def log_numbers(out: Path, numbers: dict) -> None:
    """A row of out/reconstruction.jsonl: PSNR, FD-scenes, perplexity, under the step logged last.

    metrics.jsonl has PSNR and perplexity of single batches; a distance needs many pictures.
    """
    step = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    row = {k: numbers[k] for k in ("n", "psnr", "fd", "perplexity") if k in numbers}
    with (out / "reconstruction.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **row}) + "\n")


def main(c: AutoencoderTrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; keep the autoencoder, with its numbers."""
    if c.disc_width < 4 or c.disc_width % 4:
        raise ValueError(f"disc_width must be a multiple of 4, not {c.disc_width}")
    run.start(c)
    config, (name, distance) = FIRST_STAGES[c.preset], seen_by(c)
    images = data.load("scenes", "train", size=config.size)["image"][: c.examples]

    def preview(params):
        log_numbers(c.out, reconstruction(config, params["autoencoder"], min(256, c.examples)))
        shown = images[:8]
        back = reconstruct(config, params["autoencoder"], shown)
        return plot.grid(np.concatenate([shown, back]), columns=8, row_labels=["given", "back"])

    params = run.run(
        c,
        model="ldm.autoencoder",
        config=config,
        init=lambda key: init(config, c, key),
        loss_fn=make_loss(config, c, None if c.hosts > 1 else devices.AXIS, distance),
        batches={"image": images},
        tx=optimiser(c),
        sample=preview,
        command="train-autoencoder",
    )
    if jax.process_index() == 0:
        weights = c.out / "weights.safetensors"
        numbers = reconstruction(config, params["autoencoder"], min(512, c.examples))
        _, metadata = checkpoint.load_weights(weights)
        metadata |= {"numbers": numbers, "perceptual": name}
        checkpoint.save_weights(weights, params["autoencoder"], metadata)
        (c.out / "reconstruction.json").write_text(json.dumps(numbers, indent=1) + "\n")
        print(f"PSNR {numbers['psnr']:.1f} dB, FD-scenes {numbers['fd']:.3f}: {weights}")
