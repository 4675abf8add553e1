"""Measure speed-up against K, and what communication takes of an iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from delaygrad.bench import run_contest
from delaygrad.bench.config import ContestConfig
from delaygrad.bench.workload import load_workload
from delaygrad.partition.measured_cuts import measured_cuts
from delaygrad.partition.measurement import measuring
from delaygrad.reproduce.measured_case import kept_or_measured
from delaygrad.reproduce.speed_target import BASELINE, SpeedCase, SpeedScale

Say = Callable[[str], None]


def measure_speed(
    scale: SpeedScale, folder: Path, say: Say, *, new: bool = True
) -> list[dict[str, Any]]:
    """Hold the contests that have not been held yet.

    Args:
        scale: which.
        folder: that the results go to, each as soon as it is there.
        say: is told what happens.
        new: hold contests; False: only what is there.

    Returns:
        For each K and contestant but backpropagation a row, in plain values; see ``_rows``. Where
        there are too few GPUs, ``does_not_run`` says so.
    """
    rows = []
    for case in scale.cases():
        gpus = torch.cuda.device_count()
        if case.contest.device == "cuda" and gpus < case.num_stages:
            reason = f"needs {case.num_stages} GPUs (found: {gpus})"
            rows.append({**_names(case), "contestant": "ddg", "does_not_run": reason})
            continue
        measured = kept_or_measured(
            folder, case.name, case.settings(), partial(_hold, case, say) if new else None
        )
        rows += _rows(case, measured) if measured else []
    return rows


def _hold(case: SpeedCase, say: Say) -> dict[str, Any]:
    say(f"contest {case.name}")
    more, times = {}, None
    if case.contest.how == "sleeping" and case.contest.workload != "sleep":
        times = stage_times(case)
        more = {
            "stage_forward_s": tuple(stage["forward_s"] for stage in times["stages"]),
            "stage_backward_s": tuple(
                stage["backward_s"] + stage["update_s"] for stage in times["stages"]
            ),
            "boundary_bytes": times["boundary_bytes"],
        }
    contest = run_contest(case.config(**more), quiet=True)
    return {"stage_times": times, "contest": contest}


def stage_times(case: SpeedCase) -> dict[str, Any]:
    """Measure the stages of a workload, cut as the planner cuts, alone in this process.

    Returns:
        cuts; stages: seconds of forward, backward and update of each; boundary_bytes: of the
        largest boundary.
    """
    config = ContestConfig(workload=case.contest.workload, smoke=case.contest.small)
    workload = load_workload(config)
    inputs, targets = workload.batch()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with measuring(
            workload.model(),
            inputs,
            make_optimizer=workload.make_optimizer,
            loss=lambda outputs: workload.loss_fn(outputs, targets),
        ) as measurement:
            costs = measurement.layers()
            found = measured_cuts(measurement, costs, case.num_stages)
    finally:
        torch.set_num_threads(threads)
    boundaries = [stage.output_bytes for stage in found.stages[:-1]]
    return {
        "cuts": [stage.name for stage in found.stages[1:]],
        "stages": [stage.times() for stage in found.stages],
        "boundary_bytes": max(boundaries, default=0) or None,
    }


def _names(case: SpeedCase) -> dict[str, Any]:
    contest = case.contest
    return {"workload": contest.workload, "how": contest.how, "stages": case.num_stages}


def _rows(case: SpeedCase, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each contestant but backpropagation:

    speedup               median and quartiles of its throughput over backpropagation's
    iteration_s           seconds, median
    baseline_s            of backpropagation, likewise
    stage_seconds         per iteration, of each stage, for each activity
    communication_share   of the iteration, what the slowest stage spends on sending and waiting
    paper_rule            the speed-up that T_F + T_B / K gives with the times of these stages
    smoke                 whether the network was shrunk
    """
    contest = measured["contest"]
    records = {record["name"]: record for record in contest["contestants"]}
    baseline = records[BASELINE]
    rows = []
    for name, record in records.items():
        row = {**_names(case), "contestant": name, "title": record["title"]}
        reason = record.get("does_not_run") or baseline.get("does_not_run")
        if reason is not None:
            rows.append({**row, "does_not_run": reason})
        elif name != BASELINE:
            stages = record["stages"]
            rows.append(
                {
                    **row,
                    "speedup": record["throughput_against"]["baseline"],
                    "iteration_s": record["iteration"]["median"],
                    "baseline_s": baseline["iteration"]["median"],
                    "stage_seconds": stages,
                    "communication_share": communication_share(
                        stages, record["iteration"]["median"]
                    ),
                    "paper_rule": paper_rule(stages),
                    "smoke": contest["smoke"],
                }
            )
    return rows


def computing_s(stage: dict[str, float]) -> float:
    """Return the seconds that a stage computes per iteration."""
    return stage["forward"] + stage["backward"] + stage["update"]


def communication_share(stages: Sequence[dict[str, float]], iteration_s: float) -> float | None:
    """Say which part of the iteration the slowest stage spends on sending and waiting.

    The others also wait because they are faster.

    Example:
        >>> fast = {"forward": 1.0, "backward": 1.0, "update": 0.0, "send": 0.0, "wait": 3.0}
        >>> slow = {"forward": 1.0, "backward": 3.0, "update": 0.0, "send": 0.5, "wait": 0.5}
        >>> communication_share([fast, slow], 5.0)
        0.2
    """
    if not stages:
        return None
    slowest = max(stages, key=computing_s)
    return round((slowest["send"] + slowest["wait"]) / iteration_s, 4)


def paper_rule(stages: Sequence[dict[str, float]]) -> float | None:
    """Return the speed-up that the paper's accounting gives: (T_F + T_B) / (T_F + T_B / K).

    Example:
        >>> stage = {"forward": 1.0, "backward": 2.0, "update": 0.0}
        >>> paper_rule([stage, stage])
        1.5
    """
    if not stages:
        return None
    forward_s = sum(stage["forward"] for stage in stages)
    backward_s = sum(stage["backward"] + stage["update"] for stage in stages)
    return round((forward_s + backward_s) / (forward_s + backward_s / len(stages)), 4)
