"""Write the forward of a stage as Python text.

The text is what a stage keeps of the graph: it can be read (``print(stage.source)``), compared,
copied and pickled.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from delaygrad.errors import PartitionError
from delaygrad.partition.graph.capture import WITHIN
from delaygrad.partition.graph.liveness import Extract
from delaygrad.partition.graph.ties import BORROWED, TIED, borrowed

__all__ = ["compiled", "write_source"]

_MODULES = {"_operator": "operator", "operator": "operator", "math": "math", "torch": "torch"}


def write_source(extract: Extract, *, is_first: bool, is_last: bool, has_ties: bool) -> str:
    """Write ``forward(self, inputs)``; values are forgotten after their last use.

    Args:
        extract: what the stage runs.
        is_first: the stage takes the model's inputs.
        is_last: the stage returns the list of leaves of the model's outputs.
        has_ties: stages of the network share parameters, whose values cross apart from the others.
    """
    lines = []
    if extract.inputs:
        values, ties = _apart(extract.inputs)
        names = ", ".join(node.name for node in values)
        names = names if len(values) == 1 else f"({names})"
        from_below = has_ties and not is_first
        lines.append(f"{names}, ties = inputs" if from_below else f"{names} = inputs")
        lines += [f"{node.name} = ties[{path!r}]" for path, node in ties.items()]
        lines.append("del inputs, ties" if from_below else "del inputs")
    lasts = _last_uses(extract)
    for within, nodes in groupby(extract.body, key=lambda node: node.meta[WITHIN]):
        indent = "    " * len(within)
        lines += [f"{'    ' * depth}with {context}:" for depth, context in enumerate(within)]
        for node in nodes:
            lines.append(f"{indent}{node.name} = {_expression(node, extract)}")
            if done := lasts.get(node):
                lines.append(f"{indent}del {', '.join(done)}")
    if is_last:
        lines.append(f"return [{', '.join(map(_literal, extract.outputs))}]")
    else:
        values, ties = _apart(extract.outputs)
        joined = ", ".join(map(_literal, values))
        joined = joined if len(values) == 1 else f"({joined})"
        lines.append(f"return {joined}, {_literal(ties)}" if has_ties else f"return {joined}")
    return "\n".join(["def forward(self, inputs):", *(f"    {line}" for line in lines), ""])


def _apart(crossing: Sequence[Any]) -> tuple[list[fx.Node], dict[str, fx.Node]]:
    """Separate what crosses a boundary: values, and ties by the path of their parameter."""
    tied = sorted((node.meta[TIED], node) for node in crossing if TIED in node.meta)
    return [node for node in crossing if TIED not in node.meta], dict(tied)


def compiled(source: str) -> Callable[..., Any]:
    """Turn the text into a function of the stage and its inputs."""
    scope: dict[str, Any] = {
        "torch": torch,
        "operator": operator,
        "math": math,
        "leaves_of": pytree.tree_leaves,
        "borrowed": borrowed,
    }
    exec(compile(source, "<stage>", "exec"), scope)
    function: Callable[..., Any] = scope["forward"]
    return function


def _expression(node: fx.Node, extract: Extract) -> str:
    if node.op == "get_attr":
        return path_of(str(node.target))
    if node in extract.sizes:
        tensor, dim = extract.sizes[node]
        return f"{tensor.name}.shape[{dim}]"
    if node.target is torch.ops.aten.sym_size.int:
        return f"{node.args[0]}.shape[{node.args[1]}]"
    if node.target is operator.getitem:
        return f"{node.args[0]}[{_literal(node.args[1])}]"
    args = [_literal(arg) for arg in node.args]
    kwargs = {key: value for key, value in node.kwargs.items() if key != BORROWED}
    args += [f"{key}={_literal(value)}" for key, value in kwargs.items()]
    if BORROWED in node.kwargs:
        args = [_function(node), _literal(node.kwargs[BORROWED]), *args]
        return f"borrowed({', '.join(args)})"
    return f"{_function(node)}({', '.join(args)})"


def _function(node: fx.Node) -> str:
    target: Any = node.target
    if node.op == "call_module":
        return path_of(target)
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if target is pytree.tree_leaves:
        return "leaves_of"
    module = _MODULES.get(getattr(target, "__module__", ""))
    if module is None:
        raise PartitionError(
            f"the model does {target} between its blocks, which cannot be written into a stage; "
            "name the module whose forward does this in blocks=[...]"
        )
    return f"{module}.{target.__name__}"


def path_of(path: str) -> str:
    """Write how a stage reaches a module or tensor.

    Example:
        >>> path_of("layers.0.norm")
        'getattr(self.layers, "0").norm'
    """
    found = "self"
    for name in path.split("."):
        found = f"{found}.{name}" if name.isidentifier() else f'getattr({found}, "{name}")'
    return found


def _literal(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, slice):
        return f"slice({_literal(value.start)}, {_literal(value.stop)}, {_literal(value.step)})"
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(
        value, bool | int | float | str | torch.dtype | torch.layout | torch.memory_format
    ):
        return repr(value)
    raise PartitionError(
        f"a {type(value).__name__} between blocks cannot be written into a stage; name the module "
        "whose forward makes it in blocks=[...]"
    )


def _last_uses(extract: Extract) -> dict[fx.Node, list[str]]:
    """List by node the names that nothing reads after it."""
    kept = {value for value in extract.outputs if isinstance(value, fx.Node)}
    seen: set[fx.Node] = set(kept)
    lasts: dict[fx.Node, list[str]] = {}
    for node in reversed(extract.body):
        read = list(node.all_input_nodes)
        if node in extract.sizes:
            read = [extract.sizes[node][0]]
        done = [value for value in dict.fromkeys([*read, node]) if value not in seen]
        seen |= set(done)
        if done:
            lasts[node] = [value.name for value in done]
    return lasts
