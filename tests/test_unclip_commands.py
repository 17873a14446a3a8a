"""unCLIP as a program: its commands on untrained networks, training, and what wrong input gets."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from helpers import program
from PIL import Image

from common import checkpoint, clip, data
from glide import model as glide
from unclip import (
    ar_prior,
    diffusion_prior,
    model,
    scoring,
    study,
    study_edits,
    study_embeddings,
)  # fmt: skip
from unclip.__main__ import COMMANDS


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with untrained tiny weights of everything, and two pictures."""
    path, rng = tmp_path_factory.mktemp("unclip"), np.random.default_rng(0)

    def write(name, kind, config, init):
        # Drawn by numpy, which compiles nothing; all away from zero, so that nothing is ignored.
        shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
        params = jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), shapes)
        metadata = {"model": kind, "config": asdict(config), "recipe": {"steps": 0}}
        checkpoint.save_weights(path / f"{name}.safetensors", params, metadata)
        return checkpoint.load_weights(path / f"{name}.safetensors")[1]["digest"]

    digest = write("clip", "glide.clip", clip.TINY, clip.init_params)
    write("noised", "glide.clip", replace(clip.TINY, T=10), clip.init_params)
    write("glide", "glide", glide.TINY, glide.init_params)
    write("other", "unclip", model.TINY, model.init_params)
    write("w", "unclip", replace(model.TINY, clip=digest), model.init_params)
    prior, ar = replace(diffusion_prior.TINY, clip=digest), replace(ar_prior.TINY, clip=digest)
    write("prior", "unclip.prior", prior, diffusion_prior.init_params)
    write("ar", "unclip.ar_prior", ar, ar_prior.init_params)
    for name, image in zip("ab", data.load("scenes", "test")["image"], strict=False):
        Image.fromarray(image).save(path / f"{name}.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path / "small.png")
    (path / "text.png").write_text("no picture")
    return path


def unclip(capsys, *args):
    return program(capsys, "unclip", COMMANDS, *args)


def options(room, out, *more):
    weights = ["--weights", room / "w.safetensors", "--clip", room / "clip.safetensors"]
    return [*weights, "--steps", "2", "--out", out, *more]


def pictures(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])


@pytest.mark.slow
def test_every_kind_of_prior_gives_pictures_of_its_own(room, tmp_path, capsys):
    drawn = {}
    for kind, file in (("diffusion", "prior"), ("ar", "ar"), ("text", None), ("none", None)):
        prior = ["--prior-weights", room / f"{file}.safetensors"] if file else []
        args = options(room, tmp_path / kind, "--prompt", "a red ball", "--num", "3")
        result = unclip(capsys, "sample", *args, "--prior", kind, *prior)
        assert result.returncode == 0, result.stderr
        drawn[kind] = pictures(tmp_path / kind)
        assert drawn[kind].shape == (3, 32, 32, 3)
    assert len({d.tobytes() for d in drawn.values()}) == 4
    settings = Image.open(tmp_path / "ar" / "0000.png").text
    assert settings["prompt"] == "a red ball" and settings["weights"] == "w.safetensors"


@pytest.mark.slow
def test_the_edits_leave_labelled_grids_or_a_file_for_each_picture(room, tmp_path, capsys):
    image = ["--image", room / "a.png"]
    for name, more, count in (
        ("vary", ["--etas", "0", "1", "--num", "3"], 2 * 4),
        ("interpolate", ["--other", room / "b.png", "--frames", "3"], 3 + 2),
        ("interpolate", ["--other", room / "b.png", "--frames", "3", "--x-T", "fixed"], 3 + 2),
        ("text-diff", ["--prompt", "a blue cube", "--source", "a red ball", "--frames", "3"], 4),
    ):
        folder = tmp_path / f"{name}{len(more)}"
        args = [*image, *more, *options(room, folder), "--steps", "16"]
        result = unclip(capsys, name, *args)
        assert result.returncode == 0, result.stderr
        drawn = pictures(folder)
        assert drawn.shape == (count, 32, 32, 3)
        given = np.asarray(Image.open(room / "a.png"))
        np.testing.assert_array_equal(drawn[0], given)
        if name == "vary":  # eta 0 gives it back, as far as so few steps can
            off = np.abs(drawn.astype(int) - given).mean((1, 2, 3))
            assert off[1:4].max() < 0.5 * off[5:].min(), off
        if name != "interpolate":
            result = unclip(capsys, name, *args, "--out", tmp_path / f"{name}.png")
            assert result.returncode == 0 and Image.open(tmp_path / f"{name}.png").width > 200


