"""A checkpoint gives back exactly what was saved, or says which file is broken."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from delaygrad.checkpoint import files as checkpoint
from delaygrad.checkpoint import write
from delaygrad.errors import CheckpointError, DamagedCheckpointError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)


def tensors() -> st.SearchStrategy[Tensor]:
    def make(dtype: torch.dtype, shape: list[int], order: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randint(0, 100, shape, generator=generator).to(dtype)
        if dtype is torch.uint8 and seed % 2:
            tensor = tensor > 50
        if tensor.dim() == 4 and order % 2:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.flip(0).transpose(0, -1) if tensor.dim() and order % 3 else tensor

    shapes = st.lists(st.integers(0, 3), max_size=4)
    return st.builds(make, st.sampled_from(DTYPES), shapes, st.integers(0, 5), st.integers(0, 1000))


NUMBERS = st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
KEYS = st.text(st.sampled_from("ab.1 "), max_size=4) | st.integers(0, 12)
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        st.none() | NUMBERS | st.text(max_size=5) | tensors(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(max_examples=60)
@given(state=STATES)
def test_state_comes_back_exactly(tmp_path_factory: Any, state: dict[Any, Any]) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.write_stage(folder, 7, 0, state)
    checkpoint.finish(folder, 7)
    assert_same(checkpoint.read_stage(folder, 7, 0), state)


def test_keys_that_read_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {1: torch.zeros(1), "1": torch.ones(1), "a.b": torch.ones(2), "a": {"b": torch.ones(3)}}
    save(tmp_path, 1, state)
    assert_same(checkpoint.read_stage(tmp_path, 1, 0), state)


def test_memory_format_comes_back(tmp_path: Path) -> None:
    image = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    save(tmp_path, 1, {"image": image, "shared": image[0]})
    found = checkpoint.read_stage(tmp_path, 1, 0)["image"]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.stride() == image.stride()


def test_whether_a_gradient_is_wanted_comes_back(tmp_path: Path) -> None:
    # Of a waiting batch's weights: frozen ones want none.
    state = {"w": torch.ones(2, requires_grad=True), "frozen": torch.ones(2)}
    save(tmp_path, 1, state)
    found = checkpoint.read_stage(tmp_path, 1, 0)
    assert found["w"].requires_grad and found["w"].is_leaf
    assert not found["frozen"].requires_grad


def test_digest_is_what_sha256sum_checks(tmp_path: Path) -> None:
    save(tmp_path, 1, {"w": torch.ones(3)})
    folder = tmp_path / "iteration-00000001"
    command = ["sha256sum", "--check", "--strict", "stage0.sha256"]
    assert subprocess.run(command, cwd=folder, capture_output=True, timeout=10).returncode == 0


@pytest.mark.parametrize("value", [{1, 2}, object(), {(1, 2): 3}, {"a": 1j}])
def test_what_cannot_be_saved_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save this \w+ \(state.momentum"):
        checkpoint.write_stage(tmp_path, 1, 0, {"momentum": value})
    assert checkpoint.find(tmp_path) == []


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for iteration in (10, 20, 30):
        save(tmp_path, iteration, {"w": torch.ones(1)}, keep=2)
    assert checkpoint.find(tmp_path) == [20, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iteration-00000020", "iteration-00000030"
    ]  # fmt: skip


def test_the_rank_that_comes_second_leaves_the_finished_checkpoint_alone(tmp_path: Path) -> None:
    # Every rank calls finish after the barrier; a late one once removed what the first had renamed.
    save(tmp_path, 5, {"w": torch.ones(1)})
    checkpoint.finish(tmp_path, 5)
    assert checkpoint.find(tmp_path) == [5]
    checkpoint.read_stage(tmp_path, 5, 0)


def test_unfinished_checkpoint_is_none(tmp_path: Path) -> None:
    checkpoint.write_stage(tmp_path, 5, 0, {"w": torch.ones(1)})
    assert checkpoint.find(tmp_path) == []


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path / "absent") == []


def test_rewind_drops_what_came_later_and_what_is_unfinished(tmp_path: Path) -> None:
    for iteration in (10, 20, 30):
        save(tmp_path, iteration, {"w": torch.ones(1)}, keep=9)
    checkpoint.write_stage(tmp_path, 40, 0, {"w": torch.ones(1)})
    checkpoint.rewind(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iteration-00000010", "iteration-00000020"
    ]  # fmt: skip


def test_write_that_fails_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, {"w": torch.ones(1)})

    def fail(tensors: dict[str, Tensor], path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match="No space left on device.*before are kept"):
        checkpoint.write_stage(tmp_path, 2, 0, {"w": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-00000001"]
    assert_same(checkpoint.read_stage(tmp_path, 1, 0), {"w": torch.ones(1)})


def test_missing_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1, {"w": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"missing \(.*iteration-00000001/stage1"):
        checkpoint.read_stage(tmp_path, 1, 1)
    path_of(tmp_path).unlink()
    with pytest.raises(CheckpointError, match=r"missing \(.*iteration-00000001/stage0.safetensors"):
        checkpoint.read_stage(tmp_path, 1, 0)


@settings(max_examples=40)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found(tmp_path_factory: Any, where: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 1, {"w": torch.arange(16.0), "lr": 0.1})
    content = bytearray(path_of(folder).read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path_of(folder).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"corrupt \(.*stage0.safetensors\).*sha256"):
        checkpoint.read_stage(folder, 1, 0)


@pytest.mark.parametrize("size", [0, 1, 8, 100])
def test_truncated_file_is_found(tmp_path: Path, size: int) -> None:
    save(tmp_path, 1, {"w": torch.ones(64)})
    path_of(tmp_path).write_bytes(path_of(tmp_path).read_bytes()[:size])
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.read_stage(tmp_path, 1, 0)


class Trap:
    """Opening a pickle of this makes a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return (Path.touch, (self.sign,))


