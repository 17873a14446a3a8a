"""What training at the published sizes takes: python -m benchmarks.plan

The models are never built: jax.eval_shape gives their parameters, and the gradient of one example
is lowered, not compiled, for XLA's count of its operations (Lowered.cost_analysis: products, sums
and elementwise functions, before fusion). Optimiser and EMA, some 20 operations a parameter, are
left out. Memory is that of the state in float32: parameters, gradients, two Adam moments, averaged
parameters; activations and data come on top. Sharded is devices.spread: an array none of whose axes
the devices divide (widths of 192 over 512 devices) stays whole on each. Prints a table and writes
lessons/figures/plan.json.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from common import devices
from glide import model as glide
from glide import train as glide_train
from ldm import model as ldm
from ldm import presets
from ldm import train as ldm_train
from ldm.pretrained import STABLE_V1
from unclip import ar_prior, diffusion_prior, upsampler
from unclip import model as decoder
from unclip import train as unclip_train

DEVICES = (1, 8, 64, 512)
COPIES = {"parameters": 1, "gradients": 1, "adam": 2, "ema": 1}  # of four bytes a parameter
P = 4  # captions kept of each picture


@dataclass(frozen=True)
class PlanConfig:
    batch: int = 2048  # of all devices together; GLIDE's and Stable Diffusion's
    only: str = ""  # models whose name holds this
    out: Path = Path("lessons/figures/plan.json")


@dataclass(frozen=True)
class Entry:
    name: str
    published: float  # parameters: exact where the released files are known, else as the paper says
    init: Callable
    loss: Callable
    batch: dict  # of one example
    frozen: tuple[str, ...] = ()  # parts that are not trained: no gradient, no moments, no EMA


def of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((1, *shape), dtype)


def pictures(c) -> dict:
    return {"image": of((c.size, c.size, 3), jnp.uint8),
            "tokens": of((P, c.text.length), jnp.int32)}  # fmt: skip


def entries() -> list[Entry]:
    def of_glide(name, published, c):
        return Entry(name, published, lambda key: glide.init_params(c, key),
                     glide_train.make_loss(c, 0.2), pictures(c))  # fmt: skip

    def of_ldm(name, published, c, frozen=()):
        h, w, C = ldm.latent_shape(c)
        batch = {"moments": of((h, w, 2 * C), jnp.float16)}
        batch["tokens"] = of((P, c.text.length), jnp.int32)
        return Entry(name, published, lambda key: ldm.init_params(c, key),
                     ldm_train.make_loss(c, 0.1), batch, frozen)  # fmt: skip

    def of_decoder(name, published, c):
        batch = {**pictures(c), "image_embedding": of((c.dim,))}
        return Entry(name, published, lambda key: decoder.init_params(c, key),
                     unclip_train.make_loss(c, 0.5, 0.1), batch)  # fmt: skip

    # The 3.5 billion that were never released: ADM-64 at width 512, text of 24 layers of 2048.
    wide = {"unet": replace(glide.PAPER.unet, width=512),
            "text": replace(glide.PAPER.text, width=2048, layers=24, heads=32)}  # fmt: skip
    prior, ar, large = diffusion_prior.PAPER, ar_prior.PAPER, upsampler.PRESETS["paper"]
    text = {"tokens": of((P, prior.text.length), jnp.int32), "text_embedding": of((P, prior.dim))}
    embedded = {**text, "image_embedding": of((prior.dim,))}
    coded = {**text, "tokens": of((P, ar.text.length), jnp.int32), "dot": of((P,), jnp.int32)}
    coded["codes"] = of((ar.components,), jnp.int32)
    return [
        of_glide("GLIDE base", 385_030_726, glide.PAPER),
        of_glide("GLIDE upsampler", 398_361_286, glide.PAPER_UPSAMPLER),
        of_glide("GLIDE base, unreleased", 3.5e9, replace(glide.PAPER, **wide)),
        of_ldm("LDM text2img-large", 872_300_484 + 542_895_360, presets.PAPER),
        of_ldm("Stable Diffusion v1", 859_520_964 + 123_060_480, STABLE_V1, ("text",)),
        Entry("unCLIP diffusion prior", 1e9, lambda key: diffusion_prior.init_params(prior, key),
              diffusion_prior.make_loss(prior, 0.1), embedded),
        Entry("unCLIP AR prior", 1e9, lambda key: ar_prior.init_params(ar, key),
              ar_prior.make_loss(ar, 0.1), coded),
        of_decoder("unCLIP decoder, as GLIDE base", 385_030_726, decoder.PAPER),
        of_decoder("unCLIP decoder", 3.5e9, replace(decoder.PAPER, **wide)),
        Entry("unCLIP upsampler", 0.7e9, lambda key: upsampler.init_params(large, key),
              upsampler.make_loss(large), {"image": of((large.size, large.size, 3), jnp.uint8)}),
    ]  # fmt: skip


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def flops_of(e: Entry, trained: dict, frozen: dict) -> float:
    """Operations of loss and gradient of one example, forward and backward."""

    def loss(trained, frozen, batch, keys):
        out = e.loss({**trained, **frozen}, batch, keys)
        return out[0] if isinstance(out, tuple) else out

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    lowered = jax.jit(jax.value_and_grad(loss)).lower(trained, frozen, e.batch, keys)
    return float(lowered.cost_analysis()["flops"])


def held(tree, D: int) -> int:
    """Numbers on one of D devices when the tree is spread over them."""
    whole = lambda x: devices.split_axis(x.shape, D) is None  # noqa: E731
    return sum(x.size if whole(x) else x.size // D for x in jax.tree.leaves(tree))


def plan(e: Entry, batch: int) -> dict:
    shapes = dict(jax.eval_shape(e.init, jax.random.key(0)))
    trained = {k: v for k, v in shapes.items() if k not in e.frozen}
    frozen = {k: v for k, v in shapes.items() if k in e.frozen}
    flops, rows = flops_of(e, trained, frozen), []
    for D in DEVICES:
        each = {"replicated": (count(trained), count(frozen)),
                "sharded": (held(trained, D), held(frozen, D))}  # fmt: skip
        memory = {
            how: {part: 4 * (n * t + (part == "parameters") * f) for part, n in COPIES.items()}
            for how, (t, f) in each.items()
        }
        per_device = math.ceil(batch / D)
        rows.append({"devices": D, "bytes": memory, "examples": per_device,
                     "flops": flops * per_device})  # fmt: skip
    return {"name": e.name, "parameters": count(shapes), "published": e.published,
            "frozen": count(frozen), "flops_per_example": flops, "devices": rows}  # fmt: skip


def main(c: PlanConfig) -> None:
    reports = []
    print(f"state in GiB a device, replicated | sharded; TFLOP a step and device, batch {c.batch}")
    for e in entries():
        if c.only not in e.name:
            continue
        r = plan(e, c.batch)
        reports.append(r)
        print(f"{r['name']:30} {r['parameters']:>13,} parameters, published {r['published']:,.0f}"
              f"; {r['flops_per_example'] / 1e12:.3f} TFLOP an example", flush=True)  # fmt: skip
        for row in r["devices"]:
            gib = {how: sum(parts.values()) / 2**30 for how, parts in row["bytes"].items()}
            print(f"  {row['devices']:4} devices  {gib['replicated']:7.2f} | {gib['sharded']:7.3f}"
                  f"  {row['flops'] / 1e12:9.1f}")  # fmt: skip
    report = {
        "command": f"python -m benchmarks.plan --batch {c.batch}",
        "measure": "parameters by jax.eval_shape; FLOPs of loss and gradient by XLA's cost analysis"
        " of the lowered program, not compiled; bytes of float32 parameters, gradients, two Adam"
        " moments and EMA, without activations; sharded by devices.spread",
        "jax": jax.__version__, "batch": c.batch, "results": reports,
    }  # fmt: skip
    if not c.only:
        c.out.parent.mkdir(parents=True, exist_ok=True)
        c.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(PlanConfig))
