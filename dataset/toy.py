"""A procedural toy street world, written in the real on-disk layouts of GTA5, SYNTHIA and Cityscapes.

    python -m dataset.toy --root data/toy --seed 0

GTA5 and SYNTHIA are drawn in the 'game' domain, Cityscapes in the 'camera' domain; the two tables `LOOK` and `LAYOUT`
are the whole domain shift. Every image is a pure function of the parameters, its domain, its split and its index.

Geometry: a pinhole camera EYE metres above a flat street. A point X metres to the right, Y metres up and z metres away
lies in column vanish + X * s and row horizon - (Y - EYE) * s with s = FOCAL / z pixels per metre (for an image of 128
rows; all of it grows with the image). Image, label and distance are filled by the same strokes, far things first.

The file is long because it holds a short painter for each of the 19 classes; tables first, files last.
"""
import argparse
import io
import json
import os
import struct
import sys
import zlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from dataset.labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS, CITYSCAPES_PALETTE, STREET_PROTOCOLS, SYNTHIA_IDS
from utils.errors import ConfigError, DataError, UserError

VERSION = 1  # raise it when the drawing changes: a world of an older painter is then drawn again
MARKER = "toy.json"
CITIES = {"train": ("eichstadt", "lindenau", "morwald"), "val": ("suderburg",)}
DOMAINS = ("gta5", "synthia", "cityscapes")
FOCAL, EYE = 200.0, 1.4  # pixels per metre at a distance of one metre; metres
FAR, NEAR = 66.0, 2.2  # metres: the end of the street, and what lies below the picture's lower edge
LABEL_ID = {CITYSCAPES_CLASSES[t]: i for i, t in CITYSCAPES_IDS.items()}
LABEL_ID.update({"ego vehicle": 1, "static": 4, "rail track": 10})  # outside the 19 classes: ignored
GROUND = ("road", "sidewalk", "terrain", "rail track")
NOT_IN_SYNTHIA = tuple(CITYSCAPES_CLASSES[t] for t in STREET_PROTOCOLS[19] if t not in STREET_PROTOCOLS[16])


@dataclass(frozen=True)
class Look:
    """Appearance of a domain; images are RGB in 0..1. Light, cast and haze of each image vary around these values."""

    exposure: float  # factor on the image
    gamma: float  # exponent after the exposure; above 1 darkens the middle tones
    contrast: float  # factor on the difference from 0.45
    red: float  # colour cast: factor on each channel
    green: float
    blue: float
    saturation: float  # factor on the difference from the pixel's own grey
    haze: float  # optical depth towards grey at 60 m
    focus: float  # above 0: unsharp mask of that amount; below 0: that share of a blurred image
    noise: float  # standard deviation of the sensor noise
    vignette: float  # darkening in the corners
    jpeg_loss: float  # 100 minus the JPEG quality; below 1: not compressed
    window_pitch: float  # metres between windows
    leaf_size: float  # metres, radius of a tree's blobs
    road_grain: float  # amplitude of the asphalt's texture
    spread: float  # standard deviation of the per-image light, in photographic stops


@dataclass(frozen=True)
class Layout:
    """What stands in a street: expected numbers per image where a comment says nothing else."""

    horizon: float  # row, as a share of the height
    hood: bool  # own bonnet at the lower edge
    green_side: float  # share of the roadside plots that are bushes instead of houses
    terrain: float  # share of the sides with a strip of grass; so for wall and fence
    wall: float
    fence: float
    train: float  # share of the images with a train and its rails
    tree: float
    pole: float  # each carries a light, a sign or both
    person: float
    rider: float  # half on bicycles, half on motorcycles
    bicycle: float
    motorcycle: float
    car: float
    truck: float
    bus: float
    static: float  # bins and boxes, ignored


# STRENGTH scales every appearance effect: 0 gives both domains the game look, 1 is the world as tuned.
STRENGTH = 1.0
LOOK = {
    "game": Look(exposure=1.05, gamma=0.95, contrast=1.1, red=1.05, green=1.0, blue=0.94, saturation=1.25, haze=0.08,
                 focus=0.35, noise=0.004, vignette=0.0, jpeg_loss=0.0, window_pitch=2.5, leaf_size=0.42,
                 road_grain=0.03, spread=0.18),
    "camera": Look(exposure=0.92, gamma=1.08, contrast=0.8, red=0.95, green=1.02, blue=0.95, saturation=0.6, haze=0.55,
                   focus=-0.55, noise=0.016, vignette=0.25, jpeg_loss=22.0, window_pitch=3.3, leaf_size=0.62,
                   road_grain=0.05, spread=0.25),
}
LAYOUT = {
    "game": Layout(horizon=0.43, hood=False, green_side=0.25, terrain=0.45, wall=0.36, fence=0.36, train=0.42, tree=1.5,
                   pole=2.7, person=2.6, rider=1.3, bicycle=0.9, motorcycle=0.9, car=2.4, truck=0.5, bus=0.45,
                   static=0.5),
    "camera": Layout(horizon=0.40, hood=True, green_side=0.4, terrain=0.4, wall=0.32, fence=0.32, train=0.38, tree=2.4,
                     pole=3.0, person=3.0, rider=1.4, bicycle=1.4, motorcycle=0.7, car=3.0, truck=0.4, bus=0.4,
                     static=1.2),
}
# Texture amplitude per class: (fine grain, patches of 3 pixels, patches of 16 pixels).
GRAIN = {"building": (.015, .02, .03), "wall": (.04, .05, .05), "fence": (.02, .02, .02), "vegetation": (.05, .10, .06),
         "terrain": (.10, .05, .06), "sidewalk": (.02, .01, .03), "sky": (0, 0, .01), "rail track": (.1, .06, .03)}


# ---- the painter ----------------------------------------------------------------------------------------------------

