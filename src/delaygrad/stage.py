"""The arithmetic of one stage: forward, delayed backward, update. Written once, for every runtime.

    forward   batch t       activation in -> module at w@t -> activation out (or the loss)
                            the graph waits in the stash, with the parameters it was built on
    backward  batch s <= t  error gradient in -> the waiting graph of s -> error gradient out, and
                            the gradients of the parameters
    update                  the user's optimizer, on the live parameters

A stage knows nothing of processes, neighbours or schedules: it does what it is told, for the batch
it is told.

    activation --> leaf --> clone --> module --> output --> detached, handed on
                    |                              |
    grad_input <-- .grad <------ backward ------ grad_output

The clone keeps a stage that works in place (``nn.ReLU(inplace=True)`` as its first layer) away from
the tensor that its neighbour, or the checkpoint, still needs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from delaygrad.boundary import Structure, Tree, dense, flatten, unflatten
from delaygrad.errors import CheckpointError, StageError
from delaygrad.methods import Method
from delaygrad.random_stream import RandomState, RandomStream
from delaygrad.stash import ParameterStash, ParameterVersion, Pending, Stash, copied_buffers

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``: a 0-d tensor, the mean over the batch by custom."""

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""``make_optimizer(params)``: any ``torch.optim`` optimizer over a stage's parameters."""


