"""Measure a link and the slowdown between real processes."""

from __future__ import annotations

import functools
import json
import signal
import time

import pytest
import torch
from torch import Tensor, nn

from delaygrad.cli.main import main
from delaygrad.runtime.machine import measure_machine


class Sleep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.1)
        return x * 2


@pytest.mark.timing
def test_sleeping_processes_lose_nothing_side_by_side_and_the_loopback_is_a_link() -> None:
    work = [(nn.Sequential(Sleep()), torch.ones(1, requires_grad=True)) for _ in range(2)]
    machine = measure_machine(work, budget_s=1.0)
    assert machine.processes == 2
    assert machine.slowdown is not None and 0.7 < machine.slowdown < 1.5
    assert machine.latency_s is not None and 1e-6 < machine.latency_s < 0.5
    assert machine.bandwidth_bytes_per_s is not None and machine.bandwidth_bytes_per_s > 1e6


def test_a_plan_measures_this_machine_where_nothing_is_said_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(measure_machine, budget_s=0.5)
    monkeypatch.setattr("delaygrad.planning.planner.measure_machine", quick)
    monkeypatch.setattr("delaygrad.planning.planner.usable_cores", lambda: 2)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main(["plan", "--model", "mlp", "--stages", "2", "3", "--quiet", "--json"])
    finally:
        signal.signal(signal.SIGTERM, handler)
    plan = json.loads(capsys.readouterr().out)
    assert plan["link"]["measured"] and plan["link"]["latency_s"] > 0
    assert plan["side_by_side"]["processes"] == 2 and plan["side_by_side"]["slowdown"] > 0
    assert [row["here"]["crowded"] for row in plan["plans"]] == [False, True]
