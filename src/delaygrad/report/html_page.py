"""A page as one HTML file that needs nothing else: no network, no script, no second file.

A content security policy in the file itself forbids the browser to load anything.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path

from delaygrad.errors import ConfigError
from delaygrad.report.marks import mark
from delaygrad.report.page import (
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Key,
    Page,
    Png,
    Prose,
    Row,
    Section,
    Svg,
    Table,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LEAST_LISTED = 4  # sections, before a table of contents helps


def write_page(page: Page, path: Path) -> Path:
    """Write the page, and the folders that lead to it; return its path.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_page(page), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write the page ({error.filename or path}): {error.strerror or error}; "
            "choose another place"
        ) from error
    return path


def render_page(page: Page) -> str:
    """Return the page as HTML; the same page gives the same text."""
    style = files("delaygrad.report").joinpath("page.css").read_text(encoding="utf-8")
    anchors = _Anchors()
    sections = [_section(section, 2, anchors) for section in page.sections]
    lead = "".join(f'<p class="lead">{_text(text)}</p>\n' for text in page.lead)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{_text(page.title)}</h1>
{lead}{_contents(anchors.of_level(2))}</header>
<main>
{"".join(sections)}</main>
<footer><p>{_text(page.source)}</p></footer>
</body>
</html>
"""


class _Anchors:
    """The ids of the headings, each of them once."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def new(self, heading: str, level: int) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        names = itertools.chain([words], (f"{words}-{number}" for number in itertools.count(2)))
        anchor = next(name for name in names if name not in self._found)
        self._found[anchor] = level, heading
        return anchor

    def of_level(self, level: int) -> dict[str, str]:
        return {anchor: text for anchor, (at, text) in self._found.items() if at == level}


def _contents(headings: dict[str, str]) -> str:
    if len(headings) < _LEAST_LISTED:
        return ""
    items = "".join(f'<li><a href="#{a}">{_text(text)}</a></li>' for a, text in headings.items())
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'


def _section(section: Section, level: int, anchors: _Anchors) -> str:
    anchor, rank = anchors.new(section.heading, level), min(level, 6)
    inner = [_block(block) for block in section.blocks]
    inner += [_section(part, level + 1, anchors) for part in section.sections]
    return (
        f'<section aria-labelledby="{anchor}">\n'
        f'<h{rank} id="{anchor}">{_text(section.heading)}</h{rank}>\n{"".join(inner)}</section>\n'
    )


def _block(block: Block) -> str:
    match block:
        case Prose():
            return _prose(block)
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)
        case Facts():
            return _facts(block)


def _prose(prose: Prose) -> str:
    kind = ' class="note"' if prose.note else ""
    paragraphs = re.split(r"\n\s*\n", prose.text.strip())
    return "".join(f"<p{kind}>{_text(' '.join(text.split()))}</p>\n" for text in paragraphs)


def _facts(facts: Facts) -> str:
    pairs = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>\n"
        for name, value in facts.values.items()
    )
    return (
        f'<div class="facts"><p class="caption">{_text(facts.caption)}</p>\n'
        f"<dl>\n{pairs}</dl></div>\n"
    )


def _figure(figure: Figure) -> str:
    legend = ""
    if figure.legend:
        legend = f'<ul class="legend">{"".join(map(_key, figure.legend))}</ul>\n'
    pictures = "".join(f"<div>{_picture(picture)}</div>\n" for picture in figure.pictures)
    opening = '<div class="panels">'
    if figure.wide:
        opening = f'<div class="scroll" tabindex="0" role="region" {_name(figure.caption)}>'
    kind = ' class="wide"' if figure.wide else ""
    return (
        f"<figure{kind}>\n{legend}{opening}\n{pictures}</div>\n"
        f"<figcaption>{_text(figure.caption)}</figcaption>\n</figure>\n"
    )


def _key(key: Key) -> str:
    return f"<li>{mark(key.style)}{_text(key.label)}</li>"


def _picture(picture: Svg | Png) -> str:
    if isinstance(picture, Svg):
        return picture.markup
    content = base64.b64encode(picture.content).decode("ascii")
    return f'<img alt="{escape(picture.description)}" src="data:image/png;base64,{content}">'


def _table(table: Table) -> str:
    headings = "".join(map(_heading, table.columns))
    rows = "".join(_rows(table.rows, table.columns))
    note = f'<p class="note">{_text(table.note)}</p>\n' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" {_name(table.caption)}>\n<table>\n'
        f"<caption>{_text(table.caption)}</caption>\n"
        f"<thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n{note}"
    )


def _heading(column: Column) -> str:
    kind = ' class="number"' if column.number else ""
    picture = column.picture.markup if column.picture else ""
    return f'<th scope="col"{kind}>{_text(column.heading)}{_detail(column.detail)}{picture}</th>'


def _rows(rows: Iterable[Row], columns: tuple[Column, ...]) -> Iterator[str]:
    for row in rows:
        if len(row) == 1 < len(columns):
            span = f'<th scope="colgroup" colspan="{len(columns)}">{_cell(row[0])}</th>'
            yield f'<tr class="heading">{span}</tr>\n'
            continue
        cells = [f'<th scope="row">{_cell(row[0])}</th>']
        for cell, column in zip(row[1:], columns[1:], strict=True):
            kind = ' class="number"' if column.number else ""
            cells.append(f"<td{kind}>{_cell(cell)}</td>")
        yield f"<tr>{''.join(cells)}</tr>\n"


def _cell(cell: str | Cell | Svg) -> str:
    match cell:
        case str():
            return _text(cell)
        case Svg():
            return cell.markup
        case Cell():
            text = f"{_text(cell.text)}{_detail(cell.detail)}"
            if cell.series is None:
                return text
            return f'<div class="named">{mark(cell.series)}<span>{text}</span></div>'


def _detail(text: str) -> str:
    return f"<small>{_text(text)}</small>" if text else ""


def _text(text: str) -> str:
    """Escape plain text; a number stays in one line with its spread and its percent sign."""
    return escape(text).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")


def _name(text: str) -> str:
    return f'aria-label="{escape(text)}"'
