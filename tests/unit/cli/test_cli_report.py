"""``delaygrad report`` makes a page of runs, or says in one sentence why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import here, train
from markup import parse
from recorded_runs import record_run

from delaygrad.cli.main import main


def test_page_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here(train(tmp_path / "run", 2, "--iterations", 20, "--trace", 8))
    capsys.readouterr()
    path = tmp_path / "deep" / "page.html"
    main(["report", str(tmp_path / "run"), "--output", str(path), "--title", "A & B"])
    assert capsys.readouterr().out == f"{path}\n"
    page = parse(path.read_text(encoding="utf-8"))
    assert page.all("h1")[0].text == "A & B"
    assert [heading.text for heading in page.all("h2")] == [
        "Accuracy", "Learning curves", "Stages", "Timeline", "Runs", "Configuration", "Environment",
    ]  # fmt: skip


def test_json_is_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record_run(Path("bp"), method="bp", accuracy=0.75)
    for seed, accuracy in enumerate((0.75, 0.5)):
        record_run(Path(f"ddg-{seed}"), seed=seed, stages=2, accuracy=accuracy)
    record_run(Path("ddg-2"), seed=2, stages=2, until=20)
    main(["report", "bp", "ddg-0", "ddg-1", "ddg-2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "report.html" and Path("report.html").exists()
    bp, ddg = found["groups"]
    assert bp["final_accuracy"] == {"mean": 75.0, "sd": None, "n": 1} and bp["minus_bp"] is None
    assert (ddg["name"], ddg["method"], ddg["num_stages"]) == ("DDG K=2", "ddg", 2)
    assert ddg["final_accuracy"]["sd"] == pytest.approx(25 / 2**0.5)
    assert ddg["minus_bp"] == {"mean": 0.0, "sd": None, "n": 1}  # of the seed that both have
    assert [run["state"] for run in ddg["runs"]] == ["finished", "finished", "unfinished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), r"no run in this folder \(absent\); there is no such folder"),
        (("bp", "bp"), r"two runs have the same name \(bp, bp\)"),
        (("bp", "--output", "bp"), r"cannot write \(bp\)"),
        (("broken",), r"corrupt \(broken/config.json"),
        ((), "at least one run"),
    ],
)
def test_bad_input_is_one_clear_message(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record_run(Path("bp"), method="bp")
    record_run(Path("broken"))
    Path("broken/config.json").write_text("{")
    with pytest.raises(SystemExit, match=message):
        main(["report", *arguments])
    assert not Path("report.html").exists()
