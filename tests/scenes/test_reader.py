"""The reader is right on fresh renders, bears small disturbance, and calls nonsense invalid.

These run on 1,500 scenes; the full measurement is `python -m common.scenes check` (5,000, a table).
"""

import numpy as np
import pytest

from common.scenes.check import accuracy, disturbed, fresh, no_scenes
from common.scenes.reader import read, truth
from common.scenes.render import render


@pytest.fixture(scope="module")
def renders():
    return fresh(1500, seed=2024)


def test_every_attribute_of_fresh_renders_is_read_right(renders):
    scenes, images = renders
    shares = accuracy(scenes, read(images))
    assert min(shares.values()) >= 0.995, shares


def test_disturbed_renders_are_still_read(renders):
    scenes, images = renders[0][:500], renders[1][:500]
    for name, pictures in disturbed(images, np.random.default_rng(1)).items():
        shares = accuracy(scenes, read(pictures))
        floor = 0.93 if "0.7" in name else 0.97  # a blur of 0.7 closes the holes of small rings
        assert min(shares.values()) >= floor, (name, shares)


def test_what_is_no_scene_is_invalid(renders):
    scenes, images = renders[0][:600], renders[1][:600]
    for name, pictures in no_scenes(scenes, images, np.random.default_rng(2)).items():
        share = np.mean([not r["valid"] for r in read(pictures)])
        assert share >= 0.985, (name, share)


def test_positions_are_read_within_a_pixel(renders):
    scenes, images = renders[0][:300], renders[1][:300]
    for scene, got in zip(scenes, read(images), strict=True):
        for o, p in zip(scene.objects, got["objects"], strict=True):
            assert np.hypot(o.x - p["x"], o.y - p["y"]) < 1.5 / 32


def test_both_sizes_of_a_picture_are_read_the_same(renders):
    scenes = renders[0][:40]
    assert read(render(scenes, 64)) == read(renders[1][:40])


def test_a_reading_does_not_depend_on_its_batch(renders):
    images = renders[1][:20]
    assert read(images) == [read(images[i : i + 1])[0] for i in range(20)]


def test_a_reading_has_the_fields_of_the_truth(renders):
    want, got = truth(renders[0][0]), read(renders[1][:1])[0]
    assert want.keys() == got.keys()
    assert want["objects"][0].keys() == got["objects"][0].keys()


def test_an_invalid_reading_is_empty_and_never_shared():
    a, b = read(np.zeros((2, 32, 32, 3), np.uint8))
    assert a == {"valid": False, "background": "", "style": "", "objects": []}
    a["objects"].append("x")
    assert b["objects"] == []


def test_other_arrays_are_refused():
    assert read(np.zeros((0, 32, 32, 3), np.uint8)) == []
    for wrong in (
        np.zeros((1, 32, 32, 3)),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 48, 48, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="read wants"):
            read(wrong)
