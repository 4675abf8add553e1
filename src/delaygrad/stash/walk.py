"""The parts of a module by name, found again in every forward at little cost."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class Walk:
    """Walk over a module; its parts may be added, renamed, moved or removed at any time.

    ``named_modules`` makes each name anew, and runs through a generator for each level. Here parts
    are only listed, level by level, with the number of their children. While this list stays the
    same, so do the names.

    Args:
        module: a stage's network.

    Example:
        >>> walk = Walk(nn.Sequential(nn.Linear(1, 1)))
        >>> walk.named_modules() is walk.named_modules()
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._found: list[tuple[str, nn.Module, int]] = []
        self._named: list[tuple[str, nn.Module]] = []

    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """List what ``nn.Module.named_modules`` yields."""
        found, seen = [("", self._module, len(self._module._modules))], {self._module}
        for _, part, num_children in found:  # grows
            for name, child in part._modules.items() if num_children else ():
                if child is not None and child not in seen:
                    seen.add(child)
                    found.append((name, child, len(child._modules)))
        if found != self._found:
            self._named = list(self._module.named_modules())
            self._found = found
        return self._named

    def places(self) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
        """Yield the name, the module and the attribute of each parameter; a tied one has several.

        The order is that of ``nn.Module.named_parameters``.
        """
        for prefix, owner in self.named_modules():
            for attribute, parameter in owner._parameters.items():
                if parameter is not None:
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    yield name, owner, attribute, parameter
