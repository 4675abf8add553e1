"""Bad input ends with one clear message on stderr, and leaves nothing behind.

The commands run in this process, where starting one costs nothing; tests/multiprocess/ runs others
as a user does.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from delaygrad.cli.main import main
from delaygrad.methods import METHODS, Method, published
from delaygrad.schedule import flush
from delaygrad.training import TrainConfig

MLP = ("train", "--model", "mlp", "--run-dir", "run")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with one message, and return that."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    if isinstance(caught.value.code, str):  # the interpreter prints it, and exits with 1
        assert err == ""
        err = caught.value.code
    else:
        assert caught.value.code == 2
    assert err.count("delaygrad: ") <= 1 and "Traceback" not in err
    return " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MLP, "--stages", "9"), "more stages than layers (stages: 9, layers: 8"),
        ((*MLP, "--stages", "2", "--cuts", "linear9"), "linear9"),
        ((*MLP, "--stages", "2", "--cuts", "flatten"), "flatten"),
        ((*MLP, "--stages", "3", "--cuts", "linear2", "linear2"), "linear2"),
        (("train", "--model", "resnet9", "--run-dir", "run"), "9"),
        (("train", "--model", "resnet7x", "--run-dir", "run"), "unknown model (model: 'resnet7x')"),
        (
            ("train", "--width", "3", "--run-dir", "run"),
            "(width: 3); model resnet8 does not have it: leave it out, or choose mlp or gpt",
        ),
        ((*MLP, "--method", "ddgg"), "unknown method (method: 'ddgg'); did you mean 'ddg'?"),
        ((*MLP, "--data-dir", "x"), "data digits does not have it"),
        ((*MLP, "--holdout", "5000"), "holdout does not fit the training split"),
        ((*MLP, "--data", "cifar10", "--data-dir", "absent"), "absent"),
        ((*MLP, "--config", "absent.toml"), "cannot read the config file (absent.toml)"),
        ((*MLP, "--config"), "--config needs the path of a file"),
        ((*MLP, "--config=key.toml"), "unknown key in key.toml (key: 'stage'); did you mean"),
        ((*MLP, "--config", "type.toml"), "wrong value in type.toml (stages: 'two'"),
        ((*MLP, "--runtime", "local", "--device", "cuda"), "too few GPUs (found: 0, needed: 1)"),
        (("train", "--model", "mlp", "--run-dir", "key.toml/run"), "cannot"),
        (("resume", "absent"), "there is no run in this folder (absent)"),
        # From here on the parser's own messages.
        ((*MLP, "--stagse", "2"), "unknown option (--stagse); did you mean --stages?"),
        ((*MLP, "--stages", "two"), "--stages"),
        ((*MLP, "--runtime", "remote"), "--runtime"),
        (("tran",), "delaygrad: unknown command (tran); did you mean train?"),
        (("resume",), "The run's folder. (required)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_message_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    Path("key.toml").write_text("stage = 2\n")
    Path("type.toml").write_text('stages = "two"\n')
    assert message in refused(arguments, capsys)
    assert sorted(path.name for path in Path().iterdir()) == ["key.toml", "type.toml"]


def test_corrupt_data_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/cifar-10-batches-bin").mkdir(parents=True)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        Path("data/cifar-10-batches-bin", name).write_bytes(b"\x00" * 100)
    arguments = ("train", "--data", "cifar10", "--data-dir", "data", "--run-dir", "run")
    assert "data_batch_1.bin" in refused(arguments, capsys)
    assert not Path("run").exists()


def test_folder_of_another_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    assert "there is a run in this folder already (run)" in refused(MLP, capsys)
    assert [path.name for path in Path("run").iterdir()] == ["config.json"]


def test_run_that_is_finished_or_has_no_checkpoint_is_not_resumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps({"config": {"model": "mlp"}}))
    assert "the run has no checkpoint (run); start again with" in refused(("resume", "run"), capsys)
    Path("run/summary.json").write_text("{}")
    assert "the run is finished (run)" in refused(("resume", "run"), capsys)


def test_several_processes_must_not_run_locally(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "add --runtime distributed" in refused(MLP, capsys)
    assert not Path("run").exists()


def test_world_of_another_size_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = refused((*MLP, "--runtime", "distributed"), capsys)
    assert "(started: 3, ranks: 2); launch 2, or set --stages 3 or --ranks 3" in message
    assert not Path("run").exists()


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_half_a_rendezvous_is_refused(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name in variables:
        monkeypatch.setenv(name, variables[name])
    monkeypatch.delenv(missing)
    message = refused((*MLP, "--runtime", "distributed"), capsys)
    assert "cannot join the other ranks" in message and missing in message


def test_flags_win_over_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    # The file alone would be refused: cifar10 without files, and two cuts for two stages.
    Path("config.toml").write_text(
        'data = "cifar10"\nmodel = "mlp"\ncuts = ["linear2", "linear3"]\nlr = 0.5\nwidth = 9\n'
    )
    main(
        ["train", "--config", "config.toml", "--data", "digits", "--stages", "3", "--width", "8",
         "--depth", "4", "--iterations", "2", "--run-dir", "run", "--json", "--quiet"]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert json.loads(out)["cuts"] == ["linear2", "linear3"] and err == ""
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert (config["width"], config["lr"], config["data"]) == (8, 0.5, "digits")


def test_diverged_run_says_where_and_keeps_its_checkpoints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (*MLP, "--lr", "1e30", "--lr-schedule", "constant", "--checkpoint-every", "1")
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert str(caught.value.code).startswith("delaygrad: the loss is not finite (loss: ")
    assert Path("run/checkpoints/iteration-00000001").is_dir()
    assert not Path("run/summary.json").exists()
    last = json.loads(Path("run/records.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "diverged" and last["loss"] in ("nan", "inf")
    assert str(last["iteration"]) in str(caught.value.code)


@pytest.fixture
def a_new_method() -> Iterator[None]:
    @published("a method of a test")
    def Fresh(zeal: int, micro_batches: int = 3) -> Method:
        """Train with zeal.

        Args:
            zeal: how much.
            micro_batches: parts of a batch.
        """
        return Method(name="fresh", schedule=flush(micro_batches), title=f"zeal {zeal}")

    yield
    del METHODS["fresh"]


def test_a_new_method_is_on_the_command_line_by_itself(
    a_new_method: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--method", "fresh", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Train with zeal." in shown and "--zeal INT How much. (required)" in shown
    assert "--slack" not in shown and "--lr-milestones" not in shown
    assert "--zeal" in refused((*MLP, "--method", "fresh"), capsys)
    assert "method ddg does not have it: leave it out, or choose fresh" in refused(
        (*MLP, "--zeal", "4"), capsys
    )
    main([*MLP, "--method", "fresh", "--zeal", "4", "--iterations", "1", "--quiet", "--json"])
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert (config["method"], config["zeal"], config["micro_batches"]) == ("fresh", 4, 3)
    assert TrainConfig.from_json(config).method.build().schedule == flush(3)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, shown in (
        (["--version"], "delaygrad 0."),
        (["--help"], "train      Train a network as K stages"),
        ([], "usage: delaygrad COMMAND"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == (0 if arguments else 2) and shown in capsys.readouterr().out
