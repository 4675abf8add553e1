from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from delaygrad.models.mlp import mlp


def test_layers_are_linear_with_relu_between() -> None:
    model = mlp(sample_shape=(1, 8, 8), num_classes=10, width=32, depth=3)
    assert type(model) is nn.Sequential
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [
        *((32, 64), (32, 32), (10, 32))
    ]
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)


def test_depth_of_one_is_a_linear_classifier() -> None:
    model = mlp(sample_shape=(20,), num_classes=3, depth=1)
    assert list(model.state_dict()) == ["linear1.weight", "linear1.bias"]


def test_dropout_changes_no_parameter_name() -> None:
    plain, dropping = (
        mlp(sample_shape=(4,), num_classes=2, dropout=dropout) for dropout in (0.0, 0.5)
    )
    assert list(plain.state_dict()) == list(dropping.state_dict())
    assert [layer.p for layer in dropping if isinstance(layer, nn.Dropout)] == [0.5] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, r"depth must be at least 1 \(depth: 0\)"),
        ({"width": -3}, "width must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"sample_shape": (1, 0)}, "sample_elements must be at least 1"),
        ({"dropout": 1.0}, r"dropout is out of range \(dropout: 1.0\)"),
        ({"dropout": float("nan")}, "dropout is out of range"),
    ],
)
def test_number_out_of_range_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(**({"sample_shape": (4,), "num_classes": 2} | change))
