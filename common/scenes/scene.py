"""A scene as a record of attributes: the vocabulary of the data set, and random scenes.

Positions and lengths are in image units: (0, 0) is the top left corner, (1, 1) the bottom right.
"""

import json
from dataclasses import dataclass

import numpy as np

SHAPES = ("ball", "cube", "cone", "ring", "star", "heart")
COLOURS = {
    "red": (0.87, 0.13, 0.15),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (1.00, 0.87, 0.12),
    "green": (0.16, 0.62, 0.22),
    "cyan": (0.08, 0.78, 0.82),
    "blue": (0.13, 0.30, 0.88),
    "purple": (0.52, 0.18, 0.72),
    "pink": (0.98, 0.45, 0.74),
}
SIZES = {"small": 0.146, "large": 0.214}  # radius: 4.7 and 6.8 pixels of 32
STYLES = {"photo": 0.4, "drawing": 0.2, "mosaic": 0.2, "night": 0.2}  # name -> probability
BACKGROUNDS = {
    "white": (0.95, 0.95, 0.94),
    "grey": (0.60, 0.60, 0.62),
    "sand": (0.88, 0.76, 0.58),
    "sky": (0.66, 0.82, 0.94),
    "grass": (0.64, 0.76, 0.54),
}
MATERIALS = ("matte", "shiny")  # never named in a caption, never read
PLACES = {
    "left": (0.24, 0.5),
    "right": (0.76, 0.5),
    "top": (0.5, 0.24),
    "bottom": (0.5, 0.76),
    "centre": (0.5, 0.5),
}
PAIRS = (("left", "right"), ("top", "bottom"))  # where the two objects of a scene can be

# Shape and colour never rendered together in training: 5 of 48, no shape and no colour twice.
HELD_OUT = frozenset(
    {
        ("ball", "purple"),
        ("cube", "yellow"),
        ("ring", "green"),
        ("star", "blue"),
        ("heart", "orange"),
    }
)


def nearest_place(x: float, y: float) -> str:
    """The named place whose anchor is nearest to the point (x, y)."""
    return min(PLACES, key=lambda p: (PLACES[p][0] - x) ** 2 + (PLACES[p][1] - y) ** 2)


@dataclass(frozen=True)
class Object:
    """One object; the last four fields are the detail that captions never tell."""

    shape: str
    colour: str
    size: str
    x: float  # centre
    y: float
    material: str = "matte"
    angle: float = 0.0  # radians, clockwise on screen
    scale: float = 1.0  # jitter of the radius
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # jitter of the colour, a factor per channel

    @property
    def place(self) -> str:
        return nearest_place(self.x, self.y)

    @property
    def radius(self) -> float:
        return SIZES[self.size] * self.scale


@dataclass(frozen=True)
class Scene:
    """One or two objects (left to right, or top to bottom) on a background, in a style."""

    background: str
    style: str
    objects: tuple[Object, ...]
    texture: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # phases in [0, 1)


def draw_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene; with `held_out` at least one object is a held-out pair, else none is."""
    kinds = _draw_kinds(rng, held_out)
    if len(kinds) == 1:
        places = (str(rng.choice(list(PLACES))),)
        jitter = ((0.02, 0.02),)
    else:
        places = PAIRS[rng.integers(2)]
        # Along the axis that separates the two there is little room, across it more.
        jitter = ((0.01, 0.07) if places[0] == "left" else (0.07, 0.01),) * 2
    objects = tuple(
        _draw_object(rng, *kind, place, spread)
        for kind, place, spread in zip(kinds, places, jitter, strict=True)
    )
    return Scene(
        background=str(rng.choice(list(BACKGROUNDS))),
        style=str(rng.choice(list(STYLES), p=list(STYLES.values()))),
        objects=objects,
        texture=_rounded(rng.random(3)),
    )


def _draw_kinds(rng: np.random.Generator, held_out: bool) -> list[tuple[str, str]]:
    """One or two (shape, colour) pairs, different in both, so that one can tell which is which."""
    count = 1 + rng.integers(2)
    while True:
        shapes = rng.choice(SHAPES, count, replace=False)
        colours = rng.choice(list(COLOURS), count, replace=False)
        kinds = [(str(s), str(c)) for s, c in zip(shapes, colours, strict=True)]
        if any(kind in HELD_OUT for kind in kinds) == held_out:
            return kinds


def _draw_object(rng, shape, colour, place, spread) -> Object:
    x, y = np.array(PLACES[place]) + rng.uniform(-1, 1, 2) * np.array(spread)
    return Object(
        shape=shape,
        colour=colour,
        size=str(rng.choice(list(SIZES))),
        x=round(float(x), 4),
        y=round(float(y), 4),
        material=str(rng.choice(MATERIALS)),
        angle=round(float(rng.uniform(-0.2, 0.2)), 4),
        scale=round(float(rng.uniform(0.96, 1.04)), 4),
        tint=_rounded(rng.uniform(0.96, 1.04, 3)),
    )


def _rounded(values) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def scene_to_json(scene: Scene) -> str:
    """The scene as one line of JSON; `scene_from_json` gives it back exactly."""
    fields = {**vars(scene), "objects": [vars(o) for o in scene.objects]}
    return json.dumps(fields, separators=(",", ":"))


def scene_from_json(text: str | bytes) -> Scene:
    """The scene that `scene_to_json` wrote."""
    fields = json.loads(text)
    objects = tuple(Object(**{**o, "tint": tuple(o["tint"])}) for o in fields["objects"])
    return Scene(**{**fields, "objects": objects, "texture": tuple(fields["texture"])})
