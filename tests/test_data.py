"""The data room, without a network: real digits, and tfds through its own mock."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from common import data

OWN_SIZE = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "celeb_a": 64, "oxford_flowers102": 64}
CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "oxford_flowers102": 102}


def test_digits_are_the_1797_real_ones_split_80_20_without_overlap():
    train, test = data.load("digits"), data.load("digits", "test")
    assert train["image"].shape == (1438, 8, 8, 3) and test["image"].shape == (359, 8, 8, 3)
    assert train["image"].dtype == np.uint8 and train["label"].dtype == np.int32
    assert train["image"].max() == 255 and set(train["label"]) == set(range(10))
    assert list(train["class_names"]) == [str(d) for d in range(10)]
    from sklearn.datasets import load_digits

    both = np.concatenate([train["image"], test["image"]])[..., 0].reshape(1797, -1)
    whole = np.rint(load_digits().data * 255 / 16)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(whole, axis=0))


def test_digits_are_the_same_on_every_load_and_grow_by_whole_factors():
    small, again, large = data.load("digits"), data.load("digits"), data.load("digits", size=32)
    np.testing.assert_array_equal(small["image"], again["image"])
    np.testing.assert_array_equal(large["image"][:, 1::4, 2::4], small["image"])
    np.testing.assert_array_equal(large["label"], small["label"])
    for bad in ({"size": 20}, {"size": 0}, {"size": -8}, {"split": "validation"}):
        with pytest.raises(data.DataError):
            data.load("digits", **bad)


@pytest.mark.parametrize("name", OWN_SIZE)
def test_tfds_sets_arrive_as_square_rgb_with_labels_and_names(name, tmp_path):
    with tfds.testing.mock_data(num_examples=5):
        arrays = data.load(name, data_dir=tmp_path)
        half = data.load(name, "test", size=16, data_dir=tmp_path)
    side = OWN_SIZE[name]
    assert arrays["image"].shape == (5, side, side, 3) and arrays["image"].dtype == np.uint8
    assert half["image"].shape == (5, 16, 16, 3)
    assert ("label" in arrays) == (name in CLASSES)
    if name in CLASSES:
        assert arrays["label"].shape == (5,) and arrays["label"].dtype == np.int32
        assert len(arrays["class_names"]) == CLASSES[name]
    if "mnist" in name:
        assert (arrays["image"][..., :1] == arrays["image"]).all()


def test_a_decoded_set_is_kept_and_read_again_without_tfds(tmp_path, monkeypatch):
    with tfds.testing.mock_data(num_examples=5):
        first = data.load("cifar10", "train[:10%]", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "data_source", None)
    again = data.load("cifar10", "train[:10%]", data_dir=tmp_path)
    assert first.keys() == again.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    files = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 1 and files[0].endswith(".npz"), files  # and no half-written one


def test_two_slices_of_a_split_do_not_share_a_file(tmp_path):
    with tfds.testing.mock_data(num_examples=5):
        for split in ("train[:10%]", "train[10%:]"):
            data.load("mnist", split, data_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_a_prepared_set_is_read_from_disk_without_tensorflow(tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)

    def examples(builder, manager):
        def encoded():
            for i, picture in enumerate(pictures):
                png = io.BytesIO()
                Image.fromarray(picture).save(png, "PNG")
                yield i, {"image": io.BytesIO(png.getvalue()), "label": i}

        return {"train": encoded()}

    builder = tfds.builder("mnist", data_dir=tmp_path, file_format="array_record")
    monkeypatch.setattr(type(builder), "_split_generators", examples)
    builder.download_and_prepare()
    arrays = data.load("mnist", data_dir=tmp_path)
    order = np.argsort(arrays["label"])  # tfds shuffles once, when it writes
    np.testing.assert_array_equal(arrays["image"][order][..., 2], pictures)
    with pytest.raises(data.DataError, match="validation"):
        data.load("mnist", "validation", data_dir=tmp_path)


def test_a_set_that_is_not_on_the_machine_says_what_to_do_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataError, match="`datasets` extra.*'scenes' or 'digits'") as caught:
        data.load("mnist", data_dir=tmp_path)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(data.DataError, match="unknown data set 'imagenet'.*scenes, digits, mnist"):
        data.load("imagenet")


def test_fit_crops_the_centre_and_averages_areas():
    image = np.zeros((6, 4, 3), np.uint8)
    image[1:3, :2], image[0], image[5] = 100, 255, 255  # the 255 lies outside the central square
    expected = np.array([[100, 0], [0, 0]])[..., None].repeat(3, 2)
    np.testing.assert_array_equal(data.fit(image, 2), expected)
    np.testing.assert_array_equal(data.fit(image, 4), image[1:5])
    assert data.fit(np.full((3, 3, 1), 7, np.uint8), 8).tolist() == [[[7] * 3] * 8] * 8


def test_importing_the_room_loads_no_data_library():
    heavy = "{'tensorflow_datasets', 'sklearn', 'jax'}"
    code = f"import sys, common.data; sys.exit(bool({heavy} & sys.modules.keys()))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["."] + sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_scenes_come_from_their_own_builder(tmp_path, monkeypatch):
    builder = pytest.importorskip("common.scenes.builder")
    monkeypatch.setattr(builder, "SPLITS", {"train": 9, "test": 5, "held_out": 3})
    for size in (32, 64):
        arrays = data.load("scenes", "test", size=size, data_dir=tmp_path)
        assert arrays["image"].shape == (5, size, size, 3) and arrays["image"].dtype == np.uint8
        assert len(arrays["scenes"]) == 5
    with pytest.raises(ValueError, match="validation"):
        data.load("scenes", "validation", data_dir=tmp_path)
