"""What delayed gradient descent promises: bounds on the average squared gradient norm.

    w@t        the parameters that batch t is forwarded at, all stages
    average    1/T times the sum over t < T of E |grad f(w@t)|^2; with changing steps, weighted
               with step[t] / (sum of the steps)

They hold for plain SGD (no momentum, no weight decay) on batches drawn independently, or on full
batches, with the exact gradients of ``DDG()``; ``slack``, ``micro_batches`` and ``recompute``
included, since only the delays enter. A bound of M or more says nothing that M does not. The best
fixed step for a number of iterations is here too, and what is promised for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from delaygrad.theory.constants import (
    Assumptions,
    Proof,
    check_delays,
    check_positive,
    effective_moment,
    sigma,
    staleness_moment,
)
from delaygrad.theory.schedules import check_step_sizes


def fixed_step_bound(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    step: float,
    iterations: int,
    proof: Proof = "virtual",
) -> float:
    """Return the bound of the average squared gradient norm over T iterations of one fixed step.

    With D the largest delay and the gap F = f(w@0) - f*:

        published   2 F / (step T) + 2 step L M_K
        blockwise   2 F / (step T) + 2 step L M_K + min(D, T) M / T       (the last: the fill)
        virtual     ((s + sqrt(s^2 + 4 A)) / 2)^2,    A = F / (step T) + step L M / 2,
                                                      s = step L sqrt(V)

    The last is at most 2 A + s^2, and A itself, the textbook bound of SGD, without delay.

    Args:
        assumptions: of the loss.
        delays: of each stage, in updates: ``method.schedule.delay(k, num_stages)``.
        step: at most 1/L, except for ``"virtual"``.
        iterations: T, at least 1.

    Raises:
        ValueError: a number is out of the proof's range.

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> run = {"step": 0.01, "iterations": 10_000}
        >>> round(fixed_step_bound(plain, [1, 0], **run), 6)
        0.023035

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, the theorem on a fixed learning rate (as recalled).
    """
    _check_iterations(iterations)
    check_positive("step", step)
    length, smoothness = step * iterations, assumptions.smoothness
    if proof == "virtual":
        start = assumptions.gap / length + step * smoothness * assumptions.second_moment / 2
        stale = staleness_moment(assumptions, delays)
        return _solve(start, step * smoothness * math.sqrt(stale))
    check_step_sizes([step], smoothness)
    moment = effective_moment(assumptions, delays, proof=proof)
    bound = 2 * assumptions.gap / length + 2 * step * smoothness * moment
    if proof == "blockwise":
        bound += min(max(delays), iterations) * assumptions.second_moment / iterations
    return bound


def diminishing_step_bound(
    assumptions: Assumptions,
    delays: Sequence[int],
    step_sizes: Sequence[float],
    *,
    proof: Proof = "virtual",
) -> float:
    """Return the bound of the average weighted with the steps, for steps that change.

    With the sums over t < T:

        published   (2 F + 2 L M_K sum step^2) / sum step
        blockwise   the same with its M_K, and M (sum of the first D steps) / sum step
        virtual     (R + M sum(step - low)) / sum step,    R = ((s + sqrt(s^2 + 4 A)) / 2)^2,
                    A = F + L M / 2 sum high^2,    s = L sqrt(V sum high^3)

    where low and high are the smallest and the largest step from t to t + D: the steps with which
    the blocks of batch t are applied. If the sum of the steps is infinite and that of their squares
    is finite, each goes to zero with T.

    Args:
        step_sizes: of the iterations 0..T-1. ``"virtual"`` takes any positive steps, a warm-up or a
            cosine too; the others take steps that do not rise and are at most 1/L.

    Raises:
        ValueError: a number is out of the proof's range.

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, the theorem on diminishing learning rates (as
        recalled).
    """
    check_delays(delays)
    _check_iterations(len(step_sizes))
    largest = max(delays)
    steps = np.asarray(step_sizes, dtype=np.float64)
    if proof == "virtual":
        for step in step_sizes:
            check_positive("step", step)
        return _virtual_bound(assumptions, staleness_moment(assumptions, delays), largest, steps)
    check_step_sizes(step_sizes, assumptions.smoothness)
    falls_by = sigma(step_sizes, largest)
    moment = effective_moment(assumptions, delays, sigma=falls_by, proof=proof)
    total = 2 * assumptions.gap + 2 * assumptions.smoothness * moment * float((steps**2).sum())
    if proof == "blockwise":
        total += assumptions.second_moment * float(steps[:largest].sum())
    return total / float(steps.sum())


def _virtual_bound(
    assumptions: Assumptions, stale: float, largest: int, steps: npt.NDArray[np.float64]
) -> float:
    """After the last iteration the steps are those of a flush: the last step again."""
    lasting = np.concatenate([steps, np.full(largest, steps[-1])])
    windows = np.lib.stride_tricks.sliding_window_view(lasting, largest + 1)
    low, high = windows.min(axis=1), windows.max(axis=1)
    smoothness, moment = assumptions.smoothness, assumptions.second_moment
    start = assumptions.gap + smoothness * moment * float((high**2).sum()) / 2
    applied = _solve(start, smoothness * math.sqrt(stale * float((high**3).sum())))
    return (applied + moment * float((steps - low).sum())) / float(steps.sum())


def _solve(start: float, slope: float) -> float:
    """Return the largest x with x - slope sqrt(x) <= start."""
    return ((slope + math.sqrt(slope**2 + 4 * start)) / 2) ** 2


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"there must be at least one iteration (iterations: {iterations})")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a proof promises for its best step.

    Attributes:
        bound: of the average of E |grad f(w@t)|^2 over the iterations.
        is_vacuous: the bound is not below the second moment M, so it says nothing.
    """

    proof: Proof
    step: float
    bound: float
    is_vacuous: bool


def promise(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    iterations: int,
    proof: Proof = "virtual",
) -> Promise:
    """Answer the user's question: how large a step, and what will it give?

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> promise(plain, [3, 2, 1, 0], iterations=100, proof="published").is_vacuous
        True
    """
    step = best_fixed_step(assumptions, delays, iterations=iterations, proof=proof)
    bound = fixed_step_bound(assumptions, delays, step=step, iterations=iterations, proof=proof)
    vacuous = bound >= assumptions.second_moment
    return Promise(proof=proof, step=step, bound=bound, is_vacuous=vacuous)


def best_fixed_step(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    iterations: int,
    proof: Proof = "virtual",
) -> float:
    """Return the step for which a proof promises most over T iterations.

        published, blockwise    sqrt(F / (T L M_K)), at most 1/L
        virtual                 the root of 2 L^2 V step^3 + L M step^2 = 2 F / T, which minimises
                                the simple form 2 A + s^2 of its bound

    Without delay the last is sqrt(2 F / (T L M)), the textbook step of SGD; with delay and T large
    it hardly differs from it.

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> round(best_fixed_step(plain, [3, 2, 1, 0], iterations=10_000), 6)
        0.008724
    """
    check_positive("iterations", iterations)
    smoothness = assumptions.smoothness
    if proof != "virtual":
        moment = effective_moment(assumptions, delays, proof=proof)
        return min(math.sqrt(assumptions.gap / (iterations * smoothness * moment)), 1 / smoothness)
    stale, moment = staleness_moment(assumptions, delays), assumptions.second_moment
    target = 2 * assumptions.gap / iterations
    if stale == 0:
        return math.sqrt(target / (smoothness * moment))
    roots = np.roots([2 * smoothness**2 * stale, smoothness * moment, 0.0, -target])
    return float(max(root.real for root in roots))  # one change of sign: one positive root
