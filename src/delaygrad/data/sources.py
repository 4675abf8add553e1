"""``load``: a data source by its name."""

from __future__ import annotations

from pathlib import Path

from delaygrad.data.cifar import cifar_splits
from delaygrad.data.cifar_official import CIFAR10, CIFAR100
from delaygrad.data.dataset import Dataset, DataSource, hold_out
from delaygrad.data.digits import digits_splits
from delaygrad.data.text import text_splits
from delaygrad.errors import DataError

SOURCE_NAMES = ("digits", "cifar10", "cifar100", "text")


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    holdout: int = 0,
    augment: bool = True,
    context_length: int = 128,
) -> DataSource:
    """Load a data source into memory; nothing is downloaded and nothing is written.

    Args:
        name: "digits" (bundled), "cifar10", "cifar100" (fine labels) or "text".
        data_dir: where the files lie. CIFAR: a folder with the unpacked files of an
            official version, binary or Python. Text: the file, or a folder with
            ``input.txt``. Digits take none.
        holdout: training samples set aside as the validation split, the same samples in every run.
        augment: let the training split augment where its ``inputs`` is given an rng. Only CIFAR
            has an augmentation; False or True is the same for digits and text.
        context_length: characters per window; text only.
    Returns:
        The source with its splits.
    Raises:
        DataError: an unknown name, an argument out of range, or a file that is missing or not
            what it should be.
    Example:
        >>> source = load("digits", holdout=100)
        >>> source.sample_shape, source.num_classes, source.train.num_samples
        ((1, 8, 8), 10, 1337)
    """
    train: Dataset
    test: Dataset
    sample_shape: tuple[int, ...]
    if name == "digits":
        if data_dir is not None:
            raise DataError(f"digits are bundled (data_dir: {data_dir}); leave data_dir out")
        train, test = digits_splits()
        sample_shape, num_classes = (1, 8, 8), 10
    elif name == "text":
        train, test, num_classes = text_splits(_required(data_dir, name), context_length)
        sample_shape = (context_length,)
    elif name in ("cifar10", "cifar100"):
        spec = CIFAR10 if name == "cifar10" else CIFAR100
        train, test = cifar_splits(spec, _required(data_dir, name), augment=augment)
        sample_shape, num_classes = (3, 32, 32), spec.num_classes
    else:
        raise DataError(f"unknown data source (name: {name!r}); use {', '.join(SOURCE_NAMES)}")
    train, validation = hold_out(train, holdout)
    return DataSource(
        name=name,
        train=train,
        validation=validation,
        test=test,
        sample_shape=sample_shape,
        num_classes=num_classes,
    )


def _required(data_dir: Path | None, name: str) -> Path:
    if data_dir is None:
        raise DataError(f"no data_dir (source: {name}); let data_dir say where its files lie")
    return Path(data_dir)
