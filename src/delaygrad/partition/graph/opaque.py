"""Make blocks opaque while a network is captured: each call of a block becomes one operation.

torch.export runs the model on tensors without data. Within `opaque`, a block is of a subclass of
its class whose ``__call__`` records how it was called and hands its tensors to the operation
``delaygrad::block``. What the outputs look like is found by the block itself, on tensors without
data and on parameters without data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.utils._pytree as pytree  # torch has no public name for it
from torch import Tensor, nn

from delaygrad.errors import PartitionError
from delaygrad.partition.graph.undisturbed import attributes_kept

__all__ = ["BlockCall", "Example", "Examples", "Recorder", "Slot", "examples_of", "filled"]

LITERALS = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""What may stand in a call beside tensors and sizes; written into the source of a stage."""

_recorders: list[Recorder] = []


@dataclass(frozen=True)
class Slot:
    """The place of a tensor or of a size in the arguments of a call."""

    kind: str
    index: int


@dataclass
class BlockCall:
    """One call of a block.

    Attributes:
        name: dotted path of the block.
        args, kwargs: with slots in the place of tensors and sizes.
        sizes_only: no tensor was given; the operation got one of the model's inputs instead.
        outputs: leaves of what the block returned, without data; filled when the call is run.
        structure: of what the block returned.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Any] = field(default_factory=list)
    structure: pytree.TreeSpec | None = None


@dataclass(frozen=True)
class Example:
    """What a call of a block has returned on the sample; its tensors hold no data."""

    outputs: Any

    def on(self, tensors: Sequence[Tensor]) -> Any:
        """Return outputs without data: a size that an input has too, at the sample, varies with it.

        A wrong guess shows where `split` compares the stages with the model at other sizes.
        """
        vary: dict[int, torch.SymInt] = {}
        for size in (size for tensor in tensors for size in tensor.shape):
            if isinstance(size, torch.SymInt):
                vary.setdefault(size.node.hint, size)

        def without_data(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            shape = [vary.get(size, size) for size in leaf.shape]
            return tensors[0].new_empty(shape, dtype=leaf.dtype)

        return pytree.tree_map(without_data, self.outputs)


@dataclass(frozen=True)
class Examples:
    """What each call of a block has returned on the sample, for blocks of some classes."""

    calls: tuple[Example, ...] = ()
    for_classes: frozenset[type[nn.Module]] = frozenset()


def examples_of(blocks: Mapping[str, nn.Module], run: Callable[[], Any]) -> tuple[Example, ...]:
    """Run a model on data; list what each call of a block returned, in order."""
    found: list[Example] = []

    def note(block: nn.Module, args: Any, outputs: Any) -> None:
        found.append(Example(pytree.tree_map_only(Tensor, lambda t: t.to("meta"), outputs)))

    hooks = [block.register_forward_hook(note) for block in dict.fromkeys(blocks.values())]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


class Recorder:
    """Record the calls of blocks during one export.

    Args:
        blocks: by dotted path.
        examples: for blocks that cannot run without data.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], examples: Examples) -> None:
        self.examples = examples
        self.failed: type[nn.Module] | None = None
        """The class of a block that could not run without data."""
        self.calls: list[BlockCall] = []
        self.refusal: PartitionError | None = None
        self.anchor: Tensor | None = None
        """A tensor of the export, for blocks that are called without one."""
        self.guards_inside: set[int] = set()
        """Numbers of the conditions on sizes that the inside of a block has set."""
        self._names: dict[int, str] = {}
        for name, block in blocks.items():
            self._names.setdefault(id(block), name)
        self._blocks = {name: blocks[name] for name in self._names.values()}
        self._classes = {name: type(block) for name, block in self._blocks.items()}
        self._opaque: dict[str, type[nn.Module]] = {}
        self._tensors = {name: _tensors_of(block) for name, block in self._blocks.items()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block, calls of the blocks are recorded instead of run."""
        for name, block in self._blocks.items():
            self._opaque[name] = _opaque_class(type(block), name, self.call)
            block.__class__ = self._opaque[name]
        _recorders.append(self)
        try:
            yield
        finally:
            _recorders.pop()
            for name, block in self._blocks.items():
                block.__class__ = self._classes[name]

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for a block: record, and return what its outputs look like."""
        tensors: list[Tensor] = []
        sizes: list[Any] = []
        taken = (self._taken(name, value, tensors, sizes) for value in args)
        recorded_args = tuple(taken)
        recorded = {key: self._taken(name, value, tensors, sizes) for key, value in kwargs.items()}
        call = BlockCall(name, recorded_args, recorded)
        self.calls.append(call)
        assert self.anchor is not None
        operation = torch.ops.delaygrad.block
        given = tensors or [self.anchor]
        results = iter(operation(given, sizes, len(self.calls) - 1))
        leaves = [next(results) if isinstance(leaf, Tensor) else leaf for leaf in call.outputs]
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise self._refused(
                f"block {name!r} returns no tensor; name the module around it in blocks=[...]"
            )
        assert call.structure is not None
        return pytree.tree_unflatten(leaves, call.structure)

    def run(self, tensors: list[Tensor], sizes: list[Any], index: int) -> list[Tensor]:
        """Say what a recorded call returns: new tensors without data."""
        call = self.calls[index]
        mode = cast(Any, tensors[0]).fake_mode
        before = len(mode.shape_env.guards)
        if self._classes[call.name] in self.examples.for_classes:
            outputs = self.examples.calls[index].on(tensors)
        else:
            try:
                with mode.shape_env.ignore_fresh_unbacked_symbols():  # a block may ask for values
                    outputs = self._outputs_of(call, tensors, sizes, mode)
            except Exception:
                self.failed = self._classes[call.name]
                raise
        self.guards_inside |= set(range(before, len(mode.shape_env.guards)))
        call.outputs, call.structure = pytree.tree_flatten(outputs)
        for leaf in call.outputs:
            if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
                raise self._refused(
                    f"block {call.name!r} returns a number that follows from the size of its "
                    "inputs; name the module around it in blocks=[...]"
                )
        return [
            torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
            for leaf in call.outputs
            if isinstance(leaf, Tensor)
        ]

    def _outputs_of(
        self, call: BlockCall, tensors: list[Tensor], sizes: list[Any], mode: Any
    ) -> Any:
        """Run the block itself on tensors without data."""
        block = self._blocks[call.name]
        state = {
            name: mode.from_tensor(tensor, static_shapes=True)
            for name, tensor in self._tensors[call.name].items()
        }
        fill = {"tensor": tensors, "size": sizes}
        args, kwargs = filled((call.args, call.kwargs), lambda slot: fill[slot.kind][slot.index])
        block.__class__ = self._classes[call.name]
        try:
            with attributes_kept(block), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for part in block.modules():
                    if isinstance(part, nn.RNNBase):
                        part.forward = partial(_recurrent, part)
                return torch.func.functional_call(block, state, args, kwargs)
        finally:
            block.__class__ = self._opaque[call.name]

    def _taken(self, name: str, value: Any, tensors: list[Tensor], sizes: list[Any]) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return Slot("tensor", len(tensors) - 1)
        if isinstance(value, torch.SymInt):
            sizes.append(value)
            return Slot("size", len(sizes) - 1)
        if value is None or isinstance(value, LITERALS):
            return value
        if type(value) in (tuple, torch.Size):
            return tuple(self._taken(name, item, tensors, sizes) for item in value)
        if type(value) is list:
            return [self._taken(name, item, tensors, sizes) for item in value]
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {key: self._taken(name, item, tensors, sizes) for key, item in value.items()}
        hint = "set config.use_cache = False, or " if "Cache" in type(value).__name__ else ""
        raise self._refused(
            f"block {name!r} is handed a {type(value).__name__}, which cannot be written into a "
            f"stage; {hint}name the module around it in blocks=[...]"
        )

    def _refused(self, reason: str) -> PartitionError:
        self.refusal = self.refusal or PartitionError(reason)
        return self.refusal


def filled(recorded: Any, value_of: Callable[[Slot], Any]) -> Any:
    """Put values into the slots of recorded arguments."""
    if isinstance(recorded, Slot):
        return value_of(recorded)
    if isinstance(recorded, tuple | list):
        return type(recorded)(filled(item, value_of) for item in recorded)
    if isinstance(recorded, dict):
        return {key: filled(item, value_of) for key, item in recorded.items()}
    return recorded


@torch.library.custom_op(
    "delaygrad::block",
    mutates_args=(),
    schema="(Tensor[] tensors, SymInt[] sizes, int call) -> Tensor[]",
)
def _block(tensors: list[Tensor], sizes: list[int], call: int) -> list[Tensor]:
    raise RuntimeError("delaygrad::block stands for a block while a network is captured only")


@_block.register_fake
def _(tensors: list[Tensor], sizes: list[int], call: int) -> list[Tensor]:
    return _recorders[-1].run(tensors, sizes, call)


def _opaque_class(
    cls: type[nn.Module],
    name: str,
    record: Callable[[str, tuple[Any, ...], dict[str, Any]], Any],
) -> type[nn.Module]:
    def call(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return record(name, args, kwargs)

    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})


def _tensors_of(block: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(block.named_parameters(remove_duplicate=False)),
        **dict(block.named_buffers(remove_duplicate=False)),
    }


def _recurrent(rnn: nn.RNNBase, inputs: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """Say what a recurrent layer returns, for any length: torch's own way unrolls the sample's."""
    directions = 2 if rnn.bidirectional else 1
    width = rnn.proj_size or rnn.hidden_size
    batch = () if inputs.dim() == 2 else (inputs.shape[0 if rnn.batch_first else 1],)
    outputs = inputs.new_empty((*inputs.shape[:-1], directions * width))
    hidden = inputs.new_empty((directions * rnn.num_layers, *batch, width))
    if not isinstance(rnn, nn.LSTM):
        return outputs, hidden
    return outputs, (hidden, inputs.new_empty((*hidden.shape[:-1], rnn.hidden_size)))
