"""Strong augmentation of a student's images: colour jitter and Gaussian blur, as in DACS (Tranheden et al., WACV 2021).
No pixel moves, so labels still fit."""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.background import to_device

_SIGMA = 0.15, 1.15  # of the blur, pixels; as published
_RADIUS = 5          # of its kernel, more than four sigma; as published 5% of the height
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # of RGB


def strong(pixels: Tensor, rng: np.random.Generator, jitter: float, jitter_probability: float,
           blur_probability: float) -> Tensor:
    """Augment images: pixels uint8 or float [B, H, W, K] in 0..255, H and W at least 6 -> float32, else the same.

    Random numbers are drawn for each image separately. With `jitter_probability` its colours are jittered: brightness,
    contrast and saturation by factors from U(1 - jitter, 1 + jitter), hue by U(-jitter, jitter) of a circle. Then, with
    `blur_probability`, it is blurred. The number of draws does not depend on their outcome.
    """
    return torch.stack([_strong(image.float(), rng, jitter, jitter_probability, blur_probability) for image in pixels])


def change_colours(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Change the colours of an image: float [H, W, K] in 0..255 -> the same.

    brightness multiplies the image, contrast its distance from the mean over all pixels and bands, saturation its
    chroma; hue turns the chroma, in circles. Values are clamped to 0..255 after brightness, after contrast and at the
    end. Images of other than three bands have no chroma.

    The hue is turned in the plane of chroma (I, Q), which keeps the luma Y. kornia, which the published code uses,
    turns it in HSV.
    """
    image = (image * brightness).clamp(0, 255)
    mean = image.mean()
    image = (mean + contrast * (image - mean)).clamp(0, 255)
    if image.shape[2] != 3:
        return image
    return (image @ to_device(_chroma_change(saturation, hue).to(image.dtype), image.device).T).clamp(0, 255)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Convolve an image, float [H, W, K] with H and W at least 6, with a Gaussian of `sigma` pixels; edges are
    mirrored."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=image.device, dtype=image.dtype)
    kernel = (-(offsets / sigma).square() / 2).softmax(0)  # exp, normalised
    x = F.pad(image.permute(2, 0, 1).unsqueeze(1), [_RADIUS] * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).squeeze(1).permute(1, 2, 0)


def _strong(image, rng, jitter, jitter_probability, blur_probability):
    jittered, blurred = rng.random(2) < (jitter_probability, blur_probability)
    factors, hue, sigma = rng.uniform(1 - jitter, 1 + jitter, 3), rng.uniform(-jitter, jitter), rng.uniform(*_SIGMA)
    if jittered:
        image = change_colours(image, *factors.tolist(), hue)
    return blur(image, sigma) if blurred else image


def _chroma_change(saturation, hue):
    """Float64 [3, 3] on RGB: the chroma of YIQ times `saturation` and turned by `hue` circles."""
    cos, sin = (saturation * f(2 * math.pi * hue) for f in (math.cos, math.sin))
    return torch.from_numpy(np.linalg.inv(_YIQ) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ _YIQ)
