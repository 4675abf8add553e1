"""One run on two hosts (network namespaces joined by a cable) ends as the run on one.

    host 0   10.213.0.1   torchrun --node-rank 0   stage 0
                |  veth
    host 1   10.213.0.2   torchrun --node-rank 1   stage 1

Each host sees its own loopback and one end of the cable, nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import (
    DELAYGRAD,
    TIMEOUT_S,
    TORCHRUN,
    here,
    reports,
    running,
    summary,
    train,
    wait_until,
)

pytestmark = pytest.mark.slow

HOSTS = tuple(f"delaygrad-test-{os.getpid()}-{index}" for index in range(2))
CABLE = tuple(f"dg{os.getpid()}-{index}" for index in range(2))
ADDRESSES = ("10.213.0.1", "10.213.0.2")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and the ip command (Debian: iproute2), to make two namespaces")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        for host, end, address in zip(HOSTS, CABLE, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", host)
            ip("-n", host, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield HOSTS
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot make network namespaces here: {error.stderr.strip()}")
    finally:
        for host in HOSTS:  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=10)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)


def on(host: int, rendezvous: str, *arguments: object) -> tuple[object, ...]:
    """The command that runs one host's part, under torchrun or with variables set by hand."""
    here = ("ip", "netns", "exec", HOSTS[host], "env", f"GLOO_SOCKET_IFNAME={CABLE[host]}")
    if rendezvous == "by hand":
        group = (f"MASTER_ADDR={ADDRESSES[0]}", "MASTER_PORT=29400", "WORLD_SIZE=2", "LOCAL_RANK=0")
        return (*here, *group, f"RANK={host}", *DELAYGRAD, *arguments)
    where = {
        "static": ("--node-rank", host, "--master-addr", ADDRESSES[0], "--master-port", 29400),
        "c10d": (
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400",
            "--rdzv-id", "test", "--rdzv-conf", f"is_host={1 - host}",
            "--local-addr", ADDRESSES[host],
        ),
    }[rendezvous]  # fmt: skip
    ranks = ("--nnodes", 2, "--nproc-per-node", 1)
    return (*here, *TORCHRUN, *ranks, *where, "-m", "delaygrad", *arguments)


def run_on_both(rendezvous: str, *arguments: list[str]) -> None:
    """Run one command on each host to its end."""
    with ExitStack() as stack:
        # Host 1 first: it waits for the rendezvous.
        started = [
            stack.enter_context(running(*on(host, rendezvous, *arguments[host]))) for host in (1, 0)
        ]
        for process in started:
            _, err = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, err


LENGTH = ("--iterations", 40, "--checkpoint-every", 9, "--quiet")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("one-host") / "run"
    here(train(folder, 2, *LENGTH))
    digest: str = summary(folder)["parameters_sha256"]
    return digest


def test_two_hosts_with_a_shared_folder(
    hosts: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    arguments = [*train(tmp_path / "run", 2, *LENGTH), "--runtime", "distributed"]
    run_on_both("by hand", arguments, arguments)
    assert summary(tmp_path / "run")["parameters_sha256"] == expected


def test_two_hosts_with_folders_of_their_own_resume_what_both_have(
    hosts: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    folders = [tmp_path / "host0", tmp_path / "host1"]
    run_on_both(
        "c10d", *([*train(folder, 2, *LENGTH), "--runtime", "distributed"] for folder in folders)
    )
    assert summary(folders[0])["parameters_sha256"] == expected
    assert [path.name for path in sorted(folders[1].iterdir())] == [
        "checkpoints", "config.json", "run.lock"
    ]  # fmt: skip
    files = [path.name for path in (folders[1] / "checkpoints/iteration-00000036").iterdir()]
    assert sorted(files) == ["stage1.safetensors", "stage1.sha256"]
    # As if host 1 had died before it wrote the last one.
    (folders[0] / "summary.json").unlink()
    shutil.rmtree(folders[1] / "checkpoints/iteration-00000036")
    run_on_both("static", *(["resume", str(folder), "--quiet"] for folder in folders))
    assert summary(folders[0])["parameters_sha256"] == expected


def test_host_that_goes_down_ends_the_other(hosts: tuple[str, str], tmp_path: Path) -> None:
    endless = ("--iterations", 1_000_000, "--quiet", "--timeout-s", 20)
    arguments = [*train(tmp_path / "run", 2, *endless), "--runtime", "distributed"]
    with (
        running(*on(1, "by hand", *arguments)) as host1,
        running(*on(0, "by hand", *arguments)) as host0,
    ):
        wait_until(lambda: reports(tmp_path / "run"))
        ip("-n", HOSTS[1], "link", "set", CABLE[1], "down")
        try:
            _, err = host0.communicate(timeout=TIMEOUT_S)
        finally:
            ip("-n", HOSTS[1], "link", "set", CABLE[1], "up")
        assert host0.returncode != 0 and host1.poll() is None or host1.returncode != 0
        ours = [line for line in err.splitlines() if line.startswith("delaygrad: ")]
        assert len(ours) == 1 and "stage 1 (rank 1)" in ours[0]
