"""The attacks: each makes one attempt in a new folder and says what became of the run.

survived   the run, resumed, ended with the same bits as one that nobody disturbed
silent     it ended without an error, and with other bits
hung       it did not end, or left a process behind
unclear    its last words were not the one line that they should be
lost       it could not be continued
early      Python was still importing: its own traceback, and nothing had begun
missed     the run was over before the attack (does not count)
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import hosts
from benchmarks.faults.commands import (
    DELAYGRAD,
    Ended,
    Network,
    digest,
    events,
    run,
    running,
    wait_until,
)
from benchmarks.hosts import ADDRESSES, CABLE, HOSTS, connect, disconnect, two_hosts

Record = dict[str, Any]


def finish(network: Network, run_dir: Path, expected: str) -> Record:
    """Continue a run that was stopped, and compare its end."""
    again = "resumed"
    if not list(run_dir.glob("checkpoints/iteration-????????")):  # nothing was saved yet
        again, run_dir = "restarted", run_dir.with_name("again")
        ended = run(*DELAYGRAD, *network.arguments(run_dir))
    elif (run_dir / "summary.json").exists():  # the attack met a run that had just finished
        again, ended = "finished", Ended(0, "", 0)
    else:
        ended = run(*DELAYGRAD, "resume", run_dir, "--quiet")
    if ended.code is None or ended.orphans:
        return {"outcome": "hung", "then": again}
    if ended.code != 0:
        return {"outcome": "lost", "then": again, "error": ended.err[-2000:]}
    same = digest(run_dir) == expected
    return {"outcome": "survived" if same else "silent", "then": again}


def reached(command: Any, run_dir: Path, rng: random.Random, reference: Record) -> bool:
    """Wait for a random moment: one in four before the first record, the others at a record.

    Some of these fall into the drain, the last evaluation and the figures.
    """
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.0, reference["start_s"]))
    else:
        wanted = rng.randint(1, reference["records"])
        wait_until(lambda: events(run_dir) >= wanted, command)
        time.sleep(rng.uniform(0.0, 0.05))
    running_still: bool = command.is_running
    return running_still


def kill(rng: random.Random, folder: Path, reference: Record) -> Record:
    """SIGKILL one worker, the launcher, or the whole group at a random moment."""
    network, run_dir = Network(reference["stages"]), folder / "run"
    target = rng.choice(["worker", "launcher", "group"])
    record: Record = {"target": target, "stages": network.stages}
    with running(*DELAYGRAD, *network.arguments(run_dir)) as command:
        if not reached(command, run_dir, rng, reference):
            return {**record, "outcome": "missed"}
        record["records"] = events(run_dir)
        workers = command.workers()
        if target == "worker" and workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        elif target == "group":
            os.killpg(command.pid, signal.SIGKILL)
        else:
            record["target"] = "launcher"
            os.kill(command.pid, signal.SIGKILL)
        ended = command.wait()
    if ended.code is None or ended.orphans:
        return {**record, "outcome": "hung", "orphans": ended.orphans}
    if record["target"] == "worker" and ended.code != 0 and not is_one_line(ended, "SIGKILL"):
        return {**record, "outcome": "unclear", "error": ended.err[-2000:]}
    return {**record, **finish(network, run_dir, reference["sha256"])}


def interrupt(rng: random.Random, folder: Path, reference: Record) -> Record:
    """Ctrl-C: SIGINT to the whole group at a random moment."""
    network, run_dir = Network(reference["stages"]), folder / "run"
    record: Record = {"stages": network.stages}
    with running(*DELAYGRAD, *network.arguments(run_dir)) as command:
        if not reached(command, run_dir, rng, reference):
            return {**record, "outcome": "missed"}
        record["records"] = events(run_dir)
        record["at_s"] = round(time.monotonic() - command.started_s, 3)
        os.killpg(command.pid, signal.SIGINT)
        ended = command.wait()
    if ended.code is None or ended.orphans:
        return {**record, "outcome": "hung", "orphans": ended.orphans}
    over = digest(run_dir) is not None and not ended.err  # Python was on its way out
    if ended.code != 0 and not over and not is_one_line(ended, "stopped by SIGINT"):
        early = "in <module>" in ended.err and not run_dir.exists()
        if early:
            words = ended.err.splitlines()[-1]
            return {**record, "outcome": "early", "code": ended.code, "error": words}
        return {**record, "outcome": "unclear", "code": ended.code, "error": ended.err[-2000:]}
    return {**record, **finish(network, run_dir, reference["sha256"])}


def is_one_line(ended: Ended, words: str) -> bool:
    """Whether a command's last words were one line that begins with its name."""
    lines = ended.err.splitlines()
    return len(lines) == 1 and lines[0].startswith("delaygrad: ") and words in lines[0]


