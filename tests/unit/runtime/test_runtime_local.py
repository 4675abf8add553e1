"""What the local pipeline accepts, refuses and lets go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import delaygrad as dg

METHODS = [dg.BP(), dg.DDG(), dg.DDG(recompute=True), dg.DDG(stash_dtype=torch.bfloat16)]


def pipeline(stages: list[nn.Module], **options: object) -> dg.LocalPipeline:
    return dg.LocalPipeline(
        stages, nn.functional.mse_loss, lambda params: torch.optim.SGD(params, lr=0.1), **options
    )


class Scaled(nn.Linear):
    def __init__(self, table: Tensor, *, persistent: bool) -> None:
        super().__init__(3, 3)
        self.register_buffer("table", table, persistent=persistent)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.table


class OnGraph(nn.Linear):
    """Mixes the samples of a batch by a sparse matrix."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__(3, 3)
        matrix = torch.eye(4) + torch.eye(4).roll(1, 0)
        self.register_buffer("adjacency", matrix.to_sparse() if sparse else matrix)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.adjacency @ super().forward(inputs).tanh()


def losses(stages: list[nn.Module], **options: object) -> Tensor:
    pipe = pipeline(stages, **options)
    generator = torch.Generator().manual_seed(0)
    found = [pipe.step(torch.randn(4, 3, generator=generator), torch.ones(4, 3)) for _ in range(8)]
    pipe.flush()
    return torch.stack(found)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_stages_may_share_a_constant_buffer(method: dg.Method) -> None:
    found = []
    for shared in (True, False):
        torch.manual_seed(0)
        table = torch.linspace(0.5, 1.5, 3)
        tables = [table if shared else table.clone() for _ in range(3)]
        found.append(losses([Scaled(t, persistent=False) for t in tables], method=method))
    assert torch.equal(*found)


def test_stages_may_not_share_a_buffer_of_the_state() -> None:
    table = torch.ones(3)
    with pytest.raises(
        dg.PartitionError,
        match=r"buffer shared between stages \('table' in stage 0, 'table' in stage 1\).*"
        r"if it is a constant, register it with persistent=False",
    ):
        pipeline([Scaled(table, persistent=True) for _ in range(2)])


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_sparse_buffer_does_what_a_dense_one_does(method: dg.Method) -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        found.append(losses([OnGraph(sparse=sparse), nn.Linear(3, 3)], method=method))
    torch.testing.assert_close(*found, rtol=1e-2 if method.stash_dtype else 1e-5, atol=0)


def test_a_closed_pipeline_trains_no_more_and_still_predicts() -> None:
    inputs, targets = torch.randn(4, 3), torch.ones(4, 3)
    with pipeline([nn.Linear(3, 3), nn.Linear(3, 3)]) as pipe:
        pipe.step(inputs, targets)
        pipe.flush()
        expected = pipe.predict(inputs)
    pipe.close()
    assert torch.equal(pipe.predict(inputs), expected)
    for call in (lambda: pipe.step(inputs, targets), pipe.flush, pipe.state_dict):
        with pytest.raises(dg.WorkerError, match="the pipeline is closed"):
            call()


@pytest.mark.parametrize(
    "method",
    [dg.DDG(), dg.DDG(slack=1, micro_batches=3), dg.BP(micro_batches=2), dg.FDG()],
    ids=repr,
)
def test_an_iteration_has_the_actions_of_its_ticks_in_the_fill_and_after(method: dg.Method) -> None:
    parts, num_stages, length = method.schedule.micro_batches, 4, 9
    with pipeline([nn.Linear(3, 3) for _ in range(num_stages)], method=method) as pipe:
        for first in (0, length):  # two phases
            for iteration in range(first, first + length):
                ticks = range(iteration * parts, (iteration + 1) * parts)
                assert pipe._actions() == [
                    action
                    for tick in ticks
                    for action in method.schedule.actions(
                        tick, num_stages, first_batch=first * parts
                    )
                ]
                pipe.step(torch.randn(4, 3), torch.ones(4, 3))
            pipe.flush()
