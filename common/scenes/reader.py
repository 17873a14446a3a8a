"""Reads a picture back into the attributes of a scene, without a network.

1. Background: the named background, in one of the styles, whose colour most pixels have.
2. Objects: connected regions of pixels off the ray of that colour (shadow and grout lie on it).
3. Each region: the nearest rendered templates give shape, size and photo or drawing; the nearest
   named colour is its colour. Mosaic is told by its grout, night by its darkness.
4. What fits none of this well enough is invalid.

References and templates are drawn by the renderer on first use and measured like any other picture.
"""

from functools import cache
from itertools import product

import numpy as np
from scipy import ndimage

from common.scenes.render import halve, render
from common.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    MATERIALS,
    PLACES,
    SHAPES,
    SIZES,
    STYLES,
    Object,
    Scene,
    nearest_place,
)

_POSES = 48  # templates for each style, shape and size
_WINDOW = 20  # side of the window around an object, in pixels of 32
_OFF_RAY = 0.12  # distance from the ray of the background at which an object begins
_MIN_AREA = 9  # pixels; a smaller region is a speck
_DARK = 0.36  # mean background below it: night
_GROUT = 0.035  # relative brightness of tiles over grout above it: mosaic
# Beyond these limits is no scene; fresh renders keep well inside.
_MAX_SPECKS = 8  # pixels in specks
_MAX_MISFIT = 0.17  # squared distance to the templates, 0 (same) .. 1 (nothing in common)
_MAX_COLOUR = 0.125  # distance to the nearest named colour
_MAX_GROUND = 0.09  # distance to the nearest named background

_DAY = ("photo", "drawing")  # the styles that only the look of the objects tells apart


def truth(scene: Scene) -> dict:
    """What `read` should say of a picture of this scene."""
    names = ("shape", "colour", "size", "place", "x", "y")
    objects = [{name: getattr(o, name) for name in names} for o in scene.objects]
    return _reading(scene.background, scene.style, objects)


def read(images: np.ndarray) -> list[dict]:
    """Readings of uint8 images (N, 32, 32, 3) or (N, 64, 64, 3).

    Each is {"valid", "background", "style", "objects"}; each of the one or two objects (left to
    right or top to bottom) is {"shape", "colour", "size", "place", "x", "y"}, x and y in [0, 1]. An
    invalid picture has empty names and no objects.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] not in ((32, 32, 3), (64, 64, 3)):
        raise ValueError(
            f"read wants uint8 (N, 32 | 64, same, 3), not {images.dtype} {images.shape}"
        )
    if images.shape[1] == 64:
        images = halve(images)
    return [_judge(m) for m in measure(images)]


def measure(images: np.ndarray) -> list[dict]:
    """All that `read` judges by, for uint8 (N, 32, 32, 3): numbers to hold against the limits."""
    return [m for i in range(0, len(images), 500) for m in _measure(images[i : i + 500])]


def _measure(images: np.ndarray) -> list[dict]:
    measured = _regions(images)
    regions = [r for m in measured for r in m["regions"]]
    if regions:
        looks = np.stack([r["look"] for r in regions])
        scores = _distances(looks, _templates()["look"])
        shape = (len(regions), len(STYLES), len(SHAPES) * len(SIZES), _POSES)
        for region, row in zip(regions, scores.reshape(shape), strict=True):
            region["misfit"] = np.sort(row, axis=-1)[..., :3].mean(-1)  # (styles, shapes * sizes)
            region["pose"] = row.argmin(-1)
    return measured


def _judge(m: dict) -> dict:
    """One measurement -> one reading."""
    regions = m["regions"]
    if not regions or m["specks"] > _MAX_SPECKS:
        return _invalid()
    styles = [list(STYLES).index(s) for s in (_DAY if m["style"] == "day" else (m["style"],))]
    far = np.linalg.norm(_grounds() - m["ground"][None, None, :], axis=-1)  # (styles, backgrounds)
    cost = {s: far[s].min() + sum(r["misfit"][s].min() for r in regions) for s in styles}
    style = min(cost, key=cost.get)
    off = far[style]
    if off.min() > _MAX_GROUND:
        return _invalid()
    objects = [_object(r, style) for r in regions]
    if None in objects:
        return _invalid()
    if len(objects) == 2:
        a, b = objects
        along, names = ("x", ("left", "right"))
        if abs(a["x"] - b["x"]) < abs(a["y"] - b["y"]):
            along, names = ("y", ("top", "bottom"))
        objects.sort(key=lambda o: o[along])
        for o, name in zip(objects, names, strict=True):
            o["place"] = name
    return _reading(list(BACKGROUNDS)[off.argmin()], list(STYLES)[style], objects)


def _object(region: dict, style: int) -> dict | None:
    """The attributes of a region, None where it is like nothing that is drawn."""
    kind = int(region["misfit"][style].argmin())
    templates = _templates()
    off = _off_colour(region["rgb"], templates["colour"][style])
    if region["misfit"][style, kind] > _MAX_MISFIT or off.min() > _MAX_COLOUR:
        return None
    shape, size = list(product(SHAPES, SIZES))[kind]
    index = (style * len(SHAPES) * len(SIZES) + kind) * _POSES + region["pose"][style, kind]
    x, y = (np.array(region["centre"]) + templates["offset"][index]).round(4).tolist()
    colour = list(COLOURS)[off.argmin()]
    return dict(shape=shape, colour=colour, size=size, place=nearest_place(x, y), x=x, y=y)


def _off_colour(rgb: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Distance of a colour (3,) to each named one (C, 3), give or take 15% of brightness."""
    bright = (named @ rgb / (named**2).sum(-1)).clip(0.85, 1.15)
    return np.linalg.norm(rgb[None, :] - bright[:, None] * named, axis=-1)


