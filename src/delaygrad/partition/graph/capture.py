"""Capture what a network does between its blocks, by torch.export, as one flat graph.

placeholder     a tensor of the inputs
get_attr        a parameter or buffer outside the blocks, or a constant
call_module     a block
call_function   an operation between blocks: the glue
output          the leaves of what the model returns
"""

from __future__ import annotations

import io
import logging
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from delaygrad.boundary import Structure, Tree, flatten, unflatten
from delaygrad.errors import PartitionError
from delaygrad.partition.graph.opaque import Example, Examples, Recorder, Slot, examples_of, filled
from delaygrad.partition.graph.undisturbed import attributes_kept, undisturbed

__all__ = ["Glue", "call_model", "capture"]

WITHIN = "within"
"""Key of a node's meta: the contexts that it runs in, as source, outermost first."""

_WAYS_OUT = (
    "name the module whose forward does this in blocks=[...], so that it stays whole, or pass "
    "hand-made stages (docs/your-own-network.md)"
)


@dataclass(frozen=True)
class Glue:
    """What export has found.

    Attributes:
        graph: flat, in the order of execution.
        inputs: structure of the sample inputs.
        outputs: what the model returns, with numbers in the place of its leaves.
        constants: tensors that the forward makes from Python numbers, by the name of their node.
        shapes: of each input tensor: numbers, and expressions where a size may vary.
        conditions: on the sizes, that the captured glue relies on, each with its place.
    """

    graph: fx.Graph
    inputs: Structure
    outputs: Any
    constants: dict[str, Tensor]
    shapes: tuple[tuple[Any, ...], ...]
    conditions: tuple[tuple[Any, str], ...]


def call_model(model: nn.Module, inputs: Tree) -> Any:
    """Call a model as `split` does: a tuple is its arguments, a dict its keyword arguments.

    Example:
        >>> call_model(nn.Bilinear(1, 1, 1), (torch.ones(1, 1), torch.ones(1, 1))).shape
        torch.Size([1, 1])
    """
    if type(inputs) is tuple:
        return model(*inputs)
    if type(inputs) is dict:
        return model(**inputs)
    return model(inputs)


def capture(model: nn.Module, sample_inputs: Tree, blocks: Mapping[str, nn.Module]) -> Glue:
    """Capture the glue of a model in the mode that it is in; changes nothing of the model.

    Args:
        model: any nn.Module.
        sample_inputs: as for `call_model`; two samples at least, or the batch size is fixed at 1.
        blocks: by dotted path, from `choose_blocks`.
    Raises:
        PartitionError: torch.export cannot capture it; says why and what to do.
    """
    tensors, structure = flatten(sample_inputs)
    if not tensors:
        raise PartitionError("sample_inputs hold no tensor; pass one batch as given to the model")
    examples = Examples()
    while True:
        recorder = Recorder(blocks, examples)
        try:
            exported = _export(model, tensors, structure, recorder)
            break
        except Exception:
            if recorder.failed is None:
                raise
            calls = examples.calls or _run_once(model, tensors, structure, blocks)
            examples = Examples(calls, examples.for_classes | {recorder.failed})
    return _Flattening(exported, recorder, model.training).glue(structure)


def _export(
    model: nn.Module, tensors: list[Tensor], structure: Structure, recorder: Recorder
) -> torch.export.ExportedProgram:
    entry = _Entry(model, structure, recorder)
    auto = torch.export.Dim.AUTO
    sizes = ([{dim: auto for dim in range(tensor.dim())} for tensor in tensors],)
    given = [tensor.detach().clone() for tensor in tensors]
    try:
        with recorder.recording(), attributes_kept(model), _quiet(), torch.enable_grad():
            return torch.export.export(entry, (given,), dynamic_shapes=sizes, strict=False)
    except Exception as error:
        if recorder.refusal is not None:
            raise recorder.refusal from error
        raise PartitionError(
            "torch.export cannot capture what the model does between its blocks "
            f"({type(error).__name__}: {_brief(error)}); {_WAYS_OUT}"
        ) from error


