"""The learning rate of each iteration, in literal values."""

from __future__ import annotations

import math

import pytest

from delaygrad.training import TrainConfig


def rates(config: TrainConfig, num_iterations: int) -> list[float]:
    return [config.learning_rate(t, num_iterations) for t in range(num_iterations)]


def test_constant() -> None:
    assert rates(TrainConfig.of(lr=0.2, lr_schedule="constant"), 3) == [0.2, 0.2, 0.2]


def test_cosine_begins_at_the_full_rate_and_nears_zero() -> None:
    found = rates(TrainConfig.of(lr=2.0, lr_schedule="cosine"), 4)
    half = math.sqrt(0.5)
    assert found == pytest.approx([2.0, 1 + half, 1.0, 1 - half], abs=1e-15)


def test_step_falls_at_each_milestone() -> None:
    config = TrainConfig.of(lr=1.0, lr_schedule="step", lr_milestones=(0.5, 0.75), lr_factor=0.1)
    assert rates(config, 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-15)


def test_theorem_falls_as_a_power_of_the_iteration() -> None:
    config = TrainConfig.of(lr=0.8, lr_schedule="theorem", lr_time_scale=2.0, lr_power=1.0)
    assert rates(config, 7) == pytest.approx([0.8 / (1 + t / 2) for t in range(7)], rel=1e-15)
    # by the number of the iteration alone: a longer run begins with the same rates
    assert rates(config, 3) == rates(config, 7)[:3]
    slow = TrainConfig.of(lr=1.0, lr_schedule="theorem")
    assert slow.learning_rate(1000, 5000) == pytest.approx(2**-0.6, rel=1e-15)


def test_theorem_after_a_warmup() -> None:
    config = TrainConfig.of(
        lr=1.0, lr_schedule="theorem", lr_time_scale=1.0, lr_power=1.0, warmup=2
    )
    assert rates(config, 4) == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 4], rel=1e-15)


def test_warmup_rises_to_the_schedule() -> None:
    config = TrainConfig.of(lr=1.0, lr_schedule="constant", warmup=4)
    assert rates(config, 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_warmup_longer_than_the_run_never_arrives() -> None:
    config = TrainConfig.of(lr=1.0, lr_schedule="constant", warmup=10)
    assert rates(config, 2) == [0.1, 0.2]


def test_milestones_need_no_order() -> None:
    config = TrainConfig.of(lr=1.0, lr_schedule="step", lr_milestones=(0.75, 0.5), lr_factor=0.5)
    assert rates(config, 4) == [1.0, 1.0, 0.5, 0.25]
