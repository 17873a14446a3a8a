"""The renderer: sizes, determinism, and that each attribute can be seen."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from common.scenes.render import CHUNK, halve, render
from common.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES, Object, Scene, draw_scene

BALL = Object("ball", "red", "large", 0.5, 0.5)
SCENE = Scene("white", "photo", (BALL,))


def one(scene):
    return render([scene], 32)[0].astype(float)


def test_the_32_pixel_picture_is_the_rounded_mean_of_the_64():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(5)]
    large, small = render(scenes, 64), render(scenes, 32)
    assert large.shape == (5, 64, 64, 3) and small.shape == (5, 32, 32, 3)
    assert large.dtype == small.dtype == np.uint8
    mean = large.reshape(5, 32, 2, 32, 2, 3).astype(float).mean((2, 4))
    assert np.abs(mean - small).max() <= 0.5


def test_halve_rounds_half_up():
    assert halve(np.array([[[[0], [1]], [[1], [0]]]], np.uint8)).item() == 1


def test_a_scene_is_drawn_the_same_alone_and_in_any_batch():
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng) for _ in range(CHUNK + 3)]
    together = render(scenes)
    for i in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        assert np.array_equal(together[i], render([scenes[i]])[0])


def test_no_scenes_give_no_pictures_and_other_sizes_are_refused():
    assert render([], 32).shape == (0, 32, 32, 3)
    with pytest.raises(ValueError, match="32 or 64"):
        render([SCENE], 48)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_every_attribute_changes_the_picture(style):
    scene = replace(SCENE, style=style)
    changes = [{"shape": "cube"}, {"colour": "blue"}, {"size": "small"}, {"x": 0.6}, {"y": 0.6}]
    changes += [{"tint": (0.9, 1.0, 1.0)}]
    others = [replace(scene, objects=(replace(BALL, **c),)) for c in changes]
    others += [replace(scene, background="grass"), replace(scene, texture=(0.2, 0.4, 0.6))]
    others += [replace(scene, objects=())]
    for other in others:
        assert np.abs(one(scene) - one(other)).max() > 1
    turned = [replace(scene, objects=(replace(BALL, shape="star", angle=a),)) for a in (0.0, 0.2)]
    assert np.abs(one(turned[0]) - one(turned[1])).max() > 20


def test_shiny_objects_have_a_highlight_outside_of_drawings():
    shiny = (replace(BALL, material="shiny"),)
    assert one(replace(SCENE, objects=shiny))[12:20, 12:20, 1].max() > 150
    assert one(SCENE)[12:20, 12:20, 1].max() < 60  # the green channel of a red ball
    drawn = replace(SCENE, style="drawing")
    assert np.array_equal(one(drawn), one(replace(drawn, objects=shiny)))


@pytest.mark.parametrize("style", STYLES)
def test_every_colour_stands_out_from_every_background_and_from_each_other(style):
    names = [(c, b) for c in COLOURS for b in BACKGROUNDS]
    scenes = [Scene(b, style, (replace(BALL, colour=c),)) for c, b in names]
    images = render(scenes, 32).astype(float)
    centre = np.median(images[:, 12:20, 12:20], axis=(1, 2))  # (N, 3)
    corner = np.median(images[:, :5, :5], axis=(1, 2))
    assert np.linalg.norm(centre - corner, axis=-1).min() > 60
    colours = centre.reshape(len(COLOURS), len(BACKGROUNDS), 3).mean(1)
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 45


@pytest.mark.slow
def test_shapes_fill_their_circle_and_no_more():
    for shape in SHAPES:
        drawn = one(replace(SCENE, style="drawing", objects=(replace(BALL, shape=shape),)))
        empty = one(replace(SCENE, style="drawing", objects=()))
        rows, columns = np.nonzero(np.abs(drawn - empty).max(-1) > 60)
        for extent in (np.ptp(rows) + 1, np.ptp(columns) + 1):
            assert 1.5 * BALL.radius * 32 < extent <= 2.1 * BALL.radius * 32 + 1
