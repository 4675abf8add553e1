"""Bounds that need no bound on the gradients, only on their noise.

Gradients of most losses are not bounded, not even those of a quadratic. If the noise of the batches
is bounded, E |grad f_i(w) - grad f(w)|^2 <= variance, the argument over virtual iterates works for
steps below ``certified_step``. Without noise (full batches) the average falls as 1 / T.
"""

from __future__ import annotations

import math

from delaygrad.theory.constants import check_delay, check_positive


def certified_step(smoothness: float, delay: int) -> float:
    """Return 2 / (L (2 D + 1)): below it, full-batch delayed descent cannot diverge.

    On every smooth loss the gradients then vanish, the average of their squares as 1 / T. Without
    delay this is 2 / L, the limit of gradient descent. No larger function of L and D can be far
    from it: ``largest_stable_step``, where a quadratic begins to diverge, is less than pi / 2
    times as large.

    Example:
        >>> [certified_step(1.0, delay) for delay in (0, 2, 7)]
        [2.0, 0.4, 0.13333333333333333]
    """
    check_positive("smoothness", smoothness)
    check_delay(delay)
    return 2 / (smoothness * (2 * delay + 1))


def variance_bound(
    *,
    smoothness: float,
    gap: float,
    delay: int,
    step: float,
    iterations: int,
    variance: float = 0.0,
) -> float:
    """Return the bound of the average of E |grad f(w@t)|^2 over T iterations of a fixed step.

        ((s + sqrt(s^2 + 4 c A)) / (2 c))^2,    A = F / (step T) + step L variance / 2,
        s = step L sqrt(D variance),            c = 1 - step L (D + 1/2)

    With full batches that is F / (step T c).

    Args:
        delay: D, the largest of the stages', in updates.
        step: below ``certified_step(smoothness, delay)``.
        variance: of the batches' gradients, at most; 0 for full batches.

    Raises:
        ValueError: a number is out of range, or the step is not below the certified one.

    Example:
        >>> variance_bound(smoothness=1.0, gap=1.0, delay=7, step=1 / 15, iterations=300)
        0.1
    """
    limit = certified_step(smoothness, delay)
    for name, value in (("gap", gap), ("step", step), ("iterations", iterations)):
        check_positive(name, value)
    if not 0 <= variance < math.inf:
        raise ValueError(f"variance must be finite, not negative (variance: {variance})")
    if step >= limit:
        raise ValueError(
            f"the step must be below 2 / (smoothness (2 delay + 1)) (step: {step}, limit: "
            f"{limit:g}); lower it"
        )
    left = 1 - step * smoothness * (delay + 0.5)
    start = gap / (step * iterations) + step * smoothness * variance / 2
    slope = step * smoothness * math.sqrt(delay * variance)
    return ((slope + math.sqrt(slope**2 + 4 * left * start)) / (2 * left)) ** 2
