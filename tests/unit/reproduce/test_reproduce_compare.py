"""A comparison: its grid, its kept measurement, its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from targets import record

from delaygrad.cli.main import main
from delaygrad.errors import ConfigError
from delaygrad.partition import LayerCost
from delaygrad.planning import Link
from delaygrad.planning.dial import PartCost
from delaygrad.reproduce import runner, stage_costs
from delaygrad.reproduce.compare import CompareConfig, compare
from delaygrad.reproduce.grid import PlannedRun

SMALL = {"model": "mlp", "width": 16, "depth": 4, "epochs": 4, "lr": 0.05, "batch_size": 100}


def config(**grid: Any) -> CompareConfig:
    return CompareConfig.of(**{**SMALL, "bandwidth": "1GB/s", "latency_ms": 0.0, **grid})


def test_a_grid_has_backpropagation_once_and_every_method_with_its_options() -> None:
    methods = ("ddg", "ddg,weights=live", "bp", "lookahead", "fdg,beta=0.5", "bp,lookahead=1")
    lines = list(config(methods=methods, stages=[2, 4]).lines())
    names = [(line["method"], *line["stages"], line["variant"]) for line in lines]
    assert names == [
        ("bp", 1, ""), ("ddg", 2, ""), ("ddg", 4, ""), ("ddg", 2, "weightslive"),
        ("ddg", 4, "weightslive"), ("lookahead", 2, "m2"), ("lookahead", 4, "m4"),
        ("fdg", 2, "beta0.5"), ("fdg", 4, "beta0.5"), ("bp", 1, "lookahead1"),
    ]  # fmt: skip
    lines = list(config(micro_batches=[1, 8], methods=["ddg"]).lines())
    assert [line["variant"] for line in lines] == ["", "m1", "m8"]
    assert [line.get("micro_batches") for line in lines] == [None, 1, 8]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("lookahed",), r"unknown method \(method: 'lookahed'\); did you mean 'lookahead'"),
        (("ddg,slak=1",), r"unknown option of ddg \(option: 'slak'\); did you mean 'slack'"),
    ],
)
def test_what_is_wrong_with_a_method_is_named(methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(config(methods=methods).lines())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Stages of 3 s in all, as the measurement would give them; for which K it was asked."""
    asked: list[list[int]] = []

    def measure(config: object, link: object, counts: list[int]) -> dict[str, Any]:
        asked.append(list(counts))
        stages = {
            str(k): [
                stage_costs._plain(LayerCost(name=f"linear{n}", forward_s=1 / k, backward_s=2 / k))
                for n in range(1, k + 1)
            ]
            for k in counts
        }
        # A part costs a fixed 1/64 of the batch.
        parts = {
            str(k): {
                m: [vars(PartCost(forward=1 + (m - 1) / 64, backward=1 + (m - 1) / 64))] * k
                for m in (1, 2, 4)
            }
            for k in counts
        }
        link = vars(Link(bandwidth_bytes_per_s=1e9, latency_s=0.0))
        return {"link": link, "num_layers": 4, "stages": stages, "parts": parts}

    monkeypatch.setattr(stage_costs, "_measured", measure)
    return asked


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are on record at once: DDG needs half as many samples again."""

    def make(runs: list[PlannedRun], workers: object, *, quiet: bool) -> list[Any]:
        for run in runs:
            if not run.run_dir.exists():
                epochs = 4 if run.series.method == "bp" else 6
                record(run, [0.5] * epochs, epochs=epochs)
        return []

    monkeypatch.setattr("delaygrad.reproduce.training.make_runs", make)
    assert runner.make_runs is not make


@pytest.mark.usefixtures("trained")
def test_time_to_loss_is_samples_times_predicted_seconds(
    tmp_path: Path, measured: list[list[int]]
) -> None:
    asked = config(methods=["ddg"], stages=[3], seeds=[0, 1], within=0.0)
    results = compare(asked, tmp_path / "out", quiet=True)
    times = {one["name"]: one for one in results["verdict"]["times"]}
    assert results["verdict"]["loss"] == pytest.approx(1.5 / 4)  # of the fourth epoch
    assert times["BP"]["samples"] == {"mean": 4 * 10 * 100, "sd": 0.0, "n": 2}
    assert times["BP"]["sample_s"] == pytest.approx(3.0 / 100)
    assert times["DDG K=3"]["sample_s"] == pytest.approx(1.0 / 100)  # three stages at once
    assert times["DDG K=3"]["seconds"] == pytest.approx(4 * 1000 / 100)
    # A bubble of K - 1 of M + K - 1, and M fixed costs; without a bubble from M = 2 K.
    rivals = {name: one["sample_s"] for name, one in times.items() if name.startswith("sync")}
    assert rivals == {
        "synchronous 1F1B K=3 M=12": pytest.approx((12 + 2) / 12 * (1 + 11 / 64) / 100),
        "synchronous zero bubble K=3 M=6": pytest.approx((1 + 5 / 64) / 100),
    }  # and no interleaved one: the network has fewer than 2 K layers
    assert (
        "Use DDG K=3: " in results["summary"] and "3.00 times sooner than BP" in results["summary"]
    )
    page = (tmp_path / "out" / "page.html").read_text()
    assert results["summary"] in page and "Time to loss" in page and "s on K devices" in page
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(
        json.dumps(results)
    )

    # The same command measures nothing again; a further K alone is measured.
    compare(asked, tmp_path / "out", quiet=True)
    compare(config(methods=["ddg"], stages=[3, 2]), tmp_path / "out", quiet=True)
    assert measured == [[1, 3], [2]]
    with pytest.raises(ConfigError, match=r"other settings in this place .*depth: 4 there, 5"):
        compare(config(depth=5), tmp_path / "out", quiet=True)


@pytest.mark.usefixtures("trained", "measured")
def test_the_dial_shows_loss_and_speed_at_each_m(tmp_path: Path) -> None:
    asked = config(methods=["ddg", "ddg,weights=live"], stages=[2], micro_batches=[1, 4], lrs=[0.1])
    results = compare(asked, tmp_path, quiet=True)
    points = {(one["name"], one["micro_batches"]): one for one in results["dial"]}
    assert list(points) == [(n, m) for n in ("DDG K=2", "DDG weightslive K=2") for m in (1, 4)]
    assert points["DDG K=2", 4]["sample_s"] == pytest.approx(1.5 * (1 + 3 / 64) / 100)
    assert points["DDG K=2", 4]["loss"]["mean"] == pytest.approx(1.5 / 6)  # of the sixth epoch
    assert set(results["synchronous_sample_s"]["zero bubble K=2"]) == {1, 2, 4, 8}
    page = (tmp_path / "page.html").read_text()
    assert "The dial M" in page and "final training loss over BP" in page
    assert (tmp_path / "dial.png").exists()


@pytest.mark.usefixtures("trained", "measured")
def test_without_a_fallen_loss_there_is_no_verdict(tmp_path: Path) -> None:
    results = compare(config(stages=[2], within=4.0, methods=["ddg"]), tmp_path, quiet=True)
    assert "verdict" not in results and results["summary"].startswith("No verdict")


@pytest.mark.slow
def test_command_trains_and_says_which_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    words = ["--model", "mlp", "--width", "16", "--depth", "4", "--iterations", "40", "--quiet"]
    words += ["--bandwidth", "1Gbit", "--latency-ms", "0.1", "--output", str(tmp_path / "out")]
    main(["compare", *words, "--stages", "2", "--methods", "lookahead"])
    out = capsys.readouterr().out
    assert "| LOOKAHEAD m2 K=2 " in out and ("Use " in out or "No verdict" in out)
    assert {"page.html", "results.json", "table.md", "curves.png", "time-to-loss.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