def test_a_text_diff_tells_the_decoder_its_prompt_when_asked_to(
    room, tmp_path, capsys, monkeypatch
):
    told = []

    def reconstruct(config, params, z, x, *, prompts, **options):
        told.append(prompts)
        return np.zeros((len(z), 32, 32, 3), np.uint8)

    monkeypatch.setattr("unclip.edit.reconstruct", reconstruct)
    args = ["--image", room / "a.png", "--prompt", "a blue cube", "--source", "a red ball",
            "--frames", "3", "--steps", "2", *options(room, tmp_path)]  # fmt: skip
    for more in ([], ["--caption"]):
        assert unclip(capsys, "text-diff", *args, *more).returncode == 0
    assert told == [None, ["a blue cube"] * 3]


WRONG = [
    (["sample", "--prompt", " "], ["empty"]),
    (["sample", "--prompt", "a red bal"], ["bal", "ball"]),
    (["sample", "--prompt", "a red ball", "--num", "0"], ["num"]),
    (["sample", "--prompt", "a red ball", "--best-of", "0"], ["best_of"]),
    (["sample", "--prompt", "a red ball", "--steps", "0"], ["steps"]),
    (["sample", "--prompt", "a red ball", "--prior-weights", "{room}/ar.safetensors"], ["prior"]),
    (["sample", "--prompt", "a red ball", "--clip", "{room}/none.safetensors"], ["train-clip"]),
    (["sample", "--prompt", "a red ball", "--clip", "{room}/noised.safetensors"], ["noised"]),
    (["sample", "--prompt", "a red ball", "--weights", "{room}/other.safetensors"], ["another CL"]),
    (["sample", "--prompt", "a red ball", "--weights", "{room}/glide.safetensors"], ["glide"]),
    (["sample", "--prompt", "a red ball", "--out", "x.txt"], [".png"]),
    (["vary", "--image", "{room}/small.png"], ["16", "32", "--resize"]),
    (["vary", "--image", "{room}/text.png"], ["text.png"]),
    (["vary", "--image", "{room}/a.png", "--etas", "2"], ["etas"]),
    (["interpolate", "--image", "{room}/a.png", "--other", "{room}/b.png", "--frames", "1"],
     ["frames"]),
    (["interpolate", "--image", "{room}/a.png", "--other", "{room}/none.png"], ["none.png"]),
    (["text-diff", "--image", "{room}/a.png", "--prompt", "a red ball", "--source", "a red ball"],
     ["nothing"]),
    (["text-diff", "--image", "{room}/a.png", "--prompt", "a ball", "--source", "a", "--theta",
      "2"], ["theta"]),
    (["train", "--clip", "{room}/none.safetensors"], ["train-clip"]),
    (["train-prior", "--clip", "{room}/none.safetensors"], ["train-clip"]),
    (["study", "--prior", "{room}/none.safetensors"], ["none.safetensors"]),
]  # fmt: skip


@pytest.mark.parametrize("args, words", WRONG, ids=lambda a: " ".join(a)[:60])
def test_wrong_input_gets_one_line_that_says_what_to_do(room, tmp_path, capsys, args, words):
    args = [a.format(room=room) for a in args]
    defaults = {"--clip": room / "clip.safetensors", "--out": tmp_path / "out"}
    if not args[0].startswith("train"):
        defaults["--weights"] = room / "w.safetensors"
    if args[0] == "sample":
        defaults["--prior-weights"] = room / "prior.safetensors"
    for name, value in defaults.items():
        args += [] if name in args else [name, str(value)]
    result = unclip(capsys, *args)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr


