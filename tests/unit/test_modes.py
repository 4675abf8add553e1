"""Modules that ignore ``eval()`` are refused, or found in their first predictions."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import SplitPoint, pipeline

import delaygrad as dg


class Net(nn.Module):
    """Two linear layers with what depends on the mode between them."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(6, 7), middle, nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(self.first(x)))


class FunctionalDropout(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, self.training)


def of_stages(stages: list[nn.Module]) -> dg.LocalPipeline:
    return dg.LocalPipeline(
        stages, nn.functional.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1)
    )


def exported(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net, (torch.randn(4, 6),)).module()


@pytest.mark.parametrize("middle", [nn.BatchNorm1d(7), nn.Dropout(0.5), FunctionalDropout()])
def test_exported_graphs_of_training_mode_are_refused(middle: nn.Module) -> None:
    with pytest.raises(dg.StageError, match=r"ignores eval\(\).*stage: 0.*of the model's own"):
        of_stages([nn.Sequential(exported(Net(middle)))])


@pytest.mark.parametrize("middle", [nn.Tanh(), nn.Dropout(0.0), nn.LayerNorm(7)])
def test_exported_graphs_without_a_mode_train(middle: nn.Module) -> None:
    net = Net(middle)
    ours = of_stages([nn.Sequential(exported(copy.deepcopy(net)))])
    plain = of_stages([net])
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    for _ in range(3):
        assert torch.equal(ours.step(x, y), plain.step(x, y))  # type: ignore[arg-type]


def test_stages_of_torchs_own_pipeline_are_refused() -> None:
    net = Net(nn.BatchNorm1d(7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = pipeline(net, (torch.randn(4, 6),), split_spec={"second": SplitPoint.BEGINNING})
    stages: list[nn.Module] = [pipe.get_stage_module(k) for k in range(2)]
    with pytest.raises(dg.StageError, match=r"ignores eval\(\)"):
        of_stages(stages)


def test_traced_modules_train_but_a_traced_mode_is_refused() -> None:
    of_stages([torch.fx.symbolic_trace(Net(nn.BatchNorm1d(7)))])  # holds the BatchNorm itself
    with pytest.raises(dg.StageError, match=r"ignores eval\(\).*dropout"):
        # The mode is an argument of a function there, not of a module.
        of_stages([torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 5), Functional()))])


class Functional(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class Stubborn(nn.BatchNorm1d):
    """Stays in training mode."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)


def test_statistics_that_change_in_a_prediction_are_put_back_and_named() -> None:
    net = nn.Sequential(nn.Linear(6, 7), Stubborn(7), nn.Linear(7, 5))
    pipe = of_stages([nn.Sequential(*net[:2]), nn.Sequential(net[2])])
    pipe.step(torch.randn(4, 6), torch.tensor([0, 1, 2, 3]))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        dg.StageError, match=r"stage: 0, buffers: 1\.running_mean, 1\.running_var.*persistent"
    ):
        pipe.predict(torch.randn(4, 6))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


class Late(nn.Module):
    """Counts predictions, from the third on."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 2:
            self.seen += 1
        return x


def test_what_begins_to_change_later_is_found_later() -> None:
    pipe = of_stages([nn.Sequential(nn.Linear(6, 5), Late())])
    for _ in range(3):
        pipe.predict(torch.randn(4, 6))
    with pytest.raises(dg.StageError, match=r"buffers: 1\.seen"):
        pipe.predict(torch.randn(4, 6))


class Cache(nn.Module):
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.table = torch.ones(len(x), 1)
        return x + self.table


def test_a_cache_may_change_in_a_prediction() -> None:
    pipe = of_stages([nn.Sequential(nn.Linear(6, 5), Cache())])
    assert pipe.predict(torch.randn(4, 6)).shape == (4, 5)
