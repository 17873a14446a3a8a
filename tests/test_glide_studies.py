"""The studies of GLIDE: what they measure is right, and every part runs from weights to figure."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from helpers import program
from numpy.testing import assert_allclose, assert_array_equal

from common import checkpoint, clip, data, metrics
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
from glide.__main__ import COMMANDS
from glide.scoring import claim, preferences, tilted
from glide.study import StudyConfig


def test_the_tilted_law_is_the_closed_form_of_guidance_on_noisy_captions():
    # Numbers of the reference page: 8 values, wrong with probability 0.2 and 0.5.
    got = [tilted(s, 0.2, 8) for s in (1, 1.5, 2, 3)]
    assert_allclose(got, [0.80, 0.955, 0.991, 0.9997], atol=6e-4)
    assert_allclose([tilted(s, 0.5, 8) for s in (0, 1, 2)], [1 / 8, 0.5, 0.875])


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
    assert_array_equal(study_holes.seam(half, keep_masks), 90)
    assert_array_equal(study_holes.seam(flat, keep_masks), 0)


def test_the_reader_prefers_whom_the_captions_are_true_of():
    scenes = data.load("scenes", "test", size=32)
    images, alone = (
        scenes["image"],
        [i for i, s in enumerate(scenes["scenes"]) if len(s.objects) == 1],
    )
    texts = [f"a {scenes['scenes'][i].objects[0].shape}" for i in alone[:12]]
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    drawn = {"right": images[alone[:12]], "wrong": images[alone[12:24]], "noise": noise}
    rows = {r["player"]: r for r in preferences(texts, drawn, 20)}
    value = lambda name, question: rows[name][f"elo_{question}"]["value"]  # noqa: E731
    assert value("right", "caption") > value("wrong", "caption") > value("noise", "caption")
    assert min(value("right", "realism"), value("wrong", "realism")) > value("noise", "realism")
    for row in rows.values():
        assert row["elo_caption"]["low"] < row["elo_caption"]["value"] < row["elo_caption"]["high"]


def test_a_claim_holds_where_its_interval_is_above_zero():
    share = lambda right, n: metrics.proportion(right, n)  # noqa: E731
    assert claim("", share(90, 100), share(50, 100))["holds"] == "yes"
    assert claim("", share(50, 100), share(90, 100))["holds"] == "no"
    found = claim("", share(56, 70), share(48, 80))
    assert found["holds"] == "yes" and found["value"] == pytest.approx(0.2)
    assert_allclose([found["low"], found["high"]], [0.0524, 0.3339], atol=5e-4)  # Newcombe 1998
    assert claim("", share(5, 10), share(4, 10))["holds"] == "open"


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
    write("narrow", "glide.classes", classes.PRESETS["tiny"], classes.init_params)
    write("classifier", "glide.classifier", classifier.PRESETS["tiny"], classifier.init_params)
    return folder


def intervals(value):
    """Every number of a report that has an interval."""
    if isinstance(value, dict):
        if "low" in value:
            yield value
        value = list(value.values())
    for v in value if isinstance(value, list) else []:
        yield from intervals(v)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(study.PARTS)[1:])
def test_every_part_goes_from_weights_to_numbers_and_a_figure(part, room, tmp_path, monkeypatch):
    resampled = metrics.resampled
    few = lambda *sets, **options: resampled(*sets, **options | {"resamples": 5})  # noqa: E731
    monkeypatch.setattr(metrics, "resampled", few)
    for where, name, value in (
        (study_guidance, "SCALES", (1, 3)), (study_guidance, "STEPS", (1, 2)),
        (study_classes, "WIDTH_SCALES", (1, 3)),
        (study_classes, "NARROW", room / "narrow.safetensors"),
        (study_clip, "CFG", (1, 3)), (study_clip, "NOISED", (2,)), (study_clip, "CLEAN", ()),
        (study_clip, "GUIDE", room / "noised.safetensors"),
        (study_clip, "JUDGE", room / "clip.safetensors"),
        (study_classes, "WIDE", room / "classes.safetensors"),
        (classifier, "SHIPPED", room / "classifier.safetensors"),
        (study_classes, "SCALES", (0, 10)),
        (inpaint, "SHIPPED", room / "inpaint.safetensors"),
        (study_holes, "UPSAMPLER", room / "up.safetensors"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, value)
    if part in ("classes", "widths"):  # twenty drawings, each tried in test_glide_stages.py
        real, begin = data.load("scenes", "test", size=32)["image"], iter(range(0, 400, 8))
        fake = lambda a, b, labels, **options: real[(i := next(begin)) : i + len(labels)]  # noqa: E731
        monkeypatch.setattr(classes, "draw", fake)
        monkeypatch.setattr(study_classes, "draw", fake)
        monkeypatch.setattr(classifier, "draw", fake)
    c = StudyConfig(part=part, num=8, steps=2, weights=(room / "small.safetensors",), out=tmp_path)
    study.main(c)
    report = json.loads((tmp_path / f"glide_{part}.json").read_text())
    assert report["n"] == 8 and report["rows"] and f"--part {part}" in report["command"]
    assert 1000 < (tmp_path / f"glide_{part}.webp").stat().st_size <= 150_000
    assert report["claims"] and {c["holds"] for c in report["claims"]} <= {"yes", "no", "open"}
    found = list(intervals(report["rows"]))
    assert len(found) >= 2 * len(report["claims"])
    for v in found:
        assert v["low"] <= v.get("accuracy", v.get("value")) <= v["high"] and v["n"] > 0, v
    if part == "inpainting":
        errors = {r["method"]: r["kept_error"] for r in report["rows"] if "kept_error" in r}
        assert set(errors.values()) == {0.0} and len(errors) == 4


def test_the_printed_command_names_every_option_that_was_changed(room, tmp_path):
    c = StudyConfig(num=8, scales=(1.0,), steps=2, weights=(room / "small.safetensors",),
                    quick=True, out=tmp_path)  # fmt: skip
    study.main(c)
    command = json.loads((tmp_path / "glide_captions.json").read_text())["command"]
    for option in ("--quick", "--num 8", "--scales 1.0", "--steps 2"):
        assert option in command


MISSING = {"guidance": "train --base", "clip": "train-clip --noised",
           "widths": "train-classes"}  # fmt: skip


@pytest.mark.parametrize("part", MISSING)
def test_a_study_trains_nothing_and_says_which_command_makes_what_it_lacks(
    part, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    result = program(capsys, "glide", COMMANDS, "study", "--part", part, "--quick", "--out", "here")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "no weights at runs/" in result.stderr and MISSING[part] in result.stderr


@pytest.mark.parametrize("options", [["--num", 0], ["--scales", "nan"], ["--steps", -1]])
def test_a_study_of_nothing_gets_one_line_and_code_2(options, tmp_path, capsys):
    result = program(capsys, "glide", COMMANDS, "study", "--out", tmp_path, *options)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
