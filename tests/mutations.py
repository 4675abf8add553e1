"""Damage a run folder in many ways, and see what resume and report make of it.

A run is trained once (two stages, an MLP on digits) and its folder is kept as a kill in iteration
11 of 12 would have left it: checkpoints of iterations 5 and 10, records, TensorBoard events. Each
trial copies the folder, applies one mutation, then resumes and reports. The classes:

    truncate     cut a file to a random length
    flip-bit     change one bit of a file
    flip-digit   change one digit of a JSON file, a line of the records, or a digest
    swap         exchange the contents of two files
    delete       remove a file or a folder
    garbage      put random bytes, or an empty file, in a file's place; or bytes into its middle
    lines        remove, repeat, exchange or insert lines of the records
    json-value   replace a value of config.json or of a line of the records by null, [], {}, true,
                 "", a negative, huge or non-finite number, or 100,000 nested lists
    setting      change one setting in config.json to another valid value
    rename       give a file or a folder another name
    duplicate    copy a file or a checkpoint under another name, also one that looks like ours
    foreign      put strange files, folders or links where nothing or something else is expected
    version      another format number in a checkpoint, its digest renewed
    skew         rename, remove or replace by null or [] a key of a checkpoint's header, or rename,
                 remove, reshape a tensor, its digest renewed: as another version might write it
    permission   take all rights to a file or a folder away (not as root, whom nothing stops)
    pair         two of these at once

The outcomes of resume; the last three are failures:

    exact        the parameters and the training losses on record are those of the whole run
    told         the parameters are; of the records something is lost, and a message says so
    refused      one message, and an exit code other than 0
    silent       another result, or lost records, without a word
    traceback    any exception that is not an error of ours, also in a thread
    hang         no end after 60 s

The report must end with a page or with one message.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from delaygrad.errors import DelaygradError
from delaygrad.records import read_sound_events
from delaygrad.results import write_report
from delaygrad.training import TrainConfig, resume, train

HANG_S = 60
FAILURES = ("silent", "traceback", "hang")
RUN = TrainConfig.of(
    model="mlp", width=8, depth=3, stages=2, cuts=("linear2",), iterations=12, checkpoint_every=5,
    log_every=2, dropout=0.1,
)  # fmt: skip

Mutation = Callable[[random.Random, Path], str]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def truncate(rng: random.Random, folder: Path) -> str:
    path = rng.choice(files_of(folder))
    size = rng.randrange(max(1, path.stat().st_size))
    os.truncate(path, size)
    return f"{path.name} to {size}"


def flip_bit(rng: random.Random, folder: Path) -> str:
    path = rng.choice([path for path in files_of(folder) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name} byte {place} bit {bit}"


def flip_digit(rng: random.Random, folder: Path) -> str:
    path = rng.choice([p for p in files_of(folder) if p.suffix in (".json", ".jsonl", ".sha256")])
    content = bytearray(path.read_bytes())
    place = rng.choice([place for place, byte in enumerate(content) if chr(byte).isdigit()])
    content[place] = ord(rng.choice([d for d in "0123456789" if ord(d) != content[place]]))
    path.write_bytes(content)
    return f"{path.name} byte {place}"


def swap(rng: random.Random, folder: Path) -> str:
    one, other = rng.sample(files_of(folder), 2)
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    return f"{one.relative_to(folder)} {other.relative_to(folder)}"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def delete(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.rglob("*")))
    remove(path)
    return str(path.relative_to(folder))


def garbage(rng: random.Random, folder: Path) -> str:
    path = rng.choice(files_of(folder))
    content, junk = path.read_bytes(), rng.randbytes(rng.choice([0, 1, 8, 300]))
    if rng.random() < 0.5:
        path.write_bytes(junk)
    else:
        place = rng.randrange(len(content) + 1)
        path.write_bytes(content[:place] + junk + content[place:])
    return path.name


def lines(rng: random.Random, folder: Path) -> str:
    path = folder / "records.jsonl"
    found = path.read_bytes().splitlines(keepends=True)
    kind = rng.choice(["remove", "repeat", "exchange", "insert"])
    place, other = rng.sample(range(len(found)), 2)
    if kind == "remove":
        del found[place]
    elif kind == "repeat":
        found.insert(other, found[place])
    elif kind == "exchange":
        found[place], found[other] = found[other], found[place]
    else:
        junk = [b"null\n", b"[]\n", b"\n", b"{}\n", b'{"event": "training"}\n', b"3\n", b"\xff\n"]
        found.insert(place, rng.choice(junk))
    path.write_bytes(b"".join(found))
    return f"{kind} {place} {other}"


STRANGE = [
    "null", "[]", "{}", "true", '""', "-1", "0", "1e308", "1e999", "NaN", str(10**30), str(10**400),
    '"\\ud800"', '"' + 5000 * "x" + '"', "[" * 100_000 + "]" * 100_000,
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers and keys at which a value sits."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def json_value(rng: random.Random, folder: Path) -> str:
    path = folder / rng.choice(["config.json", "config.json", "records.jsonl"])
    text = path.read_text(encoding="utf-8")
    texts = text.splitlines() if path.suffix == ".jsonl" else [text]
    index = rng.randrange(len(texts))
    value = json.loads(texts[index])
    holder, key = rng.choice(list(places(value)))
    holder[key] = "NESTED"
    strange = rng.choice(STRANGE)
    texts[index] = json.dumps(value).replace('"NESTED"', strange)
    path.write_text("\n".join([*texts, ""]))
    return f"{path.name} {key} {strange[:20]}"


SETTINGS = {
    "lr": 0.05, "momentum": 0.8, "seed": 7, "batch_size": 50, "weight_decay": 0.0, "iterations": 13,
    "lr_schedule": "constant", "warmup": 2, "dropout": 0.2, "width": 9, "depth": 4, "holdout": 100,
    "method": "bp", "micro_batches": 2, "slack": 1, "recompute": True, "weights": "live",
    "nesterov": True, "optimizer": "adamw", "stages": 3, "cuts": ["linear3"], "threads": 2,
    "epochs": 3, "log_every": 3, "keep_checkpoints": 1, "timeout_s": 5.0, "checkpoint_every": 2,
    "evaluation_batch_size": 7, "model": "resnet8", "boundary_dtype": "bfloat16", "data": "text",
}  # fmt: skip


def setting(rng: random.Random, folder: Path) -> str:
    name, path = rng.choice(list(SETTINGS)), folder / "config.json"
    recorded = json.loads(path.read_bytes())
    recorded["config"][name] = SETTINGS[name]
    path.write_text(json.dumps(recorded))
    return f"{name}={SETTINGS[name]}"


def rename(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.rglob("*")))
    name = rng.choice([f"{path.name}.bak", path.name.upper() + "_", f"x{path.name}"])
    path.rename(path.with_name(name))
    return f"{path.relative_to(folder)} {name}"


def duplicate(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.rglob("*")))
    names = [f"{path.name}-2", f"{path.name} (copy)", f"{path.name}.bak", f"{path.name}.damaged"]
    if path.name.startswith("iteration-"):
        names += [
            "iteration-00000011", "iteration-00000007", "iteration-99999999", "iteration-1",
            "iteration-00000010.unfinished", "iteration-000000012", "iteration-00000012",
        ]  # fmt: skip
    goal = path.with_name(rng.choice(names))
    if goal.exists():
        remove(goal)
    shutil.copytree(path, goal) if path.is_dir() else shutil.copyfile(path, goal)
    return f"{path.relative_to(folder)} {goal.name}"


def foreign(rng: random.Random, folder: Path) -> str:
    places = [
        "records.jsonl", "config.json", "checkpoints", "run.lock", "tensorboard", "summary.json.1",
        "checkpoints/iteration-00000012", "checkpoints/iteration-00000005", "model.safetensors",
        "checkpoints/iteration-00000010/stage0.safetensors", "checkpoints/iteration-x",
        "summary.json", "checkpoints/iteration-00000012.unfinished", "curves.png",
        "checkpoints/.DS_Store", "checkpoints/iteration-00000010/stage0.sha256",
        "records.jsonl.damaged",
    ]  # fmt: skip
    path = folder / rng.choice(places)
    kind = rng.choice(["folder", "full folder", "file", "loop", "dangling"])
    if os.path.lexists(path):
        remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "folder" in kind:
        path.mkdir()
        if kind == "full folder":
            (path / "file").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(path.name if kind == "loop" else "nowhere")
    return f"{kind} {path.relative_to(folder)}"


def reseal(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    save_file(tensors, path, metadata=metadata)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")


def opened(rng: random.Random, folder: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
    path = rng.choice([p for p in files_of(folder) if p.name.endswith(".safetensors")])
    with safe_open(path, framework="pt") as file:
        return path, {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def version(rng: random.Random, folder: Path) -> str:
    path, tensors, metadata = opened(rng, folder)
    if rng.random() < 0.5:
        about = {**json.loads(metadata["about"]), "format": rng.choice([0, 2, None, "1", [1]])}
        metadata["about"] = json.dumps(about)
    else:
        number = rng.choice(["0", "6e9", "null", '"5"', "[]"])
        head, _, rest = metadata["delaygrad"].partition('["format", ')
        metadata["delaygrad"] = f'{head}["format", {number}]{rest[rest.index("]") + 1 :]}'
    reseal(path, tensors, metadata)
    return path.parent.name


def skew(rng: random.Random, folder: Path) -> str:
    path, tensors, metadata = opened(rng, folder)
    if rng.random() < 0.3:
        kind = rng.choice(["rename", "remove", "reshape", "retype"])
        name = rng.choice(sorted(tensors))
        tensor = tensors.pop(name)
        if kind == "rename":
            tensors[f"{name}2"] = tensor
        elif kind == "reshape":
            tensors[name] = tensor.new_zeros((*tensor.shape, 1) if tensor.dim() else (2,))
        elif kind == "retype":
            tensors[name] = tensor.to(torch.float16)
    else:
        state = json.loads(metadata["delaygrad"])
        holder, index = rng.choice([place for place in places(state) if is_entry(*place)])
        kind, name = rng.choice(["rename", "remove", "null", "list"]), holder[index][0]
        if kind == "rename":
            holder[index][0] += "_"
        elif kind == "remove":
            del holder[index]
        else:
            holder[index][1] = None if kind == "null" else {"list": []}
        metadata["delaygrad"] = json.dumps(state)
    reseal(path, tensors, metadata)
    return f"{path.parent.name} {kind} {name}"


def is_entry(holder: Any, index: Any) -> bool:
    """Whether an item of a checkpoint's header is an entry of a dict: a name and its value."""
    item = holder[index]
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


