"""ScheduleDDG in the place of Schedule1F1B, in a training step that knows nothing of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import CLASSES, batch_norm_mlp, batches, dropout_mlp, into_stages
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    SplitPoint,
    pipeline,
)
from torch.nn.functional import cross_entropy
from zoo import TIED_LANGUAGE_MODEL as TIED

import delaygrad as dg

ITERATIONS = 9
STOP = 4
CLIP = 0.5
CPU = torch.device("cpu")


def make_optimizer(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.02, weight_decay=0.1)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * ITERATIONS)


def build(num_stages: int, blocks: Callable[[], list[nn.Module]]) -> list[nn.Module]:
    torch.manual_seed(3)
    stages = into_stages(blocks(), num_stages)
    torch.manual_seed(4)
    return stages


class Trainer:
    """A training step as in torchtitan: whoever owns the schedule owns the optimizer."""

    def __init__(
        self, module: nn.Module, rank: int, world_size: int, kind: Any, micro: int, **options: Any
    ) -> None:
        self.stage = PipelineStage(module, rank, world_size, CPU)
        self.schedule = kind(self.stage, n_microbatches=micro, loss_fn=cross_entropy, **options)
        self.optimizer = make_optimizer(self.stage.submod.parameters())
        self.scheduler = make_scheduler(self.optimizer)

    def train_step(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        self.optimizer.zero_grad()
        targets, losses = (targets, []) if self.stage.is_last else (None, None)
        if self.stage.is_first:
            self.schedule.step(inputs, target=targets, losses=losses, return_outputs=False)
        else:
            self.schedule.step(target=targets, losses=losses, return_outputs=False)
        nn.utils.clip_grad_norm_(self.stage.submod.parameters(), CLIP)
        self.optimizer.step()
        self.scheduler.step()
        return losses or []

    def flush(self) -> int:
        """Return the number of updates."""
        count = 0
        for count, _ in enumerate(self.schedule.flush(), 1):  # noqa: B007
            nn.utils.clip_grad_norm_(self.stage.submod.parameters(), CLIP)
            self.optimizer.step()
        return count

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(self.stage.submod.state_dict())


class Naive:
    """The rule of ScheduleDDG: block k of batch t - delay(k), at that batch's own parameters."""

    def __init__(self, stages: list[nn.Module], micro: int, slack: int) -> None:
        self.stages, self.micro = stages, micro
        lags = [(len(stages) - 1 - k) * (1 + slack) for k in range(len(stages))]
        self.delays = [-(-lag // micro) for lag in lags]
        self.optimizers = [make_optimizer(stage.parameters()) for stage in stages]
        self.schedulers = [make_scheduler(optimizer) for optimizer in self.optimizers]
        self.blocks: list[list[list[Tensor]]] = []

    def train_step(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        met, losses = copy.deepcopy(self.stages), []
        for stage in met:
            stage.zero_grad()
        parts = zip(inputs.tensor_split(self.micro), targets.tensor_split(self.micro), strict=True)
        for x, y in parts:
            value = x.clone()  # a matrix product may round otherwise where memory is not aligned
            for stage in met:
                value = stage(value)
            losses.append(cross_entropy(value, y))
            (losses[-1] * (1 / self.micro) if self.micro > 1 else losses[-1]).backward()
        for stage, moved in zip(self.stages, met, strict=True):
            for ours, theirs in zip(stage.buffers(), moved.buffers(), strict=True):
                ours.copy_(theirs)
        self.blocks.append([[p.grad for p in stage.parameters()] for stage in met])
        for k, delay in enumerate(self.delays):
            self.update(k, len(self.blocks) - 1 - delay)
            self.schedulers[k].step()
        return [loss.detach() for loss in losses]

    def flush(self) -> None:
        for k, delay in enumerate(self.delays):
            for batch in range(len(self.blocks) - delay, len(self.blocks)):
                self.update(k, batch)

    def update(self, k: int, batch: int) -> None:
        for index, p in enumerate(self.stages[k].parameters()):
            p.grad = self.blocks[batch][k][index].clone() if batch >= 0 else None
        nn.utils.clip_grad_norm_(self.stages[k].parameters(), CLIP)
        self.optimizers[k].step()


# ---------------------------------------------------------------------------- M > 1: a naive loop

SPLITS = {2: [(2, 0), (4, 0), (3, 1)], 3: [(2, 0), (4, 0), (3, 1)]}
"""Micro-batches and slack, by the number of stages."""


def data() -> Iterator[tuple[Tensor, Tensor]]:
    return batches(ITERATIONS, (6,), sizes=(12, 12, 24))


def train_in_micro_batches(rank: int, world_size: int) -> list[dict[str, Any]]:
    told = []
    for micro, slack in SPLITS[world_size]:
        module = build(world_size, batch_norm_mlp)[rank]
        trainer = Trainer(module, rank, world_size, dg.ScheduleDDG, micro, slack=slack)
        other = build(world_size, batch_norm_mlp)[rank]
        losses, states = [], []
        for iteration, batch in enumerate(data()):
            if iteration == STOP:
                evaluated = evaluate(trainer, *batch)
                saved = trainer.schedule.state_dict(), trainer.optimizer.state_dict()
                saved = from_bytes(to_bytes(saved))
                rate = trainer.scheduler.state_dict()
            losses.append(trainer.train_step(*batch))
            states.append(trainer.state())
        updates = trainer.flush()
        end = trainer.state()
        trainer.schedule.close()

        resumed = Trainer(other, rank, world_size, dg.ScheduleDDG, micro, slack=slack)
        resumed.schedule.load_state_dict(saved[0])
        resumed.optimizer.load_state_dict(saved[1])
        resumed.scheduler.load_state_dict(rate)
        for batch in list(data())[STOP:]:
            resumed.train_step(*batch)
        resumed.flush()
        resumed.schedule.close()
        told.append(
            {
                "losses": losses,
                "states": states,
                "updates": updates,
                "end": end,
                "resumed": resumed.state(),
                "evaluated": evaluated,
            }
        )
    return told


def evaluate(trainer: Trainer, inputs: Tensor, targets: Tensor) -> Any:
    stage, losses = trainer.stage, []
    outputs = trainer.schedule.eval(
        *([inputs] if stage.is_first else []),
        target=targets if stage.is_last else None,
        losses=losses,
    )
    return outputs, losses


@pytest.mark.parametrize("num_stages", [2, 3])
def test_micro_batches_have_the_delay_of_their_batch(num_stages: int) -> None:
    ranks = run_ranks(train_in_micro_batches, num_stages, timeout_s=100)
    for index, (micro, slack) in enumerate(SPLITS[num_stages]):
        told = [of_rank[index] for of_rank in ranks]
        naive = Naive(build(num_stages, batch_norm_mlp), micro, slack)
        for iteration, batch in enumerate(data()):
            if iteration == STOP:
                outputs, losses = told[-1]["evaluated"]
                value = batch[0]
                for stage in copy.deepcopy(naive.stages):
                    value = stage.eval()(value)
                torch.testing.assert_close(outputs, value.detach())
                assert len(losses) == micro
                mean = cross_entropy(value, batch[1]).detach()
                torch.testing.assert_close(torch.stack(losses).mean(), mean)
            assert_same(told[-1]["losses"][iteration], naive.train_step(*batch))
            states = [of_rank["states"][iteration] for of_rank in told]
            assert_same(states, [dict(stage.state_dict()) for stage in naive.stages])
        naive.flush()
        end = [dict(stage.state_dict()) for stage in naive.stages]
        assert_same([dict(of_rank["end"]) for of_rank in told], end)
        assert_same([dict(of_rank["resumed"]) for of_rank in told], end)
        assert [of_rank["updates"] for of_rank in told] == naive.delays


# ------------------------------------------------------------------ M = 1: DistributedPipeline's


def train_whole_batches(rank: int, world_size: int) -> dict[str, Any]:
    ours = Trainer(build(world_size, dropout_mlp)[rank], rank, world_size, dg.ScheduleDDG, 1)
    told: dict[str, Any] = {"ours": [], "theirs": [], "1f1b": []}
    for batch in data():
        told["ours"].append((ours.train_step(*batch), ours.state()))
    told["updates"] = ours.flush()
    told["ours"].append(ours.state())
    ours.schedule.close()

    module = build(world_size, dropout_mlp)[rank]
    pipe = dg.DistributedPipeline(module, cross_entropy, make_optimizer)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)

    pipe.optimizer.register_step_pre_hook(clip)
    scheduler = make_scheduler(pipe.optimizer)
    for batch in data():
        loss = pipe.step(*batch)
        scheduler.step()
        told["theirs"].append(([] if loss is None else [loss], copy.deepcopy(module.state_dict())))
    pipe.flush()
    told["theirs"].append(copy.deepcopy(module.state_dict()))
    pipe.close()

    told["1f1b"] = []
    for kind in (Schedule1F1B, dg.ScheduleDDG):
        stage = build(world_size, dropout_mlp)[rank].eval()  # for the one has other random numbers
        trainer = Trainer(stage, rank, world_size, kind, 4)
        told["1f1b"].append(trainer.train_step(*next(data())))
    trainer.schedule.close()  # waits until the neighbours have what this rank has sent
    return told


def test_whole_batches_train_as_in_the_distributed_pipeline() -> None:
    ranks = run_ranks(train_whole_batches, 3, timeout_s=100)
    for told in ranks:
        assert_same(told["ours"], told["theirs"])
    assert [told["updates"] for told in ranks] == [2, 1, 0]
    for theirs, ours in zip(*ranks[-1]["1f1b"], strict=True):
        torch.testing.assert_close(theirs.detach(), ours)


# ------------------------------------------------------------------------------- torch's contract


class Below(nn.Module):
    """Two arguments and a keyword; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, shift: Tensor, *, scale: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.layer(x) + shift)
        return hidden, hidden * scale


class Above(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, one: Tensor, other: Tensor, *, mask: Tensor | None = None) -> Tensor:
        both = one + other
        return self.layer(both if mask is None else both * mask)


def smooth(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    return cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)


def smooth_with_extras(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Any:
    return smooth(outputs, targets, label_smoothing), {"sum": outputs.sum()}


SIZE = 4


def contract_batches() -> list[tuple[dict[str, Any], ...]]:
    """Arguments of each rank."""
    generator = torch.Generator().manual_seed(9)
    told = []
    for _ in range(4):
        x, shift = torch.randn(SIZE, 6, generator=generator), torch.randn(SIZE, 4)
        scale, mask = (torch.rand(SIZE, 1, generator=generator) for _ in range(2))
        target = torch.randint(CLASSES, (SIZE,), generator=generator)
        first = {"args": (x, shift), "kwargs": {"scale": scale}, "target": None}
        told.append((first, {"args": (), "kwargs": {"mask": mask}, "target": target}))
    return told


def contract_stages() -> list[nn.Module]:
    torch.manual_seed(6)
    return [Below(), Above()]


def gradients_of(module: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def halves(given: Any) -> list[Any]:
    if given is None:
        return [None, None]
    if isinstance(given, Tensor):
        return list(given.tensor_split(2))
    if isinstance(given, dict):
        parts = [halves(value) for value in given.values()]
        return [dict(zip(given, part, strict=True)) for part in zip(*parts, strict=True)]
    return [tuple(part) for part in zip(*map(halves, given), strict=True)] or [(), ()]


def keep_the_contract(rank: int, world_size: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, options in (
        ("whole", {}),
        ("parts", {}),
        ("recompute", {"recompute": True}),
        ("resumed", {}),
        ("accumulated", {}),
        ("extras", {}),
    ):
        module = contract_stages()[rank]
        stage = PipelineStage(module, rank, world_size, CPU)
        loss_fn = smooth_with_extras if name == "extras" else smooth
        schedule = dg.ScheduleDDG(stage, 2, loss_fn, scale_grads=False, **options)
        found = []
        for index, batch in enumerate(contract_batches()):
            given = batch[rank]
            if name != "accumulated":
                module.zero_grad()
            if name == "resumed" and index == 2:
                state = from_bytes(to_bytes(schedule.state_dict()))
                schedule.close()
                module = contract_stages()[rank]
                stage = PipelineStage(module, rank, world_size, CPU)
                schedule = dg.ScheduleDDG(stage, 2, smooth, scale_grads=False)
                schedule.load_state_dict(state)
            losses = ["stale"]
            arguments = {"losses": losses, "loss_kwargs": {"label_smoothing": 0.1}}
            if name == "parts":
                mbs = zip(("arg_mbs", "kwarg_mbs", "target_mbs"), given.values(), strict=True)
                arguments |= {key: halves(value) for key, value in mbs if value is not None}
                outputs = schedule.step(**arguments)
            else:
                arguments |= {"target": given["target"]}
                outputs = schedule.step(*given["args"], **given["kwargs"], **arguments)
            found.append((gradients_of(module), losses, outputs))
            told["extras of " + name] = schedule.extras
        for _ in schedule.flush():
            found.append(gradients_of(module))
        told[name] = found
        schedule.close()
    told["refused"] = refusals(rank, world_size)
    return told


def test_arguments_losses_and_outputs_are_those_of_torch() -> None:
    ranks = run_ranks(keep_the_contract, 2, timeout_s=100)
    below, above = contract_stages()
    plain = []
    for first, last in contract_batches():
        below.zero_grad(), above.zero_grad()
        losses, outputs = [], []
        for args, kwargs, more, target in zip(
            halves(first["args"]), halves(first["kwargs"]), halves(last["kwargs"]),
            halves(last["target"]), strict=True,
        ):  # fmt: skip
            outputs.append(above(*below(*(a.clone() for a in args), **kwargs), **more))
            losses.append(smooth(outputs[-1], target, 0.1))
            losses[-1].backward()
        plain.append((gradients_of(below), gradients_of(above), losses, torch.cat(outputs)))

    for name in ("whole", "parts", "recompute", "resumed", "extras"):
        lower, upper = (told[name] for told in ranks)
        assert_same([found[0] for found in upper], [of[1] for of in plain])
        assert_same([found[1] for found in upper], [[x.detach() for x in of[2]] for of in plain])
        assert_same([found[2] for found in upper], [of[3].detach() for of in plain])
        # Its lag is one micro-batch, so the gradient is that of the batch before.
        assert lower[0] == ([None, None], ["stale"], None)
        assert_same([found[0] for found in lower[1:4]], [of[0] for of in plain[:3]])
        assert_same(lower[4:], [plain[3][0]])

    assert (
        [told["extras of whole"] for told in ranks]
        == [[], []]
        == [ranks[0]["extras of extras"]] * 2
    )
    sums = [{"sum": part.detach().sum()} for part in plain[3][3].tensor_split(2)]
    assert_same(ranks[1]["extras of extras"], sums)

    lower, upper = (told["accumulated"] for told in ranks)
    torch.testing.assert_close(lower[3][0], summed([of[0] for of in plain[:3]]))
    torch.testing.assert_close(upper[3][0], summed([of[1] for of in plain]))
    assert_same(lower[4], plain[3][0])  # flush gives each update alone

    for told in ranks:
        assert told["refused"] == {
            "exported": "ignores eval()",
            "tied": "stages share a parameter",
            "no loss": "needs a loss_fn",
            "no grad": "gradients, which are disabled",
            "unfinished": "flush is not finished",
        }


def summed(gradients: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(of_one).sum(0) for of_one in zip(*gradients, strict=True)]


def refusals(rank: int, world_size: int) -> dict[str, str]:
    """Words of the messages."""
    told = {}

    def refused(name: str, words: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except (dg.DelaygradError, RuntimeError, ValueError) as error:
            told[name] = words if words in str(error) else str(error)

    blocks = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        exported = pipeline(blocks, (torch.randn(2, 6),), split_spec={"1": SplitPoint.BEGINNING})
    built = exported.build_stage(rank, CPU)
    stage = PipelineStage(contract_stages()[rank], rank, world_size, CPU)
    refused("exported", "ignores eval()", lambda: dg.ScheduleDDG(built, 2, smooth))
    tied = dg.split(TIED.build(), 2, sample_inputs=TIED.batch(4, 6), cuts=["layers.2"])[rank]
    shared = PipelineStage(tied, rank, world_size, CPU)
    refused("tied", "stages share a parameter", lambda: dg.ScheduleDDG(shared, 2, smooth))
    refused("no loss", "needs a loss_fn", lambda: dg.ScheduleDDG(stage, 2))
    schedule = dg.ScheduleDDG(stage, 1, cross_entropy)
    given = contract_batches()[0][rank]
    with torch.no_grad():
        refused("no grad", "gradients, which are disabled", schedule.step)
    schedule.step(*given["args"], **given["kwargs"], target=given["target"])
    updates = schedule.flush()
    refused("unfinished", "flush is not finished", schedule.state_dict)
    for _ in updates:
        pass
    schedule.step(*given["args"], **given["kwargs"], target=given["target"])
    schedule.close()
    return told
