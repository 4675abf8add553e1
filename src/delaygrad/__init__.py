"""Train one network as K stages at once; no stage waits for the backward pass of those above it.

Example:
    >>> import torch, delaygrad as dg
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> len(dg.split(model, num_stages=2, sample_inputs=torch.randn(5, 4)))
    2
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from delaygrad.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DelaygradError,
    DelaygradWarning,
    NonFiniteLossError,
    PartitionError,
    ScheduleError,
    StageError,
    StashError,
    TransportError,
    WorkerError,
)
from delaygrad.methods import BP, DDG, DNI, FDG, FR, Auto, Lookahead, Method
from delaygrad.monitor import Monitor
from delaygrad.partition import check, merge, split
from delaygrad.planning import plan
from delaygrad.runtime import DistributedPipeline, LocalPipeline, gather, saved_cuts
from delaygrad.stage import add_loss

if TYPE_CHECKING:
    from delaygrad.runtime.torch_schedule import ScheduleDDG

__version__ = version("delaygrad")

__all__ = [
    "BP",
    "DDG",
    "DNI",
    "FDG",
    "FR",
    "Auto",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DelaygradError",
    "DelaygradWarning",
    "DistributedPipeline",
    "LocalPipeline",
    "Lookahead",
    "Method",
    "Monitor",
    "NonFiniteLossError",
    "PartitionError",
    "ScheduleDDG",
    "ScheduleError",
    "StageError",
    "StashError",
    "TransportError",
    "WorkerError",
    "add_loss",
    "check",
    "gather",
    "merge",
    "plan",
    "saved_cuts",
    "split",
]


def __getattr__(name: str) -> Any:
    """Import torch's pipelining, which takes a second, only where it is used."""
    if name == "ScheduleDDG":
        from delaygrad.runtime.torch_schedule import ScheduleDDG

        return ScheduleDDG
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
