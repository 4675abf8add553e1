"""The attacks: each makes one attempt in a new folder and says what became of the run.

survived   the run, resumed, ended with the same bits as one that nobody disturbed
silent     it ended without an error, and with other bits
hung       it did not end, or left a process behind
unclear    its last words were not the one line that they should be
lost       it could not be continued
early      Python was still importing: its own traceback, and nothing had begun
missed     the run was over before the attack (does not count)

Commands and hosts are those of the tests. Every wait is bounded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import commands
from tests.commands import DELAYGRAD, TORCHRUN, running, session, workers
from tests.hosts import Host, two_hosts

Record = dict[str, Any]

LIMIT_S = 180.0
GONE_S = 15.0  # processes that are left after this are orphans
TIMEOUT_S = 10  # of a run whose cable is cut for good
SUBNET = 215


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is None if it had to be killed after ``LIMIT_S``."""

    code: int | None
    err: str
    orphans: int

    @property
    def hung(self) -> bool:
        return self.code is None or self.orphans > 0

    def is_one_line(self, words: str) -> bool:
        """Whether the last words were one line that begins with the command's name."""
        lines = self.err.splitlines()
        return len(lines) == 1 and lines[0].startswith("delaygrad: ") and words in lines[0]


def train(stages: int, run_dir: Path, *more: object) -> list[object]:
    """Return the arguments that train a small network, with a fill, a steady state and a drain."""
    length = ("--iterations", 300, "--log-every", 5, "--checkpoint-every", 20, "--quiet")
    return [*commands.train(run_dir, stages), "--runtime", "distributed", *length, *more]


def end_of(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of a command and of everything that it started."""
    try:
        err, code = process.communicate(timeout=LIMIT_S)[1], process.poll()
    except subprocess.TimeoutExpired:
        err, code = "", None
    deadline = time.monotonic() + (GONE_S if code is not None else 0)
    while session(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return Ended(code, err, len(session(process)))


def run(*words: object) -> Ended:
    """Run delaygrad to its end."""
    with running(*DELAYGRAD, *words) as process:
        return end_of(process)


def events(run_dir: Path) -> int:
    """Return how many lines a run has on record."""
    path = run_dir / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: subprocess.Popen[str], run_dir: Path, wanted: int) -> bool:
    """Wait for so many records; return whether the command still runs."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and events(run_dir) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    return process.poll() is None


def digest(run_dir: Path) -> str | None:
    """Return the checksum of a finished run's parameters."""
    path = run_dir / "summary.json"
    return json.loads(path.read_text())["parameters_sha256"] if path.exists() else None


def finish(stages: int, run_dir: Path, expected: str) -> Record:
    """Continue a run that was stopped, and compare its end."""
    again = "resumed"
    if not list(run_dir.glob("checkpoints/iteration-????????")):  # nothing was saved yet
        again, run_dir = "restarted", run_dir.with_name("again")
        ended = run(*train(stages, run_dir))
    elif digest(run_dir) is not None:  # the attack met a run that had just finished
        again, ended = "finished", Ended(0, "", 0)
    else:
        ended = run("resume", run_dir, "--quiet")
    if ended.hung:
        return {"outcome": "hung", "then": again}
    if ended.code != 0:
        return {"outcome": "lost", "then": again, "error": ended.err[-2000:]}
    same = digest(run_dir) == expected
    return {"outcome": "survived" if same else "silent", "then": again}


def reached(
    process: subprocess.Popen[str], run_dir: Path, rng: random.Random, reference: Record
) -> bool:
    """Wait for a random moment: one in four before the first record, the others at a record.

    Some of these fall into the drain, the last evaluation and the figures.
    """
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.0, reference["start_s"]))
    else:
        wait_for(process, run_dir, rng.randint(1, reference["records"]))
        time.sleep(rng.uniform(0.0, 0.05))
    return process.poll() is None


def kill(rng: random.Random, folder: Path, reference: Record) -> Record:
    """SIGKILL one worker, the launcher, or the whole group at a random moment."""
    stages, run_dir = reference["stages"], folder / "run"
    target = rng.choice(["worker", "launcher", "group"])
    record: Record = {"target": target, "stages": stages}
    with running(*DELAYGRAD, *train(stages, run_dir)) as process:
        if not reached(process, run_dir, rng, reference):
            return {**record, "outcome": "missed"}
        record["records"] = events(run_dir)
        alive = workers(process)
        if target == "worker" and alive:
            os.kill(rng.choice(alive), signal.SIGKILL)
        elif target == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            record["target"] = "launcher"
            process.kill()
        ended = end_of(process)
    if ended.hung:
        return {**record, "outcome": "hung", "orphans": ended.orphans}
    if record["target"] == "worker" and ended.code != 0 and not ended.is_one_line("SIGKILL"):
        return {**record, "outcome": "unclear", "error": ended.err[-2000:]}
    return {**record, **finish(stages, run_dir, reference["sha256"])}


