"""A rank for each stage, or for several, over torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from delaygrad.runtime.chain import chain, listed, outward_first, require_apart
from delaygrad.runtime.cutting import cut_alike
from delaygrad.runtime.inbox import Inbox
from delaygrad.runtime.links import Links
from delaygrad.runtime.pipeline import Pipeline
from delaygrad.runtime.replicas import Replicas, pipeline_of
from delaygrad.runtime.tie_links import TieLinks
from delaygrad.runtime.worker import Worker
from delaygrad.stage import LossFunction, LossWeight, device_of
from delaygrad.transport import Message, Receiver, Sender
from delaygrad.transport.wire import reason_of

_NOT_INITIALISED = (
    "torch.distributed is not initialised; start the ranks with torchrun and call "
    "torch.distributed.init_process_group first"
)


class DistributedPipeline(Pipeline):
    """Train one stage or several in this process, in step with the ranks that hold the others.

    The ranks of the group hold the stages in order: with one stage each, rank r holds stage r.
    Every rank makes the same calls (``step``, ``flush``, ``predict``, ``state_dict``); no other
    synchronisation takes place. An error gradient is waited for just before the backward that
    needs it.

    Each stage's random stream follows from ``torch.initial_seed()`` of rank 0; to build the same
    network on every rank, call ``torch.manual_seed`` with one seed on all of them.

    End a run with ``flush``, and the pipeline with ``close`` or a ``with`` block: only then are the
    sockets and threads of its process groups released. If a rank exits without ``flush``,
    ``state_dict`` or ``close``, messages that its neighbours have not yet received are lost.

    Args:
        stage: this rank's module, which takes what the stage below returns; or a list of modules,
            of stages that follow each other. Ranks may hold different numbers of stages.
        loss_fn: ``loss_fn(outputs, targets)``; used on the last rank.
        make_optimizer: ``make_optimizer(params)``.
        method: the rule to train by; the same on every rank.
        loss_weight: see ``LocalPipeline``; used on the last rank.
        allow_nonfinite_loss, clip_norm, loss_scale: see ``LocalPipeline``.
        group: the ranks, in the order of their stages; None is the default group. Needs an
            initialised process group: gloo for stages on the CPU, NCCL (with gloo beside it, for
            example ``cpu:gloo,cuda:nccl``) for stages on GPUs.
        mesh: stages x replicas, in place of ``group``: a ``DeviceMesh`` with the dimensions "pp"
            and "dp". Each replica trains on its part of the data; gradients are averaged before
            each update, over the ranks that hold the stage.
        device: where this rank's stages compute; None is where its parameters are, or else the CPU.
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

    _order = staticmethod(outward_first)

    def __init__(
        self,
        stage: nn.Module | Sequence[nn.Module],
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
        modules, method = listed(stage), method_or_ddg(method)
        group = pipeline_of(mesh, group)
        if dist.get_rank(group) < 0:
            raise TransportError(f"this rank is not in the group (rank: {dist.get_rank()})")
        device = device_of(nn.ModuleList(modules)) if device is None else device
        links = Links(len(modules), device, group, timeout_s)
        self._groups, self._replicas, self._counts = links.groups, None, links.counts
        try:
            num_stages, first = links.num_stages, links.stages[0]
            method = method.for_stages(num_stages).with_options(clip_norm, loss_scale)
            require_apart(modules, method, first)
            links.connect(method.schedule)
            if mesh is not None:
                with links.meeting():
                    self._replicas = Replicas(mesh, device, timeout_s)
                    self._replicas.require_alike(modules, method)
                self.replica, self.num_replicas = self._replicas.index, self._replicas.count
            seed, first_blocks = links.agree(method, modules)
            if None in first_blocks:  # else `split` had the whole model, and saw what is shared
                links.require_untied(modules)
            ties, self._prediction_ties = links.connect_ties(modules[0])
            workers = chain(
                modules,
                make_optimizer,
                first=first,
                activations=links.activations,
                gradients=links.gradients,
                rank=dist.get_rank(),
                ties=ties,
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
        self._senders = [s for s in (links.activations[1], links.gradients[1]) if s is not None]
        self._prediction_receiver, self._prediction_sender = links.predictions
        super().__init__(workers, num_stages, method, known_cuts(first_blocks))

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
        num_stages: int | None = None,
        group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> Self:
        """Cut a whole model, alike on all ranks, and train this rank's stages of it.

        Rank 0 measures where to cut and tells the others. Every rank calls this, with the same
        model and sample inputs of the same shapes. Drop the model afterwards: the pipeline keeps
        this rank's stages only. To continue, pass ``cuts=delaygrad.saved_cuts(folder)``.

        Args:
            model: the whole network, equal on every rank.
            loss_fn, make_optimizer, method, group: as for ``DistributedPipeline``.
            sample_inputs, cuts, blocks: as for ``delaygrad.split``.
            num_stages: K; by default a stage for each rank. Of R ranks, rank r holds the stages
                from r K // R on.
            options: further arguments of ``DistributedPipeline``. With ``mesh``, give ``cuts`` too.

        Raises:
            PartitionError: the model cannot be cut; on every rank.
        """
        if not dist.is_initialized():
            raise TransportError(_NOT_INITIALISED)
        method = method_or_ddg(method)
        if (mesh := options.get("mesh")) is not None and cuts is None:
            raise PartitionError("replicas that measure may cut in different places; give cuts=")
        stages = cut_alike(
            model,
            sample_inputs=sample_inputs,
            cuts=cuts,
            blocks=blocks,
            make_optimizer=make_optimizer,
            recompute=method.recompute,
            group=pipeline_of(mesh, group),
            num_stages=num_stages,
        )
        return cls(stages, loss_fn, make_optimizer, method=method, group=group, **options)

    @property
    def stage(self) -> nn.Module:
        """This rank's live module; see ``stages`` for several."""
        return self._worker.stage.module

    @property
    def stage_index(self) -> int:
        """Which stage this rank holds; the first of several."""
        return min(self._workers)

    @property
    def _worker(self) -> Worker:
        """The only one of this rank."""
        if len(self._workers) > 1:
            raise AttributeError(
                f"this rank holds several stages (stages: {[*self._workers]}); use pipe.stages"
            )
        return self._workers[self.stage_index]

    def predict(self, inputs: Tree) -> Any:
        """See ``Pipeline.predict``; every rank calls it."""
        self._check_open()
        self._interrupt()
        with self._naming("prediction"):
            if self._prediction_receiver is not None:
                inputs = self._received_prediction(self._prediction_receiver)
            for k, worker in self._workers.items():
                ties = self._prediction_ties.get(k)
                if ties is not None and k > 0:
                    inputs = ties.borrow(self.iteration, 0, inputs)
                inputs = worker.predict(inputs)
                if ties is not None and k < self.num_stages - 1:
                    inputs, _ = ties.lend(self.iteration, 0, inputs)
            if self._prediction_sender is None:
                return inputs
            self._prediction_sender.send(Message.of_activation(self.iteration, inputs))
            # This rank may leave after its last prediction.
            for sender in (self._prediction_sender, *_tie_senders(self._prediction_ties.values())):
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
            loads = max((inbox.loads for inbox in self._inboxes), default=0)
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

        First receives and drops the messages in flight to this rank, and waits until the neighbours
        have received theirs. They may close later, or earlier. After a failure, or when an
        exception ends the ``with`` block, it waits for nobody.
        """
        if self._closed:
            return
        try:
            if self._failure is None and not self._lost:
                for inbox in self._inboxes:
                    with suppress(TransportError):  # who has left misses nothing
                        inbox.collect()
                for sender in self._all_senders():
                    with suppress(TransportError):
                        sender.finish()
        finally:
            super().close()
            for worker in self._workers.values():
                worker.disconnect()
            self._senders = []
            self._prediction_receiver = self._prediction_sender = None
            self._prediction_ties = {}
            self._give_back(failed=self._lost or self._failure is not None)

    def _give_back(self, *, failed: bool) -> None:
        self._groups.give_back(failed=failed)
        if self._replicas is not None:
            self._replicas.give_back(failed=failed)

    def _share(self, value: Any) -> list[Any]:
        with self._together():
            if self._replicas is not None:
                return self._replicas.share(value)
            return exchange.all_gather(value, self._groups.together)

    def _gather_tensors(self, stages: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        turns = max(self._counts)
        own: list[dict[str, Tensor]] = [*stages, *({} for _ in range(turns - len(stages)))]
        with self._together():
            group = self._groups.together
            found = [exchange.gather_tensors(of_stage, group) for of_stage in own]
        places = [(turn, rank) for rank, held in enumerate(self._counts) for turn in range(held)]
        return [found[turn][rank] for turn, rank in places if found[turn]]

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
            place = next(iter(self._workers.values())).place
            where = f"[{place}, iteration {self.iteration}, {call}]"
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
        for sender in self._all_senders():
            sender.finish()

    def _all_senders(self) -> list[Sender]:
        return [*self._senders, *_tie_senders(worker.ties for worker in self._workers.values())]

    @property
    def _inboxes(self) -> list[Inbox]:
        return [inbox for worker in self._workers.values() for inbox in worker.inboxes]


def _tie_senders(ties: Iterable[TieLinks | None]) -> list[Sender]:
    return [sender for links in ties if links for sender in links.senders.values()]
