"""The closed form for a delayed step on a quadratic: the sharpest test of the delay itself.

Gradient descent on ``curvature * w**2 / 2`` with a gradient D updates old is stable exactly below

    lr * curvature = 2 sin(pi / (4 D + 2))

so a delay that is off by one, or a gradient linearised at the live parameter, misses it by far.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import delaygrad as dg

CURVATURE = 4.0


class Position(nn.Module):
    """The only parameter of the network; ignores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.w * 1.0


def trajectory(delay: int, fraction: float, num_iterations: int) -> Tensor:
    """|w| after each iteration, at ``fraction`` of the largest stable step."""
    lr = fraction * 2 * math.sin(math.pi / (4 * delay + 2)) / CURVATURE
    position = Position()
    pipe = dg.LocalPipeline(
        [position, *(nn.Identity() for _ in range(delay))],
        lambda w, _: CURVATURE * w**2 / 2,
        lambda params: torch.optim.SGD(params, lr=lr),
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
    below = trajectory(delay, 0.97, 2 * window)
    above = trajectory(delay, 1.03, 2 * window)
    assert below[window:].max() < 0.8 * below[:window].max()
    assert above[window:].max() > 1.3 * above[:window].max()


@pytest.mark.parametrize("delay", [1, 3, 7])
def test_every_step_is_the_recursion(delay: int) -> None:
    # w[t+1] = w[t] - lr * curvature * w[t-D], to the last bit, in float64
    lr = 0.9 * 2 * math.sin(math.pi / (4 * delay + 2)) / CURVATURE
    w = [torch.tensor(1.0, dtype=torch.float64)]
    for t in range(40):
        gradient = CURVATURE * w[t - delay] if t >= delay else torch.zeros_like(w[0])
        w.append(w[t] - lr * gradient)
    torch.testing.assert_close(
        trajectory(delay, 0.9, 40), torch.stack(w[1:]).abs(), rtol=1e-12, atol=1e-14
    )