class Street:
    """An image under way. `use` picks class and distance, then strokes in metres fill image, label and distance.

    colour: RGB in 0..255, or None where the class is see-through (spokes, railings): the picture behind it stays.
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
        self.label_id, self.z, self.s = None, FAR, FOCAL / FAR
        self.sun = rng.choice((-1, 1))

    def use(self, name: str | None, z: float):
        """The following strokes belong to class `name` at `z` metres; None: paint (a shadow) on what is there."""
        self.label_id, self.z, self.s = name and LABEL_ID[name], z, FOCAL / z

    def at(self, x: float, y: float, z: float | None = None) -> tuple[float, float]:
        """Metres -> (column, row) in pixels."""
        s = (FOCAL / z if z else self.s) * self.unit
        return self.vanish + x * s, self.horizon + (EYE - y) * s

    def nearest_seen(self, x) -> float:
        """The distance in metres below which the lateral position x has left the picture."""
        return abs(x) * FOCAL * self.unit / (0.62 * self.size[0])

    def stroke(self, shape: str, outline, colour, **options):
        """Draw one Pillow shape on all three layers."""
        inks = (colour, self.label_id, min(int(self.z * 3), 254))
        for pen, ink in zip(self.pens, inks if self.label_id is not None else inks[:1]):
            if ink is not None:
                getattr(pen, shape)(outline, fill=ink, **options)

    def poly(self, points, colour):
        """A polygon facing the camera, [(x, y), ...]."""
        self.stroke("polygon", [self.at(*p) for p in points], colour)

    def rect(self, x0, x1, y0, y1, colour):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def line(self, points, width, colour):
        """A bent line of `width` metres, at least one pixel."""
        self.stroke("line", [self.at(*p) for p in points], colour, width=max(1, round(width * self.s * self.unit)))

    def disc(self, x, y, rx, ry, colour):
        (x0, y0), (x1, y1) = self.at(x - rx, y + ry), self.at(x + rx, y - ry)
        self.stroke("ellipse", [x0, y0, x1, y1], colour)

    def side(self, x, z0, z1, y0, y1, colour):
        """A rectangle in the upright plane along the street at lateral position x, from distance z0 to z1."""
        self.stroke("polygon", [self.at(x, y0, z0), self.at(x, y0, z1), self.at(x, y1, z1), self.at(x, y1, z0)], colour)

    def ground(self, x0, x1, z0, z1, colour):
        self.stroke("polygon", [self.at(x0, 0, z0), self.at(x1, 0, z0), self.at(x1, 0, z1), self.at(x0, 0, z1)], colour)

    def shadow(self, x, half_width, z):
        """The dark patch under a thing that stands on the ground."""
        self.use(None, z)
        self.disc(x, 0, half_width, 0.12, self.tone(45, 8))

    def tone(self, base, spread=10, tint=0) -> tuple[int, int, int]:
        """A random RGB around `base` (a grey or an RGB): common shift of `spread`, own shift per channel of `tint`."""
        shift, own = self.rng.normal(0, spread), self.rng.normal(0, max(tint, 1), 3).tolist()
        base = base if isinstance(base, tuple) else (base,) * 3
        return tuple(int(min(max(b + shift + o, 5), 250)) for b, o in zip(base, own))

    def paint(self) -> tuple[int, int, int]:
        """A random colour of a vehicle or of clothes: greys and blacks half of the time."""
        return self.tone(self.rng.uniform(25, 225), 5, 4 if self.rng.random() < 0.5 else 55)


def shade(colour, factor) -> tuple[int, int, int]:
    red, green, blue = colour
    return min(int(red * factor), 255), min(int(green * factor), 255), min(int(blue * factor), 255)


# ---- the ground and the roadside ------------------------------------------------------------------------------------

def draw_sky(st: Street):
    """A gradient with soft clouds over the whole image; the ground and the houses cover the rest."""
    (width, height), rng = st.size, st.rng
    rows = np.clip(np.arange(height) / st.horizon, 0, 1)[:, None, None]
    top, low = np.array(st.tone((95, 145, 215), 15, 8)), np.array(st.tone((190, 210, 232), 10, 5))
    cloud = np.clip(smooth_noise(rng, st.size, 14, 30) + 0.6 * smooth_noise(rng, st.size, 6, 12) + rng.normal(0, .5),
                    0, 1.6)[..., None] / 1.6
    sky = top * (1 - rows) + low * rows
    sky = sky * (1 - 0.8 * cloud) + 238 * 0.8 * cloud
    st.image.paste(Image.fromarray(sky.clip(0, 255).astype(np.uint8)))


def draw_ground(st: Street, road: float, zones: dict[int, list]):
    """Road with markings, then on each side (-1, 1) its strips (class, from x, to x) outwards."""
    rng, asphalt = st.rng, st.tone(92, 12, 3)
    st.use("road", FAR)
    st.ground(-60, 60, NEAR / 2, FAR * 3, asphalt)
    mark = st.tone((215, 212, 200), 14)
    offset, pitch = rng.uniform(0, 6), rng.uniform(5, 7)
    for x in (0.0,) if rng.random() < 0.6 else (-road / 3, road / 3):
        for z in np.arange(NEAR + offset, 45, pitch):
            st.ground(x - 0.09, x + 0.09, z, z + pitch * 0.5, mark)
    if rng.random() < 0.3:  # zebra crossing
        z = rng.uniform(6, 10)
        for x in np.arange(-road + 0.3, road - 0.3, 0.9):
            st.ground(x, x + 0.45, z, z + 2.2, mark)
    for side, strips in zones.items():
        for name, x0, x1 in strips:
            st.use(name, FAR)
            base = {"sidewalk": st.tone((158, 146, 138), 16, 4), "terrain": st.tone((128, 140, 70), 12, 8),
                    "rail track": st.tone((105, 92, 82), 10, 4)}[name]
            st.ground(side * x0, side * x1, NEAR / 2, FAR, base)
            if name == "sidewalk":
                draw_tiles(st, side, x0, x1, base)
            elif name == "terrain":
                draw_grass(st, side, x0, x1, base)
            else:
                for x in (x0 + 0.7, x0 + 2.3):
                    st.ground(side * x, side * (x + 0.14), NEAR / 2, FAR, st.tone((150, 148, 150), 8))


def draw_tiles(st: Street, side: int, x0: float, x1: float, base):
    """Joints across and along a sidewalk, and its bright kerb."""
    pitch = st.rng.uniform(0.9, 1.3)
    for z in np.arange(NEAR, 24, pitch):
        st.ground(side * x0, side * x1, z, z + 0.1 + 0.004 * z, shade(base, 0.78))
    for x in np.arange(x0 + pitch, min(x1, x0 + 5), pitch):
        st.ground(side * x, side * (x + 0.06), NEAR / 2, 30, shade(base, 0.8))
    st.ground(side * x0, side * (x0 + 0.22), NEAR / 2, FAR, shade(base, 1.22))


def draw_grass(st: Street, side: int, x0: float, x1: float, base):
    """Tufts: short upright strokes, denser than a sidewalk's joints and without order."""
    for z in np.sort(1 / st.rng.uniform(1 / 25, 1 / 4, 70))[::-1]:
        x = side * st.rng.uniform(x0 + 0.1, min(x1, x0 + 6) - 0.1)
        (column, row), length = st.at(x, 0, z), 0.16 * FOCAL / z * st.unit
        colour = shade(base, st.rng.uniform(0.6, 1.35))
        st.stroke("line", [column, row, column + st.rng.uniform(-0.4, 0.4) * length, row - length * 0.5], colour)


