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
from delaygrad.planning.figure import plan_figure


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


def test_one_number_of_stages_needs_no_list_and_no_link() -> None:
    plan = dg.plan(network(), torch.ones(2, 8), num_stages=2, method=dg.BP())
    (forecast,) = plan.forecasts
    assert forecast.stages == 2 and plan.link is None and not plan.link_measured
    assert forecast.iteration_by_slack_s == {} and "messages cost nothing" in str(plan)


def test_legends_of_the_figure_cover_nothing() -> None:
    figure = plan_figure(dg.plan(network(), torch.ones(2, 8), num_stages=[2, 3, 5]), "title")
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert legend.get_window_extent().y0 > -5  # pixels: and none is cut off


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
