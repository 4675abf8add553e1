from __future__ import annotations

import time

import torch

from delaygrad.bench.sleeping import sleeper


def test_layers_sleep_their_times_and_micro_batches_their_share() -> None:
    model = sleeper([(0.02, 0.04)] * 2, batch_size=4)
    for size in (4, 1):
        share = size / 4
        start = time.perf_counter()
        outputs = model(torch.zeros(size, 3))
        middle = time.perf_counter()
        outputs.sum().backward()
        end = time.perf_counter()
        # Late is possible on a busy machine; early would flatter somebody.
        assert 0.95 * share * 0.04 <= middle - start <= share * 0.04 + 0.1
        assert 0.95 * share * 0.08 <= end - middle <= share * 0.08 + 0.1


def test_many_short_naps_take_no_longer_than_a_long_one() -> None:
    model = sleeper([(0.1, 0.1)], batch_size=50)
    sample = torch.zeros(1, 1)
    best = min(_seconds(model, sample) for _ in range(3))
    assert 0.095 <= best <= 0.115


def _seconds(model: torch.nn.Module, sample: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(50):
            model(sample)
    return time.perf_counter() - start


def test_gradients_are_those_of_adding_a_number() -> None:
    model = sleeper([(1e-4, 1e-4)] * 2, batch_size=2)
    inputs = torch.ones(2, 3, requires_grad=True)
    (2 * model(inputs)).sum().backward()
    assert torch.equal(inputs.grad, torch.full((2, 3), 2.0))
    assert [p.grad.item() for p in model.parameters()] == [12.0, 12.0]
