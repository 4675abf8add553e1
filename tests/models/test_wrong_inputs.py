"""A batch that a captured network cannot take is refused before anything changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import assert_same
from networks import sgd
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad import StageError

SAMPLE = torch.ones(4, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x) * (2 if x.shape[0] < 9 else 1)
        return self.head(x.mean((2, 3)))


def train(pipe: Any, wrong: list[Any]) -> tuple[list[Tensor], list[str]]:
    losses, told = [], []
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for inputs in wrong:
            try:
                pipe.step(inputs, torch.zeros(4, dtype=torch.long))
            except StageError as error:
                told.append(str(error))
        inputs = torch.randn(4, 3, 8, 8, generator=generator)
        losses.append(pipe.step(inputs, torch.tensor([0, 1, 2, 3])))
    pipe.flush()
    return losses, told


def local(micro_batches: int = 1) -> dg.LocalPipeline:
    stages = dg.split(Net(), 2, sample_inputs=SAMPLE, cuts=["layers.2"])
    return dg.LocalPipeline(stages, cross_entropy, sgd, method=dg.DDG(micro_batches=micro_batches))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (SAMPLE[:, :2], r"inputs do not fit.*given: \[4, 2, 8, 8\], expected: \[4, 3, 8, 8\]"),
        (SAMPLE[0], r"inputs do not fit.*given: \[3, 8, 8\], expected: \[3, 3, 8, any\]"),
        (
            SAMPLE.repeat(3, 1, 1, 1),
            r"at these sizes.*\[12, 3, 8, 8\].*had inputs.shape\[0\] < 9, test_wrong",
        ),
        ((SAMPLE, SAMPLE), "given: a tuple of 2, sample: a Tensor"),
    ],
)
def test_the_error_names_input_given_and_expected_sizes(inputs: Any, told: str) -> None:
    with pytest.raises(StageError, match=told) as raised:
        local().step(inputs, torch.zeros(4, dtype=torch.long))
    assert "stage 0, iteration 0" in str(raised.value)


WRONG = [SAMPLE[:, :2], SAMPLE[0]]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_pipeline_goes_on_as_if_the_batch_had_not_been(micro_batches: int) -> None:
    undisturbed, disturbed = local(micro_batches), local(micro_batches)
    expected, _ = train(undisturbed, [])
    found, told = train(disturbed, WRONG)
    assert len(told) == 8
    assert_same(found, expected, "losses")
    states = [[dict(s.state_dict()) for s in pipe.stages] for pipe in (undisturbed, disturbed)]
    assert_same(states[1], states[0], "states")


def _on_a_rank(rank: int, world_size: int) -> Any:
    pipe = dg.DistributedPipeline.from_model(
        Net(), cross_entropy, sgd, sample_inputs=SAMPLE, cuts=["layers.2"], timeout_s=60
    )
    with pipe:
        losses, told = train(pipe, WRONG if rank == 0 else [])
        return losses, told, dict(pipe.stage.state_dict())


def test_the_other_ranks_wait_for_the_next_batch() -> None:
    found = run_ranks(_on_a_rank, 2, timeout_s=100)
    pipe = local()
    expected, _ = train(pipe, [])
    assert len(found[0][1]) == 8
    assert_same(found[1][0], expected, "losses")
    assert_same([f[2] for f in found], [dict(s.state_dict()) for s in pipe.stages], "states")
