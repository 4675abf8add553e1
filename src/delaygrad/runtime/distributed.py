"""One rank per stage, over torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from delaygrad.boundary import Tree
from delaygrad.errors import DelaygradError, ScheduleError, TransportError
from delaygrad.methods import DDG, Method
from delaygrad.runtime.pipeline import Pipeline
from delaygrad.runtime.worker import Worker
from delaygrad.schedule import Schedule
from delaygrad.stage import LossFunction, MakeOptimizer, device_of, stage_class
from delaygrad.transport import Message
from delaygrad.transport.wire import Wire, WireReceiver, WireSender, reason_of


class DistributedPipeline(Pipeline):
    """Train one stage in this process, in step with the ranks that hold the others.

    Rank r of the group holds stage r. Every rank makes the same calls (``step``, ``flush``,
    ``predict``, ``state_dict``); no other synchronisation takes place. An error gradient is waited
    for just before the backward that needs it.

    Each stage's random stream follows from ``torch.initial_seed()`` of rank 0; to build the same
    network on every rank, call ``torch.manual_seed`` with one seed on all of them.

    End a run with ``flush`` (or ``state_dict``): a rank that leaves without takes with it what its
    neighbours have not yet received.

    Args:
        stage: this rank's module; takes what the stage below returns.
        loss_fn: ``loss_fn(outputs, targets)``; used on the last rank.
        make_optimizer: ``make_optimizer(params)``.
        method: the rule to train by; the same on every rank.
        group: one rank for each stage, in order; None is the default group. Needs an initialised
            process group: gloo for stages on the CPU, NCCL (with gloo beside it, for example
            ``cpu:gloo,cuda:nccl``) for stages on GPUs.
        device: where the stage computes; None is where its parameters are, or else the CPU.
        timeout_s: seconds to wait for a neighbour before giving it up.

    Raises:
        TransportError: torch.distributed is not initialised, this rank is not in the group, or
            another rank does not make its pipeline within ``timeout_s``.
        ScheduleError: the ranks were given different methods.
    """

    def __init__(
        self,
        stage: nn.Module,
        loss_fn: LossFunction,
        make_optimizer: MakeOptimizer,
        *,
        method: Method | None = None,
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        if not dist.is_initialized():
            raise TransportError(
                "torch.distributed is not initialised; start the ranks with torchrun and call "
                "torch.distributed.init_process_group first"
            )
        method = DDG() if method is None else method
        index, num_stages = dist.get_rank(group), dist.get_world_size(group)
        if index < 0:
            raise TransportError(f"this rank is not in the group (rank: {dist.get_rank()})")
        device = device_of(stage) if device is None else device
        links = _Links(device, group, timeout_s, method.schedule)
        arithmetic = stage_class(method, index, num_stages)(
            stage,
            make_optimizer,
            stage_index=index,
            num_stages=num_stages,
            method=method,
            loss_fn=loss_fn,
            device=device,
            seed=links.agree(method),
        )
        self._activation_sender, self._gradient_sender = links.to_above, links.to_below
        worker = Worker(
            arithmetic,
            activations=(links.from_below, links.to_above),
            gradients=(links.from_above, links.to_below),
            rank=dist.get_rank(),
        )
        self._prediction_receiver = links.predictions_from_below
        self._prediction_sender = links.predictions_to_above
        self._worker = worker
        super().__init__([worker], num_stages, method)

    @property
    def stage(self) -> nn.Module:
        """This rank's live module."""
        return self._worker.stage.module

    @property
    def stage_index(self) -> int:
        """Which stage this rank holds."""
        return self._worker.stage.stage_index

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """This stage's optimizer; None if the stage has no parameters."""
        return self._worker.stage.optimizer

    def predict(self, inputs: Tree) -> Any:
        """See ``Pipeline.predict``; every rank calls it."""
        self._interrupt()
        with self._naming("prediction"):
            if self._prediction_receiver is not None:
                inputs = self._prediction_receiver.receive().activation()
            outputs = self._worker.stage.predict(inputs)
            if self._prediction_sender is None:
                return outputs
            self._prediction_sender.send(Message.of_activation(self.iteration, outputs))
            self._prediction_sender.finish()  # this rank may leave after its last prediction
        return None

    def flush(self) -> None:
        """See ``Pipeline.flush``; also waits until the neighbours have taken everything."""
        super().flush()
        with self._naming("flush"):
            self._finish_sending()

    def state_dict(self) -> dict[str, Any]:
        """See ``Pipeline.state_dict``; also waits until the neighbours have taken everything."""
        with self._naming("state_dict"):
            state = super().state_dict()
            self._finish_sending()
        return state

    @contextmanager
    def _naming(self, call: str) -> Iterator[None]:
        """Begin an error's message with the place, the iteration and the call."""
        try:
            yield
        except DelaygradError as error:
            where = f"[{self._worker.place}, iteration {self.iteration}, {call}]"
            raise type(error)(f"{where} {error}") from error

    def _finish_sending(self) -> None:
        for sender in (self._activation_sender, self._gradient_sender):
            if sender is not None:
                sender.finish()


