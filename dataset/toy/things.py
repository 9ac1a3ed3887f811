"""People, two-wheelers and street furniture of a toy street, where things are placed, and the whole scene."""
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np

from dataset.toy.canvas import Colour, Point, Street, shade
from dataset.toy.street import draw_end, draw_ground, draw_roadside, draw_sky, draw_tree
from dataset.toy.vehicles import draw_bus, draw_car, draw_train, draw_truck


def draw_pole(st: Street, x: float, z: float) -> None:
    """Draw a post with a traffic light, a sign or both."""
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


def draw_body(st: Street, x: float, way: int, seat: float) -> Colour:
    """Draw head, torso and arms above the hip at (x, seat), leaning towards `way`; returns the trousers' colour."""
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


def draw_person(st: Street, x: float, z: float) -> None:
    """Draw a walking person."""
    stride = st.rng.uniform(0.1, 0.3)
    st.shadow(x, 0.4, z)
    st.use("person", z)
    trousers = draw_body(st, x, 0, 0.82)
    for leg in (-1, 1):
        st.line([(x + .09 * leg, .9), (x + stride * leg, 0.04)], 0.2, shade(trousers, 1 - 0.1 * leg))


def draw_bicycle(st: Street, x: float, z: float, rider: bool = False) -> None:
    """Draw a bicycle from the side, with spoked wheels; a rider is drawn over it."""
    way = int(st.rng.choice((-1, 1)))
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


def draw_motorcycle(st: Street, x: float, z: float, rider: bool = False) -> None:
    """Draw a motorcycle from the side, with wheels, engine, tank, seat and lamp; a rider is drawn over it."""
    way = int(st.rng.choice((-1, 1)))
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


def draw_rider(st: Street, x: float, way: int, z: float, seat: float, foot: Point) -> None:
    """Draw a rider who sits at (x, seat), looks towards `way` and has one foot at `foot`."""
    st.use("rider", z)
    trousers = draw_body(st, x, way, seat)
    st.line([(x, seat + .05), (x + .42 * way, seat - .12), foot], 0.19, trousers)


def draw_static(st: Street, x: float, z: float) -> None:
    """Draw a bin, which belongs to none of the 19 classes."""
    colour, height = st.tone(110, 30, 20), st.rng.uniform(0.8, 1.2)
    st.use("static", z)
    st.rect(x - .35, x + .35, 0, height, colour)
    st.rect(x - .4, x + .4, height, height + .12, shade(colour, 0.6))


# thing -> (function that draws it, nearest and farthest distance in metres, half width in metres, where it may stand)
THINGS: dict[str, tuple[Callable, float, float, float, str]] = {
    "truck": (draw_truck, 8, 13, 1.25, "lane"),
    "bus": (draw_bus, 8, 13, 1.25, "lane"),
    "bike rider": (partial(draw_bicycle, rider=True), 6.5, 10, 0.9, "road"),
    "motor rider": (partial(draw_motorcycle, rider=True), 6.5, 10, 1.0, "road"),
    "car": (draw_car, 7, 16, 0.9, "lane"),
    "motorcycle": (draw_motorcycle, 7, 11, 1.0, "any"),
    "bicycle": (draw_bicycle, 6.5, 10, 0.9, "any"),
    "person": (draw_person, 5.2, 9, 0.4, "any"),
    "pole": (draw_pole, 7, 12, 0.5, "walk"),
    "tree": (draw_tree, 9, 24, 1.2, "walk"),
    "static": (draw_static, 8, 14, 0.4, "walk"),
}


def count(rng: np.random.Generator, mean: float) -> int:
    """A random whole number with that mean: one of the two nearest to it."""
    return int(mean + rng.random())


def place_things(st: Street, road: float, zones: dict[int, list]) -> None:
    """Place the things that `st.layout` asks for, with little overlap and mostly inside the picture; draw them far to
    near."""
    rng, layout, todo, taken = st.rng, st.layout, [], []
    means = {**asdict(layout), "bike rider": layout.rider / 2, "motor rider": layout.rider / 2}
    for name, (draw, near, far, half, where) in THINGS.items():
        mean = means[name]
        for _ in range(count(rng, mean)):
            best: tuple = (np.inf,)
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


def draw_scene(st: Street) -> None:
    """Draw a whole street, from the sky to the bonnet of the camera's car.

    Each side is a row of strips from the edge of the road outwards.
    """
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
