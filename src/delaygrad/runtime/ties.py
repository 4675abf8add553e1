"""Refuse methods that cannot train a parameter which several stages share."""

from __future__ import annotations

from torch import nn

from delaygrad.errors import StageError
from delaygrad.methods import Method
from delaygrad.methods.axes import Received
from delaygrad.partition.graph.stage import GraphStage

__all__ = ["require_exact_ties"]


def require_exact_ties(stage: nn.Module, method: Method) -> None:
    """Raise if a method would change a shared parameter, or its gradient, between stages.

    The first stage that uses the parameter owns it, and sends its value on with each forward; see
    ``delaygrad.partition.graph.ties``.

    Raises:
        StageError: the method rounds what crosses or waits, meets other weights in the backward, or
            does not send error gradients as they are.
    """
    if not (isinstance(stage, GraphStage) and stage.ties):
        return
    reasons = {
        "boundary_dtype rounds it": method.boundary_dtype is not None,
        "stash_dtype rounds it": method.stash_dtype is not None,
        "live weights would be the owner's only": method.linearise.weights == "live",
        "its gradient would not arrive as it is": not isinstance(method.error_gradient, Received),
    }
    for reason, found in reasons.items():
        if found:
            names = ", ".join(tie.path for tie in stage.ties)
            raise StageError(
                f"stages share a parameter, and the method does not keep it one parameter "
                f"(parameter: {names}; {reason}); untie it, or leave that option out"
            )
