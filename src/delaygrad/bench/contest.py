"""A contest from its configuration to its results: medians with spread, ratios round by round."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console

from delaygrad.bench.config import ContestConfig
from delaygrad.bench.contestant import Setting
from delaygrad.bench.rounds import Rounds
from delaygrad.bench.workload import Workload, load_workload
from delaygrad.errors import PartitionError
from delaygrad.launch import (
    Launch,
    joined,
    launched_by_torchrun,
    require_gpus,
    run_workers,
    usable_cores,
)
from delaygrad.partition import cuts_of
from delaygrad.records.spread import quartiles
from delaygrad.runtime import exchange

# All ranks meet before and after everything; torch.compile may keep rank 0 for minutes before.
_MEETING_TIMEOUT_S = 3600.0
_SMOKE_ROUNDS, _SMOKE_ITERATIONS = 2, 3

# What else decides how fast a process computes; kept beside the results.
_TELLING_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_CPU_AFFINITY", "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD", "GLOO_SOCKET_IFNAME",
)  # fmt: skip
BASELINE = "bp"


def run_contest(config: ContestConfig, *, quiet: bool = False) -> dict[str, Any] | None:
    """Run a contest: in new worker processes, or, under torchrun, as one of its ranks.

    Returns:
        The results, in plain containers: the setting, and for each contestant its seconds per
        iteration in each round (or why it does not run), medians, quartiles, and ratios of
        throughput. None on the ranks but the first.

    Raises:
        ConfigError: a setting is wrong, or a contestant unknown.
        PartitionError: the network cannot be cut there.
        WorkerError: a worker died.
    """
    # Imported here: torch's rivals take seconds to import, and other commands do without them.
    from delaygrad.bench.catalogue import EVERYONE, SLEEPERS, entry

    config.check()
    if config.device == "cuda":
        local_rank = os.environ.get("LOCAL_RANK", config.stages - 1)  # under torchrun, one GPU each
        require_gpus(int(local_rank) + 1)
    names = config.contestants or (SLEEPERS if config.workload == "sleep" else EVERYONE)
    for name in names:
        entry(name)  # complain before anything starts
    if config.cuts:
        load_workload(config).stages(config.stages, list(config.cuts))  # here too
    elif config.model:
        load_workload(config).model()
    launch = Launch(num_workers=config.stages, threads=config.threads, timeout_s=_MEETING_TIMEOUT_S)
    if launched_by_torchrun():
        return _rank_main(config, names, launch, quiet)
    with variables(OMP_NUM_THREADS=str(usable_cores())):  # for contestants that use every core
        results: dict[str, Any] = run_workers(_rank_main, launch, config, names, launch, quiet)[0]
    return results


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Within the block, new processes find these environment variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _rank_main(
    config: ContestConfig, names: tuple[str, ...], launch: Launch, quiet: bool
) -> dict[str, Any] | None:
    from delaygrad.bench.catalogue import entry

    # A schedule of torch's that fails logs its whole timetable; the reason is in the results.
    logging.getLogger("torch.distributed.pipelining.schedules").setLevel(logging.CRITICAL)
    device = torch.device(config.device)
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
    with joined(launch, device) as rank:
        console = Console(stderr=True, quiet=quiet or rank != 0)
        say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        entries = [entry(name) for name in names]
        workload = replace(load_workload(config), device=device)
        say("balancing the stages")
        setting = _setting(config, workload, rank, any(entry.chunked for entry in entries))
        rounds = Rounds(entries, setting, say)
        rounds.prepare(config.turn_s, _SMOKE_ITERATIONS if config.smoke else config.iterations)
        num_rounds = _SMOKE_ROUNDS if config.smoke else config.rounds
        rounds.run(num_rounds)
        memory = exchange.all_gather(_peak_memory_bytes())
        return _results(config, setting, num_rounds, rounds, memory) if rank == 0 else None


def _setting(config: ContestConfig, workload: Workload, rank: int, chunked: bool) -> Setting:
    """Return what rank 0 has decided, on every rank."""
    cuts: list[Any] = [None, None]
    if rank == 0:
        cuts[0] = list(config.cuts) or _balanced_cuts(workload, config.stages)
        if chunked:
            cuts[1] = _chunk_cuts(workload, config.stages)
    cuts = exchange.broadcast(cuts)
    return Setting(
        workload=workload,
        cuts=cuts[0],
        chunk_cuts=cuts[1],
        rank=rank,
        num_stages=config.stages,
        threads=config.threads,
        cores=usable_cores(),
        group=None,
        timeout_s=config.timeout_s,
    )


def _results(
    config: ContestConfig, setting: Setting, num_rounds: int, rounds: Rounds, memory: list[int]
) -> dict[str, Any]:
    contestants = rounds.records()
    return {
        "workload": config.model or config.workload,
        "description": setting.workload.description,
        "parameters": sum(p.numel() for p in setting.workload.model().parameters()),
        "smoke": config.smoke,
        "link": config.link,
        "device": config.device,
        "num_stages": config.stages,
        "cuts": setting.cuts,
        "chunk_cuts": setting.chunk_cuts,
        "threads": setting.threads,
        "cores": setting.cores,
        "variables": {n: os.environ[n] for n in _TELLING_VARIABLES if n in os.environ},
        "rounds": num_rounds,
        "turn_s": None if config.smoke or config.iterations else config.turn_s,
        "peak_resident_bytes_of_ranks": memory,
        "compared_with": evaluate(contestants),
        "contestants": contestants,
    }


def _balanced_cuts(workload: Workload, num_stages: int) -> list[str]:
    if workload.known_cuts is not None:
        return workload.known_cuts(num_stages)
    return cuts_of(workload.stages(num_stages))


def _chunk_cuts(workload: Workload, num_stages: int) -> list[str] | None:
    try:
        return _balanced_cuts(workload, 2 * num_stages)
    except PartitionError:  # too few layers: the contestants that need them say so
        return None


def _peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
