"""The tfds data set: what is on disk, and that loading gives scenes and pictures back."""

import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from common.scenes import builder
from common.scenes.captions import agrees, claims
from common.scenes.reader import truth
from common.scenes.render import VERSION, render
from common.scenes.scene import HELD_OUT, scene_from_json


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set with few scenes, prepared once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SPLITS", {"train": 60, "test": 20, "held_out": 10})
        patch.setattr(builder, "_BATCH", 25)
        root = tmp_path_factory.mktemp("data")
        builder.prepare(root)
    return root


def test_the_full_data_set_has_the_promised_splits():
    assert builder.SPLITS == {"train": 24_000, "test": 2_000, "held_out": 1_000}


@pytest.mark.parametrize("size", (32, 64))
def test_loaded_pictures_are_the_renders_of_the_loaded_scenes(data_dir, size):
    data = builder.load("train", size, data_dir)
    assert data["image"].shape == (60, size, size, 3) and data["image"].dtype == np.uint8
    assert np.array_equal(data["image"], render(data["scenes"], size))


def test_splits_differ_and_only_held_out_holds_held_out_pairs(data_dir):
    scenes = {split: builder.load(split, 32, data_dir)["scenes"] for split in builder.SPLITS}
    assert not set(scenes["train"]) & set(scenes["test"])
    for split, some in scenes.items():
        pairs = [any((o.shape, o.colour) in HELD_OUT for o in s.objects) for s in some]
        assert all(pairs) if split == "held_out" else not any(pairs)


@pytest.mark.slow
def test_examples_read_through_tfds_carry_a_true_caption(data_dir):
    source = tfds.data_source("scenes", split="test", data_dir=str(data_dir))
    assert len(source) == 20
    for example in source:
        scene = scene_from_json(example["scene"])
        assert agrees(claims(example["caption"].decode()), truth(scene))["all"]
        assert np.array_equal(example["image"], render([scene])[0])


def test_the_second_load_reads_the_cache_and_not_the_data_set(data_dir, monkeypatch):
    first = builder.load("test", 32, data_dir)
    monkeypatch.setattr(builder, "prepare", None)
    second = builder.load("test", 32, data_dir)
    assert np.array_equal(first["image"], second["image"]) and first["scenes"] == second["scenes"]
    assert not list(data_dir.glob("*.tmp"))


def test_a_decoding_that_fails_leaves_no_cache(data_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    cached = data_dir / f"scenes-{VERSION}-held_out-64.npz"
    cached.unlink(missing_ok=True)
    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        builder.load("held_out", 64, data_dir)
    assert not cached.exists() and not list(data_dir.glob("*.tmp"))


def test_a_killed_preparation_is_redone(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "SPLITS", {"train": 8, "test": 4, "held_out": 2})
    png, calls = builder._png, []

    def stop(image):
        calls.append(1)
        if len(calls) > 10:
            raise RuntimeError("killed")
        return png(image)

    monkeypatch.setattr(builder, "_png", stop)
    with pytest.raises(RuntimeError, match="killed"):
        builder.prepare(tmp_path)
    monkeypatch.setattr(builder, "_png", png)
    assert builder.load("test", 32, tmp_path)["image"].shape == (4, 32, 32, 3)


def test_preparing_is_deterministic(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "SPLITS", {"train": 60, "test": 20, "held_out": 10})
    monkeypatch.setattr(builder, "_BATCH", 25)
    again = builder.load("held_out", 32, tmp_path)
    assert again["scenes"] == builder.load("held_out", 32, data_dir)["scenes"]


def test_preparing_says_nothing_on_stdout_and_shows_one_bar(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(builder, "SPLITS", {"train": 4, "test": 2, "held_out": 2})
    builder.prepare(tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "preparing scenes" in err and "Generating" not in err and "8/8" in err


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    assert builder.default_data_dir() == tmp_path
    monkeypatch.delenv("GUIDEBOOK_DATA")
    assert str(builder.default_data_dir()).endswith(os.path.join(".cache", "guidebook", "data"))


def test_unknown_splits_and_sizes_are_refused(data_dir):
    with pytest.raises(ValueError, match="no split 'valid'"):
        builder.load("valid", 32, data_dir)
    with pytest.raises(ValueError, match="32 or 64"):
        builder.load("test", 48, data_dir)


def test_stored_pictures_are_png_of_64_pixels():
    image = render(
        [scene_from_json('{"background":"sky","style":"photo","objects":[],"texture":[0,0,0]}')]
    )[0]
    stored = Image.open(io.BytesIO(builder._png(image).getvalue()))
    assert stored.format == "PNG" and np.array_equal(np.asarray(stored), image)
