from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from delaygrad.data import augmentation_rng, load
from delaygrad.data.digits import digits_splits

TRAIN, TEST = np.arange(1437), np.arange(360)


def test_splits_part_the_bundled_digits() -> None:
    train, test = digits_splits()
    assert (train.num_samples, test.num_samples) == (1437, 360)
    together = torch.cat([train.inputs(TRAIN), test.inputs(TEST)]).flatten(1)
    pixels, labels = load_digits(return_X_y=True)
    # Undo the normalisation: the extreme pixels are 0 and 16.
    low, high = together.min(), together.max()
    restored = ((together - low) / (high - low) * 16).round().numpy()
    of_ours = np.column_stack([restored, torch.cat([train.targets(TRAIN), test.targets(TEST)])])
    of_theirs = np.column_stack([pixels, labels])
    assert sorted(of_ours.tolist()) == sorted(of_theirs.tolist())


def test_inputs_are_normalised_by_the_training_pixels() -> None:
    train, _ = digits_splits()
    inputs = train.inputs(TRAIN)
    assert inputs.shape == (1437, 1, 8, 8) and inputs.dtype == torch.float32
    assert abs(inputs.mean()) < 1e-5 and abs(inputs.std(correction=0) - 1) < 1e-5


def test_split_is_stratified() -> None:
    train, test = digits_splits()
    of_test = torch.bincount(test.targets(TEST))
    of_all = of_test + torch.bincount(train.targets(TRAIN))
    assert (of_test - of_all / 5).abs().max() <= 1


def test_split_is_this_one_for_ever() -> None:
    _, test = digits_splits()
    assert test.targets(TEST[:12]).tolist() == [4, 3, 7, 3, 5, 7, 4, 1, 0, 8, 2, 0]


def test_rng_has_no_effect() -> None:
    train = load("digits").train
    rng = augmentation_rng(seed=0, iteration=0)
    assert torch.equal(train.inputs(TRAIN, rng), train.inputs(TRAIN))
