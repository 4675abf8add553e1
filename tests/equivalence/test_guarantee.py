"""The theory against the engine: every inequality where it can be computed exactly.

Expectations are exact, not estimated: with N = 2 samples and T batches of one sample there are 2^T
sequences of batches, and each is trained, as one of 2^T replicas of one network.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import guarantee
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaky_chain import LeakyChain, weights_of
from lemmas import one_step_bound
from torch import Tensor, nn
from trajectories import full_batches, sampled_batches, take, trajectory, virtual_iterates

import delaygrad as dg
from delaygrad import theory

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "huo2018-guarantee"
PROOFS: list[theory.Proof] = ["published", "blockwise", "virtual"]
STAGES = st.integers(1, 6)
SEEDS = st.integers(0, 1000)
SHARES = st.floats(0.01, 1.0)
"""Of 1/L, for step sizes."""


def delays_of(num_stages: int, method: dg.Method | None = None) -> list[int]:
    schedule = (method or dg.DDG()).schedule
    return [schedule.delay(k, num_stages) for k in range(num_stages)]


def random_start(chain: LeakyChain, seed: int) -> Tensor:
    return weights_of(chain.stages(seed))


class AllSequences:
    """One network trained on every sequence of T batches of one out of two samples."""

    def __init__(self, num_stages: int, step: float, *, updates: int = 9, seed: int = 0) -> None:
        one = LeakyChain.random(num_stages=num_stages, num_samples=2, dimension=3, seed=seed)
        replicas = 2**updates
        self.chain = LeakyChain(
            num_stages=num_stages,
            inputs=one.inputs[:, None].repeat(1, replicas, 1),
            targets=one.targets[:, None].repeat(1, replicas),
        )
        self.delays = delays_of(num_stages)
        self.updates = updates
        self.index = torch.arange(replicas)[None] // 2 ** torch.arange(updates)[:, None] % 2
        # What follows the batches in question does not matter to them: any will do.
        rest = torch.zeros(max(self.delays), replicas, dtype=torch.long)
        self._batches = [take(self.chain, i[None]) for i in torch.cat([self.index, rest])]
        start = weights_of(one.stages(seed))
        self.assumptions = one.assumptions(start)
        everywhere = start[:, None].expand(-1, replicas, -1)
        self.weights = trajectory(self.chain, self._batches, step, start=everywhere)
        self.virtual = virtual_iterates(self.weights, self.delays)

    def sample_gradients(self, t: int) -> Tensor:
        """(K, R, n): of the sample of batch t, at w@t."""
        inputs, targets = self._batches[t]
        sample = LeakyChain(num_stages=self.chain.num_stages, inputs=inputs, targets=targets)
        return sample.gradients(self.weights[:, t])

    def mean_squares(self) -> Tensor:
        """(T,): E |grad f(w@t)|^2."""
        return self.chain.squared_gradient_norms(self.weights[:, : self.updates]).mean(-1)


@settings(max_examples=10)
@given(num_stages=STAGES, share=SHARES, seed=SEEDS)
def test_every_bound_holds_for_the_exact_expectation(
    num_stages: int, share: float, seed: int
) -> None:
    chain = LeakyChain.random(num_stages=num_stages)
    step = share / chain.smoothness
    runs = AllSequences(num_stages, step, updates=7, seed=seed)
    measured = runs.mean_squares().mean().item()
    for proof in PROOFS:
        bound = theory.fixed_step_bound(
            runs.assumptions, runs.delays, step=step, iterations=7, proof=proof
        )
        assert measured <= bound
    if step < theory.certified_step(chain.smoothness, num_stages - 1):
        assert measured <= theory.variance_bound(
            smoothness=chain.smoothness,
            gap=runs.assumptions.gap,
            delay=num_stages - 1,
            step=step,
            iterations=7,
            variance=1.0,
        )


@pytest.mark.parametrize("num_stages", [1, 3, 5])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_one_update_changes_the_expected_loss_by_at_most_its_bound(
    num_stages: int, share: float
) -> None:
    step = share / LeakyChain.random(num_stages=num_stages).smoothness
    runs = AllSequences(num_stages, step)
    squares = runs.mean_squares()
    losses = runs.chain.values(runs.weights).mean(-1)
    virtual = runs.chain.values(runs.virtual).mean(-1)
    for proof in PROOFS:
        values, first = (virtual, 0) if proof == "virtual" else (losses, num_stages - 1)
        for t in range(first, runs.updates):
            most = one_step_bound(
                runs.assumptions,
                runs.delays,
                step=step,
                gradient_squared=squares[t].item(),
                proof=proof,
            )
            assert (values[t + 1] - values[t]).item() <= most + 1e-15


def test_a_batch_is_no_news_to_the_parameters_that_meet_it_but_is_to_the_virtual_ones() -> None:
    # The published argument treats the gradient that stage k applies in iteration t as unbiased
    # given w@t. It is not: stages above k have used its batch in iterations before t.
    runs = AllSequences(num_stages=4, step=0.3)
    correlations = {(k, s): 0.0 for k in range(3) for s in range(1, 6)}
    for s in range(1, 6):
        noise = runs.sample_gradients(s) - runs.chain.gradients(runs.weights[:, s])
        at_virtual = runs.chain.gradients(runs.virtual[:, s])
        assert (at_virtual * noise).sum((0, -1)).mean().abs() < 1e-15
        for k in range(3):
            on_use = runs.chain.gradients(runs.weights[:, s + runs.delays[k]])
            correlations[k, s] = (on_use[k] * noise[k]).sum(-1).mean().abs().item()
    assert max(correlations.values()) > 1e-5


def test_in_the_fill_the_published_lemma_does_not_hold() -> None:
    # The last stage is saturated, so only the first has something to learn, and has to wait.
    one = torch.ones(1, dtype=torch.float64)
    chain = LeakyChain(num_stages=2, inputs=one[None], targets=one)
    start, step = torch.stack([0 * one, 1e4 * one]), 1e-4
    weights = trajectory(chain, full_batches(chain, 3), step, start=start)
    losses, squares = chain.values(weights), chain.squared_gradient_norms(weights)
    promised = [
        one_step_bound(
            chain.assumptions(start),
            [1, 0],
            step=step,
            gradient_squared=squares[t].item(),
            proof="published",
        )
        for t in range(2)
    ]
    assert losses[1] - losses[0] == 0 > promised[0]  # in the fill
    assert losses[2] - losses[1] < promised[1] < 0  # after it


@settings(max_examples=15)
@given(
    num_stages=STAGES,
    slack=st.integers(0, 2),
    micro_batches=st.integers(1, 3),
    seed=SEEDS,
)
def test_virtual_iterates_are_plain_sgd_with_gradients_from_elsewhere(
    num_stages: int, slack: int, micro_batches: int, seed: int
) -> None:
    # v@(n+1) = v@n - step * (gradient of batch n, each part at the parameters it was forwarded at)
    method = dg.DDG(slack=slack, micro_batches=micro_batches)
    chain = LeakyChain.random(num_stages=num_stages, num_samples=6, seed=seed)
    delays, step, updates = delays_of(num_stages, method), 0.2, 6
    batches = sampled_batches(chain, updates + max(delays), size=micro_batches, seed=seed)
    weights = trajectory(chain, batches, step, method=method)
    virtual = virtual_iterates(weights[:, ::micro_batches], delays)
    for n in range(updates):
        inputs, targets = batches[n]
        gradient = torch.zeros_like(weights[:, 0])
        for part, at in enumerate(range(n * micro_batches, (n + 1) * micro_batches)):
            one = LeakyChain(
                num_stages=num_stages,
                inputs=inputs[part : part + 1],
                targets=targets[part : part + 1],
            )
            gradient += one.gradients(weights[:, at]) / micro_batches
            # What a part does not see yet is at most the delay's number of steps.
            most = step * math.sqrt(theory.staleness_moment(chain.assumptions(weights), delays))
            assert (virtual[:, n] - weights[:, at]).norm() <= most + 1e-12
        torch.testing.assert_close(
            virtual[:, n + 1], virtual[:, n] - step * gradient, rtol=0, atol=1e-14
        )


@settings(max_examples=12)
@given(num_stages=STAGES, share=SHARES, seed=SEEDS, size=st.sampled_from([1, 4, None]))
def test_bounds_hold_along_random_runs(
    num_stages: int, share: float, seed: int, size: int | None
) -> None:
    # Eight replicas: an average of eight runs, each of which is far below the bound.
    chain = LeakyChain.random(num_stages=num_stages, replicas=8, seed=seed)
    iterations, delays = 40, delays_of(num_stages)
    step = share / chain.smoothness
    batches = (
        full_batches(chain, iterations)
        if size is None
        else sampled_batches(chain, iterations, size=size, seed=seed)
    )
    weights = trajectory(chain, batches, step, start=random_start(chain, seed))[:, :-1]
    measured = chain.squared_gradient_norms(weights).mean(0)
    assumptions = chain.assumptions(weights[:, 0])
    for proof in PROOFS:
        bound = theory.fixed_step_bound(
            assumptions, delays, step=step, iterations=iterations, proof=proof
        )
        assert measured.max() <= bound


@pytest.mark.parametrize("proof", PROOFS)
def test_bounds_hold_for_steps_that_fall(proof: theory.Proof) -> None:
    num_stages, iterations = 4, 60
    chain = LeakyChain.random(num_stages=num_stages, replicas=8)
    decay = theory.PolynomialDecay(lr=1 / chain.smoothness, time_scale=10, power=0.75)
    weights = trajectory(chain, sampled_batches(chain, iterations), decay)[:, :-1]
    steps = torch.tensor(decay.steps(iterations), dtype=torch.float64)
    measured = (chain.squared_gradient_norms(weights) * steps[:, None]).sum(0) / steps.sum()
    assumptions = chain.assumptions(weights[:, 0])
    bound = theory.diminishing_step_bound(
        assumptions, delays_of(num_stages), steps.tolist(), proof=proof
    )
    assert measured.max() <= bound


def test_the_virtual_bound_holds_for_a_warm_up_and_a_cosine() -> None:
    iterations = 60
    chain = LeakyChain.random(num_stages=4, replicas=8)

    def step(t: int) -> float:
        return 0.3 * min(1, (t + 1) / 10) * (1.001 + math.cos(math.pi * t / iterations)) / 2

    weights = trajectory(chain, full_batches(chain, iterations), step)[:, :-1]
    steps = torch.tensor([step(t) for t in range(iterations)], dtype=torch.float64)
    measured = (chain.squared_gradient_norms(weights) * steps[:, None]).sum(0) / steps.sum()
    assumptions = chain.assumptions(weights[:, 0])
    bound = theory.diminishing_step_bound(assumptions, [3, 2, 1, 0], steps.tolist())
    assert measured.max() <= bound


@settings(max_examples=12)
@given(num_stages=STAGES, share=st.floats(0.05, 0.99), seed=SEEDS)
def test_full_batches_below_the_certified_step_obey_the_bound_without_m(
    num_stages: int, share: float, seed: int
) -> None:
    chain = LeakyChain.random(num_stages=num_stages, replicas=4, seed=seed)
    delay, iterations = num_stages - 1, 40
    step = share * theory.certified_step(chain.smoothness, delay)
    batches = full_batches(chain, iterations)
    weights = trajectory(chain, batches, step, start=random_start(chain, seed))[:, :-1]
    measured = chain.squared_gradient_norms(weights).mean(0)
    bound = theory.variance_bound(
        smoothness=chain.smoothness,
        gap=chain.values(weights[:, 0]).max().item(),
        delay=delay,
        step=step,
        iterations=iterations,
    )
    assert measured.max() <= bound


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.w * 1.0


@pytest.mark.parametrize("delay", [0, 2, 5])
def test_on_a_quadratic_the_bound_without_m_is_almost_reached(delay: int) -> None:
    # f(w) = h w^2 / 2 from w = 1, long enough to end at 0: a bound half as large would not hold.
    curvature, share, iterations = 3.0, 0.05, 800
    step = share * theory.certified_step(curvature, delay)
    position = Position()
    pipe = dg.LocalPipeline(
        [position, *(nn.Identity() for _ in range(delay))],
        lambda w, _: curvature * w**2 / 2,
        lambda params: torch.optim.SGD(params, lr=step),
        method=dg.DDG(),
    )
    total = 0.0
    for _ in range(iterations):
        total += (curvature * position.w.item()) ** 2
        pipe.step(torch.zeros(1), None)
    bound = theory.variance_bound(
        smoothness=curvature, gap=curvature / 2, delay=delay, step=step, iterations=iterations
    )
    assert 0.9 * bound < total / iterations <= bound * (1 + 1e-12)


def test_the_experiment_runs_and_every_run_is_below_every_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["guarantee.py", "--smoke", "--output", str(tmp_path)])
    guarantee.main()
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert summary["below"] == summary["comparisons"] > 100
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_the_committed_results_are_below_every_bound() -> None:
    results = json.loads((EXPERIMENT / "results.json").read_text())
    assert results["summary"]["below"] == results["summary"]["comparisons"] > 5000
    for one in results["rates"]:
        assert -1.5 < one["slope"] < -0.3 or not one["covered"]
