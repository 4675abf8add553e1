"""What the user sees while runs are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from delaygrad.reproduce.plan import PlannedRun
from delaygrad.reproduce.run_state import State

_UNITS = 1000  # of an epoch; the bars count in whole numbers
_MEMORY_S = 1800.0  # of the estimate of the time left


class RunsProgress:
    """A line for all runs and a line for each that goes on; without a terminal, a line per run.

    Args:
        runs: all of them, those that are finished as well.
        quiet: show nothing.
    """

    def __init__(self, runs: Sequence[PlannedRun], *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._done = {run.label: 0.0 for run in runs}
        self._epochs = {run.label: _epochs(run) for run in runs}
        self._ended = 0
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("{task.fields[left]}"),
            _TimeLeft(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            speed_estimate_period=_MEMORY_S,
        )
        total = _UNITS * sum(self._epochs.values())
        self._total = self._bar.add_task("all", total=total, state=self._count(), left="left")

    def __enter__(self) -> RunsProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, run: PlannedRun, event: dict[str, Any]) -> None:
        """Show a run as going on.

        Args:
            run: from its beginning, or from a checkpoint.
            event: its newest from before, {} without one.
        """
        share = _share(run, event)
        if share:
            self._was_done(run, share)
        self._tasks[run.label] = self._bar.add_task(
            run.label,
            total=_UNITS * self._epochs[run.label],
            completed=round(_UNITS * share * self._epochs[run.label]),
            state="starting",
            left="",
        )

    def at(self, run: PlannedRun, event: dict[str, Any]) -> None:
        """Show how far a run is.

        Args:
            run: it may be another process's.
            event: its newest, {} before there is one.
        """
        share = _share(run, event)
        self._move(run, share)
        if run.label in self._tasks and event:
            epochs = self._epochs[run.label]
            self._bar.update(
                self._tasks[run.label],
                completed=_UNITS * share * epochs,
                state=f"epoch {share * epochs:.1f} of {epochs:g}",
            )

    def finished(self, run: PlannedRun, state: State) -> None:
        """Show a run as having a result, new or from before."""
        if run.label not in self._tasks:
            self._ended += 1
            self._was_done(run, 1.0)
            return
        self._end(run)
        self._console.print(f"{run.label}: {state}", highlight=False, markup=False)

    def failed(self, run: PlannedRun, message: str) -> None:
        """Show a run as failed."""
        self._end(run)
        text = f"{run.label}: failed: {message}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _end(self, run: PlannedRun) -> None:
        self._ended += 1
        self._move(run, 1.0)
        if run.label in self._tasks:
            self._bar.remove_task(self._tasks.pop(run.label))

    def _move(self, run: PlannedRun, share: float) -> None:
        self._done[run.label] = share
        self._bar.update(self._total, completed=self._completed(), state=self._count())

    def _was_done(self, run: PlannedRun, share: float) -> None:
        """Count what this command has not done, and from which no speed can be told."""
        self._done[run.label] = share
        self._bar.reset(self._total, completed=self._completed(), state=self._count(), left="left")

    def _completed(self) -> int:
        return round(sum(_UNITS * share * self._epochs[name] for name, share in self._done.items()))

    def _count(self) -> str:
        return f"{self._ended} of {len(self._done)} runs"


class _TimeLeft(TimeRemainingColumn):
    """The time that is left, for the whole only."""

    def render(self, task: Any) -> Any:
        return super().render(task) if task.fields["left"] else ""


def _epochs(run: PlannedRun) -> float:
    return 1.0 if run.config.iterations else float(run.config.epochs)


def _share(run: PlannedRun, event: dict[str, Any]) -> float:
    """Return which part of a run is done."""
    if not event:
        return 0.0
    if run.config.iterations:
        return float(event["iteration"] / run.config.iterations)
    return float(event["epoch"] / run.config.epochs)
