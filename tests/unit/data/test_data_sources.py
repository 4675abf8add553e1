from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delaygrad.data import DataSource, load
from delaygrad.data.dataset import hold_out
from delaygrad.errors import DataError


class Counted:
    """Sample i is the number i; plus one half where it was augmented."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def inputs(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
        return torch.from_numpy(indices) + (0.0 if rng is None else 0.5)

    def targets(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices)


def test_no_holdout_leaves_the_training_split_as_it_is() -> None:
    base = Counted(10)
    assert hold_out(base, 0) == (base, None)


def test_holdout_parts_the_training_split() -> None:
    train, validation = hold_out(Counted(10), 3)
    assert validation is not None
    assert (train.num_samples, validation.num_samples) == (7, 3)
    members = [*train.targets(np.arange(7)).tolist(), *validation.targets(np.arange(3)).tolist()]
    assert sorted(members) == list(range(10))


def test_larger_holdout_contains_the_smaller() -> None:
    held = [hold_out(Counted(100), size)[1] for size in (10, 30)]
    small, large = (set(part.targets(np.arange(part.num_samples)).tolist()) for part in held)
    assert small < large


def test_validation_is_never_augmented() -> None:
    train, validation = hold_out(Counted(10), 3)
    assert validation is not None
    rng = np.random.default_rng(0)
    assert (train.inputs(np.arange(7), rng) % 1 == 0.5).all()
    assert (validation.inputs(np.arange(3), rng) % 1 == 0).all()


@pytest.mark.parametrize("holdout", [-1, 1437, 5000])
def test_holdout_out_of_range_is_refused(holdout: int) -> None:
    with pytest.raises(DataError, match=rf"holdout: {holdout}, training samples: 1437\); use 0 to"):
        load("digits", holdout=holdout)


def test_digits_are_a_whole_source() -> None:
    source = load("digits", holdout=137)
    assert isinstance(source, DataSource) and source.validation is not None
    splits = (source.train, source.validation, source.test)
    assert [split.num_samples for split in splits] == [1300, 137, 360]
    assert (source.name, source.sample_shape, source.num_classes) == ("digits", (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, r"unknown data source .*'mnist'.*digits, cifar10, cifar100, text"),
        ("digits", {"data_dir": Path("here")}, "digits are bundled .*leave data_dir out"),
        ("cifar10", {}, r"no data_dir \(source: cifar10\)"),
        ("text", {}, r"no data_dir \(source: text\)"),
    ],
)
def test_wrong_request_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, **options)
