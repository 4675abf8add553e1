"""Which addresses processes listen at, as the system tells it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"


def listening_addresses(pids: Iterable[int]) -> list[tuple[str, int]]:
    """The TCP addresses (IPv4 and IPv6, as hexadecimal words of /proc) and ports."""
    found = []
    for pid in pids:
        inodes = _sockets(pid)
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, port = fields[1].split(":")
                if fields[3] == LISTENING and fields[9] in inodes:
                    found.append((address, int(port, 16)))
    return found


def is_loopback(address: str) -> bool:
    """Whether it is 127.x.x.x or ::1 (words of 32 bits, the least significant byte first)."""
    return address == 24 * "0" + "01000000" or (len(address) == 8 and address.endswith("7F"))


def _sockets(pid: int) -> set[str]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it was closed while we looked
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes
