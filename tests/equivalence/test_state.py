"""Stopping anywhere, going on from the saved bytes in a new pipeline, and never noticing.

Every comparison is exact (rtol=0, atol=0).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from exact import assert_same
from grids import grid
from networks import CLASSES, OPTIMIZERS, batches, in_place_convolutions, into_stages, mlp
from saved import from_bytes, to_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

NUM_BATCHES = 11


def everything_random() -> list[nn.Module]:
    """Batch norm, dropout, in-place layers: all that a resumed run could get wrong."""
    blocks = in_place_convolutions()
    for index in range(7):
        blocks[index] = nn.Sequential(blocks[index], nn.Dropout(0.2))
    return blocks


def make_pipe(
    num_stages: int,
    *,
    init_seed: int = 0,
    optimizer: str = "nesterov",
    make_blocks: Callable[[], list[nn.Module]] = everything_random,
    method: dg.Method | None = None,
) -> dg.LocalPipeline:
    torch.manual_seed(init_seed)
    stages = into_stages(make_blocks(), num_stages)
    torch.manual_seed(100 + init_seed)
    return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS[optimizer], method=method)


def data() -> list[tuple[Tensor, Tensor]]:
    return list(batches(NUM_BATCHES, (2, 4, 4), sizes=(4, 4, 3, 5)))


def losses_of(pipe: dg.LocalPipeline, part: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [pipe.step(inputs, targets) for inputs, targets in part]


def outcome(pipe: dg.LocalPipeline) -> list[Any]:
    """Parameters, buffers, optimizer state, gradients and random streams, copied."""
    return copy.deepcopy(
        [
            [dict(stage.state_dict()) for stage in pipe.stages],
            [None if o is None else o.state_dict() for o in pipe.optimizers],
            [[p.grad for p in stage.parameters()] for stage in pipe.stages],
            [stage["random"] for stage in pipe.state_dict()["stages"].values()],
        ]
    )


# --- resuming ------------------------------------------------------------------------------------


OPTIONS = [
    dg.DDG(slack=1),
    dg.DDG(micro_batches=2),
    dg.DDG(micro_batches=3, recompute=True),
    dg.DDG(recompute=True),
    dg.DDG(slack=1, micro_batches=2, stash_dtype=torch.bfloat16, boundary_dtype=torch.bfloat16),
    dg.BP(micro_batches=2),
    dg.DDG(weights="live"),
    dg.DDG(weights="live", slack=1, micro_batches=2),
    dg.DNI(synthesizer_width=8, synthesizer_kernel=3),
    dg.DNI(num_classes=CLASSES, synthesizer_width=8, synthesizer_layers=1, synthesizer_lr=0.01),
]


@pytest.mark.parametrize(
    ("method", "num_stages", "stop"),
    [
        *grid([dg.DDG()], [1, 3], [0, 4]),
        *((dg.DDG(), *case) for case in ((2, 1), (2, 5), (3, 2), (5, 3), (5, 10))),
        *grid(OPTIONS, [1, 3, 4], ["in the fill", "later"]),
    ],
    ids=repr,
)
def test_a_resumed_run_is_the_uninterrupted_run(
    method: dg.Method, num_stages: int, stop: int | str
) -> None:
    """With micro-batches, sums of gradients wait between iterations."""
    if isinstance(stop, str):
        stop = num_stages // 2 if stop == "in the fill" else 2 * num_stages - 1
    optimizer = "adam" if stop % 2 else "nesterov"
    data = list(batches(NUM_BATCHES, (2, 4, 4), sizes=(6, 6, 7, 6)))
    pipe = make_pipe(num_stages, method=method, optimizer=optimizer)
    losses = losses_of(pipe, data)
    pipe.flush()

    first = make_pipe(num_stages, method=method, optimizer=optimizer)
    early = losses_of(first, data[:stop])
    saved = from_bytes(to_bytes(first.state_dict()))
    losses_of(first, data[stop : stop + 2])  # the state is a snapshot
    # Another initialisation, and a life of its own.
    second = make_pipe(num_stages, init_seed=1, method=method, optimizer=optimizer)
    losses_of(second, data[:3])
    second.load_state_dict(saved)
    assert second.iteration == stop
    assert all(p.grad is None for stage in second.stages for p in stage.parameters())
    late = losses_of(second, data[stop:])
    second.flush()
    assert_same(early + late, losses)
    assert_same(outcome(second), outcome(pipe))


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_resuming_after_a_flush_starts_a_new_fill(num_stages: int) -> None:
    def phases(pipe: dg.LocalPipeline, *, swap: bool) -> tuple[list[Tensor], list[Any]]:
        losses = losses_of(pipe, data()[:5])
        pipe.flush()
        for stop in (5, 6):  # right after the flush, and in the second fill
            if swap:
                saved = from_bytes(to_bytes(pipe.state_dict()))
                pipe = make_pipe(num_stages, init_seed=stop)
                pipe.load_state_dict(saved)
            losses += losses_of(pipe, data()[stop : stop + 1])
        losses += losses_of(pipe, data()[7:])
        pipe.flush()
        return losses, outcome(pipe)

    losses, end = phases(make_pipe(num_stages), swap=True)
    expected_losses, expected_end = phases(make_pipe(num_stages), swap=False)
    assert_same(losses, expected_losses)
    assert_same(end, expected_end)


def test_a_state_can_be_loaded_twice_also_into_the_pipeline_that_trained_on() -> None:
    pipe = make_pipe(3)
    losses_of(pipe, data()[:4])
    saved = from_bytes(to_bytes(pipe.state_dict()))
    runs = []
    for again in (pipe, pipe, make_pipe(3, init_seed=7), make_pipe(3, init_seed=8)):
        if runs:
            again.load_state_dict(saved)
        losses = losses_of(again, data()[4:])
        again.flush()
        runs.append([losses, *outcome(again)])
    for run in runs[1:]:
        assert_same(run, runs[0])


def test_a_state_holds_inputs_as_they_were_though_the_caller_refills_them() -> None:
    straight = make_pipe(3)
    losses = losses_of(straight, data())
    straight.flush()

    pipe = make_pipe(3)
    refilled = torch.empty(4, 2, 4, 4)
    early = []
    for inputs, targets in data()[:6]:
        given = refilled[: len(inputs)].copy_(inputs) if len(inputs) <= 4 else inputs
        early.append(pipe.step(given, targets))
        refilled.fill_(torch.nan)
    saved = from_bytes(to_bytes(pipe.state_dict()))
    resumed = make_pipe(3, init_seed=1)
    resumed.load_state_dict(saved)
    assert_same(early + losses_of(resumed, data()[6:]), losses)
    resumed.flush()
    assert_same(outcome(resumed), outcome(straight))


class DictBoundary(nn.Module):
    def __init__(self, layer: nn.Module, position: str) -> None:
        super().__init__()
        self.layer, self.position = layer, position

    def forward(self, value: Any) -> Any:
        x = value if self.position == "first" else value["x"]
        out = self.layer(x)
        if self.position == "last":
            return out + value["skip"][0][:, :1]
        skip = x[:, :2] if self.position == "first" else value["skip"][0]
        return {"x": out, "skip": (skip, None), "index": torch.arange(3)}


@pytest.mark.parametrize("method", [dg.DDG(), dg.DDG(weights="live")], ids=repr)
@pytest.mark.parametrize("stop", [1, 2, 6])
def test_resuming_with_dict_boundaries_tied_and_frozen_parameters(
    stop: int, method: dg.Method
) -> None:
    def build(seed: int) -> dg.LocalPipeline:
        torch.manual_seed(seed)
        tied = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        tied[2].weight = tied[0].weight
        middle = nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 6))
        for parameter in middle[0].parameters():
            parameter.requires_grad_(False)
        middle = nn.Sequential(middle, TakeFirst())
        stages = [
            DictBoundary(tied, "first"),
            DictBoundary(middle, "middle"),
            DictBoundary(nn.Linear(6, CLASSES), "last"),
        ]
        return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=method)

    inputs = list(batches(9, (6,)))
    straight = build(0)
    expected = losses_of(straight, inputs)
    first = build(0)
    losses = losses_of(first, inputs[:stop])
    second = build(1)
    second.load_state_dict(from_bytes(to_bytes(first.state_dict())))
    losses += losses_of(second, inputs[stop:])
    straight.flush()
    second.flush()
    assert_same(losses, expected)
    assert_same(outcome(second)[0], outcome(straight)[0])


@pytest.mark.parametrize("method", [dg.DDG(), dg.DDG(weights="live")], ids=repr)
@pytest.mark.parametrize("stop", [4, 5, 6, 7])
def test_resuming_with_a_layer_that_is_frozen_for_some_batches_only(
    stop: int, method: dg.Method
) -> None:
    trained = (True, True, True, True, False, True, False, True, True)
    inputs = list(batches(9, (6,)))

    def train(pipe: dg.LocalPipeline, start: int, end: int) -> list[Tensor]:
        losses = []
        for index in range(start, end):
            for parameter in pipe.stages[0][1].parameters():
                parameter.requires_grad_(trained[index])
            losses.append(pipe.step(*inputs[index]))
        return losses

    straight = make_pipe(4, make_blocks=mlp, method=method)
    expected = train(straight, 0, 9)
    straight.flush()
    first = make_pipe(4, make_blocks=mlp, method=method)
    losses = train(first, 0, stop)
    saved = from_bytes(to_bytes(first.state_dict()))
    second = make_pipe(4, make_blocks=mlp, method=method, init_seed=1)
    second.load_state_dict(saved)
    losses += train(second, stop, 9)
    second.flush()
    assert_same(losses, expected)
    assert_same(outcome(second)[0], outcome(straight)[0])


class TakeFirst(nn.Module):
    def forward(self, pair: tuple[Tensor, Any]) -> Tensor:
        return pair[0]


# --- looking without touching --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "num_stages"), [(dg.DDG(), 1), (dg.DDG(), 3), (dg.BP(), 2), (dg.BP(), 5)], ids=repr
)
def test_predictions_and_states_in_between_disturb_nothing(
    method: dg.Method, num_stages: int
) -> None:
    def train(pipe: dg.LocalPipeline, look: Callable[[dg.LocalPipeline], None]) -> list[Any]:
        losses = []
        look(pipe)
        for phase in (data()[:6], data()[6:]):
            for inputs, targets in phase:
                losses.append(pipe.step(inputs, targets))
                look(pipe)
            pipe.flush()
            look(pipe)
        return [losses, *outcome(pipe)]

    def look(pipe: dg.LocalPipeline) -> None:
        before = outcome(pipe)
        pipe.predict(torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1)))
        pipe.state_dict()
        assert_same(outcome(pipe), before)
        assert all(part.training for stage in pipe.stages for part in stage.modules())

    looked = train(make_pipe(num_stages, method=method), look)
    alone = train(make_pipe(num_stages, method=method), lambda _: None)
    assert_same(looked, alone)


def test_running_statistics_count_each_batch_once_through_everything() -> None:
    pipe = make_pipe(3)
    losses_of(pipe, data()[:3])
    pipe.predict(torch.ones(2, 2, 4, 4))
    resumed = make_pipe(3, init_seed=1)
    resumed.load_state_dict(from_bytes(to_bytes(pipe.state_dict())))
    losses_of(resumed, data()[3:6])
    resumed.flush()
    counts = [
        int(part.num_batches_tracked)
        for stage in resumed.stages
        for part in stage.modules()
        if isinstance(part, nn.BatchNorm2d)
    ]
    assert len(counts) > 3 and set(counts) == {6}


def test_predictions_are_those_of_the_plain_network_in_evaluation_mode() -> None:
    pipe = make_pipe(3)
    losses_of(pipe, data())
    plain = nn.Sequential(*copy.deepcopy(pipe.stages)).eval()
    inputs = torch.ones(2, 2, 4, 4)
    with torch.no_grad():
        assert_same(pipe.predict(inputs), plain(inputs))
    assert not pipe.predict(inputs).requires_grad


def test_a_part_in_evaluation_mode_stays_in_it() -> None:
    pipe = make_pipe(2)
    frozen = pipe.stages[0][0].eval()
    pipe.predict(torch.ones(2, 2, 4, 4))
    assert not any(part.training for part in frozen.modules())
    assert pipe.stages[0].training and pipe.stages[1].training


# --- what does not fit ---------------------------------------------------------------------------


def other_widths() -> list[nn.Module]:
    blocks = mlp()
    blocks[0] = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7))
    return blocks


def without_parameters_below() -> list[nn.Module]:
    return [nn.Identity() for _ in range(6)] + [nn.Tanh(), nn.Linear(6, CLASSES)]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"make_blocks": other_widths}, r"another network \(stage: 0; 0.0.weight there"),
        (
            {"make_blocks": without_parameters_below},
            r"another network \(stage: 0; 0.0.weight there",
        ),
        ({"num_stages": 4}, r"num_stages there: 4, here: 3"),
        ({"method": dg.BP()}, r"method.name there: bp, here: ddg"),
        ({"optimizer": "adam"}, r"another optimizer \(stage: 0, there: Adam, here: SGD\)"),
    ],
    ids=["widths", "no parameters", "stages", "method", "optimizer"],
)
def test_a_state_of_something_else_is_refused_and_nothing_is_harmed(
    other: dict[str, Any], told: str
) -> None:
    inputs = list(batches(8, (6,)))
    stranger = make_pipe(**{"num_stages": 3, "make_blocks": mlp, **other})
    losses_of(stranger, inputs[:4])
    saved = from_bytes(to_bytes(stranger.state_dict()))

    undisturbed = make_pipe(3, make_blocks=mlp)
    expected = losses_of(undisturbed, inputs)
    pipe = make_pipe(3, make_blocks=mlp)
    losses = losses_of(pipe, inputs[:4])
    with pytest.raises(dg.CheckpointError, match=told):
        pipe.load_state_dict(saved)
    assert_same(losses + losses_of(pipe, inputs[4:]), expected)


@pytest.mark.parametrize("state", [{}, {"format": 99}], ids=str)
def test_a_state_of_another_format_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(
        dg.CheckpointError, match="another version of delaygrad .format there: .*, here: \\d"
    ):
        make_pipe(2).load_state_dict(state)


def test_a_state_without_all_stages_is_refused() -> None:
    state = make_pipe(3).state_dict()
    del state["stages"]["1"]
    with pytest.raises(dg.CheckpointError, match=r"lacks stages \(missing: \[1\]\)"):
        make_pipe(3).load_state_dict(state)


# --- what goes wrong -----------------------------------------------------------------------------


class Fails(nn.Module):
    """Raises in the forward of its ``when``-th batch, or in its backward."""

    def __init__(self, when: int, *, backward: bool = False) -> None:
        super().__init__()
        self.layer, self.when, self.backward, self.count = nn.Linear(6, 6), when, backward, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        out = self.layer(x)
        if self.count - 1 == self.when:
            if not self.backward:
                raise ZeroDivisionError("planted")
            out.register_hook(self._fail)
        return out

    @staticmethod
    def _fail(_: Tensor) -> None:
        raise ZeroDivisionError("planted")


def failing_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise IndexError("planted")


@pytest.mark.parametrize(
    ("broken", "loss_fn", "told"),
    [
        (
            Fails(3),
            cross_entropy,
            r"\[stage 1, iteration 3, action 1F3\] layer Fails: ZeroDivisionError: planted",
        ),
        (
            Fails(2, backward=True),
            cross_entropy,
            r"\[stage 1, iteration 3, action 1B2\] ZeroDivisionError: planted",
        ),
        (nn.Tanh(), failing_loss, r"\[stage 2, iteration 0, action 2F0\] IndexError: planted"),
    ],
    ids=["forward", "backward", "loss"],
)
def test_a_failure_names_stage_iteration_and_action_and_stops_the_pipeline(
    broken: nn.Module, loss_fn: Callable[[Any, Any], Tensor], told: str
) -> None:
    stages = [nn.Linear(6, 6), broken, nn.Linear(6, CLASSES)]
    pipe = dg.LocalPipeline(stages, loss_fn, OPTIMIZERS["sgd"])
    with pytest.raises(dg.WorkerError, match=told) as caught:
        losses_of(pipe, batches(6, (6,)))
    assert type(caught.value.__cause__) in (ZeroDivisionError, IndexError)
    for call in (
        lambda: pipe.step(*next(batches(1, (6,)))),
        pipe.flush,
        pipe.state_dict,
        lambda: pipe.load_state_dict({}),
    ):
        with pytest.raises(dg.WorkerError, match="the pipeline stopped .*planted.*make a new one"):
            call()


def test_a_failing_optimizer_is_named() -> None:
    class Stuck(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise ValueError("planted")

    pipe = dg.LocalPipeline(
        into_stages(mlp(), 2), cross_entropy, lambda params: Stuck(params, lr=0.1)
    )
    with pytest.raises(
        dg.WorkerError, match=r"\[stage 1, iteration 0, action 1U0\] ValueError: pl"
    ):
        losses_of(pipe, batches(2, (6,)))


@pytest.mark.parametrize(
    ("loss_fn", "told"),
    [
        (lambda out, y: out.sum(1), r"must return a 0-d tensor \(returned: \(4,\)\)"),
        (lambda out, y: 1.0, r"must return a 0-d tensor \(returned: float\)"),
    ],
    ids=["vector", "number"],
)
def test_a_loss_that_is_no_scalar_tensor_is_refused(
    loss_fn: Callable[[Any, Any], Any], told: str
) -> None:
    pipe = dg.LocalPipeline(into_stages(mlp(), 2), loss_fn, OPTIMIZERS["sgd"])
    with pytest.raises(dg.StageError, match=rf"\[stage 1, iteration 0, action 1F0\].*{told}"):
        losses_of(pipe, batches(1, (6,)))


def test_stages_that_share_a_parameter_are_refused() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    told = r"parameter shared between stages \('weight' in stage 0, 'weight' in stage 1\)"
    with pytest.raises(dg.PartitionError, match=told):
        dg.LocalPipeline([first, second], cross_entropy, OPTIMIZERS["sgd"])


def test_a_pipeline_needs_a_stage() -> None:
    with pytest.raises(dg.StageError, match="at least one stage"):
        dg.LocalPipeline([], cross_entropy, OPTIMIZERS["sgd"])
