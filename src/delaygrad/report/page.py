"""A page as a value: headings, prose, tables and figures, without a word of HTML.

Whoever has something to show composes sections; ``delaygrad.report.html_page`` turns them into one
file. All text is plain text: the page shows it as it stands, whatever characters it holds.

Example:
    >>> from delaygrad.report.html_page import render_page
    >>> table = Table(
    ...     caption="published",
    ...     columns=(Column("method"), Column("error (%)", number=True)),
    ...     rows=(("BP", "9.0"), ("DDG K=2", "9.5")),
    ... )
    >>> page = Page(title="A <paper>", sections=(Section("Result", (Prose("As told."), table)),))
    >>> "A &lt;paper&gt;" in render_page(page)
    True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Prose:
    """Paragraphs.

    Attributes:
        text: blank lines divide it into paragraphs.
        note: whether it is a remark, set smaller and paler than the page's main text.
    """

    text: str
    note: bool = False


@dataclass(frozen=True)
class Svg:
    """A drawing that becomes part of the page, and follows its colours.

    Attributes:
        markup: an ``<svg>`` element, taken as it stands: from this package's own plots, or from
            matplotlib without its XML declaration. Never text out of a file.
    """

    markup: str


@dataclass(frozen=True)
class Png:
    """A picture that becomes part of the page.

    Attributes:
        content: the file's bytes.
        description: what it shows, for who cannot see it.
    """

    content: bytes
    description: str


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Attributes:
        label: what is drawn so.
        style: how: the number of a series, or the name of an activity (``forward`` ...).
    """

    label: str
    style: int | str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Pictures side by side as the page's width allows, under a legend and over a caption.

    Attributes:
        pictures: drawn for a width of about 360 pixels each; a ``wide`` one for 900.
        caption: one or more sentences.
        legend: of all pictures together.
        wide: whether a picture keeps its width, and scrolls within itself on a narrow screen.
    """

    pictures: tuple[Svg | Png, ...]
    caption: str
    legend: tuple[Key, ...] = ()
    wide: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a text.

    Attributes:
        text: as in other cells.
        detail: a second line, smaller.
        series: the number of the series that the row belongs to, shown as a mark of its colour.
    """

    text: str
    detail: str = ""
    series: int | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: with the unit of the numbers below.
        detail: a second line, smaller.
        number: whether the cells are numbers, which are aligned to the right.
        picture: below the heading, such as the axis of the drawings in the column.
    """

    heading: str
    detail: str = ""
    number: bool = False
    picture: Svg | None = None


Row: TypeAlias = tuple[str | Cell | Svg, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, which scrolls within itself where the page is too narrow for it.

    Attributes:
        caption: what it holds.
        columns: from left to right; the first has the names of the rows.
        rows: of as many cells as there are columns. A row of one cell alone is a heading of the
            rows that follow it.
        note: below the table.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values.

    Attributes:
        caption: what they belong to.
        values: in the order in which they are shown.
    """

    caption: str
    values: Mapping[str, str]


Block: TypeAlias = Prose | Table | Figure | Facts


@dataclass(frozen=True)
class Section:
    """A heading and what is under it.

    Attributes:
        heading: short; the page's table of contents has it too.
        blocks: in order.
        sections: under headings of the next level, after the blocks.
    """

    heading: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page.

    Attributes:
        title: above everything, and of the window.
        lead: paragraphs under the title that tell the result.
        sections: in order.
        source: the last line: what the page was made from.
    """

    title: str
    lead: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    source: str = ""
