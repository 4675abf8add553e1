"""Forwards that change parameters: what they do is carried, and seen by whom it was seen.

The naive loop runs each forward on a copy of the network, whose graph nothing else reaches, and
copies what the forward has written to the true network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from equivalence.test_live_weights import naive_live
from exact import assert_same
from grids import grid
from networks import CLASSES, batches, states
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.errors import StageError

NUM_BATCHES = 9


def rebind(old: nn.Parameter, new: Tensor) -> None:
    old.data = new


def write_data(old: nn.Parameter, new: Tensor) -> None:
    old.data.copy_(new)  # neither counted nor moved


def write_counted(old: nn.Parameter, new: Tensor) -> None:
    with torch.no_grad():
        old.copy_(new)


WRITES = [rebind, write_data, write_counted]
IN_PLACE = [write_data, write_counted]
Write = Callable[[nn.Parameter, Tensor], None]


class Momentum(nn.Module):
    """A frozen layer follows a trained one, in each forward that is not before ``start``."""

    def __init__(self, write: Write, start: int = 0, every: int = 1) -> None:
        super().__init__()
        self.online, self.target = nn.Linear(6, 6), nn.Linear(6, 6).requires_grad_(False)
        self.write, self.start, self.every = write, start, every
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        count = int(self.forwards)
        self.forwards = self.forwards + 1
        if count >= self.start and count % self.every == 0:
            pairs = zip(self.target.parameters(), self.online.parameters(), strict=True)
            for old, new in pairs:
                self.write(old, 0.6 * old.data + 0.4 * new.data)
        return torch.tanh(self.target(torch.tanh(self.online(x)))) + x


class Constrained(nn.Module):
    """A trained layer whose forward first clips its weight."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.linear, self.write = nn.Linear(6, 6), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.linear.weight, self.linear.weight.data.clamp(-0.2, 0.2))
        return torch.tanh(self.linear(x)) + x


def network(make: Callable[..., nn.Module], *args: Any, num_stages: int = 4) -> list[nn.Module]:
    torch.manual_seed(1)
    hidden = [nn.Sequential(nn.Linear(6, 6), make(*args)) for _ in range(num_stages - 1)]
    return [*hidden, nn.Sequential(make(*args), nn.Linear(6, CLASSES))]


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in params if p.requires_grad], lr=0.1, momentum=0.9)


def data(num_batches: int = NUM_BATCHES) -> list[tuple[Tensor, Tensor]]:
    return list(batches(num_batches, (6,), sizes=(4, 4, 3)))


def pipeline(stages: list[nn.Module], **options: Any) -> dg.LocalPipeline:
    torch.manual_seed(3)
    return dg.LocalPipeline(stages, cross_entropy, sgd, method=dg.DDG(**options))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"micro_batches": 2},
    {"micro_batches": 3, "slack": 1},
    {"slack": 1},
]


@pytest.mark.parametrize(
    ("make", "write", "options", "recompute"),
    grid([Momentum, Constrained], WRITES, OPTIONS, [False, True]),
)
def test_a_forward_that_writes_parameters_is_that_of_the_naive_loop(
    make: type[nn.Module], write: Write, options: dict[str, Any], recompute: bool
) -> None:
    stages = network(make, write)
    before = copy.deepcopy(states(stages))
    naive = NaiveDelayedGradients(stages, cross_entropy, sgd, seed=3, **options)
    pipe = pipeline(stages, recompute=recompute, **options)
    for batch in data():
        assert_same(pipe.step(*batch), naive.step(*batch))
        assert_same(states(stages), states(naive.stages))
    naive.flush()
    pipe.flush()
    assert_same(states(stages), states(naive.stages))
    for now, was in zip(states(stages), before, strict=True):
        assert all(not torch.equal(now[name], was[name]) for name in now)


