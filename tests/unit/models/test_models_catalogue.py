from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from delaygrad.models import build, gpt, mlp, resnet


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def test_resnet_takes_its_depth_from_the_name() -> None:
    built = build("resnet20", (1, 8, 8), 10)
    assert shapes(built) == shapes(resnet(20, num_classes=10, in_channels=1))


def test_mlp_options_reach_it() -> None:
    built = build("mlp", (1, 8, 8), 10, width=16, depth=3, dropout=0.25)
    assert shapes(built) == shapes(mlp(sample_shape=(1, 8, 8), num_classes=10, width=16, depth=3))
    assert built.dropout1.p == 0.25


def test_gpt_options_reach_it() -> None:
    built = build("gpt", (32,), 65, width=16, depth=2, heads=8, dropout=0.25, context=40)
    expected = gpt(vocabulary_size=65, context_length=40, width=16, num_layers=2)
    assert shapes(built) == shapes(expected)
    assert built.block1.num_heads == 8 and built.block1.dropout.p == 0.25


@pytest.mark.parametrize(
    ("name", "sample_shape", "default"),
    [
        ("mlp", (1, 8, 8), mlp(sample_shape=(1, 8, 8), num_classes=5)),
        ("gpt", (32,), gpt(vocabulary_size=5, context_length=32)),
    ],
    ids=["mlp", "gpt"],
)
def test_options_left_out_are_the_network_s_own(
    name: str, sample_shape: tuple[int, ...], default: nn.Module
) -> None:
    assert shapes(build(name, sample_shape, 5)) == shapes(default)


@pytest.mark.parametrize(
    ("name", "sample_shape", "options", "message"),
    [
        ("resnet21", (3, 32, 32), {}, "use 20 or 26"),
        ("resnet", (3, 32, 32), {}, r"unknown model \(name: 'resnet'\); use resnet8"),
        ("resnet-20", (3, 32, 32), {}, "use resnet20"),
        ("nlp", (3, 32, 32), {}, "use mlp"),
        ("transformer", (3, 32, 32), {}, "use resnet8, resnet20, resnet56, resnet110, mlp, gpt"),
        ("resnet20", (3, 32, 32), {"depth": 20}, r"resnet20 has no depth\); leave it out"),
        ("resnet20", (3, 32, 32), {"dropout": 0.1}, "has no dropout"),
        ("mlp", (64,), {"heads": 2, "context": 3}, "no heads, context.*has width, depth, dropout"),
        ("resnet20", (64,), {}, r"model: resnet20, samples: \(64,\), expected: \(C, H, W\)"),
        ("gpt", (3, 32, 32), {}, r"model: gpt, .*expected: \(T,\)"),
        ("gpt", (32,), {"context": 16}, r"context: 16, tokens per sample: 32\); use at least 32"),
    ],
)
def test_wrong_request_names_what_would_be_right(
    name: str, sample_shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, sample_shape, 10, **options)
