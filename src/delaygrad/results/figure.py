"""Figures made of panels: as a PNG file, or as SVG that follows the colours of a page."""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delaygrad.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: dict[str, tuple[str, str]] = {  # on light, on dark
    "paper": ("#fcfcfa", "#14171b"),
    "ink": ("#1b2127", "#e5e8eb"),
    "quiet": ("#59626c", "#a0a9b3"),
    "line": ("#dde0e3", "#30363d"),
    "shade": ("#f2f3f1", "#1c2025"),
    "link": ("#0b57a4", "#7db6f5"),
    "s0": ("#48525d", "#b7c0ca"),
    "s1": ("#1f66b5", "#6aa9f0"),
    "s2": ("#c04a12", "#ff9459"),
    "s3": ("#0e7f62", "#45c79c"),
    "s4": ("#a03f8c", "#e48fd0"),
    "s5": ("#8f6500", "#dfb345"),
    "s6": ("#14788f", "#5fd0e6"),
    "s7": ("#a3243a", "#f3838f"),
}
"""The colours of page and figures. A unit test measures their contrast."""

ACTIVITY_COLOURS = {
    "forward": "s1", "backward": "s2", "average": "s4", "update": "s3", "send": "ink",
    "wait": "paper", "other": "line",
}  # fmt: skip
FONT_SIZE = 11.0  # points; a page shows a panel at its own size on a phone
_NUM_SERIES = 8
_HEAD = 20.0  # points of a line of a title
_DPI = 110


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot.

    Attributes:
        draw: draws it onto axes.
        description: what it shows, for readers who cannot see it.
        width: of the whole, in points (pixels on a page); 360 is the width of a phone.
        height: likewise.
        margins: around the plane between the axes: left, right, top, bottom.
    """

    draw: Callable[[Axes], None]
    description: str
    width: float = 360
    height: float = 250
    margins: tuple[float, float, float, float] = (50, 12, 26, 42)


def colour(name: str | int) -> str:
    """Return a colour by its name, or that of a series by its number.

    Example:
        >>> colour("ink") == COLOURS["ink"][0], colour(9) == COLOURS["s1"][0]
        (True, True)
    """
    return COLOURS[name if isinstance(name, str) else f"s{name % _NUM_SERIES}"][0]


def write_png(rows: Mapping[str, Sequence[Panel]], path: Path, title: str = "") -> Path:
    """Draw rows of panels into a file; its suffix decides the format.

    Args:
        rows: by the title of the row, which may be "".
        path: of the file.
        title: of the whole.

    Raises:
        ConfigError: the file cannot be written, or the format is unknown.
    """
    from matplotlib.figure import Figure  # worker processes import this room and draw nothing

    width = max((sum(panel.width for panel in row) for row in rows.values()), default=0) or 360.0
    letters = int(width / (0.6 * (FONT_SIZE + 2)))
    parts = [(title, ()), *rows.items()]
    texts = [
        "\n".join(textwrap.fill(line, letters) for line in text.splitlines()) for text, _ in parts
    ]
    heads = [_HEAD * len(text.splitlines()) for text in texts]
    height = sum(heads) + sum(max((p.height for p in row), default=0.0) for _, row in parts)
    height = max(height, _HEAD)
    with _style():
        figure = Figure(figsize=(width / 72, height / 72), facecolor=colour("paper"))
        top = height
        for text, head, (_, row) in zip(texts, heads, parts, strict=True):
            look = {"fontweight": "bold"} if row else {"fontsize": FONT_SIZE + 2}
            figure.text(8 / width, (top - 6) / height, text, va="top", **look)
            top, left = top - head, 0.0
            for panel in row:
                _draw(figure, panel, left, top, width, height)
                left += panel.width
            top -= max((panel.height for panel in row), default=0.0)
        try:
            figure.savefig(path, dpi=_DPI)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot write the figure ({path}: {error}); choose another file"
            ) from error
    return path


def svg(panel: Panel) -> str:
    """Draw a panel as an ``<svg>`` element; the same panel gives the same text.

    Its colours are the variables of the page, its letters those of the page.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(panel.width / 72, panel.height / 72))
        _draw(figure, panel, 0.0, panel.height, panel.width, panel.height)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(file.getvalue(), panel.description)


def _draw(figure: Any, panel: Panel, left: float, top: float, width: float, height: float) -> None:
    """Place the axes of a panel whose upper left corner is given, in points from below left."""
    inner = panel.margins
    plane = (
        (left + inner[0]) / width,
        (top - panel.height + inner[3]) / height,
        (panel.width - inner[0] - inner[1]) / width,
        (panel.height - inner[2] - inner[3]) / height,
    )
    axes = figure.add_axes(plane)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    panel.draw(axes)


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "delaygrad", "font.size": FONT_SIZE,
        "font.family": ["DejaVu Sans"], "text.parse_math": False, "text.color": colour("ink"),
        "axes.facecolor": "none", "axes.edgecolor": colour("quiet"),
        "axes.labelcolor": colour("quiet"), "axes.titlesize": FONT_SIZE + 0.5,
        "axes.titlelocation": "left", "axes.axisbelow": True, "xtick.color": colour("quiet"),
        "ytick.color": colour("quiet"), "grid.color": colour("line"), "grid.linewidth": 0.8,
        "hatch.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": FONT_SIZE,
        "lines.solid_capstyle": "round",
    })  # fmt: skip


def _for_page(markup: str, description: str) -> str:
    markup = markup[markup.index("<svg") :]
    markup = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", markup, flags=re.S
    )
    markup = re.sub(r'<g id="[^"]*"', "<g", markup)
    markup = re.sub(r" font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"", "", markup)
    markup = re.sub(r"\s+", " ", markup.replace("xlink:href", "href"))
    prefix = "f" + hashlib.sha256(markup.encode()).hexdigest()[:8]
    markup = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}", markup)
    for name, (light, _) in COLOURS.items():
        markup = markup.replace(light, f"var(--{name})")
    (box,) = re.findall(r'viewBox="[^"]*"', markup)
    opening = f'<svg {box} role="img" aria-label="{escape(description)}">'
    return re.sub(r"<svg[^>]*>", opening.replace("\\", r"\\"), markup, count=1).strip()
