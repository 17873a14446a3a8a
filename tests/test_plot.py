"""The plot room: what is drawn where, what is written to disk, and what is refused."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from common import plot


def flat(values, size=32):
    """One flat grey picture per value of 0..255."""
    return np.broadcast_to(np.uint8(values)[:, None, None, None], (len(values), size, size, 3))


def test_uint8_survives_the_way_to_float_and_back_and_floats_are_rounded_and_clipped():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    floats = plot.from_uint8(every)
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(plot.to_uint8(floats), every)
    values = np.array([-3.0, -1.0, 0.0, 0.999, 7.0])
    assert plot.to_uint8(values).tolist() == [0, 0, 128, 255, 255]
    assert plot.to_uint8(jnp.zeros((2, 2), jnp.bfloat16)).tolist() == [[128] * 2] * 2


def test_a_grid_shows_every_picture_exactly_enlarged_in_reading_order():
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    page = np.asarray(plot.grid(pictures, columns=3, scale=2))
    assert page.shape == (2 * 64 + 4 + 24, 3 * 64 + 2 * 4 + 24, 3)
    for i, picture in enumerate(pictures):
        y, x = 12 + i // 3 * 68, 12 + i % 3 * 68
        for dy, dx in ((0, 0), (1, 1)):
            np.testing.assert_array_equal(page[y + dy : y + 64 : 2, x + dx : x + 64 : 2], picture)
    assert (page[:12] == 255).all() and (page[76:80] == 255).all()


def test_default_grids_are_near_square_and_their_pictures_near_128_pixels():
    for size in (8, 28, 32, 64):
        page = plot.grid(flat(range(8), size))
        assert 4 * 110 < page.width - 36 < 4 * 145 and 2 * 110 < page.height - 28 < 2 * 145
    shapes = {n: plot._near_square(n) for n in (1, 2, 3, 4, 7, 8, 12, 16, 17, 20)}
    assert shapes == {1: 1, 2: 2, 3: 3, 4: 2, 7: 3, 8: 4, 12: 4, 16: 4, 17: 5, 20: 5}


def test_labels_and_captions_add_room_and_long_ones_wrap_instead_of_widening():
    pictures = flat([100] * 6)
    bare = plot.grid(pictures, columns=3)
    long = "a large yellow cone to the left of a small purple star at night"
    labelled = plot.grid(pictures, columns=3, column_labels=[long] * 3, captions=[long] * 6,
                         title=long)  # fmt: skip
    assert labelled.width == bare.width and labelled.height > bare.height + 150
    rows = plot.grid(pictures, columns=3, row_labels=["γ = 1", "γ = 8"])
    assert rows.width > bare.width and rows.height == bare.height
    ink = np.asarray(rows)[:, : rows.width - bare.width] < 128
    assert ink.any()
    assert not (np.asarray(labelled)[:, :4] < 200).any(), "text runs into the margin"


def test_wrapping_keeps_every_word_in_order_and_inside_the_width():
    text = "a drawing of a small red ring above a large green cube in a forest"
    lines = plot._wrap(text, 128, 15).split("\n")
    assert " ".join(lines) == text and len(lines) > 2
    assert max(plot._width(line, 15) for line in lines) <= 128
    assert plot._wrap("", 128, 15) == ""


def test_a_strip_puts_time_left_to_right_and_films_below_each_other():
    frames = np.stack([flat([10, 20]), flat([30, 40]), flat([50, 60])])  # (F=3, N=2, ...)
    page = np.asarray(plot.strip(frames, scale=2))
    seen = [[int(page[12 + 68 * r + 5, 12 + 68 * c + 5, 0]) for c in range(3)] for r in range(2)]
    assert seen == [[10, 30, 50], [20, 40, 60]]
    single = plot.strip(frames[:, 0], ["t = 2", "t = 1", "t = 0"], scale=2)
    assert single.width == page.shape[1] and single.height > 64 + 24


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_an_animation_plays_its_frames_in_order_and_holds_the_last(suffix, tmp_path):
    frames = np.stack([flat([v, v]) for v in (0, 80, 160, 240)])
    path = plot.animate(frames, tmp_path / f"film.{suffix}", columns=2, fps=10, hold_last_s=2)
    film = Image.open(path)
    assert film.n_frames == 4
    shades, times = [], []
    for i in range(4):
        film.seek(i)
        film.load()
        shades.append(int(np.asarray(film.convert("RGB"))[40, 40, 0]))
        times.append(film.info["duration"])
    np.testing.assert_allclose(shades, (0, 80, 160, 240), atol=4)
    assert times == [100, 100, 100, 2000]


def test_curves_are_drawn_with_or_without_bands_and_odd_series_are_refused():
    x = np.linspace(0, 8, 9)
    plain = plot.curve({"a": (x, x)}, xlabel="guidance scale", ylabel="accuracy")
    banded = plot.curve({"a": (x, x, x - 1, x + 1), "b": (x, 2 * x)}, xlabel="x", ylabel="y")
    assert plain.mode == "RGB" and plain.size == banded.size == (960, 600)
    assert np.ptp(np.asarray(plain)) > 200
    for bad in ((x,), (x, x[:3]), (x, x, x)):
        with pytest.raises(ValueError, match="series 'a'"):
            plot.curve({"a": bad}, xlabel="", ylabel="")


def test_a_limit_is_dashed_across_the_plot_in_the_colour_of_its_series():
    def blue(limits):
        options = {"xlabel": "", "ylabel": "", "limits": limits}
        pixels = np.asarray(plot.curve({"a": ([0, 1], [0, 0.1])}, **options), int)
        return np.abs(pixels - [0x33, 0x66, 0xCC]).max(-1) < 16

    plain, limited, unnamed = map(blue, (None, {"a": 0.8}, {"b": 0.8}))
    assert unnamed.sum() == plain.sum()
    row = limited[: len(limited) // 2].sum(1).max()  # above the series there is only the limit
    assert 0.4 < row / plain.shape[1] < 0.75


def test_points_of_names_are_not_joined_by_a_line():
    y = np.array([0.0, 1.0])
    options = {"xlabel": "", "ylabel": "", "size": (3, 2)}
    inked = [np.asarray(plot.curve({"a": (x, y, y - 0.1, y + 0.1)}, **options)) < 100
             for x in (["shape", "colour"], [0, 1])]  # fmt: skip
    middle = [ink[60:240, 200:260].any(axis=2).sum() for ink in inked]
    assert middle[0] == 0 < middle[1]


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_saved_pictures_are_whole_and_lossless_where_the_format_can(suffix, tmp_path):
    page = plot.grid(flat(range(0, 250, 50)))
    path = plot.save(page, tmp_path / "new" / f"page.{suffix}")
    error = np.abs(np.asarray(Image.open(path).convert("RGB"), int) - np.asarray(page, int))
    assert error.max() == 0 if suffix != "jpg" else error.mean() < 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_png_carries_its_metadata_and_single_pictures_are_saved_as_they_are(tmp_path):
    picture = plot.from_uint8(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    told = {"prompt": "a red ball, γ = 3", "seed": 7}
    path = plot.save(picture, tmp_path / "one.png", told)
    assert Image.open(path).text == {"prompt": "a red ball, γ = 3", "seed": "7"}
    np.testing.assert_array_equal(np.asarray(Image.open(path)), plot.to_uint8(picture))
    with pytest.raises(ValueError, match="metadata"):
        plot.save(picture, tmp_path / "one.webp", told)


def test_a_failed_save_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = plot.save(plot.grid(flat([9])), tmp_path / "page.png")
    before = path.read_bytes()

    def fail(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    page = plot.grid(flat([200]))
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        plot.save(page, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_wrong_input_is_refused_in_one_sentence(tmp_path):
    good = flat([1, 2])
    for call, words in {
        (lambda: plot.grid(good[0])): "images must be",
        (lambda: plot.grid(good[:0])): "images must be",
        (lambda: plot.grid(good.astype(np.int64))): "not int64",
        (lambda: plot.grid(np.full((1, 8, 8, 3), np.nan))): "NaN",
        (lambda: plot.grid(good, column_labels=["a", "b"], columns=1)): "column_labels must hold 1",
        (lambda: plot.grid(good, captions=["a"])): "captions must hold 2",
        (lambda: plot.strip(good[0])): "frames must be",
        (lambda: plot.animate(good, tmp_path / "a.webp")): "frames must be",
        (lambda: plot.animate(good[None], tmp_path / "a.mp4")): r"\.webp or \.gif",
        (lambda: plot.save(plot.grid(good), tmp_path / "a.bmp")): "suffix",
        (lambda: plot.from_uint8(np.zeros(3))): "must be uint8",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_matplotlib_comes_with_the_first_drawing_and_pyplot_never():
    code = """
import sys
from common import plot
assert "matplotlib" not in sys.modules
plot.curve({"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y")
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["."] + sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
