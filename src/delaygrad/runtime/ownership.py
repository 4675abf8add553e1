"""Two pipelines must not train the same parameter."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from delaygrad.errors import StageError

if TYPE_CHECKING:
    from delaygrad.runtime.pipeline import Pipeline

_OPEN: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def register(pipe: Pipeline) -> None:
    """Note that a pipeline trains its stages from now on."""
    _OPEN.add(pipe)


def require_free(stages: Iterable[nn.Module]) -> None:
    """Raise if another pipeline trains a parameter of these stages.

    A pipeline that is closed, has failed, or was deleted trains nothing.

    Raises:
        StageError: a pipeline does.
    """
    trained = {id(p) for stage in stages for p in stage.parameters() if p.requires_grad}
    if any(_trains(pipe, trained) for pipe in _OPEN):
        gc.collect()  # a pipeline without references may not be deleted yet
    if any(_trains(pipe, trained) for pipe in _OPEN):
        raise StageError(
            "the stages belong to another pipeline, whose batches in flight and optimizers would "
            "be disturbed; call flush and close on it first"
        )


def _trains(pipe: Pipeline, parameters: set[int]) -> bool:
    """Whether a pipeline may still train one of these parameters, given by identity."""
    return not (pipe._closed or pipe._failure) and any(
        id(parameter) in parameters for module in pipe.modules for parameter in module.parameters()
    )
