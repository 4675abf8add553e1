"""Step sizes that the theorem on diminishing steps allows.

It asks three things of step sizes g[0], g[1], ...:

    g[t] L <= 1 for all t,    sum of g[t] = infinity,    sum of g[t]^2 < infinity

The first sum lets the parameters travel as far as they must, the second lets noise and staleness
fade. Among powers of t exactly those with 1/2 < power <= 1 do both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from delaygrad.theory.constants import check_positive


@dataclass(frozen=True, kw_only=True)
class PolynomialDecay:
    """Step sizes lr (1 + t / time_scale)^(-power): they fall slowly enough, and fast enough.

    For the first ``time_scale`` iterations the step hardly falls. A power near 1/2 makes the bound
    fall fastest in the long run.

    Args:
        lr: the step at iteration 0, positive; the theorem asks lr L <= 1.
        time_scale: t0 in iterations, positive: after it the step has fallen to 2^-power of lr.
        power: p, with 1/2 < p <= 1.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> step = PolynomialDecay(lr=0.8, time_scale=100, power=1.0)
        >>> step(0), step(100), step(300)
        (0.8, 0.4, 0.2)

    References:
        Robbins and Monro, Ann. Math. Statist. 22 (1951), for the two sums.
        Huo et al., ICML 2018, arXiv:1804.10574, the theorem on diminishing learning rates.
    """

    lr: float
    time_scale: float = 1000
    power: float = 0.6

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("time_scale", self.time_scale)
        if not 0.5 < self.power <= 1:
            raise ValueError(
                f"power must be above 1/2, or the squared steps have no finite sum, and at most 1, "
                f"or the steps have one (power: {self.power})"
            )

    def __call__(self, iteration: int) -> float:
        """Return the step size of an iteration, counted from 0."""
        return float(self.lr * (1 + iteration / self.time_scale) ** -self.power)

    def steps(self, iterations: int) -> list[float]:
        """Return the step sizes of the iterations 0..iterations-1."""
        return [self(t) for t in range(iterations)]


def check_step_sizes(step_sizes: Sequence[float], smoothness: float) -> None:
    """Raise unless the steps are what the published theorems ask: positive, at most 1/L, no rise.

    What a finite list cannot show are the two sums; ``PolynomialDecay`` has them by construction.
    """
    if not step_sizes:
        raise ValueError("there must be at least one step size")
    for t, step in enumerate(step_sizes):
        check_positive("step", step)
        if step * smoothness > 1 + 1e-12:  # 1/L itself, whatever way it was rounded
            raise ValueError(
                f"step times smoothness must not exceed 1 (iteration: {t}, step: {step}, "
                f"smoothness: {smoothness}); lower the step to {1 / smoothness:g}"
            )
        if t and step > step_sizes[t - 1]:
            raise ValueError(
                f"step sizes must not rise (iteration: {t}, step: {step}, before: "
                f"{step_sizes[t - 1]}); use proof 'virtual', which allows it"
            )
