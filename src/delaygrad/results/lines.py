"""Lines over two axes. Each carries its name at its end; names never overlap."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from delaygrad.results.figure import FONT_SIZE, Panel, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTER, _LEADING = 0.68 * FONT_SIZE, 1.2 * FONT_SIZE  # points, at most
_LABEL_LETTERS = 18  # of a row of a label
_GAP = 14.0  # points from the plane to the labels
_DASHES = ("-", "--", ":", "-.")
_NUM_COLOURS = 8
_FEW_TICKS = 15.0  # ratio of the ends of an axis above which ticks at 1, 2 and 5 suffice
_WIDE = 20.0  # a difference so large would hide the small ones on a linear axis


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line.

    Attributes:
        label: at its end.
        x: in order.
        y: as many; a value that is not finite interrupts the line.
        low: of a band around the line, as many; () for no band.
        high: likewise.
        series: decides the colour, and the dashes where colours repeat.
        broken: whether the line ends because its runs diverged, shown as a cross.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    series: int = 0
    broken: bool = False


def line_panel(
    lines: Sequence[Line],
    title: str,
    xlabel: str,
    *,
    log: bool = False,
    levels: Sequence[float] = (),
) -> Panel:
    """Return a panel with lines.

    Args:
        lines: those without a finite point are left out.
        title: what y is, with the unit.
        xlabel: what x is, with the unit.
        log: logarithmic y, where all values are positive.
        levels: values of y to mark.
    """
    shown = [line for line in lines if any(map(_is_finite, zip(line.x, line.y, strict=True)))]
    labels = [textwrap.wrap(line.label, _LABEL_LETTERS) for line in shown]
    letters = max((len(row) for rows in labels for row in rows), default=0)
    label_height = _LEADING * sum(map(len, labels))
    margins = (50.0, _GAP + 4 + _LETTER * letters, 30.0, 42.0)
    log = log and bool(shown) and all(y > 0 for line in shown for y in line.y if math.isfinite(y))

    def draw(axes: Axes) -> None:
        for line in shown:
            _draw(axes, line)
        for level in levels:
            axes.axhline(level, color=colour("quiet"), linewidth=0.8, zorder=1)
        _set_limits(axes, shown, log=log, levels=levels)
        axes.set_title(title, pad=10, x=(4 - margins[0]) / (360 - margins[0] - margins[1]))
        axes.set_xlabel(xlabel)
        axes.grid(axis="y")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
        _write_labels(axes, shown, labels)

    ends = "; ".join(f"{line.label} ends at {_last(line)[1]:.4g}" for line in shown)
    return Panel(
        draw=draw,
        description=f"Line plot: {title}{', logarithmic' if log else ''}, against {xlabel}. {ends}",
        height=max(250.0, label_height + margins[2] + margins[3]),
        margins=margins,
    )


def _draw(axes: Axes, line: Line) -> None:
    look: dict[str, Any] = {"color": colour(line.series)}
    dashes = _DASHES[line.series // _NUM_COLOURS % len(_DASHES)]
    marker = "o" if len(line.x) == 1 else ""
    axes.plot(line.x, line.y, dashes, linewidth=1.8, marker=marker, ms=4, **look)
    if line.broken:
        axes.plot(*_last(line), marker="x", ms=7, mew=1.8, **look)
    if line.low:
        axes.fill_between(line.x, line.low, line.high, alpha=0.18, linewidth=0, **look)


def _set_limits(axes: Axes, lines: Sequence[Line], *, log: bool, levels: Sequence[float]) -> None:
    """Fit y to the lines, and to bands where the axis is linear."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    values = [y for line in lines for y in line.y if math.isfinite(y)] or [0.0, 1.0]
    if log:
        low, high = min(values), max(values)
        margin = (high / low) ** 0.05 if high > low else 1.5
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
        subs = (1, 2, 5) if high / low > _FEW_TICKS else (1, 1.5, 2, 3, 4, 5, 6, 8)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="both", length=0)
        return
    bands = [y for line in lines for y in (*line.low, *line.high) if math.isfinite(y)]
    values += [*bands, *levels]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    if 0 in levels and max(-low, high) > _WIDE:  # differences small and large at once
        axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
        ticks = [sign * tick for tick in (1, 3, 10, 30, 100) for sign in (-1, 1)]
        axes.set_yticks([0, *(tick for tick in ticks if low <= tick <= high)])
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()


def _write_labels(axes: Axes, lines: Sequence[Line], labels: Sequence[list[str]]) -> None:
    """Write each line's name right of the plane, with a thin line from the line's end to it."""
    box = axes.get_window_extent()
    scale = 72 / axes.figure.dpi
    width, height = scale * box.width, scale * box.height
    to_plane = axes.transData + axes.transAxes.inverted()
    ends = [to_plane.transform(_last(line)) for line in lines]
    sizes = [_LEADING * len(rows) for rows in labels]
    places = spaced([height * y for _, y in ends], sizes, height)
    for line, rows, (x, y), place in zip(lines, labels, ends, places, strict=True):
        look: dict[str, Any] = {"color": colour(line.series), "clip_on": False}
        lead = [x, 1 + (_GAP - 3) / width], [y, place / height]
        axes.plot(*lead, transform=axes.transAxes, linewidth=0.7, alpha=0.6, **look)
        axes.text(
            1 + _GAP / width, place / height, "\n".join(rows), transform=axes.transAxes,
            va="center", linespacing=1.0, color=colour(line.series),
        )  # fmt: skip


def spaced(wanted: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """Move places apart as little as needed, so that intervals of given sizes do not overlap.

    Each run of touching intervals is centred on the mean of the places that it was wanted at. The
    intervals stay between 0 and ``room``, where they fit.

    Example:
        >>> spaced([10.0, 5.0, 5.0], [4.0, 4.0, 4.0], 12.0)
        [10.0, 2.0, 6.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[list[int], float, float]] = []  # members, middle, length
    for i in order:
        block = _block([i], wanted, sizes, room)
        while blocks and blocks[-1][1] + blocks[-1][2] / 2 > block[1] - block[2] / 2:
            block = _block(blocks.pop()[0] + block[0], wanted, sizes, room)
        blocks.append(block)
    found = [0.0] * len(wanted)
    for members, middle, length in blocks:
        place = middle - length / 2
        for i in members:
            found[i] = place + sizes[i] / 2
            place += sizes[i]
    return found


def _block(
    members: list[int], wanted: Sequence[float], sizes: Sequence[float], room: float
) -> tuple[list[int], float, float]:
    length = sum(sizes[i] for i in members)
    middle = sum(wanted[i] for i in members) / len(members)
    return members, max(length / 2, min(middle, room - length / 2)), length


def _last(line: Line) -> tuple[float, float]:
    return [point for point in zip(line.x, line.y, strict=True) if _is_finite(point)][-1]


def _is_finite(point: tuple[float, float]) -> bool:
    return all(map(math.isfinite, point))
