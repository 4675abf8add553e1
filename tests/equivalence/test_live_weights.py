"""``DDG(weights="live")`` against the rule of the authors' code: old activations, weights of today.

Two naive loops. One does what that code did: it keeps a copy of each stage for each batch, with the
graph of its forward, and overwrites the copy's parameters with today's before it goes backward. The
other is the chain rule written out by hand for a network of linear layers and tanh, in which one
sees which of the two enters where; it knows nothing of autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from equivalence.naive_ticks import MakeOptimizer, NaiveTicks, Rule
from exact import assert_same
from networks import NETWORKS, OPTIMIZERS, batches, into_stages, states
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

NUM_BATCHES = 12


def naive_live(stages: Sequence[nn.Module], make_optimizer: MakeOptimizer) -> NaiveTicks:
    """Stage k goes backward with batch t - (K-1-k), on a copy that holds the weights of today."""
    delay: Rule = lambda k, num_stages: num_stages - 1 - k  # noqa: E731
    now: Rule = lambda k, num_stages: 0  # noqa: E731
    return NaiveTicks(
        stages=stages, make_optimizer=make_optimizer, offset=now, lag=delay, lives=True
    )


@pytest.mark.parametrize("network", ["mlp", "batch norm", "in-place convolutions"])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_live_weights_are_those_of_the_naive_loop(num_stages: int, network: str) -> None:
    torch.manual_seed(0)
    make_blocks, shape = NETWORKS[network]
    stages = into_stages(make_blocks(), num_stages)
    naive = naive_live(stages, OPTIMIZERS["nesterov"])
    method = dg.DDG(weights="live")
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=method)
    for inputs, targets in batches(NUM_BATCHES, shape, sizes=(4, 4, 3)):
        assert_same(pipe.step(inputs, targets), naive.step(inputs, targets))
        assert_same(states(pipe.stages), states(naive.stages))


def by_hand(
    weights: list[list[Tensor]], data: list[tuple[Tensor, Tensor]], lr: float
) -> list[list[Tensor]]:
    """SGD on stages of bias-free linear layers, each followed by tanh; squared error at the end.

    h_l = tanh(z_l), z_l = h_(l-1) W_l'        with the weights of iteration s
    dz_l = dh_l * (1 - h_l^2)                  with the activations of batch s
    gW_l = dz_l' h_(l-1)                       with the activations of batch s
    dh_(l-1) = dz_l W_l                        with the weights of iteration t
    """
    last = len(weights) - 1
    activations: dict[tuple[int, int], list[Tensor]] = {}
    deltas: dict[tuple[int, int], Tensor] = {}
    for t, (x, targets) in enumerate(data):
        for k, layers in enumerate(weights):
            passed = [x]
            for w in layers:
                passed.append(torch.tanh(passed[-1] @ w.T))
            activations[k, t] = passed
            x = passed[-1]
        deltas[last + 1, t] = 2 * (x - targets) / targets.numel()
        for k in range(last, -1, -1):
            s = t - (last - k)
            if s < 0:
                continue
            passed, delta = activations[k, s], deltas[k + 1, s]
            gradients = []
            for w, h, below in zip(weights[k][::-1], passed[:0:-1], passed[-2::-1], strict=True):
                dz = delta * (1 - h.square())
                gradients.append(dz.T @ below)
                delta = dz @ w
            deltas[k, s] = delta
            pairs = zip(weights[k], gradients[::-1], strict=True)
            weights[k] = [w - lr * gradient for w, gradient in pairs]
    return weights


def linear_stages() -> list[nn.Module]:
    return [
        nn.Sequential(*(m for _ in range(2) for m in (nn.Linear(5, 5, bias=False), nn.Tanh())))
        for _ in range(4)
    ]


@pytest.mark.parametrize("weights", ["live", "stash"])
def test_the_chain_rule_by_hand_is_met_by_live_weights_alone(weights: str) -> None:
    torch.manual_seed(0)
    stages = [stage.double() for stage in linear_stages()]
    matrices = [[p.detach().clone() for p in stage.parameters()] for stage in stages]
    data = [
        (torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64))
        for _ in range(NUM_BATCHES)
    ]
    expected = by_hand(matrices, data, lr=0.5)
    pipe = dg.LocalPipeline(
        stages,
        nn.functional.mse_loss,
        lambda params: torch.optim.SGD(params, lr=0.5),
        method=dg.DDG(weights="live" if weights == "live" else "stash"),
    )
    for inputs, targets in data:
        pipe.step(inputs, targets)
    distance = max(
        float((p.detach() - w).abs().max())
        for stage, of_stage in zip(pipe.stages, expected, strict=True)
        for p, w in zip(stage.parameters(), of_stage, strict=True)
    )
    if weights == "live":
        assert distance < 1e-13
    else:
        assert distance > 1e-4


def test_a_flush_uses_every_batch() -> None:
    stages = into_stages(NETWORKS["mlp"][0](), 3)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"], method=dg.DDG(weights="live"))
    for inputs, targets in batches(4, (6,)):
        pipe.step(inputs, targets)
    pipe.flush()
    assert {state["version"] for state in pipe.state_dict()["stages"].values()} == {4}


def test_recomputation_and_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        dg.DDG(weights="live", recompute=True)
    with pytest.raises(ValueError, match="must be 'stash' or 'live'"):
        dg.DDG(weights="old")  # type: ignore[arg-type]
