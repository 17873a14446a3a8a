"""CLIP on captioned scenes: its training, and how well it tells classes and finds pictures.

The CLIP that guides (clip_guidance.py) is trained on noised pictures x_t (--noised), the CLIP that
judges on clean ones; with --base the one begins with the other, which then is no judge of it.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import checkpoint, clip, data, devices, metrics, run, train
from common.clip import ClipConfig
from common.process import to_float
from common.scenes.captions import agrees, caption, claims
from common.scenes.reader import truth
from common.scenes.scene import COLOURS, SHAPES, Scene
from common.schedule import cosine
from glide.model import tokenizer

T = 1000  # times of a noised CLIP: the cosine schedule of GLIDE's base model


def load(path: Path) -> tuple[ClipConfig, dict, dict]:
    """(config, params, metadata) of a weights file; CheckpointError says what is wrong."""
    return checkpoint.load_model(path, "glide.clip", ClipConfig, clip.init_params)


@dataclass(frozen=True)
class ClipTrainConfig(run.RunConfig):
    """`python -m glide train-clip`: each field is an option."""

    out: Path = Path("runs/clip")  # checkpoints, metrics.jsonl, weights.safetensors, accuracy.json
    steps: int = 2_600
    batch_size: int = 8  # rows of `group` pictures
    group: int = 8  # pictures of the same colours that stay together; 1: all at random, as in CLIP
    lr: float = 1e-3  # AdamW; warms up, then falls to 0 as a cosine
    preset: Literal["tiny", "small"] = "small"  # which model
    base: Path | None = None  # weights to begin with, a noised CLIP also with a clean one's
    noised: bool = False  # train on x_t, t uniform, with a token per time: what guidance needs
    size: int = 32  # pixels, 32 or 64
    weight_decay: float = 0.2  # of matrices and embeddings, not of biases, gains and the scale
    rho: float = 0.0  # caption noise: probability that a named shape or colour is wrong
    examples: int = 24_000  # pictures used, of the 24,000 there are


def make_loss(config: ClipConfig, axis_name: str | None = None) -> train.LossFn:
    """InfoNCE of a batch {"image": uint8 (B, H, W, 3), "tokens": (B, phrasings, L)}.

    Rows may be groups, (B, group, ...): they are compared with each other and all other groups.
    axis_name: inside pmap, where every device compares its pictures with the captions of all.
    """
    schedule = cosine(config.T) if config.T else None

    def loss_fn(params, batch, keys):
        if batch["image"].ndim == 5:
            group = batch["image"].shape[1]
            keys = jax.vmap(lambda key: jax.random.split(key, group))(keys).reshape(-1)
            batch = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in batch.items()}
        x, t = to_float(batch["image"]), None
        noise_keys, phrase_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        tokens = train.one_phrasing(phrase_keys, batch, ("tokens",))["tokens"]
        if schedule:
            x, t, _ = train.noise_batch(schedule, x, noise_keys)
        image, text, log_scale = clip.Clip(config).apply({"params": params}, x, tokens, t)
        loss, accuracy = clip.info_nce(image, text, tokens, log_scale, axis_name)
        return loss, {"accuracy": accuracy, "scale": jnp.exp(log_scale)}

    return loss_fn


def in_groups(batches: dict, scenes: Sequence[Scene], group: int, seed: int) -> dict:
    """Rows (N, ...) -> (N // group, group, ...), as far as they go of the same colours.

    Paper: batches are drawn at random. Of few pictures nearly every other one then has other
    colours, and to tell these apart is enough; among like colours the shape must be seen.
    """
    random = np.random.default_rng(seed).permutation(len(scenes))
    order = sorted(random, key=lambda i: sorted(o.colour for o in scenes[i].objects))
    order = np.array(order)[: len(scenes) // group * group].reshape(-1, group)
    return {name: rows[order] for name, rows in batches.items()}


def begin_with(config: ClipConfig, path: Path) -> Callable[[jax.Array], dict]:
    """init(key) -> params of other weights; a clean CLIP's class token is that of every time.

    ValueError: weights of another shape.
    """
    _, params, _ = load(path)
    image = dict(params["image"])
    if config.T and "class" in image:
        image["time"] = jnp.broadcast_to(image.pop("class"), (config.T, config.width))
    base = {**params, "image": image}
    init = lambda key: train.begin_with(base, clip.init_params(config, key))  # noqa: E731
    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        raise ValueError(f"{path} is no base of this CLIP: {error}") from None
    return init


def optimiser(c: ClipTrainConfig) -> optax.GradientTransformation:
    """AdamW with CLIP's b2 and eps for transformers; the scale never exceeds 100."""
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    rate = run.learning_rate(c)
    adamw = optax.adamw(rate, b2=0.98, eps=1e-6, weight_decay=c.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw, clip.clip_scale())


def main(c: ClipTrainConfig) -> None:
    """Train from scratch, or go on where `out` stopped; then measure on the test split."""
    config = clip.PRESETS[c.preset]
    if c.size % config.patch:
        raise ValueError(f"size must be a multiple of the patch ({config.patch}), not {c.size}")
    config = replace(config, size=c.size, T=T if c.noised else 0)
    if not 1 <= c.group <= c.examples:
        raise ValueError(f"group must be in 1..{c.examples}, not {c.group}")
    run.start(c)
    batches = data.captioned(tokenizer(config).encode, config.size, c)
    if c.group > 1:
        scenes = data.load("scenes", "train", size=c.size)["scenes"][: c.examples]
        batches = in_groups(batches, scenes, c.group, c.seed)
    params = run.run(
        c,
        model="glide.clip",
        config=config,
        init=begin_with(config, c.base) if c.base else lambda key: clip.init_params(config, key),
        loss_fn=make_loss(config, None if c.hosts > 1 else devices.AXIS),
        batches=batches,
        tx=optimiser(c),
        command="train-clip",
    )
    if jax.process_index() == 0:
        times = (1, T // 4, T // 2, 3 * T // 4) if c.noised else (0,)
        rows = [row for t in times for row in evaluate(config, params, t=t)]
        (c.out / "accuracy.json").write_text(json.dumps(rows, indent=1) + "\n")
        for row in rows:
            at = f"t = {row['t']:<4} " if c.noised else ""
            print(f"{at}{row['task']:28} {row['accuracy']:.3f}  [{row['low']:.3f}, "
                  f"{row['high']:.3f}]  chance {row['chance']:.3f}  "
                  f"ceiling {row['ceiling']:.3f}  n = {row['n']}")  # fmt: skip


def evaluate(
    config: ClipConfig, params: dict, split: str = "test", t: int = 0, seed: int = 0
) -> list[dict]:
    """Zero-shot classes and retrieval on a split, each with its interval, chance and ceiling.

    t > 0: of x_t, for a noised CLIP. Chance is picking blindly; the ceiling of retrieving the very
    picture is what one gets who finds all that the caption is true of, and picks among them.
    """
    scenes, rng = data.load("scenes", split, size=config.size), np.random.default_rng(seed)
    x, scenes = scenes["image"], scenes["scenes"]
    if t:
        schedule, x = cosine(config.T), np.float32(x) / 127.5 - 1
        x = schedule.signal[t] * x + schedule.noise[t] * rng.standard_normal(x.shape, np.float32)
    images = clip.embed_images(config, params, np.asarray(x), t)
    rows = []

    def add(task, right, n, chance, ceiling=1.0):
        low, high = metrics.wilson_interval(right, n)
        rows.append({"t": t, "task": task, "accuracy": right / n, "low": low, "high": high,
                     "chance": chance, "ceiling": ceiling, "n": n})  # fmt: skip

    single = np.array([len(scene.objects) == 1 for scene in scenes])
    objects = [scene.objects[0] for scene in scenes if len(scene.objects) == 1]
    shapes, colours = class_prompts(config, params)
    for task, classes, names, truths in (
        ("zero-shot shape", shapes, SHAPES, [o.shape for o in objects]),
        ("zero-shot colour", colours, list(COLOURS), [o.colour for o in objects]),
    ):
        right = clip.zero_shot(images[single], classes) == [names.index(name) for name in truths]
        add(task, int(right.sum()), len(right), 1 / len(names))

    texts, N = [caption(scene, rng) for scene in scenes], len(scenes)
    similarity = clip.embed_texts(config, params, texts) @ images.T
    true = matches(texts, scenes)
    for k in (1, 5):
        right = clip.recall(similarity, np.eye(N, dtype=bool), k)
        ceiling = float(np.minimum(k / true.sum(1), 1).mean())
        add(f"caption to its picture, of {k}", round(right * N), N, min(k / N, 1), ceiling)
    right = clip.recall(similarity, true, 1)
    add("caption true of first hit", round(right * N), N, float(true.mean()))
    return rows


def class_prompts(config: ClipConfig, params: dict) -> tuple[np.ndarray, np.ndarray]:
    """Zero-shot classes (6, D) of the shapes and (8, D) of the colours.

    Captions name both always, so a shape's prompts are "a red ball", "an orange ball"...: the
    ensemble runs over what the class leaves open.
    """
    prompts = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]
    prompts = [p.replace("a orange", "an orange") for p in prompts]
    grid = clip.embed_texts(config, params, prompts).reshape(len(SHAPES), len(COLOURS), -1)
    return clip.class_embeddings(grid), clip.class_embeddings(grid.swapaxes(0, 1))


def matches(texts: Sequence[str], scenes: Sequence[Scene]) -> np.ndarray:
    """(texts, scenes) bool: is all that the caption claims true of the scene?"""
    by_objects = defaultdict(list)  # cheap to look up, so that few pairs are compared in full
    for j, scene in enumerate(scenes):
        by_objects[frozenset((o.shape, o.colour) for o in scene.objects)].append((j, truth(scene)))
    out = np.zeros((len(texts), len(scenes)), bool)
    for i, claimed in enumerate(map(claims, texts)):
        objects = frozenset((o["shape"], o["colour"]) for o in claimed["objects"])
        for j, known in by_objects[objects]:
            out[i, j] = agrees(claimed, known)["all"]
    return out
