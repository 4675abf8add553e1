"""Compiled as docs/your-own-loop.md says, a stage is compiled once and trains to the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import assert_same
from networks import batches, into_stages, mlp
from torch import nn
from torch._dynamo.utils import counters

import delaygrad as dg


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
@pytest.mark.parametrize("method", [dg.BP(), dg.DDG(), dg.DDG(recompute=True)], ids=repr)
def test_compiled_stages_train_as_the_others(method: dg.Method) -> None:
    def trained(compiled: bool) -> Any:
        torch.manual_seed(0)
        stages = into_stages(mlp(6), 3)
        for stage in stages if compiled else ():
            # Without a code generator: the arithmetic is PyTorch's own.
            stage.forward = torch.compile(stage.forward, backend="aot_eager")
        pipe = dg.LocalPipeline(
            stages,
            nn.functional.cross_entropy,
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
            method=method,
        )
        losses = [pipe.step(*batch) for batch in batches(8, (6,))]
        pipe.flush()
        return losses, [dict(stage.state_dict()) for stage in stages]

    plain = trained(compiled=False)
    torch._dynamo.reset()
    counters.clear()
    assert_same(trained(compiled=True), plain)
    assert counters["stats"]["unique_graphs"] == 3  # one for each stage, whatever its parameters


def test_compiled_stages_are_merged_into_the_model() -> None:
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5))
    stages = dg.split(model, 2, cuts=["2"])
    for stage in stages:
        stage.forward = torch.compile(stage.forward, backend="eager")
    merged = dg.merge(stages)
    assert list(merged.state_dict()) == list(model.state_dict())
    assert "forward" not in vars(merged)
