"""A page as a value, and as one HTML file: no network, no script, no second file.

All text is plain text; the page shows it as it is. A content security policy in the file forbids
the browser to load anything.

Example:
    >>> table = Table(
    ...     caption="published",
    ...     columns=(Column("method"), Column("error (%)", number=True)),
    ...     rows=(("BP", "9.0"), ("DDG K=2", "9.5")),
    ... )
    >>> page = Page(title="A <paper>", sections=(Section("Result", (Prose("Read it."), table)),))
    >>> "A &lt;paper&gt;" in render_page(page)
    True
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from delaygrad.results.figure import COLOURS, Panel, svg
from delaygrad.training.run_folder import writing

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Prose:
    """Paragraphs, divided by blank lines; a note is smaller and paler."""

    kind: ClassVar[str] = "prose"
    text: str
    note: bool = False

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs, without line breaks."""
        return [" ".join(text.split()) for text in re.split(r"\n\s*\n", self.text.strip())]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels beside each other as the width allows, over a caption.

    A panel wider than a phone scrolls within itself.
    """

    kind: ClassVar[str] = "figure"
    panels: tuple[Panel, ...]
    caption: str


@dataclass(frozen=True)
class Cell:
    """A cell with a second line in smaller letters, or with the colour of a series."""

    text: str
    detail: str = ""
    series: int | None = None


@dataclass(frozen=True)
class Column:
    """A column: heading, a second line of the heading, and whether its cells are numbers."""

    heading: str
    detail: str = ""
    number: bool = False


Row: TypeAlias = tuple[str | Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; a row of one cell alone is the heading of the rows that follow."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) not in (1, len(self.columns)):
                raise ValueError(f"a row has {len(row)} cells (columns: {len(self.columns)})")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    caption: str
    values: Mapping[str, str]


Block: TypeAlias = Prose | Table | Figure | Facts


@dataclass(frozen=True)
class Section:
    """A heading, blocks, and sections under headings of the next level."""

    heading: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page.

    Attributes:
        title: above everything, and of the window.
        lead: paragraphs under the title: the result.
        sections: in order.
        source: the last line: what the page was made from.
    """

    title: str
    lead: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    source: str = ""


def write_page(page: Page, path: Path) -> Path:
    """Write the page, and the folders that lead to it; return its path.

    Raises:
        ConfigError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_page(page), encoding="utf-8")
    return path


def render_page(page: Page) -> str:
    """Return the page as HTML; the same page gives the same text."""
    anchors = dict(zip(map(id, _walk(page.sections)), _anchors(page.sections), strict=True))
    return _template().render(page=page, colours=COLOURS, anchors=anchors)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("delaygrad.results", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def joined(text: str) -> Markup:
        """Keep a number in one line with its spread and its percent sign."""
        return Markup(escape(text).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%"))

    environment.filters["joined"] = joined
    environment.filters["svg"] = lambda panel: Markup(svg(panel))
    environment.globals["id"] = id
    return environment.get_template("page.html")


def _walk(sections: tuple[Section, ...]) -> Iterator[Section]:
    for section in sections:
        yield section
        yield from _walk(section.sections)


def _anchors(sections: tuple[Section, ...]) -> Iterator[str]:
    """Make an id for each heading, each id once."""
    used: set[str] = set()
    for section in _walk(sections):
        words = re.sub(r"[^a-z0-9]+", "-", section.heading.lower()).strip("-") or "section"
        names = itertools.chain([words], (f"{words}-{number}" for number in itertools.count(2)))
        used.add(anchor := next(name for name in names if name not in used))
        yield anchor
