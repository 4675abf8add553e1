"""Checkpoints: a folder per iteration, a safetensors file per stage, nothing that can run code.

    checkpoints/iteration-00000400/stage0.safetensors   stage0.sha256
                                   stage1.safetensors   stage1.sha256

The tensors are stored as tensors; everything around them (numbers, names, nesting) is JSON in the
file's header. The digests, which ``sha256sum --check`` understands, tell a damaged file, since
safetensors itself has none. A folder is written under another name, synchronised to disk, and
renamed when every stage is in it, so that a folder with its final name is complete. Files and
folders with any other name are somebody else's: they are neither read nor removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from delaygrad.boundary import dense, from_row_major, to_row_major
from delaygrad.errors import CheckpointError, DamagedCheckpointError
from delaygrad.records import parse_json

_FOLDER, _UNFINISHED = "iteration-{:08d}", ".unfinished"
_NAME = re.compile(r"iteration-([0-9]{8,})(\.unfinished)?")
_STAGE, _DIGEST = "stage{}.safetensors", "stage{}.sha256"
_HEADER, _ABOUT = "delaygrad", "about"
_FORMAT = 1
_PLAIN = bool | int | float | str | None


def write_stage(
    checkpoints: Path,
    iteration: int,
    stage_index: int,
    state: dict[str, Any],
    about: dict[str, Any] | None = None,
) -> None:
    """Write one stage's state to the unfinished checkpoint of an iteration.

    ``about``: plain values for ``read_about``, which say whose checkpoint it is. If the file cannot
    be written, what was saved before is untouched.
    """
    folder = _unfinished(checkpoints, iteration)
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_take_apart(state, "state", tensors))
    place = {"format": _FORMAT, "iteration": iteration, "stage": stage_index}
    metadata = {_HEADER: header, _ABOUT: json.dumps({**place, **(about or {})})}
    path, digest = folder / _STAGE.format(stage_index), folder / _DIGEST.format(stage_index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=metadata)
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


def prune(checkpoints: Path, keep: int, newest: int) -> None:
    """Drop all but the newest checkpoints, once every rank has finished the newest."""
    ours = [iteration for iteration in find(checkpoints) if iteration <= newest]
    for old in ours[:-keep]:
        _remove(checkpoints, old)


def rewind(checkpoints: Path, iteration: int) -> None:
    """Drop the checkpoints after an iteration, and unfinished ones: a resumed run repeats them."""
    for later in find(checkpoints):
        if later > iteration:
            _remove(checkpoints, later)
    for unfinished in _iterations(checkpoints, unfinished=True):
        shutil.rmtree(_unfinished(checkpoints, unfinished), ignore_errors=True)


def find(checkpoints: Path) -> list[int]:
    """List the iterations of the finished checkpoints, oldest first."""
    return _iterations(checkpoints, unfinished=False)


def stages_in(checkpoints: Path, iteration: int) -> list[int]:
    """List the stages whose files a finished checkpoint holds here."""
    files = path_of(checkpoints, iteration).glob(_STAGE.format("*"))
    numbers = (path.name.removeprefix("stage").partition(".")[0] for path in files)
    return sorted(int(number) for number in numbers if number.isdecimal())


def path_of(checkpoints: Path, iteration: int) -> Path:
    """Return the folder of a finished checkpoint."""
    return checkpoints / _FOLDER.format(iteration)


def set_aside(path: Path) -> Path | None:
    """Give a file or folder another name, at which nothing looks; None if there is none."""
    goal = name_aside(path)
    try:
        os.rename(path, goal)
    except FileNotFoundError:
        return None  # or another rank on this disk was first
    return goal


def name_aside(path: Path) -> Path:
    """Return a free name beside a damaged file or folder."""
    goal, number = path.with_name(f"{path.name}.damaged"), 2
    while os.path.lexists(goal):
        goal, number = path.with_name(f"{path.name}.damaged-{number}"), number + 1
    return goal


def read_about(checkpoints: Path, iteration: int, stage_index: int) -> dict[str, Any]:
    """Check one stage's file, and read what ``write_stage`` was given with its state.

    Raises:
        DamagedCheckpointError: the file is missing or corrupt, or has another one's place.
        CheckpointError: it cannot be read, or is of another version.
    """
    with _opened(checkpoints, iteration, stage_index) as (_, about):
        return about


def read_stage(checkpoints: Path, iteration: int, stage_index: int) -> dict[str, Any]:
    """Read one stage's state; raises what ``read_about`` raises."""
    with _opened(checkpoints, iteration, stage_index) as (file, _):
        state = _put_together(parse_json(file.metadata()[_HEADER]), file)
        if not isinstance(state, dict):
            raise ValueError("no state in it")
        return state


