"""Published weights in our modules: whose tensor is whose, as data.

A mapping is {path of our module: Source}. A Source says what the official module is called and, if
its rows are in another order than ours, how to put them right; the layout of kernels is PyTorch's,
and turning it is the same for all:

    Conv2d (O, I, kh, kw) -> (kh, kw, I, O)   Linear (O, I), Conv1d (O, I, 1) -> (I, O)

Every tensor of the file is used once and every parameter of ours is filled once, or it is refused.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from common.checkpoint import CheckpointError
from common.tensorfile import load_tensors
from common.unet import UNetConfig

# A tensor that only one kind of file has: what is in it. The first that fits counts.
FAMILIES = {
    "transformer_proj.weight": "GLIDE",
    "out.2.positional_embedding": "an ADM classifier",
    "time_embed.0.weight": "an ADM diffusion model",
    "temb.dense.0.weight": "a DDPM",
    "blocks.input.w_t": "GLIDE's noised CLIP, images",
    "blocks.input.w_voc": "GLIDE's noised CLIP, texts",
    "model.diffusion_model.time_embed.0.weight": "latent diffusion",
    "quant_conv.weight": "a first stage of latent diffusion",
    "visual.class_embedding": "CLIP",
    "vision_model.embeddings.class_embedding": "CLIP",  # by its names at Hugging Face
    "model.prd_emb": "Karlo's prior",
    "model.cf_param": "Karlo's decoder",
    "model_last_step.time_embed.0.weight": "Karlo's super-resolution",
}
SUFFIXES = (".pt", ".pth", ".ckpt")  # of published files; ours are .safetensors
LEAVES = {"kernel": ".weight", "scale": ".weight", "embedding": ".weight", "bias": ".bias"}


def same(x: np.ndarray) -> np.ndarray:
    return x


class Source(NamedTuple):
    """Official modules whose tensors, each reordered and then stacked by rows, are one of ours.

    For a module of ours the names go without .weight and .bias; for a single parameter of ours, in
    full. None among them: that part is zero, and not in the file.
    """

    names: tuple[str | None, ...]  # three where q, k and v are separate
    reorder: Callable[[np.ndarray], np.ndarray] = same


def source(name: str, reorder: Callable = same) -> Source:
    return Source((name,), reorder)


def by_head(parts: int, *, heads: int = -1, head_dim: int = -1) -> Callable:
    """Rows (head, part, channel) -> (part, head, channel): q, k, v of each head, then all q, ...

    GLIDE and most of ADM hold the queries, keys and values of a head together ("legacy"); we, and
    ADM's use_new_attention_order, hold all queries together. One of heads and head_dim is given.
    """

    def reorder(x: np.ndarray) -> np.ndarray:
        return x.reshape(heads, parts, head_dim, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    return reorder


def read(path: str | Path, family: str, aside: str = "$") -> dict[str, np.ndarray]:
    """load_tensors, and a CheckpointError if they are not of `family`, a value of FAMILIES.

    aside: a pattern of whole names that files carry beside weights, which are left out.
    """
    tensors = load_tensors(path)
    found = next((what for key, what in FAMILIES.items() if key in tensors), "another model")
    if found != family:
        raise CheckpointError(f"{path} holds weights of {found}, not of {family}: give its file")
    return {name: x for name, x in tensors.items() if not re.fullmatch(aside, name)}


def prefixed(prefix: str, sources: dict[str, Source]) -> dict[str, Source]:
    """The same sources, for a module that is a part of ours."""
    return {f"{prefix}/{ours}": s for ours, s in sources.items()}


def match(
    path: str | Path, tensors: dict[str, np.ndarray], sources: dict[str, Source], init: Callable
) -> dict[str, np.ndarray]:
    """{"path/of/our/parameter": its tensor in our layout}, almost all of them views.

    init(key) gives our params; only their names and shapes are asked for. CheckpointError lists
    what is missing, left over, or of another shape.
    """
    abstract = jax.eval_shape(init, jax.random.key(0))
    found, used, missing, wrong, mixed = {}, set(), [], [], []
    for ours, leaf in flatten_dict(abstract, sep="/").items():
        module, _, kind = ours.rpartition("/")
        parts, reorder = sources[ours if ours in sources else module]
        ending = "" if ours in sources else LEAVES[kind]
        parts = [name and name + ending for name in parts]
        names = [name for name in parts if name]
        absent = [name for name in names if name not in tensors or name in used]
        used.update(names)
        missing += absent
        if absent:
            continue
        if len({tensors[name].dtype for name in names}) > 1:  # half of a matrix was converted
            mixed += names
            continue
        try:
            x = [reorder(tensors[n]) if n else np.zeros_like(tensors[names[0]]) for n in parts]
            x = x[0] if len(x) == 1 else np.concatenate(x)
            if kind == "kernel":
                x = x.transpose(2, 3, 1, 0) if leaf.ndim == 4 else x.reshape(x.shape[:2]).T
            if x.shape != leaf.shape or not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError
            found[ours] = x
        except ValueError:  # also of a shape that cannot be reordered
            wrong += [f"{n} {tensors[n].dtype}{list(tensors[n].shape)}" for n in names]
    unused = [name for name in tensors if name not in used]
    problems = {"missing": missing, "left over": unused, "of another shape": wrong}
    problems["of different precisions in one matrix"] = mixed
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for what, names in problems.items()
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} is of another model or config: {'; '.join(problems)}")
    return found


def fill(path: str | Path, tensors: dict, sources: dict[str, Source], init: Callable) -> dict:
    """Our nested params, float32 numpy arrays, from half or single precision. See `match`."""
    views = match(path, tensors, sources, init)
    params = {k: np.array(views.pop(k), np.float32, order="C") for k in list(views)}
    return unflatten_dict(params, sep="/")


def is_published(path: Path, vocab: Path | None = None) -> bool:
    """Is a command to take these weights as published? By their kind, or as a vocabulary is given.

    vocab: only published models read pieces of words.
    """
    return path.suffix in SUFFIXES or vocab is not None


def defaults(config: Any, **values: Any) -> Any:
    """A command's dataclass with these in the place of None: what its weights are drawn with."""
    return replace(config, **{k: v for k, v in values.items() if getattr(config, k) is None})


