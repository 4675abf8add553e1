from __future__ import annotations

from typing import Any

from delaygrad.bench.contest import evaluate, throughput_ratios


def record(name: str, family: str, *seconds: float) -> dict[str, Any]:
    return {"name": name, "family": family, "iteration_s": list(seconds)}


def test_ratios_pair_each_round_with_its_own_baseline() -> None:
    # The machine is three times slower in the last two rounds: the ratios do not see it.
    ratios = throughput_ratios([1.0, 1.0, 3.0, 3.0], [0.5, 0.5, 1.5, 1.5])
    assert ratios == {"median": 2.0, "quartiles": [2.0, 2.0]}


def test_everyone_is_compared_with_bp_and_with_the_best_of_each_family() -> None:
    records = [
        record("bp", "bp", 2.0, 2.0, 2.0),
        record("gpipe-m2", "pipeline", 1.0, 9.0, 1.0),  # the best by its median
        record("1f1b-m4", "pipeline", 1.5, 1.5, 1.5),
        {"name": "zbv-m4", "family": "pipeline", "does_not_run": "ValueError: no"},
        record("ddg", "ddg", 0.5, 0.5, 0.25),
    ]
    against = evaluate(records)
    assert against == {"baseline": "bp", "best_pipeline": "gpipe-m2", "ddp": None, "best_ddp": None}
    ddg = records[-1]
    assert ddg["iteration"]["median"] == 0.5
    assert ddg["throughput_against"]["baseline"]["median"] == 4.0
    assert ddg["throughput_against"]["best_pipeline"] == {"median": 4.0, "quartiles": [3.0, 11.0]}
    assert "iteration" not in records[3]


def test_contest_without_anybody_running_compares_nothing() -> None:
    records: list[dict[str, Any]] = [{"name": "ddp", "family": "ddp", "does_not_run": "no"}]
    assert evaluate(records) == {
        "baseline": None,
        "best_pipeline": None,
        "ddp": None,
        "best_ddp": None,
    }
