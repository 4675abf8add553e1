"""A pipeline saved in a folder continues from the newest checkpoint that is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import OPTIMIZERS, batches, dropout_mlp, into_stages
from torch import nn
from torch.nn.functional import cross_entropy
from zoo import TIED_LANGUAGE_MODEL

import delaygrad as dg


def make_pipe(num_stages: int = 3, **options: Any) -> dg.LocalPipeline:
    torch.manual_seed(0)
    stages = into_stages(dropout_mlp(), num_stages)
    return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adamw"], **options)


DATA = list(batches(9, (6,)))


def train(pipe: dg.LocalPipeline, first: int, end: int) -> None:
    for inputs, targets in DATA[first:end]:
        pipe.step(inputs, targets)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_loaded_pipeline_continues_bit_for_bit(tmp_path: Path) -> None:
    pipe = make_pipe()
    train(pipe, 0, 5)
    extra = {
        "seed": 3,
        "offset": 5,
        "order": torch.randperm(4),
        "loader": {"epochs": [1, (2, "x")]},
    }
    pipe.save(tmp_path, extra=extra)
    other = make_pipe()
    loaded = other.load_newest(str(tmp_path))
    assert_same(loaded, extra)
    assert other.iteration == 5
    for each in (pipe, other):
        train(each, 5, 9)
    assert_same(other.state_dict(), pipe.state_dict())


def test_an_empty_folder_loads_nothing(tmp_path: Path) -> None:
    pipe = make_pipe()
    before = pipe.state_dict()
    assert pipe.load_newest(tmp_path) is None
    assert pipe.load_newest(tmp_path / "absent") is None
    assert_same(pipe.state_dict(), before)


def test_the_newest_stay_and_no_extra_is_an_empty_one(tmp_path: Path) -> None:
    pipe = make_pipe()
    for iteration in range(4):
        train(pipe, iteration, iteration + 1)
        pipe.save(tmp_path)
    assert names_in(tmp_path) == ["iteration-00000003", "iteration-00000004"]
    assert names_in(tmp_path / "iteration-00000004") == [
        f"stage{k}.{kind}" for k in range(3) for kind in ("safetensors", "sha256")
    ]
    assert make_pipe().load_newest(tmp_path) == {}
    with pytest.raises(ValueError, match=r"at least one checkpoint must stay \(keep: 0\)"):
        pipe.save(tmp_path, keep=0)


@pytest.mark.parametrize("damage", ["flipped", "missing", "of another call"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(
    tmp_path: Path, damage: str
) -> None:
    pipe = make_pipe()
    for iteration in (2, 4):
        train(pipe, iteration - 2, iteration)
        pipe.save(tmp_path, extra={"offset": iteration})
    file = tmp_path / "iteration-00000004" / "stage1.safetensors"
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        elsewhere = tmp_path / "elsewhere"
        pipe.save(elsewhere)
        for end in ("safetensors", "sha256"):
            (elsewhere / "iteration-00000004" / f"stage1.{end}").replace(
                file.with_suffix(f".{end}")
            )
    other = make_pipe()
    with pytest.warns(dg.DelaygradWarning, match=r"continuing from iteration 2.*0004\.damaged"):
        assert other.load_newest(tmp_path) == {"offset": 2}
    train(other, 2, 4)
    assert_same(other.state_dict(), pipe.state_dict())
    assert "iteration-00000004.damaged" in names_in(tmp_path)


def test_none_sound_is_an_error(tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.save(tmp_path)
    (tmp_path / "iteration-00000000" / "stage0.sha256").unlink()
    with pytest.raises(dg.CheckpointError, match="no checkpoint is sound"):
        make_pipe().load_newest(tmp_path)


def test_saving_again_at_one_iteration_replaces_the_checkpoint(tmp_path: Path) -> None:
    pipe = make_pipe()
    train(pipe, 0, 4)
    pipe.save(tmp_path, extra={"flushed": False})
    pipe.flush()
    pipe.save(tmp_path, extra={"flushed": True})
    assert names_in(tmp_path) == ["iteration-00000004"]
    other = make_pipe()
    assert other.load_newest(tmp_path) == {"flushed": True}
    assert_same(other.state_dict(), pipe.state_dict())


def test_a_save_that_dies_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_pipe()
    train(pipe, 0, 2)
    pipe.save(tmp_path, extra={"offset": 2})
    train(pipe, 2, 3)
    monkeypatch.setattr("delaygrad.checkpoint.files.finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe.save(tmp_path)
    monkeypatch.undo()
    assert names_in(tmp_path) == ["iteration-00000002", "iteration-00000003.unfinished"]
    assert make_pipe().load_newest(tmp_path) == {"offset": 2}
    assert names_in(tmp_path) == ["iteration-00000002"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pipe = make_pipe()
    train(pipe, 0, 3)
    with pytest.raises(dg.CheckpointError, match=r"cannot save this object \(state.extra.it\)"):
        pipe.save(tmp_path, extra={"it": object()})
    pipe.save(tmp_path)
    with pytest.raises(dg.CheckpointError, match=r"holds a later checkpoint .*there: 3, here: 0"):
        make_pipe().save(tmp_path)
    for other in (make_pipe(2), make_pipe(method=dg.FR())):
        before = other.state_dict()
        with pytest.raises(dg.CheckpointError, match="of another pipeline"):
            other.load_newest(tmp_path)
        assert_same(other.state_dict(), before)


# --- gather ---------------------------------------------------------------------------------------


def test_gather_gives_the_whole_model() -> None:
    model = nn.Sequential(nn.Linear(6, 7), nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 5)))
    pipe = dg.LocalPipeline(dg.split(model, 2, cuts=["1.1"]), cross_entropy, OPTIMIZERS["adamw"])
    train(pipe, 0, 3)
    pipe.flush()
    whole = dg.gather(pipe)
    assert_same(whole, {name: t.detach() for name, t in model.state_dict().items()})
    kept = whole["0.weight"].clone()
    train(pipe, 3, 5)
    pipe.flush()
    assert torch.equal(whole["0.weight"], kept)  # a copy


def test_gather_gives_a_tied_parameter_under_all_its_names() -> None:
    model = TIED_LANGUAGE_MODEL.build()
    stages = dg.split(model, 2, sample_inputs=TIED_LANGUAGE_MODEL.batch(4, 6), cuts=["layers.1"])
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"])
    whole = dg.gather(pipe)
    assert whole.keys() == model.state_dict().keys()
    assert torch.equal(whole["embed.weight"], whole["head.weight"])
    TIED_LANGUAGE_MODEL.build().load_state_dict(whole)


def test_gather_refuses_one_name_for_two_tensors() -> None:
    pipe = make_pipe()  # stages made by hand: each begins with "0"
    with pytest.raises(dg.PartitionError, match=r"of one name \(name: 0.*second stage: 1\)"):
        dg.gather(pipe)
