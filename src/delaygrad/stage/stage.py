"""The arithmetic of one stage: forward, delayed backward, update. Written once, for every runtime.

    forward   batch t       activation in -> module at w@t -> activation out (or the loss)
                            the graph waits in the stash, with the parameters it was built on
    backward  batch s <= t  error gradient in -> the stashed graph of s -> error gradient out, and
                            the gradients of the parameters
    update                  the user's optimizer, on the live parameters

A stage knows no processes, neighbours or schedules. Its caller says what to do, and for which
batch. Where a method splits batches, a "batch" here is a micro-batch; the gradients of all parts of
a batch add up until the update.

    rule           what the method prescribes for this stage
    boundaries     what happens to tensors that come in and go out
    forward_pass   the run of the module, and the same run again
    evaluation     predictions, beside training
    saved_state    checkpoints
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Tree, flatten, unflatten
from delaygrad.methods import Method
from delaygrad.optimizers import MakeOptimizer
from delaygrad.random_stream import RandomStream, stage_seed
from delaygrad.stage import saved_state
from delaygrad.stage.added_losses import AddedLosses, with_added
from delaygrad.stage.averaging import Averaging
from delaygrad.stage.boundaries import Boundaries
from delaygrad.stage.evaluation import Evaluation
from delaygrad.stage.forward_pass import ForwardPass
from delaygrad.stage.live_pass import LivePass
from delaygrad.stage.local_training import LocalTraining
from delaygrad.stage.losses import LossWeight, StageLoss
from delaygrad.stage.network import (
    LossFunction,
    apart_from,
    by_caller,
    device_of,
    forget_casts,
    go_backward,
    make_own_optimizer,
    require_loss,
    require_no_gradients,
    require_trainable,
)
from delaygrad.stage.rule import StageRule
from delaygrad.stage.signals import signals_of
from delaygrad.stage.unused_parameters import UnusedParameters
from delaygrad.stage.update import UpdateChain
from delaygrad.stash import (
    BufferStash,
    ParameterStash,
    PartialGradients,
    Pending,
    PredictedStash,
    Stash,
    autocast_dtype,
    checksum,
)

_NOTHING = nullcontext()


class Stage:
    """One of the K pieces of a network, with its optimizer and its batches in flight.

    Args:
        module: takes what the stage below returns, as one argument.
        make_optimizer: called once with the list of the module's parameters; not called for a
            stage without parameters. ``by_caller``: an update only completes ``.grad``, and the
            caller's optimizer steps after ``rest``.
        stage_index: 0..num_stages-1, from the input.
        num_stages: K.
        method: the rule to train by.
        loss_fn: for the last stage.
        loss_weight: how losses of micro-batches combine; see ``delaygrad.stage.losses``.
        allow_nonfinite_loss: let NaN and infinity pass.
        device: where the stage computes; None is where its parameters are, or else the CPU.
        seed: of the process that holds stage 0; None is this process's ``torch.initial_seed()``.
        average: makes the average over replicas, of these parameters.

    Raises:
        StageError: the last stage has no ``loss_fn``, or one with parameters of its own; the
            optimizer has parameters that are not the stage's; a stage with a delay is wrapped in
            ``DistributedDataParallel``; a part of the module ignores ``eval()``.

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, Algorithms 1 and 2. Differs: none.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        stage_index: int,
        num_stages: int,
        method: Method,
        loss_fn: LossFunction | None = None,
        loss_weight: LossWeight = None,
        allow_nonfinite_loss: bool = False,
        device: torch.device | None = None,
        seed: int | None = None,
        average: Callable[[list[nn.Parameter]], Averaging] | None = None,
    ) -> None:
        place = stage_index, num_stages
        self.module, self.method = module, method
        self.stage_index, self.num_stages = place
        self.is_first, self.is_last = stage_index == 0, stage_index == num_stages - 1
        self.delay = method.schedule.delay(*place)
        self.wants_targets = self.is_last or method.error_gradient.sees_targets
        """Whether the forward pass takes targets."""
        self.version = 0
        """Updates so far."""
        self.rule = rule = StageRule.of(method, *place)
        require_trainable(
            module,
            stage_index,
            is_delayed=rule.waits or rule.horizon is not None,
            moves=rule.keeps_version and not rule.lives,
        )
        self.device = device_of(module) if device is None else device
        self._device_type = self.device.type  # the property makes a new string each time
        seed = torch.initial_seed() if seed is None else seed
        own_seed = stage_seed(seed, stage_index) if num_stages > 1 else None
        self._random = RandomStream(self.device, own_seed)

        self._own_parameters = list(module.parameters())
        self.optimizer = make_own_optimizer(make_optimizer, self._own_parameters, stage_index)
        self._hands_over = make_optimizer is by_caller
        self.partial = PartialGradients(module, self.optimizer, splits_batches=rule.splits_batches)
        """Gradients since the last update."""
        self._average = None if average is None else average(self._own_parameters)
        self.signals = signals_of(method, self.device, *place)
        """What messages carry beside tensors, if the method clips or scales."""
        self._chain = UpdateChain(method.update, module, self.delay)
        self._unused = UnusedParameters(module, stage_index)

        micro_batches = method.schedule.micro_batches
        nonfinite = allow_nonfinite_loss or method.loss_scale is not None
        self.added = AddedLosses(micro_batches, allow_nonfinite=nonfinite)
        """What the modules add to the loss."""
        self.loss = (
            None
            if not self.is_last
            else StageLoss(
                require_loss(loss_fn, stage_index),
                device=self.device,
                micro_batches=micro_batches,
                loss_weight=loss_weight,
                allow_nonfinite=nonfinite,
            )
        )
        """Of the last stage."""
        self._boundaries = Boundaries(module, self.device, method, *place, waits=rule.waits)
        self._forward_pass = ForwardPass(
            module,
            stage_index,
            self._boundaries,
            self._random,
            self.device,
            loss=self.loss,
            copies=rule.waits or not self.is_first,
            stash_dtype=method.stash_dtype if rule.waits else None,
        )
        self._pending: Stash[Pending] = Stash("forward pass")
        self._parameters = (
            ParameterStash(module, live=rule.lives)
            if rule.horizon is None
            else PredictedStash(module, rule.horizon)
        )
        self._buffers = BufferStash(module)
        self._local: LocalTraining | None = None
        if rule.is_local:
            gradients = method.error_gradient.make_local(self.device)
            self._local = LocalTraining(gradients, self._random, self.device)
        self.live_pass: LivePass | None = None
        """Of a monitored stage; see ``watched``."""
        self.evaluation = Evaluation(module, stage_index, self.device, self._random, self.loss)
        """Predicts, and computes losses of predictions."""

    def forward(
        self,
        batch_index: int,
        inputs: Tree,
        targets: Any = None,
        share: float = 1.0,
        portion: float = 1.0,
    ) -> Tree:
        """Take a batch forward with the live parameters, and stash what its backward will need.

        Args:
            batch_index: the tick at which the batch entered the network.
            inputs: a tensor, or a tuple, list or dict of tensors, on any device; on stages above
                the first, those with ``requires_grad`` get an error gradient.
            targets: for ``loss_fn`` on the last stage, and for synthesizers that see labels.
            share: the loss is multiplied by this share of the whole batch; last stage only.
            portion: the batch's share of the samples; what ``add_loss`` is given is multiplied
                by it.

        Returns:
            What the next stage takes: detached tensors that require a gradient where one is
            wanted. On the last stage, the loss: 0-d, detached.

        Raises:
            StageError: an output is not made of tensors, the stage trains a tensor that is not its
                own, the loss is not a 0-d tensor, or the losses of micro-batches do not add up to
                that of their batch.
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if not self.partial.count:
            self.partial.clear()  # in the fill no backward follows that would replace them
        inputs, structure = self._boundaries.enter(inputs)
        batch = Pending(
            inputs=inputs,
            structure=structure,
            targets=targets,
            share=share,
            portion=portion,
            scale=None if self.signals is None else self.signals.passing,
        )
        if self.rule.waits or self.live_pass is not None:  # the forward may be computed again
            batch.random_state = self._random.state()
            batch.autocast = autocast_dtype(self.device)
            batch.buffers = self._buffers.enter()
        if self.rule.keeps_version:
            batch.weights = self._parameters.enter()
        if self.live_pass is not None:
            self.live_pass.enter(batch_index, batch)
        if self.loss is not None:
            self.loss.begin(batch_index)
        with self._random.drawing():
            outputs = self._forward_pass.run(batch)
        self.added.note(batch_index, batch.added)
        if batch.weights is not None:
            self._parameters.leave(batch.weights)
        if self._local is not None:
            return self._train_at_once(self._local, batch_index, batch, outputs)
        if self.rule.recomputes:
            batch.roots = batch.added = None
            batch.checksum = None if self.rule.lives else checksum(outputs)
            batch.weights = None if self.rule.lives else batch.weights
        self._pending.put(batch_index, batch)
        return outputs

    def backward(
        self, batch_index: int, grad_outputs: list[Tensor | None] | None = None
    ) -> list[Tensor | None]:
        """Run the backward pass of a batch; the gradients land in the live parameters' ``.grad``.

        The gradients are those at the parameters of the batch's forward, whatever updates came
        since. The first backward after an update replaces the gradients; later ones add to them.

        Args:
            batch_index: a batch that went forward and not yet backward.
            grad_outputs: a gradient of the same shape for each output tensor of the forward, or
                None if it has none; not for the last stage.

        Returns:
            A gradient for each input tensor; None for an input that needs or has none.

        Raises:
            StashError: the batch is not waiting, or a tensor that it needs was changed in place.
        """
        if self._local is not None:
            return self._local.learn(batch_index, grad_outputs)
        batch = self._pending.pop(batch_index)
        self.partial.begin()
        if self.rule.keeps_version:
            self._parameters.require_unspoilt()
        if batch.roots is None:
            self._forward_pass.again(batch)
        roots, grads = self._ends(batch, grad_outputs)
        averaging: AbstractContextManager[None] = _NOTHING
        if self._average is not None and self._is_whole(batch_index):
            averaging = self._average.during(batch.weights)
        with averaging:
            if batch.weights is None:
                go_backward(roots, grads)
            else:
                with batch.weights.installed():  # a checkpointed block runs its forward again here
                    go_backward(roots, grads)
                batch.weights.move_gradients()
        if batch.weights is not None:
            self._chain.meet(batch.weights)
            if not len(self._pending):
                self._parameters.forget()
        self.partial.count += 1
        if self._average is None:
            self._settle(batch_index)
        return self._boundaries.send_back(batch.inputs)

    def average(self, batch_index: int) -> bool:
        """Wait for the replicas' average of what a batch's backward has completed.

        Call it after the backward if there are ``signals``, and before the update.

        Returns:
            Whether there was anything to wait for.
        """
        if self._average is None or not self._average.finish():
            return False
        self._settle(batch_index)
        return True

    def update(self) -> None:
        """Let the optimizer step; stashed graphs keep the parameters they were built on."""
        if self._hands_over:
            self._unused.look()
        elif self._local is not None:
            self._local.update()
            forget_casts(self._device_type)
        else:
            self._step()
        self.partial.end()
        self.version += 1

    def rest(self) -> None:
        """End an iteration: ``.grad`` holds what was applied, or what the caller shall apply."""
        self.partial.set_aside()
        if self._hands_over:
            if self.rule.keeps_version:
                self._parameters.before_update()
            forget_casts(self._device_type)

    def _ends(
        self, batch: Pending, grad_outputs: list[Tensor | None] | None
    ) -> tuple[list[Tensor | None], list[Tensor | None] | None]:
        """Return the ends of a batch's graph, with their gradients; None for a loss alone."""
        assert batch.roots is not None
        scale = None
        if self.signals is not None:
            if self.is_last:
                assert batch.roots[0] is not None and batch.scale is not None
                grad_outputs = [self.signals.first_gradient(batch.roots[0], batch.scale)]
            scale = self.signals.scale
        return with_added(batch.roots, grad_outputs, batch.added, scale)

    def _settle(self, batch_index: int) -> None:
        """Look at the gradient of a whole batch, if the method clips or scales."""
        if self.signals is not None and self._is_whole(batch_index):
            self.signals.settle(self._own_parameters)

    def _is_whole(self, batch_index: int) -> bool:
        """Whether this is the last part of a batch."""
        return (batch_index + 1) % self.method.schedule.micro_batches == 0

    def _step(self) -> None:
        if self.rule.keeps_version:
            self._parameters.before_update()
        signals = self.signals
        self._unused.look()
        if self.optimizer is None:
            require_no_gradients(self._own_parameters, self.stage_index)
        elif not (signals and signals.skips(self.optimizer)):
            norm = None if signals is None else signals.norm()
            self._chain.step(self.optimizer, self.version, norm)
            forget_casts(self._device_type)
        if self.rule.keeps_version:
            self._parameters.after_update()

    def _train_at_once(
        self, local: LocalTraining, batch_index: int, batch: Pending, outputs: Tree
    ) -> Tree:
        """Go backward with the stage's own error gradient, and update; no graph waits."""
        tensors, structure = flatten(outputs)  # the parameters move before they are read
        outputs = unflatten(structure, apart_from(self._own_parameters, tensors))
        ends = local.backward(batch)
        self._settle(batch_index)
        self._step()
        targets = _kept(batch.targets) if self.wants_targets else None
        local.keep(batch_index, ends, targets, self._boundaries.send_back(batch.inputs))
        return outputs

    def watched(self) -> LivePass:
        """Keep from now on what a pass at the live parameters needs, and return that pass."""
        if self.live_pass is None:
            self.live_pass = LivePass(
                self.module,
                self._random,
                self.device,
                loss=self.loss,
                is_first=self.is_first,
            )
        return self.live_pass

    def state_dict(self) -> dict[str, Any]:
        """Return everything the stage holds, batches in flight included, in plain containers.

        A snapshot: training on does not change it. Graphs are not saved: ``load_state_dict`` builds
        them anew from their inputs, parameters and random state.
        """
        return saved_state.saved(self)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise unless the state fits this stage; change nothing.

        Raises:
            CheckpointError: it is of another network or another optimizer.
        """
        saved_state.check(self, state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, bit for bit.

        Raises:
            CheckpointError: as for ``check_state_dict``; nothing was changed.
        """
        saved_state.check(self, state)
        saved_state.load(self, state)


def _kept(targets: Any) -> Any:
    """Copy targets that outlive the call, since a caller may refill them."""
    return targets.clone() if isinstance(targets, Tensor) else targets
