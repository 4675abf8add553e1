"""What the theory assumes of the loss, and the constants in which the bounds differ.

The constants say how old gradients are, and what that costs:

proof        its step                                           what it needs
published    Huo et al.: K M + sigma K^4 M                      delays of DDG; step L <= 1
blockwise    the same argument with the sum of squared delays   step L <= 1
virtual      the iterates that batches have written in full     nothing more
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


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


Proof = Literal["published", "blockwise", "virtual"]
"""Whose constants: the paper's, those of its argument done block by block, or those of the argument
over virtual iterates, which are the smallest."""


def sigma(step_sizes: Sequence[float], delay: int) -> float:
    """Return by how much step sizes fall within a delay: max over t of step[t - delay] / step[t].

    It is 1 for a constant step. What is before iteration 0 counts as iteration 0.

    Example:
        >>> sigma([1.0, 1.0, 0.5, 0.25], delay=1)
        2.0
    """
    check_delay(delay)
    for step in step_sizes:
        check_positive("step", step)
    return max(step_sizes[max(0, t - delay)] / step_sizes[t] for t in range(len(step_sizes)))


def staleness_moment(assumptions: Assumptions, delays: Sequence[int]) -> float:
    """Return V: the mean squared length of what is still to be written, in units of the step.

    Batch s is forwarded at w@s while stage k still owes delay(k) older batches their update. What
    all owe is at most as long as D gradients, D the largest delay; where the stages' own moments
    are known, stage k's part is at most delay(k) of its own blocks:

        V = min(D^2 M, sum over k of delay(k)^2 M_k)

    Raises:
        ValueError: there are stage moments, but not one for each stage.
    """
    check_delays(delays)
    moment = float(max(delays) ** 2 * assumptions.second_moment)
    if assumptions.stage_moments is None:
        return moment
    if len(assumptions.stage_moments) != len(delays):
        raise ValueError(
            f"stage_moments must hold one number per stage (stage_moments: "
            f"{len(assumptions.stage_moments)}, delays: {len(delays)})"
        )
    weighted = np.dot(np.square(delays), assumptions.stage_moments)
    return min(moment, float(weighted))


def effective_moment(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    sigma: float = 1.0,
    proof: Proof = "virtual",
) -> float:
    """Return M_K: what takes the place of M once gradients are delayed.

    With it every proof has the same form, if step L <= 1:

        E f(w@(t+1)) - E f(w@t) <= -(step / 2) E |grad f(w@t)|^2 + step^2 L M_K

    (for ``"virtual"``, f at the virtual iterates). With S the sum of the squared delays and V =
    ``staleness_moment``:

        published   K M + sigma K^4 M
        blockwise   K M (1 + sigma (S + 2 sqrt S)) / 2
        virtual     (M + sigma V) / 2

    Raises:
        ValueError: ``sigma`` is below 1, or the delays exceed those that ``"published"`` is for.

    Example:
        >>> plain = Assumptions(smoothness=1.0, second_moment=1.0, gap=1.0)
        >>> [effective_moment(plain, [3, 2, 1, 0], proof=p) for p in ("published", "virtual")]
        [260.0, 5.0]
    """
    check_delays(delays)
    if not 1 <= sigma < math.inf:
        raise ValueError(f"sigma must be at least 1 and finite (sigma: {sigma})")
    moment, num_stages = assumptions.second_moment, len(delays)
    if proof == "published":
        allowed = [num_stages - 1 - k for k in range(num_stages)]
        if any(delay > most for delay, most in zip(delays, allowed, strict=True)):
            raise ValueError(
                f"the published constants are for delays of at most K-1-k (delays: {list(delays)}, "
                f"at most: {allowed}); use proof 'virtual'"
            )
        return num_stages * moment + sigma * num_stages**4 * moment
    if proof == "blockwise":
        squares = sum(delay**2 for delay in delays)
        return num_stages * moment * (1 + sigma * (squares + 2 * math.sqrt(squares))) / 2
    if proof == "virtual":
        return (moment + sigma * staleness_moment(assumptions, delays)) / 2
    raise ValueError(f"unknown proof ({proof!r}); known: published, blockwise, virtual")
