"""One rank per stage, over torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from delaygrad.boundary import Tree
from delaygrad.errors import DelaygradError, PartitionError, TransportError
from delaygrad.methods import Method, method_or_ddg
from delaygrad.methods.axes import ClipNorm, LossScale
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition.cuts import known_cuts
from delaygrad.random_stream import stage_seed
from delaygrad.runtime import exchange
from delaygrad.runtime.cutting import cut_alike
from delaygrad.runtime.links import Links
from delaygrad.runtime.pipeline import Pipeline, require_free
from delaygrad.runtime.replicas import Replicas, pipeline_of
from delaygrad.runtime.ties import require_exact_ties
from delaygrad.runtime.worker import Worker
from delaygrad.stage import LossFunction, LossWeight, Stage, device_of
from delaygrad.transport import Message, Receiver, Sender
from delaygrad.transport.wire import WireSender, reason_of

_NOT_INITIALISED = (
    "torch.distributed is not initialised; start the ranks with torchrun and call "
    "torch.distributed.init_process_group first"
)


class DistributedPipeline(Pipeline):
    """Train one stage in this process, in step with the ranks that hold the others.

    Rank r of the group holds stage r. Every rank makes the same calls (``step``, ``flush``,
    ``predict``, ``state_dict``); no other synchronisation takes place. An error gradient is waited
    for just before the backward that needs it.

    Each stage's random stream follows from ``torch.initial_seed()`` of rank 0; to build the same
    network on every rank, call ``torch.manual_seed`` with one seed on all of them.

    End a run with ``flush``, and the pipeline with ``close`` or a ``with`` block: it holds sockets
    and threads in process groups of its own, which nothing else gives back before the process ends.
    A rank that leaves without ``flush``, ``state_dict`` or ``close`` takes with it what its
    neighbours have not yet received.

    Args:
        stage: this rank's module; takes what the stage below returns.
        loss_fn: ``loss_fn(outputs, targets)``; used on the last rank.
        make_optimizer: ``make_optimizer(params)``.
        method: the rule to train by; the same on every rank.
        loss_weight: see ``LocalPipeline``; used on the last rank.
        allow_nonfinite_loss, clip_norm, loss_scale: see ``LocalPipeline``.
        group: one rank for each stage, in order; None is the default group. Needs an initialised
            process group: gloo for stages on the CPU, NCCL (with gloo beside it, for example
            ``cpu:gloo,cuda:nccl``) for stages on GPUs.
        mesh: stages x replicas, in place of ``group``: a ``DeviceMesh`` with the dimensions "pp"
            and "dp". Each replica trains on its part of the data; gradients are averaged before
            each update, over the ranks that hold the stage.
        device: where the stage computes; None is where its parameters are, or else the CPU.
        timeout_s: seconds to wait for a neighbour before giving it up.

    Raises:
        StageError: the stage belongs to another pipeline, which is not closed.
        TransportError: torch.distributed is not initialised, this rank is not in the group, or
            another rank does not make its pipeline within ``timeout_s``.
        ScheduleError: the ranks were given different methods.
        PartitionError: two ranks hold equal parameters under one name: copies that drift apart; or
            the replicas of a stage differ.

    Warns:
        DelaygradWarning: two ranks hold equal parameters under two names.
    """

    def __init__(
        self,
        stage: nn.Module,
        loss_fn: LossFunction,
        make_optimizer: MakeOptimizer,
        *,
        method: Method | None = None,
        loss_weight: LossWeight = None,
        allow_nonfinite_loss: bool = False,
        clip_norm: float | ClipNorm | None = None,
        loss_scale: float | LossScale | None = None,
        group: dist.ProcessGroup | None = None,
        mesh: DeviceMesh | None = None,
        device: torch.device | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        if not dist.is_initialized():
            raise TransportError(_NOT_INITIALISED)
        require_free([stage])
        group = pipeline_of(mesh, group)
        index, num_stages = dist.get_rank(group), dist.get_world_size(group)
        method = method_or_ddg(method, num_stages).with_options(clip_norm, loss_scale)
        require_exact_ties(stage, method)
        if index < 0:
            raise TransportError(f"this rank is not in the group (rank: {dist.get_rank()})")
        device = device_of(stage) if device is None else device
        links = Links(device, group, timeout_s, method.schedule)
        self._groups, self._replicas = links.groups, None
        try:
            if mesh is not None:
                with links.meeting():
                    self._replicas = Replicas(mesh, device, timeout_s)
                    self._replicas.require_alike(stage, method)
                self.replica, self.num_replicas = self._replicas.index, self._replicas.count
            seed, first_blocks = links.agree(method, stage)
            links.require_untied(stage)
            ties, self._prediction_ties = links.connect_ties(stage)
            arithmetic = Stage(
                stage,
                make_optimizer,
                stage_index=index,
                num_stages=num_stages,
                method=method,
                loss_fn=loss_fn,
                loss_weight=loss_weight,
                allow_nonfinite_loss=allow_nonfinite_loss,
                device=device,
                seed=stage_seed(seed, self.replica * num_stages - 1) if self.replica else seed,
                average=None if self._replicas is None else self._replicas.average,
            )
        except BaseException:
            self._give_back(failed=True)
            raise
        self._lost = False
        self._activation_sender, self._gradient_sender = links.to_above, links.to_below
        worker = Worker(
            arithmetic,
            activations=(links.from_below, links.to_above),
            gradients=(links.from_above, links.to_below),
            rank=dist.get_rank(),
            ties=ties,
        )
        self._prediction_receiver = links.predictions_from_below
        self._prediction_sender = links.predictions_to_above
        self._worker = worker
        super().__init__([worker], num_stages, method, known_cuts(first_blocks))

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        loss_fn: LossFunction,
        make_optimizer: MakeOptimizer,
        *,
        sample_inputs: Tree,
        cuts: Sequence[str | int] | None = None,
        blocks: Sequence[str] | None = None,
        method: Method | None = None,
        group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> Self:
        """Cut a whole model, alike on all ranks, and train this rank's stage of it.

        Rank 0 measures where to cut and tells the others. Every rank calls this, with the same
        model and sample inputs of the same shapes. Drop the model afterwards: the pipeline keeps
        this rank's stage only. To continue, pass ``cuts=delaygrad.saved_cuts(folder)``.

        Args:
            model: the whole network, equal on every rank.
            loss_fn, make_optimizer, method, group: as for ``DistributedPipeline``.
            sample_inputs, cuts, blocks: as for ``delaygrad.split``.
            options: further arguments of ``DistributedPipeline``. With ``mesh``, give ``cuts`` too.

        Raises:
            PartitionError: the model cannot be cut; on every rank.
        """
        if not dist.is_initialized():
            raise TransportError(_NOT_INITIALISED)
        method = method_or_ddg(method)
        if (mesh := options.get("mesh")) is not None and cuts is None:
            raise PartitionError("replicas that measure may cut in different places; give cuts=")
        stage = cut_alike(
            model,
            sample_inputs=sample_inputs,
            cuts=cuts,
            blocks=blocks,
            make_optimizer=make_optimizer,
            recompute=method.recompute,
            group=pipeline_of(mesh, group),
        )
        return cls(stage, loss_fn, make_optimizer, method=method, group=group, **options)

    @property
    def stage(self) -> nn.Module:
        """This rank's live module."""
        return self._worker.stage.module

    @property
    def stage_index(self) -> int:
        """Which stage this rank holds."""
        return self._worker.stage.stage_index

    def predict(self, inputs: Tree) -> Any:
        """See ``Pipeline.predict``; every rank calls it."""
        self._check_open()
        self._interrupt()
        with self._naming("prediction"):
            if self._prediction_receiver is not None:
                inputs = self._received_prediction(self._prediction_receiver)
                if self._prediction_ties:
                    inputs = self._prediction_ties.borrow(self.iteration, 0, inputs)
            outputs = self._worker.predict(inputs)
            if self._prediction_sender is None:
                return outputs
            if self._prediction_ties:
                outputs, _ = self._prediction_ties.lend(self.iteration, 0, outputs)
            self._prediction_sender.send(Message.of_activation(self.iteration, outputs))
            self._prediction_sender.finish()  # this rank may leave after its last prediction
            for sender in self._prediction_ties.senders.values() if self._prediction_ties else ():
                sender.finish()
        return None

    def flush(self) -> None:
        """See ``Pipeline.flush``; also waits until the neighbours have taken everything."""
        self._announce_flush()
        super().flush()
        with self._naming("flush"):
            self._finish_sending()

    def _announce_flush(self) -> None:
        """Tell the neighbours that no batch follows before the flush ends."""
        with self._naming("flush"):
            self._check_usable()
            loads = max((inbox.loads for inbox in self._worker.inboxes), default=0)
            for sender in self._senders:  # a neighbour that goes on would wait in vain
                with suppress(TransportError):  # who has flushed and left does not wait
                    sender.send(Message.of_flush(self._ticks(self.iteration), loads))

    def state_dict(self) -> dict[str, Any]:
        """See ``Pipeline.state_dict``; also waits until the neighbours have taken everything."""
        with self._naming("state_dict"):
            state = super().state_dict()
            self._finish_sending()
        return state

    def close(self) -> None:
        """See ``Pipeline.close``; destroys the process groups that this pipeline has made.

        First receives what is under way to this rank, and drops it, and waits until the neighbours
        have taken what is under way to them: they may close later, or earlier. After a failure, or
        when an exception ends the ``with`` block, it waits for nobody.
        """
        if self._closed:
            return
        try:
            if self._failure is None and not self._lost:
                waits = [inbox.collect for inbox in self._worker.inboxes]
                senders = (*self._senders, *self._tie_senders)
                for wait in (*waits, *(sender.finish for sender in senders)):
                    with suppress(TransportError):  # who has left misses nothing
                        wait()
        finally:
            super().close()
            self._worker.disconnect()
            self._activation_sender = self._gradient_sender = None
            self._prediction_receiver = self._prediction_sender = self._prediction_ties = None
            self._give_back(failed=self._lost or self._failure is not None)

    def _give_back(self, *, failed: bool) -> None:
        self._groups.give_back(failed=failed)
        if self._replicas is not None:
            self._replicas.give_back(failed=failed)

    def _share(self, value: Any) -> list[Any]:
        with self._together():
            if self._replicas is not None:
                return self._replicas.share(value)
            return exchange.all_gather(value, self._groups.between_steps())

    def _gather_tensors(self, stages: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        with self._together():
            return exchange.gather_tensors(stages[0], self._groups.between_steps())

    @contextmanager
    def _together(self) -> Iterator[None]:
        with self._naming("waiting for all ranks"):
            self._check_open()
            try:
                yield
            except RuntimeError as error:
                raise TransportError(
                    f"another rank is gone or late; see its own error ({reason_of(error)})"
                ) from error

    @contextmanager
    def _naming(self, call: str) -> Iterator[None]:
        """Begin an error's message with the place, the iteration and the call."""
        try:
            yield
        except DelaygradError as error:
            self._lost = self._lost or isinstance(error, TransportError)
            where = f"[{self._worker.place}, iteration {self.iteration}, {call}]"
            raise type(error)(f"{where} {error}") from error

    def _received_prediction(self, receiver: Receiver) -> Tree:
        message = receiver.receive()
        if message.batch_index != self.iteration:
            raise TransportError(
                "the neighbour has not called predict as often as this rank (received: a "
                f"prediction of iteration {message.batch_index}); all ranks must make the same "
                "calls"
            )
        return message.activation()

    def _finish_sending(self) -> None:
        for sender in (*self._senders, *self._tie_senders):
            sender.finish()

    @property
    def _tie_senders(self) -> list[Sender]:
        return list(self._worker.ties.senders.values()) if self._worker.ties else []

    @property
    def _senders(self) -> list[WireSender]:
        return [s for s in (self._activation_sender, self._gradient_sender) if s is not None]
