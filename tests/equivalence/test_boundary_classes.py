"""Outputs of classes of their own arrive at the next stage as what they were, in both runtimes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from exact import assert_same
from networks import CLASSES, batches
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

import delaygrad as dg
from delaygrad.boundary import flatten, unflatten
from delaygrad.errors import StageError


class Pair(NamedTuple):
    x: Tensor
    skip: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Record:
    x: Tensor
    inner: Pair


@dataclass
class Loud:
    x: Tensor

    def __post_init__(self) -> None:
        self.seen = True


class Ordered(OrderedDict[str, Tensor]):
    pass


KINDS = ["named tuple", "dataclass", "OrderedDict", "subclass", "ModelOutput", "torch.max"]


def wrapped(kind: str, x: Tensor) -> Any:
    return {
        "named tuple": lambda: Pair(x),
        "dataclass": lambda: Record(x, Pair(x, x)),
        "OrderedDict": lambda: OrderedDict(b=x, a=x),
        "subclass": lambda: Ordered(b=x, a=x),
        "ModelOutput": lambda: BaseModelOutput(last_hidden_state=x, hidden_states=(x, x)),
        "torch.max": lambda: torch.max(x.unsqueeze(1), 1),
    }[kind]()


def opened(kind: str, value: Any) -> Tensor:
    """Return the tensor, by the ways in which a user reads such a value."""
    if kind == "named tuple":
        assert type(value) is Pair and value.skip is None
        return value.x
    if kind == "dataclass":
        assert type(value) is Record and type(value.inner) is Pair
        return value.x + value.inner.skip
    if kind == "OrderedDict":
        assert type(value) is OrderedDict and list(value) == ["b", "a"]
        return value["b"] * value["a"]
    if kind == "subclass":
        assert type(value) is Ordered and list(value) == ["b", "a"]
        return value["b"] * value["a"]
    if kind == "ModelOutput":
        assert type(value) is BaseModelOutput and value.attentions is None
        assert list(value) == ["last_hidden_state", "hidden_states"] and len(value.to_tuple()) == 2
        return value.last_hidden_state + value["hidden_states"][0] + value[1][1]
    assert type(value) is torch.return_types.max
    return value.values


class Below(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 6), kind

    def forward(self, x: Tensor) -> Any:
        return wrapped(self.kind, torch.tanh(self.layer(x)))


class Above(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, CLASSES), kind

    def forward(self, value: Any) -> Tensor:
        return self.layer(opened(self.kind, value))


def network(kind: str) -> list[nn.Module]:
    torch.manual_seed(0)
    return [Below(kind), Above(kind)]


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_rebuilt_as_what_it_was(kind: str) -> None:
    x = torch.arange(6.0).view(2, 3)
    tensors, structure = flatten(wrapped(kind, x))
    again = unflatten(structure, tensors)
    opened(kind, again)


@pytest.mark.parametrize("kind", KINDS)
def test_without_delay_such_outputs_train_as_the_plain_network(kind: str) -> None:
    stages, plain = network(kind), nn.Sequential(*network(kind))
    pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=dg.BP())
    optimizer = sgd(list(plain.parameters()))
    for inputs, targets in batches(4, (6,)):
        optimizer.zero_grad()
        loss = cross_entropy(plain(inputs), targets)
        loss.backward()
        optimizer.step()
        assert_same(pipe.step(inputs, targets), loss.detach())
    assert_same(pipe.predict(inputs), plain(inputs).detach())


def train_ranks(rank: int, world_size: int) -> list[dict[str, Tensor]]:
    found = []
    for kind in KINDS:
        stage = network(kind)[rank]
        with dg.DistributedPipeline(stage, cross_entropy, sgd) as pipe:
            for batch in batches(4, (6,)):
                pipe.step(*batch)
            state = pipe.state_dict()
            pipe.load_state_dict(state)
            pipe.predict(batch[0])
            pipe.flush()
        found.append(dict(stage.state_dict()))
    return found


def test_ranks_hand_on_what_one_process_hands_on() -> None:
    ranks = run_ranks(train_ranks, 2)
    for index, kind in enumerate(KINDS):
        stages = network(kind)
        pipe = dg.LocalPipeline(stages, cross_entropy, sgd)
        for batch in batches(4, (6,)):
            pipe.step(*batch)
        pipe.flush()
        assert_same([found[index] for found in ranks], [dict(s.state_dict()) for s in stages])


def test_what_would_arrive_as_something_else_is_refused() -> None:
    class Local(NamedTuple):
        x: Tensor

    with pytest.raises(StageError, match=r"cannot be found by its name .*top level of a module"):
        flatten(Local(torch.zeros(1)))
    with pytest.raises(StageError, match=r"no fields \(attributes: \['seen'\]\)"):
        flatten(Loud(torch.zeros(1)))


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:Popen", "antigravity:nothing", "builtins:type", "os", ""]
)
def test_a_structure_from_elsewhere_imports_and_calls_nothing(name: str) -> None:
    with pytest.raises(StageError, match="that this process does not have"):
        unflatten({"class": [name, {"args": None}]}, [torch.zeros(1)])
