"""Which layer of a stage an exception comes from."""

from __future__ import annotations

from torch import nn


def failing_layer(module: nn.Module, error: BaseException) -> str:
    """Name the innermost layer whose call raised the error; "" if none of this module's did.

    Costs nothing before an error: the call stack of the error has the layers that were at work.

    Example:
        >>> import torch
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> try:
        ...     module(torch.ones(2, 4))
        ... except RuntimeError as error:
        ...     failing_layer(module, error)
        'layer 1 (Linear): '
    """
    names = {id(layer): name for name, layer in module.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        layer = trace.tb_frame.f_locals.get("self")
        if id(layer) in names:
            name, kind = names[id(layer)], type(layer).__name__
            found = f"layer {name} ({kind}): " if name else f"layer {kind}: "
        trace = trace.tb_next
    return found
