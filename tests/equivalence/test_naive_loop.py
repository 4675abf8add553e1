"""The engine against the paper: every tensor, after every iteration, to the last bit.

The order of arithmetic is the same in both, so every comparison is exact (rtol=0, atol=0) unless
the test says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from grids import grid
from networks import CLASSES, NETWORKS, OPTIMIZERS, batches, into_stages, mlp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import delaygrad as dg

SEED = 0
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Race:
    """Run the engine and the naive loop side by side and compare them at every step."""

    def __init__(
        self,
        stages: Sequence[nn.Module],
        make_optimizer: MakeOptimizer = OPTIMIZERS["nesterov"],
        loss_fn: Callable[[Any, Any], Tensor] = cross_entropy,
        *,
        recompute: bool = False,
        **rule: Any,
    ) -> None:
        torch.manual_seed(SEED)
        self.naive = NaiveDelayedGradients(stages, loss_fn, make_optimizer, seed=SEED, **rule)
        method = dg.DDG(recompute=recompute, **rule)
        self.pipe = dg.LocalPipeline(stages, loss_fn, make_optimizer, method=method)

    def run(self, data: Iterable[tuple[Any, Any]]) -> None:
        for inputs, targets in data:
            self.step(inputs, targets)

    def step(self, inputs: Any, targets: Any) -> None:
        expected = self.naive.step(inputs, targets)
        loss = self.pipe.step(copy.deepcopy(inputs), targets)
        assert_same(loss, expected)
        self.compare()

    def flush(self) -> None:
        self.naive.flush()
        self.pipe.flush()
        self.compare()

    def compare(self) -> None:
        assert_same(
            [dict(s.state_dict()) for s in self.pipe.stages],
            [dict(s.state_dict()) for s in self.naive.stages],
        )
        gradients = [[p.grad for p in stage.parameters()] for stage in self.pipe.stages]
        assert_same(gradients, self.naive.gradients())
        flags = [[p.requires_grad for p in stage.parameters()] for stage in self.pipe.stages]
        assert flags == [[p.requires_grad for p in s.parameters()] for s in self.naive.stages]

    def set_lr(self, lr: float) -> None:
        for optimizer in (*self.pipe.optimizers, *self.naive.optimizers):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = lr

    @property
    def everywhere(self) -> list[list[nn.Module]]:
        """The stages of both contestants, to change something in both."""
        return [self.pipe.stages, self.naive.stages]


def moved(stage: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(v, before[name]) for name, v in stage.state_dict().items())


def values(stage: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in stage.state_dict().items()}


# --- the grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_stages", "optimizer", "network"), grid([1, 2, 3, 5, 8], OPTIMIZERS, NETWORKS)
)
def test_every_iteration_and_the_flush_match_the_naive_loop(
    num_stages: int, optimizer: str, network: str
) -> None:
    make_blocks, shape = NETWORKS[network]
    stages = into_stages(make_blocks(), num_stages)
    race = Race(stages, OPTIMIZERS[optimizer])
    untrained = [values(stage) for stage in stages]

    # Batch 2 is a short one, in the middle of everything.
    race.run(batches(2 * num_stages + 3, shape, sizes=(4, 4, 3, 4, 4, 4, 4, 4)))
    race.flush()

    # The comparison above is worth something only if every stage has been trained.
    assert all(moved(s, before) for s, before in zip(stages, untrained, strict=True))


# --- options -------------------------------------------------------------------------------------

RULES: dict[str, dict[str, Any]] = {
    "slack 1": {"slack": 1},
    "slack 2": {"slack": 2},
    "2 micro-batches": {"micro_batches": 2},
    "3 micro-batches": {"micro_batches": 3},
    "4 micro-batches, slack 1": {"micro_batches": 4, "slack": 1},
    "bf16 boundaries": {"boundary_dtype": torch.bfloat16},
    "recompute": {"recompute": True},
    "recompute, 3 micro-batches": {"recompute": True, "micro_batches": 3},
    "all": {
        "recompute": True,
        "micro_batches": 2,
        "slack": 1,
        "boundary_dtype": torch.bfloat16,
    },
}


@pytest.mark.parametrize(("num_stages", "network", "rule"), grid([1, 2, 4], NETWORKS, RULES))
def test_every_option_matches_the_naive_loop(num_stages: int, network: str, rule: str) -> None:
    make_blocks, shape = NETWORKS[network]
    stages = into_stages(make_blocks(), num_stages)
    race = Race(stages, OPTIMIZERS["nesterov"], **RULES[rule])
    untrained = [values(stage) for stage in stages]
    for seed, length in ((1, 3 * num_stages), (2, 1), (3, num_stages)):  # phases
        # Parts of unequal sizes, and a short batch.
        race.run(batches(length, shape, sizes=(9, 9, 8, 9, 9), seed=seed))
        race.flush()
    assert all(moved(s, before) for s, before in zip(stages, untrained, strict=True))


@pytest.mark.parametrize("method", [dg.DDG(micro_batches=4), dg.BP(micro_batches=4)], ids=repr)
def test_micro_batches_in_one_stage_are_gradient_accumulation(method: dg.Method) -> None:
    stages = into_stages(mlp(), 1)
    model = copy.deepcopy(stages[0])
    optimizer = OPTIMIZERS["adam"](list(model.parameters()))
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adam"], method=method)
    for inputs, targets in batches(5, (6,), sizes=(8, 7)):
        optimizer.zero_grad()
        total = 0.0
        for x, y in zip(inputs.tensor_split(4), targets.tensor_split(4), strict=True):
            loss = cross_entropy(model(x), y) * (len(y) / len(targets))
            loss.backward()
            total += loss.item()
        optimizer.step()
        loss = pipe.step(inputs, targets)
        assert loss is not None and loss.item() == pytest.approx(total, rel=1e-6)
        assert_same(dict(pipe.stages[0].state_dict()), dict(model.state_dict()))


def test_micro_batches_change_nothing_where_samples_do_not_meet() -> None:
    # A mean over samples is the weighted mean of its parts, to rounding; nothing delays with BP.
    stages = [stage.double() for stage in into_stages(mlp(), 3)]
    whole, parts = (
        dg.LocalPipeline(
            copy.deepcopy(stages),
            cross_entropy,
            OPTIMIZERS["adam"],
            method=dg.BP(micro_batches=m),
        )
        for m in (1, 3)
    )
    for inputs, targets in batches(6, (6,), sizes=(7, 3)):
        losses = [pipe.step(inputs.double(), targets) for pipe in (whole, parts)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(whole.stages, parts.stages, strict=True):
        torch.testing.assert_close(
            dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-10, atol=1e-10
        )


def test_a_batch_too_small_for_its_micro_batches_is_refused() -> None:
    pipe = dg.LocalPipeline(
        into_stages(mlp(), 2), cross_entropy, OPTIMIZERS["sgd"], method=dg.DDG(micro_batches=4)
    )
    (inputs, targets), *_ = batches(1, (6,), sizes=(3,))
    with pytest.raises(dg.StageError, match=r"samples: \[3\], micro-batches: 4"):
        pipe.step(inputs, targets)


def test_the_fill_leaves_gradients_none_and_parameters_alone() -> None:
    stages = into_stages(mlp(), 4)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adamw"])
    started = [values(stage) for stage in stages]
    for iteration, (inputs, targets) in enumerate(batches(5, (6,))):
        pipe.step(inputs, targets)
        for k, stage in enumerate(stages):
            filling = iteration < 3 - k
            assert all((p.grad is None) == filling for p in stage.parameters())
            assert moved(stage, started[k]) != filling


# --- a run as users run it -----------------------------------------------------------------------


def test_learning_rate_changes_hold_for_all_stages_from_the_same_iteration() -> None:
    race = Race(into_stages(mlp(), 4), OPTIMIZERS["nesterov"])
    for lr, (inputs, targets) in zip(
        (0.1, 0.1, 0.02, 0.3, 0.3, 0.01), batches(6, (6,)), strict=True
    ):
        race.set_lr(lr)
        race.step(inputs, targets)
    race.set_lr(0.5)  # the drain uses what the optimizers then have
    race.flush()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_two_phases_with_a_flush_between(network: str, optimizer: str) -> None:
    make_blocks, shape = NETWORKS[network]
    race = Race(into_stages(make_blocks(), 3), OPTIMIZERS[optimizer])
    for seed, length in ((1, 5), (2, 1), (3, 6)):  # the second is over before the fill is
        race.run(batches(length, shape, seed=seed))
        race.flush()
        assert_same(
            race.pipe.predict(torch.ones(2, *shape)), race.naive.predict(torch.ones(2, *shape))
        )


def test_gradients_are_none_again_in_the_fill_of_a_second_phase() -> None:
    stages = into_stages(mlp(), 3)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"])
    for inputs, targets in batches(4, (6,)):
        pipe.step(inputs, targets)
    pipe.flush()
    pipe.step(*next(batches(1, (6,))))
    assert all(p.grad is None for p in stages[0].parameters())
    assert all(p.grad is not None for p in stages[2].parameters())


def test_a_flush_of_nothing_changes_nothing() -> None:
    race = Race(into_stages(mlp(), 3))
    race.flush()
    race.run(batches(4, (6,)))
    race.flush()
    race.flush()


def test_the_caller_may_refill_its_tensors_after_a_step() -> None:
    race = Race(into_stages(NETWORKS["in-place convolutions"][0](), 4))
    inputs, targets = torch.empty(4, 2, 4, 4), torch.empty(4, dtype=torch.long)
    for fresh_inputs, fresh_targets in batches(8, (2, 4, 4)):
        inputs.copy_(fresh_inputs)
        targets.copy_(fresh_targets)
        expected = race.naive.step(inputs, targets)
        assert_same(race.pipe.step(inputs, targets), expected)
        assert_same(inputs, fresh_inputs)  # in-place layers do not reach the caller's tensor either
        race.compare()
        inputs.fill_(torch.nan)
        targets.fill_(0)
    race.flush()


def test_stages_draw_the_documented_random_numbers_and_leave_the_callers_alone() -> None:
    race = Race(into_stages(NETWORKS["dropout"][0](), 3))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    race.run(batches(3, (6,)))
    assert_same(torch.rand(3), expected)


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [2, 4])
def test_frozen_parameters_stay(num_stages: int) -> None:
    blocks = mlp()
    for index in (0, 3, 5):
        for parameter in blocks[index].parameters():
            parameter.requires_grad_(False)
    before = [values(blocks[index]) for index in (0, 3, 5)]
    race = Race(into_stages(blocks, num_stages))
    race.run(batches(8, (6,)))
    race.flush()
    for index, was in zip((0, 3, 5), before, strict=True):
        assert not moved(blocks[index], was)


def test_a_stage_of_frozen_parameters_passes_gradients_on() -> None:
    blocks = mlp(4)
    for parameter in blocks[2].parameters():
        parameter.requires_grad_(False)
    race = Race(into_stages(blocks, 4))
    before = values(blocks[0])
    race.run(batches(8, (6,)))
    assert moved(blocks[0], before)


@pytest.mark.parametrize("when", [1, 2, 5], ids=lambda when: f"before iteration {when}")
@pytest.mark.parametrize("frozen_first", [True, False], ids=["unfrozen", "frozen"])
def test_parameters_may_be_frozen_and_unfrozen_between_iterations(
    frozen_first: bool, when: int
) -> None:
    # The second layer of a stage: its weight is needed in the backward pass as well.
    stages = into_stages(mlp(), 4)
    for parameter in stages[0][1].parameters():
        parameter.requires_grad_(not frozen_first)
    race = Race(stages)
    for iteration, (inputs, targets) in enumerate(batches(12, (6,))):
        if iteration == when:
            for contestant in race.everywhere:
                for parameter in contestant[0][1].parameters():
                    parameter.requires_grad_(frozen_first)
        race.step(inputs, targets)
    race.flush()


def test_parameters_may_be_frozen_for_some_batches_only() -> None:
    race = Race(into_stages(mlp(), 4))
    for trained, (inputs, targets) in zip(
        (True, False, True, True, False, True, False, True), batches(8, (6,)), strict=True
    ):
        for contestant in race.everywhere:
            for parameter in contestant[0][1].parameters():
                parameter.requires_grad_(trained)
        race.step(inputs, targets)
    race.flush()  # uses batches 5, 6 and 7: with, without, and with


class WithSpare(nn.Module):
    """Holds a parameter that the forward does not use."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.spare = module, nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_parameters_without_gradient_are_left_alone_even_by_weight_decay(optimizer: str) -> None:
    stages = [WithSpare(stage) for stage in into_stages(mlp(), 3)]
    race = Race(stages, OPTIMIZERS[optimizer])
    race.run(batches(7, (6,)))
    race.flush()
    for stage in stages:
        assert stage.spare.grad is None
        assert_same(stage.spare.detach(), torch.ones(3))


