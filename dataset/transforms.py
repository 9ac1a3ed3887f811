"""Random crops of image and label, and resizing: pure functions, given a generator."""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Window:
    """Where a training crop lies: the square of `side` pixels at (top, left) of the image resized to `resized` (height,
    width), mirrored if `flip`."""

    resized: tuple[int, int]
    top: int
    left: int
    side: int
    flip: bool


def draw_window(rng: np.random.Generator, size: tuple[int, int], shorter_edge: int, crop: int,
                scales: tuple[float, ...], mirror: bool) -> Window:
    """Draw scale, position and flip of one training crop.

    The image of `size` (height, width) is scaled so that its shorter edge is `shorter_edge` times a factor drawn from
    `scales`. A window of crop x crop is placed in it at random; if the image is too small, the window is a square of
    its shorter side. Nothing is resampled here: `cut_image` and `cut_label` resample only the part that is kept.
    """
    height, width = size
    factor = shorter_edge * scales[rng.integers(len(scales))] / min(height, width)
    resized = max(1, round(height * factor)), max(1, round(width * factor))
    side = min(crop, *resized)
    top, left = (int(rng.integers(extent - side + 1)) for extent in resized)
    return Window(resized, top, left, side, bool(mirror and rng.random() < 0.5))


def cut_image(pixels: np.ndarray, window: Window, crop: int) -> np.ndarray:
    """The window of an image uint8 [H, W, K], resized by bicubic interpolation to uint8 [crop, crop, K]."""
    (rows, height, top), (columns, width, left) = map(_needed_part, pixels.shape, window.resized,
                                                      (window.top, window.left), (window.side, window.side))
    part = resize_image(pixels[rows, columns], (height, width))[top: top + window.side, left: left + window.side]
    part = resize_image(part, (crop, crop))
    return np.ascontiguousarray(part[:, ::-1] if window.flip else part)


def cut_label(ids: np.ndarray, window: Window, crop: int) -> np.ndarray:
    """The window of a label map [H, W] of any integer type, resized by nearest neighbour to [crop, crop]."""
    rows, columns = (_nearest(extent, resized, start + _nearest(window.side, crop, np.arange(crop)))
                     for extent, resized, start in zip(ids.shape, window.resized, (window.top, window.left)))
    return ids.take(rows, 0).take(columns[::-1] if window.flip else columns, 1)


def resize_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [H, W, K] to uint8 [*size, K], size = (height, width), by bicubic interpolation with antialiasing.

    The result differs from Pillow's by about one grey level, where Pillow resizes the axes in the same order (width
    first, rounded in between), and takes much less time.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    if pixels.shape[2] > 4:  # torch has no fast kernel for these; groups of 4 take less than half the time
        return np.concatenate([resize_image(pixels[:, :, i: i + 4], size) for i in range(0, pixels.shape[2], 4)], 2)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0)
    # In this order the strides are those of channels_last, for which torch has a special kernel.
    resized = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def for_display(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, K] -> uint8 [H, W, 3] for figures: the first three bands as RGB, or the first as grey if K < 3."""
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, 2)


def _needed_part(extent: int, resized: int, start: int, length: int) -> tuple[slice, int, int]:
    """The part of one axis that the resized pixels start..start + length - 1 depend on.

    The axis has `extent` pixels and is resized to `resized`. Returns (slice of the original pixels, length of the slice
    after resizing, position of `start` in the resized slice).

    Both ends of the slice lie where a whole number of original pixels becomes a whole number of resized ones, at least
    the reach of a bicubic kernel away, or at the image's edges. So the part, resized on its own, equals the same part
    of the whole image resized. The larger the common divisor of the two sizes, the less redundant resizing there is.
    """
    common = math.gcd(extent, resized)
    original, step = extent // common, resized // common
    reach = math.ceil(2 * max(1, resized / extent))
    first = max(0, start - reach) // step
    last = min(common, -(-(start + length + reach) // step))
    return slice(first * original, last * original), (last - first) * step, start - first * step


def _nearest(extent: int, resized: int, pixels: np.ndarray) -> np.ndarray:
    """The original pixel at the centre of each of the resized `pixels`, on an axis of `extent` resized to `resized`."""
    return (2 * pixels + 1) * extent // (2 * resized)
