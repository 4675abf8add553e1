"""What both runtimes have in common: iterations, the drain, and the state."""

from __future__ import annotations

import gc
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from delaygrad.boundary import Tree
from delaygrad.errors import CheckpointError, StageError, WorkerError
from delaygrad.methods import Method
from delaygrad.records import StageTrace
from delaygrad.runtime import saving
from delaygrad.runtime.batch_identity import BatchId, require_batch_id
from delaygrad.runtime.habits import HabitGuard
from delaygrad.runtime.worker import Worker
from delaygrad.schedule import Action, Kind, Schedule, validate
from delaygrad.stage import Stage
from delaygrad.state_check import loading

_FORMAT = 6
_INTERRUPTED = "interrupted"


class BesideTraining(Protocol):
    """Looks at a pipeline from outside; every rank has one, or none has."""

    def before(self) -> None:
        """Act before an iteration whose batch is there."""

    def after(self, share: Callable[[Any], list[Any]]) -> None:
        """Act after an iteration; ``share`` returns the values of all processes, all call it."""

    def forget(self) -> None:
        """Forget the batches that were in flight."""


class Pipeline(ABC):
    """K stages that train as one network.

    A context manager: a ``with`` block ends with ``close``.

    Args:
        workers: of the stages that this process holds.
        num_stages: K.
        method: the rule to train by.
        cuts: the first block of each stage but the first; None if `split` has not made the stages.
    """

    replica, num_replicas = 0, 1
    """Which copy of the pipeline this is, and of how many; see ``mesh``."""

    def __init__(
        self, workers: Sequence[Worker], num_stages: int, method: Method, cuts: list[str] | None
    ) -> None:
        _check_schedule(method.schedule, num_stages)
        self._workers = {worker.stage.stage_index: worker for worker in workers}
        self.num_stages = num_stages
        self.method = method
        self.cuts = cuts
        """The first block of each stage but the first; None if `split` has not made the stages."""
        self._schedule = method.schedule
        near = {k + step for k in self._workers for step in (-1, 0, 1)}
        near |= {other for worker in workers if worker.ties for other in worker.ties.inboxes}
        # Stages whose actions concern the workers: their own, and the neighbours that send to them.
        self._stages = tuple(k for k in range(num_stages) if k in near)
        self._waits = method.clips is not None and method.clips.wait
        if self._waits:  # all must know when one of them updates
            self._stages = tuple(range(num_stages))
        # What happens in every iteration but for the fill, as if batch 0 entered the network in it.
        self._steady = self._ordered(
            action
            for tick in range(method.schedule.micro_batches)
            for action in method.schedule.actions(
                tick, num_stages, stages=self._stages, first_batch=-sys.maxsize
            )
        )
        self.iteration = 0
        """How many batches have entered the network."""
        self._begin_phase(0)
        self.monitor: BesideTraining | None = None
        """Is told before and after every iteration; ``delaygrad.Monitor`` sets it."""
        self._failure: str | None = None
        self._closed = False
        stages = [worker.stage for worker in workers]
        self._habits = [HabitGuard(stage.optimizer, stage.stage_index) for stage in stages]
        _OPEN.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._failure is None:
            self._failure = f"{type(error).__name__}: {error}"
        self.close()

    def close(self) -> None:
        """Release sockets, threads and stages; the pipeline cannot train any more.

        The stages and their optimizers stay as they are, and another pipeline may use them. Batches
        in flight are dropped, so call ``flush`` before. A second ``close`` does nothing.
        """
        self._closed = True
        for guard in self._habits:
            guard.release()
        self._habits = []

    @property
    def modules(self) -> list[nn.Module]:
        """The live modules of the stages that this process holds, from the input."""
        return [worker.stage.module for worker in self._workers.values()]

    stages = modules

    @property
    def holds_first(self) -> bool:
        """Whether this process holds stage 0."""
        return 0 in self._workers

    @property
    def optimizers(self) -> list[torch.optim.Optimizer | None]:
        """The optimizers of these stages; None for a stage without parameters."""
        return [worker.stage.optimizer for worker in self._workers.values()]

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of the only stage in this process; see ``optimizers`` for several."""
        if len(self._workers) > 1:
            raise AttributeError(
                f"each stage has an optimizer of its own (stages in this process: "
                f"{len(self._workers)}); use pipe.optimizers, a list"
            )
        return self.optimizers[0]

    @property
    def loss_scale(self) -> float | None:
        """The scale of the next batch's loss; None without one, or where stage 0 is not here.

        Reading it waits for the device.
        """
        signals = self._workers[0].stage.signals if 0 in self._workers else None
        return signals.loss_scale if signals is not None and signals.scales else None

    @property
    def skipped(self) -> list[int]:
        """How many batches each stage of this process has skipped; reading waits for the device."""
        stages = [worker.stage for worker in self._workers.values()]
        return [0 if stage.signals is None else stage.signals.skipped for stage in stages]

    @property
    def added_losses(self) -> list[Tensor | None]:
        """What ``add_loss`` was given in the newest batch of each stage of this process.

        0-d, detached; None where it was not called. ``step`` returns the loss without it.
        """
        return [worker.stage.added.newest for worker in self._workers.values()]

    @property
    def extras(self) -> list[Any]:
        """What ``loss_fn`` returned beside the loss of the newest batch, for each micro-batch.

        Detached. Empty where ``loss_fn`` returns the loss only, or does not run in this process.
        """
        return [
            extras
            for worker in self._workers.values()
            if worker.stage.loss is not None
            for extras in worker.stage.loss.extras
        ]

    @property
    def wants_targets(self) -> bool:
        """Whether ``step`` reads targets here: last stage, or synthesizers that see labels."""
        return any(worker.stage.wants_targets for worker in self._workers.values())

    def stage_seconds(self) -> list[dict[str, float]]:
        """Seconds that each stage has spent on each of ``delaygrad.records.ACTIVITIES``."""
        return [dict(worker.clock.seconds) for worker in self._workers.values()]

    def start_trace(self, num_iterations: int) -> None:
        """Record every activity of the next iterations, in memory; forget the last trace.

        Raises:
            ValueError: ``num_iterations`` is not positive.
        """
        for worker in self._workers.values():
            worker.clock.start_trace(num_iterations)

    def stage_traces(self) -> list[StageTrace]:
        """Return what the last trace has recorded so far, for each stage of this process.

        Times are nanoseconds on this process's own clock.
        """
        return [worker.trace() for worker in self._workers.values()]

    def step(
        self,
        inputs: Tree,
        targets: Any,
        *,
        batch_id: BatchId | None = None,
        share_loss: bool = False,
    ) -> Tensor | None:
        """Run one iteration on one batch.

        The batch goes forward through every stage; each stage goes backward with the batch that its
        delay calls for, and updates.

        Args:
            inputs: (B, ...) tensor, or a tuple, list or dict of tensors; read by the first stage
                only. B may vary, but must be at least the number of micro-batches. The tensors may
                be refilled after the call.
            targets: what ``loss_fn`` takes; read where ``wants_targets`` is true: on the last
                stage, and on all stages if the method's synthesizers see labels. If stage 0 gets
                targets too, checksums are compared.
            batch_id: a name of the batch, an int or a str; must be equal on all ranks that give it.
            share_loss: return the loss on every rank; the same on all ranks. They wait for it, so
                ask for it now and then, not in every iteration.

        Returns:
            The loss of this batch at the parameters before this iteration's update: 0-d, detached.
            With micro-batches the sum of their shares, each at the parameters of its tick. None in
            a process that does not hold the last stage, without ``share_loss``.

        Raises:
            StageError: the batch cannot be split into the method's micro-batches, or a captured
                network cannot take its sizes. Nothing has changed: the next batch can follow.
            NonFiniteLossError: the loss is NaN or infinite, without ``allow_nonfinite_loss``.
            WorkerError: the network, the loss or the optimizer failed; names stage and action. Or
                the pipeline failed before, or is closed.
            TransportError: a neighbour is late, gone, or out of step; or the ranks were given
                different batches.
        """
        self._check_usable()
        batch_id = require_batch_id(batch_id)
        for worker in self._workers.values():
            worker.offer(self.iteration, inputs, targets, batch_id)
        if self.monitor is not None:
            self.monitor.before()
        for worker in self._workers.values():
            worker.clock.begin_iteration(self.iteration)
        loss = self._run(self._actions())
        self.iteration += 1
        self._failure = None
        if self.monitor is not None:
            self.monitor.after(self._share)
        return self._on_every_rank(loss) if share_loss else loss

    def _actions(self) -> list[Action]:
        """List the actions of the next iteration."""
        start, phase = self._ticks(self.iteration), self._phase
        return [
            Action(k, kind, start + batch_index)
            for k, kind, batch_index in self._steady
            if start + batch_index >= phase  # others do not exist: this is the fill
        ]

    def _remaining_actions(self) -> list[Action]:
        """List the actions of a drain."""
        end, k = self._ticks(self.iteration), self.num_stages
        drain = self._schedule.drain(end, k, stages=self._stages, first_batch=self._phase)
        return self._ordered(drain)

    def _ordered(self, actions: Iterable[Action]) -> list[Action]:
        """List actions in the order in which this process does them."""
        return list(actions)

    def flush(self) -> None:
        """Run the outstanding backward passes: every stage has then used every batch exactly once.

        Call it at the end of training. The backward passes run in order, each with its update, at
        the current learning rate of the optimizers. The next ``step`` starts a new fill.

        Raises:
            WorkerError, TransportError: as ``step``.
        """
        self._interrupt()
        self._check_usable()
        self._run(self._remaining_actions())
        self._end_phase()

    def watch(self, iteration: int, stage_index: int) -> None:
        """Keep what ``live_gradient`` will need of a batch that has not entered yet."""
        for k, worker in self._workers.items():
            worker.stage.watched().watch(self._parts_of(iteration), keep_start=k == stage_index)

    def live_gradient(self, iteration: int, stage_index: int) -> Stage | None:
        """Compute a stage's gradient of a watched batch at the live parameters; all ranks call it.

        The live parameters are those of all stages at the start of an iteration, so call it between
        two: each stage is there after its own updates, at whatever moment its process gets there.
        Training is not disturbed.

        Args:
            iteration: of the batch.
            stage_index: of the stage.

        Returns:
            The stage, whose ``watched()`` has parameters and gradients; None in a process that
            does not hold the stage.
        """
        self._interrupt()
        self._failure = _INTERRUPTED  # the neighbours would wait for the rest of the pass
        batches = self._parts_of(iteration)
        for batch_index in batches:
            for worker in self._workers.values():
                worker.live_forward(batch_index)
        from_above = sorted((k for k in self._workers if k >= stage_index), reverse=True)
        for batch_index in batches:
            for k in from_above:
                self._workers[k].live_backward(batch_index, is_lowest=k == stage_index)
        for worker in self._workers.values():
            worker.stage.watched().end()
        self._failure = None
        measured = self._workers.get(stage_index)
        return None if measured is None else measured.stage

    def _parts_of(self, iteration: int) -> range:
        return range(self._ticks(iteration), self._ticks(iteration + 1))

    def _end_phase(self) -> None:
        """Note that nothing is in flight any more."""
        self._begin_phase(self.iteration)
        if self.monitor is not None:
            self.monitor.forget()
        for worker in self._workers.values():
            worker.stage.partial.forget_applied()
        for worker in self._workers.values():
            worker.stage.added.settle()
            if worker.stage.loss is not None:
                worker.stage.loss.settle()
        self._failure = None

    def _interrupt(self) -> None:
        """Tell the clocks that training is interrupted."""
        for worker in self._workers.values():
            worker.clock.interrupt()

    def _begin_phase(self, iteration: int) -> None:
        """Note which batch comes first since the last flush."""
        self._first_batch, self._phase = iteration, self._ticks(iteration)
        for worker in self._workers.values():
            worker.phase = self._phase

    def _ticks(self, iterations: int) -> int:
        return iterations * self._schedule.micro_batches

    @abstractmethod
    def predict(self, inputs: Tree) -> Any:
        """Compute the network's outputs with the live parameters, in evaluation mode.

        Batches in flight, running statistics and random streams stay as they are.

        Args:
            inputs: as for ``step``; read by the first stage only.

        Returns:
            What the last stage returns, without a graph; None in a process that does not hold it.
        """

    def evaluate(
        self, inputs: Tree, targets: Any, *, share_loss: bool = False
    ) -> tuple[Tensor | None, Any]:
        """Compute the loss and the outputs of a batch, as ``predict`` does; every rank calls it.

        Args:
            inputs: as for ``step``; read by the first stage only. B may be any number.
            targets: read by the last stage only.
            share_loss: return the loss on every rank.

        Returns:
            The loss of the whole batch, to which the shares of micro-batches add up (with
            ``loss_weight="mean"`` the mean over micro-batches), and what the last stage returns.
            None for each in a process that does not hold the last stage.

        Example:
            >>> import torch, delaygrad as dg
            >>> from torch import nn
            >>> pipe = dg.LocalPipeline([nn.Flatten()], nn.functional.mse_loss, torch.optim.SGD)
            >>> pipe.evaluate(torch.ones(2, 3), torch.zeros(2, 3))[0]
            tensor(1.)
        """
        outputs, loss = self.predict(inputs), None
        last = self._workers.get(self.num_stages - 1)
        if last is not None:
            loss = last.stage.evaluation.loss_of(outputs, targets)
        return self._on_every_rank(loss) if share_loss else loss, outputs

    def _on_every_rank(self, loss: Tensor | None) -> Tensor | None:
        """Return a loss of the last stage on every rank; of several replicas, the mean."""
        told = self._share(None if loss is None else [loss.item(), str(loss.dtype)])
        found = [of_rank for of_rank in told if of_rank is not None]
        if not found or (loss is not None and len(found) == 1):
            return loss
        mean, dtype = sum(value for value, _ in found) / len(found), found[0][1]
        return torch.tensor(mean, dtype=getattr(torch, dtype.removeprefix("torch.")))

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit for bit, batches in flight included.

        A snapshot in plain containers: later training does not change it. It holds the stages
        of this process, under ``stages`` by index. Call it between two iterations, on every rank.
        """
        self._check_usable()
        self._interrupt()
        self._failure = _INTERRUPTED  # messages in flight are received, and kept for later
        try:
            stages = {str(k): worker.state_dict() for k, worker in self._workers.items()}
        except Exception:
            self._failure = None
            raise
        self._failure = None
        return {
            "format": _FORMAT,
            "num_stages": self.num_stages,
            "method": self.method.to_json(),
            "cuts": self.cuts,
            "iteration": self.iteration,
            "first_batch": self._first_batch,
            "stages": stages,
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise unless the state is of a pipeline like this one; changes nothing.

        Raises:
            CheckpointError: the state is of another pipeline.
        """
        ours = {"format": _FORMAT, "num_stages": self.num_stages, **_flat(self.method.to_json())}
        theirs = {**state, **_flat(state.get("method", {}))}
        for key, here in ours.items():
            if theirs.get(key) != here:
                raise CheckpointError(
                    f"the checkpoint is of another pipeline ({key} there: {theirs.get(key)}, "
                    f"here: {here})"
                )
        cuts = state.get("cuts")
        if None not in (cuts, self.cuts) and cuts != self.cuts:
            raise CheckpointError(
                f"the network was cut elsewhere (cuts there: {cuts}, here: {self.cuts}); cut it as "
                "there, with cuts=delaygrad.saved_cuts(folder)"
            )
        missing = [k for k in self._workers if str(k) not in state["stages"]]
        if missing:
            raise CheckpointError(f"the checkpoint lacks stages (missing: {missing})")
        for k, worker in self._workers.items():
            if worker.ties and "ties" not in state["stages"][str(k)]:
                raise CheckpointError(
                    "the checkpoint is of an earlier version, in which shared parameters travelled "
                    "with the activations; train again"
                )
            with loading(k):
                worker.stage.check_state_dict(state["stages"][str(k)])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, here or in another process or runtime.

        Args:
            state: holds at least the stages of this process.

        Raises:
            CheckpointError: the state is of another pipeline; nothing was changed here.
        """
        self._check_usable()
        self._interrupt()
        self.check_state_dict(state)
        self._failure = _INTERRUPTED
        try:
            for k, worker in self._workers.items():
                with loading(k):
                    worker.load_state_dict(state["stages"][str(k)])
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        self.iteration = state["iteration"]
        if self.monitor is not None:
            self.monitor.forget()
        self._begin_phase(state["first_batch"])
        self._failure = None

    def save(
        self, folder: str | Path, *, extra: dict[str, Any] | None = None, keep: int = 2
    ) -> None:
        """Write ``state_dict`` to a folder, one file per stage; every rank calls it.

        A checkpoint is whole or not there: a process that dies while it is written leaves those
        before. Each file has its sha256 beside it.

        Args:
            folder: for the checkpoints of this pipeline; the ranks may share it or have one each.
            extra: the user's own state, such as the position in the data: tensors, numbers,
                strings, None, and lists, tuples and dicts of these. Each rank gets its own back.
            keep: how many checkpoints stay, at least 1.

        Raises:
            CheckpointError: a rank cannot write, the folder holds a later checkpoint, or ``extra``
                holds something else; on all ranks.
        """
        saving.save(self, Path(folder), {} if extra is None else extra, keep)

    def load_newest(self, folder: str | Path) -> dict[str, Any] | None:
        """Continue from the newest checkpoint that all ranks have and whose digests hold.

        Every rank calls it. Damaged ones that are newer are set aside, with a warning. What is
        later, or unfinished, is removed.

        If the network was cut in another way, or into another number of stages, or had another
        number of replicas, the checkpoint must be one that was saved after ``flush``, and every
        rank must find the files of all stages. Stages are then to be made by ``split``. Random
        streams and gradient norms of the stages begin anew.

        Returns:
            The ``extra`` of ``save``, or {}; after such a change that of stage 0. None if no rank
            has a checkpoint: nothing was loaded.

        Raises:
            CheckpointError: no checkpoint is sound, or it is of another pipeline; on all ranks, and
                nothing was changed.
        """
        return saving.load_newest(self, Path(folder))

    @abstractmethod
    def _share(self, value: Any) -> list[Any]:
        """Return the values of all processes, of what JSON knows; all call it."""

    @abstractmethod
    def _gather_tensors(self, stages: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return the named tensors of all stages in the process of stage 0, [] elsewhere."""

    def _run(self, actions: Sequence[Action]) -> Tensor | None:
        """Do the actions; whoever calls it clears ``_failure`` when its own work is done too.

        An interrupt can come between any two lines, so the pipeline counts as failed meanwhile.
        """
        self._failure = _INTERRUPTED
        loss = None
        for guard in self._habits:
            guard.begin()
        try:
            for worker in self._workers.values():
                worker.stage.partial.take_up()
                worker.announce(actions)
            for action in self._in_order(actions) if self._waits else actions:
                if action.stage_index in self._workers:
                    result = self._workers[action.stage_index].run(action)
                    if result is not None:
                        loss = result if loss is None else loss + result
            for worker in self._workers.values():
                worker.stage.rest()
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            for guard in self._habits:
                guard.end()
        return loss

    def _in_order(self, actions: Sequence[Action]) -> Iterator[Action]:
        """Yield the actions; stages wait for each other's norms, so updates come last."""
        for _, each in groupby(
            actions, lambda action: self._schedule.iteration_of(action, self.num_stages)
        ):
            iteration = list(each)
            updates = [action for action in iteration if action.kind is Kind.UPDATE]
            yield from (action for action in iteration if action.kind is not Kind.UPDATE)
            if updates:
                self._agree_on_norm({action.stage_index for action in updates})
                yield from updates

    def _agree_on_norm(self, updating: set[int]) -> None:
        """Tell the stages of this process the norm of what all these stages apply."""
        found = {k: s for k, worker in self._workers.items() if (s := worker.stage.signals)}
        own = [signals.applied() if k in updating else 0.0 for k, signals in found.items()]
        told = self._share(own)
        of_one_replica = told[: len(told) // self.num_replicas]  # all apply the same
        total = sum(value for values in of_one_replica for value in values)
        for signals in found.values():
            signals.total.fill_(total)

    def _holds(self, parameters: set[int]) -> bool:
        """Whether this pipeline may still train one of these parameters, given by identity."""
        return not (self._closed or self._failure) and any(
            id(parameter) in parameters
            for module in self.modules
            for parameter in module.parameters()
        )

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerError("the pipeline is closed; make a new one of the same stages")

    def _check_usable(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise WorkerError(
                f"the pipeline stopped in the middle of its work ({self._failure}); "
                "make a new one and load its last state"
            )


def _flat(method: dict[str, Any]) -> dict[str, Any]:
    """Name each value of a method's identity by its axis."""
    return {f"method.{axis}": value for axis, value in method.items()}


_OPEN: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def require_free(stages: Iterable[nn.Module]) -> None:
    """Raise if another pipeline trains a parameter of these stages.

    A pipeline that is closed, has failed, or was deleted trains nothing.

    Raises:
        StageError: a pipeline does.
    """
    trained = {id(p) for stage in stages for p in stage.parameters() if p.requires_grad}
    if any(pipeline._holds(trained) for pipeline in _OPEN):
        gc.collect()  # a pipeline without references may not be deleted yet
    if any(pipeline._holds(trained) for pipeline in _OPEN):
        raise StageError(
            "the stages belong to another pipeline, whose batches in flight and optimizers would "
            "be disturbed; call flush and close on it first"
        )


def _check_schedule(schedule: Schedule, num_stages: int) -> None:
    """Simulate a short run, so that a wrong schedule is an error here and not a hang later."""
    stages = range(num_stages)
    depth = max(schedule.offset(k, num_stages) + schedule.lag(k, num_stages) for k in stages)
    end = schedule.micro_batches * (depth // schedule.micro_batches + 2)
    run = [schedule.actions(tick, num_stages) for tick in range(end)]
    actions = [action for tick in run for action in tick]
    validate([*actions, *schedule.drain(end, num_stages)], num_stages, schedule.micro_batches)
