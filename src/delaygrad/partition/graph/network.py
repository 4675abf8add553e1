"""From a model and a sample to stages: capture, segments of one block each, stages of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from delaygrad.boundary import Tree
from delaygrad.errors import PartitionError
from delaygrad.partition.graph.blocks import choose_blocks
from delaygrad.partition.graph.capture import Glue, capture
from delaygrad.partition.graph.liveness import Extract, Liveness
from delaygrad.partition.graph.source import write_source
from delaygrad.partition.graph.stage import Entrance, GraphStage, Piece, Program
from delaygrad.partition.layers import Layer

__all__ = ["Network"]


class Network:
    """A captured model that can be cut between any two calls of its blocks.

    Args:
        model: any nn.Module; stays as it is.
        sample_inputs: one batch: a tensor, the tuple of the model's arguments, or the dict of its
            keyword arguments.
        blocks: dotted paths of modules that stay whole, beside those that the rule chooses.
    Raises:
        PartitionError: it cannot be captured.
    """

    def __init__(
        self, model: nn.Module, sample_inputs: Tree, blocks: Sequence[str] | None = None
    ) -> None:
        self.model, self.inputs = model, sample_inputs
        self._blocks = choose_blocks(model, blocks)
        self._pieces = _pieces_of(model, self._blocks)
        self._glue = {model.training: capture(model, sample_inputs, self._blocks)}
        self._liveness = {model.training: self._live(self._glue[model.training])}
        self.names = _call_names(self._liveness[model.training])
        """The calls of the blocks, in order: where a cut may fall."""
        self._leftovers = self._place_leftovers()

    def capture_other_mode(self) -> None:
        """Capture the glue also for the mode that the model is not in.

        Raises:
            PartitionError: the blocks are called in another order there.
        """
        mode = not self.model.training
        with in_mode(self.model, mode):
            self._glue[mode] = capture(self.model, self.inputs, self._blocks)
        self._liveness[mode] = self._live(self._glue[mode])
        if _call_names(self._liveness[mode]) != self.names:
            raise PartitionError(
                "the model calls other blocks in training than in evaluation mode; name the module "
                "that decides in blocks=[...], so that it stays whole"
            )

    def segments(self, *, outputs_as_list: bool = True) -> list[Layer]:
        """List the pieces between all places where a cut may fall, as modules that can run.

        Args:
            outputs_as_list: the last returns the list of the model's outputs, not their structure.
        """
        stages = self._build(list(range(1, len(self.names))), outputs_as_list=outputs_as_list)
        return [Layer(name, stage) for name, stage in zip(self.names, stages, strict=True)]

    def stages(self, starts: Sequence[int]) -> list[GraphStage]:
        """Build the stages.

        Args:
            starts: number of the first call of stages 1 ... K-1.
        """
        return self._build(starts, outputs_as_list=False)

    def _build(self, starts: Sequence[int], *, outputs_as_list: bool) -> list[GraphStage]:
        extracts = {}
        for mode, liveness in self._liveness.items():
            gaps = liveness.gaps()
            extracts[mode] = liveness.extracts([gaps[start - 1] for start in starts])
        bounds = [0, *starts, len(self.names)]
        num_stages = len(bounds) - 1
        stages = []
        for k in range(num_stages):
            ours = {mode: found[k] for mode, found in extracts.items()}
            first, end = bounds[k], bounds[k + 1]
            stages.append(
                GraphStage(
                    self._held(ours, range(first, end)),
                    [self._program(ours, k == 0, k == num_stages - 1, outputs_as_list)],
                    blocks=self.names[first:end],
                    training=self.model.training,
                )
            )
        return stages

    def _program(
        self, extracts: dict[bool, Extract], is_first: bool, is_last: bool, outputs_as_list: bool
    ) -> Program:
        texts = {m: write_source(e, is_last=is_last) for m, e in extracts.items()}
        (some, *_) = texts
        glue = self._glue[some]
        entrance = None
        if is_first:
            conditions = [c for found in self._glue.values() for c in found.conditions]
            entrance = Entrance(glue.inputs, glue.shapes, tuple(conditions))
        return Program(
            sources={mode: texts.get(mode, texts[some]) for mode in (True, False)},
            entrance=entrance,
            outputs=glue.outputs if is_last and not outputs_as_list else None,
        )

    def _held(self, extracts: dict[bool, Extract], calls: range) -> list[Piece]:
        """List what a stage holds: what it uses, the same under other names, and leftovers."""
        used: set[int] = set()
        constants = {}
        for mode, extract in extracts.items():
            for node in extract.body:
                target = str(node.target)
                if node.op == "get_attr" and target in self._glue[mode].constants:
                    constants[target] = self._glue[mode].constants[target]
                elif node.op in ("get_attr", "call_module"):
                    used.add(id(self._pieces[target].held))
        pieces = [
            piece
            for path, piece in self._pieces.items()
            if piece.kind != "shell"
            and (id(piece.held) in used or self._leftovers.get(path) in calls)
        ]
        around = {path.rpartition(".")[0] for path in (p.path for p in pieces)}
        around |= {".".join(path.split(".")[:n]) for path in around for n in range(path.count("."))}
        pieces += [p for p in self._pieces.values() if p.kind == "shell" and p.path in around]
        place = len(self._pieces)
        return pieces + [Piece(path, place, "constant", held) for path, held in constants.items()]

    def _live(self, glue: Glue) -> Liveness:
        owned = {path for path, piece in self._pieces.items() if piece.kind != "constant"}
        return Liveness(glue.graph, frozenset(owned))

    def _place_leftovers(self) -> dict[str, int]:
        """Give what no call uses to the call before it, in the model's order."""
        calls: dict[int, int] = {}
        for liveness in self._liveness.values():
            for number, call in enumerate(liveness.calls):
                calls.setdefault(id(self._pieces[str(call.target)].held), number)
        read = {
            id(self._pieces[str(node.target)].held)
            for glue in self._glue.values()
            for node in glue.graph.nodes
            if node.op == "get_attr" and node.target in self._pieces and node.users
        }
        leftovers, before = {}, 0
        for path, piece in self._pieces.items():
            if piece.kind == "shell":
                continue
            if id(piece.held) in calls:
                before = calls[id(piece.held)]
            elif id(piece.held) not in read:
                leftovers[path] = before
        return leftovers


def _pieces_of(model: nn.Module, blocks: dict[str, nn.Module]) -> dict[str, Piece]:
    """List all that makes up the model, by path, in the order of its state_dict."""
    found: list[tuple[str, str, Any]] = []

    def open_(module: nn.Module, prefix: str) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.append((prefix + name, "parameter", parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                constant = name in module._non_persistent_buffers_set
                found.append((prefix + name, "constant" if constant else "buffer", buffer))
        for name, child in module._modules.items():
            if child is None:
                continue
            if prefix + name in blocks:
                found.append((prefix + name, "module", child))
            else:
                found.append((prefix + name, "shell", child.training))
                open_(child, f"{prefix}{name}.")

    open_(model, "")
    return {path: Piece(path, place, kind, held) for place, (path, kind, held) in enumerate(found)}


def _call_names(liveness: Liveness) -> list[str]:
    """Name the calls by their blocks; a further call of one block by its number."""
    counts: dict[str, int] = {}
    names = []
    for call in liveness.calls:
        path = str(call.target)
        counts[path] = counts.get(path, 0) + 1
        names.append(path if counts[path] == 1 else f"{path} (call {counts[path]})")
    return names


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
