"""Two hosts on this machine: network namespaces, joined by a virtual cable.

    host 0   10.214.0.1   --- cable ---   10.214.0.2   host 1

Each host sees its own loopback and one end of the cable, nothing else. Needs root and the command
ip.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

HOSTS = tuple(f"delaygrad-{os.getpid()}-{index}" for index in range(2))
CABLE = tuple(f"dg{os.getpid()}-{index}" for index in range(2))
ADDRESSES = ("10.214.0.1", "10.214.0.2")


@contextmanager
def two_hosts() -> Iterator[None]:
    """Within the block there are two hosts, joined by a cable."""
    try:
        for host in HOSTS:
            run("ip", "netns", "add", host)
        run("ip", "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        for host, (name, end) in enumerate(zip(HOSTS, CABLE, strict=True)):
            run("ip", "link", "set", end, "netns", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            connect(host)
        yield
    finally:
        for host in HOSTS:  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=30)


def connect(host: int) -> None:
    """Connect a host to the cable."""
    run("ip", "-n", HOSTS[host], "addr", "replace", f"{ADDRESSES[host]}/24", "dev", CABLE[host])
    run("ip", "-n", HOSTS[host], "link", "set", CABLE[host], "up")


def disconnect(host: int) -> None:
    """Cut the cable at one end."""
    run("ip", "-n", HOSTS[host], "link", "set", CABLE[host], "down")


def run(*command: object) -> None:
    """Run a command to its end."""
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