@pytest.mark.parametrize("recompute", [False, True], ids=["graph", "recompute"])
def test_new_memory_is_carried_whenever_a_forward_gives_it(recompute: bool) -> None:
    stages = network(Momentum, rebind, 5, 2)
    naive = NaiveDelayedGradients(stages, cross_entropy, sgd, seed=3)
    pipe = pipeline(stages, recompute=recompute)
    for batch in data(12):
        assert_same(pipe.step(*batch), naive.step(*batch))
        assert_same(states(stages), states(naive.stages))


def test_a_write_that_is_known_stays_carried_when_it_comes_rarely() -> None:
    stages = network(Momentum, write_data, 0, 5)
    naive = NaiveDelayedGradients(stages, cross_entropy, sgd, seed=3)
    pipe = pipeline(stages)
    for batch in data(12):
        assert_same(pipe.step(*batch), naive.step(*batch))
        assert_same(states(stages), states(naive.stages))


@pytest.mark.parametrize("write", IN_PLACE)
def test_a_write_in_place_that_begins_late_is_an_error_with_a_remedy(write: Write) -> None:
    pipe = pipeline(network(Momentum, write, 5))
    wrong = r"\[stage 0, .*in place \(parameter: 1\.target\.weight\).*data = new_values"
    with pytest.raises(StageError, match=wrong):
        for batch in data():
            pipe.step(*batch)


def test_a_write_through_a_list_of_parameters_is_an_error_with_a_remedy() -> None:
    class WithList(Momentum):
        def __init__(self) -> None:
            super().__init__(rebind)
            self.mine = [self.target.weight]

        def forward(self, x: Tensor) -> Tensor:
            self.mine[0].data = self.mine[0].data * 0.9
            return self.target(self.online(x))

    pipe = pipeline(network(WithList))
    with pytest.raises(StageError, match=r"stage 0.*by another reference .*target\.weight"):
        pipe.step(*data()[0])


@pytest.mark.parametrize(
    ("make", "write", "stop", "micro_batches", "recompute"),
    grid([Momentum, Constrained], WRITES, [2, 5], [1, 2], [False, True]),
)
def test_a_resumed_run_applies_the_effect_of_each_forward_once(
    make: type[nn.Module], write: Write, stop: int, micro_batches: int, recompute: bool
) -> None:
    def build() -> dg.LocalPipeline:
        return pipeline(network(make, write), recompute=recompute, micro_batches=micro_batches)

    straight = build()
    losses = [straight.step(*batch) for batch in data()]
    first = build()
    for batch in data()[:stop]:
        first.step(*batch)
    second = build()
    second.load_state_dict(from_bytes(to_bytes(first.state_dict())))
    assert_same(states(second.stages), states(first.stages))
    assert_same([second.step(*batch) for batch in data()[stop:]], losses[stop:])
    assert_same(states(second.stages), states(straight.stages))


@pytest.mark.parametrize("write", IN_PLACE)
@pytest.mark.parametrize("make", [Momentum, Constrained])
def test_with_live_weights_waiting_batches_meet_what_was_written(
    make: type[nn.Module], write: Write
) -> None:
    stages = network(make, write)
    naive = naive_live(stages, sgd)
    pipe = pipeline(stages, weights="live")
    saved = None
    for index, batch in enumerate(data()):
        assert_same(pipe.step(*batch), naive.step(*batch))
        assert_same(states(stages), states(naive.stages))
        saved = copy.deepcopy(pipe.state_dict()) if index == 4 else saved
    resumed = pipeline(network(make, write), weights="live")
    assert saved is not None
    resumed.load_state_dict(saved)
    for batch in data()[5:]:
        resumed.step(*batch)
    assert_same(states(resumed.stages), states(stages))


def test_with_live_weights_new_memory_is_an_error_with_a_remedy() -> None:
    pipe = pipeline(network(Momentum, rebind), weights="live")
    with pytest.raises(StageError, match=r"stage 0.*1\.target\.weight.*write in place"):
        pipe.step(*data()[0])


