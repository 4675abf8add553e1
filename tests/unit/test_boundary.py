"""What crosses a boundary comes out as it went in, whatever its shape, strides and nesting."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from exact import assert_same
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from delaygrad.boundary import (
    dense,
    flatten,
    from_row_major,
    parts_of,
    to_row_major,
    unflatten,
)
from delaygrad.errors import StageError

counter = itertools.count()
leaves = st.none() | st.builds(lambda: torch.tensor(next(counter)))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(trees)
def test_any_tree_is_rebuilt_from_its_tensors_and_a_json_text(tree: Any) -> None:
    tensors, structure = flatten(tree)
    sent = json.loads(json.dumps(structure))
    assert_same(unflatten(sent, tensors), tree)


@given(trees)
def test_the_tensors_are_the_trees_own(tree: Any) -> None:
    tensors, structure = flatten(tree)
    again, _ = flatten(unflatten(structure, tensors))
    assert [id(t) for t in again] == [id(t) for t in tensors]


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (3.0, "cannot hand on a value of type float; a boundary carries tensors"),
        ([torch.zeros(1), {"x": "text"}], "cannot hand on a value of type str"),
        ({1: torch.zeros(1)}, r"must be strings \(keys: \[1\]\)"),
        (torch.eye(2).to_sparse(), r"sparse tensor .*\(layout: torch.sparse_coo\).*\.to_dense\(\)"),
    ],
    ids=["number", "text", "integer key", "sparse"],
)
def test_what_cannot_cross_is_refused(tree: Any, told: str) -> None:
    with pytest.raises(StageError, match=told):
        flatten(tree)


@st.composite
def strided(draw: st.DrawFn) -> Tensor:
    """Tensors as slicing, permuting, expanding and layouts leave them."""
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    base = torch.arange(float(torch.Size(shape).numel())).view(shape)
    if base.dim():
        base = base.permute(draw(st.permutations(range(base.dim()))))
        for dim in range(base.dim()):
            start = draw(st.integers(0, 1))
            base = base[(slice(None),) * dim + (slice(start, None, draw(st.integers(1, 2))),)]
    if draw(st.booleans()):
        base = base.unsqueeze(draw(st.integers(0, base.dim())))
        base = base.expand([draw(st.integers(1, 2)) if n == 1 else n for n in base.shape])
    if base.dim() == 4 and draw(st.booleans()):
        base = base.contiguous(memory_format=torch.channels_last)
    return base


@settings(max_examples=300)
@given(strided())
def test_a_dense_tensor_survives_the_wire_with_its_strides(tensor: Tensor) -> None:
    filled = dense(tensor)
    assert torch.equal(filled, tensor)
    assume(tensor.numel())  # without elements, strides mean nothing
    view, order = to_row_major(filled)
    assert view.is_contiguous()
    # What a receiver does: bytes, in memory order, viewed under the sender's shape.
    received = view.reshape(-1).view(torch.uint8).clone().view(tensor.dtype).view(view.shape)
    assert_same(from_row_major(received, order), filled)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_tensor_without_gaps_is_not_copied(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    image = torch.zeros(shape).contiguous(memory_format=memory_format)
    assert dense(image).data_ptr() == image.data_ptr()
    assert dense(image).is_contiguous(memory_format=memory_format)


def test_a_tensor_with_gaps_keeps_its_memory_order() -> None:
    image = torch.zeros(2, 6, 4, 5).to(memory_format=torch.channels_last)[:, ::2]
    assert dense(image).stride() == (60, 1, 15, 3)


def test_a_batch_is_split_as_evenly_as_it_goes_and_shares_add_up() -> None:
    tree = {"x": torch.arange(7), "y": (torch.arange(14).view(7, 2), None)}
    parts = parts_of(tree, 3)
    assert [len(part["x"]) for part, _ in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part["y"][0] for part, _ in parts]), tree["y"][0])
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert parts_of("anything", 1) == [("anything", 1.0)]


@pytest.mark.parametrize(
    "tree",
    [torch.zeros(2, 3), torch.tensor(1.0), (torch.zeros(4), torch.zeros(5)), None],
    ids=["too few", "no samples", "of two lengths", "nothing"],
)
def test_what_cannot_be_split_is_refused(tree: object) -> None:
    with pytest.raises(StageError, match="cannot split the batch into micro-batches"):
        parts_of(tree, 3)


@st.composite
def without_gaps(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Shape and strides of a new tensor; strides of dimensions of size 1 may be anything."""
    shape = draw(st.lists(st.integers(0, 3), max_size=5))
    usual = torch.empty(shape).stride()
    free = st.integers(1, 40)
    return shape, [
        draw(free | st.just(stride)) if size == 1 else stride
        for size, stride in zip(shape, usual, strict=True)
    ]


@settings(max_examples=300)
@given(without_gaps())
@example(([0, 1, 1, 1], [1, 1, 1, 1]))  # torch's order of an empty tensor's dimensions: 1, 2, 3, 0
def test_the_usual_strides_are_known_without_asking_torch(
    layout: tuple[list[int], list[int]],
) -> None:
    tensor = torch.empty(layout[0]).as_strided(*layout)
    view, found = to_row_major(tensor)
    if tensor.numel():  # without elements there is no memory order; torch returns an arbitrary one
        order = list(tensor.dim_order())
        assert (found, view.stride()) == (order, tensor.permute(order).stride())
    # dense() as it is in general, written out.
    received = torch.empty(to_row_major(dense(tensor))[0].shape)
    assert dense(tensor).stride() == from_row_major(received, found).stride()
    assert dense(tensor).data_ptr() == tensor.data_ptr()


def test_a_conjugate_or_negative_view_is_carried_out() -> None:
    numbers = torch.randn(3, 2, dtype=torch.complex64).T.conj()
    for lazy in (numbers, numbers.imag):
        assert lazy.is_conj() or lazy.is_neg()
        filled = dense(lazy)
        assert torch.equal(filled, lazy)
        assert not filled.is_conj() and not filled.is_neg()
        assert_same(from_row_major(*to_row_major(filled)), filled)
