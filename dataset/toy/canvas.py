"""The geometry of a toy street, and strokes that draw image, label and distance at once.

A pinhole camera EYE metres above a flat street: a point X metres to the right, Y metres up and z metres away lies in
column vanish + X * s and row horizon - (Y - EYE) * s with s = FOCAL / z pixels per metre (for an image of 128 rows; all
of it grows with the image). Image, label and distance are filled by the same strokes, far things first.
"""
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dataset.labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from dataset.toy.looks import Layout, Look

FOCAL, EYE = 200.0, 1.4  # pixels per metre at a distance of one metre; metres
FAR, NEAR = 66.0, 2.2  # metres: the end of the street, and what lies below the picture's lower edge
LABEL_ID = {CITYSCAPES_CLASSES[t]: i for i, t in CITYSCAPES_IDS.items()}
LABEL_ID.update({"ego vehicle": 1, "static": 4, "rail track": 10})  # outside the 19 classes: ignored
GROUND = ("road", "sidewalk", "terrain", "rail track")
Colour = tuple[int, int, int]  # red, green, blue in 0..255
Point = tuple[float, float]  # (x, y) in metres


class Street:
    """A street being drawn. `use` sets class and distance; then strokes in metres fill image, label and distance.

    colour: RGB in 0..255, or None where the object is see-through (spokes, railings) and the image stays as it is.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, look: Look, layout: Layout):
        width, height = size
        self.size, self.rng, self.look, self.layout = size, rng, look, layout
        self.unit = height / 128
        self.horizon = height * min(max(layout.horizon + rng.normal(0, 0.02), 0.3), 0.55)
        self.vanish = width * (0.5 + min(max(rng.normal(0, 0.05), -0.12), 0.12))
        self.image, self.label = Image.new("RGB", size), Image.new("L", size, LABEL_ID["sky"])
        self.distance = Image.new("L", size, 255)
        self.pens = [ImageDraw.Draw(i) for i in (self.image, self.label, self.distance)]  # one per layer
        self.label_id: int | None = None
        self.z, self.s = FAR, FOCAL / FAR
        self.sun = rng.choice((-1, 1))

    def use(self, name: str | None, z: float) -> None:
        """Set class and distance (metres) of the next strokes; None: they change the image only, as a shadow does."""
        self.label_id, self.z, self.s = LABEL_ID[name] if name else None, z, FOCAL / z

    def at(self, x: float, y: float, z: float | None = None) -> tuple[float, float]:
        """The (column, row) in pixels of a point in metres. z: by default that of `use`."""
        s = (FOCAL / z if z else self.s) * self.unit
        return self.vanish + x * s, self.horizon + (EYE - y) * s

    def nearest_seen(self, x: float) -> float:
        """The distance in metres below which the lateral position x is outside the picture."""
        return abs(x) * FOCAL * self.unit / (0.62 * self.size[0])

    def stroke(self, shape: str, outline: Any, colour: Colour | None, **options: Any) -> None:
        """Draw a Pillow shape (polygon, line, ellipse) with an outline in pixels on all three layers."""
        inks = (colour, self.label_id, min(int(self.z * 3), 254))
        for pen, ink in zip(self.pens, inks if self.label_id is not None else inks[:1]):
            if ink is not None:
                getattr(pen, shape)(outline, fill=ink, **options)

    def poly(self, points: Iterable[Point], colour: Colour | None) -> None:
        """Draw a polygon that faces the camera."""
        self.stroke("polygon", [self.at(*p) for p in points], colour)

    def rect(self, x0: float, x1: float, y0: float, y1: float, colour: Colour | None) -> None:
        """Draw a rectangle that faces the camera."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def line(self, points: Iterable[Point], width: float, colour: Colour | None) -> None:
        """Draw a line through points, `width` metres wide and at least one pixel."""
        self.stroke("line", [self.at(*p) for p in points], colour, width=max(1, round(width * self.s * self.unit)))

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour | None) -> None:
        """Draw an ellipse that faces the camera, with centre (x, y) and radii rx, ry."""
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        self.stroke("ellipse", [x0, y0, x1, y1], colour)

    def side(self, x: float, z0: float, z1: float, y0: float, y1: float, colour: Colour | None) -> None:
        """Draw a rectangle in the upright plane along the street at lateral position x, from distance z0 to z1."""
        self.stroke("polygon", [self.at(x, y0, z0), self.at(x, y0, z1), self.at(x, y1, z1), self.at(x, y1, z0)], colour)

    def ground(self, x0: float, x1: float, z0: float, z1: float, colour: Colour | None) -> None:
        """Draw a rectangle on the ground."""
        self.stroke("polygon", [self.at(x0, 0, z0), self.at(x1, 0, z0), self.at(x1, 0, z1), self.at(x0, 0, z1)], colour)

    def shadow(self, x: float, half_width: float, z: float) -> None:
        """Draw the dark patch under a thing that stands on the ground."""
        self.use(None, z)
        self.disc(x, 0, half_width, 0.12, self.tone(45, 8))

    def tone(self, base: float | Colour, spread: float = 10, tint: float = 0) -> Colour:
        """A random colour around `base`, a grey or a colour. spread: standard deviation of a common shift; tint:
        of another shift of each channel."""
        shift, own = self.rng.normal(0, spread), self.rng.normal(0, max(tint, 1), 3).tolist()
        centre = base if isinstance(base, tuple) else (base,) * 3
        red, green, blue = (int(min(max(c + shift + o, 5), 250)) for c, o in zip(centre, own))
        return red, green, blue

    def paint(self) -> Colour:
        """A random colour of a vehicle or of clothes; half of them are grey or black."""
        return self.tone(self.rng.uniform(25, 225), 5, 4 if self.rng.random() < 0.5 else 55)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour times `factor`."""
    red, green, blue = colour
    return min(int(red * factor), 255), min(int(green * factor), 255), min(int(blue * factor), 255)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """Smooth random values, float32 [H, W]: standard normal on a grid of rows x columns, interpolated."""
    grid = Image.fromarray(rng.normal(0, 1, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC))