def interrupt(rng: random.Random, folder: Path, reference: Record) -> Record:
    """Ctrl-C: SIGINT to the whole group at a random moment."""
    stages, run_dir = reference["stages"], folder / "run"
    record: Record = {"stages": stages}
    with running(*DELAYGRAD, *train(stages, run_dir)) as process:
        if not reached(process, run_dir, rng, reference):
            return {**record, "outcome": "missed"}
        record["records"] = events(run_dir)
        os.killpg(process.pid, signal.SIGINT)
        ended = end_of(process)
    if ended.hung:
        return {**record, "outcome": "hung", "orphans": ended.orphans}
    over = digest(run_dir) is not None and not ended.err  # Python was on its way out
    if ended.code != 0 and not over and not ended.is_one_line("stopped by SIGINT"):
        early = "in <module>" in ended.err and not run_dir.exists()
        outcome = "early" if early else "unclear"
        return {**record, "outcome": outcome, "code": ended.code, "error": ended.err[-2000:]}
    return {**record, **finish(stages, run_dir, reference["sha256"])}


def full_disk(rng: random.Random, folder: Path, reference: Record) -> Record:
    """A disk of a random size fills up; it is made larger, and the run continued."""
    stages, runtime = reference["stages"], rng.choice(["local", "distributed"])
    size_kb = rng.randrange(50, 500)
    record: Record = {"stages": stages, "runtime": runtime, "size_kb": size_kb}
    with small_disk(folder / "disk", size_kb) as disk:
        more = ("--keep-checkpoints", 100, "--runtime", runtime)
        ended = run(*train(stages, disk / "run", *more))
        if ended.code == 0:
            return {**record, "outcome": "missed"}
        if ended.hung:
            return {**record, "outcome": "hung", "orphans": ended.orphans}
        if not ended.is_one_line("No space left"):
            return {**record, "outcome": "unclear", "error": ended.err[-2000:]}
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True, timeout=30)
        return {**record, **finish(stages, disk / "run", reference["sha256"])}


@contextmanager
def small_disk(place: Path, size_kb: int) -> Iterator[Path]:
    """Within the block there is a disk of its own."""
    place.mkdir()
    disk = ("-t", "tmpfs", "-o", f"size={size_kb}k", "delaygrad-faults", place)
    subprocess.run(["mount", *disk], check=True, timeout=30)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


def cut_for_a_while(rng: random.Random, folder: Path, reference: Record) -> Record:
    """The cable between two hosts is cut for 2 seconds: the run waits, and goes on."""
    return cut(rng, folder, reference, for_good=False)


def cut_for_good(rng: random.Random, folder: Path, reference: Record) -> Record:
    """The cable is cut until both hosts have given up; then the run is resumed."""
    return cut(rng, folder, reference, for_good=True)


def cut(rng: random.Random, folder: Path, reference: Record, *, for_good: bool) -> Record:
    run_dir, more = folder / "run", ("--timeout-s", TIMEOUT_S) if for_good else ()
    words, record = train(2, run_dir, *more), {"stages": 2}
    with two_hosts(SUBNET) as hosts:
        with running(*on(hosts, 1, *words)) as second, running(*on(hosts, 0, *words)) as first:
            if not wait_for(first, run_dir, rng.randint(1, reference["records"] * 2 // 3)):
                return {**record, "outcome": "missed"}
            record["records"] = events(run_dir)
            hosts[1].plug("down")
            if not for_good:
                time.sleep(2.0)
                hosts[1].plug("up")
            both = [end_of(first), end_of(second)]
        if any(ended.hung for ended in both):
            return {**record, "outcome": "hung"}
        if digest(run_dir) is None:  # torchrun adds a report of its own to the ranks' lines
            told = [ended.err for ended in both if "delaygrad: [stage" in ended.err]
            if not told:
                errors = [ended.err[-1000:] for ended in both]
                return {**record, "outcome": "unclear", "error": errors}
            if not for_good:
                return {**record, "outcome": "lost", "error": told[0][-1000:]}
    return {**record, **finish(2, run_dir, reference["sha256"])}


def on(hosts: tuple[Host, Host], k: int, *arguments: object) -> tuple[object, ...]:
    """The command that runs one host's part."""
    return (
        *hosts[k].command, "env", f"GLOO_SOCKET_IFNAME={hosts[k].cable}", *TORCHRUN,
        "--nnodes", 2, "--nproc-per-node", 1, "--node-rank", k,
        "--master-addr", hosts[0].address, "--master-port", 29400, "-m", "delaygrad", *arguments,
    )  # fmt: skip
