"""Run a model of the user's, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from delaygrad.boundary import Tree, flatten

__all__ = ["attributes_kept", "in_mode", "undisturbed"]


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Within the block, the model is in training or evaluation mode; afterwards as it was."""
    modes = [(part, part.training) for part in model.modules()]
    if model.training != training:
        model.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards the attributes are those of before: no tensor without data stays behind."""
    kept = [(vars(part), dict(vars(part))) for part in module.modules()]
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


@contextmanager
def undisturbed(modules: Sequence[nn.Module], inputs: Tree) -> Iterator[None]:
    """Afterwards random states and buffers are as before."""
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    kept = [
        (part, name, buffer, buffer.detach().clone())
        for part in parts
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    own = [*flatten(inputs)[0], *(p for module in modules for p in module.parameters())]
    devices = {tensor.device for tensor in own if tensor.device.type not in ("cpu", "meta")}
    kind = next(iter(devices)).type if devices else "cuda"
    with torch.random.fork_rng(devices=sorted(devices, key=str), device_type=kind):
        try:
            yield
        finally:
            with torch.no_grad():
                for part, name, buffer, value in kept:
                    part._buffers[name] = buffer
                    buffer.copy_(value)
