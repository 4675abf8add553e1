"""The arithmetic of one stage: forward, delayed backward, update. Written once, for every runtime.

    forward   batch t       activation in -> module at w@t -> activation out (or the loss)
                            the graph waits in the stash, with the parameters it was built on
    backward  batch s <= t  error gradient in -> the waiting graph of s -> error gradient out, and
                            the gradients of the parameters
    update                  the user's optimizer, on the live parameters

A stage knows no processes, neighbours or schedules. Its caller says what to do, and for which
batch.

    activation --> leaf --> clone --> module --> output --> detached, handed on
                    |                              |
    grad_input <-- .grad <------ backward ------ grad_output

The clone protects the received tensor, which the neighbour or a checkpoint still needs, from a
stage whose first layer works in place (``nn.ReLU(inplace=True)``). Where a method splits batches, a
"batch" here is a micro-batch; the gradients of all parts of a batch add up until the update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Structure, Tree, dense, flatten, narrowed, unflatten, widened
from delaygrad.methods import Method
from delaygrad.optimizers import MakeOptimizer
from delaygrad.random_stream import RandomStream, stage_seed
from delaygrad.stage.added_losses import AddedLosses, Collecting, total, with_added
from delaygrad.stage.live_pass import LivePass
from delaygrad.stage.local_training import LocalTraining, require_alike
from delaygrad.stage.losses import LossWeight, StageLoss
from delaygrad.stage.modes import PredictionGuard, require_modes
from delaygrad.stage.network import (
    LossFunction,
    apart_from,
    by_caller,
    device_of,
    evaluating,
    forget_casts,
    go_backward,
    make_own_optimizer,
    require_initialised,
    require_loss,
    require_no_aliases,
    require_no_gradients,
    require_no_replicas,
)
from delaygrad.stage.references import References
from delaygrad.stage.signals import Signals
from delaygrad.stage.unused_parameters import UnusedParameters
from delaygrad.stage.update import UpdateChain
from delaygrad.stash import (
    BufferStash,
    ParameterStash,
    ParameterVersion,
    PartialGradients,
    Pending,
    PredictedStash,
    Stash,
    as_it_was,
    autocast_dtype,
    checksum,
    require_same_outputs,
    saving_rounded,
)
from delaygrad.state_check import check_state, optimizer_name

_NOTHING = nullcontext()  # making one takes longer than entering it


class Stage:
    """One of the K pieces of a network, with its optimizer and its waiting batches.

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
        average: called with the parameters before a whole batch's gradient is used.

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
        average: Callable[[list[nn.Parameter]], None] | None = None,
    ) -> None:
        self.module = module
        self._average = average
        self.stage_index = stage_index
        self.num_stages = num_stages
        self.is_first, self.is_last = stage_index == 0, stage_index == num_stages - 1
        self.method = method
        self.wants_targets = self.is_last or method.error_gradient.sees_targets
        """Whether the forward pass takes targets."""
        self.delay = method.schedule.delay(stage_index, num_stages)
        waits = method.schedule.lag(stage_index, num_stages) > 0
        horizon = method.forward_weights.horizon_in_updates(
            method.schedule, stage_index, num_stages
        )
        is_local = method.error_gradient.is_local and not self.is_last
        self._waits = waits and not is_local
        if self._waits or horizon is not None:
            require_no_replicas(module, stage_index)
        self._recomputes = method.recompute and self._waits
        self._replays_live = self._recomputes and method.linearise.weights == "live"
        self._rounds = method.stash_dtype if self._waits else None
        self._keeps_version = (self._waits and not self._replays_live) or horizon is not None
        if self._keeps_version and method.linearise.weights != "live":
            require_no_aliases(module, stage_index)
        require_modes(module, stage_index)
        require_initialised(module, stage_index)
        self._references = References(module, stage_index)
        self._unused = UnusedParameters(module, stage_index)
        self._predictions = PredictionGuard(module, stage_index)
        self.device = device_of(module) if device is None else device
        self._device_type = self.device.type  # the property makes a new string each time
        self.version = 0
        """Updates so far."""
        self._clear = False  # whether all .grad are None
        splits_batches = method.schedule.splits_batches(stage_index, num_stages)
        self.partial = PartialGradients(module, splits_batches=splits_batches)
        """Gradients since the last update."""
        self._parameter_list = list(module.parameters())
        self.optimizer = make_own_optimizer(make_optimizer, self._parameter_list, stage_index)
        self._hands_over = make_optimizer is by_caller
        nonfinite = allow_nonfinite_loss or method.loss_scale is not None
        self.added = AddedLosses(method.schedule.micro_batches, allow_nonfinite=nonfinite)
        """What the modules add to the loss."""
        self.loss = None
        """Of the last stage."""
        if self.is_last:
            self.loss = StageLoss(
                require_loss(loss_fn, stage_index),
                device=self.device,
                micro_batches=method.schedule.micro_batches,
                loss_weight=loss_weight,
                allow_nonfinite=nonfinite,
            )
        seed = torch.initial_seed() if seed is None else seed
        own_seed = stage_seed(seed, stage_index) if num_stages > 1 else None
        self._random = RandomStream(self.device, own_seed)
        self._parameters = (
            ParameterStash(module, live=method.linearise.weights == "live")
            if horizon is None
            else PredictedStash(module, horizon)
        )
        self._buffers = BufferStash(module)
        self._chain = UpdateChain(method.update, module, self.delay)
        self._local: LocalTraining | None = None
        if is_local:
            gradients = method.error_gradient.make_local(self.device)
            self._local = LocalTraining(gradients, self._random, self.device)
        self.signals: Signals | None = None
        """What messages carry beside tensors, if the method clips or scales."""
        if method.clips is not None or method.loss_scale is not None:
            self.signals = Signals(method, self.device, stage_index, num_stages)
        self._newest: ParameterVersion | None = None  # that a backward has met, for the chain
        self._pending: Stash[Pending] = Stash("forward pass")
        self.live_pass: LivePass | None = None
        """Of a monitored stage; see ``watched``."""

    @property
    def optimized(self) -> list[str]:
        """The names of the optimizer's parameters, in its order."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [names.get(id(p), "") for group in groups for p in group["params"]]

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
            self._clear_gradients()  # in the fill no backward follows that would replace them
        leaves, structure = self._enter(inputs)
        batch = Pending(
            inputs=leaves,
            structure=structure,
            targets=targets if self._local is None else _kept(targets, self.wants_targets),
            share=share,
            portion=portion,
            scale=None if self.signals is None else self.signals.passing,
        )
        if self._waits or self.live_pass is not None:  # the forward may be computed again
            batch.random_state = self._random.state()
            batch.autocast = autocast_dtype(self.device)
            batch.buffers = self._buffers.enter()
        if self._keeps_version:
            batch.weights = self._parameters.enter()
        if self.live_pass is not None:
            self.live_pass.enter(batch_index, batch)
        if self.loss is not None:
            self.loss.begin(batch_index)
        with self._random.drawing():
            outputs = self._build(batch)
        if batch.added is not None or self.added.newest is not None:
            self.added.note(batch_index, batch.added)
        if batch.weights is not None:
            self._parameters.leave(batch.weights)
        if self._local is not None:
            tensors, structure = flatten(outputs)  # the parameters move before they are read
            outputs = unflatten(structure, apart_from(self._parameter_list, tensors))
            self._train_at_once(self._local, batch_index, batch)
            return outputs
        if self._recomputes:
            batch.roots = batch.added = None
            batch.checksum = None if self._replays_live else checksum(outputs)
            batch.weights = None if self._replays_live else batch.weights
        self._pending.put(batch_index, batch)
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
        if not self.partial.count and not self._clear:  # a drain: no forward has cleared them
            self._clear_gradients()
        self._clear = False
        if self._keeps_version:
            self._parameters.require_unspoilt()
        if batch.roots is None:
            self._rebuild(batch)
        assert batch.roots is not None
        if self.signals is not None and self.is_last:
            assert batch.roots[0] is not None and batch.scale is not None
            grad_outputs = [self.signals.first_gradient(batch.roots[0], batch.scale)]
        if batch.added is not None and batch.added.requires_grad:
            scale = None if self.signals is None else self.signals.scale
            grad_outputs = with_added(batch.roots, grad_outputs, batch.added, scale)
        if batch.weights is None:
            go_backward(batch.roots, grad_outputs)
        else:  # a checkpointed block runs its forward again here
            with batch.weights.installed():
                go_backward(batch.roots, grad_outputs)
        if batch.weights is not None:
            batch.weights.move_gradients()
            self._newest = batch.weights if self._chain else None
            if not len(self._pending):
                self._parameters.forget()
        self.partial.count += 1
        if self.signals is not None:
            self._settle(self.signals, batch_index)
        if self.is_first:
            return [None] * len(batch.inputs)
        return [self._outgoing(leaf) for leaf in batch.inputs]

    def update(self) -> None:
        """Let the optimizer step; waiting graphs keep the parameters they were built on."""
        if self._hands_over:
            self._unused.look()
        elif self._local is not None:
            self._local.update()
            forget_casts(self._device_type)
        else:
            self._step()
        self.partial.end()
        self.version += 1
        self._clear = False

    def rest(self) -> None:
        """End an iteration: ``.grad`` holds what was applied, or what the caller shall apply."""
        self.partial.set_aside()
        if self._hands_over:
            if self._keeps_version:
                self._parameters.before_update()
            forget_casts(self._device_type)

    def predict(self, inputs: Tree) -> Tree:
        """Compute outputs with the live parameters in evaluation mode; disturbs nothing.

        Args:
            inputs: as for ``forward``.

        Returns:
            What the module returns, without a graph.

        Raises:
            StageError: the module changes its state in evaluation mode.
        """
        tensors, structure = flatten(inputs)
        tensors = [tensor.to(self.device) for tensor in tensors]
        watch = self._predictions.watching()
        with self.undisturbed(), evaluating(self.module), watch:
            outputs = self.module(unflatten(structure, tensors))
        if self.is_last:
            return outputs
        tensors, structure = flatten(outputs)
        return unflatten(structure, [dense(tensor.detach()) for tensor in tensors])

    def loss_of(self, outputs: Tree, targets: Any) -> Tensor:
        """Return the loss of predicted outputs, on the last stage; disturbs nothing."""
        assert self.loss is not None
        with self.undisturbed():
            return self.loss.of_batch(outputs, targets).detach()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within the block nothing gets a graph, and random numbers are drawn from a copy."""
        with torch.no_grad(), self._random.replaying(self._random.state()):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return everything the stage holds, waiting batches included, in plain containers.

        A snapshot: training on does not change it. Graphs are not saved: ``load_state_dict`` builds
        them anew from their inputs, parameters and random state.
        """
        edition = self._parameters.edition()
        model = dict(self.module.state_dict())
        met = self._buffers.current() if len(self._pending) else {}
        buffers = {name: value for name, value in met.items() if name in model}
        stale = {
            entry.weights.edition: entry.weights
            for _, entry in self._pending
            if entry.weights and entry.weights.edition != edition
        }
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {
            "model": copy.deepcopy(model),
            "optimizer": copy.deepcopy(optimizer),
            "optimizer_name": optimizer_name(self.optimizer),
            "optimized": self.optimized,
            "version": self.version,
            "edition": edition,
            "accumulated": self.partial.state_dict(),
            "random": self._random.state(),
            "pending": [
                entry.describe(batch_index, buffers) for batch_index, entry in self._pending
            ],
            "weights": {str(number): kept.tensors() for number, kept in stale.items()},
            "written": sorted(self._parameters.written),
            "previous": self._parameters.previous(),
            "updates": self._chain.state_dict(),
            "local": None if self._local is None else self._local.state_dict(),
            "signals": None if self.signals is None else self.signals.state_dict(),
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise unless the state fits this stage; change nothing.

        Raises:
            CheckpointError: it is of another network or another optimizer.
        """
        check_state(state, self.stage_index, self.module, self.optimizer)
        require_alike(state["local"], self._local, self.stage_index)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, bit for bit.

        Raises:
            CheckpointError: as for ``check_state_dict``; nothing was changed.
        """
        self.check_state_dict(state)
        self._pending.clear()
        self._parameters.reset(state["edition"])
        self.module.load_state_dict(state["model"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.version = state["version"]
        self._clear_gradients()
        self.partial.load_state_dict(state["accumulated"])
        self._random.set_state(state["random"])
        self._parameters.written = set(state["written"])
        self._parameters.restore_previous(state["previous"])
        self._chain.load_state_dict(state["updates"])
        if self._local is not None:
            self._local.load_state_dict(state["local"])
        if self.signals is not None:
            self.signals.load_state_dict(state["signals"])
        for entry, weights in self._parameters.restored(state):
            buffers = self._buffers.current()
            batch = Pending.from_description(entry, weights, buffers, self.device)
            if not self._recomputes:
                self._rebuild(batch)
            self._pending.put(entry["batch"], batch)

    def _train_at_once(self, local: LocalTraining, batch_index: int, batch: Pending) -> None:
        """Go backward with the stage's own error gradient, and update; no graph waits."""
        outputs = local.backward(batch)
        if self.signals is not None:
            self._settle(self.signals, batch_index)
        self._step()
        grad_inputs = [self._outgoing(leaf) for leaf in batch.inputs]
        local.keep(batch_index, outputs, batch.targets, grad_inputs)

    def _settle(self, signals: Signals, batch_index: int) -> None:
        if (
            self._average is not None
            and (batch_index + 1) % self.method.schedule.micro_batches == 0
        ):
            self._average(self._parameter_list)
        signals.settle(batch_index, self._parameter_list)

    def _step(self) -> None:
        if self._keeps_version:
            self._parameters.before_update()
        signals = self.signals
        if self._average is not None and signals is None:
            self._average(self._parameter_list)
        self._unused.look()
        if self.optimizer is not None and not (signals and signals.skips(self.optimizer)):
            met = None if self._newest is None else self._newest.named()
            norm = None if signals is None else signals.norm()
            self._chain.step(self.optimizer, self.version, met, norm)
            self._newest = None
            forget_casts(self._device_type)
        if self.optimizer is None:
            require_no_gradients(self._parameter_list, self.stage_index)
        if self._keeps_version:
            self._parameters.after_update()

    def _clear_gradients(self) -> None:
        self._clear = True
        for parameter in self._parameter_list:
            parameter.grad = None
        if self.optimizer is not None:  # it may have been given more since
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _enter(self, inputs: Tree) -> tuple[list[Tensor], Structure]:
        tensors, structure = flatten(inputs)
        if self.is_first:
            # A caller may refill its input tensor while the batch waits.
            if self._waits:
                return [t.to(self.device, copy=True).detach() for t in tensors], structure
            here = self.device
            return [
                t if t.device == here and not t.requires_grad else t.to(here).detach()
                for t in tensors
            ], structure
        narrow = self.method.boundary_dtype
        return [
            widened(tensor.to(self.device).detach(), narrow).requires_grad_(tensor.requires_grad)
            for tensor in tensors
        ], structure

    def _build(self, batch: Pending) -> Tree:
        """Run the forward, keep the ends of its graph with the batch, return what is sent."""
        weights = [] if batch.weights is None else batch.weights.parameters()
        with Collecting() as added:
            if batch.weights is None and not self._rounds:
                outputs = self._compute(batch)  # the parameters are met as they are
            else:
                rounding = saving_rounded(self._rounds, [*weights, *self.module.buffers()])
                with _installed(batch.weights), rounding:
                    outputs = self._compute(batch)
        tensors, structure = ([outputs], None) if self.is_last else flatten(outputs)
        if added:
            batch.added = total(added, batch.portion)
        self._references.look(
            [*tensors, *added], stand_ins=weights, inputs=batch.inputs, targets=batch.targets
        )
        if self.is_last:
            batch.roots = [outputs]
            return outputs.detach()
        batch.roots = [tensor if tensor.requires_grad else None for tensor in tensors]
        narrow = self.method.boundary_dtype
        handed_on = [
            dense(narrowed(tensor.detach(), narrow)).requires_grad_(tensor.requires_grad)
            for tensor in tensors
        ]
        if not all(tensor.requires_grad for tensor in handed_on):
            handed_on = apart_from(self.module.buffers(), handed_on)  # a forward may change them
        return unflatten(structure, handed_on)

    def _compute(self, batch: Pending) -> Any:
        """Return what the module returns; on the last stage, the loss."""
        inputs = batch.inputs
        if self._waits or not self.is_first:
            inputs = [leaf.clone() for leaf in inputs]
        outputs = self.module(unflatten(batch.structure, inputs))
        return outputs if self.loss is None else self.loss(outputs, batch.targets, batch.share)

    def _rebuild(self, batch: Pending) -> None:
        """Run the forward of a waiting batch again, as it was; change nothing else."""
        assert batch.random_state is not None
        here = self._random.replaying(batch.random_state)
        with here, as_it_was(self.module, batch, self.device):
            require_same_outputs(batch.checksum, self._build(batch))

    def _outgoing(self, leaf: Tensor) -> Tensor | None:
        grad, leaf.grad = leaf.grad, None
        if grad is None or self.is_first:
            return None
        grad = self.method.error_gradient.outgoing(grad, self.stage_index, self.num_stages)
        return dense(narrowed(grad, self.method.boundary_dtype))


def _kept(targets: Any, wanted: bool) -> Any:
    """Copy targets that outlive the call, since a caller may refill them."""
    if not wanted:
        return None
    return targets.clone() if isinstance(targets, Tensor) else targets


def _installed(weights: ParameterVersion | None) -> AbstractContextManager[None]:
    return _NOTHING if weights is None else weights.installed()
