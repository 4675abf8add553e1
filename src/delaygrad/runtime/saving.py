"""Save a pipeline and the user's own state in a folder, and continue from the newest of them.

Every rank makes the same calls. The folder may be on a disk that all ranks share, or each may have
its own. A checkpoint of one runtime loads in the other.
"""

from __future__ import annotations

import secrets
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from delaygrad import checkpoint
from delaygrad.errors import (
    CheckpointError,
    DamagedCheckpointError,
    DelaygradWarning,
    PartitionError,
)
from delaygrad.runtime.resplit import resplit
from delaygrad.state_check import loading

if TYPE_CHECKING:
    from delaygrad.runtime.pipeline import Pipeline


def save(pipe: Pipeline, folder: Path, extra: dict[str, Any], keep: int) -> None:
    """See ``Pipeline.save``."""
    if keep < 1:
        raise ValueError(f"at least one checkpoint must stay (keep: {keep})")
    state, iteration = pipe.state_dict(), pipe.iteration
    newest = max(checkpoint.find(folder), default=-1)
    told = pipe._share([iteration, newest, secrets.token_hex(8)])
    iterations = {of_rank for of_rank, _, _ in told}
    if len(iterations) > 1:
        raise CheckpointError(
            f"the ranks save at different iterations ({sorted(iterations)}); all ranks must make "
            "the same calls"
        )
    newest = max(found for _, found, _ in told)
    if newest > iteration:
        raise CheckpointError(
            f"the folder holds a later checkpoint ({folder}, iteration there: {newest}, here: "
            f"{iteration}), which load_newest would take; call load_newest before training, or "
            "choose another folder"
        )
    stages = state.pop("stages").items()
    states = {
        _place(pipe, int(k)): {**state, "stage": of_stage, "extra": extra} for k, of_stage in stages
    }
    # Of one call, alike on all ranks.
    about = {"saved": told[0][2], "cuts": pipe.cuts, "copies": [pipe.num_stages, pipe.num_replicas]}
    checkpoint.write(folder, iteration, states, pipe._share, about=about, keep=keep)


def load_newest(pipe: Pipeline, folder: Path) -> dict[str, Any] | None:
    """See ``Pipeline.load_newest``."""
    own = {_place(pipe, k): k for k in pipe._workers}
    other = _stages_of_another(pipe, folder)
    newest = checkpoint.find_newest(folder, other or own, pipe._share)
    if newest is None:
        return None
    cuts = newest.about.get("cuts")
    if not other and None not in (cuts, pipe.cuts) and cuts != pipe.cuts:
        other = {k: k for k in range(pipe.num_stages)}
    found: list[dict[str, Any]] = []

    def read() -> None:
        states = {
            str(k): checkpoint.read_stage(folder, newest.iteration, place)
            for place, k in (other or own).items()
        }
        state = {**next(iter(states.values()))}
        state["stages"] = {k: of_stage["stage"] for k, of_stage in states.items()}
        if other:
            with loading(min(own.values())):
                state = resplit(pipe._workers, state, pipe.num_stages, pipe.cuts)
        pipe.check_state_dict(state)
        found.append(state)

    checkpoint.all_do(pipe._share, read)  # a rank that cannot load stops all, before any has
    (state,) = found
    pipe.load_state_dict(state)
    checkpoint.rewind(folder, newest.iteration)
    pipe._share(None)  # nothing new is written before
    for note in newest.notes(folder):
        warnings.warn(note, DelaygradWarning, stacklevel=3)  # who calls load_newest
    return dict(state.get("extra") or {})


def _place(pipe: Pipeline, stage_index: int) -> int:
    """Return the number of a stage's file: those of the first replica come first."""
    return pipe.replica * pipe.num_stages + stage_index


