"""The page's first sentence tells the result, also where it is none."""

from __future__ import annotations

from pathlib import Path

from recorded_runs import record_run

from delaygrad.report import group_runs, read_run
from delaygrad.report.headline import headline


def said(root: Path, *configs: dict[str, object]) -> str:
    runs = [read_run(record_run(root / f"run{i}", **config)) for i, config in enumerate(configs)]  # type: ignore[arg-type]
    return headline(group_runs(runs))


def test_methods_are_told_beside_their_baseline(tmp_path: Path) -> None:
    assert said(
        tmp_path,
        {"method": "bp", "accuracy": 0.8},
        {"method": "bp", "accuracy": 0.79, "seed": 1},
        {"stages": 2, "accuracy": 0.795},
        {"stages": 4, "accuracy": 0.781},
        {"stages": 4, "seed": 1, "until": 20, "diverged": True},
        {"stages": 2, "optimizer": "adam", "until": 20, "diverged": True},
    ) == (
        "BP, sgd ends at 79.50 ± 0.71 % test accuracy, DDG K=2, sgd at 79.50 % (0.00 points), "
        "DDG K=4, sgd at 78.10 % (−1.40). 1 of 2 runs of DDG K=4, sgd diverged. "
        "DDG K=2, adam diverged."
    )


def test_a_group_without_a_baseline_stands_alone(tmp_path: Path) -> None:
    assert (
        said(tmp_path, {"stages": 2, "accuracy": 0.5}) == "DDG K=2 ends at 50.00 % test accuracy."
    )


def test_many_groups_are_summed_up(tmp_path: Path) -> None:
    rivals = [{"stages": k, "accuracy": 0.8 - 0.01 * k} for k in range(1, 8)]
    assert said(tmp_path / "a", {"method": "bp", "accuracy": 0.8}, *rivals) == (
        "Against backpropagation with the same recipe, the test accuracy of 7 groups ends between "
        "−7.00 points (DDG K=7) and −1.00 points (DDG K=1)."
    )
    assert said(tmp_path / "b", *rivals) == (
        "Test accuracy ends between 73.00 % (DDG K=7) and 79.00 % (DDG K=1)."
    )


def test_no_result_is_said(tmp_path: Path) -> None:
    assert said(tmp_path, {"until": 10}) == "No run has finished: there is no final accuracy."
