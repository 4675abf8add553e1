"""A strip for a table's row: one ring per run, their mean, and one standard deviation about it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from delaygrad.report.axis import Axis
from delaygrad.report.marks import series_class
from delaygrad.report.page import Svg
from delaygrad.report.quantities import Spread

WIDTH, HEIGHT = 176, 24
_MARGIN = 8


def strip(spread: Spread, axis: Axis, series: int, titles: Sequence[str], description: str) -> Svg:
    """Draw the values of a spread.

    Args:
        spread: finite values.
        axis: the same for all rows of the column.
        series: decides the colour.
        titles: of each value, shown where a mouse rests on it.
        description: what it shows, for who cannot see it.
    """
    middle = HEIGHT / 2
    parts = [f'<path class="grid" d="M{_MARGIN} {middle:g}H{WIDTH - _MARGIN}"/>']
    mean = _x(axis, spread.mean)
    if spread.std is not None:
        low, high = (_x(axis, spread.mean + sign * spread.std) for sign in (-1, 1))
        parts.append(f'<path class="spread" d="M{low:.1f} {middle:g}H{high:.1f}"/>')
    parts.append(f'<path class="mean" d="M{mean:.1f} {middle - 8:g}v16"/>')
    for value, title in zip(spread.values, titles, strict=True):
        parts.append(
            f'<circle class="ring" cx="{_x(axis, value):.1f}" cy="{middle:g}" r="3.5">'
            f"<title>{escape(title)}</title></circle>"
        )
    return Svg(
        f'<svg class="strip {series_class(series)}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(description)}">{"".join(parts)}</svg>'
    )


def strip_axis(axis: Axis) -> Svg:
    """Draw the axis of the strips, for the heading of their column."""
    ticks = "".join(f'<path class="base" d="M{_x(axis, t):.1f} 17v5"/>' for t in axis.ticks)
    ticks += "".join(
        f'<text class="middle" x="{_x(axis, tick):.1f}" y="13">{tick:g}</text>'
        for tick in dict.fromkeys([axis.ticks[0], axis.ticks[-1]])
    )
    return Svg(
        f'<svg class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        f'<path class="base" d="M{_MARGIN} 22H{WIDTH - _MARGIN}"/>{ticks}</svg>'
    )


def _x(axis: Axis, value: float) -> float:
    return _MARGIN + axis.place(value) * (WIDTH - 2 * _MARGIN)
