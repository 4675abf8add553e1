"""DDG under torch's own interface: in the place of ``Schedule1F1B``.

The user has the optimizer, and steps it between two steps of the schedule. So an update that falls
inside a step waits for its end:

    ticks     |  step t-1   |   step t    |  step t+1   |      M = 3 micro-batches, lag 1
    forward   |  0   1   2  |  3   4   5  |  6   7   8  |
    backward  |      0   1  |  2   3   4  |  5   6   7  |
    .grad     |             |  of 0 1 2   |  of 3 4 5   |      after the step; 3 and 4 wait apart

    w[k]@(t+1) = optimizer(w[k]@t, gradient of batch t - ceil(lag(k) / M) at that batch's own w[k])

All micro-batches of a batch meet the same parameters, so their gradient is block k of the ordinary
gradient of the batch at w@(t - ceil(lag(k) / M)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from delaygrad.boundary import Tree, parts_of
from delaygrad.errors import ScheduleError, StageError
from delaygrad.methods import DDG
from delaygrad.partition.graph.stage import GraphStage
from delaygrad.runtime.distributed import DistributedPipeline
from delaygrad.runtime.tie_links import ties_of
from delaygrad.schedule import Action, Kind
from delaygrad.stage import by_caller, require_scalar
from delaygrad.transport import Receiver

_UNFINISHED = "flush is not finished: take all that it yields, and step the optimizer for each"


class ScheduleDDG(PipelineScheduleSingle):
    """Take the place of ``Schedule1F1B``: delayed gradients, and no bubble.

    The contract of torch's schedules holds. The user has the optimizer: ``zero_grad`` and ``step``
    around ``schedule.step``, on every rank. Gradients add to what ``.grad`` holds.

    What differs from torch: the gradient after step t is that of batch t - ceil(lag / M), at the
    parameters of that batch's forward; there is none in the first steps; ``flush`` ends a run;
    ``eval`` computes in evaluation mode; outputs and losses come without a graph; batches may
    differ in size; a loss that is NaN or infinite is an error.

    Args:
        stage: a ``PipelineStage`` around an eager module, one stage per rank.
        n_microbatches: M, of each batch.
        loss_fn: ``loss_fn(output, target)``, a 0-d tensor, or a pair of it and extras; used on the
            last rank.
        args_chunk_spec, kwargs_chunk_spec, output_merge_spec: as in torch.
        scale_grads: divide gradients by M, for a loss that is a mean.
        allow_nonfinite_loss: let NaN and infinity pass.
        timeout_s: seconds to wait for a neighbour before giving it up.
        options: of ``DDG``, such as ``slack`` and ``recompute``.

    Raises:
        StageError: the stage holds an exported graph, or shares a parameter with another; or there
            is no ``loss_fn``.
        ScheduleError: there is more than one stage per rank.

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, Algorithms 1 and 2. Differs: see `DDG`; the updates
        of micro-batches wait for the end of the step.
    """

    def __init__(
        self,
        stage: PipelineStage,
        n_microbatches: int,
        loss_fn: Callable[..., Any] | None = None,
        args_chunk_spec: Any = None,
        kwargs_chunk_spec: Any = None,
        output_merge_spec: Any = None,
        scale_grads: bool = True,
        *,
        allow_nonfinite_loss: bool = False,
        timeout_s: float = 600.0,
        **options: Any,
    ) -> None:
        _require_supported(stage)
        if loss_fn is None:
            raise StageError("ScheduleDDG needs a loss_fn, on every rank")
        super().__init__(
            stage,
            n_microbatches,
            loss_fn=loss_fn,
            args_chunk_spec=args_chunk_spec,
            kwargs_chunk_spec=kwargs_chunk_spec,
            output_merge_spec=output_merge_spec,
            scale_grads=scale_grads,
        )
        self._given_loss: Callable[..., Any] = loss_fn
        self._losses: list[Tensor] = []
        self._outputs: list[Any] | None = None
        self._loss_kwargs: dict[str, Any] = {}
        self._engine = _Engine(
            _Call(stage.submod, stage.is_first),
            self._loss,
            by_caller,
            method=DDG(micro_batches=n_microbatches, **options),
            loss_weight="mean",  # the shares are given with each batch
            allow_nonfinite_loss=allow_nonfinite_loss,
            group=stage.group,
            device=torch.device(stage.device),
            timeout_s=timeout_s,
        )

    def step(
        self,
        *args: Any,
        target: Any = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
        arg_mbs: list[tuple[Any, ...]] | None = None,
        kwarg_mbs: list[dict[str, Any]] | None = None,
        target_mbs: list[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one batch forward, and the backward passes that are due.

        Args:
            args, kwargs: of the whole batch. ``args`` go to the first stage, ``kwargs`` to the
                stage of this rank. Tensors, and containers of tensors.
            target: of the whole batch; on the last rank.
            losses: a list; on the last rank it is cleared, and filled with M losses.
            return_outputs: whether to return outputs.
            loss_kwargs: further arguments of ``loss_fn``.
            arg_mbs, kwarg_mbs, target_mbs: the same for each micro-batch, in place of ``args``,
                ``kwargs`` and ``target``.

        Returns:
            The outputs of the whole batch on the last rank; None elsewhere.

        Raises:
            RuntimeError: gradients are disabled.
            TransportError, WorkerError, NonFiniteLossError: as ``DistributedPipeline.step``.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("step needs gradients, which are disabled; call eval instead")
        arg_mbs, kwarg_mbs = self._split(args, kwargs, arg_mbs, kwarg_mbs)
        return self._step_microbatches(
            arg_mbs,
            kwarg_mbs,
            self._split_target(target, target_mbs),
            losses,
            return_outputs,
            loss_kwargs,
        )

    def eval(
        self,
        *args: Any,
        target: Any = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
        arg_mbs: list[tuple[Any, ...]] | None = None,
        kwarg_mbs: list[dict[str, Any]] | None = None,
        target_mbs: list[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute outputs, and losses if there is a target, in evaluation mode.

        Arguments and result are those of ``step``. What is in flight stays as it is.
        """
        arg_mbs, kwarg_mbs = self._split(args, kwargs, arg_mbs, kwarg_mbs)
        targets = self._split_target(target, target_mbs)
        inputs = self._inputs(arg_mbs, kwarg_mbs, targets, losses)
        self._begin(return_outputs, loss_kwargs)
        for index, part in enumerate(inputs):
            outputs = self._engine.predict_beside(part)
            if self._stage.is_last and targets is not None:
                with self._engine.undisturbed():
                    self._loss(outputs, targets[index])
            elif self._outputs is not None:
                self._outputs.append(outputs)
        return self._end(losses if targets is not None else None)

    @property
    def extras(self) -> list[Any]:
        """What ``loss_fn`` returned beside the losses of the newest step; see ``Pipeline.extras``.

        One item for each micro-batch on the last rank, [] elsewhere.
        """
        return self._engine.extras

    def flush(self) -> Iterator[None]:
        """Finish the batches in flight; yield once for each update that is then due.

        Call it on every rank at the end of training, after ``optimizer.step``. ``.grad`` is then
        the gradient of that update alone. Stage k yields ceil(lag(k) / M) times, the last stage
        never. So the body of the loop must not wait for other ranks.

        Example::

            for _ in schedule.flush():
                optimizer.step()
        """
        return self._engine.remaining_updates()

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: parameters, and what is in flight; all ranks call it.

        Save the optimizer's state too. Call it after ``optimizer.step``.
        """
        return self._engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned on this rank; clears gradients.

        Raises:
            CheckpointError: the state is of another network or schedule.
        """
        self._engine.load_state_dict(state)

    def close(self) -> None:
        """Release sockets, threads and the stage; drop what is in flight."""
        self._engine.close()

    def _step_microbatches(
        self,
        arg_mbs: list[Any] | None = None,
        kwarg_mbs: list[Any] | None = None,
        target_mbs: list[Any] | None = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        inputs = self._inputs(arg_mbs, kwarg_mbs, target_mbs, losses)
        if self._stage.is_last and target_mbs is None:
            raise ValueError("the last stage needs a target; pass target=")
        self._begin(return_outputs, loss_kwargs)
        share = 1 / self._n_microbatches if self.scale_grads else 1.0
        self._engine.step_parts(inputs, target_mbs if self._stage.is_last else None, share)
        return self._end(losses)

    def _split(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], arg_mbs: Any, kwarg_mbs: Any
    ) -> tuple[Any, Any]:
        if (args and arg_mbs is not None) or (kwargs and kwarg_mbs is not None):
            raise ValueError("the batch is given whole and in micro-batches; give it once")
        given_args, given_kwargs = self._split_inputs(args, kwargs)
        return (
            given_args if arg_mbs is None else arg_mbs,
            given_kwargs if kwarg_mbs is None else kwarg_mbs,
        )

    def _split_target(self, target: Any, target_mbs: list[Any] | None) -> list[Any] | None:
        if target is None or target_mbs is not None:
            return target_mbs
        return [part for part, _ in parts_of(target, self._n_microbatches)]

    def _inputs(self, arg_mbs: Any, kwarg_mbs: Any, target_mbs: Any, losses: Any) -> list[Tree]:
        """Return what the engine takes of this rank: arguments on the first stage, and keywords."""
        arg_mbs, kwarg_mbs = self._check_inputs(arg_mbs, kwarg_mbs, target_mbs, losses)
        if not self._stage.is_first:
            return list(kwarg_mbs)
        return [(tuple(args), kwargs) for args, kwargs in zip(arg_mbs, kwarg_mbs, strict=True)]

    def _begin(self, return_outputs: bool, loss_kwargs: dict[str, Any] | None) -> None:
        keeps = self._stage.is_last and return_outputs
        self._losses, self._outputs = [], [] if keeps else None
        self._loss_kwargs = loss_kwargs or {}

    def _loss(self, outputs: Any, target: Any) -> Any:
        """Compute what ``loss_fn`` returns; note the loss, and the outputs if they are wanted."""
        if self._outputs is not None:
            self._outputs.append(pytree.tree_map_only(Tensor, Tensor.detach, outputs))
        returned = self._given_loss(outputs, target, **self._loss_kwargs)
        self._losses.append(require_scalar(returned).detach())
        return returned

    def _end(self, losses: list[Tensor] | None) -> Any:
        if losses is not None and self._stage.is_last:
            losses[:] = self._losses
        outputs, self._outputs, self._losses = self._outputs, None, []
        return None if outputs is None else self._merge_outputs(outputs)


