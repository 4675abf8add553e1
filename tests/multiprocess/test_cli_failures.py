"""Whatever ends a run, it ends soon, says why in one message, and leaves no process behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    DELAYGRAD,
    TORCHRUN,
    delaygrad,
    here,
    iterations_done,
    ranks_of,
    reports,
    running,
    session,
    train,
    wait_until,
    workers,
)

from delaygrad.records import read_events

pytestmark = pytest.mark.slow

ENDLESS = ("--iterations", 1_000_000, "--log-every", 5, "--quiet")


def test_killed_worker_ends_the_run_and_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = train(folder, 3, *ENDLESS, "--runtime", "distributed", "--checkpoint-every", 5)
    with running(*DELAYGRAD, *arguments) as process:
        wait_until(lambda: iterations_done(folder) >= 20)
        os.kill(workers(process)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=15)
        wait_until(lambda: not session(process), timeout_s=5)  # Python's own tracker is last
    assert process.returncode == 1 and out == ""
    assert err == ("delaygrad: [rank 1] the worker was ended by SIGKILL; the others were stopped\n")
    assert not (folder / "summary.json").exists()
    assert list((folder / "checkpoints").glob("iteration-*[0-9]"))


def test_diverged_stage_ends_all_with_its_own_message(tmp_path: Path) -> None:
    diverging = ("--lr", 1e30, "--lr-schedule", "constant", "--epochs", 3, "--quiet")
    done = delaygrad(*train(tmp_path / "run", 2, *diverging, "--runtime", "distributed"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("delaygrad: [rank 1] the loss is not finite (loss: ")
    assert len(done.stderr.splitlines()) == 1
    events = read_events(tmp_path / "run" / "records.jsonl")
    diverged = [event["loss"] for event in events if event["event"] == "diverged"]
    assert len(diverged) == 1 and diverged[0] in ("nan", "inf")


@pytest.mark.parametrize(
    ("runtime", "number", "to_all"),
    [
        ("local", signal.SIGINT, True),
        ("local", signal.SIGTERM, False),
        ("distributed", signal.SIGINT, True),  # Ctrl-C: the terminal tells every process
        ("distributed", signal.SIGTERM, False),
    ],
)
def test_signal_ends_a_run_at_once(
    runtime: str, number: signal.Signals, to_all: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with running(*DELAYGRAD, *train(folder, 2, *ENDLESS, "--runtime", runtime)) as process:
        wait_until(lambda: iterations_done(folder) >= 5)
        (os.killpg if to_all else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=15)
        wait_until(lambda: not session(process), timeout_s=5)  # Python's own tracker is last
    assert process.returncode == 128 + number and out == ""
    assert err == f"delaygrad: stopped by {number.name}; checkpoints already written are kept\n"


def test_ctrl_c_while_workers_start_is_as_quiet(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = train(folder, 2, *ENDLESS, "--runtime", "distributed")
    with running(*DELAYGRAD, *arguments) as process:
        wait_until(lambda: len(workers(process)) == 2)
        time.sleep(0.3)  # they import torch now
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        wait_until(lambda: not session(process), timeout_s=5)  # Python's own tracker is last
    assert process.returncode == 130 and out == ""
    assert err == "delaygrad: stopped by SIGINT; checkpoints already written are kept\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "delaygrad-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root, to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_stops_the_run_and_keeps_what_was_saved(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_disk / "run", 2, "--iterations", 20, "--keep-checkpoints", 100)
    with pytest.raises(SystemExit) as caught:
        here([*run, "--checkpoint-every", "1"])
    message = str(caught.value.code)
    assert message.startswith("delaygrad: cannot write") and "No space left" in message
    assert message.count("\n") == 0
    kept = sorted((small_disk / "run" / "checkpoints").iterdir())
    assert kept and not [path for path in kept if path.name.endswith(".unfinished")]
    for path in kept:
        command = "sha256sum --check --quiet *.sha256"
        subprocess.run(command, cwd=path, shell=True, check=True)


def test_disk_that_is_full_from_the_start_holds_no_run(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "filler").write_bytes(bytes(300 * 1024))
    with pytest.raises(SystemExit) as caught:
        here(train(small_disk / "run", 2, "--iterations", 2))
    assert "No space left" in str(caught.value.code)
    assert {path.name for path in small_disk.glob("run/*")} <= {"run.lock"}


def test_ranks_do_not_outlive_a_killed_torchrun(tmp_path: Path) -> None:
    arguments = [*train(tmp_path / "run", 2, *ENDLESS), "--runtime", "distributed"]
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", 2, "-m", "delaygrad")
    with running(*launcher, *arguments) as process:
        wait_until(lambda: reports(tmp_path / "run"))
        ranks = ranks_of(process)
        assert len(ranks) == 2
        process.kill()
        process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), timeout_s=10)


def test_a_run_that_ends_far_above_guessing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("train", "--iterations", "20", "--lr-schedule", "constant", "--runtime", "local")
    here([*short, "--run-dir", str(tmp_path / "run"), "--lr", "50"])
    told = capsys.readouterr().err
    assert re.search(r"delaygrad: the training loss ended at .* the run has diverged", told)
    assert "diverged" in json.loads((tmp_path / "run" / "summary.json").read_text())
    here([*short, "--run-dir", str(tmp_path / "calm")])
    assert "diverged" not in capsys.readouterr().err