class Noting(nn.Module):
    """Counts its forwards in an attribute of a parameter, and freezes another one after three."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.linear.weight.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.count = self.linear.weight.count + 1
        if self.linear.weight.count > 3:
            self.second.weight.requires_grad_(False)
        return torch.tanh(self.second(self.linear(x))) * self.linear.weight.count


@pytest.mark.parametrize("recompute", [False, True], ids=["graph", "recompute"])
def test_attributes_and_flags_that_a_forward_sets_are_carried_and_replayed(
    recompute: bool,
) -> None:
    stages = [nn.Linear(6, 6), *(Noting() for _ in range(2)), nn.Linear(6, CLASSES)]
    plain = copy.deepcopy(stages)
    for stage in plain[1:3]:
        stage.linear.weight.count = 0  # a copy of a parameter has no attributes
    pipe = pipeline(stages, recompute=recompute)
    graphs = pipeline(plain)
    for number, batch in enumerate(data(), 1):
        assert_same(pipe.step(*batch), graphs.step(*batch))
        for stage in stages[1:3]:
            assert stage.linear.weight.count == number
            assert stage.second.weight.requires_grad == (number <= 3)
    assert_same(states(stages), states(plain))


def test_a_frozen_parameter_may_be_replaced_and_a_trained_one_may_not() -> None:
    class Replacing(nn.Module):
        def __init__(self, trained: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.scale = nn.Parameter(torch.ones(6), requires_grad=trained)

        def forward(self, x: Tensor) -> Tensor:
            self.scale = nn.Parameter(0.9 * self.scale.data, requires_grad=False)
            return self.linear(x) * self.scale

    stages: list[nn.Module] = [Replacing(False), nn.Linear(6, CLASSES)]
    naive = NaiveDelayedGradients(stages, cross_entropy, sgd, seed=3)
    pipe = pipeline(stages)
    for batch in data():
        assert_same(pipe.step(*batch), naive.step(*batch))
        assert_same(states(stages), states(naive.stages))
    pipe = pipeline([Replacing(True), nn.Linear(6, CLASSES)])
    with pytest.raises(StageError, match=r"stage 0.*another object .*scale"):
        pipe.step(*data()[0])


def train_ranks(rank: int, world_size: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for write in WRITES:
        for make in (Momentum, Constrained):
            stages = network(make, write, num_stages=world_size)
            torch.manual_seed(3)
            with dg.DistributedPipeline(
                stages[rank], cross_entropy, sgd, method=dg.DDG(micro_batches=2)
            ) as pipe:
                for batch in data():
                    pipe.step(*batch)
                pipe.flush()
            found[f"{make.__name__} {write.__name__}"] = dict(stages[rank].state_dict())
    return found


def test_ranks_carry_what_one_process_carries() -> None:
    ranks = run_ranks(train_ranks, 3)
    for write in WRITES:
        for make in (Momentum, Constrained):
            stages = network(make, write, num_stages=3)
            pipe = pipeline(stages, micro_batches=2)
            for batch in data():
                pipe.step(*batch)
            pipe.flush()
            name = f"{make.__name__} {write.__name__}"
            assert_same([found[name] for found in ranks], states(stages))


def test_a_diverged_run_is_not_taken_for_a_forward_that_writes() -> None:
    """NaN in parameters, predictions and buffers: compared, and not equal to themselves."""
    stages = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3)]
    pipe = dg.LocalPipeline(
        stages,
        nn.functional.mse_loss,
        lambda params: torch.optim.SGD(params, lr=0.1),
        method=dg.Lookahead(2),
        allow_nonfinite_loss=True,
    )
    for index in range(20):  # of the forwards, 16 and 32 are checked
        inputs = torch.full((8, 4), torch.nan) if index == 3 else torch.randn(8, 4)
        pipe.step(inputs, torch.randn(8, 4))
    for stage in stages:
        assert all(tensor.isnan().all() for tensor in (*stage.parameters(), stage[1].running_mean))
