"""``delaygrad train`` as a user runs it: one result in every runtime, and a whole run folder."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from commands import (
    CUTS,
    DELAYGRAD,
    TIMEOUT_S,
    TORCHRUN,
    here,
    ranks_of,
    reports,
    running,
    summary,
    train,
    wait_until,
)
from ranks import run_ranks
from safetensors.torch import load_file
from torchrun_ranks import run_program

from delaygrad.cli.main import main
from delaygrad.data import load
from delaygrad.errors import DataError
from delaygrad.models import build
from delaygrad.records import read_events
from delaygrad.runtime.control import Ranks
from delaygrad.training import TrainConfig, load_config
from delaygrad.training.run import require_alike

pytestmark = pytest.mark.slow

# 15 iterations per epoch: nothing divides anything.
SHORT = ("--iterations", 22, "--holdout", 7, "--log-every", 4, "--checkpoint-every", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder, stdout and stderr of one distributed run."""
    folder = tmp_path_factory.mktemp("distributed") / "run"
    words = train(folder, 2, *SHORT, "--runtime", "distributed", "--json")
    with running(*DELAYGRAD, *words) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return folder, out, err


def test_distributed_run_ends_as_the_local_one(run: tuple[Path, str, str], tmp_path: Path) -> None:
    here(train(tmp_path / "local", 2, *SHORT))
    local, distributed = summary(tmp_path / "local"), summary(run[0])
    for key in ("parameters_sha256", "test_accuracy", "test_loss", "train_loss", "cuts"):
        assert local[key] == distributed[key], key

    def losses(folder: Path) -> list[tuple[int, float]]:
        events = read_events(folder / "records.jsonl")
        return [(e["iteration"], e["loss"]) for e in events if e["event"] != "checkpoint"]

    assert losses(tmp_path / "local") == losses(run[0])


def test_with_json_stdout_is_the_summary_and_stderr_the_progress(
    run: tuple[Path, str, str],
) -> None:
    folder, out, err = run
    found = json.loads(out)
    assert {**summary(folder), "curves": str(folder / "curves.png")} == found
    assert len(err.splitlines()) == 3  # one line for each evaluation: 1 epoch, and 2 at the end
    assert all(line.startswith("epoch ") for line in err.splitlines())


def test_run_folder_is_whole(run: tuple[Path, str, str]) -> None:
    folder = run[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.json", "curves.png", "model.safetensors", "records.jsonl",
        "run.lock", "summary.json", "tensorboard",
    ]  # fmt: skip
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "iteration-00000021", "iteration-00000022"
    ]  # fmt: skip
    found = summary(folder)
    assert found["iterations"] == 22 and found["test_predictions"] == 360
    assert [row["delay"] for row in found["stages"]] == [1, 0]
    for row in found["stages"]:
        shares = [value for key, value in row.items() if key.endswith("_share")]
        assert all(share >= 0 for share in shares) and 0 < sum(shares) <= 1
    environment = json.loads((folder / "config.json").read_text())["environment"]
    assert environment["torch"] == torch.__version__


def test_model_file_is_the_network_before_the_split(run: tuple[Path, str, str]) -> None:
    config, source = load_config(run[0] / "config.json"), load("digits")
    model = build("mlp", source.sample_shape, source.num_classes, width=16, depth=4, dropout=0.1)
    model.load_state_dict(load_file(run[0] / "model.safetensors"), strict=True)
    everything = torch.arange(source.test.num_samples).numpy()
    with torch.no_grad():
        predicted = model.eval()(source.test.inputs(everything)).argmax(1)
    accuracy = (predicted == source.test.targets(everything)).float().mean().item()
    assert accuracy == pytest.approx(summary(run[0])["test_accuracy"], abs=1e-6)
    assert config.run.cuts == CUTS[2]


def test_one_stage_may_be_distributed_and_reports_may_be_rare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--iterations", 5, "--log-every", 1000, "--evaluate-every", 7)
    main(train(tmp_path / "far", 1, *settings, "--runtime", "distributed"))
    out = capsys.readouterr().out
    here(train(tmp_path / "near", 1, *settings))
    far, near = summary(tmp_path / "far"), summary(tmp_path / "near")
    assert far["parameters_sha256"] == near["parameters_sha256"]
    assert far["train_loss"] == near["train_loss"]
    assert max(map(len, out.splitlines()[:-2])) <= 80


def test_more_stages_than_a_loss_report_or_the_run_is_long(tmp_path: Path) -> None:
    # Six stages: the error gradient of batch 0 never reaches stage 0 before the drain.
    cuts = ("--cuts", "linear2", "linear3", "linear4", "linear5", "linear6")
    settings = ("--iterations", "3", "--log-every", "1", "--checkpoint-every", "2")
    names = ("train", "--model", "mlp", "--width", "8", "--depth", "6", "--stages", "6")
    here([*names, *cuts, *settings, "--run-dir", str(tmp_path / "run")])
    assert reports(tmp_path / "run") == [1, 2, 3]


