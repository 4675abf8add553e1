"""A page is one sound file that fetches nothing, shows text as text, and can be read by anyone."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from markup import outside_urls, parse, table
from recorded_runs import record_run

from delaygrad.errors import ConfigError
from delaygrad.report import render_page, write_page
from delaygrad.report.page import (
    Cell,
    Column,
    Facts,
    Figure,
    Key,
    Page,
    Png,
    Prose,
    Section,
    Svg,
    Table,
)

EVIL = """<script>alert("1")</script> & 'so' </style></svg>"""
TABLE = Table(
    caption=f"a table {EVIL}",
    columns=(Column("name"), Column(f"number {EVIL}", EVIL, number=True), Column("drawing")),
    rows=(
        (Cell(f"group {EVIL}", EVIL, series=3),),
        (EVIL, "76.10 ± 0.20 %", Svg('<svg viewBox="0 0 1 1" role="img" aria-label="x"></svg>')),
    ),
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
            (
                Figure(
                    pictures=(Png(b"\x89PNG", f"picture {EVIL}"),),
                    caption=EVIL,
                    legend=(Key(EVIL, 1), Key(EVIL, "forward")),
                    wide=True,
                ),
            ),
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
    assert page.all("img")[0].attributes["alt"] == f"picture {EVIL}"
    assert page.all("figcaption")[0].text == as_read
    assert [p.text for p in page.all("p") if p.text in ("two", "second")] == ["second", "two"]
    for element in page.every():
        assert not any(name.startswith("on") for name in element.attributes)


def test_headings_descend_and_the_contents_lead_to_them() -> None:
    page = parse(render_page(PAGE))
    levels = [int(h.tag[1]) for h in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels == [1, 2, 2, 2, 3, 4, 2]
    ids = [str(e.attributes["id"]) for e in page.every() if "id" in e.attributes]
    assert len(ids) == len(set(ids)) == 6
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
        hidden = drawing.attributes.get("aria-hidden") == "true"
        assert hidden or (drawing.attributes["role"] == "img" and drawing.attributes["aria-label"])
    for cell in page.all("th"):
        assert cell.attributes["scope"] in {"col", "row", "colgroup"}
    for region in page.all("div"):
        if region.attributes.get("class") == "scroll":  # reachable by the keyboard, with a name
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
    with pytest.raises(ConfigError, match=r"cannot write the page \(.*file.*another place"):
        write_page(PAGE, tmp_path / "file" / "page.html")


def test_a_row_of_the_wrong_length_is_refused() -> None:
    short = Table(caption="c", columns=TABLE.columns, rows=(("a", "b"),))
    with pytest.raises(ValueError, match="zip"):
        render_page(Page(title="t", sections=(Section("s", (short,)),)))


def colours() -> dict[str, dict[str, str]]:
    """The two sets of colours of the style sheet."""
    style = files("delaygrad.report").joinpath("page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in blocks)
    return {"light": light, "dark": dark}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2, from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_measured_as_it_should_be() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(theme: str) -> None:
    found = colours()[theme]
    assert colours()["light"].keys() == found.keys() and len(found) == 14
    for name in ("ink", "quiet", "link"):  # text
        assert contrast(found[name], found["paper"]) >= 4.5, name
    for number in range(8):  # lines; letters on bars, too
        assert contrast(found[f"s{number}"], found["paper"]) >= 3.0, number
    for number in (1, 2):
        assert contrast(found[f"s{number}"], found["paper"]) >= 4.5, number


def test_page_of_the_docs_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parents[3] / "docs" / "report.md"
    (example,) = re.findall(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    runs = [record_run(tmp_path / name, method=name) for name in ("bp", "ddg")]
    exec(example, {"RUN_DIRS": runs, "PNG": b"\x89PNG"})
    page = parse((tmp_path / "paper.html").read_text(encoding="utf-8"))
    assert [h.text for h in page.all("h2")] == ["ResNet-8", "Memory"]
    assert [h.text for h in page.all("h3")][:2] == ["Accuracy", "Learning curves"]
    assert table(page, "As published")[2] == ["DDG K=2", "90.5"]
