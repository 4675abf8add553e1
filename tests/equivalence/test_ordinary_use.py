"""What users do to networks beside training them: hooks, autocast, odd buffers, changes by hand.

Each either gives what whole-network autograd gives, or is refused aloud.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import CLASSES, batches, mlp, parameters, sgd
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, prune

import delaygrad as dg
from delaygrad.errors import CheckpointError, StageError, StashError

NUM_BATCHES = 7


def pipeline(stages: list[nn.Module], **options: Any) -> dg.LocalPipeline:
    torch.manual_seed(3)
    return dg.LocalPipeline(stages, cross_entropy, sgd, method=dg.DDG(**options))


def data() -> list[tuple[Tensor, Tensor]]:
    return list(batches(NUM_BATCHES, (6,)))


def stages_with(make: Callable[[], nn.Module]) -> list[nn.Module]:
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(6, 6), make(), nn.Tanh()) for _ in range(3)]
    return [*hidden, nn.Linear(6, CLASSES)]


def ends_with(
    make: Callable[[], nn.Module],
    between: Callable[[dg.LocalPipeline, int], None],
    *,
    stop: int | None = None,
    **options: Any,
) -> list[Any]:
    """Train, with something done before every step; another pipeline goes on at ``stop``.

    Returns losses, parameters and buffers.
    """
    pipe, losses = pipeline(stages_with(make), **options), []
    for index, batch in enumerate(data()):
        if index == stop:
            state = pipe.state_dict()
            pipe = pipeline(stages_with(make), **options)
            pipe.load_state_dict(state)
        between(pipe, index)
        losses.append(pipe.step(*batch))
    pipe.flush()
    return [losses, parameters(pipe.stages), [dict(s.named_buffers()) for s in pipe.stages]]


# --- buffers -------------------------------------------------------------------------------------


class Rebinding(nn.Module):
    """A running scale that each forward puts in place of the old one, and multiplies with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.scale = 0.9 * self.scale + 0.1 * x.detach().std()
        return x * self.scale


