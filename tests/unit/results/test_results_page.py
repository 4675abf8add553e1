"""A page is one sound file that fetches nothing, shows text as text, and can be read by anyone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from markup import outside_urls, parse, table

from delaygrad.errors import ConfigError
from delaygrad.results import Panel, render_page, write_page
from delaygrad.results.page import Cell, Column, Facts, Figure, Page, Prose, Section, Table

EVIL = """<script>alert("1")</script> & 'so' </style></svg> {{ 1 }}"""
PANEL = Panel(draw=lambda axes: axes.set_title(EVIL), description=f"picture {EVIL}")
TABLE = Table(
    caption=f"a table {EVIL}",
    columns=(Column("name"), Column(f"number {EVIL}", EVIL, number=True)),
    rows=((Cell(f"group {EVIL}", EVIL, series=3),), (EVIL, "76.10 ± 0.20 %")),
    note=EVIL,
)
PAGE = Page(
    title=f"title {EVIL}",
    lead=(f"lead {EVIL}", "second"),
    sections=(
        Section("Result", (Prose(f"one {EVIL}\n\ntwo"), Prose(EVIL, note=True), TABLE)),
        Section("Result", (Facts(caption=EVIL, values={EVIL: EVIL}),)),
        Section(
            f"Deep {EVIL}",
            (Figure(panels=(PANEL, replace(PANEL, width=700)), caption=EVIL),),
            (Section("Deeper", (), (Section("Deepest"),)),),
        ),
        Section("Last"),
    ),
    source=EVIL,
)


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = parse(render_page(PAGE))
    assert outside_urls(page) == []
    assert not page.all("script", "link", "iframe", "object", "embed", "base")
    (policy,) = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert "default-src 'none'" in str(policy.attributes["content"])
    assert "img-src" not in str(policy.attributes["content"])
    planted = render_page(PAGE).replace("</main>", '<img alt="" src="//host/x.png"></main>')
    assert outside_urls(parse(planted)) == ["//host/x.png"]


def test_text_is_shown_as_text() -> None:
    rendered = render_page(PAGE)
    page = parse(rendered)
    as_read = " ".join(EVIL.split())
    assert "<script" not in rendered
    assert page.all("title")[0].text == f"title {as_read}"
    assert page.all("h1")[0].text == f"title {as_read}"
    head, group, row = table(page, f"a table {as_read}")
    assert head[1] == f"number {as_read}{as_read}"
    assert group == [f"group {as_read}{as_read}"]
    assert row[0] == as_read
    assert page.all("svg")[0].attributes["aria-label"] == f"picture {EVIL}"
    assert page.all("svg")[0].all("text")[-1].text == as_read
    assert page.all("figcaption")[0].text == as_read
    assert [p.text for p in page.all("p") if p.text in ("two", "second")] == ["second", "two"]
    for element in page.every():
        assert not any(name.startswith("on") for name in element.attributes)


def test_headings_descend_and_the_contents_lead_to_them() -> None:
    page = parse(render_page(PAGE))
    levels = [int(h.tag[1]) for h in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels == [1, 2, 2, 2, 3, 4, 2]
    ids = [str(e.attributes["id"]) for e in page.every() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    ids = [name for name in ids if not re.match("f[0-9a-f]{8}", name)]  # those of drawings
    assert len(ids) == 6
    (nav,) = page.all("nav")
    targets = [str(a.attributes["href"]) for a in nav.all("a")]
    second = [f"#{h.attributes['id']}" for h in page.all("h2")]
    assert targets == second and len(set(targets)) == 4
    for section in page.all("section"):
        assert section.attributes["aria-labelledby"] in ids


def test_page_says_what_it_is_to_those_who_cannot_see_it() -> None:
    page = parse(render_page(PAGE))
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    names = {str(m.attributes.get("name")): m.attributes.get("content") for m in page.all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    for drawing in page.all("svg"):
        assert drawing.attributes["role"] == "img" and drawing.attributes["aria-label"]
    for cell in page.all("th"):
        assert cell.attributes["scope"] in {"col", "row", "colgroup"}
    for region in page.all("div"):
        if "scroll" in str(
            region.attributes.get("class")
        ):  # reachable by the keyboard, with a name
            assert region.attributes["tabindex"] == "0" and region.attributes["aria-label"]


def test_a_number_keeps_its_spread_and_its_unit() -> None:
    assert "76.10&nbsp;±&nbsp;0.20&nbsp;%" in render_page(PAGE)


def test_a_short_page_has_no_contents() -> None:
    assert "<nav" not in render_page(Page(title="t", sections=(Section("one"),) * 3))


def test_same_page_gives_same_file_and_folders_are_made(tmp_path: Path) -> None:
    path = write_page(PAGE, tmp_path / "a" / "b" / "page.html")
    assert path.read_text(encoding="utf-8") == render_page(PAGE)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write \(.*file.*another place"):
        write_page(PAGE, tmp_path / "file" / "page.html")


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a row has 3 cells \(columns: 2\)"):
        replace(TABLE, rows=(("a", "b", "c"),))
