"""What stands and moves in a toy street, a short painter for each class, and the whole scene."""
from dataclasses import asdict
from functools import partial

import numpy as np

from dataset.toy.street import Street, draw_end, draw_ground, draw_roadside, draw_sky, draw_tree, shade


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


def draw_motorcycle(st: Street, x: float, z: float, rider: bool = False):
    """Two thick wheels, engine, tank, seat and lamp, seen from the side."""
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
    "bicycle": (draw_bicycle, 6.5, 10, 0.9, "any"),
    "person": (draw_person, 5.2, 9, 0.4, "any"),
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
