"""What rank 0 shows to the user, and records, during a run."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from delaygrad.records import EventLog
from delaygrad.training import run_folder
from delaygrad.training.evaluation import Evaluation

_CLOSING_S = 5.0  # for what TensorBoard still has to write


def announce(text: str, *, quiet: bool) -> None:
    """Show a message about a slow step, if the user is at a terminal."""
    console = Console(stderr=True, quiet=quiet)
    if console.is_terminal:
        console.print(text, highlight=False)


def warn(text: str) -> None:
    """Show an important message to every user."""
    print(f"delaygrad: {text}", file=sys.stderr)


class Reporter:
    """A progress bar, ``records.jsonl`` and TensorBoard events.

    Args:
        run_dir: the run's folder.
        num_iterations: of the whole run.
        done: iterations already done (of a resumed run).
        quiet: show nothing.
    """

    def __init__(self, run_dir: Path, num_iterations: int, done: int, *, quiet: bool) -> None:
        # Imported here: one process in K reports, the others need not wait for the import.
        from torch.utils.tensorboard import SummaryWriter

        self._run_dir = run_dir
        self._previous_hook = threading.excepthook
        threading.excepthook = self._on_thread_failure
        with run_folder.writing(run_dir):
            self._log = EventLog(run_dir / run_folder.RECORDS)
            self._board = SummaryWriter(str(run_dir / run_folder.TENSORBOARD), purge_step=done + 1)
        self._board_is_sound = True
        self._started_s = time.perf_counter()
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "training", total=num_iterations, completed=done, loss="", rate=""
        )
        self._bar.start()

    def progress(self, iteration: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=iteration)

    def training(
        self, iteration: int, *, epoch: float, loss: float, lr: float, samples_per_s: float
    ) -> None:
        """Report the mean loss of the iterations since the last report.

        Args:
            iteration: iterations done when the last of these losses was computed.
            epoch: passes over the data done by then, a fraction.
            samples_per_s: throughput of training alone.
        """
        self._write(
            "training", iteration, epoch=epoch, loss=loss, lr=lr, samples_per_s=samples_per_s
        )
        self._show("loss/train", loss, iteration)
        self._show("lr", lr, iteration)
        self._show("samples_per_s", samples_per_s, iteration)
        self._bar.update(
            self._task, loss=f"loss {loss:.4f}", rate=f"{samples_per_s:,.0f} samples/s"
        )

    def evaluation(self, iteration: int, epoch: float, split: str, result: Evaluation) -> None:
        """Report accuracy and loss on held-out data."""
        self._write(
            "evaluation",
            iteration,
            epoch=epoch,
            split=split,
            accuracy=result.accuracy,
            loss=result.loss,
            num_predictions=result.num_predictions,
        )
        self._show(f"accuracy/{split}", result.accuracy, iteration)
        self._show(f"loss/{split}", result.loss, iteration)
        self._console.print(
            f"epoch {epoch:g}: {split} accuracy {result.accuracy:.2%}, loss {result.loss:.4f}",
            highlight=False,
        )

    def event(self, name: str, iteration: int, **fields: Any) -> None:
        """Report another event."""
        self._write(name, iteration, **fields)

    def close(self) -> None:
        """Remove the bar and close the files."""
        self._bar.stop()
        self._log.close()
        # Interrupted in the middle of an event, TensorBoard's queue may never be empty again.
        closing = threading.Thread(target=self._close_board, daemon=True)
        closing.start()
        closing.join(timeout=_CLOSING_S)
        threading.excepthook = self._previous_hook

    def _show(self, name: str, value: float, iteration: int) -> None:
        """Write a point of a curve for TensorBoard; a failure does not stop the run."""
        if self._board_is_sound:
            try:
                self._board.add_scalar(name, value, iteration)
            except OSError as error:
                self._board_is_sound = False
                warn(f"cannot write TensorBoard's events ({error}); the records are complete")

    def _close_board(self) -> None:
        with suppress(OSError):
            self._board.close()

    def _on_thread_failure(self, failure: threading.ExceptHookArgs) -> None:
        """Leave out TensorBoard's thread, whose failures ``add_scalar`` raises again."""
        if not (issubclass(failure.exc_type, OSError) and "AsyncWriter" in repr(failure.thread)):
            self._previous_hook(failure)

    def _write(self, name: str, iteration: int, **fields: Any) -> None:
        elapsed_s = round(time.perf_counter() - self._started_s, 3)
        with run_folder.writing(self._run_dir / run_folder.RECORDS):
            self._log.write(name, iteration=iteration, elapsed_s=elapsed_s, **fields)
