"""`delaygrad plan`, in this process: with a given link and alone, so that nothing is launched."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delaygrad.cli.main import main

PLAN = ("plan", "--model", "mlp", "--width", "16", "--depth", "4", "--quiet", "--no-side-by-side")
LINK = ("--bandwidth", "1Gbit", "--latency-ms", "0.1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main([*PLAN, *LINK, *arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_says_what_each_number_of_stages_brings(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--stages", "1", "2", "3")
    assert [row["stages"] for row in plan["plans"]] == [1, 2, 3]
    assert plan["link"] == {
        "bandwidth_bytes_per_s": 125e6, "latency_s": 1e-4, "measured": False
    }  # fmt: skip
    names = [layer["name"] for layer in plan["layers"]]
    for row in plan["plans"]:
        stages = row["stage_plans"]
        assert [stage["first_layer"] for stage in stages] == [names[0], *row["cuts"]]
        assert [stage["delay"] for stage in stages] == [
            row["stages"] - 1 - k for k in range(len(stages))
        ]
        assert sum(stage["share"] for stage in stages) == pytest.approx(1)
        assert row["iteration_s"] >= row["slowest_stage_s"] > 0
        parameters = sum(stage["memory"]["parameter_bytes"] for stage in stages)
        assert parameters == plan["one_device"]["parameter_bytes"]
        assert row["speedup"] == pytest.approx(
            plan["one_device"]["iteration_s"] / row["iteration_s"]
        )
    assert plan["plans"][0]["sent_bytes"] == 0


def test_the_command_of_a_plan_trains(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = planned(capsys, "--stages", "2", "--batch-size", "100", "--optimizer", "adam")["plans"]
    words = shlex.split(row["command"])
    assert words[words.index("--cuts") + 1 :][: len(row["cuts"])] == row["cuts"]
    assert words[-2:] == ["--runtime", "distributed"]
    main([*words[1:-1], "local", "--epochs", "1", "--run-dir", "run", "--quiet", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["cuts"] == row["cuts"]


def test_tables_and_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delaygrad.planning.planner.usable_cores", lambda: 4)
    main([*PLAN, *LINK, "--stages", "2", "6", "--depth", "8", "--figure", "plan.png"])
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "speed-up" in out and "1,000 Mbit/s" in out and "too few cores (4) for 6 processes" in out
    )
    assert "delaygrad train" in out
    assert Path("plan.png").stat().st_size > 1000


def test_a_memory_cap_that_is_too_small_says_what_would_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*PLAN, *LINK, "--stages", "2", "--memory-cap", "1kB"])
    message = str(caught.value.code)
    assert "least cap that would do" in message
    least = message.partition("least cap that would do: ")[2].partition(" MiB")[0]
    enough = f"{1.001 * float(least)}MiB"
    plan = planned(capsys, "--stages", "2", "--memory-cap", enough)
    held = [stage["memory"]["total_bytes"] for stage in plan["plans"][0]["stage_plans"]]
    assert max(held) <= 1.001 * float(least) * 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stages", "0"), "expected int >= 1"),
        (("--stages", "9999"), "(stages: 9999; expected int <= 1024)"),
        (("--stages", "2", "3", "--speeds", "1", "1"), "speeds give each stage of one K a number"),
        (("--speeds", "1", "0"), "speeds must be positive"),
        (("--bandwidth", "fast"), "write 1Gbit"),
        (("--latency-ms", "-1"), "a latency of at least 0"),
        (("--memory-cap", "much"), "write 512MiB"),
        (("--method", "bp", "--slack", "1"), "option without effect in delaygrad plan (slack: 1)"),
        (("--method", "ddp"), "unknown method"),
        (("--slack", "-1"), "slack"),
        (("--recompute", "--stash-dtype", "bfloat16"), "leave one out"),
        (("--figure", "absent/plan.png"), "cannot write the figure"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*PLAN, *LINK, *arguments])
    assert message in " ".join(str(caught.value.code).split())


def test_half_a_link_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        main([*PLAN, "--bandwidth", "1Gbit"])
    assert "give both" in str(caught.value.code)
