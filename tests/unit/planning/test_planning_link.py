import pytest

from delaygrad.errors import ConfigError
from delaygrad.planning.link import Link, parse_bandwidth, parse_bytes


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("1Gbit", 125e6),
        ("100 Mbit/s", 12.5e6),
        ("100mbit", 12.5e6),
        ("100Mbps", 12.5e6),
        ("2.5GB/s", 2.5e9),
        ("1 GiB/s", 2**30),
        ("8bit", 1.0),
        ("12B", 12.0),
        ("100MBps", 100e6),
    ],
)
def test_bandwidths(text, bytes_per_s):
    assert parse_bandwidth(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "1", "1G", "-1Gbit", "0Gbit", "1.2.3Gbit", "1Gbit/h"])
def test_what_is_no_bandwidth_is_refused(text):
    with pytest.raises(ConfigError, match="write 1Gbit"):
        parse_bandwidth(text)


def test_sizes():
    assert parse_bytes("512MiB") == 2**29 and parse_bytes("1.5 kB") == 1500
    for text in ("", "much", "-1", "0", "1Mbit"):
        with pytest.raises(ConfigError, match="write 512MiB"):
            parse_bytes(text)


def test_all_reduce_of_two_sends_the_tensor_once_each_way():
    link = Link(bandwidth_bytes_per_s=10.0, latency_s=0.5)
    assert link.ring_all_reduce_s(100, 1) == 0.0
    assert link.ring_all_reduce_s(100, 2) == pytest.approx(2 * (0.5 + 5.0))
    assert link.ring_all_reduce_s(100, 4) == pytest.approx(6 * (0.5 + 2.5))


@pytest.mark.parametrize("numbers", [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1), (float("nan"), 0.0)])
def test_impossible_links_are_refused(numbers):
    with pytest.raises(ConfigError, match="a link needs"):
        Link(bandwidth_bytes_per_s=numbers[0], latency_s=numbers[1])