def _run_once(
    model: nn.Module, tensors: list[Tensor], structure: Structure, blocks: Mapping[str, nn.Module]
) -> tuple[Example, ...]:
    """Run the model on the sample: some block cannot say without data what it returns."""
    given = unflatten(structure, [tensor.detach().clone() for tensor in tensors])
    with undisturbed([model], given), torch.no_grad():
        return examples_of(blocks, lambda: call_model(model, given))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what export prints and logs before it fails away from the user, who gets the error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Entry(nn.Module):
    """The model as export sees it: one list of tensors in."""

    def __init__(self, model: nn.Module, structure: Structure, recorder: Recorder) -> None:
        super().__init__()
        self.model = model
        self._structure, self._recorder = structure, recorder
        self.training = model.training

    def forward(self, tensors: list[Tensor]) -> Any:
        self._recorder.anchor = tensors[0]
        return call_model(self.model, unflatten(self._structure, list(tensors)))


class _Flattening:
    """Rewrite an exported program as one graph of blocks and glue."""

    def __init__(
        self, exported: torch.export.ExportedProgram, recorder: Recorder, training: bool
    ) -> None:
        self._exported, self._recorder = exported, recorder
        self._training = training
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._called: set[int] = set()

    def glue(self, structure: Structure) -> Glue:
        exported, signature = self._exported, self._exported.graph_signature
        for written in signature.output_specs:
            if written.kind is not OutputKind.USER_OUTPUT:
                raise PartitionError(
                    "the model puts a new tensor in the place of one of its buffers or inputs "
                    f"between its blocks (name: {_own_name(written.target)!r}); change it in "
                    f"place, or {_WAYS_OUT}"
                )
        module = exported.graph_module
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        taken = [
            self._take(node, spec)
            for node, spec in zip(placeholders, signature.input_specs, strict=True)
        ]
        shapes = tuple(
            tuple(_expression(size) for size in node.meta["val"].shape)
            for node in taken
            if node.op == "placeholder"
        )
        values = dict(zip(placeholders, taken, strict=True))
        outputs = self._inline(module, values, within=())
        self._graph.output(tuple(outputs))
        self._require_all_calls()
        return Glue(
            graph=self._graph,
            inputs=structure,
            outputs=pytree.tree_unflatten(list(range(len(outputs))), exported.call_spec.out_spec),
            constants=self._constants,
            shapes=shapes,
            conditions=_conditions(taken, self._recorder.guards_inside),
        )

    def _take(self, node: fx.Node, spec: Any) -> fx.Node:
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(node.meta.get("val"), Tensor):
                raise PartitionError("sample_inputs may hold tensors and None only")
            return self._new("placeholder", node.name, (), {}, node, node.name, ())
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            target = _own_name(spec.target)
            return self._new("get_attr", target, (), {}, node, target.replace(".", "_"), ())
        if spec.kind is InputKind.CONSTANT_TENSOR:
            tensor = self._exported.constants[spec.target]
            mode = "constant" if self._training else "constant_in_evaluation"
            kept = self._new("get_attr", "", (), {}, node, mode, ())
            kept.target = f"_{kept.name}"
            self._constants[kept.target] = tensor
            return kept
        raise PartitionError(
            f"the model uses an object that torch.export cannot write down (kind: {spec.kind}); "
            f"{_WAYS_OUT}"
        )

    def _inline(
        self, module: fx.GraphModule, values: dict[fx.Node, Any], within: tuple[str, ...]
    ) -> Any:
        """Add the nodes of a module to the graph; return what it returns."""
        for node in module.graph.nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], values.__getitem__)
            if node.op == "get_attr":
                values[node] = _attribute(module, node.target)
            elif node.op == "call_function":
                values[node] = self._call(node, values, within)
        raise AssertionError("a graph without an output")

    def _call(self, node: fx.Node, values: dict[fx.Node, Any], within: tuple[str, ...]) -> Any:
        target: Any = node.target
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        if target is torch.ops.delaygrad.block.default:
            return self._call_block(node, args, within)
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._call_region(str(target), args, within)
        if str(target).startswith(("aten._assert_scalar", "aten.sym_constrain")):
            return None
        return self._new("call_function", target, args, kwargs, node, node.name, within)

    def _call_region(self, name: str, args: Any, within: tuple[str, ...]) -> list[Any]:
        """Inline a ``with`` block: its nodes remember what they run in."""
        if name == "wrap_with_set_grad_enabled":
            enabled, module, *given = args
            context = f"torch.set_grad_enabled({enabled})"
        elif name == "wrap_with_autocast":
            device, dtype, enabled, caches, module, *given = args
            context = (
                f"torch.autocast({device!r}, dtype={dtype}, enabled={enabled}, "
                f"cache_enabled={caches})"
            )
        else:
            raise PartitionError(
                f"the model does {name} between its blocks, which takes a graph of its own; "
                f"{_WAYS_OUT}"
            )
        inner = [node for node in module.graph.nodes if node.op == "placeholder"]
        values = dict(zip(inner, given, strict=True))
        return list(self._inline(module, values, (*within, context)))

    def _call_block(self, node: fx.Node, args: Any, within: tuple[str, ...]) -> list[Any]:
        tensors, sizes, index = args
        call = self._recorder.calls[index]
        self._called.add(index)
        fill = {"tensor": tensors, "size": sizes}

        def value_of(slot: Slot) -> Any:
            return fill[slot.kind][slot.index]

        block_args, block_kwargs = filled((call.args, call.kwargs), value_of)
        name = call.name.replace(".", "_")
        made = self._new("call_module", call.name, block_args, block_kwargs, None, name, within)
        assert call.structure is not None
        places = [i for i, leaf in enumerate(call.outputs) if isinstance(leaf, Tensor)]
        return [
            self._leaf(made, call.structure, place, value)
            for place, value in zip(places, node.meta["val"], strict=True)
        ]

    def _leaf(self, made: fx.Node, structure: pytree.TreeSpec, place: int, value: Any) -> fx.Node:
        """Add the nodes that take one tensor out of what a block returned."""
        numbered = pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
        path = _path_to(numbered, place)
        if path is None:
            leaves = self._new(
                "call_function", pytree.tree_leaves, (made,), {}, None, f"{made.name}_leaves", ()
            )
            made, path = leaves, (place,)
        for key in path:
            made = self._new("call_function", operator.getitem, (made, key), {}, None, None, ())
        made.meta["val"] = value
        return made

    def _new(
        self,
        op: str,
        target: Any,
        args: Any,
        kwargs: Any,
        like: fx.Node | None,
        name: str | None,
        within: tuple[str, ...],
    ) -> fx.Node:
        node = self._graph.create_node(op, target, tuple(args), dict(kwargs), name=name)
        node.meta[WITHIN] = within
        if like is not None and "val" in like.meta:
            node.meta["val"] = like.meta["val"]
        return node

    def _require_all_calls(self) -> None:
        for index, call in enumerate(self._recorder.calls):
            if index not in self._called:
                raise PartitionError(
                    f"block {call.name!r} is called but nothing uses what it returns; do not call "
                    f"it, or {_WAYS_OUT}"
                )