# --- a full disk ---------------------------------------------------------------------------------


def full_disk(rng: random.Random, folder: Path, reference: Record) -> Record:
    """A disk of a random size fills up; it is made larger, and the run continued."""
    network = Network(reference["stages"], runtime=rng.choice(["local", "distributed"]))
    size_kb = rng.randrange(50, 500)
    record: Record = {"stages": network.stages, "runtime": network.runtime, "size_kb": size_kb}
    with small_disk(folder / "disk", size_kb) as disk:
        ended = run(*DELAYGRAD, *network.arguments(disk / "run", "--keep-checkpoints", 100))
        if ended.code == 0:
            return {**record, "outcome": "missed"}
        if ended.code is None or ended.orphans:
            return {**record, "outcome": "hung", "orphans": ended.orphans}
        if not is_one_line(ended, "No space left"):
            return {**record, "outcome": "unclear", "error": ended.err[-2000:]}
        hosts.run("mount", "-o", "remount,size=50m", disk)
        return {**record, **finish(network, disk / "run", reference["sha256"])}


@contextmanager
def small_disk(place: Path, size_kb: int) -> Iterator[Path]:
    """Within the block there is a disk of its own."""
    place.mkdir()
    hosts.run("mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "delaygrad-faults", place)
    try:
        yield place
    finally:
        hosts.run("umount", "-l", place)


# --- a cut cable ---------------------------------------------------------------------------------

TIMEOUT_S = 10


def cut_for_a_while(rng: random.Random, folder: Path, reference: Record) -> Record:
    """The cable between two hosts is cut for 2 seconds: the run waits, and goes on."""
    return cut(rng, folder, reference, for_good=False)


def cut_for_good(rng: random.Random, folder: Path, reference: Record) -> Record:
    """The cable is cut until both hosts have given up; then the run is resumed."""
    return cut(rng, folder, reference, for_good=True)


def cut(rng: random.Random, folder: Path, reference: Record, *, for_good: bool) -> Record:
    network, run_dir = Network(2), folder / "run"
    more = ("--timeout-s", TIMEOUT_S) if for_good else ()
    record: Record = {"stages": 2}
    with two_hosts():
        arguments = network.arguments(run_dir, *more)
        with running(*on(1, *arguments)) as second, running(*on(0, *arguments)) as first:
            wanted = rng.randint(1, reference["records"] * 2 // 3)
            wait_until(lambda: events(run_dir) >= wanted, first)
            if not first.is_running:
                return {**record, "outcome": "missed"}
            record["records"] = events(run_dir)
            disconnect(1)
            if not for_good:
                time.sleep(2.0)
                connect(1)
            both = [first.wait(), second.wait()]
        if any(ended.code is None or ended.orphans for ended in both):
            return {**record, "outcome": "hung"}
        if digest(run_dir) is None:  # torchrun adds a report of its own to the ranks' lines
            told = [e.err for e in both if "delaygrad: [stage" in e.err]
            if not told:
                errors = [ended.err[-1000:] for ended in both]
                return {**record, "outcome": "unclear", "error": errors}
            if not for_good:
                return {**record, "outcome": "lost", "error": told[0][-1000:]}
            connect(1)
    return {**record, **finish(network, run_dir, reference["sha256"])}


def on(host: int, *arguments: object) -> tuple[object, ...]:
    """The command that runs one host's part."""
    return (
        "ip", "netns", "exec", HOSTS[host], "env", f"GLOO_SOCKET_IFNAME={CABLE[host]}",
        sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1,
        "--node-rank", host, "--master-addr", ADDRESSES[0], "--master-port", 29400,
        "-m", "delaygrad", *arguments,
    )  # fmt: skip
