"""Fully decoupled learning with delayed gradients, and gradient shrinking (FDG).

Zhuang, Wang, Liu, Lin, "Fully Decoupled Neural Network Learning Using Delayed Gradients", IEEE
TNNLS 2021, arXiv:1906.09108.

    paper             here
    module k = 1..K   stage k = 0..K-1
    beta              beta, the shrinking factor of each boundary

    iteration t, stage k:
      forward   batch t - k: a batch climbs one stage per iteration
      backward  batch t - k - 2(K-1-k), with the error gradient that stage k+1 made one iteration
                before; what is sent down is beta times the error gradient
      update    w[k] = optimizer(w[k], that gradient), 2(K-1-k) updates late

An iteration takes as long as one stage's forward and backward. No stage waits for the forward of
another stage. The price is twice the delay of `DDG`.
Deviation: by default a backward meets the parameters of its forward. ``weights="live"`` is what the
authors' code computes. ``micro_batches`` is the accumulation of ADL (Zhuang et al., ICML 2021).
"""

from __future__ import annotations

from delaygrad.methods.axes import Graph, Shrunk
from delaygrad.methods.axes.linearise import Weights
from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("fully decoupled learning with delayed, shrunk gradients")
def FDG(beta: float = 0.5, micro_batches: int = 1, weights: Weights = "stash") -> Method:
    """Unlock the forward too, and shrink the error gradients that are sent down.

    Args:
        beta: above 0, at most 1; 1 shrinks nothing.
        micro_batches: parts that a batch is split into, at least 1.
        weights: what a backward meets: "stash", the parameters of its forward, or "live".

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
        ValueError: ``beta`` or ``weights`` is out of range.

    References:
        Zhuang et al., arXiv:1906.09108.
        Differs: see ``delaygrad.methods.fdg``.
    """
    return Method(
        name="fdg",
        schedule=unlocked(micro_batches),
        linearise=Graph(weights),
        error_gradient=Shrunk(beta),
    )
