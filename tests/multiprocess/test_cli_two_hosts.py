"""One run on two hosts ends as the run on one: stage k on host k."""

from __future__ import annotations

import shutil
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
from hosts import Host, two_hosts

pytestmark = pytest.mark.slow

Hosts = tuple[Host, Host]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts(213) as found:
        yield found


def on(hosts: Hosts, k: int, rendezvous: str, *arguments: object) -> tuple[object, ...]:
    """The command that runs one host's part, under torchrun or with variables set by hand."""
    first, own = hosts[0], hosts[k]
    here = (*own.command, "env", f"GLOO_SOCKET_IFNAME={own.cable}")
    if rendezvous == "by hand":
        group = (f"MASTER_ADDR={first.address}", "MASTER_PORT=29400", "WORLD_SIZE=2")
        return (*here, *group, "LOCAL_RANK=0", f"RANK={k}", *DELAYGRAD, *arguments)
    where = {
        "static": ("--node-rank", k, "--master-addr", first.address, "--master-port", 29400),
        "c10d": (
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.address}:29400",
            "--rdzv-id", "test", "--rdzv-conf", f"is_host={1 - k}", "--local-addr", own.address,
        ),
    }[rendezvous]  # fmt: skip
    ranks = ("--nnodes", 2, "--nproc-per-node", 1)
    return (*here, *TORCHRUN, *ranks, *where, "-m", "delaygrad", *arguments)


def run_on_both(hosts: Hosts, rendezvous: str, *arguments: list[str]) -> None:
    """Run one command on each host to its end."""
    with ExitStack() as stack:
        # Host 1 first: it waits for the rendezvous.
        started = [
            stack.enter_context(running(*on(hosts, k, rendezvous, *arguments[k]))) for k in (1, 0)
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


def test_two_hosts_with_a_shared_folder(hosts: Hosts, expected: str, tmp_path: Path) -> None:
    arguments = [*train(tmp_path / "run", 2, *LENGTH), "--runtime", "distributed"]
    run_on_both(hosts, "by hand", arguments, arguments)
    assert summary(tmp_path / "run")["parameters_sha256"] == expected


def test_two_hosts_with_folders_of_their_own_resume_what_both_have(
    hosts: Hosts, expected: str, tmp_path: Path
) -> None:
    folders = [tmp_path / "host0", tmp_path / "host1"]
    run_on_both(
        hosts,
        "c10d",
        *([*train(folder, 2, *LENGTH), "--runtime", "distributed"] for folder in folders),
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
    run_on_both(hosts, "static", *(["resume", str(folder), "--quiet"] for folder in folders))
    assert summary(folders[0])["parameters_sha256"] == expected


def test_host_that_goes_down_ends_the_other(hosts: Hosts, tmp_path: Path) -> None:
    endless = ("--iterations", 1_000_000, "--quiet", "--timeout-s", 20)
    arguments = [*train(tmp_path / "run", 2, *endless), "--runtime", "distributed"]
    with (
        running(*on(hosts, 1, "by hand", *arguments)) as host1,
        running(*on(hosts, 0, "by hand", *arguments)) as host0,
    ):
        wait_until(lambda: reports(tmp_path / "run"))
        hosts[1].plug("down")
        try:
            _, err = host0.communicate(timeout=TIMEOUT_S)
        finally:
            hosts[1].plug("up")
        assert host0.returncode != 0 and host1.poll() is None or host1.returncode != 0
        ours = [line for line in err.splitlines() if line.startswith("delaygrad: ")]
        assert len(ours) == 1 and "rank 1" in ours[0]
