"""The links over which the parameters that stages share travel, apart from the activations.

    owner  ==== value, with each forward ====>  borrower
    owner  <=== gradient, with each backward =  borrower

Between neighbours the boundary carries None in the place of each tie. So the value of a large table
passes no stage that does not use it. The owner adds up the gradients from the last borrower to the
first, and to their sum its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from delaygrad.boundary import Tree
from delaygrad.partition.graph.stage import GraphStage
from delaygrad.partition.graph.ties import TiedParameter
from delaygrad.runtime.inbox import Inbox
from delaygrad.transport import Message, Queue, Receiver, Sender

__all__ = ["TieLinks", "tie_links", "ties_of"]


def ties_of(stage: nn.Module) -> tuple[TiedParameter, ...]:
    """List the parameters that the stages of a network share."""
    return stage.ties if isinstance(stage, GraphStage) else ()


class TieLinks:
    """One stage's ends of these links.

    Args:
        ties: of the network.
        stage_index: of this stage.
        receive: make the end at which messages of another stage arrive.
        send: make the end for messages to another stage.
        gradients: whether gradients come back; not for predictions.
    """

    def __init__(
        self,
        ties: Sequence[TiedParameter],
        stage_index: int,
        *,
        receive: Callable[[int], Receiver],
        send: Callable[[int], Sender],
        gradients: bool = True,
    ) -> None:
        k, ties = stage_index, sorted(ties, key=lambda tie: tie.path)
        self._borrowed = [tie for tie in ties if k in tie.borrowers]
        self._handed_on = [tie for tie in ties if k in tie.stages and k < tie.stages[-1]]
        self._owned = [tie for tie in ties if k == tie.owner]
        self._owners = sorted({tie.owner for tie in self._borrowed})
        self._borrowers = sorted({other for tie in self._owned for other in tie.borrowers})
        heard = [*self._owners, *(self._borrowers if gradients else ())]
        self.inboxes = {other: Inbox(receive(other)) for other in heard}
        """By the stage that sends: values of owners, gradients of borrowers."""
        told = [*self._borrowers, *(self._owners if gradients else ())]
        self.senders = {other: send(other) for other in told}
        """By the stage that receives."""

    def borrow(self, batch_index: int, phase: int, inputs: Tree) -> Tree:
        """Put the values of this batch into what has arrived from the stage below."""
        values, places = inputs
        for owner in self._owners:
            places = {**places, **self.inboxes[owner].take(batch_index, phase).activation()}
        return values, places

    def lend(self, batch_index: int, phase: int, outputs: Tree) -> tuple[Tree, int]:
        """Send the values that this stage owns.

        Returns:
            outputs, num_bytes: what goes to the stage above; what was sent here.
        """
        values, places = outputs
        num_bytes = 0
        for other in self._borrowers:
            lent = {tie.path: places[tie.path] for tie in self._owned if other in tie.borrowers}
            num_bytes += self._send(other, Message.of_activation(batch_index, lent, phase))
        return (values, dict.fromkeys(places)), num_bytes

    def take_gradients(self, batch_index: int, phase: int) -> list[Tensor | None]:
        """Return the gradients of the ties among the outputs of this batch's forward."""
        sums: dict[str, Tensor | None] = {tie.path: None for tie in self._handed_on}
        for other in reversed(self._borrowers):
            found = self.inboxes[other].take(batch_index, phase).tensors
            lent = [tie.path for tie in self._owned if other in tie.borrowers]
            for path, gradient in zip(lent, found, strict=True):
                before = sums[path]
                if gradient is not None:
                    sums[path] = gradient if before is None else before + gradient
        return list(sums.values())

    def return_gradients(
        self, batch_index: int, phase: int, gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], int]:
        """Send the owners the gradients of what they have lent.

        Args:
            gradients: of all inputs of this batch's forward, ties last.

        Returns:
            gradients, num_bytes: for the stage below; what was sent here.
        """
        num_values = len(gradients) - len(self._borrowed)
        own = list(zip(self._borrowed, gradients[num_values:], strict=True))
        num_bytes = 0
        for other in self._owners:
            theirs = tuple(gradient for tie, gradient in own if tie.owner == other)
            num_bytes += self._send(other, Message(batch_index, theirs, phase=phase))
        return list(gradients[:num_values]), num_bytes

    def _send(self, other: int, message: Message) -> int:
        self.senders[other].send(message)
        return message.num_bytes


def tie_links(
    ties: Sequence[TiedParameter],
    stages: Sequence[int],
    *,
    receive: Callable[[int, int], Receiver] | None = None,
    send: Callable[[int, int], Sender] | None = None,
    gradients: bool = True,
) -> dict[int, TieLinks]:
    """Make the links of the stages of this process; between two of them they are queues.

    Args:
        ties: of the network; there are no links without any.
        stages: of this process.
        receive: make the end at which messages of another process's stage arrive, from its index
            and that of the stage here.
        send: make the end for messages from a stage here to another process's.
        gradients: whether gradients come back.
    """
    queues: defaultdict[tuple[int, int], Queue] = defaultdict(Queue)

    def of_stage(k: int) -> TieLinks:
        def from_(other: int) -> Receiver:
            if other in stages:
                return queues[other, k]
            assert receive is not None
            return receive(other, k)

        def to(other: int) -> Sender:
            if other in stages:
                return queues[k, other]
            assert send is not None
            return send(k, other)

        return TieLinks(ties, k, receive=from_, send=to, gradients=gradients)

    return {k: of_stage(k) for k in stages} if ties else {}
