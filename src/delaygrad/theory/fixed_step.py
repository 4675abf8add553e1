"""Which fixed step to take for a number of iterations, and what is promised for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delaygrad.theory.assumptions import Assumptions, check_positive
from delaygrad.theory.bounds import fixed_step_bound
from delaygrad.theory.constants import Proof, effective_moment, staleness_moment


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
