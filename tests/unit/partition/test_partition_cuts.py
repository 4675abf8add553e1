import pytest
from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition import cuts_of, split
from delaygrad.partition.cuts import resolve_cuts

NAMES = ["stem", "body.0", "body.1.conv", "body.1.norm", "head"]


@pytest.mark.parametrize(
    ("cuts", "indices"),
    [
        (["body.1.conv", "head"], [2, 4]),
        ([1, 3], [1, 3]),
        (["body", "body.1.norm"], [1, 3]),
        (["body.1", 4], [2, 4]),
    ],
)
def test_names_indices_and_containers(cuts, indices):
    assert resolve_cuts(cuts, NAMES, num_stages=3) == indices


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (["body.0"], r"cuts: 1, stages: 3.*pass 2 cuts, or num_stages=2"),
        ("ab", r"one string \(cuts: 'ab'\)"),
        (["body.1.cnov", "head"], r"'body\.1\.cnov', closest: 'body\.1\.conv'"),
        (["zzzzzz", "head"], r"'zzzzzz', closest: 'stem', 'body\.0', 'body\.1\.conv'"),
        (["bod", "head"], r"'bod', closest: 'body'"),
        ([1, 5], r"cut: 5, layers: 5"),
        ([-1, 2], r"cut: -1"),
        (["head", "body.0"], r"stage 1 without layers .*'head'.*'body\.0'"),
        (["body.0", 1], r"stage 1 without layers"),
        (["stem", "head"], r"stage 0 without layers"),
    ],
)
def test_wrong_cuts_are_refused(cuts, message):
    with pytest.raises(PartitionError, match=message):
        resolve_cuts(cuts, NAMES, num_stages=3)


def test_recorded_cuts_split_identically():
    model = nn.Sequential(
        nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.ReLU())), nn.ReLU()
    )
    cuts = cuts_of(split(model, 3, cuts=[2, 3]))
    assert cuts == ["1.1.0", "1.1.1"]
    assert cuts_of(split(model, 3, cuts=cuts)) == cuts
    assert cuts_of(split(model, 1)) == []


def test_cuts_of_something_else_are_refused():
    with pytest.raises(PartitionError, match="type: Linear"):
        cuts_of([nn.Linear(2, 2), nn.Linear(2, 2)])
