"""Activations that wait in a smaller type: what is rounded, what is not, and what it saves."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks

from delaygrad.stash import rounding, saving_rounded


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


def kept_by(module: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the graph of a module really keeps."""
    kept: list[Tensor] = []

    def spying(pack: Any, unpack: Any) -> saved_tensors_hooks:
        def note(tensor: Tensor) -> Any:
            saved = pack(tensor)
            kept.append(saved[0])
            return saved

        return saved_tensors_hooks(note, unpack)

    monkeypatch.setattr(rounding, "saved_tensors_hooks", spying)
    with saving_rounded(torch.bfloat16, module.parameters()):
        module(x * 1).sum().backward()
    return kept


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm1d(64), (8, 64)),
        (nn.LayerNorm(64), (2, 8, 64)),
        (nn.GroupNorm(2, 8), (4, 8, 5, 5)),
    ],
    ids=["batch norm", "layer norm", "group norm"],
)
def test_statistics_of_normalisations_stay_exact(
    module: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(*shape, requires_grad=True)
    kept = kept_by(module, x, monkeypatch)
    large = [tensor.dtype for tensor in kept if tensor.shape == x.shape]
    assert large == [torch.bfloat16]
    small = [t for t in kept if t.shape != x.shape and t.is_floating_point()]
    assert small and all(tensor.dtype == torch.float32 for tensor in small)


def test_the_sums_of_an_attention_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x * 2, x * 3)

    x = torch.randn(2, 2, 8, 32, requires_grad=True)
    kept = kept_by(Attention(), x, monkeypatch)
    assert {t.dtype for t in kept if t.shape == x.shape} == {torch.bfloat16}
    assert all(t.dtype == torch.float32 for t in kept if t.shape == x.shape[:-1])


def test_integers_and_expanded_tensors_are_kept_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            picked = x.gather(1, torch.tensor([[0, 2], [1, 1]]).repeat(4, 1))
            return picked * torch.ones(1, 1).expand(8, 2)

    kept = kept_by(Pick(), torch.randn(8, 6, requires_grad=True), monkeypatch)
    assert {torch.int64, torch.float32} <= {tensor.dtype for tensor in kept}


def test_a_tensor_kept_as_it_is_may_not_be_changed_in_place() -> None:
    x, scale = torch.randn(8, 6, requires_grad=True), torch.ones(6)
    with saving_rounded(torch.bfloat16, []):
        y = x * scale
    scale.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_without_a_backward_is_freed_with_its_output() -> None:
    x = torch.randn(8, 6, requires_grad=True)
    with saving_rounded(torch.bfloat16, []):
        scale = (x * 1)[0].exp()  # one dimension: kept as it is, by the operation that made it
        y = x * scale
    watched = weakref.ref(scale.untyped_storage())
    gc.disable()
    try:
        del scale, y
        assert watched() is None
    finally:
        gc.enable()


def live_bytes() -> dict[torch.dtype, int]:
    gc.collect()
    storages = {
        (t.dtype, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if issubclass(type(t), Tensor)
        and t.layout == torch.strided
        and not isinstance(t, FakeTensor)  # of an export; it has no memory
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
    scales = range(1, 9)
    with saving_rounded(torch.bfloat16, [w]):
        total = torch.zeros(())
        for scale in scales:  # each input is freed, and the next lies where it lay
            x = torch.full((512, 32), float(scale))
            total = total + (x @ w).sum()
            del x
    total.backward()
    torch.testing.assert_close(w.grad, torch.full((32, 32), 512.0 * sum(scales)))


def test_sparse_tensors_are_saved_as_they_are() -> None:
    matrix, x = torch.eye(3).to_sparse(), torch.randn(3, 4, requires_grad=True)
    with saving_rounded(torch.bfloat16, [matrix]):
        y = torch.sparse.mm(matrix, x)
        z = torch.sparse.mm(torch.eye(3).to_sparse() * 1.001, x)
    (y + z).sum().backward()
    assert torch.equal(x.grad, 1 + torch.full((3, 4), 1.001))


def graphs_of_training(module: nn.Module, dtype: torch.dtype | None) -> int:
    """How many graphs a compiler makes of a module while it trains."""
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, example_inputs)

    torch._dynamo.reset()
    module.compile(backend=counting)
    for _ in range(4):
        with saving_rounded(dtype, list(module.parameters())):
            y = module(torch.ones(8, 4))
        y.square().sum().backward()
    return len(graphs)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize(
    "make", [Block, lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))]
)
def test_a_compiler_does_not_trace_the_hooks(make: Callable[[], nn.Module]) -> None:
    # It made graphs of the hooks, new ones for each forward's, up to the limit of recompilations.
    exact, compiled = make(), make()
    compiled.load_state_dict(exact.state_dict())
    plain = copy.deepcopy(compiled)
    graphs = graphs_of_training(compiled, torch.bfloat16)
    assert graphs == graphs_of_training(exact, None)
    for _ in range(4):
        with saving_rounded(torch.bfloat16, list(plain.parameters())):
            y = plain(torch.ones(8, 4))
        y.square().sum().backward()
    for expected, found in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(expected.grad, found.grad)
