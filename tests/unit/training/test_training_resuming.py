"""A run continues from what it was, or says what has changed or broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delaygrad.data import DataSource, load
from delaygrad.errors import CheckpointError, ConfigError
from delaygrad.records import read_events
from delaygrad.training import TrainConfig, resume, run_folder, train
from delaygrad.training.choices import Digits
from delaygrad.training.run_folder import RunLock

RUN = TrainConfig.of(
    model="mlp", width=8, depth=3, stages=2, cuts=("linear2",), iterations=12, checkpoint_every=5,
    log_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of iterations 5 and 10."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(TrainConfig.of(**{**RUN.to_json(), "run_dir": folder}), quiet=True)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """The same run as if it had been killed just before its end."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def sha256(summary: dict[str, Any] | None) -> str:
    assert summary is not None
    return str(summary["parameters_sha256"])


def expected(whole: Path) -> str:
    return sha256(json.loads((whole / "summary.json").read_text()))


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    recorded = json.loads(path.read_text())
    recorded["config"].update(settings)
    path.write_text(json.dumps(recorded))


def resumed(folder: Path) -> dict[str, Any]:
    (event,) = [e for e in read_events(folder / "records.jsonl") if e["event"] == "resumed"]
    return event


@pytest.mark.parametrize(
    ("name", "value", "there"),
    [
        ("lr", 0.2, "0.1"), ("seed", 3, "0"), ("momentum", 0.5, "0.9"), ("batch_size", 32, "64"),
        ("optimizer", "adamw", "'sgd'"), ("iterations", 30, "12"), ("weight_decay", 0.0, "0.0005"),
    ],
)  # fmt: skip
def test_a_changed_setting_is_named(folder: Path, name: str, value: Any, there: str) -> None:
    before = (folder / "records.jsonl").read_bytes()
    edit(folder, **{name: value})
    with pytest.raises(CheckpointError, match=rf"{name} there: {there}, here: {value!r}.*--allow-"):
        resume(folder, quiet=True)
    assert (folder / "records.jsonl").read_bytes() == before


def test_settings_that_decide_nothing_may_change(folder: Path, whole: Path) -> None:
    edit(folder, log_every=3, keep_checkpoints=1, timeout_s=9.0, runtime="local")
    assert sha256(resume(folder, quiet=True)) == expected(whole)
    assert resumed(folder)["changes"] == {}


def test_an_allowed_change_takes_effect_and_is_on_record(folder: Path, whole: Path) -> None:
    edit(folder, momentum=0.5, seed=3)
    with pytest.raises(CheckpointError, match=r"\(momentum there: 0.9, here: 0.5\)"):
        resume(folder, allow_changes=["seed"], quiet=True)
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    edit(other, momentum=0.9)
    ended = sha256(resume(folder, allow_changes=["seed", "momentum"], quiet=True))
    slower = sha256(resume(other, allow_changes=["seed"], quiet=True))
    assert len({ended, slower, expected(whole)}) == 3
    changes = {"momentum": {"there": 0.9, "here": 0.5}, "seed": {"there": 0, "here": 3}}
    assert resumed(folder)["changes"] == changes


def test_an_unknown_setting_to_allow_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting .*'sed'.*did you mean 'seed'"):
        resume(folder, allow_changes=["sed"])


def test_changed_data_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(data: Digits) -> DataSource:
        source = load("digits")
        source.test.contents()[0][7, 0, 3, 3] += 1
        return source

    monkeypatch.setattr(Digits, "load", changed)
    with pytest.raises(
        CheckpointError, match=r"data there: 'sha256 \w+', here: .*--allow-changes da"
    ):
        resume(folder, quiet=True)
    assert resume(folder, allow_changes=["data"], quiet=True)


def damage_newest(folder: Path) -> None:
    path = folder / "checkpoints" / "iteration-00000010" / "stage1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove_newest(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints" / "iteration-00000010")


def put_old_for_new(folder: Path) -> None:
    remove_newest(folder)
    old = folder / "checkpoints" / "iteration-00000005"
    shutil.copytree(old, old.with_name("iteration-00000010"))