class Tied(nn.Module):
    """Uses one weight in three places, two of them under names of their own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, size), nn.Linear(size, size)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.down(x))) + x @ self.down.weight


@pytest.mark.parametrize("position", [0, 1, 2])
def test_parameters_tied_within_a_stage_sum_their_gradients(position: int) -> None:
    blocks = mlp(3)
    width = 6 if position == 0 else 7
    blocks[position] = nn.Sequential(Tied(width), blocks[position])
    race = Race(into_stages(blocks, 3))
    before = values(blocks[position][0])
    race.run(batches(7, (6,)))
    race.flush()
    tied = blocks[position][0]
    assert moved(tied, before) and tied.up.weight is tied.down.weight


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [2, 3])
def test_integer_inputs_to_an_embedding(num_stages: int) -> None:
    blocks = [
        nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(18, 6)),
        *mlp(3),
    ]
    race = Race(into_stages(blocks, num_stages))
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        tokens = torch.randint(11, (4, 3), generator=generator)
        race.step(tokens, torch.randint(CLASSES, (4,), generator=generator))
    race.flush()


class LastHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 6, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.unflatten(1, (3, 6)))[0][:, -1]


class Checkpointed(nn.Module):
    """Computes its module again in the backward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.module, x, use_reentrant=False)


def lstm(*below: nn.Module) -> list[nn.Module]:
    return [*below, nn.Sequential(nn.Linear(6, 18), LastHidden()), nn.Tanh(), *mlp(2)]