def draw_house(st: Street, x: float, z0: float, z1: float):
    """A facade along the street at x from z0 to z1 (near to far): floors of windows, shops below; and its end wall."""
    rng, height = st.rng, st.rng.uniform(6, 15)
    tone = st.tone((165, 145, 125), 32, 16)
    tone = shade(tone, 1.08 if np.sign(x) == st.sun else 0.8)
    st.use("building", z0)
    st.rect(x, x + np.sign(x) * 9, 0, height, shade(tone, 0.85))
    for a, b in zip(np.linspace(z1, z0, 5), np.linspace(z1, z0, 5)[1:]):  # in pieces, for the distance layer
        st.use("building", (a + b) / 2)
        st.side(x, b, a, 0, height, tone)
    st.side(x, z0, z1, height - 0.35, height, shade(tone, 0.65))
    pitch = st.look.window_pitch * rng.uniform(0.85, 1.15)
    wide, tall, floor = pitch * rng.uniform(0.4, 0.6), rng.uniform(1.3, 1.9), rng.uniform(2.8, 3.4)
    glass = [shade(st.tone((70, 82, 98), 14, 6), f) for f in (0.7, 1.0, 1.5)] + [(225, 205, 150)]
    frame = shade(tone, rng.choice((0.6, 1.35)))
    for z in np.arange(z0 + 0.4, min(z1, 40) - wide, pitch)[::-1]:
        if z + wide < st.nearest_seen(x):
            break
        st.use("building", z)
        st.side(x, z, z + wide * 1.5, 0.4, 2.2, glass[rng.integers(2)])
        for y in np.arange(floor + 0.3, height - tall - 0.4, floor):
            st.side(x, z - 0.15, z + wide + 0.15, y - 0.15, y + tall + 0.15, frame)
            st.side(x, z, z + wide, y, y + tall, glass[rng.choice(4, p=(.4, .3, .2, .1))])


def draw_end(st: Street):
    """Houses and trees that close the street at its far end."""
    x = -45.0
    while x < 45:
        width, height = st.rng.uniform(6, 14), st.rng.uniform(5, 15) if abs(x) < 20 else st.rng.uniform(4, 9)
        st.use("building", FAR)
        if st.rng.random() < st.layout.green_side + 0.1:
            draw_blobs(st, "vegetation", x + width / 2, height * 0.4, width * 0.6, height * 0.45, 10, FAR)
        else:
            tone = st.tone((160, 145, 130), 28, 12)
            st.rect(x, x + width, 0, height, tone)
            for wx in np.arange(x + 0.8, x + width - 1.2, st.look.window_pitch):
                for wy in np.arange(1.0, height - 1.5, 3.2):
                    st.rect(wx, wx + 1.3, wy, wy + 1.7, shade(tone, 0.5))
        x += width


def draw_blobs(st: Street, name: str, x, y, rx, ry, count: int, z: float):
    """A canopy or bush: overlapping blobs, dark below and bright above; radii in metres."""
    rng, leaf = st.rng, st.look.leaf_size * max(1.0, ry / 2)
    green = st.tone((72, 98, 48), 12, 9)
    st.use(name, z)
    st.disc(x, y, rx * 0.85, ry * 0.85, shade(green, 0.7))
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0.1, 1, count))
    dx, dy = np.cos(angle) * radius, np.sin(angle) * radius
    light, sizes = 1 + 0.4 * dy + rng.normal(0, 0.18, count), leaf * rng.uniform(0.6, 1.2, count)
    blobs = np.stack([x + dx * rx, y + dy * ry, sizes, light], 1)[np.argsort(dy + rng.normal(0, 0.3, count))]
    for bx, by, size, factor in blobs.tolist():
        st.disc(bx, by, size, size * 0.8, shade(green, factor))


def draw_tree(st: Street, x: float, z: float):
    rng, height = st.rng, st.rng.uniform(2.6, 4.0)
    st.shadow(x, 0.8, z)
    st.use("vegetation", z)
    st.line([(x, 0), (x + rng.normal(0, .1), height)], 0.3, st.tone((78, 60, 44), 8, 4))
    draw_blobs(st, "vegetation", x, height + 0.8, rng.uniform(1.2, 1.9), rng.uniform(1.2, 1.8), 34, z)


