"""What waits between the forward and the backward of a batch: its graph and its parameters."""

from delaygrad.stash.batches import Pending, Stash
from delaygrad.stash.parameters import (
    ParameterSlot,
    ParameterStash,
    ParameterVersion,
)
from delaygrad.stash.replay import as_it_was, autocast_dtype, noting_changes
from delaygrad.stash.rounding import saving_rounded

__all__ = [
    "ParameterSlot",
    "ParameterStash",
    "ParameterVersion",
    "Pending",
    "Stash",
    "as_it_was",
    "autocast_dtype",
    "noting_changes",
    "saving_rounded",
]