def used_twice() -> list[nn.Module]:
    first, *others = mlp(3)
    shared = nn.Linear(6, 6)
    return [nn.Sequential(shared, nn.Tanh(), shared, first), *others]


def weight_normed() -> list[nn.Module]:
    blocks = mlp(4)
    for block in blocks[:3]:
        torch.nn.utils.parametrizations.weight_norm(block[0])
    return blocks


def without_parameters(position: int) -> list[nn.Module]:
    blocks = mlp(2)
    blocks.insert(position, nn.Tanh())
    return blocks


STAGES: dict[str, Callable[[], list[nn.Module]]] = {
    "a module used twice": used_twice,
    "weight norm": weight_normed,
    "lstm first": lambda: into_stages(lstm(), 3),
    "lstm above": lambda: into_stages(lstm(nn.Linear(6, 6)), 4),
    "checkpoints": lambda: [Checkpointed(s) for s in into_stages(mlp(), 4)],
    "checkpoints of dropout": lambda: [
        Checkpointed(s) for s in into_stages(NETWORKS["dropout"][0](), 4)
    ],
    **{f"no parameters on stage {k}": partial(without_parameters, k) for k in range(3)},
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_other_kinds(name: str) -> None:
    race = Race(STAGES[name]())
    if name.startswith("no parameters"):
        assert race.pipe.optimizers[int(name[-1])] is None
    race.run(batches(9, (6,)))
    race.flush()


def test_channels_last_convolutions_keep_their_memory_layout() -> None:
    seen: list[tuple[int, ...]] = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.stride())
            return x.clone()

    blocks = NETWORKS["in-place convolutions"][0]()
    blocks[4] = nn.Sequential(Look(), blocks[4])
    stages = [s.to(memory_format=torch.channels_last) for s in into_stages(blocks, 4)]
    race = Race(stages)
    for inputs, targets in batches(7, (2, 4, 4)):
        race.step(inputs.to(memory_format=torch.channels_last), targets)
    race.flush()
    assert set(seen) == {(64, 1, 16, 4)}
    weights = [p for stage in stages for p in stage.parameters() if p.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


# --- boundaries ----------------------------------------------------------------------------------


class Fork(nn.Module):
    """Hands on a dict: two paths, one that nobody uses, integers, and None."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.unused = nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        order = torch.arange(7).flip(0)
        return {
            "paths": (torch.tanh(self.left(x)), self.right(x)),
            "unused": self.unused(x),
            "order": order,
            "nothing": None,
        }


class Through(nn.Module):
    """Changes one path and hands on the rest as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 7)

    def forward(self, bundle: dict[str, Any]) -> list[Any]:
        left, right = bundle["paths"]
        assert bundle["nothing"] is None
        return [self.layer(left), right, bundle["unused"], bundle["order"], [None, ()]]


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, CLASSES)

    def forward(self, bundle: list[Any]) -> Tensor:
        left, right, _, order, _ = bundle
        assert order.dtype == torch.long and not order.requires_grad
        return self.layer(torch.relu(left) * right[:, order])


