"""One rank per stage gives what one process gives, to the last bit: the spine of the suite.

Parameters, buffers, optimizer state, losses, predictions, and everything in flight. A group of
processes runs all scenarios of one K; what the ranks return is compared with the local runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import CLASSES, OPTIMIZERS, batches
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.runtime import Pipeline

STOP = 5
SHAPE = (2, 6, 6)
# Short batches, then one larger than any before: the buffers of the links must grow.
SIZES = (4, 4, 3, 4, 7, 4, 3, 9, 4)


@dataclass(frozen=True)
class Scenario:
    num_stages: int
    method: dg.Method
    optimizer: str
    seed: int


SCENARIOS = [
    Scenario(num_stages, method, optimizer, seed)
    for num_stages in (2, 3)
    for method, optimizer, seed in (
        (dg.DDG(), "nesterov", 0),
        (dg.DDG(), "adam", 1),
        (dg.BP(), "nesterov", 1),
        (dg.DDG(slack=2, boundary_dtype=torch.bfloat16), "nesterov", 0),
        (dg.DDG(slack=1, micro_batches=2, recompute=True), "adam", 0),
        (dg.DDG(micro_batches=3, stash_dtype=torch.bfloat16), "nesterov", 1),
        (dg.DDG(weights="live"), "nesterov", 0),
        (dg.DNI(num_classes=CLASSES, synthesizer_width=8), "nesterov", 0),
    )
]


class Entry(nn.Module):
    """An image in; a nested boundary out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        )
        self.skip = nn.Conv2d(2, 6, 1)

    def forward(self, x: Tensor) -> Any:
        out = self.layers(x)
        return out, {"skip": [self.skip(x)[:, ::2], None], "order": torch.arange(5, -1, -1)}


class Middle(nn.Module):
    """Works in place on what it receives, drops out, and passes the rest on."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.side = nn.Conv2d(3, 3, 1)

    def forward(self, bundle: Any) -> Any:
        x, rest = bundle
        skip, nothing = rest["skip"]
        assert nothing is None
        out = self.norm(self.conv(self.drop(self.relu(x)[:, rest["order"]])))
        return out, {"skip": [self.side(skip), None], "order": rest["order"]}


class Exit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(9, CLASSES)

    def forward(self, bundle: Any) -> Tensor:
        x, rest = bundle
        pooled = [part.mean((2, 3)) for part in (x, rest["skip"][0])]
        return self.head(self.drop(torch.cat(pooled, 1)))


def build_stages(num_stages: int, seed: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    stages = [Entry(), *(Middle() for _ in range(num_stages - 2)), nn.Sequential(Middle(), Exit())]
    for stage in stages:
        stage.to(memory_format=torch.channels_last)
    torch.manual_seed(1000 + seed)
    return stages


def make_local(scenario: Scenario, seed: int) -> dg.LocalPipeline:
    return dg.LocalPipeline(
        build_stages(scenario.num_stages, seed),
        cross_entropy,
        OPTIMIZERS[scenario.optimizer],
        method=scenario.method,
    )


def make_distributed(scenario: Scenario, seed: int, rank: int) -> dg.DistributedPipeline:
    return dg.DistributedPipeline(
        build_stages(scenario.num_stages, seed)[rank],
        cross_entropy,
        OPTIMIZERS[scenario.optimizer],
        method=scenario.method,
        timeout_s=20,
    )


def drive(pipe: Pipeline, scenario: Scenario, *, start: int = 0) -> dict[str, Any]:
    """Two phases with predictions and a state taken on the way; what can be seen from outside."""
    told: dict[str, Any] = {"losses": [], "predictions": []}
    data = list(batches(14, SHAPE, seed=scenario.seed, sizes=SIZES))
    for index, (inputs, targets) in enumerate(data[start:], start):
        inputs = inputs.to(memory_format=torch.channels_last)
        if index == STOP:
            told["saved"] = to_bytes(pipe.state_dict())
        told["losses"].append(pipe.step(inputs, targets))
        if index in (1, 6, 9):
            told["predictions"].append(pipe.predict(inputs[: index % 4 + 1]))
        if index == 8:
            pipe.flush()
    told["in flight"] = to_bytes(pipe.state_dict())
    pipe.flush()
    told["predictions"].append(pipe.predict(data[0][0]))
    told["end"] = to_bytes(pipe.state_dict())
    return told


def all_scenarios(rank: int, world_size: int, saved: list[bytes]) -> list[dict[str, Any]]:
    told = []
    scenarios = [s for s in SCENARIOS if s.num_stages == world_size]
    for scenario, state in zip(scenarios, saved, strict=True):
        whole = drive(make_distributed(scenario, scenario.seed, rank), scenario)
        resumed = make_distributed(scenario, 77, rank)
        resumed.load_state_dict(from_bytes(state))
        told.append({**whole, "resumed": drive(resumed, scenario, start=STOP)})
    return told


def joined(states: list[bytes]) -> dict[str, Any]:
    """The state of a whole pipeline from those of its ranks."""
    parts = [from_bytes(state) for state in states]
    return {**parts[0], "stages": {k: v for part in parts for k, v in part["stages"].items()}}


def of_last_rank(per_rank: list[list[Any]]) -> list[Any]:
    assert all(value is None for values in per_rank[:-1] for value in values)
    return per_rank[-1]


def assert_same_run(ranks: list[dict[str, Any]], local: dict[str, Any]) -> None:
    for name in ("losses", "predictions"):
        assert_same(of_last_rank([told[name] for told in ranks]), local[name], name)
    for name in ("saved", "in flight", "end"):
        if name in local:
            ours, theirs = joined([told[name] for told in ranks]), from_bytes(local[name])
            # The process's own generator is on stage 0 only; everything else is by stage.
            assert_same(ours, theirs, name)


@pytest.mark.parametrize("num_stages", [2, 3])
def test_ranks_compute_what_one_process_computes(num_stages: int) -> None:
    scenarios = [s for s in SCENARIOS if s.num_stages == num_stages]
    local = [drive(make_local(s, s.seed), s) for s in scenarios]
    saved = [told["saved"] for told in local]

    ranks = run_ranks(all_scenarios, num_stages, timeout_s=100, args=(saved,))

    for index, scenario in enumerate(scenarios):
        told = [of_rank[index] for of_rank in ranks]
        assert_same_run(told, local[index])

        # From the local state to the ranks, and from the ranks' states back into one process.
        expected = make_local(scenario, 5)
        expected.load_state_dict(from_bytes(saved[index]))
        assert_same_run([t["resumed"] for t in told], drive(expected, scenario, start=STOP))
        again = make_local(scenario, 5)
        again.load_state_dict(joined([t["saved"] for t in told]))
        end = drive(again, scenario, start=STOP)["end"]
        assert_same(from_bytes(end), from_bytes(local[index]["end"]))
