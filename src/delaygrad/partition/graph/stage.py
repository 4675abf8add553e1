"""A stage of any network: the user's own blocks under their own names, and the glue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from delaygrad.boundary import Structure, Tree
from delaygrad.errors import StageError
from delaygrad.partition.graph.source import compiled
from delaygrad.partition.graph.ties import TiedParameter, with_parameters

__all__ = ["Entrance", "GraphStage", "Piece", "Program", "check_inputs", "join_stages"]


@dataclass(frozen=True)
class Piece:
    """Something of the model that a stage holds.

    Attributes:
        path: dotted, in the model.
        place: its number in the model's own order.
        kind: "module", "parameter", "buffer", "constant" (not in the state_dict) or "shell", a
            module around others, of which only the mode is kept.
        held: the module or tensor itself; of a shell whether it is in training mode.
    """

    path: str
    place: int
    kind: str
    held: Any


@dataclass(frozen=True)
class Entrance:
    """What the first stage takes.

    Attributes:
        structure: of the inputs, see ``delaygrad.boundary``.
        shapes: of each tensor: numbers that must be, and expressions of sizes that may vary.
        conditions: on those sizes, each with its place in the user's code.
    """

    structure: Structure
    shapes: tuple[tuple[Any, ...], ...]
    conditions: tuple[tuple[Any, str], ...]

    def tensors(self, inputs: Tree) -> dict[str, Tensor]:
        """List the tensors of the inputs in the order of the sample's, with their places.

        Raises:
            StageError: the inputs are arranged in another way than the sample was.
        """
        found: dict[str, Tensor] = {}
        self._collect(inputs, self.structure, "inputs", found)
        return found

    def check_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise unless the captured glue is right for tensors of these sizes.

        Raises:
            StageError: a size may not vary, or the model takes another path at this size.
        """
        values: dict[Any, int] = {}
        places: dict[Any, Any] = {}
        for (name, tensor), shape in zip(tensors.items(), self.shapes, strict=True):
            fits = tensor.dim() == len(shape)
            for dim, (size, wanted) in enumerate(zip(tensor.shape, shape, strict=False)):
                if not isinstance(wanted, int) and wanted.is_symbol and wanted not in values:
                    values[wanted], places[wanted] = size, type(wanted)(f"{name}.shape[{dim}]")
                fits = fits and size == _size(wanted, values)
            if not fits:
                sizes = [_size(wanted, values) for wanted in shape]
                expected = [size if isinstance(size, int) else "any" for size in sizes]
                raise StageError(
                    f"{name} do not fit the network (given: {list(tensor.shape)}, expected: "
                    f"[{', '.join(map(str, expected))}]); give a batch like the sample, or split "
                    "with a sample in which sizes that vary are larger than 1 and differ"
                )
        for condition, where in self.conditions:
            if condition.subs(values) == False:  # noqa: E712, a sympy value
                given = {name: list(tensor.shape) for name, tensor in tensors.items()}
                raise StageError(
                    f"the model does something else at these sizes than at the sample's (given: "
                    f"{given}, the sample had {condition.xreplace(places)}, {where}); name the "
                    "module that decides in blocks=[...]"
                )

    def _collect(
        self, value: Tree, structure: Structure, where: str, found: dict[str, Tensor]
    ) -> None:
        if structure is None and isinstance(value, Tensor):
            found[where] = value
            return
        if structure == "none" and value is None:
            return
        if isinstance(structure, dict):
            ((kind, items),) = structure.items()
            if kind == "dict" and type(value) is dict and value.keys() == items.keys():
                for key, item in items.items():
                    self._collect(value[key], item, f"{where}[{key!r}]", found)
                return
            if kind == type(value).__name__ and len(value) == len(items):
                for index, item in enumerate(items):
                    self._collect(value[index], item, f"{where}[{index}]", found)
                return
        raise StageError(
            f"{where} are not arranged as the sample inputs were (given: {_arranged(value)}, "
            f"sample: {_sample(structure)}); give every batch as you gave "
            "sample_inputs to split"
        )


