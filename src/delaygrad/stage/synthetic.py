"""A stage that does not wait for its error gradient: it makes one up, and learns to.

    forward   batch t   activation in -> module at w@t -> activation out
                        synthetic gradient of it -> backward -> the optimizer steps, all at once
                        what comes out at the input is kept, and so is the activation
    backward  batch s   the error gradient of that activation, from the stage above, is the lesson
                        for the synthesizer; the kept one goes down as the lesson of the stage below
    update              the synthesizer's optimizer steps

The rule is that of ``delaygrad.methods.dni``; the last stage, which has the true loss, is an
ordinary ``Stage``.
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
from delaygrad.stage.stage import Stage
from delaygrad.stash import Pending, Stash
from delaygrad.state_check import check_state


@dataclass(kw_only=True)
class Lesson:
    """What a batch has left behind until its error gradient comes.

    Attributes:
        outputs: of the stage, those that a gradient is wanted for; None in place of the others.
        targets: class indices, if the synthesizers see labels.
        grad_inputs: what came out at the stage's inputs; None where nothing did.
    """

    outputs: list[Tensor | None]
    targets: Any
    grad_inputs: list[Tensor | None]

    def describe(self, batch_index: int) -> dict[str, Any]:
        tensors, structure = flatten(self.targets)
        return {
            "batch": batch_index,
            "outputs": list(self.outputs),
            "targets": {"tensors": tensors, "structure": structure},
            "grad_inputs": list(self.grad_inputs),
        }

    @classmethod
    def from_description(cls, described: dict[str, Any], device: torch.device) -> Lesson:
        targets: dict[str, Any] = described["targets"]
        structure: Structure = targets["structure"]
        return cls(
            outputs=_copies(described["outputs"], device),
            targets=unflatten(structure, [tensor.to(device) for tensor in targets["tensors"]]),
            grad_inputs=_copies(described["grad_inputs"], device),
        )


class SyntheticStage(Stage):
    """A stage below the last one that trains on synthetic error gradients.

    Takes the arguments of ``Stage``, and a method that ``synthesizes``.

    References:
        Jaderberg et al., ICML 2017, arXiv:1608.05343, Section 2. Differs: ``delaygrad.methods.dni``
        lists it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lessons: Stash[Lesson] = Stash("lesson")
        self._shapes: list[torch.Size | None] = []  # of the outputs of the first batch
        self._synthesizers = nn.ModuleList()
        self._teacher: torch.optim.Optimizer | None = None

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
            StageError: an output has a shape that there is no synthesizer for.
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
        with self._random.drawing():
            handed_on = self._build(batch)
            assert batch.roots is not None
            outputs = [None if root is None else root.detach() for root in batch.roots]
            if not self._shapes:
                self._make_synthesizers([None if h is None else h.shape for h in outputs])
        synthetic = self._synthesize(outputs, targets)
        ends = [root for root in batch.roots if root is not None]
        if ends:
            torch.autograd.backward(ends, [grad for grad in synthetic if grad is not None])
        if self.optimizer is not None:
            self.optimizer.step()
        grad_inputs = [self._outgoing(leaf) for leaf in leaves]
        lesson = Lesson(outputs=outputs, targets=targets, grad_inputs=grad_inputs)
        self._lessons.put(batch_index, lesson)
        return handed_on

    def backward(
        self, batch_index: int, grad_outputs: list[Tensor | None] | None = None
    ) -> list[Tensor | None]:
        """Teach the synthesizers what they should have made of a batch.

        Args:
            batch_index: a batch that went forward and not yet backward.
            grad_outputs: as for ``Stage.backward``.

        Returns:
            One for each input tensor: what the stage found in its forward, with its own synthetic
            gradient.

        Raises:
            StashError: the batch is not waiting.
        """
        lesson = self._lessons.pop(batch_index)
        given = grad_outputs or [None] * len(lesson.outputs)
        if self._teacher is not None:
            self._teacher.zero_grad(set_to_none=True)
        for synthesizer, output, grad in zip(
            self._synthesizers, lesson.outputs, given, strict=True
        ):
            if output is None or grad is None:
                continue
            per_sample = grad.to(output.device, output.dtype) * len(output)
            error = synthesizer(output, lesson.targets) - per_sample
            (error.square().sum() / len(output)).backward()
        return lesson.grad_inputs

    def update(self) -> None:
        """Let the synthesizers' optimizer step; the stage's own has done so in the forward."""
        if self._teacher is not None:
            self._teacher.step()
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything the stage holds, as ``Stage.state_dict``."""
        teacher = None if self._teacher is None else self._teacher.state_dict()
        return {
            **super().state_dict(),
            "synthesizer": {
                "shapes": [None if shape is None else list(shape) for shape in self._shapes],
                "model": copy.deepcopy(dict(self._synthesizers.state_dict())),
                "optimizer": copy.deepcopy(teacher),
            },
            "lessons": [lesson.describe(batch) for batch, lesson in self._lessons],
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
        ours = state["synthesizer"]
        shapes = [None if shape is None else torch.Size(shape) for shape in ours["shapes"]]
        with self._random.replaying(self._random.state()):  # initial values, soon overwritten
            self._make_synthesizers(shapes)
        self._synthesizers.load_state_dict(ours["model"])
        if self._teacher is not None:
            self._teacher.load_state_dict(copy.deepcopy(ours["optimizer"]))
        self._lessons.clear()
        for described in state["lessons"]:
            lesson = Lesson.from_description(described, self.device)
            self._lessons.put(described["batch"], lesson)

    def _make_synthesizers(self, shapes: list[torch.Size | None]) -> None:
        self._shapes = shapes
        self._synthesizers = nn.ModuleList(
            nn.Identity() if shape is None else self.method.make_synthesizer(shape)
            for shape in shapes
        ).to(self.device)
        parameters = list(self._synthesizers.parameters())
        make = self.method.make_synthesizer_optimizer
        self._teacher = make(parameters) if parameters else None

    @torch.no_grad()
    def _synthesize(self, outputs: list[Tensor | None], targets: Any) -> list[Tensor | None]:
        """Return the gradient of a mean loss: each sample's own, divided by their number."""
        return [
            None if output is None else synthesizer(output, targets) / len(output)
            for synthesizer, output in zip(self._synthesizers, outputs, strict=True)
        ]


def stage_class(method: Method, stage_index: int, num_stages: int) -> type[Stage]:
    """Return the kind of stage that a method wants in a place."""
    is_last = stage_index == num_stages - 1
    return SyntheticStage if method.synthesizes and not is_last else Stage


def _copies(tensors: list[Tensor | None], device: torch.device) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device, copy=True) for tensor in tensors]
