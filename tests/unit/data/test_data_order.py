from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.data.order import (
    Purpose,
    augmentation_rng,
    batch_indices,
    iterations_per_epoch,
    permutation,
)
from delaygrad.errors import DataError

seeds = st.integers(0, 2**64 - 1)
num_samples = st.integers(1, 300)
batch_sizes = st.integers(1, 400)


def epoch_order(seed: int, epoch: int, num_samples: int, batch_size: int) -> np.ndarray:
    iterations = iterations_per_epoch(num_samples, batch_size)
    return np.concatenate(
        [
            batch_indices(
                seed=seed, iteration=iteration, num_samples=num_samples, batch_size=batch_size
            )
            for iteration in range(epoch * iterations, (epoch + 1) * iterations)
        ]
    )


@given(seeds, st.integers(0, 2**40), num_samples, batch_sizes)
def test_every_sample_comes_exactly_once_per_epoch(
    seed: int, epoch: int, num_samples: int, batch_size: int
) -> None:
    order = epoch_order(seed, epoch, num_samples, batch_size)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(num_samples))


@given(num_samples, batch_sizes)
def test_only_the_last_batch_of_an_epoch_is_short(num_samples: int, batch_size: int) -> None:
    iterations = iterations_per_epoch(num_samples, batch_size)
    lengths = [
        len(batch_indices(seed=0, iteration=i, num_samples=num_samples, batch_size=batch_size))
        for i in range(iterations)
    ]
    assert lengths[:-1] == [batch_size] * (iterations - 1)
    assert lengths[-1] == num_samples - batch_size * (iterations - 1) > 0


@given(seeds, st.lists(st.integers(0, 500), min_size=1), num_samples, batch_sizes)
def test_batch_depends_on_nothing_that_was_asked_before(
    seed: int, iterations: list[int], num_samples: int, batch_size: int
) -> None:
    def ask(iteration: int) -> list[int]:
        return batch_indices(
            seed=seed, iteration=iteration, num_samples=num_samples, batch_size=batch_size
        ).tolist()

    forwards = {iteration: ask(iteration) for iteration in iterations}
    backwards = {iteration: ask(iteration) for iteration in reversed(iterations)}
    assert forwards == backwards


@given(seeds, st.integers(0, 1000), batch_sizes, batch_sizes)
def test_batch_size_cuts_the_same_order(seed: int, epoch: int, one: int, other: int) -> None:
    assert np.array_equal(epoch_order(seed, epoch, 97, one), epoch_order(seed, epoch, 97, other))


def test_order_is_this_one_for_ever() -> None:
    assert epoch_order(2, 0, 8, 3).tolist() == [1, 4, 0, 6, 3, 5, 2, 7]
    assert epoch_order(2, 1, 8, 3).tolist() == [2, 7, 0, 1, 5, 6, 3, 4]


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50, 7)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_caller_may_change_its_batch() -> None:
    order = {"seed": 0, "iteration": 0, "num_samples": 10, "batch_size": 5}
    batch = batch_indices(**order)
    before = batch.copy()
    batch[:] = 0
    assert np.array_equal(batch_indices(**order), before)


@given(seeds, st.integers(0, 2**64 - 1))
def test_augmentation_repeats_for_its_iteration_and_differs_from_the_next(
    seed: int, iteration: int
) -> None:
    def draw(seed: int, iteration: int) -> list[int]:
        return augmentation_rng(seed=seed, iteration=iteration).integers(0, 2**62, 4).tolist()

    assert draw(seed, iteration) == draw(seed, iteration)
    assert draw(seed, iteration) != draw(seed, (iteration + 1) % 2**64)
    assert draw(seed, iteration) != draw((seed + 1) % 2**64, iteration)


@given(seeds, st.integers(0, 2**63))
def test_purposes_share_no_bits(seed: int, number: int) -> None:
    orders = {tuple(permutation(100, key=(seed, number), purpose=purpose)) for purpose in Purpose}
    assert len(orders) == len(Purpose)
    stream = augmentation_rng(seed=seed, iteration=number).bit_generator.random_raw(100)
    augmentation = permutation(100, key=(seed, number), purpose=Purpose.AUGMENTATION)
    assert np.array_equal(np.argsort(stream, kind="stable"), augmentation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is out of range"),
        ({"seed": 2**64}, "seed is out of range"),
        ({"iteration": -1}, "iteration is out of range"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_argument_out_of_range_is_named(change: dict[str, int], message: str) -> None:
    arguments = {"seed": 0, "iteration": 0, "num_samples": 10, "batch_size": 5} | change
    with pytest.raises(DataError, match=message):
        batch_indices(**arguments)