class _Engine(DistributedPipeline):
    """The pipeline under the schedule, whose updates the user makes between two steps."""

    _beside: Tree = None  # of a prediction: this rank's keyword arguments

    def step_parts(self, inputs: list[Tree], targets: list[Any] | None, share: float) -> None:
        """Run one iteration on a batch that is split; add gradients to those that are there."""
        self._check_usable()
        self._worker.clock.begin_iteration(self.iteration)
        self._worker.offered.offer_parts(self.iteration, inputs, targets, share)
        left = [(p, p.grad) for p in self.stage.parameters() if p.grad is not None]
        for parameter, _ in left:
            parameter.grad = None
        with self._working():
            self._run(self._actions())
            self.iteration += 1
        for parameter, gradient in left:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    def predict_beside(self, given: Tree) -> Any:
        """Predict a micro-batch from what the stage below sends, and what this rank is given."""
        self._beside = given
        return self.predict(given)

    def undisturbed(self) -> AbstractContextManager[None]:
        """See ``Evaluation.undisturbed``."""
        return self._worker.stage.evaluation.undisturbed()

    def remaining_updates(self) -> Iterator[None]:
        """See ``ScheduleDDG.flush``."""
        self._announce_flush()
        self._failure = _UNFINISHED
        return self._drain()

    def _drain(self) -> Iterator[None]:
        self._interrupt()
        actions: list[Action] = []
        for action in self._remaining_actions():
            actions.append(action)
            if action.kind is Kind.UPDATE and action.stage_index == self.stage_index:
                self._check_open()
                with self._working(then=_UNFINISHED):
                    self._run(actions)
                actions = []
                yield
        self._check_open()
        with self._working():
            self._run(actions)
            self._end_phase()
        with self._naming("flush"):
            self._finish_sending()

    def _received_prediction(self, receiver: Receiver) -> Tree:
        return super()._received_prediction(receiver), self._beside


