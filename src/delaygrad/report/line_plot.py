"""Lines over two axes, as SVG that takes its colours from the page.

The drawing is 360 pixels wide, the width of a phone; a desk shows several side by side. Its only
text is that of the axes: a legend belongs to the figure, and is the page's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

from delaygrad.report.axis import Axis
from delaygrad.report.marks import point, series_class
from delaygrad.report.page import Svg

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 350, 30, 202  # of the plane between the axes
_MOST_POINTS_SHOWN = 40  # of a line; with more the points would hide it

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line.

    Attributes:
        label: what it shows; a mouse at rest on it shows this.
        points: in order; one that is not finite interrupts the line.
        series: decides colour and the shape of points.
        faint: drawn thin, behind the others: one of several that another line sums up.
        marked: show the points, each with its values.
        broken: why the line ends as it does ("diverged ..."), shown as a cross; or nothing.
    """

    label: str
    points: tuple[Point, ...]
    series: int
    faint: bool = False
    marked: bool = False
    broken: str = ""


def line_plot(
    lines: Sequence[Line], x: Axis, y: Axis, description: str, *, reference: float | None = None
) -> Svg:
    """Draw the lines.

    Args:
        lines: faint ones come to lie behind.
        x: from left to right.
        y: from bottom to top; its label is the title.
        description: what there is to see, for who cannot see it.
        reference: a value of y at which to draw a level line.
    """
    parts = [_ticks(x, y), f'<text class="title" x="0" y="13">{escape(y.label)}</text>']
    if reference is not None:
        parts.append(f'<path class="base" d="M{LEFT} {_y(y, reference):.1f}H{RIGHT}"/>')
    for line in sorted(lines, key=lambda line: not line.faint):
        parts.append(f'<g class="{series_class(line.series)}">{_line(line, x, y)}</g>')
    return Svg(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (RIGHT - LEFT)


def _y(axis: Axis, value: float) -> float:
    return BOTTOM - axis.place(value) * (BOTTOM - TOP)


def _ticks(x: Axis, y: Axis) -> str:
    parts = []
    for tick in y.ticks:
        level = _y(y, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {level:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{level + 4:.1f}">{tick:g}</text>')
    for tick in x.ticks:
        across = _x(x, tick)
        parts.append(f'<path class="base" d="M{across:.1f} {BOTTOM}v4"/>')
        parts.append(f'<text class="middle" x="{across:.1f}" y="{BOTTOM + 17}">{tick:g}</text>')
    parts.append(f'<path class="base" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle:g}" y="{HEIGHT - 4}">{escape(x.label)}</text>')
    return "".join(parts)


def _line(line: Line, x: Axis, y: Axis) -> str:
    pieces, begun = [], False
    shown = []
    for across, up in line.points:
        if not (math.isfinite(across) and math.isfinite(up)) or (y.log and up <= 0):
            begun = False
            continue
        place = _x(x, across), _y(y, up)
        pieces.append(f"{'L' if begun else 'M'}{place[0]:.1f} {place[1]:.1f}")
        begun = True
        shown.append((place, f"{line.label}: {up:.5g} at {across:.4g} ({x.label})"))
    if not shown:
        return ""
    kind = "line faint" if line.faint else "line"
    drawn = f'<path class="{kind}" d="{"".join(pieces)}"><title>{escape(line.label)}</title></path>'
    if len(shown) == 1 or (line.marked and len(shown) <= _MOST_POINTS_SHOWN):
        drawn += "".join(point(line.series, *place, title) for place, title in shown)
    if line.broken:
        (across, up), _ = shown[-1]
        drawn += (
            f'<path class="cross" d="M{across - 5:.1f} {up - 5:.1f}l10 10m0 -10l-10 10">'
            f"<title>{escape(f'{line.label}: {line.broken}')}</title></path>"
        )
    return drawn
