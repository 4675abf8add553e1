"""What waits for the backward of a batch, and which parameters the backward meets.

        keeps from the forward               backward at the parameters of
Graph   the autograd graph, all activations  the forward ("stash"), or now ("live")
Replay  the stage's inputs                   the forward ("stash"), or now ("live")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from delaygrad.methods.axes.axis import Axis

Weights = Literal["stash", "live"]


@dataclass(frozen=True, repr=False)
class Linearise(Axis):
    """The axis; take ``Graph`` or ``Replay``.

    Args:
        weights: "stash": the backward meets the parameters of its forward, which are kept until
            then. "live": the backward meets the current parameters.

    Raises:
        ValueError: ``weights`` is something else.
    """

    weights: Weights = "stash"

    def __post_init__(self) -> None:
        if self.weights not in ("stash", "live"):
            raise ValueError(f"weights must be 'stash' or 'live' (weights: {self.weights!r})")


@dataclass(frozen=True, repr=False)
class Graph(Linearise):
    """Keep the autograd graph of a batch in flight.

    With ``weights="stash"`` the gradient is exact. With "live" it is the rule of the DDG authors'
    code: old activations meet the current parameters, which is the gradient of no function.

    Args:
        stash_dtype: ``torch.bfloat16`` or ``torch.float16`` for the activations that wait; None
            keeps them as they are.

    Raises:
        ValueError: ``stash_dtype`` is another type.
    """

    stash_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_narrow("stash_dtype", self.stash_dtype)


@dataclass(frozen=True, repr=False)
class Replay(Linearise):
    """Keep the inputs of a batch in flight, and run its forward again before its backward.

    The replay draws the random numbers of the forward, and BatchNorm counts a batch once. With
    ``weights="stash"`` the gradient is that of ``Graph()``, to the last bit. With "live" the replay
    uses the current parameters (features replay), and no older parameters are kept.
    """


def require_narrow(name: str, dtype: torch.dtype | None) -> None:
    """Raise ValueError unless an option is None or a floating type of two bytes."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ValueError(
            f"{name} must be torch.bfloat16 or torch.float16 ({name}: {dtype}); "
            "leave it out to round nothing"
        )
