"""What the theory assumes of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Numbers that must hold of a loss f(w) = E f_i(w), over random batches i, for a bound to hold.

    They are upper bounds: larger values are still true and give weaker bounds. For most networks
    they are unknown.

    Args:
        smoothness: L, positive; |grad f(v) - grad f(w)| <= L |v - w| for all v, w.
        second_moment: M, positive; E |grad f_i(w)|**2 <= M for all w (the paper: for every i).
        gap: f(w@0) - inf f, positive; where only a lower bound of f is known, the gap to that.
        stage_moments: M_k of each stage, if known: the same for block k of grad f_i. They sharpen
            what staleness costs: an early stage matters with its own share only.

    Raises:
        ValueError: a number is not finite or out of range.

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, assumptions 1 and 2 (numbered as recalled).
    """

    smoothness: float
    second_moment: float
    gap: float
    stage_moments: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("smoothness", "second_moment", "gap"):
            check_positive(name, getattr(self, name))
        for moment in self.stage_moments or ():
            if not 0 <= moment < math.inf:
                raise ValueError(
                    f"stage moments must be finite, not negative (stage_moments: "
                    f"{self.stage_moments})"
                )


def check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite ({name}: {value})")


def check_delay(delay: int) -> None:
    if delay < 0 or delay != int(delay):
        raise ValueError(f"a delay is a whole number of updates, at least 0 (delay: {delay})")


def check_delays(delays: Sequence[int]) -> None:
    if not delays:
        raise ValueError("delays must hold one number per stage; there is none")
    for delay in delays:
        check_delay(delay)