def test_torchrun_joins_a_run_and_resumes_it(tmp_path: Path) -> None:
    here(train(tmp_path / "local", 2, *SHORT))
    arguments = (*train(tmp_path / "run", 2, *SHORT), "--runtime", "distributed", "--quiet")
    run_program(2, None, arguments)
    expected = summary(tmp_path / "local")["parameters_sha256"]
    assert summary(tmp_path / "run")["parameters_sha256"] == expected
    # As if it had been killed after iteration 21.
    (tmp_path / "run" / "summary.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "iteration-00000022"
    newest.rename(newest.with_name("iteration-00000022.unfinished"))
    out, _ = run_program(2, None, ("resume", tmp_path / "run", "--quiet", "--json"))
    found = json.loads(out)
    assert found["parameters_sha256"] == expected
    assert found["train_loss"] == summary(tmp_path / "local")["train_loss"]


def test_torchrun_restarts_a_run_that_has_lost_a_rank(tmp_path: Path) -> None:
    length = ("--iterations", "800", "--checkpoint-every", "100")
    here(train(tmp_path / "local", 2, *length))
    arguments = (*train(tmp_path / "run", 2, *length), "--runtime", "distributed", "--quiet")
    settings = ("--standalone", "--max-restarts", 1, "--nproc-per-node", 2, "-m", "delaygrad")
    with running(*TORCHRUN, *settings, *arguments) as process:
        wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("iteration-????????")))
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert "exitcode: -9" in err  # it did die
    for key in ("parameters_sha256", "train_loss"):
        assert summary(tmp_path / "run")[key] == summary(tmp_path / "local")[key]


def begin_with_texts(rank: int, world_size: int, folder: Path) -> str:
    config = TrainConfig.of(data="text", data_dir=folder / f"host{rank}", context_length=8)
    control = Ranks(timeout_s=20)
    try:
        require_alike(config.data.load(), False, control)
    except DataError as error:
        return str(error)
    return "nothing was raised"


def test_hosts_with_different_data_are_told_so(tmp_path: Path) -> None:
    for rank, ending in enumerate(("\n", "\r\n")):  # as a version control system may leave them
        (tmp_path / f"host{rank}").mkdir()
        text = 300 * f"to be or not to be{ending}"
        (tmp_path / f"host{rank}" / "input.txt").write_bytes(text.encode())
    told = run_ranks(begin_with_texts, 2, args=(tmp_path,))
    assert told[0] == told[1]
    found = re.fullmatch(
        r"the hosts have different training data \(rank 0: \d+ samples, 8 classes, "
        r"(\w{64}); rank 1: \d+ samples, 9 classes, (\w{64})\); give them the same",
        told[0],
    )
    assert found and found[1] != found[2]
    assert run_ranks(begin_with_texts, 1, args=(tmp_path,)) == ["nothing was raised"]


def test_clipped_and_narrow_runs_end_alike_in_both_runtimes(tmp_path: Path) -> None:
    def digest(*flags: str) -> str:
        folder = tmp_path / "-".join(("run", *flags))
        here(train(folder, 2, "--iterations", 4, *flags))
        found: str = summary(folder)["parameters_sha256"]
        return found

    both = ("--clip-norm", "0.05", "--amp", "bf16")
    local = [digest(), digest(*both[:2]), digest(*both[2:]), digest(*both)]
    assert len(set(local)) == 4
    assert digest(*both, "--runtime", "distributed") == local[3]


def test_fewer_ranks_than_stages_end_as_the_local_run_and_resume(tmp_path: Path) -> None:
    length = ("--iterations", 30, "--evaluate-every", 3, "--checkpoint-every", 28)
    here(train(tmp_path / "local", 3, *length))
    flags = ("--runtime", "distributed", "--ranks", 2, "--trace", 8)
    here(train(tmp_path / "run", 3, *length, *flags))
    local, found = summary(tmp_path / "local"), summary(tmp_path / "run")
    for key in ("parameters_sha256", "test_accuracy", "test_loss", "train_loss", "cuts"):
        assert local[key] == found[key], key
    assert [row["delay"] for row in found["stages"]] == [2, 1, 0]
    idle = [row["idle_share"] for row in found["trace"]["stages"]]
    assert all(0 <= share < 1 for share in idle) and idle[1] == idle[2] != idle[0]
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed after iteration 28
    run_program(2, None, ("resume", tmp_path / "run", "--quiet"))  # under torchrun
    for key in ("parameters_sha256", "train_loss"):
        assert summary(tmp_path / "run")[key] == local[key], key
