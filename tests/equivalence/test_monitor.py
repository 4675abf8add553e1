"""The monitor against the whole network's gradient at copies of the parameters, and no trace of it.

The live parameters of iteration t are a copy that the test takes of all stages before the step.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import CLASSES, NETWORKS, OPTIMIZERS, batches, into_stages
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods import METHODS, Method
from delaygrad.monitor.measures import compare_directions

DIRECTIONS = ("sufficient_direction", "cosine", "staleness_ratio")
NUM_STAGES, NUM_BATCHES = 3, 16
ONE_STEP_LATE = METHODS["adl"](micro_batches=2)


def silent(row: dict[str, Any], warning: str | None) -> None:
    """In place of a warning, which would be an error here."""


def pipeline(method: Method, network: str, optimizer: str = "nesterov") -> dg.LocalPipeline:
    torch.manual_seed(0)
    stages = into_stages(NETWORKS[network][0](), NUM_STAGES)
    return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS[optimizer], method=method)


def data(network: str) -> list[tuple[Tensor, Tensor]]:
    return list(batches(NUM_BATCHES, NETWORKS[network][1], sizes=(8, 6)))


def gradients_at(
    stages: list[nn.Module], batch: tuple[Tensor, Tensor], micro_batches: int
) -> list[list[Tensor | None]]:
    network = nn.Sequential(*copy.deepcopy(stages))
    network.zero_grad()
    parts = zip(*(tensor.tensor_split(micro_batches) for tensor in batch), strict=True)
    for inputs, targets in parts:
        loss = cross_entropy(network(inputs.clone()), targets)
        loss = loss if micro_batches == 1 else loss * (len(targets) / len(batch[1]))
        loss.backward()
    return [[p.grad for p in stage.parameters()] for stage in network]


@pytest.mark.parametrize(
    ("method", "every"),
    [
        (dg.DDG(), 4),
        (dg.DDG(slack=1, micro_batches=3), 1),
        (dg.DDG(weights="live"), 1),
        (dg.FR(), 4),
        (dg.FDG(), 4),
        (ONE_STEP_LATE, 1),
        (dg.BP(), 1),
        (dg.BP(micro_batches=2, lookahead=1.0), 4),
        (dg.Lookahead(micro_batches=2), 1),
        (dg.DNI(num_classes=CLASSES, synthesizer_width=4), 4),
    ],
    ids=repr,
)
def test_rows_compare_with_the_gradient_at_the_live_parameters(method: Method, every: int) -> None:
    pipe = pipeline(method, "batch norm")
    monitor = dg.Monitor(pipe, every=every, report=silent)
    lives, applied = [], []
    for inputs, targets in data("batch norm"):
        lives.append(copy.deepcopy(pipe.stages))
        pipe.step(inputs, targets)
        grads = [[copy.deepcopy(p.grad) for p in stage.parameters()] for stage in pipe.stages]
        applied.append(grads)
    turns = [row["stage"] for row in monitor.rows]
    assert turns == [k % NUM_STAGES for k in range(len(turns))] and len(turns) >= NUM_STAGES
    found_late = False
    for row in monitor.rows:
        s, k = row["iteration"], row["stage"]
        schedule, num_micro_batches = method.schedule, method.schedule.micro_batches
        lag = 0 if method.error_gradient.is_local and k < 2 else schedule.lag(k, NUM_STAGES)
        t = s - (-(schedule.offset(k, NUM_STAGES) + lag) // num_micro_batches)
        true = gradients_at(lives[t], data("batch norm")[s], num_micro_batches)[k]
        assert_same(
            {name: row[name] for name in DIRECTIONS}, compare_directions(applied[t][k], true)
        )
        found_late = found_late or row["staleness_ratio"] != 0
    assert found_late == (method != dg.BP())


@pytest.mark.parametrize(("micro_batches", "slack"), [(1, 0), (2, 0), (2, 1)])
def test_dropout_is_repeated(micro_batches: int, slack: int) -> None:
    method = dg.DDG(slack=slack, micro_batches=micro_batches)
    pipe = pipeline(method, "dropout")
    torch.manual_seed(0)
    naive = NaiveDelayedGradients(
        into_stages(NETWORKS["dropout"][0](), NUM_STAGES), cross_entropy, OPTIMIZERS["nesterov"],
        micro_batches=micro_batches, slack=slack,
    )  # fmt: skip
    monitor = dg.Monitor(pipe, every=3, report=silent)
    lives, states, applied = [], [], []
    for inputs, targets in data("dropout"):
        lives.append(copy.deepcopy(naive))
        states.append(list(naive._random_states))
        assert_same(pipe.step(inputs, targets), naive.step(inputs, targets))
        applied.append(copy.deepcopy(naive.gradients()))
    assert len(monitor.rows) >= NUM_STAGES
    for row in monitor.rows:
        s, k = row["iteration"], row["stage"]
        t = s - (-naive.delays[k] // micro_batches)
        live, (inputs, targets) = lives[t], data("dropout")[s]
        live._random_states = list(states[s])
        total: list[Tensor] = []
        parts = (tensor.tensor_split(micro_batches) for tensor in (inputs, targets))
        for x, y in zip(*parts, strict=True):
            block = live._backpropagate(x.clone(), y, len(y) / len(targets))[1][k]
            total = [a + b for a, b in zip(total, block, strict=True)] if total else block
        expected = compare_directions(applied[t][k], total)
        assert_same({name: row[name] for name in DIRECTIONS}, expected)


@pytest.mark.parametrize(
    ("method", "network"),
    [
        (dg.DDG(), "in-place convolutions"),
        (dg.DDG(recompute=True, micro_batches=2), "dropout"),
        (dg.DDG(weights="live"), "in-place convolutions"),
        (dg.FR(), "dropout"),
        (ONE_STEP_LATE, "dropout"),
        (dg.Lookahead(micro_batches=2), "dropout"),
        (dg.BP(), "in-place convolutions"),
        (dg.DNI(num_classes=CLASSES, synthesizer_width=4), "in-place convolutions"),
    ],
    ids=repr,
)
def test_training_does_not_notice_it(method: Method, network: str) -> None:
    ended = []
    for every in (None, 2):
        pipe, losses = pipeline(method, network), []
        if every is not None:
            dg.Monitor(pipe, every=every, report=silent)
        for index, (inputs, targets) in enumerate(data(network)):
            losses.append(pipe.step(inputs, targets))
            if index == 7:
                pipe.flush()
            if index == 10:
                pipe.load_state_dict(pipe.state_dict())
        ended.append((losses, pipe.state_dict(), torch.get_rng_state()))
    assert_same(ended[1], ended[0])


def test_one_stage_draws_from_the_process_and_goes_on_alike() -> None:
    ended = []
    for monitored in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(*NETWORKS["dropout"][0]())
        pipe = dg.LocalPipeline([net], cross_entropy, OPTIMIZERS["sgd"])
        monitor = dg.Monitor(pipe, every=1) if monitored else None
        for inputs, targets in data("dropout"):
            pipe.step(inputs, targets)
        ended.append((net.state_dict(), torch.get_rng_state()))
    assert_same(ended[1], ended[0])
    assert monitor is not None and {row["cosine"] for row in monitor.rows} == {1.0}


def test_a_prediction_error_needs_no_pass() -> None:
    method = dg.Lookahead(micro_batches=2)
    pipe = pipeline(method, "mlp")
    monitor, weights = dg.Monitor(pipe, every=1), []
    for inputs, targets in data("mlp"):
        weights.append([[p.detach().clone() for p in s.parameters()] for s in pipe.stages])
        pipe.step(inputs, targets)
    rows = [row for row in monitor.rows if row["delay"] and row["iteration"] > 2]
    assert rows
    for row in rows:
        s, k = row["iteration"], row["stage"]
        before, start, end = (torch.cat([p.flatten() for p in weights[t][k]]).double()
                              for t in (s - 1, s, s + 1))  # fmt: skip
        met = start + ((NUM_STAGES - 1 - k) / 2 + 1) * (start - before)
        expected = float((end - met).norm() / (end - start).norm())
        assert row["prediction_error"] == pytest.approx(expected, rel=1e-4)
        assert row["drift"] == pytest.approx(float((end - met).norm() / end.norm()), rel=1e-4)


class Position(nn.Module):
    """The only parameter of the network; ignores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, _: Tensor) -> Tensor:
        return self.w * 1.0