def draw_wall(st: Street, x: float, z0: float, z1: float):
    """Courses of blocks under a coping, 1.8 to 2.6 m high."""
    rng, height, tone = st.rng, st.rng.uniform(1.8, 2.6), st.tone((150, 132, 122), 22, 10)
    st.use("wall", (z0 + z1) / 2)
    st.side(x, z0, z1, 0, height, tone)
    for row, y in enumerate(np.arange(0.0, height - 0.2, 0.42)):
        st.side(x, z0, z1, y, y + 0.09, shade(tone, 0.62))
        for z in np.arange(z0 + 0.5 * (row % 2), min(z1, 22) - 0.2, 1.0):
            st.side(x, z, z + 0.13, y, y + 0.42, shade(tone, 0.68))
    st.side(x, z0, z1, height - 0.22, height, shade(tone, 1.2))


def draw_fence(st: Street, x: float, z0: float, z1: float):
    """A railing: bars and two rails; between the bars the picture behind stays."""
    rng, height = st.rng, st.rng.uniform(1.5, 2.1)
    tone = st.tone(rng.choice((55, 120, 205)), 14, 8)
    st.use("fence", (z0 + z1) / 2)
    st.side(x, z0, z1, 0, height, None)
    pitch = rng.uniform(0.55, 0.8)
    for z in np.arange(z0, z1 - 0.1, pitch):
        st.side(x, z, z + pitch * 0.42, 0, height, tone)
    for y in (0.15, height - 0.3):
        st.side(x, z0, z1, y, y + 0.16, shade(tone, 0.85))


def draw_roadside(st: Street, side: int, edge: float):
    """Plots of houses or bushes beyond `edge` metres, far to near, then perhaps a wall or a fence before them."""
    rng, layout, z1 = st.rng, st.layout, FAR
    while z1 > NEAR:
        z0 = max(z1 - rng.uniform(8, 16), NEAR * 0.9)
        if rng.random() < layout.green_side:
            z = z1
            while z > max(z0, st.nearest_seen(edge)):
                tall = rng.uniform(1.2, 3.2)
                draw_blobs(st, "vegetation", side * (edge + 1.6), tall * 0.6, 1.7, tall * 0.7, 20, z)
                z *= 0.86
        else:
            draw_house(st, side * (edge + rng.uniform(0.2, 1.0)), z0, z1)
        z1 = z0 - rng.choice((0, 0, 2.0))
    kind = rng.random()
    if kind < layout.wall + layout.fence:
        near = rng.uniform(7, 11)
        draw = draw_wall if kind < layout.wall else draw_fence
        draw(st, side * (edge + 0.1), near, near + rng.uniform(9, 20))


# ---- things on the street -------------------------------------------------------------------------------------------

def draw_pole(st: Street, x: float, z: float):
    """A post of a lamp's height, carrying a traffic light, a sign or both."""
    rng, height = st.rng, st.rng.uniform(3.4, 4.6)
    tone, kind, way = st.tone(rng.choice((70, 125, 165)), 12, 4), rng.integers(3), -np.sign(x)
    st.use("pole", z)
    st.rect(x - 0.17, x + 0.17, 0, height, tone)
    st.rect(x - 0.17, x - 0.06, 0, height, shade(tone, 1.3))
    st.rect(x + 0.06, x + 0.17, 0, height, shade(tone, 0.7))
    if kind != 1:
        lx, ly = x + way * rng.choice((0, 0.45)), rng.uniform(2.3, 2.9)
        st.use("light", z)
        st.rect(lx - 0.36, lx + 0.36, ly, ly + 1.3, st.tone((42, 42, 38), 10, 4))
        lit = rng.integers(3)
        for lamp, colour in enumerate(((60, 215, 110), (250, 180, 40), (245, 60, 45))):
            st.disc(lx, ly + 0.25 + 0.4 * lamp, 0.19, 0.19, colour if lamp == lit else shade(colour, 0.3))
    if kind != 0:
        sx, sy, r = x, height - 0.3 if kind == 1 else 1.75, rng.uniform(0.45, 0.6)
        st.use("sign", z)
        red, blue, yellow, white = (200, 30, 35), (30, 75, 170), (225, 190, 30), (235, 233, 228)
        rim, plate = ((red, white), (blue, white), (yellow, (45, 42, 40)), (red, red))[rng.integers(4)]
        form = rng.integers(3)
        for scale, colour in ((1.0, st.tone(rim, 12, 6)), (0.68, st.tone(plate, 8))):
            if form == 0:
                st.disc(sx, sy, r * scale, r * scale, colour)
            elif form == 1:
                st.poly([(sx, sy + r * scale), (sx - r * scale, sy - r * 0.7 * scale),
                         (sx + r * scale, sy - r * 0.7 * scale)], colour)
            else:
                st.rect(sx - r * scale, sx + r * scale, sy - r * scale, sy + r * scale, colour)
        st.rect(sx - 0.22 * r, sx + 0.22 * r, sy - 0.15 * r, sy + 0.15 * r, st.tone(rng.choice((40, 235)), 8))


def draw_body(st: Street, x: float, way: int, seat: float):
    """Head, torso and arms from the hip at (x, seat) upwards, leaning towards `way`; returns the trousers' colour."""
    rng, top, lean = st.rng, st.paint(), 0.0 if way == 0 else 0.28 * way
    skin = st.tone((205, 160, 130) if rng.random() < 0.7 else (120, 85, 65), 12, 5)
    st.poly([(x - .18, seat), (x + .18, seat), (x + lean + .27, seat + .62), (x + lean - .27, seat + .62)], top)
    if way:
        st.line([(x + lean, seat + .5), (x + .62 * way, seat + .2)], 0.15, shade(top, 0.8))
    else:
        for arm in (-1, 1):
            st.line([(x + .25 * arm, seat + .58), (x + .33 * arm, seat + .02)], 0.14, shade(top, 0.8))
    st.disc(x + lean * 1.2, seat + .80, .15, .18, skin)
    hair = st.paint() if way else st.tone(rng.choice((40, 90, 150)), 12, 12)
    st.poly([(x + lean * 1.2 - .16, seat + .82), (x + lean * 1.2 + .16, seat + .82), (x + lean * 1.2 + .1, seat + .99),
             (x + lean * 1.2 - .1, seat + .99)], hair)
    return st.paint()