@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_dict_and_list_boundaries(optimizer: str) -> None:
    race = Race([Fork(), Through(), Join()], OPTIMIZERS[optimizer])
    race.run(batches(7, (6,)))
    race.flush()
    assert race.pipe.stages[0].unused.weight.grad is None


class Residual(nn.Module):
    """Takes and hands on (stream, skip); the skip crosses every boundary unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, pair: tuple[Tensor, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        stream, skip = pair if isinstance(pair, tuple) else (pair, pair)
        return torch.tanh(self.layer(stream)) + skip, skip + stream


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.layer(pair[0] * pair[1])


def test_tuple_boundaries_with_a_tensor_used_twice_above() -> None:
    # Autograd may add the branches of a fork in another order when the network is cut there:
    # differences at rounding level, so float64 and a tolerance of 1e-12.
    stages = [stage.double() for stage in (Residual(), Residual(), Residual(), Head())]
    torch.manual_seed(SEED)
    naive = NaiveDelayedGradients(stages, cross_entropy, OPTIMIZERS["adam"], seed=SEED)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adam"])
    for inputs, targets in batches(8, (6,)):
        expected = naive.step(inputs.double(), targets)
        torch.testing.assert_close(
            pipe.step(inputs.double(), targets), expected, rtol=1e-12, atol=1e-12
        )
    pipe.flush()
    naive.flush()
    for ours, theirs in zip(pipe.stages, naive.stages, strict=True):
        torch.testing.assert_close(
            dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-12, atol=1e-12
        )


def test_two_inputs_to_the_network() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(4, 6), nn.Linear(6, 6)

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.embed(pair[0]) + self.layer(pair[1])

    race = Race(into_stages([Add(), *mlp(3)], 3))
    generator = torch.Generator().manual_seed(1)
    for inputs, targets in batches(6, (6,)):
        race.step((torch.randint(4, (4,), generator=generator), inputs), targets)
    race.flush()


# --- no delay ------------------------------------------------------------------------------------


def plain_loop(
    stages: Sequence[nn.Module],
    make_optimizer: MakeOptimizer,
    data: Iterable[tuple[Tensor, Tensor]],
) -> tuple[nn.Sequential, list[Tensor]]:
    """What a PyTorch user writes; no word of ours."""
    model = nn.Sequential(*copy.deepcopy(list(stages)))
    optimizer = make_optimizer(list(model.parameters()))
    losses = []
    for inputs, targets in data:
        loss = cross_entropy(model(inputs.clone()), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return model, losses


@pytest.mark.parametrize(
    ("method", "optimizer", "network"),
    grid([dg.DDG(), dg.BP()], ["sgd", "nesterov", "adam"], NETWORKS),
    ids=repr,
)
def test_one_stage_is_plain_training(method: dg.Method, optimizer: str, network: str) -> None:
    make_blocks, shape = NETWORKS[network]
    stages = into_stages(make_blocks(), 1)
    torch.manual_seed(3)
    model, expected = plain_loop(stages, OPTIMIZERS[optimizer], batches(6, shape, sizes=(4, 3)))
    drawn = torch.rand(2)

    torch.manual_seed(3)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS[optimizer], method=method)
    losses = [pipe.step(x, y) for x, y in batches(6, shape, sizes=(4, 3))]
    assert_same(torch.rand(2), drawn)  # even the random numbers that follow are the same
    pipe.flush()
    assert_same(losses, expected)
    assert_same(dict(pipe.stages[0].state_dict()), dict(model[0].state_dict()))


@pytest.mark.parametrize("network", ["mlp", "batch norm", "in-place convolutions"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_backpropagation_through_three_stages_is_plain_training(
    optimizer: str, network: str
) -> None:
    make_blocks, shape = NETWORKS[network]
    stages = into_stages(make_blocks(), 3)
    model, expected = plain_loop(stages, OPTIMIZERS[optimizer], batches(6, shape, sizes=(4, 3)))
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS[optimizer], method=dg.BP())
    losses = [pipe.step(x, y) for x, y in batches(6, shape, sizes=(4, 3))]
    pipe.flush()
    assert_same(losses, expected)
    assert_same([dict(s.state_dict()) for s in pipe.stages], [dict(s.state_dict()) for s in model])


def test_backpropagation_through_stages_matches_the_naive_loop_with_dropout() -> None:
    stages = into_stages(NETWORKS["dropout"][0](), 3)
    torch.manual_seed(SEED)
    naive = NaiveDelayedGradients(
        stages, cross_entropy, OPTIMIZERS["adam"], seed=SEED, delayed=False
    )
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adam"], method=dg.BP())
    for inputs, targets in batches(5, (6,)):
        expected = naive.step(inputs, targets)
        assert_same(pipe.step(inputs, targets), expected)
    assert_same(
        [dict(s.state_dict()) for s in pipe.stages], [dict(s.state_dict()) for s in naive.stages]
    )
