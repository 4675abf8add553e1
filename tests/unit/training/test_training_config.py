"""A configuration is right before anything starts, or refused with one message."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from delaygrad.data import load
from delaygrad.errors import ConfigError
from delaygrad.methods import BP, DDG, DNI
from delaygrad.training import TrainConfig, load_config
from delaygrad.training.assembly import build_method, build_model, load_data
from delaygrad.training.config import config_from_json


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "stages must be at least 1 (stages: 0)"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"batch_size": -3}, "batch_size must be at least 1 (batch_size: -3)"),
        ({"checkpoint_every": -1}, "checkpoint_every must be finite, not negative"),
        ({"trace": -1}, "trace must be finite, not negative (trace: -1)"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite, not negative"),
        ({"lr": 0.0}, "lr must be positive and finite (lr: 0.0)"),
        ({"lr": float("nan")}, "lr must be positive and finite (lr: nan)"),
        ({"lr": float("inf")}, "lr must be positive and finite (lr: inf)"),
        ({"timeout_s": float("inf")}, "timeout_s must be positive and finite"),
        ({"seed": -1}, "seed must be finite, not negative"),
        ({"seed": 2**64}, "seed must be below 2**64"),
        ({"dropout": 1.0, "model": "mlp"}, "dropout must be at least 0 and below 1"),
        ({"lr_schedule": "step", "lr_milestones": (1.0,)}, "lr_milestones are fractions"),
        ({"cuts": ("a", "b")}, "cuts must name one layer fewer than there are stages (stages: 2)"),
        ({"method": "bpp"}, "unknown method (method: 'bpp'); did you mean 'bp'?"),
        ({"data": "cifar10"}, "cifar10 needs its files; say where with --data-dir"),
        ({"data": "text", "data_dir": Path("x"), "model": "mlp"}, "text needs gpt (model: mlp"),
        ({"model": "gpt"}, "gpt learns text"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"nesterov": True, "optimizer": "adam"}, "(nesterov: True); it belongs to optimizer sgd"),
        ({"momentum": 0.5, "optimizer": "adamw"}, "option without effect (momentum: 0.5)"),
        ({"lr_factor": 0.5}, "it belongs to lr_schedule step, not cosine"),
        ({"lr_power": 0.9}, "it belongs to lr_schedule theorem, not cosine"),
        ({"lr_time_scale": 10.0}, "option without effect (lr_time_scale: 10.0)"),
        ({"lr_schedule": "theorem", "lr_power": 0.5}, "lr_power must be above 1/2 and at most 1"),
        ({"lr_schedule": "theorem", "lr_power": 1.1}, "at most 1 (lr_power: 1.1)"),
        ({"lr_schedule": "theorem", "lr_time_scale": 0.0}, "lr_time_scale must be positive"),
        ({"lr_milestones": (0.3,)}, "option without effect (lr_milestones: (0.3,))"),
        ({"context_length": 64}, "it belongs to data text, not digits"),
        ({"slack": -1}, "slack must be finite, not negative (slack: -1)"),
        ({"micro_batches": 0}, "micro_batches must be at least 1"),
        ({"micro_batches": 9, "batch_size": 8}, "must not exceed the batch size (batch_size: 8)"),
        ({"slack": 1, "method": "bp"}, "(slack: 1); method bp does not have it"),
        ({"recompute": True, "method": "bp"}, "option without effect (recompute: True)"),
        ({"weights": "live", "method": "bp"}, "option without effect (weights: live)"),
        ({"weights": "live", "method": "dni"}, "option without effect (weights: live)"),
        ({"synthesizer_lr": 0.0}, "synthesizer_lr must be positive and finite"),
        ({"synthesizer_width": 8}, "option without effect (synthesizer_width: 8)"),
        ({"label_conditioned": True}, "it belongs to method dni, not ddg"),
        ({"micro_batches": 2, "method": "dni"}, "method dni does not have it"),
        ({"probe_every": 5, "runtime": "distributed"}, "probe_every needs all stages in one"),
        ({"probe_every": 5, "micro_batches": 2}, "probe_every needs all stages in one process"),
        ({"probe_every": 5, "model": "mlp", "dropout": 0.1}, "no dropout, whose noise"),
    ],
)
def test_setting_out_of_range_or_without_effect_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**settings).check()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": 3}, "unknown key in config (key: 'stage'); did you mean 'stages'?"),
        ({"xyz": 3}, "unknown key in config (key: 'xyz'); known: data, "),
        ({"stages": "3"}, "wrong type in config (stages: '3'; expected: int)"),
        ({"stages": 3.0}, "wrong type in config (stages: 3.0; expected: int)"),
        ({"stages": True}, "wrong type in config (stages: True; expected: int)"),
        ({"stages": None}, "wrong type in config (stages: None; expected: int)"),
        ({"lr": "high"}, "wrong type in config (lr: 'high'; expected: float)"),
        ({"augment": 1}, "wrong type in config (augment: 1; expected: bool)"),
        ({"cuts": "linear2"}, "wrong type in config (cuts: 'linear2'; expected: tuple)"),
        ({"cuts": [2]}, "wrong type in config (cuts: 2; expected: str)"),
        ({"data_dir": 7}, "wrong type in config (data_dir: 7; expected: Path)"),
        ({"data": "cifar"}, "unknown data (data: 'cifar'); did you mean 'cifar10'?"),
        ({"data": ["digits"]}, "unknown data (data: ['digits'])"),
        ({"runtime": 1}, "unknown runtime (runtime: 1); known: local, distributed"),
        ({"device": "tpu"}, "unknown device (device: 'tpu')"),
    ],
)
def test_unknown_key_or_wrong_type_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_json(values)
    assert message in str(caught.value)


def test_default_learning_rate_is_the_optimizers() -> None:
    assert TrainConfig().base_lr == 0.1
    assert TrainConfig(optimizer="adamw").base_lr == 0.001
    assert TrainConfig(optimizer="adamw", lr=0.5).base_lr == 0.5


def test_whole_number_is_taken_for_a_fraction_and_a_list_for_a_tuple() -> None:
    config = config_from_json({"lr": 1, "stages": 3, "cuts": ["a", "b"], "iterations": None})
    assert config.lr == 1.0 and type(config.lr) is float
    assert config.cuts == ("a", "b") and config.iterations is None


def test_configuration_survives_json() -> None:
    config = TrainConfig(
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
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def test_every_default_survives_json() -> None:
    values = json.loads(json.dumps(TrainConfig().to_json()))
    assert set(values) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert config_from_json(values) == TrainConfig()


def test_toml_json_and_a_runs_own_config_are_read(tmp_path: Path) -> None:
    expected = TrainConfig(model="mlp", stages=3, cuts=("a", "b"), lr=0.5)
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
    read = config_from_json({"boundary_dtype": "bfloat16", "stash_dtype": None})
    assert (read.boundary_dtype, read.stash_dtype) == ("bfloat16", None)
    with pytest.raises(ConfigError, match="unknown boundary_dtype .*did you mean 'bfloat16'"):
        config_from_json({"boundary_dtype": "bfloat61"})


def test_the_method_gets_those_settings_that_it_has() -> None:
    config = TrainConfig(slack=1, micro_batches=2, boundary_dtype="float16", recompute=True)
    assert build_method(config) == DDG(
        slack=1, micro_batches=2, boundary_dtype=torch.float16, recompute=True
    )
    assert build_method(TrainConfig(method="bp", micro_batches=3)) == BP(micro_batches=3)
    assert repr(build_method(TrainConfig())) == "DDG()"
    with pytest.raises(ConfigError, match="with recompute no activations wait"):
        build_method(TrainConfig(recompute=True, stash_dtype="bfloat16"))
    assert build_method(TrainConfig(weights="live")) == DDG(weights="live")
    with pytest.raises(ConfigError, match="leave one out"):
        build_method(TrainConfig(weights="live", recompute=True))
    with pytest.raises(ConfigError, match="synthesizer_kernel must be odd"):
        build_method(TrainConfig(method="dni", synthesizer_kernel=4))


def test_labels_are_of_the_classes_of_the_data() -> None:
    config = TrainConfig(method="dni", synthesizer_width=8, label_conditioned=True)
    digits = load("digits")
    assert build_method(config, digits) == DNI(num_classes=10, synthesizer_width=8)
    blind = dataclasses.replace(config, label_conditioned=False)
    assert build_method(blind, digits) == DNI(synthesizer_width=8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", 1e300), ("threads", 10**6), ("width", 10**9), ("depth", 10**9),
        ("stages", 10**9), ("iterations", 10**30), ("batch_size", 10**400), ("lr", 1e300),
        ("micro_batches", 10**9), ("slack", 10**6), ("trace", 10**9),
    ],
)  # fmt: skip
def test_absurd_numbers_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at most"):
        config_from_json({name: value})


@pytest.mark.parametrize("value", [10_000 * "[" + 10_000 * "]", "1" + 400 * "0", '"\\ud800"'])
@pytest.mark.parametrize(("name", "text"), [("a.json", '{{"lr": {}}}'), ("a.toml", "lr = {}")])
def test_absurd_files_are_one_error(value: str, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text.format(value))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / name)
    assert len(str(caught.value)) < 500


def test_a_network_larger_than_the_memory_is_refused() -> None:
    config = TrainConfig(model="mlp", width=2**20, depth=100)
    with pytest.raises(ConfigError, match=r"larger than this machine's memory \(parameters: "):
        build_model(config, load_data(config))
