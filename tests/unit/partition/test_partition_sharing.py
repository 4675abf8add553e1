import pytest
import torch
from torch import nn

import delaygrad as dg
from delaygrad.errors import PartitionError
from delaygrad.partition.layers import list_layers
from delaygrad.partition.sharing import check_cuts, find_ties, unbreakable_groups


def tied_names(model):
    return [(tie.kind, tie.first_name, tie.last_name) for tie in find_ties(list_layers(model))]


def test_tied_parameters_are_found_inside_layers():
    model = nn.Sequential(nn.Embedding(3, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 3)))
    model[2][0].weight = model[0].weight
    assert tied_names(model) == [("parameter", "0.weight", "2.0.weight")]


def test_parameters_over_the_same_memory_are_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(model[0].weight.data)
    assert tied_names(model) == [("parameter", "0.weight", "1.weight")]


def test_shared_buffers_are_found():
    norm = nn.BatchNorm1d(2, affine=False)
    assert [name for _, name, _ in tied_names(nn.Sequential(norm, nn.ReLU(), norm))] == [
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
    ]


def test_tensors_without_memory_are_told_apart():
    with torch.device("meta"):
        assert tied_names(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    assert tied_names(nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(2))) == []
    empty = nn.Sequential(nn.Identity(), nn.Identity())
    for layer in empty:
        layer.register_buffer("none", torch.empty(0))
        layer.register_buffer("sparse", torch.eye(2).to_sparse())
    assert tied_names(empty) == []


def test_sharing_within_a_layer_or_of_modules_without_tensors_is_no_tie():
    relu, block = nn.ReLU(), nn.Bilinear(2, 2, 2)
    block.again = block.weight
    assert tied_names(nn.Sequential(relu, block, relu, nn.Dropout())) == []


def test_three_holders_span_from_first_to_last():
    shared = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(nn.ReLU(), shared, nn.ReLU(), shared, shared, nn.ReLU())
    ties = find_ties(list_layers(model))
    assert unbreakable_groups(6, ties) == [0, 1, 5]
    check_cuts([1, 5], ties)
    with pytest.raises(
        PartitionError, match=r"'1\.weight' in stage 0, '4\.weight' in stage 2.*untie"
    ):
        check_cuts([2, 4], ties)


class Holder(nn.Linear):
    """A layer with a table in a buffer."""

    def __init__(self, table, *, persistent):
        super().__init__(2, 2)
        self.register_buffer("table", table, persistent=persistent)

    def forward(self, inputs):
        return super().forward(inputs) * self.table


def test_constants_may_be_shared():
    table = torch.ones(2)
    model = nn.Sequential(*(Holder(table, persistent=False) for _ in range(3)))
    assert tied_names(model) == []
    stages = dg.split(model, 3, cuts=[1, 2])
    assert all(stage[0].table is table for stage in stages)
    rope = Holder(table, persistent=False)
    rope.deep = nn.Sequential(Holder(rope.table, persistent=False))
    assert tied_names(nn.Sequential(rope, model[0])) == []


def test_what_only_some_holders_call_a_constant_may_not():
    table = torch.ones(2)
    for first, last in ((True, True), (True, False), (False, True)):
        model = nn.Sequential(Holder(table, persistent=first), Holder(table, persistent=last))
        ((_, *names),) = tied_names(model)
        assert names == ["0.table", "1.table"]
        with pytest.raises(PartitionError, match=r"constant, register it with persistent=False"):
            dg.split(model, 2, cuts=[1])
    weighing = Holder(torch.ones(2), persistent=False)
    weighing.table = model[0].bias.data
    assert tied_names(nn.Sequential(model[0], weighing)) == [("parameter", "0.bias", "1.table")]
