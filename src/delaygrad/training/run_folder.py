"""The files of a run folder, and the lock that keeps other processes out of it.

config.json          the resolved configuration, versions and machine
records.jsonl        one object per event
checkpoints/         to resume from
tensorboard/         the same curves as events
model.safetensors    the final network under its un-split names
trace-events.json    what --trace recorded
summary.json         the result; written last
run.lock             the process that works on the run
curves.png           a figure of it
trace.json           the timeline, for Perfetto or chrome://tracing
trace.png            a few iterations of it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from delaygrad.checkpoint import name_aside, synchronise
from delaygrad.errors import ConfigError
from delaygrad.records import TRACE_EVENTS, Trace, log_line, read_sound_events
from delaygrad.training.config import TrainConfig

CONFIG, RECORDS, SUMMARY = "config.json", "records.jsonl", "summary.json"
CHECKPOINTS, MODEL, TENSORBOARD = "checkpoints", "model.safetensors", "tensorboard"
LOCK = "run.lock"
_NOTED_S = 1.0  # for a holder to write who it is


def new_run_dir(config: TrainConfig) -> Path:
    """Make a folder of its own for a run: ``runs/<time>-<data>-<model>-<method>-k<stages>``."""
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    chosen = (config.data, config.model, config.method)
    names = "-".join(part.name.replace(":", ".") for part in chosen)
    base = Path("runs", f"{time}-{names}-k{config.run.stages}")
    path, number = base, 2
    with writing(base):
        base.parent.mkdir(parents=True, exist_ok=True)
        while True:  # another run may begin in the same second
            try:
                path.mkdir()
                return path
            except FileExistsError:
                path, number = base.with_name(f"{base.name}-{number}"), number + 1


def require_no_run(run_dir: Path) -> None:
    """Raise ConfigError if there is a run in the folder."""
    if holds_run(run_dir):
        raise ConfigError(
            f"there is a run in this folder already ({run_dir}); choose another --run-dir, "
            f"or continue it: delaygrad resume {run_dir}"
        )


def holds_run(run_dir: Path) -> bool:
    """Whether there is a run in the folder."""
    try:
        return (run_dir / CONFIG).exists()
    except OSError as error:
        raise ConfigError(f"cannot read the run folder ({run_dir}): {error.strerror}") from error


def create(config: TrainConfig) -> None:
    """Make the folder of a new run, with its configuration."""
    with writing(config.run_dir):
        config.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(config.run_dir / CONFIG, {"config": config.to_json(), "environment": environment()})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block, a disk that refuses is a ConfigError that names the path."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write ({error.filename or path}): {error.strerror or error}; make room, or "
            "choose another place; what was written before is kept"
        ) from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    with _draft_of(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """Write the draft within the block; then it takes the path's place, or is gone.

    On disk before it has its name: a power cut leaves the old file or the new one.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.unfinished")  # ranks may share a folder
    try:
        with writing(path):
            yield draft
            synchronise(draft)
            os.replace(draft, path)
            synchronise(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def records_checksum(run_dir: Path) -> list[int]:
    """Return the size and checksum of the records so far, for ``rewind_records``."""
    content = _records(run_dir)
    return [len(content), zlib.crc32(content)]


def rewind_records(run_dir: Path, iteration: int, checksum: list[int] | None = None) -> str | None:
    """Drop the events after an iteration: a resumed run writes them again.

    ``checksum`` is that of the records up to there; None if it is not known. Returns what is wrong
    with them, None if nothing is. Then those that are sound stay, and the file as it was is kept
    under another name.
    """
    path, content = run_dir / RECORDS, _records(run_dir)
    sound = checksum is not None and [checksum[0], zlib.crc32(content[: checksum[0]])] == checksum
    if not content and (sound or checksum is None):
        return None
    events, damaged = sound_events(run_dir)
    problem = None
    if not sound and (damaged or checksum is not None):
        lines = f"lines: {', '.join(map(str, damaged))}" if damaged else "lines are missing"
        problem = f"the records up to the checkpoint are damaged ({path}, {lines})"
        if content:
            problem += f"; what is sound stays, and the file is kept as {_keep_copy(path).name}"
    kept = [log_line(event) for event in events if _iterations_before(event) <= iteration]
    with _draft_of(path) as draft:
        draft.write_text("".join(dict.fromkeys(kept)), encoding="utf-8")  # each line once
    return problem


def sound_events(run_dir: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the events on record that are sound, and the numbers of damaged lines."""
    with _reading(run_dir / RECORDS):
        return read_sound_events(run_dir / RECORDS)
    return [], []


def _records(run_dir: Path) -> bytes:
    with _reading(run_dir / RECORDS):
        return (run_dir / RECORDS).read_bytes()
    return b""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within the block, a file that is not there ends the block; one that refuses is an error."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"cannot read the records ({path}): {error.strerror}; move them away"
        ) from error


def _keep_copy(path: Path) -> Path:
    """Copy a file to a name that nothing reads."""
    goal = name_aside(path)
    with writing(goal):
        shutil.copyfile(path, goal)
    return goal


def _iterations_before(event: dict[str, Any]) -> int:
    """Iterations that a run must have done to write an event."""
    count: int = event.get("iteration", 0)  # an int, or the line is damaged
    # A direction is named by the batch that it is of, counted from 0.
    return count + 1 if event["event"] == "direction" else count


def append_event(run_dir: Path, event: str, **fields: Any) -> None:
    """Append one event to the records beside the process that writes them, if they are here."""
    path = run_dir / RECORDS
    line = log_line({"event": event, **fields})
    with suppress(OSError):
        if path.exists():
            with path.open("a", encoding="utf-8") as file:
                file.write(line)


def last_loss(run_dir: Path) -> float | None:
    """Return the newest training loss on record, None if there is none."""
    events, _ = sound_events(run_dir)
    losses = [event.get("loss") for event in events if event["event"] == "training"]
    return losses[-1] if losses else None


def write_trace(run_dir: Path, trace: Trace) -> None:
    """Write the recorded timeline, whole or not at all."""
    with _draft_of(run_dir / TRACE_EVENTS) as draft:
        draft.write_text(json.dumps(trace.to_json(), separators=(",", ":")), encoding="utf-8")


def write_model(run_dir: Path, tensors: dict[str, Tensor]) -> None:
    """Write the network's parameters and buffers as safetensors, under their own names."""
    own = {name: t.detach().contiguous().clone() for name, t in tensors.items()}
    with _draft_of(run_dir / MODEL) as draft:
        try:
            save_file(own, draft)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def parameters_sha256(tensors: dict[str, Tensor]) -> str:
    """Digest parameters and buffers: sorted by name, raw little-endian bytes in row-major order.

    Example:
        >>> parameters_sha256({"w": torch.zeros(2)})[:8]
        'af5570f5'
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        row_major = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(row_major.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Say what the run ran on: versions, processor, commit."""
    return {
        "delaygrad": version("delaygrad"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """Return the commit of this checkout, if the package runs from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


class RunLock:
    """Keep other processes out of a run's folder; a context manager that releases the lock.

    The operating system releases the lock when this process ends, for any reason. The file stays
    and names the last holder. Where several hosts of one run share a disk, the first
    holds the lock, and the others recognise their run by its token.
    """

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        """Of the run that this process works on; ranks of one run share one."""
        self._file: TextIO | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk: the error of the write was raised before
                self._file.close()

    def take(self, run_dir: Path) -> None:
        """Take the lock, or find it held by the same run; taking it again does nothing.

        Raises ConfigError if another run holds the lock, or the folder is not writable.
        """
        if self._file is not None:
            return
        path = run_dir / LOCK
        with writing(path):
            run_dir.mkdir(parents=True, exist_ok=True)
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                pid, host, token = _holder(file)
            if token != self.token:
                raise ConfigError(
                    f"another process works on this run ({run_dir}, pid: {pid}, host: {host}); "
                    "wait until it ends, or stop it"
                ) from None
        except OSError:
            file.close()  # a disk without locks
        else:
            self._file = file
            with writing(path):
                file.truncate(0)
                file.write(f"{os.getpid()} {socket.gethostname()} {self.token}\n")
                file.flush()


def _holder(file: TextIO) -> tuple[str, str, str]:
    deadline = time.monotonic() + _NOTED_S
    while True:
        file.seek(0)
        words = file.read().split()
        if len(words) == 3:
            return words[0], words[1], words[2]
        if time.monotonic() > deadline:
            return "unknown", "unknown", ""
        time.sleep(_NOTED_S / 20)
