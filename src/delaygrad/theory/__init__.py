"""What the convergence theory of delayed gradients allows and promises, as functions.

    constants    what must hold of the loss: L, M and the gap f(w@0) - f*; sigma, M_K, and how much
                 of the gradient is stale
    bounds       what fixed and changing steps promise, by each of three proofs; the best step for a
                 number of iterations
    variance     the same without a bound on the gradients; the step that is safe for a delay
    stability    the largest stable step for a delay on a quadratic, with and without momentum
    schedules    step sizes that fall as the theorem asks

``docs/theory.md`` derives all of it. None of it covers momentum, weight decay, BatchNorm or Adam.

Example:
    What step may K = 8 stages take for 100000 updates, and what is promised then?

    >>> from delaygrad import theory
    >>> assumptions = theory.Assumptions(smoothness=2.5, second_moment=1.0, gap=0.7)
    >>> delays = [7, 6, 5, 4, 3, 2, 1, 0]  # or [dg.DDG().schedule.delay(k, 8) for k in range(8)]
    >>> theory.promise(assumptions, delays, iterations=100_000)  # doctest: +ELLIPSIS
    Promise(proof='virtual', step=0.001947..., bound=0.0093..., is_vacuous=False)

References:
    Huo et al., ICML 2018, arXiv:1804.10574, the convergence
    analysis, and what docs/theory.md makes of it.
"""

from delaygrad.theory.bounds import (
    Promise,
    best_fixed_step,
    diminishing_step_bound,
    fixed_step_bound,
    promise,
)
from delaygrad.theory.constants import (
    Assumptions,
    Proof,
    effective_moment,
    sigma,
    staleness_moment,
)
from delaygrad.theory.schedules import PolynomialDecay, check_step_sizes
from delaygrad.theory.stability import (
    characteristic_polynomial,
    largest_stable_step,
    spectral_radius,
)
from delaygrad.theory.variance import certified_step, variance_bound

__all__ = [
    "Assumptions",
    "PolynomialDecay",
    "Promise",
    "Proof",
    "best_fixed_step",
    "certified_step",
    "characteristic_polynomial",
    "check_step_sizes",
    "diminishing_step_bound",
    "effective_moment",
    "fixed_step_bound",
    "largest_stable_step",
    "promise",
    "sigma",
    "spectral_radius",
    "staleness_moment",
    "variance_bound",
]
