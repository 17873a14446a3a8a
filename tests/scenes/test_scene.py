"""The record of a scene and the way scenes are drawn at random."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from common.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACES,
    SHAPES,
    SIZES,
    STYLES,
    draw_scene,
    scene_from_json,
    scene_to_json,
)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(5)
    return [draw_scene(rng) for _ in range(3000)]


def kinds(scene):
    return {(o.shape, o.colour) for o in scene.objects}


def test_held_out_pairs_are_never_drawn_unless_asked_for(scenes):
    assert not any(kinds(s) & HELD_OUT for s in scenes)


def test_held_out_scenes_always_hold_a_held_out_pair_and_reach_all_of_them():
    rng = np.random.default_rng(6)
    drawn = [kinds(draw_scene(rng, held_out=True)) & HELD_OUT for _ in range(500)]
    assert all(drawn)
    assert set().union(*drawn) == HELD_OUT


def test_every_other_pair_of_shape_and_colour_is_drawn(scenes):
    assert len(set().union(*map(kinds, scenes))) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)


def test_no_shape_and_no_colour_is_held_out_twice():
    shapes, colours = zip(*HELD_OUT, strict=True)
    assert len(HELD_OUT) == len(set(shapes)) == len(set(colours)) == 5


def test_attributes_are_drawn_as_often_as_they_should(scenes):
    n = len(scenes)
    assert abs(sum(len(s.objects) == 1 for s in scenes) / n - 0.5) < 0.04
    for style, share in STYLES.items():
        assert abs(sum(s.style == style for s in scenes) / n - share) < 0.04
    alone = [s.objects[0] for s in scenes if len(s.objects) == 1]
    for kind, names in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("place", PLACES)):
        counts = Counter(getattr(o, kind) for o in alone)
        assert set(counts) == set(names)
        assert min(counts.values()) > 0.6 * len(alone) / len(names)
    assert {s.background for s in scenes} == set(BACKGROUNDS)


def test_two_objects_differ_in_shape_and_colour_and_stand_apart(scenes):
    for scene in scenes:
        for a, b in combinations(scene.objects, 2):
            assert a.shape != b.shape and a.colour != b.colour
            assert (a.place, b.place) in (("left", "right"), ("top", "bottom"))
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 1.5 / 32


def test_no_object_is_cut_by_more_than_a_pixel(scenes):
    for o in (o for s in scenes for o in s.objects):
        assert min(o.x, o.y, 1 - o.x, 1 - o.y) > 1.05 * o.radius - 1 / 32


def test_json_gives_the_same_scene_back(scenes):
    assert [scene_from_json(scene_to_json(s)) for s in scenes[:200]] == scenes[:200]
    assert hash(scene_from_json(scene_to_json(scenes[0]))) == hash(scenes[0])


def test_the_same_seed_draws_the_same_scenes():
    a, b = (draw_scene(np.random.default_rng(3)) for _ in range(2))
    assert a == b
