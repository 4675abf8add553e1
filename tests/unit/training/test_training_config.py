"""A configuration is right before anything starts, or refused with one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from delaygrad.data import load
from delaygrad.errors import ConfigError
from delaygrad.methods import BP, DDG, DNI
from delaygrad.training import TrainConfig, load_config
from delaygrad.training.assembly import build_model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "wrong value in config (stages: 0; expected int >= 1)"),
        ({"batch_size": -3}, "(batch_size: -3; expected int >= 1)"),
        ({"checkpoint_every": -1}, "(checkpoint_every: -1; expected int >= 0)"),
        ({"weight_decay": float("nan")}, "(weight_decay: nan; expected float >= 0"),
        ({"lr": 0.0}, "(lr: 0.0; expected float > 0"),
        ({"lr": float("nan")}, "(lr: nan; expected float > 0"),
        ({"lr": float("inf")}, "(lr: inf; expected float <= 1e+30"),
        ({"timeout_s": float("inf")}, "(timeout_s: inf; expected float <= 1000"),
        ({"seed": -1}, "(seed: -1; expected int >= 0)"),
        ({"seed": 2**64}, "seed must be below 2**64"),
        ({"dropout": 1.0, "model": "mlp"}, "(dropout: 1.0; expected float < 1"),
        ({"lr_schedule": "step", "lr_milestones": (1.0,)}, "expected float < 1.0"),
        ({"cuts": ("a", "b")}, "cuts must name one layer fewer than there are stages (stages: 2"),
        ({"method": "bpp"}, "unknown method (method: 'bpp'); did you mean 'bp'?"),
        ({"data": "cifar10"}, "cifar10 needs its files; say where with --data-dir"),
        ({"data": "text", "data_dir": Path("x"), "model": "mlp"}, "text needs gpt (model: mlp"),
        ({"model": "gpt"}, "gpt learns text"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"),
        (
            {"nesterov": True, "optimizer": "adam"},
            "(nesterov: True); optimizer adam does not have it",
        ),
        (
            {"momentum": 0.5, "optimizer": "adamw"},
            "option without effect in config (momentum: 0.5)",
        ),
        ({"lr_factor": 0.5}, "lr_schedule cosine does not have it: leave it out, or choose step"),
        ({"lr_power": 0.9}, "lr_schedule cosine does not have it: leave it out, or choose theorem"),
        ({"lr_schedule": "theorem", "lr_power": 0.5}, "(lr_power: 0.5; expected float > 0.5)"),
        ({"lr_schedule": "theorem", "lr_power": 1.1}, "(lr_power: 1.1; expected float <= 1.0)"),
        (
            {"lr_schedule": "theorem", "lr_time_scale": 0.0},
            "(lr_time_scale: 0.0; expected float > 0",
        ),
        ({"context_length": 64}, "data digits does not have it: leave it out, or choose text"),
        ({"slack": -1}, "slack"),
        ({"micro_batches": 0}, "micro_batches: 0"),
        (
            {"micro_batches": 9, "batch_size": 8},
            "must not exceed the batch size (micro_batches: 9, batch_size: 8)",
        ),
        ({"slack": 1, "method": "bp"}, "(slack: 1); method bp does not have it"),
        ({"weights": "live", "method": "dni"}, "option without effect in config (weights: live)"),
        ({"method": "dni", "synthesizer_lr": 0.0}, "synthesizer_lr must be positive"),
        ({"synthesizer_width": 8}, "option without effect in config (synthesizer_width: 8)"),
        ({"label_conditioned": True}, "method ddg does not have it: leave it out, or choose dni"),
        ({"micro_batches": 2, "method": "dni"}, "method dni does not have it"),
        ({"ranks": 2}, "(ranks: 2, stages: 2, runtime: local); leave --ranks out"),
        ({"ranks": 3, "runtime": "distributed"}, "(ranks: 3, stages: 2, runtime: distributed)"),
    ],
)
def test_setting_out_of_range_or_without_effect_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.of(**settings).check()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": 3}, "unknown key in config (key: 'stage'); did you mean 'stages'?"),
        ({"xyz": 3}, "unknown key in config (key: 'xyz'); known: data, "),
        ({"stages": "3"}, "wrong value in config (stages: '3'; expected int, got str)"),
        ({"stages": 3.0}, "(stages: 3.0; expected int, got float)"),
        ({"stages": True}, "(stages: True; expected int, got bool)"),
        ({"method": "delayedef"}, "method delayedef needs micro_batches; set --micro-batches"),
        ({"lr": "high"}, "(lr: 'high'; expected float, got str)"),
        ({"data": "cifar10", "augment": 1}, "(augment: 1; expected bool, got int)"),
        ({"cuts": "linear2"}, "(cuts: 'linear2'; expected array, got str)"),
        ({"cuts": [2]}, "(cuts: 2; expected str, got int)"),
        ({"data": "text", "data_dir": 7}, "(data_dir: 7; expected Path, got int)"),
        ({"data": "cifar"}, "unknown data (data: 'cifar'); did you mean 'cifar10'?"),
        ({"data": ["digits"]}, "unknown data (data: ['digits'])"),
        ({"runtime": 1}, "unknown runtime in config (runtime: 1); known: local, distributed"),
        ({"device": "tpu"}, "unknown device in config (device: 'tpu')"),
    ],
)
def test_unknown_key_or_wrong_type_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_json(values)
    assert message in str(caught.value)


def test_default_learning_rate_is_the_optimizers() -> None:
    assert TrainConfig.of().optimizer.lr == 0.1
    assert TrainConfig.of(optimizer="adamw").optimizer.lr == 0.001
    assert TrainConfig.of(optimizer="adamw", lr=0.5).optimizer.lr == 0.5


def test_whole_number_is_taken_for_a_fraction_and_a_list_for_a_tuple() -> None:
    config = TrainConfig.from_json({"lr": 1, "stages": 3, "cuts": ["a", "b"], "iterations": None})
    assert config.optimizer.lr == 1.0 and type(config.optimizer.lr) is float
    assert config.run.cuts == ("a", "b") and config.run.iterations is None


def test_configuration_survives_json() -> None:
    config = TrainConfig.of(
        model="mlp",
        width=32,
        stages=3,
        cuts=("linear1", "linear2"),
        lr_schedule="step",
        lr_milestones=(0.25, 0.5),
        iterations=7,
        seed=2**64 - 1,
        run_dir=Path("runs/x"),
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_every_default_survives_json() -> None:
    values = json.loads(json.dumps(TrainConfig.of().to_json()))
    assert TrainConfig.from_json(values) == TrainConfig.of()


def test_toml_json_and_a_runs_own_config_are_read(tmp_path: Path) -> None:
    expected = TrainConfig.of(model="mlp", stages=3, cuts=("a", "b"), lr=0.5)
    toml = tmp_path / "config.toml"
    toml.write_text('model = "mlp"\nstages = 3\ncuts = ["a", "b"]\nlr = 0.5\n')
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"model": "mlp", "stages": 3, "cuts": ["a", "b"], "lr": 0.5}))
    own = tmp_path / "config.json"
    own.write_text(json.dumps({"config": expected.to_json(), "environment": {"torch": "2"}}))
    assert load_config(toml) == load_config(plain) == load_config(own) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.toml", None, "cannot read the config file"),
        ("broken.toml", b"stages = = 3", "cannot parse the config file"),
        ("broken.json", b"{", "cannot parse the config file"),
        ("bytes.json", b"\xff\xfe\x00", "cannot parse the config file"),
        ("list.json", b"[1]", "a config file holds keys and values"),
        ("inner.json", b'{"config": 5}', "a config file holds keys and values"),
        ("key.toml", b"stage = 3", "did you mean 'stages'?"),
        ("table.toml", b"[train]\nstages = 3", "unknown key in"),
    ],
)
def test_unreadable_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_file_sets_the_types_that_are_rounded_to() -> None:
    read = TrainConfig.from_json({"boundary_dtype": "bfloat16", "stash_dtype": None})
    assert read.method.build() == DDG(boundary_dtype=torch.bfloat16)
    with pytest.raises(
        ConfigError, match="unknown boundary_dtype in config .*did you mean 'bfloat16'"
    ):
        TrainConfig.from_json({"boundary_dtype": "bfloat61"})


def test_the_method_gets_those_settings_that_it_has() -> None:
    config = TrainConfig.of(slack=1, micro_batches=2, boundary_dtype="float16", recompute=True)
    assert config.method.build() == DDG(
        slack=1, micro_batches=2, boundary_dtype=torch.float16, recompute=True
    )
    assert TrainConfig.of(method="bp", micro_batches=3).method.build() == BP(micro_batches=3)
    assert repr(TrainConfig.of().method.build()) == "DDG()"
    with pytest.raises(ConfigError, match="with recompute no activations wait"):
        TrainConfig.of(recompute=True, stash_dtype="bfloat16").method.build()
    assert TrainConfig.of(weights="live").method.build() == DDG(weights="live")
    with pytest.raises(ConfigError, match="leave one out"):
        TrainConfig.of(weights="live", recompute=True).method.build()
    with pytest.raises(ConfigError, match="synthesizer_kernel must be odd"):
        TrainConfig.of(method="dni", synthesizer_kernel=4).method.build()


def test_labels_are_of_the_classes_of_the_data() -> None:
    config = TrainConfig.of(method="dni", synthesizer_width=8, label_conditioned=True)
    digits = load("digits")
    assert config.method.build(digits) == DNI(num_classes=10, synthesizer_width=8)
    blind = config.replace(label_conditioned=False)
    assert blind.method.build(digits) == DNI(synthesizer_width=8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", 1e300), ("threads", 10**6), ("width", 10**9), ("depth", 10**9),
        ("stages", 10**9), ("iterations", 10**30), ("batch_size", 10**400), ("lr", 1e300),
        ("micro_batches", 10**9), ("slack", 10**6), ("trace", 10**9),
    ],
)  # fmt: skip
def test_absurd_numbers_are_refused(name: str, value: float) -> None:
    model = {"model": "mlp"} if name in ("width", "depth") else {}
    with pytest.raises(ConfigError, match=rf"\({name}: 1.*; expected "):
        TrainConfig.of(**model, **{name: value})


@pytest.mark.parametrize("value", [10_000 * "[" + 10_000 * "]", "1" + 400 * "0", '"\\ud800"'])
@pytest.mark.parametrize(("name", "text"), [("a.json", '{{"lr": {}}}'), ("a.toml", "lr = {}")])
def test_absurd_files_are_one_error(value: str, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text.format(value))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name)
    assert len(str(caught.value)) < 500


def test_a_network_larger_than_the_memory_is_refused() -> None:
    config = TrainConfig.of(model="mlp", width=2**20, depth=100)
    with pytest.raises(ConfigError, match=r"larger than this machine's memory \(parameters: "):
        build_model(config, config.data.load())


def test_a_run_of_an_earlier_version_may_have_recorded_options_that_did_not_apply(
    tmp_path: Path,
) -> None:
    path, recorded = tmp_path / "config.json", {"method": "bp", "slack": 3, "lr": 0.2}
    path.write_text(json.dumps({"config": recorded}))
    assert load_config(path) == TrainConfig.of(method="bp", lr=0.2)
    path.write_text(json.dumps(recorded))
    with pytest.raises(ConfigError, match=r"\(slack: 3\); method bp does not have it"):
        load_config(path)
