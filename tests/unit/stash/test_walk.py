"""A walk lists what the module itself lists, whatever has happened to its parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from delaygrad.stash.walk import Walk


def network() -> nn.Module:
    """Return parts three levels deep; one is held twice, one parameter too, one place is empty."""
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), nn.ReLU())
    net.add_module("again", net[0][0])
    net.tied = net[0][1][0].weight
    net.register_module("nothing", None)
    return net


def remove(net: nn.Module) -> None:
    del net[0][1][0]


def rename(net: nn.Module) -> None:
    net[0].renamed = net[0]._modules.pop("1")


def move(net: nn.Module) -> None:
    """Move a part one level down: level by level, the parts and their own names stay the same."""
    net[0].add_module("x", net[0][1]._modules.pop("0"))


def add(net: nn.Module) -> None:
    net[0][1].more = nn.Linear(2, 1)


def enclose(net: nn.Module) -> None:
    net[0][1].around = net  # a module that holds itself


def freeze_and_add_parameter(net: nn.Module) -> None:
    net.weight = nn.Parameter(torch.ones(1), requires_grad=False)
    net[0][0].bias = None


@pytest.mark.parametrize("change", [remove, rename, move, add, enclose, freeze_and_add_parameter])
def test_walk_lists_what_the_module_lists(change) -> None:
    net = network()
    walk = Walk(net)
    for happen in (lambda _: None, change):
        happen(net)
        assert walk.named_modules() == [*net.named_modules()]
        places = [*walk.places()]
        assert all(owner._parameters[attribute] is p for _, owner, attribute, p in places)
        found: dict[int, str] = {}  # of tied ones the first
        for name, _, _, p in places:
            found.setdefault(id(p), name)
        assert [*found.items()] == [(id(p), name) for name, p in net.named_parameters()]


def test_same_parts_at_other_places_get_their_new_names() -> None:
    first, second, below = nn.Sequential(), nn.Sequential(), nn.Linear(1, 1)
    net = nn.Sequential(first, second)
    first.part = below
    walk = Walk(net)
    assert walk.named_modules()[-1][0] == "1"
    assert "0.part" in dict(walk.named_modules())
    second.part = first._modules.pop("part")
    assert "1.part" in dict(walk.named_modules())
    assert "0.part" not in dict(walk.named_modules())