def _stages_of_another(pipe: Pipeline, folder: Path) -> dict[int, int]:
    """Return the first replica's stages, by file, if the newest checkpoint has other numbers.

    Raises:
        CheckpointError: it has, and a rank's folder does not hold the files of all.
    """
    newest = max(checkpoint.find(folder), default=None)
    held = [] if newest is None else checkpoint.stages_in(folder, newest)
    told = pipe._share(held)
    found = {k for of_rank in told for k in of_rank}
    if len(found) in (0, pipe.num_stages * pipe.num_replicas):
        return {}
    about: dict[str, Any] = {}
    if newest is not None and held:
        with suppress(CheckpointError):
            about = checkpoint.read_about(folder, newest, held[0])
    copies = pipe._share(about.get("copies"))
    stages, replicas = next(filter(None, copies), (0, 0))
    if len(found) != stages * replicas:  # files were lost
        return {}
    if any(not set(range(stages)) <= set(of_rank) for of_rank in told):
        raise CheckpointError(
            f"the checkpoint has other numbers of stages and replicas (there: {stages} x "
            f"{replicas}, here: {pipe.num_stages} x {pipe.num_replicas}), and not every rank finds "
            f"the files of all stages ({folder}); put them where every rank reads them"
        )
    return {k: k for k in range(stages)}


def saved_cuts(folder: str | Path) -> list[str] | None:
    """Return where the network of a folder's newest checkpoint was cut, for ``split``.

    A continued program then has the same stages as before, and measures nothing.

    Args:
        folder: of ``pipe.save``.

    Returns:
        The first block of each stage but the first; None if there is no checkpoint, which leaves
        the choice to ``split``.

    Example:
        >>> saved_cuts("no such folder") is None
        True
    """
    folder = Path(folder)
    for iteration in reversed(checkpoint.find(folder)):
        for stage in checkpoint.stages_in(folder, iteration):
            with suppress(DamagedCheckpointError):
                cuts: list[str] | None = checkpoint.read_about(folder, iteration, stage).get("cuts")
                return cuts
    return None


def gather(pipe: Pipeline) -> dict[str, Tensor]:
    """Collect the whole network's ``state_dict`` on rank 0; all ranks call it.

    The live parameters and buffers, under the names that the stages give them: those of the model,
    if ``split`` made the stages. Copies, on the CPU. Call ``flush`` before, so that every stage has
    used every batch.

    Returns:
        The tensors by name; {} on other ranks.

    Raises:
        PartitionError: two stages hold different tensors of one name, or a ``state_dict`` holds
            something else than tensors.
        TransportError: another rank is gone or late.

    Example:
        >>> import torch, delaygrad as dg
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> pipe = dg.LocalPipeline(
        ...     dg.split(model, 2, cuts=["2"]),
        ...     nn.functional.cross_entropy,
        ...     lambda params: torch.optim.SGD(params, lr=0.1),
        ... )
        >>> model.load_state_dict(dg.gather(pipe))
        <All keys matched successfully>
    """
    own = [_tensors_of(module.state_dict()) for module in pipe.modules]
    lent = [getattr(module, "borrowed", {}) for module in pipe.modules]
    told = pipe._share([*zip(map(list, own), lent, strict=True)])
    whole: dict[str, Tensor] = {}
    stages = [of_stage for of_rank in told for of_stage in of_rank]
    found = pipe._gather_tensors(own)
    for stage_index, (of_stage, (names, _)) in enumerate(zip(found, stages, strict=False)):
        for name in names:
            tensor = of_stage[name]
            if name in whole and not whole[name].equal(tensor):
                raise PartitionError(
                    f"two stages hold different tensors of one name (name: {name}, second stage: "
                    f"{stage_index}); make the stages with split, or gather them under names of "
                    "your own"
                )
            whole[name] = tensor
    for _, borrowed in stages:
        whole |= {name: whole[owner] for name, owner in borrowed.items() if owner in whole}
    return whole


def _tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise PartitionError(
                f"a state_dict holds something else than a tensor (name: {name}, type: "
                f"{type(value).__name__}); save it with pipe.save instead"
            )
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
