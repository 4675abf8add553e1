"""Batches that the user has given to a stage, until they go forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from delaygrad.boundary import Tree, flatten, parts_of, unflatten
from delaygrad.errors import DelaygradError
from delaygrad.partition.graph.stage import check_inputs
from delaygrad.runtime.batch_identity import BatchId, Identity, identity_of
from delaygrad.stage import Stage
from delaygrad.transport import Message


@dataclass(kw_only=True)
class Offered:
    """What this process was given of one (micro-)batch.

    Attributes:
        inputs: on the first stage; above it, what goes beside what is received.
        targets: where the stage wants them.
        share: in the loss of the batch.
        portion: of the samples of the batch, on the first stage.
        identity: of the batch on this rank.
    """

    inputs: Tree = None
    targets: Any = None
    share: float = 1.0
    portion: float = 1.0
    identity: Identity | None = None


class OfferedBatches:
    """The batches of one stage that have not gone forward yet, split into micro-batches.

    Args:
        stage: what it wants decides what is kept.
        compares: whether batches get an identity.
    """

    def __init__(self, stage: Stage, *, compares: bool) -> None:
        self._stage = stage
        self._num_parts = stage.method.schedule.micro_batches
        # A batch that waits longer than its iteration is copied: the caller may refill it.
        self._copies = stage.method.schedule.offset(stage.stage_index, stage.num_stages) > 0
        self._compares = compares
        self._parts: dict[int, Offered] = {}

    def offer(self, iteration: int, inputs: Tree, targets: Any, batch_id: BatchId | None) -> None:
        """Take a batch, and split it.

        Raises:
            StageError: the batch has fewer samples than there are micro-batches, the captured
                network cannot take its sizes, or a weight of its loss is negative.
        """
        if not (self._stage.is_first or self._stage.wants_targets):
            return
        parts = [Offered() for _ in range(self._num_parts)]
        if self._stage.is_first:
            for part, (piece, portion) in zip(
                parts, parts_of(inputs, self._num_parts), strict=True
            ):
                check_inputs(self._stage.module, piece)
                part.inputs, part.portion = self._kept(piece), portion
        if self._stage.wants_targets:
            self._give_targets(parts, targets)
        if self._compares:
            identity = identity_of(batch_id, targets)
            for part in parts:
                part.identity = identity
        self._parts.update(enumerate(parts, iteration * self._num_parts))

    def offer_parts(
        self, iteration: int, inputs: Sequence[Tree], targets: Sequence[Any] | None, share: float
    ) -> None:
        """Take a batch that is split already.

        Args:
            inputs: of each micro-batch. Above the first stage they go beside what is received: the
                module takes the pair.
            targets: of each, where the stage wants targets.
            share: of each in the batch's loss.
        """
        first = iteration * self._num_parts
        for index, given in enumerate(inputs):
            part = self._parts[first + index] = Offered(inputs=given)
            if self._stage.is_first:
                part.portion = share
            else:
                part.inputs = _copied(given)
            if targets is not None:
                part.targets, part.share = targets[index], share

    def take(self, batch_index: int) -> Offered:
        """Take a micro-batch out, to go forward; nothing in it if nothing was given."""
        return self._parts.pop(batch_index, None) or Offered()

    def look_at(self, batch_index: int) -> Offered:
        """Return a micro-batch, and keep it."""
        return self._parts.get(batch_index) or Offered()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return a snapshot in plain containers."""
        return [
            {
                "batch": batch_index,
                "inputs": _saved(batch_index, part.inputs),
                "targets": _saved(batch_index, part.targets),
                "share": part.share,
                "portion": part.portion,
                "identity": part.identity,
            }
            for batch_index, part in self._parts.items()
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Continue from what ``state_dict`` returned."""
        self._parts = {
            entry["batch"]: Offered(
                inputs=Message.from_state_dict(entry["inputs"]).activation(),
                targets=Message.from_state_dict(entry["targets"]).activation(),
                share=entry["share"],
                portion=entry["portion"],
                identity=entry["identity"],
            )
            for entry in state
        }

    def _give_targets(self, parts: list[Offered], targets: Any) -> None:
        try:
            pieces = parts_of(targets, self._num_parts)
        except DelaygradError as error:
            raise type(error)(f"targets: {error}") from error
        loss = self._stage.loss
        shares = [share for _, share in pieces] if loss is None else loss.shares(pieces)
        for part, (piece, _), share in zip(parts, pieces, shares, strict=True):
            part.targets, part.share = self._kept(piece), share

    def _kept(self, piece: Tree) -> Tree:
        return _copied(piece) if self._copies else piece


def _copied(tree: Tree) -> Tree:
    tensors, structure = flatten(tree)
    return unflatten(structure, [tensor.detach().clone() for tensor in tensors])


def _saved(batch_index: int, tree: Tree) -> dict[str, Any]:
    return Message.of_activation(batch_index, tree).state_dict()
