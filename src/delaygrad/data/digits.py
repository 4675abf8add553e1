"""The handwritten digits that come with scikit-learn: real data without a download.

References:
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    Differs: scikit-learn bundles the 1,797 samples of the UCI test file; the split is ours.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from delaygrad.data.dataset import InMemory
from delaygrad.data.order import Purpose, permutation
from delaygrad.errors import lacks

_TEST_EVERY = 5  # every fifth of 1,797 samples: 360 for the test


def digits_splits() -> tuple[InMemory, InMemory]:
    """Load the fixed, stratified split: 1,437 samples to train on, 360 to test on.

    The split is the same in every run: samples in a fixed random order, sorted by class, every
    fifth one to the test. Each class so gives a fifth of its samples, give or take one. Pixels are
    brought from 0 … 16 to [0, 1], then normalised by the one mean and deviation of all training
    pixels (not per pixel: the corner pixels are constant).

    Example:
        >>> train, test = digits_splits()
        >>> train.num_samples, test.num_samples
        (1437, 360)
    """
    # Without importing scikit-learn, which takes seconds.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise lacks("scikit-learn", "the data set digits")
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int64)
    shuffled = permutation(len(labels), key=(0, 0), purpose=Purpose.DIGITS_SPLIT)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::_TEST_EVERY]] = True

    images = (pixels / 16.0).reshape(-1, 1, 8, 8)
    mean, std = images[~is_test].mean(), images[~is_test].std()
    inputs = torch.from_numpy(((images - mean) / std).astype(np.float32))
    targets = torch.from_numpy(labels)
    test = torch.from_numpy(is_test)
    return InMemory(inputs[~test], targets[~test]), InMemory(inputs[test], targets[test])
