"""Options that the number of stages decides: the choice, and training as with the options given."""

from __future__ import annotations

import pytest
import torch
from exact import assert_same
from networks import NETWORKS, OPTIMIZERS, batches, into_stages
from ranks import run_ranks
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods import Method, chosen
from delaygrad.runtime import Pipeline
from delaygrad.training.assembly import with_method
from delaygrad.training.config import TrainConfig


def trained(pipe: Pipeline) -> list[torch.Tensor]:
    for inputs, targets in batches(6, NETWORKS["mlp"][1], sizes=(6,)):
        pipe.step(inputs, targets)
    pipe.flush()
    return [p.detach().clone() for module in pipe.modules for p in module.parameters()]


def local(method: Method, num_stages: int) -> dg.LocalPipeline:
    torch.manual_seed(0)
    stages = into_stages(NETWORKS["mlp"][0](), num_stages)
    return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adam"], method=method)


@pytest.mark.parametrize(
    ("given", "num_stages", "expected"),
    [
        (dg.Lookahead(), 4, dg.Lookahead(3)),
        (dg.Lookahead(slack=1), 4, dg.Lookahead(6, slack=1)),
        (dg.Lookahead(), 1, dg.Lookahead(1)),
        (dg.Auto(), 4, dg.Lookahead(6)),
        (dg.Auto(), 1, dg.BP()),
    ],
    ids=repr,
)
def test_what_is_left_open_trains_as_what_is_given(
    given: Method, num_stages: int, expected: Method
) -> None:
    pipe = local(given, num_stages)
    assert pipe.method == expected and pipe.method.to_json() == expected.to_json()
    assert_same(trained(pipe), trained(local(expected, num_stages)))


def on_a_rank(rank: int, world_size: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    stage = into_stages(NETWORKS["mlp"][0](), world_size)[rank]
    with dg.DistributedPipeline(
        stage, cross_entropy, OPTIMIZERS["adam"], method=dg.Auto(), timeout_s=20
    ) as pipe:
        return trained(pipe)


def test_ranks_choose_alike() -> None:
    told = run_ranks(on_a_rank, 3)
    assert_same([p for of_rank in told for p in of_rank], trained(local(dg.Lookahead(4), 3)))


@pytest.mark.parametrize(
    ("num_stages", "batch_size", "looks_ahead", "method", "why"),
    [
        (1, 64, False, dg.BP(), "one stage has no delay"),
        (2, 64, False, dg.Lookahead(2), "a look-ahead corrects late ones"),
        (8, 64, False, dg.Lookahead(16), "with 16 micro-batches no gradient is more than one"),
        (16, 100, False, dg.Lookahead(50), "at least half are not late"),
        (16, 30, False, dg.Lookahead(30), "at least half are not late"),
        (16, 29, False, dg.Lookahead(29), "one update late, and a look-ahead"),
        (16, None, False, dg.Lookahead(30), "at least half are not late"),
        (8, 64, True, dg.DDG(micro_batches=16), "the optimizer looks ahead itself"),
        (16, 5, False, dg.DDG(micro_batches=5), "up to 3 updates late"),
    ],
)
def test_the_choice_and_its_reason(
    num_stages: int, batch_size: int | None, looks_ahead: bool, method: Method, why: str
) -> None:
    found = chosen(num_stages, batch_size, looks_ahead=looks_ahead)
    assert found == method
    assert found.title is not None and why in found.title
    delays = [found.delay(k, num_stages) for k in range(num_stages)]
    assert max(delays) <= 1 or batch_size == 5


@pytest.mark.parametrize(
    ("settings", "method", "micro_batches"),
    [
        ({"method": "lookahead"}, "lookahead", 4),
        ({"method": "lookahead", "batch_size": 9}, "lookahead", 3),
        ({"method": "lookahead", "micro_batches": 2}, "lookahead", 2),
        ({"method": "auto"}, "lookahead", 8),
        ({"method": "auto", "batch_size": 4}, "lookahead", 4),
        ({"method": "auto", "nesterov": True}, "ddg", 8),
        ({"method": "auto", "batch_size": 2}, "ddg", 2),
        ({"method": "auto", "stages": 1}, "bp", 1),
    ],
)
def test_a_run_records_what_was_chosen(
    settings: dict[str, object], method: str, micro_batches: int
) -> None:
    config = with_method(TrainConfig.of(**{"stages": 4, "batch_size": 64, **settings}))
    assert (config.method.name, config.to_json()["micro_batches"]) == (method, micro_batches)
    assert config.method.build().complete is None


def test_a_batch_too_small_for_the_stages_is_refused() -> None:
    with pytest.raises(dg.ConfigError, match="micro_batches must not exceed the batch size"):
        with_method(TrainConfig.of(method="lookahead", stages=8, batch_size=4))