def official(denoise: Callable) -> Callable:
    """The denoiser (or log_prob) of a published network, with t in 1..T: it learned 0..T-1."""

    def shifted(x, t, cond):
        return denoise(x, t - 1, cond)

    return shifted


# The U-Net of OpenAI: names of ADM, GLIDE and latent diffusion.

RESBLOCK = {
    "norm1": "in_layers.0",
    "Conv_0": "in_layers.2",
    "Dense_0": "emb_layers.1",
    "norm2": "out_layers.0",
    "Conv_1": "out_layers.3",
    "Conv_2": "skip_connection",  # only where the number of channels changes
}
ATTENTION = {"GroupNorm_0": "norm", "qkv": "qkv", "context_kv": "encoder_kv", "out": "proj_out"}
_ATTEND = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
CROSS = {
    "GroupNorm_0": "norm",
    "proj_in": "proj_in",
    **{f"LayerNorm_{i}": f"transformer_blocks.0.norm{i + 1}" for i in range(3)},
    **{f"self_attention/{k}": f"transformer_blocks.0.attn1.{v}" for k, v in _ATTEND.items()},
    **{f"cross_attention/{k}": f"transformer_blocks.0.attn2.{v}" for k, v in _ATTEND.items()},
    "ff_in": "transformer_blocks.0.ff.net.0.proj",
    "ff_out": "transformer_blocks.0.ff.net.2",
    "proj_out": "proj_out",
}
BLOCKS = {"ResBlock": RESBLOCK, "AttentionBlock": ATTENTION, "SpatialTransformer": CROSS}


def openai_blocks(c: UNetConfig, encoder: bool = False) -> Iterator[tuple[str, str]]:
    """(our block, official block), in the order in which they are called."""
    res = (f"ResBlock_{i}" for i in count())
    kind = "SpatialTransformer" if c.context == "cross" else "AttentionBlock"
    attend = (f"{kind}_{i}" for i in count())
    conv = (f"Conv_{i}" for i in count())
    resample = res if c.updown == "resblock" else conv
    down, up = ("", "") if c.updown == "resblock" else (".op", ".conv")
    n, levels = 1, range(len(c.multipliers))
    for level in levels:
        for _ in range(c.blocks):
            yield next(res), f"input_blocks.{n}.0"
            if 2**level in c.attention:
                yield next(attend), f"input_blocks.{n}.1"
            n += 1
        if level < levels[-1]:
            yield next(resample), f"input_blocks.{n}.0{down}"
            n += 1
    yield next(res), "middle_block.0"
    if c.middle_attention:
        yield next(attend), "middle_block.1"
    yield next(res), f"middle_block.{1 + c.middle_attention}"
    n = 0
    for level in () if encoder else reversed(levels):
        attended = 2**level in c.attention
        for i in range(c.blocks + 1):
            yield next(res), f"output_blocks.{n}.0"
            if attended:
                yield next(attend), f"output_blocks.{n}.1"
            if level and i == c.blocks:  # up: the last child of its block
                yield next(resample), f"output_blocks.{n}.{1 + attended}{up}"
            n += 1


def openai_unet(c: UNetConfig, *, new_order: bool = False, encoder: bool = False) -> dict:
    """Sources of a UNet, or with encoder of an Encoder, whose official names these are.

    new_order: ADM's use_new_attention_order, a flag that left no trace in the file.
    """
    heads = {"heads": c.heads} if c.heads else {"head_dim": c.head_dim}
    order = {} if new_order else {"qkv": by_head(3, **heads), "context_kv": by_head(2, **heads)}
    sources = {
        "time1": source("time_embed.0"),
        "time2": source("time_embed.2"),
        "classes": source("label_emb"),
        "conv_in": source("input_blocks.0.0"),
        "norm_out": source("out.0"),
        "conv_out": source("out.2"),
        "AttentionPool_0/position": source("out.2.positional_embedding", np.transpose),
        "AttentionPool_0/qkv": source("out.2.qkv_proj"),  # always in the new order
        "AttentionPool_0/out": source("out.2.c_proj"),
    }
    for ours, theirs in openai_blocks(c, encoder):
        if ours.startswith("Conv_"):
            sources[ours] = source(theirs)
            continue
        for layer, name in BLOCKS[ours.rpartition("_")[0]].items():
            sources[f"{ours}/{layer}"] = source(f"{theirs}.{name}", order.get(layer, same))
    return sources
