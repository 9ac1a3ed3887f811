"""Training crops: image and label stay aligned, the window follows its law, the network's input convention."""
import numpy as np
import pytest
import torch
from PIL import Image

from dataset import transforms
from utils.constants import BGR_MEAN


def window_of(seed, size, shorter_edge=72, crop=60, scales=(0.5, 0.75, 1.0, 1.25, 1.5), mirror=True):
    return transforms.draw_window(np.random.default_rng(seed), size, shorter_edge, crop, scales, mirror)


@pytest.mark.parametrize("size", [(72, 144), (144, 72), (31, 97), (200, 201)])
def test_windows_lie_inside_and_have_the_drawn_scale(size):
    scales = (0.5, 1.0, 1.5)
    seen = set()
    for seed in range(60):
        left, top, right, bottom = window_of(seed, size, scales=scales).box
        assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
        # A crop of 60 from an image whose shorter edge is 72 * s spans 60 / (72 s) of the shorter edge, at most all.
        spans = [min(1.0, 60 / (72 * s)) * min(size) for s in scales]
        # Rounding the resized image to whole pixels moves each span by up to half a pixel of the resized image.
        fits = [abs((bottom - top) - span) < 0.03 * span and abs((right - left) - span) < 0.03 * span for span in spans]
        assert any(fits)
        seen.add(fits.index(True))
    assert seen == {0, 1, 2}


def test_windows_reach_every_edge():
    boxes = np.array([window_of(seed, (100, 200), scales=(1.0,)).box for seed in range(800)])
    assert boxes[:, 0].min() == 0 and boxes[:, 1].min() == 0
    assert boxes[:, 2].max() == 200 and boxes[:, 3].max() == 100


def test_an_image_smaller_than_the_crop_gives_a_square_of_its_shorter_side():
    for seed in range(20):
        left, top, right, bottom = window_of(seed, (30, 80), shorter_edge=30, crop=60, scales=(1.0,)).box
        assert (top, bottom) == (0, 30) and right - left == pytest.approx(30)
    image = Image.fromarray(np.zeros((30, 80, 3), np.uint8))
    assert transforms.cut(image, window_of(0, (30, 80), 30), 60, Image.Resampling.BICUBIC).size == (60, 60)


def test_flips_are_half_of_all_or_none():
    flips = [window_of(seed, (72, 144)).flip for seed in range(400)]
    assert 140 < sum(flips) < 260
    assert not any(window_of(seed, (72, 144), mirror=False).flip for seed in range(50))


def test_a_flip_mirrors_image_and_label():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 144, 3), dtype=np.uint8))
    for picture in (image, image.getchannel(0)):
        plain, flipped = (np.asarray(transforms.cut(picture, transforms.Window((9, 5, 60.5, 56.5), flip), 60,
                                                    Image.Resampling.NEAREST)) for flip in (False, True))
        assert (flipped == plain[:, ::-1]).all() and (flipped != plain).any()


@pytest.mark.parametrize("size", [(72, 144), (150, 90), (20, 33)])
def test_image_and_label_stay_aligned(size):
    """The image shows a grey of its label (blocks of 8 pixels): where the crop is flat it must name the label."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 8, (-(-size[0] // 8), -(-size[1] // 8)), dtype=np.uint8)
    label = np.kron(blocks, np.ones((8, 8), np.uint8))[: size[0], : size[1]]
    image = Image.fromarray(np.repeat(label[:, :, None] * 30, 3, axis=2))
    for seed in range(40):
        window = window_of(seed, size)
        x = np.asarray(transforms.cut(image, window, 60, Image.Resampling.BICUBIC))[:, :, 0].astype(float) / 30
        y = np.asarray(transforms.cut(Image.fromarray(label), window, 60, Image.Resampling.NEAREST))
        assert set(np.unique(y)) <= set(range(8))
        flat = np.ones_like(y, bool)  # pixels whose neighbourhood has one label
        for dy in (-2, 0, 2):
            for dx in (-2, 0, 2):
                flat &= np.roll(y, (dy, dx), (0, 1)) == y
        assert flat.mean() > 0.05
        assert np.abs(x - y)[flat].mean() < 0.2


def test_cut_agrees_with_resizing_the_whole_image_first():
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 24, 3), dtype=np.uint8))
    smooth = coarse.resize((192, 96), Image.Resampling.BICUBIC)
    for seed in range(10):
        window = window_of(seed, (96, 192), shorter_edge=96, crop=48, mirror=False)
        scale = 48 / (window.box[2] - window.box[0])
        whole = smooth.resize((round(192 * scale), round(96 * scale)), Image.Resampling.BICUBIC)
        left, top = round(window.box[0] * scale), round(window.box[1] * scale)
        expected = np.asarray(whole.crop((left, top, left + 48, top + 48)), float)
        got = np.asarray(transforms.cut(smooth, window, 48, Image.Resampling.BICUBIC), float)
        inner = np.s_[4:-4, 4:-4]  # the whole-image version may look beyond the window's edge
        assert np.abs(expected - got)[inner].mean() < 1.5


def test_network_input_is_bgr_minus_mean():
    rgb = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    x = transforms.network_input(rgb)
    assert x.dtype == torch.float32
    for channel in range(3):
        assert torch.allclose(x[:, channel], rgb[:, 2 - channel].float() - BGR_MEAN[channel])


def test_image_tensor_keeps_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert (transforms.image_tensor(Image.fromarray(pixels)).numpy().transpose(1, 2, 0) == pixels).all()
