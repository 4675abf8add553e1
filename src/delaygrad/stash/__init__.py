"""What waits between the forward and the backward of a batch: its graph and its parameters."""

from delaygrad.stash.batches import Pending, Stash
from delaygrad.stash.parameters import (
    ParameterSlot,
    ParameterStash,
    ParameterVersion,
    copied_buffers,
)
from delaygrad.stash.rounding import saving_rounded

__all__ = [
    "ParameterSlot",
    "ParameterStash",
    "ParameterVersion",
    "Pending",
    "Stash",
    "copied_buffers",
    "saving_rounded",
]