def draw_person(st: Street, x: float, z: float):
    stride = st.rng.uniform(0.1, 0.3)
    st.shadow(x, 0.4, z)
    st.use("person", z)
    trousers = draw_body(st, x, 0, 0.82)
    for leg in (-1, 1):
        st.line([(x + .09 * leg, .9), (x + stride * leg, 0.04)], 0.2, shade(trousers, 1 - 0.1 * leg))


def draw_bicycle(st: Street, x: float, z: float, rider: bool = False):
    """Two spoked wheels and a thin frame, seen from the side; the rider is drawn over it."""
    rng, way = st.rng, int(st.rng.choice((-1, 1)))
    colour, tyre = st.tone(st.paint(), 5), st.tone(35, 8)
    st.shadow(x, 0.9, z)
    st.use("bicycle", z)
    for wheel in (x - .55, x + .55):
        angles = np.linspace(0, 2 * np.pi, 17)
        st.disc(wheel, .37, .38, .38, None)
        for angle in angles[:4] + 0.3:
            dx, dy = .34 * np.cos(angle * 2), .34 * np.sin(angle * 2)
            st.line([(wheel - dx, .37 - dy), (wheel + dx, .37 + dy)], 0.02, st.tone(170, 10))
        st.line([(wheel + .36 * np.cos(a), .37 + .36 * np.sin(a)) for a in angles], 0.07, tyre)
    hub, saddle, head = (x - .05 * way, .32), (x - .22 * way, .85), (x + .38 * way, .88)
    st.poly([hub, saddle, head], None)
    rear, front = (x - .55 * way, .37), (x + .55 * way, .37)
    for a, b in ((hub, saddle), (hub, head), (saddle, head), (saddle, rear), (hub, rear), (head, front)):
        st.line([a, b], 0.08, colour)
    st.line([head, (x + .42 * way, 1.05), (x + .25 * way, 1.08)], 0.07, tyre)
    st.line([(x - .36 * way, .9), (x - .1 * way, .9)], 0.1, tyre)
    if rider:
        draw_rider(st, x - .2 * way, way, z, .9, hub)


def draw_motorcycle(st: Street, x: float, z: float, rider: bool = False):
    """Two thick wheels, engine, tank, seat and lamp, seen from the side."""
    rng, way = st.rng, int(st.rng.choice((-1, 1)))
    colour, dark, metal = st.paint(), st.tone(38, 8), st.tone(145, 16)
    st.shadow(x, 1.0, z)
    st.use("motorcycle", z)
    for wheel in (x - .68, x + .68):
        st.disc(wheel, .34, .35, .35, dark)
        st.disc(wheel, .34, .15, .15, metal)
    st.rect(x - .42, x + .42, .22, .62, shade(metal, 0.7))
    st.disc(x + .05, .4, .22, .2, metal)
    st.line([(x - .1 * way, .26), (x - .95 * way, .36)], 0.12, shade(metal, 1.2))
    st.poly([(x - .9 * way, .8), (x - .3 * way, .62), (x + .5 * way, .62), (x + .45 * way, 1.0), (x + .05 * way, .98),
             (x - .3 * way, .84)], colour)
    st.poly([(x - .8 * way, .84), (x - .1 * way, .8), (x - .15 * way, .95), (x - .75 * way, .97)], dark)
    st.line([(x + .7 * way, .36), (x + .45 * way, 1.1), (x + .2 * way, 1.16)], 0.1, metal)
    st.disc(x + .56 * way, .9, .13, .14, (245, 235, 200))
    if rider:
        draw_rider(st, x - .25 * way, way, z, .92, (x + .05 * way, .3))


def draw_rider(st: Street, x: float, way: int, z: float, seat: float, foot):
    st.use("rider", z)
    trousers = draw_body(st, x, way, seat)
    st.line([(x, seat + .05), (x + .42 * way, seat - .12), foot], 0.19, trousers)


def draw_box(st: Street, x, width, y0, y1, z, length, colour):
    """A vehicle's body: the side that faces the vanishing point, then the end that faces the camera."""
    inner = x - np.sign(x) * width / 2
    st.side(inner, z, z + length, y0, y1, shade(colour, 0.75))
    st.rect(x - width / 2, x + width / 2, y0, y1, colour)
    return inner


def draw_wheels(st: Street, inner, z, marks, radius, width):
    """Wheels on the visible side, at the distances `marks` behind z, and the two at the near end."""
    for mark in marks:
        angles = np.linspace(0, 2 * np.pi, 9)
        st.stroke("polygon", [st.at(inner, max(radius * (1 + np.sin(a)), 0), z + mark + radius * np.cos(a))
                              for a in angles], (28, 28, 30))
    out = np.sign(inner) or 1
    for edge in (inner, inner + out * (width - 0.3)):
        st.rect(min(edge, edge + out * 0.3), max(edge, edge + out * 0.3), 0, 0.3, (26, 26, 28))


