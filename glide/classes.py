"""Class-conditional and unconditional diffusion, ADM's half of the road to GLIDE.

A class is the shape and the colour of a scene with one object. One network is both models: a
further label, NULL, stands for "any". Dhariwal & Nichol 2021, section 4.

    python -m glide train-classes
"""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, data, devices, plot, run, sampler, train
from common.devices import CHUNK, in_chunks
from common.guidance import Denoiser, classifier_free
from common.process import to_float, to_uint8
from common.scenes.scene import COLOURS, HELD_OUT, SHAPES
from common.unet import UNet, UNetConfig
from glide.loss import denoising_loss
from glide.model import SMALL, TINY, make_schedule, predict

CLASSES = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
SEEN = tuple(i for i, c in enumerate(CLASSES) if c not in HELD_OUT)  # those that training shows
NULL = len(CLASSES)  # the label of no class
NAMES = (*(f"{colour} {shape}" for shape, colour in CLASSES), "any")


def caption(label: int) -> str:
    """A class in words: "an orange cube"; of NULL none."""
    return "" if label == NULL else f"a{'n' * (NAMES[label][0] in 'aeiou')} {NAMES[label]}"


def _adm(unet: UNetConfig) -> UNetConfig:
    return replace(unet, context=None, num_classes=len(CLASSES) + 1)


@dataclass(frozen=True)
class ClassesConfig:
    """A U-Net that takes a label. Paper: ADM trains the unconditional model by itself."""

    size: int = 32  # pixels
    T: int = 1000  # diffusion times
    schedule: str = "cosine"
    prediction: str = "velocity"  # see glide/model.py
    unet: UNetConfig = field(default_factory=lambda: _adm(SMALL.unet))

    @property
    def channels(self) -> int:
        return self.unet.out_channels // 2  # the other half is the learned variance


def _narrow(width: int) -> ClassesConfig:
    return ClassesConfig(unet=replace(_adm(SMALL.unet), width=width, blocks=1, head_dim=width // 2))


# wide and narrow, 0.58 and 0.15 million parameters, are what the studies compare.
PRESETS = {"tiny": ClassesConfig(unet=_adm(TINY.unet)), "small": ClassesConfig(),
           "wide": _narrow(32), "narrow": _narrow(16)}  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ClassesConfig, key: jax.Array) -> dict:
    x, one = jnp.zeros((1, config.size, config.size, config.channels)), jnp.ones(1, jnp.int32)
    return UNet(config.unet).init(key, x, one, label=one)["params"]


def denoiser(config: ClassesConfig, params: dict) -> Denoiser:
    """denoise(x, t, {"label": (B,)}) -> Prediction; the label NULL is the unconditional model."""

    def denoise(x: jax.Array, t: jax.Array, cond: dict[str, jax.Array]):
        output = UNet(config.unet).apply({"params": params}, x, t, label=cond["label"])
        return predict(config, output, x, t)

    return denoise


def load(path: Path) -> tuple[ClassesConfig, dict, dict]:
    """(config, params, metadata); CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "glide.classes", ClassesConfig, init_params)


def load_labelled(size: int, split: str = "train") -> dict[str, np.ndarray]:
    """{"image": uint8 (N, size, size, 3), "label": (N,)} of the scenes with one object."""
    scenes = data.load("scenes", split, size=size)
    alone = np.array([len(scene.objects) == 1 for scene in scenes["scenes"]])
    objects = [scene.objects[0] for scene, one in zip(scenes["scenes"], alone, strict=True) if one]
    labels = [CLASSES.index((o.shape, o.colour)) for o in objects]
    return {"image": scenes["image"][alone], "label": np.array(labels, np.int32)}


@dataclass(frozen=True)
class ClassesTrainConfig(run.RunConfig):
    """`python -m glide train-classes`: each field is an option."""

    out: Path = Path("runs/classes")  # checkpoints, samples, metrics.jsonl, weights.safetensors
    preset: Literal[tuple(PRESETS)] = "small"  # which model
    drop: float = 0.1  # probability that a label becomes NULL
    late: float = 1.0  # times are drawn in proportion to t^late; 0 is uniform, as in the paper


def make_loss(config: ClassesConfig, drop: float, late: float = 0.0) -> train.LossFn:
    """Hybrid loss of a batch {"image": uint8 (B, H, W, 3), "label": (B,)}."""

    def loss_fn(params, batch, keys):
        noise_keys, drop_keys = jax.vmap(lambda k: tuple(jax.random.split(k)))(keys)
        label = train.drop_condition(drop_keys, batch["label"], jnp.int32(NULL), drop)
        apply = lambda x, t: UNet(config.unet).apply({"params": params}, x, t, label=label)  # noqa: E731
        return denoising_loss(config, apply, to_float(batch["image"]), noise_keys, late)

    return loss_fn


@functools.cache
def compiled(config: ClassesConfig, steps: int, ancestral: bool):
    """run(params, labels (B,), scales (B,), key) -> uint8 (B, H, W, 3)."""
    schedule = make_schedule(config)
    ts = sampler.timesteps(config.T, steps)

    def sample(params, labels, scales, key):
        x_key, step_key = jax.random.split(key)
        x = sampler.noise_like(
            x_key, jnp.zeros((len(labels), config.size, config.size, config.channels))
        )
        guided = classifier_free(denoiser(config, params), {"label": jnp.int32(NULL)}, scales)
        args = (guided, schedule, x, ts, {"label": labels}, step_key)
        if ancestral:
            x = sampler.ancestral(*args, variance="learned", x0_fn=sampler.clip_x0)
        else:
            x = sampler.sample(*args, x0_fn=sampler.clip_x0)
        return to_uint8(x)

    return devices.jit(sample)


def draw(
    config: ClassesConfig,
    params: dict,
    labels: np.ndarray,
    *,
    guidance_scale: float | np.ndarray = 1.0,
    steps: int = 50,
    seed: int = 0,
    ancestral: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """uint8 (B, H, W, 3) of B labels: DDIM, or ancestral steps with the learned variance.

    guidance_scale: 0 is the unconditional model, 1 the conditional one, beyond it CFG.
    """
    labels = np.asarray(labels, np.int32)
    scales = np.broadcast_to(np.float32(guidance_scale), labels.shape)
    sample, key = compiled(config, steps, ancestral), jax.random.key(seed)

    def rows_of(rows, i):
        return sample(params, labels[rows], scales[rows], jax.random.fold_in(key, i))

    return in_chunks(rows_of, len(labels), CHUNK, "drawing", progress)


def main(c: ClassesTrainConfig) -> None:
    run.start(c)
    config = PRESETS[c.preset]
    labels = np.array(SEEN[:16])

    def sample(params):
        images = draw(config, params, labels, guidance_scale=2.0, steps=25)
        return plot.grid(images, captions=[NAMES[i] for i in labels])

    run.run(
        c,
        model="glide.classes",
        config=config,
        init=lambda key: init_params(config, key),
        loss_fn=make_loss(config, c.drop, c.late),
        batches=load_labelled(config.size),
        sample=sample,
        command="train-classes",
    )
