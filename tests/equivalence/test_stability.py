"""The closed form for a delayed step on a quadratic: the sharpest test of the delay itself.

Gradient descent on ``curvature * w**2 / 2`` with a gradient D updates old is stable exactly below

    lr * curvature = 2 sin(pi / (4 D + 2))

so a delay that is off by one, or a gradient linearised at the live parameter, misses it by far.
With momentum the limit is where ``delaygrad.theory`` finds a root on the unit circle.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.theory import largest_stable_step

CURVATURE = 4.0


class Position(nn.Module):
    """The only parameter of the network; ignores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.w * 1.0


def closed_form(delay: int) -> float:
    return 2 * math.sin(math.pi / (4 * delay + 2)) / CURVATURE


def trajectory(
    delay: int, lr: float, num_iterations: int, *, momentum: float = 0.0, nesterov: bool = False
) -> Tensor:
    """|w| after each iteration."""
    position = Position()
    pipe = dg.LocalPipeline(
        [position, *(nn.Identity() for _ in range(delay))],
        lambda w, _: CURVATURE * w**2 / 2,
        lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov),
        method=dg.DDG(),
    )
    visited = []
    for _ in range(num_iterations):
        pipe.step(torch.zeros(1), None)
        visited.append(position.w.detach().abs().clone())
    return torch.stack(visited)


@pytest.mark.parametrize("delay", [0, 1, 3, 7, 15])
def test_a_delayed_step_is_stable_exactly_below_the_closed_form(delay: int) -> None:
    window = 15 * (delay + 1)  # several periods of the slowest oscillation, 4 D + 2 updates long
    below = trajectory(delay, 0.97 * closed_form(delay), 2 * window)
    above = trajectory(delay, 1.03 * closed_form(delay), 2 * window)
    assert below[window:].max() < 0.8 * below[:window].max()
    assert above[window:].max() > 1.3 * above[:window].max()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("delay", "momentum"), [(0, 0.9), (1, 0.9), (3, 0.5), (4, 0.9)])
def test_with_momentum_it_is_stable_exactly_below_the_roots_limit(
    delay: int, momentum: float, nesterov: bool
) -> None:
    settings = {"momentum": momentum, "nesterov": nesterov}
    limit = largest_stable_step(delay, curvature=CURVATURE, **settings)
    window = 40 * (delay + 1)  # roots move more slowly with momentum
    below = trajectory(delay, 0.95 * limit, 3 * window, **settings)
    above = trajectory(delay, 1.05 * limit, 3 * window, **settings)
    assert below[2 * window :].max() < 0.8 * below[:window].max()
    assert above[2 * window :].max() > 1.3 * above[:window].max()


@pytest.mark.parametrize("delay", [1, 3, 7])
def test_every_step_is_the_recursion(delay: int) -> None:
    # w[t+1] = w[t] - lr * curvature * w[t-D], to the last bit, in float64
    lr = 0.9 * closed_form(delay)
    w = [torch.tensor(1.0, dtype=torch.float64)]
    for t in range(40):
        gradient = CURVATURE * w[t - delay] if t >= delay else torch.zeros_like(w[0])
        w.append(w[t] - lr * gradient)
    torch.testing.assert_close(
        trajectory(delay, lr, 40), torch.stack(w[1:]).abs(), rtol=1e-12, atol=1e-14
    )