def _path_to(numbered: Any, place: int) -> tuple[Any, ...] | None:
    """Find a leaf in tuples, lists and dicts; None where something else is around it."""
    if isinstance(numbered, int):
        return () if numbered == place else None
    pairs: Sequence[tuple[Any, Any]] = ()
    if isinstance(numbered, tuple | list):
        pairs = list(enumerate(numbered))
    elif isinstance(numbered, dict):
        pairs = [(key, value) for key, value in numbered.items() if isinstance(key, str)]
    for key, value in pairs:
        inside = _path_to(value, place)
        if inside is not None:
            return (key, *inside)
    return None


def _attribute(module: nn.Module, target: Any) -> Any:
    for name in str(target).split("."):
        module = getattr(module, name)
    return module


def _own_name(target: str | None) -> str:
    return (target or "").removeprefix("model.")


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _conditions(taken: list[fx.Node], inside: set[int]) -> tuple[tuple[Any, str], ...]:
    """List the conditions on sizes that the model's own Python code has relied on.

    Those that torch's operations have set on tensors without data are left out: on real tensors
    the operations see for themselves.
    """
    tensors = [node.meta["val"] for node in taken if node.op == "placeholder"]
    guards = tensors[0].fake_mode.shape_env.guards
    torch_folder = os.path.dirname(torch.__file__)
    found = []
    for number, guard in enumerate(guards):
        place = getattr(guard.sloc, "framework_loc", None)
        file = getattr(place, "filename", "")
        if number not in inside and not file.startswith(torch_folder):
            line = getattr(place, "lineno", None)
            where = f"{os.path.basename(file)}, line {line}" if file else "unknown place"
            found.append((guard.expr, where))
    return tuple(found)


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]
