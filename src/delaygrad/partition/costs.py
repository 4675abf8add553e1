"""What layers cost: seconds, and bytes that wait, travel and stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from delaygrad.partition.graph.ties import TiedParameter

__all__ = [
    "LayerCost",
    "Seconds",
    "Storage",
    "join",
    "rescaled",
    "stages_of",
    "with_seconds",
    "without_borrowed",
]

_ADDED = (
    "forward_s", "backward_s", "update_s", "parameter_bytes", "trainable_bytes", "optimizer_bytes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long one batch takes.

    Args:
        forward_s: seconds.
        backward_s: seconds; 0 where no gradient flows (frozen layers, integer outputs).
        update_s: seconds of the optimizer's step; 0 where no optimizer was given.
    Example:
        >>> Seconds(forward_s=1.0, backward_s=2.0).total_s
        3.0
    """

    forward_s: float
    backward_s: float
    update_s: float = 0.0

    def times(self) -> dict[str, Any]:
        """Return forward, backward and update by their names."""
        return {name: getattr(self, name) for name in ("forward_s", "backward_s", "update_s")}

    @property
    def total_s(self) -> float:
        """Seconds of forward, backward and update."""
        return self.forward_s + self.backward_s + self.update_s

    def slowed(self, factor: float) -> Seconds:
        """Return the same work where everything takes ``factor`` times as long."""
        return Seconds(
            forward_s=self.forward_s * factor,
            backward_s=self.backward_s * factor,
            update_s=self.update_s * factor,
        )


@dataclass(frozen=True)
class Storage:
    """One block of memory that a graph keeps: its bytes, and those of a copy in a 2-byte type."""

    num_bytes: int
    rounded_bytes: int


@dataclass(frozen=True, kw_only=True)
class LayerCost(Seconds):
    """What one layer, or several in a row, cost for one batch.

    Args:
        name: dotted path of the (first) layer.
        input_bytes: size of what arrives.
        output_bytes: size of what goes on: what a boundary after it would send.
        gradient_bytes: size of the error gradient that a boundary after it would send back.
        parameter_bytes: size of the parameters; a tensor used twice counts once.
        trainable_bytes: the same of those that are not frozen.
        optimizer_bytes: size of the optimizer's state after a step; 0 where none was given.
        saved: what the graph keeps until the backward, without parameters and buffers, by the
            number of the storage: two layers that keep one storage show one number.
        outputs: the storages of the outputs, by the same numbers.
    """

    name: str
    input_bytes: int = 0
    output_bytes: int = 0
    gradient_bytes: int = 0
    parameter_bytes: int = 0
    trainable_bytes: int = 0
    optimizer_bytes: int = 0
    saved: Mapping[int, Storage] = field(default_factory=dict, repr=False)
    outputs: Mapping[int, Storage] = field(default_factory=dict, repr=False)

    @property
    def saved_bytes(self) -> int:
        """Size of what the graph keeps until the backward."""
        return sum(storage.num_bytes for storage in self.saved.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        hidden = {"saved", "outputs"}
        plain = {name: value for name, value in vars(self).items() if name not in hidden}
        return {**plain, "saved_bytes": self.saved_bytes}


def without_borrowed(cost: LayerCost, borrowed: Sequence[TiedParameter]) -> LayerCost:
    """Leave out parameters that another layer owns: they have one place and one optimizer state."""
    held = sum(tie.num_bytes for tie in borrowed)
    trained = sum(tie.num_bytes for tie in borrowed if tie.trained)
    left = 1 - trained / cost.trainable_bytes if cost.trainable_bytes else 1
    return replace(
        cost,
        parameter_bytes=cost.parameter_bytes - held,
        trainable_bytes=cost.trainable_bytes - trained,
        optimizer_bytes=round(cost.optimizer_bytes * left),
    )


def join(costs: Sequence[LayerCost]) -> LayerCost:
    """Add up layers that stay together.

    Args:
        costs: of consecutive layers, at least one.
    Example:
        >>> block = Storage(8, 4)
        >>> first = LayerCost(name="0", forward_s=1.0, backward_s=2.0, saved={0: block})
        >>> second = LayerCost(
        ...     name="1", forward_s=1.0, backward_s=1.0, saved={0: block, 1: block}
        ... )
        >>> both = join([first, second])
        >>> both.name, both.total_s, both.saved_bytes
        ('0', 5.0, 16)
    """
    sums: dict[str, Any] = {name: sum(getattr(cost, name) for cost in costs) for name in _ADDED}
    return LayerCost(
        name=costs[0].name,
        input_bytes=costs[0].input_bytes,
        output_bytes=costs[-1].output_bytes,
        gradient_bytes=costs[-1].gradient_bytes,
        saved={number: storage for cost in costs for number, storage in cost.saved.items()},
        outputs=costs[-1].outputs,
        **sums,
    )


def stages_of(costs: Sequence[LayerCost], cuts: Sequence[int]) -> list[LayerCost]:
    """Join the layers of each stage.

    Args:
        costs: of each layer.
        cuts: index of the first layer of stages 1 … K-1.
    """
    return [join(costs[first:end]) for first, end in pairwise([0, *cuts, len(costs)])]


def with_seconds(costs: Sequence[LayerCost], measured: Sequence[Seconds]) -> list[LayerCost]:
    """Replace the seconds of stages, summed over layers, by those of the stages as wholes."""
    return [replace(cost, **seconds.times()) for cost, seconds in zip(costs, measured, strict=True)]


def rescaled(
    costs: Sequence[LayerCost], cuts: Sequence[int], measured: Sequence[Seconds]
) -> list[LayerCost]:
    """Correct the seconds of layers by those of the stages that they make up.

    Args:
        costs: of each layer.
        cuts: index of the first layer of stages 1 … K-1.
        measured: of each stage as a whole.
    Returns:
        costs: the layers of each stage now add up to what was measured, in the old proportions.
    Example:
        >>> layers = [LayerCost(name=n, forward_s=1.0, backward_s=3.0) for n in "ab"]
        >>> stage = Seconds(forward_s=1.0, backward_s=9.0)
        >>> [layer.total_s for layer in rescaled(layers, [], [stage])]
        [5.0, 5.0]
    """
    corrected = []
    bounds = pairwise([0, *cuts, len(costs)])
    for (first, end), stage in zip(bounds, measured, strict=True):
        predicted = vars(join(costs[first:end]))
        for cost in costs[first:end]:
            seconds: dict[str, Any] = {
                name: _share(getattr(cost, name), predicted[name], value)
                for name, value in stage.times().items()
            }
            corrected.append(replace(cost, **seconds))
    return corrected


def _share(part: float, whole: float, measured: float) -> float:
    return measured * part / whole if whole > 0 else part