def draw_car(st: Street, x: float, z: float):
    """Body, narrower cabin, windows, lamps and number plate; seen from behind or before."""
    rng, colour, length, glass = st.rng, st.paint(), st.rng.uniform(3.8, 4.5), st.tone((52, 60, 70), 10, 5)
    height, front = rng.uniform(1.4, 1.7), rng.random() < 0.5
    lamp = (240, 238, 215) if front else (200, 30, 30)
    st.shadow(x, 1.0, z)
    st.use("car", z)
    inner = draw_box(st, x, 1.8, 0.2, 0.85, z, length, colour)
    draw_wheels(st, inner, z, (length - 0.8, 0.8), 0.33, 1.8)
    inner = x - np.sign(x) * 0.78
    st.side(inner, z + 0.5, z + length - 0.9, 0.85, height, shade(colour, 0.7))
    st.side(inner, z + 0.8, z + length * 0.45, 0.92, height - 0.12, glass)
    st.side(inner, z + length * 0.5, z + length - 1.1, 0.92, height - 0.12, glass)
    st.poly([(x - .86, .85), (x + .86, .85), (x + .66, height), (x - .66, height)], shade(colour, 0.9))
    st.poly([(x - .74, .9), (x + .74, .9), (x + .58, height - .12), (x - .58, height - .12)], glass)
    st.poly([(x - .5, .9), (x - .2, .9), (x - .1, height - .12), (x - .35, height - .12)], shade(glass, 1.6))
    for lx in (x - .7, x + .7):
        st.rect(lx - .16, lx + .16, .56, .76, lamp)
    st.rect(x - .26, x + .26, .4, .54, (228, 228, 215))
    st.rect(x - .88, x + .88, .2, .32, shade(colour, 0.45))


def draw_bus(st: Street, x: float, z: float):
    """A long body with a band of windows, a big windscreen and a lit destination board."""
    colour, length, glass = st.paint(), st.rng.uniform(8, 11), st.tone((55, 66, 78), 10, 5)
    st.shadow(x, 1.3, z)
    st.use("bus", z)
    inner = draw_box(st, x, 2.5, 0.25, 3.0, z, length, colour)
    for mark in np.arange(0.4, length - 0.8, 1.25):
        st.side(inner, z + mark, z + mark + 1.05, 1.3, 2.4, glass)
    st.side(inner, z, z + length, 0.55, 0.8, shade(colour, 1.25))
    draw_wheels(st, inner, z, (length - 2, 2.0), 0.45, 2.5)
    st.rect(x - 1.1, x + 1.1, 1.15, 2.35, glass)
    st.poly([(x - .8, 1.15), (x - .3, 1.15), (x, 2.35), (x - .5, 2.35)], shade(glass, 1.5))
    st.rect(x - .8, x + .8, 2.48, 2.86, (30, 30, 30))
    st.rect(x - .6, x + .5, 2.58, 2.76, (245, 170, 50))
    for lx in (x - .95, x + .95):
        st.rect(lx - .17, lx + .17, .6, .85, (240, 235, 205))


def draw_truck(st: Street, x: float, z: float):
    """From behind: a ribbed cargo box with doors, high over a dark chassis, the cab far ahead."""
    rng, colour, length = st.rng, st.paint(), st.rng.uniform(6, 8)
    cargo = st.tone(rng.uniform(90, 225), 8, 22)
    st.shadow(x, 1.3, z)
    st.use("truck", z)
    draw_box(st, x, 2.2, 0.3, 2.4, z + length, 1.8, colour)
    inner = draw_box(st, x, 2.3, 0.35, 0.9, z, length, (45, 45, 48))
    draw_wheels(st, inner, z, (length - 0.2, 2.2, 1.0), 0.5, 2.3)
    inner = draw_box(st, x, 2.5, 0.9, 3.5, z, length - 0.4, cargo)
    for mark in np.arange(0.5, length - 0.6, 0.8):
        st.side(inner, z + mark, z + mark + 0.14, 0.95, 3.45, shade(cargo, 0.55))
    for rib in np.linspace(x - 1.1, x + 1.1, 7):
        st.line([(rib, 1.0), (rib, 3.4)], 0.06, shade(cargo, 0.72))
    st.line([(x, 0.9), (x, 3.5)], 0.1, shade(cargo, 0.35))
    for y in (0.95, 3.4):
        st.line([(x - 1.25, y), (x + 1.25, y)], 0.12, shade(cargo, 0.6))
    for lx in (x - 1.0, x + 1.0):
        st.rect(lx - .2, lx + .2, .55, .78, (205, 40, 30))


def draw_train(st: Street, x: float, z: float):
    """A tram on the rails: a very long banded side, a rounded nose with one lamp and the pantograph on the roof."""
    rng, colour, length, glass = st.rng, st.paint(), st.rng.uniform(18, 28), st.tone((45, 55, 66), 8, 5)
    band = st.tone(rng.uniform(60, 235), 5, 40)
    st.use("train", z)
    inner = draw_box(st, x, 2.5, 0.15, 3.4, z, length, colour)
    st.side(inner, z, z + length, 0.5, 1.1, shade(band, 0.8))
    st.side(inner, z, z + length, 3.15, 3.4, (95, 95, 98))
    st.side(inner, z, z + length, 0.15, 0.35, (40, 40, 42))
    for i, mark in enumerate(np.arange(0.5, length - 2, 2.2)):
        low = 0.4 if i % 3 == 1 else 1.5
        st.side(inner, z + mark, z + mark + 1.9, low, 2.7, glass)
    st.rect(x - 1.25, x + 1.25, 0.5, 1.1, band)
    st.disc(x, 3.3, 1.25, 0.35, shade(colour, 0.9))
    st.poly([(x - 1.0, 1.5), (x + 1.0, 1.5), (x + .8, 2.8), (x - .8, 2.8)], glass)
    st.disc(x, 3.2, .22, .2, (248, 240, 205))
    for lx in (x - .8, x + .8):
        st.disc(lx, .8, .17, .17, (248, 240, 205))
    st.line([(x - .7, 3.5), (x, 4.3), (x + .7, 3.5)], 0.09, (50, 50, 52))
    st.line([(x - .8, 4.3), (x + .8, 4.3)], 0.09, (50, 50, 52))


def draw_static(st: Street, x: float, z: float):
    colour, height = st.tone(110, 30, 20), st.rng.uniform(0.8, 1.2)
    st.use("static", z)
    st.rect(x - .35, x + .35, 0, height, colour)
    st.rect(x - .4, x + .4, height, height + .12, shade(colour, 0.6))


