"""Damage run folders in many ways, and count what resume and report make of them.

The ways and the outcomes are those of tests/mutations.py.

Run: python -m benchmarks.faults.mutations --output benchmarks/faults/mutations.json
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tyro

from benchmarks.alternating import write
from tests.mutations import CLASSES, FAILURES, run_trials


def main(output: Path, trials: int = 1200, seed: int = 0, classes: tuple[str, ...] = ()) -> None:
    """Run so many trials, and write down the counts of their outcomes.

    Args:
        output: the file.
        trials: over all classes.
        seed: decides the mutations.
        classes: by default all.
    """
    names, started_s = list(classes or CLASSES), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        found = run_trials(names, trials, seed, Path(place))
    table = {name: counts([t for t in found if t["class"] == name]) for name in names}
    write(
        output,
        command=f"python -m benchmarks.faults.mutations --trials {trials} --seed {seed}",
        seconds=round(time.perf_counter() - started_s, 1),
        trials=len(found),
        outcomes=counts(found),
        classes=table,
        failures=[t for t in found if t["resume"] in FAILURES],
    )


def counts(trials: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(trial["resume"] for trial in trials).items()))


if __name__ == "__main__":
    tyro.cli(main)
