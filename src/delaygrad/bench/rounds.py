"""Rounds: every contestant has a turn in each, on the same machine in the same minutes.

A turn, on every rank (those that take no part only meet the others):

    meet      barrier
    lead-in   iterations that fill the pipeline and the caches            not timed
    timed     n iterations
    meet      barrier
    finish    a delayed pipeline finishes what is in flight               not timed

Each rank times its own n iterations. The turn's time is that of the slowest rank. So it is the time
of n iterations in the middle of a training run, with n forwards, n backwards and n updates on every
stage, and without the start and the end of the run.

The order of the turns is reversed in every other round. A contestant that fails on one rank is
taken out on all ranks, and the reason is recorded.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from delaygrad.bench.contestant import Contestant, Entry, Setting
from delaygrad.runtime.exchange import all_gather

_WARM_UP = 3
_PROBE = 2
_LEAST_ITERATIONS = 3
_MOST_ITERATIONS = 100_000
_CONSEQUENCES = (
    "TransportError",
    "DistBackendError",
    "RuntimeError: [",
)  # of another rank's failure, mostly

Report = Callable[[str], None]


@dataclass
class _Competitor:
    """A contestant in the contest, on this rank.

    Attributes:
        contestant: None if it has not been set up, or does not run on this rank.
        group: its ranks.
        iterations: of a turn.
        iteration_s: seconds per iteration, by round.
        stages: seconds per iteration that each stage spends on each activity, by round.
        losses: of the first iterations.
        reason: why it does not run.
    """

    entry: Entry
    contestant: Contestant | None = None
    group: dist.ProcessGroup | None = None
    iterations: int = 0
    iteration_s: list[float] = field(default_factory=list)
    stages: list[list[dict[str, float]]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reason: str | None = None


class Rounds:
    """Set up the contestants and let them take turns; all ranks make the same calls.

    ``report`` is called with messages about progress.
    """

    def __init__(self, entries: list[Entry], setting: Setting, report: Report) -> None:
        self._setting = setting
        self._report = report
        self._competitors = [_Competitor(entry) for entry in entries]

    def prepare(self, turn_s: float, iterations: int | None) -> None:
        """Set every contestant up, warm it up, and fix its iterations per turn.

        A turn takes about ``turn_s`` seconds, unless the iterations are given.
        """
        for competitor in self._competitors:
            self._report(f"setting up {competitor.entry.title}")
            self._set_up(competitor)
            if competitor.reason is None:
                self._warm_up(competitor)
            if competitor.reason is None and iterations is not None:
                competitor.iterations = iterations
            elif competitor.reason is None:
                seconds, _ = self._turn(competitor, _PROBE)
                fitting = round(turn_s / max(seconds * self._batches(competitor), 1e-6))
                competitor.iterations = min(max(fitting, _LEAST_ITERATIONS), _MOST_ITERATIONS)

    def run(self, rounds: int) -> None:
        """Run all rounds; every contestant has a turn in each."""
        for index in range(rounds):
            order = self._competitors if index % 2 == 0 else self._competitors[::-1]
            for competitor in order:
                if competitor.reason is None:
                    self._report(f"round {index + 1} of {rounds}: {competitor.entry.title}")
                    seconds, stages = self._turn(competitor, competitor.iterations)
                    competitor.iteration_s.append(seconds)
                    competitor.stages.append(stages)

    def records(self) -> list[dict[str, Any]]:
        """Return the record of each contestant; see ``delaygrad.bench.contest.evaluate``."""
        return [_record(competitor, self._setting.threads) for competitor in self._competitors]

    def _set_up(self, competitor: _Competitor) -> None:
        entry = competitor.entry
        competitor.group = None if entry.alone else self._new_group()
        own = replace(self._setting, group=competitor.group)

        def start() -> None:
            if self._setting.rank == 0 or not entry.alone:
                competitor.contestant = entry.start(own)

        self._agree(competitor, _error_of(start, competitor))

    def _new_group(self) -> dist.ProcessGroup:
        is_cpu = self._setting.workload.device.type == "cpu"
        timeout = timedelta(seconds=self._setting.timeout_s)
        group = dist.new_group(backend="gloo" if is_cpu else None, timeout=timeout)  # None: default
        assert isinstance(group, dist.ProcessGroup)
        return group

    def _warm_up(self, competitor: _Competitor) -> None:
        for _ in range(_WARM_UP):
            self._agree(competitor, _error_of(partial(self._steps, competitor, 1), competitor))
            if competitor.reason is not None:
                return
            known = [loss for loss in all_gather(_loss_of(competitor)) if loss is not None]
            competitor.losses.append(sum(known) / len(known))  # of equal shares of the batch

    def _turn(
        self, competitor: _Competitor, iterations: int
    ) -> tuple[float, list[dict[str, float]]]:
        """Return seconds per iteration, and what each stage did with them."""
        seconds: dict[str, float] = {}

        def iterate() -> None:
            if competitor.contestant is not None:
                # Lower stages hurry through the fill and then wait for the first error gradient to
                # come down; as many iterations again, and all keep the pace of the slowest.
                self._steps(competitor, 1 + 2 * competitor.contestant.fill)
                seconds.update(self._timed(competitor, iterations))

        gc.collect()
        dist.barrier()
        error = _error_of(iterate, competitor)
        dist.barrier()
        if competitor.contestant is not None:
            error = _error_of(competitor.contestant.finish, competitor)
        self._agree(competitor, error)
        of_ranks = [of_rank for of_rank in all_gather(seconds) if of_rank]
        slowest_s = max((of_rank.pop("iteration") for of_rank in of_ranks), default=0.0)
        return slowest_s / self._batches(competitor), [rest for rest in of_ranks if rest]

    def _timed(self, competitor: _Competitor, iterations: int) -> dict[str, float]:
        """Return seconds per iteration, and on each activity, on this rank."""
        assert competitor.contestant is not None
        before, start = competitor.contestant.stage_seconds(), self._now()
        self._steps(competitor, iterations)
        elapsed_s, after = self._now() - start, competitor.contestant.stage_seconds()
        used = {name: (after[name] - before[name]) / iterations for name in after}
        return {"iteration": elapsed_s / iterations, **used}

    def _now(self) -> float:
        """Read the clock when everything handed to the device is done."""
        device = self._setting.workload.device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    def _batches(self, competitor: _Competitor) -> int:
        """Return how many batches an iteration trains on."""
        return self._setting.num_stages if competitor.entry.independent else 1

    def _steps(self, competitor: _Competitor, iterations: int) -> None:
        setting = self._setting
        if competitor.contestant is None:
            return
        torch.set_num_threads(setting.cores if competitor.entry.all_cores else setting.threads)
        for _ in range(iterations):
            competitor.contestant.step()

    def _agree(self, competitor: _Competitor, error: str | None) -> None:
        """Take the contestant out if it failed on some rank."""
        errors = [text for text in all_gather(error) if text is not None]
        if errors:
            # A rank whose neighbour failed has an error too, but not the original one.
            competitor.reason = min(errors, key=lambda text: text.startswith(_CONSEQUENCES))
            _give_up(competitor)
            self._report(f"{competitor.entry.title} does not run: {competitor.reason}")


def _loss_of(competitor: _Competitor) -> float | None:
    return None if competitor.contestant is None else competitor.contestant.loss()


def _error_of(action: Callable[[], None], competitor: _Competitor) -> str | None:
    try:
        action()
    except Exception as error:
        reason = _first_cause(error)
    else:
        return None
    _give_up(competitor)
    return reason


def _give_up(competitor: _Competitor) -> None:
    """Let go of a contestant and of its connections: ranks that wait for it end, those on the
    contest's group at once, those on groups of its own (DDG) after the timeout.

    Only if nothing else refers to it: hence no method here keeps a contestant in a variable.
    """
    if competitor.group is not None:
        dist.destroy_process_group(competitor.group)
    competitor.contestant = competitor.group = None
    gc.collect()


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def _record(competitor: _Competitor, threads: int) -> dict[str, Any]:
    entry = competitor.entry
    title = entry.title if threads == 1 else entry.title.replace("1 thread", f"{threads} threads")
    record: dict[str, Any] = {"name": entry.name, "title": title, "family": entry.family}
    if competitor.reason is not None:
        return {**record, "does_not_run": competitor.reason}
    return {
        **record,
        "iterations_per_turn": competitor.iterations,
        "iteration_s": [round(seconds, 6) for seconds in competitor.iteration_s],
        "first_losses": competitor.losses,
        "stages": _middle(competitor.stages),
    }


def _middle(rounds: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Return the median over the rounds of each activity of each stage."""
    return [
        {
            name: round(torch.tensor([stage[name] for stage in of_rounds]).median().item(), 6)
            for name in of_rounds[0]
        }
        for of_rounds in zip(*rounds, strict=True)
    ]
