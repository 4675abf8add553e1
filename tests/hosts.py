"""Two hosts on this machine: network namespaces joined by a cable.

    host 0   10.SUBNET.0.1
                |  veth
    host 1   10.SUBNET.0.2

Each host sees its own loopback and one end of the cable, nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    cable: str

    @property
    def command(self) -> tuple[str, ...]:
        """What runs a command on this host, in front of it."""
        return ("ip", "netns", "exec", self.name)

    def plug(self, state: str) -> None:
        """Put the cable in (``up``) or pull it out (``down``)."""
        ip("-n", self.name, "link", "set", self.cable, state)


@contextmanager
def two_hosts(subnet: int) -> Iterator[tuple[Host, Host]]:
    """Make two hosts; skip the test where that is not possible."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and the ip command (Debian: iproute2), to make two namespaces")
    mark = f"{subnet}-{os.getpid()}"
    hosts = [Host(f"dg-{mark}-{k}", f"10.{subnet}.0.{k + 1}", f"dg{mark}-{k}") for k in (0, 1)]
    try:
        for host in hosts:
            ip("netns", "add", host.name)
        ip("link", "add", hosts[0].cable, "type", "veth", "peer", "name", hosts[1].cable)
        for host in hosts:
            ip("link", "set", host.cable, "netns", host.name)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            host.plug("up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts[0], hosts[1]
    except subprocess.CalledProcessError as error:
        if error.cmd[0] != "ip":
            raise
        pytest.skip(f"cannot make network namespaces here: {error.stderr.strip()}")
    finally:
        for host in hosts:  # the cable goes with them
            command = ["ip", "netns", "delete", host.name]
            subprocess.run(command, capture_output=True, timeout=10)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)
