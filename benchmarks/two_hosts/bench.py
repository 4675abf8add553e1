"""Two hosts and a slow link: the GPT of 25 million parameters, one rank on each host.

The hosts are network namespaces of this machine (benchmarks/hosts.py). Their cable lets through
1 Gbit/s or 100 Mbit/s in each direction. Needs root and the commands ip and tc (Debian: iproute2);
without them it says so and ends.

Run: python -m benchmarks.two_hosts.bench --output-dir benchmarks/two_hosts/results
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.hosts import ADDRESSES, CABLE, HOSTS, run, two_hosts

# Name, also tc's -> in words, and a bucket that holds what comes in a tick of the kernel's timer.
LINKS = {"1gbit": ("1 Gbit/s", "1mb"), "100mbit": ("100 Mbit/s", "128kb")}
QUEUE = "100ms"
CONTESTANTS = (
    "bp", "ceiling", "gpipe-m2", "gpipe-m4", "gpipe-m8", "1f1b-m2", "1f1b-m4", "1f1b-m8",
    "interleaved-m4", "zb-m4", "zbv-m4", "ddp", "ddp-fp16",
    "ddg", "ddg-slack1", "ddg-slack2", "ddg-bf16", "ddg-slack1-bf16",
)  # fmt: skip
PORT = 29450


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, and where the results go."""

    output_dir: Path
    workload: str = "gpt25m"
    links: tuple[Literal["1gbit", "100mbit"], ...] = ("1gbit", "100mbit")
    contestants: tuple[str, ...] = CONTESTANTS
    rounds: int = 5
    turn_s: float = 20.0
    smoke: bool = False


def obstacle() -> str | None:
    """Say why namespaces cannot be made here, if they cannot."""
    if os.geteuid() != 0:
        return "it must run as root, to make network namespaces"
    missing = [command for command in ("ip", "tc") if shutil.which(command) is None]
    return f"the command {missing[0]} is missing (Debian: iproute2)" if missing else None


@contextmanager
def slow_link(link: str) -> Iterator[None]:
    """Within the block there are two hosts; a token bucket at both ends of their cable slows it."""
    with two_hosts():
        for host, end in zip(HOSTS, CABLE, strict=True):
            shape = ("tbf", "rate", link, "burst", LINKS[link][1], "latency", QUEUE)
            run("tc", "-n", host, "qdisc", "add", "dev", end, "root", *shape)
        yield


def start(host: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start one host's rank, in a session of its own."""
    variables = {
        "RANK": host,
        "WORLD_SIZE": len(HOSTS),
        "LOCAL_RANK": 0,
        "MASTER_ADDR": ADDRESSES[0],
        "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": CABLE[host],
        "OMP_NUM_THREADS": len(os.sched_getaffinity(0)),
    }
    command = [sys.executable, "-m", "delaygrad", "bench", *arguments]
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[host], *command],
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        start_new_session=True,
    )


def contest(link: str, options: Options) -> int:
    """Run one contest; return its exit status."""
    arguments = [
        "--workload", options.workload, "--stages", "2", "--link", f"{LINKS[link][0]}, two hosts",
        "--rounds", str(options.rounds), "--turn-s", str(options.turn_s),
        "--contestants", *options.contestants,
        *(["--smoke"] if options.smoke else []),
    ]  # fmt: skip
    stem = options.output_dir / f"{options.workload}-{link}"
    reports = ["--output", f"{stem}.json", "--figure", f"{stem}.png"]
    with slow_link(link):
        ranks = []
        try:
            ranks = [start(0, [*arguments, *reports]), start(1, arguments)]
            while all(rank.poll() is None for rank in ranks):
                time.sleep(0.2)
            if not any(rank.returncode for rank in ranks):
                for rank in ranks:  # one has ended well: so will the other
                    rank.wait(timeout=60)
        finally:
            for rank in ranks:
                end(rank)
    return max(abs(rank.returncode) for rank in ranks)


def end(rank: subprocess.Popen[bytes]) -> None:
    """End a rank and whatever it has started."""
    if rank.poll() is None:
        os.killpg(rank.pid, signal.SIGTERM)
        try:
            rank.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()


def main(options: Options) -> None:
    if (reason := obstacle()) is not None:
        print(f"skipped: {reason}")
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then too
    for link in options.links:
        try:
            status = contest(link, options)
        except subprocess.CalledProcessError as error:
            print(f"skipped: cannot make network namespaces here: {error.stderr.strip()}")
            return
        if status != 0:
            sys.exit(status)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
