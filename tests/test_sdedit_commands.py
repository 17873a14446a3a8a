"""SDEdit as a program: its model, its commands on an untrained network, and wrong input."""

import json
from dataclasses import asdict, replace

import helpers
import jax
import numpy as np
import pytest
from helpers import program
from numpy.testing import assert_array_equal
from PIL import Image

from common import checkpoint
from common.metrics import scene_features
from sdedit import gan, invert, measure, sde, study_real
from sdedit.__main__ import COMMANDS
from sdedit.guides import strokes
from sdedit.measure import claim, realism_and_distance
from sdedit.model import (
    DIGITS,
    DIGITS_VE,
    PAPER,
    PHOTOS,
    SMALL,
    TINY,
    init_params,
    load,
    make_schedule,
    tokenize,
)
from sdedit.sample import bisect, draw
from sdedit.train import pictures as pictures_of


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with weights of an untrained tiny network, a guide, a mask and a patch."""
    path = tmp_path_factory.mktemp("sdedit")
    rng = np.random.default_rng(0)
    # Drawn by numpy, which compiles nothing; all away from zero, so that nothing is ignored.
    shapes = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), shapes)
    metadata = {"model": "sdedit", "config": asdict(TINY), "recipe": {"steps": 0}}
    checkpoint.save_weights(path / "w.safetensors", params, metadata)
    guide = rng.integers(0, 256, (32, 32, 3), np.uint8)
    edit_mask = np.zeros((32, 32), np.uint8)
    edit_mask[8:20, 8:20] = 255
    for name, image in {
        "guide": guide, "mask": edit_mask, "patch": guide[:9, :9], "black": 0 * edit_mask,
        "large": guide.repeat(2, 0).repeat(2, 1),
    }.items():  # fmt: skip
        Image.fromarray(image).save(path / f"{name}.png")
    (path / "text.png").write_text("no picture")
    Image.new("1", (30_000, 30_000)).save(path / "bomb.png")
    return path


def sdedit(capsys, *args):
    return program(capsys, "sdedit", COMMANDS, *args)


def options(room, name, out):
    files = {
        "paint": ["--guide", room / "guide.png"],
        "edit": ["--guide", room / "guide.png", "--edit-mask", room / "mask.png"],
        "compose": ["--background", room / "guide.png", "--patch", room / "patch.png",
                    "--at", "10,12"],
    }[name]  # fmt: skip
    return [*files, "--weights", room / "w.safetensors", "--out", out, "--steps", "6", "--num", "2"]


def pictures(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])


def test_the_presets_have_the_size_of_the_official_model_and_of_weights_that_are_shipped():
    shapes = lambda c: jax.eval_shape(lambda: init_params(c, jax.random.key(0)))  # noqa: E731
    count = lambda c: sum(p.size for p in jax.tree.leaves(shapes(c)))  # noqa: E731
    assert count(PAPER) == 113_673_219
    assert count(SMALL) * 2 < 5_000_000  # bytes in half precision


def test_paint_draws_pictures_near_the_guide_and_t0_of_0_is_the_guide(room, tmp_path, capsys):
    guide = np.asarray(Image.open(room / "guide.png"))
    far = []
    for t0 in (0, 0.3):
        out = tmp_path / f"{10 * t0:.0f}"
        result = sdedit(capsys, "paint", *options(room, "paint", out), "--t0", t0)
        assert result.returncode == 0, result.stderr
        images = pictures(out)
        assert images.shape == (2, 32, 32, 3)
        far.append(np.abs(images.astype(int) - guide).max())
    assert far[0] == 0 < far[1] and (images[0] != images[1]).any()


def test_edit_and_compose_keep_every_pixel_outside_of_the_mask(room, tmp_path, capsys):
    guide = np.asarray(Image.open(room / "guide.png"))
    result = sdedit(capsys, "edit", *options(room, "edit", tmp_path / "e"), "--t0", "0.3")
    assert result.returncode == 0, result.stderr
    changed = (pictures(tmp_path / "e") != guide).any((0, -1))
    assert_array_equal(changed, np.asarray(Image.open(room / "mask.png")) > 0)
    result = sdedit(capsys, "compose", *options(room, "compose", tmp_path / "c"), "--t0", "0.3")
    assert result.returncode == 0, result.stderr
    changed = (pictures(tmp_path / "c") != guide).any((0, -1))
    assert changed[11:22, 9:20].all() and changed.sum() == 11 * 11  # with a margin of 1


def test_a_png_is_a_grid_that_tells_how_it_was_made(room, tmp_path, capsys):
    out = tmp_path / "grid.png"
    result = sdedit(capsys, "paint", *options(room, "paint", out), "--t0", "0.3", "--sde", "ve")
    assert result.returncode == 0 and str(out) in result.stdout, result.stderr
    with Image.open(out) as image:
        assert image.text["t0"] == "0.3" and image.text["sde"] == "ve"


def test_a_large_guide_is_resized_when_asked(room, tmp_path, capsys):
    large = ["--guide", room / "large.png", "--resize", "--t0", "0"]
    result = sdedit(capsys, "paint", *options(room, "paint", tmp_path / "r")[2:], *large)
    assert result.returncode == 0, result.stderr
    assert_array_equal(pictures(tmp_path / "r")[0], np.asarray(Image.open(room / "guide.png")))


@pytest.mark.slow
def test_every_procedure_repeat_and_caption_changes_the_picture(room):
    config, params, _ = load(room / "w.safetensors")
    guide = np.asarray(Image.open(room / "guide.png"))[None]
    base = dict(t0=0.05, steps=4, prompts=["a red ball"], guidance_scale=2.0)
    variants = [{}, {"sde_name": "ddpm"}, {"repeats": 2}, {"last": "paper"}, {"seed": 1}]
    images = [draw(config, params, guide, **(base | v)) for v in variants]
    for i, a in enumerate(images):
        assert all((a != b).any() for b in images[:i])


WRONG = {  # what is wrong: (command, options in place of the usual ones, words of the one line)
    "t0 above 1": ("paint", ["--t0", "1.5"], ["t0", "0..1", "1.5"]),
    "t0 below 0": ("paint", ["--t0", "-0.1"], ["t0", "0..1"]),
    "t0 not a number": ("paint", ["--t0", "nan"], ["t0", "nan"]),
    "too few steps": ("paint", ["--t0", "1", "--steps", "9"], ["9 steps are too few"]),
    "no repeats": ("paint", ["--repeats", "0"], ["repeats", "at least 1"]),
    "no pictures": ("paint", ["--num", "0"], ["num", "1..4096"]),
    "another size": ("paint", ["--guide", "large.png"], ["64 x 64", "32 x 32", "--resize"]),
    "no picture": ("paint", ["--guide", "text.png"], ["cannot read", "text.png"]),
    "no file": ("paint", ["--guide", "none.png"], ["none.png", "No such file"]),
    "a bomb": ("paint", ["--guide", "bomb.png"], ["bomb.png", "900000000 pixels"]),
    "unknown word": ("paint", ["--prompt", "a redd ball"], ["redd", "red"]),
    "no weights": ("paint", ["--weights", "none.safetensors"], ["no weights", "sdedit train"]),
    "black mask": ("edit", ["--edit-mask", "black.png"], ["black.png", "paint white"]),
    "patch outside": ("compose", ["--at", "40,0"], ["outside of the picture"]),
    "at without comma": ("compose", ["--at", "7"], ["two whole numbers", "'7'"]),
    "out of another kind": ("paint", ["--out", "a.txt"], [".png", "a.txt"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_line_and_code_2_and_writes_nothing(name, room, tmp_path, capsys):
    verb, changes, words = WRONG[name]
    usual = options(room, verb, tmp_path / "out.png")
    files = ("--guide", "--edit-mask", "--weights")
    changes = [room / v if k in files else v for k, v in zip([""] + changes, changes, strict=False)]
    kept = [x for pair in zip(usual[::2], usual[1::2], strict=True) if pair[0] not in changes
            for x in pair]  # fmt: skip
    result = sdedit(capsys, verb, *kept, *changes)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr
    assert not any(tmp_path.iterdir())


def test_weights_of_another_model_are_refused_and_a_captionless_model_takes_no_prompt(room):
    params, metadata = checkpoint.load_weights(room / "w.safetensors")
    checkpoint.save_weights(room / "o.safetensors", params, metadata | {"model": "ldm"})
    with pytest.raises(checkpoint.CheckpointError, match="weights of ldm, not of sdedit or glide"):
        load(room / "o.safetensors")
    with pytest.raises(ValueError, match="know no captions"):
        tokenize(replace(TINY, text=None), ["a red ball"])


@pytest.mark.slow
def test_training_makes_weights_that_paint(room, tmp_path, capsys):
    sizes = ["--steps", "2", "--batch-size", "2", "--examples", "4", "--log-every", "1",
             "--save-every", "2"]  # fmt: skip
    result = sdedit(capsys, "train", "--preset", "tiny", "--out", tmp_path / "run", *sizes)
    assert result.returncode == 0, result.stderr
    config, params, metadata = load(tmp_path / "run" / "weights.safetensors")
    assert config == TINY and metadata["recipe"]["drop"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) for row in rows)


STUDY = {  # part: rows, and what each has
    "t0": (6, {"kid", "l2", "valid", "sigma"}),
    "strokes": (6, {"kid", "l2", "valid"}),
    "compositing": (7, {"kept_l2", "found", "colour", "seconds"}),
    "palette": (1, {"colours", "kid", "l2"}),
    "repeats": (1, {"repeats", "kid", "l2"}),
    "proposition": (24, {"broken", "mean_over_bound"}),
    "bisection": (2, {"t0", "t0_of_one_guide", "sigma"}),
    "digits": (9, set()),
    "objective": (2 * len(study_real.VE_T0S), {"kid", "l2", "read"}),
    "photos": (8, {"kid", "l2"}),
}


@pytest.fixture(scope="module")
def rivals(room):
    """Weights of an untrained GAN and its encoder, and of both networks of real pictures."""
    c = gan.PRESETS["tiny"]
    made = {"gan": ("sdedit.gan", c, gan.init_generator),
            "encoder": ("sdedit.encoder", c, invert.init_params),
            "runs/digits/weights": ("sdedit", DIGITS, init_params),
            "runs/digits_ve/weights": ("sdedit", DIGITS_VE, init_params),
            "runs/photos/weights": ("sdedit", PHOTOS, init_params)}  # fmt: skip
    for name, (model, config, init) in made.items():
        params = helpers.made(lambda key: init(config, key))  # noqa: B023
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        metadata = {"model": model, "config": asdict(config), "recipe": {}}
        checkpoint.save_weights(room / f"{name}.safetensors", params, metadata)
    return ["--gan", room / "gan.safetensors", "--encoder", room / "encoder.safetensors",
            "--runs", room / "runs"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", STUDY)
def test_every_part_of_the_study_writes_numbers_and_a_picture(
    part, room, rivals, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(study_real, "T0S", (0, 0.2, 0.5, 1))
    monkeypatch.setattr(measure, "REAL", 16)
    few = ["--num", "6", "--steps", "21", "--points", "3", "--colours", "3", "--repeats", "1",
           "--targets", "15"]  # fmt: skip
    result = sdedit(capsys, "study", "--part", part, "--weights", room / "w.safetensors", "--out",
                    tmp_path, *few, *rivals)  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / f"sdedit_{part}.json").read_text())
    rows, (count, names) = report["rows"], STUDY[part]
    count -= 4 * (part in ("digits", "photos"))
    assert len(rows) == count and all(names <= set(row) for row in rows[1:])
    assert (tmp_path / f"sdedit_{part}.webp").exists()
    assert part == "t0" or f"--part {part}" in report["command"]
    if part in ("t0", "digits", "photos"):
        assert [r["l2"]["value"] for r in rows if r.get("t0") == 0] == [0] * (1 + (part == "t0"))
    if part == "compositing":
        kept = {r["method"]: r["kept_l2"]["value"] for r in rows}
        assert kept["SDEdit"] == kept["naive paste"] == kept["Poisson"] == 0 < len(kept)
    for row in rows:
        for value in row.values():
            if isinstance(value, dict):
                assert value["low"] <= value.get("value", value.get("accuracy")) <= value["high"]


def test_a_network_of_ves_objective_sees_ves_sigmas_in_pictures_of_one_size():
    ours, paper = make_schedule(DIGITS_VE), sde.ve(1, DIGITS_VE.T)
    np.testing.assert_allclose((ours.noise / ours.signal)[1:], paper.noise[1:], rtol=1e-3)
    np.testing.assert_allclose(np.hypot(ours.noise, ours.signal), 1, rtol=1e-6)


def test_bisection_finds_the_time_of_a_distance():
    guides = np.zeros((2, 4, 4, 3), np.uint8)
    draw = lambda t0: np.full((2, 4, 4, 3), 255 * t0)  # noqa: E731
    assert abs(bisect(draw, guides, 48 * 0.3**2, rounds=10) - 0.3) < 1e-3


@pytest.mark.slow
def test_t0_may_be_chosen_by_the_distance_and_must_then_be_possible(room, tmp_path, capsys):
    given = options(room, "paint", tmp_path / "p")
    result = sdedit(capsys, "paint", *given, "--steps", "21", "--target-l2", "50")
    assert result.returncode == 0 and "t0 0." in result.stdout, result.stderr
    guide = np.asarray(Image.open(room / "guide.png"))
    far = np.square((pictures(tmp_path / "p").astype(float) - guide) / 255).sum((1, 2, 3)).mean()
    assert 25 < far < 100
    result = sdedit(capsys, "paint", *given, "--target-l2", "-1")
    assert result.returncode == 2 and "target_l2 must be above 0" in result.stderr


@pytest.mark.slow
def test_at_t0_of_1_pictures_of_opposite_guides_are_the_same(room):
    config, params, _ = load(room / "w.safetensors")
    guides = np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    for name in ("vp", "ve"):
        other, same = (draw(config, params, g, t0=1, steps=25, sde_name=name)
                       for g in (guides[::-1], guides))  # fmt: skip
        off = np.abs(other.astype(int) - same)
        assert np.quantile(off, 0.99) <= 8 and np.abs(same[0].astype(int) - same[1]).mean() > 20


def test_guides_of_any_kind_are_the_same_guide(room, tmp_path, capsys):
    grey = np.asarray(Image.open(room / "guide.png"))[..., 0]
    kinds = {
        "grey": Image.fromarray(grey),
        "rgba": Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], -1)),
        "deep": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        given = options(room, "paint", tmp_path / name)[2:]
        result = sdedit(capsys, "paint", "--guide", tmp_path / f"{name}.png", *given, "--t0", "0")
        assert result.returncode == 0, result.stderr
        assert_array_equal(pictures(tmp_path / name)[0], grey[..., None].repeat(3, -1))


def test_patches_of_photographs_are_split_by_place():
    train_set, test = (pictures_of("photos", split, 32)["image"] for split in ("train", "test"))
    assert train_set.dtype == np.uint8 and train_set.shape[1:] == test.shape[1:] == (32, 32, 3)
    assert len(train_set) > 3 * len(test) > 1000


def test_the_studys_distances_are_zero_for_the_guides_and_grow_with_noise():
    rng = np.random.default_rng(0)
    real = rng.integers(100, 150, (64, 32, 32, 3)).astype(np.uint8)
    guides, features = strokes(real[:32]), scene_features(real[32:])
    near = realism_and_distance(guides, guides, features)
    far = realism_and_distance(real[:32], guides, features)
    assert near["l2"]["value"] == 0 < far["l2"]["value"]
    assert far["kid"]["value"] < near["kid"]["value"]
    assert claim("", "kid", {"a": near, "b": far}, "a", "b")["holds"] == "yes"
