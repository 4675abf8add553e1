from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.data.cifar import crop_and_flip


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (batch, 3, 32, 32), dtype=np.uint8)


@given(st.integers(0, 2**32), st.integers(0, 20))
def test_batch_equals_a_naive_loop_over_its_images(seed: int, batch: int) -> None:
    before = images(batch)
    after = crop_and_flip(before, np.random.default_rng(seed))

    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(0, 9, size=(2, batch))
    flips = rng.integers(0, 2, size=batch)
    for i in range(batch):
        padded = np.pad(before[i], ((0, 0), (4, 4), (4, 4)))
        crop = padded[:, rows[i] : rows[i] + 32, columns[i] : columns[i] + 32]
        assert np.array_equal(after[i], crop[:, :, ::-1] if flips[i] else crop)
    assert np.array_equal(before, images(batch))


def test_every_offset_and_both_directions_come_about_equally_often() -> None:
    # One bright pixel in the middle tells where its image went.
    marked = np.zeros((8100, 1, 32, 32), dtype=np.uint8)
    marked[:, :, 15, 15] = 1
    after = crop_and_flip(marked, np.random.default_rng(0))[:, 0].astype(np.int64)
    rows, columns = np.nonzero(after.sum(0))
    assert (rows.min(), rows.max()) == (11, 19)
    assert (columns.min(), columns.max()) == (11, 20)  # 15 ± 4, mirrored 16 ± 4
    per_row, per_column = after.sum((0, 2))[11:20], after.sum((0, 1))[11:21]
    assert abs(per_row - 900).max() < 150  # five deviations
    # Columns 12 to 19 are reached both ways; 11 only as it is, 20 only mirrored.
    assert abs(per_column - [450, *[900] * 8, 450]).max() < 150


def test_border_is_black() -> None:
    after = crop_and_flip(images(200), np.random.default_rng(1))
    assert (after[:, :, 0, :] == 0).all((1, 2)).any() and (after[:, :, 15, 15] > 0).all()
