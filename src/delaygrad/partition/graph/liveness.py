"""What a later stage still needs of what earlier stages have computed.

A value that a later stage reads is *carried*: it crosses every boundary up to there. Three kinds
of values are not:

    state     a parameter, buffer or constant: the stage holds it
    size      a number: read anew from a tensor that the stage has
    derived   a tensor that follows from the inputs alone (a mask, positions) by operations
              without parameters: computed again, where its sources are no larger than itself
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Extract", "Liveness"]

_HEAVY = ("mm", "bmm", "matmul", "linear", "convolution", "conv1d", "conv2d", "conv3d", "einsum")


@dataclass(frozen=True)
class Extract:
    """The part of a graph that one stage runs.

    Attributes:
        inputs: what arrives, in the order in which it was computed.
        body: the nodes that run, in order.
        outputs: what goes on; for the last stage the leaves of what the model returns.
        sizes: for size nodes whose tensor is not there: another tensor and its dimension.
    """

    inputs: tuple[fx.Node, ...]
    body: tuple[fx.Node, ...]
    outputs: tuple[Any, ...]
    sizes: dict[fx.Node, tuple[fx.Node, int]]

    def tensors_only(self) -> Extract:
        """Leave out the outputs that are no tensors."""
        kept = [v for v in self.outputs if isinstance(v, fx.Node) and _is_tensor(v)]
        return replace(self, outputs=tuple(kept))


class Liveness:
    """Say for a flat graph what crosses at a place, and what each stage runs.

    Args:
        graph: from `capture`.
        constants: names of the constants and buffers that any number of stages may hold.
    """

    def __init__(self, graph: fx.Graph, constants: frozenset[str] = frozenset()) -> None:
        self._nodes = [node for node in graph.nodes if node.op != "output"]
        self._place = {node: place for place, node in enumerate(self._nodes)}
        (result,) = [node for node in graph.nodes if node.op == "output"]
        self._results: tuple[Any, ...] = tuple(result.args[0])
        self._constants = constants
        self._sources = self._find_derived()
        self.calls = [node for node in self._nodes if node.op == "call_module"]
        """The calls of blocks, in order."""

    def gaps(self) -> list[int]:
        """Choose the place between each two calls of blocks where the fewest bytes cross."""
        places = [self._place[call] for call in self.calls]
        best: dict[int, tuple[int, int]] = {}
        gap = len(places) - 1
        for place, needed in self._sweep():
            while gap > 0 and place <= places[gap - 1]:
                gap -= 1
            if gap == 0 or place > places[gap]:
                continue
            num_bytes = self._bytes(self._carried(needed, place))
            if num_bytes is not None and (gap not in best or num_bytes < best[gap][0]):
                best[gap] = (num_bytes, place)
        return [best[gap][1] if gap in best else places[gap] for gap in range(1, len(places))]

    def extracts(self, places: Sequence[int]) -> list[Extract]:
        """Share out the graph to stages.

        Args:
            places: where stages 1 ... K-1 begin, increasing; from `gaps`.
        """
        bounds = [0, *places, len(self._nodes)]
        outputs: tuple[Any, ...] = self._results
        extracts: list[Extract] = []
        for first, end in reversed(list(zip(bounds, bounds[1:], strict=False))):
            extract = self._extract(first, end, outputs, is_first=first == 0)
            extracts.append(extract)
            outputs = extract.inputs
        return extracts[::-1]

    def _extract(self, first: int, end: int, outputs: tuple[Any, ...], is_first: bool) -> Extract:
        needed = {value for value in outputs if isinstance(value, fx.Node)}
        body = []
        for node in reversed(self._nodes[first:end]):
            if node in needed or _has_effect(node):
                body.append(node)
                needed |= set(self._inputs_of(node, first))
        again = self._again(needed, first)
        inputs = {node for node in self._nodes if node.op == "placeholder"}
        if not is_first:
            inputs = self._carried(needed, first)
        arriving = tuple(sorted(inputs, key=self._place.__getitem__))
        run = sorted({*again, *body} - inputs, key=self._place.__getitem__)
        there = {*inputs, *run}
        sizes = {
            node: _same_size(node, arriving)
            for node in run
            if _is_size(node) and node.args[0] not in there
        }
        return Extract(arriving, tuple(run), outputs, sizes)

    def _sweep(self) -> Iterator[tuple[int, set[fx.Node]]]:
        """Yield, from the end, each place with the values that what comes after it reads."""
        needed = {value for value in self._results if isinstance(value, fx.Node)}
        for place in reversed(range(len(self._nodes))):
            node = self._nodes[place]
            if node in needed or _has_effect(node):
                needed |= set(node.all_input_nodes)
            needed.discard(node)
            yield place, needed

    def _inputs_of(self, node: fx.Node, first: int) -> list[fx.Node]:
        # A size of a tensor from elsewhere is no reason to carry that tensor.
        if _is_size(node) and self._place[_tensor_of(node)] < first:
            return []
        return node.all_input_nodes

    def _again(self, needed: set[fx.Node], first: int) -> set[fx.Node]:
        """List the nodes before a place that are run again after it."""
        again: set[fx.Node] = set()
        waiting = [node for node in needed if self._place[node] < first]
        while waiting:
            node = waiting.pop()
            if node not in again and self._runs_again(node):
                again.add(node)
                waiting += [n for n in self._inputs_of(node, first) if self._place[n] < first]
        return again

    def _carried(self, needed: set[fx.Node], first: int) -> set[fx.Node]:
        """List the tensors that must cross at a place."""
        again = self._again(needed, first)
        read = {n for n in needed if self._place[n] < first}
        for node in again:
            read |= set(self._inputs_of(node, first))
        carried = {node for node in read if not self._runs_again(node)}
        asked = [node for node in {*again, *needed} if _is_size(node)]
        for node in sorted(asked, key=self._place.__getitem__):
            tensor = _tensor_of(node)
            if self._place[tensor] < first and tensor not in carried:
                carried |= self._size_source(node, carried, first)
        return carried

    def _size_source(self, node: fx.Node, carried: set[fx.Node], first: int) -> set[fx.Node]:
        wanted = node.meta["val"]
        if any(_dim_of(wanted, tensor) is not None for tensor in carried):
            return set()
        there = [n for n in self._nodes[:first] if _is_tensor(n) and n.op != "get_attr"]
        fitting = [n for n in there if _dim_of(wanted, n) is not None]
        return {min(fitting, key=_num_bytes)}

    def _runs_again(self, node: fx.Node) -> bool:
        if node.op == "get_attr" or _is_number(node):
            return True
        sources = self._sources.get(node)
        if sources is None or node.op == "placeholder" or not _is_tensor(node):
            return sources is not None and node.op != "placeholder"
        return sum(map(_num_bytes, sources)) <= _num_bytes(node)

    def _find_derived(self) -> dict[fx.Node, frozenset[fx.Node]]:
        """Find what follows from inputs and constants alone, with the inputs it follows from."""
        sources: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                sources[node] = frozenset([node])
            elif node.op == "get_attr":
                if node.target in self._constants:
                    sources[node] = frozenset()
            elif node.op == "call_function" and all(n in sources for n in node.all_input_nodes):
                if _writes(node):
                    return {}  # another stage would see it as it was before, or twice changed
                if not _has_effect(node) and _operation(node) not in _HEAVY:
                    read = [] if _is_size(node) else node.all_input_nodes
                    sources[node] = frozenset().union(*(sources[n] for n in read))
        return sources

    @staticmethod
    def _bytes(carried: set[fx.Node]) -> int | None:
        """Add up what crosses; None where something else than a tensor would have to."""
        if not all(_is_tensor(node) for node in carried):
            return None
        return sum(map(_num_bytes, carried))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_number(node: fx.Node) -> bool:
    number = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    return isinstance(node.meta.get("val"), number)


def _is_size(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int


def _tensor_of(node: fx.Node) -> fx.Node:
    tensor = node.args[0]
    assert isinstance(tensor, fx.Node)
    return tensor


def _dim_of(wanted: Any, node: fx.Node) -> int | None:
    """Find a dimension of a tensor that has a size, by what export knows of both."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    for dim, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr:
            return dim
    return None


def _same_size(node: fx.Node, tensors: Sequence[fx.Node]) -> tuple[fx.Node, int]:
    for tensor in tensors:
        dim = _dim_of(node.meta["val"], tensor)
        if dim is not None:
            return tensor, dim
    raise AssertionError(f"no tensor has the size of {node}")


def _num_bytes(node: fx.Node) -> int:
    """The size of a tensor at the sample."""
    value: Tensor = node.meta["val"]
    count = value.element_size()
    for size in value.shape:
        count *= size.node.hint if isinstance(size, torch.SymInt) else size
    return count


def _operation(node: fx.Node) -> str:
    return str(node.target).split(".")[-2] if "." in str(node.target) else str(node.target)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _has_effect(node: fx.Node) -> bool:
    """Whether a node must run once, in its turn, even if nothing reads it."""
    if node.op == "call_module" or _writes(node):
        return True
    tags = getattr(node.target, "tags", ())
    return (
        torch.Tag.nondeterministic_seeded in tags or _operation(node) == "_assert_tensor_metadata"
    )
