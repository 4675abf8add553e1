"""What the user sees while runs are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from delaygrad.reproduce.grid import PlannedRun

_UNITS = 1000  # of an epoch; the bars count in whole numbers
_MEMORY_S = 1800.0  # of the estimate of the time left


class RunsProgress:
    """A line for all runs and a line for each active one; without a terminal, a line per run.

    Args:
        runs: all of them, finished ones included.
        quiet: show nothing.
    """

    def __init__(self, runs: Sequence[PlannedRun], *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._epochs = {
            run.label: 1.0 if run.config.run.iterations else float(run.config.run.epochs)
            for run in runs
        }
        self._done = dict.fromkeys(self._epochs, 0.0)
        self._ended = 0
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            _TimeLeft(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            speed_estimate_period=_MEMORY_S,
        )
        total = _UNITS * sum(self._epochs.values())
        self._total = self._bar.add_task("all", total=total, state="")

    def __enter__(self) -> RunsProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, run: PlannedRun, event: dict[str, Any]) -> None:
        """Show a run as active; its newest event from before, or {}, says where it begins."""
        share = _share(run, event)
        total = _UNITS * self._epochs[run.label]
        self._tasks[run.label] = self._bar.add_task(
            run.label, total=total, completed=round(share * total), state="starting"
        )
        self._set(run, share, new=not share)

    def at(self, run: PlannedRun, event: dict[str, Any]) -> None:
        """Show how far a run is, perhaps another process's, by its newest event or {}."""
        share, epochs = _share(run, event), self._epochs[run.label]
        self._set(run, share, new=True)
        if run.label in self._tasks and event:
            state = f"epoch {share * epochs:.1f} of {epochs:g}"
            done = _UNITS * share * epochs
            self._bar.update(self._tasks[run.label], completed=done, state=state)

    def ended(self, run: PlannedRun, text: str, *, new: bool = True) -> None:
        """Show a run as ended: finished, diverged, or failed with a message.

        Args:
            run: which.
            text: what became of it.
            new: False: it had a result before this command.
        """
        self._ended += 1
        self._set(run, 1.0, new=new)
        if run.label in self._tasks:
            self._bar.remove_task(self._tasks.pop(run.label))
        if new:
            line = f"{run.label}: {text}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _set(self, run: PlannedRun, share: float, *, new: bool) -> None:
        """Count what is done; what this command has not done tells nothing about its speed."""
        self._done[run.label] = share
        done = round(sum(_UNITS * share * self._epochs[name] for name, share in self._done.items()))
        update = self._bar.update if new else self._bar.reset
        state = f"{self._ended} of {len(self._done)} runs"
        update(self._total, completed=done, state=state)


class _TimeLeft(TimeRemainingColumn):
    """The time that is left, for the whole only."""

    def render(self, task: Any) -> Any:
        return super().render(task) if task.id == 0 else ""


def _share(run: PlannedRun, event: dict[str, Any]) -> float:
    """Return which part of a run is done."""
    if not event:
        return 0.0
    if run.config.run.iterations:
        return float(event["iteration"] / run.config.run.iterations)
    return float(event["epoch"] / run.config.run.epochs)
