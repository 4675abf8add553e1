"""The training loop of one process; every rank runs the same one, and records its timeline."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delaygrad import checkpoint
from delaygrad.data import DataSource, augmentation_rng, batch_indices, iterations_per_epoch
from delaygrad.errors import NonFiniteLossError
from delaygrad.monitor import Monitor, Row
from delaygrad.records import ClockReading, StageTrace, Trace, measure_trace
from delaygrad.runtime import Pipeline
from delaygrad.runtime.control import Control
from delaygrad.training import run_folder
from delaygrad.training.assembly import place
from delaygrad.training.config import TrainConfig
from delaygrad.training.evaluation import Evaluation, evaluate
from delaygrad.training.reporter import Reporter, warn
from delaygrad.training.resuming import describe

_WARM_UP = 10
_DIVERGED = 10  # times the loss of guessing


class Tracing:
    """The recording of one process; every rank has one and makes the same calls.

    The window begins after the fill and a few more iterations, or earlier in a short run. A resumed
    run records a new trace.
    """

    def __init__(
        self,
        config: TrainConfig,
        pipeline: Pipeline,
        control: Control,
        *,
        start: int,
        num_iterations: int,
    ) -> None:
        self._config, self._pipeline, self._control = config, pipeline, control
        self._recorded = False
        fill = pipeline.method.schedule.delay(0, pipeline.num_stages)
        # One iteration is left after the window, so that its end is seen.
        last = num_iterations - config.records.trace - 1
        self._begin = max(start, min(start + fill + pipeline.num_stages + _WARM_UP, last))
        # Now and at the end: clocks of two hosts drift apart by milliseconds in some minutes.
        self._readings = [control.read_clocks()] if config.records.trace else []

    def before(self, iteration: int) -> None:
        """Begin to record if this is the iteration to begin with."""
        if self._config.records.trace and iteration == self._begin:
            self._recorded = True
            self._pipeline.start_trace(self._config.records.trace)

    def finish(self) -> dict[str, Any] | None:
        """Gather and write down what was recorded; return its summary on rank 0, None elsewhere.

        If nothing was recorded (a run resumed at its end), an earlier trace stays.
        """
        if not self._config.records.trace or not self._recorded:
            return None
        self._readings.append(self._control.read_clocks())
        gathered = self._control.gather([t.to_json() for t in self._pipeline.stage_traces()])
        if not self._control.is_reporter:
            return None
        by_rank: list[tuple[ClockReading, ...]] = list(zip(*self._readings, strict=True))
        stages = [
            StageTrace.from_json(stage).on_first_clock(readings)
            for readings, held in zip(by_rank, gathered, strict=True)
            for stage in held
        ]
        method = repr(self._pipeline.method)
        trace = Trace(
            method=method, stages_per_process=tuple(map(len, gathered)), stages=tuple(stages)
        )
        run_folder.write_trace(self._config.run_dir, trace)
        return measure_trace(trace)


class TrainingLoop:
    """Train, evaluate, checkpoint, report, in one process.

    ``config`` is resolved. ``pipeline`` has all stages, or this rank's; ``control`` speaks to the
    other processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: DataSource,
        pipeline: Pipeline,
        control: Control,
        device: torch.device,
        *,
        quiet: bool,
    ) -> None:
        self._config, self._source, self._pipeline = config, source, pipeline
        self._control, self._device, self._quiet = control, device, quiet
        self._run_dir: Path = config.run_dir
        self._per_epoch = iterations_per_epoch(source.train.num_samples, config.run.batch_size)
        self._num_iterations = config.run.iterations or config.run.epochs * self._per_epoch
        # Rank 0 knows a batch's loss to be on its way once it has that batch's error gradient.
        self._loss_delay = pipeline.method.schedule.delay(0, pipeline.num_stages)
        self._losses: list[Tensor] = []  # on the last rank, since the last report
        self._reports: deque[int] = deque()  # on rank 0, iterations of reports under way
        self._reporter: Reporter | None = None
        self._started_s, self._aside_s, self._samples = 0.0, 0.0, 0
        self._last_loss: float | None = None
        if config.records.monitor_every:
            Monitor(pipeline, config.records.monitor_every, report=self._report_direction)

    def run(self) -> dict[str, Any] | None:
        """Train to the end; return the summary on rank 0, None elsewhere."""
        config, start = self._config, self._pipeline.iteration
        if self._control.is_reporter:
            self._last_loss = run_folder.last_loss(self._run_dir)  # of a resumed run
            self._reporter = Reporter(self._run_dir, self._num_iterations, start, quiet=self._quiet)
        tracing = Tracing(
            config, self._pipeline, self._control, start=start, num_iterations=self._num_iterations
        )
        self._started_s = time.perf_counter()
        try:
            for iteration in range(start, self._num_iterations):
                tracing.before(iteration)
                self._train(iteration)
                done = iteration + 1
                if done % config.records.log_every == 0:
                    self._send_losses(done)
                self._receive_losses(until=done - self._loss_delay)
                if done % (self._per_epoch * config.records.evaluate_every) == 0:
                    if done < self._num_iterations:
                        self._evaluate(done, "validation" if self._source.validation else "test")
                if config.records.checkpoint_every and done % config.records.checkpoint_every == 0:
                    self._checkpoint(done)
            return self._finish(tracing)
        finally:
            if self._reporter:
                self._reporter.close()

    def _train(self, iteration: int) -> None:
        config, source = self._config, self._source
        indices = batch_indices(
            seed=config.run.seed,
            iteration=iteration,
            num_samples=source.train.num_samples,
            batch_size=config.run.batch_size,
        )
        lr = config.learning_rate(iteration, self._num_iterations)
        for optimizer in filter(None, self._pipeline.optimizers):
            for group in optimizer.param_groups:
                group["lr"] = lr
        inputs = targets = None
        if self._control.rank == 0:
            rng = augmentation_rng(seed=config.run.seed, iteration=iteration)
            inputs = place(source.train.inputs(indices, rng), config, self._device)
        if self._pipeline.wants_targets:
            targets = source.train.targets(indices).to(self._device)
        loss = self._pipeline.step(inputs, targets)
        if loss is not None:
            self._losses.append(loss)
        self._samples += len(indices)
        if self._reporter:
            self._reporter.progress(iteration + 1)

    def _report_direction(self, row: Row, warning: str | None) -> None:
        if self._reporter is None:
            return
        iteration = row["iteration"]
        at = {"iteration": iteration, "epoch": round(iteration / self._per_epoch, 4)}
        stage = {name: value for name, value in row.items() if name != "iteration"}
        self._reporter.event("direction", **at, stages=[stage])
        if warning is not None:
            warn(f"iteration {self._pipeline.iteration}: {warning}")
            self._reporter.event("warning", **at, text=warning)

    @property
    def _train_s(self) -> float:
        """Seconds since the start, without those set aside."""
        return time.perf_counter() - self._started_s - self._aside_s

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Do not count the block's duration as training."""
        started_s = time.perf_counter()
        yield
        self._aside_s += time.perf_counter() - started_s

    def _send_losses(self, done: int) -> None:
        """Send the losses since the last report from the last rank to rank 0."""
        if self._control.is_last:
            losses = [float(loss) for loss in self._losses]
            for index, loss in enumerate(losses):
                if not math.isfinite(loss):
                    self._note_divergence(done - len(losses) + index, loss)
                    raise NonFiniteLossError(
                        f"the loss is not finite (loss: {loss}, iteration: "
                        f"{done - len(losses) + index}); lower --lr (now "
                        f"{self._config.optimizer.lr:g}), or use fewer stages or --warmup; "
                        "checkpoints already written are kept"
                    )
            self._losses.clear()
            self._control.send_losses(losses)
        if self._control.is_reporter:
            self._reports.append(done)

    def _note_divergence(self, iteration: int, loss: float) -> None:
        """Record the divergence: it is a result of the run."""
        event: dict[str, Any] = {
            "epoch": round(iteration / self._per_epoch, 4),
            "loss": str(loss),
        }
        if self._reporter:
            self._reporter.event("diverged", iteration, **event)
        else:  # rank 0 would hear of it too late
            run_folder.append_event(self._run_dir, "diverged", iteration=iteration, **event)

    def _receive_losses(self, until: int) -> None:
        """On rank 0: write down the reports made up to an iteration."""
        while self._reporter and self._reports and self._reports[0] <= until:
            done = self._reports.popleft()
            losses = self._control.receive_losses()
            if not losses:
                continue
            self._last_loss = sum(losses) / len(losses)
            self._reporter.training(
                done,
                epoch=round(done / self._per_epoch, 4),
                loss=self._last_loss,
                lr=self._config.learning_rate(done - 1, self._num_iterations),
                samples_per_s=round(self._samples / self._train_s, 2),
            )

    def _evaluate(self, done: int, split: str) -> Evaluation:
        """Evaluate on a split, in step with all ranks."""
        dataset = self._source.test if split == "test" else self._source.validation
        assert dataset is not None
        with self._aside():
            result = evaluate(
                self._pipeline,
                self._control,
                dataset,
                batch_size=self._config.records.evaluation_batch_size,
                place=lambda inputs: place(inputs, self._config, self._device),
            )
        if self._reporter:
            self._reporter.evaluation(done, round(done / self._per_epoch, 4), split, result)
        return result

    def _checkpoint(self, done: int) -> None:
        """Save everything, batches in flight included."""
        self._send_losses(done)  # also: no checkpoint of a run that has diverged
        self._receive_losses(until=done)
        folder = self._run_dir / run_folder.CHECKPOINTS
        with self._aside():
            about = self._control.broadcast(self._about() if self._reporter else None)
            state = self._pipeline.state_dict()
            stages = state.pop("stages").items()
            states = {int(k): {**state, "stage": stage_state} for k, stage_state in stages}
            keep = self._config.records.keep_checkpoints
            checkpoint.write(folder, done, states, self._control.share, about=about, keep=keep)
        if self._reporter:
            self._reporter.event("checkpoint", done)

    def _about(self) -> dict[str, Any]:
        return describe(self._config, self._source, self._run_dir)

    def _finish(self, tracing: Tracing) -> dict[str, Any] | None:
        self._pipeline.flush()
        self._send_losses(self._num_iterations)
        self._receive_losses(until=self._num_iterations)
        train_s = self._train_s
        if self._source.validation is not None:
            self._evaluate(self._num_iterations, "validation")
        result = self._evaluate(self._num_iterations, "test")
        mine = {n: t for m in self._pipeline.modules for n, t in m.state_dict().items()}
        parts = self._control.gather_tensors(mine)
        clocks = self._control.gather((self._pipeline.stage_seconds(), train_s))
        tensors = {name: t.cpu() for part in parts for name, t in part.items()}
        if self._control.is_reporter:
            run_folder.write_model(self._run_dir, tensors)
        trace = tracing.finish()
        if not self._control.is_reporter:
            return None
        config = self._config
        summary: dict[str, Any] = {
            "test_accuracy": result.accuracy,
            "test_loss": result.loss,
            "test_predictions": result.num_predictions,
            "train_loss": self._last_loss,
            "iterations": self._num_iterations,
            "epochs": self._num_iterations / self._per_epoch,
            "samples_per_s": self._samples / train_s,
            "train_s": train_s,
            "parameters_sha256": run_folder.parameters_sha256(tensors),
            "method": config.method.name,
            "num_stages": config.run.stages,
            "cuts": list(config.run.cuts),
            "stages": _stage_table(self._pipeline, clocks),
            "run_dir": str(self._run_dir),
        }
        guessing = math.log(self._source.num_classes)
        if self._last_loss is not None and self._last_loss > _DIVERGED * guessing:
            summary["diverged"] = (
                f"the training loss ended at {self._last_loss:.3g}, far above guessing "
                f"({guessing:.3g}): the run has diverged; lower --lr (now "
                f"{self._config.optimizer.lr:g}), or use fewer stages or --warmup"
            )
        if trace is not None:
            summary["trace"] = trace
        run_folder.write_json(self._run_dir / run_folder.SUMMARY, summary)
        return summary


def _stage_table(pipeline: Pipeline, clocks: list[Any]) -> list[dict[str, Any]]:
    """Say per stage which part of its process's training time went where."""
    rows: list[dict[str, Any]] = []
    for stages, train_s in clocks:
        for seconds in stages:
            delay = pipeline.method.delay(len(rows), pipeline.num_stages)
            shares = {f"{activity}_share": s / train_s for activity, s in seconds.items()}
            rows.append({"stage": len(rows), "delay": delay, **shares})
    return rows
