"""Training crops: image and label stay aligned, equal the crop of the resized whole, the window follows its law; the
network's input convention."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset import transforms

SIZES = [(72, 144), (144, 72), (31, 97), (200, 201), (17, 60)]


def window_of(seed, size, shorter_edge=72, crop=60, scales=(0.5, 0.75, 1.0, 1.25, 1.5), mirror=True):
    return transforms.draw_window(np.random.default_rng(seed), size, shorter_edge, crop, scales, mirror)


def plain_cut(image, window, crop, resample):
    """The whole image is resized, then cropped; a crop of another size is resized once more."""
    whole = image.resize(window.resized[::-1], resample)
    box = (window.left, window.top, window.left + window.side, window.top + window.side)
    part = np.asarray(whole.crop(box).resize((crop, crop), resample))
    return part[:, ::-1] if window.flip else part


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_windows_lie_inside_and_have_the_drawn_scale(size):
    scales, seen = (0.5, 1.0, 1.5), set()
    for seed in range(60):
        window = window_of(seed, size, scales=scales)
        assert 0 <= window.top <= window.resized[0] - window.side
        assert 0 <= window.left <= window.resized[1] - window.side
        scale = min(window.resized) / 72
        assert scale in scales and window.side == min(60, *window.resized)
        assert max(window.resized) == round(max(size) * 72 * scale / min(size))
        seen.add(scale)
    assert seen == set(scales)


def test_windows_reach_every_edge():
    windows = [window_of(seed, (100, 200), scales=(1.0,)) for seed in range(800)]
    assert {w.top for w in windows} == set(range(13))
    assert min(w.left for w in windows) == 0 and max(w.left + w.side for w in windows) == 144


def test_an_image_smaller_than_the_crop_gives_a_square_of_its_shorter_side():
    windows = [window_of(seed, (30, 80), shorter_edge=30, crop=60, scales=(1.0,)) for seed in range(20)]
    assert all(w.top == 0 and w.side == 30 for w in windows)
    assert transforms.cut_image(noise((30, 80)), windows[0], 60).shape == (60, 60, 3)
    assert transforms.cut_label(noise((30, 80))[..., 0], windows[0], 60).shape == (60, 60)


def test_flips_are_half_of_all_or_none():
    flips = [window_of(seed, (72, 144)).flip for seed in range(400)]
    assert 140 < sum(flips) < 260
    assert not any(window_of(seed, (72, 144), mirror=False).flip for seed in range(50))


def test_a_flip_mirrors_image_and_label():
    image = noise((72, 144))
    for cut, x in ((transforms.cut_image, image), (transforms.cut_label, image[..., 0])):
        plain, flipped = (cut(x, transforms.Window((90, 180), 9, 5, 57, flip), 60) for flip in (False, True))
        assert (flipped == plain[:, ::-1]).all() and (flipped != plain).any()


@pytest.mark.parametrize("size", SIZES)
def test_crops_equal_those_of_the_whole_resized_image(size):
    """Images to within the rounding of two resamplers, labels but where a centre falls on the edge of two pixels."""
    image, label = noise(size), noise(size, 1)[..., 0]
    compared = 0
    for seed in range(20):
        window = window_of(seed, size)
        expected = plain_cut(Image.fromarray(image), window, 60, Image.Resampling.BICUBIC)
        difference = np.abs(transforms.cut_image(image, window, 60) - expected.astype(int))
        assert difference.max() <= 3 and difference.mean() < 0.2
        rows, columns = (off_edges(*axis, window.side) for axis in zip(size, window.resized, (window.top, window.left)))
        expected = plain_cut(Image.fromarray(label), window, 60, Image.Resampling.NEAREST)
        certain = np.ix_(rows, columns[::-1] if window.flip else columns)
        assert (transforms.cut_label(label, window, 60)[certain] == expected[certain]).all()
        compared += expected[certain].size
    assert compared > 9000


def off_edges(extent, resized, start, side, crop=60):
    """bool [crop]: whether the centres of these pixels fall within a pixel, not on an edge, at both resamplings."""
    first = [Fraction(2 * i + 1, 2) * side / crop for i in range(crop)]
    second = [(start + math.floor(c) + Fraction(1, 2)) * extent / resized for c in first]
    return np.array([a.denominator > 1 and b.denominator > 1 for a, b in zip(first, second)])


@given(st.integers(8, 60), st.integers(1, 60), st.integers(0, 59), st.integers(1, 60))
def test_a_part_of_an_axis_is_resized_as_the_whole_is(extent, resized, start, length):
    start, length = start % resized, min(length, resized - start % resized)
    pixels = noise((extent, 9), extent)  # not of width 1, where torch's kernel fails
    part, size, offset = transforms._needed_part(extent, resized, start, length)
    got = transforms.resize_image(pixels[part], (size, 9))[offset: offset + length]
    expected = transforms.resize_image(pixels, (resized, 9))[start: start + length]
    assert len(got) == length and np.abs(got.astype(int) - expected).max() <= 1


@given(st.integers(1, 99), st.integers(1, 99))
def test_the_nearest_pixel_holds_the_centre(extent, resized):
    pixels = np.arange(resized)
    nearest, centre = transforms._nearest(extent, resized, pixels), (pixels + 0.5) * extent / resized
    assert (nearest <= centre + 1e-9).all() and (centre < nearest + 1 + 1e-9).all() and nearest.max() < extent


def test_what_is_not_needed_is_not_resized():
    """Cityscapes at scale 1: 64 of its pixels become 45."""
    part, size, offset = transforms._needed_part(2048, 1440, 500, 600)
    assert part == slice(64 * 11, 64 * 25) and size == 45 * 14 and offset == 5


@pytest.mark.parametrize("size", [(72, 144), (150, 90), (20, 33)])
def test_image_and_label_stay_aligned(size):
    """The image shows a grey of its label (blocks of 8 pixels): where the crop is flat it must name the label."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 8, (-(-size[0] // 8), -(-size[1] // 8)), dtype=np.uint8)
    label = np.kron(blocks, np.ones((8, 8), np.uint8))[: size[0], : size[1]]
    image = np.repeat(label[:, :, None] * 30, 3, axis=2)
    for seed in range(40):
        window = window_of(seed, size)
        x = transforms.cut_image(image, window, 60)[:, :, 0].astype(float) / 30
        y = transforms.cut_label(label, window, 60)
        assert set(np.unique(y)) <= set(range(8))
        flat = np.ones_like(y, bool)  # pixels whose neighbourhood has one label
        for dy in (-2, 0, 2):
            for dx in (-2, 0, 2):
                flat &= np.roll(y, (dy, dx), (0, 1)) == y
        assert flat.mean() > 0.05
        assert np.abs(x - y)[flat].mean() < 0.2


def test_labels_of_16_bits_keep_their_ids():
    ids = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    cut = transforms.cut_label(ids, transforms.Window((40, 50), 3, 7, 30, False), 30)
    assert cut.dtype == np.uint16 and (cut == ids[3:33, 7:37]).all()
