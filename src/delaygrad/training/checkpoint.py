"""Checkpoints: a folder per iteration, a safetensors file per stage, nothing that can run code.

    checkpoints/iteration-00000400/stage0.safetensors   stage0.sha256
                                   stage1.safetensors   stage1.sha256

The tensors are stored as tensors; everything around them (numbers, names, nesting) is JSON in the
file's header. The digests, which ``sha256sum --check`` understands, tell a damaged file, since
safetensors itself has none. A folder is written under another name, synchronised to disk, and
renamed when every stage is in it, so that a folder with its final name is complete.
"""

from __future__ import annotations

import hashlib
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

_FOLDER, _UNFINISHED = "iteration-{:08d}", ".unfinished"
_STAGE, _DIGEST = "stage{}.safetensors", "stage{}.sha256"
_HEADER = "delaygrad"
_PLAIN = bool | int | float | str | None


def write_stage(checkpoints: Path, iteration: int, stage_index: int, state: dict[str, Any]) -> None:
    """Write one stage's state to the unfinished checkpoint of an iteration.

    Raises:
        CheckpointError: the file cannot be written; what was saved before is untouched.
    """
    folder = _unfinished(checkpoints, iteration)
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_take_apart(state, "state", tensors))
    path, digest = folder / _STAGE.format(stage_index), folder / _DIGEST.format(stage_index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={_HEADER: header})
        digest.write_text(f"{_sha256(path)}  {path.name}\n", encoding="utf-8")
        synchronise(path)
        synchronise(digest)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # leaves room on a full disk
        raise CheckpointError(
            f"cannot write a checkpoint ({path}): {error}; those written before are kept"
        ) from error


def finish(checkpoints: Path, iteration: int) -> None:
    """Give the checkpoint its final name, once all stages are in it.

    Every rank may call it: on a shared disk the first one acts, on disks of their own each does.

    Raises:
        CheckpointError: the disk refuses.
    """
    unfinished = _unfinished(checkpoints, iteration)
    try:
        synchronise(unfinished)
        os.rename(unfinished, checkpoints / _FOLDER.format(iteration))
        synchronise(checkpoints)
    except FileNotFoundError:
        pass  # another rank on this disk was first
    except OSError as error:
        raise CheckpointError(f"cannot finish a checkpoint ({unfinished}): {error}") from error


def prune(checkpoints: Path, keep: int) -> None:
    """Drop all but the newest checkpoints, once every rank has finished the newest."""
    for old in find(checkpoints)[:-keep]:
        _remove(checkpoints, old)


def rewind(checkpoints: Path, iteration: int) -> None:
    """Drop the checkpoints after an iteration, and unfinished ones: a resumed run repeats them."""
    for later in find(checkpoints):
        if later > iteration:
            _remove(checkpoints, later)
    for unfinished in checkpoints.glob(f"iteration-*{_UNFINISHED}"):
        shutil.rmtree(unfinished, ignore_errors=True)


def find(checkpoints: Path) -> list[int]:
    """List the iterations of the finished checkpoints, oldest first."""
    names = (path.name for path in checkpoints.glob("iteration-*") if path.is_dir())
    return sorted(int(name.removeprefix("iteration-")) for name in names if name[-1].isdigit())


def read_stage(checkpoints: Path, iteration: int, stage_index: int) -> dict[str, Any]:
    """Read one stage's state.

    Raises:
        CheckpointError: the file is missing or corrupt.
    """
    folder = checkpoints / _FOLDER.format(iteration)
    path = folder / _STAGE.format(stage_index)
    try:
        expected = (folder / _DIGEST.format(stage_index)).read_text(encoding="utf-8").split()[:1]
        if [_sha256(path)] != expected:
            raise ValueError("its sha256 is not the one written beside it")
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            state = _put_together(header, file)
        if not isinstance(state, dict):
            raise ValueError("no state in it")
    except FileNotFoundError as error:
        raise CheckpointError(f"a checkpoint file is missing ({error.filename})") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"a checkpoint file is corrupt ({path}): {error}; remove its folder to continue from "
            "the checkpoint before"
        ) from error
    return state


def _unfinished(checkpoints: Path, iteration: int) -> Path:
    return checkpoints / (_FOLDER.format(iteration) + _UNFINISHED)


def _remove(checkpoints: Path, iteration: int) -> None:
    """Remove a finished checkpoint; killed half-way, what is left does not look finished."""
    try:
        os.rename(checkpoints / _FOLDER.format(iteration), _unfinished(checkpoints, iteration))
    except OSError:
        return  # another rank on this disk was first
    shutil.rmtree(_unfinished(checkpoints, iteration), ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def synchronise(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_apart(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their names, and what JSON does not know by what it knows."""
    if isinstance(value, Tensor):
        view, order = to_row_major(dense(value.detach()))
        name = f"{len(tensors)} {path}"  # a path alone may be ambiguous: keys may hold dots
        tensors[name] = view.to("cpu", copy=True)
        return {"tensor": name, "order": order, "requires_grad": value.requires_grad}
    if isinstance(value, dict) and all(isinstance(key, _PLAIN) for key in value):
        items = [[key, _take_apart(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        items = [_take_apart(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, _PLAIN):
        return value
    raise CheckpointError(
        f"cannot save this {type(value).__name__} ({path}); optimizer states may hold tensors, "
        "numbers, strings, and lists, tuples and dicts (keys: numbers or strings) of these"
    )


def _put_together(node: Any, file: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        tensor = from_row_major(file.get_tensor(node["tensor"]), node["order"])
        return tensor.requires_grad_(node["requires_grad"])
    ((kind, items),) = node.items()
    if kind == "dict":
        return {key: _put_together(item, file) for key, item in items}
    parts = [_put_together(item, file) for item in items]
    return tuple(parts) if kind == "tuple" else parts
