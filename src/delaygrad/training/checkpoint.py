"""Checkpoints: a folder per iteration, a safetensors file per stage, nothing that can run code.

    checkpoints/iteration-00000400/stage0.safetensors
                                   stage1.safetensors

The tensors are stored as tensors; everything around them (numbers, names, nesting) is JSON in the
file's header. A folder is written under another name, synchronised to disk, and renamed when every
stage is in it, so that a folder with its final name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from delaygrad.boundary import dense, from_row_major, to_row_major
from delaygrad.errors import CheckpointError

_FOLDER = "iteration-{:08d}"
_HEADER = "delaygrad"


def write_stage(checkpoints: Path, iteration: int, stage_index: int, state: dict[str, Any]) -> None:
    """Write one stage's state to the unfinished checkpoint of an iteration.

    Raises:
        CheckpointError: the file cannot be written; what was saved before is untouched.
    """
    folder = _unfinished(checkpoints, iteration)
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_take_apart(state, "state", tensors))
    path = folder / f"stage{stage_index}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={_HEADER: header})
        _synchronise(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a checkpoint ({path}): {error}") from error


def finish(checkpoints: Path, iteration: int, keep: int) -> None:
    """Give the checkpoint its final name, once all stages are in it, and drop the oldest ones.

    Every rank may call it: on a shared disk the first one acts, on disks of their own each does.
    """
    final = checkpoints / _FOLDER.format(iteration)
    try:
        if final.exists():
            shutil.rmtree(final)
        _synchronise(_unfinished(checkpoints, iteration))
        os.rename(_unfinished(checkpoints, iteration), final)
        _synchronise(checkpoints)
    except FileNotFoundError:
        pass  # another rank on this disk was first
    for old in find(checkpoints)[:-keep]:
        shutil.rmtree(checkpoints / _FOLDER.format(old), ignore_errors=True)


def find(checkpoints: Path) -> list[int]:
    """List the iterations of the finished checkpoints, oldest first."""
    names = (path.name for path in checkpoints.glob("iteration-*") if path.is_dir())
    return sorted(int(name.removeprefix("iteration-")) for name in names if name[-1].isdigit())


def read_stage(checkpoints: Path, iteration: int, stage_index: int) -> dict[str, Any]:
    """Read one stage's state.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    path = checkpoints / _FOLDER.format(iteration) / f"stage{stage_index}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            state = _put_together(header, file)
    except FileNotFoundError:
        raise CheckpointError(f"a checkpoint file is missing ({path})") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"a checkpoint file is corrupt ({path}): {error}; remove its folder to continue from "
            "the checkpoint before"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"a checkpoint file is corrupt ({path}): no state in it")
    return state


def _unfinished(checkpoints: Path, iteration: int) -> Path:
    return checkpoints / (_FOLDER.format(iteration) + ".unfinished")


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_apart(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their names, and what JSON does not know by what it knows."""
    if isinstance(value, Tensor):
        view, order = to_row_major(dense(value.detach()))
        tensors[path] = view.clone()
        return {"tensor": path, "order": order}
    if isinstance(value, dict):
        items = [[key, _take_apart(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        items = [_take_apart(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"cannot save a {type(value).__name__} ({path}); optimizer states may hold tensors, "
        "numbers, strings, and lists, tuples and dicts of these"
    )


def _put_together(node: Any, file: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return from_row_major(file.get_tensor(node["tensor"]), node["order"])
    ((kind, items),) = node.items()
    if kind == "dict":
        return {key: _put_together(item, file) for key, item in items}
    parts = [_put_together(item, file) for item in items]
    return tuple(parts) if kind == "tuple" else parts
