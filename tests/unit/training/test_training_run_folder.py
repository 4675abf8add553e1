"""What a run leaves behind: whole files, one digest, records that a resumed run continues."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from delaygrad.errors import ConfigError
from delaygrad.records import EventLog, read_events
from delaygrad.training import TrainConfig, load_config, run_folder


def test_digest_is_over_raw_little_endian_bytes_in_the_order_of_names() -> None:
    assert sys.byteorder == "little"
    tensors = {
        "b.running": torch.tensor([1.5, -2.0], dtype=torch.float64),
        "a": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "c.count": torch.tensor(7),
        "B": torch.tensor([True, False]),
    }
    independent = hashlib.sha256()
    independent.update(np.array([1, 0], dtype="u1").tobytes())  # "B" comes before "a"
    independent.update(np.arange(24, dtype="<f4").tobytes())
    independent.update(np.array([1.5, -2.0], dtype="<f8").tobytes())
    independent.update(np.array(7, dtype="<i8").tobytes())
    assert run_folder.parameters_sha256(tensors) == independent.hexdigest()


def test_digest_takes_bfloat16_and_empty_and_transposed_tensors() -> None:
    bits = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    tensors = {"w": bits.T, "x": torch.empty(0)}
    expected = hashlib.sha256(np.array([0x3F80, 0x4040, 0x4000, 0x4080], dtype="<u2").tobytes())
    assert run_folder.parameters_sha256(tensors) == expected.hexdigest()


def test_new_folder_holds_the_configuration(tmp_path: Path) -> None:
    config = TrainConfig.of(run_dir=tmp_path / "deep" / "run")
    run_folder.create(config)
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["config.json"]
    assert load_config(tmp_path / "deep" / "run" / "config.json") == config


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write \(.*file/run\).*Not a directory"):
        run_folder.create(TrainConfig.of(run_dir=tmp_path / "file" / "run"))


def test_file_where_the_folder_should_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write \(.*runs"):
        run_folder.create(TrainConfig.of(run_dir=tmp_path / "runs"))
    with pytest.raises(ConfigError, match=r"cannot write \(runs"):
        run_folder.new_run_dir(TrainConfig.of())


def test_new_name_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.of()
    first, second = run_folder.new_run_dir(config), run_folder.new_run_dir(config)
    assert first != second and first.is_dir() and second.is_dir()
    assert first.name.endswith("-digits-resnet8-ddg-k2")


def test_file_is_whole_or_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    run_folder.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        run_folder.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_rewind_drops_the_events_that_come_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "records.jsonl")
    for iteration in (10, 20, 30):
        log.write("training", iteration=iteration, loss=1 / iteration)
    log.write("checkpoint", iteration=20)
    log.close()
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"event": "trai')  # the crash
    run_folder.rewind_records(tmp_path, 20)
    events = read_events(tmp_path / "records.jsonl")
    assert [(event["event"], event["iteration"]) for event in events] == [
        ("training", 10), ("training", 20), ("checkpoint", 20)
    ]  # fmt: skip
    assert run_folder.last_loss(tmp_path) == 1 / 20
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_rewind_drops_a_direction_that_is_measured_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "records.jsonl")
    for batch in (0, 10, 20):  # a run that has done 20 iterations has not met batch 20
        log.write("direction", iteration=batch)
    log.close()
    run_folder.rewind_records(tmp_path, 20)
    events = read_events(tmp_path / "records.jsonl")
    assert [event["iteration"] for event in events] == [0, 10]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[tuple[str, str]] = []
    replace, synchronise = os.replace, run_folder.synchronise

    def note_replace(draft: Path, path: Path) -> None:
        did.append(("rename", path.name))
        replace(draft, path)

    def note_synchronise(path: Path) -> None:
        did.append(("synchronise", path.name.split(".")[0]))
        synchronise(path)

    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(run_folder, "synchronise", note_synchronise)
    run_folder.write_model(tmp_path, {"weight": torch.ones(2)})
    assert did == [
        ("synchronise", "model"), ("rename", "model.safetensors"), ("synchronise", tmp_path.name)
    ]  # fmt: skip


def test_without_records_there_is_nothing_to_rewind(tmp_path: Path) -> None:
    run_folder.rewind_records(tmp_path, 20)
    assert run_folder.last_loss(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_model_is_written_under_its_own_names(tmp_path: Path) -> None:
    weight = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    run_folder.write_model(
        tmp_path, {"a.weight": weight, "a.view": weight[0], "n": torch.tensor(3)}
    )
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == {"a.weight", "a.view", "n"}
    assert torch.equal(found["a.weight"], weight) and found["n"] == 3