@pytest.mark.parametrize("harm", [damage_newest, remove_newest, put_old_for_new])
def test_the_checkpoint_before_is_taken_and_said(
    harm: Callable[[Path], None], folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(folder)
    with pytest.raises(CheckpointError, match="without --strict"):
        resume(folder, strict=True, quiet=True)
    assert sha256(resume(folder, quiet=True)) == expected(whole)
    assert "continuing from iteration 5" in capsys.readouterr().err
    assert "continuing from iteration 5" in resumed(folder)["notes"][0]
    kept = (folder / "checkpoints" / "iteration-00000010.damaged").is_dir()
    assert kept == (harm is not remove_newest)
    assert training(folder) == training(whole)


def training(folder: Path) -> list[Any]:
    events = read_events(folder / "records.jsonl")
    return [(e["iteration"], e["loss"]) for e in events if e["event"] == "training"]


def test_without_a_sound_checkpoint_nothing_is_moved(folder: Path) -> None:
    for path in folder.glob("checkpoints/*/stage0.sha256"):
        path.unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint is sound \(a checkpoint file is missing"
    ):
        resume(folder, quiet=True)
    assert sorted(folder.rglob("*")) == before + [folder / "run.lock"] * (
        folder / "run.lock" not in before
    )


def test_files_of_two_runs_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    other = TrainConfig.of(**{**RUN.to_json(), "seed": 1, "run_dir": tmp_path / "other"})
    train(other, quiet=True)
    for suffix in ("safetensors", "sha256"):
        for iteration in ("00000005", "00000010"):
            name = f"checkpoints/iteration-{iteration}/stage1.{suffix}"
            shutil.copyfile(tmp_path / "other" / name, folder / name)
    with pytest.raises(CheckpointError, match="the files of a checkpoint are of different runs"):
        resume(folder, quiet=True)


def flip(content: bytes) -> bytes:
    place = content.index(b'"loss"') + 10
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip, "lines: 1"),
        (lambda content: content[: len(content) // 3], "lines are missing"),
        (lambda content: content[content.index(b"\n") + 1 :], "lines are missing"),
        (lambda content: b"null\n" + content, "lines: 1"),
        (lambda content: b"", "lines are missing"),
    ],
    ids=["flipped", "truncated", "first line gone", "null", "emptied"],
)
def test_damaged_records_are_told_of_and_kept(
    harm: Callable[[bytes], bytes], told: str, folder: Path, whole: Path
) -> None:
    path = folder / "records.jsonl"
    damaged = harm(path.read_bytes())
    path.write_bytes(damaged)
    assert sha256(resume(folder, quiet=True)) == expected(whole)
    assert told in resumed(folder)["notes"][0]
    assert not damaged or (folder / "records.jsonl.damaged").read_bytes() == damaged
    sound = [event for event in training(whole) if event in training(folder)]
    assert sound == training(folder) and sound[-1] == training(whole)[-1]


def test_records_damaged_after_the_checkpoint_are_simply_written_again(
    folder: Path, whole: Path
) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-9] + b"garbage\n")
    resume(folder, quiet=True)
    assert resumed(folder)["notes"] == [] and training(folder) == training(whole)


def test_a_folder_is_one_process_at_a_time(folder: Path, whole: Path) -> None:
    hold = (
        "import sys, pathlib; from delaygrad.training.run_folder import RunLock\n"
        "lock = RunLock(); lock.take(pathlib.Path(sys.argv[1])); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = (folder / "records.jsonl").read_bytes()
        with pytest.raises(ConfigError, match=rf"another process.*pid: {holder.pid}, host: .+\)"):
            resume(folder, quiet=True)
        assert (folder / "records.jsonl").read_bytes() == before
    finally:
        holder.kill()
        holder.communicate()
    assert sha256(resume(folder, quiet=True)) == expected(whole)  # the lock died with its holder


def test_ranks_of_one_run_share_a_lock(tmp_path: Path) -> None:
    with RunLock() as first, RunLock() as second, RunLock() as stranger:
        first.take(tmp_path)
        second.token = first.token
        second.take(tmp_path)
        with pytest.raises(ConfigError, match="another process"):
            stranger.take(tmp_path)


def test_foreign_folders_do_not_stop_a_run(folder: Path, whole: Path) -> None:
    mine = folder / run_folder.CHECKPOINTS / "iteration-00000010-2"
    shutil.copytree(folder / run_folder.CHECKPOINTS / "iteration-00000010", mine)
    edit(folder, checkpoint_every=1, keep_checkpoints=1)
    assert sha256(resume(folder, quiet=True)) == expected(whole)
    assert mine.is_dir()


@pytest.mark.parametrize("kind", ["folder", "link to itself"])
def test_records_that_cannot_be_read_are_named(folder: Path, kind: str) -> None:
    path = folder / "records.jsonl"
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(path)
    for harm in (lambda: None, lambda: remove_newest(folder)):
        harm()
        with pytest.raises(ConfigError, match=r"cannot read the records \(.*records.jsonl\)"):
            resume(folder, quiet=True)
