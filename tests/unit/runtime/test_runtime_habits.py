"""What users of ordinary loops do after a step is refused, or told once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from networks import OPTIMIZERS, batches, into_stages, mlp
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg


def pipe_of(method: dg.Method | None = None, num_stages: int = 2) -> dg.LocalPipeline:
    return dg.LocalPipeline(
        into_stages(mlp(), num_stages), cross_entropy, OPTIMIZERS["nesterov"], method=method
    )


@pytest.mark.parametrize("method", [dg.DDG(), dg.BP(), dg.DNI()], ids=repr)
def test_an_optimizer_step_by_hand_is_an_error_and_moves_nothing(method: dg.Method) -> None:
    pipe = pipe_of(method)
    for batch in batches(3, (6,)):
        pipe.step(*batch)
    for optimizer, stage in zip(pipe.optimizers, pipe.stages, strict=True):
        assert optimizer is not None
        before = [parameter.clone() for parameter in stage.parameters()]
        with pytest.raises(dg.StageError, match=r"outside the pipeline \(stage: \d\)"):
            optimizer.step()
        assert all(map(torch.equal, stage.parameters(), before))
    for batch in batches(2, (6,)):
        pipe.step(*batch)
    pipe.flush()


def test_optimizers_are_free_when_their_pipeline_is_closed_or_gone() -> None:
    pipe = pipe_of()
    optimizers = pipe.optimizers
    pipe.close()
    gone = pipe_of()
    optimizers += gone.optimizers
    del gone
    for optimizer in optimizers:
        assert optimizer is not None
        optimizer.step()


@pytest.mark.parametrize(
    "method",
    [dg.DDG(), dg.BP(), dg.DDG(micro_batches=2), dg.DDG(micro_batches=2, slack=1), dg.DNI()],
    ids=repr,
)
def test_ordinary_training_says_nothing(method: dg.Method) -> None:
    pipe = pipe_of(method, num_stages=3)
    for index, batch in enumerate(batches(60, (6,))):  # a warning would be an error here
        for optimizer in filter(None, pipe.optimizers):
            optimizer.zero_grad(set_to_none=bool(index % 2))
        pipe.step(*batch)
    pipe.flush()


def clip(stages: list[nn.Module]) -> None:
    torch.nn.utils.clip_grad_norm_([p for s in stages for p in s.parameters()], 1.0)


def warned(pipe: dg.LocalPipeline | dg.DistributedPipeline, stages: list[nn.Module]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for inputs, targets in batches(6, (6,)):
            pipe.step(inputs, targets)
            clip(stages)
        pipe.flush()
    return [str(w.message) for w in caught if w.category is dg.DelaygradWarning]


def test_clipping_after_a_step_is_told_once_per_stage() -> None:
    pipe = pipe_of()
    messages = warned(pipe, pipe.stages)
    assert len(messages) == 2
    assert all("after pipe.step had applied them" in message for message in messages)
    assert {message.split("(stage: ")[1][0] for message in messages} == {"0", "1"}


def clip_on_rank(rank: int, world_size: int) -> list[str]:
    torch.manual_seed(0)
    stage = into_stages(mlp(), world_size)[rank]
    with dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["sgd"], timeout_s=30) as pipe:
        return warned(pipe, [stage])


def test_each_rank_tells_of_its_own_clipping() -> None:
    for rank, (message,) in enumerate(run_ranks(clip_on_rank, 2)):
        assert f"(stage: {rank})" in message


class Half(nn.Module):
    """Uses one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.frozen = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


@pytest.mark.parametrize("method", [dg.DDG(), dg.BP(), dg.DDG(micro_batches=2)], ids=repr)
def test_parameters_that_never_get_a_gradient_are_named_once(method: dg.Method) -> None:
    stages: list[nn.Module] = [Half(), nn.Linear(6, 5)]
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"], method=method)

    def caught(num_batches: int) -> list[Any]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for batch in batches(num_batches, (6,)):
                pipe.step(*batch)
        return found

    assert caught(40) == []
    (told,) = caught(20)
    assert told.category is dg.DelaygradWarning and told.filename == __file__
    assert "(stage: 0, parameters: idle.weight, idle.bias)" in str(told.message)
    assert caught(70) == []
