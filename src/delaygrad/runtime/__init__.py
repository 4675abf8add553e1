"""The two runtimes: all stages in one process, or one rank per stage."""

from delaygrad.runtime.distributed import DistributedPipeline
from delaygrad.runtime.local import LocalPipeline
from delaygrad.runtime.pipeline import Pipeline
from delaygrad.runtime.saving import gather, saved_cuts

__all__ = ["DistributedPipeline", "LocalPipeline", "Pipeline", "gather", "saved_cuts"]