@dataclass(frozen=True)
class Program:
    """The forward of one stage.

    Attributes:
        sources: Python text for training and for evaluation mode.
        entrance: on the first stage.
        outputs: on the last stage: what the model returns, with numbers in the place of its leaves.
    """

    sources: Mapping[bool, str]
    entrance: Entrance | None = None
    outputs: Any = None
    _functions: dict[bool, Any] = field(default_factory=dict, repr=False, compare=False)
    _structure: list[Any] = field(default_factory=list, repr=False, compare=False)
    _seen: set[Any] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        functions = {source: compiled(source) for source in self.sources.values()}
        self._functions.update({mode: functions[source] for mode, source in self.sources.items()})
        if self.outputs is not None:
            self._structure.append(pytree.tree_structure(self.outputs))

    def __reduce__(self) -> Any:
        return Program, (self.sources, self.entrance, self.outputs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what runs, by ``torch.compile``; a copy of the program is not compiled."""
        functions = {
            function: torch.compile(function, *args, **kwargs)
            for function in set(self._functions.values())
        }
        self._functions.update({mode: functions[f] for mode, f in self._functions.items()})

    def run(self, module: nn.Module, inputs: Tree) -> Any:
        """Run the forward on the blocks and tensors of a module."""
        if self.entrance is not None:
            inputs = self.entered(self.entrance, inputs)
        result = self._functions[module.training](module, inputs)
        return pytree.tree_unflatten(result, *self._structure) if self._structure else result

    def entered(self, entrance: Entrance, inputs: Tree) -> Tree:
        """Return what the function takes.

        Raises:
            StageError: the inputs do not fit; see `Entrance`.
        """
        named = entrance.tensors(inputs)
        tensors = list(named.values())
        if not torch.compiler.is_compiling():
            shapes = tuple(tensor.shape for tensor in tensors)
            if shapes not in self._seen:
                entrance.check_sizes(named)
                self._seen.add(shapes)
        return tensors[0] if len(tensors) == 1 else tensors


class GraphStage(nn.Module):
    """One stage of a network that is no nn.Sequential; `split` makes it.

    Its submodules are the model's own blocks, under their paths in the model, so that parameters,
    hooks, ``train()`` and ``eval()`` are theirs. `merge` joins the stages again.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        programs: Sequence[Program],
        *,
        blocks: Sequence[str],
        training: bool,
        ties: Iterable[TiedParameter] = (),
        borrowed: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.training = training
        self._pieces = {p.path: (p.place, p.kind) for p in pieces}
        self.programs = tuple(programs)
        self.ties = tuple(ties)
        """The parameters that stages share, of the whole network."""
        self.borrowed = dict(borrowed or {})
        """Parameters of the model that an earlier stage owns, with their names there."""
        self.block_names = tuple(blocks)
        """The calls of blocks that the stage makes, in order; the first one names its cut."""
        for piece in sorted(pieces, key=lambda piece: piece.place):
            _put(self, piece)

    @property
    def source(self) -> str:
        """What the stage does, as Python text; for evaluation mode too where that differs."""
        texts = []
        for program in self.programs:
            texts.append(program.sources[True])
            if program.sources[False] != program.sources[True]:
                texts.append(f"# in evaluation mode\n{program.sources[False]}")
        return "\n".join(texts)

    def forward(self, inputs: Tree) -> Any:
        """Take what the stage below returns; return what the stage above needs."""
        for program in self.programs:
            inputs = program.run(self, inputs)
        return inputs

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the stage by ``torch.compile``; names and `merge` stay as they are."""
        for program in self.programs:
            program.compile(*args, **kwargs)

    def pieces(self) -> list[Piece]:
        """List what the stage holds."""
        found = []
        for path, (place, kind) in self._pieces.items():
            held: Any = self
            for name in path.split(".") if path else ():
                held = getattr(held, name)
            found.append(Piece(path, place, kind, held.training if kind == "shell" else held))
        return found


def check_inputs(stage: nn.Module, inputs: Tree) -> None:
    """Raise unless a first stage that `split` has captured can take the inputs.

    Raises:
        StageError: they are arranged in another way than the sample, or a size does not fit.
    """
    if isinstance(stage, GraphStage) and (entrance := stage.programs[0].entrance):
        stage.programs[0].entered(entrance, inputs)


def join_stages(stages: Sequence[GraphStage]) -> GraphStage:
    """Join stages, given in order, into one module that runs them in turn."""
    pieces: dict[str, Piece] = {}
    for piece in (piece for stage in stages for piece in stage.pieces()):
        pieces.setdefault(piece.path, piece)
    named = (stage.named_parameters(remove_duplicate=False) for stage in stages)
    own = {name: parameter for found in named for name, parameter in found}
    for name, owner in (pair for stage in stages for pair in stage.borrowed.items()):
        path = next(path for path in pieces if name.startswith(f"{path}."))
        block = with_parameters(pieces[path].held, {name.removeprefix(f"{path}."): own[owner]})
        pieces[path] = replace(pieces[path], held=block)
    return GraphStage(
        list(pieces.values()),
        [program for stage in stages for program in stage.programs],
        blocks=[name for stage in stages for name in stage.block_names],
        training=stages[0].training,
    )


def _put(root: nn.Module, piece: Piece) -> None:
    *around, name = piece.path.split(".") if piece.path else [""]
    module = root
    for step in around:
        if step not in module._modules:
            module.add_module(step, nn.Module())
        inner = module._modules[step]
        assert inner is not None
        module = inner
    if piece.kind == "parameter":
        module.register_parameter(name, piece.held)
    elif piece.kind in ("buffer", "constant"):
        module.register_buffer(name, piece.held, persistent=piece.kind == "buffer")
    elif piece.kind == "module":
        module.add_module(name, piece.held)
    elif name:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        shell = module._modules[name]
        assert shell is not None
        shell.training = piece.held


def _size(wanted: Any, values: Mapping[Any, int]) -> Any:
    """Return the number that a size must be; an expression where that is not known yet."""
    if isinstance(wanted, int):
        return wanted
    found = wanted.subs(values)
    return int(found) if found.is_number else found


def _arranged(value: Tree) -> str:
    if type(value) is dict:
        return f"a dict with {', '.join(map(repr, value)) or 'nothing'}"
    if type(value) in (tuple, list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _sample(structure: Structure) -> str:
    if not isinstance(structure, dict):
        return "None" if structure else "a Tensor"
    ((kind, items),) = structure.items()
    return _arranged({"dict": dict, "list": list, "tuple": tuple}[kind](items))
