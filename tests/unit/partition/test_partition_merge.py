import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition import layer_names, merge, split

LEAVES = [lambda: nn.Linear(2, 2), nn.ReLU, lambda: nn.BatchNorm1d(2), nn.Sequential]
NAMES = st.lists(st.sampled_from(["9", "a", "10", "b", "2"]), min_size=4, max_size=4, unique=True)


@st.composite
def chains(draw, depth=3):
    children = []
    for _ in range(draw(st.integers(1, 4))):
        if depth and draw(st.booleans()):
            children.append(draw(chains(depth=depth - 1)))
        else:
            children.append(draw(st.sampled_from(LEAVES))())
    names = draw(NAMES) if draw(st.booleans()) else ["0", "1", "2", "3"]
    chain = nn.Sequential(OrderedDict(zip(names, children, strict=False)))
    chain.training = draw(st.booleans())
    return chain


@settings(deadline=None)
@given(st.data(), chains())
def test_merge_undoes_split(data, model):
    names = layer_names(model)
    cuts = data.draw(
        st.lists(st.sampled_from(names[1:]), unique=True) if names[1:] else st.just([])
    )
    cuts.sort(key=names.index)
    stages = split(model, len(cuts) + 1, cuts=cuts)
    merged = merge(stages)

    assert sorted(key for stage in stages for key in stage.state_dict()) == sorted(
        model.state_dict()
    )
    assert type(merged) is nn.Sequential
    assert layer_names(merged) == names
    assert list(merged.state_dict()) == list(model.state_dict())
    flags = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in merged.named_modules()} == flags
    for name, parameter in model.named_parameters():
        assert merged.get_parameter(name) is parameter
    x = torch.ones(3, 2)
    assert torch.equal(merged.eval()(x), model.eval()(x))


def three_stages():
    body = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model = nn.Sequential(OrderedDict(stem=nn.Linear(2, 2), body=body, head=nn.Linear(2, 1)))
    return split(model, 3, cuts=["body.1", "body.2"])


def test_a_container_cut_twice_becomes_whole():
    merged = merge(three_stages())
    assert layer_names(merged) == ["stem", "body.0", "body.1", "body.2", "head"]
    assert list(merged._modules) == ["stem", "body", "head"]


def test_copies_and_pickles_of_stages_merge():
    for stages in (copy.deepcopy(three_stages()), pickle.loads(pickle.dumps(three_stages()))):
        assert len(layer_names(merge(stages))) == 5


def test_compiled_stages_merge():
    stages = three_stages()
    stages[0].compile(backend="eager")
    assert len(layer_names(merge(stages))) == 5


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [0, 1], [1, 2], [0, 1, 1, 2], [0, 0, 2]])
def test_wrong_order_and_missing_stages_are_refused(order):
    stages = three_stages()
    given = r"given: stage \d of 3.*in order"
    with pytest.raises(PartitionError, match=given):
        merge([stages[k] for k in order])


def test_slices_of_a_sequential_merge_in_order_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    assert list(merge([model[:1], model[1:]])) == list(model)
    with pytest.raises(PartitionError, match="layer '0' comes after '2'"):
        merge([model[1:], model[:1]])


def test_clashing_names_are_refused():
    with pytest.raises(PartitionError, match="one name .layer: '0'"):
        merge([nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())])
    with pytest.raises(PartitionError, match=r"one name .layer: '0\.0'"):
        merge([nn.Sequential(nn.Sequential(nn.ReLU()))] * 2)
    split_body = [
        nn.Sequential(OrderedDict(body=nn.Sequential(nn.ReLU()), tail=nn.ReLU())),
        nn.Sequential(OrderedDict(body=nn.Sequential(OrderedDict(more=nn.ReLU())))),
    ]
    with pytest.raises(PartitionError, match="layer: 'body'"):
        merge(split_body)


def test_other_modules_and_no_stages_are_refused():
    with pytest.raises(PartitionError, match="stages: 0"):
        merge([])
    with pytest.raises(PartitionError, match=r"stage 1 .*type: Linear"):
        merge([nn.Sequential(nn.ReLU()), nn.Linear(2, 2)])
    with pytest.raises(PartitionError, match=r"stage 0 .*type: Sequential"):
        merge([nn.Sequential()])
