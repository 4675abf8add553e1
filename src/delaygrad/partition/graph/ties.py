"""Tie one parameter across stages: one owns it, the others borrow its value for each forward.

    owner      holds the parameter; hands its value on, as one more tensor, with each forward
    borrower   runs its block on the value that arrives; holds no parameter in its place

The gradient of the borrowed value goes back, and adds to the owner's own. So the forward of
(micro-)batch n meets one value on all stages, the owner's, and the owner applies the whole gradient
of n, when it applies its own: the rule of one parameter that belongs to the owner's stage.

In a network with ties every boundary has two parts, ``(values, ties)``. Stages that run in turn in
one module hand all ties on. A pipeline sends them from owner to borrower instead (see
``delaygrad.runtime.tie_links``), and None in their places from neighbour to neighbour.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from delaygrad.errors import PartitionError
from delaygrad.partition.graph.capture import WITHIN

__all__ = [
    "BORROWED",
    "TIED",
    "TiedParameter",
    "borrowed",
    "owned_elsewhere",
    "tie",
    "with_parameters",
]

BORROWED = "__borrowed__"
"""Key among a call's arguments: values for the block's parameters, by their names in the block."""

TIED = "tied"
"""Key of a node's meta: the path of the parameter whose value the node hands on."""


@dataclass(frozen=True)
class TiedParameter:
    """One parameter that blocks of several stages use.

    Attributes:
        path: of the parameter where the owner holds it.
        stages: that use it, the first is the owner.
        num_bytes: of the parameter.
        trained: whether its gradient comes back.
    """

    path: str
    stages: tuple[int, ...]
    num_bytes: int
    trained: bool

    @property
    def owner(self) -> int:
        """The stage that holds it."""
        return self.stages[0]

    @property
    def borrowers(self) -> tuple[int, ...]:
        """The other stages that use it."""
        return self.stages[1:]


def tie(
    graph: fx.Graph, places: Sequence[int], blocks: Mapping[str, nn.Module], own: Mapping[str, Any]
) -> tuple[fx.Graph, list[int], dict[int, TiedParameter]]:
    """Rewrite a graph so that parameters which several stages use are handed on by their owners.

    Args:
        graph: from `capture`; stays as it is.
        places: of its nodes, where stages 1 ... K-1 begin.
        blocks: by path.
        own: parameters outside the blocks, by path.
    Returns:
        graph, places, ties: the rewritten graph, the places in it, the ties by id of the parameter.
    """
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result: Any = made.graph_copy(graph, copies)
    made.output(result)
    begins = [copies[[n for n in graph.nodes if n.op != "output"][place]] for place in places]
    uses = _uses(made, begins, blocks, own)
    ties: dict[int, TiedParameter] = {}
    for key, (parameter, found) in uses.items():
        stages = sorted({stage for stage, _, _ in found})
        if len(stages) < 2:
            continue
        owner, _, path = min(found, key=lambda use: use[0])
        wanted = parameter.requires_grad
        ties[key] = TiedParameter(path, tuple(stages), parameter.nbytes, wanted)
        with made.inserting_before(begins[owner]):
            held = made.get_attr(path)
            carrier = made.create_node(
                "call_function",
                torch.ops.aten.clone.default,
                (held,),
                name=f"tied_{path.replace('.', '_')}",
            )
        like = next(iter(graph.nodes)).meta["val"].fake_mode
        for node in (held, carrier):
            node.meta |= {WITHIN: (), "val": like.from_tensor(parameter, static_shapes=True)}
        carrier.meta[TIED] = path
        for stage, node, full in found:
            if stage != owner:
                _lend(node, full, carrier)
    nodes = [node for node in made.nodes if node.op != "output"]
    return made, [nodes.index(begin) for begin in begins], ties


def _uses(
    graph: fx.Graph,
    begins: Sequence[fx.Node],
    blocks: Mapping[str, nn.Module],
    own: Mapping[str, Any],
) -> dict[int, tuple[Tensor, list[tuple[int, fx.Node, str]]]]:
    """List for each parameter who uses it: the stage, the node, and the parameter's path there."""
    found: dict[int, tuple[Tensor, list[tuple[int, fx.Node, str]]]] = {}
    stage = 0
    for node in graph.nodes:
        stage += node in begins
        used: dict[str, Tensor] = {}
        if node.op == "call_module":
            named = blocks[str(node.target)].named_parameters(remove_duplicate=False)
            used = {f"{node.target}.{name}": parameter for name, parameter in named}
        else:
            read = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            at = {path: _parameter_at(path, blocks, own) for path in read}
            used = {path: parameter for path, parameter in at.items() if parameter is not None}
        for path, parameter in used.items():
            found.setdefault(id(parameter), (parameter, []))[1].append((stage, node, path))
    return found


def _parameter_at(path: str, blocks: Mapping[str, nn.Module], own: Mapping[str, Any]) -> Any:
    if path in own:
        return own[path]
    for block_path, block in blocks.items():
        if path.startswith(f"{block_path}."):
            inside = dict(block.named_parameters(remove_duplicate=False))
            return inside.get(path.removeprefix(f"{block_path}."))
    return None


def _lend(node: fx.Node, path: str, carrier: fx.Node) -> None:
    if node.op != "call_module":
        for read in node.all_input_nodes:
            if read.op == "get_attr" and read.target == path:
                node.replace_input_with(read, carrier)
        return
    name = path.removeprefix(f"{node.target}.")
    lent: Any = node.kwargs.get(BORROWED, {})
    node.kwargs = {**node.kwargs, BORROWED: {**lent, name: carrier}}


def borrowed(block: nn.Module, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Call a block with values in the empty places of its parameters."""
    lent = []
    for path, value in values.items():
        module, name = _place_of(block, path)
        if module._parameters[name] is None:
            module._parameters[name] = value  # type: ignore[assignment]
            lent.append((module, name))
    try:
        return block(*args, **kwargs)
    finally:
        for module, name in lent:
            module._parameters[name] = None


def with_parameters(block: nn.Module, parameters: Mapping[str, nn.Parameter | None]) -> nn.Module:
    """Copy a block, but for its tensors and other parts, with other parameters in some places.

    Args:
        parameters: by their names in the block; None leaves the place empty.
    """
    made = _shallow(block)
    for path, parameter in parameters.items():
        module = made
        *around, name = path.split(".")
        for step in around:
            inner = module._modules[step]
            assert inner is not None
            module._modules[step] = inner = _shallow(inner)
            module = inner
        if isinstance(module, nn.RNNBase):
            raise PartitionError(
                f"a recurrent layer shares a parameter with another stage (parameter: {path!r}); "
                "untie it, or cut elsewhere"
            )
        module._parameters[name] = parameter
    return made


def _shallow(module: nn.Module) -> nn.Module:
    made = copy.copy(module)
    made._parameters, made._modules = dict(module._parameters), dict(module._modules)
    return made


def _place_of(block: nn.Module, path: str) -> tuple[nn.Module, str]:
    around, _, name = path.rpartition(".")
    return block.get_submodule(around), name


def owned_elsewhere(
    block: nn.Module, stage: int, ties: Mapping[int, TiedParameter]
) -> dict[str, TiedParameter]:
    """List the parameters of a block that another stage owns, by their names in the block."""
    named: Iterable[tuple[str, nn.Parameter]] = block.named_parameters(remove_duplicate=False)
    return {
        name: ties[id(parameter)]
        for name, parameter in named
        if id(parameter) in ties and ties[id(parameter)].stages[0] != stage
    }