def train_args(room, out):
    return ["--preset", "tiny", "--clip", room / "clip.safetensors", "--out", out, "--steps", "4",
            "--batch-size", "4", "--examples", "40", "--log-every", "2", "--save-every", "4",
            "--sample-every", "1000"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name, module", [
    ("train", model), ("train-prior", diffusion_prior), ("train-ar-prior", ar_prior),
])  # fmt: skip
def test_training_leaves_weights_that_know_their_clip(room, tmp_path, capsys, name, module):
    base = ["--base", room / "glide.safetensors"] if name == "train" else []
    result = unclip(capsys, name, *train_args(room, tmp_path), *base)
    assert result.returncode == 0, result.stderr
    config, params, metadata = module.load(tmp_path / "weights.safetensors")
    digest = checkpoint.load_weights(room / "clip.safetensors")[1]["digest"]
    assert config.clip == digest and config.dim == clip.TINY.dim
    assert f"python -m unclip {name}" in metadata["recipe"]["command"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [r["step"] for r in rows] == [2, 4] and np.isfinite(rows[-1]["loss"])
    if name == "train":  # it began with GLIDE, and four steps do not lead far
        kernel = checkpoint.load_weights(room / "glide.safetensors")[0]["unet"]["time1"]["kernel"]
        assert np.abs(params["unet"]["time1"]["kernel"] - kernel).max() < 0.02
    if name == "train-ar-prior":  # the code is kept, not trained: real embeddings survive it
        images = data.load("scenes", "train")["image"][:40]
        weights = checkpoint.load_weights(room / "clip.safetensors")[0]
        z = clip.embed_images(clip.TINY, weights, images)
        back = np.asarray(ar_prior.from_codes(params["code"], ar_prior.to_codes(params["code"], z)))
        assert np.square(back - z).sum() < 0.1 * np.square(z - z.mean(0)).sum()


@pytest.mark.slow
def test_an_upsampler_is_trained_and_draws_the_second_stage(room, tmp_path, capsys):
    args = train_args(room, tmp_path)
    del args[2:4]  # it needs no CLIP
    result = unclip(capsys, "train-upsampler", *args)
    assert result.returncode == 0, result.stderr
    more = ["--upsampler", tmp_path / "weights.safetensors", "--prior", "text", "--num", "3"]
    args = [*options(room, tmp_path / "big", "--prompt", "a red ball"), *more]
    result = unclip(capsys, "sample", *args, "--size", "64")
    assert result.returncode == 0, result.stderr
    assert pictures(tmp_path / "big").shape == (3, 64, 64, 3)
    assert "size" in unclip(capsys, "sample", *args, "--size", "48").stderr


@pytest.fixture(scope="module")
def opened():
    """The world of the first study, for all: they use the same files."""
    return []


@pytest.fixture
def quick_world(monkeypatch, opened):
    """Studies of a few pictures, which are not drawn but taken from the test split."""
    renders = data.load("scenes", "test")["image"]

    def fake(*args, x=None, **options):
        n = len(args[2])
        return renders[:n] if x is None else np.asarray(renders[7 : 7 + n])

    def fake_embed(kind, prior, model, texts, **options):
        return model.texts(texts)

    really = study.open_world

    def once(c):
        opened.extend([] if opened else [really(c)])
        return opened[0]

    monkeypatch.setattr(study, "open_world", once)
    monkeypatch.setattr(scoring, "decode", fake)
    monkeypatch.setattr(scoring, "glide_draw", fake)
    monkeypatch.setattr(scoring, "embed", fake_embed)
    monkeypatch.setattr(study_edits, "invert", lambda config, params, images, *a, **k: images)
    monkeypatch.setattr(study_edits, "reconstruct", lambda c, p, z, x, **k: renders[: len(z)])
    monkeypatch.setattr(study, "QUICK", 6)
    monkeypatch.setattr(study, "FEW", (2, 3))
    monkeypatch.setattr(study_embeddings, "PROBE", 1800)


@pytest.mark.slow
@pytest.mark.parametrize("part", list(study.PARTS))
def test_every_part_of_the_study_writes_numbers_with_intervals_and_a_figure(
    room, tmp_path, capsys, part, quick_world
):
    files = {"prior": "prior", "ar-prior": "ar", "glide": "glide", "text-decoder": "w"}
    more = [a for k, v in files.items() for a in (f"--{k}", room / f"{v}.safetensors")]
    more += ["--part", part, "--quick", "--scales", "2", "3"]
    result = unclip(capsys, "study", *options(room, tmp_path, *more))
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / f"unclip_{part}.json").read_text())
    assert report["command"].startswith("python -m unclip study") and report["n"] == 6
    assert report["seed"] == 1 and report["rows"]
    assert Image.open(tmp_path / f"unclip_{part}.webp").width > 100
    if part == "systems":
        rows = {r["system"]: r for r in report["rows"]}
        assert len(rows) == 8 and len(report["orderings"]) == 10
        # What was "drawn" are the pictures that the captions are of.
        for name in ("real renders", "true z_i", "glide"):
            assert rows[name]["all"]["value"] == 1 and rows[name]["all"]["low"] < 0.7
        assert all(line["verdict"] == "open" for line in report["orderings"])
    if part == "text_diff":
        thetas = {(r["x_T"], r["guidance_scale"], r["caption"], r["theta"]) for r in report["rows"]}
        assert len(thetas) == len(report["rows"]) == 4 * len(study_edits.THETAS)


def test_orderings_hold_are_reversed_or_stay_open():
    ones, zeros, mixed = np.ones(50), np.zeros(50), np.arange(50) % 2
    verdict = lambda a, b: scoring.ordering("", "", a, b)["verdict"]  # noqa: E731
    assert verdict(ones, zeros) == "holds" and verdict(zeros, ones) == "reversed"
    assert verdict(mixed, 1 - mixed) == "open"


def test_diversity_is_the_entropy_of_what_captions_leave_open(monkeypatch):
    one = {"shape": "ball", "colour": "red", "size": "small", "place": "left", "x": 0.2, "y": 0.5}
    scene = {"valid": True, "background": "sand", "style": "photo", "objects": [one]}
    other = {**scene, "style": "night", "objects": [{**one, "size": "large", "shape": "cube"}]}
    broken = {**scene, "valid": False, "objects": []}
    readings = [scene, scene, scene, other, broken, broken]
    monkeypatch.setattr(scoring, "read", lambda images: readings)
    found = scoring.diversity(np.zeros((6, 1)), 2)
    # Of the second caption size and style differ: one bit each, over four attributes.
    np.testing.assert_allclose(found, [0, 2 / 4, 0])
