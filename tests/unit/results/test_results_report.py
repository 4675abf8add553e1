"""The whole page, made from run folders: each part says what the records say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markup import Element, outside_urls, parse, table
from recorded_runs import record_run

from delaygrad.results import group_runs, read_run, write_report
from delaygrad.results.curves import CAPTION
from delaygrad.results.report import result_text

EVIL = '<img src="http://host/x">&"$_{'


def page_of(root: Path, *folders: Path, title: str = "") -> Element:
    return parse(write_report(folders, root / "report.html", title).read_text(encoding="utf-8"))


def headings(page: Element) -> list[str]:
    return [heading.text for heading in page.all("h2")]


def test_page_has_all_its_parts_and_needs_nothing_else(reported: Any) -> None:
    page = reported.page
    assert page.all("h1")[0].text == page.all("title")[0].text == "ResNet-8 on CIFAR-10"
    assert headings(page) == [
        "Accuracy", "Learning curves", "Stages", "Timeline", "Sufficient direction", "Runs",
        "Configuration", "Environment",
    ]  # fmt: skip
    assert outside_urls(page) == []
    lead = [p.text for p in page.all("p") if p.attributes.get("class") == "lead"]
    assert lead == [
        "Final test accuracy: BP 79.00 ± 1.41 %, DDG K=3 77.00 % (−3.00 points). DDG K=9 diverged.",
        "5 runs in 3 groups, 1 diverged, 1 unfinished.",
    ]
    assert [figure.text for figure in page.all("figcaption")][1:] == [
        CAPTION,
        "Elapsed time includes evaluations and checkpoints. Runs of the local runtime compute "
        "their stages in turn in one process; K processes take another time.",
        "The rest is work between the actions and, in one process, the turns of the other stages.",
        "DDG K=3 (ddg-0): a few iterations. F3 is the forward and B3 the backward pass of batch 3.",
        "DDG K=3.",
    ]


def test_tables_are_the_numbers_of_the_records(reported: Any) -> None:
    head, bp, ddg, lost = table(reported.page, "Accuracy by group of runs")
    assert head[3] == "best test accuracy (%)chosen on the test set"
    # By hand: mean 79, deviations 1 and -1, so s = sqrt(2); best 83 and 78, s = sqrt(12.5). The
    # loss of the fourth epoch is recorded at 3.5 and 4: 2.5 (exp(-3.5) + exp(-4)) / 2 = 0.061.
    assert bp[:6] == [
        "BPseeds 0, 1", "79.00 ± 1.41", "–", "80.50 ± 3.54", "0.310 ± 0.014", "0.061 ± 0.000",
    ]  # fmt: skip
    # 77 - 80, of the seed that both have.
    assert ddg[:5] == ["DDG K=3seeds 0, 1; 1 unfinished", "77.00", "−3.00", "77.00", "0.330"]
    assert lost[:3] == ["DDG K=9seed 0; 1 diverged", "diverged", "–"]

    rows = table(reported.page, "Every run")
    assert [row[0] for row in rows] == [
        "run",
        "BP", "bp-0seed 0; finished", "bp-1seed 1; finished",
        "DDG K=3", "ddg-0seed 0; finished",
        "ddg-1seed 1; unfinished at iteration 20 (epoch 2.0 of 4)",
        "DDG K=9", "ddg-9seed 0; diverged at iteration 21 (loss nan)",
    ]  # fmt: skip
    assert rows[2][1:3] == ["80.00", "83.00epoch 3"]
    assert rows[6][1:3] == ["35.00so far, at epoch 2", "–"]

    rows = table(reported.page, "Delay and shares of time")
    assert rows[1] == ["BPmean of 2 runs; one process"]
    assert rows[3] == ["DDG K=3a process for each stage"]
    shares = ["25.0", "50.0", "5.0", "2.0", "10.0"]
    assert rows[4:] == [
        ["0", "(input)", "2", "2", *shares],
        ["1", "layer1", "1", "1", *shares],
        ["2", "layer2", "0", "0", *shares],
    ]


def test_what_differs_is_a_table_and_what_is_common_is_said_once(reported: Any) -> None:
    configuration, environment = [
        [[cell.text for cell in row.all("th", "td")] for row in t.all("tr")]
        for t in reported.page.all("table")
        if t.all("caption")[0].text == "Different between runs"
    ]
    assert configuration[0] == ["run", "method", "stages", "cuts", "runtime", "seed"]
    assert configuration[1] == ["bp-0", "bp", "1", "none", "local", "0"]
    assert configuration[3] == ["ddg-0", "ddg", "3", "layer1, layer2", "distributed", "0"]
    assert [row[1] for row in environment] == ["torch", *["2.13.0"] * 4, "9"]
    names, values = ([e.text for e in reported.page.all(tag)] for tag in ("dt", "dd"))
    facts = dict(zip(names, values, strict=True))
    assert facts["lr_milestones"] == "0.5, 0.75" and facts["augment"] == "yes"
    assert facts["weight_decay"] == "0.0005" and facts["commit"] == "0123456789abcdef"
    assert not {"torch", "seed", "run_dir", "data_dir"} & facts.keys()


def test_same_runs_give_the_same_bytes_without_places(reported: Any, tmp_path: Path) -> None:
    content = reported.path.read_bytes()
    assert write_report(reported.folders, tmp_path / "2.html").read_bytes() == content
    assert str(reported.path.parent).encode() not in content and b"/somewhere" not in content


def test_runs_without_a_result_have_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, record_run(tmp_path / "a", until=15))
    assert headings(page) == ["Accuracy", "Learning curves", "Runs", "Configuration", "Environment"]
    assert "No run has finished" in page.text
    begun = record_run(tmp_path / "b", until=5)
    (begun / "records.jsonl").unlink()
    assert headings(page_of(tmp_path, begun)) == [
        "Accuracy", "Runs", "Configuration", "Environment",
    ]  # fmt: skip


def test_a_text_run_has_a_page(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", data="text", model="gpt", split="validation")
    page = page_of(tmp_path, folder)
    assert page.all("h1")[0].text == "GPT on text"
    _, row = table(page, "Accuracy by group of runs")
    assert row[1] == "70.00" and row[3] == "–"  # one look at the test set
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
        ElementTree.fromstring(markup)  # well formed


BP = {"method": "bp", "accuracy": 0.8}


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        (
            [
                BP,
                {"method": "bp", "accuracy": 0.79, "seed": 1},
                {"stages": 2, "accuracy": 0.795},
                {"stages": 4, "accuracy": 0.781},
                {"stages": 4, "seed": 1, "until": 20, "diverged": True},
                {"stages": 2, "optimizer": "adam", "until": 20, "diverged": True},
            ],
            "Final test accuracy: BP, sgd 79.50 ± 0.71 %, DDG K=2, sgd 79.50 % (−0.50 points), "
            "DDG K=4, sgd 78.10 % (−1.90 points). 1 of 2 runs of DDG K=4, sgd diverged. "
            "DDG K=2, adam diverged.",
        ),
        ([{"stages": 2, "accuracy": 0.5}], "Final test accuracy: DDG K=2 50.00 %."),
        (
            [{"stages": k, "accuracy": 0.5} for k in range(1, 9)],
            "Final test accuracy: "
            + ", ".join(f"DDG K={k} 50.00 %" for k in range(1, 7))
            + ", and 2 further groups.",
        ),
        ([{"until": 10}], "No run has finished: there is no final accuracy."),
    ],
)
def test_the_result_in_a_sentence(configs: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    runs = [
        read_run(record_run(tmp_path / f"run{i}", **config)) for i, config in enumerate(configs)
    ]
    assert result_text(group_runs(runs)) == said
