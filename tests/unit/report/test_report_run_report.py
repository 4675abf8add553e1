"""The whole page, made from run folders: each part says what the records say."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markup import Element, outside_urls, parse, table
from recorded_runs import record_run

from delaygrad.report import write_report

EVIL = '<img src="http://host/x">&"'


def page_of(root: Path, *folders: Path, title: str = "") -> Element:
    return parse(write_report(folders, root / "report.html", title).read_text(encoding="utf-8"))


def headings(page: Element) -> list[str]:
    return [heading.text for heading in page.all("h2")]


def some_runs(root: Path) -> list[Path]:
    return [
        record_run(root / "bp-0", method="bp", accuracy=0.80, best=0.83),
        record_run(root / "bp-1", method="bp", accuracy=0.78, seed=1),
        record_run(
            root / "ddg-0", stages=3, accuracy=0.77, runtime="distributed", trace=True,
            direction=True,
        ),
        record_run(root / "ddg-1", stages=3, runtime="distributed", seed=1, until=20),
        record_run(root / "ddg-9", stages=9, until=20, diverged=True, environment={"torch": "9"}),
    ]  # fmt: skip


def test_page_has_all_its_parts_and_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(tmp_path, *some_runs(tmp_path))
    assert page.all("h1")[0].text == page.all("title")[0].text == "ResNet-8 on CIFAR-10"
    assert headings(page) == [
        "Accuracy", "Learning curves", "Stages", "Timeline", "Sufficient direction", "Runs",
        "Configuration", "Environment",
    ]  # fmt: skip
    assert outside_urls(page) == []
    lead = [p.text for p in page.all("p") if p.attributes.get("class") == "lead"]
    assert lead == [
        "BP ends at 79.00 ± 1.41 % test accuracy, DDG K=3 at 77.00 % (−2.00 points). DDG K=9 "
        "diverged.",
        "5 runs in 3 groups, 1 diverged, 1 unfinished: CIFAR-10, ResNet-8, sgd, 4 epochs, batches "
        "of 128.",
    ]


def test_accuracy_is_honest_and_the_best_is_marked(tmp_path: Path) -> None:
    page = page_of(tmp_path, *some_runs(tmp_path))
    head, bp, ddg, lost = table(page, "Accuracy by group of runs")
    assert head[1].startswith("final test accuracy (%)")
    assert head[4] == "best test accuracy (%)chosen on the test set"
    # By hand: mean 79, deviations 1 and -1, so s = sqrt(2); best 83 and 78, s = sqrt(12.5).
    assert bp[:2] == ["BPseeds 0, 1", "79.00 ± 1.41"]
    assert bp[3:6] == ["–", "80.50 ± 3.54", "0.310 ± 0.014"]
    assert ddg[:2] == ["DDG K=3seeds 0, 1; 1 unfinished", "77.00"]
    assert ddg[3:6] == ["−2.00", "77.00", "0.330"]
    assert lost[:2] == ["DDG K=9seed 0; 1 diverged", "diverged"] and lost[3:6] == ["–"] * 3
    strips = [
        svg for svg in page.all("svg")
        if "strip" in str(svg.attributes.get("class")) and svg.attributes.get("role")
    ]  # fmt: skip
    assert [len(strip.all("circle")) for strip in strips] == [2, 1]
    assert strips[0].attributes["aria-label"] == "BP: bp-0: 80.00 %; bp-1: 78.00 %"


def test_every_run_is_there_with_what_became_of_it(tmp_path: Path) -> None:
    rows = table(page_of(tmp_path, *some_runs(tmp_path)), "Every run")
    assert [row[0] for row in rows] == [
        "run",
        "BP", "bp-0seed 0; finished", "bp-1seed 1; finished",
        "DDG K=3", "ddg-0seed 0; finished",
        "ddg-1seed 1; unfinished at iteration 20 (epoch 2.0 of 4)",
        "DDG K=9", "ddg-9seed 0; diverged at iteration 21 (loss nan)",
    ]  # fmt: skip
    assert rows[2][1:3] == ["80.00", "83.00epoch 3"]
    assert rows[6][1:3] == ["35.00so far, at epoch 2", "–"]


def test_stages_have_delay_staleness_and_shares(tmp_path: Path) -> None:
    rows = table(page_of(tmp_path, *some_runs(tmp_path)), "Delay, and where the time went")
    assert rows[1] == ["BPmean of 2 runs; one process"]
    assert rows[3] == ["DDG K=3a process for each stage"]
    shares = ["25.0", "50.0", "5.0", "2.0", "10.0"]
    assert [row[:4] + row[5:] for row in rows[4:]] == [
        ["0", "(input)", "2", "2", *shares],
        ["1", "layer1", "1", "1", *shares],
        ["2", "layer2", "0", "0", *shares],
    ]


def test_timeline_is_that_of_the_trace(tmp_path: Path) -> None:
    page = page_of(tmp_path, *some_runs(tmp_path))
    (drawing,) = [
        svg for svg in page.all("svg")
        if str(svg.attributes.get("aria-label")).startswith("Timeline of ddg-0: 3 stages")
    ]  # fmt: skip
    titles = [title.text for title in drawing.all("title")]
    assert {"forward 0F5: 30 ms", "backward 2B5: 60 ms", "send 1F5: 1 ms"} <= set(titles)
    assert any(title.startswith("wait ") for title in titles)
    rows = {str(bar.attributes["y"]) for bar in drawing.all("rect")}
    assert len(rows) == 3
    widths = [float(str(b.attributes["width"])) for b in drawing.all("rect")]
    by_title = dict(zip(titles, widths, strict=True))
    forward, backward = by_title["forward 0F5: 30 ms"], by_title["backward 0B4: 60 ms"]
    assert backward == pytest.approx(2 * forward, rel=1e-3)


def test_direction_constants_are_those_of_the_records(tmp_path: Path) -> None:
    page = page_of(tmp_path, *some_runs(tmp_path))
    (section,) = [s for s in page.all("section") if s.attributes["aria-labelledby"] == (
        "sufficient-direction"
    )]  # fmt: skip
    legend = [item.text for item in section.all("li")]
    assert legend == ["stage 0 (delay 2)", "stage 1 (delay 1)", "stage 2 (delay 0)"]
    titles = [title.text for title in section.all("title")]
    # sigma = 1 - 0.1 delay epoch
    assert "stage 0: 0.8 at 1 (epoch)" in titles and "stage 0: 0.2 at 4 (epoch)" in titles
    assert "stage 1: 0.6 at 4 (epoch)" in titles and "stage 2: 1 at 4 (epoch)" in titles
    assert [figure.text for figure in section.all("figcaption")] == ["DDG K=3."]


def test_what_differs_is_a_table_and_what_is_common_is_said_once(tmp_path: Path) -> None:
    page = page_of(tmp_path, *some_runs(tmp_path))
    configuration, environment = [
        [[cell.text for cell in row.all("th", "td")] for row in t.all("tr")]
        for t in page.all("table")
        if t.all("caption")[0].text == "What differs"
    ]
    assert configuration[0] == ["run", "method", "stages", "cuts", "runtime", "seed"]
    assert configuration[1] == ["bp-0", "bp", "1", "none", "local", "0"]
    assert configuration[3] == ["ddg-0", "ddg", "3", "layer1, layer2", "distributed", "0"]
    assert [row[0] for row in environment] == ["run", "bp-0", "bp-1", "ddg-0", "ddg-1", "ddg-9"]
    assert [row[1] for row in environment] == ["torch", *["2.13.0"] * 4, "9"]
    facts = {d.all("dt")[0].text: d.all("dd")[0].text for d in page.all("div") if _is_pair(d)}
    assert facts["lr_milestones"] == "0.5, 0.75" and facts["augment"] == "yes"
    assert facts["weight_decay"] == "0.0005" and facts["commit"] == "0123456789abcdef"
    assert "torch" not in facts and "seed" not in facts
    assert not {"run_dir", "data_dir"} & facts.keys()  # places on somebody's machine


def _is_pair(element: Element) -> bool:
    children = [c.tag for c in element.children if isinstance(c, Element)]
    return children == ["dt", "dd"]


def test_a_run_under_way_alone_has_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, record_run(tmp_path / "a", until=15))
    assert headings(page) == ["Accuracy", "Learning curves", "Runs", "Configuration", "Environment"]
    assert "No run has finished" in page.text
    assert "unfinished at iteration 15 (epoch 1.5 of 4)" in page.text
    begun = record_run(tmp_path / "b", until=5)
    (begun / "records.jsonl").unlink()
    assert headings(page_of(tmp_path, begun)) == [
        "Accuracy",
        "Runs",
        "Configuration",
        "Environment",
    ]


def test_a_text_run_has_a_page(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, record_run(tmp_path / "a", data="text", model="gpt", split="validation")
    )
    assert page.all("h1")[0].text == "GPT on text"
    head, row = table(page, "Accuracy by group of runs")
    assert row[1] == "70.00" and row[4] == "–"  # the test set was looked at once
    assert table(page, "Every run")[2][3] == "70.00"  # validation


def test_text_from_files_is_only_ever_text(tmp_path: Path) -> None:
    folder = record_run(
        tmp_path / "a<b>&", model=EVIL, method=EVIL, stages=2, cuts=[EVIL], direction=True,
        environment={EVIL: EVIL}, split=EVIL, trace=True, **{EVIL: EVIL},
    )  # fmt: skip
    rewritten = (folder / "trace-events.json").read_text().replace('"forward"', '"x\\" y=\\"<b>"')
    (folder / "trace-events.json").write_text(rewritten)
    diverged = record_run(tmp_path / "b", until=10, diverged=True)
    records = (diverged / "records.jsonl").read_text().replace('"nan"', '"<script>"')
    (diverged / "records.jsonl").write_text(records)
    rendered = write_report([folder, diverged], tmp_path / "r.html", EVIL).read_text()
    page = parse(rendered)
    assert outside_urls(page) == [] and not page.all("img", "script", "b")
    assert page.all("h1")[0].text == EVIL
    assert "diverged at iteration 11 (loss <script>)" in page.text
    for markup in re.findall(r"<svg.*?</svg>", rendered, re.DOTALL):
        ElementTree.fromstring(markup.replace("&nbsp;", " "))  # well formed


def test_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folders = some_runs(tmp_path)
    first = write_report(folders, tmp_path / "1.html").read_bytes()
    assert write_report(folders, tmp_path / "2.html").read_bytes() == first
    assert str(tmp_path).encode() not in first and b"/somewhere" not in first
