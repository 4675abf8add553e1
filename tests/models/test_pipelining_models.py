"""Networks of the kinds that torch.distributed.pipelining is tried on, in two and three stages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from torch import Tensor, nn
from torch.nn import functional as F

import delaygrad as dg

WIDTH = 6


class KeywordArguments(nn.Module):
    """Optional and keyword-only arguments, one of them read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.third, self.mix = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor, y: Tensor | None = None, *, late: Tensor) -> Tensor:
        x = torch.relu(self.first(x @ self.mix))
        x = self.second(x if y is None else x + y)
        return self.third(torch.relu(x)) + late


class Skips(nn.Module):
    """The input and the first layer's output are read by the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        middle = self.layers[2](torch.relu(self.layers[1](torch.relu(first))))
        return self.layers[3](middle + first) - x


class MultiUse(nn.Module):
    """One matrix outside all layers is used between all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x @ self.matrix))
        return x @ self.matrix


class Alias(nn.Module):
    """One parameter under two names, read by the first and the last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.layers[0](x @ self.one))
        x = torch.relu(self.layers[1](x))
        return self.layers[2](x) @ self.other


class BufferAcross(nn.Module):
    """What is made from a buffer at the start, without a gradient, is read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.randn(WIDTH))
        self.register_buffer("table", torch.randn(WIDTH), persistent=False)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.constant.clone()
        x = torch.relu(self.layers[0](x)) + self.table
        x = self.norm(self.layers[1](x)) + self.table
        return self.layers[2](torch.relu(x) + kept)


class SeveralOutputs(nn.Module):
    """Blocks that take and return tuples and dicts."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return self.left(pair[1]), {"right": self.right(pair[0])}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Pair() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        left, right = x, x.cos()
        for layer in self.layers:
            left, found = layer((left, right))
            right = torch.tanh(found["right"])
        return left + right


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class OwnBackward(nn.Module):
    """Layers with a backward of their own."""

    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(super().forward(x))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Layer(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).layers

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (2, -1)).repeat(1, 1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


MODELS = (
    KeywordArguments, Skips, MultiUse, Alias, BufferAcross, SeveralOutputs, OwnBackward,
    Transformer,
)  # fmt: skip


def batch(kind: type[nn.Module], size: int) -> Any:
    x = torch.randn(size, WIDTH)
    return {"x": x, "y": x.sin(), "late": x.cos()} if kind is KeywordArguments else x


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.flatten(1), targets.expand(-1, outputs[0].numel()))


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_they_are_cut_by_one_call_and_train_exactly(
    kind: type[nn.Module], num_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    torch.manual_seed(0)
    model = kind()
    stages = dg.split(model, num_stages, sample_inputs=batch(kind, 4))
    assert dg.check(stages, model, batch(kind, 3)) == 0.0
    assert list(dg.merge(stages).state_dict()) == list(model.state_dict())
    torch.manual_seed(0)
    naive = NaiveDelayedGradients(copy.deepcopy(stages), loss, sgd)
    pipe = dg.LocalPipeline(stages, loss, sgd, method=dg.DDG())
    torch.manual_seed(1)
    losses: tuple[list[Any], list[Any]] = ([], [])
    for _ in range(4):
        inputs, targets = batch(kind, 4), torch.randn(4, 1)
        for found, loop in zip(losses, (pipe, naive), strict=True):
            found.append(loop.step(inputs, targets))
    pipe.flush()
    naive.flush()
    ours, theirs = ([dict(s.state_dict()) for s in p.stages] for p in (pipe, naive))
    if num_stages == 3 and kind is MultiUse:  # a middle stage adds up its own uses first
        torch.testing.assert_close([losses[0], ours], [losses[1], theirs], rtol=1e-5, atol=1e-6)
    else:
        assert_same([losses[0], ours], [losses[1], theirs])
    kind().load_state_dict(dg.merge(pipe.stages).state_dict())
