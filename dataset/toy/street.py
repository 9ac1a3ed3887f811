"""The sky, the ground and the roadside of a toy street."""
import numpy as np
from PIL import Image

from dataset.toy.canvas import FAR, FOCAL, NEAR, Colour, Street, shade, smooth_noise


def draw_sky(st: Street) -> None:
    """Draw the sky over the whole image: a gradient with soft clouds. Ground and houses are drawn over it."""
    height, rng = st.size[1], st.rng
    rows = np.clip(np.arange(height) / st.horizon, 0, 1)[:, None, None]
    top, low = np.array(st.tone((95, 145, 215), 15, 8)), np.array(st.tone((190, 210, 232), 10, 5))
    cloud = np.clip(smooth_noise(rng, st.size, 14, 30) + 0.6 * smooth_noise(rng, st.size, 6, 12) + rng.normal(0, .5),
                    0, 1.6)[..., None] / 1.6
    sky = top * (1 - rows) + low * rows
    sky = sky * (1 - 0.8 * cloud) + 238 * 0.8 * cloud
    st.image.paste(Image.fromarray(sky.clip(0, 255).astype(np.uint8)))


def draw_ground(st: Street, road: float, zones: dict[int, list]) -> None:
    """Draw the road with its markings, and on each side (-1, 1) its strips (class, from x, to x) outwards."""
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


def draw_tiles(st: Street, side: int, x0: float, x1: float, base: Colour) -> None:
    """Draw the joints of a sidewalk and its bright kerb."""
    pitch = st.rng.uniform(0.9, 1.3)
    for z in np.arange(NEAR, 24, pitch):
        st.ground(side * x0, side * x1, z, z + 0.1 + 0.004 * z, shade(base, 0.78))
    for x in np.arange(x0 + pitch, min(x1, x0 + 5), pitch):
        st.ground(side * x, side * (x + 0.06), NEAR / 2, 30, shade(base, 0.8))
    st.ground(side * x0, side * (x0 + 0.22), NEAR / 2, FAR, shade(base, 1.22))


def draw_grass(st: Street, side: int, x0: float, x1: float, base: Colour) -> None:
    """Draw tufts of grass: short upright strokes, denser than the joints of a sidewalk and without order."""
    for z in np.sort(1 / st.rng.uniform(1 / 25, 1 / 4, 70))[::-1]:
        x = side * st.rng.uniform(x0 + 0.1, min(x1, x0 + 6) - 0.1)
        (column, row), length = st.at(x, 0, z), 0.16 * FOCAL / z * st.unit
        colour = shade(base, st.rng.uniform(0.6, 1.35))
        st.stroke("line", [column, row, column + st.rng.uniform(-0.4, 0.4) * length, row - length * 0.5], colour)


def draw_house(st: Street, x: float, z0: float, z1: float) -> None:
    """Draw a house along the street at x from z0 to z1 (near to far): end wall, floors of windows, shops below."""
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


def draw_end(st: Street) -> None:
    """Draw the houses and trees that close the street at its far end."""
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


def draw_blobs(st: Street, name: str, x: float, y: float, rx: float, ry: float, count: int, z: float) -> None:
    """Draw the leaves of a tree or bush: overlapping blobs, dark below and bright above; radii in metres."""
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


def draw_tree(st: Street, x: float, z: float) -> None:
    """Draw a tree: shadow, trunk and leaves."""
    rng, height = st.rng, st.rng.uniform(2.6, 4.0)
    st.shadow(x, 0.8, z)
    st.use("vegetation", z)
    st.line([(x, 0), (x + rng.normal(0, .1), height)], 0.3, st.tone((78, 60, 44), 8, 4))
    draw_blobs(st, "vegetation", x, height + 0.8, rng.uniform(1.2, 1.9), rng.uniform(1.2, 1.8), 34, z)


def draw_wall(st: Street, x: float, z0: float, z1: float) -> None:
    """Draw a wall of blocks under a coping, 1.8 to 2.6 m high."""
    height, tone = st.rng.uniform(1.8, 2.6), st.tone((150, 132, 122), 22, 10)
    st.use("wall", (z0 + z1) / 2)
    st.side(x, z0, z1, 0, height, tone)
    for row, y in enumerate(np.arange(0.0, height - 0.2, 0.42)):
        st.side(x, z0, z1, y, y + 0.09, shade(tone, 0.62))
        for z in np.arange(z0 + 0.5 * (row % 2), min(z1, 22) - 0.2, 1.0):
            st.side(x, z, z + 0.13, y, y + 0.42, shade(tone, 0.68))
    st.side(x, z0, z1, height - 0.22, height, shade(tone, 1.2))


def draw_fence(st: Street, x: float, z0: float, z1: float) -> None:
    """Draw a railing of bars and two rails; what is behind it shows between the bars."""
    rng, height = st.rng, st.rng.uniform(1.5, 2.1)
    tone = st.tone(rng.choice((55, 120, 205)), 14, 8)
    st.use("fence", (z0 + z1) / 2)
    st.side(x, z0, z1, 0, height, None)
    pitch = rng.uniform(0.55, 0.8)
    for z in np.arange(z0, z1 - 0.1, pitch):
        st.side(x, z, z + pitch * 0.42, 0, height, tone)
    for y in (0.15, height - 0.3):
        st.side(x, z0, z1, y, y + 0.16, shade(tone, 0.85))


def draw_roadside(st: Street, side: int, edge: float) -> None:
    """Draw plots of houses or bushes beyond `edge` metres, far to near, then perhaps a wall or a fence before them."""
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
