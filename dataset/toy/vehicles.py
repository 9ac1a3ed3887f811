"""Vehicles of a toy street: car, bus, truck and tram."""
from collections.abc import Sequence

import numpy as np

from dataset.toy.canvas import Colour, Street, shade


def draw_box(st: Street, x: float, width: float, y0: float, y1: float, z: float, length: float,
             colour: Colour) -> float:
    """Draw the body of a vehicle: the side towards the middle of the street, then the end that faces the camera.

    Returns the lateral position of the side.
    """
    inner = x - np.sign(x) * width / 2
    st.side(inner, z, z + length, y0, y1, shade(colour, 0.75))
    st.rect(x - width / 2, x + width / 2, y0, y1, colour)
    return inner


def draw_wheels(st: Street, inner: float, z: float, marks: Sequence[float], radius: float, width: float) -> None:
    """Draw the wheels on the visible side `inner`, at the distances `marks` behind z, and the two at the near end."""
    for mark in marks:
        angles = np.linspace(0, 2 * np.pi, 9)
        st.stroke("polygon", [st.at(inner, max(radius * (1 + np.sin(a)), 0), z + mark + radius * np.cos(a))
                              for a in angles], (28, 28, 30))
    out = np.sign(inner) or 1
    for edge in (inner, inner + out * (width - 0.3)):
        st.rect(min(edge, edge + out * 0.3), max(edge, edge + out * 0.3), 0, 0.3, (26, 26, 28))


def draw_car(st: Street, x: float, z: float) -> None:
    """Draw a car from the front or the back: body, narrower cabin, windows, lamps, number plate."""
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


def draw_bus(st: Street, x: float, z: float) -> None:
    """Draw a bus: a long body with a band of windows, a big windscreen and a lit destination board."""
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


def draw_truck(st: Street, x: float, z: float) -> None:
    """Draw a truck from the back: a ribbed cargo box with doors, high over a dark chassis, and the cab far ahead."""
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


def draw_train(st: Street, x: float, z: float) -> None:
    """Draw a tram on the rails: a very long side with bands, a rounded nose with a lamp, a pantograph on the roof."""
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
