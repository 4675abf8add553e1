"""Activations that wait in a smaller type: what is rounded, what is not, and what it saves."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from delaygrad.stash import rounded, saving_rounded


def bf16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).to(tensor.dtype)


def test_a_linear_layer_gets_the_gradient_at_its_rounded_input() -> None:
    layer, x, error = nn.Linear(5, 4), torch.randn(3, 5), torch.randn(3, 4)
    x.requires_grad_()
    with saving_rounded(torch.bfloat16, [layer.weight]):
        y = layer(x * 1)
    y.backward(error)
    torch.testing.assert_close(layer.weight.grad, error.T @ bf16(x.detach()), rtol=0, atol=1e-6)
    # The weight is kept anyway, and is not rounded.
    torch.testing.assert_close(x.grad, error @ layer.weight.detach(), rtol=0, atol=1e-6)
    assert not torch.equal(layer.weight.grad, error.T @ x.detach())


def test_without_a_type_everything_is_saved_as_it_is() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    with saving_rounded(None, []):
        y = layer(x)
    y.sum().backward()
    assert torch.equal(layer.weight.grad, torch.ones(4, 3) @ x)


def test_statistics_integers_and_masks_stay_exact() -> None:
    norm, x = nn.BatchNorm1d(6), torch.randn(8, 6, requires_grad=True)
    seen: list[torch.dtype] = []
    with saving_rounded(torch.bfloat16, []), saved_tensors_hooks(note(seen), lambda t: t):
        norm(x * 1)
    assert seen  # the inner hooks see what the outer ones would
    index = torch.tensor([[0, 2], [1, 1]])
    with saving_rounded(torch.bfloat16, []):
        y = x.gather(1, index.repeat(4, 1)).relu()
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def note(seen: list[torch.dtype]):
    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.dtype)
        return tensor

    return pack


def live_bytes() -> dict[torch.dtype, int]:
    gc.collect()
    storages = {
        (t.dtype, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if issubclass(type(t), Tensor)
    }
    sizes: dict[torch.dtype, int] = {}
    for (dtype, _), num_bytes in storages.items():
        sizes[dtype] = sizes.get(dtype, 0) + num_bytes
    return sizes


def test_what_two_operations_save_is_rounded_once() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    before = live_bytes().get(torch.bfloat16, 0)
    with saving_rounded(torch.bfloat16, []):
        middle = (x * 1).exp()  # saves its output, and so do the two that use it
        y = middle * middle + middle.sin()
        del middle
    assert live_bytes().get(torch.bfloat16, 0) - before == 2 * 64 * 64
    y.sum().backward()
    e = x.detach().exp()
    torch.testing.assert_close(x.grad, (2 * e + e.cos()) * e, rtol=0.03, atol=0.3)


def test_memory_that_is_used_again_is_not_taken_for_what_was_there() -> None:
    w = nn.Parameter(torch.randn(32, 32))
    expected = []
    with saving_rounded(torch.bfloat16, [w]):
        total = torch.zeros(())
        for scale in range(1, 9):  # each input is freed, and the next may lie where it lay
            x = torch.full((4, 32), float(scale))
            total = total + (x @ w).sum()
            expected.append(x)
    total.backward()
    torch.testing.assert_close(w.grad, sum(x.T @ torch.ones(4, 32) for x in expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_only_wide_types_are_rounded(dtype: torch.dtype) -> None:
    tensor = torch.ones(2, dtype=dtype)
    assert rounded(tensor, torch.bfloat16) is tensor
    assert rounded(torch.ones(2, dtype=torch.float64), torch.float16).dtype == torch.float16
