"""Flatten a network into named layers, the places between which a cut may fall."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from delaygrad.errors import PartitionError

__all__ = [
    "Layer",
    "hooks_of",
    "keeps_forward",
    "list_layers",
    "is_chain",
    "is_container",
    "layer_names",
]

# What a container may carry besides its children; a rebuilt container would lose it.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_OWN_STATE = ("_parameters", "_buffers", *_HOOKS)


@dataclass(frozen=True)
class Layer:
    """One indivisible piece of the network under its dotted path, such as `body.7`."""

    name: str
    module: nn.Module


def is_container(module: nn.Module) -> bool:
    """Tell whether a module only calls its children in turn, so that it can be cut open.

    An empty nn.Sequential is no container but a layer: the identity, kept under its name.

    Example:
        >>> is_container(nn.Sequential(nn.ReLU())), is_container(nn.ReLU())
        (True, False)
    """
    compiled = getattr(module, "_compiled_call_impl", None) is not None or "forward" in vars(module)
    return is_chain(module) and not compiled


def is_chain(module: nn.Module) -> bool:
    """Tell the same of a whole model or stage, which may be compiled: splitting undoes that."""
    return _runs_children_in_turn(module) and len(module._modules) > 0 and not _own_state(module)


def keeps_forward(model: nn.Module) -> bool:
    """Tell whether a model is an nn.Sequential that only calls its children in turn.

    Example:
        >>> keeps_forward(nn.Sequential()), keeps_forward(nn.Linear(2, 2))
        (True, False)
    """
    return _runs_children_in_turn(model)


def list_layers(model: nn.Module) -> list[Layer]:
    """List the layers of a network in the order in which they run.

    Nested nn.Sequentials are opened. One that overrides forward, is compiled, or carries hooks,
    parameters or buffers of its own stays one layer.

    Args:
        model: an nn.Sequential; a subclass may not override forward.
    Returns:
        layers: at least one; the same module object may appear more than once.
    Raises:
        PartitionError: the model is not such an nn.Sequential, or is empty.
    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 1)))
        >>> [layer.name for layer in list_layers(net)]
        ['0', '1.0', '1.1']
    """
    if not _runs_children_in_turn(model):
        raise PartitionError(
            f"model is not an nn.Sequential that keeps its forward (type: {type(model).__name__}); "
            "wrap its layers in nn.Sequential, pass sample_inputs to split, or cut it by hand"
        )
    if own := _own_state(model):
        raise PartitionError(
            f"model carries more than its layers and no stage would keep it (found: "
            f"{', '.join(own)}); move it into one of the layers, or remove it before splitting"
        )
    if not model._modules:
        raise PartitionError("model has no layers (layers: 0); add layers to the nn.Sequential")
    return _open(model, prefix="")


def layer_names(model: nn.Module) -> list[str]:
    """List the dotted paths of the layers, the names that cuts are given in.

    Args:
        model: an nn.Sequential; a subclass may not override forward.
    Returns:
        names: in the order in which the layers run; entry i is the layer with flat index i.
    Raises:
        PartitionError: the model is not such an nn.Sequential, or is empty.
    Example:
        >>> layer_names(nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Linear(2, 1)))
        ['0.0', '0.1', '1']
    """
    return [layer.name for layer in list_layers(model)]


def hooks_of(module: nn.Module) -> list[str]:
    """List the kinds of hooks that a module itself carries.

    Example:
        >>> hooks_of(nn.ReLU())
        []
    """
    return [name.lstrip("_") for name in _HOOKS if getattr(module, name, None)]


def _open(container: nn.Module, prefix: str) -> list[Layer]:
    # named_children() would skip a module that appears twice, hence _modules.
    layers: list[Layer] = []
    for name, child in container._modules.items():
        path = prefix + name
        if child is None:
            raise PartitionError(f"layer is None (layer: {path!r}); remove it or use nn.Identity")
        layers += _open(child, f"{path}.") if is_container(child) else [Layer(path, child)]
    return layers


def _runs_children_in_turn(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and type(module).__call__ is nn.Sequential.__call__
        and _is_own_forward(vars(module).get("forward", nn.Sequential.forward))
    )


def _is_own_forward(forward: Callable[..., object]) -> bool:
    original = inspect.unwrap(forward)  # of a forward that torch.compile has wrapped
    return getattr(original, "__func__", original) is nn.Sequential.forward


def _own_state(module: nn.Module) -> list[str]:
    return [name.lstrip("_") for name in _OWN_STATE if getattr(module, name, None)]
