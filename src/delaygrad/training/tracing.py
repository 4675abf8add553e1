"""Record a window of a run as a timeline of all stages."""

from __future__ import annotations

from typing import Any

from delaygrad.records import ClockReading, StageTrace, Trace, measure_trace
from delaygrad.runtime import Pipeline
from delaygrad.runtime.control import Control
from delaygrad.training import run_folder
from delaygrad.training.config import TrainConfig

_WARM_UP = 10


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
        last = (
            num_iterations - config.records.trace - 1
        )  # one more, so that the window's end is seen
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
