"""Guides and baselines of SDEdit: strokes, patches, masks, users' files, blending."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageFilter

from common.scenes.render import render
from common.scenes.scene import Object, Scene, draw_scene
from sdedit import blend, guides

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def pictures():
    rng = RNG(0)
    return render([draw_scene(rng) for _ in range(4)], 32)


# Strokes


@pytest.mark.parametrize("colours", [3, 6, 16])
def test_a_stroke_painting_has_at_most_so_many_flat_colours(pictures, colours):
    painted = guides.strokes(pictures, colours)
    assert painted.shape == pictures.shape and painted.dtype == np.uint8
    counts = [len(np.unique(p.reshape(-1, 3), axis=0)) for p in painted]
    assert max(counts) == colours and min(counts) >= 2
    assert min(len(np.unique(p.reshape(-1, 3), axis=0)) for p in pictures) > 60


def test_more_colours_come_nearer_to_the_median_filtered_picture(pictures):
    smooth = np.stack([Image.fromarray(p).filter(ImageFilter.MedianFilter(3)) for p in pictures])
    error = [np.abs(guides.strokes(pictures, k) - smooth.astype(float)).mean() for k in (3, 6, 50)]
    assert error[0] > error[1] > error[2] and error[2] < 2


def test_a_stroke_keeps_the_colour_of_a_small_object():
    image = render([Scene("grass", "photo", (Object("ball", "red", "small", 0.24, 0.5),))], 32)
    stroke = guides.strokes(image)[0, 15:18, 6:9].reshape(-1, 3).astype(float)
    assert (stroke[:, 0] > 2 * stroke[:, 1]).all()  # red, as the ball, not its mean with the grass


@pytest.mark.parametrize("size, kernel", [(16, 3), (32, 3), (64, 5), (256, 23)])
def test_the_kernel_is_23_of_256_pixels_scaled_and_odd(monkeypatch, size, kernel):
    used = []
    whole = ImageFilter.MedianFilter
    monkeypatch.setattr(ImageFilter, "MedianFilter", lambda k: used.append(k) or whole(3))
    guides.strokes(np.zeros((1, size, size, 3), np.uint8))
    assert used == [kernel]


def test_a_stroke_over_a_picture_changes_what_its_mask_says_and_nothing_else(pictures):
    guide, edit_mask = guides.stroke_over(pictures[0], [(4, 4), (20, 4)], (255, 0, 0), 3)
    assert edit_mask.shape == (32, 32, 1) and 40 < edit_mask.sum() < 70
    assert edit_mask[4, 4:20].all() and not edit_mask[10:].any()
    assert (guide[edit_mask[..., 0]] == [255, 0, 0]).all()
    assert_array_equal(guide[~edit_mask[..., 0]], pictures[0][~edit_mask[..., 0]])


# Patches and masks


def test_a_pasted_patch_lies_where_it_was_put_and_the_mask_grows_by_the_margin(pictures):
    patch = np.full((4, 6, 3), 7, np.uint8)
    guide, edit_mask = guides.paste(pictures[0], patch, (10, 20))
    where = np.zeros((32, 32, 1), bool)
    where[20:24, 10:16] = True
    assert_array_equal(edit_mask, where)
    assert_array_equal(guide, np.where(where, np.uint8(7), pictures[0]))
    assert guides.paste(pictures[0], patch, (10, 20), margin=2)[1].sum() == 8 * 10
    assert guides.paste(pictures[0], patch, (-3, 30))[1].sum() == 3 * 2  # the rest is cut off


def test_transparent_pixels_of_a_patch_are_not_pasted(pictures):
    patch = np.full((4, 4, 4), 255, np.uint8)
    patch[:2, :, 3], patch[2, :, 3] = 0, 128
    guide, edit_mask = guides.paste(pictures[0], patch, (0, 0))
    assert_array_equal(guide[:2], pictures[0][:2])
    assert_array_equal(edit_mask[:5, 0, 0], [False, False, True, True, False])
    assert_allclose(guide[2, :4], (pictures[0][2, :4] / 2.0 + 127.5), atol=2)
    assert (guide[3, :4] == 255).all()


@pytest.mark.parametrize("at, alpha", [((32, 0), 255), ((0, -4), 255), ((3, 3), 0)])
def test_a_patch_that_would_not_be_seen_is_refused(pictures, at, alpha):
    patch = np.full((4, 4, 4), alpha, np.uint8)
    with pytest.raises(ValueError, match="outside of the picture or is transparent"):
        guides.paste(pictures[0], patch, at)


def test_the_mask_of_an_object_is_what_drawing_it_changes():
    ball = Object("ball", "red", "small", 0.3, 0.3)
    cube = Object("cube", "blue", "small", 0.75, 0.75)
    edit_mask = guides.object_masks([Scene("white", "drawing", (ball, cube))])
    assert edit_mask.shape == (1, 32, 32, 1) and edit_mask.dtype == bool
    y, x = np.argwhere(edit_mask[0, ..., 0]).mean(0) / 32
    assert abs(x - 0.3) < 0.08 and abs(y - 0.3) < 0.08
    assert edit_mask[0, 7:12, 7:12].all() and not edit_mask[0, 20:, 20:].any()


# Blending


def disc(size=32, radius=8):
    y, x = np.mgrid[:size, :size] - size // 2
    return (x**2 + y**2 <= radius**2)[..., None]


def test_poisson_keeps_the_gradients_and_takes_the_colours_of_the_background(pictures):
    background = np.clip(pictures[0], 60, 190)
    assert_array_equal(blend.poisson(background, background + 40, disc()), background)
    flat = np.full_like(background, 77)
    filled = blend.poisson(background, flat, disc())
    assert_array_equal(filled[~disc()[..., 0]], background[~disc()[..., 0]])
    assert filled.min() >= background.min() and filled.max() <= background.max()
    assert np.abs(filled.astype(int) - background)[disc()[..., 0]].max() > 5


def test_poissons_equation_holds_in_the_mask():
    rng = RNG(1)
    background, source = rng.integers(90, 160, (2, 12, 12, 3)).astype(np.uint8)
    edit_mask = disc(12, 4)
    edit_mask[0, :3] = True  # also at the edge of the picture
    f = blend.poisson(background, source, edit_mask).astype(float)
    for y, x in np.argwhere(edit_mask[..., 0]):
        near = [(y + dy, x + dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        near = [(a, b) for a, b in near if 0 <= a < 12 and 0 <= b < 12]
        left = sum(f[y, x] - f[p] for p in near)
        right = sum(source[y, x].astype(float) - source[p] for p in near)
        assert_allclose(left, right, atol=4.01)  # f is rounded, by 1/2 a pixel


def test_poisson_needs_some_background(pictures):
    with pytest.raises(ValueError, match="no background"):
        blend.poisson(pictures[0], pictures[1], np.ones((32, 32, 1), bool))


@pytest.mark.parametrize("shape", [(32, 32), (21, 34)])
def test_the_pyramid_gives_back_either_picture_and_softens_the_seam(shape):
    rng = RNG(2)
    a, b = rng.integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    one = np.ones((*shape, 1), bool)
    assert_array_equal(blend.laplacian_pyramid(a, b, one), b)
    assert_array_equal(blend.laplacian_pyramid(a, b, ~one), a)
    half = np.broadcast_to(np.arange(shape[1])[:, None] < 16, one.shape)
    low, high = np.full((2, *shape, 3), [[[[50]]], [[[200]]]], np.uint8)
    row = blend.laplacian_pyramid(low, high, half)[shape[0] // 2, :, 0].astype(int)
    assert (np.diff(row) <= 0).all() and np.abs(np.diff(row)).max() < 40 and row[0] > 190


def test_the_pyramid_mixes_fine_detail_sharply_and_colour_softly():
    fine = np.tile(np.array([[100, 156], [156, 100]], np.uint8), (16, 16))[..., None].repeat(3, 2)
    flat = np.full_like(fine, 128)
    left = np.broadcast_to(np.arange(32)[:, None] < 16, (32, 32, 1))
    mixed = blend.laplacian_pyramid(flat, fine, left)
    texture = np.abs(np.diff(mixed[16, :, 0].astype(int)))
    assert texture[:12].min() > 45 and texture[19:].max() < 12