@contextmanager
def _opened(
    checkpoints: Path, iteration: int, stage_index: int
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Within the block, a sound file is open; what is wrong with it there is damage, too."""
    folder = path_of(checkpoints, iteration)
    path = folder / _STAGE.format(stage_index)
    try:
        expected = (folder / _DIGEST.format(stage_index)).read_text(encoding="utf-8").split()
        if [_sha256(path), path.name] != expected:
            raise ValueError("its sha256 is not the one written beside it")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = parse_json(metadata[_ABOUT]) if _ABOUT in metadata else {}
            if _HEADER not in metadata or not isinstance(about, dict):
                raise ValueError("no state in it")
            if about.get("format") != _FORMAT:
                raise CheckpointError(
                    f"the checkpoint is of another version of delaygrad ({path}); continue with "
                    "the version that wrote it, or train again"
                )
            place = {"iteration": iteration, "stage": stage_index}
            if {name: about.get(name) for name in place} != place:
                raise ValueError(
                    f"it is stage {about.get('stage')} of iteration {about.get('iteration')}"
                )
            yield file, about
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"a checkpoint file is missing ({error.filename})") from None
    except PermissionError as error:
        raise CheckpointError(
            f"cannot read a checkpoint ({error.filename}): {error.strerror}; give this user the "
            "right to read it"
        ) from None
    except (OSError, SafetensorError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"a checkpoint file is corrupt ({path}): {error}") from error


def _iterations(checkpoints: Path, *, unfinished: bool) -> list[int]:
    found = []
    for path in checkpoints.glob("iteration-*"):
        match = _NAME.fullmatch(path.name)
        if match and bool(match[2]) == unfinished and path.is_dir():
            if path.name.startswith(_FOLDER.format(int(match[1]))):  # nine digits begin with no 0
                found.append(int(match[1]))
    return sorted(found)


def _unfinished(checkpoints: Path, iteration: int) -> Path:
    return checkpoints / f"{_FOLDER.format(iteration)}{_UNFINISHED}"


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
        kind = _kind(view)
        grad = value.requires_grad
        return {"tensor": name, "kind": kind, "order": order, "requires_grad": grad}
    if isinstance(value, dict) and all(isinstance(key, _PLAIN) for key in value):
        items = [[key, _take_apart(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        items = [_take_apart(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, _PLAIN):
        return value
    raise CheckpointError(
        f"cannot save this {type(value).__name__} ({path}); a checkpoint may hold tensors, "
        "numbers, strings, and lists, tuples and dicts (keys: numbers or strings) of these"
    )


def _put_together(node: Any, file: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        tensor = file.get_tensor(node["tensor"])
        if _kind(tensor) != node["kind"]:
            raise ValueError(f"{node['tensor']} is {_kind(tensor)}, not {node['kind']}")
        return from_row_major(tensor, node["order"]).requires_grad_(node["requires_grad"])
    ((kind, items),) = node.items()
    if kind == "dict":
        return {key: _put_together(item, file) for key, item in items}
    parts = [_put_together(item, file) for item in items]
    return tuple(parts) if kind == "tuple" else parts


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
