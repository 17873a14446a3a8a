"""Captions that are true but incomplete, and the way back from a caption to what it claims.

Shape and colour are always named; size, place, background and style each about half of the time, in
several phrasings; material, texture and jitter never. So a caption leaves several pictures open,
which is what makes guidance measurable.
"""

import re
from collections.abc import Callable
from itertools import permutations

import numpy as np

from common.scenes.scene import COLOURS, SHAPES, Scene

MAX_WORDS = 23  # no caption is longer
PHRASINGS = 4  # captions that training keeps of each picture
EXAMPLES = (  # what previews and the main job draw
    "a small red ball above a large blue cube",
    "a photo of a large yellow star",
    "a green heart on a white background",
    "a drawing of a pink cone",
    "a large cyan ring left of a small orange ball",
    "a mosaic of a purple cube",
    "a blue ball at night",
    "a small yellow heart below a large red cone",
)

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
PLACE_PHRASES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the middle"),
}
RELATION_PHRASES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
BACKGROUND_PHRASES = {
    "white": ("on a white background", "on white"),
    "grey": ("on a grey background", "on grey"),
    "sand": ("on a sand background", "on sand"),
    "sky": ("on a sky background", "in the sky"),
    "grass": ("on a grass background", "on grass"),
}
STYLE_PREFIXES = {
    "photo": ("photo of", "photograph of"),
    "drawing": ("drawing of", "sketch of"),
    "mosaic": ("mosaic of", "tile mosaic of"),
}
NIGHT_PHRASES = ("at night", "in the dark")  # the one style named after the objects
JOINS = ("and", "with")

# Words that people type and no caption contains, with the word to put in their place.
SYNONYMS = {
    "gray": "grey", "center": "centre", "sphere": "ball", "box": "cube", "block": "cube",
    "torus": "ring", "donut": "ring", "tiny": "small", "huge": "large", "violet": "purple",
    "turquoise": "cyan", "beneath": "below",
}  # fmt: skip

