"""Losses under micro-batches: the gradient is that of the whole batch, or an error says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import CLASSES, OPTIMIZERS, into_stages, mlp
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

IGNORED = -100
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.5, 2.0, 3.0])


def valid(targets: Tensor) -> Tensor:
    return (targets != IGNORED).sum()


def class_weight(targets: Tensor) -> Tensor:
    return CLASS_WEIGHTS[targets].sum()


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, CLASS_WEIGHTS)


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="sum")


def batch(*, ignored: int = 0, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 6, generator=generator)
    targets = torch.randint(CLASSES, (8,), generator=generator)
    targets[:ignored] = IGNORED
    return inputs, targets


def of(
    num_stages: int, loss_fn: Callable[..., Tensor], method: dg.Method, **options: Any
) -> dg.LocalPipeline:
    stages = into_stages(mlp(), num_stages)
    return dg.LocalPipeline(stages, loss_fn, OPTIMIZERS["sgd"], method=method, **options)


def gradients_of(stages: list[nn.Module]) -> list[Tensor | None]:
    return [p.grad for stage in stages for p in stage.parameters()]


CASES: dict[str, tuple[Callable[..., Tensor], Any, int]] = {
    "one ignored": (cross_entropy, valid, 1),
    "a part without valid items": (cross_entropy, valid, 3),
    "two parts without valid items": (cross_entropy, valid, 5),
    "class weights": (weighted, class_weight, 0),
    "a sum": (summed, "sum", 0),
}


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_whole_batch(case: str, num_stages: int) -> None:
    loss_fn, loss_weight, ignored = CASES[case]
    inputs, targets = batch(ignored=ignored)
    pipe = of(num_stages, loss_fn, dg.BP(micro_batches=4), loss_weight=loss_weight)
    whole = nn.Sequential(*copy.deepcopy(pipe.stages))
    loss = pipe.step(inputs, targets)
    expected = loss_fn(whole(inputs), targets)
    expected.backward()
    # Sums of four parts in another order than that of one: rounding alone differs.
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients_of(pipe.stages), gradients_of([whole]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_batch_without_valid_items_has_no_loss_and_moves_nothing(micro_batches: int) -> None:
    pipe = of(2, cross_entropy, dg.BP(micro_batches=micro_batches), loss_weight=valid)
    before = copy.deepcopy([stage.state_dict() for stage in pipe.stages])
    inputs, targets = batch(ignored=8)
    assert float(pipe.step(inputs, targets)) == 0.0  # type: ignore[arg-type]
    assert_same([stage.state_dict() for stage in pipe.stages], before)


def test_delayed_parts_equal_the_naive_loop() -> None:
    stages = into_stages(mlp(), 3)
    method = dg.DDG(micro_batches=2)
    naive = NaiveDelayedGradients(
        stages, cross_entropy, OPTIMIZERS["sgd"], micro_batches=2, weight=lambda y: int(valid(y))
    )
    pipe = dg.LocalPipeline(
        stages, cross_entropy, OPTIMIZERS["sgd"], method=method, loss_weight=valid
    )
    for seed in range(6):
        given = batch(ignored=seed % 4, seed=seed)
        assert_same(pipe.step(*given), naive.step(*given))
    pipe.flush()
    naive.flush()
    for ours, theirs in zip(pipe.stages, naive.stages, strict=True):
        assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))


def train_rank(rank: int, world_size: int) -> tuple[list[Any], dict[str, Tensor]]:
    torch.manual_seed(0)
    stage = into_stages(mlp(), world_size)[rank]
    with dg.DistributedPipeline(
        stage,
        cross_entropy,
        OPTIMIZERS["sgd"],
        method=dg.DDG(micro_batches=4),
        loss_weight=valid,
    ) as pipe:
        losses = [pipe.step(*batch(ignored=seed, seed=seed)) for seed in range(5)]
        pipe.flush()
    return losses, dict(stage.state_dict())


def test_both_runtimes_agree_on_weighted_parts() -> None:
    torch.manual_seed(0)
    pipe = of(2, cross_entropy, dg.DDG(micro_batches=4), loss_weight=valid)
    losses = [pipe.step(*batch(ignored=seed, seed=seed)) for seed in range(5)]
    pipe.flush()
    (_, first), (theirs, second) = run_ranks(train_rank, 2)
    assert_same(theirs, losses)
    assert_same([first, second], [dict(stage.state_dict()) for stage in pipe.stages])


WRONG: dict[str, tuple[Callable[..., Tensor], Any, int]] = {
    "a sum taken for a mean": (summed, None, 0),
    "a mean taken for a sum": (cross_entropy, "sum", 0),
    "a mean over valid items by samples": (cross_entropy, None, 1),
    "class weights by samples": (weighted, None, 0),
    "another weight": (weighted, len, 0),
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_do_not_add_up_are_an_error_before_any_update(case: str) -> None:
    loss_fn, loss_weight, ignored = WRONG[case]
    pipe = of(2, loss_fn, dg.DDG(micro_batches=4), loss_weight=loss_weight)
    before = copy.deepcopy([stage.state_dict() for stage in pipe.stages])
    with pytest.raises(dg.StageError, match=r"do not add up.*batch: \d.*loss_weight="):
        pipe.step(*batch(ignored=ignored))
    assert_same([stage.state_dict() for stage in pipe.stages], before)


def test_padding_that_begins_late_is_found_later() -> None:
    pipe = of(2, cross_entropy, dg.DDG(micro_batches=4))
    for iteration in range(100):
        pipe.step(*batch(ignored=iteration // 50))  # not looked at between 4 and 100
    with pytest.raises(dg.StageError, match="do not add up"):
        pipe.step(*batch(ignored=1))


def test_a_mean_over_parts_may_be_asked_for() -> None:
    pipe = of(2, weighted, dg.DDG(micro_batches=4), loss_weight="mean")
    for _ in range(3):
        pipe.step(*batch())


def large_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    one_hot = nn.functional.one_hot(targets, CLASSES)
    return cross_entropy(outputs * 1e-3 + 3e4 * one_hot, targets)  # a difference of large numbers


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(nn.functional.dropout(outputs, 0.5), targets)


class Counting(nn.CrossEntropyLoss):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(outputs, targets)


def in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.mul_(2), targets)


@pytest.mark.parametrize("loss_fn", [large_outputs, noisy, in_place])
def test_no_false_alarm(loss_fn: Callable[..., Tensor]) -> None:
    pipe = of(2, loss_fn, dg.DDG(micro_batches=3))
    for seed in range(4):
        pipe.step(*batch(seed=seed))


def test_the_comparison_moves_neither_random_numbers_nor_a_losss_own_state() -> None:
    def trained(loss_weight: Any) -> Any:
        torch.manual_seed(0)
        pipe = of(2, noisy, dg.DDG(micro_batches=2), loss_weight=loss_weight)
        return [pipe.step(*batch(seed=seed)) for seed in range(4)]

    assert_same(trained(None), trained("mean"))  # compared, and not
    counting = Counting()
    pipe = of(2, counting, dg.DDG(micro_batches=2))
    pipe.step(*batch())
    assert int(counting.calls) == 2


def test_flattened_outputs_are_compared_too() -> None:
    """A language model's head may return a table of (B * items, classes)."""

    def flat(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets.flatten())

    blocks = [*mlp(), nn.Flatten(0, 1)]
    pipe = dg.LocalPipeline(
        [nn.Sequential(*blocks)], flat, OPTIMIZERS["sgd"], method=dg.BP(micro_batches=2)
    )
    inputs, targets = torch.randn(4, 3, 6), torch.randint(CLASSES, (4, 3))
    pipe.step(inputs, targets)
    targets[0, 1:] = IGNORED
    with pytest.raises(dg.StageError, match="do not add up"):
        pipe.step(inputs, targets)


