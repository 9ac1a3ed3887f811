"""Turning a drawn street into a picture in the look of its domain."""
import io
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from dataset.labels import CITYSCAPES_CLASSES, STREET_PROTOCOLS
from dataset.toy.canvas import EYE, FAR, FOCAL, GROUND, LABEL_ID, Street, smooth_noise
from dataset.toy.looks import GRAIN, LAYOUT, LOOK, STRENGTH, Look
from dataset.toy.things import draw_scene

DOMAINS = ("gta5", "synthia", "cityscapes")
NOT_IN_SYNTHIA = tuple(CITYSCAPES_CLASSES[t] for t in STREET_PROTOCOLS[19] if t not in STREET_PROTOCOLS[16])


def add_grain(st: Street, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Add the texture of materials to an image, float [H, W, 3]: noise of three widths times the class's amplitudes in
    GRAIN."""
    (width, height), rng = st.size, st.rng
    table = np.full((256, 3), 0.01, np.float32)
    for name, amplitudes in {**GRAIN, "road": (st.look.road_grain, .01, .02)}.items():
        table[LABEL_ID[name]] = amplitudes
    fine = rng.standard_normal((height, width), np.float32)
    fields = (fine, smooth_noise(rng, st.size, height // 3, width // 3),
              smooth_noise(rng, st.size, height // 16 + 1, width // 16 + 1))
    grain = sum(table[:, i][label] * field for i, field in enumerate(fields))
    return image + grain[..., None] * (0.35 + image) * 1.3


def photograph(st: Street) -> tuple[np.ndarray, np.ndarray]:
    """The image, RGB uint8 [H, W, 3], and label ids, uint8 [H, W], of a drawn street in the look of its domain."""
    look, rng, label = st.look, st.rng, np.asarray(st.label)
    height, width = label.shape
    image = add_grain(st, np.asarray(st.image, np.float32) / 255, label)
    rows = np.maximum(np.arange(height) + 0.5 - st.horizon, 0.5)[:, None]
    on_ground = np.isin(label, [LABEL_ID[n] for n in GROUND])
    metres = np.where(on_ground, np.minimum(FOCAL * EYE * st.unit / rows, FAR), np.asarray(st.distance) / 3)

    haze = look.haze * np.exp(rng.normal(0, 0.4))
    veil = (1 - np.exp(-haze * metres / 60)).astype(np.float32)[..., None]
    image = image * (1 - veil) + np.array((0.74, 0.76, 0.77), np.float32) * veil
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * np.float32(look.saturation * np.exp(rng.normal(0, 0.1)))
    cast = np.array((look.red, look.green, look.blue)) * np.exp(rng.normal(0, 0.025, 3))
    image = 0.45 + (image * cast.astype(np.float32) - 0.45) * np.float32(look.contrast)
    exposure = look.exposure * 2 ** np.clip(rng.normal(0, look.spread), -2 * look.spread, 2 * look.spread)
    image = (np.clip(image, 0.0, None) * np.float32(exposure)) ** np.float32(look.gamma)
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    image = image * (1 - look.vignette * 0.5 * (x * x + y * y)).astype(np.float32)[..., None]
    return develop(image, look, rng), label


def develop(image: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Apply focus, sensor noise and JPEG compression: float [H, W, 3] in 0..1 -> uint8."""
    radius = 0.9 * max(1.0, image.shape[0] / 256)
    quantised = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
    blurred = np.asarray(quantised.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
    image = image + np.float32(look.focus) * (image - blurred)
    image = image + np.float32(look.noise) * rng.standard_normal(image.shape, np.float32)
    image = (image.clip(0, 1) * 255).astype(np.uint8)
    if look.jpeg_loss >= 1:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=round(100 - look.jpeg_loss))
        image = np.asarray(Image.open(buffer))
    return image


def look_of(domain: str, strength: float) -> Look:
    """The look of a domain, "game" or "camera". strength: 0 gives the game's look, 1 that of the domain."""
    game, goal = asdict(LOOK["game"]), asdict(LOOK[domain])
    return Look(**{k: game[k] + strength * (goal[k] - game[k]) for k in game})


def render(seed: int, dataset: str, split: str, index: int, size: tuple[int, int],
           strength: float = STRENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image, RGB uint8 [H, W, 3], with its Cityscapes label ids, uint8 [H, W]. size: (width, height)."""
    rng = np.random.default_rng([seed, DOMAINS.index(dataset), ("train", "val").index(split), index])
    domain = "camera" if dataset == "cityscapes" else "game"
    layout = LAYOUT[domain]
    absent: dict[str, Any] = dict.fromkeys(NOT_IN_SYNTHIA, 0.0)
    if dataset == "synthia":
        layout = replace(layout, **absent)
    street = Street(size, rng, look_of(domain, strength), layout)
    draw_scene(street)
    return photograph(street)
