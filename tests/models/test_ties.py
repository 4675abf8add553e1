"""One parameter that several stages use stays one parameter (docs/your-own-network.md)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact import assert_same
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch import Tensor, nn
from zoo import TIED_LANGUAGE_MODEL as ONE
from zoo import WORDS

import delaygrad as dg
from delaygrad import PartitionError, StageError
from delaygrad.planning import Link
from delaygrad.schedule import unlocked

pytestmark = pytest.mark.xdist_group("ties")

CUTS = ["layers.1", "layers.3"]
STOP = 4
UNLOCKED = dg.Method(name="unlocked", schedule=unlocked())


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


class NaiveLoop:
    """The rule, written out: each stage's uses have a gradient of their own.

    The owner is stage 0. At iteration s + delay(0) it applies the gradients of batch s, which add
    up from the last stage to the first. All stages meet the owner's value.
    """

    OWN = ("layers.0", "layers.1", "layers.2", "layers.3")
    STAGE = (0, 1, 1, 2)

    def __init__(self, model: nn.Module, delays: tuple[int, int, int]) -> None:
        self.table, self.delays = model.embed.weight, delays
        self.layers, self.head = list(model.layers), model.head
        self.held = [[self.table], [], []]
        for layer, k in zip(self.layers, self.STAGE, strict=True):
            self.held[k] += list(layer.parameters())
        self.optimizers = [momentum(parameters) for parameters in self.held]
        self.gradients: list[list[list[Tensor]]] = []

    def step(self, words: Tensor, targets: Tensor) -> Tensor:
        uses = [self.table.detach().clone().requires_grad_() for _ in range(3)]
        x = torch.nn.functional.embedding(words, uses[0])
        for layer in self.layers[:3]:
            x = x + torch.tanh(layer(x))
        x = x + torch.softmax(x @ uses[1].T, -1) @ uses[1]
        x = (x + self.layers[3](x)) @ uses[2].T
        loss = ONE.loss(x, targets)
        others = [p for held in self.held for p in held if p is not self.table]
        *found, g0, g1, g2 = torch.autograd.grad(loss, [*others, *uses])
        named = dict(zip(map(id, others), found, strict=True)) | {id(self.table): (g2 + g1) + g0}
        self.gradients.append([[named[id(p)] for p in held] for held in self.held])
        self.apply(len(self.gradients) - 1)
        return loss.detach()

    def flush(self) -> None:
        for t in range(len(self.gradients), len(self.gradients) + self.delays[0]):
            self.apply(t)

    def apply(self, t: int) -> None:
        for k, delay in enumerate(self.delays):
            if 0 <= t - delay < len(self.gradients):
                for parameter, grad in zip(self.held[k], self.gradients[t - delay][k], strict=True):
                    parameter.grad = grad
                self.optimizers[k].step()


@pytest.mark.parametrize(
    ("method", "delays"),
    [
        (dg.DDG(), (2, 1, 0)),
        (dg.DDG(slack=1), (4, 2, 0)),
        (UNLOCKED, (4, 2, 0)),
        (dg.BP(), (0, 0, 0)),
    ],
    ids=repr,
)
def test_training_is_a_naive_loop_of_the_rule(
    cut: Any, method: dg.Method, delays: tuple[int, int, int]
) -> None:
    model, stages = copy.deepcopy(cut)
    naive = NaiveLoop(copy.deepcopy(model), delays)
    pipe = dg.LocalPipeline(stages, ONE.loss, momentum, method=method)
    losses, expected = [], []
    for inputs, targets in ONE.batches(7):
        losses.append(pipe.step(inputs, targets))
        expected.append(naive.step(inputs, targets))
    pipe.flush()
    naive.flush()
    known = [loss for loss in losses if loss is not None]  # a pipeline that fills has none yet
    assert_same(known, expected[: len(known)], "losses")
    for mine, held in zip(pipe.stages, naive.held, strict=True):
        assert_same([p.detach() for p in mine.parameters()], [p.detach() for p in held], "state")


class FarTie(nn.Module):
    """The first and the last stage use one table; the stage between does not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.head = nn.Linear(6, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


def test_the_value_passes_no_stage_that_does_not_use_it() -> None:
    torch.manual_seed(0)
    stages = stages_of(FarTie())
    pipe = dg.LocalPipeline(stages, ONE.loss, momentum, method=dg.DDG())
    sent: list[list[tuple[int, ...]]] = [[], [], []]
    for k, worker in pipe._workers.items():
        for inbox in worker.inboxes:
            receive = inbox._receiver.receive

            def noted(k: int = k, receive: Any = receive) -> Any:
                message = receive()
                sent[k] += [tuple(t.shape) for t in message.tensors if t is not None]
                return message

            inbox._receiver.receive = noted  # type: ignore[method-assign]
    for inputs, targets in ONE.batches(4):
        pipe.step(inputs, targets)
    pipe.flush()
    table = (WORDS, 6)
    assert [received.count(table) for received in sent] == [4, 0, 4]
    assert sent[1].count((4, 6, 6)) == 6


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


def test_a_plan_shows_what_ties_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table crosses from stage 0 to 2 and back, past stage 1, for each micro-batch."""
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    torch.manual_seed(0)
    model, table = FarTie(), WORDS * 6 * 4
    slow = Link(bandwidth_bytes_per_s=1e4, latency_s=0.0)
    words, options = ONE.batch(4, 6), {"make_optimizer": momentum, "link": slow}
    planned = dg.plan(model, words, num_stages=[1, 3], method=dg.DDG(micro_batches=2), **options)
    one, three = planned.forecasts
    assert one.ties == () and one.tie_bytes == 0
    assert [(tie.path, tie.stages) for tie in three.ties] == [("embed.weight", (0, 2))]
    activations = 2 * 2 * (4 * 6 * 6 * 4)  # boundaries, directions
    assert three.tie_bytes == 2 * 2 * table
    assert three.sent_bytes == activations + three.tie_bytes
    # In each direction, the table crosses its own link twice, and takes longer than the rest.
    assert three.iteration_s >= 2 * table / 1e4
    held = sum(p.nbytes for p in model.parameters())
    memory = [stage.memory for stage in three.stage_plans]
    assert sum(m.parameter_bytes for m in memory) == planned.whole.parameter_bytes == held
    assert sum(m.optimizer_bytes for m in memory) == held
    assert memory[2].boundary_bytes == 4 * 6 * 6 * 4 // 2 + 2 * table
    told = str(planned)
    assert "embed.weight" in told and "of stage 0 with stage 2" in told
    two = dg.plan(model, words, num_stages=2, **options).forecasts[0]
    assert two.boundaries[0].activation_bytes == 4 * 6 * 6 * 4 + table


def _train(pipe: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"losses": []}
    for t, (inputs, targets) in enumerate(ONE.batches(8)):
        if t == STOP:
            told["saved"] = to_bytes(pipe.state_dict())
        told["losses"].append(pipe.step(inputs, targets))
    pipe.flush()
    told["predicted"] = pipe.predict(ONE.batch(2, 5))
    told["states"] = [dict(module.state_dict()) for module in pipe.modules]
    return told


METHODS = {"ddg": dg.DDG(), "parts": dg.DDG(slack=1, micro_batches=2), "unlocked": UNLOCKED}


def _on_a_rank(rank: int, world_size: int, name: str) -> dict[str, Any]:
    pipe = dg.DistributedPipeline.from_model(
        ONE.build(),
        ONE.loss,
        momentum,
        sample_inputs=ONE.batch(4, 6),
        cuts=CUTS,
        method=METHODS[name],
        timeout_s=60,
    )
    with pipe:
        return _train(pipe)


@pytest.mark.parametrize("name", list(METHODS))
def test_ranks_compute_what_one_process_does_and_its_checkpoint_continues(
    cut: Any, name: str
) -> None:
    told = run_ranks(_on_a_rank, 3, args=(name,), timeout_s=110)
    pipe = dg.LocalPipeline(copy.deepcopy(cut[1]), ONE.loss, momentum, method=METHODS[name])
    local = _train(pipe)
    assert_same(told[2]["losses"], local["losses"], "losses")
    assert_same(told[2]["predicted"], local["predicted"], "predictions")
    assert_same([of_rank["states"][0] for of_rank in told], local["states"], "states")

    states = [from_bytes(of_rank["saved"]) for of_rank in told]
    state = {**states[0], "stages": {k: s for of in states for k, s in of["stages"].items()}}
    saved = from_bytes(local["saved"])["stages"]
    for k, of_stage in state["stages"].items():
        assert_same(of_stage["ties"], saved[k]["ties"], "messages in flight")
    waiting = [len(messages) for s in saved.values() for messages in s["ties"].values()]
    assert sum(waiting) > 1  # the checkpoint holds what is under way between stages 0 and 2
    again = dg.LocalPipeline(copy.deepcopy(cut[1]), ONE.loss, momentum, method=METHODS[name])
    again.load_state_dict(state)
    for inputs, targets in ONE.batches(8)[STOP:]:
        again.step(inputs, targets)
    again.flush()
    assert_same([dict(s.state_dict()) for s in again.stages], local["states"], "states")
    for of_stage in state["stages"].values():
        of_stage.pop("ties")
    with pytest.raises(dg.CheckpointError, match="does not fit .*KeyError: 'ties'"):
        again.load_state_dict(state)


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


def test_states_of_single_stages_make_the_whole_model_when_stages_are_merged(cut: Any) -> None:
    model, stages = copy.deepcopy(cut)
    saved = [stage.state_dict() for stage in stages]
    assert "head.weight" not in {name for state in saved for name in state}
    torch.manual_seed(5)
    others = stages_of(ONE.make().train())
    for stage, state in zip(others, saved, strict=True):
        stage.load_state_dict(state)
    assert_same(dict(dg.merge(others).state_dict()), dict(model.state_dict()))
    pipe = dg.LocalPipeline(stages, ONE.loss, momentum)
    assert_same(dg.gather(pipe), {k: v for k, v in model.state_dict().items()}, "gathered")