class _Links:
    """The links of one stage with its neighbours, each direction in groups of its own."""

    def __init__(
        self,
        device: torch.device,
        group: dist.ProcessGroup | None,
        timeout_s: float,
        schedule: Schedule,
    ) -> None:
        self._stage_index = dist.get_rank(group)
        ranks = dist.get_process_group_ranks(group) if group else list(range(dist.get_world_size()))
        timeout = timedelta(seconds=timeout_s)
        self._timeout_s = timeout_s
        below = None if self._stage_index == 0 else self._stage_index - 1
        above = None if self._stage_index == len(ranks) - 1 else self._stage_index + 1

        def groups() -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
            headers = _new_group(ranks, "gloo", timeout)
            return headers, headers if device.type == "cpu" else _new_group(ranks, None, timeout)

        def wire(peer: int, content: str, towards: str, pair: tuple[Any, Any]) -> Wire:
            name = f"{towards} stage {peer} (rank {ranks[peer]})"
            return Wire(ranks[peer], name, content, *pair, device, timeout_s)

        with self._meeting():
            down, up, predictions = groups(), groups(), groups()
        self._headers = down[0]
        self.from_below = self.to_above = self.from_above = self.to_below = None
        self.predictions_from_below = self.predictions_to_above = None
        if above is not None:
            in_flight = schedule.messages_under_way(self._stage_index, len(ranks))
            self.to_above = WireSender(wire(above, "an activation", "to", down), in_flight)
            self.from_above = WireReceiver(wire(above, "an error gradient", "from", up))
            self.predictions_to_above = WireSender(wire(above, "an activation", "to", predictions))
        if below is not None:
            self.from_below = WireReceiver(wire(below, "an activation", "from", down))
            in_flight = schedule.messages_under_way(below, len(ranks))
            self.to_below = WireSender(wire(below, "an error gradient", "to", up), in_flight)
            self.predictions_from_below = WireReceiver(
                wire(below, "an activation", "from", predictions)
            )

    def agree(self, method: Method) -> int:
        """Check that all ranks train by one method; return the seed of stage 0's process.

        Raises:
            ScheduleError: they do not.
            TransportError: a rank is missing.
        """
        said: list[Any] = [None] * dist.get_world_size(self._headers)
        with self._meeting():
            dist.all_gather_object(said, (repr(method), torch.initial_seed()), group=self._headers)
        if len({name for name, _ in said}) > 1:
            given = ", ".join(f"stage {k}: {name}" for k, (name, _) in enumerate(said))
            raise ScheduleError(f"the ranks were given different methods ({given})")
        seed: int = said[0][1]
        return seed

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TransportError(
                f"[stage {self._stage_index}, rank {dist.get_rank()}] another rank did not make "
                f"its pipeline: it is gone, or took longer than {self._timeout_s:g} s; see its own "
                f"error ({reason_of(error)})"
            ) from error


def _new_group(ranks: list[int], backend: str | None, timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(ranks, timeout, backend, use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)
    return group
