"""What an HTML page consists of, read with Python's own parser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input", "source", "base"}
_URLS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(parts).split())

    def all(self, *tags: str) -> list[Element]:
        """Every element below with one of these tags, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if child.tag in tags else []
                found += child.all(*tags)
        return found

    def every(self) -> list[Element]:
        inner = [child for child in self.children if isinstance(child, Element)]
        return [self, *(element for child in inner for element in child.every())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice: {tag} {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    """Parse a page; fail unless every element is closed where it should be."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.open) == 1, f"not closed: {[element.tag for element in reader.open]}"
    return reader.open[0]


def outside_urls(page: Element) -> list[str]:
    """Whatever a browser might fetch from elsewhere: all but anchors and embedded data."""
    found = []
    for element in page.every():
        urls = [value or "" for name, value in element.attributes.items() if name in _URLS]
        styles = [element.attributes.get("style") or ""]
        styles += [element.text] if element.tag == "style" else []
        for style in styles:
            urls += [a or b for a, b in re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", style)]
        found += [str(url) for url in urls if not str(url).startswith(("#", "data:"))]
    return found


def table(page: Element, caption: str) -> list[list[str]]:
    """The texts of a table's cells, row by row, its head first."""
    (element,) = [t for t in page.all("table") if t.all("caption")[0].text == caption]
    return [[cell.text for cell in row.all("th", "td")] for row in element.all("tr")]
