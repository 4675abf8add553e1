"""Statistics of a contest: medians with spread, and ratios of throughput round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from delaygrad.records.spread import quartiles

BASELINE = "bp"


def throughput_ratios(baseline_s: Sequence[float], own_s: Sequence[float]) -> dict[str, Any]:
    """Compare iterations per second with a baseline's, each round with the same round.

    Example:
        >>> throughput_ratios([2.0, 2.0, 4.0], [1.0, 1.0, 1.0])["median"]
        2.0
    """
    return quartiles([one / two for one, two in zip(baseline_s, own_s, strict=True)], digits=3)


def evaluate(contestants: list[dict[str, Any]]) -> dict[str, Any]:
    """Add to each contestant's record its statistics and its ratios.

    Args:
        contestants: records with ``name``, ``family`` and ``iteration_s`` (seconds per iteration,
            by round); a contestant that does not run has ``does_not_run`` instead of the last.

    Returns:
        The names of those compared with: ``BASELINE``, the fastest synchronous schedule
        (``best_pipeline``), data parallelism as it is (``ddp``) and the fastest, perhaps with
        compressed gradients (``best_ddp``); None if none runs.
    """
    times = {c["name"]: c["iteration_s"] for c in contestants if "iteration_s" in c}
    against = {
        "baseline": BASELINE if BASELINE in times else None,
        "best_pipeline": _fastest(contestants, times, "pipeline"),
        "ddp": "ddp" if "ddp" in times else None,
        "best_ddp": _fastest(contestants, times, "ddp"),
    }
    for contestant in contestants:
        if (own := times.get(contestant["name"])) is None:
            continue
        contestant["iteration"] = quartiles(own, digits=6)
        contestant["throughput_against"] = {
            role: throughput_ratios(times[name], own)
            for role, name in against.items()
            if name is not None
        }
    return against


def _fastest(
    contestants: list[dict[str, Any]], times: dict[str, list[float]], family: str
) -> str | None:
    names = [c["name"] for c in contestants if c["family"] == family and c["name"] in times]
    return min(names, key=lambda name: float(np.median(times[name])), default=None)
