"""What is measured of first stages and latent models: by the reader, by distances, by the clock."""

import time
from collections.abc import Callable

import numpy as np

from common import data, metrics
from common.scenes.captions import caption, claims
from common.scenes.check import accuracy
from common.scenes.reader import read
from ldm.autoencoder import AutoencoderConfig, code_numbers, reconstruct
from ldm.losses import perplexity
from ldm.sample import draw


def about(first_stage: AutoencoderConfig, metadata: dict) -> dict:
    """Which weights a row is of."""
    return {"f": first_stage.factor, "kind": first_stage.kind, "digest": metadata["digest"],
            "recipe": metadata["recipe"]}  # fmt: skip


def fidelity(images: np.ndarray, to: np.ndarray, scenes: list) -> dict:
    """Of pictures uint8 (N, H, W, 3) that should be others: PSNR, FD-scenes, sharpness, accuracy.

    sharpness: mean size of the step from pixel to pixel, over that of the others (1: as sharp);
    accuracy: share of the scenes' attributes that the reader finds.
    """
    step = lambda x: np.abs(np.diff(x.astype(float), axis=2)).mean()  # noqa: E731
    error = np.square((images.astype(float) - to) / 255).mean((1, 2, 3))
    psnr = -10 * np.log10(np.maximum(error, 1e-10))
    return {"n": len(images), "psnr": float(psnr.mean()),
            "psnr_interval": metrics.bootstrap_interval(psnr),
            "fd": metrics.frechet_distance(*map(metrics.scene_features, (to, images))),
            "sharpness": float(step(images) / step(to)),
            "accuracy": accuracy(scenes, read(images))}  # fmt: skip


def reconstruction(config: AutoencoderConfig, params: dict, num: int = 512) -> dict:
    """What a first stage loses on `num` test pictures: no model of its latents can do better.

    fidelity, the accuracies of the originals, and of VQ the codes in use (perplexity / codes).
    """
    scenes = data.load("scenes", "test", size=config.size)
    truth, images = scenes["scenes"][:num], scenes["image"][:num]
    found = fidelity(reconstruct(config, params, images), images, truth)
    found["accuracy_originals"] = accuracy(truth, read(images))
    if config.kind == "vq":
        found["codes"] = config.codes
        found["perplexity"] = float(perplexity(code_numbers(config, params, images), config.codes))
        found["codes_used"] = found["perplexity"] / config.codes
    return found


def asked(config, num: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """num captions of test scenes, real pictures (four times as many), and the captions' own."""
    scenes, rng = data.load("scenes", "test", size=config.size), np.random.default_rng(seed)
    kept = [i for i, scene in enumerate(scenes["scenes"])
            if config.condition != "class" or len(scene.objects) == 1][:num]  # fmt: skip
    texts = [caption(scenes["scenes"][i], rng) for i in kept]
    return texts, scenes["image"][: 4 * num], scenes["image"][kept]


def quality(config, params: dict, num: int, guidance_scale: float, **options) -> dict:
    """Pictures of `num` test captions: FD-scenes to real ones, and what the reader finds right.

    one_object: of captions of one object alone; ceiling: of the captions' own pictures, encoded and
    decoded. options: sample.draw's.
    """
    texts, real, own = asked(config, num, options.get("seed", 0))
    prompts = texts if config.condition != "none" else [""] * len(texts)
    images = draw(config, params, prompts, guidance_scale=guidance_scale, progress=True, **options)
    features = map(metrics.scene_features, (real, images))
    back = reconstruct(config.first_stage, params["first_stage"], own)
    alone = [i for i, text in enumerate(texts) if len(claims(text)["objects"]) == 1]
    return {"n": len(images), "fd": metrics.frechet_distance(*features),
            **metrics.caption_accuracy(texts, images),
            "one_object": metrics.caption_accuracy([texts[i] for i in alone], images[alone]),
            "ceiling": metrics.caption_accuracy(texts, back)}  # fmt: skip


def per_second(drawing: Callable[[], np.ndarray]) -> float:
    """Pictures a second of drawing() -> (N, ...), after a call that compiles; median of three."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        count = len(drawing())
        seconds.append(time.perf_counter() - began)
    return count / float(np.median(seconds[1:]))
