"""`--model` and `--data` with functions of the user's, from a module in the current folder."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delaygrad.cli.main import main

MODULE = """
import torch
from torch import nn
from delaygrad.data import load


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x)


def few_digits():
    return load("digits", holdout=1000)


def nothing():
    return None
"""
OWN = ("--model", "our_net:Net", "--data", "our_net:few_digits")


@pytest.fixture(autouse=True)
def in_a_folder_with_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    Path("our_net.py").write_text(MODULE)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    sys.modules.pop("our_net", None)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main([*arguments, "--json", "--quiet"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_network_of_the_users_is_trained_and_planned(capsys: pytest.CaptureFixture[str]) -> None:
    run = ("train", *OWN, "--iterations", "4", "--checkpoint-every", "2", "--run-dir")
    whole = printed(capsys, *run, "run")
    assert len(whole["cuts"]) == 1
    again = printed(capsys, *run, "again", "--cuts", *whole["cuts"])
    assert again["parameters_sha256"] == whole["parameters_sha256"]
    link = ("--bandwidth", "1Gbit", "--latency-ms", "0.1", "--no-side-by-side")
    plan = printed(capsys, "plan", *OWN, "--stages", "2", *link)
    assert "--model our_net:Net" in plan["plans"][0]["command"]
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert (config["model"], config["data"]) == ("our_net:Net", "our_net:few_digits")
    main(["report", "run", "again"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("our_net:nothing", "returned no network (our_net:nothing: NoneType)"),
        ("our_net:absent", "cannot import the function (model: our_net:absent)"),
        ("absent:Net", "cannot import the function (model: absent:Net)"),
    ],
)
def test_a_function_that_makes_no_network_is_named(name: str, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--model", name, "--run-dir", "run"])
    assert message in str(caught.value.code)
    assert not Path("run").exists()


def test_a_network_of_the_users_takes_part_in_a_contest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("bp", "1f1b-m2", "ddp", "ddg")
    short = ("--iterations", "2", "--rounds", "1", "--batch-size", "8")
    found = printed(capsys, "bench", *OWN, "--contestants", *names, *short)
    assert found["workload"] == "our_net:Net" and found["cuts"][0].startswith(("blocks", "head"))
    assert found["description"].startswith("our_net:Net, 8 samples of our_net:few_digits")
    assert [each["name"] for each in found["contestants"]] == list(names)
    assert not any("does_not_run" in each for each in found["contestants"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "our_net:Net"), "needs --model and --data.*data: not given"),
        (("--data", "our_net:few_digits"), "needs --model and --data.*model: not given"),
        (("--batch-size", "8"), "needs --model and --data"),
        ((*OWN, "--smoke"), "smoke shrinks a --workload"),
        (("--model", "our_net:nothing", *OWN[2:]), "returned no network"),
    ],
)
def test_a_contest_of_ones_own_needs_a_network_and_data(
    flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *flags])
    assert re.search(message, str(caught.value.code))
