"""From a model and a sample to stages: capture, segments of one block each, stages of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from delaygrad.boundary import Tree
from delaygrad.errors import PartitionError
from delaygrad.partition.graph.blocks import choose_blocks
from delaygrad.partition.graph.capture import capture
from delaygrad.partition.graph.liveness import Extract, Liveness
from delaygrad.partition.graph.source import write_source
from delaygrad.partition.graph.stage import Entrance, GraphStage, Piece, Program
from delaygrad.partition.graph.ties import TiedParameter, owned_elsewhere, tie, with_parameters
from delaygrad.partition.graph.undisturbed import in_mode
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
        self._liveness = {model.training: self._live(model.training)}
        self.names = _call_names(self._liveness[model.training])
        """The calls of the blocks, in order: where a cut may fall."""

    def capture_other_mode(self) -> None:
        """Capture the glue also for the mode that the model is not in.

        Raises:
            PartitionError: the blocks are called in another order there.
        """
        mode = not self.model.training
        with in_mode(self.model, mode):
            self._glue[mode] = capture(self.model, self.inputs, self._blocks)
        self._liveness[mode] = self._live(mode)
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

    def ties(self, starts: Sequence[int]) -> list[TiedParameter]:
        """List the parameters that several stages would use.

        Args:
            starts: number of the first call of stages 1 ... K-1.
        """
        mode = self.model.training
        gaps = self._liveness[mode].gaps()
        places = [gaps[start - 1] for start in starts]
        return list(
            tie(self._glue[mode].graph, places, self._blocks, self._parameters())[2].values()
        )

    def _parameters(self) -> dict[str, Any]:
        return {p.path: p.held for p in self._pieces.values() if p.kind == "parameter"}

    def _build(self, starts: Sequence[int], *, outputs_as_list: bool) -> list[GraphStage]:
        extracts: dict[bool, list[Extract]] = {}
        ties: dict[int, TiedParameter] = {}
        for mode, liveness in self._liveness.items():
            gaps = liveness.gaps()
            graph, places = self._glue[mode].graph, [gaps[start - 1] for start in starts]
            if not outputs_as_list:  # segments are for measuring; they share
                graph, places, found = tie(graph, places, self._blocks, self._parameters())
                if extracts and found != ties:
                    raise PartitionError(
                        "stages share other parameters in training than in evaluation mode "
                        f"({', '.join(t.path for t in {**ties, **found}.values())}); name the "
                        "module that reads them in blocks=[...], or cut elsewhere"
                    )
                ties = found
            extracts[mode] = self._live(mode, graph).extracts(places)
        bounds = [0, *starts, len(self.names)]
        last = len(starts)
        by_stage = [{mode: found[k] for mode, found in extracts.items()} for k in range(last + 1)]
        return [
            GraphStage(
                pieces,
                [self._program(ours, k == 0, k == last, outputs_as_list, bool(ties))],
                blocks=self.names[bounds[k] : bounds[k + 1]],
                training=self.model.training,
                ties=ties.values(),
                borrowed=lent,
            )
            for k, (ours, (pieces, lent)) in enumerate(
                zip(by_stage, self._held(by_stage, ties), strict=True)
            )
        ]

    def _program(
        self,
        extracts: dict[bool, Extract],
        is_first: bool,
        is_last: bool,
        outputs_as_list: bool,
        has_ties: bool,
    ) -> Program:
        if is_last and outputs_as_list:  # what a measurement can hand on
            extracts = {mode: extract.tensors_only() for mode, extract in extracts.items()}
        texts = {
            mode: write_source(e, is_first=is_first, is_last=is_last, has_ties=has_ties)
            for mode, e in extracts.items()
        }
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

    def _held(
        self, extracts: Sequence[dict[bool, Extract]], ties: dict[int, TiedParameter]
    ) -> list[tuple[list[Piece], dict[str, str]]]:
        """List what each stage holds: what it uses, and what no stage uses but the model has.

        Something that the model holds under two names is held under both. What no stage uses goes
        to the stage of what comes before it in the model. Beside it: the parameters that another
        stage owns, with their names there.
        """
        users: dict[int, set[int]] = {}
        held: list[list[Piece]] = [[] for _ in extracts]
        lent: list[dict[str, str]] = [{} for _ in extracts]
        for k, found in enumerate(extracts):
            constants: dict[str, Piece] = {}
            for mode, extract in found.items():
                for node in extract.body:
                    target = str(node.target)
                    if node.op == "get_attr" and target in self._glue[mode].constants:
                        tensor = self._glue[mode].constants[target]
                        constants[target] = Piece(target, len(self._pieces), "constant", tensor)
                    elif node.op in ("get_attr", "call_module"):
                        users.setdefault(id(self._piece_at(target).held), set()).add(k)
            held[k] += constants.values()
        last = 0
        for piece in self._pieces.values():
            if piece.kind == "shell":
                continue
            stages = sorted(users.get(id(piece.held), {last}))
            last = stages[0]
            for k in stages:
                elsewhere = owned_elsewhere(piece.held, k, ties) if piece.kind == "module" else {}
                lent[k] |= {f"{piece.path}.{name}": t.path for name, t in elsewhere.items()}
                if elsewhere:
                    empty = with_parameters(piece.held, dict.fromkeys(elsewhere))
                    held[k].append(replace(piece, held=empty))
                else:
                    held[k].append(piece)
        return [
            (found + self._around(found), names) for found, names in zip(held, lent, strict=True)
        ]

    def _piece_at(self, path: str) -> Piece:
        """Find a piece, or the block that holds a tensor."""
        while path not in self._pieces:
            path = path.rpartition(".")[0]
        return self._pieces[path]

    def _around(self, pieces: Sequence[Piece]) -> list[Piece]:
        """List the opened modules around what a stage holds, for their modes."""
        around = set()
        for piece in pieces:
            names = piece.path.split(".")
            around |= {".".join(names[:count]) for count in range(1, len(names))}
        return [p for p in self._pieces.values() if p.kind == "shell" and p.path in around]

    def _live(self, mode: bool, graph: fx.Graph | None = None) -> Liveness:
        glue = self._glue[mode]
        shared = {path for path, piece in self._pieces.items() if piece.kind == "constant"}
        return Liveness(graph or glue.graph, frozenset(shared | set(glue.constants)))


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
