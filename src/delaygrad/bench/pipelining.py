"""The schedules of ``torch.distributed.pipelining`` and ours in their place, on the same stages."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import pipelining

from delaygrad.bench.contestant import Contestant, Setting
from delaygrad.boundary import to_row_major
from delaygrad.runtime.torch_schedule import ScheduleDDG


@dataclass(frozen=True)
class TorchSchedule:
    """A schedule under torch's interface.

    Attributes:
        title: its usual name.
        kind: its class.
        chunks: stages on each rank.
        folded: the second stage of rank r is 2K-1-r (a V) rather than K+r (a loop).
    """

    title: str
    kind: type[Any]
    chunks: int = 1
    folded: bool = False

    def stages_of(self, rank: int, num_ranks: int) -> list[int]:
        """List a rank's stages.

        Example:
            >>> SCHEDULES["interleaved"].stages_of(0, 2), SCHEDULES["zbv"].stages_of(0, 2)
            ([0, 2], [0, 3])
        """
        if self.chunks == 1:
            return [rank]
        return [rank, 2 * num_ranks - 1 - rank if self.folded else num_ranks + rank]


SCHEDULES = {
    "gpipe": TorchSchedule("GPipe", pipelining.ScheduleGPipe),
    "1f1b": TorchSchedule("1F1B", pipelining.Schedule1F1B),
    "interleaved": TorchSchedule("interleaved 1F1B", pipelining.ScheduleInterleaved1F1B, 2),
    "zb": TorchSchedule("interleaved zero bubble", pipelining.ScheduleInterleavedZeroBubble, 2),
    "zbv": TorchSchedule("zero bubble V", pipelining.ScheduleZBVZeroBubble, 2, folded=True),
    "scheduleddg": TorchSchedule("ScheduleDDG", ScheduleDDG),
}


class TorchPipeline(Contestant):
    """One of the schedules with a number of micro-batches.

    The stages are told the shapes at their boundaries (static arguments): otherwise torch runs each
    module once on uninitialised memory to find them out, which leaves BatchNorm statistics
    corrupted. A ValueError says that the micro-batches do not divide the batch.
    """

    def __init__(self, setting: Setting, schedule: TorchSchedule, num_micro_batches: int) -> None:
        workload = setting.workload
        self._inputs, self._targets = workload.batch()
        modules = _stages(setting, schedule.chunks)
        crossing = _crossing(modules, self._inputs, num_micro_batches)
        stages = [
            _stage(modules, index, crossing, setting)
            for index in schedule.stages_of(setting.rank, setting.num_stages)
        ]
        self._schedule = schedule.kind(
            stages if schedule.chunks > 1 else stages[0], num_micro_batches, workload.loss_fn
        )
        parameters = [p for stage in stages for p in stage.submod.parameters()]
        self._optimizer = workload.make_optimizer(parameters)
        self._arguments = (self._inputs,) if any(stage.is_first for stage in stages) else ()
        self._holds_last = any(stage.is_last for stage in stages)
        self._losses: list[Tensor] = []
        if isinstance(self._schedule, ScheduleDDG):
            self.fill = setting.num_stages - 1

    def step(self) -> None:
        self._optimizer.zero_grad()
        self._schedule.step(
            *self._arguments,
            target=self._targets if self._holds_last else None,
            losses=self._losses if self._holds_last else None,
            return_outputs=False,
        )
        self._optimizer.step()

    def finish(self) -> None:
        if isinstance(self._schedule, ScheduleDDG):
            for _ in self._schedule.flush():
                self._optimizer.step()

    def loss(self) -> float | None:
        if not self._losses:
            return None
        return float(torch.stack([loss.detach() for loss in self._losses]).mean())


def _stages(setting: Setting, chunks: int) -> list[nn.Module]:
    if chunks > 1 and setting.chunk_cuts is None:
        raise ValueError(f"the network has too few layers for {chunks} stages on each rank")
    cuts = setting.cuts if chunks == 1 else setting.chunk_cuts
    return setting.workload.stages(chunks * setting.num_stages, cuts)


def _crossing(modules: list[nn.Module], inputs: Tensor, num_micro_batches: int) -> list[Tensor]:
    """Return what enters each stage for a micro-batch, and what leaves the last one."""
    if len(inputs) % num_micro_batches:
        raise ValueError(
            f"{num_micro_batches} micro-batches do not divide a batch of {len(inputs)}"
        )
    crossing = [inputs.chunk(num_micro_batches)[0]]
    with torch.no_grad():
        for module in copy.deepcopy(modules):  # copies: running statistics would change
            crossing.append(module(crossing[-1]))
    if not all(isinstance(tensor, Tensor) for tensor in crossing):
        raise ValueError("several tensors cross a boundary; this contestant sends one")
    return [crossing[0], *(tensor.requires_grad_() for tensor in crossing[1:])]


def _stage(
    modules: list[nn.Module], index: int, crossing: list[Tensor], setting: Setting
) -> pipelining.PipelineStage:
    last = len(modules) - 1
    below = None if index == 0 else crossing[index]
    above = None if index == last else crossing[index + 1]
    module: nn.Module = modules[index]
    if not all(tensor is None or tensor.is_contiguous() for tensor in (below, above)):
        module = _RowMajor(module, below, above)
    return pipelining.PipelineStage(
        module,
        index,
        len(modules),
        setting.workload.device,
        input_args=crossing[index] if below is None else _row_major(below),
        output_args=crossing[index + 1] if above is None else _row_major(above),
        group=setting.group,
    )


class _RowMajor(nn.Module):
    """Hand tensors over with their dimensions in memory order, and take them back.

    gloo refuses to send a ``channels_last`` tensor as it is.
    """

    def __init__(self, module: nn.Module, below: Tensor | None, above: Tensor | None) -> None:
        super().__init__()
        self.module = module
        self._order_below = None if below is None else to_row_major(below)[1]
        self._order_above = None if above is None else to_row_major(above)[1]

    def forward(self, x: Tensor) -> Tensor:
        if (order := self._order_below) is not None:
            x = _permuted(x, _inverse(order), sends_gradient=True)
        output: Tensor = self.module(x)
        if self._order_above is not None:
            output = _permuted(output, self._order_above, sends_gradient=False)
        return output


def _permuted(x: Tensor, order: list[int], *, sends_gradient: bool) -> Tensor:
    """Return ``x.permute(order)`` with two differences that the schedules ask for.

    It does not count as a view (zero bubble detaches outputs in place), and the error gradient
    comes out contiguous where it is to be sent.
    """
    permuted: Tensor = _Permuted.apply(x, order, sends_gradient)  # type: ignore[no-untyped-call]
    return permuted


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: list[int], sends_gradient: bool) -> Tensor:
        ctx.order, ctx.sends_gradient = _inverse(order), sends_gradient
        view = x.permute(order)
        return x.new_empty(0).set_(
            x.untyped_storage(), view.storage_offset(), view.shape, view.stride()
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        grad = grad_outputs[0].permute(ctx.order)
        return grad.contiguous() if ctx.sends_gradient else grad, None, None


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def _row_major(tensor: Tensor) -> Tensor:
    return to_row_major(tensor.detach())[0].requires_grad_()
