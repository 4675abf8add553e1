"""Where a ``LeakyChain`` goes when it is trained through the engine, at every forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from leaky_chain import LeakyChain
from torch import Tensor

import delaygrad as dg

Batch = tuple[Tensor, Tensor]


def trajectory(
    chain: LeakyChain,
    batches: Iterable[Batch],
    step: float | Callable[[int], float],
    *,
    start: Tensor | None = None,
    method: dg.Method | None = None,
) -> Tensor:
    """Train with plain SGD; return the weights at every forward of stage 0, and those at the end.

    Args:
        step: size of the step, or of each iteration's.
        start: (K, ...) weights to begin at; by default random ones, always the same.

    Returns:
        (K, T + 1, ...) weights, if there are T (micro-)batches.
    """
    stages = chain.stages()
    # The Parameter objects stay, whatever the engine does to their memory.
    parameters = [next(stage.parameters()) for stage in stages]
    if start is not None:
        with torch.no_grad():
            for parameter, weight in zip(parameters, start, strict=True):
                parameter.copy_(weight)
    pipe = dg.LocalPipeline(
        stages,
        chain.loss,
        lambda weights: torch.optim.SGD(weights, lr=0.0),
        method=method or dg.DDG(),
    )
    seen: list[Tensor] = []

    def note(*_: object) -> None:
        seen.append(torch.stack([parameter.detach().clone() for parameter in parameters]))

    stages[0].register_forward_pre_hook(note)
    for t, (inputs, targets) in enumerate(batches):
        for optimizer in pipe.optimizers:
            assert optimizer is not None
            optimizer.param_groups[0]["lr"] = step if isinstance(step, float) else step(t)
        pipe.step(inputs, targets)
    note()
    return torch.stack(seen, dim=1)


def full_batches(chain: LeakyChain, num_batches: int) -> list[Batch]:
    return [(chain.inputs, chain.targets)] * num_batches


def sampled_batches(
    chain: LeakyChain, num_batches: int, *, size: int = 1, seed: int = 0
) -> list[Batch]:
    """Draw with replacement, for every replica on its own."""
    generator = torch.Generator().manual_seed(seed)
    replicas = chain.targets.shape[1:]
    shape = (num_batches, size, *replicas)
    indices = torch.randint(len(chain.targets), shape, generator=generator)
    return [take(chain, index) for index in indices]


def take(chain: LeakyChain, index: Tensor) -> Batch:
    """Return the samples of an index, (B,) or (B, R)."""
    if index.dim() == 1:
        return chain.inputs[index], chain.targets[index]
    return chain.inputs.take_along_dim(index[..., None], 0), chain.targets.take_along_dim(index, 0)


def virtual_iterates(weights: Tensor, delays: Sequence[int]) -> Tensor:
    """Return v@s for s = 0..T - D: stage k as it is once exactly the batches before s are in it."""
    last = weights.shape[1] - max(delays)
    blocks = zip(weights, delays, strict=True)
    return torch.stack([block[delay : delay + last] for block, delay in blocks])
