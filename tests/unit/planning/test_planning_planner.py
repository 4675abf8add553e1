"""`dg.plan` as a user calls it: nothing is launched."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from torch import nn

import delaygrad as dg
from delaygrad.errors import ConfigError, PartitionError
from delaygrad.planning import Link


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def test_a_plan_prints_its_tables_and_holds_their_numbers() -> None:
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    threads = torch.get_num_threads()
    plan = dg.plan(
        model,
        torch.ones(16, 8),
        num_stages=[2, 3],
        loss=lambda outputs: outputs.square().mean(),
        make_optimizer=lambda parameters: torch.optim.Adam(parameters),
        link=Link(bandwidth_bytes_per_s=1e8, latency_s=1e-4),
    )
    assert all(map(torch.equal, before, model.parameters())) and torch.get_num_threads() == threads
    text = str(plan)
    for forecast in plan.forecasts:
        assert f"{forecast.stages} stages, DDG()" in text and forecast.command in text
        stages = dg.split(model, forecast.stages, cuts=list(forecast.cuts))
        assert f"cuts={list(forecast.cuts)}" in forecast.command and len(stages) == forecast.stages
    console = Console(record=True, width=100)
    console.print(plan, crop=False)
    assert console.export_text() == text
    rows = json.loads(json.dumps(plan.to_json()))["plans"]
    assert [row["iteration_s"] for row in rows] == [each.iteration_s for each in plan.forecasts]


class Residual(nn.Module):
    """The same layers, in no nn.Sequential, with a skip around all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x
        for block in self.blocks:
            y = block(y).relu()
        return {"logits": x + y}


def test_any_network_is_planned_and_cut_by_the_command() -> None:
    model, inputs = Residual(), torch.ones(4, 8)
    plan = dg.plan(model, inputs, num_stages=3, loss=lambda outputs: outputs["logits"].mean())
    (forecast,) = plan.forecasts
    assert [stage.first_layer for stage in forecast.stage_plans] == [
        "blocks.0", "blocks.1", "blocks.2",
    ]  # fmt: skip
    assert plan.whole.parameter_bytes == 3 * 4 * (64 + 8)
    # The skip crosses both boundaries beside the activation; no gradient flows to the inputs.
    assert [each.activation_bytes for each in forecast.boundaries] == [2 * 128, 2 * 128]
    assert [each.gradient_bytes for each in forecast.boundaries] == [128, 128]
    stages = eval(forecast.command, {"dg": dg, "model": model, "inputs": inputs})
    assert len(stages) == 3
    assert dg.plan(model, inputs, num_stages=2).forecasts[0].stages == 2  # without a loss


def test_one_number_of_stages_needs_no_list_and_no_link() -> None:
    plan = dg.plan(network(), torch.ones(2, 8), num_stages=2, method=dg.BP())
    (forecast,) = plan.forecasts
    assert forecast.stages == 2 and plan.link is None and not plan.link_measured
    assert forecast.iteration_by_slack_s == {} and "messages cost nothing" in str(plan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_stages": 0}, ConfigError, "stages must be at least 1"),
        ({"num_stages": []}, ConfigError, "stages must be at least 1"),
        ({"num_stages": 9}, PartitionError, "stages: 9"),
        ({"method": dg.DNI()}, ConfigError, "cost of synthesizers"),
        ({"num_stages": (2, 3), "speeds": (1, 1)}, ConfigError, "each stage of one K"),
        ({"speeds": (1, 0)}, ConfigError, "positive"),
        ({"memory_cap_bytes": 1}, PartitionError, "least cap that would do"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dg.plan(network(), torch.ones(2, 8), **options)  # type: ignore[arg-type]
