"""Corrections of a delayed update; for any optimizer, unless a docstring names one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from delaygrad.errors import StageError
from delaygrad.methods.axes.update import Step, Update


@dataclass(frozen=True, repr=False)
class DelayScaledLR(Update):
    """Divide the learning rate of a delayed stage by its delay at first, by 1 in the end.

        lr[k] = lr / max(D_k, 1)^p,  p = 1 - min(updates so far / anneal, 1)

    Args:
        anneal: updates until the learning rate is the user's own, at least 1.

    Raises:
        ValueError: ``anneal`` is smaller.

    References:
        Yang et al., "PipeMare", MLSys 2021, arXiv:1910.05124, technique T1. Differs: none known.
    """

    anneal: int

    def __post_init__(self) -> None:
        if self.anneal < 1:
            raise ValueError(f"anneal must be at least 1 (anneal: {self.anneal})")

    def before(self, step: Step) -> None:
        power = 1 - min(step.index / self.anneal, 1)
        groups = step.optimizer.param_groups
        step.state["lrs"] = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] / max(step.delay, 1) ** power

    def after(self, step: Step) -> None:
        for group, lr in zip(step.optimizer.param_groups, step.state.pop("lrs"), strict=True):
            group["lr"] = lr


@dataclass(frozen=True, repr=False)
class SpikeCompensation(Update):
    """Give a late gradient the weight that momentum would have given it by now; SGD only.

        v = m v + g;  w = w - lr (a v + b g),  a = m^D, b = (1 - m^D) / (1 - m)

    m is the momentum. D = 1 is Nesterov's momentum. A stage without delay is not corrected.

    Raises:
        StageError: the optimizer is not ``torch.optim.SGD`` with plain momentum.

    References:
        Kosson et al., "Pipelined Backpropagation at Scale", MLSys 2021, arXiv:2003.11666.
        Differs: none known.
    """

    def after(self, step: Step) -> None:
        for group in step.optimizer.param_groups if step.delay else ():
            plain = isinstance(step.optimizer, torch.optim.SGD) and not group["nesterov"]
            if not plain or group["dampening"] or not 0 < group["momentum"] < 1:
                raise StageError(
                    "spike compensation is for torch.optim.SGD with momentum, and without "
                    f"nesterov or dampening (optimizer: {type(step.optimizer).__name__})"
                )
            m, lr = group["momentum"], group["lr"]
            a = m**step.delay
            b = (1 - a) / (1 - m)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                velocity = step.optimizer.state[parameter]["momentum_buffer"]
                gradient = parameter.grad
                if group["maximize"]:
                    gradient = -gradient
                if group["weight_decay"]:  # as it was before this step
                    was = parameter.add(velocity, alpha=lr)
                    gradient = gradient.add(was, alpha=group["weight_decay"])
                parameter.add_(velocity.mul(1 - a).sub_(gradient, alpha=b), alpha=lr)


@dataclass(frozen=True, repr=False)
class ErrorFeedback(Update):
    """Add to each update its difference to the update before; any optimizer.

        u = the optimizer's update;  w = w - u - strength (u - u_before)

    A stage without delay, and the first update, are not corrected.

    Args:
        strength: 0 is no correction. With heavy-ball momentum m, strength m is Nesterov's momentum.

    References:
        Zmushko et al., ICML 2026, arXiv:2606.30634 (recalled from an implementation). Differs: a
        parameter that had no gradient keeps its last update.
    """

    strength: float = 1.0

    def before(self, step: Step) -> None:
        if step.delay:
            step.state["start"] = {name: live.detach().clone() for name, live in step.live.items()}

    def after(self, step: Step) -> None:
        start, last = step.state.pop("start", {}), step.state.setdefault("last", {})
        for name, live in step.live.items():
            if name not in start or live.grad is None:
                continue
            update = start[name] - live
            if name in last:
                live.sub_(update - last[name], alpha=self.strength)
            last[name] = update


@dataclass(frozen=True, repr=False)
class DelayCompensation(Update):
    """Correct a late gradient to first order, with the squared gradient in place of the Hessian.

        g = g + strength g * g * (w - w_met)

    Args:
        strength: lambda; 0 is no correction.

    References:
        Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", ICML 2017,
        arXiv:1609.08326. Differs: with micro-batches, ``w_met`` belongs to the newest part.
    """

    strength: float = 0.04

    def before(self, step: Step) -> None:
        for name, live in step.live.items():
            if live.grad is not None and name in step.met and step.met[name] is not live:
                drift = live - step.met[name].to(live.device)
                live.grad.add_(live.grad * live.grad * drift, alpha=self.strength)
