"""What a network may do between its blocks, and what is refused by name."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from exact import assert_same
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import delaygrad as dg
from delaygrad import PartitionError, StageError
from delaygrad.partition import cuts_of

SAMPLE = (torch.arange(24.0).reshape(4, 6) / 10).sin()


class Chain(nn.Module):
    """Four layers; what runs after each of them is the subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.make()

    def make(self) -> None:
        pass

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = self.after(layer(x))
        return x

    def after(self, x: Tensor) -> Tensor:
        return x


def halves(model: nn.Module, sample: Any = SAMPLE, **options: Any) -> list[nn.Module]:
    return dg.split(model, 2, sample_inputs=sample, cuts=["layers.2"], **options)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class DecidesBetween(Chain):
    def after(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class DecidesInside(Chain):
    def make(self) -> None:
        self.decide = Decides()

    def after(self, x: Tensor) -> Tensor:
        return self.decide(x)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class OwnGradient(Chain):
    def after(self, x: Tensor) -> Tensor:
        return Reversed.apply(x)


class Counts(Chain):
    calls = 0

    def after(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class ReplacesBuffer(Chain):
    def make(self) -> None:
        self.register_buffer("total", torch.zeros(()))

    def after(self, x: Tensor) -> Tensor:
        self.total = self.total + 1
        return x


class LooksAtSize(Chain):
    def after(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 3 else x


class OtherBlocks(Chain):
    def make(self) -> None:
        self.act, self.other = nn.Tanh(), nn.Sigmoid()

    def after(self, x: Tensor) -> Tensor:
        return self.act(x) if self.training else self.other(x)


class Cache:
    pass


class TakesCache(nn.Module):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return x


class HandsObject(Chain):
    def make(self) -> None:
        self.last = TakesCache()

    def after(self, x: Tensor) -> Tensor:
        return self.last(x, Cache())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (DecidesBetween, "torch.export cannot capture.*data-dependent.*blocks="),
        (OwnGradient, "gradient of 'layers.*differs"),
        (Counts, "outputs '0' of the stages differs"),
        (ReplacesBuffer, "buffer 'total' of the stages differs"),
        (LooksAtSize, "something else at these sizes.*test_capture.py, line"),
        (OtherBlocks, "calls other blocks in training than in evaluation"),
        (HandsObject, "block 'last' is handed a Cache.*use_cache"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_reason(kind: type[Chain], reason: str) -> None:
    with pytest.raises(PartitionError, match=reason):
        halves(kind())


def test_a_model_with_hooks_of_its_own_is_refused() -> None:
    model = Chain()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(PartitionError, match="hooks of its own.*forward_hooks"):
        halves(model)


def test_unknown_blocks_and_missing_samples_are_refused() -> None:
    with pytest.raises(PartitionError, match=r"no module.*'layers.9'.*closest: 'layers\.\d'"):
        halves(Chain(), blocks=["layers.9"])
    with pytest.raises(PartitionError, match="pass sample_inputs, also beside cuts"):
        dg.split(Chain(), 2, cuts=["layers.2"])
    with pytest.raises(PartitionError, match=r"more stages than blocks \(stages: 9, blocks: 4\)"):
        dg.split(Chain(), 9, sample_inputs=SAMPLE)


class Frozen(Chain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.layers[1](F.relu(self.layers[0](x)))
        return self.layers[3](self.layers[2](x))


class SharesLayersWithoutState(Chain):
    def make(self) -> None:
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def after(self, x: Tensor) -> Tensor:
        return self.drop(self.relu(x))


class SharesConstant(Chain):
    def make(self) -> None:
        self.register_buffer("scale", torch.rand(6), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return super().forward(x)

    def after(self, x: Tensor) -> Tensor:
        return x + self.scale


class CastsBetween(Chain):
    def after(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ torch.ones(6, 6)).float()


class Folds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, rows: int, *, times: int) -> Tensor:
        return self.linear(x).reshape(rows, -1) * times


class HandsSizes(Chain):
    def make(self) -> None:
        self.fold = nn.ModuleList([Folds(), Folds()])

    def forward(self, x: Tensor) -> Tensor:
        for fold in self.fold:
            x = fold(x, x.shape[0], times=x.shape[0])
        return x


class Noisy(Chain):
    def after(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class TwoStreams(Chain):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        for layer in self.layers:
            a, b = F.pad(b, (0, 0)), layer(torch.cat([a, b], 1))[:, :3] + a
        return torch.cat([a, b], 1)


@pytest.mark.parametrize(
    "kind",
    [
        DecidesInside,
        Frozen,
        SharesLayersWithoutState,
        SharesConstant,
        CastsBetween,
        Noisy,
        TwoStreams,
    ],
)
def test_what_runs_between_blocks_is_kept(kind: type[Chain]) -> None:
    model = kind()
    stages = halves(model)
    assert dg.check(stages, model, SAMPLE[:3]) == 0.0
    again = pickle.loads(pickle.dumps(copy.deepcopy(stages)))
    assert dg.check(again, model, SAMPLE) == 0.0


def test_a_parameter_read_between_several_blocks_stays_in_one_stage() -> None:
    class MultiUse(Chain):
        def make(self) -> None:
            self.mix = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers[1](self.layers[0](x) @ self.mix) @ self.mix
            return self.layers[3](self.layers[2](x))

    model = MultiUse()
    stages = halves(model)
    assert "mix" in dict(stages[0].named_parameters())
    assert dg.check(stages, model, SAMPLE) == 0.0


def test_sizes_handed_to_blocks_are_read_anew() -> None:
    model = HandsSizes()
    stages = dg.split(model, 2, sample_inputs=SAMPLE, cuts=["fold.1"])
    assert ".shape[0]" in stages[1].source
    assert dg.check(stages, model, SAMPLE[:3]) == 0.0


def test_optional_and_keyword_arguments_and_other_outputs() -> None:
    class Keywords(Chain):
        def forward(self, a: Tensor, b: Tensor | None = None, *, scale: Tensor) -> dict[str, Any]:
            x = super().forward(a if b is None else a + b)
            return {"out": x * scale, "number": 3, "none": None}

    model = Keywords()
    sample = {"a": SAMPLE, "b": None, "scale": SAMPLE + 1}
    stages = halves(model, sample)
    value: Any = {"scale": SAMPLE[:2] + 1, "b": None, "a": SAMPLE[:2]}
    for stage in stages:
        value = stage(value)
    assert torch.equal(value.pop("out"), model(SAMPLE[:2], scale=SAMPLE[:2] + 1)["out"])
    assert value == {"number": 3, "none": None}
    with pytest.raises(StageError, match="not arranged as the sample"):
        stages[0]({"a": SAMPLE, "scale": SAMPLE})
    with pytest.raises(
        StageError, match=r"inputs.*a.* do not fit the network \(given: .4, 5., expected: .4, 6.\)"
    ):
        stages[0]({"a": SAMPLE[:, :5], "b": None, "scale": SAMPLE})


def test_what_follows_from_the_inputs_is_computed_again_instead_of_sent() -> None:
    class Masked(Chain):
        def forward(self, ids: Tensor, x: Tensor) -> Tensor:
            mask = (ids[:, None, :] == ids[:, :, None]).float()
            for layer in self.layers:
                x = mask @ layer(x)
            return x

    model = Masked()
    sample = (torch.randint(3, (4, 12)), torch.randn(4, 12, 6))
    stages = halves(model, sample)
    sent = stages[0](sample)
    assert [tuple(tensor.shape) for tensor in sent] == [(4, 12), (4, 12, 6)]
    assert dg.check(stages, model, sample) == 0.0


def test_hooks_of_blocks_run_once_for_each_forward() -> None:
    model, calls = Chain(), []
    model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    stages = halves(model)
    calls.clear()
    stages[1](stages[0](SAMPLE))
    assert calls == [1]


def test_named_blocks_stay_whole_and_modules_inside_a_block_open_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([Pair(), Pair()])

        def forward(self, x: Tensor) -> Tensor:
            for pair in self.body:
                x = pair(x)
            return x

    model = nn.Sequential(Pairs(), nn.Tanh())
    whole = dg.split(model, 2, sample_inputs=SAMPLE, cuts=["1"], blocks=["0"])
    assert list(whole[0].state_dict()) == [f"0.{key}" for key in model[0].state_dict()]
    inside = ["body.1.second"]
    stages = dg.split(Pairs(), 2, sample_inputs=SAMPLE, cuts=inside, blocks=inside)
    assert cuts_of(stages) == inside
    assert list(stages[1].state_dict()) == ["body.1.second.weight", "body.1.second.bias"]


def test_split_leaves_the_model_and_the_random_state_as_they_were() -> None:
    class Caches(SharesLayersWithoutState):
        table: Tensor | None = None

        def after(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(6.0)
            return super().after(x + self.table)

    model = Caches()
    model.layers[0].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    halves(model)
    assert type(model.table) in (type(None), Tensor)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and not model.layers[0].training and type(model.layers[1]) is nn.Linear
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in vars(model) and "__call__" not in vars(model.layers[1])


def test_stages_keep_the_modes_of_the_models_parts() -> None:
    model = Chain()
    model.layers[0].eval()
    stages = halves(model)
    assert not stages[0].layers.get_submodule("0").training and stages[0].training
    stages[1].eval()
    assert not model.layers[3].training


def test_check_says_what_differs_in_stages_made_by_hand() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    assert dg.check([model[:2], model[2:]], model, SAMPLE) == 0.0
    with pytest.raises(PartitionError, match=r"outputs '0' .* differs .*training mode"):
        dg.check([model[:2], model[3:]], model, SAMPLE)

    first = copy.copy(model[:2])
    first.forward = lambda x: model[1](model[0](x)).detach()  # type: ignore[method-assign]
    with pytest.raises(PartitionError, match="only the model compute the gradient of '0.weight'"):
        dg.check([first, model[2:]], model, SAMPLE)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
@pytest.mark.parametrize("captured", [True, False])
def test_compiled_stages_keep_names_and_train_as_the_others(captured: bool) -> None:
    def trained(compile: bool | str) -> Any:
        torch.manual_seed(0)
        model = Chain() if captured else nn.Sequential(*Chain().layers)
        sample = {"sample_inputs": SAMPLE} if captured else {}
        cut = "layers.2" if captured else "2"
        stages = dg.split(model, 2, cuts=[cut], compile=compile, **sample)
        pipe = dg.LocalPipeline(
            stages, F.mse_loss, lambda params: torch.optim.SGD(params, lr=0.1), method=dg.DDG()
        )
        losses = [pipe.step(SAMPLE, SAMPLE.cos()) for _ in range(3)]
        pipe.flush()
        state = dg.merge(pipe.stages).state_dict()
        assert list(state) == list(model.state_dict())
        return losses, pipe.predict(SAMPLE), dict(state)

    torch.compiler.reset()
    counters.clear()
    compiled = trained("aot_eager")
    assert counters["stats"]["unique_graphs"] >= 2  # in each mode
    assert_same(compiled, trained(False))
