"""Nobody but the ranks takes part in a run on one machine: no port is open to another machine."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import DELAYGRAD, reports, running, session, train, wait_until
from hosts import two_hosts
from networks import OPTIMIZERS, batches, into_stages, mlp
from sockets import is_loopback, listening_addresses
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.launch import Launch, joined, run_workers
from delaygrad.runtime.control import Ranks

PACKAGE = Path(dg.__file__).parent
ENDLESS = ("--iterations", 1_000_000, "--log-every", 5, "--quiet", "--runtime", "distributed")


def work_and_list_sockets() -> list[tuple[str, int]]:
    """Make every kind of process group that the library makes, and use it."""
    launch = Launch(num_workers=2, timeout_s=30)
    with joined(launch, torch.device("cpu")) as rank:
        control = Ranks(timeout_s=30)
        torch.manual_seed(0)
        stage = into_stages(mlp(), 2)[rank]
        with dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["sgd"]) as pipe:
            for inputs, targets in batches(3, (6,)):
                pipe.step(inputs, targets)
            launcher = multiprocessing.parent_process()
            assert launcher is not None and launcher.pid is not None
            # This one, the fork server, and the process that started both.
            found = listening_addresses([os.getpid(), os.getppid(), launcher.pid])
            control.barrier()
    return found


def test_workers_listen_on_the_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # a user's own, for runs on several hosts
    found = run_workers(work_and_list_sockets, Launch(num_workers=2))
    for rank, addresses in found.items():
        assert addresses, f"rank {rank} listens nowhere: the test does not see its sockets"
        assert all(is_loopback(address) for address, _ in addresses), addresses


def test_the_listener_that_a_stranger_can_reach_is_seen() -> None:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with suppress(OSError), socket.create_server((address, 0), family=family) as server:
            open_ones = [
                port for ip, port in listening_addresses([os.getpid()]) if not is_loopback(ip)
            ]
            assert open_ones == [server.getsockname()[1]]
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with suppress(OSError), socket.create_server((address, 0), family=family):
            assert all(is_loopback(ip) for ip, _ in listening_addresses([os.getpid()]))


def test_nothing_in_the_package_opens_another_port_or_unpickles_messages() -> None:
    forbidden = ("_object", "_object_list", "TCPStore", "elastic")
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in names(node)
        if name.endswith(forbidden) and "distributed" in path.read_text(encoding="utf-8")
    ]
    assert not found


def names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    return []


# --- a stranger on another host ------------------------------------------------------------------

SCAN = """
import socket, sys
for port in range(1, 65536):
    with socket.socket() as tried:
        tried.settimeout(5)
        if tried.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


@pytest.mark.slow
def test_a_stranger_finds_no_open_port(tmp_path: Path) -> None:
    wave = "import socket, time; s = socket.create_server(('', 4321)); time.sleep(99)"
    arguments = train(tmp_path / "run", 2, *ENDLESS)
    with (
        two_hosts(214) as (victim, stranger),
        running(*victim.command, sys.executable, "-c", wave) as control,
        running(*victim.command, *DELAYGRAD, *arguments) as process,
    ):
        wait_until(lambda: listening_addresses([control.pid]))
        wait_until(lambda: reports(tmp_path / "run"))
        assert len(listening_addresses(session(process))) >= 2
        scan = subprocess.run(
            [*stranger.command, sys.executable, "-c", SCAN, victim.address],
            check=True, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert process.poll() is None
    assert scan.stdout.split() == ["4321"]  # the control, which everybody can reach


# --- signals that a run was told to ignore -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("runtime", ["local", "distributed"])
def test_a_run_in_the_background_survives_its_terminal(
    number: signal.Signals, runtime: str, tmp_path: Path
) -> None:
    # What nohup does for SIGHUP, and a shell without job control for SIGINT of a job with `&`.
    ignoring = ("sh", "-c", f"trap '' {number.name[3:]}; exec \"$@\"", "sh")
    folder = tmp_path / "run"
    with running(
        *ignoring, *DELAYGRAD, *train(folder, 2, *ENDLESS, "--runtime", runtime)
    ) as process:
        shown = Path(f"/proc/{process.pid}/cmdline")
        wait_until(
            lambda: shown.read_bytes().startswith(DELAYGRAD[0].encode())
        )  # no shell any more
        os.killpg(process.pid, number)  # while it starts
        wait_until(lambda: reports(folder))
        os.killpg(process.pid, number)
        so_far = len(reports(folder))
        wait_until(lambda: len(reports(folder)) > so_far + 3)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=15)
        wait_until(lambda: not session(process), timeout_s=5)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "delaygrad: stopped by SIGTERM; checkpoints already written are kept\n"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["local", "distributed"])
def test_a_closed_terminal_ends_a_run_in_the_foreground(runtime: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with running(*DELAYGRAD, *train(folder, 2, *ENDLESS, "--runtime", runtime)) as process:
        wait_until(lambda: reports(folder))
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=15)
        wait_until(lambda: not session(process), timeout_s=5)
    assert process.returncode == 128 + signal.SIGHUP
