"""What is read off a timeline is what went into it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from timelines import MS, simulated

from delaygrad.records import Event, StageTrace, Trace, measure_trace
from delaygrad.records.measures import steady_iterations


def test_a_slow_first_stage_is_never_idle_and_the_last_one_waits_for_it() -> None:
    trace = simulated([(30, 60, 5), (10, 20, 5)], 12, hop_ms=2, send_ms=1)
    found = measure_trace(trace)
    first, last = found["stages"]
    # 30 + 60 + 5 and one send; the first steady iteration still is 2 ms off.
    assert found["iteration_s"] == pytest.approx(0.096, rel=3e-3)
    assert found["predicted_iteration_s"] == pytest.approx(0.095)
    assert found["bottleneck_stage"] == 0
    assert first["idle_share"] == 0
    assert last["idle_share"] == pytest.approx((96 - 10 - 20 - 5 - 1) / 96, rel=5e-3)
    assert [first[f"{name}_s"] for name in ("forward", "backward", "update", "send")] == (
        pytest.approx([0.030, 0.060, 0.005, 0.001])
    )
    assert found["hop_latency_s"] == pytest.approx(0.002)
    down, up = found["hops"]
    assert (down["sender"], down["receiver"], down["content"]) == (0, 1, "activation")
    assert down["hop_latency_s"] == pytest.approx(0.002) and down["num_bytes"] == 64
    assert down["num_waited_for"] == found["steady_iterations"] == 9  # 12, less fill and last
    assert up["content"] == "error gradient"
    assert up["hop_latency_s"] is None and up["num_waited_for"] == 0  # it always came early


def test_time_between_iterations_is_of_no_activity() -> None:
    found = measure_trace(simulated([(10, 20, 3)], 6, between_ms=7))
    (row,) = found["stages"]
    assert found["iteration_s"] == pytest.approx(0.040)
    assert row["other_s"] == pytest.approx(0.007) and row["idle_share"] == 0
    assert found["predicted_iteration_s"] == pytest.approx(0.033)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_staleness_is_the_delay_and_balanced_stages_hide_nothing_but_the_hops(
    num_stages: int,
) -> None:
    found = measure_trace(simulated([(30, 60, 10)] * num_stages, 30))
    assert [row["staleness_max"] for row in found["stages"]] == list(range(num_stages))[::-1]
    assert [row["staleness_mean"] for row in found["stages"]] == list(range(num_stages))[::-1]
    assert found["iteration_s"] == pytest.approx(found["predicted_iteration_s"])
    assert all(row["idle_share"] == pytest.approx(0, abs=1e-9) for row in found["stages"])


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_exposed_hops_lengthen_an_iteration(num_stages: int) -> None:
    # A batch goes up through K-1 hops and down through as many, and stage 0 has K iterations for
    # that: 2c(K-1)/K of each is waiting, towards 2c with many stages.
    found = measure_trace(simulated([(30, 60, 0)] * num_stages, 63, hop_ms=6))
    exposed = 0.012 * (num_stages - 1) / num_stages
    assert found["iteration_s"] == pytest.approx(0.090 + exposed, rel=2e-3)
    assert found["predicted_iteration_s"] == pytest.approx(0.090)


def test_fill_open_ends_and_the_iterations_after_an_interruption_do_not_count() -> None:
    trace = simulated([(3, 6, 1)] * 3, 12)
    assert steady_iterations(trace) == list(range(3, 11))
    # As if an evaluation had come after iteration 6: its end is not known, and it starts anew.
    stages = tuple(
        replace(
            stage,
            iterations=tuple(
                i._replace(
                    end_ns=None if i.iteration in (6, 11) else i.end_ns,
                    settled=i.iteration if i.iteration <= 6 else i.iteration - 7,
                )
                for i in stage.iterations
            ),
        )
        for stage in trace.stages
    )
    assert steady_iterations(replace(trace, stages=stages)) == [3, 4, 5, 10]


def test_an_iteration_that_one_stage_lacks_counts_for_none() -> None:
    trace = simulated([(3, 6, 1)] * 2, 8)
    first = trace.stages[0]
    shorter = replace(first, iterations=first.iterations[4:])
    assert steady_iterations(replace(trace, stages=(shorter, trace.stages[1]))) == [4, 5, 6]


@pytest.mark.parametrize("num_iterations", [0, 1, 3])
def test_without_a_steady_iteration_nothing_is_said(num_iterations: int) -> None:
    found = measure_trace(simulated([(3, 6, 1)] * 3, num_iterations))
    assert found["steady_iterations"] == 0 and found["recorded_iterations"] == num_iterations
    assert found["iteration_s"] is found["predicted_iteration_s"] is None
    assert all(row["idle_share"] is row["forward_s"] is None for row in found["stages"])


def test_where_stages_take_turns_being_idle_has_no_meaning() -> None:
    trace = replace(simulated([(3, 6, 1)] * 2, 8), stages_per_process=(2,))
    found = measure_trace(trace)
    assert trace.takes_turns and found["hops"] == [] and found["hop_latency_s"] is None
    assert all(row["idle_share"] is row["other_s"] is None for row in found["stages"])
    assert found["predicted_iteration_s"] == pytest.approx(0.010)
    alone = simulated([(3, 6, 1)], 8)
    assert not alone.takes_turns
    assert measure_trace(alone)["stages"][0]["idle_share"] == 0


def test_a_message_that_was_there_before_it_was_wanted_says_nothing_about_hops() -> None:
    trace = simulated([(10, 20, 0), (30, 60, 0)], 12, hop_ms=3)
    found = measure_trace(trace)
    hops = {hop["content"]: hop for hop in found["hops"]}
    assert hops["activation"]["hop_latency_s"] is None
    assert hops["error gradient"]["hop_latency_s"] == pytest.approx(0.003)
    assert found["bottleneck_stage"] == 1


def test_stages_without_delay_take_turns_and_their_times_add_up() -> None:
    trace = simulated([(30, 60, 5), (10, 20, 5)], 12)
    turns = replace(trace, stages=tuple(replace(stage, delay=0) for stage in trace.stages))
    assert measure_trace(turns)["predicted_iteration_s"] == pytest.approx(0.095 + 0.035)


def test_stages_of_one_process_share_what_is_idle_and_what_is_of_no_activity() -> None:
    apart = simulated([(5, 10, 5)], 6, between_ms=40).stages[0]  # an iteration takes 60
    waits = tuple(Event("wait", "F", t, t, 0, 6 * MS, 0, 0) for t in range(6))
    waiting = replace(apart, events=apart.events + waits)
    stages = tuple(
        replace(stage, stage_index=k, delay=2 - k)
        for k, stage in enumerate((apart, waiting, waiting))
    )
    trace = Trace(method="DDG()", stages_per_process=(1, 2), stages=stages)
    found = measure_trace(replace(trace, stages=tuple(_settled(stage) for stage in stages)))
    alone, *shared = found["stages"]
    assert not trace.takes_turns and trace.by_process == [[0], [1, 2]]
    assert alone["other_s"] == pytest.approx(0.040) and alone["idle_share"] == 0
    for row in shared:
        assert row["wait_s"] == pytest.approx(0.006)
        assert row["other_s"] == pytest.approx(0.060 - 2 * 0.026)
        assert row["idle_share"] == pytest.approx(2 * 6 / 60)
    assert found["predicted_iteration_s"] == pytest.approx(0.040)
    assert found["bottleneck_stage"] == 1
    among = measure_trace(replace(simulated([(3, 6, 1)] * 3, 12), stages_per_process=(1, 2)))
    assert [(hop["sender"], hop["receiver"]) for hop in among["hops"]] == [(0, 1), (1, 0)]


def _settled(stage: StageTrace) -> StageTrace:
    return replace(stage, iterations=tuple(i._replace(settled=9) for i in stage.iterations))