class _Call(nn.Module):
    """Call a stage as torch does: a tuple or a list that is received holds its arguments.

    A stage of ``split`` takes one argument, whatever it is.
    """

    def __init__(self, module: nn.Module, is_first: bool) -> None:
        super().__init__()
        self.module = module
        takes_one = isinstance(module, GraphStage)
        self._spreads = not takes_one
        self._unpacks = takes_one and is_first

    def forward(self, inputs: Tree) -> Any:
        args, kwargs = inputs
        if self._unpacks and len(args) == 1:
            (args,) = args
        if not self._spreads or type(args) not in (tuple, list):
            args = (args,)
        return self.module(*args, **kwargs)


def _require_supported(stage: Any) -> None:
    if not isinstance(stage, PipelineStage):
        raise StageError(
            "a stage of torch's pipeline() is an exported graph, which ignores eval() and has a "
            f"fixed batch size (stage: {stage.stage_index}); make stages of the model's own "
            "modules instead: PipelineStage(delaygrad.split(model, K, ...)[k], k, K, device)"
        )
    if ties := ties_of(stage.submod):
        raise StageError(
            "stages share a parameter, whose gradients torch's interface does not bring together "
            f"(parameter: {ties[0].path}); untie it, or train with DistributedPipeline"
        )
    if (stage.stage_index, stage.num_stages) != (stage.group_rank, stage.group_size):
        raise ScheduleError(
            f"rank r of the group must hold stage r (rank: {stage.group_rank} of "
            f"{stage.group_size}, stage: {stage.stage_index} of {stage.num_stages}); use one stage "
            "per rank, in order"
        )
