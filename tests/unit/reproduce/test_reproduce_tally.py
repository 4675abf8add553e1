"""Results against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from targets import by_name, record, runs_of

from delaygrad.errors import DataError
from delaygrad.reproduce.tally import results_of, tally


def test_a_run(tmp_path: Path) -> None:
    run = runs_of(tmp_path)[0]
    record(run, [0.5, 0.75, 0.625], losses=(6.0, 3.0), samples_per_s=50.0)
    (result,) = results_of([run])
    assert (result.final_accuracy, result.best_accuracy, result.best_epoch) == (62.5, 75.0, 2.0)
    assert result.train_loss == pytest.approx((6.0 / 3 + 3.0 / 3) / 2)  # of the third epoch
    assert result.epoch_s == pytest.approx(10 * 100 / 50.0)  # 10 batches of 100 samples
    assert (result.epochs, result.diverged_at_epoch) == (3.0, None)
    assert result.to_json()["series"] == "sgd-bp-k1"
    assert "events" not in result.to_json()


def test_a_run_that_diverged(tmp_path: Path) -> None:
    run = runs_of(tmp_path)[0]
    record(run, [0.5, 0.25], diverged=True)
    (result,) = results_of([run])
    assert result.diverged_at_epoch == 2.0
    assert (result.final_accuracy, result.train_loss, result.test_loss) == (None, None, None)
    assert result.best_accuracy == 50.0


def test_seeds_are_put_together(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    named = by_name(runs)
    record(named["sgd-bp-k1-seed0"], [0.75, 0.70])
    record(named["sgd-bp-k1-seed1"], [0.60, 0.74])
    record(named["sgd-ddg-k2-seed0"], [0.60, 0.69])
    record(named["sgd-ddg-k2-seed1"], [0.60, 0.70])
    record(named["sgd-ddg-k3-seed0"], [0.60, 0.50])
    record(named["sgd-ddg-k3-seed1"], [0.40], diverged=True)
    rows = {row["series"]: row for row in tally(runs, results_of(runs))}
    assert list(rows) == [
        "sgd-bp-k1", "adam-bp-k1", "sgd-ddg-k2", "sgd-ddg-k3", "sgd-ddg-slack1-k3",
    ]  # fmt: skip

    bp = rows["sgd-bp-k1"]
    assert bp["final_accuracy"] == pytest.approx({"mean": 72.0, "sd": math.sqrt(8), "n": 2})
    assert bp["best_accuracy"]["mean"] == pytest.approx((75 + 74) / 2)
    assert bp["minus_bp"] is None

    two = rows["sgd-ddg-k2"]
    # Seed by seed: 69 - 70 = -1 and 70 - 74 = -4.
    assert two["minus_bp"] == pytest.approx({"mean": -2.5, "sd": math.sqrt(4.5), "n": 2})
    assert two["bp_sd"] == pytest.approx(math.sqrt(8))
    assert (two["planned"], two["done"], two["diverged"]) == (2, 2, 0)

    three = rows["sgd-ddg-k3"]
    assert (three["done"], three["diverged"]) == (2, 1)
    assert three["final_accuracy"] == {"mean": pytest.approx(50.0), "sd": None, "n": 1}
    assert three["best_accuracy"] == {"mean": pytest.approx(60.0), "sd": None, "n": 1}
    assert three["minus_bp"] == {"mean": pytest.approx(-20.0), "sd": None, "n": 1}

    nothing = rows["sgd-ddg-slack1-k3"]
    assert (nothing["planned"], nothing["done"], nothing["final_accuracy"]) == (1, 0, None)
    assert rows["adam-bp-k1"]["done"] == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b""),
        ("summary.json", b"{}"),
        ("summary.json", b"[]"),
        ("summary.json", b"\xff\xfe"),
        ("summary.json", b'{"test_accuracy": NaN, "epochs": 1.0}'),
        ("summary.json", b'{"test_accuracy": null, "epochs": 1.0}'),
        ("records.jsonl", b"\xff\xfe"),
        ("records.jsonl", b"[]\n"),
        ("records.jsonl", b"{}\n"),
    ],
    ids=repr,
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    runs = runs_of(tmp_path)
    folder = record(by_name(runs)["sgd-bp-k1-seed0"], [0.7, 0.8])
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged.*sgd-bp-k1-seed0.*move"):
        results_of(runs)
