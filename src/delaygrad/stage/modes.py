"""Modules that ignore ``eval()``: predictions would train, or be random.

A graph of ``torch.export``, which ``torch.distributed.pipelining.pipeline`` uses, keeps the mode of
its export: its dropout stays on, and its BatchNorm continues to change its statistics. Such
graphs are refused. Other modules that change their state in evaluation mode are found by comparing
the buffers before and after a prediction.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

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


class PredictionGuard:
    """Check at the 1st, 2nd, 4th, 8th ... prediction that it changes no state of the module.

    Args:
        module: the stage's network.
        stage_index: its own, for the message.
    """

    def __init__(self, module: nn.Module, stage_index: int) -> None:
        self._module, self._stage_index = module, stage_index
        self._predictions = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block the module predicts.

        Raises:
            StageError: it has changed a buffer of its state; the old value is put back.
        """
        self._predictions += 1
        if self._predictions & (self._predictions - 1):
            yield
            return
        before = {name: buffer.clone() for name, buffer in self._state()}
        yield
        changed = []
        for name, buffer in self._state():
            old = before.get(name)
            if old is not None and not _equal(old, buffer):
                changed.append(name)
                if old.shape == buffer.shape:
                    with torch.no_grad():
                        buffer.copy_(old)
        if changed:
            raise StageError(
                f"predict has changed buffers (stage: {self._stage_index}, buffers: "
                f"{', '.join(changed)}); they have their values again; let the module keep them "
                "in evaluation mode, or register them with persistent=False if they are a cache"
            )

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, owner in self._module.named_modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and name not in owner._non_persistent_buffers_set:
                    yield f"{prefix}.{name}" if prefix else name, buffer


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    strided = one.layout == other.layout == torch.strided
    # NaN equals NaN here: a prediction does not change a BatchNorm whose statistics are NaN.
    return not strided or bool(((one == other) | ((one != one) & (other != other))).all())
