"""Accumulated decoupled learning (ADL).

Zhuang, Lin, Toh, "Accumulated Decoupled Learning: Mitigating Gradient Staleness in Inter-Layer
Model Parallelization", ICML 2021, arXiv:2012.03747.

    paper    here
    M        micro_batches: gradients accumulated before a module steps

In this runtime it is `PipeDream` with the same number of micro-batches: the schedule of FDG, no
shrinking, and one update for M gradients. Deviation: none known.
"""

from __future__ import annotations

from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("accumulated decoupled learning")
def ADL(micro_batches: int = 4) -> Method:
    """Unlock forward and backward, and accumulate, so that staleness falls to 1/M.

    Args:
        micro_batches: M, parts that a batch is split into, at least 1.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
    """
    return Method(name="adl", schedule=unlocked(micro_batches))