def _reading(background: str, style: str, objects: list[dict], valid: bool = True) -> dict:
    return {"valid": valid, "background": background, "style": style, "objects": objects}


def _invalid() -> dict:
    return _reading("", "", [], valid=False)


# Measuring.


def _regions(images: np.ndarray) -> list[dict]:
    """Background and regions of uint8 (N, 32, 32, 3); no regions if there are more than two."""
    rgb = images.astype(np.float32) / 255
    ground = _ground(rgb)
    scale = (rgb * ground[:, None, None]).sum(-1) / ((ground**2).sum(-1) + 1e-6)[:, None, None]
    ray = scale.clip(0.45, 1.25)[..., None] * ground[:, None, None]
    off = np.linalg.norm(rgb - ray, axis=-1)
    across = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])  # not from picture to picture
    labels, count = ndimage.label(off > _OFF_RAY, np.stack([0 * across, across, 0 * across]))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    out = []
    for i in range(len(rgb)):
        present = np.unique(labels[i][labels[i] > 0])
        large = [k for k in present if areas[k] >= _MIN_AREA]
        regions = []
        if 1 <= len(large) <= 2:
            regions = [_region(rgb[i], off[i], labels[i], k) for k in large]
        out.append({
            "ground": ground[i],
            "style": _coarse_style(rgb[i], ground[i], off[i]),
            "specks": sum(int(areas[k]) for k in present if areas[k] < _MIN_AREA),
            "regions": regions,
        })  # fmt: skip
    return out


def _ground(rgb: np.ndarray) -> np.ndarray:
    """Colour of the background, (N, 3): the reference most pixels are near to, then their mean."""
    references = _grounds().reshape(-1, 3)
    some = rgb[:, ::2, ::2].reshape(len(rgb), -1, 1, 3)
    square = ((some - references[None, None]) ** 2).sum(-1)
    best = np.exp(-square / 0.07**2).mean(1).argmax(-1)
    near = np.take_along_axis(square, best[:, None, None], -1) < 0.12**2
    near |= ~near.any(1, keepdims=True)
    return (some[:, :, 0] * near).sum(1) / near.sum(1)


def _coarse_style(rgb: np.ndarray, ground: np.ndarray, off: np.ndarray) -> str:
    """Style of one picture as far as its background tells: "night", "mosaic" or "day"."""
    if ground.mean() < _DARK:
        return "night"
    return "mosaic" if _grout(rgb, ground, off) > _GROUT else "day"


