"""The two runtimes: all stages in one process, or one rank per stage."""

from delaygrad.runtime.allocator import keep_freed_memory
from delaygrad.runtime.distributed import DistributedPipeline
from delaygrad.runtime.launch import Launch, launched_by_torchrun, run_workers
from delaygrad.runtime.local import LocalPipeline
from delaygrad.runtime.pipeline import Pipeline

__all__ = [
    "DistributedPipeline",
    "Launch",
    "LocalPipeline",
    "Pipeline",
    "keep_freed_memory",
    "launched_by_torchrun",
    "run_workers",
]
