"""PipeDream, with weight stashing; with micro-batches PipeDream-2BW.

Narayanan et al., "PipeDream", SOSP 2019, arXiv:1806.03377; "Memory-Efficient Pipeline-Parallel DNN
Training" (2BW), ICML 2021, arXiv:2006.09503.

    paper              here
    stage 1..n         stage k = 0..K-1
    weight stashing    forward and backward of a mini-batch at one stage meet the same parameters
    2BW, m             M micro-batches per update; M >= 2 (K-1) keeps two versions of them

    tick t, stage k:
      forward   micro-batch t - k
      backward  micro-batch t - 2(K-1) + k
      update    after every M-th backward

Deviations: the papers' 1F1B order differs from this one in the fill only. 2BW applies every
gradient one update late; here it is at most one. There is no vertical sync.
"""

from __future__ import annotations

from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("PipeDream with weight stashing")
def PipeDream(micro_batches: int = 1) -> Method:
    """Unlock forward and backward; every gradient is exact for the parameters of its forward.

    Args:
        micro_batches: M, parts that a batch is split into; 2 (K-1) or more is PipeDream-2BW.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
    """
    return Method(name="pipedream", schedule=unlocked(micro_batches))