@pytest.mark.parametrize("method", [dg.DDG(), dg.Lookahead(micro_batches=1)], ids=repr)
@pytest.mark.parametrize("share", [0.8, 1.2])
def test_a_quadratic_is_warned_of_before_it_diverges(method: Method, share: float) -> None:
    delay, curvature = 3, 4.0
    horizon = method.forward_weights.horizon_in_updates(method.schedule, 0, delay + 1) or 0.0
    limit = dg.theory.largest_stable_step(delay, curvature=curvature, momentum=0.9, horizon=horizon)
    pipe = dg.LocalPipeline(
        [Position(), *(nn.Identity() for _ in range(delay))],
        lambda w, _: curvature * w**2 / 2,
        lambda params: torch.optim.SGD(params, lr=share * limit, momentum=0.9),
        method=method,
    )
    monitor, losses = dg.Monitor(pipe, every=5), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(120):
            losses.append(float(pipe.step(torch.zeros(1), None)))
            if caught:
                break
    rows = [row for row in monitor.rows if row["stability"] is not None]
    assert [row["stability"] for row in rows] == pytest.approx([share] * len(rows), rel=1e-2)
    if share > 1:
        (warning,) = caught
        assert issubclass(warning.category, dg.DelaygradWarning)
        assert "stage 0 takes steps 1.2 times the largest stable one" in str(warning.message)
        assert max(losses) < 1e3 * losses[0]  # far from the end of float32
    else:
        assert not caught


