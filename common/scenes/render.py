"""Draws scenes: signed distance functions, shading and four styles, over arrays of attributes.

An object lives in its own frame (u, v): its radius is the unit, u points right and v down. A shape
is a function (u, v) -> (distance, light): distance < 0 inside, light about 0.5 (away from the lamp,
which stands above on the left) to 1.2. Edges are anti-aliased by the distance itself: coverage is a
ramp one pixel wide, which is as smooth as 2x2 supersampling and four times as fast.
"""

import jax
import jax.numpy as jnp
import numpy as np

from common.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES, Scene

VERSION = (
    "1.0.0"  # of the pictures: prepared data carries it, so that a change here is never read stale
)
SIZE = 64  # pixels drawn; 32 is the area-downsample
CHUNK = 128  # scenes drawn by one call of the compiled function
_TILES = 8  # of the mosaic, per side
_HIGHLIGHT = {  # where a shiny object mirrors the lamp, in its own frame
    "ball": (-0.36, -0.40),
    "cube": (-0.50, -0.10),
    "cone": (-0.18, 0.15),
    "ring": (-0.45, -0.52),
    "star": (-0.10, -0.25),
    "heart": (-0.42, -0.35),
}


def render(scenes: list[Scene], size: int = 64) -> np.ndarray:
    """Pictures uint8 (N, size, size, 3), size 64 or 32, which is the rounded 2x2 mean of the 64."""
    if size not in (32, 64):
        raise ValueError(f"scenes are drawn at 32 or 64 pixels, not {size}")
    out = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        part = scenes[start : start + CHUNK]
        padded = list(part) + [part[-1]] * (CHUNK - len(part))  # one shape, one compilation
        out[start : start + CHUNK] = np.asarray(_draw(_as_arrays(padded)))[: len(part)]
    return out if size == 64 else halve(out)


def halve(images: np.ndarray) -> np.ndarray:
    """The rounded 2x2 mean: uint8 (N, H, W, 3) -> (N, H/2, W/2, 3)."""
    x = images.astype(np.uint16)
    rows = x[:, ::2] + x[:, 1::2]
    return ((rows[:, :, ::2] + rows[:, :, 1::2] + 2) >> 2).astype(np.uint8)