def _grout(rgb: np.ndarray, ground: np.ndarray, off: np.ndarray) -> float:
    """How much brighter the background is inside of the 4 x 4 tiles than on their borders."""
    middle = np.isin(np.arange(32) % 4, (1, 2))
    inside = middle[None, :] & middle[:, None]
    outside = ~(middle[None, :] | middle[:, None])
    bright = rgb.mean(-1) / ground.mean()
    free = (off < _OFF_RAY / 2) & (bright > 0.6)
    if not (free & inside).any() or not (free & outside).any():
        return 0.0
    return float(bright[free & inside].mean() - bright[free & outside].mean())


def _region(rgb: np.ndarray, off: np.ndarray, labels: np.ndarray, k: int) -> dict:
    """Where one region is, its colour, and its look: coverage and shading in a window around it."""
    own = labels == k
    contrast = np.percentile(off[own], 60)
    cover = (off / contrast / 0.8 - 0.1).clip(0, 1) * ((labels == 0) | own)
    rows, columns = np.nonzero(own)
    row, column = int(rows.mean().round()), int(columns.mean().round())
    pixels = rgb[own]
    vivid = pixels.max(-1) - pixels.min(-1)  # the purest pixels: neither ink nor highlight nor edge
    colour = np.median(pixels[vivid >= np.median(vivid)], axis=0)
    shading = (rgb.mean(-1) / (colour.mean() + 1e-6) - 1).clip(-0.5, 0.5) * cover
    half = _WINDOW // 2
    maps = np.pad(np.stack([cover, 0.8 * shading]), ((0, 0), (half, half), (half, half)))
    look = maps[:, row : row + _WINDOW, column : column + _WINDOW]
    return {
        "centre": (column / 32, row / 32),
        "rgb": colour,
        "look": look.ravel(),
        "area": len(rows),
    }


def _distances(looks: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """|a - b|^2 / (|a|^2 + |b|^2) of every pair, (R, F) and (K, F) -> (R, K)."""
    power = (looks**2).sum(-1)[:, None] + (templates**2).sum(-1)[None, :]
    return 1 - 2 * looks @ templates.T / power


# References.


@cache
def _grounds() -> np.ndarray:
    """Mean colour of the empty background in each style, (styles, backgrounds, 3) in [0, 1]."""
    phases = np.random.default_rng(0).random((4, 3)).tolist()
    scenes = [Scene(b, s, (), tuple(p)) for s in STYLES for b in BACKGROUNDS for p in phases]
    means = render(scenes, 32).mean((1, 2)) / 255
    return means.reshape(len(STYLES), len(BACKGROUNDS), 4, 3).mean(2).astype(np.float32)


@cache
def _templates() -> dict[str, np.ndarray]:
    """Looks (K, F), offsets (K, 2) and colours (styles, colours, 3) of rendered objects."""
    rng = np.random.default_rng(1)
    scenes = [
        _template_scene(rng, style, shape, size, list(COLOURS)[i % len(COLOURS)])
        for style, shape, size, i in product(STYLES, SHAPES, SIZES, range(_POSES))
    ]
    regions = [m["regions"][0] for m in _regions(render(scenes, 32))]
    objects = [s.objects[0] for s in scenes]
    offset = [
        (o.x - r["centre"][0], o.y - r["centre"][1]) for o, r in zip(objects, regions, strict=True)
    ]
    rgb = np.stack([r["rgb"] for r in regions]).reshape(len(STYLES), -1, len(COLOURS), 3)
    return {
        "look": np.stack([r["look"] for r in regions]),
        "offset": np.array(offset),
        "colour": np.median(rgb, axis=1),
    }


def _template_scene(
    rng: np.random.Generator, style: str, shape: str, size: str, colour: str
) -> Scene:
    x, y = np.array(PLACES[rng.choice(list(PLACES))]) + rng.uniform(-0.04, 0.04, 2)
    o = Object(
        shape, colour, size, x, y, str(rng.choice(MATERIALS)), rng.uniform(-0.2, 0.2),
        rng.uniform(0.96, 1.04),
    )  # fmt: skip
    return Scene(str(rng.choice(list(BACKGROUNDS))), style, (o,), tuple(rng.random(3)))
