"""A trace survives the disk, and brings all ranks to one clock."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from timelines import MS, simulated

from delaygrad.errors import DataError
from delaygrad.records import TRACE_EVENTS, ClockReading, StageTrace, Trace, read_trace


def on_a_clock(stage: StageTrace, offset_ns: int, drift: float = 0.0) -> StageTrace:
    """The same stage as a rank records it whose clock is ahead, and runs faster, by so much."""

    def seen(time_ns: int) -> int:
        return round(time_ns * (1 + drift)) + offset_ns

    return replace(
        stage,
        events=tuple(e._replace(start_ns=seen(e.start_ns)) for e in stage.events),
        iterations=tuple(
            i._replace(
                start_ns=seen(i.start_ns), end_ns=None if i.end_ns is None else seen(i.end_ns)
            )
            for i in stage.iterations
        ),
    )


def test_a_constant_offset_is_taken_away_exactly() -> None:
    stage = simulated([(3, 5, 1)], 4).stages[0]
    readings = [ClockReading(7_000, 5_000_000_123, 40), ClockReading(9_000, 5_000_000_123, 60)]
    there = on_a_clock(stage, 5_000_000_123).on_first_clock(readings)
    assert there.events == stage.events and there.iterations == stage.iterations
    assert there.clock == readings[0]  # the better one


def test_a_drift_between_two_readings_is_taken_away() -> None:
    stage = simulated([(300, 500, 100)], 20).stages[0]
    drift, offset, end = 5e-5, -3_000_000, 30_000 * MS  # 50 ppm: 1.5 ms in 30 s
    readings = [
        ClockReading(round(t * (1 + drift)) + offset, round(t * drift) + offset, 0)
        for t in (0, end)
    ]
    there = on_a_clock(stage, offset, drift).on_first_clock(readings)
    for found, true in zip(there.events, stage.events, strict=True):
        assert abs(found.start_ns - true.start_ns) <= 2


def test_readings_that_differ_by_less_than_their_uncertainty_are_no_drift() -> None:
    stage = simulated([(3, 5, 1)], 4).stages[0]
    readings = [ClockReading(0, 900_000, 900_000), ClockReading(MS, 20, 50)]
    there = on_a_clock(stage, 20).on_first_clock(readings)
    assert there.events == stage.events and there.clock == readings[1]


@pytest.mark.parametrize("drift", [-0.01, 0.01])
def test_slices_that_met_before_a_drift_was_taken_away_meet_after_it(drift: float) -> None:
    stage = simulated([(3, 5, 1)], 30).stages[0]
    readings = [ClockReading(0, 0, 0), ClockReading(100 * MS, round(100 * MS * drift), 0)]
    events = stage.on_first_clock(readings).events
    for earlier, later in itertools.pairwise(events):
        assert earlier.end_ns == later.start_ns
    assert events[0].duration_ns == pytest.approx(3 * MS * (1 - drift), rel=1e-6)


def test_one_reading_will_do() -> None:
    stage = simulated([(3, 5, 1)], 2).stages[0]
    assert on_a_clock(stage, 44).on_first_clock([ClockReading(0, 44, 1)]).events == stage.events


def test_a_trace_is_read_back(tmp_path: Path) -> None:
    trace = simulated([(3, 5, 1), (2, 2, 1)], 5)
    (tmp_path / TRACE_EVENTS).write_text(json.dumps(trace.to_json()))
    assert read_trace(tmp_path) == trace
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(("num_processes", "held"), [(1, (3,)), (3, (1, 1, 1))])
def test_a_trace_of_before_processes_could_share_stages_is_read(
    num_processes: int, held: tuple[int, ...]
) -> None:
    values = simulated([(3, 6, 1)] * 3, 4).to_json()
    del values["stages_per_process"]
    found = Trace.from_json({**values, "num_processes": num_processes})
    assert found.stages_per_process == held


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has recorded no timeline (missing: "),
        ("{", "is corrupt, or of another version"),
        ("[]", "is corrupt, or of another version"),
        ('{"format": 99}', "unknown format (format: 99)"),
        ('{"format": 1, "method": "", "num_processes": 1, "stages": [{}]}', "is corrupt"),
    ],
)
def test_a_missing_or_corrupt_file_is_one_clear_error(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / TRACE_EVENTS).write_text(content)
    with pytest.raises(DataError) as caught:
        read_trace(tmp_path)
    assert message in str(caught.value)
