"""A network in K stages whose smoothness and gradients are bounded by known numbers.

For almost no network are L and M known. Here they are proved, so a bound that does not hold would
be the theory's fault, or the engine's. Each stage holds a vector w[k], takes (x, h), and passes on

    (x, h + a tanh(z)),    z = <w[k], x> - a h,    a = 1 / sqrt(K)

from h = 0; the loss of a sample (x, y), with |x| <= 1, is log(1 + (h - y)^2) of the last h. It is
not convex, at least 0, and the stages are coupled in both directions: h enters every tanh, and the
error gradient changes on its way down. Then:

    |dh'/dh| = |1 - a^2 tanh'| <= 1         so |dh_K / dw[k]| <= a |x|, block k of the gradient
                                            of h_K has squared length at most 1/K, all 1
    loss' in [-1, 1], loss'' in [-1/4, 2]   so every gradient has |g|^2 <= M = 1, its block k 1/K
    Hessian of h_K = Z C Z^T                Z: the gradients of the z[k], one column each;
                                            C: diagonal, |C_kk| <= a max|tanh''| = 4 a / 3^(3/2)
    |Z| <= 1 + a sqrt(sum_k |grad h_k|^2)   <= 1 + sqrt((K-1) / (2 K)), as |grad h_k|^2 <= k/K
    L = 2 + 4 / (3^(3/2) sqrt(K)) (1 + sqrt((K-1) / (2 K)))^2

from loss'' |grad h_K|^2 + |loss'| |Hessian of h_K|. L is between 2 and 3.3 for all K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delaygrad.theory import Assumptions

_TANH_BEND = 4 / 3**1.5
"""The largest second derivative of tanh."""


@dataclass(frozen=True, kw_only=True)
class LeakyChain:
    """The problem above, on N samples; its loss is the mean over them.

    Several problems of one size can be trained at once, as *replicas*: they share nothing, the loss
    is their sum, so every replica gets the gradients that it would get alone.

    Args:
        num_stages: K, at least 1.
        inputs: (N, n) or (N, R, n) for R replicas; no row longer than 1.
        targets: (N,) or (N, R).

    Raises:
        ValueError: a shape is wrong, or an input is longer than 1.

    Example:
        >>> import delaygrad as dg
        >>> chain = LeakyChain.random(num_stages=4, seed=0)
        >>> pipe = dg.LocalPipeline(
        ...     chain.stages(seed=1), chain.loss, lambda w: torch.optim.SGD(w, lr=0.1),
        ...     method=dg.DDG(),
        ... )
        >>> losses = [pipe.step(chain.inputs, chain.targets).item() for _ in range(50)]
        >>> losses[-1] < losses[0]
        True
    """

    num_stages: int
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.num_stages < 1:
            raise ValueError(f"there must be at least one stage (num_stages: {self.num_stages})")
        if self.inputs.dim() < 2 or self.inputs.shape[:-1] != self.targets.shape:
            raise ValueError(
                f"inputs must be (N, n) with targets (N,), or (N, R, n) with (N, R) (inputs: "
                f"{tuple(self.inputs.shape)}, targets: {tuple(self.targets.shape)})"
            )
        longest = self.inputs.norm(dim=-1).max().item()
        if longest > 1 + 1e-6:
            raise ValueError(f"inputs must not be longer than 1 (longest: {longest:g}); scale them")

    @classmethod
    def random(
        cls,
        *,
        num_stages: int,
        num_samples: int = 32,
        dimension: int = 3,
        noise: float = 0.5,
        replicas: int | None = None,
        seed: int = 0,
    ) -> LeakyChain:
        """Draw a problem, in float64.

        Args:
            num_stages: K.
            num_samples: N, points of the unit sphere.
            dimension: n.
            noise: standard deviation of what is added to the outputs of a chain with other weights,
                three times as large as those of ``stages``, to make the targets.
            replicas: R independent draws, if any.
            seed: decides everything.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = () if replicas is None else (replicas,)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        inputs = draw(num_samples, *shape, dimension)
        inputs = inputs / inputs.norm(dim=-1, keepdim=True)
        hidden = inputs.new_zeros(())
        for _ in range(num_stages):
            hidden = _step(inputs, hidden, 3 * draw(*shape, dimension), num_stages)
        targets = hidden + noise * draw(num_samples, *shape)
        return cls(num_stages=num_stages, inputs=inputs, targets=targets)

    @property
    def smoothness(self) -> float:
        """L of the mean loss, and of every sample's."""
        columns = 1 + math.sqrt((self.num_stages - 1) / (2 * self.num_stages))
        return 2 + _TANH_BEND / math.sqrt(self.num_stages) * columns**2

    @property
    def second_moment(self) -> float:
        """M: no sample's gradient is longer than 1."""
        return 1.0

    @property
    def stage_moments(self) -> tuple[float, ...]:
        """M_k: no block of a sample's gradient has a squared length above 1/K."""
        return (1 / self.num_stages,) * self.num_stages

    def assumptions(self, weights: Tensor) -> Assumptions:
        """Return the constants, with the gap at some weights, (K, n); of replicas, the largest.

        The loss is at least 0, so the gap is at most the loss.
        """
        return Assumptions(
            smoothness=self.smoothness,
            second_moment=self.second_moment,
            gap=self.values(weights).max().item(),
            stage_moments=self.stage_moments,
        )

    def stages(self, seed: int = 0) -> list[nn.Module]:
        """Build the K stages, with random weights; each takes what the one below returns."""
        generator = torch.Generator().manual_seed(seed)
        shape = self.inputs.shape[1:]
        return [
            LeakyStage(
                torch.randn(shape, generator=generator, dtype=self.inputs.dtype), self.num_stages
            )
            for _ in range(self.num_stages)
        ]

    def loss(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, for the last stage's outputs; of replicas, the sum."""
        return torch.log1p((outputs[1] - targets) ** 2).mean(0).sum()

    def values(self, weights: Tensor) -> Tensor:
        """Return f, of all samples, at many weights at once.

        Args:
            weights: (K, *S, n), or (K, *S, R, n) with replicas; S are any further dimensions.

        Returns:
            (*S,) or (*S, R).
        """
        replicas = self.targets.shape[1:]
        extra = (1,) * (weights.dim() - self.inputs.dim())
        inputs = self.inputs.view(len(self.inputs), *extra, *self.inputs.shape[1:])
        targets = self.targets.view(len(self.targets), *extra, *replicas)
        hidden = inputs.new_zeros(())
        for weight in weights:
            hidden = _step(inputs, hidden, weight, self.num_stages)
        return torch.log1p((hidden - targets) ** 2).mean(0)

    def gradients(self, weights: Tensor) -> Tensor:
        """Return grad f, of all samples, at many weights at once: of the shape of ``weights``."""
        weights = weights.detach().requires_grad_(True)
        (gradients,) = torch.autograd.grad(self.values(weights).sum(), weights)
        return gradients

    def squared_gradient_norms(self, weights: Tensor) -> Tensor:
        """Return |grad f|^2, of all samples, at many weights at once: (*S,) or (*S, R)."""
        return self.gradients(weights).square().sum(dim=(0, -1))


class LeakyStage(nn.Module):
    """One stage of ``LeakyChain``.

    Args:
        weight: (n,) or (R, n); becomes the stage's parameter.
        num_stages: K.
    """

    def __init__(self, weight: Tensor, num_stages: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._num_stages = num_stages

    def forward(self, inputs: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take (B, n) samples, or (x, h) from the stage below; return (x, h)."""
        if isinstance(inputs, Tensor):
            inputs = (inputs, inputs.new_zeros(inputs.shape[:-1]))
        samples, hidden = inputs
        return samples, _step(samples, hidden, self.weight, self._num_stages)


def weights_of(stages: Sequence[nn.Module]) -> Tensor:
    """Return a copy of the weights of a chain's stages: (K, n) or (K, R, n)."""
    return torch.stack([next(stage.parameters()).detach().clone() for stage in stages])


def _step(samples: Tensor, hidden: Tensor, weight: Tensor, num_stages: int) -> Tensor:
    scale = num_stages**-0.5
    moved: Tensor = hidden + scale * torch.tanh((samples * weight).sum(-1) - scale * hidden)
    return moved