def test_a_pipeline_has_one_monitor() -> None:
    pipe = pipeline(dg.DDG(), "mlp")
    dg.Monitor(pipe)
    with pytest.raises(ValueError, match="has a monitor already"):
        dg.Monitor(pipe)
    with pytest.raises(ValueError, match="every must be at least 1"):
        dg.Monitor(pipeline(dg.DDG(), "mlp"), every=0)


def test_rows_are_reported_as_they_come() -> None:
    told: list[dict[str, Any]] = []
    pipe = pipeline(dg.DDG(), "mlp")
    monitor = dg.Monitor(pipe, every=2, report=lambda row, warning: told.append(row))
    for inputs, targets in data("mlp"):
        pipe.step(inputs, targets)
    assert told == monitor.rows and len(told) > 2


def test_only_pipelines_have_a_monitor() -> None:
    with pytest.raises(
        TypeError, match=r"LocalPipeline or a DistributedPipeline \(given: Linear\)"
    ):
        dg.Monitor(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_growth_is_the_largest_norm_since_the_row_before_over_the_first_three() -> None:
    pipe = pipeline(dg.DDG(), "mlp")
    monitor = dg.Monitor(pipe, every=4, report=silent)
    norms: list[list[float]] = [[] for _ in pipe.stages]
    since, expected = [0] * NUM_STAGES, []
    for inputs, targets in data("mlp"):
        rows = len(monitor.rows)
        pipe.step(inputs, targets)
        for stage, own in zip(pipe.stages, norms, strict=True):
            grads = [p.grad for p in stage.parameters() if p.grad is not None]
            if grads:
                own.append(float(torch.cat([g.flatten() for g in grads]).norm()))
        if len(monitor.rows) > rows:
            found = [
                max(own[max(3, begin) :]) / max(own[:3])
                for own, begin in zip(norms, since, strict=True)
                if own[max(3, begin) :]
            ]
            expected.append(max(found, default=None))
            since = [len(own) for own in norms]
    assert len(expected) >= NUM_STAGES and any(expected)
    for row, value in zip(monitor.rows, expected, strict=True):
        assert row["growth"] == (None if value is None else pytest.approx(value))
