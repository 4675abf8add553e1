"""One parameter that several stages use stays one parameter (docs/your-own-network.md)."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from exact import assert_same
from ranks import run_ranks
from torch import Tensor, nn
from zoo import TIED_LANGUAGE_MODEL as ONE

import delaygrad as dg
from delaygrad import PartitionError, StageError

pytestmark = pytest.mark.xdist_group("ties")

CUTS = ["layers.1", "layers.3"]
STOP = 4


def momentum(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def stages_of(model: nn.Module) -> list[nn.Module]:
    return dg.split(model, 3, sample_inputs=ONE.batch(4, 6), cuts=CUTS)


@pytest.fixture(scope="module")
def cut() -> tuple[nn.Module, list[nn.Module]]:
    model = ONE.build()
    return model, stages_of(model)


def test_one_stage_owns_the_parameter_and_the_others_hold_none(cut: Any) -> None:
    model, stages = cut
    names = [[name for name, _ in stage.named_parameters()] for stage in stages]
    assert names[0] == ["embed.weight", "layers.0.weight", "layers.0.bias"]
    assert not any("embed" in name or "head" in name for name in names[1] + names[2])
    assert [tie.stages for tie in stages[0].ties] == [(0, 1, 2)]
    assert stages[2].borrowed == {"head.weight": "embed.weight"}
    assert model.head.weight is model.embed.weight is stages[0].embed.weight
    merged = dg.merge(stages)
    assert list(merged.state_dict()) == list(model.state_dict())
    assert merged.head.weight is merged.embed.weight


def test_delayed_training_is_that_of_the_whole_tied_model(cut: Any) -> None:
    model, stages = copy.deepcopy(cut)
    whole = copy.deepcopy(model)
    named = dict(whole.named_parameters())
    optimizers = [momentum([named[key] for key, _ in s.named_parameters()]) for s in stages]
    pipe = dg.LocalPipeline(stages, ONE.loss, momentum, method=dg.DDG(slack=1))
    gradients: list[dict[str, Tensor]] = []

    def apply(t: int) -> None:
        for k, stage in enumerate(stages):
            s = t - 2 * (2 - k)
            if 0 <= s < len(gradients):
                for key, _ in stage.named_parameters():
                    named[key].grad = gradients[s][key]
                optimizers[k].step()

    for t, (inputs, targets) in enumerate(ONE.batches(7)):
        loss = ONE.loss(whole(inputs), targets)
        found = torch.autograd.grad(loss, list(named.values()))
        gradients.append(dict(zip(named, found, strict=True)))
        assert_same(pipe.step(inputs, targets), loss.detach(), "loss")
        apply(t)
    pipe.flush()
    for t in range(7, 11):
        apply(t)
    assert_same(dg.merge(pipe.stages).state_dict(), whole.state_dict(), "state")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (dg.DDG(boundary_dtype=torch.bfloat16), "boundary_dtype rounds it"),
        (dg.DDG(stash_dtype=torch.bfloat16), "stash_dtype rounds it"),
        (dg.DDG(weights="live"), "live weights"),
        (dg.DNI(), "its gradient would not arrive"),
    ],
)
def test_methods_that_do_not_keep_it_one_parameter_are_refused(
    cut: Any, method: dg.Method, reason: str
) -> None:
    with pytest.raises(StageError, match=rf"share a parameter.*embed.weight; {reason}.*untie"):
        dg.LocalPipeline(copy.deepcopy(cut[1]), ONE.loss, momentum, method=method)


def test_a_network_with_ties_can_be_planned() -> None:
    planned = dg.plan(ONE.build(), ONE.batch(4, 6), num_stages=[2], side_by_side=False, link=None)
    assert "cuts=" in str(planned)


def _train(pipe: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"losses": []}
    for t, (inputs, targets) in enumerate(ONE.batches(8)):
        if t == STOP:
            file = io.BytesIO()
            torch.save(pipe.state_dict(), file)
            told["saved"] = file.getvalue()
        told["losses"].append(pipe.step(inputs, targets))
    pipe.flush()
    told["predicted"] = pipe.predict(ONE.batch(2, 5))
    told["states"] = [dict(module.state_dict()) for module in pipe.modules]
    return told


def _on_a_rank(rank: int, world_size: int) -> dict[str, Any]:
    pipe = dg.DistributedPipeline.from_model(
        ONE.build(),
        ONE.loss,
        momentum,
        sample_inputs=ONE.batch(4, 6),
        cuts=CUTS,
        method=dg.DDG(),
        timeout_s=60,
    )
    with pipe:
        return _train(pipe)


def test_ranks_compute_what_one_process_does_and_its_checkpoint_continues(cut: Any) -> None:
    told = run_ranks(_on_a_rank, 3, timeout_s=110)
    pipe = dg.LocalPipeline(copy.deepcopy(cut[1]), ONE.loss, momentum, method=dg.DDG())
    local = _train(pipe)
    assert_same(told[2]["losses"], local["losses"], "losses")
    assert_same(told[2]["predicted"], local["predicted"], "predictions")
    assert_same([of_rank["states"][0] for of_rank in told], local["states"], "states")

    states = [torch.load(io.BytesIO(of_rank["saved"]), weights_only=True) for of_rank in told]
    state = {**states[0], "stages": {k: s for of in states for k, s in of["stages"].items()}}
    again = dg.LocalPipeline(copy.deepcopy(cut[1]), ONE.loss, momentum, method=dg.DDG())
    again.load_state_dict(state)
    for inputs, targets in ONE.batches(8)[STOP:]:
        again.step(inputs, targets)
    again.flush()
    assert_same([dict(s.state_dict()) for s in again.stages], local["states"], "states")


def test_an_nn_sequential_shares_a_parameter_across_stages_when_it_is_captured() -> None:
    embed, head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
    head.weight = embed.weight
    model = nn.Sequential(embed, nn.Linear(5, 5), nn.Tanh(), head)
    sample = torch.randint(7, (4, 3))
    with pytest.raises(PartitionError, match=r"0.weight' and '3.weight'.*blocks=\[\]"):
        dg.split(model, 2, sample_inputs=sample)
    stages = dg.split(model, 2, sample_inputs=sample, cuts=["1"], blocks=[])
    assert dg.check(stages, model, torch.randint(7, (3, 3))) == 0.0
    assert list(dg.merge(stages).state_dict()) == list(model.state_dict())