@pytest.mark.parametrize(
    ("loss_weight", "message"),
    [
        ("samples", "neither a rule"),
        (lambda y: -1, "none below 0"),
        (lambda y: float("nan"), "nan"),
    ],
)
def test_a_weight_that_is_none_is_refused(loss_weight: Any, message: str) -> None:
    with pytest.raises(dg.StageError, match=message):
        of(2, cross_entropy, dg.DDG(micro_batches=2), loss_weight=loss_weight).step(*batch())


# A loss that is NaN or infinite.


def test_a_loss_that_is_not_finite_is_an_error_before_the_last_stage_moves() -> None:
    pipe = of(2, cross_entropy, dg.DDG())
    pipe.step(*batch())
    before = copy.deepcopy(pipe.stages[1].state_dict())
    inputs, targets = batch()
    with pytest.raises(
        dg.NonFiniteLossError, match=r"\[stage 1, iteration 1, .*loss: nan.*allow_nonfinite_loss"
    ):
        pipe.step(inputs * float("nan"), targets)
    assert_same(dict(pipe.stages[1].state_dict()), dict(before))


def test_a_part_without_items_names_the_remedy() -> None:
    pipe = of(2, cross_entropy, dg.DDG(micro_batches=4))
    with pytest.raises(dg.NonFiniteLossError, match="loss_weight="):
        pipe.step(*batch(ignored=2))


def test_a_loss_that_is_not_finite_may_be_allowed() -> None:
    pipe = of(2, cross_entropy, dg.DDG(), allow_nonfinite_loss=True)
    inputs, targets = batch()
    loss = pipe.step(inputs * float("inf"), targets)
    assert loss is not None and not loss.isfinite()


@pytest.mark.gpu
def test_on_a_gpu_it_is_an_error_some_steps_later_at_flush_at_the_latest() -> None:
    stages = [stage.cuda() for stage in into_stages(mlp(), 2)]
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"])
    inputs, targets = (tensor.cuda() for tensor in batch())
    with pytest.raises(dg.NonFiniteLossError):
        for _ in range(3):
            pipe.step(inputs * float("nan"), targets)
        pipe.flush()