@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
def test_pickle_in_place_of_a_checkpoint_runs_nothing(tmp_path: Path, writer: Any) -> None:
    save(tmp_path, 1, {"w": torch.ones(1)})
    with path_of(tmp_path).open("wb") as file:
        writer(Trap(tmp_path / "sprung"), file)
    rewrite_digest(tmp_path)
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.read_stage(tmp_path, 1, 0)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("header", [None, "", "[", "5", '{"x": 1}', '{"tensor": "9 q"}', "{}"])
def test_file_of_another_origin_is_refused(tmp_path: Path, header: str | None) -> None:
    save(tmp_path, 1, {"w": torch.ones(1)})
    about = json.dumps({"format": 1, "iteration": 1, "stage": 0})
    metadata = None if header is None else {"delaygrad": header, "about": about}
    checkpoint.save_file(load_file(path_of(tmp_path)), path_of(tmp_path), metadata=metadata)
    rewrite_digest(tmp_path)
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.read_stage(tmp_path, 1, 0)


@pytest.mark.parametrize(
    "name",
    [
        "iteration-00000010-2", "iteration-00000010.old", "iteration-10", "iteration-0000000010",
        "iteration-", "iteration-²²²²²²²²", "iteration-00000010.unfinished.bak", "copy",
    ],
)  # fmt: skip
def test_foreign_folders_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("mine")
    for iteration in (10, 20, 30):
        save(tmp_path, iteration, {"w": torch.ones(1)}, keep=1)
    assert checkpoint.find(tmp_path) == [30]
    checkpoint.rewind(tmp_path, 5)
    assert [path.name for path in tmp_path.rglob("*")] == [name, "file"]


def test_a_later_foreign_checkpoint_does_not_push_the_newest_out(tmp_path: Path) -> None:
    (tmp_path / "iteration-00000020").mkdir()  # in the way of a checkpoint to come
    (tmp_path / "iteration-00000020" / "file").write_text("mine")
    (tmp_path / "iteration-99999999").mkdir()
    save(tmp_path, 10, {"w": torch.ones(1)}, keep=1)
    save(tmp_path, 20, {"w": torch.zeros(1)}, keep=1)
    assert checkpoint.find(tmp_path) == [20, 99999999]
    assert_same(checkpoint.read_stage(tmp_path, 20, 0), {"w": torch.zeros(1)})
    assert (tmp_path / "iteration-00000020.damaged" / "file").read_text() == "mine"


def test_a_file_in_the_place_of_another_is_found(tmp_path: Path) -> None:
    for iteration in (1, 2):
        for stage in (0, 1):
            checkpoint.write_stage(tmp_path, iteration, stage, {"w": torch.ones(1)})
        checkpoint.finish(tmp_path, iteration)
    (tmp_path / "iteration-00000002").rename(tmp_path / "iteration-00000003")
    with pytest.raises(DamagedCheckpointError, match="it is stage 0 of iteration 2"):
        checkpoint.read_stage(tmp_path, 3, 0)
    folder = tmp_path / "iteration-00000001"
    (folder / "stage1.safetensors").replace(folder / "stage0.safetensors")
    rewrite_digest(tmp_path)
    with pytest.raises(DamagedCheckpointError, match="it is stage 1 of iteration 1"):
        checkpoint.read_stage(tmp_path, 1, 0)


def test_another_version_is_not_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, {"w": torch.ones(1)})
    metadata = {"delaygrad": "{}", "about": json.dumps({"format": 0})}
    checkpoint.save_file(load_file(path_of(tmp_path)), path_of(tmp_path), metadata=metadata)
    rewrite_digest(tmp_path)
    with pytest.raises(CheckpointError, match="of another version") as caught:
        checkpoint.read_about(tmp_path, 1, 0)
    assert not isinstance(caught.value, DamagedCheckpointError)


def save(folder: Path, iteration: int, state: dict[Any, Any], keep: int = 1) -> None:
    write(folder, iteration, {0: state}, lambda value: [value], keep=keep)


def path_of(folder: Path) -> Path:
    return folder / "iteration-00000001" / "stage0.safetensors"


def rewrite_digest(folder: Path) -> None:
    command = ["sha256sum", "stage0.safetensors"]
    found = subprocess.run(command, cwd=path_of(folder).parent, capture_output=True, timeout=10)
    path_of(folder).with_suffix(".sha256").write_bytes(found.stdout)


def assert_same(found: Any, expected: Any) -> None:
    """Equal in kind and value; tensors bit for bit, and strides where they say something."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert [(type(key), key) for key in found] == [(type(key), key) for key in expected]
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert json.dumps(found) == json.dumps(expected)
