"""Losses that stages add in their forward, and losses with extras.

Whole-network backpropagation of the sum adds gradients in another order: the tolerance is 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import CLASSES, OPTIMIZERS, batches, parameters
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

MAKE = OPTIMIZERS["nesterov"]
SIZES = (7, 6, 5)  # parts of a batch differ in size
HEARD: list[Tensor] = []
"""What the modules have added, for the naive loop."""


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    HEARD.clear()
    yield
    torch.set_default_dtype(torch.float32)


class Balanced(nn.Module):
    """Layers with a loss of their own."""

    def __init__(self, weight: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight, self.first, self.second = weight, nn.Linear(6, 6), nn.Linear(6, 6)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.tanh(self.first(x)))
        added = self.weight * hidden.square().mean()
        HEARD.append(added)
        dg.add_loss(added)
        return torch.tanh(self.second(hidden))


def into_stages(num_stages: int, seed: int = 0, dropout: float = 0.0) -> list[nn.Module]:
    """The first and the last stage add two losses each, one between adds none."""
    torch.manual_seed(seed)
    pairs: list[nn.Module] = [Balanced(0.7, dropout), Balanced(0.4), nn.Linear(6, 6), nn.Tanh()]
    pairs += [Balanced(0.3), nn.Sequential(Balanced(0.5, dropout), nn.Linear(6, CLASSES))]
    size = len(pairs) // num_stages
    return [nn.Sequential(*pairs[k * size : (k + 1) * size]) for k in range(num_stages)]


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    total = cross_entropy(outputs, targets)
    for added in HEARD:
        total = total + added
    HEARD.clear()
    return total


CASES: dict[str, tuple[dg.Method, dict[str, Any]]] = {
    "ddg": (dg.DDG(), {}),
    "replay": (dg.DDG(recompute=True), {}),
    "parts": (dg.DDG(micro_batches=2), {"micro_batches": 2}),
    "slack": (dg.DDG(slack=1, micro_batches=3, recompute=True), {"slack": 1, "micro_batches": 3}),
    "bp": (dg.BP(micro_batches=2), {"delayed": False, "micro_batches": 2}),
}


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_sum(case: str, num_stages: int) -> None:
    method, rule = CASES[case]
    dropout = 0.3 if num_stages > 1 else 0.0  # one stage draws from the process's generator
    data = list(batches(8, (6,), sizes=SIZES))
    stages = into_stages(num_stages, dropout=dropout)
    naive = NaiveDelayedGradients(stages, summed, MAKE, **rule)
    pipe = dg.LocalPipeline(stages, cross_entropy, MAKE, method=method)
    expected = [naive.step(x, y) for x, y in data]
    naive.flush()
    for (x, y), both in zip(data, expected, strict=True):
        loss = pipe.step(x, y)
        assert loss is not None
        added = [loss for loss in pipe.added_losses if loss is not None]
        torch.testing.assert_close(loss + sum(added), both, rtol=1e-12, atol=1e-12)
    assert (pipe.added_losses[1] is None) == (num_stages == 3) if num_stages > 1 else added
    pipe.flush()
    for ours, theirs in zip(parameters(stages), parameters(naive.stages), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_stage_that_trains_at_once_adds_its_loss_too() -> None:
    def gradients(weight: float) -> list[Tensor]:
        torch.manual_seed(0)
        stages = [Balanced(weight), nn.Linear(6, CLASSES)]
        torch.manual_seed(1)
        pipe = dg.LocalPipeline(stages, cross_entropy, MAKE, method=dg.DNI(synthesizer_width=8))
        pipe.step(*data)
        return [p.grad.clone() for p in stages[0].parameters() if p.grad is not None]

    data = next(batches(1, (6,)))
    torch.manual_seed(0)
    alone = Balanced(1.0)
    HEARD.clear()
    alone(data[0])
    HEARD.pop().backward()
    pairs = zip(gradients(1.0), gradients(0.0), alone.parameters(), strict=True)
    for with_it, without, parameter in pairs:
        own = torch.zeros_like(without) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(with_it - without, own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"loss_scale": 2.0**10}, {"clip_norm": 1e9}], ids=str)
def test_scaled_and_unclipped_it_is_the_same_to_the_last_bit(options: dict[str, Any]) -> None:
    def trained(**options: Any) -> list[Tensor]:
        stages = into_stages(3)
        pipe = dg.LocalPipeline(stages, cross_entropy, MAKE, **options)
        for x, y in batches(6, (6,)):
            pipe.step(x, y)
        return parameters(stages)

    assert_same(trained(**options), trained())


@pytest.mark.parametrize("recompute", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(recompute: bool) -> None:
    def make(seed: int) -> dg.LocalPipeline:
        method = dg.DDG(micro_batches=2, recompute=recompute)
        stages = into_stages(3, seed, dropout=0.2)
        return dg.LocalPipeline(stages, cross_entropy, MAKE, method=method)

    whole, resumed, data = make(0), make(7), list(batches(9, (6,), sizes=SIZES))
    for x, y in data[:4]:
        whole.step(x, y)
    resumed.load_state_dict(whole.state_dict())
    for x, y in data[4:]:
        assert_same(whole.step(x, y), resumed.step(x, y))
        assert_same(whole.added_losses, resumed.added_losses)
    whole.flush()
    resumed.flush()
    assert_same(resumed.state_dict(), whole.state_dict())


def test_inside_a_checkpointed_block_it_counts_once() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    def trained(*, checkpointed: bool) -> list[Tensor]:
        stages = into_stages(2)
        modules = [Checkpointed(stage) for stage in stages] if checkpointed else stages
        pipe = dg.LocalPipeline(modules, cross_entropy, MAKE)
        for x, y in batches(6, (6,)):
            pipe.step(x, y)
        return parameters(stages)

    assert_same(trained(checkpointed=True), trained(checkpointed=False))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_a_compiled_stage_adds_its_loss() -> None:
    def trained(*, compiled: bool) -> list[Tensor]:
        stages = into_stages(2)
        for stage in stages if compiled else []:
            stage.forward = torch.compile(stage.forward, backend="eager")  # type: ignore[method-assign]
        pipe = dg.LocalPipeline(stages, cross_entropy, MAKE)
        for x, y in batches(4, (6,)):
            pipe.step(x, y)
        return parameters(stages)

    assert_same(trained(compiled=True), trained(compiled=False))


def test_predictions_and_calls_outside_add_nothing() -> None:
    stages = into_stages(2)
    pipe = dg.LocalPipeline(stages, cross_entropy, MAKE)
    x, y = next(batches(1, (6,)))
    pipe.step(x, y)
    before = pipe.added_losses
    pipe.predict(x)
    pipe.evaluate(x, y)
    dg.add_loss(torch.ones(()))
    assert_same(pipe.added_losses, before)


@pytest.mark.parametrize(
    ("weight", "options", "error", "message"),
    [
        (torch.ones(2), {}, dg.StageError, r"stage 0, .*add_loss takes a 0-d tensor \(given: \(2,"),
        (math.nan, {}, dg.NonFiniteLossError, "stage 0, .*not finite"),
        (math.nan, {"allow_nonfinite_loss": True}, None, ""),
        (math.nan, {"loss_scale": 2.0}, None, ""),
    ],
)
def test_a_wrong_loss_names_its_stage(
    weight: Any, options: dict[str, Any], error: type[Exception] | None, message: str
) -> None:
    pipe = dg.LocalPipeline(
        [Balanced(weight), nn.Linear(6, CLASSES)], cross_entropy, MAKE, **options
    )
    data = list(batches(3, (6,)))
    if error is not None:
        with pytest.raises(error, match=message):
            pipe.step(*data[0])
        return
    for x, y in data:
        pipe.step(x, y)
    assert pipe.skipped == ([2, 0] if "loss_scale" in options else [0, 0])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_extras_of_the_loss_are_kept_for_each_part(micro_batches: int) -> None:
    def with_extras(outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Any]]:
        right = (outputs.argmax(1) == targets).sum()
        return cross_entropy(outputs, targets), {"right": right, "outputs": outputs, "note": "x"}

    def train(loss_fn: Any) -> tuple[list[Tensor], dg.LocalPipeline]:
        stages = into_stages(2)
        method = dg.DDG(micro_batches=micro_batches)
        pipe = dg.LocalPipeline(stages, loss_fn, MAKE, method=method)
        for x, y in batches(6, (6,), sizes=SIZES):
            pipe.step(x, y)
            if loss_fn is with_extras:
                outputs = torch.cat([extras["outputs"] for extras in pipe.extras])
                right = sum(extras["right"] for extras in pipe.extras)
                assert len(pipe.extras) == micro_batches and not outputs.requires_grad
                assert right == (outputs.argmax(1) == y).sum()
        return parameters(stages), pipe

    ours, pipe = train(with_extras)
    theirs, plain = train(cross_entropy)
    assert_same(ours, theirs)
    assert plain.extras == []
    x, y = next(batches(1, (6,)))
    assert_same(pipe.evaluate(x, y)[0], plain.evaluate(x, y)[0])


@pytest.mark.parametrize("method", [dg.BP(), dg.BP(micro_batches=2)], ids=repr)
def test_the_monitor_compares_with_the_gradient_of_the_sum(method: dg.Method) -> None:
    pipe = dg.LocalPipeline(into_stages(3), cross_entropy, MAKE, method=method)
    monitor = dg.Monitor(pipe, every=1)
    for x, y in batches(6, (6,), sizes=SIZES):
        pipe.step(x, y)
    assert len(monitor.rows) >= 3
    assert all(row["staleness_ratio"] == 0 for row in monitor.rows)  # without delay
