"""The state of a pipeline as plain containers, and the way back; see ``Pipeline.state_dict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from delaygrad.errors import CheckpointError
from delaygrad.state_check import loading

if TYPE_CHECKING:
    from delaygrad.runtime.pipeline import Pipeline

_FORMAT = 7


def saved(pipe: Pipeline) -> dict[str, Any]:
    """See ``Pipeline.state_dict``."""
    return {
        "format": _FORMAT,
        "num_stages": pipe.num_stages,
        "method": pipe.method.to_json(),
        "cuts": pipe.cuts,
        "iteration": pipe.iteration,
        "first_batch": pipe._first_batch,
        "stages": {str(k): worker.state_dict() for k, worker in pipe._workers.items()},
    }


def check(pipe: Pipeline, state: dict[str, Any]) -> None:
    """See ``Pipeline.check_state_dict``."""
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"the checkpoint is of another version of delaygrad (format there: "
            f"{state.get('format')}, here: {_FORMAT}); continue with the version that wrote it, or "
            "train again"
        )
    ours = {"num_stages": pipe.num_stages, **_flat(pipe.method.to_json())}
    theirs = {**state, **_flat(state.get("method", {}))}
    for key, here in ours.items():
        if theirs.get(key) != here:
            raise CheckpointError(
                f"the checkpoint is of another pipeline ({key} there: {theirs.get(key)}, "
                f"here: {here})"
            )
    cuts = state.get("cuts")
    if None not in (cuts, pipe.cuts) and cuts != pipe.cuts:
        raise CheckpointError(
            f"the network was cut elsewhere (cuts there: {cuts}, here: {pipe.cuts}); cut it as "
            "there, with cuts=delaygrad.saved_cuts(folder)"
        )
    missing = [k for k in pipe._workers if str(k) not in state["stages"]]
    if missing:
        raise CheckpointError(f"the checkpoint lacks stages (missing: {missing})")
    for k, worker in pipe._workers.items():
        with loading(k):
            worker.stage.check_state_dict(state["stages"][str(k)])


def load(pipe: Pipeline, state: dict[str, Any]) -> None:
    """Load a checked state into the stages, and their links."""
    for k, worker in pipe._workers.items():
        with loading(k):
            worker.load_state_dict(state["stages"][str(k)])


def _flat(method: dict[str, Any]) -> dict[str, Any]:
    """Name each value of a method's identity by its axis."""
    return {f"method.{axis}": value for axis, value in method.items()}
