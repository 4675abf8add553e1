"""The largest stable learning rate of the engine on a quadratic, against that of the recursion.

Stage 0 holds the only parameter; the loss is curvature * w^2 / 2. Each learning rate is tried by
training: |w| shrinks or grows. Bisection narrows 10 % on either side of the predicted limit down to
0.6 %. Prints a table, and writes it to records/table.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.methods import Method
from delaygrad.methods.axes import Live, Predicted, SpikeCompensation
from delaygrad.schedule import locked

CURVATURE, MOMENTUM = 4.0, 0.9
STAGES = (2, 4, 8, 16)
BISECTIONS = 5


class Position(nn.Module):
    """The only parameter of the network; ignores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.w * 1.0


def rule(*, predicts: float | None = None, spike: bool = False) -> Method:
    """DDG with one micro-batch; ``predicts``: updates beyond the delay."""
    ahead = Live() if predicts is None else Predicted("mean", offset=predicts)
    update = (SpikeCompensation(),) if spike else ()
    return Method(name="ddg", schedule=locked(), forward_weights=ahead, update=update)


# name, momentum, nesterov, method of K
RULES: list[tuple[str, float, bool, Callable[[int], Method]]] = [
    ("SGD", 0.0, False, lambda k: rule()),
    ("SGD, heavy ball", MOMENTUM, False, lambda k: rule()),
    ("SGD, Nesterov", MOMENTUM, True, lambda k: rule()),
    ("spike compensation", MOMENTUM, False, lambda k: rule(spike=True)),
    ("prediction", MOMENTUM, False, lambda k: rule(predicts=0.0)),
    ("prediction, spike compensation", MOMENTUM, False, lambda k: rule(predicts=0.0, spike=True)),
    ("Lookahead, M = 1", MOMENTUM, False, lambda k: dg.Lookahead(1)),
    ("DDG, M = K-1", MOMENTUM, False, lambda k: dg.DDG(micro_batches=k - 1)),
    ("Lookahead, M = K-1", MOMENTUM, False, lambda k: dg.Lookahead(k - 1)),
    ("Lookahead, M = 2 (K-1)", MOMENTUM, False, lambda k: dg.Lookahead(2 * (k - 1))),
    ("Lookahead, M = 4 (K-1)", MOMENTUM, False, lambda k: dg.Lookahead(4 * (k - 1))),
]


def predicted(method: Method, num_stages: int, momentum: float, nesterov: bool) -> float:
    """The step at which a root of the recursion reaches the unit circle."""
    delay = method.schedule.lag(0, num_stages) / method.schedule.micro_batches
    horizon = method.forward_weights.horizon_in_updates(method.schedule, 0, num_stages) or 0.0
    if not any(isinstance(update, SpikeCompensation) for update in method.update):
        return dg.theory.largest_stable_step(
            delay, curvature=CURVATURE, momentum=momentum, nesterov=nesterov, horizon=horizon
        )
    a = momentum**delay
    b = (1 - a) / (1 - momentum)
    gradient = np.polymul([a + b, -b * momentum], [1 + horizon, -horizon])
    others = np.concatenate([np.poly([1.0, momentum]), np.zeros(int(delay) + 1)])
    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        stable = np.abs(np.roots(np.polyadd(others, middle * gradient))).max() < 1
        low, high = (middle, high) if stable else (low, middle)
    return low / CURVATURE


def is_stable(method: Method, num_stages: int, lr: float, momentum: float, nesterov: bool) -> bool:
    """Train until |w| clearly shrinks or grows from window to window."""
    position = Position()
    pipe = dg.LocalPipeline(
        [position, *(nn.Identity() for _ in range(num_stages - 1))],
        lambda w, _: CURVATURE * w**2 / 2,
        lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov),
        method=method,
        loss_weight="mean",
    )
    window, peaks = 40 * (method.delay(0, num_stages) + 1), list[float]()
    batch = torch.zeros(method.schedule.micro_batches)
    for _ in range(8):
        peak = 0.0
        for _ in range(window):
            pipe.step(batch, batch)
            peak = max(peak, abs(float(position.w.detach())))
        peaks.append(peak)
        if len(peaks) > 2 and not 0.5 < peaks[-1] / peaks[1] < 2:
            break
    return peaks[-1] < peaks[1]


def largest(
    method: Method, num_stages: int, limit: float, momentum: float, nesterov: bool
) -> float:
    """The largest stable learning rate, within 10 % of ``limit``; NaN if it is not there."""
    low, high = 0.9 * limit, 1.1 * limit
    if not is_stable(method, num_stages, low, momentum, nesterov):
        return float("nan")
    if is_stable(method, num_stages, high, momentum, nesterov):
        return float("nan")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if is_stable(method, num_stages, middle, momentum, nesterov):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def main() -> None:
    """Print and record the table."""
    head = " | ".join(f"K = {k}, engine | predicted | off" for k in STAGES)
    lines = [f"| lr x curvature | {head} |", "|---|" + "---|" * (3 * len(STAGES))]
    worst = 0.0
    for name, momentum, nesterov, method_of in RULES:
        cells = []
        for k in STAGES:
            method = method_of(k)
            limit = predicted(method, k, momentum, nesterov)
            found = largest(method, k, limit, momentum, nesterov)
            off = found / limit - 1
            worst = max(worst, abs(off)) if off == off else float("inf")
            cells += [f"{found * CURVATURE:.4f}", f"{limit * CURVATURE:.4f}", f"{off:+.1%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    lines += ["", f"Largest difference: {worst:.1%}."]
    folder = Path(__file__).parent / "records"
    folder.mkdir(exist_ok=True)
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(lines[-1])


if __name__ == "__main__":
    main()
