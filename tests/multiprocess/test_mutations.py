"""A run folder that was damaged in any way is resumed exactly, or the loss is said."""

from __future__ import annotations

import random
from pathlib import Path

import mutations
import pytest
from safetensors import safe_open


def test_no_mutation_of_a_run_folder_is_silent(tmp_path: Path) -> None:
    found = mutations.run_trials(list(mutations.CLASSES), 60, 5, tmp_path)
    assert [trial for trial in found if trial["resume"] in mutations.FAILURES] == []
    assert {trial["resume"] for trial in found} == {"exact", "told", "refused"}


def test_a_failure_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forge(rng: random.Random, folder: Path) -> str:
        path = folder / "checkpoints" / "iteration-00000010" / "stage0.safetensors"
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
        (name,) = [name for name in tensors if name.endswith("model.linear1.weight")]
        mutations.reseal(path, {**tensors, name: tensors[name] + 1}, metadata)
        return "a weight, and its digest"

    monkeypatch.setitem(mutations.CLASSES, "forge", forge)
    victim = mutations.Victim(tmp_path)
    assert mutations.trial(victim, "forge", "0", tmp_path)["resume"] == "silent"
