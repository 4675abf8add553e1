"""What rank 0 shows to the user, and records, during a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
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


def announce(text: str, *, quiet: bool) -> None:
    """Show a message about a slow step, if the user is at a terminal."""
    console = Console(stderr=True, quiet=quiet)
    if console.is_terminal:
        console.print(text, highlight=False)


def warn(text: str) -> None:
    """Show an important message to every user."""
    print(f"delaygrad: {text}", file=sys.stderr)


class Board:
    """The curves as TensorBoard's events. If the disk refuses, they end, and the run goes on.

    Events after the iterations that are done are of an earlier process, and hidden.
    """

    def __init__(self, folder: Path, done: int) -> None:
        # Imported here: one process in K reports, the others need not wait for the import.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
        self._event, self._is_sound = Event, True
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=done + 1, session_log={"status": SessionLog.START})

    def show(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write a point of each curve."""
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._write(step=iteration, summary={"value": points})

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._records.close()

    def _write(self, **fields: Any) -> None:
        if self._is_sound:
            try:
                self._records.write(
                    self._event(wall_time=time.time(), **fields).SerializeToString()
                )
                self._records.flush()
            except OSError as error:
                self._is_sound = False
                warn(f"cannot write TensorBoard's events ({error}); the records are complete")


class Reporter:
    """A progress bar, ``records.jsonl``, TensorBoard events; a resumed run begins at ``done``."""

    def __init__(self, run_dir: Path, num_iterations: int, done: int, *, quiet: bool) -> None:
        self._run_dir = run_dir
        with run_folder.writing(run_dir):
            self._log = EventLog(run_dir / run_folder.RECORDS)
            self._board = Board(run_dir / run_folder.TENSORBOARD, done)
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
        """Report the mean loss since the last report, and the speed of training."""
        self._write(
            "training", iteration, epoch=epoch, loss=loss, lr=lr, samples_per_s=samples_per_s
        )
        values = {"loss/train": loss, "lr": lr, "samples_per_s": samples_per_s}
        self._board.show(iteration, values)
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
        values = {f"accuracy/{split}": result.accuracy, f"loss/{split}": result.loss}
        self._board.show(iteration, values)
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
        self._board.close()

    def _write(self, name: str, iteration: int, **fields: Any) -> None:
        elapsed_s = round(time.perf_counter() - self._started_s, 3)
        with run_folder.writing(self._run_dir / run_folder.RECORDS):
            self._log.write(name, iteration=iteration, elapsed_s=elapsed_s, **fields)