class Scale(nn.Module):
    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Centred(nn.Module):
    """Subtracts the mean of the batch before, which at first there is not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        centred = x if self.mean is None else x - self.mean
        self.mean = x.detach().mean(0)
        return centred


def nothing(pipe: dg.LocalPipeline, index: int) -> None:
    pass


def anneal(pipe: dg.LocalPipeline, index: int) -> None:
    for stage in pipe.stages[:3]:
        stage[1].scale = 0.8 * stage[1].scale


def follow(pipe: dg.LocalPipeline, index: int) -> None:
    """Set the scale by the iteration alone, which no state_dict holds."""
    for stage in pipe.stages[:3]:
        stage[1].scale = torch.tensor(0.8**index)


@pytest.mark.parametrize(
    ("make", "between", "stops"),
    [
        # In training mode this reads buffers, and changes them.
        (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), nothing, (None, 4)),
        (Rebinding, nothing, (None, 4)),
        (Centred, nothing, (None,)),
        (Scale, anneal, (None, 1, 3, 5)),
        (lambda: Scale(persistent=False), follow, (None, 1, 3, 5)),
    ],
    ids=["spectral norm", "rebinding", "absent at first", "annealed", "not persistent"],
)
def test_recomputed_and_resumed_runs_meet_the_buffers_of_their_forwards(
    make: Callable[[], nn.Module],
    between: Callable[[dg.LocalPipeline, int], None],
    stops: tuple[int | None, ...],
) -> None:
    plain = ends_with(make, between)
    for recompute in (False, True):
        for stop in stops:
            assert_same(ends_with(make, between, stop=stop, recompute=recompute), plain)


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_is_that_of_the_forward_wherever_a_graph_is_built_again(recompute: bool) -> None:
    def half_precision() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    torch.manual_seed(0)
    stages = [nn.Sequential(*mlp()[2 * k : 2 * k + 2]) for k in range(4)]
    whole, half, resumed = (pipeline(copy.deepcopy(stages), recompute=recompute) for _ in range(3))
    for pipe, part in ((whole, data()), (half, data()[:4])):
        for batch in part:
            with half_precision():
                pipe.step(*batch)
    resumed.load_state_dict(half.state_dict())
    for batch in data()[4:]:
        with half_precision():
            resumed.step(*batch)
    for pipe in (whole, resumed):
        pipe.flush()
    assert_same(parameters(resumed.stages), parameters(whole.stages))
    if not recompute:
        return
    stashed = pipeline(copy.deepcopy(stages))
    for batch in data():
        with half_precision():
            stashed.step(*batch)
    stashed.flush()
    assert_same(parameters(whole.stages), parameters(stashed.stages))


def test_a_hook_on_a_parameter_changes_its_gradient_on_every_stage() -> None:
    torch.manual_seed(0)
    stages = [nn.Sequential(*mlp()[2 * k : 2 * k + 2]) for k in range(4)]
    masks = [torch.rand(stage[0][0].weight.shape).round() for stage in stages[:3]]
    for stage, mask in zip(stages, masks, strict=False):
        stage[0][0].weight.register_hook(functools.partial(torch.mul, mask))
    before = [stage[0][0].weight.detach().clone() for stage in stages[:3]]
    pipe = pipeline(stages)
    for batch in data():
        pipe.step(*batch)
    pipe.flush()
    for stage, mask, old in zip(stages, masks, before, strict=False):
        moved = stage[0][0].weight.detach() != old
        assert_same(moved, mask.bool())


def test_a_hook_that_would_not_run_is_refused() -> None:
    stages = [nn.Linear(6, 6), nn.Linear(6, CLASSES)]
    for stage in stages:
        stage.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    pipe = pipeline(stages)
    with pytest.raises(StageError, match=r"stage 0.*hook .*\(parameter: weight\).*pre-hook"):
        pipe.step(*data()[0])


def test_a_wrapper_that_would_not_average_is_refused() -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = [nn.parallel.DistributedDataParallel(nn.Linear(6, 6)), nn.Linear(6, CLASSES)]
        with pytest.raises(StageError, match="DistributedDataParallel averages .* mesh"):
            pipeline(wrapped)
        wrapped.reverse()
        pipeline(wrapped)  # the last stage has no delay, and averages as usual
    finally:
        torch.distributed.destroy_process_group()


def test_attributes_of_parameters_are_there_in_the_forward() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))
            self.weight.gain = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight * self.weight.gain

    pipe = pipeline([Gained(), Gained(), nn.Linear(6, CLASSES)])
    for batch in data():
        pipe.step(*batch)
    pipe.flush()


def test_a_parameter_may_be_pruned_while_batches_wait() -> None:
    stages: list[nn.Module] = [nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)]
    pipe = pipeline(stages)
    for index, batch in enumerate(data()):
        if index == 3:
            prune.l1_unstructured(stages[0], "weight", amount=0.5)
        pipe.step(*batch)
    pipe.flush()
    assert "weight" not in stages[0]._parameters
    assert int((stages[0].weight == 0).sum()) == 18


# --- changes by hand -----------------------------------------------------------------------------


def test_a_change_by_hand_that_waiting_batches_would_see_is_refused() -> None:
    for options, changed_after in (({}, 0), ({"micro_batches": 2}, 5)):
        stages: list[nn.Module] = [nn.Linear(6, 6) for _ in range(3)]
        pipe = pipeline([*stages, nn.Linear(6, CLASSES)], **options)
        with pytest.raises(StashError, match=r"changed in place .*weight\); .*\.data = new_values"):
            for index, batch in enumerate(data()):
                pipe.step(*batch)
                if index >= changed_after:
                    with torch.no_grad():
                        for parameter in stages[0].parameters():
                            parameter.clamp_(-0.2, 0.2)


class WithTeacher(nn.Module):
    """A frozen part that follows the trained one by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(6, 6), nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.student(x)) + self.teacher(x)

    def follow(self, *, in_place: bool) -> None:
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            value = torch.lerp(old.detach(), new.detach(), 0.5)
            if in_place:
                old.copy_(value)
            else:
                old.data = value


@pytest.mark.parametrize("clamped", [False, True])
def test_new_memory_by_hand_is_exact_at_any_time(clamped: bool) -> None:
    torch.manual_seed(0)
    stages: list[nn.Module] = [WithTeacher(), WithTeacher(), nn.Linear(6, CLASSES)]
    naive = NaiveDelayedGradients(stages, cross_entropy, sgd, seed=3)
    pipe = pipeline(stages)
    for batch in data():
        naive.step(*batch)
        pipe.step(*batch)
        for owner in (naive.stages, stages):
            for stage in owner[:2]:
                stage.follow(in_place=False)
                for parameter in stage.student.parameters() if clamped else ():
                    parameter.data = parameter.data.clamp(-0.3, 0.3)
    naive.flush()
    pipe.flush()
    assert_same(parameters(stages), parameters(naive.stages))


def test_a_frozen_part_changed_in_place_is_refused() -> None:
    stages: list[nn.Module] = [WithTeacher(), WithTeacher(), nn.Linear(6, CLASSES)]
    pipe = pipeline(stages)
    pipe.step(*data()[0])
    pipe.flush()
    stages[0].follow(in_place=True)  # nothing waits
    pipe.step(*data()[1])
    stages[0].follow(in_place=True)
    with pytest.raises(StashError, match=r"stage 0.*changed in place .*teacher"):
        pipe.step(*data()[2])


