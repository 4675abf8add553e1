"""What a stage's applied gradient is compared with, as numbers.

g is the gradient that a stage applies, of batch s; G is the gradient of the same batch at the live
parameters w. v are the parameters that the forward of the batch met.

    sufficient direction   <G, g> / |G|^2      one without delay; descent needs it above zero
    cosine                 <G, g> / (|G| |g|)
    staleness ratio        |g - G|^2 / |G|^2   the bias: below one, both point downhill
    prediction error       |w - v| / |w - w@s| below one, a prediction helps
    drift                  |w - v| / |w|
    stability              step x curvature / the largest stable step x curvature for this delay

References:
    Huo, Gu, Huang, "Training Neural Networks Using Features Replay", NeurIPS 2018,
    arXiv:1807.04511: the sufficient direction constant. Differs: there it is assumed to be one
    number that serves for all stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from delaygrad.theory.stability import largest_stable_step


def compare_directions(
    applied: Sequence[Tensor | None], reference: Sequence[Tensor | None]
) -> dict[str, float | None]:
    """Compare a stage's applied gradient with the one it should ideally have been.

    Args:
        applied: one tensor for each parameter; None counts as zero.
        reference: the same, of the same shapes.

    Returns:
        The first three numbers above; None where a norm is zero, or a value is not finite.

    Example:
        >>> compare_directions([torch.tensor([1.0, 1.0])], [torch.tensor([2.0, 0.0])])
        {'sufficient_direction': 0.5, 'cosine': 0.7071067811865475, 'staleness_ratio': 0.5}
    """
    dot = inner(zip(applied, reference, strict=True))
    applied_square, square = squared(applied), squared(reference)
    pairs = zip(applied, reference, strict=True)
    difference_square = squared(
        true if mine is None else mine if true is None else mine.double() - true.double()
        for mine, true in pairs
    )
    return {
        "sufficient_direction": _ratio(dot, square),
        "cosine": _ratio(dot, (applied_square * square) ** 0.5) if square else None,
        "staleness_ratio": _ratio(difference_square, square),
    }


def distance_ratio(
    to: Mapping[str, Tensor], of: Mapping[str, Tensor], other: Mapping[str, Tensor] | None
) -> float | None:
    """Return |to - of| / |to - other|, or / |to|; None if that is zero or there is nothing.

    Example:
        >>> distance_ratio({"w": torch.tensor(4.0)}, {"w": torch.tensor(3.0)}, None)
        0.25
    """
    if not of:
        return None
    below = to.values() if other is None else (to[name] - other[name] for name in to)
    return _ratio(squared(to[name] - of[name] for name in to) ** 0.5, squared(below) ** 0.5)


def step_times_curvature(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moved: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
) -> float | None:
    """Estimate step x curvature along a movement of the parameters, from the gradients' change.

        <moved, change> / <moved, moved / step>

    The step is the learning rate for SGD. For Adam and its relatives it is that of each
    parameter, lr (1 - beta1) / (sqrt(v) + eps), so that beta1 is a momentum like SGD's.

    Returns:
        None for another optimizer, or without a movement.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0]))  # of the loss 3 w^2 / 2
        >>> sgd, moved = torch.optim.SGD([w], lr=0.1), {"w": torch.tensor([0.5])}
        >>> round(step_times_curvature(sgd, {"w": w}, moved, {"w": torch.tensor([1.5])}), 6)
        0.3
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    dot = weighted = 0.0
    for name, shift in moved.items():
        group = groups.get(id(parameters[name]))
        if group is None:  # not trained
            continue
        state = optimizer.state[parameters[name]]
        if "exp_avg_sq" in state and "betas" in group:
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            inverse = (corrected.sqrt() + group["eps"]) / (group["lr"] * (1 - group["betas"][0]))
        elif isinstance(optimizer, torch.optim.SGD):
            inverse = torch.tensor(1 / (group["lr"] * (1 - group["dampening"]) or math.inf))
        else:
            return None
        dot += inner([(shift, change[name])])
        weighted += inner([(shift, shift * inverse)])
    return _ratio(dot, weighted)


def momentum_of(optimizer: torch.optim.Optimizer) -> tuple[float, bool]:
    """Return an optimizer's momentum, and whether it is Nesterov's.

    Example:
        >>> momentum_of(torch.optim.AdamW([torch.ones(1)]))
        (0.9, False)
    """
    group = optimizer.param_groups[0]
    momentum = group.get("momentum", group.get("betas", (0.0,))[0])
    return float(momentum), bool(group.get("nesterov")) and momentum > 0


def stability(
    step_curvature: float | None,
    optimizer: torch.optim.Optimizer,
    delay: float,
    horizon: float | None,
) -> float | None:
    """Return step x curvature over its largest stable value; above 1 errors grow.

    Args:
        step_curvature: of ``step_times_curvature``.
        optimizer: of the stage.
        delay: in updates, the mean over the micro-batches.
        horizon: updates that the method predicts ahead; None: it does not.
    """
    if step_curvature is None:
        return None
    momentum, nesterov = momentum_of(optimizer)
    return step_curvature / largest_stable_step(
        delay, momentum=momentum, nesterov=nesterov, horizon=horizon or 0.0
    )


def inner(pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> float:
    """Return the sum of all products; None counts as zero."""
    found = [(a.double() * b.double()).sum() for a, b in pairs if a is not None and b is not None]
    return float(torch.stack(found).sum()) if found else 0.0


def squared(tensors: Iterable[Tensor | None]) -> float:
    """Return the sum of all squares; None counts as zero."""
    return inner((tensor, tensor) for tensor in tensors)


def _ratio(above: float, below: float) -> float | None:
    value = above / below if below else math.nan
    return value if math.isfinite(value) else None
