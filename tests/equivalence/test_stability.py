"""A delayed step on a quadratic: the sharpest test of the delay itself.

Gradient descent on ``curvature * w**2 / 2`` with a gradient D updates old is stable exactly below
what ``delaygrad.theory`` says, so a delay that is off by one misses it by far.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.methods import Method
from delaygrad.theory import largest_stable_step

CURVATURE = 4.0
OPTIONS = [(0.0, False), (0.9, False), (0.5, True)]


class Position(nn.Module):
    """The only parameter of the network; ignores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.w * 1.0


def trajectory(
    delay: int, share: float, num_iterations: int, momentum: float, nesterov: bool
) -> tuple[float, list[float]]:
    """The step, which is so much of the largest stable one, and w after each iteration."""
    options = {"momentum": momentum, "nesterov": nesterov}
    lr = share * largest_stable_step(delay, curvature=CURVATURE, **options)
    position = Position()
    pipe = dg.LocalPipeline(
        [position, *(nn.Identity() for _ in range(delay))],
        lambda w, _: CURVATURE * w**2 / 2,
        lambda params: torch.optim.SGD(params, lr=lr, **options),
        method=dg.DDG(),
    )
    visited = []
    for _ in range(num_iterations):
        pipe.step(torch.zeros(1), None)
        visited.append(position.w.item())
    return lr, visited


@pytest.mark.parametrize(("momentum", "nesterov"), OPTIONS)
@pytest.mark.parametrize("delay", [0, 1, 4])
def test_it_is_stable_exactly_below_the_limit(delay: int, momentum: float, nesterov: bool) -> None:
    window = 40 * (delay + 1)  # several periods of the slowest oscillation, 4 D + 2 updates long
    for share in (0.95, 1.05):
        _, w = trajectory(delay, share, 3 * window, momentum, nesterov)
        grown = max(map(abs, w[2 * window :])) / max(map(abs, w[:window]))
        assert grown < 0.8 if share < 1 else grown > 1.3


@pytest.mark.parametrize("micro_batches", [3, 4, 6, 12])  # mean delay 1, 3/4, 1/2, 1/4
@pytest.mark.parametrize("rule", [dg.DDG, dg.Lookahead])
def test_with_micro_batches_the_limit_is_that_of_the_mean_delay(
    rule: Callable[..., Method], micro_batches: int
) -> None:
    method, num_stages = rule(micro_batches=micro_batches), 4
    horizon = method.forward_weights.horizon_in_updates(method.schedule, 0, num_stages) or 0.0
    limit = largest_stable_step(
        (num_stages - 1) / micro_batches, curvature=CURVATURE, momentum=0.9, horizon=horizon
    )
    batch, window = torch.zeros(micro_batches), 80
    for share in (0.95, 1.05):
        position = Position()
        pipe = dg.LocalPipeline(
            [position, *(nn.Identity() for _ in range(num_stages - 1))],
            lambda w, _: CURVATURE * w**2 / 2,
            functools.partial(torch.optim.SGD, lr=share * limit, momentum=0.9),
            method=method,
            loss_weight="mean",
        )
        w = []
        for _ in range(3 * window):
            pipe.step(batch, batch)
            w.append(abs(position.w.item()))
        grown = max(w[2 * window :]) / max(w[:window])
        assert grown < 0.8 if share < 1 else grown > 1.3


@pytest.mark.parametrize(("momentum", "nesterov"), OPTIONS)
@pytest.mark.parametrize("delay", [0, 1, 3, 7, 15])
def test_every_step_is_the_recursion(delay: int, momentum: float, nesterov: bool) -> None:
    lr, found = trajectory(delay, 0.9, 60, momentum, nesterov)
    w, buffer = [1.0], 0.0
    for t in range(60):
        gradient = CURVATURE * w[t - delay] if t >= delay else 0.0
        buffer = momentum * buffer + gradient
        w.append(w[t] - lr * (gradient + momentum * buffer if nesterov else buffer))
    assert found == pytest.approx(w[1:], rel=1e-12, abs=1e-14)
