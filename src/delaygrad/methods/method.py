"""What a method is: a value on each of a few axes.

    axis             question                                               values
    schedule         which batch goes forward, which backward, when?        locked, unlocked, flush
    forward_weights  at which parameters does the forward compute?          Live, Predicted
    linearise        what is stashed, with which parameters?                Graph, Replay
    error_gradient   where does the stage's error gradient come from?       Received, Shrunk,
                                                                            Synthetic, LocalHead
    boundary_dtype   in which type do tensors cross boundaries?
    update           what happens around the optimizer's step?              a chain of Updates
    loss_scale       by what is the loss multiplied, for float16?           LossScale

The optimizer is the user's. A published method is a function in its own file, beside its paper,
that returns a ``Method``; ``published`` puts it into ``METHODS``, from which the command line takes
its choices.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ParamSpec

import torch

from delaygrad.methods.axes import (
    ClipNorm,
    ErrorGradient,
    ForwardWeights,
    Graph,
    Linearise,
    Live,
    LossScale,
    Predicted,
    Received,
    Replay,
    Update,
    plain,
    require_narrow,
)
from delaygrad.schedule import Schedule

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True, repr=False)
class Method:
    """A rule to train by; immutable. Compare two with ``==``.

    Args:
        name: what the literature calls it, in lower case.
        schedule: which batch each stage takes forward and backward in each tick.
        forward_weights: the parameters at which the forward computes.
        linearise: what is stashed until the backward, and at which parameters that computes.
        error_gradient: where a stage's error gradient comes from.
        boundary_dtype: ``torch.bfloat16`` or ``torch.float16`` for float32 tensors that cross
            boundaries; None sends them as they are.
        update: transformations of every stage's update, in order.
        loss_scale: of float16 under autocast; None does not scale.
        title: one line for people; None is the name.

    Raises:
        ValueError: two values do not go together.

    Example:
        >>> from delaygrad.schedule import locked
        >>> Method(name="mine", schedule=locked(micro_batches=4), linearise=Replay())
        Method(name='mine', schedule=locked(micro_batches=4), linearise=Replay())
    """

    name: str
    schedule: Schedule
    forward_weights: ForwardWeights = Live()
    linearise: Linearise = Graph()
    error_gradient: ErrorGradient = Received()
    boundary_dtype: torch.dtype | None = None
    update: tuple[Update, ...] = ()
    loss_scale: LossScale | None = None
    title: str | None = field(default=None, compare=False)
    complete: Callable[[int, int | None], Method] | None = field(default=None, compare=False)
    """Decides options left open, by the number of stages and the batch size."""
    call: str | None = field(default=None, compare=False)
    """How a published method was made, for people; ``published`` sets it."""

    def __post_init__(self) -> None:
        require_narrow("boundary_dtype", self.boundary_dtype)
        predicts = isinstance(self.forward_weights, Predicted)
        if predicts and self.linearise == Graph(weights="live"):
            raise ValueError(
                "a graph with live weights has no predicted ones to keep; take Replay or "
                'weights="stash"'
            )
        if self.error_gradient.is_local and (predicts or self.schedule.micro_batches > 1):
            raise ValueError(
                "with a local error gradient every update is immediate; leave out predictions and "
                f"micro-batches (forward_weights: {self.forward_weights}, micro_batches: "
                f"{self.schedule.micro_batches})"
            )
        if self.error_gradient.is_local and self.loss_scale is not None:
            raise ValueError(
                "with a local error gradient there is no loss to scale; leave out loss_scale"
            )
        if sum(isinstance(update, ClipNorm) for update in self.update) > 1:
            raise ValueError(f"a chain clips once (update: {self.update}); leave out one ClipNorm")

    def __repr__(self) -> str:
        if self.call is not None:
            return self.call
        chosen = [
            f"{axis.name}={getattr(self, axis.name)!r}"
            for axis in fields(self)
            if axis.compare and getattr(self, axis.name) != axis.default
        ]
        return f"Method({', '.join(chosen)})"

    def to_json(self) -> dict[str, Any]:
        """Return what ranks agree on and checkpoints record: the name and every axis value."""
        return {axis.name: plain(getattr(self, axis.name)) for axis in fields(self) if axis.compare}

    def delay(self, stage_index: int, num_stages: int) -> int:
        """Return how many updates old a gradient is, at most, when the stage applies it."""
        is_last = stage_index == num_stages - 1
        if self.error_gradient.is_local and not is_last:
            return 0
        return self.schedule.delay(stage_index, num_stages)

    def for_stages(self, num_stages: int, batch_size: int | None = None) -> Method:
        """Return the method with the options that the number of stages decides.

        Args:
            num_stages: K.
            batch_size: samples; None is not known.
        """
        return self if self.complete is None else self.complete(num_stages, batch_size)

    def with_options(
        self, clip_norm: float | ClipNorm | None, loss_scale: float | LossScale | None
    ) -> Method:
        """Return the method with what pipelines take beside it; None leaves it as it is.

        Raises:
            ValueError: a number is out of range, or the method clips or scales already.
        """
        changed: dict[str, Any] = {}
        if clip_norm is not None:
            clip = clip_norm if isinstance(clip_norm, ClipNorm) else ClipNorm(clip_norm)
            changed["update"] = (clip, *self.update)
        if loss_scale is not None:
            if self.loss_scale is not None:
                raise ValueError("the method has a loss_scale already; leave out one")
            scale = loss_scale if isinstance(loss_scale, LossScale) else LossScale(loss_scale)
            changed["loss_scale"] = scale
        return replace(self, **changed, call=None) if changed else self

    @property
    def clips(self) -> ClipNorm | None:
        """The ``ClipNorm`` of the chain; None if there is none."""
        return next((update for update in self.update if isinstance(update, ClipNorm)), None)

    @property
    def recompute(self) -> bool:
        """Whether a batch in flight keeps its inputs only."""
        return isinstance(self.linearise, Replay)

    @property
    def stash_dtype(self) -> torch.dtype | None:
        """The type in which stashed graphs keep their activations; None is that of the graph."""
        return self.linearise.stash_dtype if isinstance(self.linearise, Graph) else None


METHODS: dict[str, Callable[..., Method]] = {}
"""The published methods, by the name that the command line takes."""


def published(title: str) -> Callable[[Callable[P, Method]], Callable[P, Method]]:
    """Register a function that makes a published method; its arguments are the options.

    Args:
        title: of the method, one line for people.
    """

    def register(make: Callable[P, Method]) -> Callable[P, Method]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def named(*args: P.args, **kwargs: P.kwargs) -> Method:
            given = signature.bind(*args, **kwargs).arguments
            defaults = {name: option.default for name, option in signature.parameters.items()}
            chosen = [
                f"{name}={value!r}" for name, value in given.items() if value != defaults[name]
            ]
            call = f"{make.__name__}({', '.join(chosen)})"
            return replace(make(*args, **kwargs), title=title, call=call)

        METHODS[make.__name__.lower()] = named
        return named

    return register
