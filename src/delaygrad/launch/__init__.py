"""Start the processes of a run on this machine, or join those that torchrun has started."""

from delaygrad.launch.joining import (
    Launch,
    joined,
    launched_by_torchrun,
    require_gpus,
    require_single_process,
)
from delaygrad.launch.process import (
    end_at_interrupt,
    end_with_parent,
    keep_freed_memory,
    torch_threads,
    usable_cores,
)
from delaygrad.launch.workers import fork_server, run_workers

__all__ = [
    "Launch",
    "end_at_interrupt",
    "end_with_parent",
    "fork_server",
    "joined",
    "keep_freed_memory",
    "launched_by_torchrun",
    "require_gpus",
    "require_single_process",
    "run_workers",
    "torch_threads",
    "usable_cores",
]
