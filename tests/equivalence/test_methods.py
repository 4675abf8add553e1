"""Each published method against a naive loop of its rule, in both runtimes and through checkpoints.

DDG and BP have a loop of their own (``test_naive_loop.py``), and so has DNI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from equivalence.naive_ticks import NaiveTicks
from exact import assert_same
from networks import NETWORKS, OPTIMIZERS, batches, into_stages, states
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch import nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods.axes import Graph, Predicted, Replay
from delaygrad.runtime import Pipeline
from delaygrad.schedule import Schedule, locked, unlocked

NUM_BATCHES = 10


def above(k: int, num_stages: int) -> int:
    return num_stages - 1 - k


def never(k: int, num_stages: int) -> int:
    return 0


def lookahead_rule(micro_batches: int, slack: int = 0) -> dict[str, Any]:
    def lag(k: int, num_stages: int) -> int:
        return above(k, num_stages) * (1 + slack)

    return {
        "offset": never,
        "lag": lag,
        "micro_batches": micro_batches,
        "horizon": lambda k, num_stages: lag(k, num_stages) / micro_batches + 1,
    }


DECOUPLED = {"offset": lambda k, _: k, "lag": lambda k, num_stages: 2 * above(k, num_stages)}
CASES: dict[str, tuple[Callable[[], dg.Method], dict[str, Any]]] = {
    "fr": (dg.FR, {"offset": never, "lag": above, "replays": True}),
    "fr m2": (
        lambda: dg.FR(micro_batches=2),
        {"offset": never, "lag": above, "replays": True, "micro_batches": 2},
    ),
    "fdg": (dg.FDG, {**DECOUPLED, "beta": 0.5}),
    "fdg m2": (
        lambda: dg.FDG(0.9, micro_batches=2),
        {**DECOUPLED, "beta": 0.9, "micro_batches": 2},
    ),
    "lookahead m1": (lambda: dg.Lookahead(micro_batches=1), lookahead_rule(1)),
    "lookahead m3": (lambda: dg.Lookahead(micro_batches=3), lookahead_rule(3)),
    "lookahead m2 slack": (lambda: dg.Lookahead(2, slack=1), lookahead_rule(2, 1)),
    "bp lookahead": (
        lambda: dg.BP(lookahead=1),
        {"offset": never, "lag": never, "horizon": lambda k, _: 1.0},
    ),
    "unlocked replay with prediction": (
        lambda: dg.Method(
            name="mine",
            schedule=unlocked(),
            forward_weights=Predicted(horizon=1.5),
            linearise=Replay(weights="live"),
        ),
        {**DECOUPLED, "replays": True, "horizon": lambda k, _: 1.5},
    ),
}


def build_stages(num_stages: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return into_stages(NETWORKS["in-place convolutions"][0](), num_stages)


def data(num_batches: int = NUM_BATCHES) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches(num_batches, (2, 4, 4), sizes=(6, 4)))


def drive(
    pipe: Pipeline, *, start: int = 0, num_batches: int = NUM_BATCHES
) -> tuple[list[Any], dict[str, Any]]:
    losses = []
    inputs, targets = torch.empty(0), torch.empty(0)
    for x, y in data(num_batches)[start:]:
        inputs, targets = x.clone(), y.clone()
        losses.append(pipe.step(inputs, targets))
        inputs.fill_(torch.nan)  # the caller may refill what it gave
        targets.fill_(0)
    if num_batches == NUM_BATCHES:
        pipe.flush()
    return losses, from_bytes(to_bytes(pipe.state_dict()))


@pytest.mark.parametrize(
    ("num_stages", "optimizer"),
    [
        (1, "adam"),
        pytest.param(2, "nesterov", marks=pytest.mark.full),
        (3, "adam"),
        (4, "nesterov"),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_it_is_its_naive_loop(case: str, num_stages: int, optimizer: str) -> None:
    make, rule = CASES[case]
    stages = build_stages(num_stages)
    naive = NaiveTicks(stages=stages, make_optimizer=OPTIMIZERS[optimizer], **rule)
    expected = naive.run(data())
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS[optimizer], method=make())
    losses, _ = drive(pipe)
    assert_same(losses, expected)
    assert_same(states(stages), states(naive.stages))


def on_ranks(rank: int, world_size: int, case: str) -> Any:
    stage = build_stages(world_size)[rank]
    pipe = dg.DistributedPipeline(
        stage, cross_entropy, OPTIMIZERS["nesterov"], method=CASES[case][0](), timeout_s=20
    )
    return drive(pipe)


@pytest.mark.parametrize("case", ["fr", "fdg m2", "lookahead m2 slack"])
def test_ranks_do_what_one_process_does(case: str) -> None:
    stages = build_stages(3)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=CASES[case][0]())
    losses, state = drive(pipe)
    told = run_ranks(on_ranks, 3, args=(case,))
    assert_same(told[2][0], losses)
    for rank, (_, of_rank) in enumerate(told):
        assert_same(of_rank["stages"], {str(rank): state["stages"][str(rank)]})


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_run(case: str) -> None:
    def make(seed: int) -> dg.LocalPipeline:
        stages = build_stages(3)
        for parameter in (p for stage in stages for p in stage.parameters()):
            parameter.data.add_(seed)
        optimizer = OPTIMIZERS["nesterov"]
        return dg.LocalPipeline(stages, cross_entropy, optimizer, method=CASES[case][0]())

    losses, end = drive(make(0))
    for stop in (1, 2, 6):
        early, saved = drive(make(0), num_batches=stop)
        resumed = make(1)
        resumed.load_state_dict(saved)
        late, resumed_end = drive(resumed, start=stop)
        assert_same(early + late, losses, f"losses, stopped at {stop}")
        assert_same(resumed_end, end, f"end, stopped at {stop}")


def test_nothing_has_arrived_yet_in_the_first_unlocked_iterations() -> None:
    stages = build_stages(4)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"], method=dg.FDG())
    losses, _ = drive(pipe)
    assert losses[:3] == [None] * 3 and None not in losses[3:]


def test_a_method_is_told_by_its_axes_not_by_its_name() -> None:
    assert dg.DDG(recompute=True).to_json() != dg.DDG().to_json()
    mine = dg.Method(name="ddg", schedule=locked(slack=2), linearise=Graph("live"))
    assert mine == dg.DDG(slack=2, weights="live") and repr(mine) != repr(dg.DDG(slack=2))
    stages = build_stages(2)
    state = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"], method=dg.FDG()).state_dict()
    other = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"], method=dg.FDG(0.9))
    with pytest.raises(dg.CheckpointError, match=r"error_gradient there: .*0\.5.*here: .*0\.9"):
        other.load_state_dict(state)


def test_schedules_of_other_rules_differ() -> None:
    other = Schedule("locked", never, above)
    assert other.to_json() != locked().to_json() != locked(slack=1).to_json()


# --- predicted parameters ------------------------------------------------------------------------


def lookahead_pipe(stages: list[nn.Module]) -> dg.LocalPipeline:
    optimizer = OPTIMIZERS["nesterov"]
    return dg.LocalPipeline(stages, cross_entropy, optimizer, method=dg.Lookahead(2))


def test_evaluation_meets_the_parameters_not_their_prediction() -> None:
    stages = build_stages(2)
    pipe = lookahead_pipe(stages)
    for x, y in data(3):
        pipe.step(x, y)
    expected = nn.Sequential(*stages).eval()(data(1)[0][0]).detach()
    assert_same(pipe.predict(data(1)[0][0]), expected)


@pytest.mark.parametrize("in_place", [False, True], ids=["new memory", "in place"])
def test_a_parameter_changed_by_hand_is_met_as_it_is(in_place: bool) -> None:
    """On the last stage, where no batch waits between two steps."""
    met: list[torch.Tensor] = []
    layer = nn.Linear(3, 5)
    layer.register_forward_pre_hook(lambda module, _: met.append(module.weight.detach().clone()))
    pipe = dg.LocalPipeline(
        [layer], cross_entropy, OPTIMIZERS["nesterov"], method=dg.BP(lookahead=1)
    )
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    for _ in range(2):
        pipe.step(x, y)
    assert not torch.equal(met[-1], layer.weight)  # a prediction
    if in_place:
        with torch.no_grad():
            layer.weight.clamp_(-0.1, 0.1)
    else:
        layer.weight.data = layer.weight.data.clamp(-0.1, 0.1)
    changed = layer.weight.detach().clone()
    pipe.step(x, y)
    assert_same(met[-1], changed)


def test_frozen_parameters_are_not_predicted_and_stay() -> None:
    stages = build_stages(2)
    frozen = stages[0][0][0].weight.requires_grad_(False)
    before = frozen.detach().clone()
    pipe = lookahead_pipe(stages)
    for x, y in data(4):
        pipe.step(x, y)
    assert_same(frozen.detach(), before)
    assert not [
        name for name in pipe.state_dict()["stages"]["0"]["previous"] if name == "0.0.weight"
    ]
