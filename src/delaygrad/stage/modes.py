"""Modules that ignore ``eval()``: predictions would train, or be random.

A graph of ``torch.export``, which ``torch.distributed.pipelining.pipeline`` uses, keeps the mode of
its export: its dropout stays on, and its BatchNorm continues to change its statistics. Such
graphs are refused.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn

from delaygrad.errors import StageError

_MODES = ("train", "training")
_RATES = ("p", "dropout", "dropout_p")


def require_modes(module: nn.Module, stage_index: int) -> None:
    """Raise if a part of the module cannot be put into evaluation mode.

    Raises:
        StageError: a graph holds operations of training mode.
    """
    for name, part in module.named_modules():
        graph = getattr(part, "graph", None)  # a GraphModule's, or that of an unflattened program
        for node in graph.nodes if isinstance(graph, fx.Graph) else ():
            if node.op == "call_function" and _trains(node):
                raise StageError(
                    "an exported or traced graph ignores eval(): it would train or be random in "
                    f"predict (stage: {stage_index}, module: {name or 'the stage itself'}, "
                    f"operation: {node.target}); make stages of the model's own modules instead"
                )


def _trains(node: fx.Node) -> bool:
    arguments = _arguments(node)
    rates = [arguments[name] for name in _RATES if name in arguments]
    if any(arguments.get(name) is True for name in _MODES):
        return not rates or any(rate != 0 for rate in rates)
    has_mode = any(name in arguments for name in _MODES)
    return not has_mode and isinstance(arguments.get("dropout_p"), float) and rates != [0.0]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Name the arguments of a call."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        given = zip((argument.name for argument in schema.arguments), node.args, strict=False)
        return {**dict(given), **node.kwargs}
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
        bound.apply_defaults()
        return bound.arguments
    except (TypeError, ValueError):  # built in, without a signature
        return dict(node.kwargs)