def _as_arrays(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """The attributes of N scenes as arrays (N, ...), of their objects (N, 2, ...)."""
    objects = np.zeros((len(scenes), 2, 9), np.float32)
    shapes = np.zeros((len(scenes), 2), np.int32)
    objects[:, :, :4] = 9.0, 9.0, 0.1, 1.0  # a missing object stands far outside of the picture
    for i, scene in enumerate(scenes):
        for j, o in enumerate(scene.objects):
            rgb = np.array(COLOURS[o.colour]) * np.array(o.tint)
            shine = float(o.material == "shiny")
            objects[i, j] = (o.x, o.y, o.radius, np.cos(o.angle), np.sin(o.angle), shine, *rgb)
            shapes[i, j] = SHAPES.index(o.shape)
    return {
        "objects": objects,
        "shapes": shapes,
        "backgrounds": np.array([list(BACKGROUNDS).index(s.background) for s in scenes], np.int32),
        "styles": np.array([list(STYLES).index(s.style) for s in scenes], np.int32),
        "textures": np.array([s.texture for s in scenes], np.float32),
    }


# Shapes.


def _ball(u, v):
    z = jnp.sqrt(jnp.maximum(0.0, 1 - u * u - v * v))
    light = 0.50 + 0.68 * jnp.maximum(0.0, -0.45 * u - 0.55 * v + 0.70 * z)
    return jnp.sqrt(u * u + v * v) - 0.96, light


def _cube(u, v):
    """A cube seen a little from the right and from above: a square whose far corners are cut."""
    d = jnp.maximum(jnp.maximum(abs(u), abs(v)) - 0.88, (abs(u + v) - 1.34) * 0.7071)
    top = _step(-v - 0.44) * _step(-v - u)
    right = _step(u - 0.44) * _step(u + v)
    return d, 0.88 + 0.30 * top - 0.36 * right - 0.06 * v


def _cone(u, v):
    half = 0.86 * (v + 1.0) / 1.68  # half width at height v: apex (0, -1), base at v = 0.68
    side = (abs(u) - half) * 0.89
    k0 = jnp.sqrt((u / 0.86) ** 2 + ((v - 0.66) / 0.28) ** 2)
    k1 = jnp.sqrt((u / 0.86**2) ** 2 + ((v - 0.66) / 0.28**2) ** 2)
    base = k0 * (k0 - 1) / (k1 + 1e-6)
    across = jnp.clip(u / (half + 0.05), -1, 1)
    light = 0.52 + 0.62 * jnp.exp(-((across + 0.35) ** 2) / 0.42)
    return jnp.minimum(jnp.maximum(side, v - 0.66), base), light


def _ring(u, v):
    r = jnp.sqrt(u * u + v * v) + 1e-6
    q = (r - 0.68) / 0.29
    z = jnp.sqrt(jnp.maximum(0.0, 1 - q * q))
    slope = q * (-0.45 * u - 0.55 * v) / r
    return abs(r - 0.68) - 0.29, 0.50 + 0.66 * jnp.maximum(0.0, slope + 0.72 * z)


def _star(u, v):
    """Inigo Quilez's five-pointed star: fold the plane onto one half of one point."""
    x, y = abs(u), -v + 0.02
    for kx, ky in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        fold = 2 * jnp.maximum(kx * x + ky * y, 0.0)
        x, y = x - fold * kx, y - fold * ky
    x, y = abs(x), y - 1.0
    bx, by = 0.47 * 0.587785, 0.47 * 0.809017 - 1.0
    h = jnp.clip((x * bx + y * by) / (bx * bx + by * by), 0.0, 1.0)
    dx, dy = x - bx * h, y - by * h
    d = jnp.sqrt(dx * dx + dy * dy) * jnp.sign(y * bx - x * by) - 0.05
    return d, _cushion(u, v, d)


def _heart(u, v):
    """Inigo Quilez's heart, stretched to fill the circle of radius 1."""
    x, y = abs(u) / 1.62, (0.90 - v) / 1.62
    lobe = jnp.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - 0.353553
    along = 0.5 * jnp.maximum(x + y, 0.0)
    near = jnp.minimum(x * x + (y - 1) ** 2, (x - along) ** 2 + (y - along) ** 2)
    d = jnp.where(x + y > 1, lobe, jnp.sqrt(near) * jnp.sign(x - y)) * 1.62 - 0.02
    return d, _cushion(u, v, d)


def _cushion(u, v, d):
    """Light on a flat shape with puffed edges."""
    rim = jnp.exp(-((jnp.minimum(d, 0.0) / 0.22) ** 2))
    return 0.98 - (0.16 + 0.24 * rim) * (u + 1.2 * v) * 0.62 - 0.08 * rim


_SHAPE_FUNCTIONS = (_ball, _cube, _cone, _ring, _star, _heart)  # in the order of SHAPES


def _step(x, width=0.05):
    return jnp.clip(x / width + 0.5, 0.0, 1.0)


# Pictures.


@jax.jit
def _draw(a: dict[str, jax.Array]) -> jax.Array:
    """Attributes of CHUNK scenes -> uint8 (CHUNK, SIZE, SIZE, 3)."""
    rgb = jax.vmap(_draw_one)(a)
    return jnp.round(255 * jnp.clip(rgb, 0.0, 1.0)).astype(jnp.uint8)


def _draw_one(a) -> jax.Array:
    """One scene, float (SIZE, SIZE, 3)."""
    grid = (jnp.arange(SIZE, dtype=jnp.float32) + 0.5) / SIZE
    x, y = grid[None, :], grid[:, None]
    photo, drawing, mosaic, night = (a["styles"] == i for i in range(len(STYLES)))
    ground = _ground(a, x, y, drawing, night)
    layers = [_object(a["objects"][i], a["shapes"][i], x, y) for i in range(2)]

    for o in layers:  # what objects do to the ground comes before the objects themselves
        shadow = jnp.where(drawing, 0.0, jnp.where(night, 0.25, 0.34)) * o["shadow"]
        ground = ground * (1 - shadow)[..., None]
        glow = jnp.where(night, 0.18, 0.0) * o["glow"]
        ground = ground + glow[..., None] * o["rgb"][None, None, :]

    image = ground
    for o in layers:
        light = jnp.where(drawing, 0.97 - 0.2 * _step(0.74 - o["light"], 0.12), o["light"])
        light = jnp.where(mosaic, 0.98 + 0.6 * (light - 0.98), light)
        light = jnp.where(night, 0.80 * light + 0.08, light)
        rgb = light[..., None] * o["rgb"][None, None, :]
        white = o["shine"] * jnp.where(drawing, 0.0, 1.0)
        rgb = rgb + (0.97 - rgb) * white[..., None]
        ink = jnp.where(drawing, 0.88, 0.0) * o["edge"]
        rgb = rgb * (1 - ink)[..., None] + 0.13 * ink[..., None]
        cover = o["cover"][..., None]
        image = image * (1 - cover) + rgb * cover
    tiles = jnp.where(mosaic, _tiles(a["textures"], x, y), 1.0)
    return image * tiles[..., None]


def _ground(a, x, y, drawing, night) -> jax.Array:
    """The background: its colour, a slow gradient, and a texture of its own; (SIZE, SIZE, 3)."""
    colours = jnp.array(list(BACKGROUNDS.values()), jnp.float32)
    rgb = colours[a["backgrounds"]][None, None, :]
    p, q, r = (2 * jnp.pi * a["textures"][i] for i in range(3))
    plain = jnp.sin(3 * x + 2 * y + p)
    ripples = jnp.sin(34 * y + 2.2 * jnp.sin(5 * x + p) + q) * (0.6 + 0.4 * jnp.sin(6 * x + r))
    clouds = jnp.sin(7 * x + 2 * jnp.sin(5 * y + p)) * jnp.sin(9 * y + jnp.sin(6 * x + q) + r)
    mottle = jnp.sin(13 * x + 5 * y + p) * jnp.sin(15 * y - 4 * x + q)
    kinds = jnp.stack([0.4 * plain, 0.5 * plain, ripples, clouds, mottle])
    texture = kinds[a["backgrounds"]]
    slope = 0.04 - 0.10 * (y - 0.35) ** 2 - 0.06 * (x - 0.45) ** 2
    grain = jnp.sin(151 * x + 67 * y + p) * jnp.sin(139 * y - 83 * x + q)  # gone at 32 pixels
    photo_like = rgb * (1 + slope + 0.022 * texture + 0.010 * grain)[..., None]
    paper = (0.30 + 0.70 * rgb) * (1 + 0.028 * grain + 0.006 * plain)[..., None]
    dark = rgb**1.5 * jnp.array([0.20, 0.24, 0.37])[None, None, :]
    vignette = 1.12 - 0.75 * ((x - 0.5) ** 2 + (y - 0.5) ** 2) + 0.05 * texture
    return jnp.where(drawing, paper, jnp.where(night, dark * vignette[..., None], photo_like))


def _object(o, shape, x, y) -> dict[str, jax.Array]:
    """The maps (SIZE, SIZE) of one object; o: x, y, radius, cos, sin, shine, r, g, b."""
    dx, dy, radius = (x - o[0]) / o[2], (y - o[1]) / o[2], o[2]
    u, v = o[3] * dx + o[4] * dy, o[3] * dy - o[4] * dx
    maps = [f(u, v) for f in _SHAPE_FUNCTIONS]
    distance = jnp.stack([m[0] for m in maps])[shape]
    light = jnp.stack([m[1] for m in maps])[shape]
    spot = jnp.array([_HIGHLIGHT[s] for s in SHAPES])[shape]
    shine = 0.85 * o[5] * jnp.exp(-((u - spot[0]) ** 2 + (v - spot[1]) ** 2) / 0.035)
    pixels = distance * radius * SIZE  # distance in pixels
    crease = jnp.where(shape == SHAPES.index("cube"), _cube_creases(u, v), 9.0) * radius * SIZE
    outline = jnp.maximum(_step(1.2 + pixels, 1.4), _step(0.6 - crease, 1.2) * 0.7)
    under = (dx - 0.12) ** 2 / 1.1**2 + (dy - 0.86) ** 2 / 0.42**2
    return {
        "rgb": o[6:9],
        "light": light,
        "shine": shine,
        "cover": _step(0.5 - pixels, 1.0),
        "edge": outline,
        "shadow": jnp.exp(-1.6 * under),
        "glow": jnp.exp(-0.75 * (dx * dx + dy * dy)),
    }


def _cube_creases(u, v):
    """Distance to the three edges where the visible faces of the cube meet."""
    across = jnp.where(u > 0.42, 9.0, abs(v + 0.44))
    down = jnp.where(v < -0.42, 9.0, abs(u - 0.44))
    far = jnp.where((u < 0.44) | (v > -0.44), 9.0, abs(u + v) * 0.7071)
    return jnp.minimum(jnp.minimum(across, down), far)


def _tiles(texture, x, y) -> jax.Array:
    """The mosaic as a factor on the picture: tiles of differing brightness, grout between them."""
    i, j = jnp.floor(x * _TILES), jnp.floor(y * _TILES)
    brightness = jnp.sin(12.9 * i + 78.2 * j + 6.28 * texture[0] + 3.1 * jnp.sin(3.7 * i - 1.9 * j))
    fx, fy = x * _TILES - i, y * _TILES - j
    inside = jnp.minimum(jnp.minimum(fx, 1 - fx), jnp.minimum(fy, 1 - fy))
    grout = 1 - 0.20 * (1 - _step(inside - 0.11, 0.10))
    bevel = 1 + 0.06 * ((0.5 - fx) + (0.5 - fy))  # tiles stand a little askew
    return (1 + 0.08 * brightness) * bevel * grout
