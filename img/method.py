"""The figure of the method: img/method.svg, and with --png also img/method.png, drawn by a Chromium that is there.

    python -m img.method [--png]
"""
import argparse
import re
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1360, 620
INK, FAINT, PANEL, EDGE = "#1f2933", "#52606d", "#f5f7fa", "#cbd2d9"
NETWORK, TEACHER, LOSS = "#2563a8", "#6b3fa0", "#b4540a"
ROAD, SKY, HOUSE, CAR, TREE, UNKNOWN = "#804080", "#4682b4", "#464646", "#00008e", "#6b8e23", "#ffffff"
PHOTO = {ROAD: "#8d8f92", SKY: "#cfe0ea", HOUSE: "#b58f6f", CAR: "#c94f3d", TREE: "#6f9460"}  # class -> in an image
DUSK = {ROAD: "#4c5261", SKY: "#7f8aa8", HOUSE: "#6f5f66", CAR: "#8c4a4f", TREE: "#485f54"}
SCENE_WIDTH, SCENE_HEIGHT = 120, 76


def text(x: float, y: float, words: str, size: int = 16, colour: str = INK, anchor: str = "middle",
         weight: str = "normal") -> str:
    """Lines of text, the first with its base line at y. _x_ is in italics, {x} a subscript."""
    lines = []
    for number, line in enumerate(words.split("\n")):
        spans = re.sub(r"_(.+?)_", r'<tspan font-style="italic">\1</tspan>', escape(line))
        # The empty tspan, of a zero-width blank, goes back to the base line.
        spans = re.sub(r"\{(.+?)\}", '<tspan dy="4" font-size="0.75em">\\1</tspan><tspan dy="-4">\u200b</tspan>', spans)
        lines.append(f'<text x="{x}" y="{y + number * size * 1.25}" font-size="{size}" fill="{colour}" '
                     f'text-anchor="{anchor}" font-weight="{weight}">{spans}</text>')
    return "".join(lines)


def box(x: float, y: float, width: float, height: float, words: str, colour: str) -> str:
    """A filled box with words in white."""
    lines = words.count("\n")
    return (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{colour}"/>'
            + text(x + width / 2, y + height / 2 + 5.5 - lines * 10, words, 16, "white"))


def arrow(*points: tuple[float, float], colour: str = FAINT, dashed: bool = False) -> str:
    """A line through points with a head at its end."""
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    dashes = ' stroke-dasharray="6 5"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes} marker-end="url(#head)"/>'


def scene(x: float, y: float, colours: dict[str, str] | None = None, holes: bool = False, mirrored: bool = False,
          without: tuple[str, ...] = (), pasted: dict[str, str] | None = None) -> str:
    """A small street: its label map or, with colours of the classes, an image. holes: some pixels have no label.
    without: classes that are left out. pasted: colours of a second street's car and tree, pasted over this one."""
    def fill(name):
        return colours[name] if colours else name
    shapes = {SKY: '<rect width="120" height="76" fill="{}"/>',
              HOUSE: '<path d="M0 18h34v34H0z M88 8h32v44H88z" fill="{}"/>',
              ROAD: '<path d="M0 76V60L44 44h32l44 16v16z" fill="{}"/>',
              TREE: '<path d="M40 46v-10a13 13 0 1 1 8 0v10z" fill="{}"/>',
              CAR: '<path d="M66 62v-10l6-2 5-8h20l6 8 6 2v10z" fill="{}"/>'}
    drawn = "".join(shape.format(fill(name)) for name, shape in shapes.items() if name not in without)
    if pasted is not None:
        extra = "".join(shapes[name].format(pasted.get(name, name)) for name in (TREE, CAR))
        drawn += f'<g transform="translate(120 0) scale(-1 1)">{extra}</g>'
    if holes:
        marks = "M0 14h34v6H0z M30 18h6v34h-6z M86 6h4v46h-4z M0 56l44-16v7L0 64z M76 40l44 16v8L76 47z " \
                "M62 46h8v18h-8z M36 20a16 16 0 0 1 16-6v6a10 10 0 0 0-10 8z M98 40h14v24h-6V50z"
        drawn += f'<path d="{marks}" fill="{UNKNOWN}"/>'
    flip = f" translate({SCENE_WIDTH} 0) scale(-1 1)" if mirrored else ""
    return (f'<g transform="translate({x} {y})"><g clip-path="url(#frame)"><g transform="{flip}">{drawn}</g></g>'
            f'<rect width="{SCENE_WIDTH}" height="{SCENE_HEIGHT}" rx="4" fill="none" stroke="{FAINT}"/></g>')


def panel(x: float, width: float, title: str, words: str) -> str:
    """The background of a stage, with its name."""
    return (f'<rect x="{x}" y="16" width="{width}" height="{HEIGHT - 32}" rx="14" fill="{PANEL}" stroke="{EDGE}"/>'
            + text(x + 20, 48, title, 19, anchor="start", weight="bold") + text(x + 20, 73, words, 15, FAINT, "start"))


def stage_0(x: float) -> str:
    """Training on the source."""
    middle = x + 130
    return "".join((
        panel(x, 260, "Stage 0: source only", "labelled images of the source"),
        scene(middle - 60, 100, PHOTO), text(middle, 198, "source image", 15, FAINT),
        arrow((middle, 206), (middle, 240)),
        box(middle - 75, 246, 150, 48, "network _f_", NETWORK),
        arrow((middle, 294), (middle, 330)),
        text(middle, 352, "_L_ = cross entropy", 17, LOSS, weight="bold"),
        arrow((middle, 420), (middle, 364)),
        scene(middle - 60, 426), text(middle, 524, "source label", 15, FAINT)))