def permission(rng: random.Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.rglob("*")))
    path.chmod(0)
    return str(path.relative_to(folder))


CLASSES: dict[str, Mutation] = {
    "truncate": truncate,
    "flip-bit": flip_bit,
    "flip-digit": flip_digit,
    "swap": swap,
    "delete": delete,
    "garbage": garbage,
    "lines": lines,
    "json-value": json_value,
    "setting": setting,
    "rename": rename,
    "duplicate": duplicate,
    "foreign": foreign,
    "version": version,
    "skew": skew,
    **({} if os.geteuid() == 0 else {"permission": permission}),
}


def pair(rng: random.Random, folder: Path) -> str:
    told = []
    for name in rng.sample(sorted(set(CLASSES) - {"pair", "permission"}), 2):
        with contextlib.suppress(Exception):  # the first has left nothing to choose, or to read
            told.append(f"{name}: {CLASSES[name](rng, folder)}")
    return "; ".join(told)


CLASSES["pair"] = pair


class Hang(BaseException):
    pass


def on_alarm(*_: Any) -> None:
    raise Hang


@contextlib.contextmanager
def watched(told: io.StringIO, threads: list[str]) -> Iterator[None]:
    """Within the block, messages are collected, threads' failures too, and a hang is ended."""

    def fail(args: threading.ExceptHookArgs) -> None:
        threads.append("".join(traceback.format_exception_only(args.exc_type, args.exc_value)))

    before, threading.excepthook = threading.excepthook, fail
    handler = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(HANG_S)
    try:
        with contextlib.redirect_stderr(told):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        threading.excepthook = before


