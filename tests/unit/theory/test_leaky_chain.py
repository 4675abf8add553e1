"""The constants of the leaky chain, against autograd at random and at bad points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaky_chain import LeakyChain, weights_of

STAGES = (1, 2, 3, 5, 8, 16)


def sample(num_stages: int, scale: float, seed: int) -> tuple[LeakyChain, torch.Tensor]:
    """One sample, with a target near what the network says, and weights of any size."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    weights = scale * torch.randn(num_stages, 3, generator=generator, dtype=torch.float64)
    chain = LeakyChain(
        num_stages=num_stages,
        inputs=inputs / inputs.norm(),
        targets=torch.randn(1, generator=generator, dtype=torch.float64),
    )
    return chain, weights


def hessian_of(chain: LeakyChain, weights: torch.Tensor) -> torch.Tensor:
    def value(flat: torch.Tensor) -> torch.Tensor:
        return chain.values(flat.view_as(weights))

    hessian: torch.Tensor = torch.autograd.functional.hessian(value, weights.flatten())
    return hessian


@settings(max_examples=60)
@given(st.sampled_from(STAGES), st.floats(0, 3), st.integers(0, 10**6))
def test_no_gradient_and_no_hessian_exceeds_the_constants(
    num_stages: int, scale: float, seed: int
) -> None:
    chain, weights = sample(num_stages, scale, seed)
    blocks = chain.gradients(weights).square().sum(-1)
    assert blocks.sum() <= chain.second_moment + 1e-12
    for block, moment in zip(blocks, chain.stage_moments, strict=True):
        assert block <= moment + 1e-12
    hessian = hessian_of(chain, weights)
    assert torch.linalg.matrix_norm(hessian, ord=2) <= chain.smoothness


def test_the_constants_are_nearly_reached() -> None:
    one = torch.ones(1, dtype=torch.float64)
    at_zero = torch.zeros(1, 1, dtype=torch.float64)
    steep = LeakyChain(num_stages=1, inputs=one[None], targets=one)
    assert steep.gradients(at_zero).square().sum() == steep.second_moment == 1
    curved = LeakyChain(num_stages=1, inputs=one[None], targets=0 * one)
    assert hessian_of(curved, at_zero).item() == 2 > 0.7 * curved.smoothness


def test_constants_in_numbers() -> None:
    chains = [LeakyChain.random(num_stages=num_stages) for num_stages in STAGES]
    assert chains[0].smoothness == pytest.approx(2 + 4 / 3**1.5)
    assert chains[1].smoothness == pytest.approx(2 + 4 / 3**1.5 / math.sqrt(2) * 1.5**2)
    for chain in chains:
        assert 2 < chain.smoothness < 3.3
        assert sum(chain.stage_moments) == pytest.approx(chain.second_moment)
    # tanh bends most where its square is 1/3
    z = math.atanh(1 / math.sqrt(3))
    assert 2 * math.tanh(z) * (1 - math.tanh(z) ** 2) == pytest.approx(4 / 3**1.5)


@pytest.mark.parametrize("num_stages", STAGES)
def test_many_weights_at_once_are_the_stages_one_by_one(num_stages: int) -> None:
    chain = LeakyChain.random(num_stages=num_stages, num_samples=5, dimension=3)
    many = [chain.stages(seed) for seed in range(4)]
    weights = torch.stack([weights_of(stages) for stages in many], dim=1)
    values, gradients = chain.values(weights), chain.gradients(weights)
    for index, stages in enumerate(many):
        outputs = chain.inputs
        for stage in stages:
            outputs = stage(outputs)
        loss = chain.loss(outputs, chain.targets)  # type: ignore[arg-type]
        loss.backward()
        torch.testing.assert_close(values[index], loss.detach(), rtol=1e-14, atol=0)
        own = torch.stack([next(stage.parameters()).grad for stage in stages])  # type: ignore[arg-type]
        torch.testing.assert_close(gradients[:, index], own, rtol=1e-12, atol=1e-16)
    squares = chain.squared_gradient_norms(weights)
    torch.testing.assert_close(squares, gradients.square().sum((0, 2)))


def test_replicas_share_nothing() -> None:
    together = LeakyChain.random(num_stages=3, num_samples=5, dimension=2, replicas=4)
    weights = weights_of(together.stages(7))
    assert weights.shape == (3, 4, 2)
    trajectory = torch.stack([weights, 2 * weights], dim=1)
    for replica in range(4):
        alone = LeakyChain(
            num_stages=3,
            inputs=together.inputs[:, replica],
            targets=together.targets[:, replica],
        )
        own = trajectory[:, :, replica]
        torch.testing.assert_close(together.values(trajectory)[:, replica], alone.values(own))
        torch.testing.assert_close(
            together.gradients(trajectory)[:, :, replica], alone.gradients(own)
        )
    assert together.assumptions(weights).gap == together.values(weights).max()


def test_the_loss_is_not_convex() -> None:
    one = torch.ones(1, dtype=torch.float64)
    chain = LeakyChain(num_stages=1, inputs=one[None], targets=5 * one)
    left, middle, right = chain.values(torch.tensor([[[-3.0], [-1.0], [1.0]]]).double())
    assert middle > (left + right) / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_stages": 0}, "at least one stage"),
        ({"targets": torch.zeros(2)}, r"inputs: \(3, 4\), targets: \(2,\)"),
        ({"inputs": torch.ones(3, 4)}, "must not be longer than 1 .longest: 2.; scale them"),
    ],
)
def test_what_breaks_a_constant_is_refused(change: dict[str, object], message: str) -> None:
    parts = {"num_stages": 1, "inputs": torch.zeros(3, 4), "targets": torch.zeros(3), **change}
    with pytest.raises(ValueError, match=message):
        LeakyChain(**parts)  # type: ignore[arg-type]
