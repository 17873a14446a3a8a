"""The studies of GLIDE: what they measure is right, and every part runs from weights to figure."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common import checkpoint, clip, data
from common.scenes.captions import agrees, claims
from common.scenes.reader import truth
from glide import (
    classes,
    classifier,
    inpaint,
    model,
    study,
    study_classes,
    study_clip,
    study_guidance,
    study_holes,
)
from glide.study import StudyConfig


def test_the_tilted_law_is_the_closed_form_of_guidance_on_noisy_captions():
    # Numbers of the reference page: 8 values, wrong with probability 0.2 and 0.5.
    got = [study_guidance.tilted(s, 0.2, 8) for s in (1, 1.5, 2, 3)]
    assert_allclose(got, [0.80, 0.955, 0.991, 0.9997], atol=6e-4)
    assert_allclose([study_guidance.tilted(s, 0.5, 8) for s in (0, 1, 2)], [1 / 8, 0.5, 0.875])


def test_a_hole_takes_one_object_and_its_caption_names_another_there():
    texts, images, keep_masks, wanted = study_holes.holes(StudyConfig(num=40))
    assert keep_masks.mean() == 0.5 and set(np.unique(keep_masks)) == {0, 1}
    scenes = data.load("scenes", "test", size=32)
    pairs = [s for s in scenes["scenes"] if len(s.objects) == 2][:40]
    for text, scene, (shape, colour, place) in zip(texts, pairs, wanted, strict=True):
        kept, erased = scene.objects
        assert erased.place == place
        new = replace(erased, shape=shape, colour=colour)
        assert agrees(claims(text), truth(replace(scene, objects=(kept, new))))["all"]
    flat = np.zeros_like(images)
    half = np.where(keep_masks == 1, flat, 90).astype(np.uint8)
    assert study_holes.seam(half, keep_masks) == 90 and study_holes.seam(flat, keep_masks) == 0


def test_the_reader_prefers_whom_the_captions_are_true_of():
    scenes = data.load("scenes", "test", size=32)
    images, alone = (
        scenes["image"],
        [i for i, s in enumerate(scenes["scenes"]) if len(s.objects) == 1],
    )
    texts = [f"a {scenes['scenes'][i].objects[0].shape}" for i in alone[:12]]
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    drawn = {"right": images[alone[:12]], "wrong": images[alone[12:24]], "noise": noise}
    rows = {r["player"]: r for r in study_clip.preferences(texts, drawn)}
    assert (
        rows["right"]["elo_caption"] > rows["wrong"]["elo_caption"] > rows["noise"]["elo_caption"]
    )
    assert rows["right"]["elo_realism"] == rows["wrong"]["elo_realism"] > 0


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Untrained tiny weights of every network that the studies ask for."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)

    def write(name, kind, config, init):
        shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
        params = jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), shapes)
        metadata = {"model": kind, "config": asdict(config), "recipe": {"rho": 0.05}}
        checkpoint.save_weights(folder / f"{name}.safetensors", params, metadata)

    for name, preset in (("small", "tiny"), ("inpaint", "tiny_inpaint"), ("up", "tiny_upsampler")):
        write(name, "glide", model.PRESETS[preset], model.init_params)
    write("clip", "glide.clip", clip.TINY, clip.init_params)
    write("noised", "glide.clip", replace(clip.TINY, T=1000), clip.init_params)
    write("classes", "glide.classes", classes.PRESETS["tiny"], classes.init_params)
    write("classifier", "glide.classifier", classifier.PRESETS["tiny"], classifier.init_params)
    return folder


@pytest.mark.parametrize("part", study.PARTS)
def test_every_part_goes_from_weights_to_numbers_and_a_figure(part, room, tmp_path, monkeypatch):
    for where, name, value in (
        (study_guidance, "SCALES", (0, 2)), (study_guidance, "STEPS", (2,)),
        (study_clip, "CFG", (1, 3)), (study_clip, "NOISED", (2,)), (study_clip, "CLEAN", ()),
        (study_clip, "GUIDE", room / "noised.safetensors"),
        (study_clip, "JUDGE", room / "clip.safetensors"),
        (study_classes, "MODEL", room / "classes.safetensors"),
        (study_classes, "CLASSIFIER", room / "classifier.safetensors"),
        (study_classes, "SCALES", (0, 10)),
        (inpaint, "SHIPPED", room / "inpaint.safetensors"),
        (study_holes, "UPSAMPLER", room / "up.safetensors"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, value)
    c = StudyConfig(part=part, num=8, steps=2, weights=(room / "small.safetensors",), out=tmp_path)
    study.main(c)
    report = json.loads((tmp_path / f"glide_{part}.json").read_text())
    assert report["n"] == 8 and report["rows"] and f"--part {part}" in report["command"]
    assert (tmp_path / f"glide_{part}.webp").stat().st_size > 1000
    if part == "inpainting":
        errors = {r["method"]: r["kept_error"] for r in report["rows"] if "kept_error" in r}
        assert set(errors.values()) == {0.0} and len(errors) == 4


def test_the_printed_command_names_every_option_that_was_changed(room, tmp_path):
    c = StudyConfig(num=6, scales=(1.0,), steps=2, weights=(room / "small.safetensors",),
                    quick=True, out=tmp_path)  # fmt: skip
    study.main(c)
    command = json.loads((tmp_path / "glide_captions.json").read_text())["command"]
    for option in ("--quick", "--num 6", "--scales 1.0", "--steps 2"):
        assert option in command
    assert_array_equal([c.count, replace(c, num=512).count], [6, study.QUICK])
