"""The link between two devices: what sending takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from delaygrad.errors import ConfigError

_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link that carries both directions at once.

    Args:
        bandwidth_bytes_per_s: of each direction, positive.
        latency_s: seconds from one end to the other for an empty message.
    Raises:
        ConfigError: a number is out of range.
    Example:
        >>> Link(bandwidth_bytes_per_s=1000, latency_s=0.5).message_s(2000)
        2.5
    """

    bandwidth_bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if not self.bandwidth_bytes_per_s > 0 or not 0 <= self.latency_s < math.inf:
            raise ConfigError(
                f"a link needs a positive bandwidth and a latency of at least 0 (bytes per second: "
                f"{self.bandwidth_bytes_per_s:g}, latency_s: {self.latency_s:g})"
            )

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds for which a message occupies the link."""
        return num_bytes / self.bandwidth_bytes_per_s

    def message_s(self, num_bytes: float) -> float:
        """Seconds from sending a message to its arrival."""
        return self.latency_s + self.transfer_s(num_bytes)

    def ring_all_reduce_s(self, num_bytes: float, num_devices: int) -> float:
        """Seconds to add up one tensor per device around a ring of such links.

        2(K-1) steps, each of which sends 1/K of the tensor to the neighbour.

        Args:
            num_bytes: of the tensor.
            num_devices: K, at least 1.
        References:
            Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
            workstations", JPDC 2009.
        Example:
            >>> Link(bandwidth_bytes_per_s=100, latency_s=1).ring_all_reduce_s(400, 4)
            12.0
        """
        return 2 * (num_devices - 1) * self.message_s(num_bytes / num_devices)


def chosen_link(bandwidth: str | None, latency_ms: float | None) -> Link | Literal["loopback"]:
    """Return the link that was given, or say which one to measure.

    Raises:
        ConfigError: only one of the two is given, or it cannot be read.
    """
    if (bandwidth is None) != (latency_ms is None):
        raise ConfigError(
            f"a link has a bandwidth and a latency (bandwidth: {bandwidth}, latency_ms: "
            f"{latency_ms}); give both, or neither to measure the loopback of this machine"
        )
    if bandwidth is None or latency_ms is None:
        return "loopback"
    return Link(bandwidth_bytes_per_s=parse_bandwidth(bandwidth), latency_s=latency_ms / 1e3)


def parse_bandwidth(text: str) -> float:
    """Read a bandwidth such as 1Gbit, 100Mbps or 2.5GB/s; a small b is a bit, a large one a byte.

    Returns:
        bandwidth_bytes_per_s.
    Raises:
        ConfigError: it is none, or not positive.
    Example:
        >>> parse_bandwidth("1Gbit"), parse_bandwidth("2MB/s"), parse_bandwidth("1MiB/s")
        (125000000.0, 2000000.0, 1048576.0)
    """
    match = re.fullmatch(r"([\d.]+)\s*([kmgtKMGT]i?|)(bits?|b|B)(/s|ps)?", text.strip())
    value = _positive(match)
    if match is None or value is None:
        raise ConfigError(f"cannot read the bandwidth ({text!r}); write 1Gbit, 100Mbit or 2.5GB/s")
    return value / (1 if match[3] == "B" else 8)


def parse_bytes(text: str) -> int:
    """Read a size such as 512MiB, 2GB or 1000000.

    Raises:
        ConfigError: it is none, or not positive.
    Example:
        >>> parse_bytes("1MiB"), parse_bytes("2 GB")
        (1048576, 2000000000)
    """
    value = _positive(re.fullmatch(r"([\d.]+)\s*([kmgt]i?|)b?", text.strip().lower()))
    if value is None:
        raise ConfigError(f"cannot read the size ({text!r}); write 512MiB, 2GB or bytes")
    return int(value)


def _positive(match: re.Match[str] | None) -> float | None:
    """The number times its unit; None unless positive and finite."""
    try:
        value = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    except ValueError:  # two points
        return None
    return value if 0 < value < math.inf else None
