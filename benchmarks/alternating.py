"""Two ways to do the same work, in turn, in one process: medians, and their ratio by round."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from delaygrad.records.spread import quartiles
from delaygrad.training.run_folder import environment

Work = Callable[[int], object]
"""Does a number of iterations."""


def seconds(work: Work, iterations: int, now: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one iteration."""
    start = now()
    work(iterations)
    return (now() - start) / iterations


def alternate(
    ways: dict[str, Work],
    *,
    rounds: int,
    iterations: int,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Let two ways take turns; the order changes from round to round.

    Args:
        ways: the first is what the second is compared with.
        rounds: turns of each.
        iterations: of a turn.
        now: a clock; ``time.process_time`` where other processes use the machine too.

    Returns:
        Milliseconds of each way, medians; and seconds of the second over those of the first.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            times[name].append(seconds(ways[name], iterations, now))
    ratio = quartiles([late / early for early, late in zip(*times.values(), strict=True)], 4)
    return {
        **{f"{name}_ms": round(1e3 * statistics.median(own), 4) for name, own in times.items()},
        "ratio": ratio["median"],
        "ratio_quartiles": ratio["quartiles"],
        "rounds": rounds,
        "iterations_per_round": iterations,
    }


def write(output: Path, **report: Any) -> None:
    """Print a report and write it down, with the environment."""
    text = json.dumps({"environment": environment(), **report}, indent=2)
    print(text)
    output.write_text(text + "\n", encoding="utf-8")
