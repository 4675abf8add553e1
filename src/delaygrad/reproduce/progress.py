"""What the user sees while runs are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from delaygrad.reproduce.grid import PlannedRun

_MEMORY_S = 1800.0  # of the estimate of the time left


class RunsProgress:
    """A line for all runs and a line for each active one; without a terminal, a line per run.

    The unit is an epoch. What a resumed run has done before does not count.

    Args:
        runs: that are to be made.
        quiet: show nothing.
    """

    def __init__(self, runs: Sequence[PlannedRun], *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._epochs = {run.label: _epochs(run) for run in runs}
        self._before = dict.fromkeys(self._epochs, 0.0)
        self._done = dict.fromkeys(self._epochs, 0.0)
        self._ended = 0
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            speed_estimate_period=_MEMORY_S,
        )
        self._all = self._bar.add_task("all", state="")
        self._update()

    def __enter__(self) -> RunsProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, run: PlannedRun, event: dict[str, Any]) -> None:
        """Show a run as active; its newest event from before, or {}, says where it begins."""
        name = run.label
        self._before[name] = self._done[name] = _epochs_at(run, event)
        left = self._epochs[name] - self._before[name]
        self._tasks[name] = self._bar.add_task(name, total=left, state="starting")

    def at(self, run: PlannedRun, event: dict[str, Any]) -> None:
        """Show how far a run is, by its newest event or {}."""
        if event:
            name = run.label
            self._done[name] = done = _epochs_at(run, event)
            state = f"epoch {done:.1f} of {self._epochs[name]:g}"
            completed = done - self._before[name]
            self._bar.update(self._tasks[name], completed=completed, state=state)
            self._update()

    def ended(self, run: PlannedRun, text: str) -> None:
        """Show a run as ended: finished, diverged, or failed with a message."""
        self._ended += 1
        self._done[run.label] = self._epochs[run.label]
        self._bar.remove_task(self._tasks.pop(run.label))
        self._update()
        line = f"{run.label}: {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _update(self) -> None:
        before = sum(self._before.values())
        self._bar.update(
            self._all,
            total=sum(self._epochs.values()) - before,
            completed=sum(self._done.values()) - before,
            state=f"{self._ended} of {len(self._done)} runs",
        )


def _epochs(run: PlannedRun) -> float:
    return 1.0 if run.config.run.iterations else float(run.config.run.epochs)


def _epochs_at(run: PlannedRun, event: dict[str, Any]) -> float:
    """Return how much of a run is done, in the unit of ``_epochs``."""
    if run.config.run.iterations:
        return float(event.get("iteration", 0) / run.config.run.iterations)
    return float(event.get("epoch", 0.0))
