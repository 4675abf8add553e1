"""What both runtimes have in common: iterations, the drain, and the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from delaygrad.boundary import Tree
from delaygrad.errors import WorkerError
from delaygrad.methods import Method
from delaygrad.runtime import pipeline_state, saving
from delaygrad.runtime.action_lists import ActionLists, as_scheduled
from delaygrad.runtime.batch_identity import BatchId, require_batch_id
from delaygrad.runtime.habits import HabitGuard
from delaygrad.runtime.held_stages import HeldStages
from delaygrad.runtime.live_gradient import BesideTraining, run_live_pass
from delaygrad.runtime.norms import agree_on_norm
from delaygrad.runtime.ownership import register
from delaygrad.runtime.worker import Worker
from delaygrad.schedule import Action
from delaygrad.stage import Stage

_INTERRUPTED = "interrupted"
_LOOK_EVERY = 100  # iterations; a look at the loss scale waits for the device


class Pipeline(HeldStages, ABC):
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

    _order = staticmethod(as_scheduled)

    def __init__(
        self, workers: Sequence[Worker], num_stages: int, method: Method, cuts: list[str] | None
    ) -> None:
        super().__init__(workers)
        self.num_stages = num_stages
        self.method = method
        self.cuts = cuts
        """The first block of each stage but the first; None if `split` has not made the stages."""
        near = {k + step for k in self._workers for step in (-1, 0, 1)}
        near |= {other for worker in workers if worker.ties for other in worker.ties.inboxes}
        self._waits = method.clips is not None and method.clips.wait
        # Stages whose actions concern the workers: their own, and the neighbours that send to them.
        # Where stages wait for each other's norms, all: each must know when another updates.
        concern = [k for k in range(num_stages) if k in near or self._waits]
        self._lists = ActionLists(method.schedule, num_stages, concern, self._order)
        self.iteration = 0
        """How many batches have entered the network."""
        self._begin_phase(0)
        self.monitor: BesideTraining | None = None
        """Is told before and after every iteration; ``delaygrad.Monitor`` sets it."""
        self._failure: str | None = None
        self._closed = False
        stages = [worker.stage for worker in workers]
        self._habits = [HabitGuard(stage.optimizer, stage.stage_index) for stage in stages]
        register(self)

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
            share_loss: return the loss on every rank; the same value on all ranks. They wait for
                the loss, so do it in every hundredth iteration, not in each.

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
        with self._working():
            loss = self._run(self._actions())
            self.iteration += 1
        if self.monitor is not None:
            self.monitor.after(self._share)
        if self.iteration % _LOOK_EVERY == 0 and self.holds_first:
            if (signals := self._workers[0].stage.signals) is not None:
                signals.look()
        return self._on_every_rank(loss) if share_loss else loss

    def _actions(self) -> list[Action]:
        """List the actions of the next iteration."""
        return self._lists.of_iteration(self.iteration, self._phase)

    def _remaining_actions(self) -> list[Action]:
        """List the actions of a drain."""
        return self._lists.of_drain(self.iteration, self._phase)

    def flush(self) -> None:
        """Finish the batches in flight: every stage has then used every batch exactly once.

        Call it at the end of training. The backward passes run in order, each with its update, at
        the current learning rate of the optimizers. The next ``step`` starts a new fill.

        Raises:
            WorkerError, TransportError: as ``step``.
        """
        self._interrupt()
        self._check_usable()
        with self._working():
            self._run(self._remaining_actions())
            self._end_phase()

    def watch(self, iteration: int, stage_index: int) -> None:
        """Keep what ``live_gradient`` will need of a batch that has not entered yet."""
        for k, worker in self._workers.items():
            worker.stage.watched().watch(self._parts_of(iteration), keep_start=k == stage_index)

    def live_gradient(self, iteration: int, stage_index: int) -> Stage | None:
        """Compute a stage's gradient of a watched batch at the live parameters; all ranks call it.

        The live parameters are those of all stages at the start of an iteration, so call it between
        two. Training is not disturbed.

        Args:
            iteration: of the batch.
            stage_index: of the stage.

        Returns:
            The stage, whose ``watched()`` has parameters and gradients; None in a process that
            does not hold the stage.
        """
        self._interrupt()
        with self._working():  # the neighbours would wait for the rest of the pass
            run_live_pass(self._workers, self._parts_of(iteration), stage_index)
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
        return iterations * self.method.schedule.micro_batches

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
        try:
            with self._working():  # messages in flight are received, and kept for later
                return pipeline_state.saved(self)
        except Exception:
            self._failure = None
            raise

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise unless the state is of a pipeline like this one; changes nothing.

        Raises:
            CheckpointError: the state is of another pipeline.
        """
        pipeline_state.check(self, state)

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
        with self._working():
            pipeline_state.load(self, state)
            self.iteration = state["iteration"]
            if self.monitor is not None:
                self.monitor.forget()
            self._begin_phase(state["first_batch"])

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

    @contextmanager
    def _working(self, then: str | None = None) -> Iterator[None]:
        """Count as failed within the block: an interrupt can come between any two lines.

        Args:
            then: why it still counts as failed after the block; None: it does not.
        """
        self._failure = _INTERRUPTED
        try:
            yield
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        self._failure = then

    def _run(self, actions: Sequence[Action]) -> Tensor | None:
        """Do the actions; return the sum of the losses, if the last stage is here."""
        loss = None
        for guard in self._habits:
            guard.begin()
        sent = Counter((k, kind) for k, kind, _ in actions)
        try:
            for worker in self._workers.values():
                worker.stage.partial.take_up()
                worker.announce(sent)
            for action in self._with_norms(actions) if self._waits else actions:
                if action.stage_index in self._workers:
                    result = self._workers[action.stage_index].run(action)
                    if result is not None:
                        loss = result if loss is None else loss + result
            for worker in self._workers.values():
                worker.stage.rest()
        finally:
            for guard in self._habits:
                guard.end()
        return loss

    def _with_norms(self, actions: Sequence[Action]) -> Iterator[Action]:
        """Yield the actions; stages wait for each other's norms before they update."""
        for others, updates in self._lists.updates_last(actions):
            yield from others
            if updates:
                updating = {action.stage_index for action in updates}
                agree_on_norm(self._workers, updating, self._share, self.num_replicas)
                yield from updates

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