# class -> (painter, nearest and farthest distance in metres, half width in metres, where it may stand)
THINGS = {
    "truck": (draw_truck, 8, 13, 1.25, "lane"),
    "bus": (draw_bus, 8, 13, 1.25, "lane"),
    "bike rider": (partial(draw_bicycle, rider=True), 6.5, 10, 0.9, "road"),
    "motor rider": (partial(draw_motorcycle, rider=True), 6.5, 10, 1.0, "road"),
    "car": (draw_car, 7, 16, 0.9, "lane"),
    "motorcycle": (draw_motorcycle, 7, 11, 1.0, "any"),
    "bicycle": (draw_bicycle, 7, 11, 0.9, "any"),
    "person": (draw_person, 6.5, 12, 0.4, "any"),
    "pole": (draw_pole, 7, 12, 0.5, "walk"),
    "tree": (draw_tree, 9, 24, 1.2, "walk"),
    "static": (draw_static, 8, 14, 0.4, "walk"),
}


def count(rng: np.random.Generator, mean: float) -> int:
    """A random whole number with that mean: one of its two neighbours."""
    return int(mean + rng.random())


def place_things(st: Street, road: float, zones: dict[int, list]):
    """Draw the things that `st.layout` asks for, far to near, with little overlap and mostly inside the picture."""
    rng, layout, todo, taken = st.rng, st.layout, [], []
    means = {**asdict(layout), "bike rider": layout.rider / 2, "motor rider": layout.rider / 2}
    for name, (draw, near, far, half, where) in THINGS.items():
        mean = means[name]
        for _ in range(count(rng, mean)):
            best = (np.inf,)
            for _ in range(8):
                z, side = 1 / rng.uniform(1 / far, 1 / near), rng.choice((-1, 1))
                walk = next((a, b) for n, a, b in zones[side] if n == "sidewalk")
                on_walk = where == "walk" or (where == "any" and rng.random() < 0.65)
                low, high = walk if on_walk else (1.2, road - 1.0) if where == "lane" else (0.2, road - 0.5)
                x = side * rng.uniform(low + 0.2, max(high - 0.2, low + 0.3))
                a, b = (st.at(x + d, 0, z)[0] for d in (-half, half))
                outside = max(0, -a) + max(0, b - st.size[0])
                overlap = sum(max(0, min(b, d) - max(a, c)) for c, d in taken)
                best = min(best, (overlap + 3 * outside, x, z, a, b))
                if best[0] == 0:
                    break
            _, x, z, a, b = best
            taken.append((a, b))
            todo.append((z, len(todo), draw, x))
    for side, strips in zones.items():
        for name, a, b in strips:
            if name == "rail track":
                todo.append((rng.uniform(9, 13), len(todo), draw_train, side * (a + b) / 2))
    for z, _, draw, x in sorted(todo, reverse=True, key=lambda t: t[:2]):
        draw(st, x, z)


def draw_scene(st: Street):
    """Everything, from the sky to the own bonnet; each side is a row of strips outwards from the road's edge."""
    rng, layout, road = st.rng, st.layout, st.rng.uniform(2.6, 3.4)
    zones, rail_side = {}, rng.choice((-1, 1)) if rng.random() < layout.train else 0
    for side in (-1, 1):
        strips = [("sidewalk", rng.uniform(2.2, 3.2))]
        if rng.random() < layout.terrain:
            strips.insert(rng.integers(2), ("terrain", rng.uniform(1.6, 3.0)))
        if side == rail_side:
            strips.insert(0, ("rail track", 3.0))
        edges = road + np.cumsum([0.0] + [w for _, w in strips])
        zones[side] = [(name, a, b) for (name, _), a, b in zip(strips, edges, edges[1:])]
    draw_sky(st)
    draw_ground(st, road, zones)
    draw_end(st)
    for side in (-1, 1):
        draw_roadside(st, side, zones[side][-1][2])
    place_things(st, road, zones)
    if layout.hood:
        (width, height), rise = st.size, rng.uniform(0.06, 0.09)
        st.use("ego vehicle", 1.0)
        box = [-0.1 * width, height * (1 - rise), 1.1 * width, height * (1 + rise)]
        st.stroke("ellipse", box, st.tone(48, 10))


# ---- from scene to picture ------------------------------------------------------------------------------------------

def smooth_noise(rng: np.random.Generator, size: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    """float32 [H, W]: standard normal values on a rows x columns grid, interpolated."""
    grid = Image.fromarray(rng.normal(0, 1, (rows, columns)).astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC))


