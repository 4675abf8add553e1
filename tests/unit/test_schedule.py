"""Timetables as a reader checks them by eye, and the rules that every one of them obeys."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.errors import ScheduleError
from delaygrad.schedule import (
    FLUSH,
    LOCKED,
    Action,
    Kind,
    Schedule,
    flush,
    locked,
    render,
    unlocked,
    validate,
)

UNLOCKED = unlocked()
SCHEDULES = [
    LOCKED,
    FLUSH,
    UNLOCKED,
    locked(slack=1),
    locked(slack=2, micro_batches=3),
    locked(micro_batches=4),
    flush(micro_batches=2),
    dataclasses.replace(UNLOCKED, micro_batches=2),
]


# Without the addresses of functions, which differ between the workers of a parallel run.
NAMES = [f"{index} {schedule.name}" for index, schedule in enumerate(SCHEDULES)]


def drawn(schedule: Schedule, num_stages: int, num_batches: int, drain: int = 0) -> list[str]:
    iterations = [
        schedule.actions(t, num_stages, end_batch=num_batches) for t in range(num_batches + drain)
    ]
    return render(iterations, num_stages).splitlines()


def test_locked_staircase_with_its_drain() -> None:
    assert drawn(LOCKED, 4, 5, drain=3) == [
        "iteration  0      1      2      3      4      5   6   7",
        "stage 0    F0     F1     F2     F3 B0  F4 B1  B2  B3  B4",
        "stage 1    F0     F1     F2 B0  F3 B1  F4 B2  B3  B4",
        "stage 2    F0     F1 B0  F2 B1  F3 B2  F4 B3  B4",
        "stage 3    F0 B0  F1 B1  F2 B2  F3 B3  F4 B4",
    ]


def test_flush_staircase() -> None:
    assert drawn(FLUSH, 3, 3) == [
        "iteration  0      1      2",
        "stage 0    F0 B0  F1 B1  F2 B2",
        "stage 1    F0 B0  F1 B1  F2 B2",
        "stage 2    F0 B0  F1 B1  F2 B2",
    ]


def test_unlocked_staircase_with_its_drain() -> None:
    assert drawn(UNLOCKED, 3, 4, drain=4) == [
        "iteration  0   1   2      3      4      5      6   7",
        "stage 0    F0  F1  F2     F3     B0     B1     B2  B3",
        "stage 1        F0  F1     F2 B0  F3 B1  B2     B3",
        "stage 2            F0 B0  F1 B1  F2 B2  F3 B3",
    ]


def test_slack_leaves_an_iteration_between_the_backward_of_neighbours() -> None:
    assert drawn(locked(slack=1), 3, 5, drain=4) == [
        "iteration  0      1      2      3      4      5   6   7   8",
        "stage 0    F0     F1     F2     F3     F4 B0  B1  B2  B3  B4",
        "stage 1    F0     F1     F2 B0  F3 B1  F4 B2  B3  B4",
        "stage 2    F0 B0  F1 B1  F2 B2  F3 B3  F4 B4",
    ]


def test_micro_batches_update_after_the_last_backward_of_their_batch() -> None:
    def told(stage: int) -> str:
        schedule = locked(micro_batches=2)
        run = [a for t in range(6) for a in schedule.actions(t, 3)]
        every = [*run, *schedule.drain(6, 3)]
        return " ".join(str(a)[1:] for a in every if a.stage_index == stage)

    assert told(0) == "F0 F1 F2 B0 F3 B1 U1 F4 B2 F5 B3 U3 B4 B5 U5"
    assert told(1) == "F0 F1 B0 F2 B1 U1 F3 B2 F4 B3 U3 F5 B4 B5 U5"
    assert told(2) == "F0 B0 F1 B1 U1 F2 B2 F3 B3 U3 F4 B4 F5 B5 U5"


@given(
    num_stages=st.integers(1, 7),
    slack=st.integers(0, 2),
    micro_batches=st.integers(1, 6),
)
def test_delay_is_the_most_updates_between_a_forward_and_its_backward(
    num_stages: int, slack: int, micro_batches: int
) -> None:
    schedule = locked(slack, micro_batches)
    run = [a for t in range(40 * micro_batches) for a in schedule.actions(t, num_stages)]
    for k in range(num_stages):
        updates, at_forward, seen = 0, {}, []
        for action in (a for a in run if a.stage_index == k):
            if action.kind is Kind.FORWARD:
                at_forward[action.batch_index] = updates
            elif action.kind is Kind.BACKWARD:
                seen.append(updates - at_forward.pop(action.batch_index))
            else:
                updates += 1
        assert max(seen) == schedule.delay(k, num_stages)
        assert len(at_forward) == schedule.lag(k, num_stages)  # what waits between two ticks


def test_one_process_can_follow_the_order_within_an_iteration() -> None:
    def told(schedule: Schedule) -> str:
        return " ".join(map(str, schedule.actions(5, 3)))

    assert told(LOCKED) == "0F5 1F5 2F5 2B5 2U5 1B4 1U4 0B3 0U3"
    assert told(FLUSH) == "0F5 1F5 2F5 2B5 2U5 1B5 1U5 0B5 0U5"
    assert told(UNLOCKED) == "0F5 1F4 2F3 2B3 2U3 1B2 1U2 0B1 0U1"


def test_delays_of_the_paper() -> None:
    assert [LOCKED.delay(k, 5) for k in range(5)] == [4, 3, 2, 1, 0]
    assert [FLUSH.delay(k, 5) for k in range(5)] == [0] * 5
    assert LOCKED.delay(0, 1) == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@given(num_stages=st.integers(1, 9), lengths=st.lists(st.integers(0, 12), max_size=3))
def test_every_phase_uses_every_batch_once_in_an_order_that_works(
    schedule: Schedule, num_stages: int, lengths: list[int]
) -> None:
    everything: list[Action] = []
    first, parts = 0, schedule.micro_batches
    lengths = [parts * length for length in lengths]
    for length in lengths:  # phases, each ended by its drain
        for t in range(first, first + length):
            everything += schedule.actions(t, num_stages, first_batch=first)
        everything += schedule.drain(first + length, num_stages, first_batch=first)
        first += length
    validate(everything, num_stages, parts)
    assert len(everything) == num_stages * (2 * sum(lengths) + sum(lengths) // parts)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@given(t=st.integers(0, 30), num_stages=st.integers(1, 9))
def test_an_actions_iteration_is_that_in_which_it_is_listed(
    schedule: Schedule, t: int, num_stages: int
) -> None:
    actions = schedule.actions(t, num_stages)
    iterations = {schedule.iteration_of(a, num_stages) for a in actions}
    assert iterations == {t // schedule.micro_batches}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@given(t=st.integers(0, 30), num_stages=st.integers(1, 9), data=st.data())
def test_the_actions_of_some_stages_are_those_of_all_without_the_others(
    schedule: Schedule, t: int, num_stages: int, data: st.DataObject
) -> None:
    stages = sorted(data.draw(st.sets(st.integers(0, num_stages - 1))))
    of_all = schedule.actions(t, num_stages), schedule.drain(t, num_stages)
    of_some = (
        schedule.actions(t, num_stages, stages=stages),
        schedule.drain(t, num_stages, stages=stages),
    )
    for some, every in zip(of_some, of_all, strict=True):
        assert list(some) == [action for action in every if action.stage_index in stages]


def test_backward_of_one_batch_starts_one_iteration_later_on_each_stage_below() -> None:
    for schedule, apart in ((LOCKED, 1), (UNLOCKED, 1), (locked(slack=2), 3)):
        backward = [
            schedule.iteration_of(Action(k, Kind.BACKWARD, 7), num_stages=4) for k in range(4)
        ]
        assert [below - above for below, above in pairwise(backward)] == [apart] * 3


@pytest.mark.parametrize("stage", [-1, 3])
def test_a_stage_that_does_not_exist_is_refused(stage: int) -> None:
    with pytest.raises(ScheduleError, match=rf"no such stage \(stage: {stage}, stages: 3\)"):
        LOCKED.delay(stage, 3)


@given(st.builds(Action, st.integers(0, 99), st.sampled_from(Kind), st.integers(0, 10**6)))
def test_what_an_action_prints_it_reads(action: Action) -> None:
    assert Action.parse(str(action)) == action


@pytest.mark.parametrize("text", ["", "2F", "F0", "2X0", "2F0 ", "-1F0", "2f0", "2F0B1", "2F-1"])
def test_what_is_no_action_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="not an action .*actions look like 2F0"):
        Action.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1F0 0F0", r"too early \(action: 1F0, needs: 0F0\)"),
        ("0F0 0B0", r"too early \(action: 0B0, needs: 1B0\)"),
        ("0F0 1B0", r"too early \(action: 1B0, needs: 1F0\)"),
        ("0F0 1F0 1U0", r"too early \(action: 1U0, needs: 1B0\)"),
        ("0F0 0F0", r"twice \(action: 0F0\)"),
        ("2F0", r"no such stage \(action: 2F0, stages: 2\)"),
        ("0F0 1F0 1B0 1U0 0B0", r"unfinished batch \(missing: 0U0\)"),
        ("0F0 1F0 1B0 1U0 0B0 0U0 0F1", r"missing: 0B1, 0U1, 1F1, 1B1, 1U1"),
    ],
)
def test_a_timetable_that_breaks_a_rule_is_refused(text: str, told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        validate(map(Action.parse, text.split()), num_stages=2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0F0 0B0 0U0", r"update within a batch \(action: 0U0, micro-batches: 2\)"),
        ("0F0 0B0 0F1 0U1", r"too early \(action: 0U1, needs: 0B1\)"),
        ("0F0 0B0 0F1 0B1 0F2 0B2", r"too early \(action: 0B2, needs: 0U1\)"),
        ("0F0 0B0 0F1 0B1", r"missing: 0U1"),
    ],
)
def test_an_update_in_the_wrong_place_is_refused(text: str, told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        validate(map(Action.parse, text.split()), num_stages=1, micro_batches=2)


def test_schedules_with_the_same_rules_are_equal() -> None:
    assert Schedule("locked", LOCKED.offset_rule, LOCKED.lag_rule) == LOCKED != FLUSH
    assert locked(slack=1) == locked(slack=1) != locked(slack=2)
