"""The sufficient direction constant of each stage, over training.

    sigma_k = <G_k, g_k> / |G_k|^2

with g_k the gradient that stage k applied for a batch and G_k the gradient of the same batch at
the parameters that it was applied to. Huo, Gu, Huang, "Training Neural Networks Using Features
Replay" (NeurIPS 2018, arXiv:1807.04511) assume that it stays above a positive constant.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from delaygrad.reproduce.tally import RunResult

MEASURES = ("sufficient_direction", "cosine", "staleness_ratio")


@dataclass(frozen=True)
class DirectionCurve:
    """The constant of one stage, probe by probe."""

    delay: int
    epochs: list[float]
    constants: list[float]


def direction_curves(result: RunResult) -> list[DirectionCurve]:
    """Return the curve of each stage, [] of a run without probes."""
    probes = [event for event in result.events if event["event"] == "direction"]
    epochs = [float(probe["epoch"]) for probe in probes]
    stages = zip(*(probe["stages"] for probe in probes), strict=True)
    return [
        DirectionCurve(
            delay=stage[0]["delay"],
            epochs=epochs,
            constants=[float(found["sufficient_direction"]) for found in stage],
        )
        for stage in stages
    ]


def direction_rows(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return for each run and stage what the probes have found."""
    rows = []
    for result in results:
        probes = [event for event in result.events if event["event"] == "direction"]
        for k in range(result.series.stages):
            own = [probe["stages"][k] for probe in probes]
            if not own:
                continue
            constants = [stage["sufficient_direction"] for stage in own]
            rows.append(
                {
                    "run": result.name,
                    "stage": k,
                    "delay": own[0]["delay"],
                    "probes": len(own),
                    "first": constants[0],
                    "least": min(constants),
                    "positive_share": sum(c > 0 for c in constants) / len(constants),
                    **{name: statistics.fmean(stage[name] for stage in own) for name in MEASURES},
                }
            )
    return rows