def stage_1(x: float) -> str:
    """Label denoising."""
    left, right = x + 95, x + 350
    return "".join((
        panel(x, 500, "Stage 1: LD, label denoising", "unlabelled images of the target only"),
        scene(left - 60, 100, DUSK), text(left, 198, "target image", 15, FAINT),
        arrow((left, 206), (left, 240)),
        box(left - 65, 246, 130, 48, "network _f_", NETWORK),
        arrow((left, 294), (left, 330)),
        text(left, 352, "_p_ = softmax(_f_(_x_))", 16),
        arrow((left + 62, 340), (x + 190, 340), (x + 190, 138), (x + 222, 138)),
        arrow((x + 190, 340), (x + 190, 390), (x + 222, 390)),
        arrow((x + 190, 390), (x + 190, 500), (x + 222, 500)),
        text(x + 232, 112, "threshold of each class: the most\nconfident share _α_ of its pixels\n"
             "over all target images", 15, INK, "start"),
        arrow((right - 60, 158), (right - 60, 180)),
        scene(right - 120, 186, holes=True), text(right - 60, 284, "pseudo label", 15, FAINT),
        arrow((right + 6, 224), (right + 28, 224)),
        text(right + 36, 218, "positive\n_L_{pos}", 16, LOSS, "start", "bold"),
        text(x + 232, 384, "all pixels", 15, INK, "start"),
        text(x + 232, 406, "entropy  _L_{ent}", 16, LOSS, "start", "bold"),
        text(x + 232, 472, "what a pixel is not: a class _k_ of\nmiddle rank, drawn in each step", 15, INK,
             "start"),
        text(x + 232, 520, "negative  _L_{neg} = −log(1 − _p_{k})", 16, LOSS, "start", "bold"),
        arrow((x + 250, 560), (left, 560), (left, 374), dashed=True),
        text(x + 258, 565, "next round: label again", 15, FAINT, "start")))


def stage_2(x: float) -> str:
    """Boundary enhancement."""
    left, middle, right = x + 85, x + 255, x + 425
    return "".join((
        panel(x, 510, "Stage 2: BE, boundary enhancement", "starts from the network of stage 1"),
        scene(left - 60, 100, DUSK, mirrored=True), scene(left - 60, 190, PHOTO | {SKY: "#aab4c8"}, without=(TREE,)),
        text(left, 288, "two target images", 15, FAINT),
        arrow((left + 66, 182), (middle - 71, 182)),
        box(middle - 65, 154, 130, 56, "teacher\n(EMA)", TEACHER),
        arrow((middle + 65, 182), (right - 66, 182)),
        scene(right - 60, 100, mirrored=True), scene(right - 60, 190, without=(TREE,)),
        text(right, 288, "pseudo labels, else\nthose of the teacher", 15, FAINT),
        arrow((left, 296), (left, 366)), arrow((right, 320), (right, 366)),
        text(left + 12, 318, "selective ClassMix:\nhalf of the classes\npasted over another", 14, INK, "start"),
        scene(left - 60, 372, PHOTO | {SKY: "#aab4c8"}, without=(TREE,), pasted={TREE: DUSK[TREE], CAR: DUSK[CAR]}),
        scene(right - 60, 372, without=(TREE,), pasted={}),
        arrow((left + 66, 410), (middle - 71, 410)),
        box(middle - 65, 384, 130, 52, "student _f_", NETWORK),
        text(left, 470, "mixed image", 15, FAINT), text(right, 470, "mixed label", 15, FAINT),
        arrow((middle, 436), (middle, 506)), arrow((right, 478), (right, 528), (middle + 126, 528)),
        text(middle, 534, "_L_ = weighted cross entropy", 17, LOSS, weight="bold"),
        text(middle, 560, "weight: share of confident pixels", 15, FAINT),
        arrow((middle + 20, 384), (middle + 20, 216), colour=TEACHER, dashed=True),
        text(middle + 30, 340, "_θ′_ ← _aθ′_ + (1 − _a_) _θ_", 15, TEACHER, "start")))


def figure() -> str:
    """The whole figure as SVG."""
    head = ('<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="8" markerHeight="8" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{FAINT}"/></marker><clipPath id="frame">'
            f'<rect width="{SCENE_WIDTH}" height="{SCENE_HEIGHT}" rx="4"/></clipPath></defs>')
    title = "<title>The three stages of LDBE: source only, label denoising, boundary enhancement</title>"
    behind = (f'<path d="M293 24V596" stroke="{LOSS}" stroke-width="2" stroke-dasharray="3 6"/>'
              f'<g transform="rotate(-90 293 310)">'
              f'<rect x="193" y="298" width="200" height="24" fill="white"/>'
              + text(293, 315, "the source stays behind", 15, LOSS) + "</g>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'role="img" font-family="Helvetica, Arial, Liberation Sans, sans-serif">{title}{head}'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{stage_0(16)}{behind}{stage_1(310)}{stage_2(834)}'
            "</svg>\n")


def main() -> None:
    """Write the figure beside this file."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--png", action="store_true", help="also draw img/method.png, at twice the size")
    given, path = options.parse_args(), Path(__file__).with_suffix(".svg")
    path.write_text(figure(), encoding="utf-8")
    if given.png:
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            raise SystemExit("error: --png: no Chromium on the path: install one.")
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                            f"--user-data-dir={profile}", "--force-device-scale-factor=2", "--hide-scrollbars",
                            f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={path.with_suffix('.png')}",
                            path.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
