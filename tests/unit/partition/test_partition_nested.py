from collections import OrderedDict, namedtuple

import pytest
import torch

from delaygrad.errors import PartitionError
from delaygrad.partition.nested import describe, map_tensors, tensors_of

Pair = namedtuple("Pair", ["left", "right"])


def test_structures_are_kept():
    one = torch.ones(1)
    value = (one, [one, Pair(one, one)], OrderedDict(a=one, b={"c": one}))
    mapped = map_tensors(lambda tensor: tensor + 1, value, "value")
    assert type(mapped[1][1]) is Pair and type(mapped[2]) is OrderedDict
    assert [tensor.item() for tensor in tensors_of(mapped, "value")] == [2.0] * 6
    assert [tensor.item() for tensor in tensors_of(value, "value")] == [1.0] * 6


def test_what_is_no_tensor_is_named():
    with pytest.raises(PartitionError, match=r"output of layer '3' .*type: NoneType"):
        tensors_of((torch.ones(1), None), "output of layer '3'")


def test_shapes_are_described():
    value = {"x": torch.ones(2, 1), "n": [torch.ones(3, dtype=torch.int32)]}
    assert describe(value) == "{x: float32 [2, 1], n: (int32 [3])}"