_RELATION_PLACES = {
    "left": ("left", "right"),
    "right": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def caption(scene: Scene, rng: np.random.Generator, rho: float = 0.0) -> str:
    """A caption of the scene; each shape and each colour is another one with probability rho."""
    objects = list(scene.objects)
    if len(objects) == 2 and rng.random() < 0.5:
        objects.reverse()
    words = [_noun(o, rng, rho) for o in objects]
    told = rng.random(3) < 0.5  # place, background, style
    if len(objects) == 2:
        relation = {"left": "left", "right": "right", "top": "above", "bottom": "below"}[
            objects[0].place
        ]
        words.insert(1, _pick(rng, RELATION_PHRASES[relation] if told[0] else JOINS))
    elif told[0]:
        words.append(_pick(rng, PLACE_PHRASES[objects[0].place]))
    if told[1]:
        words.append(_pick(rng, BACKGROUND_PHRASES[scene.background]))
    if told[2] and scene.style == "night":
        words.append(_pick(rng, NIGHT_PHRASES))
    elif told[2]:
        words.insert(0, "a " + _pick(rng, STYLE_PREFIXES[scene.style]))
    return " ".join(words)


def phrasings(
    scenes: list[Scene], encode: Callable, seed: int, rho: float = 0.0
) -> np.ndarray:
    """PHRASINGS captions of each scene, encode(texts) -> (M, L): (N, PHRASINGS, L)."""
    rng = np.random.default_rng(seed)
    tokens = encode([caption(scene, rng, rho) for scene in scenes for _ in range(PHRASINGS)])
    return tokens.reshape(len(scenes), PHRASINGS, -1)


def _noun(obj, rng: np.random.Generator, rho: float) -> str:
    size = _pick(rng, SIZE_WORDS[obj.size]) if rng.random() < 0.5 else ""
    colour, shape = _swapped(rng, obj.colour, COLOURS, rho), _swapped(rng, obj.shape, SHAPES, rho)
    adjectives = f"{size} {colour}".strip()
    return f"{'an' if adjectives.startswith('orange') else 'a'} {adjectives} {shape}"


def _swapped(rng: np.random.Generator, value: str, values, rho: float) -> str:
    return _pick(rng, [v for v in values if v != value]) if rng.random() < rho else value


def _pick(rng: np.random.Generator, options) -> str:
    return options[int(rng.integers(len(options)))]


def _phrase_table() -> dict[str, tuple[str, str | None]]:
    """Every phrase the grammar knows -> (what it speaks of, the value it gives)."""
    table: dict[str, tuple[str, str | None]] = {w: ("shape", w) for w in SHAPES}
    table |= {w: ("colour", w) for w in COLOURS}
    for kind, phrases in (
        ("size", SIZE_WORDS),
        ("place", PLACE_PHRASES),
        ("relation", RELATION_PHRASES),
        ("background", BACKGROUND_PHRASES),
        ("style", STYLE_PREFIXES | {"night": NIGHT_PHRASES}),
    ):
        table |= {p: (kind, value) for value, options in phrases.items() for p in options}
    return table | {w: ("join", None) for w in JOINS} | {w: ("article", None) for w in ("a", "an")}


_TABLE = _phrase_table()
_LONGEST = max(len(p.split()) for p in _TABLE)
# Every word of every caption.
VOCABULARY = tuple(sorted({word for phrase in _TABLE for word in phrase.split()}))


def canonical(text: str) -> str:
    """Lower case, no punctuation, and words of VOCABULARY in place of their SYNONYMS."""
    return " ".join(SYNONYMS.get(w, w) for w in re.findall(r"[a-z0-9]+", text.lower()))


def claims(text: str) -> dict:
    """What a caption claims: {"objects": [{"shape", "colour", "size"}], "relation" (left, right,
    above, below: of the first object to the second) or "place", "background", "style"}.

    Only what is named is there. Raises ValueError (one sentence) for what the grammar has not.
    """
    words, found, open_object = canonical(text).split(), {"objects": []}, {}
    text = " ".join(text.split())  # errors are one line
    while words:
        length = next((n for n in range(_LONGEST, 0, -1) if " ".join(words[:n]) in _TABLE), 0)
        if not length:
            raise ValueError(
                f"the caption grammar has no place for the word '{words[0]}' in '{text}'"
            )
        kind, value = _TABLE[" ".join(words[:length])]
        words = words[length:]
        if kind in ("size", "colour", "shape"):
            if kind in open_object:
                raise ValueError(f"one object is given two words for its {kind} in '{text}'")
            open_object[kind] = value
            if kind == "shape":  # the noun closes its object
                found["objects"].append(open_object)
                open_object = {}
        elif value is not None:
            if found.setdefault(kind, value) != value:
                raise ValueError(f"two different words for the {kind} in '{text}'")
    if open_object or not 1 <= len(found["objects"]) <= 2:
        raise ValueError(
            f"a caption names one or two objects by their shape, which '{text}' does not"
        )
    count = len(found["objects"])
    if ("relation" in found and count != 2) or ("place" in found and count != 1):
        raise ValueError(
            f"a place is for one object and a relation for two, which '{text}' mixes up"
        )
    return found


def agrees(claimed: dict, reading: dict) -> dict[str, bool]:
    """Which claims of `claims(text)` a reading (of reader.read) keeps; the unclaimed is left out.

    Objects are matched in the order that keeps most. "shape_colour": every object has both its own
    shape and its own colour; "all": everything named is right, and so is the number of objects.
    """
    wanted, seen = claimed["objects"], reading["objects"] if reading["valid"] else []
    out = {"valid": bool(reading["valid"]), "count": len(wanted) == len(seen)}
    padded = list(seen) + [{}] * max(0, len(wanted) - len(seen))
    options = [_matched(claimed, order) for order in permutations(padded, len(wanted))]
    out |= max(options, key=lambda kept: (kept["shape_colour"], sum(kept.values())))
    for kind in ("background", "style"):
        if kind in claimed:
            out[kind] = bool(reading["valid"]) and reading[kind] == claimed[kind]
    return out | {"all": all(out.values())}


def _matched(claimed: dict, order: tuple[dict, ...]) -> dict[str, bool]:
    """The claims about objects that hold when the i-th claimed object is order[i]."""
    pairs, kept = list(zip(claimed["objects"], order, strict=True)), {}
    for kind in ("shape", "colour", "size"):
        if any(kind in want for want, _ in pairs):
            kept[kind] = all(got.get(kind) == want[kind] for want, got in pairs if kind in want)
    kept["shape_colour"] = kept["shape"] and kept.get("colour", True)
    if "place" in claimed:
        kept["place"] = order[0].get("place") == claimed["place"]
    if "relation" in claimed:
        kept["place"] = (
            tuple(o.get("place") for o in order) == _RELATION_PLACES[claimed["relation"]]
        )
    return kept
