"""A contest from its configuration to its results."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from delaygrad.bench.config import ContestConfig
from delaygrad.bench.contestant import Entry, Setting
from delaygrad.bench.rounds import Rounds
from delaygrad.bench.throughput import evaluate
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
from delaygrad.runtime import exchange

# All ranks meet before and after everything; torch.compile may keep rank 0 for minutes before.
_MEETING_TIMEOUT_S = 3600.0
_SMOKE_ROUNDS, _SMOKE_ITERATIONS = 2, 3

# What else decides how fast a process computes; kept beside the results.
_TELLING_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_CPU_AFFINITY", "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD", "GLOO_SOCKET_IFNAME",
)  # fmt: skip


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
        return _Contest(config, [entry(name) for name in names], rank, device, quiet).run()


class _Contest:
    """One rank's part."""

    def __init__(
        self,
        config: ContestConfig,
        entries: list[Entry],
        rank: int,
        device: torch.device,
        quiet: bool,
    ) -> None:
        self._config = config
        self._entries = entries
        self._rank = rank
        self._workload = replace(load_workload(config), device=device)
        self._console = Console(stderr=True, quiet=quiet or rank != 0)

    def run(self) -> dict[str, Any] | None:
        config, smoke = self._config, self._config.smoke
        self._say("balancing the stages")
        setting = self._setting()
        rounds = Rounds(self._entries, setting, self._new_group, self._say)
        rounds.prepare(config.turn_s, _SMOKE_ITERATIONS if smoke else config.iterations)
        num_rounds = _SMOKE_ROUNDS if smoke else config.rounds
        rounds.run(num_rounds)
        memory = exchange.all_gather(_peak_memory_bytes())
        if self._rank != 0:
            return None
        contestants = rounds.records()
        return {
            "workload": config.model or config.workload,
            "description": self._workload.description,
            "parameters": sum(p.numel() for p in self._workload.model().parameters()),
            "smoke": smoke,
            "link": config.link,
            "device": config.device,
            "num_stages": config.stages,
            "cuts": setting.cuts,
            "chunk_cuts": setting.chunk_cuts,
            "threads": setting.threads,
            "cores": setting.cores,
            "variables": {
                name: os.environ[name] for name in _TELLING_VARIABLES if name in os.environ
            },
            "rounds": num_rounds,
            "turn_s": None if smoke or config.iterations else config.turn_s,
            "peak_resident_bytes_of_ranks": memory,
            "compared_with": evaluate(contestants),
            "contestants": contestants,
        }

    def _setting(self) -> Setting:
        config = self._config
        cuts: list[Any] = [None, None]
        if self._rank == 0:
            cuts[0] = list(config.cuts) or _balanced_cuts(self._workload, config.stages)
            if any(entry.chunked for entry in self._entries):
                cuts[1] = _chunk_cuts(self._workload, config.stages)
        cuts = exchange.broadcast(cuts)
        return Setting(
            workload=self._workload,
            cuts=cuts[0],
            chunk_cuts=cuts[1],
            rank=self._rank,
            num_stages=config.stages,
            threads=config.threads,
            cores=usable_cores(),
            group=None,
            timeout_s=config.timeout_s,
        )

    def _new_group(self) -> dist.ProcessGroup:
        backend = "gloo" if self._workload.device.type == "cpu" else None  # None: as the default
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=self._config.timeout_s))
        assert isinstance(group, dist.ProcessGroup)
        return group

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


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
