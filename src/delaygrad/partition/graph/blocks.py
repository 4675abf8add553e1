"""Choose the blocks of a network: the modules that stay whole, between which a cut may fall."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from delaygrad.errors import PartitionError
from delaygrad.partition.layers import hooks_of, is_container

__all__ = ["choose_blocks", "opened_modules"]


def choose_blocks(model: nn.Module, named: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """List the blocks of a network, in the order in which the model holds them.

    Items of nn.Sequential, nn.ModuleList and nn.ModuleDict are blocks. Another child is opened
    where it contains such a list, and is a block where not. A child that is compiled, carries hooks
    or is parametrized is a block.

    Args:
        model: any nn.Module.
        named: dotted paths of modules that are blocks whatever the rule says; the modules around
            them are opened, and the rule chooses the rest.
    Returns:
        blocks: by dotted path; one module object may have several paths.
    Raises:
        PartitionError: the model has hooks of its own, or a name is no module's.
    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 1)))
        >>> list(choose_blocks(net)), list(choose_blocks(net, ["1"]))
        (['0', '1.0', '1.1'], ['0', '1'])
    """
    named = list(named or ())
    if isinstance(model, torch.jit.ScriptModule):
        raise PartitionError(
            "model is a ScriptModule, which torch.export cannot capture; split it before scripting"
        )
    if hooks := hooks_of(model):
        raise PartitionError(
            f"model has hooks of its own, which no stage would run (found: {', '.join(hooks)}); "
            "register them on one of its blocks, or remove them before splitting"
        )
    paths = {path for path, _ in model.named_modules(remove_duplicate=False) if path}
    for name in named:
        if name not in paths:
            closest = difflib.get_close_matches(name, paths, n=3, cutoff=0.4)
            raise PartitionError(
                f"blocks names no module of the model (name: {name!r}, closest: "
                f"{', '.join(map(repr, closest)) or 'none'}); model.named_modules() lists them all"
            )
    return dict(_walk(model, "", set(named), items=_is_list(model)))


def opened_modules(model: nn.Module, blocks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """List the modules around the blocks, by dotted path, the model itself under the empty one."""
    opened = {}
    inside = tuple(f"{path}." for path in blocks)
    for path, module in model.named_modules(remove_duplicate=False):
        if path not in blocks and not path.startswith(inside):
            opened[path] = module
    return opened


def _walk(
    module: nn.Module, prefix: str, named: set[str], *, items: bool
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module._modules.items():
        if child is None:
            continue
        path = prefix + name
        around = any(other.startswith(f"{path}.") for other in named)
        opened = _is_list(child) or (not items and _may_be_opened(child) and _has_list(child))
        if path not in named and (around or opened):
            yield from _walk(child, f"{path}.", named, items=_is_list(child))
        else:
            yield path, child


def _is_list(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return is_container(module)
    inherited = type(module).forward in (nn.ModuleList.forward, nn.ModuleDict.forward)
    return isinstance(module, nn.ModuleList | nn.ModuleDict) and inherited and len(module) > 0


def _has_list(module: nn.Module) -> bool:
    return any(
        _is_list(part) and "parametrizations" not in path.split(".")
        for path, part in module.named_modules()
    )


def _may_be_opened(module: nn.Module) -> bool:
    return not (
        hooks_of(module)
        or getattr(module, "_compiled_call_impl", None) is not None
        or isinstance(module, torch.jit.ScriptModule)
        or parametrize.is_parametrized(module)
        or type(module).get_extra_state is not nn.Module.get_extra_state
    )
