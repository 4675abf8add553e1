from __future__ import annotations

import time

import pytest
import torch

from delaygrad.bench.sleeping import sleeper

LATE_S = 1e-4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of its own, whose naps take a little too long; its only item is the time."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds + LATE_S if seconds else 0.0

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr("delaygrad.bench.sleeping._ALARM._debt_s", 0.0)
    return now


def test_layers_sleep_their_times_and_micro_batches_their_share(clock: list[float]) -> None:
    model = sleeper([(0.02, 0.04)] * 2, batch_size=4)
    for size in (4, 1):
        start = clock[0]
        outputs = model(torch.zeros(size, 3))
        middle = clock[0]
        outputs.sum().backward()
        assert middle - start == pytest.approx(0.04 * size / 4, abs=1.1 * LATE_S)
        assert clock[0] - middle == pytest.approx(0.08 * size / 4, abs=1.1 * LATE_S)


def test_many_short_naps_take_no_longer_than_a_long_one(clock: list[float]) -> None:
    model = sleeper([(0.1, 0.1)], batch_size=50)
    with torch.no_grad():
        for _ in range(50):
            model(torch.zeros(1, 1))
    assert clock[0] == pytest.approx(0.1, abs=1.1 * LATE_S)


def test_gradients_are_those_of_adding_a_number() -> None:
    model = sleeper([(1e-4, 1e-4)] * 2, batch_size=2)
    inputs = torch.ones(2, 3, requires_grad=True)
    (2 * model(inputs)).sum().backward()
    assert torch.equal(inputs.grad, torch.full((2, 3), 2.0))
    assert [p.grad.item() for p in model.parameters()] == [12.0, 12.0]