# --- modes, and buffers that are handed on -------------------------------------------------------


class Merging(nn.Linear):
    """Does something in ``train`` and ``eval``, as adapters do that are merged for evaluation."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)


def test_predictions_leave_modules_as_their_own_train_would() -> None:
    stages: list[nn.Module] = [nn.Sequential(Merging(6, 6), Merging(6, 6)), nn.Linear(6, CLASSES)]
    stages[0][1].eval()
    pipe = pipeline(stages)
    pipe.step(*data()[0])
    pipe.predict(data()[0][0])
    assert [part.training for part in stages[0]] == [True, False]
    assert [part.merged for part in stages[0]] == [False, True]


def test_a_buffer_that_is_handed_on_is_what_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.count += 1
            return self.linear(x), self.count

    class Scaling(nn.Module):
        def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
            return both[0] * both[1].clone()

    torch.manual_seed(0)
    stages = [Counting(), nn.Sequential(Scaling(), nn.Linear(6, 6)), nn.Linear(6, CLASSES)]
    results = []
    for recompute in (False, True):
        own = copy.deepcopy(stages)
        pipe = pipeline(own, recompute=recompute)
        for batch in data():
            pipe.step(*batch)
        pipe.flush()
        results.append(parameters(own))
    assert_same(*results)


@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}, {"slack": 1}])
@pytest.mark.parametrize("when", [1, 2, 4])
def test_a_run_with_changes_by_hand_resumes(when: int, options: dict[str, Any]) -> None:
    def halve(pipe: dg.LocalPipeline, index: int) -> None:
        if index == when:
            for parameter in pipe.stages[0].parameters():
                parameter.data = 0.5 * parameter.data

    whole = ends_with(Scale, halve, **options)
    for stop in (when, when + 1):  # before the change; a step after it
        assert_same(ends_with(Scale, halve, stop=stop, **options), whole)


@pytest.mark.parametrize("when", [1, 2, 4])
def test_a_change_by_hand_just_before_a_checkpoint_is_in_it(when: int) -> None:
    pipe = pipeline(stages_with(Scale))
    for batch in data()[:when]:
        pipe.step(*batch)
    for parameter in pipe.stages[0].parameters():
        parameter.data = 0.5 * parameter.data
    resumed = pipeline(stages_with(Scale))
    resumed.load_state_dict(pipe.state_dict())
    for each in (pipe, resumed):
        for batch in data()[when:]:
            each.step(*batch)
        each.flush()
    assert_same(parameters(resumed.stages), parameters(pipe.stages))


def test_a_state_is_a_snapshot_though_one_parameter_was_changed_by_hand() -> None:
    pipe = pipeline(stages_with(Scale))
    pipe.step(*data()[0])
    bias = pipe.stages[0][0].bias
    bias.data = 0.5 * bias.data
    state = pipe.state_dict()
    before = copy.deepcopy(state)
    pipe.flush()
    assert_same(state, before)


def test_a_state_with_parameters_that_are_no_more_is_refused() -> None:
    pipe = pipeline(stages_with(Scale))
    for batch in data()[:3]:
        pipe.step(*batch)
    other = pipeline(stages_with(Scale))
    for each in (pipe, other):
        prune.identity(each.stages[0][0], "weight")
    state = pipe.state_dict()
    with pytest.raises(CheckpointError, match=r"other parameters .*'0.weight', '0.weight_orig'"):
        other.load_state_dict(state)
    pipe.flush()
    other.load_state_dict(pipe.state_dict())


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("method", [dg.DDG(), dg.DNI(), dg.BP()], ids=repr)
def test_autocast_around_the_loop_is_autocast_around_each_step(
    method: dg.Method, num_stages: int
) -> None:
    def half_precision(wanted: bool) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if wanted else contextlib.nullcontext()

    ends = []
    for around_loop in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)], nn.Linear(6, CLASSES))
        stages = dg.split(model, num_stages, cuts=[str(k) for k in range(1, num_stages)])
        pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=method)
        with half_precision(around_loop):
            for batch in data():
                with half_precision(not around_loop):
                    pipe.step(*batch)
        with half_precision(True):
            pipe.flush()
        ends.append(parameters(pipe.stages))
    assert_same(*ends)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    stages = stages_with(Scale)
    everything = [parameter for stage in stages for parameter in stage.parameters()]
    shared = sgd(everything)
    for make_optimizer in (lambda params: sgd(everything), lambda params: shared):
        with pytest.raises(StageError, match=r"not the stage's \(stage: 0\)"):
            dg.LocalPipeline(stages, cross_entropy, make_optimizer)