def add_grain(st: Street, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Texture of the materials, by class: amplitudes in GRAIN times noise of three widths; image float [H, W, 3]."""
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
    """The finished image (uint8 [H, W, 3], RGB) and its label ids (uint8 [H, W]) in the look of the domain."""
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
    """Focus, sensor noise and JPEG: float [H, W, 3] -> uint8."""
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
    """The look of 'game', or that of 'camera' as far from it as `strength` says."""
    game, goal = asdict(LOOK["game"]), asdict(LOOK[domain])
    return Look(**{k: game[k] + strength * (goal[k] - game[k]) for k in game})


def render(seed: int, dataset: str, split: str, index: int, size: tuple[int, int], strength: float = STRENGTH):
    """One image (uint8 [H, W, 3], RGB) and its Cityscapes label ids (uint8 [H, W]); size is (width, height)."""
    rng = np.random.default_rng([seed, DOMAINS.index(dataset), ("train", "val").index(split), index])
    domain = "camera" if dataset == "cityscapes" else "game"
    layout = LAYOUT[domain]
    if dataset == "synthia":
        layout = replace(layout, **dict.fromkeys(NOT_IN_SYNTHIA, 0.0))
    street = Street(size, rng, look_of(domain, strength), layout)
    draw_scene(street)
    return photograph(street)


# ---- files ----------------------------------------------------------------------------------------------------------

def png_rgb16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG of uint16 [H, W, 3], which Pillow cannot write (PNG specification, colour type 2)."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)  # filter type 0 before every row
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b""))


def save_label(path: Path, label: np.ndarray, dataset: str):
    """Label ids uint8 [H, W] (Cityscapes) in the data set's own coding and file format."""
    if dataset == "synthia":
        table = np.zeros(256, np.uint16)
        for label_id, train_id in SYNTHIA_IDS.items():
            table[LABEL_ID[CITYSCAPES_CLASSES[train_id]]] = label_id
        ids = table[label]
        path.write_bytes(png_rgb16(np.stack([ids, ids * 7 % 50, np.zeros_like(ids)], 2)))
        return
    image = Image.fromarray(label)
    if dataset == "gta5":
        palette = np.zeros((256, 3), np.uint8)
        for label_id, train_id in CITYSCAPES_IDS.items():
            palette[label_id] = CITYSCAPES_PALETTE[train_id]
        image = image.convert("P")
        image.putpalette(palette.tobytes())
    image.save(path)


def write_pair(item: tuple, seed: int, size: tuple[int, int], strength: float):
    """Draw and write one image and its label; `item` as from `world_files`."""
    dataset, split, index, image_path, label_path = item
    image, label = render(seed, dataset, split, index, size, strength)
    Image.fromarray(image).save(image_path, compress_level=3)
    save_label(label_path, label, dataset)


def world_files(root: Path, source: int, synthia: int, train: int, val: int):
    """Yields (dataset, split, index, image path, label path) of a whole world."""
    for i in range(source):
        yield "gta5", "train", i, *(root / "gta5" / d / f"{i + 1:05d}.png" for d in ("images", "labels"))
    for i in range(synthia):
        yield "synthia", "train", i, *(root / "synthia" / d / f"{i:07d}.png" for d in ("RGB", "GT/LABELS"))
    for split, number in (("train", train), ("val", val)):
        for i in range(number):
            city = CITIES[split][i % len(CITIES[split])]
            stem = f"{city}_{i // len(CITIES[split]):06d}_000019"
            yield ("cityscapes", split, i, root / "cityscapes/leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
                   root / "cityscapes/gtFine" / split / city / f"{stem}_gtFine_labelIds.png")


def read_marker(root: Path) -> dict | None:
    """The marker of an earlier run, None where `root` is new or empty; DataError where it belongs to someone else."""
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        return None
    try:
        marker = json.loads((root / MARKER).read_text())
        return {**marker, "counts": {k: int(marker["counts"][k]) for k in ("source", "synthia", "train", "val")}}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{root} is not empty and has no valid {MARKER} of a toy world: give a new or empty folder, "
                        "nothing was changed") from None


def write_toy_world(root: str | Path, seed: int = 0, size: tuple[int, int] = (256, 128), source: int = 400,
                    synthia: int = 40, train: int = 300, val: int = 100, strength: float = STRENGTH) -> str:
    """Write the world under `root`; size is (width, height). Returns one line that says what was done.

    An earlier toy world there is replaced file by file, or kept where it is complete and has the same parameters.
    Raises ConfigError for impossible parameters, DataError where `root` holds anything else.
    """
    root, counts = Path(root), {"source": source, "synthia": synthia, "train": train, "val": val}
    if seed < 0 or min(counts.values()) < 0 or min(size) < 32 or not 0 <= strength <= 1.5:
        raise ConfigError("toy world: seed and numbers of images must not be negative, width and height at least 32, "
                          "strength within 0..1.5")
    old, files = read_marker(root), list(world_files(root, **counts))
    marker = {"version": VERSION, "seed": seed, "size": list(size), "counts": counts, "strength": strength,
              "look": {k: asdict(v) for k, v in LOOK.items()}, "layout": {k: asdict(v) for k, v in LAYOUT.items()}}
    if old == {"complete": True, **marker} and all(path.is_file() for item in files for path in item[3:]):
        return f"{root}: already there ({len(files)} images, seed {seed})"
    for *_, image_path, label_path in world_files(root, **old["counts"]) if old else ():
        image_path.unlink(missing_ok=True)
        label_path.unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    # Unfinished until the last image is there: an interrupted run can be repeated.
    (root / MARKER).write_text(json.dumps({"complete": False, **marker}, indent=1))
    for folder in {path.parent for item in files for path in item[3:]}:
        folder.mkdir(parents=True, exist_ok=True)
    with Pool(min(os.cpu_count() or 1, 8, 1 + len(files) // 64)) as pool:
        done = pool.imap_unordered(partial(write_pair, seed=seed, size=size, strength=strength), files, chunksize=8)
        for _ in tqdm(done, total=len(files), desc="toy world", unit="image"):
            pass
    (root / MARKER).write_text(json.dumps({"complete": True, **marker}, indent=1))
    return (f"{root}: wrote {source} gta5, {synthia} synthia, {train} + {val} cityscapes images of "
            f"{size[0]} x {size[1]}, seed {seed}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dataset.toy", description="Draw a toy street world in the layouts "
                                     "of GTA5, SYNTHIA (game look) and Cityscapes (camera look).")
    parser.add_argument("--root", required=True, help="folder to write: new, empty, or an earlier toy world")
    parser.add_argument("--seed", type=int, default=0, help="of the whole world (default 0)")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("W", "H"),
                        help="in pixels (default 256 128)")
    for name, number, text in (("source", 400, "gta5 images"), ("synthia", 40, "synthia images"),
                               ("train", 300, "cityscapes training images"), ("val", 100, "cityscapes val images")):
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"{text} (default {number})")
    parser.add_argument("--strength", type=float, default=STRENGTH, help="of the appearance shift, 0..1.5 (default 1)")
    options = vars(parser.parse_args(arguments))
    options["size"] = tuple(options["size"])
    try:
        print(write_toy_world(**options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
