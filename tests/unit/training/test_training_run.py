"""What begins anew and what continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from delaygrad.errors import CheckpointError, ConfigError
from delaygrad.training import TrainConfig, run_folder, train
from delaygrad.training.assembly import resolve


def test_only_a_restart_of_the_very_run_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.of(model="mlp", width=8, depth=2, iterations=4, run_dir=tmp_path / "run")
    run_folder.create(resolve(config, config.data.load())[0])
    other = config.replace(lr=0.5)
    for given in (config, other):
        with pytest.raises(ConfigError, match="there is a run in this folder already"):
            train(given, quiet=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(CheckpointError, match="the run has no checkpoint"):  # it would continue
        train(config, quiet=True)
    with pytest.raises(ConfigError, match="there is a run in this folder already"):
        train(other, quiet=True)
