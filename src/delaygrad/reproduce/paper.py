"""``reproduce``: targets of a paper at a scale, from their files to tables and figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from delaygrad.errors import ConfigError, PartitionError, ReproductionError
from delaygrad.partition import split
from delaygrad.report import write_page
from delaygrad.reproduce import run_state
from delaygrad.reproduce.measured_case import FOLDER as MEASURED
from delaygrad.reproduce.memory import measure_memory
from delaygrad.reproduce.memory_target import MemoryTarget
from delaygrad.reproduce.outcome import RESULTS, memory_outcome, speed_outcome, training_outcome
from delaygrad.reproduce.paper_page import paper_page, target_section
from delaygrad.reproduce.plan import PlannedRun
from delaygrad.reproduce.progress import RunsProgress
from delaygrad.reproduce.publish import publish
from delaygrad.reproduce.request import Reproduction
from delaygrad.reproduce.runner import Failure, Runner
from delaygrad.reproduce.speed import Say, measure_speed
from delaygrad.reproduce.speed_target import SpeedTarget
from delaygrad.reproduce.speed_up import rows_on_record
from delaygrad.reproduce.target import Target, find_targets
from delaygrad.reproduce.training_target import TrainingTarget
from delaygrad.training.assembly import build_model, load_data

_MOST_TOLD = 5  # failed runs in one message


def reproduce(request: Reproduction, *, quiet: bool = False) -> dict[str, dict[str, Any]]:
    """Make what is missing, and put everything together.

    Args:
        request: what, at which scale, and where.
        quiet: show no progress.

    Returns:
        By target what its ``results.json`` holds.

    Raises:
        ConfigError: a setting or a target is wrong, or results with other settings are in the way.
        ReproductionError: runs have failed; everything else has been done.
    """
    console = Console(stderr=True, quiet=quiet)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    targets = request.found_targets()
    runs = {target.name: request.runs_of(target) for target in targets}
    failures = _train([run for own in runs.values() for run in own], request, quiet)
    results = {target.name: _measure(target, request, say) for target in targets}
    speed_rows = _speed_rows(request)
    for target in targets:
        if isinstance(target.content, TrainingTarget):
            folder = request.folder(target)
            results[target.name] = training_outcome(
                target, request.scale, runs[target.name], folder, speed_rows
            )
    for target in targets if request.publish else ():
        if not _has_results(results[target.name]):
            say(f"nothing to publish of {target.name}")
            continue
        goal = publish(target, request.scale, request.folder(target), runs[target.name])
        say(f"published {goal}")
    if request.page is not None:
        parts = [
            target_section(target, found, request.folder(target), runs[target.name])
            for target in targets
            if _has_results(found := results[target.name])
        ]
        say(f"wrote {write_page(paper_page(request.paper, parts), request.page)}")
    if failures:
        raise _failed(failures)
    return results


def status(request: Reproduction) -> list[dict[str, Any]]:
    """Say for each target and scale how much there is to do, and how much is done.

    Returns:
        Rows of target, kind, scale, about, done and planned (runs, or measurements).
    """
    return [
        {
            "target": target.name,
            "kind": target.content.kind,
            "scale": scale,
            "about": target.content.scales[scale].about,
            **_count(target, request, scale),
        }
        for target in find_targets(request.experiments, request.paper, request.targets)
        for scale in target.content.scales
    ]


def _train(runs: Sequence[PlannedRun], request: Reproduction, quiet: bool) -> list[Failure]:
    """Make the runs that have no result yet."""
    for run in runs:
        run_state.require_same_settings(run.config)
    missing = [run for run in runs if not _is_done(run)]
    if not request.run or not missing:
        return []
    _require_possible(missing)
    with RunsProgress(runs, quiet=quiet) as progress:
        return Runner(runs, workers=_workers(request, runs), progress=progress).run()


def _require_possible(runs: Sequence[PlannedRun]) -> None:
    """Complain before anything starts, and not once for each run."""
    if any(run.config.device == "cuda" for run in runs) and not torch.cuda.is_available():
        raise ConfigError("too few GPUs (found: 0, needed: 1); use --scale cpu")
    for run in runs:
        run.config.check()
    configs = {(run.config.data, run.config.data_dir): run.config for run in runs}
    sources = {key: load_data(config) for key, config in configs.items()}
    networks = {(run.config.data, run.config.model, run.config.cuts): run for run in runs}
    for run in networks.values():
        source = sources[run.config.data, run.config.data_dir]
        try:
            split(build_model(run.config, source), run.config.stages, cuts=run.config.cuts)
        except PartitionError as error:
            raise PartitionError(f"[{run.label}] {error}") from error


def _workers(request: Reproduction, runs: Sequence[PlannedRun]) -> int:
    if request.workers is not None:
        return request.workers
    if any(run.config.device == "cuda" for run in runs):
        return max(torch.cuda.device_count(), 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // max(run.config.threads for run in runs), 1)


def _measure(target: Target, request: Reproduction, say: Say) -> dict[str, Any]:
    """Measure speed or memory; nothing for a target that trains."""
    content, folder = target.content, request.folder(target)
    if isinstance(content, SpeedTarget):
        rows = measure_speed(content.scales[request.scale], folder, say, new=request.run)
        return speed_outcome(target, request.scale, rows, folder)
    if isinstance(content, MemoryTarget):
        rows = measure_memory(content, request.scale, folder, say, new=request.run)
        return memory_outcome(target, request.scale, rows, folder)
    return {}


def _speed_rows(request: Reproduction) -> list[dict[str, Any]]:
    """Find what targets of kind speed have measured at this scale, now or earlier."""
    targets = find_targets(request.experiments, request.paper)
    speed = [target for target in targets if isinstance(target.content, SpeedTarget)]
    return [row for target in speed for row in rows_on_record(request.folder(target) / RESULTS)]


def _has_results(results: dict[str, Any]) -> bool:
    return any(row.get("done", "does_not_run" not in row) for row in results["rows"])


def _count(target: Target, request: Reproduction, scale: str) -> dict[str, int]:
    content, folder = target.content, request.folder(target, scale)
    if isinstance(content, TrainingTarget):
        runs = request.runs_of(target, scale)
        return {"done": sum(map(_is_done, runs)), "planned": len(runs)}
    names: list[str]
    if isinstance(content, SpeedTarget):
        names = [case.name for case in content.scales[scale].cases()]
    else:
        names = [line.name(k) for line, k in content.scales[scale].cases()]
    done = sum((folder / MEASURED / f"{name}.json").exists() for name in names)
    return {"done": done, "planned": len(names)}


def _is_done(run: PlannedRun) -> bool:
    return run_state.state_of(run.run_dir) in ("finished", "diverged")


def _failed(failures: Sequence[Failure]) -> ReproductionError:
    told = [f"{failure.name}: {failure.message}" for failure in failures[:_MOST_TOLD]]
    if len(failures) > _MOST_TOLD:
        told.append(f"and {len(failures) - _MOST_TOLD} more")
    count = "a run has" if len(failures) == 1 else f"{len(failures)} runs have"
    return ReproductionError(f"{count} failed ({'; '.join(told)}); the same command tries again")
