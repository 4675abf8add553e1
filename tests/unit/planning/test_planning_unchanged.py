"""Fixed costs in, the recorded plan out, to the last bit: Python's own floats, no measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delaygrad.methods import BP, DDG
from delaygrad.partition.costs import LayerCost, Seconds, Storage, stages_of
from delaygrad.partition.layers import layer_names
from delaygrad.planning import Link, plan
from delaygrad.runtime.machine import Machine

RECORDED = json.loads((Path(__file__).parent / "recorded_plans.json").read_text(encoding="utf-8"))
SLOW_LINK = Link(bandwidth_bytes_per_s=1.25e6, latency_s=3e-3)
CASES: dict[str, dict[str, Any]] = {
    "ddg": {"num_stages": (1, 2, 4)},
    "loopback": {"num_stages": (2, 3), "link": "loopback", "side_by_side": True},
    "slack": {"method": DDG(slack=2), "side_by_side": True},
    "micro_batches": {"method": DDG(micro_batches=4)},
    "recompute": {"method": DDG(recompute=True, slack=1)},
    "stash_dtype": {"method": DDG(stash_dtype=torch.bfloat16)},
    "boundary_dtype": {"method": DDG(boundary_dtype=torch.float16, micro_batches=2)},
    "bp": {"method": BP(micro_batches=2)},
    "speeds": {"speeds": (1.0, 0.5, 2.0)},
    "memory_cap": {"memory_cap_bytes": 2_200_000},
}


class PlantedMeasurement:
    def __init__(self, names: list[str]) -> None:
        self.costs = [
            LayerCost(
                name=name,
                forward_s=0.001 * (3 + i * 7 % 5),
                backward_s=0.0021 * (2 + i * 5 % 7),
                update_s=0.0003 * (i % 3),
                input_bytes=4096 * (1 + i % 4),
                output_bytes=4096 * (1 + (i + 1) % 4),
                gradient_bytes=4096 * (1 + (i + 1) % 4),
                parameter_bytes=50000 + 1000 * i,
                trainable_bytes=50000 if i % 4 else 0,
                optimizer_bytes=2 * 50000 if i % 4 else 0,
                saved={i: Storage(70000 + i, 35000), i + 1: Storage(30000 + i, 30000)},
                outputs={i + 1: Storage(30000 + i, 30000)},
            )
            for i, name in enumerate(names)
        ]

    def layers(self) -> list[LayerCost]:
        return self.costs

    def stages(self, cuts: list[int]) -> list[Seconds]:
        return [
            Seconds(
                forward_s=1.1 * stage.forward_s,
                backward_s=(0.9 + 0.05 * k) * stage.backward_s,
                update_s=stage.update_s,
            )
            for k, stage in enumerate(stages_of(self.costs, cuts))
        ]

    def of_parts(self, num_parts: int, cuts: list[int]) -> list[Seconds]:
        part = Seconds(forward_s=1.0 / num_parts, backward_s=2.0 / num_parts)
        return [part] * (len(cuts) + 1)

    def stage_inputs(self, cuts: list[int]) -> list[Tensor]:
        return [torch.ones(1)] * (len(cuts) + 1)


@contextmanager
def planted(model: nn.Module, inputs: Tensor, **_: Any) -> Iterator[PlantedMeasurement]:
    yield PlantedMeasurement(layer_names(model))


def planted_machine(work: list[Any], *, threads: int, link: bool) -> Machine:
    return Machine(
        latency_s=4e-5 if link else None,
        bandwidth_bytes_per_s=3e8 if link else None,
        slowdown=1.07 if work else None,
        processes=max(len(work), 1),
    )


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    monkeypatch.setattr("delaygrad.planning.planner.measuring", planted)
    monkeypatch.setattr("delaygrad.planning.planner.measure_machine", planted_machine)
    monkeypatch.setattr("delaygrad.planning.planner.usable_cores", lambda: 2)
    model = nn.Sequential(*(nn.Identity() for _ in range(18)))

    def make(name: str) -> dict[str, Any]:
        options = {"num_stages": (3,), "link": SLOW_LINK, **CASES[name]}
        return plan(model, torch.ones(1), **options).to_json()

    return make


@pytest.mark.parametrize("name", CASES)
def test_fixed_costs_give_the_recorded_plan(
    name: str, planned: Callable[[str], dict[str, Any]]
) -> None:
    found = json.loads(json.dumps(planned(name)))
    del found["layers"]
    for row in found["plans"]:
        del row["method"], row["command"]
        assert (row.pop("ties"), row.pop("tie_bytes")) == ([], 0)
        own = [dial for dial in row.pop("dial") if dial["iteration_s"] == row["iteration_s"]]
        assert name == "bp" or row["stages"] == 1 or own
    assert found == RECORDED[name]


def test_processes_side_by_side_may_be_fewer_than_the_stages(
    planned: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "uneven", {"speeds": (1.0, 0.5, 2.0), "side_by_side": True})
    assert planned("uneven")["side_by_side"] == {"slowdown": 1.07, "processes": 2}
