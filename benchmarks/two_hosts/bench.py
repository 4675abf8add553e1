"""Two hosts and a slow link: the GPT of 25 million parameters, one rank on each host.

The hosts are network namespaces of this machine (tests/hosts.py). Their cable lets through
1 Gbit/s or 100 Mbit/s in each direction. Needs root and the commands ip and tc (Debian: iproute2);
without them it says so and ends.

Run: python -m benchmarks.two_hosts.bench --output-dir benchmarks/two_hosts/results
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tyro

from tests.commands import DELAYGRAD
from tests.hosts import Host, two_hosts

# Name, also tc's -> in words, and a bucket that holds what comes in a tick of the kernel's timer.
LINKS = {"1gbit": ("1 Gbit/s", "1mb"), "100mbit": ("100 Mbit/s", "128kb")}
CONTESTANTS = (
    "bp", "ceiling", "gpipe-m2", "gpipe-m4", "gpipe-m8", "1f1b-m2", "1f1b-m4", "1f1b-m8",
    "interleaved-m4", "zb-m4", "zbv-m4", "ddp", "ddp-fp16",
    "ddg", "ddg-slack1", "ddg-slack2", "ddg-bf16", "ddg-slack1-bf16",
)  # fmt: skip
SUBNET, PORT = 214, 29450


@contextmanager
def slow_link(link: str) -> Iterator[tuple[Host, Host]]:
    """Within the block there are two hosts; a token bucket at both ends of their cable slows it."""
    if shutil.which("tc") is None:
        pytest.skip("the command tc is missing (Debian: iproute2)")
    shape = ("tbf", "rate", link, "burst", LINKS[link][1], "latency", "100ms")
    with two_hosts(SUBNET) as hosts:
        for host in hosts:
            words = ["tc", "-n", host.name, "qdisc", "add", "dev", host.cable, "root", *shape]
            subprocess.run(words, check=True, timeout=30)
        yield hosts


def command(hosts: tuple[Host, Host], rank: int, arguments: list[str]) -> list[str]:
    """Return what runs one host's rank."""
    variables = {
        "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": hosts[rank].cable,
        "OMP_NUM_THREADS": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    environment = [f"{name}={value}" for name, value in variables.items()]
    return [*hosts[rank].command, "env", *environment, *DELAYGRAD, "bench", *arguments]


def contest(link: str, arguments: list[str], reports: list[str]) -> int:
    """Run one contest; return its exit status."""
    with slow_link(link) as hosts:
        other = subprocess.Popen(command(hosts, 1, arguments), start_new_session=True)
        try:
            status = subprocess.run(command(hosts, 0, [*arguments, *reports])).returncode
            return status or other.wait(timeout=60)
        finally:
            other.kill()
            other.wait()


def main(
    output_dir: Path,
    workload: str = "gpt25m",
    links: tuple[str, ...] = tuple(LINKS),
    contestants: tuple[str, ...] = CONTESTANTS,
    rounds: int = 5,
    turn_s: float = 20.0,
    smoke: bool = False,
) -> None:
    """Run a contest over each link; settings as of ``delaygrad bench``."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for link in links:
        arguments = [
            "--workload", workload, "--stages", "2", "--link", f"{LINKS[link][0]}, two hosts",
            "--rounds", str(rounds), "--turn-s", str(turn_s), "--contestants", *contestants,
            *(["--smoke"] if smoke else []),
        ]  # fmt: skip
        stem = output_dir / f"{workload}-{link}"
        try:
            status = contest(
                link, arguments, ["--output", f"{stem}.json", "--figure", f"{stem}.png"]
            )
        except pytest.skip.Exception as reason:
            sys.exit(f"skipped: {reason}")
        if status != 0:
            sys.exit(status)


if __name__ == "__main__":
    tyro.cli(main)
