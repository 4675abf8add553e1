"""A stage that does not wait for its error gradient: it predicts one, and learns to predict better.

    forward   batch t   activation in -> module at w@t -> activation out
                        synthetic gradient of it -> backward -> the optimizer steps, all at once
                        the grad_input that comes out is kept, and so is the activation
    backward  batch s   the error gradient of that activation, from the stage above, is the target
                        of the synthesizer; the kept grad_input is sent down, as the target of the
                        synthesizer below
    update              the synthesizers' optimizer steps

The rule is that of ``delaygrad.methods.dni``; the last stage, which has the true loss, is an
ordinary ``Stage``. To a clock, the whole training of the stage is part of its forward; backward and
update are those of the synthesizers, and so are ``version`` and what a trace calls staleness.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Structure, Tree, flatten, unflatten
from delaygrad.errors import CheckpointError
from delaygrad.methods import Method
from delaygrad.stage.network import apart_from, forget_casts
from delaygrad.stage.stage import Stage
from delaygrad.stash import Pending, Stash
from delaygrad.state_check import check_state


@dataclass(kw_only=True)
class PendingTarget:
    """What a batch has left behind until its error gradient comes.

    Attributes:
        outputs: of the stage, those that a gradient is wanted for; None in place of the others.
        targets: class indices, if the synthesizers see labels, else None.
        grad_inputs: what came out at the stage's inputs; None where nothing did.
    """

    outputs: list[Tensor | None]
    targets: Any
    grad_inputs: list[Tensor | None]

    def describe(self, batch_index: int) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        tensors, structure = flatten(self.targets)
        return {
            "batch": batch_index,
            "outputs": list(self.outputs),
            "targets": {"tensors": tensors, "structure": structure},
            "grad_inputs": list(self.grad_inputs),
        }

    @classmethod
    def from_description(cls, described: dict[str, Any], device: torch.device) -> PendingTarget:
        """Return a described entry on a device."""
        targets: dict[str, Any] = described["targets"]
        structure: Structure = targets["structure"]
        return cls(
            outputs=_copies(described["outputs"], device),
            targets=unflatten(structure, [tensor.to(device) for tensor in targets["tensors"]]),
            grad_inputs=_copies(described["grad_inputs"], device),
        )


class SyntheticStage(Stage):
    """A stage below the last one that trains on synthetic gradients.

    Takes the arguments of ``Stage``, and a method that ``synthesizes``.

    References:
        Jaderberg et al., ICML 2017, arXiv:1608.05343, Section 2. Differs: ``delaygrad.methods.dni``
        lists it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending_targets: Stash[PendingTarget] = Stash("target")
        self._synthesizers = nn.ModuleDict()  # by the position of the output
        self._made_for: dict[str, dict[str, Any]] = {}  # shape and dtype, likewise
        self._synthesizer_optimizer: torch.optim.Optimizer | None = None

    @property
    def wants_targets(self) -> bool:
        return self.method.sees_labels

    def forward(
        self, batch_index: int, inputs: Tree, targets: Any = None, share: float = 1.0
    ) -> Tree:
        """Take a batch forward, go backward with a synthetic gradient, and update.

        Args:
            batch_index: the iteration in which the batch entered the network.
            inputs: as for ``Stage.forward``.
            targets: class indices, if the synthesizers see labels.
            share: of its whole batch; always 1, since the method has no micro-batches.

        Returns:
            As ``Stage.forward``.

        Raises:
            StageError: an output has a shape that there is no synthesizer for, or labels are
                wanted and are not class indices.
        """
        self._clear_gradients()
        leaves, structure = self._enter(inputs)
        batch = Pending(
            inputs=leaves,
            structure=structure,
            targets=targets,
            share=share,
            weights=None,
            random_state=None,
        )
        labels = None
        if self.method.sees_labels:  # a caller may refill them; the synthesizer refuses the rest
            labels = targets.clone() if isinstance(targets, Tensor) else targets
        with self._random.drawing():
            handed_on = self._apart_from_parameters(self._build(batch))
            assert batch.roots is not None
            outputs = [None if root is None else root.detach() for root in batch.roots]
            synthetic = [
                None if output is None else self._synthesize(position, output, labels)
                for position, output in enumerate(outputs)
            ]
        ends = [root for root in batch.roots if root is not None]
        if ends:
            torch.autograd.backward(ends, [grad for grad in synthetic if grad is not None])
        if self.optimizer is not None:
            self.optimizer.step()
            forget_casts(self.device)
        grad_inputs = [self._outgoing(leaf) for leaf in leaves]
        pending = PendingTarget(outputs=outputs, targets=labels, grad_inputs=grad_inputs)
        self._pending_targets.put(batch_index, pending)
        return handed_on

    def backward(
        self, batch_index: int, grad_outputs: list[Tensor | None] | None = None
    ) -> list[Tensor | None]:
        """Compute the synthesizers' gradients for a batch, from what they should have predicted.

        Args:
            batch_index: a batch that went forward and not yet backward.
            grad_outputs: as for ``Stage.backward``.

        Returns:
            One for each input tensor: what the stage found in its forward, with its own synthetic
            gradient.

        Raises:
            StashError: the batch is not waiting.
        """
        pending = self._pending_targets.pop(batch_index)
        given = grad_outputs or [None] * len(pending.outputs)
        if self._synthesizer_optimizer is not None:
            self._synthesizer_optimizer.zero_grad(set_to_none=True)
        for position, (output, grad) in enumerate(zip(pending.outputs, given, strict=True)):
            if output is None or grad is None:
                continue
            predicted = self._synthesizers[str(position)](output, pending.targets)
            error = predicted - grad.to(output.device, output.dtype) * len(output)
            (error.square().sum() / len(output)).backward()
        return pending.grad_inputs

    def update(self) -> None:
        """Let the synthesizers' optimizer step; the stage's own has done so in the forward."""
        if self._synthesizer_optimizer is not None:
            self._synthesizer_optimizer.step()
            forget_casts(self.device)
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything the stage holds, as ``Stage.state_dict``."""
        optimizer = self._synthesizer_optimizer
        return {
            **super().state_dict(),
            "synthesizer": {
                "made_for": copy.deepcopy(self._made_for),
                "model": copy.deepcopy(dict(self._synthesizers.state_dict())),
                "optimizer": copy.deepcopy(None if optimizer is None else optimizer.state_dict()),
            },
            "pending_targets": [
                pending.describe(batch) for batch, pending in self._pending_targets
            ],
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise unless the state is of a stage like this one; changes nothing.

        Raises:
            CheckpointError: it is of another network or another optimizer.
        """
        check_state(state, self.stage_index, self.module, self.optimizer)
        if "synthesizer" not in state:
            raise CheckpointError(
                f"the checkpoint has no synthesizer (stage: {self.stage_index}); it is of a stage "
                "that waits for its error gradient"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, bit for bit."""
        super().load_state_dict(state)
        saved = state["synthesizer"]
        self._synthesizers = nn.ModuleDict()
        self._made_for, self._synthesizer_optimizer = {}, None
        with self._random.replaying(self._random.state()):  # initial values, soon overwritten
            for position, made_for in saved["made_for"].items():
                dtype = getattr(torch, made_for["dtype"])
                self._make_synthesizer(position, torch.Size(made_for["shape"]), dtype)
        self._synthesizers.load_state_dict(saved["model"])
        if self._synthesizer_optimizer is not None:
            self._synthesizer_optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        self._pending_targets.clear()
        for described in state["pending_targets"]:
            pending = PendingTarget.from_description(described, self.device)
            self._pending_targets.put(described["batch"], pending)

    def _synthesize(self, position: int, output: Tensor, labels: Tensor | None) -> Tensor:
        """Return the gradient of a mean loss: each sample's own, divided by their number."""
        if str(position) not in self._synthesizers:
            self._make_synthesizer(str(position), output.shape, output.dtype)
        with torch.no_grad():
            synthetic: Tensor = self._synthesizers[str(position)](output, labels) / len(output)
        return synthetic

    def _make_synthesizer(self, position: str, shape: torch.Size, dtype: torch.dtype) -> None:
        """Make one for an output that wants a gradient for the first time."""
        synthesizer = self.method.make_synthesizer(shape).to(self.device, dtype)
        self._synthesizers[position] = synthesizer
        self._made_for[position] = {
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
        }
        parameters = list(synthesizer.parameters())
        if self._synthesizer_optimizer is None:
            self._synthesizer_optimizer = self.method.make_synthesizer_optimizer(parameters)
        else:
            self._synthesizer_optimizer.add_param_group({"params": parameters})

    def _apart_from_parameters(self, outputs: Tree) -> Tree:
        """Copy what shares memory with parameters: they move before the stage above reads it."""
        tensors, structure = flatten(outputs)
        return unflatten(structure, apart_from(self._parameter_list, tensors))


def stage_class(method: Method, stage_index: int, num_stages: int) -> type[Stage]:
    """Return the kind of stage that a method wants in a place."""
    is_last = stage_index == num_stages - 1
    return SyntheticStage if method.synthesizes and not is_last else Stage


def _copies(tensors: list[Tensor | None], device: torch.device) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device, copy=True) for tensor in tensors]