class Stage:
    """One of the K pieces of a network, with its optimizer and the batches it is waiting for.

    Args:
        module: takes what the stage below returns, as one argument.
        make_optimizer: called once with the list of the module's parameters; not called for a
            stage without parameters.
        stage_index: 0..num_stages-1, from the input.
        num_stages: K.
        method: the rule to train by.
        loss_fn: for the last stage.
        device: where the stage computes; None is where its parameters are, or else the CPU.
        seed: of the process that holds stage 0; None is this process's ``torch.initial_seed()``.

    Raises:
        StageError: the last stage has no ``loss_fn``, or one with parameters of its own.

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
        device: torch.device | None = None,
        seed: int | None = None,
    ) -> None:
        self.module = module
        self.stage_index = stage_index
        self.num_stages = num_stages
        self.method = method
        self.delay = method.schedule.delay(stage_index, num_stages)
        self.device = device_of(module) if device is None else device
        self.version = 0
        self._parameter_list = list(module.parameters())
        self.optimizer = (
            make_optimizer(list(self._parameter_list)) if self._parameter_list else None
        )
        if self.is_last and loss_fn is None:
            raise StageError(f"the last stage needs a loss_fn (stage: {stage_index})")
        if (
            self.is_last
            and isinstance(loss_fn, nn.Module)
            and any(parameter.requires_grad for parameter in loss_fn.parameters())
        ):
            raise StageError(
                "loss_fn has parameters, which no optimizer would train; make them part of the "
                "last stage"
            )
        self._loss_fn = loss_fn if self.is_last else None
        seed = torch.initial_seed() if seed is None else seed
        self._random = RandomStream(stage_index, self.device, seed)
        self._parameters = ParameterStash(module)
        self._pending: Stash[Pending] = Stash("forward pass")

    @property
    def is_first(self) -> bool:
        """Whether the stage takes the network's inputs."""
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage computes the loss."""
        return self.stage_index == self.num_stages - 1

    @property
    def wants_targets(self) -> bool:
        """Whether the forward pass takes targets."""
        return self.is_last

    def forward(self, batch_index: int, inputs: Tree, targets: Any = None) -> Tree:
        """Take a batch forward with the live parameters, and stash what its backward will need.

        Args:
            batch_index: the iteration at which the batch entered the network.
            inputs: a tensor, or a tuple, list or dict of tensors, on any device; on stages above
                the first, those with ``requires_grad`` get an error gradient.
            targets: for the last stage; handed to ``loss_fn``.

        Returns:
            What the next stage takes: detached tensors that require a gradient where one is
            wanted. On the last stage, the loss: 0-d, detached.

        Raises:
            StageError: an output is not made of tensors, or the loss is not a 0-d tensor.
        """
        self._clear_gradients()  # in the fill no backward follows that would replace them
        leaves, structure = self._enter(inputs)
        weights = self._parameters.current(self.version) if self.delay else None
        random_state = self._random.state() if self.delay else None
        with self._random.drawing():
            outputs = self._compute(leaves, structure, targets, weights)
        pending, result = self._pend(leaves, structure, outputs, targets, weights, random_state)
        self._pending.put(batch_index, pending)
        return result

    def backward(
        self, batch_index: int, grad_outputs: list[Tensor | None] | None = None
    ) -> list[Tensor | None]:
        """Run the backward pass of a batch; the gradients land in the live parameters' ``.grad``.

        They are those at the parameters of the batch's forward, whatever updates came since, and
        replace those of the last update.

        Args:
            batch_index: a batch that went forward and not yet backward.
            grad_outputs: one for each output tensor of the forward, of its shape, or None where
                there is none; not for the last stage.

        Returns:
            One for each input tensor, of its shape; None where none was wanted or none arose.

        Raises:
            StashError: the batch is not waiting.
        """
        pending = self._pending.pop(batch_index)
        grads = [None] * len(pending.roots) if grad_outputs is None else grad_outputs
        ends = [
            (root, None if grad is None else grad.to(root.device))
            for root, grad in zip(pending.roots, grads, strict=True)
            if root is not None and (self.is_last or grad is not None)
        ]
        self._clear_gradients()
        if ends:
            with _installed(pending.weights):  # a checkpointed block computes again in here
                torch.autograd.backward([root for root, _ in ends], [grad for _, grad in ends])
        if pending.weights is not None:
            pending.weights.move_gradients()
        return [self._outgoing(leaf) for leaf in pending.inputs]

    def update(self) -> None:
        """Let the optimizer step; waiting graphs keep the parameters they were built on."""
        self._parameters.before_update()
        if self.optimizer is not None:
            self.optimizer.step()
        self.version += 1

    def predict(self, inputs: Tree) -> Tree:
        """Compute outputs with the live parameters in evaluation mode; disturbs nothing.

        Args:
            inputs: as for ``forward``.

        Returns:
            What the module returns, without a graph.
        """
        tensors, structure = flatten(inputs)
        tensors = [tensor.to(self.device) for tensor in tensors]
        here = self._random.replaying(self._random.state())
        with torch.no_grad(), _evaluating(self.module), here:
            outputs = self.module(unflatten(structure, tensors))
        if self.is_last:
            return outputs
        tensors, structure = flatten(outputs)
        return unflatten(structure, [dense(tensor.detach()) for tensor in tensors])

    def state_dict(self) -> dict[str, Any]:
        """Return everything the stage holds, waiting batches included, in plain containers.

        A snapshot: training on does not change it. Graphs are not saved: ``load_state_dict`` builds
        them anew from their inputs, parameters and random state.
        """
        stale = {
            entry.weights.version: entry.weights
            for _, entry in self._pending
            if entry.weights and entry.weights.version != self.version
        }
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {
            "model": copy.deepcopy(dict(self.module.state_dict())),
            "optimizer": copy.deepcopy(optimizer),
            "optimizer_name": self._optimizer_name,
            "version": self.version,
            "random": self._random.state(),
            "pending": [entry.describe(batch_index) for batch_index, entry in self._pending],
            "weights": {str(version): kept.tensors() for version, kept in stale.items()},
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise unless the state is of a stage like this one; changes nothing.

        Raises:
            CheckpointError: it is of another network or another optimizer.
        """
        there, here = _kinds(state["model"]), _kinds(self.module.state_dict())
        differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"the checkpoint is of another network (stage: {self.stage_index}; {name} there: "
                f"{there.get(name, 'absent')}, here: {here.get(name, 'absent')}; "
                f"{len(differing)} differ in all); split the same network at the same cuts"
            )
        if state["optimizer_name"] != self._optimizer_name:
            raise CheckpointError(
                f"the checkpoint is of another optimizer (stage: {self.stage_index}, "
                f"there: {state['optimizer_name']}, here: {self._optimizer_name})"
            )
        ours = None if self.optimizer is None else self.optimizer.state_dict()
        if _group_sizes(state["optimizer"]) != _group_sizes(ours):
            raise CheckpointError(
                f"the optimizer has other parameter groups (stage: {self.stage_index}, parameters "
                f"in each there: {_group_sizes(state['optimizer'])}, here: {_group_sizes(ours)})"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, bit for bit.

        Raises:
            CheckpointError: as ``check_state_dict``; then nothing was changed.
        """
        self.check_state_dict(state)
        self._pending.clear()
        self._parameters.forget()
        self.module.load_state_dict(state["model"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.version = state["version"]
        self._random.set_state(state["random"])
        stale = {
            int(version): self._parameters.restore(int(version), values)
            for version, values in state["weights"].items()
        }
        for entry in state["pending"]:
            version = entry["version"]
            current = version == self.version
            self._replay(entry, self._parameters.current(version) if current else stale[version])

    @property
    def _optimizer_name(self) -> str | None:
        return None if self.optimizer is None else type(self.optimizer).__name__

    def _clear_gradients(self) -> None:
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
            copy = self.delay > 0
            return [t.to(self.device, copy=copy).detach() for t in tensors], structure
        return [
            tensor.to(self.device).detach().requires_grad_(tensor.requires_grad)
            for tensor in tensors
        ], structure

    def _compute(
        self,
        leaves: list[Tensor],
        structure: Structure,
        targets: Any,
        weights: ParameterVersion | None,
    ) -> Tree:
        arguments = (
            leaves if self.is_first and not self.delay else [leaf.clone() for leaf in leaves]
        )
        with _installed(weights):
            outputs = self.module(unflatten(structure, arguments))
            return outputs if self._loss_fn is None else self._loss(outputs, targets)

    def _loss(self, outputs: Any, targets: Any) -> Tensor:
        assert self._loss_fn is not None
        loss = self._loss_fn(outputs, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise StageError(f"loss_fn must return a 0-d tensor (returned: {found}); take its mean")
        return loss

    def _pend(
        self,
        leaves: list[Tensor],
        structure: Structure,
        outputs: Tree,
        targets: Any,
        weights: ParameterVersion | None,
        random_state: RandomState | None,
    ) -> tuple[Pending, Tree]:
        tensors, output_structure = flatten(outputs)
        if self.is_last:
            roots: list[Tensor | None] = list(tensors)
            result: Tree = tensors[0].detach()
        else:
            roots = [tensor if tensor.requires_grad else None for tensor in tensors]
            handed_on = [
                dense(tensor.detach()).requires_grad_(tensor.requires_grad) for tensor in tensors
            ]
            result = unflatten(output_structure, handed_on)
        return Pending(leaves, structure, roots, weights, targets, random_state), result

    def _outgoing(self, leaf: Tensor) -> Tensor | None:
        grad, leaf.grad = leaf.grad, None
        if grad is None or self.is_first:
            return None
        return dense(self.method.outgoing_gradient(grad, self.stage_index, self.num_stages))

    def _replay(self, entry: dict[str, Any], weights: ParameterVersion) -> None:
        leaves, targets = Pending.given(entry, self.device)
        random_state = entry["random"]
        with self._random.replaying(random_state), copied_buffers(self.module):
            outputs = self._compute(leaves, entry["structure"], targets, weights)
        pending, _ = self._pend(leaves, entry["structure"], outputs, targets, weights, random_state)
        self._pending.put(entry["batch"], pending)


def _kinds(state: dict[str, Any]) -> dict[str, str]:
    # What is not a tensor (a module's extra state) is the module's own business.
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _group_sizes(optimizer: dict[str, Any] | None) -> list[int]:
    return [] if optimizer is None else [len(g["params"]) for g in optimizer["param_groups"]]


def _installed(weights: ParameterVersion | None) -> AbstractContextManager[None]:
    return nullcontext() if weights is None else weights.installed()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are, or its buffers, or else the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
