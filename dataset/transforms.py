"""Paired transforms of image and label, pure given a generator, and the network's input convention."""
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from utils.constants import BGR_MEAN


@dataclass(frozen=True)
class Window:
    """The part of an image that becomes a training crop: `box` = (left, top, right, bottom) in original pixels."""

    box: tuple[float, float, float, float]
    flip: bool


def draw_window(rng: np.random.Generator, size: tuple[int, int], shorter_edge: int, crop: int,
                scales: tuple[float, ...], mirror: bool) -> Window:
    """Random scale, position and flip of one training crop.

    The image of `size` (height, width) is thought of as resized until its shorter edge is `shorter_edge` times a
    factor drawn from `scales`; a window of crop x crop is placed in it at random, or, where it is too small for that, a
    square of its shorter side. Nothing is resampled here: the window is given in original pixels, so that `cut`
    reads only what is kept.
    """
    height, width = size
    factor = shorter_edge * scales[rng.integers(len(scales))] / min(height, width)
    resized = max(1, round(height * factor)), max(1, round(width * factor))
    side = min(crop, *resized)
    top, left = (int(rng.integers(extent - side + 1)) for extent in resized)
    to_y, to_x = height / resized[0], width / resized[1]
    box = (left * to_x, top * to_y, min((left + side) * to_x, width), min((top + side) * to_y, height))
    return Window(box, bool(mirror and rng.random() < 0.5))


def cut(image: Image.Image, window: Window, crop: int, resample: Image.Resampling) -> Image.Image:
    """The window of an image or label, resampled to crop x crop, flipped if the window says so."""
    image = image.resize((crop, crop), resample, box=window.box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.flip else image


def image_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> uint8 [3, H, W], RGB order."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def network_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W], RGB -> float32, BGR, 0..255, minus the mean; on the device where the images are."""
    mean = torch.tensor(BGR_MEAN, device=images.device).view(3, 1, 1)
    return images.flip(1).float() - mean
