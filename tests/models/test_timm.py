"""Networks of timm, where it is installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import delaygrad as dg

timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto", "densenet121"],
)
def test_a_network_of_timm_is_cut_and_trains(name: str, num_stages: int) -> None:
    torch.manual_seed(0)
    options = {"img_size": 64} if name.startswith("vit") else {}
    model: nn.Module = timm.create_model(name, num_classes=5, **options)
    inputs, other = torch.randn(4, 3, 64, 64), torch.randn(6, 3, 64, 64)
    stages = dg.split(model, num_stages, sample_inputs=inputs)
    assert dg.check(stages, model, inputs) == 0.0
    assert dg.check(stages, model, other) == 0.0
    pipe = dg.LocalPipeline(
        stages, nn.functional.cross_entropy, lambda params: torch.optim.SGD(params, lr=0.01)
    )
    for _ in range(num_stages):
        pipe.step(inputs, torch.arange(4))
    pipe.flush()
    assert dg.merge(pipe.stages).state_dict().keys() == model.state_dict().keys()
