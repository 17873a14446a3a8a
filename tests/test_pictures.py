"""Picture files of any kind come in as one kind of array, or are refused in one line."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from common.pictures import on_white, open_mask, open_picture

RGB = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5


def written(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_colour_grey_and_16_bits_become_the_same_rgba(tmp_path):
    got = open_picture(written(tmp_path, Image.fromarray(RGB)))
    assert_array_equal(got[..., :3], RGB)
    assert_array_equal(got[..., 3], 255)
    grey = RGB[..., 0]
    got = open_picture(written(tmp_path, Image.fromarray(grey)))
    assert_array_equal(got[..., :3], np.repeat(grey[..., None], 3, -1))
    deep = open_picture(written(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257)))
    assert_array_equal(deep, got)


def test_what_is_transparent_shows_white_paper(tmp_path):
    rgba = np.concatenate([RGB, np.full((4, 4, 1), 255, np.uint8)], -1)
    rgba[0, 0, 3] = 0
    got = on_white(open_picture(written(tmp_path, Image.fromarray(rgba))))
    assert_array_equal(got[0, 0], 255)
    assert_array_equal(got[1:], RGB[1:])


def test_an_orientation_tag_is_followed(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by a quarter
    path = written(tmp_path, Image.fromarray(RGB[:, :2]), exif=tags.tobytes())
    assert_array_equal(open_picture(path)[..., :3], np.rot90(RGB[:, :2], -1))


def test_another_size_is_refused_or_resized_as_asked(tmp_path):
    path = written(tmp_path, Image.fromarray(RGB))
    with pytest.raises(ValueError, match="is 4 x 4, the model draws 2 x 2.*--resize"):
        open_picture(path, 2)
    small = open_picture(path, 2, resize=True)[..., :3].astype(float)
    assert_allclose(small, RGB.reshape(2, 2, 2, 2, 3).mean((1, 3)), atol=0.5)


def test_a_mask_is_true_where_it_is_bright_and_opaque(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0], rgba[0, 1], rgba[1, 0] = 255, (255, 255, 255, 0), (0, 0, 0, 255)
    got = open_mask(written(tmp_path, Image.fromarray(rgba)), 2)
    assert_array_equal(got[..., 0], [[True, False], [False, False]])


def test_what_is_no_picture_is_refused_in_one_line_that_names_it(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("no picture")
    png = written(tmp_path, Image.fromarray(RGB))
    png.write_bytes(png.read_bytes()[:40])
    huge = written(tmp_path, Image.new("1", (30_000, 1_000)), "huge.png")
    for path in (text, png, huge, tmp_path / "absent.png", tmp_path):
        with pytest.raises(ValueError, match=f"cannot read {path}") as error:
            open_picture(path)
        assert "\n" not in str(error.value)
