"""How a series of data looks wherever it appears: a colour and the shape of its points.

The colours themselves are in page.css, one set for light and one for dark screens; an element of
class ``s2`` and what is inside it have those of series 2.
"""

from __future__ import annotations

from html import escape

NUM_COLOURS = 8
"""Series of different colour; later ones begin again."""

_REACH = 3.2  # of a point from its centre, in pixels


def series_class(series: int) -> str:
    """Return the class that gives an element the colour of a series.

    Example:
        >>> series_class(0), series_class(9)
        ('s0', 's1')
    """
    return f"s{series % NUM_COLOURS}"


def point(series: int, x: float, y: float, title: str = "") -> str:
    """Draw a point in the shape of the series; the title shows where a mouse rests on it."""
    r = _REACH
    told = f"<title>{escape(title)}</title>" if title else ""
    match series % 4:
        case 0:
            return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{told}</circle>'
        case 1:
            outline = f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
        case 2:
            outline = f"M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r:.1f} {2.2 * r:.1f}h{-2.4 * r:.1f}z"
        case _:
            d = 1.3 * r
            outline = f"M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}l{-d:.1f} {d:.1f}l{-d:.1f} {-d:.1f}z"
    return f'<path class="point" d="{outline}">{told}</path>'


def mark(style: int | str) -> str:
    """Draw the small mark of a legend: of a series by its number, else of an activity."""
    if isinstance(style, int):
        return (
            f'<svg class="mark {series_class(style)}" viewBox="0 0 22 12" aria-hidden="true">'
            f'<path class="line" d="M1 6h20"/>{point(style, 11, 6)}</svg>'
        )
    return (
        '<svg class="mark" viewBox="0 0 22 12" aria-hidden="true">'
        f'<rect class="{escape(style)}" x="3" y="0.5" width="16" height="11" rx="2"/></svg>'
    )
