"""The receiving end of a link, with what is in flight on it."""

from __future__ import annotations

from collections import deque

from delaygrad.errors import TransportError
from delaygrad.transport import Message, Receiver


class Inbox:
    """The receiving end of a link, which knows how many messages are in flight.

    The schedule says what the neighbour has sent. So all messages in flight can be collected at any
    time, for a checkpoint.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._early: deque[Message] = deque()
        self._under_way = 0
        self._neighbours_phase = 0
        self.loads = 0
        """How many times a state was loaded."""

    def announce(self, messages: int = 1) -> None:
        """Note that, by the schedule, the neighbour sends so many more messages."""
        self._under_way += messages

    def take(self, batch_index: int, phase: int) -> Message:
        """Return the next message, which must be of this batch, sent in this phase.

        Raises:
            TransportError: no message came, or it is of another batch or phase.
        """
        message = self._early.popleft() if self._early else self._receive(batch_index, phase)
        if message.batch_index != batch_index:
            raise TransportError(
                f"the neighbour is out of step (expected batch: {batch_index}, "
                f"received: {message.batch_index}); all ranks must take the same steps"
            )
        if message.phase != phase:
            raise TransportError(
                f"the neighbour has not called flush at the same step (batch: {batch_index}, last "
                f"flush here: before batch {phase}, there: before batch {message.phase}); all "
                "ranks must take the same steps"
            )
        return message

    def take_aside(self) -> Message:
        """Receive a message that the schedule does not know; keep those in flight for later."""
        self.collect()
        self.announce()
        return self._receive()

    def collect(self) -> list[Message]:
        """Receive all messages in flight, keep them for later, and return them."""
        while self._under_way:
            self._early.append(self._receive())
        return list(self._early)

    def last_word(self, unsent: Message, error: TransportError) -> TransportError | None:
        """Return why an unreachable neighbour has left, if it has announced a flush before."""
        try:
            while "it is gone" in str(error):
                self._receive(unsent.batch_index, unsent.phase)
        except TransportError as told:
            return told if self._has_ended(unsent.batch_index, unsent.phase) else None
        return None

    def refill(self, messages: list[Message]) -> None:
        """Hold only these messages; messages in flight are received and dropped."""
        self.collect()
        self._early = deque(messages)
        self._neighbours_phase = 0
        self.loads += 1

    def _receive(self, wanted: int = 0, phase: int = 0) -> Message:
        """Return the next message that does not announce a flush.

        Raises:
            TransportError: the neighbour will send no message of the expected batch.
        """
        while True:
            if self._has_ended(wanted, phase):
                raise TransportError(
                    "the neighbour has taken fewer steps (it called flush before batch "
                    f"{self._neighbours_phase}, this rank went on); all ranks must take the same "
                    "steps"
                )
            message = self._receiver.receive()
            if not message.is_flush:
                self._under_way -= 1
                return message
            if message.phase == self.loads:
                self._neighbours_phase = message.batch_index

    def _has_ended(self, batch_index: int, phase: int) -> bool:
        return phase < self._neighbours_phase <= batch_index