def attempt(action: Callable[[], Any]) -> tuple[str, str, Any]:
    """Return "done", "refused", "traceback" or "hang"; what was said; and the result."""
    told, threads, result = io.StringIO(), list[str](), None
    try:
        with watched(told, threads):
            result = action()
        outcome, said = "done", told.getvalue()
    except Hang:
        outcome, said = "hang", ""
    except DelaygradError as error:
        outcome, said = "refused", str(error)
        if not said or len(said) > 2000 or "Traceback" in told.getvalue():
            outcome = "traceback"
    except BaseException:
        outcome, said = "traceback", traceback.format_exc()
    return ("traceback", threads[0], result) if threads else (outcome, said, result)


def training(folder: Path) -> list[Any]:
    events, _ = read_sound_events(folder / "records.jsonl")
    return [[e["iteration"], e["loss"], e["lr"]] for e in events if e["event"] == "training"]


class Victim:
    """The folder that every trial begins with."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "whole"
        summary = train(RUN.replace(run_dir=self.folder), quiet=True)
        assert summary is not None
        self.sha256, self.losses = summary["parameters_sha256"], training(self.folder)
        for name in ("summary.json", "model.safetensors"):
            (self.folder / name).unlink()

    def judge(self, folder: Path) -> tuple[str, str]:
        """Resume a damaged folder; return the outcome and what was said."""
        outcome, said, summary = attempt(lambda: resume(folder, quiet=True))
        if outcome != "done":
            return outcome, said
        if summary["parameters_sha256"] != self.sha256:
            return "silent", said
        if training(folder) == self.losses:
            return "exact", said
        return ("told" if said else "silent"), said


def trial(victim: Victim, name: str, seed: str, place: Path) -> dict[str, Any]:
    """Mutate a copy, resume it, report it."""
    folder = place / "run"
    shutil.copytree(victim.folder, folder)
    rng = random.Random(seed)
    try:
        mutation = CLASSES[name](rng, folder)
        before, said_before, _ = attempt(lambda: write_report([folder], place / "page.html"))
        outcome, said = victim.judge(folder)
        report, said_after, _ = attempt(lambda: write_report([folder], place / "page.html"))
    finally:
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)
    found = {"class": name, "seed": seed, "mutation": mutation, "resume": outcome, "said": said}
    for kind, words in ((before, said_before), (report, said_after)):
        if kind in FAILURES and found["resume"] not in FAILURES:
            found.update(resume=kind, said=f"report: {words}")
    return found


def run_trials(names: list[str], count: int, seed: int, place: Path) -> list[dict[str, Any]]:
    """Run so many trials, the classes in turn."""
    victim = Victim(place)
    found = []
    for index in range(count):
        name = names[index % len(names)]
        found.append(trial(victim, name, f"{seed} {name} {index}", place))
        if found[-1]["resume"] in FAILURES:
            print(json.dumps(found[-1])[:3000], file=sys.stderr, flush=True)
    return found
