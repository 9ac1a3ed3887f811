"""Plots as SVG text to stand within an HTML page: lines over steps, and dots in rows.

Colours come from the page's style sheet, as the classes `s0` to `s7` of the series; dashes and the shapes of dots tell
them apart as well. Names are escaped.
"""
import math
from collections.abc import Mapping, Sequence

from markupsafe import escape

SERIES = 8  # colours, dashes and shapes that are told apart
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "10 2 2 2 2 2")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 220, 48, 18, 10, 38
_ROW = 17  # height of a row of dots
_FEW = 12  # points of a line up to which each has a dot

Points = Sequence[tuple[float, float]]


def lines(series: Mapping[str, Points], title: str, x_label: str, y_label: str,
          marks: Sequence[float] = ()) -> str:
    """A plot of lines: name -> points (x, y) in order of x. marks: where thin vertical lines stand. Empty if there is
    no point."""
    points = [p for of_series in series.values() for p in of_series]
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = (_limits([p[axis] for p in points]) for axis in (0, 1))
    y_ticks, (unit, y_label) = ticks(y_low, y_high, 5), _unit(max(abs(y_low), abs(y_high)), y_label)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def at(x, y):
        return (_LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM))
    parts = [_line("mark", at(x, y_low), at(x, y_high)) for x in marks if x_low < x < x_high]
    for y in y_ticks:
        parts += [_line("grid", at(x_low, y), at(x_high, y)),
                  _text(_LEFT - 6, at(x_low, y)[1] + 4, f"{y / unit:g}", "end")]
    for x in (t for t in ticks(x_low, x_high, 5) if x_low <= t <= x_high):
        parts += [_line("axis", at(x, y_low), (at(x, y_low)[0], _HEIGHT - _BOTTOM + 4)),
                  _text(at(x, y_low)[0], _HEIGHT - _BOTTOM + 16, f"{x:g}", "middle")]
    parts.append(_line("axis", at(x_low, y_low), at(x_high, y_low)))
    parts.append(_text((_WIDTH + _LEFT) / 2, _HEIGHT - 4, x_label, "middle"))
    parts.append(f'<text transform="translate(11 {(_HEIGHT - _BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">'
                 f'{escape(y_label)}</text>')
    for i, (name, of_series) in enumerate(series.items()):
        placed = [at(*p) for p in of_series]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dots = "".join(shape(i, x, y, 3) for x, y in placed) if len(placed) <= _FEW else ""
        parts.append(f'<g class="s{i % SERIES}"><title>{escape(name)}</title><polyline points="{way}" '
                     f'stroke-dasharray="{_DASHES[i % SERIES]}"/>{dots}</g>')
    return _svg(title, _HEIGHT, parts)


def dots(rows: Mapping[str, Sequence[float | None]], names: Sequence[str], title: str, x_label: str) -> str:
    """A plot of numbers in 0..1: a row for each name of `rows`, and in it a dot for each number; None has no dot.
    names: of the series, which are the positions in the rows."""
    left = min(150, 8 + max((6.2 * len(name) for name in rows), default=0))
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def at(value):
        return left + value * (_WIDTH - left - _RIGHT)
    parts, bottom = [], height - _BOTTOM
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts += [_line("grid", (at(value), _TOP), (at(value), bottom)),
                  _text(at(value), bottom + 14, f"{value:g}", "middle")]
    parts.append(_text((left + _WIDTH) / 2, height - 4, x_label, "middle"))
    for r, (row, values) in enumerate(rows.items()):
        y = _TOP + _ROW * (r + 0.5)
        shown = row if len(row) <= 23 else row[:22] + "…"
        parts += [_line("grid", (left, y), (at(1), y)), _text(left - 6, y + 4, shown, "end")]
        for i, (value, name) in enumerate(zip(values, names)):
            if value is not None:
                parts.append(f'<g class="s{i % SERIES}"><title>{escape(row)}, {escape(name)}: {value:.3f}</title>'
                             f'{shape(i, at(value), y, 4)}</g>')
    return _svg(title, height, parts)


def swatch(i: int, dotted: bool = False) -> str:
    """The sign of series i for a legend: a piece of its line, or its dot."""
    drawn = "" if dotted else f'<polyline points="0,6 24,6" stroke-dasharray="{_DASHES[i % SERIES]}"/>'
    return (f'<svg class="swatch s{i % SERIES}" viewBox="0 0 24 12" width="24" height="12" aria-hidden="true">'
            f'{drawn}{shape(i, 12, 6, 4)}</svg>')


def shape(i: int, x: float, y: float, r: float) -> str:
    """The dot of series i: a circle, square, triangle or diamond."""
    if i % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    corners = ([(-1, -1), (1, -1), (1, 1), (-1, 1)], [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
               [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)])[i % 4 - 1]
    return f'<polygon points="{" ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners)}"/>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that span low..high: multiples of 1, 2 or 5 times a power of ten. The first is at
    most `low`, the last at least `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _unit(largest, label):
    """A power of ten in which numbers are short, and the label that says it."""
    power = math.floor(math.log10(largest)) if largest else 0
    if -3 < power < 5:
        return 1.0, label
    return 10.0 ** power, f"{label}, 10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _limits(values):
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    return low - max(abs(low), 1) / 2, high + max(abs(high), 1) / 2  # a single value lies in the middle


def _line(kind, start, end):
    return f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def _text(x, y, text, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title, height, parts):
    return (f'<svg class="plot" role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} {height:g}">'
            f'{"".join(parts)}</svg>')
