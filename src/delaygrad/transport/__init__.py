"""How boundary tensors move between neighbouring stages: within a process, or over a network."""

from delaygrad.transport.message import Message, Receiver, Sender
from delaygrad.transport.queue import Queue

__all__ = ["Message", "Queue", "Receiver", "Sender"]
