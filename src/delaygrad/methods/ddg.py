"""Decoupled parallel backpropagation with delayed gradients (DDG).

Huo, Gu, Yang, Huang, "Decoupled Parallel Backpropagation with Convergence Guarantee", ICML 2018,
arXiv:1804.10574.

    paper                  here
    module k = 1..K        stage k = 0..K-1, from the input
    t-K+k                  s = t - delay(k), delay(k) = K-1-k
    w^t_G(k)               w[k]@t
    gamma_t                lr

    iteration t, every stage k:
      forward   batch t with w[k]@t
      backward  batch s, linearised at w[k]@s, with the error gradient that stage k+1 made for the
                same batch at iteration t-1
      update    w[k]@(t+1) = optimizer(w[k]@t, that gradient)
      while s < 0: no backward, no update; gradients are None

Because all stages take batch s forward at the one iterate w@s, the gradient that stage k applies at
iteration s + delay(k) is exactly block k of the ordinary gradient of batch s at w@s.

With ``torch.optim.SGD`` this is the paper's Algorithm 1 (SGD-DDG), with ``torch.optim.Adam`` its
Algorithm 2 (Adam-DDG). Deviation: Adam's step count begins at a stage's first gradient, where the
paper counts the iterations of the fill as well, which would make its bias correction wrong there.
"""

from __future__ import annotations

from dataclasses import dataclass

from delaygrad.methods.method import Method
from delaygrad.schedule import LOCKED, Schedule


@dataclass(frozen=True)
class DDG(Method):
    """Decoupled delayed gradients, exactly as published.

    Example:
        >>> [DDG().schedule.delay(k, 4) for k in range(4)]
        [3, 2, 1, 0]

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, Algorithms 1 and 2.
    """

    @property
    def name(self) -> str:
        return "ddg"

    @property
    def schedule(self) -> Schedule:
        return LOCKED
