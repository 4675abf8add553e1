"""A link within one process."""

from __future__ import annotations

from collections import deque

from delaygrad.errors import TransportError
from delaygrad.transport.message import Message


class Queue:
    """Both ends of a link between two stages of one process.

    Example:
        >>> queue = Queue()
        >>> queue.send(Message(0, ()))
        >>> queue.receive().batch_index
        0
    """

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()

    def send(self, message: Message) -> None:
        """Append a message."""
        self._messages.append(message)

    def finish(self) -> None:
        """Return at once: what was sent is there."""

    def receive(self) -> Message:
        """Pop the oldest message.

        Raises:
            TransportError: the queue is empty; the schedule reads a message that was not sent.
        """
        if not self._messages:
            raise TransportError("no message is in the queue; the schedule is out of order")
        return self._messages.popleft()
