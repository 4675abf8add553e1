"""Equality to the last bit, of anything made of tensors, containers and plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def assert_same(actual: Any, expected: Any, where: str = "value") -> None:
    """Raise unless both are the same: types, keys, shapes, dtypes, strides and every bit.

    Example:
        >>> assert_same({"a": [torch.ones(2), None]}, {"a": [torch.ones(2), None]})
        >>> assert_same([torch.ones(2)], [torch.zeros(2)])
        Traceback (most recent call last):
        ...
        AssertionError: value[0]: 2 of 2 elements differ, by at most 1.0
    """
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), f"{where}: {actual!r} is no tensor"
        _assert_same_tensor(actual, expected, where)
    elif isinstance(expected, dict):
        assert isinstance(actual, dict), f"{where}: {actual!r} is no dict"
        assert list(actual) == list(expected), f"{where}: keys {list(actual)} != {list(expected)}"
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert type(actual) is type(expected), f"{where}: {actual!r} is no {type(expected)}"
        assert len(actual) == len(expected), f"{where}: {len(actual)} != {len(expected)} items"
        for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert_same(ours, theirs, f"{where}[{index}]")
    else:
        assert type(actual) is type(expected), f"{where}: {actual!r} != {expected!r}"
        assert actual == expected, f"{where}: {actual!r} != {expected!r}"


def _assert_same_tensor(actual: Tensor, expected: Tensor, where: str) -> None:
    for name in ("shape", "dtype", "requires_grad"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours == theirs, f"{where}: {name} {ours} != {theirs}"
    assert actual.stride() == expected.stride(), (
        f"{where}: strides {actual.stride()} != {expected.stride()}"
    )
    if not torch.equal(actual, expected):
        difference = (actual.detach().double() - expected.detach().double()).abs()
        raise AssertionError(
            f"{where}: {int((difference != 0).sum())} of {difference.numel()} elements differ, "
            f"by at most {difference.max().item()}"
        )
